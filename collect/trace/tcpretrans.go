package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

var retransTotal = catalog.MustMetric("kubeskoop_tcpretrans_total")

// tcpretransKind counts segments and SYN-ACKs, as the MIB's RetransSegs does.
var tcpretransKind = kind{name: "tcpretrans", begin: func(p *probe, _ collect.Env) func(*collect.View) error {
	return func(v *collect.View) error {
		return p.byNetns(v, func(netns uint64, shown *tally) {
			v.AddNetns(netns, retransTotal, float64(shown.slots[bpf.RetransSegments]+shown.slots[bpf.RetransSynAcks]))
		})
	}
}}
