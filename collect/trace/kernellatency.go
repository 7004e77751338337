package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

var kernellatencyKind = kind{name: "kernellatency", slots: []*catalog.Metric{
	bpf.RxSlow:    catalog.MustMetric("kubeskoop_kernellatency_rxslow"),
	bpf.RxSlow100: catalog.MustMetric("kubeskoop_kernellatency_rxslow100ms"),
	bpf.TxSlow:    catalog.MustMetric("kubeskoop_kernellatency_txslow"),
	bpf.TxSlow100: catalog.MustMetric("kubeskoop_kernellatency_txslow100ms"),
},
	histogram: catalog.MustMetric("nodeskoop_kernellatency_seconds"),
	histograms: [][]string{
		bpf.RxLatency: {"rx"},
		bpf.TxLatency: {"tx"},
	},
}
