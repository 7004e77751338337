package collect

// metricNote is what the Catalogue says about a metric beyond its HELP, for
// docs/METRICS.md.
type metricNote struct {
	// kernel names the counter and the function of the kernel that moves it.
	kernel string
	// rises says what makes it rise, or for a gauge what moves it.
	rises string
}

// metricNotes by the metric's name. A metric that repeats another has none of
// its own. Function names are those of Linux 6.x; older kernels have most of
// them.
var metricNotes = map[string]metricNote{
	// tcp: /proc/PID/net/snmp, IPv4 and IPv6 together.
	"kubeskoop_tcp_activeopens":  {"snmp Tcp ActiveOpens; tcp_connect()", "A process calls connect(), whether or not the peer answers."},
	"kubeskoop_tcp_passiveopens": {"snmp Tcp PassiveOpens; tcp_create_openreq_child()", "A client completes a handshake with a listening socket. A SYN that is dropped, and a connection that the full accept queue refuses, do not count."},
	"kubeskoop_tcp_retranssegs":  {"snmp Tcp RetransSegs; __tcp_retransmit_skb(), tcp_rtx_synack()", "A segment, SYN or SYN-ACK is retransmitted: it, or its acknowledgement, was lost, or came later than the timer allows. The segments of a GSO packet count one by one, and so do those that the layers below refuse (tcpext_tcpretransfail)."},
	"kubeskoop_tcp_attemptfails": {"snmp Tcp AttemptFails; tcp_done(), tcp_check_req()", "A connect() is refused or times out; a half-open connection is reset by the client."},
	"kubeskoop_tcp_estabresets":  {"snmp Tcp EstabResets; tcp_set_state()", "A connection in ESTABLISHED or CLOSE_WAIT ends without a FIN of this end: by RST from either side, by a timeout, or because the application was killed with data unread."},
	"kubeskoop_tcp_currestab":    {"snmp Tcp CurrEstab; tcp_set_state()", "Follows the connections in ESTABLISHED and CLOSE_WAIT."},
	"kubeskoop_tcp_insegs":       {"snmp Tcp InSegs; tcp_v4_rcv(), tcp_v6_rcv()", "A segment arrives, good or bad. Segments that GRO merged on the way count as one."},
	"kubeskoop_tcp_outsegs":      {"snmp Tcp OutSegs; __tcp_transmit_skb(), tcp_make_synack(), tcp_v4_send_reset()", "A segment is sent for the first time; what the device will split counts by segment."},
	"kubeskoop_tcp_inerrs":       {"snmp Tcp InErrs; tcp_v4_rcv(), tcp_v6_rcv(), tcp_validate_incoming()", "A segment has a bad checksum or header, or is a SYN inside an established connection."},
	"kubeskoop_tcp_outrsts":      {"snmp Tcp OutRsts; tcp_v4_send_reset(), tcp_v6_send_reset(), tcp_send_active_reset()", "This end sends RST: nobody listens, the application closed with data unread or with linger 0, or a segment does not fit. A RST that a firewall sends (reject with tcp reset) does not count."},

	// udp: /proc/PID/net/snmp, IPv4 alone; IPv6 counts in snmp6.
	"kubeskoop_udp_indatagrams":  {"snmp Udp InDatagrams; udp_recvmsg(), udp_queue_rcv_one_skb()", "An application reads a datagram, or a tunnel inside the kernel (VXLAN) takes it. What still waits in the receive buffer has not counted yet. IPv4."},
	"kubeskoop_udp_noports":      {"snmp Udp NoPorts; __udp4_lib_rcv()", "A datagram arrives for a port on which no socket is bound; the sender gets ICMP port unreachable. IPv4."},
	"kubeskoop_udp_inerrors":     {"snmp Udp InErrors; __udp_queue_rcv_skb(), udp_queue_rcv_one_skb()", "A datagram for a bound socket is dropped: its buffer is full, UDP memory is short, the checksum is bad, or a socket filter or IPsec policy refuses it. IPv4."},
	"kubeskoop_udp_outdatagrams": {"snmp Udp OutDatagrams; udp_send_skb()", "A datagram is handed to IP. IPv4."},
	"kubeskoop_udp_rcvbuferrors": {"snmp Udp RcvbufErrors; __udp_queue_rcv_skb()", "The application reads more slowly than datagrams arrive, until SO_RCVBUF (net.core.rmem_default) is full. IPv4."},
	"kubeskoop_udp_sndbuferrors": {"snmp Udp SndbufErrors; udp_sendmsg(), udp_send_skb()", "The send buffer is full, or the queue of the device refused the datagram. IPv4."},
	"kubeskoop_udp_incsumerrors": {"snmp Udp InCsumErrors; udp_queue_rcv_one_skb(), udp_recvmsg()", "A datagram was damaged on the way, or offloading left a wrong checksum. IPv4."},
	"kubeskoop_udp_ignoredmulti": {"snmp Udp IgnoredMulti; __udp4_lib_mcast_deliver()", "A multicast or broadcast datagram arrives for a port on which no socket joined. Mostly announcements; harmless. IPv4."},

	// ip: /proc/PID/net/netstat IpExt, IPv4 alone.
	"kubeskoop_ip_innoroutes":      {"netstat IpExt InNoRoutes; ip_error()", "A packet arrives whose destination the routing table does not know (network unreachable). IPv4."},
	"kubeskoop_ip_intruncatedpkts": {"netstat IpExt InTruncatedPkts; ip_rcv_core()", "A frame is shorter than the length in its IP header: a broken sender, driver or tunnel. IPv4."},

	// tcpext: /proc/PID/net/netstat TcpExt, IPv4 and IPv6 together.
	"kubeskoop_tcpext_listendrops":              {"netstat TcpExt ListenDrops; tcp_conn_request(), tcp_v4_syn_recv_sock(), tcp_v6_syn_recv_sock()", "A SYN, or the ACK that would complete a handshake, is dropped: accept queue full, SYN backlog full without SYN cookies, no memory, no route. Rises with every listenoverflows."},
	"kubeskoop_tcpext_listenoverflows":          {"netstat TcpExt ListenOverflows; tcp_conn_request(), tcp_v4_syn_recv_sock(), tcp_v6_syn_recv_sock()", "The accept queue is full: the application accepts too slowly, or the backlog of listen() (at most net.core.somaxconn) is too small. Counts each SYN or ACK that meets the full queue, so one client counts several times."},
	"kubeskoop_tcpext_tcpsynretrans":            {"netstat TcpExt TCPSynRetrans; __tcp_retransmit_skb(), tcp_rtx_synack()", "A SYN or SYN-ACK gets no answer within its timer: the peer is down, a firewall drops, its accept queue is full. Each costs the connection one second or more."},
	"kubeskoop_tcpext_tcpfastretrans":           {"netstat TcpExt TCPFastRetrans; tcp_xmit_retransmit_queue()", "Acknowledgements show a hole, and the lost segment is retransmitted without waiting for the timer: loss or reordering on the way. The segments of a GSO packet count one by one."},
	"kubeskoop_tcpext_tcpretransfail":           {"netstat TcpExt TCPRetransFail; __tcp_retransmit_skb()", "A segment should be retransmitted and the layers below refuse: no memory, a firewall on the way out, a full queue. The segments of a GSO packet count one by one. Where there is no route, or the first transmission still waits in this host's queue, TCP does not try, and nothing counts."},
	"kubeskoop_tcpext_tcptimeouts":              {"netstat TcpExt TCPTimeouts; tcp_retransmit_timer(), tcp_syn_ack_timeout()", "Nothing came back within the retransmission timer (200 ms at least; 1 s for SYNs). Each is a visible stall."},
	"kubeskoop_tcpext_tcpabortonclose":          {"netstat TcpExt TCPAbortOnClose; __tcp_close()", "The application closes a socket whose data it has not read; the peer gets RST. A process that is killed does so, too."},
	"kubeskoop_tcpext_tcpabortonmemory":         {"netstat TcpExt TCPAbortOnMemory; tcp_out_of_resources(), __tcp_close()", "A connection without a process is given up: more orphans than net.ipv4.tcp_max_orphans, or TCP memory above the last value of net.ipv4.tcp_mem."},
	"kubeskoop_tcpext_tcpabortontimeout":        {"netstat TcpExt TCPAbortOnTimeout; tcp_write_err()", "Retransmissions (net.ipv4.tcp_retries2), window probes, keep-alives or TCP_USER_TIMEOUT run out: the peer is gone."},
	"kubeskoop_tcpext_tcpabortonlinger":         {"netstat TcpExt TCPAbortOnLinger; __tcp_close()", "A socket with a negative TCP_LINGER2 is closed in FIN_WAIT2. Only applications that set this option move it."},
	"kubeskoop_tcpext_tcpabortondata":           {"netstat TcpExt TCPAbortOnData; __tcp_close(), tcp_rcv_state_process()", "The application closes with SO_LINGER and a time of 0, or data arrive for a connection that it has closed (in FIN_WAIT2 they do not count: nodeskoop_tcpreset_total has those)."},
	"kubeskoop_tcpext_tcpabortfailed":           {"netstat TcpExt TCPAbortFailed; tcp_send_active_reset()", "The RST of an abort could not be made or sent: no memory, no route. The peer learns nothing."},
	"kubeskoop_tcpext_tcpackskippedsynrecv":     {"netstat TcpExt TCPACKSkippedSynRecv; tcp_check_req(), tcp_oow_rate_limited()", "A half-open connection gets more out-of-window segments than net.ipv4.tcp_invalid_ratelimit (500 ms) answers."},
	"kubeskoop_tcpext_tcpackskippedpaws":        {"netstat TcpExt TCPACKSkippedPAWS; tcp_validate_incoming(), tcp_oow_rate_limited()", "Segments with old timestamps arrive faster than they are answered: duplicates from the network, or several clients behind one NAT address."},
	"kubeskoop_tcpext_tcpackskippedseq":         {"netstat TcpExt TCPACKSkippedSeq; tcp_validate_incoming(), tcp_oow_rate_limited()", "Segments outside the window arrive faster than they are answered: a peer that is out of step, or a loop of two such ends."},
	"kubeskoop_tcpext_tcpackskippedfinwait2":    {"netstat TcpExt TCPACKSkippedFinWait2; tcp_timewait_check_oow_rate_limit()", "The same, for a connection that this end has closed and the peer has not."},
	"kubeskoop_tcpext_tcpackskippedtimewait":    {"netstat TcpExt TCPACKSkippedTimeWait; tcp_timewait_check_oow_rate_limit()", "The same, for a connection in TIME_WAIT: the peer goes on sending to a closed connection."},
	"kubeskoop_tcpext_tcpackskippedchallenge":   {"netstat TcpExt TCPACKSkippedChallenge; tcp_send_challenge_ack()", "A connection gets more RST, SYN or odd ACK segments that call for a challenge than are answered: a peer out of step, or an attack with guessed segments."},
	"kubeskoop_tcpext_tcprcvqdrop":              {"netstat TcpExt TCPRcvQDrop; tcp_data_queue()", "Data arrive in order and there is no memory for them: the receive buffer is exhausted by small segments, or TCP is at its memory limit."},
	"kubeskoop_tcpext_tcpmemorypressures":       {"netstat TcpExt TCPMemoryPressures; tcp_enter_memory_pressure()", "TCP buffers of the node pass the middle value of net.ipv4.tcp_mem. The limit is the node's; it counts in the namespace whose socket met it."},
	"kubeskoop_tcpext_tcpmemorypressureschrono": {"netstat TcpExt TCPMemoryPressuresChrono; tcp_leave_memory_pressure()", "Memory pressure ends: then the milliseconds that it lasted are added at once."},
	"kubeskoop_tcpext_pawsactive":               {"netstat TcpExt PAWSActive; tcp_rcv_synsent_state_process()", "The answer to a SYN carries a timestamp that was not sent: an old duplicate, or a NAT that mixes connections."},
	"kubeskoop_tcpext_pawsestab":                {"netstat TcpExt PAWSEstab; tcp_validate_incoming()", "A segment's timestamp is older than the connection's latest: late duplicates, or several machines behind one NAT address. Kernels since 6.14 count some causes apart (PAWSOldAck)."},
	"kubeskoop_tcpext_embryonicrsts":            {"netstat TcpExt EmbryonicRsts; tcp_check_req()", "A client resets a connection before the handshake ends: port scans, health checks that stop at SYN-ACK, clients that gave up. Also when this end sends the RST: a second SYN inside the window, or net.ipv4.tcp_abort_on_overflow."},
	"kubeskoop_tcpext_tcpwinprobe":              {"netstat TcpExt TCPWinProbe; tcp_send_probe0()", "The peer's application does not read: its window is closed, and this end asks whether it opened."},
	"kubeskoop_tcpext_tcpkeepalive":             {"netstat TcpExt TCPKeepAlive; tcp_keepalive_timer()", "An idle connection with SO_KEEPALIVE is probed (net.ipv4.tcp_keepalive_time). Normal."},
	"kubeskoop_tcpext_tcpmtupfail":              {"netstat TcpExt TCPMTUPFail; tcp_mtup_probe_failed()", "A larger segment sent to try the path's MTU was lost. Only with net.ipv4.tcp_mtu_probing."},
	"kubeskoop_tcpext_tcpmtupsuccess":           {"netstat TcpExt TCPMTUPSuccess; tcp_mtup_probe_success()", "A larger segment sent to try the path's MTU arrived. Only with net.ipv4.tcp_mtu_probing."},
	"kubeskoop_tcpext_tcpzerowindowdrop":        {"netstat TcpExt TCPZeroWindowDrop; tcp_data_queue()", "Data arrive although this end has closed its window, because the application does not read."},
	"kubeskoop_tcpext_tcpbacklogdrop":           {"netstat TcpExt TCPBacklogDrop; tcp_add_backlog()", "Segments arrive for a socket that the application holds locked, more than its buffers may take meanwhile."},
	"kubeskoop_tcpext_pfmemallocdrop":           {"netstat TcpExt PFMemallocDrop; sk_filter_trim_cap()", "The node is so short of memory that the packet was taken from the emergency reserve, which only sockets of swap and the like may use."},
	"kubeskoop_tcpext_tcpwqueuetoobig":          {"netstat TcpExt TCPWqueueTooBig; tcp_fragment()", "A peer forces tiny segments (selective acknowledgements, small MSS) until the write queue is twice its limit; an attack (CVE-2019-11478) or a very small SO_SNDBUF."},

	// sock: /proc/PID/net/sockstat and sockstat6.
	"kubeskoop_sock_inuse":  {"sockstat TCP inuse + sockstat6 TCP6 inuse; sock_prot_inuse_get()", "Follows the TCP sockets of the namespace, listening ones included, TIME_WAIT not."},
	"kubeskoop_sock_orphan": {"sockstat TCP orphan; tcp_orphan_count_sum()", "Closed by the application while data or FIN wait to be acknowledged: peers that vanished."},
	"kubeskoop_sock_tw":     {"sockstat TCP tw; tcp_death_row.tw_refcount", "The end that closes first stays in TIME_WAIT for 60 s: many short connections."},
	"kubeskoop_sock_alloc":  {"sockstat TCP alloc; proto_sockets_allocated_sum_positive()", "Follows all TCP sockets of the node, closed ones with unread data included."},
	"kubeskoop_sock_mem":    {"sockstat TCP mem; proto_memory_allocated()", "Data wait in sockets, unread or not acknowledged. Compare with the three values of net.ipv4.tcp_mem, which are pages, too."},

	// softnet: /proc/net/softnet_stat, the node's.
	"kubeskoop_softnet_processed": {"softnet_stat column 1; __netif_receive_skb_core()", "A CPU takes a packet into the stack; one that crosses a veth counts again."},
	"kubeskoop_softnet_dropped":   {"softnet_stat column 2; enqueue_to_backlog()", "The backlog queue of a CPU (RPS, veth, loopback, tunnels) is full: the CPU is too busy to empty it. A NIC's own ring drops elsewhere (netdev rxdropped, ethtool -S)."},

	// netdev: /proc/PID/net/dev.
	"kubeskoop_netdev_rxbytes":   {"net/dev receive bytes; dev_get_stats()", "Frames are received, link header included on most devices."},
	"kubeskoop_netdev_rxerrors":  {"net/dev receive errs; rx_errors", "The device got damaged frames: cable, optics, duplex, a broken peer."},
	"kubeskoop_netdev_txbytes":   {"net/dev transmit bytes; dev_get_stats()", "Frames are sent, link header included on most devices."},
	"kubeskoop_netdev_txerrors":  {"net/dev transmit errs; tx_errors", "The device could not send: carrier lost, a tunnel without a route, a ring that stalled."},
	"kubeskoop_netdev_rxpackets": {"net/dev receive packets; dev_get_stats()", "Frames are received on any interface."},
	"kubeskoop_netdev_rxdropped": {"net/dev receive drop; rx_dropped + rx_missed_errors", "The device's ring was full (missed), or the stack had no use for the frame: no protocol for it, a VLAN that is not set up, a full backlog of a CPU."},
	"kubeskoop_netdev_txpackets": {"net/dev transmit packets; dev_get_stats()", "Frames are sent on any interface."},
	"kubeskoop_netdev_txdropped": {"net/dev transmit drop; tx_dropped", "The driver gave the frame up. Drops of the queue before it count in qdisc_drops."},

	// ipvs: /proc/PID/net/ip_vs_stats, IPv4 and IPv6 together.
	"kubeskoop_ipvs_connections":     {"ip_vs_stats conns; ip_vs_conn_stats()", "IPVS picks a backend for a new connection."},
	"kubeskoop_ipvs_incomingpackets": {"ip_vs_stats inpkts; ip_vs_in_stats()", "A client's packet reaches a virtual service."},
	"kubeskoop_ipvs_outgoingbytes":   {"ip_vs_stats outbytes; ip_vs_out_stats()", "A backend's answer passes IPVS on its way back; with direct routing none does."},
	"kubeskoop_ipvs_incomingbytes":   {"ip_vs_stats inbytes; ip_vs_in_stats()", "A client's packet reaches a virtual service."},
	"kubeskoop_ipvs_outgoingpackets": {"ip_vs_stats outpkts; ip_vs_out_stats()", "A backend's answer passes IPVS on its way back; with direct routing none does."},

	// io, fd: /proc/PID of every process of the pod; io also of its shim.
	"kubeskoop_io_ioreadsyscall":  {"/proc/PID/io syscr; vfs_read() and its kin", "A process calls read(), readv(), pread() or sendfile() on anything. recv() and mmap do not count."},
	"kubeskoop_io_iowritesyscall": {"/proc/PID/io syscw; vfs_write() and its kin", "A process calls write() or the like on anything. send() and mmap do not count."},
	"kubeskoop_io_ioreadbytes":    {"/proc/PID/io read_bytes; task_io_account_read()", "Data that are not in the page cache are fetched from storage, read-ahead included."},
	"kubeskoop_io_iowritebytes":   {"/proc/PID/io write_bytes; task_io_account_write()", "A process makes pages of the page cache dirty, or writes with O_DIRECT. It counts when it writes, not when the disk does; what is truncated before is not taken back."},
	"kubeskoop_fdopenfd":          {"the entries of /proc/PID/fd", "Follows open files, sockets, pipes. A steady climb is a leak; the limit is RLIMIT_NOFILE of each process."},
	"kubeskoop_fd_opensocket":     {"the entries of /proc/PID/fd that are sockets", "Follows open sockets, those in CLOSE_WAIT that the application forgot included."},

	// tcpsummary: sock_diag, else /proc/PID/net/tcp and tcp6; both families.
	"kubeskoop_tcpsummary_tcpestablishedconn": {"sock_diag, state ESTABLISHED", "Follows the open connections."},
	"kubeskoop_tcpsummary_tcptimewaitconn":    {"sock_diag, state TIME_WAIT", "This end closed first: one for each connection of the last 60 s. At net.ipv4.tcp_max_tw_buckets they are cut short."},
	"kubeskoop_tcpsummary_tcptxqueue":         {"sock_diag idiag_wqueue; write_seq - snd_una", "The peer, or the way to it, takes data more slowly than the application writes."},
	"kubeskoop_tcpsummary_tcprxqueue":         {"sock_diag idiag_rqueue; rcv_nxt - copied_seq", "The application reads more slowly than data arrive. Listening sockets are not in it."},
	"kubeskoop_tcpsummary_tcpclosewaitconn":   {"sock_diag, state CLOSE_WAIT", "The peer closed and the application did not: a steady climb is a leak of sockets."},
	"kubeskoop_tcpsummary_tcpsynsentconn":     {"sock_diag, state SYN_SENT", "Connections wait for an answer to their SYN: the peer is down, or something on the way drops."},
	"kubeskoop_tcpsummary_tcpsynrecvconn":     {"sock_diag, state SYN_RECV", "Handshakes wait for the client's ACK: slow clients, a lossy way back, or a SYN flood."},

	// qdisc: netlink RTM_GETQDISC.
	"kubeskoop_qdisc_bytes":      {"TCA_STATS2 basic; qdisc_bstats_update()", "A root qdisc hands a packet on. Devices without a queue (veth, lo by default) have none."},
	"kubeskoop_qdisc_packets":    {"TCA_STATS2 basic; qdisc_bstats_update()", "A root qdisc hands a packet on."},
	"kubeskoop_qdisc_drops":      {"TCA_STATS2 queue drops; qdisc_qstats_drop()", "The queue of an interface is full, or a policy of the qdisc drops (CoDel, RED, tbf)."},
	"kubeskoop_qdisc_qlen":       {"TCA_STATS2 queue qlen", "Packets arrive faster than the device, or the rate that it is held to, takes them."},
	"kubeskoop_qdisc_backlog":    {"TCA_STATS2 queue backlog", "As qlen, in bytes that wait."},
	"kubeskoop_qdisc_overlimits": {"TCA_STATS2 queue overlimits; qdisc_qstats_overlimit()", "A packet has to wait for the configured rate (tbf, htb, the bandwidth plugin of a pod). Normal where traffic is shaped."},

	// conntrack: ctnetlink, the sum over the CPUs; IPv4 and IPv6 together.
	"kubeskoop_conntrack_found":         {"CTA_STATS_FOUND; nf_conntrack_tuple_taken()", "NAT tries a source port and finds it taken. Since Linux 4.9 ordinary lookups no longer count: a fast rise means that NAT runs out of ports towards one destination."},
	"kubeskoop_conntrack_invalid":       {"CTA_STATS_INVALID; nf_conntrack_in()", "A packet fits no known connection and may not begin one: late segments after the entry expired, asymmetric routes. With net.netfilter.nf_conntrack_log_invalid the kernel says why."},
	"kubeskoop_conntrack_ignore":        {"CTA_STATS_IGNORE; before 5.10 nf_conntrack_in()", "Does not move on kernels since 5.10."},
	"kubeskoop_conntrack_insert":        {"CTA_STATS_INSERT; nf_conntrack_hash_check_insert()", "Since Linux 4.9 only entries that a program inserts by netlink count (conntrackd, conntrack -I)."},
	"kubeskoop_conntrack_insertfailed":  {"CTA_STATS_INSERT_FAILED; __nf_conntrack_confirm()", "Two packets of one new connection race for the table, and the second is dropped: the A and AAAA queries of a resolver over one UDP socket with DNAT are the classic case, seen as DNS timeouts of 5 s."},
	"kubeskoop_conntrack_drop":          {"CTA_STATS_DROP; nf_conntrack_in(), __nf_conntrack_confirm()", "The table is full and no entry could be dropped early, or memory is short: packets of new connections are lost."},
	"kubeskoop_conntrack_earlydrop":     {"CTA_STATS_EARLY_DROP; early_drop()", "The table is full, and an entry that saw no answer yet made room for a new one."},
	"kubeskoop_conntrack_error":         {"CTA_STATS_ERROR; nf_conntrack_handle_icmp()", "A packet is malformed, or an ICMP error speaks of a connection that is not in the table."},
	"kubeskoop_conntrack_searchrestart": {"CTA_STATS_SEARCH_RESTART; ____nf_conntrack_find()", "The table changes under a lookup, which begins again: many new connections a second. Costs time, loses nothing."},
	"kubeskoop_conntrack_entries":       {"CTA_STATS_GLOBAL_ENTRIES; nf_conntrack_count", "Follows the tracked connections, closed ones until their timeout included."},
	"kubeskoop_conntrack_maxentries":    {"CTA_STATS_GLOBAL_MAX_ENTRIES; net.netfilter.nf_conntrack_max", "Changes with the sysctl alone."},

	// packetloss: in the namespace of the socket that should have got the
	// packet, else of the device. IPv4 and IPv6.
	"kubeskoop_packetloss_total":         {"tracepoint skb:kfree_skb", "The kernel drops a packet that somebody should have got. What it frees the same way although nobody misses it counts in nodeskoop_packetloss_ignored_total instead. The owner is the namespace that received or sent the packet; where the kernel leaves no way to know, both pod labels are `unknown`. No kernel tells of these, which are counted elsewhere: a SYN that finds the accept queue full (kubeskoop_tcpext_listenoverflows) or the SYN queue full (kubeskoop_tcpext_listendrops); packets without a route at their sender, whose call fails (OutNoRoutes of `nstat`); frames that an XDP program drops in a network card's driver; the copy of a capture (`tcpdump` reports it). Linux 6.12 and newer frees only the original of an ICMP packet for a raw socket that is full, with NO_SOCKET. Before Linux 5.18 TCP frees silently what it discards itself (PAWS, segments out of the window or after the close): only what tcp_v4_rcv(), tcp_v4_do_rcv() and their IPv6 twins refuse is told."},
	"kubeskoop_packetloss_netfilter":     {"skb:kfree_skb, reason NETFILTER_DROP; nf_hook_slow()", "A rule of nftables or iptables, or a network policy made of them, drops. Policies in eBPF (Cilium) do not pass here."},
	"kubeskoop_packetloss_tcphandle":     {"skb:kfree_skb in tcp_v4_do_rcv(), tcp_v6_do_rcv()", "A segment reached its socket and was refused before TCP's state machine: a bad checksum, or a reset answered it. What tcp_rcv_established() loses is here where the kernel's compiler made its last call a jump (Debian's x86-64 kernels), and else in abnormal (its arm64 ones)."},
	"kubeskoop_packetloss_tcprcv":        {"skb:kfree_skb in tcp_v4_rcv(), tcp_v6_rcv()", "A segment has no socket (a SYN or data for a closed port), a bad checksum, or the listener's accept queue, the socket's backlog or a policy refused it."},
	"kubeskoop_packetloss_tcpstatm":      {"skb:kfree_skb in tcp_rcv_state_process()", "A segment with data does not fit its connection's state: it came after close()."},
	"kubeskoop_packetloss_abnormal":      {"skb:kfree_skb in any other function", "UDP buffers, queueing disciplines, routing, neighbours, devices: kubeskoop_packetloss_reason says which."},
	"nodeskoop_packetloss_ignored_total": {"skb:kfree_skb, where nobody misses the packet", "`delivered`: the content or the answer has reached its socket (parts of a packet that GRO or a reassembly put together, freed after the read; handled ICMPv6; the original of an echo reply of which a raw socket took its copy; acknowledgements, keep-alives and window probes that TCP has taken in; old duplicates; the copy that a capture has no room for). `unwanted`: multicast, broadcast or a frame for another host that nobody on the node asked for. `closing`: data unread in a socket that closes, and acknowledgements, FIN and RST for a connection that is gone. `not_a_packet`: messages of netlink, audit, vsock and local sockets, which the kernel keeps in the same structure."},
	"kubeskoop_packetloss_reason":        {"skb:kfree_skb, argument reason", "As packetloss_total. Series appear with the first drop of a reason; before Linux 5.17 there are none."},
	"kubeskoop_tcpretrans_total":         {"tracepoints tcp:tcp_retransmit_skb, tcp:tcp_retransmit_synack", "A segment, SYN or SYN-ACK is retransmitted. On every kernel tcp_retranssegs less tcpext_tcpretransfail: what this host refuses to send does not count. Loss probes that repeat data, and what reordering causes, count; keep-alives and window probes do not."},

	"nodeskoop_tcpreset_total": {"tracepoints tcp:tcp_send_reset, tcp:tcp_receive_reset; tcp_v4_send_reset(), tcp_check_req(), tcp_timewait_state_process()",
		"Counts every reset that TCP sends or obeys, whatever becomes of its event: those that end a request (SYN_RECV) or a socket in TIME_WAIT, too. A RST for a closed port, one that is out of the window, and one that a firewall sends do not count. Where functions cannot be hooked, a RST inside the window of a request whose number is not the expected one counts, although newer kernels (7.x) answer it with a challenge ACK."},

	"kubeskoop_netiftxlat_qdiscslow100ms":  {"net:net_dev_queue to net:net_dev_start_xmit", "A rate limit or a full device holds the packet in its queue for over 100 ms. The unit is the packet that the driver gets: a GSO packet that it takes whole is one; one that tbf, cake, taprio or netem segments in the queue, or the kernel segments for a device without TSO, is as many as its segments. Not counted, since nothing tells when they were queued: segments of a UDP GSO packet whose data are no page fragments (a device without scatter-gather, a virtual machine's packet, segments of up to about 100 bytes) or that GRO merged; segments of forwarded SCTP; copies by netem's `duplicate`; packets to which the queue gives another departure time (etf in deadline mode, taprio with txtime-assist, fq beyond its horizon)."},
	"kubeskoop_netiftxlat_netdevslow100ms": {"net:net_dev_start_xmit to net:net_dev_xmit", "The CPU is inside the driver, or taken away from it, for over 100 ms."},

	"kubeskoop_softirq_schedslow":      {"irq:softirq_raise to irq:softirq_entry, NET_RX and NET_TX", "Something keeps the CPU from its softirqs for over 10 ms: code with them switched off, other softirqs, a realtime task ahead of ksoftirqd, a hypervisor."},
	"kubeskoop_softirq_schedslow100ms": {"irq:softirq_raise to irq:softirq_entry, NET_RX and NET_TX", "The same for over 100 ms."},
	"kubeskoop_softirq_excuteslow":     {"irq:softirq_entry to irq:softirq_exit, NET_RX and NET_TX", "One round of network work takes over 10 ms: heavy rule sets, a slow driver, or a CPU that was taken away meanwhile."},
	"kubeskoop_softirq_excuteslow100ms": {"irq:softirq_entry to irq:softirq_exit, NET_RX and NET_TX",
		"The same for over 100 ms."},

	"kubeskoop_kernellatency_rxslow":      {"netif_receive_skb to ip_protocol_deliver_rcu() or ip6_protocol_deliver_rcu()", "A packet waits between driver and socket for over 10 ms: NFQUEUE, fragments, a busy CPU. By tracepoints alone, where functions cannot be hooked (`nodeskoop probes` shows it), segments of established TCP connections are measured to tcp_rcv_established(), which includes the time in the backlog of a socket that its process holds locked; datagrams, from Linux 6.3 on, until they are in the socket's queue. SYNs, FINs in later states and packets for no socket are not measured then."},
	"kubeskoop_kernellatency_rxslow100ms": {"netif_receive_skb to ip_protocol_deliver_rcu() or ip6_protocol_deliver_rcu()", "The same for over 100 ms."},
	"kubeskoop_kernellatency_txslow":      {"__ip_queue_xmit() to ip_finish_output2(), and for IPv6", "A packet waits between socket and neighbour layer for over 10 ms: NFQUEUE, long rule sets. The wait for the address of a neighbour (ARP, neighbour discovery) comes after it and does not count. By tracepoints alone, where functions cannot be hooked, only TCP is measured, without bare ACKs: from the time of sending that TCP writes in the packet; a packet that is paced for later is measured from then."},
	"kubeskoop_kernellatency_txslow100ms": {"__ip_queue_xmit() to ip_finish_output2(), and for IPv6", "The same for over 100 ms."},

	"kubeskoop_socketlatency_read1ms": {"sk_data_ready to the copy of the bytes, or of the datagram, to the application",
		"The application is slow to read: busy, not scheduled, held by its CPU limit, or waiting for something else. TCP and UDP; one call is one read, and its wait is that of the oldest byte or datagram that it takes. " +
			"Peeks and reads of the error queue do not count. A wait is exact while up to 16 arrivals are unread, those within 62 us of each other being one; beyond that it may be off by 5 % of the age of the oldest data in the socket. " +
			"Data below SO_RCVLOWAT begin to wait when the kernel tells the reader of them; the data of a SYN (TCP Fast Open) begin with the data after them. MPTCP connections are not measured. Where several threads read one datagram socket at the same time, a read may be measured by the datagram of another, or not at all. " +
			"By the tracepoints of Linux before 6.3 alone, reads of whole segments within a millisecond of each other may count as one, data that filled a gap wait from the segment after them on, and data below SO_RCVLOWAT from their own."},
	"kubeskoop_socketlatency_read100ms": {"sk_data_ready to the copy of the bytes, or of the datagram, to the application", "The same for over 100 ms."},
	"kubeskoop_socketlatency_write1ms": {"tcp_sendmsg_locked() to the transmission of the write's last byte",
		"Written data wait in the socket: the peer's window or the congestion window is closed, or Nagle waits. TCP alone. One call is one write; its wait ends when TCP gives its last byte to the IP layer for the first time, and includes the time for which the call blocks. " +
			"So a large write that the line takes over 1 ms to carry counts too. A write that ended short is counted with the next one. Before Linux 6.5, sendfile and splice are no such writes. MPTCP connections are not measured."},
	"kubeskoop_socketlatency_write100ms": {"tcp_sendmsg_locked() to the transmission of the write's last byte", "The same for over 100 ms."},

	"kubeskoop_virtcmdlatency_latency":      {"virtnet_send_command() entry to return", "The host's side of virtio-net takes over 10 ms to answer a control command; the guest's CPU spins meanwhile."},
	"kubeskoop_virtcmdlatency_latency100ms": {"virtnet_send_command() entry to return", "The same for over 100 ms."},

	"kubeskoop_flow_bytes":   {"cgroup_skb egress, or tcx/clsact egress of probes.flow.devices", "A socket of the node or of a pod sends, or the kernel for it (acknowledgements, RST, ICMP): bytes from the IP header on, the headers of each segment included. What is only forwarded does not count. With probes.flow.devices such a device transmits, forwarded packets too. IPv4 and IPv6. A connection to a service has the service's address where the translation is outside of the sender's namespace (a pod whose node runs kube-proxy), and the backend's where it is inside (a client in the host's network); the backend's end has the backend's."},
	"kubeskoop_flow_packets": {"cgroup_skb egress, or tcx/clsact egress of probes.flow.devices", "The same. The segments of a GSO packet, TCP or UDP, count one by one. A datagram that does not fit the MTU is one packet of its socket, and with probes.flow.devices as many as it has fragments, of which only the first has ports."},
}
