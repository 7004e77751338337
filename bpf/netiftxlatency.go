package bpf

import (
	"time"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type histogram_slot -type slot Netiftxlatency netiftxlatency.bpf.c

var netiftxlatency = definition{
	spec:    objects.LoadNetiftxlatency,
	prepare: thresholds,
	hooks: []hook{{
		name: "packets sent (net_dev_queue, net_dev_start_xmit, net_dev_xmit)",
		rungs: []rung{
			// Runs three times per packet, so direct loads instead of helper calls
			// pay off.
			{kind: BTFTracepoint, programs: []string{"btf_xmit", "btf_start_xmit", "btf_queue"}},
			{kind: RawTracepoint, programs: []string{"raw_xmit", "raw_start_xmit", "raw_queue"}},
		},
	}},
	events:   []EventType{TxlatQdisc100ms, TxlatNetdev100ms},
	slots:    int(objects.NetiftxlatencySlotSLOTS),
	defaults: Config{Slow100: 100 * time.Millisecond},
}

// Event types of netiftxlatency.
const (
	TxlatQdisc100ms  = EventType(objects.SharedEventTypeEVENT_TXLAT_QDISC_100MS)
	TxlatNetdev100ms = EventType(objects.SharedEventTypeEVENT_TXLAT_NETDEV_100MS)
)

// Counter slots of netiftxlatency.
const (
	QdiscSlow  = int(objects.NetiftxlatencySlotQDISC)  // over Config.Slow100 in the queueing discipline
	NetdevSlow = int(objects.NetiftxlatencySlotNETDEV) // over Config.Slow100 in the driver
)

// The histograms of netiftxlatency.
const (
	QdiscLatency  = int(objects.NetiftxlatencyHistogramSlotHIST_QDISC)
	DriverLatency = int(objects.NetiftxlatencyHistogramSlotHIST_DRIVER)
)
