package catalog

// The metrics of the tool's own beyond the contract's names. Those about itself
// carry the host's value in both pod labels, like everything node-wide; those
// with another scope than PerHost are a probe's and carry their pod's.
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
	Help: "Sampling cycles that were left out because the one before still ran.",
}, {
	Name: "nodeskoop_gap_seconds_total", Type: Counter, Scope: PerHost, Labels: []string{"reason"}, Extra: true,
	Help: "Seconds for which there are no samples, of gaps longer than three intervals and 15 s: the daemon was stopped, the machine rebooted or suspended, there was no_cpu for the daemon, it stood_still, or a cycle was slow. Kept over restarts; the log has a line for each gap.",
}, {
	Name: "nodeskoop_probe_up", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "1 if the probe gave all its values in the last cycle, 0 if any are missing. A probe that is not supported has no such series.",
}, {
	Name: "nodeskoop_probe_supported", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "1 if this machine can run the probe, 0 if the kernel lacks what it needs or a policy forbids it: then it has no other series, which is no failure.",
}, {
	Name: "nodeskoop_probe_duration_seconds", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "How long the probe ran in the last cycle, over all namespaces and pods.",
}, {
	Name: "nodeskoop_probe_failed_targets", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Namespaces or pods for which the probe gave no complete values in the last cycle.",
}, {
	Name: "nodeskoop_probe_protected_processes", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Processes that the probe left out because the kernel shows them to nobody, whatever the capabilities.",
}, {
	Name: "nodeskoop_probe_hook", Type: Gauge, Scope: PerHost, Labels: []string{"probe", "hook"}, Extra: true,
	Help: "Always 1; the label says by which kind of kernel hook the probe is attached.",
}, {
	Name: "nodeskoop_probe_no_room_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "What the probe counted as unknown because network namespaces that are no pod's have used up their room in the kernel's table; of flow, packets whose connection found no room and that are in no flow.",
}, {
	Name: "nodeskoop_events_seen_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that occurred: written, ignored, suppressed, lost and pending ones together.",
}, {
	Name: "nodeskoop_events_written_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events told: the sum of KUBESKOOP_COUNT, or 1 where there is none, over the entries that were handed over to journald.",
}, {
	Name: "nodeskoop_events_suppressed_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that a rate limit kept back, in the kernel or here.",
}, {
	Name: "nodeskoop_events_lost_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that were to be written and could not be: a full ring, a journald that did not take them, or a daemon that was killed before a window ended.",
}, {
	Name: "nodeskoop_events_ignored_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events of which nobody asked to hear: I/O that nobody waits for, and what a filter left out.",
}, {
	Name: "nodeskoop_events_pending", Type: Gauge, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Events that are merged until their window ends, or on their way to journald.",
}, {
	Name: "nodeskoop_event_entries_total", Type: Counter, Scope: PerHost, Labels: []string{"event"}, Extra: true,
	Help: "Entries that were handed over to journald since the start, each of one event or of many of one kind.",
}, {
	Name: "nodeskoop_tcpreset_total", Type: Counter, Scope: PerNetns, Labels: []string{"kind"}, Extra: true,
	Help:   "TCP resets by kind: sent without a socket (nosock), sent to end a connection (active), sent by a socket in answer to a segment (process), received (receive).",
	Kernel: "tracepoints tcp:tcp_send_reset, tcp:tcp_receive_reset; tcp_v4_send_reset(), tcp_check_req(), tcp_timewait_state_process()",
	Rises:  "Counts every reset that TCP sends or obeys, whatever becomes of its event: those that end a request (SYN_RECV) or a socket in TIME_WAIT, too. A RST for a closed port, one that is out of the window, and one that a firewall sends do not count. Where functions cannot be hooked, a RST inside the window of a request whose number is not the expected one counts, although newer kernels (7.x) answer it with a challenge ACK.",
}, {
	Name: "nodeskoop_bpf_run_seconds_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Time that the BPF programs of the probe ran; only while the sysctl kernel.bpf_stats_enabled is 1.",
}, {
	Name: "nodeskoop_bpf_runs_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Runs of the BPF programs of the probe; only while the sysctl kernel.bpf_stats_enabled is 1.",
}, {
	Name: "nodeskoop_bpf_missed_total", Type: Counter, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
	Help: "Runs of the probe's BPF programs that the kernel left out because the program was running on that CPU already: what they would have counted is missing.",
}, {
	Name: "nodeskoop_pods", Type: Gauge, Recorded: true, Scope: PerHost, Extra: true,
	Help: "Pods (and containers outside pods) known to run on this node.",
}, {
	Name: "nodeskoop_containerd_up", Type: Gauge, Recorded: true, Scope: PerHost, Extra: true,
	Help: "1 while containerd answers, else 0: pods that start meanwhile are not named.",
}, {
	Name: "nodeskoop_series", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Series written in the last cycle, without those about nodeskoop itself.",
}, {
	Name: "nodeskoop_series_left_out", Type: Gauge, Recorded: true, Scope: PerHost, Labels: []string{"family"}, Extra: true,
	Help: "Series that a cap kept out of the last cycle, by metric family.",
}, {
	Name: "nodeskoop_textfile_bytes", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Size of the textfile that was written before this one.",
}, {
	Name: "nodeskoop_textfile_write_failures_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Writes of the textfile that failed; the file before was kept.",
}, {
	Name: "nodeskoop_textfile_series_dropped_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Series kept out of the textfile because node_exporter would have refused the whole file; the log names them.",
}, {
	Name: "nodeskoop_history_bytes", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Space that the history takes on the disk; missing until the first minute is written.",
}, {
	Name: "nodeskoop_history_oldest_timestamp_seconds", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "When the oldest file of the history begins, in seconds since 1970; missing until the first minute is written.",
}, {
	Name: "nodeskoop_history_frames_written_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Frames, of a minute each, that were appended to the history since the start.",
}, {
	Name: "nodeskoop_history_frames_lost_total", Type: Counter, Scope: PerHost, Extra: true,
	Help: "Frames, of a minute each, that are missing in the history because the disk was full, read-only, hanging or in another process's use.",
}, {
	Name: "nodeskoop_history_series_left_out", Type: Gauge, Scope: PerHost, Extra: true,
	Help: "Series of the last cycle that the history has no room for: it follows 65,536 at most.",
}}
