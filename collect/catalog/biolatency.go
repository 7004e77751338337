package catalog

import "time"

// What the events of block I/O carry.
var (
	biolatFields = []FieldGroup{FieldOperation, FieldProcess, FieldLatency, FieldPoints, FieldDisk}
	biolatExtra  = []FieldGroup{FieldOperation, FieldPoints}
	biolatPoints = []string{"queue", "device"}
)

const (
	biolatPointsKnown = "from Linux 6.5 on not of flushes, nor of writes that need one before or after them; on older kernels the queue is that of an I/O scheduler alone"

	biolatMessage = "{operation} took {latency}{points}"

	// biolatTold says which I/O is told.
	biolatTold = "There are events for I/O that somebody waits for: reads, synchronous writes (O_DIRECT, O_SYNC, fsync, the commit of a file system's journal) and flushes of a disk's cache. " +
		"What nobody waits for is counted (nodeskoop_events_ignored_total) and not told: writeback of the page cache, read-ahead unless the process that began it sleeps until it ends, discards and other commands. The option writeback of the probe brings these back. nodeskoop's own I/O is never told."

	biolatWhere = "KUBESKOOP_OPERATION says what was done and KUBESKOOP_BYTES to how much. KUBESKOOP_LATENCY_QUEUE_NS is the time until the driver took the request (the last time, if it gave the request back), KUBESKOOP_LATENCY_DEVICE_NS the time from there to the end. A long time in the queue means that more is asked of the disk than it does; a long time in the device, that the disk or the volume behind it is slow."
)

var biolatency = Probe{
	Name:   "biolatency",
	Title:  "latency of block I/O",
	Rank:   22,
	Source: EBPF, Overhead: "medium", Measured: "not measurable", Default: true,
	Cost:         "Runs at the start, the issue and the end of each block I/O, 0.2 to 1 us each time.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options: []Option{{
		Key: "slow", Default: 10 * time.Millisecond,
		Help: "the latency above which there is an event",
	}, {
		Key: "writeback", Default: false,
		Help: "events of I/O that nobody waits for, too: writeback of the page cache, read-ahead, discards",
	}, nodeHistogramsOption},
	Metrics: []Metric{latency("nodeskoop_biolatency_seconds", []string{"disk", "operation"},
		"Time of block I/O from its start to its end, by disk and operation.",
		"block_io_start to block_io_done; before Linux 6.5 block_rq_insert or block_rq_issue to block_rq_complete",
		"Each I/O counts at its end, whether or not somebody waits for it, that of nodeskoop included. `operation` is read, write, flush, discard or other; requests that the kernel merges are one. A disk's series appear with its first I/O. Devices that pass I/O on without requests of their own (most of dm and md) have none: the disks below them count. What finds no room (over 512 disks and operations) has an empty `disk`.")},
	Events: []EventType{{
		Name: "BIOLAT_10MS", Path: "block I/O start -> done", Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Warn: Warn{Count: 1000},
		Fields: biolatFields, Extra: biolatExtra, Points: biolatPoints, PointsKnown: biolatPointsKnown,
		MessageID: "6301bbfca0c5154e0ff9bb510944fe0c",
		Summary:   "A block I/O took over 10 ms",
		Message:   biolatMessage,
		Explain: "Somebody waited over 10 ms for the disk KUBESKOOP_DISK. KUBESKOOP_COMM is the process that started the I/O. " + biolatWhere + "\n\n" +
			biolatTold + "\n\n" +
			"On a spinning disk this is normal. On an SSD or a cloud volume the queue is long, another one uses the same device, or the volume is at its limit of operations per second.",
		Next: []Step{
			stepDisk,
			{"pidstat -d 1", "which processes read and write"},
		},
	}, {
		Name: "BIOLAT_100MS", Path: "block I/O start -> done", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 50, Latency: 5 * time.Second},
		Fields: biolatFields, Extra: biolatExtra, Points: biolatPoints, PointsKnown: biolatPointsKnown,
		MessageID: "6fced11d2bd8a1e6047a8387cdde8d51",
		Summary:   "A block I/O took over 100 ms",
		Message:   biolatMessage,
		Explain: "Somebody waited over 100 ms for the disk KUBESKOOP_DISK: a database in its commit, etcd in its heartbeat, kubelet, a process that is paged in. KUBESKOOP_COMM is the process that started the I/O. " + biolatWhere + "\n\n" +
			biolatTold + "\n\n" +
			"Usually the volume is throttled by its provider or by a limit of a cgroup (io.max), its queue is full of somebody's bulk writes, or the device fails and repeats.",
		Next: []Step{
			stepDisk,
			{"pidstat -d 1", "which processes read and write"},
			stepKernel,
			{"smartctl -a /dev/DISK", "errors that the device itself counts"},
		},
	}},
}
