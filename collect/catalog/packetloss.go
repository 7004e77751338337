package catalog

var packetloss = Probe{
	Name:   "packetloss",
	Title:  "packets that the kernel dropped",
	Rank:   14,
	Source: EBPF, Overhead: "medium", Measured: "389 ns/lost packet", Default: true,
	Cost:         "Runs for the packets alone that the kernel frees as dropped: 389 ns for a lost one, 135 ns for one that nobody misses.",
	Capabilities: []Capability{CapBPF, CapPerfmon, CapSyslog},
	Options: []Option{stackOption, {
		Key: "multicast", Default: false,
		Obsolete: "packets to groups that nobody on the node asked for are no losses, and count in nodeskoop_packetloss_ignored_total",
	}},
	Metrics: []Metric{{
		Name: "kubeskoop_packetloss_tcphandle", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in tcp_v4_do_rcv() or tcp_v6_do_rcv().",
		Kernel: "skb:kfree_skb in tcp_v4_do_rcv(), tcp_v6_do_rcv()",
		Rises:  "A segment reached its socket and was refused before TCP's state machine: a bad checksum, or a reset answered it. What tcp_rcv_established() loses is here where the kernel's compiler made its last call a jump (Debian's x86-64 kernels), and else in abnormal (its arm64 ones).",
	}, {
		Name: "kubeskoop_packetloss_tcprcv", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in tcp_v4_rcv() or tcp_v6_rcv().",
		Kernel: "skb:kfree_skb in tcp_v4_rcv(), tcp_v6_rcv()",
		Rises:  "A segment has no socket (a SYN or data for a closed port), a bad checksum, or the listener's accept queue, the socket's backlog or a policy refused it.",
	}, {
		Name: "kubeskoop_packetloss_abnormal", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in any function that no other class names.",
		Kernel: "skb:kfree_skb in any other function",
		Rises:  "UDP buffers, queueing disciplines, routing, neighbours, devices: kubeskoop_packetloss_reason says which.",
	}, {
		Name: "kubeskoop_packetloss_total", Type: Counter, Scope: PerNetns,
		Help:   "Packets that the kernel dropped although somebody should have got them, as the kernel freed them (a GSO or GRO packet is one, each fragment of a datagram is one): the sum of the classes tcphandle, tcprcv, tcpstatm, netfilter and abnormal.",
		Kernel: "tracepoint skb:kfree_skb",
		Rises:  "The kernel drops a packet that somebody should have got. What it frees the same way although nobody misses it counts in nodeskoop_packetloss_ignored_total instead. The owner is the namespace that received or sent the packet; where the kernel leaves no way to know, both pod labels are `unknown`. No kernel tells of these, which are counted elsewhere: a SYN that finds the accept queue full (kubeskoop_tcpext_listenoverflows) or the SYN queue full (kubeskoop_tcpext_listendrops); packets without a route at their sender, whose call fails (OutNoRoutes of `nstat`); frames that an XDP program drops in a network card's driver; the copy of a capture (`tcpdump` reports it). Linux 6.12 and newer frees only the original of an ICMP packet for a raw socket that is full, with NO_SOCKET. Before Linux 5.18 TCP frees silently what it discards itself (PAWS, segments out of the window or after the close): only what tcp_v4_rcv(), tcp_v4_do_rcv() and their IPv6 twins refuse is told.",
	}, {
		Name: "kubeskoop_packetloss_netfilter", Type: Counter, Scope: PerNetns,
		Help:   "Packets dropped by a netfilter rule (drop reason NETFILTER_DROP, or dropped in the hook's functions).",
		Kernel: "skb:kfree_skb, reason NETFILTER_DROP; nf_hook_slow()",
		Rises:  "A rule of nftables or iptables, or a network policy made of them, drops. Policies in eBPF (Cilium) do not pass here.",
	}, {
		Name: "kubeskoop_packetloss_tcpstatm", Type: Counter, Scope: PerNetns,
		Help:   "Packets lost in tcp_rcv_state_process(): they did not fit the state of their connection.",
		Kernel: "skb:kfree_skb in tcp_rcv_state_process()",
		Rises:  "A segment with data does not fit its connection's state: it came after close().",
	}, {
		Name: "kubeskoop_packetloss_reason", Type: Counter, Scope: PerNetns, Labels: []string{"reason"}, Extra: true,
		Help:   "Packets lost, by the kernel's own name of the reason (enum skb_drop_reason, Linux 5.17 and newer).",
		Kernel: "skb:kfree_skb, argument reason",
		Rises:  "As packetloss_total. Series appear with the first drop of a reason; before Linux 5.17 there are none.",
	}, {
		Name: "nodeskoop_packetloss_ignored_total", Type: Counter, Scope: PerHost, Labels: []string{"why"}, Extra: true,
		Help:   "Packets and messages that the kernel freed as dropped although nobody misses them, by why: delivered, unwanted, closing, not_a_packet. With kubeskoop_packetloss_total of all namespaces they are all that it freed so.",
		Kernel: "skb:kfree_skb, where nobody misses the packet",
		Rises:  "`delivered`: the content or the answer has reached its socket (parts of a packet that GRO or a reassembly put together, freed after the read; handled ICMPv6; the original of an echo reply of which a raw socket took its copy; acknowledgements, keep-alives and window probes that TCP has taken in; old duplicates; the copy that a capture has no room for). `unwanted`: multicast, broadcast or a frame for another host that nobody on the node asked for. `closing`: data unread in a socket that closes, and acknowledgements, FIN and RST for a connection that is gone. `not_a_packet`: messages of netlink, audit, vsock and local sockets, which the kernel keeps in the same structure.",
	}},
	Events: []EventType{{
		Name: "PacketLoss", Path: "skb:kfree_skb", Warn: Warn{Count: 50},
		Fields:    []FieldGroup{FieldTuple, FieldLocation, FieldReason, FieldStack},
		MessageID: "b120a366f0bbe9cf42f2dc05873f9bd0",
		Summary:   "A packet was dropped",
		Message:   "packet{ends} dropped",
		Explain: "The kernel dropped a packet that somebody should have got. Packets that nobody misses (acknowledgements that TCP has taken in, multicasts that nobody asked for, what a closing socket still held) are no events. KUBESKOOP_REASON is the kernel's own reason (Linux 5.17 and newer), KUBESKOOP_LOCATION the function that dropped it, KUBESKOOP_STACK the way there. TCP retransmits lost data, so one drop costs time; a steady rate, or drops of always the same connection, are what to look into.\n\n" +
			"NETFILTER_DROP is a firewall rule or a network policy. NO_SOCKET is a port on which nobody listens. SOCKET_RCVBUFF is an application that reads more slowly than data arrive. QDISC_DROP is a full queue of an interface. NEIGH_FAILED is a next hop that answers no ARP or neighbour discovery. CPU_BACKLOG is a CPU that cannot keep up with what arrives. TCP_CSUM, UDP_CSUM and IP_CSUM are damaged packets.",
		Next: []Step{
			stepRules,
			stepCounters,
			{"ip -s link show; tc -s qdisc show", "drops by interface and by queue"},
		},
	}},
}
