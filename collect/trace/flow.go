package trace

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var (
	flowBytes   = collect.MustMetric("kubeskoop_flow_bytes")
	flowPackets = collect.MustMetric("kubeskoop_flow_packets")
)

// idleCycles is for how many cycles a flow that sends nothing keeps its
// series where others wait for one, and how long one without a series is
// remembered. On a node whose pods come and go there are soon ten thousands
// that never send again: of each interface with an address of its own that it
// announced, for one.
const idleCycles = 20

// flowKind labels what the node's sockets or the host's devices sent, by
// connection.
var flowKind = kind{name: "flow", begin: func(p *probe, env collect.Env) func(*collect.View) error {
	f := &flows{probe: p, pods: env.Pods, known: map[flowKey]*flow{}, entry: map[flowKey]sums{}, spare: map[flowKey]sums{}, most: 1000, nodeAddrs: env.NodeAddrs}
	devices, _ := env.Options["devices"].([]string)
	f.devices = len(devices) > 0
	if n, ok := env.Options["max_series"].(int64); ok {
		f.most = int(n)
	}
	return f.sample
}}

// flowKey is what makes a series: without ports, all connections of two
// addresses are one, in the kernel already.
type flowKey struct {
	netns    uint64
	protocol uint8
	src, dst netip.AddrPort
}

type flow struct {
	total sums   // never falls: what the kernel's map evicted stays in it
	moved uint64 // the cycle in which it last sent something
	held  uint64 // the cycle in which the kernel last had an entry of it
	shown bool   // it has a series
}

type sums struct{ bytes, packets uint64 }

type flows struct {
	*probe
	pods    collect.Pods
	devices bool // counted is what devices transmit
	// nodeAddrs lists the node's own addresses.
	nodeAddrs func() (map[netip.Addr]struct{}, error)
	most      int
	cycle     uint64
	known     map[flowKey]*flow
	entry     map[flowKey]sums // the kernel's entries in the last cycle
	spare     map[flowKey]sums // the map of the cycle before, to be used again
}

func (f *flows) sample(v *collect.View) error {
	own, err := f.nodeAddrs()
	if err != nil {
		return err
	}
	f.cycle++
	f.bpf.Rescan()
	f.counts.begin(v)
	entries := f.spare
	clear(entries)
	err = f.bpf.SweepFlows(func(k bpf.Flow) (keep bool) {
		key := flowKey{k.Netns, k.Protocol, k.Source, k.Destination}
		if f.devices {
			key.netns = 0 // the host's, whose devices they are
		}
		now := sums{k.Bytes, k.Packets}
		was := f.entry[key]
		if key.netns != 0 {
			f.counts.at(key.netns) // one that is no pod's has to be forgotten, too
		}
		if now.bytes < was.bytes || now.packets < was.packets {
			was = sums{} // evicted, and made anew
		}
		x := f.known[key]
		if x == nil {
			x = &flow{moved: f.cycle}
			f.known[key] = x
		}
		if now != was {
			x.moved = f.cycle
			x.total.bytes += now.bytes - was.bytes
			x.total.packets += now.packets - was.packets
		}
		if !x.shown && f.cycle-x.moved > idleCycles {
			return false
		}
		entries[key] = now
		x.held = f.cycle
		return true
	})
	if err != nil {
		return err
	}
	f.entry, f.spare = entries, f.entry
	for k, x := range f.known {
		if !x.shown && x.held != f.cycle {
			delete(f.known, k)
		}
	}
	f.show(v, own)
	gone := f.counts.sweep(f.root)
	if len(gone) == 0 {
		return nil
	}
	for k := range f.known {
		if slices.Contains(gone, k.netns) {
			delete(f.known, k)
		}
	}
	f.forget(gone)
	return nil
}

// show adds the series. A flow that has one keeps it; the busiest of the
// others take what is free, or idle.
func (f *flows) show(v *collect.View, own map[netip.Addr]struct{}) {
	var shown, waiting []flowKey
	for k, x := range f.known {
		switch n := f.counts.known[k.netns]; {
		case k.netns != 0 && (n == nil || n.cycle != f.counts.cycle):
			x.shown = false // of a namespace that is neither the host's nor a pod's
		case x.shown:
			shown = append(shown, k)
		default:
			waiting = append(waiting, k)
		}
	}
	all := len(shown) + len(waiting)
	if all > f.most {
		shown = slices.DeleteFunc(shown, func(k flowKey) bool {
			x := f.known[k]
			x.shown = f.cycle-x.moved <= idleCycles
			return !x.shown
		})
	}
	slices.SortFunc(waiting, func(a, b flowKey) int {
		return cmp.Or(cmp.Compare(f.known[b].total.bytes, f.known[a].total.bytes), compareFlows(a, b))
	})
	for _, k := range waiting[:min(len(waiting), max(0, f.most-len(shown)))] {
		f.known[k].shown = true
		shown = append(shown, k)
	}
	slices.SortFunc(shown, compareFlows)
	ends := f.ends(v, own)
	add := func(netns uint64, m *collect.Metric, value uint64, labels []string) {
		if f.devices {
			v.Add(m, float64(value), labels...) // the host's
		} else {
			v.AddNetns(netns, m, float64(value), labels...)
		}
	}
	for _, k := range shown {
		x := f.known[k]
		labels := ends.labels(k)
		add(k.netns, flowBytes, x.total.bytes, labels)
		add(k.netns, flowPackets, x.total.packets, labels)
	}
	v.LeaveOut(flowBytes, all-len(shown))
	v.LeaveOut(flowPackets, all-len(shown))
}

// ends names the two sides of flows in one cycle.
type ends struct {
	pods  collect.Pods
	node  string
	own   map[netip.Addr]struct{} // the node's addresses
	netns map[uint64]*collect.Pod
}

func (f *flows) ends(v *collect.View, own map[netip.Addr]struct{}) ends {
	e := ends{pods: f.pods, node: v.Node(), own: own, netns: map[uint64]*collect.Pod{}}
	for inode, pod := range v.Netns() {
		e.netns[inode] = pod
	}
	return e
}

// labels are the values of the metrics' labels, in the Catalogue's order.
func (e ends) labels(k flowKey) []string {
	out := make([]string, 0, 13)
	out = append(out, protocolName(k.protocol))
	src := e.netns[k.netns]
	if src == nil {
		src = e.pods.ByAddr(k.src.Addr())
	}
	out = e.side(out, k.src.Addr(), src)
	out = e.side(out, k.dst.Addr(), e.pods.ByAddr(k.dst.Addr()))
	return append(out, strconv.Itoa(int(k.src.Port())), strconv.Itoa(int(k.dst.Port())))
}

// side appends address, type, node, namespace and pod of one end.
func (e ends) side(out []string, a netip.Addr, p *collect.Pod) []string {
	text := ""
	if a.IsValid() {
		text = a.String()
	}
	_, own := e.own[a]
	switch {
	case p != nil:
		return append(out, text, collect.EndPod, e.node, p.Namespace, p.Name)
	case own || a.IsLoopback():
		return append(out, text, collect.EndNode, e.node, "", "")
	}
	return append(out, text, collect.EndUnknown, "", "", "")
}

func compareFlows(a, b flowKey) int {
	return cmp.Or(cmp.Compare(a.netns, b.netns), cmp.Compare(a.protocol, b.protocol),
		a.src.Compare(b.src), a.dst.Compare(b.dst))
}
