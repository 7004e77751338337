package diagnose

import (
	"context"
	"fmt"
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

const mostEvents = 50_000 // that are kept

// Node is how findings name the node.
const Node = "node"

// nameOfPod is how findings name a pod.
func nameOfPod(p *owner.Pod) string {
	if p.HostNetwork {
		return Node
	}
	return p.Namespace + "/" + p.Name
}

// occurrences is a sink that stores the events.
type occurrences struct {
	mu   sync.Mutex
	list []occurrence
	left uint64 // number not stored, because of limits in the kernel or mostEvents
}

// occurrence holds the stored part of an event.
type occurrence struct {
	typ      string
	owner    string // a pod, Node, or "" if it belongs to neither
	src, dst end
	reason   string
	function string // that dropped a packet
	state    string // of TCP
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
	o.mu.Lock()
	if o.left += e.Suppressed; len(o.list) < mostEvents {
		o.list = append(o.list, x)
	} else {
		o.left += x.n
	}
	o.mu.Unlock()
	if done != nil {
		done(e, true)
	}
}

// Close does nothing: sent events stay stored.
func (*occurrences) Close(context.Context) error { return nil }

// since returns the events from a moment on.
func (o *occurrences) since(t time.Time) (list []occurrence, left uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(o.list), func(x occurrence) bool { return x.at.Before(t) }), o.left
}

// watcher runs the probes.
type watcher struct {
	runner *collect.Runner
	tracer *trace.Tracer
	pods   owner.Pods
	seen   occurrences
	status func() error // of containerd
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

// troubles lists the probes that do not work, and why.
func (w *watcher) troubles() []NotLooked {
	var list []NotLooked
	for _, st := range w.runner.Status() {
		if st.Err != nil {
			list = append(list, NotLooked{"probe " + st.Name, firstLine(st.Err)})
		}
	}
	if err := w.status(); err != nil {
		list = append(list, NotLooked{"pods", fmt.Sprintf("%v; nodeskoop check says more", err)})
	}
	return list
}
