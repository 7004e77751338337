package docs

// Example is a command line and its purpose.
type Example struct{ Line, Does string }

// examples are the examples of each command, for its help and the manual page. A
// line fits 80 columns and runs only nodeskoop, possibly with a shell redirection
// or pipe.
var examples = map[string][]Example{
	"run": {
		{"nodeskoop run --foreground-events", "try the daemon in the foreground, with events; Ctrl-C ends it"},
		{"nodeskoop run --config /tmp/try.toml --log-level debug", "try a configuration before it is installed"},
	},
	"collect": {
		{"nodeskoop collect -o /var/lib/prometheus/node-exporter/", "one sample for node_exporter, from cron"},
		{"nodeskoop collect --probe tcp,udp,netdev", "print the current values of three probes"},
		{"nodeskoop collect --duration 10s --events", "let the eBPF probes watch for ten seconds, and send events to the journal"},
	},
	"events": {
		{"nodeskoop events", "watch all events"},
		{"nodeskoop events --pod shop/client-0", "watch the events of one pod, at either end"},
		{"nodeskoop events --event PacketLoss --event TCPRetrans", "watch lost and retransmitted packets"},
		{"nodeskoop events --since 03:00 --until 04:00", "print the events of the journal between three and four"},
		{"nodeskoop events --json --all > events.json", "write every event as JSON"},
	},
	"diagnose": {
		{"nodeskoop diagnose", "name the causes of trouble, and what to look at next"},
		{"nodeskoop diagnose --pod shop/web-0 --for 30s", "look at one pod, for longer"},
		{"nodeskoop diagnose --json", "print the findings as JSON"},
	},
	"report": {
		{"nodeskoop report", "what happened in the last hour"},
		{"nodeskoop report --since 03:00 --until 04:00 --pod shop/client-0", "what happened to one pod between three and four"},
		{"nodeskoop report --since yesterday --until today --html day.html", "a page about yesterday, to attach to an incident"},
	},
	"history": {
		{"nodeskoop history", "which counters moved in each minute of the last hour"},
		{"nodeskoop history --pod shop/client-0 --since 03:00 --until 04:00", "one pod's counters between three and four o'clock"},
	},
	"top": {
		{"nodeskoop top", "the live table"},
		{"nodeskoop top --sort retransmits --filter shop/", "one namespace, the pods with most retransmissions first"},
		{"nodeskoop top --at 03:14", "the table of a minute of last night"},
		{"nodeskoop top --once --json", "one sample for a program"},
		{"nodeskoop top --probe packetloss,tcpretrans,tcpreset,netdev", "without the probes that run for every packet"},
	},
	"probes": {
		{"nodeskoop probes", "what works on this kernel"},
		{"nodeskoop probes --json", "the same as JSON, with the kernel's answers"},
	},
	"pods": {
		{"nodeskoop pods", "list the known pods and their addresses"},
		{"nodeskoop pods --wait 1m", "the same soon after boot, when containerd may not run yet"},
	},
	"check": {
		{"nodeskoop check", "does it work here, and how to fix what does not"},
		{"nodeskoop check --problems", "only the problems"},
		{"nodeskoop check --config /tmp/try.toml", "would it work with this configuration"},
	},
	"config": {
		{"nodeskoop config", "the effective configuration, and which file set each key"},
		{"nodeskoop config --check", "only validate the configuration"},
		{"nodeskoop config --default > nodeskoop.toml", "start from the shipped file"},
	},
	"docs": {
		{"nodeskoop docs metrics", "what each metric means, and when it rises"},
		{"nodeskoop docs bash > /etc/bash_completion.d/nodeskoop", "install completion without a package"},
	},
	"help": {
		{"nodeskoop help events", "the same as nodeskoop events --help"},
	},
}
