package bpf

import (
	"time"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type histogram_slot -type slot -type vector NetSoftirq net_softirq.bpf.c

var netSoftirq = definition{
	spec:    objects.LoadNetSoftirq,
	prepare: thresholds,
	hooks: []hook{{
		name: "network softirqs (softirq_raise, softirq_entry, softirq_exit)",
		rungs: []rung{
			{kind: RawTracepoint, programs: []string{"raw_exit", "raw_entry", "raw_raise"}},
			{kind: BTFTracepoint, programs: []string{"btf_exit", "btf_entry", "btf_raise"}},
		},
	}},
	events:   []EventType{NetsoftirqSchedSlow, NetsoftirqSched100ms, NetsoftirqExcuteSlow, NetsoftirqExcute100ms},
	slots:    int(objects.NetSoftirqSlotSLOTS),
	defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond},
}

// Event types of net_softirq.
const (
	NetsoftirqSchedSlow   = EventType(objects.SharedEventTypeEVENT_NETSOFTIRQ_SCHED_SLOW)
	NetsoftirqSched100ms  = EventType(objects.SharedEventTypeEVENT_NETSOFTIRQ_SCHED_100MS)
	NetsoftirqExcuteSlow  = EventType(objects.SharedEventTypeEVENT_NETSOFTIRQ_EXCUTE_SLOW)
	NetsoftirqExcute100ms = EventType(objects.SharedEventTypeEVENT_NETSOFTIRQ_EXCUTE_100MS)
)

// Counter slots of net_softirq. Latencies over 100 ms count in both slots.
const (
	SchedSlow     = int(objects.NetSoftirqSlotSCHED)
	SchedSlow100  = int(objects.NetSoftirqSlotSCHED100)
	ExcuteSlow    = int(objects.NetSoftirqSlotEXCUTE)
	ExcuteSlow100 = int(objects.NetSoftirqSlotEXCUTE100)
)

// The histograms of net_softirq.
const (
	SoftirqTXSched  = int(objects.NetSoftirqHistogramSlotHIST_TX_SCHED)
	SoftirqTXExcute = int(objects.NetSoftirqHistogramSlotHIST_TX_EXCUTE)
	SoftirqRXSched  = int(objects.NetSoftirqHistogramSlotHIST_RX_SCHED)
	SoftirqRXExcute = int(objects.NetSoftirqHistogramSlotHIST_RX_EXCUTE)
)

// Values of Event.Detail for net_softirq: the softirq.
const (
	SoftirqNetTX = uint32(objects.NetSoftirqVectorNET_TX_SOFTIRQ)
	SoftirqNetRX = uint32(objects.NetSoftirqVectorNET_RX_SOFTIRQ)
)
