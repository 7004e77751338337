package catalog

import "time"

var netiftxlatency = Probe{
	Name: "netiftxlatency", Aliases: []string{"netiftxlat"},
	Title:  "time of sent packets in the qdisc and the driver",
	Rank:   17,
	Source: EBPF, Overhead: "high", Measured: "10 to 52 ns/step", Escalate: true,
	Cost:         "Runs for each packet sent: 52 and 50 ns at the driver, and 10 ns at the qdisc where the device has none.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options:      []Option{histogramsOption},
	Metrics: []Metric{{
		Name: "kubeskoop_netiftxlat_qdiscslow100ms", Type: Counter, Scope: PerNetns,
		Help:   "Packets that left the queueing discipline over 100 ms after their data entered it; if a GSO packet is segmented there, each segment counts.",
		Kernel: "net:net_dev_queue to net:net_dev_start_xmit",
		Rises:  "A rate limit or a full device holds a packet in the queue for over 100 ms. The unit is the packet that the driver gets: a GSO packet counts once if the driver takes it whole, and once per segment if tbf, cake, taprio or netem segments it, or the kernel does for a device without TSO. Some packets are not counted, because the kernel keeps no queueing time for them: segments of a UDP GSO packet that GRO merged or whose data are no page fragments (a device without scatter-gather, a virtual machine's packet, segments of up to about 100 bytes); segments of forwarded SCTP; copies by netem's `duplicate`; packets whose departure time the qdisc changes (etf in deadline mode, taprio with txtime-assist, fq beyond its horizon).",
	}, {
		Name: "kubeskoop_netiftxlat_netdevslow100ms", Type: Counter, Scope: PerNetns,
		Help:   "Packets that the network driver took over 100 ms to accept.",
		Kernel: "net:net_dev_start_xmit to net:net_dev_xmit",
		Rises:  "The CPU is inside the driver, or taken away from it, for over 100 ms.",
	}, latency("nodeskoop_netiftxlatency_seconds", []string{"stage"},
		"Time of sent packets in the queueing discipline and in the driver, by stage.",
		"net:net_dev_queue to net:net_dev_start_xmit (stage qdisc), and from there to net:net_dev_xmit (stage driver)",
		"Each packet that a driver gets counts in driver, and, if its device has a queueing discipline, in qdisc. A packet that the driver returns waits again: it counts once in qdisc, when the driver takes it, and each time in driver."+perPods)},
	Events: []EventType{{
		Name: "TXLAT_QDISC_100MS", Path: "net_dev_queue -> net_dev_start_xmit", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 100},
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldIfname},
		MessageID: "3ceaaf308142c8ea91d93080f9b439fc",
		Summary:   "A packet waited over 100 ms in the queueing discipline before the driver got it",
		Message:   "packet{ends} waited {latency} in the qdisc",
		Explain: "A packet waited over 100 ms in the queue of an interface (KUBESKOOP_IFNAME) before the driver got it: the node sends more than the interface takes.\n\n" +
			"Usually traffic is shaped (a tbf, htb or fq rate, the bandwidth plugin of a pod), one bulk transfer fills a long FIFO, or the driver stopped the queue because the card is full.",
		Next: []Step{
			stepQdisc,
			{"nsenter -t PID -n ip -s link show", "packets, drops and carrier changes of the interfaces"},
			{"nodeskoop events --event TXLAT_QDISC_100MS", "whether all packets wait, or only those of one connection"},
		},
	}, {
		Name: "TXLAT_NETDEV_100MS", Path: "net_dev_start_xmit -> net_dev_xmit", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 20},
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldIfname},
		MessageID: "9dfb369bab13dfae627655daa05f1119",
		Summary:   "The network driver took over 100 ms to accept a packet",
		Message:   "network driver took {latency} to accept a packet{ends}",
		Explain: "The driver of an interface (KUBESKOOP_IFNAME) took over 100 ms to accept one packet. The packet did not wait in a queue: the driver held the CPU all that time, or the hypervisor took the CPU away.\n\n" +
			"On a virtual machine the hypervisor did not run this CPU, or the host's side of virtio was slow. On hardware the driver waited for a lock, a register or a reset. On a tunnel or veth the time includes everything behind the device.",
		Next: []Step{
			stepSteal,
			{"ethtool -S DEVICE", "the driver's own counters: ring full, timeouts, resets"},
			stepKernel,
		},
	}},
}
