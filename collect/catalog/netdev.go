package catalog

var netdev = Probe{
	Name:   "netdev",
	Title:  "interface counters",
	Rank:   7,
	Source: Procfs, Overhead: "low", Measured: "34 us/namespace", Default: true,
	Cost: "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_netdev_rxbytes", Type: Counter, Work: true, Scope: PerNetns, Field: "rx.bytes",
		Help:   "Bytes received on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev receive bytes; dev_get_stats()",
		Rises:  "Frames are received, link header included on most devices.",
	}, {
		Name: "kubeskoop_netdev_rxerrors", Type: Counter, Scope: PerNetns, Field: "rx.errs",
		Help:   "Packets received in error on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev receive errs; rx_errors",
		Rises:  "The device received damaged frames: cable, optics, duplex, a broken peer.",
	}, {
		Name: "kubeskoop_netdev_txbytes", Type: Counter, Work: true, Scope: PerNetns, Field: "tx.bytes",
		Help:   "Bytes sent on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev transmit bytes; dev_get_stats()",
		Rises:  "Frames are sent, link header included on most devices.",
	}, {
		Name: "kubeskoop_netdev_txerrors", Type: Counter, Scope: PerNetns, Field: "tx.errs",
		Help:   "Packets not sent because of an error on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev transmit errs; tx_errors",
		Rises:  "The device could not send: carrier lost, a tunnel without a route, a ring that stalled.",
	}, {
		Name: "kubeskoop_netdev_rxpackets", Type: Counter, Work: true, Scope: PerNetns, Field: "rx.packets",
		Help:   "Packets received on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev receive packets; dev_get_stats()",
		Rises:  "Frames are received on any interface.",
	}, {
		Name: "kubeskoop_netdev_rxdropped", Type: Counter, Scope: PerNetns, Field: "rx.drop",
		Help:   "Received packets dropped or missed by the device on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev receive drop; rx_dropped + rx_missed_errors",
		Rises:  "The device's ring was full (missed), or the stack discarded the frame: unknown protocol, unconfigured VLAN, full CPU backlog.",
	}, {
		Name: "kubeskoop_netdev_txpackets", Type: Counter, Work: true, Scope: PerNetns, Field: "tx.packets",
		Help:   "Packets sent on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev transmit packets; dev_get_stats()",
		Rises:  "Frames are sent on any interface.",
	}, {
		Name: "kubeskoop_netdev_txdropped", Type: Counter, Scope: PerNetns, Field: "tx.drop",
		Help:   "Packets dropped on the way out on all interfaces except lo; counts of removed interfaces included.",
		Kernel: "net/dev transmit drop; tx_dropped",
		Rises:  "The driver dropped the frame. Drops in the qdisc count in qdisc_drops.",
	}},
}
