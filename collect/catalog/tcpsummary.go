package catalog

var tcpsummary = Probe{
	Name:   "tcpsummary",
	Title:  "TCP connections by state, and their queues",
	Rank:   11,
	Source: Procfs, Overhead: "medium", Measured: "161 us/namespace", Default: true,
	Cost:         "Walks the connections once per cycle, so the cost grows with their number; adds nothing to the packet path.",
	Capabilities: []Capability{CapSysAdmin},
	Metrics: []Metric{{
		Name: "kubeskoop_tcpsummary_tcpestablishedconn", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "ESTABLISHED",
		Help:   "TCP connections in ESTABLISHED, IPv4 and IPv6.",
		Kernel: "sock_diag, state ESTABLISHED",
		Rises:  "Follows the open connections.",
	}, {
		Name: "kubeskoop_tcpsummary_tcptimewaitconn", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "TIME_WAIT",
		Help:   "TCP connections in TIME_WAIT, IPv4 and IPv6.",
		Kernel: "sock_diag, state TIME_WAIT",
		Rises:  "This end closed first: one for each such connection of the last 60 s. net.ipv4.tcp_max_tw_buckets limits their number.",
	}, {
		Name: "kubeskoop_tcpsummary_tcptxqueue", Type: Gauge, Recorded: true, Scope: PerNetns,
		Help:   "Bytes written that the peer has not acknowledged, over all TCP connections.",
		Kernel: "sock_diag idiag_wqueue; write_seq - snd_una",
		Rises:  "The peer or the path to it accepts data more slowly than the application writes.",
	}, {
		Name: "kubeskoop_tcpsummary_tcprxqueue", Type: Gauge, Recorded: true, Scope: PerNetns,
		Help:   "Bytes received that the application has not read, over all TCP connections.",
		Kernel: "sock_diag idiag_rqueue; rcv_nxt - copied_seq",
		Rises:  "The application reads more slowly than data arrive. Listening sockets do not count.",
	}, {
		Name: "kubeskoop_tcpsummary_tcpclosewaitconn", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "CLOSE_WAIT", Extra: true,
		Help:   "TCP connections in CLOSE_WAIT, IPv4 and IPv6: the peer closed, the application has not.",
		Kernel: "sock_diag, state CLOSE_WAIT",
		Rises:  "The peer closed and the application did not: a steady climb is a leak of sockets.",
	}, {
		Name: "kubeskoop_tcpsummary_tcpsynsentconn", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "SYN_SENT", Extra: true,
		Help:   "TCP connections in SYN_SENT, IPv4 and IPv6.",
		Kernel: "sock_diag, state SYN_SENT",
		Rises:  "Connections wait for an answer to their SYN: the peer is down, or a firewall on the path drops.",
	}, {
		Name: "kubeskoop_tcpsummary_tcpsynrecvconn", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "SYN_RECV", Extra: true,
		Help:   "TCP connections in SYN_RECV, IPv4 and IPv6.",
		Kernel: "sock_diag, state SYN_RECV",
		Rises:  "Handshakes wait for the client's ACK: slow clients, a lossy return path, or a SYN flood.",
	}},
}
