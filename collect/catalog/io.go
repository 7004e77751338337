package catalog

var io = Probe{
	Name:   "io",
	Title:  "system calls and storage I/O of processes",
	Rank:   9,
	Source: Procfs, Overhead: "low", Measured: "1 to 4 us/process", Default: true,
	Cost: "Reads /proc once per cycle for every process: with tcpsummary the most expensive probe outside eBPF; adds nothing to the packet path.",
	Metrics: []Metric{{
		Name: "kubeskoop_io_ioreadsyscall", Type: Counter, Work: true, Scope: PerPod, Field: "syscr",
		Help:   "read()-like system calls of all processes (syscr); counts of exited processes included.",
		Kernel: "/proc/PID/io syscr; vfs_read() and its kin",
		Rises:  "A process calls read(), readv(), pread() or sendfile() on anything. recv() and mmap do not count.",
	}, {
		Name: "kubeskoop_io_iowritesyscall", Type: Counter, Work: true, Scope: PerPod, Field: "syscw",
		Help:   "write()-like system calls of all processes (syscw); counts of exited processes included.",
		Kernel: "/proc/PID/io syscw; vfs_write() and its kin",
		Rises:  "A process calls write() or the like on anything. send() and mmap do not count.",
	}, {
		Name: "kubeskoop_io_ioreadbytes", Type: Counter, Work: true, Scope: PerPod, Field: "read_bytes",
		Help:   "Bytes that all processes caused to be read from storage, without page cache hits (read_bytes); counts of exited processes included.",
		Kernel: "/proc/PID/io read_bytes; task_io_account_read()",
		Rises:  "Data that are not in the page cache are read from storage, read-ahead included.",
	}, {
		Name: "kubeskoop_io_iowritebytes", Type: Counter, Work: true, Scope: PerPod, Field: "write_bytes",
		Help:   "Bytes that all processes sent towards storage (write_bytes); counts of exited processes included.",
		Kernel: "/proc/PID/io write_bytes; task_io_account_write()",
		Rises:  "A process dirties pages of the page cache, or writes with O_DIRECT. Bytes count when the process writes, not when the disk does; data truncated before writeback stay counted.",
	}, {
		Name: "kubeskoop_io_readsyscall", Type: Counter, Work: true, Scope: PerPod, Alias: "kubeskoop_io_ioreadsyscall", Extra: true,
		Help: "read()-like system calls of all processes. The same series as kubeskoop_io_ioreadsyscall, under the name that dashboards use.",
	}, {
		Name: "kubeskoop_io_writesyscall", Type: Counter, Work: true, Scope: PerPod, Alias: "kubeskoop_io_iowritesyscall", Extra: true,
		Help: "write()-like system calls of all processes. The same series as kubeskoop_io_iowritesyscall, under the name that dashboards use.",
	}, {
		Name: "kubeskoop_io_readbytes", Type: Counter, Work: true, Scope: PerPod, Alias: "kubeskoop_io_ioreadbytes", Extra: true,
		Help: "Bytes that all processes caused to be read from storage. The same series as kubeskoop_io_ioreadbytes, under the name that dashboards use.",
	}, {
		Name: "kubeskoop_io_writebytes", Type: Counter, Work: true, Scope: PerPod, Alias: "kubeskoop_io_iowritebytes", Extra: true,
		Help: "Bytes that all processes sent towards storage. The same series as kubeskoop_io_iowritebytes, under the name that dashboards use.",
	}},
}
