package catalog

// selfMetrics are the metrics with the prefix nodeskoop_ that no probe file
// declares. Metrics of scope PerHost describe the tool and carry the host's value
// in both pod labels; metrics of any other scope carry the labels of their pod.
var selfMetrics = []Metric{{
	Name: "nodeskoop_build_info", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"version", "goversion"}, Extra: true,
	Help: "Always 1; the labels say which build wrote this file.",
}, {
	Name: "nodeskoop_last_cycle_timestamp_seconds", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "When the last complete sampling cycle began, in seconds since 1970.",
}, {
	Name: "nodeskoop_last_cycle_duration_seconds", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "How long the last complete sampling cycle took.",
}, {
	Name: "nodeskoop_cycles_missed_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Sampling cycles that were skipped because the previous one still ran.",
}, {
	Name: "nodeskoop_gap_seconds_total", Type: Counter, Scope: PerHost, Labels: []string{"reason"}, Extra: true,
	Help: "Seconds without samples, over gaps longer than three intervals and 15 s, by reason: stopped (the daemon did not run), rebooted, suspended (the machine), no_cpu (the daemon got no CPU), stood_still (the daemon was frozen), slow (a cycle took too long). Kept over restarts; the log has a line for each gap.",
}, {
	Name: "nodeskoop_probe_up", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "1 if the probe gave all its values in the last cycle, 0 if any are missing. Missing for a probe that this machine does not support, and for one of probes.escalate while it does not run.",
}, {
	Name: "nodeskoop_probe_escalated", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "1 while a probe of probes.escalate runs after a sign of a fault, else 0. At 0 the counters that the probe has written stand still. Missing for an enabled probe, which always runs.",
}, {
	Name: "nodeskoop_probe_supported", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "1 if this machine can run the probe, 0 if the kernel lacks a feature or a policy forbids it. At 0 the probe has no other series, which is not a failure.",
}, {
	Name: "nodeskoop_probe_duration_seconds", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "How long the probe ran in the last cycle, over all namespaces and pods.",
}, {
	Name: "nodeskoop_probe_failed_targets", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Namespaces or pods for which the probe gave no complete values in the last cycle.",
}, {
	Name: "nodeskoop_probe_protected_processes", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Processes that the probe skipped because the kernel hides them even from root.",
}, {
	Name: "nodeskoop_probe_hook", Type: Gauge, Scope: PerHost, Labels: []string{"probe", "hook"}, Extra: true,
	Help: "Always 1; the label hook is the kind of kernel hook that the probe uses.",
}, {
	Name: "nodeskoop_probe_no_room_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Occurrences that the probe counted as unknown because the table in the kernel had no room left for network namespaces outside pods. For flow: packets of connections that did not fit the table, which are in no flow.",
}, {
	Name: "nodeskoop_events_seen_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that occurred: written, ignored, suppressed, lost and pending ones together.",
}, {
	Name: "nodeskoop_events_written_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events in the entries that were handed to journald: the sum of KUBESKOOP_COUNT, or 1 for an entry without it.",
}, {
	Name: "nodeskoop_events_suppressed_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that a rate limit suppressed, in the kernel or in the daemon.",
}, {
	Name: "nodeskoop_events_lost_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that could not be written: the ring was full, journald did not accept them, or the daemon was killed before a merge window ended.",
}, {
	Name: "nodeskoop_events_ignored_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that are never written: I/O that no process waits for, and events that a filter excludes.",
}, {
	Name: "nodeskoop_events_pending", Type: Gauge, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that wait for the end of their merge window or are on their way to journald.",
}, {
	Name: "nodeskoop_event_entries_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Entries handed to journald since the start; an entry holds one event or several of one kind.",
}, {
	Name: "nodeskoop_tcpreset_total", Type: Counter, Scope: PerNetns, Labels: []string{"kind"}, Extra: true,
	Help:   "TCP resets by kind: sent without a socket (nosock), sent to end a connection (active), sent by a socket in answer to a segment (process), received (receive).",
	Kernel: "tracepoints tcp:tcp_send_reset, tcp:tcp_receive_reset; tcp_v4_send_reset(), tcp_check_req(), tcp_timewait_state_process()",
	Rises:  "TCP sends a RST, or obeys a received one, also for a request (SYN_RECV) or a socket in TIME_WAIT. Counts do not depend on events. A received RST for a closed port or outside the window, and a RST that a firewall sends, do not count. Where the kernel does not let BPF hook functions, a RST for a request counts if it is inside the window, even where newer kernels (7.x) answer it with a challenge ACK because its sequence number is not the expected one.",
}, {
	Name: "nodeskoop_bpf_run_seconds_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Run time of the probe's BPF programs; counted only while the sysctl kernel.bpf_stats_enabled is 1. What several probes run together at one tracepoint has the probe \"chains\".",
}, {
	Name: "nodeskoop_bpf_runs_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Runs of the probe's BPF programs; counted only while the sysctl kernel.bpf_stats_enabled is 1. What several probes run together at one tracepoint has the probe \"chains\".",
}, {
	Name: "nodeskoop_bpf_missed_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Runs of the probe's BPF programs that the kernel skipped because the program was already running on that CPU; their counts are missing.",
}, {
	Name: "nodeskoop_pods", Type: Gauge, Recorded: true, Scope: PerHost, Extra: true,
	Help: "Pods (and containers outside pods) known to run on this node.",
}, {
	Name: "nodeskoop_containerd_up", Type: Gauge, Recorded: true, Scope: PerHost, Extra: true,
	Help: "1 while containerd answers, else 0; pods that start while it is 0 get no name.",
}, {
	Name: "nodeskoop_series", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Series written in the last cycle, without those about nodeskoop itself.",
}, {
	Name: "nodeskoop_series_left_out", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"family"}, Extra: true,
	Help: "Series that a cap left out of the last cycle, by metric family.",
}, {
	Name: "nodeskoop_textfile_bytes", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Size of the previously written textfile.",
}, {
	Name: "nodeskoop_textfile_write_failures_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Failed writes of the textfile; the previous file was kept.",
}, {
	Name: "nodeskoop_textfile_series_dropped_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Series left out of the textfile because node_exporter would have refused the whole file; the log names them.",
}, {
	Name: "nodeskoop_history_bytes", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Disk space that the history uses; missing until the first minute is written.",
}, {
	Name: "nodeskoop_history_oldest_timestamp_seconds", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "When the oldest file of the history begins, in seconds since 1970; missing until the first minute is written.",
}, {
	Name: "nodeskoop_history_frames_written_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Frames of one minute each that were appended to the history since the start.",
}, {
	Name: "nodeskoop_history_frames_lost_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Frames of one minute each that the history lacks because the disk was full, read-only or hanging, or another process held the history.",
}, {
	Name: "nodeskoop_history_series_left_out", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Series of the last cycle that the history does not keep; it holds at most 65,536.",
}}
