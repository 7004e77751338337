package diagnose

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/trace"
)

// Probes are the probes that diagnose runs.
func Probes() []string {
	return []string{"biolatency", "conntrack", "net_softirq", "packetloss", "socketlatency", "softnet", "tcpreset", "tcpretrans"}
}

// mostEvents is the maximum number of events that are kept. Beyond it, events of the
// owner with the most events are left out, so no pod's flood takes room from another's
// events.
const mostEvents = 50_000

// Node is how findings name the node.
const Node = "node"

// nameOfPod is how findings name a pod.
func nameOfPod(p *owner.Pod) string {
	if p.HostNetwork {
		return Node
	}
	return p.Namespace + "/" + p.Name
}

// occurrences is the sink of the events. It keeps them by owner.
type occurrences struct {
	mu   sync.Mutex
	of   map[string][]occurrence
	all  int
	most int // 0 means mostEvents
	// left counts events that were not kept, because of the kernel's limits or of
	// mostEvents.
	left map[leftOut]uint64
}

// leftOut is the owner and type of events that were not kept.
type leftOut struct{ owner, typ string }

// unattributed is the owner of events whose namespace the kernel left no way to know.
// They may be anybody's.
const unattributed = "unattributed"

// occurrence holds the fields of an event that findings need.
type occurrence struct {
	typ      string
	owner    string // a pod, Node, or "" if it belongs to neither
	src, dst end
	reason   string
	function string // function that dropped the packet
	state    string // TCP state
	comm     string
	disk     string
	protocol string
	at       time.Time
	latency  time.Duration
	n        uint64
}

// end is one end of a connection. Its name is a pod, Node, or the address.
type end struct {
	name string
	addr string
	port uint16
}

// known reports whether an end is on this node.
func (e end) known() bool { return e.name != "" && e.name != e.addr }

func endOf(e *event.Endpoint) end {
	x := end{port: e.Port}
	if e.Addr.IsValid() {
		x.addr = e.Addr.String()
		x.name = x.addr
	}
	switch {
	case e.Pod != nil:
		x.name = nameOfPod(e.Pod)
	case e.Kind == event.EndNode:
		x.name = Node
	}
	return x
}

// Send keeps an event.
func (o *occurrences) Send(e *event.Event, done func(*event.Event, bool)) {
	x := occurrence{
		typ: e.Type.Name, src: endOf(&e.Src), dst: endOf(&e.Dst), reason: e.Reason, state: e.TCPState,
		comm: event.CommonComm(e.Comm), disk: e.Disk, protocol: e.Protocol, at: e.Time, latency: e.Latency, n: e.Occurrences(),
		function: functionOf(e.Location),
	}
	switch {
	case e.Pod != nil:
		x.owner = nameOfPod(e.Pod)
	case e.OfHost():
		x.owner = Node
	}
	name := x.owner
	if e.Unattributed() {
		name = unattributed
	}
	o.keep(name, x, e.Suppressed)
	if done != nil {
		done(e, true)
	}
}

// keep keeps an event of an owner, and counts those suppressed before it.
func (o *occurrences) keep(name string, x occurrence, suppressed uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil {
		o.of, o.left = map[string][]occurrence{}, map[leftOut]uint64{}
	}
	if suppressed > 0 {
		o.left[leftOut{name, x.typ}] += suppressed
	}
	if o.all >= cmp.Or(o.most, mostEvents) {
		richest, most := name, len(o.of[name])
		for other, list := range o.of {
			if len(list) > most+1 { // without the +1 the two owners would take turns
				richest, most = other, len(list)
			}
		}
		if richest == name {
			o.left[leftOut{name, x.typ}] += x.n
			return
		}
		list := o.of[richest]
		last := list[most-1]
		o.of[richest] = list[:most-1]
		o.left[leftOut{richest, last.typ}] += last.n
		o.all--
	}
	o.of[name] = append(o.of[name], x)
	o.all++
}

// Close does nothing, since sent events are already kept.
func (*occurrences) Close(context.Context) error { return nil }

// since returns the events since a moment, and the numbers of events left out.
func (o *occurrences) since(t time.Time) (list []occurrence, left map[leftOut]uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(o.of)) {
		for _, x := range o.of[name] {
			if !x.at.Before(t) {
				list = append(list, x)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b occurrence) int { return a.at.Compare(b.at) })
	return list, maps.Clone(o.left)
}

// watcher runs the probes.
type watcher struct {
	runner *collect.Runner
	tracer *trace.Tracer
	pods   owner.Pods
	seen   occurrences
	status func() error // status of containerd
}

// newWatcher makes a watcher; end releases it.
func newWatcher(ctx context.Context, s *session.Session) (w *watcher, end func(), err error) {
	w = &watcher{}
	probes := session.WithOption(session.WithoutStacks(s.Config.Options().Probes), "conntrack", "pods", true)
	x, err := s.NewOnlooker(ctx, s.Config.Options().Enabled, probes, &w.seen)
	if err != nil {
		return nil, nil, err
	}
	w.runner, w.tracer, w.pods = x.Runner, x.Tracer, x.Pods
	w.status = func() error { return session.Named(x.Pods) }
	return w, x.Close, nil
}

// values are the metrics of one owner.
type values map[string]float64

// sample takes one sample: the values of the node and of each pod, summed over all
// other labels.
func (w *watcher) sample() map[string]values {
	out := map[string]values{}
	shared := map[string]bool{} // Several pods have the same name, so the values of none are known.
	seen := map[string]string{}
	for _, p := range w.pods.Running() {
		if p.HostNetwork {
			continue
		}
		if id, twice := seen[nameOfPod(p)]; twice && id != p.ID {
			shared[nameOfPod(p)] = true
		}
		seen[nameOfPod(p)] = p.ID
	}
	for _, f := range w.runner.Cycle() {
		if catalog.MetricByName(f.GetName()) == nil {
			continue
		}
		for _, m := range f.GetMetric() {
			name := ownerOf(m)
			if name == "" || shared[name] {
				continue
			}
			if out[name] == nil {
				out[name] = values{}
			}
			out[name][f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	w.tracer.Account()
	return out
}

func ownerOf(m *dto.Metric) string {
	var namespace, pod string
	for _, l := range m.GetLabel() {
		switch l.GetName() {
		case owner.LabelNamespace:
			namespace = l.GetValue()
		case owner.LabelPod:
			pod = l.GetValue()
		}
	}
	switch {
	case pod == session.OnlookerHost:
		return Node
	case pod == "", pod == owner.UnknownLabel && namespace == owner.UnknownLabel:
		return ""
	}
	return namespace + "/" + pod
}

// rises returns the counters' increases between two samples, and the gauges of the
// second. A counter that fell was reset, so its increase is not known.
func rises(before, after values) values {
	out := values{}
	for name, v := range after {
		if catalog.MetricByName(name).Type == catalog.Gauge {
			out[name] = v
			continue
		}
		if was, ok := before[name]; ok && v >= was {
			out[name] = v - was
		}
	}
	return out
}

// limited reports whether a probe does not work, or has limitations on this kernel.
func (w *watcher) limited(probe string) bool {
	return !slices.ContainsFunc(w.runner.Status(), func(st collect.ProbeStatus) bool {
		return st.Name == probe && st.Up && len(st.Limitations) == 0
	})
}

// troubles lists the probes of diagnose that do not run or do not work, and why.
func (w *watcher) troubles() []NotLooked {
	var list []NotLooked
	status := w.runner.Status()
	for _, name := range Probes() {
		if !slices.ContainsFunc(status, func(st collect.ProbeStatus) bool { return st.Name == name }) {
			list = append(list, NotLooked{"probe " + name, "it is not among the chosen probes"})
		}
	}
	for _, st := range status {
		if st.Err != nil {
			list = append(list, NotLooked{"probe " + st.Name, firstLine(st.Err)})
		}
	}
	if err := w.status(); err != nil {
		list = append(list, NotLooked{"pods", fmt.Sprintf("%v; nodeskoop check says more", err)})
	}
	return list
}
