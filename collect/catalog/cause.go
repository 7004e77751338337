package catalog

import "strings"

// Signal declares one thing that diagnose measures: of the node, of a pod, or of
// what a pod has with a peer.
type Signal struct {
	// Name is how a Sign refers to it.
	Name string
	// Text is the evidence as a sentence. {n} stands for the number, {peer} for
	// the other end, {what} for what the number is of (a port, a device, a disk),
	// {time} for how long was watched.
	Text string
	// Source is where the reader finds the number with a standard tool. PID and
	// DEVICE are as in a Step, PEERPID is a process of the other end.
	Source string
}

// mibs are the prefixes of the kernel's counters of the IP stack, as nstat spells
// them. Their names are signals without a declaration.
var mibs = []string{"TcpExt", "Tcp", "UdpLite", "Udp", "IpExt", "Ip", "IcmpMsg", "Icmp", "MPTcpExt"}

// IsCounter reports whether a name is that of one of the kernel's counters of the
// IP stack as nstat spells it.
func IsCounter(name string) bool {
	for _, m := range mibs {
		if rest, ok := strings.CutPrefix(name, m); ok && rest != "" && (rest[0] >= 'A' && rest[0] <= 'Z' || rest[0] == '6') {
			return true
		}
	}
	return false
}

// SignalByName finds a signal: one that is declared, or one of the kernel's
// counters, or a metric. It is nil for what is none.
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

// Sign is what a Cause rests on: a signal, and from where on it counts.
type Sign struct {
	Signal string
	// AtLeast is the least value that counts.
	AtLeast float64
	// Of names another signal of the same owner, of which the value has to be at
	// least the part Share: 20 drops are many of 100 packets and few of a million.
	Of    string
	Share float64
	// OfNode says that the signal is looked for on the node, whoever is examined.
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
	// BlamePeer is the other end: a pod, or an address; the path where many are.
	BlamePeer
	// BlameNode is the node.
	BlameNode
	// BlamePath is the way between the two ends.
	BlamePath
)

// String says it in words.
func (b Blame) String() string {
	switch b {
	case BlameOwner:
		return "the pod, or the node, that shows it"
	case BlamePeer:
		return "the other end"
	case BlameNode:
		return "the node"
	case BlamePath:
		return "the path between the two ends"
	}
	return ""
}

// Whose says whose signals count.
type Whose uint8

// Those whose signals count.
const (
	OfPods Whose = iota + 1
	OfTheNode
)

// Cause declares why pods may have trouble: how it shows, whose fault it is, what
// follows from it, and what to look at.
type Cause struct {
	ID string
	// Title is one line for a person, with {blame}, {owner}, {peer} and {what}.
	Title string
	Blame Blame
	// Whose says whose signs count; 0: anybody's.
	Whose Whose
	// Weight is how sure the cause is once its signs hold, from 0 to 1. Of several
	// findings the one with the greatest is named first: what only this cause can
	// bring about has more than what several can.
	Weight float64
	// All must hold. The first is that whose owner and peer the finding is about.
	All []Sign
	// One of these must hold, if there are any.
	One []Sign
	// Not lists what must not hold: it shows that all is well, or another cause.
	Not []Sign
	// More is further evidence, where it holds.
	More []Sign
	// Explains names the causes whose signs this one brings about as well. They are
	// not named for the same ends.
	Explains []string
	// NodeWide says that any pod of the node may feel it, whichever ends its signs
	// name: what it explains of others is named after it.
	NodeWide bool
	// Passing says that at the node it hits what merely passes, the packets of any pod,
	// and so explains what pods have, too. Without it the node has it as an end of its own
	// connections, as a process in a pod may.
	Passing bool
	// Whole says that an end has it with all of its peers: which peer the signs name is
	// chance. Without it a cause of two ends explains only what these two have with each
	// other, so that one client's trouble does not hide another's.
	Whole bool
	// Means says what happens, and what usually brings it about.
	Means string
	// Healthy is what looks alike and is no trouble, and how the two are told apart.
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
