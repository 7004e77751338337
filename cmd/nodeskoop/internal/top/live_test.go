package top

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/tty"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// routed creates a host with two pods behind it, a with 10.1.0.2 and b with
// 10.2.0.2.
func routed(t *testing.T) (host, a, b *nsnet.Space, pods *nsnet.Pods) {
	t.Helper()
	host, a, b = nsnet.New(t), nsnet.New(t), nsnet.New(t)
	host.Sysctl("net/ipv4/ip_forward", "1")
	pods = &nsnet.Pods{}
	for i, s := range []*nsnet.Space{a, b} {
		n := strconv.Itoa(i + 1)
		host.Run("ip", "link", "add", "pod"+n, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(s.PID))
		host.Run("ip", "addr", "add", "10."+n+".0.1/24", "dev", "pod"+n)
		host.Run("ip", "link", "set", "pod"+n, "up")
		s.Run("ip", "addr", "add", "10."+n+".0.2/24", "dev", "eth0")
		s.Run("ip", "link", "set", "eth0", "up")
		s.Run("ip", "route", "add", "default", "via", "10."+n+".0.1")
		p := s.Pod(string(rune('a' + i)))
		p.Addrs = []netip.Addr{netip.MustParseAddr("10." + n + ".0.2")}
		pods.List = append(pods.List, p)
	}
	host.AwaitUp("pod1")
	host.AwaitUp("pod2")
	// Neighbour entries exist from here on.
	there, asks := b.Packets("udp", "10.2.0.2:7"), a.Dial("udp", "10.2.0.2:7")
	testkit.Eventually(t, "a datagram gets from a to b", func() bool {
		fmt.Fprint(asks, "x")
		_ = there.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _, err := there.ReadFrom(make([]byte, 8))
		return err == nil
	})
	_ = there.Close() // including duplicates
	_ = asks.Close()
	return host, a, b, pods
}

// Each packet dropped by the host's rules counts once for each pod that sent it
// or should have received it; a packet dropped by a pod's own rules counts for
// that pod only. On a healthy node all counts are 0 and no event is sent.
func TestHostDropsShowAtThePod(t *testing.T) {
	need.Program(t, "nft")
	host, a, b, pods := routed(t)
	host.Run("nft", "add table ip t; add chain ip t forward { type filter hook forward priority 0; }; add rule ip t forward udp dport 9 drop; "+
		"add chain ip t input { type filter hook input priority 0; }; add rule ip t input udp dport 10 drop")
	b.Run("nft", "add table ip t; add chain ip t input { type filter hook input priority 0; }; add rule ip t input udp dport 11 drop")
	s := newSampler(t, pods, host.Path)
	sums := map[string]map[string]float64{"test/a": {}, "test/b": {}, "host": {}}
	sample := func() {
		for _, r := range s.sample().rows {
			for i, c := range columns[:2] {
				if r.cells[i].known {
					sums[r.name()][c.Name] += r.cells[i].count
				}
				if r.cells[i].least {
					t.Errorf("%s of %s is a lower bound", c.Name, r.name())
				}
			}
		}
	}
	for range 3 { // the counters are compared from here on
		sample()
	}

	// Healthy traffic over the same path.
	heard := b.Packets("udp", "10.2.0.2:12")
	well := a.Dial("udp", "10.2.0.2:12")
	for range 20 {
		fmt.Fprint(well, "x")
	}
	buf := make([]byte, 8)
	for range 20 {
		if _, _, err := heard.ReadFrom(buf); err != nil {
			t.Fatal(err)
		}
	}
	sample()
	for name, sum := range sums {
		if sum["drops"] != 0 || sum[hostDrops] != 0 {
			t.Errorf("in good health %s has %v", name, sum)
		}
	}
	for _, name := range []podName{{"test", "a"}, {"test", "b"}} {
		if kinds, _ := s.events.kindsOf(name, name.pod); len(kinds) > 0 {
			t.Errorf("in good health %v has the events %+v", name, kinds)
		}
	}

	const forwarded, toHost, inPod = 30, 4, 5
	for to, n := range map[string]int{"10.2.0.2:9": forwarded, "10.1.0.1:10": toHost, "10.2.0.2:11": inPod} {
		c := a.Dial("udp", to)
		for range n {
			fmt.Fprint(c, "x")
		}
	}
	want := map[string]map[string]float64{
		"host":   {"drops": forwarded + toHost},
		"test/a": {hostDrops: forwarded + toHost},
		"test/b": {"drops": inPod, hostDrops: forwarded},
	}
	testkit.Await(t, func() error {
		sample()
		for name, w := range want {
			for column, n := range w {
				if got := sums[name][column]; got < n {
					return fmt.Errorf("%s of %s: %v of %v", column, name, got, n)
				}
			}
		}
		return nil
	})
	sample()
	for name, sum := range sums {
		for _, column := range []string{"drops", hostDrops} {
			if sum[column] != want[name][column] {
				t.Errorf("%s of %s: %v, want %v", column, name, sum[column], want[name][column])
			}
		}
	}
	peers := func(name podName) (out []string) {
		kinds, _ := s.events.kindsOf(name, name.pod)
		for _, k := range kinds {
			out = append(out, fmt.Sprintf("%d %s host:%v %s", k.count, k.typ.Name, k.host, k.peer))
		}
		slices.Sort(out)
		return out
	}
	if got, want := peers(podName{"test", "a"}), []string{"30 PacketLoss host:true to test/b:9", "4 PacketLoss host:true to 10.1.0.1:10"}; !slices.Equal(got, want) {
		t.Errorf("the events of a: %q, want %q", got, want)
	}
	if got, want := peers(podName{"test", "b"}), []string{"30 PacketLoss host:true from test/a to :9", "5 PacketLoss host:false from test/a to :11"}; !slices.Equal(got, want) {
		t.Errorf("the events of b: %q, want %q", got, want)
	}
}

// The page of a pod shows its namespace and processes.
func TestPageOfAPod(t *testing.T) {
	host, a, b, pods := routed(t)
	s := newSampler(t, pods, host.Path)
	listener := b.Listen("tcp", "10.2.0.2:80")
	client := a.Dial("tcp", "10.2.0.2:80")
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	a.Dial("tcp", "10.2.0.2:80") // stays in the accept queue
	if _, err := client.Write(make([]byte, 1234)); err != nil {
		t.Fatal(err)
	}
	s.Open(&podName{"test", "b"})
	var text string
	testkit.Await(t, func() error {
		x := s.sample()
		if x.page == nil {
			t.Fatal("no page is sampled")
		}
		text = shown(x.page.lines())
		for _, want := range []string{"10.2.0.2", "1234 B received and not read", "10.2.0.2:80", "from test/a to :80", "  cat\n"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %q on the page:\n%s", want, text)
			}
		}
		return nil
	})
	for _, l := range strings.Split(text, "\n") {
		f := strings.Fields(l)
		switch {
		case len(f) == 3 && f[2] == "10.2.0.2:80" && f[0] != "1":
			t.Errorf("the accept queue of one: %q", l)
		case strings.HasSuffix(l, "from test/a to :80") && !slices.Equal(f[:3], []string{"2", "1234", "0"}):
			t.Errorf("two connections, one with 1234 bytes: %q", l)
		}
	}
	t.Logf("\n%s", text)

	s.Open(&hostName)
	if text = shown(s.again().page.lines()); !strings.Contains(text, "see ps") || !strings.Contains(text, "no connection") {
		t.Errorf("the host's page:\n%s", text)
	}
	pods.List = pods.List[:1]
	s.Open(&podName{"test", "b"})
	if text = shown(s.again().page.lines()); !strings.Contains(text, "the pod has ended") {
		t.Errorf("the page of a pod that has ended:\n%s", text)
	}
	s.Open(nil)
	if x := s.sample(); x.page != nil {
		t.Error("a page is sampled that nobody looks at")
	}
}

// discard is a terminal of 200 columns and 50 rows that counts the bytes written.
type discard struct {
	written int
	ended   chan struct{}
}

func (*discard) Start() error { return nil }
func (*discard) Stop() error  { return nil }
func (d *discard) Drain() error {
	select {
	case <-d.ended:
	default:
		close(d.ended)
	}
	return nil
}
func (*discard) NotifyResize(chan<- bool) {}
func (*discard) WindowSize() (tty.WindowSize, error) {
	return tty.WindowSize{Width: 200, Height: 50}, nil
}
func (d *discard) Read([]byte) (int, error)    { <-d.ended; return 0, net.ErrClosed }
func (d *discard) Write(b []byte) (int, error) { d.written += len(b); return len(b), nil }
func (*discard) Close() error                  { return nil }

// BenchmarkTop refreshes the table of 200 idle pods every second, so an iteration
// takes a second. -benchtime 60x measures a minute.
func BenchmarkTop(b *testing.B) {
	need.Root(b)
	pods, ends := &nsnet.Pods{}, nsnet.Make(b)
	for i := range 200 {
		s := nsnet.Make(b)
		ends.Run("ip", "link", "add", fmt.Sprint("v", i), "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(s.PID))
		// Like a namespace whose veth peer is in the host's namespace.
		ns, err := os.Open(s.Path)
		if err != nil {
			b.Fatal(err)
		}
		err = netlink.SetNetNsIdByFd(int(ns.Fd()), -1)
		ns.Close()
		if err != nil {
			b.Fatal(err)
		}
		p := s.Pod(fmt.Sprintf("checkout-worker-7d9f8b6c44-%05d", i))
		p.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(i)})}
		pods.List = append(pods.List, p)
	}
	slices.SortFunc(pods.List, func(a, b *owner.Pod) int { return strings.Compare(a.Name, b.Name) })
	d := &discard{ended: make(chan struct{})}
	screen, err := tcell.NewTerminfoScreenFromTty(d)
	if err != nil {
		b.Fatal(err)
	}
	if err := screen.Init(); err != nil {
		b.Fatal(err)
	}
	defer screen.Fini()
	s := newSampler(b, pods, "/proc/self/ns/net")
	v := &View{Screen: screen, Order: Order{Column: "rx_bytes"}, Interval: time.Second}
	refresh := func() {
		v.table = s.sample()
		v.draw()
	}
	for range 3 {
		refresh()
	}
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	tick := time.NewTicker(v.Interval)
	defer tick.Stop()
	before, written, begun := used(), d.written, time.Now()
	for b.Loop() {
		<-tick.C
		refresh()
	}
	b.ReportMetric(1000*(used()-before).Seconds()/float64(b.N), "cpu-ms/refresh")
	b.ReportMetric(100*(used()-before).Seconds()/time.Since(begun).Seconds(), "%cpu")
	b.ReportMetric(float64(d.written-written)/float64(b.N), "bytes/refresh")
	b.ReportMetric(0, "ns/op")
	if n := len(v.table.rows); n != 201 {
		b.Errorf("%d rows", n)
	}
}
