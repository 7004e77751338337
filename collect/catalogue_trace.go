package collect

import "time"

// The probes that trace the kernel with eBPF.

var (
	slowOption = Option{Key: "slow", Default: 10 * time.Millisecond,
		Help: "the latency above which the slow counter counts (the name of the 100ms counter says its own)"}
	eventOption = Option{Key: "event", Default: 100 * time.Millisecond,
		Help: "the latency above which there is an event"}
	stackOption = Option{Key: "stack", Default: true,
		Help: "events carry the kernel's stack"}
)

var flowLabels = []string{
	"protocol", "src", "src_type", "src_node", "src_namespace", "src_pod",
	"dst", "dst_type", "dst_node", "dst_namespace", "dst_pod", "sport", "dport",
}

var packetlossInfo = ProbeInfo{
	Name: "packetloss", Title: "packets that the kernel dropped", Source: EBPF, Overhead: "medium", Default: true,
	Options: []Option{stackOption, {Key: "multicast", Default: false, Obsolete: "packets to groups that nobody on the node asked for are no losses, and count in nodeskoop_packetloss_ignored_total"}},
	Metrics: []Metric{
		counter("kubeskoop_packetloss_tcphandle", PerNetns, "", "Packets lost in tcp_v4_do_rcv() or tcp_v6_do_rcv()."),
		counter("kubeskoop_packetloss_tcprcv", PerNetns, "", "Packets lost in tcp_v4_rcv() or tcp_v6_rcv()."),
		counter("kubeskoop_packetloss_abnormal", PerNetns, "", "Packets lost in any function that no other class names."),
		counter("kubeskoop_packetloss_total", PerNetns, "", "Packets that the kernel dropped although somebody should have got them, as the kernel freed them (a GSO or GRO packet is one, each fragment of a datagram is one): the sum of the classes tcphandle, tcprcv, tcpstatm, netfilter and abnormal."),
		counter("kubeskoop_packetloss_netfilter", PerNetns, "", "Packets dropped by a netfilter rule (drop reason NETFILTER_DROP, or dropped in the hook's functions)."),
		counter("kubeskoop_packetloss_tcpstatm", PerNetns, "", "Packets lost in tcp_rcv_state_process(): they did not fit the state of their connection."),
		{Name: "kubeskoop_packetloss_reason", Type: Counter, Scope: PerNetns, Labels: []string{"reason"}, Extra: true,
			Help: "Packets lost, by the kernel's own name of the reason (enum skb_drop_reason, Linux 5.17 and newer)."},
		{Name: "nodeskoop_packetloss_ignored_total", Type: Counter, Scope: PerHost, Labels: []string{"why"}, Extra: true,
			Help: "Packets and messages that the kernel freed as dropped although nobody misses them, by why: delivered, unwanted, closing, not_a_packet. With kubeskoop_packetloss_total of all namespaces they are all that it freed so."},
	},
	Events: []EventType{{
		Name: "PacketLoss", Path: "skb:kfree_skb", Priority: PriWarning,
		Fields:    []FieldGroup{FieldTuple, FieldLocation, FieldReason, FieldStack},
		MessageID: "b120a366f0bbe9cf42f2dc05873f9bd0", Summary: "A packet was dropped",
	}},
}

var tcpresetInfo = ProbeInfo{
	Name: "tcpreset", Title: "TCP resets sent and received", Source: EBPF, Overhead: "low", Default: true,
	Events: []EventType{{
		Name: "TCPRESET_NOSOCK", Path: "tcp_v4_send_reset / tcp_v6_send_reset without a socket", Priority: PriNotice,
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldReason},
		MessageID: "c1acc9906424550ae36bf9b3ddcb369d", Summary: "TCP sent RST because no socket matched the packet",
	}, {
		Name: "TCPRESET_ACTIVE", Path: "tcp_send_active_reset", Priority: PriNotice,
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldReason},
		MessageID: "9ad9b9a25e78454df065a1c284cc4549", Summary: "TCP sent an active RST (close() with unread data, linger, abort, timeout)",
	}, {
		Name: "TCPRESET_PROCESS", Path: "tcp_v4_send_reset / tcp_v6_send_reset with a socket", Priority: PriNotice,
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldReason},
		MessageID: "993565976fbaf662f6a730b7b12e9eed", Summary: "TCP sent RST because a packet did not fit the socket state (a failed handshake, for one)",
	}, {
		Name: "TCPRESET_RECEIVE", Path: "tcp:tcp_receive_reset", Priority: PriNotice,
		Fields:    []FieldGroup{FieldTuple, FieldTCPState},
		MessageID: "8df08078a22ea180c5c2c2af3977a654", Summary: "A TCP connection received RST",
	}},
}

var tcpretransInfo = ProbeInfo{
	Name: "tcpretrans", Title: "TCP retransmissions", Source: EBPF, Overhead: "low", Default: true,
	Options: []Option{stackOption},
	Metrics: []Metric{
		extra(counter("kubeskoop_tcpretrans_total", PerNetns, "", "TCP segments retransmitted, SYN and SYN-ACK included; the segments of a GSO packet count one by one.")),
	},
	Events: []EventType{{
		Name: "TCPRetrans", Path: "tcp:tcp_retransmit_skb, tcp:tcp_retransmit_synack", Priority: PriNotice,
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldStack},
		MessageID: "ac3e0b5bc29177094c1e26038dabf68e", Summary: "TCP retransmitted a segment",
	}},
}

var netiftxlatencyInfo = ProbeInfo{
	Name: "netiftxlatency", Aliases: []string{"netiftxlat"}, Title: "time of sent packets in the qdisc and the driver", Source: EBPF, Overhead: "high",
	Metrics: []Metric{
		counter("kubeskoop_netiftxlat_qdiscslow100ms", PerNetns, "", "Packets that left the queueing discipline over 100 ms after their data went in; each segment of a GSO packet that is segmented on the way counts."),
		counter("kubeskoop_netiftxlat_netdevslow100ms", PerNetns, "", "Packets that the network driver took over 100 ms to accept."),
	},
	Events: []EventType{{
		Name: "TXLAT_QDISC_100MS", Path: "net_dev_queue -> net_dev_start_xmit", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldIfname},
		MessageID: "3ceaaf308142c8ea91d93080f9b439fc", Summary: "A packet waited over 100 ms in the queueing discipline before the driver got it",
	}, {
		Name: "TXLAT_NETDEV_100MS", Path: "net_dev_start_xmit -> net_dev_xmit", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldIfname},
		MessageID: "9dfb369bab13dfae627655daa05f1119", Summary: "The network driver took over 100 ms to accept a packet",
	}},
}

var netSoftirqInfo = ProbeInfo{
	Name: "net_softirq", Aliases: []string{"softirq"}, Title: "delay and run time of the network softirqs", Source: EBPF, Overhead: "high",
	Options: []Option{slowOption},
	Metrics: []Metric{
		counter("kubeskoop_softirq_schedslow", PerHost, "", "Network softirqs that started over 10 ms after they were raised, those over 100 ms included."),
		counter("kubeskoop_softirq_schedslow100ms", PerHost, "", "Network softirqs that started over 100 ms after they were raised."),
		counter("kubeskoop_softirq_excuteslow", PerHost, "", "Network softirqs that ran for over 10 ms, those over 100 ms included."),
		counter("kubeskoop_softirq_excuteslow100ms", PerHost, "", "Network softirqs that ran for over 100 ms."),
	},
	Events: []EventType{{
		Name: "NETSOFTIRQ_SCHED_SLOW", Path: "softirq_raise -> softirq_entry (NET_RX, NET_TX)",
		Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Priority: PriNotice,
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "c498b6e73648245edafa3a387f006745", Summary: "A network softirq was scheduled late",
	}, {
		Name: "NETSOFTIRQ_SCHED_100MS", Path: "softirq_raise -> softirq_entry", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "ab57f9854332c3da675a2e199b58ba8d", Summary: "A network softirq was scheduled over 100 ms late",
	}, {
		Name: "NETSOFTIRQ_EXCUTE_SLOW", Path: "softirq_entry -> softirq_exit",
		Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Priority: PriNotice,
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "c1b87f1a7323691b19f9cbef0f69a4d0", Summary: "A network softirq ran for long",
	}, {
		Name: "NETSOFTIRQ_EXCUTE_100MS", Path: "softirq_entry -> softirq_exit", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "2eb737282fea875e75365e1458294a90", Summary: "A network softirq ran for over 100 ms",
	}},
}

var kernellatencyInfo = ProbeInfo{
	Name: "kernellatency", Title: "time of packets inside the IP stack", Source: EBPF, Overhead: "high",
	Options: []Option{slowOption, eventOption},
	Metrics: []Metric{
		counter("kubeskoop_kernellatency_rxslow", PerNetns, "", "Packets that took over 10 ms from netif_receive_skb to the transport protocol, those over 100 ms included."),
		counter("kubeskoop_kernellatency_rxslow100ms", PerNetns, "", "Packets that took over 100 ms from netif_receive_skb to the transport protocol."),
		counter("kubeskoop_kernellatency_txslow", PerNetns, "", "Packets that took over 10 ms from the transport protocol to the neighbour layer, those over 100 ms included."),
		counter("kubeskoop_kernellatency_txslow100ms", PerNetns, "", "Packets that took over 100 ms from the transport protocol to the neighbour layer."),
	},
	Events: []EventType{{
		Name: "RXKERNEL_SLOW", Path: "netif_receive_skb -> ip_protocol_deliver_rcu (IPv4, IPv6)", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields: []FieldGroup{FieldTuple, FieldLatency, FieldPoints}, Points: []string{"ip", "local_in"},
		MessageID: "3a124c647e02ff05b7c1dce27f7695f5", Summary: "The kernel took over 100 ms to receive a packet",
	}, {
		Name: "TXKERNEL_SLOW", Path: "__ip_queue_xmit -> ip_finish_output2 (IPv4, IPv6)", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields: []FieldGroup{FieldTuple, FieldLatency, FieldPoints}, Points: []string{"route", "local_out", "postrouting"},
		MessageID: "66080f174c96d8e25cbd0ba3a1a6bcde", Summary: "The kernel took over 100 ms to send a packet",
	}},
}

var socketlatencyInfo = ProbeInfo{
	Name: "socketlatency", Title: "time that data wait in sockets", Source: EBPF, Overhead: "high",
	Options: []Option{{Key: "slow", Default: time.Millisecond, Help: slowOption.Help}, eventOption},
	Metrics: []Metric{
		counter("kubeskoop_socketlatency_read100ms", PerNetns, "", "Reads whose oldest byte or datagram had waited over 100 ms in the socket."),
		counter("kubeskoop_socketlatency_read1ms", PerNetns, "", "Reads whose oldest byte or datagram had waited over 1 ms in the socket, those over 100 ms included."),
		counter("kubeskoop_socketlatency_write100ms", PerNetns, "", "TCP writes whose last byte was sent over 100 ms after the call began."),
		counter("kubeskoop_socketlatency_write1ms", PerNetns, "", "TCP writes whose last byte was sent over 1 ms after the call began, those over 100 ms included."),
	},
	Events: []EventType{{
		Name: "SOCKETLAT_READSLOW", Path: "data ready -> application read", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldProcess},
		MessageID: "78b7d0ac84773ce0ce4cda11b43c589b", Summary: "An application left received data unread for over 100 ms",
	}, {
		Name: "SOCKETLAT_SENDSLOW", Path: "application write -> segment sent", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldProcess},
		MessageID: "2330fcf1562ae4b848668d77e827062c", Summary: "Data that an application wrote was not sent for over 100 ms",
	}},
}

var virtcmdlatencyInfo = ProbeInfo{
	Name: "virtcmdlatency", Title: "duration of virtio-net control commands", Source: EBPF, Overhead: "high",
	Options: []Option{slowOption},
	Metrics: []Metric{
		counter("kubeskoop_virtcmdlatency_latency100ms", PerHost, "", "virtio-net control commands that took over 100 ms."),
		counter("kubeskoop_virtcmdlatency_latency", PerHost, "", "virtio-net control commands that took over 10 ms, those over 100 ms included."),
	},
	Events: []EventType{{
		Name: "VIRTCMDEXCUTE", Path: "virtnet_send_command entry -> return", Threshold: 10 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency},
		MessageID: "f3194a3b381e53e7952c466e473a1797", Summary: "A virtio-net control command was slow",
	}},
}

var biolatencyInfo = ProbeInfo{
	Name: "biolatency", Title: "latency of block I/O", Source: EBPF, Overhead: "medium", Default: true,
	Options: []Option{{Key: "slow", Default: 10 * time.Millisecond, Help: "the latency above which there is an event"}},
	Events: []EventType{{
		Name: "BIOLAT_10MS", Path: "block I/O start -> done",
		Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Priority: PriNotice,
		Fields:    []FieldGroup{FieldProcess, FieldLatency, FieldDisk},
		MessageID: "6301bbfca0c5154e0ff9bb510944fe0c", Summary: "A block I/O took over 10 ms",
	}, {
		Name: "BIOLAT_100MS", Path: "block I/O start -> done", Threshold: 100 * time.Millisecond, Priority: PriWarning,
		Fields:    []FieldGroup{FieldProcess, FieldLatency, FieldDisk},
		MessageID: "6fced11d2bd8a1e6047a8387cdde8d51", Summary: "A block I/O took over 100 ms",
	}},
}

var flowInfo = ProbeInfo{
	Name: "flow", Title: "traffic per connection", Source: EBPF, Overhead: "medium",
	Options: []Option{
		{Key: "ports", Default: false, Help: "label flows with their ports; otherwise sport and dport are 0, and all connections of two addresses are one flow"},
		{Key: "devices", Default: []string{}, Help: "count what the host's network devices with these names transmit (* and ? match as in a shell), forwarded packets too, in place of what sockets send"},
		{Key: "max_series", Default: int64(1000), Help: "most flows written; the rest is counted in nodeskoop_series_left_out"},
	},
	Metrics: []Metric{
		{Name: "kubeskoop_flow_bytes", Type: Counter, Scope: PerFlow, Labels: flowLabels, Help: "Bytes sent per connection, IP headers included."},
		{Name: "kubeskoop_flow_packets", Type: Counter, Scope: PerFlow, Labels: flowLabels, Help: "Packets sent per connection, the segments of a GSO packet one by one."},
	},
}
