package catalog

var fd = Probe{
	Name:   "fd",
	Title:  "open file and socket descriptors of processes",
	Rank:   10,
	Source: Procfs, Overhead: "medium", Measured: "3 to 10 us/process", Default: true,
	Cost:         "Reads /proc once per cycle for every process: with tcpsummary the most expensive probe outside eBPF; adds nothing to the packet path.",
	Capabilities: []Capability{CapDACReadSearch},
	Metrics: []Metric{{
		Name: "kubeskoop_fdopenfd", Type: Gauge, Recorded: true, Scope: PerPod,
		Help:   "Open file descriptors of all processes.",
		Kernel: "the entries of /proc/PID/fd",
		Rises:  "Follows open files, sockets, pipes. A steady climb is a leak; the limit is RLIMIT_NOFILE of each process.",
	}, {
		Name: "kubeskoop_fd_opensocket", Type: Gauge, Scope: PerPod,
		Help:   "Open file descriptors of all processes that are sockets.",
		Kernel: "the entries of /proc/PID/fd that are sockets",
		Rises:  "Follows open sockets, including those in CLOSE_WAIT that the application never closed.",
	}, {
		Name: "kubeskoop_fd_openfd", Type: Gauge, Scope: PerPod, Alias: "kubeskoop_fdopenfd", Extra: true,
		Help: "Open file descriptors of all processes. The same series as kubeskoop_fdopenfd, under the name that dashboards use.",
	}},
}
