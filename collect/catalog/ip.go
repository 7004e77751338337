package catalog

var ip = Probe{
	Name:   "ip",
	Title:  "IP counters of the extended MIB",
	Rank:   3,
	Source: Procfs, Overhead: "low", Measured: "44 us/namespace", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_ip_innoroutes", Type: Counter, Scope: PerNetns, Field: "IpExt.InNoRoutes",
		Help:   "IPv4 packets received for which no route was found.",
		Kernel: "netstat IpExt InNoRoutes; ip_error()",
		Rises:  "A packet arrives and no route matches its destination (network unreachable). IPv4.",
	}, {
		Name: "kubeskoop_ip_intruncatedpkts", Type: Counter, Scope: PerNetns, Field: "IpExt.InTruncatedPkts",
		Help:   "IPv4 packets received that were shorter than their header said.",
		Kernel: "netstat IpExt InTruncatedPkts; ip_rcv_core()",
		Rises:  "A frame is shorter than the length in its IP header: a broken sender, driver or tunnel. IPv4.",
	}},
}
