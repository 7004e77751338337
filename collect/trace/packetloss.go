package trace

import (
	"maps"
	"slices"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

var (
	lossTotal   = catalog.MustMetric("kubeskoop_packetloss_total")
	lossReason  = catalog.MustMetric("kubeskoop_packetloss_reason")
	lossIgnored = catalog.MustMetric("nodeskoop_packetloss_ignored_total")
	lossByClass = map[bpf.DropClass]*catalog.Metric{
		bpf.DropAbnormal:  catalog.MustMetric("kubeskoop_packetloss_abnormal"),
		bpf.DropTCPHandle: catalog.MustMetric("kubeskoop_packetloss_tcphandle"),
		bpf.DropTCPRcv:    catalog.MustMetric("kubeskoop_packetloss_tcprcv"),
		bpf.DropTCPStatM:  catalog.MustMetric("kubeskoop_packetloss_tcpstatm"),
		bpf.DropNetfilter: catalog.MustMetric("kubeskoop_packetloss_netfilter"),
	}
)

// packetlossKind has the five classes, their sum, the reasons, and the ignored
// packets.
var packetlossKind = kind{name: "packetloss", begin: func(p *probe, _ collect.Env) func(*collect.View) error {
	loss := &losses{probe: p, last: map[lossKey]uint64{}, spare: map[lossKey]uint64{}}
	return loss.sample
}}

type losses struct {
	*probe
	last, spare map[lossKey]uint64 // the kernel's entries at the last reading; memory for the next
}

// lossKey is one of the kernel's entries.
type lossKey struct {
	netns    bpf.NetnsID
	reason   uint32
	location uint64
}

func (l *losses) sample(v *collect.View) error {
	// Classes and reasons sum the growth of each entry since the last reading. Both
	// thus add up to the same total, even if entries are deleted or a location gets
	// another name.
	l.follow(v)
	entries := l.spare
	clear(entries)
	ignored, err := l.bpf.Losses(func(d bpf.Drop) {
		l.take(entries, lossKey{d.Netns, d.Reason, d.Location}, d.Class, d.Count)
	})
	if err != nil {
		maps.Copy(l.last, entries) // these entries are counted now
		return err
	}
	l.last, l.spare = entries, l.last
	names, err := l.tracer.reasons()
	if err != nil {
		return err
	}
	l.counts.each(v, func(inode uint64, shown *tally) {
		var total uint64
		for class, m := range lossByClass {
			v.AddNetns(inode, m, float64(shown.slots[class]))
			total += shown.slots[class]
		}
		v.AddNetns(inode, lossTotal, float64(total))
		byName := map[string]uint64{}
		for reason, n := range shown.reasons {
			byName[names.Drop(reason)] += n
		}
		for _, name := range slices.Sorted(maps.Keys(byName)) {
			v.AddNetns(inode, lossReason, float64(byName[name]), name)
		}
	})
	var now tally
	for _, why := range bpf.WhyIgnored() {
		now.slots[why] = ignored[why]
	}
	shown := collect.State[carried](v).show(&now)
	for _, why := range bpf.WhyIgnored() {
		v.Add(lossIgnored, float64(shown.slots[why]), why.String())
	}
	return l.forget(l.sweep(v))
}

// take counts the growth of one of the kernel's entries.
func (l *losses) take(entries map[lossKey]uint64, k lossKey, class bpf.DropClass, value uint64) {
	was, twice := entries[k]
	if !twice {
		was = l.last[k]
	}
	if value < was {
		was = 0 // the entry was deleted and recreated
	}
	entries[k] = value
	if value == was {
		return
	}
	n := l.counts.found(k.netns)
	if n.reasons == nil {
		n.reasons = map[uint32]uint64{}
	}
	n.slots[class] += value - was
	n.reasons[k.reason] += value - was
}
