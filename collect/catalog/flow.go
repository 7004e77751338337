package catalog

// The ends of a flow.
var flowLabels = []string{
	"protocol", "src", "src_type", "src_node", "src_namespace", "src_pod",
	"dst", "dst_type", "dst_node", "dst_namespace", "dst_pod", "sport", "dport",
}

var flow = Probe{
	Name:   "flow",
	Title:  "traffic per connection",
	Rank:   23,
	Source: EBPF, Overhead: "medium", Measured: "162 ns/packet sent",
	Cost:         "Runs for each packet sent: 162 ns.",
	Capabilities: []Capability{CapNetAdmin, CapBPF, CapPerfmon},
	Options: []Option{{
		Key: "ports", Default: false,
		Help: "label flows with their ports; otherwise sport and dport are 0, and all connections of two addresses are one flow",
	}, {
		Key: "devices", Default: []string{},
		Help: "count what the host's network devices with these names transmit (* and ? match as in a shell), forwarded packets too, in place of what sockets send",
	}, {
		Key: "max_series", Default: int64(1000),
		Help: "most flows written; the rest is counted in nodeskoop_series_left_out",
	}},
	Metrics: []Metric{{
		Name: "kubeskoop_flow_bytes", Type: Counter, Work: true, Scope: PerFlow, Labels: flowLabels,
		Help:   "Bytes sent per connection, IP headers included.",
		Kernel: "cgroup_skb egress, or tcx/clsact egress of probes.flow.devices",
		Rises:  "A socket of the node or of a pod sends, or the kernel for it (acknowledgements, RST, ICMP): bytes from the IP header on, the headers of each segment included. What is only forwarded does not count. With probes.flow.devices such a device transmits, forwarded packets too. IPv4 and IPv6. A connection to a service has the service's address where the translation is outside of the sender's namespace (a pod whose node runs kube-proxy), and the backend's where it is inside (a client in the host's network); the backend's end has the backend's.",
	}, {
		Name: "kubeskoop_flow_packets", Type: Counter, Work: true, Scope: PerFlow, Labels: flowLabels,
		Help:   "Packets sent per connection, the segments of a GSO packet one by one.",
		Kernel: "cgroup_skb egress, or tcx/clsact egress of probes.flow.devices",
		Rises:  "The same. The segments of a GSO packet, TCP or UDP, count one by one. A datagram that does not fit the MTU is one packet of its socket, and with probes.flow.devices as many as it has fragments, of which only the first has ports.",
	}},
}
