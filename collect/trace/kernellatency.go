package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var kernellatencyKind = kind{name: "kernellatency", slots: []*collect.Metric{
	bpf.RxSlow:    collect.MustMetric("kubeskoop_kernellatency_rxslow"),
	bpf.RxSlow100: collect.MustMetric("kubeskoop_kernellatency_rxslow100ms"),
	bpf.TxSlow:    collect.MustMetric("kubeskoop_kernellatency_txslow"),
	bpf.TxSlow100: collect.MustMetric("kubeskoop_kernellatency_txslow100ms"),
}}
