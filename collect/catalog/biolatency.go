package catalog

import "time"

// The fields that events of block I/O carry.
var (
	biolatFields = []FieldGroup{FieldOperation, FieldProcess, FieldLatency, FieldPoints, FieldDisk}
	biolatExtra  = []FieldGroup{FieldOperation, FieldPoints}
	biolatPoints = []string{"queue", "device"}
)

const (
	biolatPointsKnown = "except, since Linux 6.5, for flushes and for writes with a flush before or after them; before 6.5, queue covers an I/O scheduler's queue only"

	biolatMessage = "{operation} took {latency}{points}"

	// biolatTold explains which I/O becomes an event.
	biolatTold = "Only I/O that a process waits for becomes an event: reads, synchronous writes (O_DIRECT, O_SYNC, fsync, commits of a file system's journal) and flushes of the disk's cache. " +
		"Other I/O only counts in nodeskoop_events_ignored_total: writeback of the page cache, read-ahead (unless the process that started it sleeps until it ends), discards and other commands. The probe's option writeback turns events on for these too. nodeskoop's own I/O never becomes an event."

	biolatWhere = "KUBESKOOP_OPERATION is the operation and KUBESKOOP_BYTES its size. KUBESKOOP_LATENCY_QUEUE_NS is the time until the driver took the request (for the last time, if the driver requeued it); KUBESKOOP_LATENCY_DEVICE_NS is the time from there to completion. A long queue time means that processes ask for more than the disk can do; a long device time means that the disk or the volume behind it is slow."
)

var biolatency = Probe{
	Name:   "biolatency",
	Title:  "latency of block I/O",
	Rank:   22,
	Source: EBPF, Overhead: "medium", Measured: "not measurable", Default: true,
	Cost:         "Runs when each block I/O is queued, issued and completed, 0.2 to 1 us each time.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options: []Option{{
		Key: "slow", Default: 10 * time.Millisecond,
		Help: "the latency above which an event is sent",
	}, {
		Key: "writeback", Default: false,
		Help: "also events of I/O that no process waits for: writeback of the page cache, read-ahead, discards",
	}, nodeHistogramsOption},
	Metrics: []Metric{latency("nodeskoop_biolatency_seconds", []string{"disk", "operation"},
		"Time of block I/O from its start to its end, by disk and operation.",
		"block_io_start to block_io_done; before Linux 6.5 block_rq_insert or block_rq_issue to block_rq_complete",
		"Each I/O counts at its end, whether or not a process waits for it, including nodeskoop's own. `operation` is read, write, flush, discard or other; requests that the kernel merges are one. A disk's series appear with its first I/O. Devices that pass I/O on without requests of their own (most of dm and md) have none: the disks below them count. I/O that finds no room (over 512 disks and operations) has an empty `disk`.")},
	Events: []EventType{{
		Name: "BIOLAT_10MS", Path: "block I/O start -> done", Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Warn: Warn{Count: 1000},
		Fields: biolatFields, Extra: biolatExtra, Points: biolatPoints, PointsKnown: biolatPointsKnown,
		MessageID: "6301bbfca0c5154e0ff9bb510944fe0c",
		Summary:   "A block I/O took over 10 ms",
		Message:   biolatMessage,
		Explain: "A process waited over 10 ms for the disk KUBESKOOP_DISK. KUBESKOOP_COMM is the process that started the I/O. " + biolatWhere + "\n\n" +
			biolatTold + "\n\n" +
			"On a spinning disk this is normal. On an SSD or a cloud volume the queue is long, another machine uses the same device, or the volume is at its limit of operations per second.",
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
		Explain: "A process waited over 100 ms for the disk KUBESKOOP_DISK: a database in a commit, etcd in a heartbeat, kubelet, a process that is being paged in. KUBESKOOP_COMM is the process that started the I/O. " + biolatWhere + "\n\n" +
			biolatTold + "\n\n" +
			"Usually the provider or a cgroup limit (io.max) throttles the volume, another process's bulk writes fill its queue, or the device fails and retries.",
		Next: []Step{
			stepDisk,
			{"pidstat -d 1", "which processes read and write"},
			stepKernel,
			{"smartctl -a /dev/DISK", "errors that the device itself counts"},
		},
	}},
}
