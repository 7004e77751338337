package catalog

import "time"

var virtcmdlatency = Probe{
	Name:   "virtcmdlatency",
	Title:  "duration of virtio-net control commands",
	Rank:   21,
	Source: EBPF, Overhead: "high", Measured: "not measured", Escalate: true,
	Cost:         "Runs only for control commands, which a running machine hardly ever sends.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options:      []Option{slowOption},
	Metrics: []Metric{{
		Name: "kubeskoop_virtcmdlatency_latency100ms", Type: Counter, Scope: PerHost,
		Help:   "virtio-net control commands that took over 100 ms.",
		Kernel: "virtnet_send_command() entry to return",
		Rises:  "As virtcmdlatency_latency, for over 100 ms.",
	}, {
		Name: "kubeskoop_virtcmdlatency_latency", Type: Counter, Scope: PerHost,
		Help:   "virtio-net control commands that took over 10 ms, those over 100 ms included.",
		Kernel: "virtnet_send_command() entry to return",
		Rises:  "The hypervisor takes over 10 ms to answer a virtio-net control command; the guest's CPU spins meanwhile.",
	}},
	Events: []EventType{{
		Name: "VIRTCMDEXCUTE", Path: "virtnet_send_command entry -> return", Threshold: 10 * time.Millisecond, Warn: Warn{Count: 20, Latency: time.Second},
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency},
		MessageID: "f3194a3b381e53e7952c466e473a1797",
		Summary:   "A virtio-net control command was slow",
		Message:   "virtio-net command took {latency}",
		Explain: "A command to the control queue of a virtio-net card took over 10 ms. The driver busy-waits for the answer, so CPU KUBESKOOP_CPU did nothing else meanwhile, and packets on that CPU waited.\n\n" +
			"The hypervisor answers these commands: it was overloaded, or did not run the thread of the device. Commands come from changes to the card: multicast addresses, VLANs, promiscuous mode, queues, link announcements after a migration. Tools that often poll or set these cause many commands.",
		Next: []Step{
			{"ps -fp PID", "with KUBESKOOP_PID: the process that sent the command"},
			stepSteal,
			{"ip monitor link", "changes of interfaces as they happen"},
		},
	}},
}
