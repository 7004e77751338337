package main

import (
	"strings"

	"nodeskoop/collect/catalog"
)

// buckets returns the query for the rate at which each bucket of a histogram grows.
func buckets(metric, where string) string {
	return "sum by (le) (" + rate(metric+"_bucket", where) + ")"
}

// heat is a heat map of a histogram. It is empty if the probe does not run.
func heat(title, metric, where, none string) panel {
	return panel{title: title, kind: "heatmap", unit: duration, none: none, targets: []target{{buckets(metric, where), "{{le}}"}}}
}

// p99 returns the query for a histogram's 99th percentile, for each combination of
// labels. A percentile without measurements is NaN. The query drops it, since a legend
// would show the panel's text for no data.
func p99(metric, where, legend string, labels ...string) target {
	by := strings.Join(append([]string{"le"}, labels...), ", ")
	return target{"histogram_quantile(0.99, sum by (" + by + ") (" + rate(metric+"_bucket", where) + ")) >= 0", legend}
}

const percentile = "99 of 100 took no longer, with the resolution of the buckets, whose bounds are 10 us, 30 us, 100 us and so on."

// distributions is the row of latencies per node, and per disk or other label.
func distributions() row {
	const off = "The probe is off, or nothing was measured in this time"
	and := func(more string) string { return ofNode + ", " + more }
	const (
		disks   = "nodeskoop_biolatency_seconds"
		sockets = "nodeskoop_socketlatency_seconds"
		stack   = "nodeskoop_kernellatency_seconds"
		devices = "nodeskoop_netiftxlatency_seconds"
		softirq = "nodeskoop_softirq_seconds"
	)
	return row{title: "Distributions of latencies (of the probes, biolatency alone is on by default)", closed: true, panels: []panel{
		heat("Block I/O: reads", disks, and(`operation="read"`), off),
		heat("Block I/O: writes and flushes", disks, and(`operation=~"write|flush"`), off),
		{title: "Block I/O by disk, 99th percentile", unit: duration, none: off, about: percentile,
			targets: []target{p99(disks, ofNode, "{{disk}} {{operation}}", "disk", "operation")}},
		heat("Received data until they are read", sockets, and(`direction="read"`), off),
		heat("Written data until they are sent", sockets, and(`direction="write"`), off),
		{title: "On the way, 99th percentile", unit: duration, none: off, about: percentile, targets: []target{
			p99(sockets, ofNode, "Sockets, {{direction}}", "direction"),
			p99(stack, ofNode, "Stack, {{direction}}", "direction"),
			p99(devices, ofNode, "Device, {{stage}}", "stage"),
			p99(softirq, ofNode, "{{vector}}, {{stage}}", "vector", "stage")}},
		heat("Stack: received packets", stack, and(`direction="rx"`), off),
		heat("Stack: sent packets", stack, and(`direction="tx"`), off),
		heat("Device: queueing discipline", devices, and(`stage="qdisc"`), off),
		heat("Device: driver", devices, and(`stage="driver"`), off),
		heat("Softirqs: delay", softirq, and(`stage="delay"`), off),
		heat("Softirqs: run", softirq, and(`stage="run"`), off),
	}}
}

// podDistributions is the row of latencies per pod, which probes keep on request.
func podDistributions() []panel {
	const off = "Needs histograms = \"pods\" in the probe's table of nodeskoop.toml"
	and := func(more string) string { return ofPod + ", " + more }
	return []panel{
		heat("Received data until they are read", "nodeskoop_socketlatency_seconds", and(`direction="read"`), off),
		heat("Written data until they are sent", "nodeskoop_socketlatency_seconds", and(`direction="write"`), off),
		{title: "Read late, 99th percentile by pod", unit: duration, none: off, about: percentile, links: lineToPod,
			targets: []target{p99("nodeskoop_socketlatency_seconds", and(`direction="read"`), perPod, "k8s_node", "k8s_namespace", "k8s_pod")}},
	}
}

// histogram returns the histogram that a name in a query belongs to; nil if there
// is none.
func histogram(name string) *catalog.Metric {
	if m := catalog.MetricBySeries(name); m != nil && m.Type == catalog.Histogram && m.Name != name {
		return m
	}
	return nil
}
