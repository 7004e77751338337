package main

func events() dashboard {
	const who = "{{event}} on {{k8s_node}}"
	perSecond := func(what string) string {
		return "sum by (k8s_node, event) (" + rate("nodeskoop_events_"+what+"_total", ofNode) + ") > 0"
	}
	over := func(what string) string {
		return "increase(nodeskoop_events_" + what + "_total{" + ofNode + "}[$__range])"
	}
	stat := func(title, about, expr string, thresholds ...threshold) panel {
		return panel{title: title, kind: "stat", unit: count, wide: 4, high: 4, about: about, targets: []target{{expr, title}}, thresholds: thresholds}
	}
	account := panel{title: "The account, by event", kind: "table", unit: count, wide: 24, high: 11, none: "-",
		about:   "In the shown time. Seen = written + ignored + suppressed + lost + pending: whatever occurs is in one of them. Increases are extrapolated to the ends of the shown time, so a sum may be off by one.",
		columns: []column{{title: "Event", label: "event"}, {title: "Node", label: "k8s_node", links: []link{toNode}}},
		sorted:  []string{"Told"},
	}
	add := func(title, expr string, thresholds ...threshold) {
		account.columns = append(account.columns, column{title: title, value: len(account.targets), unit: count, thresholds: thresholds, wide: 110})
		account.targets = append(account.targets, target{expr, ""})
	}
	byKind := func(expr string) string { return "sum by (k8s_node, event) (" + expr + ")" }
	add("Seen", byKind(over("seen"))+" > 0")
	for _, c := range []struct{ title, what string }{{"Told", "written"}, {"Ignored", "ignored"}, {"Suppressed", "suppressed"}, {"Lost", "lost"}} {
		var thresholds []threshold
		if c.title == "Lost" {
			thresholds = []threshold{{"red", 0.5}}
		}
		add(c.title, byKind(over(c.what))+" and "+byKind(over("seen"))+" > 0", thresholds...)
	}
	add("Pending", byKind("nodeskoop_events_pending{"+ofNode+"}")+" and "+byKind(over("seen"))+" > 0")
	add("Entries", byKind("increase(nodeskoop_event_entries_total{"+ofNode+"}[$__range])")+" and "+byKind(over("seen"))+" > 0")

	behind := func(metric string) []target { return top(metric, ofNode) }
	byNode := func(metric, what string) target {
		return target{"sum by (k8s_node) (" + rate(metric, ofNode) + ")", "{{k8s_node}} " + what}
	}
	const quiet = "None in this time"
	return dashboard{
		uid: "nodeskoop-events", title: "nodeskoop / Events", where: ofNode,
		about: "How often each event occurs, by the counters: complete, whatever the rate limits kept out of the journal. The events themselves: journalctl -t nodeskoop on the node.",
		vars:  []variable{anyNode, topN},
		rows: []row{
			{title: "What became of the events, in the shown time", panels: []panel{
				stat("Seen", "", "sum("+over("seen")+")"),
				stat("Told", "", "sum("+over("written")+")"),
				stat("Ignored", "", "sum("+over("ignored")+")"),
				stat("Pending", "", "sum(nodeskoop_events_pending{"+ofNode+"})"),
				stat("Suppressed", "Counted, not written: raise journal.rate if they are missed.", "sum("+over("suppressed")+")", threshold{"orange", 0.5}),
				stat("Lost", "", "sum("+over("lost")+")", threshold{"red", 0.5}),
				account,
			}},
			{title: "In time", panels: []panel{
				{title: "Seen", unit: occurrences, none: quiet, links: lineToNode, wide: 12, targets: []target{{perSecond("seen"), who}}},
				{title: "Told", unit: occurrences, none: quiet, links: lineToNode, wide: 12, about: "By the occurrences that the entries stand for, at the end of their windows.", targets: []target{{perSecond("written"), who}}},
				{title: "Ignored", unit: occurrences, none: quiet, links: lineToNode, targets: []target{{perSecond("ignored"), who}}},
				{title: "Suppressed by a rate limit", unit: occurrences, none: quiet, links: lineToNode, targets: []target{{perSecond("suppressed"), who}}},
				{title: "Lost", unit: occurrences, none: quiet, links: lineToNode, targets: []target{{perSecond("lost"), who}}},
				{title: "Pending", unit: count, none: quiet, links: lineToNode, wide: 12, targets: []target{{"sum by (k8s_node, event) (nodeskoop_events_pending{" + ofNode + "}) > 0", who}}},
				{title: "Entries in the journal", unit: "count:entries/s", none: quiet, links: lineToNode, wide: 12, targets: []target{{"sum by (k8s_node, event) (" + rate("nodeskoop_event_entries_total", ofNode) + ") > 0", who}}},
			}},
			{title: "The counters behind the events, by pod", panels: []panel{
				{title: "PacketLoss: lost packets", unit: packets, none: quiet, links: lineToPod, targets: []target{{"sum by (" + byPod + ", reason) (" + rate("kubeskoop_packetloss_reason", ofNode) +
					") and topk($top, sum by (" + byPod + ", reason) (rate(kubeskoop_packetloss_reason{" + ofNode + "}[$__range] @ end())) > 0)", perPod + " {{reason}}"}}},
				{title: "TCPRetrans: retransmissions", unit: segments, none: quiet, links: lineToPod, targets: behind("kubeskoop_tcpretrans_total")},
				{title: "TCPRESET: resets by kind", unit: segments, none: quiet, links: lineToPod, targets: []target{{"sum by (" + byPod + ", kind) (" + rate("nodeskoop_tcpreset_total", ofNode) +
					") and topk($top, sum by (" + byPod + ", kind) (rate(nodeskoop_tcpreset_total{" + ofNode + "}[$__range] @ end())) > 0)", perPod + " {{kind}}"}}},
				{title: "SOCKETLAT: unread for over 100 ms", unit: operations, none: quiet, links: lineToPod, targets: behind("kubeskoop_socketlatency_read100ms")},
				{title: "SOCKETLAT: not sent for over 100 ms", unit: operations, none: quiet, links: lineToPod, targets: behind("kubeskoop_socketlatency_write100ms")},
				{title: "RXKERNEL: over 100 ms", unit: packets, none: quiet, links: lineToPod, targets: behind("kubeskoop_kernellatency_rxslow100ms")},
				{title: "TXKERNEL: over 100 ms", unit: packets, none: quiet, links: lineToPod, targets: behind("kubeskoop_kernellatency_txslow100ms")},
				{title: "TXLAT: over 100 ms in the qdisc", unit: packets, none: quiet, links: lineToPod, targets: behind("kubeskoop_netiftxlat_qdiscslow100ms")},
				{title: "TXLAT: over 100 ms in the driver", unit: packets, none: quiet, links: lineToPod, targets: behind("kubeskoop_netiftxlat_netdevslow100ms")},
				{title: "NETSOFTIRQ", unit: operations, wide: 12, links: lineToNode, about: "Of the node: over the threshold for slow, those over 100 ms included.",
					targets: []target{byNode("kubeskoop_softirq_schedslow", "waited"), byNode("kubeskoop_softirq_excuteslow", "ran")}},
				{title: "VIRTCMDEXCUTE", unit: operations, wide: 12, links: lineToNode, targets: []target{byNode("kubeskoop_virtcmdlatency_latency", "slow"), byNode("kubeskoop_virtcmdlatency_latency100ms", "over 100 ms")}},
			}},
		},
	}
}
