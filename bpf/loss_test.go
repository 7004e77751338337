package bpf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/proof"
)

// TestLoss* cause a known number of losses, one kind per case, and check that
// packetloss counts exactly those: in the namespace that lost the packets and in no
// other, with class, reason and function, and one event for each.
//
// Each case logs the kernel's report after the word "survey".
//
// Some run only in VMs, which have more modules (tc filters and actions, fq_codel,
// fq, sfq, netem, bridge VLANs), or because they change a limit of the whole
// machine (connection tracking). A full TCP backlog is not covered: it needs a
// socket whose owner holds the lock, and depends on timing.

// losses is the number of packets that most cases lose.
const losses = 25

// Ports of the cases' datagrams.
const (
	lossFrom = 40000
	lossTo   = 9 // a closed port
)

// Names in lossLab.known.
const (
	unattributed  = "unattributed"
	hostNamespace = "host"
)

// lossLab is three namespaces in a row, of which the middle one forwards, and one
// probe for all cases of a test. a has 10.131.0.1 and fd31::1 on eth0, the router
// 10.131.0.2 on left and 10.132.0.1 on right, b 10.132.0.2 on eth0.
type lossLab struct {
	*testLoader
	p       *Probe
	r       *router
	a, b    *namespace // default sender and receiver
	reasons *Reasons
	known   map[uint64]string // all namespaces in which a case may cause a loss, by inode; 0 is the unattributed one
	first   int               // index of the case's first event
	// ownerless: the kernel passes no socket with a freed packet (before 6.11).
	ownerless bool
}

func newLossLab(t *testing.T) *lossLab {
	t.Helper()
	need.Root(t)
	r := &router{namespace: newNamespace(t), a: newNamespace(t), b: newNamespace(t)}
	for i, end := range []struct {
		n          *namespace
		device     string
		host, gate byte
	}{{r.a, "left", 1, 2}, {r.b, "right", 2, 1}} {
		subnet := byte(i + 1)
		end.n.device = "eth0"
		r.link(t, end.device, end.n, subnet, end.gate, end.host)
		end.n.v4, end.n.v6 = lossAddrs(subnet, end.host)
		v4, v6 := lossAddrs(subnet, end.gate)
		for _, via := range []netip.Addr{v4, v6} {
			end.n.do(t, func() error { return netlink.RouteAdd(&netlink.Route{Gw: via.AsSlice()}) })
		}
	}
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		r.sysctl(t, f, "1")
	}
	l, p := kept.load(t, Options{EventRate: 1e6, EventBurst: 1e6}, Config{NoStack: true})
	x := &lossLab{testLoader: l, p: p, r: r, a: r.a, b: r.b, ownerless: socketsAreNoted()}
	x.quiet()
	host, err := kernel.Inode("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	x.known = map[uint64]string{0: unattributed, host: hostNamespace, x.a.inode: "a", x.b.inode: "b", r.inode: "router"}
	if x.reasons, err = l.Reasons(); err != nil {
		t.Fatal(err)
	}
	return x
}

// lossAddrs returns a host's addresses in one of the two subnets.
func lossAddrs(subnet, host byte) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 130 + subnet, 0, host}), netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x30 + subnet, 15: host})
}

// link creates a device in the router whose peer is eth0 in n. Static neighbour
// entries ensure that only the test's packets are sent.
func (r *router) link(t *testing.T, device string, n *namespace, subnet, mine, theirs byte) {
	t.Helper()
	r.do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: device, HardwareAddr: routerMAC(subnet, mine)}, PeerName: "eth0",
			PeerHardwareAddr: routerMAC(subnet, theirs), PeerNamespace: netlink.NsFd(int(n.handle)),
		})
	})
	for _, side := range []struct {
		n          *namespace
		device     string
		mine, peer byte
	}{{r.namespace, device, mine, theirs}, {n, "eth0", theirs, mine}} {
		v4, v6 := lossAddrs(subnet, side.mine)
		p4, p6 := lossAddrs(subnet, side.peer)
		side.n.configure(t, side.device, routerMAC(subnet, side.peer), []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)}, p4, p6)
	}
}

// configure gives a device addresses, and static entries for its peers.
func (n *namespace) configure(t *testing.T, device string, mac net.HardwareAddr, addrs []netip.Prefix, peers ...netip.Addr) {
	t.Helper()
	n.do(t, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMulticastOff(l); err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a.String())
			if err != nil {
				return err
			}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, p := range peers {
			if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: p.AsSlice(), HardwareAddr: mac}); err != nil {
				return err
			}
		}
		return nil
	})
}

// quiet waits until the namespaces have sent the multicast reports for their new
// addresses.
func (x *lossLab) quiet() {
	x.t.Helper()
	sent := func() (n uint64) {
		for _, ns := range []*namespace{x.a, x.b, x.r.namespace} {
			n += ns.counter(x.t, "Icmp6.OutMsgs")
		}
		return n
	}
	still(sent, 25*time.Millisecond, 8, 100)
}

// loss is the expectation of a case.
type loss struct {
	in *namespace // namespace that loses the packets
	n  uint64     // number of lost packets; 0 means source's count
	// most, if larger than n, allows kernels to lose up to this many, for example
	// one per fragment.
	most uint64
	// source counts the same losses independently (nft, tc, the MIB), before and
	// after the case.
	source func(t *testing.T) uint64
	// untold: no kernel passes these packets to kfree_skb, so source counts them
	// and the probe must not. maybe: only some kernels pass them.
	untold, maybe bool
	// withReasons: only kernels with drop reasons (since 5.17) pass these packets
	// to kfree_skb.
	withReasons bool
	// ownerless: on kernels that pass no socket, the namespace of these losses may
	// be unknown.
	ownerless bool

	class DropClass
	also  []DropClass // classes that some of the losses may have
	// reasons and functions are alternatives, separated by spaces. Kernels rename
	// and inline functions, and some give no reasons. Empty functions match any.
	reasons, functions string
	// only restricts the comparison to losses in these functions.
	only string

	// Addresses of each event, if set.
	from, to netip.AddrPort
	protocol uint8
	device   string

	// prepare does work that is not counted. Its cleanups run after the case.
	prepare func(t *testing.T)
}

// lose runs cause and compares the losses with the expectation.
func (x *lossLab) lose(t *testing.T, name string, want loss, cause func(t *testing.T)) {
	t.Helper()
	sighted(t, name, func(t *testing.T) {
		want := want // each attempt has its own expectation
		outer := x.t
		x.t = t
		defer func() { x.t = outer }()
		if want.prepare != nil {
			want.prepare(t)
		}
		x.begin()
		before := x.dropped()
		var source uint64
		if want.source != nil {
			source = want.source(t)
		}
		cause(t)
		if want.source != nil {
			count := func() uint64 { return want.source(t) - source }
			if want.n > 0 {
				within(func() bool { return count() >= want.n })
			}
			n := steady(count)
			if want.n == 0 {
				want.n = n
			}
			if n != want.n || n == 0 {
				t.Errorf("the independent source counts %d, want %d", n, want.n)
			}
		}
		x.compare(t, &want, before)
	})
}

// begin waits for the last losses and events of the previous case.
func (x *lossLab) begin() {
	steady(func() uint64 { return x.lost(x.dropped()) })
	within(func() bool {
		written := x.account(PacketLoss).Written
		x.mu.Lock()
		defer x.mu.Unlock()
		x.first = len(x.events)
		return uint64(x.first) >= written
	})
}

// within waits for a condition for a while.
func within(ok func() bool) {
	testkit.Within(testkit.Patience, ok)
}

// steady waits until a number is stable.
func steady(f func() uint64) uint64 { return still(f, 20*time.Millisecond, 1, 100) }

// still waits until a number is unchanged for consecutive beats, for at most `most`
// beats, and returns it.
func still(f func() uint64, beat time.Duration, beats, most int) uint64 {
	last := f()
	for same := 0; same < beats && most > 0; most-- {
		time.Sleep(beat)
		now := f()
		if same++; now != last {
			same = 0
		}
		last = now
	}
	return last
}

// dropped returns the counts of all namespaces, keyed by a Drop without count.
func (x *lossLab) dropped() map[Drop]uint64 {
	m := map[Drop]uint64{}
	if err := x.p.Drops(func(d Drop) {
		n := d.Count
		d.Count = 0
		m[d] = n
	}); err != nil {
		x.t.Fatal(err)
	}
	return m
}

// shared reports whether other programs on this machine lose packets in the
// namespace too; never in a VM.
func (x *lossLab) shared(netns uint64) bool {
	name := x.known[netns]
	return (name == unattributed || name == hostNamespace) && !need.InVM()
}

// lost sums the counts in the lab's own namespaces.
func (x *lossLab) lost(m map[Drop]uint64) (n uint64) {
	for d, count := range m {
		if x.known[d.Netns.Inode()] != "" && !x.shared(d.Netns.Inode()) {
			n += count
		}
	}
	return n
}

// eventsOf returns the case's events so far.
func (x *lossLab) eventsOf() []Event {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(x.events[x.first:]), func(e Event) bool { return x.known[e.Netns] == "" })
}

// report reports whether an event concerns one of the lab's own multicast reports
// or neighbour solicitations, which no case tests.
func (w *loss) report(e *Event) bool {
	return e.Destination.Addr().IsMulticast() && e.Destination != w.to && (e.Protocol == unix.IPPROTO_ICMPV6 || e.Protocol == unix.IPPROTO_IGMP)
}

func (x *lossLab) compare(t *testing.T, want *loss, before map[Drop]uint64) {
	t.Helper()
	expected := want.n
	if want.untold || want.withReasons && len(x.reasons.drop) == 0 {
		expected = 0
	}
	since := func() map[Drop]uint64 {
		now := x.dropped()
		for d, n := range before {
			if now[d] -= n; now[d] == 0 {
				delete(now, d)
			}
		}
		return now
	}
	total := func() uint64 { return x.lost(since()) }
	if !want.maybe {
		within(func() bool { return total() >= expected })
	}
	if n := steady(total); !want.maybe && excused(t, t.Name(), expected, n) {
		return
	}
	within(func() bool {
		var n uint64
		for _, e := range x.eventsOf() {
			if !x.shared(e.Netns) {
				n++
			}
		}
		return n >= total()
	})

	got, events := since(), x.eventsOf()
	for _, e := range events {
		if d, ok := dropOf(got, &e); ok && want.report(&e) {
			got[d]--
		}
	}
	var counted uint64
	for d, n := range got {
		if n == 0 || x.known[d.Netns.Inode()] == "" || x.shared(d.Netns.Inode()) {
			continue
		}
		reason, function := x.reasons.Drop(d.Reason), x.Symbols().Function(d.Location)
		owner := d.Netns.Inode() == want.in.inode || d.Netns == 0 && want.ownerless && x.ownerless
		aside := owner && !has(want.only, function)
		t.Logf("survey: %d lost; %s: %d of class %d, %s, %s", want.n, x.known[d.Netns.Inode()], n, d.Class, reason, function)
		switch {
		case aside:
			continue
		case !owner:
			t.Errorf("%d losses in namespace %s, for %s in %s", n, x.known[d.Netns.Inode()], reason, function)
			continue
		case d.Class != want.class && !slices.Contains(want.also, d.Class):
			t.Errorf("%d losses of class %d, want %d", n, d.Class, want.class)
		case len(x.reasons.drop) > 0 && !has(want.reasons, reason):
			t.Errorf("%d losses for %s, want %s", n, reason, want.reasons)
		case !has(want.functions, function):
			t.Errorf("%d losses in %s, want %s", n, function, want.functions)
		}
		counted += n
	}
	if counted == 0 {
		t.Logf("survey: %d lost; not told", want.n)
	}
	if want.maybe && counted == 0 || counted > expected && counted <= want.most {
		expected = counted
	}
	proof.Count(t, "packetloss", kindsOf(x.p), t.Name(), expected, counted)
	x.compareEvents(t, want, events, expected)
}

// lossNets matches the lab's own addresses.
var lossNets = regexp.MustCompile(`^(10\.13[12]\.|fd3[12]:)`)

// dropOf returns the count that an event belongs to.
func dropOf(m map[Drop]uint64, e *Event) (Drop, bool) {
	for d, n := range m {
		if n > 0 && d.Netns.Inode() == e.Netns && d.Reason == e.Reason && d.Location == e.Location {
			return d, true
		}
	}
	return Drop{}, false
}

// has reports whether a name is in a list, or the list is empty.
func has(list, name string) bool {
	return list == "" || slices.Contains(strings.Fields(list), name)
}

// compareEvents checks that there are n events with the expected fields.
func (x *lossLab) compareEvents(t *testing.T, want *loss, events []Event, n uint64) {
	t.Helper()
	var have uint64
	wrong := map[string]int{}
	for _, e := range events {
		function := x.Symbols().Function(e.Location)
		says := fmt.Sprintf("protocol %d, %v to %v on %q, %s in %s, namespace %s", e.Protocol, e.Source, e.Destination, e.Device(), x.reasons.Drop(e.Reason), function, x.known[e.Netns])
		switch {
		case want.report(&e):
		case e.Netns != want.in.inode && !(e.Netns == 0 && want.ownerless && x.ownerless):
			// On a shared machine the addresses identify the lab's events.
			if !x.shared(e.Netns) || lossNets.MatchString(e.Source.Addr().String()) || lossNets.MatchString(e.Destination.Addr().String()) {
				wrong[says]++
			}
		case !has(want.only, function):
		default:
			have++
			if want.from.IsValid() && e.Source != want.from || want.to.IsValid() && e.Destination != want.to ||
				want.protocol != 0 && e.Protocol != want.protocol || want.device != "" && e.Device() != want.device {
				wrong[says]++
			}
		}
	}
	if have != n {
		t.Errorf("%d events, want %d", have, n)
	}
	for i, says := range slices.Sorted(maps.Keys(wrong)) {
		if i == 5 {
			t.Errorf("and %d other events", len(wrong)-i)
			break
		}
		t.Errorf("%d events of %s; want protocol %d, %v to %v on %q", wrong[says], says, want.protocol, want.from, want.to, want.device)
	}
}

// mib returns a reader for one of the kernel's counters.
func mib(n *namespace, name string) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 { t.Helper(); return n.counter(t, name) }
}

// number sums the numbers that match the pattern in a program's output.
func number(t *testing.T, text, pattern string) (sum uint64) {
	t.Helper()
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// nftCount sums the counters of all rules.
func nftCount(n *namespace) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 {
		t.Helper()
		return number(t, n.run(t, "nft", "list", "ruleset"), `counter packets (\d+) `)
	}
}

// linkCount reads a counter of `ip -s link`, such as "rx.dropped".
func linkCount(n *namespace, device, name string) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 {
		t.Helper()
		var links []struct {
			Stats64 map[string]map[string]uint64
		}
		if out := n.run(t, "ip", "-s", "-s", "-j", "link", "show", "dev", device); json.Unmarshal([]byte(out), &links) != nil || len(links) != 1 {
			t.Fatalf("ip -s link: %s", out)
		}
		way, field, _ := strings.Cut(name, ".")
		return links[0].Stats64[way][field]
	}
}

// setting changes a sysctl for one case.
func (n *namespace) setting(t *testing.T, name, value string) {
	t.Helper()
	var old []byte
	n.do(t, func() (err error) {
		old, err = os.ReadFile("/proc/sys/net/" + name)
		return err
	})
	n.sysctl(t, name, value)
	t.Cleanup(func() { n.sysctl(t, name, string(bytes.TrimSpace(old))) })
}

// ruleset sets nft's ruleset for one case.
func (n *namespace) ruleset(t *testing.T, rules string) {
	t.Helper()
	n.run(t, "nft", rules)
	t.Cleanup(func() { n.run(t, "nft", "flush", "ruleset") })
}

func sh(t *testing.T, n *namespace, line string, args ...any) string {
	t.Helper()
	f := strings.Fields(fmt.Sprintf(line, args...))
	return n.run(t, f[0], f[1:]...)
}

// udp sends datagrams from port lossFrom, and ignores errors that the kernel
// returns.
func (n *namespace) udp(t *testing.T, to netip.AddrPort, count, size int) {
	t.Helper()
	n.do(t, func() error {
		domain, any := unix.AF_INET, netip.IPv4Unspecified()
		if to.Addr().Is6() {
			domain, any = unix.AF_INET6, netip.IPv6Unspecified()
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, lossFrom))); err != nil {
			return err
		}
		for range count {
			_ = unix.Sendto(fd, make([]byte, size), 0, sockaddr(to))
		}
		return nil
	})
}

// steal makes a device discard packets silently for one case: those that it sends
// (egress) or receives.
func (n *namespace) steal(t *testing.T, device string, egress bool) {
	t.Helper()
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if egress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	n.run(t, "tc", "qdisc", "add", "dev", device, "clsact")
	t.Cleanup(func() { n.run(t, "tc", "qdisc", "del", "dev", device, "clsact") })
	n.attach(t, device, parent, verdict(t, ebpf.SchedCLS, 4 /* TC_ACT_STOLEN */))
}

// each runs the cases for IPv4 and IPv6.
func (x *lossLab) each(t *testing.T, f func(t *testing.T, family string, from, to netip.Addr)) {
	t.Helper()
	f(t, "IPv4", x.a.v4, x.b.v4)
	f(t, "IPv6", x.a.v6, x.b.v6)
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
