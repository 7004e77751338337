package main

import "strings"

// Label selectors. The host's own series have k8s_pod="hostNetwork", or "" with
// pods.host_label = ""; the dashboards work with both.
const (
	ofNode = `k8s_node=~"$node"`
	ofHost = ofNode + `, k8s_pod=~"hostNetwork|"`
	ofPods = ofNode + `, k8s_pod!~"hostNetwork|unknown|"`
	ofPod  = ofNode + `, k8s_namespace=~"$namespace", k8s_pod=~"$pod"`

	perPod = "{{k8s_namespace}}/{{k8s_pod}}"
	byPod  = "k8s_node, k8s_namespace, k8s_pod"
)

// Units. Grafana's own pps and Bps write 0.7 as 700 m, which reads as mega.
// "count:" units and binary units have no such prefix.
const (
	share          = "percentunit"
	octets         = "bytes"
	bytesPerSecond = "binBps"
	duration       = "s"
	count          = "short"

	packets     = "count:pkt/s"
	segments    = "count:seg/s"
	datagrams   = "count:dgram/s"
	connections = "count:conn/s"
	occurrences = "count:events/s"
	operations  = "count:ops/s"
)

var (
	oneNode = variable{name: "node", label: "Node", query: "label_values(nodeskoop_build_info, k8s_node)"}
	anyNode = variable{name: "node", label: "Node", query: "label_values(nodeskoop_build_info, k8s_node)", multi: true, all: true}
	topN    = variable{name: "top", label: "Top", options: []string{"5", "10", "20", "50"}}
)

const sameTime = "&${datasource:queryparam}&${__url_time_range}"

// Link targets. Node Exporter Full is dashboard 1860 of grafana.com, whose uid is
// stable.
var (
	toNode     = link{"Node ${__data.fields.Node}", "/d/nodeskoop-nodes?var-node=${__data.fields.Node}" + sameTime}
	toExporter = link{"Node Exporter Full of ${__data.fields.Node}", "/d/rYdddlPWk?var-job=${__data.fields.job}&var-node=${__data.fields.instance}&${__url_time_range}"}
	toPod      = link{"Pod ${__data.fields.Pod}", "/d/nodeskoop-pods?var-node=${__data.fields.Node}&var-namespace=${__data.fields.Namespace}&var-pod=${__data.fields.Pod}" + sameTime}
	toEvents   = link{"Events of ${__data.fields.Node}", "/d/nodeskoop-events?var-node=${__data.fields.Node}" + sameTime}

	// The same links from a line of a graph.
	lineToNode = []link{{"Node ${__field.labels.k8s_node}", "/d/nodeskoop-nodes?var-node=${__field.labels.k8s_node}" + sameTime}}
	lineToPod  = []link{{"Pod ${__field.labels.k8s_pod}",
		"/d/nodeskoop-pods?var-node=${__field.labels.k8s_node}&var-namespace=${__field.labels.k8s_namespace}&var-pod=${__field.labels.k8s_pod}" + sameTime}}
	lineToPeer = []link{{"Pod ${__field.labels.dst_pod}", "/d/nodeskoop-pods?var-namespace=${__field.labels.dst_namespace}&var-pod=${__field.labels.dst_pod}" + sameTime}}
)

// rate returns the query for a counter's rate under a selector.
func rate(metric, where string) string {
	return "rate(" + metric + "{" + where + "}[$__rate_interval])"
}

// rates returns one target per counter, with its legend.
func rates(where string, names ...string) []target {
	var t []target
	for _, n := range names {
		t = append(t, target{rate("kubeskoop_"+n, where), word(n)})
	}
	return t
}

// values is rates for gauges.
func values(where string, names ...string) []target {
	var t []target
	for _, n := range names {
		t = append(t, target{"kubeskoop_" + n + "{" + where + "}", word(n)})
	}
	return t
}

// summed is rates, summed over all selected pods.
func summed(names ...string) []target {
	var t []target
	for _, n := range names {
		t = append(t, target{"sum(" + rate("kubeskoop_"+n, ofPod) + ")", word(n)})
	}
	return t
}

// held is summed for gauges.
func held(names ...string) []target {
	var t []target
	for _, n := range names {
		t = append(t, target{"sum(kubeskoop_" + n + "{" + ofPod + "})", word(n)})
	}
	return t
}

// overall returns the query for a counter's rate by pod over the whole displayed
// time range, evaluated at its end. Ranking pods by it selects the same ones for
// the whole graph.
func overall(metric, where string) string {
	return "sum by (" + byPod + ") (rate(" + metric + "{" + where + "}[$__range] @ end()))"
}

// top returns the pods with the highest rates of a counter over the displayed time
// range, without zeros.
func top(metric, where string) []target {
	return []target{{"sum by (" + byPod + ") (" + rate(metric, where) + ") and topk($top, " + overall(metric, where) + " > 0)", perPod}}
}

// highest is top for gauges.
func highest(metric, where string) []target {
	return []target{{"sum by (" + byPod + ") (" + metric + "{" + where + "}) and topk($top, sum by (" + byPod + ") (max_over_time(" + metric + "{" + where + "}[$__range] @ end())) > 0)", perPod}}
}

// retransmitted returns the query for the share of sent segments that were
// retransmissions.
func retransmitted(where string) string {
	return rate("kubeskoop_tcp_retranssegs", where) + " / (" + rate("kubeskoop_tcp_outsegs", where) + " > 0)"
}

// notByRule returns the query for the rate of lost packets that no netfilter rule
// dropped.
func notByRule(where string) string {
	return "sum by (" + byPod + ") (" + rate("kubeskoop_packetloss_total", where) + ") - sum by (" + byPod + ") (" + rate("kubeskoop_packetloss_netfilter", where) + ")"
}

// signs returns the query for the number of symptoms of each pod, by which tables
// sort. A probe that does not run adds none.
func signs(where string) string {
	base := "0 * sum by (" + byPod + ") (" + rate("kubeskoop_netdev_rxbytes", where) + ")"
	sum := func(metric string) string { return "sum by (" + byPod + ") (" + rate(metric, where) + ")" }
	var terms []string
	for _, t := range []string{
		notByRule(where) + " > bool 0",
		sum("kubeskoop_packetloss_netfilter") + " > bool 0",
		sum("kubeskoop_tcp_retranssegs") + " > bool 0.01 * " + sum("kubeskoop_tcp_outsegs"),
		sum("kubeskoop_tcpext_listenoverflows") + " > bool 0",
		sum("kubeskoop_udp_rcvbuferrors") + " > bool 0",
		sum("kubeskoop_qdisc_drops") + " > bool 0",
	} {
		terms = append(terms, "(("+t+") or "+base+")")
	}
	return strings.Join(terms, " + ")
}

// standOut is a table of pods, those with the most symptoms first.
func standOut(where string, high int) panel {
	p := panel{title: "Pods that stand out", kind: "table", unit: count, wide: 24, high: high, none: "-",
		about: "Pods by the number of signs of trouble: packets lost, packets dropped by a rule, over 1 % of the segments retransmitted, accept queue overflows, UDP receive buffer full, packets dropped in a queueing discipline. A click on a pod shows that pod.",
		columns: []column{
			{title: "Pod", label: "k8s_pod", links: []link{toPod}},
			{title: "Namespace", label: "k8s_namespace", wide: 100},
			{title: "Node", label: "k8s_node", wide: 100, links: []link{toNode, toEvents}},
		},
		sorted: []string{"Signs", "Lost/s"},
	}
	add := func(title, expr, unit string, thresholds ...threshold) {
		p.columns = append(p.columns, column{title: title, value: len(p.targets), unit: unit, thresholds: thresholds, wide: 96})
		p.targets = append(p.targets, target{expr, ""})
	}
	sum := func(metric string) string { return "sum by (" + byPod + ") (" + rate(metric, where) + ")" }
	red := threshold{"red", 1e-9}
	add("Signs", signs(where), count, threshold{"orange", 1}, threshold{"red", 2})
	add("Lost/s", notByRule(where), count, red)
	add("By rule/s", sum("kubeskoop_packetloss_netfilter"), count, threshold{"orange", 1e-9})
	add("Retrans.", sum("kubeskoop_tcp_retranssegs")+" / ("+sum("kubeskoop_tcp_outsegs")+" > 0)", share, threshold{"orange", 0.01}, threshold{"red", 0.05})
	add("Overflows/s", sum("kubeskoop_tcpext_listenoverflows"), count, red)
	add("UDP full/s", sum("kubeskoop_udp_rcvbuferrors"), count, red)
	add("RST/s", sum("kubeskoop_tcp_outrsts"), count)
	add("Unread", "sum by ("+byPod+") (kubeskoop_tcpsummary_tcprxqueue{"+where+"})", octets)
	add("Received", sum("kubeskoop_netdev_rxbytes"), bytesPerSecond)
	add("Sent", sum("kubeskoop_netdev_txbytes"), bytesPerSecond)
	return p
}

// firing is a table of firing alerts.
func firing(where string, wide, high int) panel {
	return panel{title: "Alerts that fire", kind: "table", unit: count, wide: wide, high: high, none: "No alert fires",
		about:   "Those of nodeskoop.rules.yml and others with the label k8s_node, as Prometheus' rules find them. Each alert's description and runbook are in its annotations.",
		targets: []target{{`count by (alertname, severity, k8s_node, k8s_namespace, k8s_pod) (ALERTS{alertstate="firing", k8s_node!="", ` + where + `})`, ""}},
		columns: []column{
			{title: "Alert", label: "alertname", wide: 220}, {title: "Severity", label: "severity", wide: 90},
			{title: "Node", label: "k8s_node", links: []link{toNode, toEvents}},
			{title: "Namespace", label: "k8s_namespace"}, {title: "Pod", label: "k8s_pod", links: []link{toPod}},
		}}
}
