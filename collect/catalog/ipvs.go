package catalog

var ipvs = Probe{
	Name:   "ipvs",
	Title:  "IPVS totals",
	Rank:   8,
	Source: Procfs, Overhead: "low", Measured: "under 1 ms/cycle", Default: true,
	Cost:    "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Options: []Option{podsOption},
	Metrics: []Metric{{
		Name: "kubeskoop_ipvs_connections", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Connections scheduled by IPVS; 0 while ip_vs is not loaded.",
		Kernel: "ip_vs_stats conns; ip_vs_conn_stats()",
		Rises:  "IPVS picks a backend for a new connection.",
	}, {
		Name: "kubeskoop_ipvs_incomingpackets", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Packets that IPVS received for its virtual services; 0 while ip_vs is not loaded.",
		Kernel: "ip_vs_stats inpkts; ip_vs_in_stats()",
		Rises:  "A client's packet reaches a virtual service.",
	}, {
		Name: "kubeskoop_ipvs_outgoingbytes", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Bytes that IPVS sent back to clients; 0 while ip_vs is not loaded.",
		Kernel: "ip_vs_stats outbytes; ip_vs_out_stats()",
		Rises:  "A backend's reply passes through IPVS. With direct routing replies bypass it.",
	}, {
		Name: "kubeskoop_ipvs_incomingbytes", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Bytes that IPVS received for its virtual services; 0 while ip_vs is not loaded.",
		Kernel: "ip_vs_stats inbytes; ip_vs_in_stats()",
		Rises:  "A client's packet reaches a virtual service.",
	}, {
		Name: "kubeskoop_ipvs_outgoingpackets", Type: Counter, Work: true, Scope: PerNetns,
		Help:   "Packets that IPVS sent back to clients; 0 while ip_vs is not loaded.",
		Kernel: "ip_vs_stats outpkts; ip_vs_out_stats()",
		Rises:  "A backend's reply passes through IPVS. With direct routing replies bypass it.",
	}},
}
