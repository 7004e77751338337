package catalog

var tcpext = Probe{
	Name:   "tcpext",
	Title:  "TCP counters of the Linux extended MIB",
	Rank:   4,
	Source: Procfs, Overhead: "low", Measured: "60 us/namespace", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_tcpext_listendrops", Type: Counter, Scope: PerNetns, Field: "TcpExt.ListenDrops",
		Help:   "SYNs dropped at a listening socket for any reason, including accept queue overflows.",
		Kernel: "netstat TcpExt ListenDrops; tcp_conn_request(), tcp_v4_syn_recv_sock(), tcp_v6_syn_recv_sock()",
		Rises:  "A SYN, or the ACK that would complete a handshake, is dropped: accept queue full, SYN backlog full without SYN cookies, no memory, no route. Rises with every listenoverflows.",
	}, {
		Name: "kubeskoop_tcpext_listenoverflows", Type: Counter, Scope: PerNetns, Field: "TcpExt.ListenOverflows",
		Help:   "Connections dropped because the accept queue of the listening socket was full.",
		Kernel: "netstat TcpExt ListenOverflows; tcp_conn_request(), tcp_v4_syn_recv_sock(), tcp_v6_syn_recv_sock()",
		Rises:  "The accept queue is full: the application accepts too slowly, or the backlog of listen() (at most net.core.somaxconn) is too small. Counts each SYN or ACK that meets the full queue, so one client counts several times.",
	}, {
		Name: "kubeskoop_tcpext_tcpsynretrans", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPSynRetrans",
		Help:   "SYN and SYN-ACK segments retransmitted.",
		Kernel: "netstat TcpExt TCPSynRetrans; __tcp_retransmit_skb(), tcp_rtx_synack()",
		Rises:  "A SYN or SYN-ACK gets no answer within its timer: the peer is down, a firewall drops, its accept queue is full. Each costs the connection one second or more.",
	}, {
		Name: "kubeskoop_tcpext_tcpfastretrans", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPFastRetrans",
		Help:   "Segments retransmitted by fast retransmit, before a timeout.",
		Kernel: "netstat TcpExt TCPFastRetrans; tcp_xmit_retransmit_queue()",
		Rises:  "Acknowledgements show a hole, and the lost segment is retransmitted without waiting for the timer: loss or reordering on the way. The segments of a GSO packet count one by one.",
	}, {
		Name: "kubeskoop_tcpext_tcpretransfail", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPRetransFail",
		Help:   "Retransmissions that the layers below TCP refused.",
		Kernel: "netstat TcpExt TCPRetransFail; __tcp_retransmit_skb()",
		Rises:  "The layers below TCP refuse a retransmission: no memory, an output firewall rule, a full queue. The segments of a GSO packet count one by one. Without a route, or while the first transmission still waits in this host's queue, TCP does not try, and nothing counts.",
	}, {
		Name: "kubeskoop_tcpext_tcptimeouts", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPTimeouts",
		Help:   "Expirations of the retransmission timer.",
		Kernel: "netstat TcpExt TCPTimeouts; tcp_retransmit_timer(), tcp_syn_ack_timeout()",
		Rises:  "No acknowledgement came before the retransmission timer expired (200 ms at least; 1 s for SYNs). Each is a visible stall.",
	}, {
		Name: "kubeskoop_tcpext_tcpabortonclose", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPAbortOnClose",
		Help:   "Connections reset because the application closed the socket with data still unread.",
		Kernel: "netstat TcpExt TCPAbortOnClose; __tcp_close()",
		Rises:  "The application closes a socket whose data it has not read; the peer gets RST. So does a process that is killed.",
	}, {
		Name: "kubeskoop_tcpext_tcpabortonmemory", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPAbortOnMemory",
		Help:   "Connections aborted for lack of TCP memory or because of too many orphans.",
		Kernel: "netstat TcpExt TCPAbortOnMemory; tcp_out_of_resources(), __tcp_close()",
		Rises:  "A connection without a process is aborted: more orphans than net.ipv4.tcp_max_orphans, or TCP memory above the last value of net.ipv4.tcp_mem.",
	}, {
		Name: "kubeskoop_tcpext_tcpabortontimeout", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPAbortOnTimeout",
		Help:   "Connections aborted because a retransmission, keep-alive or other timer ran out.",
		Kernel: "netstat TcpExt TCPAbortOnTimeout; tcp_write_err()",
		Rises:  "Retransmissions (net.ipv4.tcp_retries2), window probes, keep-alives or TCP_USER_TIMEOUT run out: the peer is gone.",
	}, {
		Name: "kubeskoop_tcpext_tcpabortonlinger", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPAbortOnLinger",
		Help:   "Connections aborted in FIN_WAIT2 because the closed socket had a negative TCP_LINGER2.",
		Kernel: "netstat TcpExt TCPAbortOnLinger; __tcp_close()",
		Rises:  "A socket with a negative TCP_LINGER2 is closed in FIN_WAIT2. Only applications that set this option increase it.",
	}, {
		Name: "kubeskoop_tcpext_tcpabortondata", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPAbortOnData",
		Help:   "Connections reset because data arrived after the application closed, or by close() with a linger time of 0.",
		Kernel: "netstat TcpExt TCPAbortOnData; __tcp_close(), tcp_rcv_state_process()",
		Rises:  "The application closes with SO_LINGER and a time of 0, or data arrive for a connection that it has closed (in FIN_WAIT2 they do not count: nodeskoop_tcpreset_total has those).",
	}, {
		Name: "kubeskoop_tcpext_tcpabortfailed", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPAbortFailed",
		Help:   "RST segments that could not be sent when a connection was aborted.",
		Kernel: "netstat TcpExt TCPAbortFailed; tcp_send_active_reset()",
		Rises:  "The RST of an abort could not be created or sent: no memory, no route. The peer is not informed.",
	}, {
		Name: "kubeskoop_tcpext_tcpackskippedsynrecv", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPACKSkippedSynRecv",
		Help:   "ACKs not sent in SYN_RECV because of the rate limit on answers to out-of-window segments.",
		Kernel: "netstat TcpExt TCPACKSkippedSynRecv; tcp_check_req(), tcp_oow_rate_limited()",
		Rises:  "A half-open connection gets more out-of-window segments than net.ipv4.tcp_invalid_ratelimit (500 ms) answers.",
	}, {
		Name: "kubeskoop_tcpext_tcpackskippedpaws", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPACKSkippedPAWS",
		Help:   "ACKs to segments with an old timestamp not sent because of the rate limit.",
		Kernel: "netstat TcpExt TCPACKSkippedPAWS; tcp_validate_incoming(), tcp_oow_rate_limited()",
		Rises:  "Segments with old timestamps arrive faster than they are answered: duplicates from the network, or several clients behind one NAT address.",
	}, {
		Name: "kubeskoop_tcpext_tcpackskippedseq", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPACKSkippedSeq",
		Help:   "ACKs to segments outside the window not sent because of the rate limit.",
		Kernel: "netstat TcpExt TCPACKSkippedSeq; tcp_validate_incoming(), tcp_oow_rate_limited()",
		Rises:  "Segments outside the window arrive faster than they are answered: a peer that is out of sync, or two such peers that answer each other in a loop.",
	}, {
		Name: "kubeskoop_tcpext_tcpackskippedfinwait2", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPACKSkippedFinWait2",
		Help:   "ACKs not sent in FIN_WAIT2 because of the rate limit.",
		Kernel: "netstat TcpExt TCPACKSkippedFinWait2; tcp_timewait_check_oow_rate_limit()",
		Rises:  "As tcpackskippedseq, for a connection that this end has closed and the peer has not.",
	}, {
		Name: "kubeskoop_tcpext_tcpackskippedtimewait", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPACKSkippedTimeWait",
		Help:   "ACKs not sent in TIME_WAIT because of the rate limit.",
		Kernel: "netstat TcpExt TCPACKSkippedTimeWait; tcp_timewait_check_oow_rate_limit()",
		Rises:  "As tcpackskippedseq, for a connection in TIME_WAIT: the peer keeps sending to a closed connection.",
	}, {
		Name: "kubeskoop_tcpext_tcpackskippedchallenge", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPACKSkippedChallenge",
		Help:   "Challenge ACKs (RFC 5961) not sent because of the rate limit.",
		Kernel: "netstat TcpExt TCPACKSkippedChallenge; tcp_send_challenge_ack()",
		Rises:  "A connection gets more RST, SYN or invalid ACK segments than the rate limit on challenge ACKs allows: a peer out of sync, or an attack with guessed segments.",
	}, {
		Name: "kubeskoop_tcpext_tcprcvqdrop", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPRcvQDrop",
		Help:   "Packets (a GRO packet is one) dropped because the socket's receive queue had no room.",
		Kernel: "netstat TcpExt TCPRcvQDrop; tcp_data_queue()",
		Rises:  "Data arrive in order and the socket has no memory for them: the receive buffer is exhausted by small segments, or TCP is at its memory limit.",
	}, {
		Name: "kubeskoop_tcpext_tcpmemorypressures", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPMemoryPressures",
		Help:   "Times that TCP entered memory pressure.",
		Kernel: "netstat TcpExt TCPMemoryPressures; tcp_enter_memory_pressure()",
		Rises:  "TCP buffers of the node exceed the middle value of net.ipv4.tcp_mem. The limit is node-wide; the namespace whose socket met it counts.",
	}, {
		Name: "kubeskoop_tcpext_tcpmemorypressureschrono", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPMemoryPressuresChrono",
		Help:   "Time, in milliseconds, that TCP spent under memory pressure.",
		Kernel: "netstat TcpExt TCPMemoryPressuresChrono; tcp_leave_memory_pressure()",
		Rises:  "Memory pressure ends; its whole duration is added at that moment.",
	}, {
		Name: "kubeskoop_tcpext_pawsactive", Type: Counter, Work: true, Scope: PerNetns, Field: "TcpExt.PAWSActive",
		Help:   "SYN-ACKs rejected in SYN_SENT for an old timestamp (PAWS, RFC 7323).",
		Kernel: "netstat TcpExt PAWSActive; tcp_rcv_synsent_state_process()",
		Rises:  "The answer to a SYN carries a timestamp that was not sent: an old duplicate, or a NAT that mixes connections.",
	}, {
		Name: "kubeskoop_tcpext_pawsestab", Type: Counter, Scope: PerNetns, Field: "TcpExt.PAWSEstab",
		Help:   "Segments rejected on connections for an old timestamp (PAWS, RFC 7323).",
		Kernel: "netstat TcpExt PAWSEstab; tcp_validate_incoming()",
		Rises:  "A segment's timestamp is older than the connection's latest: late duplicates, or several machines behind one NAT address. Since Linux 6.14 some causes count separately (PAWSOldAck).",
	}, {
		Name: "kubeskoop_tcpext_embryonicrsts", Type: Counter, Scope: PerNetns, Field: "TcpExt.EmbryonicRsts",
		Help:   "Connections in SYN_RECV that a RST ended, received or sent.",
		Kernel: "netstat TcpExt EmbryonicRsts; tcp_check_req()",
		Rises:  "A client resets a connection before the handshake ends: port scans, health checks that stop at SYN-ACK, clients that gave up. Also when this end sends the RST: a second SYN inside the window, or net.ipv4.tcp_abort_on_overflow.",
	}, {
		Name: "kubeskoop_tcpext_tcpwinprobe", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPWinProbe",
		Help:   "Probes sent because the peer's receive window was closed.",
		Kernel: "netstat TcpExt TCPWinProbe; tcp_send_probe0()",
		Rises:  "The peer's application does not read, so its window is closed; this end probes whether it has opened.",
	}, {
		Name: "kubeskoop_tcpext_tcpkeepalive", Type: Counter, Work: true, Scope: PerNetns, Field: "TcpExt.TCPKeepAlive",
		Help:   "Keep-alive probes sent.",
		Kernel: "netstat TcpExt TCPKeepAlive; tcp_keepalive_timer()",
		Rises:  "An idle connection with SO_KEEPALIVE is probed (net.ipv4.tcp_keepalive_time). Normal.",
	}, {
		Name: "kubeskoop_tcpext_tcpmtupfail", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPMTUPFail",
		Help:   "Path MTU probes (RFC 4821) that were lost.",
		Kernel: "netstat TcpExt TCPMTUPFail; tcp_mtup_probe_failed()",
		Rises:  "A larger segment sent to try the path's MTU was lost. Only with net.ipv4.tcp_mtu_probing.",
	}, {
		Name: "kubeskoop_tcpext_tcpmtupsuccess", Type: Counter, Work: true, Scope: PerNetns, Field: "TcpExt.TCPMTUPSuccess",
		Help:   "Path MTU probes (RFC 4821) that succeeded.",
		Kernel: "netstat TcpExt TCPMTUPSuccess; tcp_mtup_probe_success()",
		Rises:  "A larger segment sent to try the path's MTU arrived. Only with net.ipv4.tcp_mtu_probing.",
	}, {
		Name: "kubeskoop_tcpext_tcpzerowindowdrop", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPZeroWindowDrop",
		Help:   "Packets (a GRO packet is one) dropped because the local receive window was closed.",
		Kernel: "netstat TcpExt TCPZeroWindowDrop; tcp_data_queue()",
		Rises:  "Data arrive although this end has closed its window, because the application does not read.",
	}, {
		Name: "kubeskoop_tcpext_tcpbacklogdrop", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPBacklogDrop",
		Help:   "Packets (a GRO packet is one) dropped because the backlog of a socket in use was full.",
		Kernel: "netstat TcpExt TCPBacklogDrop; tcp_add_backlog()",
		Rises:  "While the application holds the socket locked, more segments arrive than its buffers may take.",
	}, {
		Name: "kubeskoop_tcpext_pfmemallocdrop", Type: Counter, Scope: PerNetns, Field: "TcpExt.PFMemallocDrop",
		Help:   "Packets dropped because they sat in the memory reserve and their socket was not allowed to use it.",
		Kernel: "netstat TcpExt PFMemallocDrop; sk_filter_trim_cap()",
		Rises:  "The node is so short of memory that the packet was taken from the emergency reserve, which only sockets of swap and the like may use.",
	}, {
		Name: "kubeskoop_tcpext_tcpwqueuetoobig", Type: Counter, Scope: PerNetns, Field: "TcpExt.TCPWqueueTooBig",
		Help:   "Segments that TCP refused to split because the write queue was too long.",
		Kernel: "netstat TcpExt TCPWqueueTooBig; tcp_fragment()",
		Rises:  "A peer forces tiny segments (selective acknowledgements, small MSS) until the write queue is twice its limit; an attack (CVE-2019-11478) or a very small SO_SNDBUF.",
	}},
}
