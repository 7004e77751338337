package catalog

import "strings"

// Signal declares a quantity that diagnose measures: of the node, of a pod, or of
// a pod's traffic with one peer.
type Signal struct {
	// Name identifies the signal in a Sign.
	Name string
	// Text is the evidence as a sentence. {n} stands for the number, {peer} for
	// the other end, {what} for the port, device or disk that the number belongs
	// to, {from} for the sender of a packet, and {time} for the length of the
	// observation.
	Text string
	// Source is the standard command that shows the number. PID and DEVICE are as
	// in a Step; PEERPID is a process at the other end.
	Source string
}

// mibs are the prefixes of the kernel's IP stack counters, as nstat spells them.
// These counters are signals without a declaration.
var mibs = []string{"TcpExt", "Tcp", "UdpLite", "Udp", "IpExt", "Ip", "IcmpMsg", "Icmp", "MPTcpExt"}

// IsCounter reports whether name is an IP stack counter of the kernel, as nstat
// spells it.
func IsCounter(name string) bool {
	for _, m := range mibs {
		if rest, ok := strings.CutPrefix(name, m); ok && rest != "" && (rest[0] >= 'A' && rest[0] <= 'Z' || rest[0] == '6') {
			return true
		}
	}
	return false
}

// SignalByName finds a declared signal, a kernel counter or a metric by name; nil
// if there is none.
func SignalByName(name string) *Signal {
	for i := range signals {
		if signals[i].Name == name {
			return &signals[i]
		}
	}
	switch {
	case IsCounter(name):
		return &Signal{Name: name, Text: name + " rose by {n} in {time}", Source: "nsenter -t PID -n nstat -az " + name}
	case MetricByName(name) != nil:
		return &Signal{Name: name, Text: name + " rose by {n} in {time}", Source: "nodeskoop collect | grep " + name}
	}
	return nil
}

// Signals returns the signals that are declared.
func Signals() []Signal { return signals }

// Sign is a condition of a Cause: a signal and its threshold.
type Sign struct {
	Signal string
	// AtLeast is the least value that counts.
	AtLeast float64
	// Of names another signal of the same owner. The value must be at least the
	// fraction Share of it: 20 drops are many among 100 packets and few among a
	// million.
	Of    string
	Share float64
	// Many is the threshold for the sum over several other ends whose values are each
	// below AtLeast; 0: values are not summed. For a cause at the peer, the values of
	// all ends that deal with that peer are summed, otherwise those of one owner with
	// all of its peers.
	Many float64
	// OfNode says that the signal is always the node's, even if a pod is
	// examined.
	OfNode bool
	// Why argues for the threshold.
	Why string
}

// Blame says which end is to blame for a cause.
type Blame uint8

// The ends.
const (
	// BlameOwner is the pod, or the node, that has the signal.
	BlameOwner Blame = iota + 1
	// BlamePeer is the other end: a pod or an address. If many peers are
	// affected, it is the path to them.
	BlamePeer
	// BlameNode is the node.
	BlameNode
	// BlamePath is the path between the two ends.
	BlamePath
)

// String says it in words.
func (b Blame) String() string {
	switch b {
	case BlameOwner:
		return "the pod, or the node, with the symptom"
	case BlamePeer:
		return "the other end"
	case BlameNode:
		return "the node"
	case BlamePath:
		return "the path between the two ends"
	}
	return ""
}

// Whose selects the owners whose signals count.
type Whose uint8

// Those whose signals count.
const (
	OfPods Whose = iota + 1
	OfTheNode
)

// Cause declares a possible cause of trouble: its signs, the end to blame, its
// consequences, and the next steps.
type Cause struct {
	ID string
	// Title is a one-line description with the placeholders {blame}, {owner},
	// {peer} and {what}.
	Title string
	Blame Blame
	// Whose says whose signs count; 0: anybody's.
	Whose Whose
	// Weight is the confidence in the cause once its signs hold, from 0 to 1.
	// Findings are sorted by it. A sign that only one cause can produce gives
	// that cause a higher weight than a sign shared by several causes.
	Weight float64
	// All must hold. The first sign determines the owner and the peer of the
	// finding.
	All []Sign
	// At least one of these must hold, unless the list is empty.
	One []Sign
	// Not lists signs that rule the cause out: they show that all is well, or
	// that another cause applies.
	Not []Sign
	// More is further evidence, where it holds.
	More []Sign
	// Explains names causes whose signs are consequences of this cause. For the
	// same ends, they are not reported as well.
	Explains []string
	// NodeWide marks a cause that may affect every pod of the node, not only the
	// ends that its signs name. Findings about other pods that it explains are
	// reported after it.
	NodeWide bool
	// Passing says that at the node, the cause hits packets of any pod that the node
	// forwards, and thus explains the pods' symptoms, too. Without Passing, the cause
	// at the node concerns only the node's own connections.
	Passing bool
	// Whole says that the cause affects all peers of an end, so the peer that the signs
	// name is arbitrary. Without Whole, a cause between two ends explains only findings
	// between these two. One client's trouble then does not hide another's.
	Whole bool
	// Means says what happens, and what usually causes it.
	Means string
	// Healthy describes a harmless condition that looks similar, and how to tell
	// the two apart.
	Healthy string
	Next    []Step
}

// Causes returns the causes in the order in which they are documented.
func Causes() []*Cause {
	out := make([]*Cause, len(causes))
	for i := range causes {
		out[i] = &causes[i]
	}
	return out
}

// CauseByID finds a cause; nil if there is none.
func CauseByID(id string) *Cause {
	for i := range causes {
		if causes[i].ID == id {
			return &causes[i]
		}
	}
	return nil
}

// Signs returns all signs of a cause.
func (c *Cause) Signs() []Sign {
	var all []Sign
	for _, s := range [][]Sign{c.All, c.One, c.Not, c.More} {
		all = append(all, s...)
	}
	return all
}
