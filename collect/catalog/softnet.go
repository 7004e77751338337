package catalog

var softnet = Probe{
	Name:   "softnet",
	Title:  "packets through the receive path of each CPU",
	Rank:   6,
	Source: Procfs, Overhead: "low", Measured: "under 1 ms/cycle", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_softnet_processed", Type: Counter, Work: true, Scope: PerHost,
		Help:   "Packets taken from the CPUs' receive queues (softnet_stat column 1, over all CPUs).",
		Kernel: "softnet_stat column 1; __netif_receive_skb_core()",
		Rises:  "A CPU passes a packet to the network stack; a packet that crosses a veth counts again.",
	}, {
		Name: "kubeskoop_softnet_dropped", Type: Counter, Scope: PerHost,
		Help:   "Packets dropped because a CPU's backlog queue was full, see net.core.netdev_max_backlog (softnet_stat column 2, over all CPUs).",
		Kernel: "softnet_stat column 2; enqueue_to_backlog()",
		Rises:  "The backlog queue of a CPU (RPS, veth, loopback, tunnels) is full: the CPU is too busy to empty it, or a bridge floods more ports at once than the queue holds. packetloss shows whether these packets are losses. Drops in a NIC's ring count elsewhere (netdev rxdropped, ethtool -S).",
	}},
}
