package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

var virtcmdlatencyKind = kind{name: "virtcmdlatency", slots: []*catalog.Metric{
	bpf.CommandSlow:    catalog.MustMetric("kubeskoop_virtcmdlatency_latency"),
	bpf.CommandSlow100: catalog.MustMetric("kubeskoop_virtcmdlatency_latency100ms"),
}}
