package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var virtcmdlatencyKind = kind{name: "virtcmdlatency", slots: []*collect.Metric{
	bpf.Slow:    collect.MustMetric("kubeskoop_virtcmdlatency_latency"),
	bpf.Slow100: collect.MustMetric("kubeskoop_virtcmdlatency_latency100ms"),
}}
