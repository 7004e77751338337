package catalog

import "regexp"

// Step is a command that investigates an event, and a description of its output.
type Step struct {
	// Command is the shell command. The reader replaces words of Placeholders.
	// Never use the journal's own placeholders, @FIELD@: journalctl would insert
	// the stored field into the command, and any process may write an entry with
	// any MESSAGE_ID and field. Names in nodeskoop's own entries are chosen by
	// others, too.
	Command string
	Shows   string
}

// Placeholders are the words in a Step's Command that the reader replaces, with
// their replacement.
var Placeholders = []struct{ Word, Means string }{
	{"PID", "a process of the pod (nodeskoop pods lists them), or 1 for the host"},
	{"PEER", "the entry's KUBESKOOP_DADDR"},
	{"DEVICE", "the entry's KUBESKOOP_IFNAME"},
	{"DISK", "the entry's KUBESKOOP_DISK"},
	{"CPU", "the entry's KUBESKOOP_CPU"},
}

var placeholderWord = regexp.MustCompile(`[A-Z]+`)

// Placeholder returns the first word of Placeholders in the command, or "".
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

// Steps that several events share.
var (
	stepSockets  = Step{"nsenter -t PID -n ss -tinm", "the pod's connections: queues, round-trip times, retransmissions, the processes' memory"}
	stepCounters = Step{"nsenter -t PID -n nstat -az", "the counters of the pod's IP stack"}
	stepRules    = Step{"nft list ruleset; iptables-save -c", "the firewall's rules, with how often each matched"}
	stepQdisc    = Step{"nsenter -t PID -n tc -s qdisc show", "packets queued and dropped per qdisc, and its rate limit"}
	stepSteal    = Step{"top -b -n 1 -w 200 | head -20; cat /proc/pressure/cpu", "the processes that keep the CPUs busy, and the share that the hypervisor takes (st)"}
	stepSoftnet  = Step{"cat /proc/net/softnet_stat", "per CPU in hexadecimal: packets processed, packets dropped because the backlog was full, and how often the budget ran out"}
	stepIRQ      = Step{"cat /proc/interrupts /proc/softirqs", "which CPU takes the interrupts of which queue"}
	stepDisk     = Step{"iostat -x 1; cat /proc/pressure/io", "how busy each disk is, the length of its queue, and the share of time that tasks wait for I/O"}
	stepKernel   = Step{"journalctl -k --since -1h", "the kernel's messages: device errors, lockups, resets"}
)
