package bpf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
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

	"nodeskoop/testdata/need"
	"nodeskoop/testdata/proof"
)

// The tests TestLoss* lose packets in each way that the kernel has, a known
// number of times, and demand that packetloss counts exactly those: in the
// namespace that lost them and in no other, with class, reason and function.

// losses is how many packets most cases lose.
const losses = 25

// The ports of the cases' datagrams.
const (
	lossFrom = 40000
	lossTo   = 9 // nobody listens there
)

// lossLab is three namespaces in a row, of which the middle one forwards, and
// one probe for all the cases of a test.
type lossLab struct {
	*testLoader
	p       *Probe
	r       *router
	a, b    *namespace // the sender and the receiver, if a case does not say otherwise
	reasons *Reasons
	read    int // events that earlier cases had
}

func newLossLab(t *testing.T) *lossLab {
	t.Helper()
	r := newRouter(t)
	l := newTestLoader(t, Options{EventRate: 1e6, EventBurst: 1e6})
	x := &lossLab{testLoader: l, p: l.load("packetloss", Config{NoStack: true}), r: r, a: r.a, b: r.b}
	x.quiet()
	var err error
	if x.reasons, err = l.Reasons(); err != nil {
		t.Fatal(err)
	}
	return x
}

// quiet waits for the multicast reports that a new address is good for.
func (x *lossLab) quiet() {
	x.t.Helper()
	sent := func() (n uint64) {
		for _, ns := range []*namespace{x.a, x.b, x.r.namespace} {
			n += ns.counter(x.t, "Icmp6.OutMsgs")
		}
		return n
	}
	still := 0
	for last, i := sent(), 0; i < 100 && still < 8; i++ {
		time.Sleep(25 * time.Millisecond)
		now := sent()
		if still++; now != last {
			still = 0
		}
		last = now
	}
}

// loss is what a case demands.
type loss struct {
	in *namespace // that loses
	n  uint64     // packets; 0: as many as the independent source says
	// source counts the same by other means, such as a counter of nft, tc or
	// the MIB. It is read before and after.
	source func(t *testing.T) uint64
	class  DropClass
	// orClass is another class that part of the losses may have, or what other
	// kernels give them; 0: none.
	orClass DropClass
	// reasons are the names that kernels give, of which one must be met,
	// separated by spaces. A kernel without reasons gives none.
	reasons string
	// functions are where kernels drop the packet, separated by spaces; empty:
	// it depends on what the compiler made of it.
	functions string
	// unseen is for packets that the kernel frees without a word: the source
	// counts them, and the probe must count nothing.
	unseen bool
	// only restricts what is looked at to some functions, and maybe accepts a
	// kernel that tells nothing of the losses.
	only  string
	maybe bool
	// prepare does what must be done before anything is counted.
	prepare func(t *testing.T)
	// told is how many the probe must count, where the source counts something
	// else, and most how many it may, where that depends on the kernel.
	told, most uint64

	from, to netip.AddrPort // of the events, where valid
	protocol uint8          // of the events, if not 0
	device   string         // of the events, if not empty
}

// lose runs a case.
func (x *lossLab) lose(t *testing.T, name string, want loss, cause func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		outer := x.t
		x.t = t
		defer func() { x.t = outer }()
		if want.prepare != nil {
			want.prepare(t)
		}
		x.steady(func() (n uint64) {
			drops := x.dropped()
			for _, ns := range []*namespace{x.a, x.b, x.r.namespace} {
				n += x.in(ns.inode, drops)
			}
			return n
		})
		// What the case before left behind has its events too.
		x.within(func() bool {
			written := x.account(PacketLoss).Written
			x.mu.Lock()
			defer x.mu.Unlock()
			x.read = len(x.events)
			return uint64(x.read) >= written
		})
		before := x.dropped()
		var source uint64
		if want.source != nil {
			source = want.source(t)
		}
		cause(t)
		n := want.n
		if want.source != nil {
			x.steady(func() uint64 { return want.source(t) - source })
			source = want.source(t) - source
			if n == 0 {
				n = source
			}
			if source != n || n == 0 {
				t.Errorf("the independent source counts %d, want %d", source, n)
			}
		}
		x.compare(t, name, want, n, before)
	})
}

// within gives something a while to come true.
func (x *lossLab) within(ok func() bool) {
	for deadline := time.Now().Add(3 * time.Second); !ok() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// steady waits until a number stands still.
func (x *lossLab) steady(f func() uint64) {
	last := f()
	for range 100 {
		time.Sleep(20 * time.Millisecond)
		now := f()
		if now == last {
			return
		}
		last = now
	}
}

// dropped are the counts of all namespaces.
func (x *lossLab) dropped() map[dropKey]uint64 {
	m := map[dropKey]uint64{}
	if err := x.p.Drops(func(d Drop) {
		m[dropKey{uint32(d.Netns), d.Reason, d.Location}] = d.Count
	}); err != nil {
		x.t.Fatal(err)
	}
	return m
}

func (x *lossLab) in(netns uint64, m map[dropKey]uint64) (n uint64) {
	for k, v := range m {
		if uint64(k.Netns) == netns {
			n += v
		}
	}
	return n
}

// noise finds what the namespaces' own reports and questions to multicast
// groups came to, which no case is about.
func (x *lossLab) noise(want loss) map[dropKey]uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := map[dropKey]uint64{}
	for _, e := range x.events[x.read:] {
		if want.foreign(&e) {
			m[dropKey{uint32(e.Netns), e.Reason, e.Location}]++
		}
	}
	return m
}

func (w *loss) foreign(e *Event) bool {
	return e.Destination.Addr().IsMulticast() && e.Destination != w.to && (e.Protocol == unix.IPPROTO_ICMPV6 || e.Protocol == unix.IPPROTO_IGMP)
}

func (x *lossLab) compare(t *testing.T, name string, want loss, n uint64, before map[dropKey]uint64) {
	t.Helper()
	since := func() map[dropKey]uint64 {
		now := x.dropped()
		for k, v := range before {
			if now[k] -= v; now[k] == 0 {
				delete(now, k)
			}
		}
		return now
	}
	expected := n
	if want.unseen {
		expected = 0
	}
	if want.told > 0 {
		expected = want.told
	}
	names := map[uint64]string{0: "unattributed"}
	for name, ns := range map[string]*namespace{"a": x.a, "b": x.b, "router": x.r.namespace} {
		names[ns.inode] = name
	}
	x.within(func() bool { return x.in(want.in.inode, since()) >= expected })
	x.steady(func() uint64 { return x.in(want.in.inode, since()) })
	// Each loss has its event, which may be on its way still.
	x.within(func() bool {
		got := since()
		var drops, events uint64
		for netns := range names {
			drops += x.in(netns, got)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, e := range x.events[x.read:] {
			if _, ours := names[e.Netns]; ours {
				events++
			}
		}
		return events >= drops
	})
	got := since()
	noise := x.noise(want)

	var total uint64
	for _, k := range slices.SortedFunc(maps.Keys(got), func(a, b dropKey) int { return int(a.Netns) - int(b.Netns) }) {
		where, ours := names[uint64(k.Netns)]
		if !ours {
			continue
		}
		if k.Netns == 0 && !need.InVM() {
			continue // other tests may run on this machine
		}
		reason, function, class := x.reasons.Drop(k.Reason), x.Symbols().Function(k.Location), x.p.classOf(k)
		if got[k] -= min(noise[k], got[k]); got[k] == 0 {
			continue
		}
		if want.only != "" && uint64(k.Netns) == want.in.inode && !slices.Contains(strings.Fields(want.only), function) {
			t.Logf("survey: %s: caused %d; %s: (besides) %d class %d %s %s", name, n, where, got[k], class, reason, function)
			continue
		}
		t.Logf("survey: %s: caused %d; %s: %d class %d %s %s", name, n, where, got[k], class, reason, function)
		if uint64(k.Netns) != want.in.inode {
			t.Errorf("%d drops in namespace %s, by %s for %s", got[k], where, function, reason)
			continue
		}
		total += got[k]
		if class != want.class && (want.orClass == 0 || class != want.orClass) {
			t.Errorf("%d drops of class %d, want %d", got[k], class, want.class)
		}
		if len(x.reasons.drop) > 0 && !slices.Contains(strings.Fields(want.reasons), reason) {
			t.Errorf("%d drops for %s, want %s", got[k], reason, want.reasons)
		}
		if want.functions != "" && !slices.Contains(strings.Fields(want.functions), function) {
			t.Errorf("%d drops in %s, want %s", got[k], function, want.functions)
		}
	}
	if want.maybe && total == 0 {
		expected = 0
	}
	if expected == 0 && total == 0 {
		t.Logf("survey: %s: caused %d; not told", name, n)
	}
	if total > expected && total <= want.most {
		expected = total
	}
	proof.Count(t, "packetloss", kindsOf(x.p), name, expected, total)
	x.compareEvents(t, want, expected)
}

// compareEvents demands one event for each loss.
func (x *lossLab) compareEvents(t *testing.T, want loss, n uint64) {
	t.Helper()
	x.mu.Lock()
	events := slices.Clone(x.events[x.read:])
	x.mu.Unlock()
	var have uint64
	wrong := map[string]int{}
	defer func() {
		said := 0
		for w, n := range wrong {
			if said++; said <= 5 {
				t.Errorf("%d times %s", n, w)
			}
		}
	}()
	for _, e := range events {
		if want.foreign(&e) {
			continue
		}
		if e.Netns != want.in.inode {
			if lossNets.MatchString(e.Source.Addr().String()) || lossNets.MatchString(e.Destination.Addr().String()) {
				wrong[fmt.Sprintf("event in namespace %d: %v -> %v on %q, %s in %s", e.Netns, e.Source, e.Destination, e.Device(), x.reasons.Drop(e.Reason), x.Symbols().Function(e.Location))]++
			}
			continue
		}
		if want.only != "" && !slices.Contains(strings.Fields(want.only), x.Symbols().Function(e.Location)) {
			continue
		}
		have++
		if want.from.IsValid() && e.Source != want.from || want.to.IsValid() && e.Destination != want.to ||
			want.protocol != 0 && e.Protocol != want.protocol || want.device != "" && e.Device() != want.device {
			wrong[fmt.Sprintf("event of protocol %d, %v -> %v on %q, want %d, %v -> %v on %q", e.Protocol, e.Source, e.Destination, e.Device(), want.protocol, want.from, want.to, want.device)]++
		}
	}
	if have != n {
		t.Errorf("%d events, want %d", have, n)
	}
}

// lossNets are the addresses of newRouter.
var lossNets = regexp.MustCompile(`^(10\.[12]\.0\.|fd0[12]::)`)

// ---- sources ----

// mib gives one of the kernel's counters.
func mib(n *namespace, name string) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 { t.Helper(); return n.counter(t, name) }
}

// mibs adds several.
func mibs(n *namespace, names ...string) func(*testing.T) uint64 {
	return func(t *testing.T) (sum uint64) {
		t.Helper()
		for _, name := range names {
			sum += n.counter(t, name)
		}
		return sum
	}
}

// number finds the one number in a program's output.
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

// nftCount adds the counters of all rules.
func nftCount(n *namespace) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 {
		t.Helper()
		return number(t, n.run(t, "nft", "list", "ruleset"), `counter packets (\d+) `)
	}
}

// qdiscDrops adds what the queueing disciplines of a device say that they dropped.
func qdiscDrops(n *namespace, device string) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 {
		t.Helper()
		return number(t, n.run(t, "tc", "-s", "qdisc", "show", "dev", device), `dropped (\d+),`)
	}
}

// linkCount is a counter of `ip -s link`, as "rx.dropped".
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

func (n *namespace) sysctl(t *testing.T, name, value string) {
	t.Helper()
	n.do(t, func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
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

// ruleset is nft's for one case.
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

// ---- senders ----

// udp sends datagrams from port lossFrom. What the kernel answers to the
// sender is no matter.
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

// steal makes a device take packets away without a word, for one case: what it
// sends (egress) or what it receives.
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

// each runs cases for both IP versions.
func (x *lossLab) each(t *testing.T, f func(t *testing.T, family string, from, to netip.Addr)) {
	t.Helper()
	f(t, "IPv4", x.a.v4, x.b.v4)
	f(t, "IPv6", x.a.v6, x.b.v6)
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// ---- filters ----

func TestLossFilters(t *testing.T) {
	x := newLossLab(t)
	hook := func(in *namespace, hook string) string {
		return fmt.Sprintf("add table inet t; add chain inet t c { type filter hook %s priority 0; }; add rule inet t c udp dport %d counter ", hook, lossTo)
	}
	netdev := func(in *namespace, hook string) string {
		return fmt.Sprintf("add table netdev t; add chain netdev t c { type filter hook %s device eth0 priority 0; }; add rule netdev t c udp dport %d counter ", hook, lossTo)
	}
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		for _, c := range []struct {
			in                    *namespace
			hook, verdict, device string
			rule                  func(*namespace, string) string
		}{
			{x.b, "prerouting", "drop", "eth0", hook},
			{x.b, "input", "drop", "eth0", hook},
			{x.b, "input", "reject", "eth0", hook},
			{x.r.namespace, "forward", "drop", "left", hook},
			{x.r.namespace, "forward", "reject", "left", hook},
			{x.r.namespace, "postrouting", "drop", "right", hook},
			{x.a, "output", "drop", "eth0", hook},
			{x.a, "output", "reject", "eth0", hook},
			{x.a, "postrouting", "drop", "eth0", hook},
			{x.b, "ingress", "drop", "eth0", netdev},
			{x.a, "egress", "drop", "eth0", netdev},
		} {
			x.lose(t, family+" nft "+c.hook+" "+c.verdict, loss{
				in: c.in, n: losses, source: nftCount(c.in), class: DropNetfilter, reasons: "NETFILTER_DROP",
				from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_UDP,
			}, func(t *testing.T) {
				rules := c.rule(c.in, c.hook) + c.verdict
				if c.hook == "egress" {
					err := c.in.try(func() error { return nil })
					_ = err
				}
				c.in.ruleset(t, rules)
				x.a.udp(t, port(to, lossTo), losses, 10)
			})
		}
	})
}
