package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

var socketlatencyKind = kind{name: "socketlatency", slots: []*catalog.Metric{
	bpf.ReadSlow:     catalog.MustMetric("kubeskoop_socketlatency_read1ms"),
	bpf.ReadSlow100:  catalog.MustMetric("kubeskoop_socketlatency_read100ms"),
	bpf.WriteSlow:    catalog.MustMetric("kubeskoop_socketlatency_write1ms"),
	bpf.WriteSlow100: catalog.MustMetric("kubeskoop_socketlatency_write100ms"),
},
	histogram: catalog.MustMetric("nodeskoop_socketlatency_seconds"),
	histograms: [][]string{
		bpf.ReadLatency:  {"read"},
		bpf.WriteLatency: {"write"},
	},
}
