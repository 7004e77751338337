package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var socketlatencyKind = kind{name: "socketlatency", slots: []*collect.Metric{
	bpf.ReadSlow:     collect.MustMetric("kubeskoop_socketlatency_read1ms"),
	bpf.ReadSlow100:  collect.MustMetric("kubeskoop_socketlatency_read100ms"),
	bpf.WriteSlow:    collect.MustMetric("kubeskoop_socketlatency_write1ms"),
	bpf.WriteSlow100: collect.MustMetric("kubeskoop_socketlatency_write100ms"),
}}
