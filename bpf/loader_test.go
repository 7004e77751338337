package bpf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// flood sends datagrams to a closed port: each is a drop.
func flood(t testing.TB, a, b *namespace, n int) {
	t.Helper()
	b.run(t, "nft", "add table inet flood; add chain inet flood in { type filter hook input priority 0; }; add rule inet flood in udp dport 7 drop")
	send(t, a.dial(t, "udp", netip.AddrPortFrom(b.v4, 7)), n)
}

// TestRingFull: events that find the ring full count as lost, and the probe's
// counter is not affected.
func TestRingFull(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{RingSize: 4096, EventRate: 1e9, EventBurst: 1e6})
	l.stop()
	p := l.load("packetloss", Config{})
	const n = 5000
	flood(t, a, b, n)
	if got := l.settled(p, b.inode); got[DropNetfilter] != n {
		t.Errorf("%v, want %d drops", got[:dropClasses], n)
	}
	account := l.account(PacketLoss)
	if account.Lost == 0 || account.Suppressed != 0 || account.Seen < n || account.Written+account.Lost != account.Seen {
		t.Errorf("%+v", account)
	}
	// Written events can still be read.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Events(ctx, func(*Event) {}) }()
	l.eventually("the rest of the ring", func() bool { return l.account(PacketLoss).Read == account.Written })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("%+v", account)
}

// TestEventsOff: counting does not depend on events.
func TestEventsOff(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	if err := l.SetEventLimit(PacketLoss, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.SetEventLimit(0, 1, 1); err == nil {
		t.Error("a limit for no type")
	}
	p := l.load("packetloss", Config{})
	flood(t, a, b, 100)
	if got := l.settled(p, b.inode); got[DropNetfilter] != 100 {
		t.Errorf("%v, want 100 drops", got[:dropClasses])
	}
	if account := l.account(PacketLoss); account.Seen != 0 {
		t.Errorf("%+v", account)
	}
	// Enabled again, for a burst of three.
	if err := l.SetEventLimit(PacketLoss, 0.001, 3); err != nil {
		t.Fatal(err)
	}
	send(t, a.dial(t, "udp", netip.AddrPortFrom(b.v4, 7)), 10)
	l.settled(p, b.inode)
	l.eventually("the ring to be read", func() bool {
		account := l.account(PacketLoss)
		return account.Seen >= 10 && account.Read == account.Written
	})
	if events := l.taken(PacketLoss, b.inode, 3); len(events) != 3 {
		t.Errorf("%d events, want 3", len(events))
	}
}

// TestLimitRaised: a bucket emptied under a narrow limit reopens by the wide limit
// that replaces it, not when the narrow one would have allowed it.
func TestLimitRaised(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	if err := l.SetEventLimit(PacketLoss, 0.01, 3); err != nil { // the bucket is full again after five minutes
		t.Fatal(err)
	}
	p := l.load("packetloss", Config{})
	flood(t, a, b, 10)
	l.settled(p, b.inode)
	if events := l.taken(PacketLoss, b.inode, 3); len(events) != 3 {
		t.Fatalf("%d events, want 3", len(events))
	}
	if err := l.SetEventLimit(PacketLoss, 20, 100); err != nil {
		t.Fatal(err)
	}
	again := a.dial(t, "udp", netip.AddrPortFrom(b.v4, 7))
	l.eventually("an event under the new limit", func() bool {
		send(t, again, 1)
		return len(l.taken(PacketLoss, b.inode, 3)) > 3
	})
}

// TestForget: the counters of a namespace are deleted, and its number counts from
// zero.
func TestForget(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	loss := l.load("packetloss", Config{})
	reset := l.load("tcpreset", Config{})
	once := func() {
		flood(t, a, b, 10)
		to := b.closedPort(t, b.v4)
		a.try(func() error {
			c, err := net.Dial("tcp", to.String())
			if err == nil {
				c.Close()
			}
			return nil
		})
		b.run(t, "nft", "delete", "table", "inet", "flood")
		l.settled(reset, b.inode)
		if got := l.settled(loss, b.inode); got[DropNetfilter] != 10 {
			t.Errorf("%v", got)
		}
		if got := counters(t, reset, b.inode); got[ResetNosock] != 1 {
			t.Errorf("%v", got)
		}
	}
	once()
	if err := l.forget(b.inode); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Probe{loss, reset} {
		if err := p.Counters(func(netns NetnsID, _ int, _ uint64) {
			if netns.Inode() == b.inode {
				t.Errorf("%s: namespace %d is still there", p.Name(), netns)
			}
		}); err != nil {
			t.Error(err)
		}
	}
	once()
	if err := l.Forget(1 << 40); err != nil {
		t.Error(err)
	}
}

// TestManyNamespaces: occurrences that find the table full count for namespace 0.
func TestManyNamespaces(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Namespaces: 1})
	p := l.load("tcpreset", Config{})
	before := counters(t, p, 0)
	to := b.closedPort(t, b.v4)
	for range 5 {
		a.try(func() error {
			_, err := net.Dial("tcp", to.String())
			return err
		})
	}
	l.settled(p, 0)
	var nosock uint64
	if err := p.Counters(func(_ NetnsID, slot int, n uint64) {
		if slot == ResetNosock {
			nosock += n
		}
	}); err != nil {
		t.Fatal(err)
	}
	if got := counters(t, p, 0); nosock < 5 || got[ResetNosock]-before[ResetNosock] > nosock {
		t.Errorf("%d resets in all, %v for namespace 0", nosock, got[:4])
	}
}

// TestLeaks loads and closes everything repeatedly.
func TestLeaks(t *testing.T) {
	need.Root(t)
	cycle := func() {
		l, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range Probes() {
			var unsupported *UnsupportedError
			if _, err := l.Load(name, Config{}); err != nil && !errors.As(err, &unsupported) {
				t.Fatal(err)
			}
		}
		l.ReleaseBTF()
		if _, err := l.Stats(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	cycle()
	before := testkit.OpenFiles(t)
	for range 3 {
		cycle()
	}
	if after := testkit.OpenFiles(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestMemory: with all probes loaded and the kernel's types released, the heap
// holds no more than the probes' own tables.
func TestMemory(t *testing.T) {
	l := newTestLoader(t, Options{})
	for _, name := range Probes() {
		var unsupported *UnsupportedError
		if _, err := l.Load(name, Config{}); err != nil && !errors.As(err, &unsupported) {
			t.Fatal(err)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	with := heap()
	l.ReleaseBTF()
	without := heap()
	if without > 8<<20 {
		t.Errorf("%d KiB on the heap after the release, %d before", without>>10, with>>10)
	}
	t.Logf("%d KiB with the kernel's types, %d KiB without", with>>10, without>>10)
	if err := l.Symbols().Err(); err == nil {
		t.Logf("%d KiB with the kernel's symbols", heap()>>10)
	}
}

func TestLoaderErrors(t *testing.T) {
	if _, err := New(Options{Hooks: "uprobe"}); err == nil {
		t.Error("an unknown kind of hook was accepted")
	}
	need.Root(t)
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Load("nonsense", Config{}); err == nil {
		t.Error("an unknown probe was loaded")
	}
	p, err := l.Load("packetloss", Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Flows(func(Flow) {}); err == nil {
		t.Error("packetloss has flows")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Counters(func(NetnsID, int, uint64) {}); err == nil {
		t.Error("a closed probe counts")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Load("packetloss", Config{}); err == nil {
		t.Error("a closed loader loaded")
	}
}

func TestRingSize(t *testing.T) {
	page := uint32(os.Getpagesize())
	for n, want := range map[int]uint32{1: page, int(page): page, int(page) + 1: 2 * page, 1 << 20: 1 << 20} {
		if got := ringSize(n); got != want {
			t.Errorf("ring of %d bytes: %d, want %d", n, got, want)
		}
	}
}

// BenchmarkPrograms reports the cost of each program per run, by the kernel's own
// statistics, including their clock readings.
func BenchmarkPrograms(b *testing.B) {
	x, y := newPair(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skipf("needs the kernel's BPF statistics: %v", err)
	}
	defer stats.Close()
	l := newTestLoader(b, Options{NoChains: true})
	for _, name := range Probes() {
		var unsupported *UnsupportedError
		if _, err := l.Load(name, Config{}); err != nil && !errors.As(err, &unsupported) {
			b.Fatal(err)
		}
	}
	client, server := connect(b, x, y, y.v4)
	udp, udpServer := udpPair(b, x, y, y.v4)
	buffer := make([]byte, 64)
	for b.Loop() {
		for _, pair := range [][2]net.Conn{{client, server}, {udp, udpServer}} {
			if _, err := pair[0].Write(buffer); err != nil {
				b.Fatal(err)
			}
			if _, err := pair[1].Read(buffer); err != nil {
				b.Fatal(err)
			}
		}
	}
	s, err := l.Stats()
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range s.Programs {
		if p.Runs > 0 {
			b.ReportMetric(float64(p.RunTime.Nanoseconds())/float64(p.Runs), "ns/"+p.Probe+"."+p.Program)
		}
	}
}
