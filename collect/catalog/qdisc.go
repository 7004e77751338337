package catalog

var qdisc = Probe{
	Name:   "qdisc",
	Title:  "queueing disciplines at the root of interfaces",
	Rank:   12,
	Source: Netlink, Overhead: "low", Measured: "61 us/namespace", Default: true,
	Cost:         "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Capabilities: []Capability{CapSysAdmin},
	Metrics: []Metric{{
		Name: "kubeskoop_qdisc_bytes", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Bytes sent through the root qdiscs of all interfaces except lo; counts of removed qdiscs included.",
		Kernel: "TCA_STATS2 basic; qdisc_bstats_update()",
		Rises:  "A root qdisc hands a packet on. Devices without a queue (veth, lo by default) have none.",
	}, {
		Name: "kubeskoop_qdisc_packets", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Packets sent through the root qdiscs of all interfaces except lo; counts of removed qdiscs included.",
		Kernel: "TCA_STATS2 basic; qdisc_bstats_update()",
		Rises:  "A root qdisc hands a packet on.",
	}, {
		Name: "kubeskoop_qdisc_drops", Type: Counter, Scope: PerNetns,
		Help:   "Packets dropped by the root qdiscs of all interfaces except lo; counts of removed qdiscs included.",
		Kernel: "TCA_STATS2 queue drops; qdisc_qstats_drop()",
		Rises:  "The queue of an interface is full, or a policy of the qdisc drops (CoDel, RED, tbf).",
	}, {
		Name: "kubeskoop_qdisc_qlen", Type: Gauge, Recorded: true, Scope: PerNetns,
		Help:   "Packets now queued in the root qdiscs of all interfaces except lo.",
		Kernel: "TCA_STATS2 queue qlen",
		Rises:  "Packets arrive faster than the device or the shaping rate allows.",
	}, {
		Name: "kubeskoop_qdisc_backlog", Type: Gauge, Recorded: true, Scope: PerNetns,
		Help:   "Bytes now queued in the root qdiscs of all interfaces except lo.",
		Kernel: "TCA_STATS2 queue backlog",
		Rises:  "As qdisc_qlen, in bytes.",
	}, {
		Name: "kubeskoop_qdisc_overlimits", Type: Counter, Scope: PerNetns,
		Help:   "Times that a root qdisc held back a packet for its rate limit, on all interfaces except lo; counts of removed qdiscs included.",
		Kernel: "TCA_STATS2 queue overlimits; qdisc_qstats_overlimit()",
		Rises:  "A packet has to wait for the configured rate (tbf, htb, the bandwidth plugin of a pod). Normal where traffic is shaped.",
	}},
}
