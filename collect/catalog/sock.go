package catalog

var sock = Probe{
	Name:   "sock",
	Title:  "TCP socket and memory use",
	Rank:   5,
	Source: Procfs, Overhead: "low", Measured: "44 us/namespace", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_sock_inuse", Type: Gauge, Scope: PerNetns, Field: "inuse",
		Help:   "TCP sockets in use, IPv4 and IPv6 together (sockstat inuse).",
		Kernel: "sockstat TCP inuse + sockstat6 TCP6 inuse; sock_prot_inuse_get()",
		Rises:  "Follows the TCP sockets of the namespace, including listening ones, without those in TIME_WAIT.",
	}, {
		Name: "kubeskoop_sock_orphan", Type: Gauge, Scope: PerNetns, Field: "orphan",
		Help:   "TCP sockets that no process holds open any more (sockstat orphan)." + nodeWide,
		Kernel: "sockstat TCP orphan; tcp_orphan_count_sum()",
		Rises:  "The application closed sockets whose data or FIN is not yet acknowledged, as when peers vanish.",
	}, {
		Name: "kubeskoop_sock_tw", Type: Gauge, Scope: PerNetns, Field: "tw",
		Help:   "TCP sockets in TIME_WAIT (sockstat tw).",
		Kernel: "sockstat TCP tw; tcp_death_row.tw_refcount",
		Rises:  "The end that closes first stays in TIME_WAIT for 60 s: many short connections.",
	}, {
		Name: "kubeskoop_sock_alloc", Type: Gauge, Scope: PerNetns, Field: "alloc",
		Help:   "TCP sockets allocated, in any state (sockstat alloc)." + nodeWide,
		Kernel: "sockstat TCP alloc; proto_sockets_allocated_sum_positive()",
		Rises:  "Follows all TCP sockets of the node, including closed ones with unread data.",
	}, {
		Name: "kubeskoop_sock_mem", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "mem",
		Help:   "Memory that TCP buffers take, in pages (sockstat mem)." + nodeWide,
		Kernel: "sockstat TCP mem; proto_memory_allocated()",
		Rises:  "Sockets hold unread or unacknowledged data. Compare with the three values of net.ipv4.tcp_mem, which are also in pages.",
	}},
}
