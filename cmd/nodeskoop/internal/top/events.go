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
	// keptKinds is how many kinds of events of one pod are remembered, the last
	// that occurred.
	keptKinds = 64
	// keptPods bounds the pods with events between two samples, after which only
	// those that run are kept.
	keptPods = 4096
)

// The kernel's limits on events of one type and network namespace. They are above
// what most faults make, so that the losses on the host are counted one by one, and
// low enough that a flood costs a few percent of a CPU.
const (
	eventRate  = 500 // a second
	eventBurst = 2000
)

// kindKey is what occurrences of one kind have in common.
type kindKey struct {
	typ              *catalog.EventType
	host             bool // it is the host's, and hit a packet of the pod
	peer             string
	reason, function string
	comm             string
}

// kind is what is known of one kind of events of a pod.
type kind struct {
	kindKey
	count uint64
	last  time.Time
	worst time.Duration // of the latencies
}

// podEvents are the events of one pod, or of the host.
type podEvents struct {
	id        string // of the pod: those of another with its name are not its
	kinds     map[kindKey]*kind
	hostDrops uint64
	forgotten bool // there were more kinds than are kept
}

// tally is the sink of the events: it counts them by pod and kind.
type tally struct {
	mu   sync.Mutex
	pods map[podName]*podEvents
	// held counts losses of the host of which no event tells, because of a limit.
	held uint64
}

func newTally() *tally { return &tally{pods: map[podName]*podEvents{}} }

var packetLoss = catalog.EventByName("PacketLoss")

// Send counts an event for its owner, and a loss of the host's for the pods whose
// packet it was.
func (t *tally) Send(e *event.Event, done func(*event.Event, bool)) {
	t.count(e)
	if done != nil {
		done(e, true)
	}
}

// Close does nothing: what was sent has been counted.
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

// of returns what is known of a pod. The caller holds the lock.
func (t *tally) of(name podName, id string) *podEvents {
	p := t.pods[name]
	if p == nil || p.id != id {
		if p == nil && len(t.pods) >= keptPods {
			return &podEvents{kinds: map[kindKey]*kind{}} // it counts nowhere
		}
		p = &podEvents{id: id, kinds: map[kindKey]*kind{}}
		t.pods[name] = p
	}
	return p
}

// hostDropsOf tells how many losses of the host hit packets of a pod.
func (t *tally) hostDropsOf(name podName, id string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pods[name]; p != nil && p.id == id {
		return p.hostDrops
	}
	return 0
}

// heldBack tells how many losses of the host no event told of so far.
func (t *tally) heldBack() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held
}

// forget drops the events of all pods but those that a function wants kept.
func (t *tally) forget(keep func(podName) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.pods {
		if !keep(name) {
			delete(t.pods, name)
		}
	}
}

// kindsOf are the kinds of events of a pod, the last that occurred first. more says
// that there were others.
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

// add counts an event in its kind. self is the pod whose packet or socket it is, nil
// for the host.
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

// peerOf says with whom a pod's packet or connection was, and which end's service
// it was about: "from shop/load-0 to :8080", "to 10.0.0.9:443". It is empty where
// the event has no addresses.
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
	return "from " + from + " to " + nameOf(&e.Dst) + to // it is forwarded
}

// servicePort is the port of an end if a service has it.
func servicePort(end, other *event.Endpoint) string {
	if port := event.ServicePort(end, other); port != 0 {
		return ":" + strconv.Itoa(int(port))
	}
	return ""
}

// nameOf is the pod of an end of a connection, or its address.
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
