package trace

import (
	"maps"
	"slices"

	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var (
	lossTotal   = collect.MustMetric("kubeskoop_packetloss_total")
	lossReason  = collect.MustMetric("kubeskoop_packetloss_reason")
	lossIgnored = collect.MustMetric("nodeskoop_packetloss_ignored_total")
	lossByClass = map[bpf.DropClass]*collect.Metric{
		bpf.DropAbnormal:  collect.MustMetric("kubeskoop_packetloss_abnormal"),
		bpf.DropTCPHandle: collect.MustMetric("kubeskoop_packetloss_tcphandle"),
		bpf.DropTCPRcv:    collect.MustMetric("kubeskoop_packetloss_tcprcv"),
		bpf.DropTCPStatM:  collect.MustMetric("kubeskoop_packetloss_tcpstatm"),
		bpf.DropNetfilter: collect.MustMetric("kubeskoop_packetloss_netfilter"),
	}
)

// packetlossKind has the five classes, their sum, the reasons, and what was no
// loss.
var packetlossKind = kind{name: "packetloss", begin: func(p *probe, _ collect.Env) func(*collect.View) error {
	loss := &losses{probe: p, reasons: map[uint64]*reasonCount{}}
	return loss.sample
}}

type losses struct {
	*probe
	reasons map[uint64]*reasonCount // by namespace
}

// reasonCount holds a namespace's drops by reason, as counts does by class.
type reasonCount struct {
	pod          string
	values, base map[uint32]uint64
}

func (l *losses) sample(v *collect.View) error {
	// The classes are sums over the same entries, read at the same moment, so
	// that they and the reasons add up to one total.
	l.follow(v)
	sums := map[uint64]*[maxSlots]uint64{}
	for _, r := range l.reasons {
		clear(r.values)
	}
	err := l.bpf.Drops(func(d bpf.Drop) {
		s := sums[d.Netns]
		if s == nil {
			s = new([maxSlots]uint64)
			sums[d.Netns] = s
		}
		s[d.Class] += d.Count
		l.at(d.Netns).values[d.Reason] += d.Count
	})
	if err != nil {
		return err
	}
	for netns, s := range sums {
		for slot, n := range s {
			l.counts.add(netns, slot, n)
		}
	}
	names, err := l.plane.reasons()
	if err != nil {
		return err
	}
	l.counts.each(func(netns uint64, values *[maxSlots]uint64) {
		var total uint64
		for class, m := range lossByClass {
			v.AddNetns(netns, m, float64(values[class]))
			total += values[class]
		}
		v.AddNetns(netns, lossTotal, float64(total))
		l.addReasons(v, netns, names)
	})
	ignored, err := l.bpf.Ignored()
	if err != nil {
		return err
	}
	for _, why := range bpf.WhyIgnored() {
		v.Add(lossIgnored, float64(ignored[why]), why.String())
	}
	gone := l.sweep(v)
	for _, netns := range gone {
		delete(l.reasons, netns)
	}
	return l.forget(gone)
}

func (l *losses) at(netns uint64) *reasonCount {
	r := l.reasons[netns]
	if r == nil {
		r = &reasonCount{values: map[uint32]uint64{}, base: map[uint32]uint64{}}
		l.reasons[netns] = r
	}
	return r
}

// addReasons adds the losses of one namespace by reason.
func (l *losses) addReasons(v *collect.View, netns uint64, names *bpf.Reasons) {
	r := l.at(netns)
	pod := ""
	if n := l.counts.known[netns]; n != nil {
		pod = n.pod
	}
	if pod != r.pod {
		if r.pod != "" {
			clear(r.base)
			for reason, n := range r.values {
				r.base[reason] = n
			}
		}
		r.pod = pod
	}
	byName := map[string]uint64{}
	for reason, n := range r.values {
		if n < r.base[reason] {
			delete(r.base, reason)
		}
		byName[names.Drop(reason)] += n - r.base[reason]
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		v.AddNetns(netns, lossReason, float64(byName[name]), name)
	}
}
