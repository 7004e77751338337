package bpf

import (
	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type kind -type slot Tcpretrans tcpretrans.bpf.c

var tcpretrans = definition{
	spec:    objects.LoadTcpretrans,
	prepare: prepareTCPRetrans,
	hooks: []hook{
		{
			name: "retransmitted segments (tcp_retransmit_skb)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_tcp_retransmit_skb"}},
				{kind: BTFTracepoint, programs: []string{"btf_tcp_retransmit_skb"}},
			},
		},
		{
			name: "retransmitted SYN-ACKs (tcp_retransmit_synack)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_tcp_retransmit_synack"}},
				{kind: BTFTracepoint, programs: []string{"btf_tcp_retransmit_synack"}},
			},
			optional: true,
			without:  "retransmitted SYN-ACKs",
		},
	},
	events: []EventType{TCPRetrans},
	slots:  int(objects.TcpretransSlotSLOTS),
}

// TCPRetrans is the event type of tcpretrans.
const TCPRetrans = EventType(objects.SharedEventTypeEVENT_TCPRETRANS)

func prepareTCPRetrans(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	if err := set(spec, objects.TcpretransVarWithStack, !p.config.NoStack); err != nil {
		return err
	}
	var errorArg uint32
	if params, ok := types.tracepoint("tcp_retransmit_skb"); ok && len(params) >= 3 {
		errorArg = 2
	}
	return set(spec, objects.TcpretransVarErrorArg, errorArg)
}

// Counter slots of tcpretrans.
const (
	RetransSegments = int(objects.TcpretransSlotSEGMENTS) // retransmitted segments, as nstat counts them
	RetransSynAcks  = int(objects.TcpretransSlotSYNACKS)
	RetransCalls    = int(objects.TcpretransSlotCALLS) // retransmissions of one skb, which holds one or more segments
)

// Values of Event.Detail for TCPRetrans: a segment, or a SYN-ACK.
const (
	RetransSegment = uint32(objects.TcpretransKindKIND_SEGMENT)
	RetransSynAck  = uint32(objects.TcpretransKindKIND_SYNACK)
)
