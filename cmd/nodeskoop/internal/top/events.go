package top

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
)

const (
	// keptKinds is the maximum number of kinds of events remembered per pod, the
	// most recent ones.
	keptKinds = 64
	// keptPods is the number of pods with events between two samples beyond which
	// events of pods that no longer run are dropped.
	keptPods = 4096
)

// kindKey identifies a kind of event.
type kindKey struct {
	typ              *catalog.EventType
	host             bool // a drop on the host that hit a packet of the pod
	peer             string
	reason, function string
	comm             string
}

// kind is the summary of one kind of a pod's events.
type kind struct {
	kindKey
	count uint64
	last  time.Time
	worst time.Duration // worst latency
}

// podEvents holds the events of one pod, or of the host.
type podEvents struct {
	id        string // the pod's ID, since another pod may have the same name later
	kinds     map[kindKey]*kind
	hostDrops uint64
	forgotten bool // more kinds occurred than are kept
}

// tally is the sink that counts events by pod and kind.
type tally struct {
	mu   sync.Mutex
	pods map[podName]*podEvents
	// held counts drops on the host whose events a limit suppressed.
	held uint64
}

func newTally() *tally { return &tally{pods: map[podName]*podEvents{}} }

var packetLoss = catalog.EventByName("PacketLoss")

// Send counts an event for its owner. A drop on the host also counts for the pods
// at the ends of the packet.
func (t *tally) Send(e *event.Event, done func(*event.Event, bool)) {
	t.count(e)
	if done != nil {
		done(e, true)
	}
}

// Close does nothing: sent events are already counted.
func (*tally) Close(context.Context) error { return nil }

func (t *tally) count(e *event.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case e.OfHost(), e.Pod != nil && e.Pod.HostNetwork:
		t.of(hostName, hostLabel).add(e, nil, false)
	case e.Pod != nil:
		t.of(podName{e.Pod.Namespace, e.Pod.Name}, e.Pod.ID).add(e, e.Pod, false)
	}
	if e.Type != packetLoss || !e.OfHost() {
		return
	}
	t.held += e.Suppressed
	src, dst := e.Src.Pod, e.Dst.Pod
	if src != nil && dst != nil && src.ID == dst.ID {
		dst = nil
	}
	for _, p := range []*owner.Pod{src, dst} {
		if p != nil && !p.HostNetwork {
			of := t.of(podName{p.Namespace, p.Name}, p.ID)
			of.hostDrops += e.Occurrences()
			of.add(e, p, true)
		}
	}
}

// of returns the events of a pod. The caller holds the lock.
func (t *tally) of(name podName, id string) *podEvents {
	p := t.pods[name]
	if p == nil || p.id != id {
		if p == nil && len(t.pods) >= keptPods {
			return &podEvents{kinds: map[kindKey]*kind{}} // not stored anywhere
		}
		p = &podEvents{id: id, kinds: map[kindKey]*kind{}}
		t.pods[name] = p
	}
	return p
}

// hostDropsOf returns the number of drops on the host that hit packets of a pod.
func (t *tally) hostDropsOf(name podName, id string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pods[name]; p != nil && p.id == id {
		return p.hostDrops
	}
	return 0
}

// heldBack returns the number of drops on the host whose events were suppressed so
// far.
func (t *tally) heldBack() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held
}

// forget drops the events of pods for which keep returns false.
func (t *tally) forget(keep func(podName) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.pods {
		if !keep(name) {
			delete(t.pods, name)
		}
	}
}

// kindsOf returns the kinds of a pod's events, most recent first. more means that
// further kinds occurred.
func (t *tally) kindsOf(name podName, id string) (kinds []kind, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.pods[name]
	if p == nil || p.id != id {
		return nil, false
	}
	for _, k := range p.kinds {
		kinds = append(kinds, *k)
	}
	slices.SortFunc(kinds, func(a, b kind) int {
		return cmp.Or(b.last.Compare(a.last), cmp.Compare(a.typ.ID(), b.typ.ID()), cmp.Compare(a.peer, b.peer), cmp.Compare(a.reason, b.reason), cmp.Compare(a.function, b.function))
	})
	return kinds, p.forgotten
}

// add counts an event in its kind. self is the pod whose packet or socket it
// concerns, nil for the host.
func (p *podEvents) add(e *event.Event, self *owner.Pod, host bool) {
	function, _, _ := strings.Cut(e.Location, "+")
	key := kindKey{typ: e.Type, host: host, peer: peerOf(e, self), reason: e.Reason, function: function, comm: event.CommonComm(e.Comm)}
	k := p.kinds[key]
	if k == nil {
		if len(p.kinds) >= keptKinds {
			oldest := key
			for other, x := range p.kinds {
				if oldest == key || x.last.Before(p.kinds[oldest].last) {
					oldest = other
				}
			}
			delete(p.kinds, oldest)
			p.forgotten = true
		}
		k = &kind{kindKey: key}
		p.kinds[key] = k
	}
	k.count += e.Occurrences()
	if seen := e.LastSeen(); seen.After(k.last) {
		k.last = seen
	}
	k.worst = max(k.worst, e.Latency)
}

// peerOf describes the peer of a pod's packet or connection, and the service port
// at either end: "from shop/load-0 to :8080", "to 10.0.0.9:443". It is empty for
// events without addresses.
func peerOf(e *event.Event, self *owner.Pod) string {
	if !e.Type.Has(catalog.FieldTuple) || !e.Src.Addr.IsValid() && !e.Dst.Addr.IsValid() {
		return ""
	}
	own := func(end *event.Endpoint) bool {
		if self != nil {
			return end.Pod != nil && end.Pod.ID == self.ID
		}
		return end.Kind == event.EndNode
	}
	from, to := nameOf(&e.Src)+servicePort(&e.Src, &e.Dst), servicePort(&e.Dst, &e.Src)
	switch ownSrc, ownDst := own(&e.Src), own(&e.Dst); {
	case ownDst && !ownSrc && to == "":
		return "from " + from
	case ownDst && !ownSrc:
		return "from " + from + " to " + to
	case ownSrc && to == "" && servicePort(&e.Src, &e.Dst) != "":
		return "to " + nameOf(&e.Dst) + " from " + servicePort(&e.Src, &e.Dst)
	case ownSrc:
		return "to " + nameOf(&e.Dst) + to
	}
	return "from " + from + " to " + nameOf(&e.Dst) + to // a forwarded packet
}

// servicePort returns the port of an end if that end is the service.
func servicePort(end, other *event.Endpoint) string {
	if port := event.ServicePort(end, other); port != 0 {
		return ":" + strconv.Itoa(int(port))
	}
	return ""
}

// nameOf returns the pod at an end of a connection, or its address.
func nameOf(end *event.Endpoint) string {
	switch {
	case end.Pod != nil && !end.Pod.HostNetwork:
		return end.Pod.Namespace + "/" + end.Pod.Name
	case !end.Addr.IsValid():
		return "?"
	case end.Addr.Is6():
		return "[" + end.Addr.String() + "]"
	}
	return end.Addr.String()
}
