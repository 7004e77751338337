package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var netSoftirqKind = kind{name: "net_softirq", slots: []*collect.Metric{
	bpf.SchedSlow:     collect.MustMetric("kubeskoop_softirq_schedslow"),
	bpf.SchedSlow100:  collect.MustMetric("kubeskoop_softirq_schedslow100ms"),
	bpf.ExcuteSlow:    collect.MustMetric("kubeskoop_softirq_excuteslow"),
	bpf.ExcuteSlow100: collect.MustMetric("kubeskoop_softirq_excuteslow100ms"),
}}
