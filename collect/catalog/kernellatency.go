package catalog

import "time"

var kernellatency = Probe{
	Name:   "kernellatency",
	Title:  "time of packets inside the IP stack",
	Rank:   19,
	Source: EBPF, Overhead: "high", Measured: "26 to 42 ns/step", Escalate: true,
	Cost:         "Runs twice for each received packet (41 and 42 ns) and once for each sent one (26 ns).",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options:      []Option{slowOption, eventOption, histogramsOption},
	Metrics: []Metric{{
		Name: "kubeskoop_kernellatency_rxslow", Type: Counter, Scope: PerNetns,
		Help:   "Packets that took over 10 ms from netif_receive_skb to the transport protocol, those over 100 ms included.",
		Kernel: "netif_receive_skb to ip_protocol_deliver_rcu() or ip6_protocol_deliver_rcu()",
		Rises:  "A packet waits between driver and socket for over 10 ms: NFQUEUE, fragments, a busy CPU. Where the kernel allows tracepoints only (`nodeskoop probes` shows it), the measurement ends elsewhere: for segments of established TCP connections at tcp_rcv_established(), which includes the time in the backlog of a locked socket; for datagrams (Linux 6.3 and newer) when they enter the socket's queue. SYNs, FINs in later states and packets without a socket are then not measured.",
	}, {
		Name: "kubeskoop_kernellatency_rxslow100ms", Type: Counter, Scope: PerNetns,
		Help:   "Packets that took over 100 ms from netif_receive_skb to the transport protocol.",
		Kernel: "netif_receive_skb to ip_protocol_deliver_rcu() or ip6_protocol_deliver_rcu()",
		Rises:  "As rxslow, for over 100 ms.",
	}, {
		Name: "kubeskoop_kernellatency_txslow", Type: Counter, Scope: PerNetns,
		Help:   "Packets that took over 10 ms from the transport protocol to the neighbour layer, those over 100 ms included.",
		Kernel: "__ip_queue_xmit() to ip_finish_output2(), and for IPv6",
		Rises:  "A packet waits between socket and neighbour layer for over 10 ms: NFQUEUE, long rule sets. The later wait for a neighbour's address (ARP, neighbour discovery) does not count. Where the kernel allows tracepoints only, the probe measures TCP without bare ACKs, from the send time that TCP writes into the packet (for a paced packet, its departure time).",
	}, {
		Name: "kubeskoop_kernellatency_txslow100ms", Type: Counter, Scope: PerNetns,
		Help:   "Packets that took over 100 ms from the transport protocol to the neighbour layer.",
		Kernel: "__ip_queue_xmit() to ip_finish_output2(), and for IPv6",
		Rises:  "The same for over 100 ms.",
	}, latency("nodeskoop_kernellatency_seconds", []string{"direction"},
		"Time of packets inside the IP stack, received (rx) and sent (tx).",
		"as kubeskoop_kernellatency_rxslow and kubeskoop_kernellatency_txslow",
		"Each packet that these counters could count, slow or not."+perPods)},
	Events: []EventType{{
		Name: "RXKERNEL_SLOW", Path: "netif_receive_skb -> ip_protocol_deliver_rcu (IPv4, IPv6)", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 100},
		Fields: []FieldGroup{FieldTuple, FieldLatency, FieldPoints}, Points: []string{"ip", "local_in"}, PointsKnown: "where the kernel lets BPF hook functions",
		MessageID: "3a124c647e02ff05b7c1dce27f7695f5",
		Summary:   "The kernel took over 100 ms to receive a packet",
		Message:   "kernel took {latency} to receive a packet{ends}",
		Explain: "A packet needed over 100 ms from the interface to TCP or UDP. KUBESKOOP_LATENCY_IP_NS and KUBESKOOP_LATENCY_LOCAL_IN_NS say where the time went, as far as the hooks of this kernel show it.\n\n" +
			"The IP stack itself takes microseconds. Time before the routing decision is mostly netfilter: PREROUTING rules, conntrack, or a packet that waits for a program in user space (NFQUEUE). Time after the decision is spent in INPUT rules. Fragments wait here until their datagram is complete.",
		Next: []Step{
			stepRules,
			{"cat /proc/net/netfilter/nfnetlink_queue", "the programs that packets wait for, and how many packets wait"},
			{"nodeskoop events --probe net_softirq", "whether the CPU itself was delayed"},
		},
	}, {
		Name: "TXKERNEL_SLOW", Path: "__ip_queue_xmit -> ip_finish_output2 (IPv4, IPv6)", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 100},
		Fields: []FieldGroup{FieldTuple, FieldLatency, FieldPoints}, Points: []string{"route", "local_out", "postrouting"}, PointsKnown: "where the kernel lets BPF hook functions",
		MessageID: "66080f174c96d8e25cbd0ba3a1a6bcde",
		Summary:   "The kernel took over 100 ms to send a packet",
		Message:   "kernel took {latency} to send a packet{ends}",
		Explain: "A packet needed over 100 ms from TCP or UDP to the neighbour layer. KUBESKOOP_LATENCY_ROUTE_NS, KUBESKOOP_LATENCY_LOCAL_OUT_NS and KUBESKOOP_LATENCY_POSTROUTING_NS say where the time went, as far as the hooks of this kernel show it.\n\n" +
			"Usually the OUTPUT or POSTROUTING rules: a packet that waits for a program in user space (NFQUEUE), NAT with no free port, or very long chains. The wait for a neighbour's address (ARP, neighbour discovery) and the queue of the interface come later; TXLAT_QDISC_100MS reports the queue.",
		Next: []Step{
			stepRules,
			{"cat /proc/net/netfilter/nfnetlink_queue", "the programs that packets wait for, and how many packets wait"},
			{"conntrack -S", "NAT that finds no free port: insert_failed, search_restart"},
		},
	}},
}
