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
		Help: "label flows with their ports; otherwise sport and dport are 0, and all connections between two addresses are one flow",
	}, {
		Key: "devices", Default: []string{},
		Help: "count at the host's network devices with these names (* and ? match as in a shell) instead of at sockets; this includes forwarded packets",
	}, {
		Key: "max_series", Default: int64(1000),
		Help: "maximum number of flows written; nodeskoop_series_left_out counts the rest",
	}},
	Metrics: []Metric{{
		Name: "kubeskoop_flow_bytes", Type: Counter, Work: true, Scope: PerFlow, Labels: flowLabels,
		Help:   "Bytes sent per connection, IP headers included.",
		Kernel: "cgroup_skb egress, or tcx/clsact egress of probes.flow.devices",
		Rises:  "A socket of the node or of a pod sends, or the kernel sends for it (acknowledgements, RST, ICMP). Bytes count from the IP header on, with the headers of every segment. Forwarded packets do not count. With probes.flow.devices, every packet that such a device transmits counts, forwarded ones included. IPv4 and IPv6. The destination of a connection to a service is the service's address if it is translated outside the sender's namespace (a pod on a node with kube-proxy), and the backend's address if it is translated inside (a client in the host's network). Packets from the backend always carry the backend's address.",
	}, {
		Name: "kubeskoop_flow_packets", Type: Counter, Work: true, Scope: PerFlow, Labels: flowLabels,
		Help:   "Packets sent per connection, the segments of a GSO packet one by one.",
		Kernel: "cgroup_skb egress, or tcx/clsact egress of probes.flow.devices",
		Rises:  "As flow_bytes. The segments of a GSO packet, TCP or UDP, count one by one. A datagram larger than the MTU counts as one packet; with probes.flow.devices each of its fragments counts, and only the first fragment has ports.",
	}},
}
