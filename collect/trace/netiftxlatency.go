package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

var netiftxlatencyKind = kind{name: "netiftxlatency", slots: []*catalog.Metric{
	bpf.QdiscSlow:  catalog.MustMetric("kubeskoop_netiftxlat_qdiscslow100ms"),
	bpf.NetdevSlow: catalog.MustMetric("kubeskoop_netiftxlat_netdevslow100ms"),
},
	histogram: catalog.MustMetric("nodeskoop_netiftxlatency_seconds"),
	histograms: [][]string{
		bpf.QdiscLatency:  {"qdisc"},
		bpf.DriverLatency: {"driver"},
	},
}
