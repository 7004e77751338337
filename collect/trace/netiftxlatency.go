package trace

import (
	"nodeskoop/bpf"
	"nodeskoop/collect"
)

var netiftxlatencyKind = kind{name: "netiftxlatency", slots: []*collect.Metric{
	bpf.QdiscSlow:  collect.MustMetric("kubeskoop_netiftxlat_qdiscslow100ms"),
	bpf.NetdevSlow: collect.MustMetric("kubeskoop_netiftxlat_netdevslow100ms"),
}}
