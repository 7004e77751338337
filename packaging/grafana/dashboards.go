package main

import "strings"

// What the queries select. The host's own series carry "hostNetwork", or
// nothing with pods.host_label = "": the dashboards work with both.
const (
	ofNode = `k8s_node=~"$node"`
	ofHost = ofNode + `, k8s_pod=~"hostNetwork|"`
	ofPods = ofNode + `, k8s_pod!~"hostNetwork|unknown|"`
	ofPod  = ofNode + `, k8s_namespace=~"$namespace", k8s_pod=~"$pod"`

	perPod = "{{k8s_namespace}}/{{k8s_pod}}"
)

var (
	nodeVar = variable{name: "node", label: "Node", query: "label_values(kubeskoop_netdev_rxbytes, k8s_node)", multi: true}
	anyNode = variable{name: "node", label: "Node", query: "label_values(kubeskoop_netdev_rxbytes, k8s_node)", multi: true, all: true}
)

// rate is the rate of a counter in one place.
func rate(metric, where string) string {
	return "rate(" + metric + "{" + where + "}[$__rate_interval])"
}

// rates makes one target for each metric, named after what follows prefix.
func rates(where, prefix, who string, names ...string) []target {
	var t []target
	for _, n := range names {
		t = append(t, target{rate("kubeskoop_"+prefix+n, where), strings.TrimSpace(who + " " + n)})
	}
	return t
}

// values is rates for gauges.
func values(where, prefix, who string, names ...string) []target {
	var t []target
	for _, n := range names {
		t = append(t, target{"kubeskoop_" + prefix + n + "{" + where + "}", strings.TrimSpace(who + " " + n)})
	}
	return t
}

// top is the pods with the highest rate of a counter.
func top(metric string) []target {
	return []target{{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate(metric, ofPods) + ") > 0)", perPod}}
}

// retransmitted is the part of the sent segments that had to be retransmitted.
func retransmitted(where string) string {
	return rate("kubeskoop_tcp_retranssegs", where) + " / (" + rate("kubeskoop_tcp_outsegs", where) + " > 0)"
}

// rarer holds the counters that stay still on most nodes.
func rarer(where, who string) row {
	return row{title: "Rarer counters", closed: true, panels: []panel{
		{title: "TCP segments", unit: "pps", targets: rates(where, "tcp_", who, "insegs", "outsegs", "inerrs")},
		{title: "Established connections (SNMP)", unit: "none", targets: values(where, "tcp_", who, "currestab")},
		{title: "IP", unit: "pps", targets: rates(where, "ip_", who, "innoroutes", "intruncatedpkts")},
		{title: "ACKs not sent for the rate limit", unit: "pps", targets: rates(where, "tcpext_", who, "tcpackskippedsynrecv", "tcpackskippedpaws",
			"tcpackskippedseq", "tcpackskippedfinwait2", "tcpackskippedtimewait", "tcpackskippedchallenge")},
		{title: "Old timestamps, resets of half-open connections", unit: "pps", targets: rates(where, "tcpext_", who, "pawsactive", "pawsestab", "embryonicrsts")},
		{title: "Probes of TCP", unit: "pps", targets: rates(where, "tcpext_", who, "tcpwinprobe", "tcpkeepalive", "tcpmtupfail", "tcpmtupsuccess")},
		{title: "TCP memory pressure", unit: "ops", about: "Any rise: TCP buffers took more than the middle value of net.ipv4.tcp_mem.",
			targets: rates(where, "tcpext_", who, "tcpmemorypressures", "tcpwqueuetoobig", "tcpabortfailed")},
		{title: "Time under TCP memory pressure", unit: "percentunit", targets: []target{{rate("kubeskoop_tcpext_tcpmemorypressureschrono", where) + " / 1000", who}}},
		{title: "Queueing disciplines, bytes", unit: "Bps", targets: rates(where, "qdisc_", who, "bytes")},
		{title: "Queueing disciplines, packets", unit: "pps", targets: rates(where, "qdisc_", who, "packets")},
		{title: "Bytes waiting in queueing disciplines", unit: "bytes", targets: values(where, "qdisc_", who, "backlog")},
	}}
}

func dashboards() []dashboard { return []dashboard{nodes(), pods(), events()} }

func nodes() dashboard {
	const who = "{{k8s_node}}"
	return dashboard{
		uid: "nodeskoop-nodes", title: "nodeskoop / Nodes",
		about: "The host's own network, and which of its pods stand out. Pods' own numbers are in nodeskoop / Pods.",
		vars:  []variable{nodeVar},
		rows: []row{
			{title: "At a glance", panels: []panel{
				{title: "Age of the values", kind: "stat", unit: "s", wide: 4, high: 4,
					about:      "Since the last complete cycle of nodeskoop. node_exporter serves the file for ever: above a minute, what the other panels show is old.",
					targets:    []target{{"time() - nodeskoop_last_cycle_timestamp_seconds{" + ofNode + "}", who}},
					thresholds: []threshold{{"orange", 60}, {"red", 120}}},
				{title: "Probes without values", kind: "stat", unit: "none", wide: 4, high: 4,
					about:      "Probes of which any value is missing. nodeskoop probes and the daemon's log say why.",
					targets:    []target{{"sum by (k8s_node) (1 - nodeskoop_probe_up{" + ofNode + "})", who}},
					thresholds: []threshold{{"red", 1}}},
				{title: "Pods", kind: "stat", unit: "none", wide: 4, high: 4,
					about:   "Pods, and containers outside pods, that containerd runs.",
					targets: []target{{"nodeskoop_pods{" + ofNode + "}", who}}},
				{title: "Packets dropped", kind: "stat", unit: "pps", wide: 4, high: 4,
					about:      "By the kernel, in every network namespace of the node, rules of netfilter included.",
					targets:    []target{{"sum by (k8s_node) (" + rate("kubeskoop_packetloss_total", ofNode) + ")", who}},
					thresholds: []threshold{{"orange", 1}, {"red", 100}}},
				{title: "Retransmitted segments", kind: "stat", unit: "percentunit", wide: 4, high: 4,
					about: "Retransmitted TCP segments over sent ones, all namespaces of the node together.",
					targets: []target{{"sum by (k8s_node) (" + rate("kubeskoop_tcp_retranssegs", ofNode) + ") / (sum by (k8s_node) (" +
						rate("kubeskoop_tcp_outsegs", ofNode) + ") > 0)", who}},
					thresholds: []threshold{{"orange", 0.01}, {"red", 0.05}}},
				{title: "Conntrack table", kind: "stat", unit: "percentunit", wide: 4, high: 4,
					about: "How full the table of the host's namespace is.",
					targets: []target{{"kubeskoop_conntrack_entries{" + ofHost + "} / (kubeskoop_conntrack_maxentries{" + ofHost + "} > 0)",
						who}},
					thresholds: []threshold{{"orange", 0.7}, {"red", 0.85}}},
			}},
			{title: "Traffic of the host", panels: []panel{
				{title: "Bytes", unit: "Bps", mirrored: "/txbytes/", about: "Every interface but lo: a packet to a pod counts on the NIC and again on the pod's veth.",
					targets: rates(ofHost, "netdev_", who, "rxbytes", "txbytes")},
				{title: "Packets", unit: "pps", mirrored: "/txpackets/", targets: rates(ofHost, "netdev_", who, "rxpackets", "txpackets")},
				{title: "Interface errors and drops", unit: "pps", targets: rates(ofHost, "netdev_", who, "rxerrors", "txerrors", "rxdropped", "txdropped")},
			}},
			{title: "Lost packets", panels: []panel{
				{title: "By class, all namespaces", unit: "pps", stacked: true,
					about: "netfilter: by a rule. tcphandle, tcprcv, tcpstatm: in that part of TCP. abnormal: anywhere else.",
					targets: func() (t []target) {
						for _, c := range []string{"netfilter", "tcphandle", "tcprcv", "tcpstatm", "abnormal"} {
							t = append(t, target{"sum by (k8s_node) (" + rate("kubeskoop_packetloss_"+c, ofNode) + ")", who + " " + c})
						}
						return t
					}()},
				{title: "By the kernel's reason", unit: "pps", stacked: true, about: "enum skb_drop_reason; Linux 5.17 and newer.",
					targets: []target{{"sum by (k8s_node, reason) (" + rate("kubeskoop_packetloss_reason", ofNode) + ") > 0", who + " {{reason}}"}}},
				{title: "Pods with the most losses", unit: "pps", targets: top("kubeskoop_packetloss_total")},
				{title: "Freed as dropped, and no loss", unit: "pps", about: "What the kernel frees as it frees a lost packet although nobody misses it, by why. It is in no other number.",
					targets: []target{{"sum by (k8s_node, why) (" + rate("nodeskoop_packetloss_ignored_total", ofNode) + ")", who + " {{why}}"}}},
			}},
			{title: "TCP of the host", panels: []panel{
				{title: "Retransmitted segments", unit: "percentunit", targets: []target{{retransmitted(ofHost), who}}},
				{title: "Connections", unit: "none", targets: values(ofHost, "tcpsummary_", who,
					"tcpestablishedconn", "tcptimewaitconn", "tcpclosewaitconn", "tcpsynsentconn", "tcpsynrecvconn")},
				{title: "Opened", unit: "cps", targets: rates(ofHost, "tcp_", who, "activeopens", "passiveopens")},
				{title: "Resets and failed attempts", unit: "cps", targets: rates(ofHost, "tcp_", who, "outrsts", "estabresets", "attemptfails")},
				{title: "Listen queue", unit: "cps", about: "listenoverflows: the accept queue was full, so the application accepts too slowly. listendrops: these and all other dropped SYNs.",
					targets: rates(ofHost, "tcpext_", who, "listenoverflows", "listendrops")},
				{title: "Bytes in the queues of sockets", unit: "bytes", about: "tx: sent, not acknowledged. rx: received, not read by the application.",
					targets: values(ofHost, "tcpsummary_", who, "tcptxqueue", "tcprxqueue")},
				{title: "Retransmission in detail", unit: "ops", targets: rates(ofHost, "tcpext_", who, "tcptimeouts", "tcpfastretrans", "tcpsynretrans", "tcpretransfail")},
				{title: "Drops for want of room", unit: "pps", targets: rates(ofHost, "tcpext_", who, "tcprcvqdrop", "tcpzerowindowdrop", "tcpbacklogdrop", "pfmemallocdrop")},
				{title: "Aborted connections", unit: "cps", targets: rates(ofHost, "tcpext_", who, "tcpabortonclose", "tcpabortondata", "tcpabortontimeout", "tcpabortonmemory", "tcpabortonlinger")},
			}},
			{title: "UDP, CPU queues, connection tracking", panels: []panel{
				{title: "UDP of the host (IPv4)", unit: "pps", targets: rates(ofHost, "udp_", who, "indatagrams", "outdatagrams", "noports")},
				{title: "UDP errors of the host (IPv4)", unit: "pps", targets: rates(ofHost, "udp_", who, "inerrors", "rcvbuferrors", "sndbuferrors", "incsumerrors")},
				{title: "CPUs' receive queues", unit: "pps", about: "dropped: a CPU's backlog queue (net.core.netdev_max_backlog) was full.",
					targets: rates(ofNode, "softnet_", who, "processed", "dropped")},
				{title: "Conntrack entries", unit: "none", targets: values(ofHost, "conntrack_", who, "entries", "maxentries")},
				{title: "Conntrack trouble", unit: "pps", targets: rates(ofHost, "conntrack_", who, "insertfailed", "drop", "earlydrop", "invalid", "error", "searchrestart")},
				{title: "IPVS", unit: "ops", about: "0 while ip_vs is not loaded.", targets: rates(ofHost, "ipvs_", who, "connections", "incomingpackets", "outgoingpackets")},
				{title: "Queueing disciplines", unit: "pps", targets: rates(ofHost, "qdisc_", who, "drops", "overlimits")},
				{title: "Waiting in queueing disciplines", unit: "none", targets: values(ofHost, "qdisc_", who, "qlen")},
				{title: "TCP sockets and memory", unit: "none", about: "mem is in pages; orphan, alloc and mem count the whole node.",
					targets: values(ofHost, "sock_", who, "inuse", "tw", "orphan", "alloc", "mem")},
			}},
			{title: "Pods that stand out", panels: []panel{
				{title: "Most received", unit: "Bps", targets: top("kubeskoop_netdev_rxbytes")},
				{title: "Most sent", unit: "Bps", targets: top("kubeskoop_netdev_txbytes")},
				{title: "Most retransmitted segments", unit: "pps", targets: top("kubeskoop_tcp_retranssegs")},
				{title: "Most resets sent", unit: "pps", targets: top("kubeskoop_tcp_outrsts")},
				{title: "Accept queue overflows", unit: "cps", targets: top("kubeskoop_tcpext_listenoverflows")},
				{title: "UDP receive buffer full", unit: "pps", targets: top("kubeskoop_udp_rcvbuferrors")},
				{title: "Most bytes unread", unit: "bytes", targets: []target{{"topk(10, kubeskoop_tcpsummary_tcprxqueue{" + ofPods + "} > 0)", perPod}}},
				{title: "Most storage I/O", unit: "Bps", targets: []target{{"topk(10, " + rate("kubeskoop_io_ioreadbytes", ofPods) + " + " + rate("kubeskoop_io_iowritebytes", ofPods) + " > 0)", perPod}}},
				{title: "Most open files", unit: "none", targets: []target{{"topk(10, kubeskoop_fdopenfd{" + ofPods + "})", perPod}}},
			}},
			{title: "Latency (probes net_softirq, netiftxlatency, kernellatency, socketlatency, virtcmdlatency: off by default)", closed: true, panels: []panel{
				{title: "Network softirqs", unit: "ops", targets: rates(ofNode, "softirq_", who, "schedslow", "schedslow100ms", "excuteslow", "excuteslow100ms")},
				{title: "Packets slow inside the kernel, all namespaces", unit: "pps", targets: []target{
					{"sum by (k8s_node) (" + rate("kubeskoop_kernellatency_rxslow", ofNode) + ")", who + " rxslow"},
					{"sum by (k8s_node) (" + rate("kubeskoop_kernellatency_txslow", ofNode) + ")", who + " txslow"},
					{"sum by (k8s_node) (" + rate("kubeskoop_netiftxlat_qdiscslow100ms", ofNode) + ")", who + " qdiscslow100ms"},
					{"sum by (k8s_node) (" + rate("kubeskoop_netiftxlat_netdevslow100ms", ofNode) + ")", who + " netdevslow100ms"}}},
				{title: "virtio-net control commands", unit: "ops", targets: rates(ofNode, "virtcmdlatency_", who, "latency", "latency100ms")},
				{title: "Pods that leave data unread", unit: "ops", targets: top("kubeskoop_socketlatency_read100ms")},
				{title: "Pods that cannot send", unit: "ops", targets: top("kubeskoop_socketlatency_write100ms")},
			}},
			func() row {
				r := rarer(ofHost, who)
				r.panels = append(r.panels,
					panel{title: "Conntrack lookups", unit: "ops", about: "Kernels since 5.10 no longer count ignore, many no longer insert.",
						targets: rates(ofHost, "conntrack_", who, "found", "ignore", "insert")},
					panel{title: "IPVS bytes", unit: "Bps", targets: rates(ofHost, "ipvs_", who, "incomingbytes", "outgoingbytes")})
				return r
			}(),
			{title: "nodeskoop itself", closed: true, panels: []panel{
				{title: "Duration of a cycle", unit: "s", targets: []target{{"nodeskoop_last_cycle_duration_seconds{" + ofNode + "}", who}}},
				{title: "Duration by probe", unit: "s", stacked: true, targets: []target{{"nodeskoop_probe_duration_seconds{" + ofNode + "}", who + " {{probe}}"}}},
				{title: "Series", unit: "none", targets: []target{{"nodeskoop_series{" + ofNode + "}", who},
					{"sum by (k8s_node) (nodeskoop_series_left_out{" + ofNode + "})", who + " left out"}}},
				{title: "Textfile", unit: "bytes", targets: []target{{"nodeskoop_textfile_bytes{" + ofNode + "}", who}}},
				{title: "Cycles missed, writes failed", unit: "ops", targets: []target{
					{rate("nodeskoop_cycles_missed_total", ofNode), who + " cycles missed"},
					{rate("nodeskoop_textfile_write_failures_total", ofNode), who + " writes failed"}}},
				{title: "Time in BPF programs", unit: "percentunit", about: "Of one CPU; only while the sysctl kernel.bpf_stats_enabled is 1.",
					targets: []target{{rate("nodeskoop_bpf_run_seconds_total", ofNode), who + " {{probe}}"}}},
			}},
		},
	}
}

func pods() dashboard {
	const who = perPod
	return dashboard{
		uid: "nodeskoop-pods", title: "nodeskoop / Pods",
		about: "What each pod's own network namespace and processes count.",
		vars: []variable{
			anyNode,
			{name: "namespace", label: "Namespace", query: `label_values(kubeskoop_netdev_rxbytes{k8s_node=~"$node"}, k8s_namespace)`, multi: true},
			{name: "pod", label: "Pod", query: `label_values(kubeskoop_netdev_rxbytes{k8s_node=~"$node", k8s_namespace=~"$namespace"}, k8s_pod)`, multi: true, all: true},
		},
		rows: []row{
			{title: "Traffic", panels: []panel{
				{title: "Bytes", unit: "Bps", mirrored: "/txbytes/", targets: rates(ofPod, "netdev_", who, "rxbytes", "txbytes")},
				{title: "Packets", unit: "pps", mirrored: "/txpackets/", targets: rates(ofPod, "netdev_", who, "rxpackets", "txpackets")},
				{title: "Interface errors and drops", unit: "pps", targets: rates(ofPod, "netdev_", who, "rxerrors", "txerrors", "rxdropped", "txdropped")},
			}},
			{title: "Lost and retransmitted", panels: []panel{
				{title: "Dropped packets by reason", unit: "pps", stacked: true, about: "In the pod's namespace, by the kernel's own name of the reason; Linux 5.17 and newer.",
					targets: []target{{rate("kubeskoop_packetloss_reason", ofPod) + " > 0", who + " {{reason}}"}}},
				{title: "Lost packets by class", unit: "pps", stacked: true, targets: rates(ofPod, "packetloss_", who, "netfilter", "tcphandle", "tcprcv", "tcpstatm", "abnormal")},
				{title: "Retransmitted segments", unit: "percentunit", targets: []target{{retransmitted(ofPod), who}}},
				{title: "Retransmission in detail", unit: "ops", targets: rates(ofPod, "tcpext_", who, "tcptimeouts", "tcpfastretrans", "tcpsynretrans", "tcpretransfail")},
				{title: "Drops for want of room", unit: "pps", targets: rates(ofPod, "tcpext_", who, "tcprcvqdrop", "tcpzerowindowdrop", "tcpbacklogdrop", "pfmemallocdrop")},
				{title: "Queueing disciplines", unit: "pps", about: "overlimits: held back for a rate limit.", targets: rates(ofPod, "qdisc_", who, "drops", "overlimits")},
			}},
			{title: "TCP", panels: []panel{
				{title: "Connections", unit: "none", targets: values(ofPod, "tcpsummary_", who,
					"tcpestablishedconn", "tcptimewaitconn", "tcpclosewaitconn", "tcpsynsentconn", "tcpsynrecvconn")},
				{title: "Opened", unit: "cps", targets: rates(ofPod, "tcp_", who, "activeopens", "passiveopens")},
				{title: "Resets and failed attempts", unit: "cps", targets: rates(ofPod, "tcp_", who, "outrsts", "estabresets", "attemptfails")},
				{title: "Listen queue", unit: "cps", about: "listenoverflows: the accept queue was full, so the application accepts too slowly.",
					targets: rates(ofPod, "tcpext_", who, "listenoverflows", "listendrops")},
				{title: "Bytes in the queues of sockets", unit: "bytes", about: "tx: sent, not acknowledged. rx: received, not read by the application.",
					targets: values(ofPod, "tcpsummary_", who, "tcptxqueue", "tcprxqueue")},
				{title: "Aborted connections", unit: "cps", targets: rates(ofPod, "tcpext_", who, "tcpabortonclose", "tcpabortondata", "tcpabortontimeout", "tcpabortonmemory", "tcpabortonlinger")},
			}},
			{title: "UDP (IPv4)", panels: []panel{
				{title: "Datagrams", unit: "pps", mirrored: "/outdatagrams/", targets: rates(ofPod, "udp_", who, "indatagrams", "outdatagrams")},
				{title: "Errors", unit: "pps", targets: rates(ofPod, "udp_", who, "inerrors", "rcvbuferrors", "sndbuferrors", "incsumerrors")},
				{title: "Nobody listened", unit: "pps", targets: rates(ofPod, "udp_", who, "noports", "ignoredmulti")},
			}},
			{title: "Processes", panels: []panel{
				{title: "Storage", unit: "Bps", mirrored: "/iowritebytes/", targets: rates(ofPod, "io_", who, "ioreadbytes", "iowritebytes")},
				{title: "System calls that read and write", unit: "ops", targets: rates(ofPod, "io_", who, "ioreadsyscall", "iowritesyscall")},
				{title: "Open files and sockets", unit: "none", targets: values(ofPod, "", who, "fdopenfd", "fd_opensocket")},
				{title: "TCP sockets", unit: "none", targets: values(ofPod, "sock_", who, "inuse", "tw")},
				{title: "Waiting in queueing disciplines", unit: "none", targets: values(ofPod, "qdisc_", who, "qlen")},
			}},
			rarer(ofPod, who),
			{title: "Latency (probes kernellatency, socketlatency, netiftxlatency: off by default)", closed: true, panels: []panel{
				{title: "Data waited for the application to read", unit: "ops", targets: rates(ofPod, "socketlatency_", who, "read1ms", "read100ms")},
				{title: "Written data waited to be sent", unit: "ops", targets: rates(ofPod, "socketlatency_", who, "write1ms", "write100ms")},
				{title: "Packets slow inside the kernel", unit: "pps", targets: rates(ofPod, "kernellatency_", who, "rxslow", "rxslow100ms", "txslow", "txslow100ms")},
				{title: "Packets slow on the way out", unit: "pps", targets: rates(ofPod, "netiftxlat_", who, "qdiscslow100ms", "netdevslow100ms")},
			}},
			{title: "Connections (probe flow: off by default)", closed: true, panels: []panel{
				{title: "Most bytes sent", unit: "Bps", wide: 12, targets: []target{{"topk(10, " + rate("kubeskoop_flow_bytes", ofPod) + " > 0)",
					"{{protocol}} {{src_namespace}}/{{src_pod}} {{src}} -> {{dst_namespace}}/{{dst_pod}} {{dst}}"}}},
				{title: "Most packets sent", unit: "pps", wide: 12, targets: []target{{"topk(10, " + rate("kubeskoop_flow_packets", ofPod) + " > 0)",
					"{{protocol}} {{src_namespace}}/{{src_pod}} {{src}} -> {{dst_namespace}}/{{dst_pod}} {{dst}}"}}},
			}},
		},
	}
}

func events() dashboard {
	const who = "{{k8s_node}} {{event}}"
	count := func(what string) string {
		return "sum by (k8s_node, event) (" + rate("nodeskoop_events_"+what+"_total", ofNode) + ") > 0"
	}
	sum := func(what, where string) target {
		return target{"sum by (k8s_node) (increase(nodeskoop_events_" + what + "_total{" + where + "}[$__range]))", "{{k8s_node}}"}
	}
	return dashboard{
		uid: "nodeskoop-events", title: "nodeskoop / Events",
		about: "How often each event occurs, by the counters: complete, whatever the rate limits kept out of the journal. The events themselves: journalctl -t nodeskoop on the node.",
		vars:  []variable{anyNode},
		rows: []row{
			{title: "In the shown time", panels: []panel{
				{title: "Seen", kind: "stat", unit: "none", wide: 6, high: 4, targets: []target{sum("seen", ofNode)}},
				{title: "Written to the journal", kind: "stat", unit: "none", wide: 6, high: 4, targets: []target{sum("written", ofNode)}},
				{title: "Kept back by a rate limit", kind: "stat", unit: "none", wide: 6, high: 4, targets: []target{sum("suppressed", ofNode)},
					about: "Counted, not written: raise journal.rate if they are missed."},
				{title: "Lost", kind: "stat", unit: "none", wide: 6, high: 4, targets: []target{sum("lost", ofNode)},
					about: "Should have been written and could not be: journald did not take them.", thresholds: []threshold{{"red", 1}}},
				{title: "By node and event", kind: "table", unit: "none", wide: 24, high: 9,
					targets: []target{{"sum by (k8s_node, event) (increase(nodeskoop_events_seen_total{" + ofNode + "}[$__range])) > 0", ""}}},
			}},
			{title: "Events", panels: []panel{
				{title: "Seen", unit: "cps", wide: 12, targets: []target{{count("seen"), who}}},
				{title: "Written", unit: "cps", wide: 12, targets: []target{{count("written"), who}}},
				{title: "Kept back by a rate limit", unit: "cps", wide: 12, targets: []target{{count("suppressed"), who}}},
				{title: "Lost", unit: "cps", wide: 12, targets: []target{{count("lost"), who}}},
			}},
			{title: "What stands behind them, by pod", panels: []panel{
				{title: "PacketLoss", unit: "pps", targets: []target{{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod, reason) (" + rate("kubeskoop_packetloss_reason", ofNode) + ") > 0)", perPod + " {{reason}}"}}},
				{title: "TCPRetrans", unit: "pps", targets: []target{{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_tcpretrans_total", ofNode) + ") > 0)", perPod}}},
				{title: "TCPRESET: sent with RST", unit: "pps", targets: []target{{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_tcp_outrsts", ofNode) + ") > 0)", perPod}}},
				{title: "TCPRESET: established connections reset", unit: "cps", targets: []target{{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_tcp_estabresets", ofNode) + ") > 0)", perPod}}},
				{title: "SOCKETLAT: left unread over 100 ms", unit: "ops", targets: top("kubeskoop_socketlatency_read100ms")},
				{title: "SOCKETLAT: not sent over 100 ms", unit: "ops", targets: top("kubeskoop_socketlatency_write100ms")},
				{title: "RXKERNEL, TXKERNEL", unit: "pps", targets: []target{
					{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_kernellatency_rxslow100ms", ofNode) + ") > 0)", perPod + " rx"},
					{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_kernellatency_txslow100ms", ofNode) + ") > 0)", perPod + " tx"}}},
				{title: "TXLAT", unit: "pps", targets: []target{
					{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_netiftxlat_qdiscslow100ms", ofNode) + ") > 0)", perPod + " qdisc"},
					{"topk(10, sum by (k8s_node, k8s_namespace, k8s_pod) (" + rate("kubeskoop_netiftxlat_netdevslow100ms", ofNode) + ") > 0)", perPod + " driver"}}},
				{title: "NETSOFTIRQ", unit: "ops", targets: rates(ofNode, "softirq_", "{{k8s_node}}", "schedslow", "schedslow100ms", "excuteslow", "excuteslow100ms")},
			}},
		},
	}
}
