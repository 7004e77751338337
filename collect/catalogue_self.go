package collect

// The tool's metrics about itself. Like everything node-wide they carry the
// host's value in both pod labels.
var selfMetrics = []Metric{
	{Name: "nodeskoop_build_info", Type: Gauge, Scope: PerHost, Labels: []string{"version", "goversion"}, Extra: true,
		Help: "Always 1; the labels say which build wrote this file."},
	{Name: "nodeskoop_last_cycle_timestamp_seconds", Type: Gauge, Scope: PerHost, Extra: true,
		Help: "When the last complete sampling cycle began, in seconds since 1970."},
	{Name: "nodeskoop_last_cycle_duration_seconds", Type: Gauge, Scope: PerHost, Extra: true,
		Help: "How long the last complete sampling cycle took."},
	{Name: "nodeskoop_cycles_missed_total", Type: Counter, Scope: PerHost, Extra: true,
		Help: "Sampling cycles that were left out because the one before still ran."},
	{Name: "nodeskoop_probe_up", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
		Help: "1 if the probe gave all its values in the last cycle, 0 if any are missing."},
	{Name: "nodeskoop_probe_duration_seconds", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
		Help: "How long the probe ran in the last cycle, over all namespaces and pods."},
	{Name: "nodeskoop_probe_failed_targets", Type: Gauge, Scope: PerHost, Labels: []string{"probe"}, Extra: true,
		Help: "Namespaces or pods for which the probe gave no complete values in the last cycle."},
	{Name: "nodeskoop_pods", Type: Gauge, Scope: PerHost, Extra: true,
		Help: "Pods (and containers outside pods) known to run on this node."},
	{Name: "nodeskoop_containerd_up", Type: Gauge, Scope: PerHost, Extra: true,
		Help: "1 while containerd answers, else 0: pods that start meanwhile are not named."},
	{Name: "nodeskoop_series", Type: Gauge, Scope: PerHost, Extra: true,
		Help: "Series written in the last cycle, without those about nodeskoop itself."},
	{Name: "nodeskoop_series_left_out", Type: Gauge, Scope: PerHost, Labels: []string{"family"}, Extra: true,
		Help: "Series that a cap kept out of the last cycle, by metric family."},
	{Name: "nodeskoop_textfile_bytes", Type: Gauge, Scope: PerHost, Extra: true,
		Help: "Size of the textfile that was written before this one."},
	{Name: "nodeskoop_textfile_write_failures_total", Type: Counter, Scope: PerHost, Extra: true,
		Help: "Writes of the textfile that failed; the file before was kept."},
}
