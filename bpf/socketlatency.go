package bpf

import (
	"time"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type histogram_slot -type slot Socketlatency socketlatency.bpf.c

var socketlatency = definition{
	spec:    objects.LoadSocketlatency,
	prepare: thresholds,
	hooks: []hook{
		{
			name: "reads (data ready to data taken)",
			rungs: []rung{
				// Socket storage needs type information.
				{kind: BTFTracepoint, programs: []string{"btf_received", "btf_read_tcp", "btf_ready"}},
				{kind: RawTracepoint, programs: []string{"raw_received", "raw_read_tcp", "raw_ready"}},
				{kind: Fentry, programs: []string{"fen_consume", "fen_cleanup", "fen_ready"}},
				{kind: Kprobe, programs: []string{"kp_consume", "kp_cleanup", "kp_ready"}},
				{
					kind: RawTracepoint, programs: []string{"raw_read_pieces", "raw_segment"},
					limitation: "reads of datagrams, and where one read of whole segments ends and the next begins: this kernel has neither the tracepoints for them nor function hooks",
				},
			},
		},
		{
			name: "writes (data written to their last byte sent, TCP)",
			rungs: []rung{
				{kind: BTFTracepoint, programs: []string{"btf_queue", "btf_write"}},
				{kind: RawTracepoint, programs: []string{"raw_queue", "raw_write"}},
				{kind: Fentry, programs: []string{"fen_transmit", "fen_write"}},
				{kind: Kprobe, programs: []string{"kp_transmit", "kp_write"}},
			},
			optional: true,
			without:  "writes, which need the tracepoint tcp_sendmsg_locked (Linux 6.16 or so) or function hooks",
		},
	},
	events:   []EventType{SocklatReadSlow, SocklatSendSlow},
	slots:    int(objects.SocketlatencySlotSLOTS),
	defaults: Config{Slow: time.Millisecond, Slow100: 100 * time.Millisecond, Event: 100 * time.Millisecond},
}

// Event types of socketlatency.
const (
	SocklatReadSlow = EventType(objects.SharedEventTypeEVENT_SOCKETLAT_READSLOW)
	SocklatSendSlow = EventType(objects.SharedEventTypeEVENT_SOCKETLAT_SENDSLOW)
)

// Counter slots of socketlatency. Waits over 100 ms count in both slots.
const (
	ReadSlow     = int(objects.SocketlatencySlotREAD)
	ReadSlow100  = int(objects.SocketlatencySlotREAD100)
	WriteSlow    = int(objects.SocketlatencySlotWRITE)
	WriteSlow100 = int(objects.SocketlatencySlotWRITE100)
)

// The histograms of socketlatency.
const (
	ReadLatency  = int(objects.SocketlatencyHistogramSlotHIST_READ)
	WriteLatency = int(objects.SocketlatencyHistogramSlotHIST_WRITE)
)
