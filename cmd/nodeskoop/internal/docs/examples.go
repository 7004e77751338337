package docs

// Example is a command line and its purpose.
type Example struct{ Line, Does string }

// examples are the examples of each command, for its help and the manual page. A
// line fits 80 columns and runs only nodeskoop, possibly with a shell redirection
// or pipe.
var examples = map[string][]Example{
	"run": {
		{"nodeskoop run --foreground-events", "try the daemon in front of you, events included; Ctrl-C ends it"},
		{"nodeskoop run --config /tmp/try.toml --log-level debug", "try a configuration before it is installed"},
	},
	"collect": {
		{"nodeskoop collect -o /var/lib/prometheus/node-exporter/", "one sample for node_exporter, from cron"},
		{"nodeskoop collect --probe tcp,udp,netdev", "look at what three probes say now"},
		{"nodeskoop collect --duration 10s --events", "let the eBPF probes watch for ten seconds, and the journal have what they see"},
	},
	"events": {
		{"nodeskoop events", "watch all there is"},
		{"nodeskoop events --pod shop/client-0", "watch what concerns one pod, at either end"},
		{"nodeskoop events --event PacketLoss --event TCPRetrans", "watch for packets that get lost"},
		{"nodeskoop events --json --all > events.json", "keep each event for a program"},
	},
	"history": {
		{"nodeskoop history", "which counters moved in each minute of the last hour"},
		{"nodeskoop history --pod shop/client-0 --since 03:00 --until 04:00", "what moved of one pod between three and four"},
	},
	"top": {
		{"nodeskoop top", "the live table"},
		{"nodeskoop top --sort retransmits --filter shop/", "one namespace, the pods with most retransmissions first"},
		{"nodeskoop top --once --json", "one sample for a program"},
		{"nodeskoop top --probe packetloss,tcpretrans,tcpreset,netdev", "without the probes that cost each packet something"},
	},
	"probes": {
		{"nodeskoop probes", "what works on this kernel"},
		{"nodeskoop probes --json", "the same with what the kernel answered, for a program"},
	},
	"pods": {
		{"nodeskoop pods", "which pods are known, and by which addresses"},
	},
	"check": {
		{"nodeskoop check", "does it work here, and what is to be done"},
		{"nodeskoop check --problems", "what is not ok only"},
		{"nodeskoop check --config /tmp/try.toml", "would it work with this configuration"},
	},
	"config": {
		{"nodeskoop config", "what is in effect, and which file set it"},
		{"nodeskoop config --check", "is there a mistake in it"},
		{"nodeskoop config --default > nodeskoop.toml", "begin with the file that is shipped"},
	},
	"docs": {
		{"nodeskoop docs metrics", "what each metric means, and what moves it"},
		{"nodeskoop docs bash > /etc/bash_completion.d/nodeskoop", "completion, where no package brought it"},
	},
	"help": {
		{"nodeskoop help events", "the same as nodeskoop events --help"},
	},
}
