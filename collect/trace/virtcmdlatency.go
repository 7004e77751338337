package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

var virtcmdlatencyKind = kind{name: "virtcmdlatency", slots: []*catalog.Metric{
	bpf.Slow:    catalog.MustMetric("kubeskoop_virtcmdlatency_latency"),
	bpf.Slow100: catalog.MustMetric("kubeskoop_virtcmdlatency_latency100ms"),
}}
