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

// idleCycles is the number of idle cycles after which a flow loses its series if
// other flows wait for one, and after which a flow without series is deleted. On
// a node with short-lived pods, tens of thousands of flows never send again, for
// example one for each interface that announced its address.
const idleCycles = 20

// idleUnowned is idleCycles for flows of unowned namespaces, which are kept only in
// case the namespace becomes a pod's.
const idleUnowned = 4

// flowKind labels, by connection, the traffic that the node's sockets or the
// host's devices sent.
var flowKind = kind{name: "flow", whole: true, begin: func(p *probe, env collect.Env) func(*collect.View) error {
	f := &flows{probe: p, who: p.tracer.who, shown: map[bpf.FlowKey]*series{}, spaces: map[bpf.NetnsID]*space{}, most: 1000}
	devices, _ := env.Options["devices"].([]string)
	f.devices = len(devices) > 0
	if n, ok := env.Options["max_series"].(int64); ok {
		f.most = int(n)
	}
	return f.sample
}}

// series is a flow that has series. Without ports, the kernel already combines
// all connections between two addresses into one flow.
type series struct {
	total sums   // never falls: includes counts that the kernel's map evicted
	entry sums   // the kernel's entry in the last cycle
	made  uint64 // identifies the entry in entry
	moved uint64 // last cycle in which it sent something
	held  uint64 // last cycle in which the kernel had an entry for it
}

type sums struct{ bytes, packets uint64 }

// add updates the flow from the kernel's current entry.
func (x *series) add(e *bpf.FlowEntry, cycle uint64) {
	x.held = cycle
	now := sums{e.Bytes, e.Packets}
	if e.Made != x.made || now.bytes < x.entry.bytes || now.packets < x.entry.packets {
		x.made, x.entry = e.Made, sums{} // the entry was evicted and created again
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
	all   int // flows with and without series
	shown int
	most  int         // maximum number of flows with series
	best  []candidate // the busiest flows without series: a heap with the least busy on top
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

// flows remembers only the flows that have series. The map's entries hold
// everything else.
type flows struct {
	*probe
	who     *owner.Resolver
	devices bool // counted is what devices transmit
	most    int
	cycle   uint64
	shown   map[bpf.FlowKey]*series
	spaces  map[bpf.NetnsID]*space
}

// netns returns the namespace to whose owner a flow's series belong. Flows of
// devices belong to the host, as the devices do.
func (f *flows) netns(k *bpf.FlowKey) bpf.NetnsID {
	if f.devices {
		return 0
	}
	return k.Netns()
}

// sample reads the kernel's map in separate calls, because computations in
// between cannot hang.
func (f *flows) sample(v *collect.View) error {
	var gone []bpf.NetnsID
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

// begin starts a cycle and determines the namespaces whose flows may have series.
func (f *flows) begin(v *collect.View) {
	f.cycle++
	f.follow(v)
	clear(f.spaces)
	if f.devices {
		f.spaces[0] = &space{}
		return
	}
	for _, netns := range f.counts.followed {
		f.spaces[netns] = &space{}
	}
}

// read updates the flows that have series, counts the others, and deletes flows
// that have been idle for long.
func (f *flows) read() error {
	err := f.bpf.SweepFlows(func(e bpf.FlowEntry) (keep bool) {
		netns := f.netns(&e.Key)
		s := f.spaces[netns]
		if s == nil {
			f.counts.at(netns) // counts has to forget this namespace, too
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
			delete(f.shown, k) // the namespace is no longer the host's or a pod's
		}
	}
	return nil
}

// share divides the series among the namespaces. Each gets as many as it asks
// for, up to a limit that is the same for all. It takes series from idle flows
// and from namespaces above their share, and returns the number of flows.
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
	order := make([]bpf.NetnsID, 0, len(f.spaces))
	for netns := range f.spaces {
		order = append(order, netns)
	}
	slices.SortFunc(order, func(a, b bpf.NetnsID) int {
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

// shrink takes the series of the least busy flows from namespaces that exceed
// their share.
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

// wants reports whether any flow without series may get series.
func (f *flows) wants() bool {
	for _, s := range f.spaces {
		if s.shown < s.most {
			return true
		}
	}
	return false
}

// choose gives free series to the busiest flows of each namespace.
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

// show adds the series, and counts the flows without series.
func (f *flows) show(v *collect.View, ends ends, all int) {
	keys := make([]bpf.FlowKey, 0, len(f.shown))
	for k := range f.shown {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b bpf.FlowKey) int { return a.Compare(&b) })
	add := func(netns bpf.NetnsID, m *catalog.Metric, value uint64, labels []string) {
		if f.devices {
			v.Add(m, float64(value), labels...) // the count of evicted flows belongs to the host
		} else {
			v.AddNetns(netns.Inode(), m, float64(value), labels...)
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

// ends names the ends of flows, within one cycle.
type ends struct {
	who   *owner.Resolver
	node  string
	netns map[uint64]*owner.Pod // by inode number
}

func (f *flows) ends(v *collect.View) ends {
	e := ends{who: f.who, node: v.Node(), netns: map[uint64]*owner.Pod{}}
	for inode, pod := range v.Netns() {
		e.netns[inode] = pod
	}
	return e
}

// labels are the values of the metrics' labels, in the Catalogue's order.
func (e ends) labels(netns bpf.NetnsID, k *bpf.FlowKey) []string {
	protocol, from, to := k.Ends()
	out := make([]string, 0, 13)
	out = append(out, protocolName(protocol))
	where := e.netns[netns.Inode()]
	out = e.end(out, from.Addr(), where, true)
	out = e.end(out, to.Addr(), where, false)
	return append(out, strconv.Itoa(int(from.Port())), strconv.Itoa(int(to.Port())))
}

// end appends address, type, node, namespace and pod of one end of a flow. where
// is the sending pod, nil if the sender is not a pod. The source is that pod,
// whatever its address.
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
