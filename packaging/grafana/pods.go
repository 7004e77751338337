package main

func pods() dashboard {
	const connection = "{{protocol}} {{src_namespace}}/{{src_pod}} {{src}} to {{dst_namespace}}/{{dst_pod}} {{dst}}"
	flows := func(metric string) []target {
		by := "protocol, src, src_namespace, src_pod, dst, dst_namespace, dst_pod"
		return []target{{"sum by (" + by + ") (" + rate(metric, ofPod) + ") and topk($top, sum by (" + by + ") (rate(" + metric + "{" + ofPod + "}[$__range] @ end())) > 0)", connection}}
	}
	return dashboard{
		uid: "nodeskoop-pods", title: "nodeskoop / Pods", where: ofNode,
		about: "What each pod's own network namespace and processes count. Graphs with the pods' names show the top ones of those that are selected; the others show all selected pods together, by kind.",
		vars: []variable{
			anyNode,
			{name: "namespace", label: "Namespace", query: `label_values(kubeskoop_netdev_rxbytes{k8s_node=~"$node"}, k8s_namespace)`, multi: true},
			{name: "pod", label: "Pod", query: `label_values(kubeskoop_netdev_rxbytes{k8s_node=~"$node", k8s_namespace=~"$namespace"}, k8s_pod)`, multi: true, all: true},
			topN,
		},
		rows: []row{
			{title: "Which", panels: []panel{standOut(ofPod, 10)}},
			{title: "Lost and retransmitted", panels: []panel{
				{title: "Lost packets by pod", unit: packets, none: "No pod lost a packet in this time", links: lineToPod, targets: top("kubeskoop_packetloss_total", ofPod)},
				{title: "Lost packets by the kernel's reason", unit: packets, stacked: true, none: "No packet was lost in this time",
					targets: []target{{"sum by (reason) (" + rate("kubeskoop_packetloss_reason", ofPod) + ") > 0", "{{reason}}"}}},
				{title: "Lost packets by class", unit: packets, stacked: true, targets: summed("packetloss_netfilter", "packetloss_tcphandle", "packetloss_tcprcv", "packetloss_tcpstatm", "packetloss_abnormal")},
				{title: "Retransmitted segments by pod", unit: share, none: "No pod retransmitted in this time", links: lineToPod,
					about: "Over the segments that the pod sent for the first time, for the pods that retransmit the most. A pod whose peers do not answer retransmits more than it sends: over 100 %.",
					targets: []target{{"sum by (" + byPod + ") (" + rate("kubeskoop_tcp_retranssegs", ofPod) + ") / (sum by (" + byPod + ") (" + rate("kubeskoop_tcp_outsegs", ofPod) + ") > 0) and topk($top, " +
						overall("kubeskoop_tcp_retranssegs", ofPod) + " > 0)", perPod}}},
				{title: "Retransmission in detail", unit: segments, targets: summed("tcpext_tcptimeouts", "tcpext_tcpfastretrans", "tcpext_tcpsynretrans", "tcpext_tcpretransfail")},
				{title: "Queue-full drops", unit: packets, targets: summed("tcpext_tcprcvqdrop", "tcpext_tcpzerowindowdrop", "tcpext_tcpbacklogdrop", "tcpext_pfmemallocdrop")},
			}},
			{title: "Traffic", panels: []panel{
				{title: "Received by pod", unit: bytesPerSecond, links: lineToPod, targets: top("kubeskoop_netdev_rxbytes", ofPod)},
				{title: "Sent by pod", unit: bytesPerSecond, links: lineToPod, targets: top("kubeskoop_netdev_txbytes", ofPod)},
				{title: "Packets", unit: packets, mirrored: "Sent", about: "Received above the axis, sent below.", targets: summed("netdev_rxpackets", "netdev_txpackets")},
				{title: "Interface errors and drops", unit: packets, targets: summed("netdev_rxerrors", "netdev_txerrors", "netdev_rxdropped", "netdev_txdropped")},
				{title: "Queueing disciplines", unit: packets, targets: summed("qdisc_drops", "qdisc_overlimits")},
				{title: "Waiting in queueing disciplines", unit: count, targets: held("qdisc_qlen")},
			}},
			{title: "TCP", panels: []panel{
				{title: "Connections by state", unit: count, targets: held("tcpsummary_tcpestablishedconn", "tcpsummary_tcptimewaitconn", "tcpsummary_tcpclosewaitconn",
					"tcpsummary_tcpsynsentconn", "tcpsummary_tcpsynrecvconn")},
				{title: "Established by pod", unit: count, none: "No pod had a connection in this time", links: lineToPod, targets: highest("kubeskoop_tcpsummary_tcpestablishedconn", ofPod)},
				{title: "Opened", unit: connections, targets: summed("tcp_activeopens", "tcp_passiveopens")},
				{title: "Resets and failed attempts", unit: connections, targets: summed("tcp_outrsts", "tcp_estabresets", "tcp_attemptfails")},
				{title: "RST sent by pod", unit: segments, none: "No pod sent a RST in this time", links: lineToPod, targets: top("kubeskoop_tcp_outrsts", ofPod)},
				{title: "Listen queue", unit: connections, about: "Accept queue full: the application accepts too slowly. SYNs dropped: these and all other dropped SYNs.",
					targets: summed("tcpext_listenoverflows", "tcpext_listendrops")},
				{title: "Bytes in the queues of sockets", unit: octets, targets: held("tcpsummary_tcptxqueue", "tcpsummary_tcprxqueue")},
				{title: "Received, unread, by pod", unit: octets, none: "No data waited unread in this time", links: lineToPod, targets: highest("kubeskoop_tcpsummary_tcprxqueue", ofPod)},
				{title: "Aborted connections", unit: connections, targets: summed("tcpext_tcpabortonclose", "tcpext_tcpabortondata", "tcpext_tcpabortontimeout", "tcpext_tcpabortonmemory", "tcpext_tcpabortonlinger")},
			}},
			{title: "UDP (IPv4)", panels: []panel{
				{title: "Datagrams", unit: datagrams, mirrored: "Sent", about: "Received above the axis, sent below.", targets: summed("udp_indatagrams", "udp_outdatagrams")},
				{title: "Errors", unit: datagrams, targets: summed("udp_inerrors", "udp_rcvbuferrors", "udp_sndbuferrors", "udp_incsumerrors")},
				{title: "Nobody listened", unit: datagrams, targets: summed("udp_noports", "udp_ignoredmulti")},
			}},
			{title: "Processes", panels: []panel{
				{title: "Storage", unit: bytesPerSecond, mirrored: "Written", about: "Read above the axis, written below.", targets: summed("io_ioreadbytes", "io_iowritebytes")},
				{title: "System calls that read and write", unit: operations, targets: summed("io_ioreadsyscall", "io_iowritesyscall")},
				{title: "Open files by pod", unit: count, links: lineToPod, targets: highest("kubeskoop_fdopenfd", ofPod)},
				{title: "Open files and sockets", unit: count, targets: held("fdopenfd", "fd_opensocket")},
				{title: "TCP sockets", unit: count, targets: held("sock_inuse", "sock_tw")},
			}},
			rarer(summed, held, "sum("+rate("kubeskoop_tcpext_tcpmemorypressureschrono", ofPod)+")"),
			{title: "Latency (probes kernellatency, socketlatency, netiftxlatency: off by default)", closed: true, panels: append([]panel{
				{title: "Data waited for the application to read", unit: operations, targets: summed("socketlatency_read1ms", "socketlatency_read100ms")},
				{title: "Written data waited to be sent", unit: operations, targets: summed("socketlatency_write1ms", "socketlatency_write100ms")},
				{title: "Read late, by pod", unit: operations, none: "No pod read over 100 ms late in this time", links: lineToPod, targets: top("kubeskoop_socketlatency_read100ms", ofPod)},
				{title: "Packets slow inside the kernel", unit: packets, targets: summed("kernellatency_rxslow", "kernellatency_rxslow100ms", "kernellatency_txslow", "kernellatency_txslow100ms")},
				{title: "Packets slow on the way out", unit: packets, targets: summed("netiftxlat_qdiscslow100ms", "netiftxlat_netdevslow100ms")},
			}, podDistributions()...)},
			{title: "Connections (probe flow: off by default)", closed: true, panels: []panel{
				{title: "Most bytes sent", unit: bytesPerSecond, wide: 12, high: 9, none: "No flow was counted in this time", links: lineToPeer, targets: flows("kubeskoop_flow_bytes")},
				{title: "Most packets sent", unit: packets, wide: 12, high: 9, none: "No flow was counted in this time", links: lineToPeer, targets: flows("kubeskoop_flow_packets")},
			}},
		},
	}
}
