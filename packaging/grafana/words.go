package main

import (
	"strings"

	"nodeskoop/collect/catalog"
)

// words are the legends of metrics, by name without kubeskoop_. The panel's title
// provides the context.
var words = map[string]string{
	"conntrack_drop": "Dropped: no entry", "conntrack_earlydrop": "Evicted early", "conntrack_entries": "Entries", "conntrack_error": "Protocol errors",
	"conntrack_found": "NAT tuple in use", "conntrack_ignore": "Ignored", "conntrack_insert": "Inserted", "conntrack_insertfailed": "Insert failed",
	"conntrack_invalid": "Invalid", "conntrack_maxentries": "Limit", "conntrack_searchrestart": "Lookups repeated",

	"fd_opensocket": "Sockets", "fdopenfd": "Descriptors",
	"io_ioreadbytes": "Read", "io_iowritebytes": "Written", "io_ioreadsyscall": "Reads", "io_iowritesyscall": "Writes",
	"ip_innoroutes": "No route", "ip_intruncatedpkts": "Truncated",

	"ipvs_connections": "Connections", "ipvs_incomingpackets": "Packets in", "ipvs_outgoingpackets": "Packets out",
	"ipvs_incomingbytes": "In", "ipvs_outgoingbytes": "Out",

	"kernellatency_rxslow": "Received, slow", "kernellatency_rxslow100ms": "Received, over 100 ms",
	"kernellatency_txslow": "Sent, slow", "kernellatency_txslow100ms": "Sent, over 100 ms",

	"netdev_rxbytes": "Received", "netdev_txbytes": "Sent", "netdev_rxpackets": "Received", "netdev_txpackets": "Sent",
	"netdev_rxerrors": "Receive errors", "netdev_txerrors": "Send errors", "netdev_rxdropped": "Receive drops", "netdev_txdropped": "Send drops",
	"netiftxlat_netdevslow100ms": "Driver, over 100 ms", "netiftxlat_qdiscslow100ms": "Qdisc, over 100 ms",

	"packetloss_abnormal": "Elsewhere", "packetloss_netfilter": "Netfilter rule", "packetloss_tcphandle": "TCP, before its state machine",
	"packetloss_tcprcv": "TCP receive", "packetloss_tcpstatm": "TCP state machine", "packetloss_total": "Lost",

	"qdisc_backlog": "Bytes", "qdisc_bytes": "Sent", "qdisc_drops": "Dropped", "qdisc_overlimits": "Held back by a rate limit",
	"qdisc_packets": "Sent", "qdisc_qlen": "Packets",

	"sock_alloc": "Allocated", "sock_inuse": "In use", "sock_mem": "Buffer pages", "sock_orphan": "Orphaned", "sock_tw": "TIME_WAIT",
	"socketlatency_read1ms": "Over 1 ms", "socketlatency_read100ms": "Over 100 ms", "socketlatency_write1ms": "Over 1 ms", "socketlatency_write100ms": "Over 100 ms",
	"softirq_excuteslow": "Ran, slow", "softirq_excuteslow100ms": "Ran, over 100 ms",
	"softirq_schedslow": "Waited, slow", "softirq_schedslow100ms": "Waited, over 100 ms",
	"softnet_dropped": "Dropped: backlog full", "softnet_processed": "Processed",

	"tcp_activeopens": "Opened from here", "tcp_attemptfails": "Failed attempts", "tcp_currestab": "Established", "tcp_estabresets": "Established, then reset",
	"tcp_inerrs": "Receive errors", "tcp_insegs": "Received", "tcp_outrsts": "RST sent", "tcp_outsegs": "Sent", "tcp_passiveopens": "Opened by peers",
	"tcp_retranssegs": "Retransmitted",

	"tcpext_embryonicrsts": "Half-open, reset", "tcpext_listendrops": "SYNs dropped", "tcpext_listenoverflows": "Accept queue full",
	"tcpext_pawsactive": "Old timestamp, SYN-ACK", "tcpext_pawsestab": "Old timestamp, established", "tcpext_pfmemallocdrop": "Memory reserve",
	"tcpext_tcpabortfailed": "RST could not be sent", "tcpext_tcpabortonclose": "Closed with unread data", "tcpext_tcpabortondata": "Data after close",
	"tcpext_tcpabortonlinger": "FIN_WAIT2 cut short", "tcpext_tcpabortonmemory": "Out of memory", "tcpext_tcpabortontimeout": "Timed out",
	"tcpext_tcpackskippedchallenge": "Challenge ACK", "tcpext_tcpackskippedfinwait2": "FIN_WAIT2", "tcpext_tcpackskippedpaws": "Old timestamp",
	"tcpext_tcpackskippedseq": "Out of window", "tcpext_tcpackskippedsynrecv": "SYN_RECV", "tcpext_tcpackskippedtimewait": "TIME_WAIT",
	"tcpext_tcpbacklogdrop": "Socket backlog full", "tcpext_tcpfastretrans": "Fast retransmissions", "tcpext_tcpkeepalive": "Keep-alives",
	"tcpext_tcpmemorypressures": "Memory pressure", "tcpext_tcpmemorypressureschrono": "Under pressure", "tcpext_tcpmtupfail": "Path MTU probes lost",
	"tcpext_tcpmtupsuccess": "Path MTU probes passed", "tcpext_tcprcvqdrop": "Receive queue full", "tcpext_tcpretransfail": "Refused below TCP",
	"tcpext_tcpsynretrans": "SYN and SYN-ACK", "tcpext_tcptimeouts": "Timer expirations", "tcpext_tcpwinprobe": "Zero window probes",
	"tcpext_tcpwqueuetoobig": "Write queue too long to split", "tcpext_tcpzerowindowdrop": "Receive window closed",

	"tcpsummary_tcpclosewaitconn": "CLOSE_WAIT", "tcpsummary_tcpestablishedconn": "ESTABLISHED", "tcpsummary_tcprxqueue": "Received, unread",
	"tcpsummary_tcpsynrecvconn": "SYN_RECV", "tcpsummary_tcpsynsentconn": "SYN_SENT", "tcpsummary_tcptimewaitconn": "TIME_WAIT",
	"tcpsummary_tcptxqueue": "Sent, not acknowledged",

	"udp_ignoredmulti": "Unwanted multicast", "udp_incsumerrors": "Bad checksum", "udp_indatagrams": "Received", "udp_inerrors": "Receive errors",
	"udp_noports": "Nobody listens", "udp_outdatagrams": "Sent", "udp_rcvbuferrors": "Receive buffer full", "udp_sndbuferrors": "Send buffer full",

	"virtcmdlatency_latency": "Slow", "virtcmdlatency_latency100ms": "Over 100 ms",
}

// word returns the legend of a metric. A missing legend is a bug in this package
// and panics.
func word(name string) string {
	w := words[name]
	if w == "" {
		panic("grafana: no legend for " + name)
	}
	return w
}

// describe returns a panel's description: its own text, then the Catalogue's text
// for each metric in it.
func describe(p panel) string {
	var paragraphs []string
	if p.about != "" {
		paragraphs = append(paragraphs, p.about)
	}
	seen := map[*catalog.Metric]bool{}
	var metrics []*catalog.Metric
	for _, t := range p.targets {
		for _, n := range metricName.FindAllString(t.expr, -1) {
			if m := declared(n); m != nil && !seen[m] {
				seen[m] = true
				metrics = append(metrics, m)
			}
		}
	}
	// The heads of a table name its columns; a tooltip with eight texts would be
	// useless.
	if len(metrics) > 8 && p.about != "" {
		metrics = nil
	}
	for _, m := range metrics {
		text := "`" + m.Name + "`: " + m.Help
		if m.Rises != "" && len(metrics) == 1 {
			text += " " + firstSentence(m.Rises)
		}
		if len(metrics) > 1 {
			text = "- " + text
		}
		paragraphs = append(paragraphs, text)
	}
	if len(metrics) > 1 {
		n := len(paragraphs) - len(metrics)
		paragraphs = append(paragraphs[:n:n], strings.Join(paragraphs[n:], "\n"))
	}
	return strings.Join(paragraphs, "\n\n")
}

// declared returns the Catalogue's metric for a name in a query. The name of a
// recording rule contains that of its metric, without _total or with a suffix for
// its selection.
func declared(name string) *catalog.Metric {
	if m := histogram(name); m != nil {
		return m
	}
	for _, n := range []string{name, name + "_total", strings.TrimSuffix(name, "_pods")} {
		if m := catalog.MetricByName(n); m != nil {
			return m
		}
	}
	return nil
}

func firstSentence(s string) string {
	if i := strings.Index(s, ". "); i >= 0 {
		return s[:i+1]
	}
	return s
}
