package escalate

import (
	"fmt"
	"io"
	"strings"

	"nodeskoop/collect/catalog"
)

// observed is the length of an observation to which the thresholds of the catalogue's
// causes apply: that of `nodeskoop diagnose`. A longer window needs proportionally more.
const observed = 10 // seconds

// sign is a condition of one subject over a window: counters that rise by at least some
// number, and by at least some share of others.
type sign struct {
	what  string
	plus  []string // metrics whose increases are added
	minus []string // metrics whose increases are subtracted
	of    []string // metrics whose increases are the whole that share refers to
	whole string   // what that is
	least float64
	share float64
	pods  bool // only pods count
	slots struct{ plus, minus, of []int }
}

// The thresholds are those with which diagnose names a cause and alerts fire, because these
// are silent on healthy nodes. TestHealthyNodesAreSilent replays recorded hours of some.
// The squeezes of softnet_stat and the pressure of CPUs and disks are no signs: each node
// with work to do has them. The share of softirqs and the stalls for memory are.
//
// The signs that say more come first, since the first one is told.
var signs = []sign{
	// As aborted-connections, by the kernel instead of the application.
	from("connections ended by a timeout", "aborted-connections", "tcp.aborts", []string{"kubeskoop_tcpext_tcpabortontimeout"}, "connections opened", opens...),
	from("connections closed with RST", "aborted-connections", "tcp.aborts", []string{"kubeskoop_tcpext_tcpabortonclose", "kubeskoop_tcpext_tcpabortondata"}, "connections opened", opens...),
	from("connections found the accept queue full", "accept-queue-full", "TcpExtListenOverflows", []string{"kubeskoop_tcpext_listenoverflows"}, ""),
	from("datagrams found the receive buffer full", "udp-receive-buffer-full", "udp.full", []string{"kubeskoop_udp_rcvbuferrors"}, "datagrams received", "kubeskoop_udp_rcvbuferrors", "kubeskoop_udp_indatagrams"),
	from("packets found a queue of an interface full", "qdisc-full", "queue.drops", []string{"kubeskoop_qdisc_drops"}, "packets sent", "kubeskoop_qdisc_drops", "kubeskoop_qdisc_packets"),
	from("packets found the backlog of a CPU full", "softirq-cpu-busy", "kubeskoop_softnet_dropped", []string{"kubeskoop_softnet_dropped"}, "packets received", "kubeskoop_softnet_processed"),
	from("packets found no room in conntrack", "conntrack-full", "kubeskoop_conntrack_drop", []string{"kubeskoop_conntrack_drop"}, ""),
	// The alert PacketsDropped: more than 10 a second. Packets that a rule drops are
	// explained.
	{what: "packets lost", plus: []string{"kubeskoop_packetloss_total"}, minus: []string{"kubeskoop_packetloss_netfilter"}, least: 10 * observed},
	// One in fifty, between the alert TCPRetransmissions (one in twenty) and wire-loss (one
	// in two hundred): a server of far clients retransmits one in a hundred in good health,
	// and the probes on standby do not explain losses on a wire.
	withShare(from("TCP segments retransmitted", "wire-loss", "tcp.lost", []string{"kubeskoop_tcp_retranssegs"}, "segments sent", "kubeskoop_tcp_outsegs"), 0.02),
}

var opens = []string{"kubeskoop_tcp_activeopens", "kubeskoop_tcp_passiveopens"}

// threshold returns the strictest sign of a cause with that signal.
func threshold(cause, signal string) (found catalog.Sign) {
	c := catalog.CauseByID(cause)
	for _, s := range append(c.All, c.One...) {
		if s.Signal == signal && s.AtLeast > found.AtLeast {
			found = s
		}
	}
	if found.Signal == "" {
		panic(fmt.Sprintf("escalate: the cause %s has no sign %s", cause, signal))
	}
	return found
}

// from makes a sign with the threshold of a cause.
func from(what, cause, signal string, plus []string, whole string, of ...string) sign {
	s := threshold(cause, signal)
	return sign{what: what, plus: plus, of: of, whole: whole, least: s.AtLeast, share: s.Share, pods: catalog.CauseByID(cause).Whose == catalog.OfPods}
}

func withShare(s sign, share float64) sign {
	s.share = share
	return s
}

// Shares of the time that Pressure reports, in percent.
var (
	busySoftirq = threshold("softirq-cpu-busy", "cpu.softirq").AtLeast
	// Processes that all wait for memory for a tenth of the time are a node that thrashes.
	// A healthy one is far below 1 %.
	stalledMemory = 10.0
)

// The queues of connections, in bytes over all connections of a namespace.
var queues = [...]struct{ metric, what string }{
	{"kubeskoop_tcpsummary_tcprxqueue", "bytes stand unread in TCP connections"},
	{"kubeskoop_tcpsummary_tcptxqueue", "bytes stand unacknowledged in TCP connections"},
}

// leastQueue is more than a closed or idle connection leaves, such as a last TLS record.
var leastQueue = threshold("slow-reader", "unread.stands").AtLeast

// WriteSigns writes a table of the signs and their thresholds, in Markdown.
func WriteSigns(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| sign, of a pod or the node | in 10 s at least | and at least |\n|---|---|---|\n")
	for i := range signs {
		s := &signs[i]
		what, share := s.what, ""
		switch {
		case len(s.minus) > 0:
			what += ", not by a rule"
		case s.pods:
			what += " (of a pod)"
		}
		if s.share > 0 {
			share = fmt.Sprintf("%g %% of the %s", 100*s.share, s.whole)
		}
		fmt.Fprintf(&b, "| %s | %g | %s |\n", what, s.least, share)
	}
	fmt.Fprintf(&b, "| softirqs on one CPU | %g %% of its time | |\n", busySoftirq)
	fmt.Fprintf(&b, "| all processes at once wait for memory (`/proc/pressure/memory`) | %g %% of the time | |\n", stalledMemory)
	for _, q := range queues {
		fmt.Fprintf(&b, "| %s, unchanged for 20 s | %g | |\n", q.what, leastQueue)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
