package catalog

var packetloss = Probe{
	Name:   "packetloss",
	Title:  "packets that the kernel dropped",
	Rank:   14,
	Source: EBPF, Overhead: "medium", Measured: "389 ns/lost packet", Default: true,
	Cost:         "Runs only for packets that the kernel frees as dropped: 389 ns for a lost packet, 135 ns for an ignored one.",
	Capabilities: []Capability{CapBPF, CapPerfmon, CapSyslog},
	Options: []Option{stackOption, {
		Key: "multicast", Default: false,
		Obsolete: "packets to multicast groups that no socket on the node joined are never losses; they count in nodeskoop_packetloss_ignored_total",
	}},
	Metrics: []Metric{{
		Name: "kubeskoop_packetloss_tcphandle", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in tcp_v4_do_rcv() or tcp_v6_do_rcv().",
		Kernel: "skb:kfree_skb in tcp_v4_do_rcv(), tcp_v6_do_rcv()",
		Rises:  "A segment reached its socket and was refused before TCP's state machine: a bad checksum, or a reset answered it. Drops in tcp_rcv_established() count here where the compiler made its last call a jump (Debian's x86-64 kernels), and in abnormal elsewhere (Debian's arm64 kernels).",
	}, {
		Name: "kubeskoop_packetloss_tcprcv", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in tcp_v4_rcv() or tcp_v6_rcv().",
		Kernel: "skb:kfree_skb in tcp_v4_rcv(), tcp_v6_rcv()",
		Rises:  "A segment has no socket (a SYN or data for a closed port), a bad checksum, or the listener's accept queue, the socket's backlog or a policy refused it.",
	}, {
		Name: "kubeskoop_packetloss_abnormal", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in any other function.",
		Kernel: "skb:kfree_skb in any other function",
		Rises:  "UDP buffers, queueing disciplines, routing, neighbours, devices: kubeskoop_packetloss_reason says which.",
	}, {
		Name: "kubeskoop_packetloss_total", Type: Counter, Scope: PerNetns,
		Help:   "Packets that the kernel dropped although a receiver should have got them; a GSO or GRO packet is one, each fragment of a datagram is one. The sum of tcphandle, tcprcv, tcpstatm, netfilter and abnormal.",
		Kernel: "tracepoint skb:kfree_skb",
		Rises:  "The kernel drops a packet that a receiver should have got. Packets that the kernel frees in the same way without a loss count in nodeskoop_packetloss_ignored_total. The owner is the namespace that received or sent the packet; if the kernel leaves no way to know it, both pod labels are `unknown`. Some drops do not pass this tracepoint on any kernel and count elsewhere: a SYN that finds the accept queue full (kubeskoop_tcpext_listenoverflows) or the SYN queue full (kubeskoop_tcpext_listendrops); packets without a route at their sender, whose system call fails (OutNoRoutes of `nstat`); frames that an XDP program drops in a network card's driver; copies for a capture (`tcpdump` reports them). For an ICMP packet to a full raw socket, Linux 6.12 and newer reports only the original packet, with NO_SOCKET. Before Linux 5.18 TCP frees the segments that it discards itself (PAWS, out of the window, after the close) without this tracepoint; only drops in tcp_v4_rcv(), tcp_v4_do_rcv() and their IPv6 counterparts count.",
	}, {
		Name: "kubeskoop_packetloss_netfilter", Type: Counter, Scope: PerNetns,
		Help:   "Packets dropped by a netfilter rule (drop reason NETFILTER_DROP, or dropped in the hook's functions).",
		Kernel: "skb:kfree_skb, reason NETFILTER_DROP; nf_hook_slow()",
		Rises:  "A rule of nftables or iptables, or a network policy built on them, drops a packet. Policies in eBPF (Cilium) do not count here.",
	}, {
		Name: "kubeskoop_packetloss_tcpstatm", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in tcp_rcv_state_process() because they did not fit the state of their connection.",
		Kernel: "skb:kfree_skb in tcp_rcv_state_process()",
		Rises:  "A segment with data arrives after close().",
	}, {
		Name: "kubeskoop_packetloss_reason", Type: Counter, Scope: PerNetns, Labels: []string{"reason"}, Extra: true,
		Help:   "Packets lost, by the kernel's drop reason (enum skb_drop_reason, Linux 5.17 and newer).",
		Kernel: "skb:kfree_skb, argument reason",
		Rises:  "As packetloss_total. The series of a reason appears with its first drop; before Linux 5.17 there are none.",
	}, {
		Name: "nodeskoop_packetloss_ignored_total", Type: Counter, Scope: PerHost, Labels: []string{"why"}, Extra: true, Work: true,
		Help:   "Packets and messages that the kernel freed as dropped without a loss, by why: delivered, unwanted, closing, not_a_packet. The sum of this and kubeskoop_packetloss_total over all namespaces is every pass of skb:kfree_skb.",
		Kernel: "skb:kfree_skb, where no packet is lost",
		Rises:  "`delivered`: the data or the reply has reached its socket (parts of a packet that GRO or reassembly merged, freed after the read; handled ICMPv6; the original of an echo reply that a raw socket copied; acknowledgements, keep-alives and window probes that TCP has processed; old duplicates; a capture's copy that does not fit its buffer). `unwanted`: multicast, broadcast or frames for another host that no socket on the node asked for. `closing`: unread data in a socket that closes, and acknowledgements, FIN and RST for a connection that no longer exists. `not_a_packet`: messages of netlink, audit, vsock and AF_UNIX sockets, which the kernel stores in the same structure.",
	}},
	Events: []EventType{{
		Name: "PacketLoss", Path: "skb:kfree_skb", Warn: Warn{Count: 50},
		Fields:    []FieldGroup{FieldTuple, FieldLocation, FieldReason, FieldStack},
		MessageID: "b120a366f0bbe9cf42f2dc05873f9bd0",
		Summary:   "A packet was dropped",
		Message:   "packet{ends} dropped",
		Explain: "The kernel dropped a packet that a receiver should have got. Packets freed without a loss (acknowledgements that TCP has processed, multicast without a listener, unread data of a closing socket) cause no event. KUBESKOOP_REASON is the kernel's drop reason (Linux 5.17 and newer), KUBESKOOP_LOCATION the function that dropped the packet, KUBESKOOP_STACK the call stack. TCP retransmits lost data, so a single drop only costs time. Look into a steady rate, and into repeated drops of one connection.\n\n" +
			"NETFILTER_DROP is a firewall rule or a network policy. NO_SOCKET is a port without a listening socket. SOCKET_RCVBUFF is an application that reads more slowly than data arrive. QDISC_DROP is a full queue of an interface. NEIGH_FAILED is a next hop that answers no ARP or neighbour discovery. CPU_BACKLOG is a CPU that cannot keep up with arriving packets. TCP_CSUM, UDP_CSUM and IP_CSUM are damaged packets.",
		Next: []Step{
			stepRules,
			stepCounters,
			{"ip -s link show; tc -s qdisc show", "drops by interface and by queue"},
		},
	}},
}
