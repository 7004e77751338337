package catalog

var tcp = Probe{
	Name:   "tcp",
	Title:  "TCP counters of the SNMP MIB",
	Rank:   1,
	Source: Procfs, Overhead: "low", Measured: "35 us/namespace", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_tcp_activeopens", Type: Counter, Work: true, Scope: PerNetns, Field: "Tcp.ActiveOpens",
		Help:   "TCP connections opened by connect(): transitions from CLOSED to SYN_SENT.",
		Kernel: "snmp Tcp ActiveOpens; tcp_connect()",
		Rises:  "A process calls connect(), whether or not the peer answers.",
	}, {
		Name: "kubeskoop_tcp_passiveopens", Type: Counter, Work: true, Scope: PerNetns, Field: "Tcp.PassiveOpens",
		Help:   "TCP connections that peers opened: handshakes completed on listening sockets.",
		Kernel: "snmp Tcp PassiveOpens; tcp_create_openreq_child()",
		Rises:  "A client completes a handshake with a listening socket. A SYN that is dropped, and a connection that the full accept queue refuses, do not count.",
	}, {
		Name: "kubeskoop_tcp_retranssegs", Type: Counter, Scope: PerNetns, Field: "Tcp.RetransSegs",
		Help:   "TCP segments retransmitted, SYN and SYN-ACK included.",
		Kernel: "snmp Tcp RetransSegs; __tcp_retransmit_skb(), tcp_rtx_synack()",
		Rises:  "A segment, SYN or SYN-ACK is retransmitted: the segment or its acknowledgement was lost, or came later than the timer allows. The segments of a GSO packet count one by one. Segments that the layers below refuse count too (tcpext_tcpretransfail).",
	}, {
		Name: "kubeskoop_tcp_attemptfails", Type: Counter, Scope: PerNetns, Field: "Tcp.AttemptFails",
		Help:   "TCP connection attempts that failed: SYN_SENT or SYN_RECV to CLOSED, or SYN_RECV to LISTEN.",
		Kernel: "snmp Tcp AttemptFails; tcp_done(), tcp_check_req()",
		Rises:  "A connect() is refused or times out; a half-open connection is reset by the client.",
	}, {
		Name: "kubeskoop_tcp_estabresets", Type: Counter, Scope: PerNetns, Field: "Tcp.EstabResets",
		Help:   "TCP connections reset from ESTABLISHED or CLOSE_WAIT.",
		Kernel: "snmp Tcp EstabResets; tcp_set_state()",
		Rises:  "A connection in ESTABLISHED or CLOSE_WAIT ends without a FIN of this end: by RST from either side, by a timeout, or because the application was killed with unread data.",
	}, {
		Name: "kubeskoop_tcp_currestab", Type: Gauge, Scope: PerNetns, Field: "Tcp.CurrEstab",
		Help:   "TCP connections now in ESTABLISHED or CLOSE_WAIT.",
		Kernel: "snmp Tcp CurrEstab; tcp_set_state()",
		Rises:  "Follows the connections in ESTABLISHED and CLOSE_WAIT.",
	}, {
		Name: "kubeskoop_tcp_insegs", Type: Counter, Work: true, Scope: PerNetns, Field: "Tcp.InSegs",
		Help:   "TCP segments received, those in error included.",
		Kernel: "snmp Tcp InSegs; tcp_v4_rcv(), tcp_v6_rcv()",
		Rises:  "A segment arrives, good or bad. Segments that GRO merged on the way count as one.",
	}, {
		Name: "kubeskoop_tcp_outsegs", Type: Counter, Work: true, Scope: PerNetns, Field: "Tcp.OutSegs",
		Help:   "TCP segments sent, without retransmissions.",
		Kernel: "snmp Tcp OutSegs; __tcp_transmit_skb(), tcp_make_synack(), tcp_v4_send_reset()",
		Rises:  "A segment is sent for the first time; the segments of a GSO packet count one by one.",
	}, {
		Name: "kubeskoop_tcp_inerrs", Type: Counter, Scope: PerNetns, Field: "Tcp.InErrs",
		Help:   "TCP segments received with an error, such as a bad checksum.",
		Kernel: "snmp Tcp InErrs; tcp_v4_rcv(), tcp_v6_rcv(), tcp_validate_incoming()",
		Rises:  "A segment has a bad checksum or header, or is a SYN inside an established connection.",
	}, {
		Name: "kubeskoop_tcp_outrsts", Type: Counter, Scope: PerNetns, Field: "Tcp.OutRsts",
		Help:   "TCP segments sent with RST.",
		Kernel: "snmp Tcp OutRsts; tcp_v4_send_reset(), tcp_v6_send_reset(), tcp_send_active_reset()",
		Rises:  "This end sends RST: no socket listens, the application closed with unread data or with linger 0, or a segment does not fit the connection. A RST that a firewall sends (reject with tcp reset) does not count.",
	}},
}
