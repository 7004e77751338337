package bpf

import (
	"time"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type histogram_slot -type point -type slot Kernellatency kernellatency.bpf.c

var kernellatency = definition{
	spec:    objects.LoadKernellatency,
	prepare: thresholds,
	hooks: []hook{
		{
			name: "packets received (netif_receive_skb to the transport protocol)",
			rungs: []rung{
				{kind: Fentry, programs: []string{"fen_protocol4", "fen_protocol6", "fen_deliver4", "fen_deliver6", "raw_receive"}},
				{kind: Kprobe, programs: []string{"kp_protocol4", "kp_protocol6", "kp_deliver4", "kp_deliver6", "raw_receive"}},
				{
					kind: BTFTracepoint, programs: []string{"raw_tcp_probe", "btf_data_ready", "raw_receive"},
					limitation: "received packets that open or close a TCP connection or reach no socket, and the stages on the way: this kernel allows no function hooks",
				},
				{
					kind: RawTracepoint, programs: []string{"raw_tcp_probe", "raw_data_ready", "raw_receive"},
					limitation: "received packets that open or close a TCP connection or reach no socket, and the stages on the way: this kernel allows no function hooks",
				},
				{
					kind: RawTracepoint, programs: []string{"raw_tcp_probe", "raw_receive"},
					limitation: "received packets other than those of established TCP connections, and the stages on the way: this kernel allows no function hooks",
				},
			},
		},
		{
			name: "packets sent (the socket to the device)",
			rungs: []rung{
				{kind: Fentry, programs: []string{"fen_finish4", "fen_finish6", "fen_output4", "fen_output6", "fen_out4", "fen_out6", "fen_xmit4", "fen_xmit6"}},
				{kind: Kprobe, programs: []string{"kp_finish4", "kp_finish6", "kp_output4", "kp_output6", "kp_out4", "kp_out6", "kp_xmit4", "kp_xmit6"}},
				{
					kind: BTFTracepoint, programs: []string{"btf_queue", "raw_neigh_send", "raw_neigh_done", "raw_neigh_update"},
					limitation: "sent packets other than TCP's, and the stages on the way: this kernel allows no function hooks",
				},
				{
					kind: RawTracepoint, programs: []string{"raw_queue", "raw_neigh_send", "raw_neigh_done", "raw_neigh_update"},
					limitation: "sent packets other than TCP's, and the stages on the way: this kernel allows no function hooks",
				},
			},
		},
	},
	events:   []EventType{RxKernelSlow, TxKernelSlow},
	slots:    int(objects.KernellatencySlotSLOTS),
	defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond, Event: 100 * time.Millisecond},
}

// Event types of kernellatency.
const (
	RxKernelSlow = EventType(objects.SharedEventTypeEVENT_RXKERNEL_SLOW)
	TxKernelSlow = EventType(objects.SharedEventTypeEVENT_TXKERNEL_SLOW)
)

// Counter slots of kernellatency. Packets over 100 ms count in both slots.
const (
	RxSlow    = int(objects.KernellatencySlotRX)
	RxSlow100 = int(objects.KernellatencySlotRX100)
	TxSlow    = int(objects.KernellatencySlotTX)
	TxSlow100 = int(objects.KernellatencySlotTX100)
)

// Indexes into Event.Points. A receive event has the first two, a transmit event
// the other three. A point that the hooks in use do not see is zero.
const (
	PointIP      = int(objects.KernellatencyPointPOINT_IP)       // netif_receive_skb to the local delivery decision
	PointLocalIn = int(objects.KernellatencyPointPOINT_LOCAL_IN) // local delivery decision to transport protocol

	PointRoute       = int(objects.KernellatencyPointPOINT_ROUTE)       // socket until the packet has its route and header
	PointLocalOut    = int(objects.KernellatencyPointPOINT_LOCAL_OUT)   // from PointRoute's end through the LOCAL_OUT hooks
	PointPostrouting = int(objects.KernellatencyPointPOINT_POSTROUTING) // from PointLocalOut's end through the POSTROUTING hooks
)

// The histograms of kernellatency.
const (
	RxLatency = int(objects.KernellatencyHistogramSlotHIST_RX)
	TxLatency = int(objects.KernellatencyHistogramSlotHIST_TX)
)
