package main

// rarer is the row of counters that rarely change.
func rarer(perSecond, hold func(names ...string) []target, pressure string) row {
	return row{title: "Rarer counters", closed: true, panels: []panel{
		{title: "TCP segments", unit: segments, targets: perSecond("tcp_insegs", "tcp_outsegs", "tcp_inerrs")},
		{title: "Established connections (SNMP)", unit: count, targets: hold("tcp_currestab")},
		{title: "IP", unit: packets, targets: perSecond("ip_innoroutes", "ip_intruncatedpkts")},
		{title: "Rate-limited ACKs", unit: segments, targets: perSecond("tcpext_tcpackskippedsynrecv", "tcpext_tcpackskippedpaws",
			"tcpext_tcpackskippedseq", "tcpext_tcpackskippedfinwait2", "tcpext_tcpackskippedtimewait", "tcpext_tcpackskippedchallenge")},
		{title: "Old timestamps, resets of half-open connections", unit: segments, targets: perSecond("tcpext_pawsactive", "tcpext_pawsestab", "tcpext_embryonicrsts")},
		{title: "Probes of TCP", unit: segments, targets: perSecond("tcpext_tcpwinprobe", "tcpext_tcpkeepalive", "tcpext_tcpmtupfail", "tcpext_tcpmtupsuccess")},
		{title: "TCP memory pressure", unit: occurrences, about: "Any rise: TCP buffers took more than the middle value of net.ipv4.tcp_mem.",
			targets: perSecond("tcpext_tcpmemorypressures", "tcpext_tcpwqueuetoobig", "tcpext_tcpabortfailed")},
		{title: "Time under TCP memory pressure", unit: share, targets: []target{{pressure + " / 1000", word("tcpext_tcpmemorypressureschrono")}}},
		{title: "Queueing disciplines, bytes", unit: bytesPerSecond, targets: perSecond("qdisc_bytes")},
		{title: "Queueing disciplines, packets", unit: packets, targets: perSecond("qdisc_packets")},
		{title: "Bytes waiting in queueing disciplines", unit: octets, targets: hold("qdisc_backlog")},
	}}
}

// onHost queries rates of the host's own namespace, nowOnHost its gauges.
func onHost(names ...string) []target    { return rates(ofHost, names...) }
func nowOnHost(names ...string) []target { return values(ofHost, names...) }

func nodes() dashboard {
	// A single value needs no legend.
	stat := func(title, unit, about, expr string, thresholds ...threshold) panel {
		return panel{title: title, kind: "stat", unit: unit, wide: 4, high: 4, about: about, targets: []target{{expr, title}}, thresholds: thresholds}
	}
	sum := func(metric string) string { return "sum(" + rate(metric, ofNode) + ")" }
	return dashboard{
		uid: "nodeskoop-nodes", title: "nodeskoop / Node", where: ofNode,
		about: "One node: its own network, and which of its pods stand out. Pods' own numbers are in nodeskoop / Pods, the comparison of nodes in nodeskoop / Fleet.",
		vars:  []variable{oneNode, topN},
		rows: []row{
			{title: "At a glance", panels: []panel{
				stat("Age of the values", duration, "Since the last complete cycle of nodeskoop. node_exporter serves the file for ever: above a minute, what the other panels show is old.",
					"time() - nodeskoop_last_cycle_timestamp_seconds{"+ofNode+"}", threshold{"orange", 60}, threshold{"red", 120}),
				stat("Probes without values", count, "Probes of which any value is missing. `nodeskoop probes` and the daemon's log say why.",
					"sum(1 - nodeskoop_probe_up{"+ofNode+"})", threshold{"red", 1}),
				stat("Pods", count, "", "nodeskoop_pods{"+ofNode+"}"),
				stat("Packets lost", packets, "In every network namespace of the node, those that a rule of netfilter dropped included.",
					sum("kubeskoop_packetloss_total"), threshold{"orange", 1}, threshold{"red", 100}),
				stat("Retransmitted segments", share, "Retransmitted TCP segments over sent ones, all namespaces of the node together.",
					sum("kubeskoop_tcp_retranssegs")+" / ("+sum("kubeskoop_tcp_outsegs")+" > 0)", threshold{"orange", 0.01}, threshold{"red", 0.05}),
				stat("Conntrack table", share, "How full the table of the host's namespace is.",
					"kubeskoop_conntrack_entries{"+ofHost+"} / (kubeskoop_conntrack_maxentries{"+ofHost+"} > 0)", threshold{"orange", 0.7}, threshold{"red", 0.85}),
				firing(ofNode, 24, 7),
			}},
			{title: "Pods", panels: []panel{standOut(ofPods, 10)}},
			{title: "Lost packets", panels: []panel{
				{title: "By class, all namespaces", unit: packets, stacked: true, targets: func() (t []target) {
					for _, c := range []string{"packetloss_netfilter", "packetloss_tcphandle", "packetloss_tcprcv", "packetloss_tcpstatm", "packetloss_abnormal"} {
						t = append(t, target{sum("kubeskoop_" + c), word(c)})
					}
					return t
				}()},
				{title: "By the kernel's reason", unit: packets, stacked: true, none: "No packet was lost in this time",
					targets: []target{{"sum by (reason) (" + rate("kubeskoop_packetloss_reason", ofNode) + ") > 0", "{{reason}}"}}},
				{title: "Pods with the most losses", unit: packets, none: "No pod lost a packet in this time", links: lineToPod, targets: top("kubeskoop_packetloss_total", ofPods)},
			}},
			{title: "Traffic of the host", panels: []panel{
				{title: "Bytes", unit: bytesPerSecond, mirrored: "Sent", about: "Every interface but lo: a packet to a pod counts on the NIC and again on the pod's veth. Received above the axis, sent below.",
					targets: onHost("netdev_rxbytes", "netdev_txbytes")},
				{title: "Packets", unit: packets, mirrored: "Sent", about: "Received above the axis, sent below.", targets: onHost("netdev_rxpackets", "netdev_txpackets")},
				{title: "Interface errors and drops", unit: packets, targets: onHost("netdev_rxerrors", "netdev_txerrors", "netdev_rxdropped", "netdev_txdropped")},
			}},
			{title: "TCP of the host", panels: []panel{
				{title: "Retransmitted segments", unit: share, about: "Over the segments sent for the first time.", targets: []target{{retransmitted(ofHost), word("tcp_retranssegs")}}},
				{title: "Connections", unit: count, targets: nowOnHost("tcpsummary_tcpestablishedconn", "tcpsummary_tcptimewaitconn", "tcpsummary_tcpclosewaitconn",
					"tcpsummary_tcpsynsentconn", "tcpsummary_tcpsynrecvconn")},
				{title: "Opened", unit: connections, targets: onHost("tcp_activeopens", "tcp_passiveopens")},
				{title: "Resets and failed attempts", unit: connections, targets: onHost("tcp_outrsts", "tcp_estabresets", "tcp_attemptfails")},
				{title: "Listen queue", unit: connections, about: "Accept queue full: the application accepts too slowly. SYNs dropped: these and all other dropped SYNs.",
					targets: onHost("tcpext_listenoverflows", "tcpext_listendrops")},
				{title: "Bytes in the queues of sockets", unit: octets, targets: nowOnHost("tcpsummary_tcptxqueue", "tcpsummary_tcprxqueue")},
				{title: "Retransmission in detail", unit: segments, targets: onHost("tcpext_tcptimeouts", "tcpext_tcpfastretrans", "tcpext_tcpsynretrans", "tcpext_tcpretransfail")},
				{title: "Queue-full drops", unit: packets, targets: onHost("tcpext_tcprcvqdrop", "tcpext_tcpzerowindowdrop", "tcpext_tcpbacklogdrop", "tcpext_pfmemallocdrop")},
				{title: "Aborted connections", unit: connections, targets: onHost("tcpext_tcpabortonclose", "tcpext_tcpabortondata", "tcpext_tcpabortontimeout", "tcpext_tcpabortonmemory", "tcpext_tcpabortonlinger")},
			}},
			{title: "UDP, CPU queues, connection tracking", panels: []panel{
				{title: "UDP of the host (IPv4)", unit: datagrams, targets: onHost("udp_indatagrams", "udp_outdatagrams", "udp_noports")},
				{title: "UDP errors of the host (IPv4)", unit: datagrams, targets: onHost("udp_inerrors", "udp_rcvbuferrors", "udp_sndbuferrors", "udp_incsumerrors")},
				{title: "CPUs' receive queues", unit: packets, targets: rates(ofNode, "softnet_processed", "softnet_dropped")},
				{title: "Conntrack entries", unit: count, targets: nowOnHost("conntrack_entries", "conntrack_maxentries")},
				{title: "Conntrack trouble", unit: packets, targets: onHost("conntrack_insertfailed", "conntrack_drop", "conntrack_earlydrop", "conntrack_invalid", "conntrack_error", "conntrack_searchrestart")},
				{title: "IPVS", unit: operations, about: "0 while ip_vs is not loaded.", targets: onHost("ipvs_connections", "ipvs_incomingpackets", "ipvs_outgoingpackets")},
				{title: "Queueing disciplines", unit: packets, targets: onHost("qdisc_drops", "qdisc_overlimits")},
				{title: "Waiting in queueing disciplines", unit: count, targets: nowOnHost("qdisc_qlen")},
				{title: "TCP sockets and memory", unit: count, about: "Orphaned, allocated and buffer pages count the whole node.",
					targets: nowOnHost("sock_inuse", "sock_tw", "sock_orphan", "sock_alloc", "sock_mem")},
			}},
			{title: "Pods in time", panels: []panel{
				{title: "Most received", unit: bytesPerSecond, links: lineToPod, targets: top("kubeskoop_netdev_rxbytes", ofPods)},
				{title: "Most sent", unit: bytesPerSecond, links: lineToPod, targets: top("kubeskoop_netdev_txbytes", ofPods)},
				{title: "Most retransmitted segments", unit: segments, none: "No pod retransmitted in this time", links: lineToPod, targets: top("kubeskoop_tcp_retranssegs", ofPods)},
				{title: "Most RST sent", unit: segments, none: "No pod sent a RST in this time", links: lineToPod, targets: top("kubeskoop_tcp_outrsts", ofPods)},
				{title: "Accept queue overflows", unit: connections, none: "No accept queue overflowed in this time", links: lineToPod, targets: top("kubeskoop_tcpext_listenoverflows", ofPods)},
				{title: "UDP receive buffer full", unit: datagrams, none: "No UDP receive buffer was full in this time", links: lineToPod, targets: top("kubeskoop_udp_rcvbuferrors", ofPods)},
				{title: "Most bytes unread", unit: octets, none: "No data waited unread in this time", links: lineToPod, targets: highest("kubeskoop_tcpsummary_tcprxqueue", ofPods)},
				{title: "Most storage read", unit: bytesPerSecond, none: "No pod read from storage in this time", links: lineToPod, targets: top("kubeskoop_io_ioreadbytes", ofPods)},
				{title: "Most storage written", unit: bytesPerSecond, none: "No pod wrote to storage in this time", links: lineToPod, targets: top("kubeskoop_io_iowritebytes", ofPods)},
				{title: "Most open files", unit: count, links: lineToPod, targets: highest("kubeskoop_fdopenfd", ofPods)},
			}},
			{title: "Latency (probes net_softirq, netiftxlatency, kernellatency, socketlatency, virtcmdlatency: off by default)", closed: true, panels: []panel{
				{title: "Network softirqs", unit: operations, targets: rates(ofNode, "softirq_schedslow", "softirq_schedslow100ms", "softirq_excuteslow", "softirq_excuteslow100ms")},
				{title: "Packets slow inside the kernel, all namespaces", unit: packets, targets: []target{
					{sum("kubeskoop_kernellatency_rxslow"), word("kernellatency_rxslow")},
					{sum("kubeskoop_kernellatency_txslow"), word("kernellatency_txslow")},
					{sum("kubeskoop_netiftxlat_qdiscslow100ms"), word("netiftxlat_qdiscslow100ms")},
					{sum("kubeskoop_netiftxlat_netdevslow100ms"), word("netiftxlat_netdevslow100ms")}}},
				{title: "virtio-net control commands", unit: operations, targets: rates(ofNode, "virtcmdlatency_latency", "virtcmdlatency_latency100ms")},
				{title: "Pods that leave data unread", unit: operations, none: "No pod left data unread for 100 ms in this time", links: lineToPod, targets: top("kubeskoop_socketlatency_read100ms", ofPods)},
				{title: "Pods that cannot send", unit: operations, none: "No pod waited 100 ms to send in this time", links: lineToPod, targets: top("kubeskoop_socketlatency_write100ms", ofPods)},
			}},
			distributions(),
			func() row {
				r := rarer(onHost, nowOnHost, rate("kubeskoop_tcpext_tcpmemorypressureschrono", ofHost))
				r.panels = append(r.panels,
					panel{title: "Freed as dropped, and no loss", unit: packets, targets: []target{{"sum by (why) (" + rate("nodeskoop_packetloss_ignored_total", ofNode) + ")", "{{why}}"}}},
					panel{title: "Conntrack lookups", unit: operations, about: "Kernels since 5.10 no longer count ignore, many no longer insert.",
						targets: onHost("conntrack_found", "conntrack_ignore", "conntrack_insert")},
					panel{title: "IPVS bytes", unit: bytesPerSecond, targets: onHost("ipvs_incomingbytes", "ipvs_outgoingbytes")})
				return r
			}(),
			{title: "nodeskoop itself", closed: true, panels: []panel{
				{title: "Duration of a cycle", unit: duration, targets: []target{{"nodeskoop_last_cycle_duration_seconds{" + ofNode + "}", "Cycle"}}},
				{title: "Duration by probe", unit: duration, stacked: true, targets: []target{{"nodeskoop_probe_duration_seconds{" + ofNode + "}", "{{probe}}"}}},
				{title: "Series", unit: count, targets: []target{{"nodeskoop_series{" + ofNode + "}", "Written"}, {"sum(nodeskoop_series_left_out{" + ofNode + "})", "Left out by a cap"}}},
				{title: "Textfile", unit: octets, targets: []target{{"nodeskoop_textfile_bytes{" + ofNode + "}", "Size"}}},
				{title: "Cycles missed, writes failed", unit: operations, targets: []target{
					{rate("nodeskoop_cycles_missed_total", ofNode), "Cycles missed"},
					{rate("nodeskoop_textfile_write_failures_total", ofNode), "Writes failed"}}},
				{title: "Time in BPF programs", unit: share, about: "Of one CPU.", none: "The kernel's statistics are off: sysctl kernel.bpf_stats_enabled=1",
					targets: []target{{rate("nodeskoop_bpf_run_seconds_total", ofNode), "{{probe}}"}}},
			}},
		},
	}
}
