package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

var netSoftirqKind = kind{name: "net_softirq", slots: []*catalog.Metric{
	bpf.SchedSlow:     catalog.MustMetric("kubeskoop_softirq_schedslow"),
	bpf.SchedSlow100:  catalog.MustMetric("kubeskoop_softirq_schedslow100ms"),
	bpf.ExcuteSlow:    catalog.MustMetric("kubeskoop_softirq_excuteslow"),
	bpf.ExcuteSlow100: catalog.MustMetric("kubeskoop_softirq_excuteslow100ms"),
},
	histogram: catalog.MustMetric("nodeskoop_softirq_seconds"),
	histograms: [][]string{
		bpf.SoftirqTXSched:  {"NET_TX", "delay"},
		bpf.SoftirqTXExcute: {"NET_TX", "run"},
		bpf.SoftirqRXSched:  {"NET_RX", "delay"},
		bpf.SoftirqRXExcute: {"NET_RX", "run"},
	},
}
