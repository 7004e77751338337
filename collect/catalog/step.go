package catalog

import "regexp"

// Step is a command that looks further into an event, and what it shows.
type Step struct {
	// Command is what to type. A word of Placeholders stands for what the reader
	// fills in. It must not be one of the journal's own, @FIELD@: journalctl
	// replaces it by a field as it was stored, and anyone may write an entry with
	// any MESSAGE_ID and any field. Even ours have names that others chose.
	Command string
	Shows   string
}

// Placeholders are the words of a Step's Command that the reader replaces, and
// by what.
var Placeholders = []struct{ Word, Means string }{
	{"PID", "a process of the pod (nodeskoop pods lists them), or 1 for the host"},
	{"PEER", "the entry's KUBESKOOP_DADDR"},
	{"DEVICE", "the entry's KUBESKOOP_IFNAME"},
	{"DISK", "the entry's KUBESKOOP_DISK"},
	{"CPU", "the entry's KUBESKOOP_CPU"},
}

var placeholderWord = regexp.MustCompile(`[A-Z]+`)

// Placeholder returns the word of Placeholders that the command has, "" if it
// has none.
func (s Step) Placeholder() string {
	for _, word := range placeholderWord.FindAllString(s.Command, -1) {
		for _, p := range Placeholders {
			if p.Word == word {
				return word
			}
		}
	}
	return ""
}

// The steps that more than one event needs.
var (
	stepSockets  = Step{"nsenter -t PID -n ss -tinm", "the pod's connections: queues, round-trip times, retransmissions, the processes' memory"}
	stepCounters = Step{"nsenter -t PID -n nstat -az", "the counters of the pod's IP stack"}
	stepRules    = Step{"nft list ruleset; iptables-save -c", "the firewall's rules, with how often each matched"}
	stepQdisc    = Step{"nsenter -t PID -n tc -s qdisc show", "what waits in the queues, what they dropped, and the rate that each is held to"}
	stepSteal    = Step{"top -b -n 1 -w 200 | head -20; cat /proc/pressure/cpu", "who keeps the CPUs busy, and how much the hypervisor takes (st)"}
	stepSoftnet  = Step{"cat /proc/net/softnet_stat", "by CPU in hexadecimal: packets taken, dropped for a full backlog, and how often the budget ran out"}
	stepIRQ      = Step{"cat /proc/interrupts /proc/softirqs", "which CPU takes the interrupts of which queue"}
	stepDisk     = Step{"iostat -x 1; cat /proc/pressure/io", "how busy each disk is, the length of its queue, and how much the node waits for it"}
	stepKernel   = Step{"journalctl -k --since -1h", "what the kernel said: errors of devices, lockups, resets"}
)
