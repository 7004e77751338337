package diagnose

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
)

// The ends of the cases.
const (
	web    = "shop/web-0"
	client = "shop/client-0"
	far    = "192.0.2.7"
)

func seen(signal, owner, peer string, value float64) observation {
	return observation{signal: signal, owner: owner, peer: peer, value: value}
}

// cases lists observations for each cause, and for the most similar healthy
// condition, in which no cause may be named.
var cases = []struct {
	cause, blame string
	is, healthy  []observation
}{
	{"policy-drop-pod", web,
		[]observation{{signal: "drop.rule", owner: web, peer: client, value: 3, what: "TCP port 8080"}, seen("syn.retransmitted", client, web, 2), seen("tcp.lost", client, web, 40), seen("TcpOutSegs", client, "", 100)},
		[]observation{seen("drop.rule", web, far, 1)}},
	{"policy-drop-host", Node,
		[]observation{{signal: "drop.node", owner: Node, peer: web, value: 4, what: "TCP port 8080", from: client}, seen("syn.retransmitted", client, web, 3)},
		[]observation{seen("drop.node", Node, web, 1)}},
	{"closed-port", web,
		[]observation{{signal: "tcp.refused", owner: client, peer: web, value: 9, what: "8080", blame: web}},
		[]observation{{signal: "tcp.refused", owner: client, peer: web, value: 2, what: "8080", blame: web}}},
	{"closed-port", web,
		[]observation{{signal: "udp.refused", owner: client, peer: web, value: 9, what: "8125", blame: web}},
		[]observation{{signal: "udp.refused", owner: client, peer: web, value: 2, what: "8125", blame: web}}},
	{"wrong-listen-address", web,
		[]observation{{signal: "tcp.loopback_only", owner: client, peer: web, value: 9, what: "8080", blame: web}},
		[]observation{{signal: "tcp.loopback_only", owner: client, peer: web, value: 1, what: "8080", blame: web}}},
	{"mtu-black-hole", Path,
		[]observation{{signal: "stuck.large", owner: client, peer: far, value: 1}, seen("tcp.lost", client, far, 12), seen("TcpOutSegs", client, "", 80)},
		// A path that loses all packets, small segments included.
		[]observation{{signal: "stuck.large", owner: client, peer: far, value: 1}, seen("stuck.small", client, far, 1)}},
	{"accept-queue-full", web,
		[]observation{seen("TcpExtListenOverflows", web, "", 37), {signal: "listen.full", owner: web, value: 9, what: "8080, which holds 8"}, seen("syn.half_open", web, client, 40), seen("synack.retransmitted", web, client, 40), seen("tcp.lost", client, web, 60), seen("TcpOutSegs", client, "", 500)},
		[]observation{seen("TcpExtListenOverflows", web, "", 2)}},
	{"syn-flood", far,
		[]observation{seen("syn.half_open", web, far, 120), seen("syn.refused", web, "", 4000), seen("TcpExtListenDrops", web, "", 100)},
		[]observation{seen("syn.half_open", web, far, 12), seen("syn.refused", web, "", 40)}},
	{"udp-receive-buffer-full", web,
		[]observation{seen("udp.full", web, "", 500), seen("udp.datagrams", web, "", 900), seen("drop.socket", web, client, 500)},
		[]observation{seen("udp.full", web, "", 4), seen("udp.datagrams", web, "", 100000)}},
	{"slow-reader", web,
		[]observation{{signal: "read.late", owner: web, value: 90, what: "server"}, seen("window.closed", client, web, 1)},
		[]observation{{signal: "read.late", owner: web, value: 20, what: "server"}, seen("unread.stands", client, web, 31)}},
	{"slow-reader", web,
		[]observation{seen("unread.stands", web, client, 90000)},
		[]observation{seen("read.late", Node, "", 90)}},
	{"slow-reader", web,
		[]observation{{signal: "unread.server", owner: web, value: 6, what: "8080"}},
		[]observation{{signal: "unread.server", owner: web, value: 1, what: "8080"}}},
	{"zero-window", far,
		[]observation{seen("window.closed", client, far, 2), seen("TcpExtTCPWinProbe", client, "", 9)},
		[]observation{seen("TcpExtTCPWinProbe", client, "", 3)}},
	{"reset-by-middlebox", Path,
		[]observation{seen("reset.unsent", client, web, 5)},
		[]observation{seen("reset.unsent", client, web, 1)}},
	{"aborted-connections", web,
		[]observation{seen("tcp.aborts", web, "", 30), seen("tcp.opens", web, "", 40)},
		[]observation{seen("tcp.aborts", web, "", 4), seen("tcp.opens", web, "", 900), seen("tcp.aborts", Node, "", 20), seen("tcp.opens", Node, "", 20)}},
	{"wire-loss", Path,
		[]observation{seen("tcp.lost", client, far, 60), seen("TcpOutSegs", client, "", 2000)},
		[]observation{seen("tcp.lost", client, far, 12), seen("TcpOutSegs", client, "", 90000)}},
	{"wire-loss", Path,
		[]observation{seen("tcp.lost", client, far, 60), seen("TcpOutSegs", client, "", 2000)},
		// The packet is lost on this node.
		[]observation{seen("tcp.lost", client, far, 60), seen("TcpOutSegs", client, "", 2000), seen("drop.local", client, far, 45)}},
	// One packet lost on this node does not explain sixty.
	{"wire-loss", Path,
		[]observation{seen("tcp.lost", client, far, 60), seen("TcpOutSegs", client, "", 2000), seen("drop.local", client, far, 1)},
		[]observation{seen("drop.local", client, far, 1)}},
	{"wire-reordering", Path,
		[]observation{seen("reordered.peer", client, far, 80), seen("tcp.reordered", client, "", 80), seen("TcpOutSegs", client, "", 9000), seen("tcp.lost", client, far, 90)},
		[]observation{seen("reordered.peer", client, far, 80), seen("tcp.reordered", client, "", 80), seen("sent.peer", client, far, 90000)}},
	{"wire-reordering", Path,
		[]observation{seen("needless.peer", client, far, 700), seen("sent.peer", client, far, 7000), seen("TcpExtTCPDSACKRecv", client, "", 700)},
		[]observation{seen("needless.peer", client, far, 30), seen("sent.peer", client, far, 7000), seen("TcpExtTCPDSACKRecv", client, "", 30)}},
	{"bandwidth-limit", Node,
		[]observation{{signal: "shaper.waits", owner: Node, value: 900, what: "veth1"}, {signal: "shaper.packets", owner: Node, value: 1200, what: "veth1"}, {signal: "shaper.queue", owner: Node, value: 30, what: "veth1"}},
		[]observation{{signal: "shaper.waits", owner: Node, value: 40, what: "veth1"}, {signal: "shaper.packets", owner: Node, value: 9000, what: "veth1"}}},
	{"qdisc-full", web,
		[]observation{{signal: "queue.drops", owner: web, value: 300, what: "eth0"}, {signal: "queue.packets", owner: web, value: 3000, what: "eth0"}, seen("tcp.lost", web, far, 60), seen("TcpOutSegs", web, "", 2000)},
		[]observation{{signal: "queue.drops", owner: Node, value: 30, what: "eth0"}, {signal: "queue.packets", owner: Node, value: 300000, what: "eth0"}}},
	{"conntrack-full", Node,
		[]observation{{signal: "conntrack.used", owner: Node, value: 100, what: "64 of 64"}, seen("kubeskoop_conntrack_drop", Node, "", 40), seen("drop.untracked", Node, "", 40)},
		[]observation{{signal: "conntrack.used", owner: Node, value: 97, what: "97 of 100"}}},
	{"nat-ports-used-up", Node,
		[]observation{{signal: "nat.ports", owner: Node, value: 100, what: "192.0.2.7:80"}, seen("kubeskoop_conntrack_insertfailed", Node, "", 40), seen("drop.untracked", Node, "", 40)},
		[]observation{{signal: "nat.ports", owner: Node, value: 100, what: "192.0.2.7:80"}}},
	{"conntrack-race", Node,
		[]observation{seen("kubeskoop_conntrack_insertfailed", Node, "", 40), seen("drop.untracked", Node, "", 40)},
		[]observation{seen("kubeskoop_conntrack_insertfailed", Node, "", 2)}},
	{"neighbour-table-full", Node,
		[]observation{seen("neighbour.table_full", Node, "", 20), seen("neighbour.table_used", Node, "", 100)},
		[]observation{seen("neighbour.table_used", Node, "", 97)}},
	{"neighbour-gone", far,
		[]observation{seen("drop.neighbour", client, far, 6), seen("syn.retransmitted", client, far, 3)},
		[]observation{seen("drop.neighbour", client, far, 2)}},
	{"no-route", client,
		[]observation{seen("IpOutNoRoutes", client, "", 20)},
		[]observation{seen("Ip6OutNoRoutes", client, "", 50), seen("IpOutNoRoutes", client, "", 1)}},
	{"arp-flux", Node,
		[]observation{{signal: "arp.other_device", owner: web, peer: Node, value: 1, what: "10.0.0.1 of eth0 at eth1"}},
		[]observation{seen("TcpExtIPReversePathFilter", Node, "", 9)}},
	{"arp-flux", Node, []observation{seen("rpfilter.shared", Node, "", 9)}, []observation{seen("rpfilter.shared", Node, "", 1)}},
	{"bad-checksum", client,
		[]observation{seen("checksum.bad", web, client, 20), seen("drop.checksum", web, client, 20)},
		[]observation{seen("checksum.bad", web, "", 1)}},
	{"bad-checksum", Path,
		[]observation{seen("checksum.bad", web, "", 20)},
		[]observation{seen("checksum.bad", web, "", 2)}},
	{"softirq-cpu-busy", Node,
		[]observation{{signal: "cpu.softirq", owner: Node, value: 93, what: "1"}},
		[]observation{{signal: "cpu.softirq", owner: Node, value: 30, what: "1"}, seen("kubeskoop_softirq_schedslow", Node, "", 40), seen("kubeskoop_softnet_dropped", Node, "", 30), seen("kubeskoop_softnet_processed", Node, "", 90000)}},
	{"cpu-throttled", web,
		[]observation{seen("cpu.throttled", web, "", 80), seen("cpu.throttled_time", web, "", 60), {signal: "read.late", owner: web, value: 90, what: "server"}},
		[]observation{seen("cpu.throttled", web, "", 30), seen("cpu.throttled_time", web, "", 1)}},
	{"descriptor-limit", web,
		[]observation{{signal: "fd.used", owner: web, value: 100, what: "server[7], 64 of 64"}, seen("TcpExtListenOverflows", web, "", 40), {signal: "listen.full", owner: web, value: 9, what: "8080, which holds 8"}},
		[]observation{{signal: "fd.used", owner: web, value: 90, what: "server[7], 900 of 1000"}}},
	{"ipv6-half-broken", client,
		[]observation{{signal: "ipv6.no_route", owner: client, value: 9, blame: client}},
		[]observation{seen("Ip6OutNoRoutes", client, "", 900)}},
	{"ipv6-half-broken", Path,
		[]observation{seen("ipv6.stuck", client, "2001:db8::7", 9), seen("ipv6.syn", client, "2001:db8::7", 4)},
		[]observation{seen("ipv6.syn", client, "2001:db8::7", 1)}},
	{"slow-disk", Node,
		[]observation{{signal: "disk.wait", owner: Node, value: 210, what: "sda"}, {signal: "disk.ios", owner: Node, value: 60, what: "sda"}, seen("disk.stall", Node, "", 90)},
		// The kernel writes these back in the background.
		[]observation{{signal: "disk.wait", owner: Node, value: 210, what: "sda"}, {signal: "disk.ios", owner: Node, value: 600, what: "sda"}, seen("disk.stall", Node, "", 3)}},
	{"disk-throttled", web,
		[]observation{{signal: "disk.limit", owner: web, value: 99, what: "8:0 wbps=1048576"}, seen("disk.stall", web, "", 80)},
		[]observation{{signal: "disk.limit", owner: web, value: 40, what: "8:0 wbps=1048576"}}},
	{"disk-throttled", web,
		[]observation{{signal: "disk.limit", owner: web, value: 70, what: "8:0 riops=5"}, {signal: "disk.held", owner: web, value: 60, what: "8:0 riops=5"}, seen("disk.stall", web, "", 60)},
		[]observation{{signal: "disk.limit", owner: web, value: 70, what: "8:0 riops=5"}, {signal: "disk.held", owner: web, value: 9, what: "8:0 riops=5"}, seen("disk.stall", web, "", 9)}},
	{"tcp-memory-pressure", Node,
		[]observation{{signal: "tcp.memory", owner: Node, value: 110, what: "900 pages"}, seen("TcpExtTCPMemoryPressures", Node, "", 1)},
		[]observation{{signal: "tcp.memory", owner: Node, value: 60, what: "500 pages"}}},
	{"time-wait-exhaustion", client,
		[]observation{{signal: "ports.time_wait", owner: client, peer: web, value: 100, what: "10.0.0.9:80, 500 of 500"}},
		[]observation{{signal: "ports.time_wait", owner: client, peer: web, value: 60, what: "10.0.0.9:80, 300 of 500"}}},
	{"ephemeral-ports-used-up", client,
		[]observation{{signal: "ports.open", owner: client, peer: web, value: 100, what: "10.0.0.9:80, 500 of 500"}},
		[]observation{{signal: "ports.open", owner: client, peer: web, value: 60, what: "10.0.0.9:80, 300 of 500"}}},
	{"dns-slow", "kube-system/dns-0",
		[]observation{{signal: "dns.slow", owner: client, peer: "kube-system/dns-0", value: 6}, seen("dns.lookups", client, "kube-system/dns-0", 8)},
		[]observation{{signal: "dns.slow", owner: client, peer: "kube-system/dns-0", value: 6}, seen("dns.lookups", client, "kube-system/dns-0", 800)}},
}

func names(list []Finding) string {
	var out []string
	for _, f := range list {
		out = append(out, f.Cause+" ("+f.Blame+")")
	}
	return strings.Join(out, ", ")
}

// TestCauses: each cause is named in its case, as the only cause and with the right
// end, and not in the healthy case.
func TestCauses(t *testing.T) {
	tested := map[string]bool{}
	for _, c := range cases {
		tested[c.cause] = true
		if got, want := names(evaluate(c.is, 10*time.Second)), c.cause+" ("+c.blame+")"; got != want {
			t.Errorf("named: %s, want %s", got, want)
		}
		if got := evaluate(c.healthy, 10*time.Second); len(got) > 0 {
			t.Errorf("on a healthy node that looks like %s is named: %s", c.cause, names(got))
		}
	}
	for _, c := range catalog.Causes() {
		if !tested[c.ID] {
			t.Errorf("no case of %s", c.ID)
		}
	}
}

// TestTwoCauses: of two faults at different ends, both are named.
func TestTwoCauses(t *testing.T) {
	for i, a := range cases {
		for _, b := range cases[i+1:] {
			got := names(evaluate(append(append([]observation{}, a.is...), b.is...), 10*time.Second))
			if !strings.Contains(got, a.cause+" (") && !strings.Contains(got, b.cause+" (") {
				t.Errorf("%s and %s at once: named: %s", a.cause, b.cause, got)
			}
		}
	}
}

// TestNodeWide: consequences of a node-wide cause are named after it, since they may
// be separate problems. Other findings keep their place.
func TestNodeWide(t *testing.T) {
	cause := func(id string) []observation {
		for _, c := range cases {
			if c.cause == id {
				return c.is
			}
		}
		t.Fatal(id)
		return nil
	}
	busy := cause("softirq-cpu-busy")
	for _, is := range [][]observation{busy, append([]observation{seen("drop.backlog", Node, "shop/other-0", 40)}, busy...)} {
		for _, c := range []struct{ with, first, second string }{
			{"udp-receive-buffer-full", "softirq-cpu-busy", "udp-receive-buffer-full"},
			{"wire-loss", "softirq-cpu-busy", "wire-loss"},
			{"closed-port", "closed-port", "softirq-cpu-busy"},
		} {
			got := evaluate(append(append([]observation{}, is...), cause(c.with)...), 10*time.Second)
			if len(got) != 2 || got[0].Cause != c.first || got[1].Cause != c.second {
				t.Errorf("with %s: %s", c.with, names(got))
			}
		}
	}
}

// TestManyEnds: the small numbers that an end has with many others add up to one
// finding, even if no pair alone reaches the threshold. Very small numbers with many
// ends give no finding.
func TestManyEnds(t *testing.T) {
	tried := map[string]bool{}
	for _, c := range cases {
		about := catalog.Causes()[slices.IndexFunc(catalog.Causes(), func(x *catalog.Cause) bool { return x.ID == c.cause })]
		leads := about.One
		if len(about.All) > 0 {
			leads = about.All[:1]
		}
		for _, lead := range leads {
			i := slices.IndexFunc(c.is, func(x observation) bool { return x.signal == lead.Signal })
			if lead.Many == 0 || i < 0 {
				continue
			}
			tried[lead.Signal] = true
			spread := func(n int, total float64) (list []observation) {
				for k := range n {
					x := c.is[i]
					x.value = total / float64(n)
					if other := fmt.Sprintf("shop/other-%d", k); about.Blame == catalog.BlamePeer {
						x.owner = other
						if lead.Of != "" {
							list = append(list, observation{signal: lead.Of, owner: other, peer: x.peer, value: x.value / lead.Share / 2})
						}
					} else {
						x.peer = other
					}
					list = append(list, x)
				}
				if lead.Of != "" && about.Blame != catalog.BlamePeer {
					list = append(list, seen(lead.Of, c.is[i].owner, "", total/lead.Share/2))
				}
				return list
			}
			many := int(lead.Many) * 4
			got := evaluate(spread(many, lead.Many*2), 10*time.Second)
			if len(got) != 1 || got[0].Cause != c.cause || got[0].Blame != c.blame {
				t.Errorf("%s of %d others: %s", lead.Signal, many, names(got))
				continue
			}
			if all := got[0].Title + got[0].Evidence[0].Text; !strings.Contains(all, fmt.Sprintf("%d ends (such as shop/other-0)", many)) || strings.ContainsAny(all, "{}*") || len(got[0].Evidence) > 2 {
				t.Errorf("%s: %q, %+v", lead.Signal, got[0].Title, got[0].Evidence)
			}
			if got := evaluate(spread(many, lead.Many*0.9), 10*time.Second); len(got) != 0 {
				t.Errorf("a little %s of %d others: %s", lead.Signal, many, names(got))
			}
		}
	}
	for _, c := range catalog.Causes() {
		for _, s := range c.Signs() {
			if s.Many != 0 && !tried[s.Signal] {
				t.Errorf("%s: %s with many ends is not tried", c.ID, s.Signal)
			}
		}
	}
}

// TestManyPeersAreOneLine: a finding about many peers shows their sum.
func TestManyPeersAreOneLine(t *testing.T) {
	var list []observation
	for i := range 40 {
		list = append(list, seen("drop.neighbour_table", client, fmt.Sprintf("10.99.0.%d", i), float64(100-i)))
	}
	got := evaluate(list, 10*time.Second)
	if len(got) != 1 || len(got[0].Evidence) != 1 || got[0].Evidence[0].Value != 3220 || !strings.HasPrefix(got[0].Evidence[0].Text, "3220 packets to 40 ends (such as 10.99.0.0) were dropped") {
		t.Errorf("%+v", got)
	}
	// Some of the clients reach the threshold alone.
	list = nil
	for i := range 40 {
		list = append(list, observation{signal: "tcp.refused", owner: fmt.Sprintf("10.99.0.%d", i), peer: web, value: float64(1 + i%8), what: "8081", blame: web})
	}
	got = evaluate(list, 10*time.Second)
	if len(got) != 1 || len(got[0].Evidence) != 1 || got[0].Evidence[0].Value != 180 || !strings.HasPrefix(got[0].Evidence[0].Text, "40 ends (such as 10.99.0.") || !strings.Contains(got[0].Evidence[0].Text, "): 180 connections to shop/web-0 were refused at port 8081") {
		t.Errorf("%+v", got)
	}
}

// TestFindingsAreWhole: each finding has evidence that can be verified, and a next
// command.
func TestFindingsAreWhole(t *testing.T) {
	for _, c := range cases {
		for _, f := range evaluate(c.is, 10*time.Second) {
			if f.Score <= 0 || f.Score > 1 || f.Title == "" || len(f.Evidence) == 0 || len(f.about.Next) == 0 {
				t.Errorf("%+v", f)
			}
			if strings.ContainsAny(f.Title, "{}") {
				t.Errorf("%s: the title is %q", f.Cause, f.Title)
			}
			for _, e := range f.Evidence {
				if strings.ContainsAny(e.Text, "{}") || e.Source == "" || e.Value == 0 {
					t.Errorf("%s: evidence %+v", f.Cause, e)
				}
			}
		}
	}
}

// TestNoFindingHidesAnothers: the actions of a process in its pod, or of a user of the
// node, hide no finding about others. The real reason of a finding does hide it.
func TestNoFindingHidesAnothers(t *testing.T) {
	const thief, user = "lab/thief-0", Node
	loss := []observation{seen("tcp.lost", client, "192.0.2.7", 60), seen("TcpOutSegs", client, "", 1000)}
	lossTo := func(peer string) []observation {
		return []observation{seen("tcp.lost", client, peer, 60), seen("TcpOutSegs", client, "", 1000)}
	}
	overflow := func(owner string) []observation {
		return []observation{seen("TcpExtListenOverflows", owner, "", 900), {signal: "listen.full", owner: owner, value: 2, what: "9, which holds 1"}}
	}
	for _, c := range []struct {
		name       string
		stolen, by []observation
		cause      string // expected cause in place of stolen
		hidden     bool
	}{
		{"a user of the node does not accept", loss, overflow(user), "wire-loss", false},
		{"the node's own service does not accept, and a pod has trouble with it", lossTo(Node), overflow(user), "wire-loss", true},
		{"a pod does not accept", lossTo(web), overflow(web), "wire-loss", true},
		{"a user of the node has a socket that is full", []observation{{signal: "dns.slow", owner: client, peer: web, value: 6}, seen("dns.lookups", client, web, 8)},
			[]observation{seen("udp.full", user, "", 900), seen("udp.datagrams", user, "", 1000)}, "dns-slow", false},
		{"the DNS server of the node has a socket that is full", []observation{{signal: "dns.slow", owner: client, peer: Node, value: 6}, seen("dns.lookups", client, Node, 8)},
			[]observation{seen("udp.full", Node, "", 900), seen("udp.datagrams", Node, "", 1000)}, "dns-slow", true},
		{"another client does not read", loss, []observation{seen("window.closed", client, thief, 3)}, "wire-loss", false},
		{"the client does not read", lossTo(web), []observation{seen("window.closed", client, web, 3)}, "wire-loss", true},
		{"somebody leaves unread what the pod sends", loss, []observation{seen("unread.stands", thief, client, 50_000)}, "wire-loss", false},
		{"somebody calls an address that is not there", loss, []observation{seen("drop.neighbour", thief, "10.0.0.99", 20)}, "wire-loss", false},
		{"somebody sends the pod wrong checksums", loss, []observation{seen("checksum.bad", client, thief, 20)}, "wire-loss", false},
		{"resets of a path, and a closed port of the same server", []observation{seen("reset.unsent", client, web, 9)},
			[]observation{{signal: "tcp.refused", owner: thief, peer: web, value: 9, what: "1", blame: web}}, "reset-by-middlebox", false},
		{"conntrack of the node is full", loss, []observation{{signal: "conntrack.used", owner: Node, value: 100, what: "10 of 10"}, seen("kubeskoop_conntrack_drop", Node, "", 9)}, "wire-loss", true},
		{"a pod's own shaper", loss, []observation{{signal: "shaper.waits", owner: thief, value: 500, what: "eth0"}, {signal: "shaper.packets", owner: thief, value: 900, what: "eth0"}, {signal: "shaper.queue", owner: thief, value: 9, what: "eth0"}}, "wire-loss", false},
	} {
		alone := evaluate(c.stolen, 10*time.Second)
		if len(alone) != 1 || alone[0].Cause != c.cause {
			t.Errorf("%s: alone: %s", c.name, names(alone))
			continue
		}
		by := evaluate(c.by, 10*time.Second)
		if len(by) == 0 {
			t.Errorf("%s: it is no trouble", c.name)
		}
		both := evaluate(append(append([]observation{}, c.stolen...), c.by...), 10*time.Second)
		i := slices.IndexFunc(both, func(f Finding) bool { return f.Cause == c.cause && f.Pod == alone[0].Pod && f.Blame == alone[0].Blame })
		if hidden := i < 0; hidden != c.hidden {
			t.Errorf("%s: hidden %v, want %v: %s", c.name, hidden, c.hidden, names(both))
		}
	}
}
