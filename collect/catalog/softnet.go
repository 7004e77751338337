package catalog

var softnet = Probe{
	Name:   "softnet",
	Title:  "packets through the receive path of each CPU",
	Rank:   6,
	Source: Procfs, Overhead: "low", Measured: "under 1 ms/cycle", Default: true,
	Cost: "Reads the kernel's own counters once a cycle; nothing on the way of packets.",
	Metrics: []Metric{{
		Name: "kubeskoop_softnet_processed", Type: Counter, Work: true, Scope: PerHost,
		Help:   "Packets taken from the CPUs' receive queues (softnet_stat column 1, over all CPUs).",
		Kernel: "softnet_stat column 1; __netif_receive_skb_core()",
		Rises:  "A CPU takes a packet into the stack; one that crosses a veth counts again.",
	}, {
		Name: "kubeskoop_softnet_dropped", Type: Counter, Scope: PerHost,
		Help:   "Packets dropped because a CPU's backlog queue was full, see net.core.netdev_max_backlog (softnet_stat column 2, over all CPUs).",
		Kernel: "softnet_stat column 2; enqueue_to_backlog()",
		Rises:  "The backlog queue of a CPU (RPS, veth, loopback, tunnels) is full: the CPU is too busy to empty it, or a bridge floods more ports at once than the queue holds. Whether anybody misses the packets, packetloss tells. A NIC's own ring drops elsewhere (netdev rxdropped, ethtool -S).",
	}},
}
