package main

// worstOf selects the nodes or namespaces with the highest peak in the displayed
// time range, the same ones for the whole graph.
func worstOf(expr string) string {
	return "(" + expr + ") and topk($top, max_over_time((" + expr + ")[$__range:$__interval] @ end()))"
}

// fleet queries only recording rules and nodeskoop's metrics about itself, a few
// series per node, so that it works for thousands of nodes.
func fleet() dashboard {
	const who = "{{k8s_node}}"
	recorded := func(metric string) string { return "k8s_node:kubeskoop_" + metric + ":rate5m{" + ofNode + "}" }
	lost := recorded("packetloss_total") + " - " + recorded("packetloss_netfilter")
	ratio := recorded("tcp_retranssegs") + " / (" + recorded("tcp_outsegs") + " > 0)"
	used := "max by (k8s_node) (k8s_node:kubeskoop_conntrack_used:ratio{" + ofNode + "})"
	age := "time() - nodeskoop_last_cycle_timestamp_seconds{" + ofNode + "}"
	worst := func(expr string) []target { return []target{{worstOf(expr), who}} }
	spaces := func(metric string) string { return "k8s_namespace:kubeskoop_" + metric + ":rate5m" }
	spaceRatio := spaces("tcp_retranssegs") + " / (" + spaces("tcp_outsegs") + " > 0)"

	table := panel{title: "Nodes, worst first", kind: "table", unit: count, wide: 24, high: 9, none: "-",
		about: "Rates over five minutes, by the second: packets lost, packets that a rule dropped, RST sent, connections that found the accept queue full, datagrams that found the receive buffer full, events, what the pods received and sent. Sorted by the alerts that fire, then by lost packets. A click on a node leads to its own dashboards.",
		columns: []column{
			{title: "Node", label: "k8s_node", links: []link{toNode, toEvents, toExporter}},
			{title: "instance", label: "instance", hidden: true}, {title: "job", label: "job", hidden: true},
		},
		sorted: []string{"Alerts", "Lost/s"},
	}
	add := func(title, expr, unit string, thresholds ...threshold) {
		table.columns = append(table.columns, column{title: title, value: len(table.targets), unit: unit, thresholds: thresholds, wide: 98})
		table.targets = append(table.targets, target{expr, ""})
	}
	// The rule's name would be an extra column that keeps the table's rows apart.
	only := func(expr string) string { return "max by (k8s_node) (" + expr + ")" }
	red := threshold{"red", 1e-9}
	add("Age", "max by (k8s_node, instance, job) ("+age+")", duration, threshold{"orange", 60}, threshold{"red", 120})
	add("Alerts", `count by (k8s_node) (ALERTS{alertstate="firing", k8s_node!="", `+ofNode+`})`, count, threshold{"red", 1})
	add("Lost/s", lost, count, red)
	add("By rule/s", only(recorded("packetloss_netfilter")), count, threshold{"orange", 1e-9})
	add("Retrans.", ratio, share, threshold{"orange", 0.01}, threshold{"red", 0.05})
	add("RST/s", only(recorded("tcp_outrsts")), count)
	add("Overflows/s", only(recorded("tcpext_listenoverflows")), count, red)
	add("UDP full/s", only(recorded("udp_rcvbuferrors")), count, red)
	add("Conntrack", used, share, threshold{"orange", 0.7}, threshold{"red", 0.85})
	add("Events/s", only("k8s_node:nodeskoop_events_seen:rate5m{"+ofNode+"}"), count)
	add("Pods in", only(recorded("netdev_rxbytes_pods")), bytesPerSecond)
	add("Pods out", only(recorded("netdev_txbytes_pods")), bytesPerSecond)

	namespaces := panel{title: "Namespaces, worst first", kind: "table", unit: count, wide: 24, high: 7, none: "-",
		about:   "Kubernetes' namespaces, all nodes together, rates over five minutes.",
		columns: []column{{title: "Namespace", label: "k8s_namespace", links: []link{{"Pods of ${__data.fields.Namespace}", "/d/nodeskoop-pods?var-namespace=${__data.fields.Namespace}&var-node=$__all&var-pod=$__all" + sameTime}}}},
		sorted:  []string{"Lost/s", "Retrans."},
	}
	for i, c := range []struct{ title, expr, unit string }{
		{"Lost/s", spaces("packetloss_total"), count},
		{"Retrans.", spaceRatio, share},
		{"RST/s", spaces("tcp_outrsts"), count},
		{"Received", spaces("netdev_rxbytes"), bytesPerSecond},
		{"Sent", spaces("netdev_txbytes"), bytesPerSecond},
	} {
		namespaces.columns = append(namespaces.columns, column{title: c.title, value: i, unit: c.unit, wide: 150})
		namespaces.targets = append(namespaces.targets, target{"max by (k8s_namespace) (" + c.expr + ")", ""})
	}

	return dashboard{
		uid: "nodeskoop-fleet", title: "nodeskoop / Fleet", where: ofNode,
		about: "All nodes, the worst first. It asks the recording rules of nodeskoop.rules.yml, which Prometheus has to load.",
		vars:  []variable{anyNode, topN},
		rows: []row{
			{title: "At a glance", panels: []panel{
				{title: "Nodes", kind: "stat", unit: count, wide: 4, high: 4, about: "Nodes that have metrics of nodeskoop.",
					targets: []target{{"count(nodeskoop_build_info{" + ofNode + "})", "Nodes"}}},
				{title: "Stale nodes", kind: "stat", unit: count, wide: 4, high: 4, about: "Nodes whose last complete cycle is over two minutes old: what node_exporter goes on serving of them is no longer true.",
					targets: []target{{"count(" + age + " > 120) or vector(0)", "Stale"}}, thresholds: []threshold{{"red", 1}}},
				{title: "Probes without values", kind: "stat", unit: count, wide: 4, high: 4, about: "Probes of which any value is missing, on all nodes. `nodeskoop probes` on the node says why.",
					targets: []target{{"sum(1 - nodeskoop_probe_up{" + ofNode + "})", "Probes"}}, thresholds: []threshold{{"red", 1}}},
				{title: "Alerts that fire", kind: "stat", unit: count, wide: 4, high: 4, about: "Alerts with the label k8s_node.",
					targets: []target{{`count(ALERTS{alertstate="firing", k8s_node!="", ` + ofNode + `}) or vector(0)`, "Alerts"}}, thresholds: []threshold{{"red", 1}}},
				{title: "Packets lost", kind: "stat", unit: packets, wide: 4, high: 4, about: "On all nodes, without those that a rule of netfilter dropped.",
					targets: []target{{"sum(" + recorded("packetloss_total") + ") - sum(" + recorded("packetloss_netfilter") + ")", "Lost"}}, thresholds: []threshold{{"orange", 1}, {"red", 100}}},
				{title: "Retransmitted segments", kind: "stat", unit: share, wide: 4, high: 4, about: "Of the TCP segments sent by all nodes and their pods.",
					targets: []target{{"sum(" + recorded("tcp_retranssegs") + ") / sum(" + recorded("tcp_outsegs") + ")", "Retransmitted"}}, thresholds: []threshold{{"orange", 0.01}, {"red", 0.05}}},
			}},
			{title: "Nodes", panels: []panel{
				table,
				firing(ofNode, 24, 8),
			}},
			{title: "The worst nodes in time", panels: []panel{
				{title: "Lost packets", unit: packets, links: lineToNode, about: "Without those that a rule of netfilter dropped.", targets: worst(lost)},
				{title: "Dropped by rules", unit: packets, links: lineToNode, targets: worst(recorded("packetloss_netfilter"))},
				{title: "Retransmitted segments", unit: share, links: lineToNode, targets: worst(ratio)},
				{title: "Accept queue overflows", unit: connections, links: lineToNode, targets: worst(recorded("tcpext_listenoverflows"))},
				{title: "UDP receive buffer full", unit: datagrams, links: lineToNode, targets: worst(recorded("udp_rcvbuferrors"))},
				{title: "RST sent", unit: segments, links: lineToNode, targets: worst(recorded("tcp_outrsts"))},
				{title: "Conntrack table in use", unit: share, links: lineToNode, about: "Entries over the limit, of the host's namespace.", targets: worst(used)},
				{title: "Events seen", unit: occurrences, links: lineToNode, targets: worst("k8s_node:nodeskoop_events_seen:rate5m{" + ofNode + "}")},
				{title: "Traffic of pods", unit: bytesPerSecond, mirrored: "/ sent$/", links: lineToNode, about: "Of all pods of a node together, received above the axis and sent below.",
					targets: []target{{worstOf(recorded("netdev_rxbytes_pods")), who + " received"}, {worstOf(recorded("netdev_txbytes_pods")), who + " sent"}}},
			}},
			{title: "Namespaces of Kubernetes", panels: []panel{
				namespaces,
				{title: "Lost packets by namespace", unit: packets, targets: []target{{worstOf(spaces("packetloss_total")), "{{k8s_namespace}}"}}},
				{title: "Retransmitted segments by namespace", unit: share, targets: []target{{worstOf(spaceRatio), "{{k8s_namespace}}"}}},
				{title: "Traffic by namespace", unit: bytesPerSecond, mirrored: "/ sent$/", about: "Received above the axis, sent below.",
					targets: []target{{worstOf(spaces("netdev_rxbytes")), "{{k8s_namespace}} received"}, {worstOf(spaces("netdev_txbytes")), "{{k8s_namespace}} sent"}}},
			}},
		},
	}
}
