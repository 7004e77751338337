package catalog

var tcpretrans = Probe{
	Name:   "tcpretrans",
	Title:  "TCP retransmissions",
	Rank:   16,
	Source: EBPF, Overhead: "low", Measured: "not measurable", Default: true,
	Cost:         "Runs only for retransmissions, about 200 ns each; other traffic has no measurable cost.",
	Capabilities: []Capability{CapBPF, CapPerfmon, CapSyslog},
	Options:      []Option{stackOption},
	Metrics: []Metric{{
		Name: "kubeskoop_tcpretrans_total", Type: Counter, Scope: PerNetns, Extra: true,
		Help:   "TCP segments retransmitted, SYN and SYN-ACK included; the segments of a GSO packet count one by one.",
		Kernel: "tracepoints tcp:tcp_retransmit_skb, tcp:tcp_retransmit_synack",
		Rises:  "A segment, SYN or SYN-ACK is retransmitted. On every kernel the value equals tcp_retranssegs minus tcpext_tcpretransfail: retransmissions that this host refuses to send do not count. Loss probes with data and retransmissions caused by reordering count; keep-alives and window probes do not.",
	}},
	Events: []EventType{{
		Name: "TCPRetrans", Path: "tcp:tcp_retransmit_skb, tcp:tcp_retransmit_synack", Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldStack},
		MessageID: "ac3e0b5bc29177094c1e26038dabf68e",
		Summary:   "TCP retransmitted a segment",
		Message:   "TCP segment retransmitted{to}",
		Explain: "TCP retransmitted a segment because no acknowledgement came in time, or because later acknowledgements show a hole. Either the segment or its acknowledgement was lost, the peer is slow, or packets arrive out of order. Some are normal on the Internet; inside a cluster the rate should be near zero. An event is one retransmission of one packet: a GSO packet is one event, while kubeskoop_tcpretrans_total counts its segments. A retransmission that this host refuses to send (an output firewall rule, a full queue, no route) causes no event.\n\n" +
			"In SYN_SENT the server's host does not answer: the host is down, or a firewall drops packets silently. In NEW_SYN_RECV or SYN_RECV the client does not see the answer: often a wrong route back. In ESTABLISHED a link loses packets, a queue on the way is full, or packets of full size do not fit (MTU of an overlay).",
		Next: []Step{
			stepSockets,
			{"nodeskoop events --probe packetloss,tcpretrans", "whether this node drops the packets itself"},
			{"ping -M do -s 1422 -c 3 PEER", "whether large packets pass: 1422 is an MTU of 1450 minus the headers"},
			{"ip -s -s link show", "errors of the network card"},
		},
	}},
}
