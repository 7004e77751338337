package catalog

import "time"

var biolatency = Probe{
	Name:   "biolatency",
	Title:  "latency of block I/O",
	Rank:   22,
	Source: EBPF, Overhead: "medium", Default: true,
	Cost:         "Runs at the start and the end of each block I/O, 1 to 2 us each.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options: []Option{{
		Key: "slow", Default: 10 * time.Millisecond,
		Help: "the latency above which there is an event",
	}},
	Events: []EventType{{
		Name: "BIOLAT_10MS", Path: "block I/O start -> done", Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldProcess, FieldLatency, FieldDisk},
		MessageID: "6301bbfca0c5154e0ff9bb510944fe0c",
		Summary:   "A block I/O took over 10 ms",
		Message:   "block I/O took {latency}",
		Explain: "One read or write of the disk KUBESKOOP_DISK took over 10 ms. KUBESKOOP_COMM is the process that started it; for writes that is often a thread of the kernel that writes the page cache back.\n\n" +
			"On a spinning disk this is normal. On an SSD or a cloud volume the queue is long, another one uses the same device, or the volume is at its limit of operations per second.",
		Next: []Step{
			stepDisk,
			{"pidstat -d 1", "which processes read and write"},
		},
	}, {
		Name: "BIOLAT_100MS", Path: "block I/O start -> done", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 50, Latency: 5 * time.Second},
		Fields:    []FieldGroup{FieldProcess, FieldLatency, FieldDisk},
		MessageID: "6fced11d2bd8a1e6047a8387cdde8d51",
		Summary:   "A block I/O took over 100 ms",
		Message:   "block I/O took {latency}",
		Explain: "One read or write of the disk KUBESKOOP_DISK took over 100 ms. Whoever waits for it stands still: a database in its commit, etcd in its heartbeat, kubelet, a process that is paged in.\n\n" +
			"Usually the volume is throttled by its provider or by a limit of a cgroup (io.max), its queue is full of somebody's bulk writes, or the device fails and repeats.",
		Next: []Step{
			stepDisk,
			{"pidstat -d 1", "which processes read and write"},
			stepKernel,
			{"smartctl -a /dev/DISK", "errors that the device itself counts"},
		},
	}},
}
