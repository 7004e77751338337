package collect

// The probes that read procfs or ask netlink. HELP states the unit, the kernel
// counter and what makes it rise, for the person who reads it at night.

func counter(name string, scope Scope, field, help string) Metric {
	return Metric{Name: name, Type: Counter, Scope: scope, Field: field, Help: help}
}

func gauge(name string, scope Scope, field, help string) Metric {
	return Metric{Name: name, Type: Gauge, Scope: scope, Field: field, Help: help}
}

func extra(m Metric) Metric {
	m.Extra = true
	return m
}

func alias(name, of string, t Type, help string) Metric {
	return Metric{Name: name, Type: t, Scope: PerPod, Alias: of, Extra: true,
		Help: help + " The same series as " + of + ", under the name that dashboards use."}
}

var podsOption = Option{Key: "pods", Default: false,
	Help: "also sample the network namespaces of pods; otherwise the host's alone"}

const nodeWide = " The kernel counts this for the whole node, so every namespace shows the host's figure."

var probes = []ProbeInfo{
	{
		Name: "tcp", Title: "TCP counters of the SNMP MIB", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_tcp_activeopens", PerNetns, "Tcp.ActiveOpens", "TCP connections opened by connect(): transitions from CLOSED to SYN_SENT."),
			counter("kubeskoop_tcp_passiveopens", PerNetns, "Tcp.PassiveOpens", "TCP connections that peers opened: handshakes completed on listening sockets."),
			counter("kubeskoop_tcp_retranssegs", PerNetns, "Tcp.RetransSegs", "TCP segments retransmitted, SYN and SYN-ACK included."),
			counter("kubeskoop_tcp_attemptfails", PerNetns, "Tcp.AttemptFails", "TCP connection attempts that failed: SYN_SENT or SYN_RECV to CLOSED, or SYN_RECV to LISTEN."),
			counter("kubeskoop_tcp_estabresets", PerNetns, "Tcp.EstabResets", "TCP connections reset from ESTABLISHED or CLOSE_WAIT."),
			gauge("kubeskoop_tcp_currestab", PerNetns, "Tcp.CurrEstab", "TCP connections now in ESTABLISHED or CLOSE_WAIT."),
			counter("kubeskoop_tcp_insegs", PerNetns, "Tcp.InSegs", "TCP segments received, those in error included."),
			counter("kubeskoop_tcp_outsegs", PerNetns, "Tcp.OutSegs", "TCP segments sent, without retransmissions."),
			counter("kubeskoop_tcp_inerrs", PerNetns, "Tcp.InErrs", "TCP segments received in error, a bad checksum for one."),
			counter("kubeskoop_tcp_outrsts", PerNetns, "Tcp.OutRsts", "TCP segments sent with RST."),
		},
	},
	{
		Name: "udp", Title: "UDP counters of the SNMP MIB", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_udp_indatagrams", PerNetns, "Udp.InDatagrams", "UDP datagrams that applications read (IPv4)."),
			counter("kubeskoop_udp_noports", PerNetns, "Udp.NoPorts", "UDP datagrams for a port on which nothing listens (IPv4)."),
			counter("kubeskoop_udp_inerrors", PerNetns, "Udp.InErrors", "UDP datagrams that could not be delivered, full receive buffers and bad checksums included (IPv4)."),
			counter("kubeskoop_udp_outdatagrams", PerNetns, "Udp.OutDatagrams", "UDP datagrams sent (IPv4)."),
			counter("kubeskoop_udp_rcvbuferrors", PerNetns, "Udp.RcvbufErrors", "UDP datagrams dropped because the socket's receive buffer was full (IPv4)."),
			counter("kubeskoop_udp_sndbuferrors", PerNetns, "Udp.SndbufErrors", "UDP datagrams not sent because the socket's send buffer was full (IPv4)."),
			counter("kubeskoop_udp_incsumerrors", PerNetns, "Udp.InCsumErrors", "UDP datagrams dropped for a bad checksum (IPv4)."),
			counter("kubeskoop_udp_ignoredmulti", PerNetns, "Udp.IgnoredMulti", "UDP multicast datagrams that no socket wanted (IPv4)."),
		},
	},
	{
		Name: "ip", Title: "IP counters of the extended MIB", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_ip_innoroutes", PerNetns, "IpExt.InNoRoutes", "IPv4 packets received for which no route was found."),
			counter("kubeskoop_ip_intruncatedpkts", PerNetns, "IpExt.InTruncatedPkts", "IPv4 packets received that were shorter than their header said."),
		},
	},
	{
		Name: "tcpext", Title: "TCP counters of the Linux extended MIB", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_tcpext_listendrops", PerNetns, "TcpExt.ListenDrops", "SYNs dropped at a listening socket, for whatever cause; accept queue overflows included."),
			counter("kubeskoop_tcpext_listenoverflows", PerNetns, "TcpExt.ListenOverflows", "Connections dropped because the accept queue of the listening socket was full."),
			counter("kubeskoop_tcpext_tcpsynretrans", PerNetns, "TcpExt.TCPSynRetrans", "SYN and SYN-ACK segments retransmitted."),
			counter("kubeskoop_tcpext_tcpfastretrans", PerNetns, "TcpExt.TCPFastRetrans", "Segments retransmitted by fast retransmit, before a timeout."),
			counter("kubeskoop_tcpext_tcpretransfail", PerNetns, "TcpExt.TCPRetransFail", "Segments retransmitted that the layers below TCP refused."),
			counter("kubeskoop_tcpext_tcptimeouts", PerNetns, "TcpExt.TCPTimeouts", "Expirations of the retransmission timer."),
			counter("kubeskoop_tcpext_tcpabortonclose", PerNetns, "TcpExt.TCPAbortOnClose", "Connections reset because the application closed the socket with data still unread."),
			counter("kubeskoop_tcpext_tcpabortonmemory", PerNetns, "TcpExt.TCPAbortOnMemory", "Connections aborted for lack of TCP memory or because of too many orphans."),
			counter("kubeskoop_tcpext_tcpabortontimeout", PerNetns, "TcpExt.TCPAbortOnTimeout", "Connections aborted because a retransmission, keep-alive or other timer ran out."),
			counter("kubeskoop_tcpext_tcpabortonlinger", PerNetns, "TcpExt.TCPAbortOnLinger", "Connections aborted in FIN_WAIT2 because the closed socket had a negative TCP_LINGER2."),
			counter("kubeskoop_tcpext_tcpabortondata", PerNetns, "TcpExt.TCPAbortOnData", "Connections reset because data arrived after the application closed, or by close() with a linger time of 0."),
			counter("kubeskoop_tcpext_tcpabortfailed", PerNetns, "TcpExt.TCPAbortFailed", "RST segments that could not be sent when a connection was aborted."),
			counter("kubeskoop_tcpext_tcpackskippedsynrecv", PerNetns, "TcpExt.TCPACKSkippedSynRecv", "ACKs not sent in SYN_RECV because of the rate limit on answers to out-of-window segments."),
			counter("kubeskoop_tcpext_tcpackskippedpaws", PerNetns, "TcpExt.TCPACKSkippedPAWS", "ACKs to segments with an old timestamp not sent because of the rate limit."),
			counter("kubeskoop_tcpext_tcpackskippedseq", PerNetns, "TcpExt.TCPACKSkippedSeq", "ACKs to segments outside the window not sent because of the rate limit."),
			counter("kubeskoop_tcpext_tcpackskippedfinwait2", PerNetns, "TcpExt.TCPACKSkippedFinWait2", "ACKs not sent in FIN_WAIT2 because of the rate limit."),
			counter("kubeskoop_tcpext_tcpackskippedtimewait", PerNetns, "TcpExt.TCPACKSkippedTimeWait", "ACKs not sent in TIME_WAIT because of the rate limit."),
			counter("kubeskoop_tcpext_tcpackskippedchallenge", PerNetns, "TcpExt.TCPACKSkippedChallenge", "Challenge ACKs (RFC 5961) not sent because of the rate limit."),
			counter("kubeskoop_tcpext_tcprcvqdrop", PerNetns, "TcpExt.TCPRcvQDrop", "Packets (a GRO packet is one) dropped because the socket's receive queue had no room."),
			counter("kubeskoop_tcpext_tcpmemorypressures", PerNetns, "TcpExt.TCPMemoryPressures", "Times that TCP entered memory pressure."),
			counter("kubeskoop_tcpext_tcpmemorypressureschrono", PerNetns, "TcpExt.TCPMemoryPressuresChrono", "Time, in milliseconds, that TCP spent under memory pressure."),
			counter("kubeskoop_tcpext_pawsactive", PerNetns, "TcpExt.PAWSActive", "SYN-ACKs rejected in SYN_SENT for an old timestamp (PAWS, RFC 7323)."),
			counter("kubeskoop_tcpext_pawsestab", PerNetns, "TcpExt.PAWSEstab", "Segments rejected on connections for an old timestamp (PAWS, RFC 7323)."),
			counter("kubeskoop_tcpext_embryonicrsts", PerNetns, "TcpExt.EmbryonicRsts", "Connections in SYN_RECV that a RST ended, received or sent."),
			counter("kubeskoop_tcpext_tcpwinprobe", PerNetns, "TcpExt.TCPWinProbe", "Probes sent because the peer's receive window was closed."),
			counter("kubeskoop_tcpext_tcpkeepalive", PerNetns, "TcpExt.TCPKeepAlive", "Keep-alive probes sent."),
			counter("kubeskoop_tcpext_tcpmtupfail", PerNetns, "TcpExt.TCPMTUPFail", "Path MTU probes (RFC 4821) that were lost."),
			counter("kubeskoop_tcpext_tcpmtupsuccess", PerNetns, "TcpExt.TCPMTUPSuccess", "Path MTU probes (RFC 4821) that succeeded."),
			counter("kubeskoop_tcpext_tcpzerowindowdrop", PerNetns, "TcpExt.TCPZeroWindowDrop", "Packets (a GRO packet is one) dropped because the local receive window was closed."),
			counter("kubeskoop_tcpext_tcpbacklogdrop", PerNetns, "TcpExt.TCPBacklogDrop", "Packets (a GRO packet is one) dropped because the backlog of a socket in use was full."),
			counter("kubeskoop_tcpext_pfmemallocdrop", PerNetns, "TcpExt.PFMemallocDrop", "Packets dropped because they sat in the memory reserve and their socket was not allowed to use it."),
			counter("kubeskoop_tcpext_tcpwqueuetoobig", PerNetns, "TcpExt.TCPWqueueTooBig", "Segments that TCP refused to split because the write queue was too long."),
		},
	},
	{
		Name: "sock", Title: "TCP socket and memory use", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			gauge("kubeskoop_sock_inuse", PerNetns, "inuse", "TCP sockets in use, IPv4 and IPv6 together (sockstat inuse)."),
			gauge("kubeskoop_sock_orphan", PerNetns, "orphan", "TCP sockets that no process holds any more (sockstat orphan)."+nodeWide),
			gauge("kubeskoop_sock_tw", PerNetns, "tw", "TCP sockets in TIME_WAIT (sockstat tw)."),
			gauge("kubeskoop_sock_alloc", PerNetns, "alloc", "TCP sockets allocated, in whatever state (sockstat alloc)."+nodeWide),
			gauge("kubeskoop_sock_mem", PerNetns, "mem", "Memory that TCP buffers take, in pages (sockstat mem)."+nodeWide),
		},
	},
	{
		Name: "softnet", Title: "packets through the receive path of each CPU", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_softnet_processed", PerHost, "", "Packets taken from the CPUs' receive queues (softnet_stat column 1, over all CPUs)."),
			counter("kubeskoop_softnet_dropped", PerHost, "", "Packets dropped because a CPU's backlog queue was full, see net.core.netdev_max_backlog (softnet_stat column 2, over all CPUs)."),
		},
	},
	{
		Name: "netdev", Title: "interface counters", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_netdev_rxbytes", PerNetns, "rx.bytes", "Bytes received, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_rxerrors", PerNetns, "rx.errs", "Packets received in error, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_txbytes", PerNetns, "tx.bytes", "Bytes sent, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_txerrors", PerNetns, "tx.errs", "Packets that could not be sent for an error, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_rxpackets", PerNetns, "rx.packets", "Packets received, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_rxdropped", PerNetns, "rx.drop", "Received packets dropped or missed by the device, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_txpackets", PerNetns, "tx.packets", "Packets sent, every interface but lo; what removed interfaces had counted is kept."),
			counter("kubeskoop_netdev_txdropped", PerNetns, "tx.drop", "Packets dropped on the way out, every interface but lo; what removed interfaces had counted is kept."),
		},
	},
	{
		Name: "ipvs", Title: "IPVS totals", Source: Procfs, Overhead: "low", Default: true,
		Options: []Option{podsOption},
		Metrics: []Metric{
			counter("kubeskoop_ipvs_connections", PerNetns, "", "Connections scheduled by IPVS; 0 while ip_vs is not loaded."),
			counter("kubeskoop_ipvs_incomingpackets", PerNetns, "", "Packets that IPVS received for its virtual services; 0 while ip_vs is not loaded."),
			counter("kubeskoop_ipvs_outgoingbytes", PerNetns, "", "Bytes that IPVS sent back to clients; 0 while ip_vs is not loaded."),
			counter("kubeskoop_ipvs_incomingbytes", PerNetns, "", "Bytes that IPVS received for its virtual services; 0 while ip_vs is not loaded."),
			counter("kubeskoop_ipvs_outgoingpackets", PerNetns, "", "Packets that IPVS sent back to clients; 0 while ip_vs is not loaded."),
		},
	},
	{
		Name: "io", Title: "system calls and storage I/O of processes", Source: Procfs, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_io_ioreadsyscall", PerPod, "syscr", "read()-like system calls of all processes (syscr); what exited processes had counted is kept."),
			counter("kubeskoop_io_iowritesyscall", PerPod, "syscw", "write()-like system calls of all processes (syscw); what exited processes had counted is kept."),
			counter("kubeskoop_io_ioreadbytes", PerPod, "read_bytes", "Bytes that all processes made storage read, the page cache's hits not counted (read_bytes); what exited processes had counted is kept."),
			counter("kubeskoop_io_iowritebytes", PerPod, "write_bytes", "Bytes that all processes sent towards storage (write_bytes); what exited processes had counted is kept."),
			alias("kubeskoop_io_readsyscall", "kubeskoop_io_ioreadsyscall", Counter, "read()-like system calls of all processes."),
			alias("kubeskoop_io_writesyscall", "kubeskoop_io_iowritesyscall", Counter, "write()-like system calls of all processes."),
			alias("kubeskoop_io_readbytes", "kubeskoop_io_ioreadbytes", Counter, "Bytes that all processes made storage read."),
			alias("kubeskoop_io_writebytes", "kubeskoop_io_iowritebytes", Counter, "Bytes that all processes sent towards storage."),
		},
	},
	{
		Name: "fd", Title: "open file and socket descriptors of processes", Source: Procfs, Overhead: "medium", Default: true,
		Metrics: []Metric{
			gauge("kubeskoop_fdopenfd", PerPod, "", "Open file descriptors of all processes."),
			gauge("kubeskoop_fd_opensocket", PerPod, "", "Open file descriptors of all processes that are sockets."),
			alias("kubeskoop_fd_openfd", "kubeskoop_fdopenfd", Gauge, "Open file descriptors of all processes."),
		},
	},
	{
		Name: "tcpsummary", Title: "TCP connections by state, and their queues", Source: Procfs, Overhead: "medium", Default: true,
		Metrics: []Metric{
			gauge("kubeskoop_tcpsummary_tcpestablishedconn", PerNetns, "ESTABLISHED", "TCP connections in ESTABLISHED, IPv4 and IPv6."),
			gauge("kubeskoop_tcpsummary_tcptimewaitconn", PerNetns, "TIME_WAIT", "TCP connections in TIME_WAIT, IPv4 and IPv6."),
			gauge("kubeskoop_tcpsummary_tcptxqueue", PerNetns, "", "Bytes written that the peer has not acknowledged, over all TCP connections."),
			gauge("kubeskoop_tcpsummary_tcprxqueue", PerNetns, "", "Bytes received that the application has not read, over all TCP connections."),
			extra(gauge("kubeskoop_tcpsummary_tcpclosewaitconn", PerNetns, "CLOSE_WAIT", "TCP connections in CLOSE_WAIT, IPv4 and IPv6: the peer closed, the application has not.")),
			extra(gauge("kubeskoop_tcpsummary_tcpsynsentconn", PerNetns, "SYN_SENT", "TCP connections in SYN_SENT, IPv4 and IPv6.")),
			extra(gauge("kubeskoop_tcpsummary_tcpsynrecvconn", PerNetns, "SYN_RECV", "TCP connections in SYN_RECV, IPv4 and IPv6.")),
		},
	},
	{
		Name: "qdisc", Title: "queueing disciplines at the root of interfaces", Source: Netlink, Overhead: "low", Default: true,
		Metrics: []Metric{
			counter("kubeskoop_qdisc_bytes", PerNetns, "", "Bytes sent through the root qdiscs of every interface but lo; what removed qdiscs had counted is kept."),
			counter("kubeskoop_qdisc_packets", PerNetns, "", "Packets sent through the root qdiscs of every interface but lo; what removed qdiscs had counted is kept."),
			counter("kubeskoop_qdisc_drops", PerNetns, "", "Packets dropped by the root qdiscs of every interface but lo; what removed qdiscs had counted is kept."),
			gauge("kubeskoop_qdisc_qlen", PerNetns, "", "Packets now queued in the root qdiscs of every interface but lo."),
			gauge("kubeskoop_qdisc_backlog", PerNetns, "", "Bytes now queued in the root qdiscs of every interface but lo."),
			counter("kubeskoop_qdisc_overlimits", PerNetns, "", "Times that a root qdisc held back a packet for its rate limit, every interface but lo; what removed qdiscs had counted is kept."),
		},
	},
	{
		Name: "conntrack", Title: "connection tracking", Source: Netlink, Overhead: "low", Default: true,
		Options: []Option{podsOption},
		Metrics: []Metric{
			counter("kubeskoop_conntrack_found", PerNetns, "found", "Times that NAT found a tuple in use when it looked for a free one (found, over all CPUs); before Linux 4.9 every lookup that found an entry."),
			counter("kubeskoop_conntrack_invalid", PerNetns, "invalid", "Packets that conntrack could not track (invalid, over all CPUs)."),
			counter("kubeskoop_conntrack_ignore", PerNetns, "ignore", "Packets seen that were tracked or exempt already (ignore, over all CPUs); kernels since 5.10 no longer count it: 0."),
			counter("kubeskoop_conntrack_insert", PerNetns, "insert", "Entries inserted into the conntrack table (insert, over all CPUs); since Linux 4.9 those that programs insert alone."),
			counter("kubeskoop_conntrack_insertfailed", PerNetns, "insert_failed", "Entries that could not be inserted, mostly a race between packets of one connection (insert_failed, over all CPUs)."),
			counter("kubeskoop_conntrack_drop", PerNetns, "drop", "Packets dropped because an entry could not be made, a full table for one (drop, over all CPUs)."),
			counter("kubeskoop_conntrack_earlydrop", PerNetns, "early_drop", "Entries dropped early to make room in a full table (early_drop, over all CPUs)."),
			counter("kubeskoop_conntrack_error", PerNetns, "error", "Packets dropped for a protocol error, ICMP errors that match no connection included (icmp_error, over all CPUs)."),
			counter("kubeskoop_conntrack_searchrestart", PerNetns, "search_restart", "Conntrack lookups repeated because the table changed underneath (search_restart, over all CPUs)."),
			gauge("kubeskoop_conntrack_entries", PerNetns, "entries", "Entries now in the conntrack table of the namespace."),
			gauge("kubeskoop_conntrack_maxentries", PerNetns, "max_entries", "Most entries that the conntrack table may hold (net.netfilter.nf_conntrack_max)."),
		},
	},
	packetlossInfo, tcpresetInfo, tcpretransInfo, netiftxlatencyInfo, netSoftirqInfo,
	kernellatencyInfo, socketlatencyInfo, virtcmdlatencyInfo, biolatencyInfo, flowInfo,
}
