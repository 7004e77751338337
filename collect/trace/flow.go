package trace

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

var (
	flowBytes   = catalog.MustMetric("kubeskoop_flow_bytes")
	flowPackets = catalog.MustMetric("kubeskoop_flow_packets")
)

// idleCycles is for how many cycles a flow that sends nothing keeps its
// series where others wait for one, and how long one without a series is
// kept. On a node whose pods come and go there are soon ten thousands
// that never send again: of each interface with an address of its own that it
// announced, for one.
const idleCycles = 20

// idleUnowned is the same for unowned namespaces: their flows are kept only in case
// they become a pod's.
const idleUnowned = 4

// flowKind labels what the node's sockets or the host's devices sent, by
// connection.
var flowKind = kind{name: "flow", whole: true, begin: func(p *probe, env collect.Env) func(*collect.View) error {
	f := &flows{probe: p, who: p.tracer.who, shown: map[bpf.FlowKey]*series{}, spaces: map[uint64]*space{}, most: 1000}
	devices, _ := env.Options["devices"].([]string)
	f.devices = len(devices) > 0
	if n, ok := env.Options["max_series"].(int64); ok {
		f.most = int(n)
	}
	return f.sample
}}

// series is a flow that has series: without ports, all connections of two
// addresses are one, in the kernel already.
type series struct {
	total sums   // never falls: what the kernel's map evicted stays in it
	entry sums   // the kernel's entry in the last cycle
	made  uint64 // which entry that was
	moved uint64 // the cycle in which it last sent something
	held  uint64 // the cycle in which the kernel last had an entry of it
}

type sums struct{ bytes, packets uint64 }

// add takes what the kernel's entry has now.
func (x *series) add(e *bpf.FlowEntry, cycle uint64) {
	x.held = cycle
	now := sums{e.Bytes, e.Packets}
	if e.Made != x.made || now.bytes < x.entry.bytes || now.packets < x.entry.packets {
		x.made, x.entry = e.Made, sums{} // evicted, and made again
	}
	if now != x.entry {
		x.moved = cycle
		x.total.bytes += now.bytes - x.entry.bytes
		x.total.packets += now.packets - x.entry.packets
		x.entry = now
	}
}

// space counts the flows of one network namespace in one cycle.
type space struct {
	all   int // with series and without
	shown int
	most  int         // that may have series
	best  []candidate // the busiest of those without series: a heap, the least on top
}

// candidate is a flow that may get series.
type candidate struct {
	key   bpf.FlowKey
	bytes uint64
	flow  series
}

func (a *candidate) less(b *candidate) bool {
	return a.bytes < b.bytes || a.bytes == b.bytes && a.key.Compare(&b.key) > 0
}

// offer keeps c if it is one of the busiest n.
func (s *space) offer(c candidate, n int) {
	h := s.best
	if len(h) < n {
		h = append(h, c)
		for i := len(h) - 1; i > 0 && h[i].less(&h[(i-1)/2]); i = (i - 1) / 2 {
			h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
		}
		s.best = h
		return
	}
	if n == 0 || !h[0].less(&c) {
		return
	}
	h[0] = c
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h); child++ {
			if h[child].less(&h[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// flows remembers of the kernel's map only what has series. What else is worth
// knowing of a connection, the map's entry knows itself.
type flows struct {
	*probe
	who     *owner.Resolver
	devices bool // counted is what devices transmit
	most    int
	cycle   uint64
	shown   map[bpf.FlowKey]*series
	spaces  map[uint64]*space
}

// netns is the namespace that a flow's series are of: those of devices are the
// host's, whose devices they are.
func (f *flows) netns(k *bpf.FlowKey) uint64 {
	if f.devices {
		return 0
	}
	return k.Netns()
}

// sample reads the kernel's map in calls of their own: what is worked out
// between them is no call that could hang.
func (f *flows) sample(v *collect.View) error {
	var gone []uint64
	var ends ends
	err := v.Do(0, "flows", func() error {
		if err := f.who.ReadAddrs(); err != nil {
			return err
		}
		f.bpf.Rescan()
		f.begin(v)
		ends = f.ends(v)
		return f.read()
	})
	if err != nil {
		return err
	}
	all := f.share()
	if f.wants() {
		if err := v.Do(0, "flows", f.choose); err != nil {
			return err
		}
	}
	f.show(v, ends, all)
	return v.Do(0, "flows", func() error {
		gone = f.sweep(v)
		for k := range f.shown {
			if slices.Contains(gone, k.Netns()) {
				delete(f.shown, k)
			}
		}
		return f.forget(gone)
	})
}

// begin starts a cycle: the namespaces whose flows may have series are known.
func (f *flows) begin(v *collect.View) {
	f.cycle++
	f.follow(v)
	clear(f.spaces)
	if f.devices {
		f.spaces[0] = &space{}
		return
	}
	for netns := range v.Netns() {
		f.spaces[netns] = &space{}
	}
}

// read takes the kernel's entries of flows that have series, counts the others,
// and drops those that have sent nothing for long.
func (f *flows) read() error {
	err := f.bpf.SweepFlows(func(e bpf.FlowEntry) (keep bool) {
		netns := f.netns(&e.Key)
		s := f.spaces[netns]
		if s == nil {
			f.counts.at(netns) // has to be forgotten, too
			return e.Idle <= idleUnowned
		}
		if x := f.shown[e.Key]; x != nil {
			x.add(&e, f.cycle)
			return true
		}
		if e.Idle > idleCycles {
			return false
		}
		s.all++
		return true
	})
	if err != nil {
		return err
	}
	for k := range f.shown {
		if s := f.spaces[f.netns(&k)]; s != nil {
			s.all++
			s.shown++
		} else {
			delete(f.shown, k) // of a namespace that is neither the host's nor a pod's any more
		}
	}
	return nil
}

// share divides the series among the namespaces: each gets what it asks for, up
// to a bound that is the same for all. It takes series from those that are idle
// or more than a namespace's share, and returns how many flows there are.
func (f *flows) share() (all int) {
	for _, s := range f.spaces {
		all += s.all
	}
	if all > f.most {
		for k, x := range f.shown {
			if f.cycle-x.moved > idleCycles {
				s := f.spaces[f.netns(&k)]
				delete(f.shown, k)
				if s.shown--; x.held != f.cycle {
					s.all-- // nothing is left of it
					all--
				}
			}
		}
	}
	order := make([]uint64, 0, len(f.spaces))
	for netns := range f.spaces {
		order = append(order, netns)
	}
	slices.SortFunc(order, func(a, b uint64) int {
		return cmp.Or(cmp.Compare(f.spaces[a].all, f.spaces[b].all), cmp.Compare(a, b))
	})
	left := f.most
	over := false
	for i, netns := range order {
		s := f.spaces[netns]
		s.most = min(s.all, left/(len(order)-i))
		left -= s.most
		over = over || s.shown > s.most
	}
	if over {
		f.shrink()
	}
	return all
}

// shrink takes the series of the least busy flows of namespaces that have more
// than their share.
func (f *flows) shrink() {
	keys := make([]bpf.FlowKey, 0, len(f.shown))
	for k := range f.shown {
		if s := f.spaces[f.netns(&k)]; s.shown > s.most {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b bpf.FlowKey) int {
		return cmp.Or(cmp.Compare(f.shown[a].total.bytes, f.shown[b].total.bytes), a.Compare(&b))
	})
	for _, k := range keys {
		if s := f.spaces[f.netns(&k)]; s.shown > s.most {
			delete(f.shown, k)
			s.shown--
		}
	}
}

// wants reports whether flows without series may get some.
func (f *flows) wants() bool {
	for _, s := range f.spaces {
		if s.shown < s.most {
			return true
		}
	}
	return false
}

// choose gives what is free to the busiest flows of each namespace.
func (f *flows) choose() error {
	err := f.bpf.EachFlow(func(e bpf.FlowEntry) {
		s := f.spaces[f.netns(&e.Key)]
		if s == nil || s.shown >= s.most || e.Idle > idleCycles || f.shown[e.Key] != nil {
			return
		}
		now := sums{e.Bytes, e.Packets}
		s.offer(candidate{e.Key, e.Bytes, series{total: now, entry: now, made: e.Made, moved: f.cycle, held: f.cycle}}, s.most-s.shown)
	})
	if err != nil {
		return err
	}
	for _, s := range f.spaces {
		for _, c := range s.best {
			f.shown[c.key] = &c.flow
		}
		s.shown += len(s.best)
		s.best = nil
	}
	return nil
}

// show adds the series, and counts those that are left out.
func (f *flows) show(v *collect.View, ends ends, all int) {
	keys := make([]bpf.FlowKey, 0, len(f.shown))
	for k := range f.shown {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b bpf.FlowKey) int { return a.Compare(&b) })
	add := func(netns uint64, m *catalog.Metric, value uint64, labels []string) {
		if f.devices {
			v.Add(m, float64(value), labels...) // the host's
		} else {
			v.AddNetns(netns, m, float64(value), labels...)
		}
	}
	for _, k := range keys {
		x := f.shown[k]
		labels := ends.labels(f.netns(&k), &k)
		add(k.Netns(), flowBytes, x.total.bytes, labels)
		add(k.Netns(), flowPackets, x.total.packets, labels)
	}
	v.LeaveOut(flowBytes, max(0, all-len(keys)))
	v.LeaveOut(flowPackets, max(0, all-len(keys)))
}

// ends names the two ends of flows in one cycle.
type ends struct {
	who   *owner.Resolver
	node  string
	netns map[uint64]*owner.Pod
}

func (f *flows) ends(v *collect.View) ends {
	e := ends{who: f.who, node: v.Node(), netns: map[uint64]*owner.Pod{}}
	for inode, pod := range v.Netns() {
		e.netns[inode] = pod
	}
	return e
}

// labels are the values of the metrics' labels, in the Catalogue's order.
func (e ends) labels(netns uint64, k *bpf.FlowKey) []string {
	protocol, from, to := k.Ends()
	out := make([]string, 0, 13)
	out = append(out, protocolName(protocol))
	where := e.netns[netns]
	out = e.end(out, from.Addr(), where, true)
	out = e.end(out, to.Addr(), where, false)
	return append(out, strconv.Itoa(int(from.Port())), strconv.Itoa(int(to.Port())))
}

// end appends address, type, node, namespace and pod of one end of a flow that
// the pod where sends; nil: no pod. The source is that pod, whatever address it
// has.
func (e ends) end(out []string, a netip.Addr, where *owner.Pod, source bool) []string {
	text, node := "", e.node
	if a.IsValid() {
		text = a.String()
	}
	kind, p := owner.EndPod, where
	if !source || where == nil {
		kind, p = e.who.End(a, where, false)
	}
	if kind == owner.EndUnknown {
		node = ""
	}
	namespace, name := "", ""
	if p != nil {
		namespace, name = p.Namespace, p.Name
	}
	return append(out, text, kind, node, namespace, name)
}
