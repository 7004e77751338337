package catalog

var udp = Probe{
	Name:   "udp",
	Title:  "UDP counters of the SNMP MIB",
	Rank:   2,
	Source: Procfs, Overhead: "low", Measured: "32 us/namespace", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_udp_indatagrams", Type: Counter, Work: true, Scope: PerNetns, Field: "Udp.InDatagrams",
		Help:   "UDP datagrams that applications read (IPv4).",
		Kernel: "snmp Udp InDatagrams; udp_recvmsg(), udp_queue_rcv_one_skb()",
		Rises:  "An application reads a datagram, or a tunnel in the kernel (VXLAN) receives it. Datagrams that still wait in the receive buffer do not count yet. IPv4.",
	}, {
		Name: "kubeskoop_udp_noports", Type: Counter, Scope: PerNetns, Field: "Udp.NoPorts",
		Help:   "UDP datagrams for a port without a bound socket (IPv4).",
		Kernel: "snmp Udp NoPorts; __udp4_lib_rcv()",
		Rises:  "A datagram arrives for a port on which no socket is bound; the sender gets ICMP port unreachable. IPv4.",
	}, {
		Name: "kubeskoop_udp_inerrors", Type: Counter, Scope: PerNetns, Field: "Udp.InErrors",
		Help:   "UDP datagrams that could not be delivered, including full receive buffers and bad checksums (IPv4).",
		Kernel: "snmp Udp InErrors; __udp_queue_rcv_skb(), udp_queue_rcv_one_skb()",
		Rises:  "A datagram for a bound socket is dropped: its buffer is full, UDP memory is short, the checksum is bad, or a socket filter or IPsec policy refuses it. IPv4.",
	}, {
		Name: "kubeskoop_udp_outdatagrams", Type: Counter, Work: true, Scope: PerNetns, Field: "Udp.OutDatagrams",
		Help:   "UDP datagrams sent (IPv4).",
		Kernel: "snmp Udp OutDatagrams; udp_send_skb()",
		Rises:  "A datagram is handed to IP. IPv4.",
	}, {
		Name: "kubeskoop_udp_rcvbuferrors", Type: Counter, Scope: PerNetns, Field: "Udp.RcvbufErrors",
		Help:   "UDP datagrams dropped because the socket's receive buffer was full (IPv4).",
		Kernel: "snmp Udp RcvbufErrors; __udp_queue_rcv_skb()",
		Rises:  "The application reads more slowly than datagrams arrive, until SO_RCVBUF (net.core.rmem_default) is full. IPv4.",
	}, {
		Name: "kubeskoop_udp_sndbuferrors", Type: Counter, Scope: PerNetns, Field: "Udp.SndbufErrors",
		Help:   "UDP datagrams not sent because the socket's send buffer was full (IPv4).",
		Kernel: "snmp Udp SndbufErrors; udp_sendmsg(), udp_send_skb()",
		Rises:  "The send buffer is full, or the queue of the device refused the datagram. IPv4.",
	}, {
		Name: "kubeskoop_udp_incsumerrors", Type: Counter, Scope: PerNetns, Field: "Udp.InCsumErrors",
		Help:   "UDP datagrams dropped for a bad checksum (IPv4).",
		Kernel: "snmp Udp InCsumErrors; udp_queue_rcv_one_skb(), udp_recvmsg()",
		Rises:  "A datagram was damaged on the way, or offloading left a wrong checksum. IPv4.",
	}, {
		Name: "kubeskoop_udp_ignoredmulti", Type: Counter, Work: true, Scope: PerNetns, Field: "Udp.IgnoredMulti",
		Help:   "UDP multicast datagrams that no socket wanted (IPv4).",
		Kernel: "snmp Udp IgnoredMulti; __udp4_lib_mcast_deliver()",
		Rises:  "A multicast or broadcast datagram arrives for a port on which no socket joined. Mostly announcements; harmless. IPv4.",
	}},
}
