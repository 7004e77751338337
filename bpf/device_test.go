package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

func TestNetiftxlatencyCountsAll(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{Slow100: Zero})
		const n = 500
		var queue, driver uint64
		// A veth has no qdisc of its own, so packets do not wait there.
		for _, queued := range []bool{false, true} {
			if queued {
				a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "pfifo", "limit", "1000")
			}
			for _, addrs := range families(a, b) {
				s := b.listenUDP(t, addrs[1])
				send(t, a.dial(t, "udp", addrPort(s.LocalAddr())), n)
				driver += n
				if queued {
					queue += n
				}
			}
			got := l.settled(p, a.inode)
			l.count(p, fmt.Sprintf("packets through the queue (there is one: %t)", queued), queue, got[QdiscSlow])
			l.count(p, "packets through the driver", driver, got[NetdevSlow])
		}
		l.balanced(TxlatQdisc100ms, p, QdiscSlow)
		l.balanced(TxlatNetdev100ms, p, NetdevSlow)
		for _, e := range l.taken(TxlatNetdev100ms, a.inode, 1) {
			if e.Device() != a.device || e.Source.Port() == 0 || e.Destination.Port() == 0 {
				t.Fatalf("%+v on %s", e, e.Device())
			}
		}
	})
}

func TestNetiftxlatencySlowQueue(t *testing.T) {
	eachRung(t, "netiftxlatency", testNetiftxlatencySlowQueue)
}

func testNetiftxlatencySlowQueue(t *testing.T, rung Kind) {
	a, b := newPair(t)
	// 1,442 bytes take 360 ms; only the first packet finds enough tokens.
	a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "tbf", "rate", "32kbit", "burst", "1600", "limit", "100000")
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("netiftxlatency", Config{})
	var conns []net.Conn
	for _, addrs := range families(a, b) {
		s := b.listenUDP(t, addrs[1])
		conns = append(conns, a.dial(t, "udp", addrPort(s.LocalAddr())))
	}
	sent := 0
	for range 3 {
		for _, c := range conns {
			if _, err := c.Write(make([]byte, 1400)); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	want := uint64(sent - 1)
	l.eventually("the queue to drain", func() bool { return counters(t, p, a.inode)[QdiscSlow] >= want })
	got := l.settled(p, a.inode)
	l.count(p, "packets over 100 ms in a token bucket", want, got[QdiscSlow])
	l.count(p, "of them over 100 ms in the driver", 0, got[NetdevSlow])
	l.balanced(TxlatQdisc100ms, p, QdiscSlow)
	for _, e := range l.taken(TxlatQdisc100ms, a.inode, int(want)) {
		if e.Latency < 100*time.Millisecond || e.Latency > 20*time.Second || e.Device() != a.device || e.Source.Addr() != a.v4 && e.Source.Addr() != a.v6 || e.Destination.Port() == 0 {
			t.Errorf("%+v on %s", e, e.Device())
		}
	}
}

// TestNetiftxlatencyFullQueue makes hundreds of packets wait at the same time. Each
// must keep its queueing time, whatever packets follow.
func TestNetiftxlatencyFullQueue(t *testing.T) {
	eachRung(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		need.Program(t, "tc")
		// 49 bytes take 400 ms, except for packets that fit the token bucket.
		qdisc := func(verb, rate string) {
			a.run(t, "tc", "qdisc", verb, "dev", a.device, "root", "tbf", "rate", rate, "burst", "1600", "limit", "1000000")
		}
		qdisc("add", "1kbit")
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{Slow100: Zero})
		// Several sockets, since the send buffer of one does not hold so many packets.
		const sockets, each = 4, 100
		var conns []net.Conn
		before, _ := deviceSent(t, a)
		for _, addrs := range families(a, b) {
			to := addrPort(b.listenUDP(t, addrs[1]).LocalAddr())
			for range sockets {
				c := a.dial(t, "udp", to)
				conns = append(conns, c)
				send(t, c, each)
			}
		}
		shown := a.run(t, "tc", "-s", "qdisc", "show", "dev", a.device)
		m := backlog.FindStringSubmatch(shown)
		if m == nil {
			t.Fatalf("no backlog in %s", shown)
		}
		if waiting, err := strconv.Atoi(m[1]); err != nil || waiting < len(conns)*each*3/4 {
			t.Errorf("%d packets wait, too few to say anything (%v)", waiting, err)
		}
		qdisc("change", "10gbit")
		send(t, conns[0], 1) // the qdisc checks its queue when a packet arrives
		want := uint64(len(conns)*each + 1)
		var sent uint64
		l.eventually("the queue to drain", func() bool {
			now, _ := deviceSent(t, a)
			sent = now - before
			return sent >= want
		})
		l.count(p, "packets through a queue of "+m[1]+", by the device's own counter", sent, l.settled(p, a.inode)[QdiscSlow])
	})
}

// backlog matches the number of waiting packets in the output of tc.
var backlog = regexp.MustCompile(`backlog \d+K?b (\d+)p`)

// netSoftirqs returns the kernel's count of network softirqs on all CPUs.
func netSoftirqs(t testing.TB) (n uint64) {
	t.Helper()
	data, err := os.ReadFile("/proc/softirqs")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if f[0] != "NET_TX:" && f[0] != "NET_RX:" {
			continue
		}
		for _, s := range f[1:] {
			v, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

func TestNetSoftirq(t *testing.T) { eachRung(t, "net_softirq", testNetSoftirq) }

func testNetSoftirq(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("net_softirq", Config{Slow: Zero, Slow100: time.Hour})
	s := b.listenUDP(t, b.v4)
	c := a.dial(t, "udp", addrPort(s.LocalAddr()))

	// The machine is never idle: read the kernel's counter until it is the same
	// before and after reading ours.
	both := func() (kernel, probe uint64) {
		l.eventually("a moment without softirqs", func() bool {
			probe = counters(t, p, 0)[ExcuteSlow]
			time.Sleep(2 * time.Millisecond) // let running softirqs end
			if counters(t, p, 0)[ExcuteSlow] != probe {
				return false
			}
			kernel = netSoftirqs(t)
			return counters(t, p, 0)[ExcuteSlow] == probe
		})
		return kernel, probe
	}
	kernel0, probe0 := both()
	send(t, c, 3000)
	kernel1, probe1 := both()
	l.count(p, "network softirqs, by /proc/softirqs", kernel1-kernel0, probe1-probe0)
	// A busy machine delivers several packets per softirq.
	if probe1-probe0 < 1000 {
		t.Errorf("%d softirqs for 3,000 packets are too few to compare", probe1-probe0)
	}
	got := counters(t, p, 0)
	if got[SchedSlow] == 0 || got[SchedSlow100] != 0 || got[ExcuteSlow100] != 0 {
		t.Errorf("counters %v", got[:4])
	}
	for _, e := range l.taken(NetsoftirqExcuteSlow, 0, 1) {
		if e.Detail != 2 && e.Detail != 3 || int(e.CPU) >= l.cpus || e.Comm() == "" && e.PID != 0 {
			t.Errorf("%+v", e)
		}
	}
	if a := l.account(NetsoftirqExcute100ms); a.Seen != 0 {
		t.Errorf("both events for one softirq: %+v", a)
	}
}

// slowedLoop creates a loop device that is backed by another one, which is
// limited to so many reads per second.
func slowedLoop(t testing.TB, perSecond int) string {
	t.Helper()
	lower := loopdev.New(t)
	upper := loopdev.Over(t, lower)
	var stat unix.Stat_t
	if err := unix.Stat(lower, &stat); err != nil {
		t.Fatal(err)
	}
	const throttle = "/sys/fs/cgroup/blkio/blkio.throttle.read_iops_device"
	limit := func(perSecond int) error {
		return os.WriteFile(throttle, fmt.Appendf(nil, "%d:%d %d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev), perSecond), 0)
	}
	if err := limit(perSecond); err != nil {
		t.Skipf("this kernel: no blkio controller of cgroup v1 to slow a device down: %v", err)
	}
	t.Cleanup(func() { limit(0) })
	return upper
}

// aligned allocates memory suitable for direct I/O.
func aligned(size int) []byte {
	b := make([]byte, size+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+size]
}

func TestBiolatency(t *testing.T) { eachRung(t, "biolatency", testBiolatency) }

func testBiolatency(t *testing.T, rung Kind) {
	need.Root(t)
	device := loopdev.New(t)
	// Opening may read the device for its partition table.
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
	p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, ownIO: true})
	const n = 50
	buffer := aligned(4096)
	var longest [2]time.Duration
	before := counters(t, p, 0)[DiskSlow]
	for i := range n {
		for op, do := range []func([]byte, int64) (int, error){f.ReadAt, f.WriteAt} {
			start := time.Now()
			if _, err := do(buffer, int64(i)*8192); err != nil {
				t.Fatal(err)
			}
			longest[op] = max(longest[op], time.Since(start))
		}
	}
	var seen [2]int
	l.eventually("the events", func() bool {
		seen = [2]int{}
		for _, e := range l.taken(Biolat10ms, 0, 0) {
			if e.Device() != filepath.Base(device) || int(e.PID) != os.Getpid() || e.Detail > 1 {
				continue
			}
			seen[e.Detail]++
			if e.Latency <= 0 || e.Latency > longest[e.Detail] {
				t.Fatalf("operation %d took %v; the longest call %v", e.Detail, e.Latency, longest[e.Detail])
			}
		}
		return seen[0] >= n && seen[1] >= n
	})
	l.count(p, "reads of a loop device", n, uint64(seen[0]))
	l.count(p, "writes of a loop device", n, uint64(seen[1]))
	if got := counters(t, p, 0); got[DiskSlow]-before < 2*n || got[DiskSlow100] != 0 {
		t.Errorf("counters %v", got[:2])
	}
}

// TestBiolatencySlow stacks two loop devices and limits the lower one: the upper
// one is then slow like a bad disk.
func TestBiolatencySlow(t *testing.T) { eachRung(t, "biolatency", testBiolatencySlow) }

func testBiolatencySlow(t *testing.T, rung Kind) {
	need.Root(t)
	upper := slowedLoop(t, 4)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("biolatency", Config{ownIO: true})

	f, err := os.OpenFile(upper, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var slow int
	buffer := aligned(4096)
	for i := range 6 {
		start := time.Now()
		if _, err := f.ReadAt(buffer, int64(i)<<19); err != nil {
			t.Fatal(err)
		}
		if time.Since(start) >= 150*time.Millisecond {
			slow++
		}
	}
	if slow == 0 {
		t.Skip("this kernel: the throttle slows nothing")
	}
	var mine int
	l.eventually("the events", func() bool {
		mine = 0
		for _, e := range l.taken(Biolat100ms, 0, 0) {
			if e.Device() == filepath.Base(upper) {
				mine++
				if int(e.PID) != os.Getpid() || e.Comm() == "" || e.Latency < 100*time.Millisecond {
					t.Fatalf("%+v", e)
				}
			}
		}
		return mine >= slow
	})
	got := counters(t, p, 0)
	l.count(p, "reads over 100 ms of a slowed loop device", uint64(slow), uint64(mine))
	if got[DiskSlow100] < uint64(slow) || got[DiskSlow] < got[DiskSlow100] {
		t.Errorf("counters %v for %d slow reads", got[:2], slow)
	}
	// Each I/O is one event, so both types together equal the lower counter.
	l.balanced(Biolat100ms, p, DiskSlow100)
	l.eventually("the accounts to agree", func() bool {
		c := counters(t, p, 0)
		return l.account(Biolat10ms).Seen+l.account(Biolat100ms).Seen == c[DiskSlow]
	})
	t.Logf("%d slow reads, counters %v", slow, got[:2])
}

func TestFlow(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: Cgroup})
	p := l.load("flow", Config{Ports: true})
	for family, addrs := range families(a, b) {
		// The kernel counts retransmissions separately.
		before, again := a.counter(t, "Tcp.OutSegs"), a.counter(t, "Tcp.RetransSegs")
		client, server := connect(t, a, b, addrs[1])
		const payload = 8 << 20
		go func() {
			data := make([]byte, 64<<10)
			for range payload / len(data) {
				if _, err := client.Write(data); err != nil {
					return
				}
			}
		}()
		server.SetReadDeadline(time.Now().Add(20 * time.Second))
		buffer := make([]byte, 1<<20)
		for got := 0; got < payload; {
			n, err := server.Read(buffer)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		flow := find(t, l, p, a.inode, addrPort(client.LocalAddr()), addrPort(client.RemoteAddr()))
		again = a.counter(t, "Tcp.RetransSegs") - again
		segments := a.counter(t, "Tcp.OutSegs") - before + again
		l.count(p, family+" packets of a connection, by OutSegs and RetransSegs", segments, flow.Packets)
		// The SYN has 20 bytes of options, all other segments have 12.
		header := uint64(20 + 32)
		if family == "IPv6" {
			header = 40 + 32
		}
		// The size of each retransmission is unknown, at most a full segment.
		want := payload + segments*header + 8
		if flow.Bytes < want || flow.Bytes > want+again*1448 {
			t.Errorf("%s: %d bytes, want %d; %d segments were retransmitted", family, flow.Bytes, want, again)
		}
		t.Logf("%s: %d packets, %d bytes", family, flow.Packets, flow.Bytes)
	}
	// The device's own counters confirm it for datagrams.
	s := b.listenUDP(t, b.v4)
	c := a.dial(t, "udp", addrPort(s.LocalAddr()))
	packets, bytes := deviceSent(t, a)
	send(t, c, 1000)
	flow := find(t, l, p, a.inode, addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))
	packets1, bytes1 := deviceSent(t, a)
	l.count(p, "datagrams, by the device's counter", packets1-packets, flow.Packets)
	l.count(p, "bytes of them, by the device's counter", bytes1-bytes, flow.Bytes+14*flow.Packets)

	if err := l.forget(a.inode); err != nil {
		t.Fatal(err)
	}
	if err := p.Flows(func(f Flow) {
		if f.Netns == a.inode {
			t.Errorf("forgotten, and still there: %+v", f)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func deviceSent(t testing.TB, n *namespace) (packets, bytes uint64) {
	t.Helper()
	n.do(t, func() error {
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), n.device+":"); ok {
				f := strings.Fields(rest)
				bytes, _ = strconv.ParseUint(f[8], 10, 64)
				packets, _ = strconv.ParseUint(f[9], 10, 64)
				return nil
			}
		}
		return errors.New("no such device")
	})
	return packets, bytes
}

func find(t testing.TB, l *testLoader, p *Probe, netns uint64, from, to netip.AddrPort) (flow Flow) {
	t.Helper()
	if err := p.Flows(func(f Flow) {
		if f.Netns == netns && f.Source == from && f.Destination == to {
			flow = f
		}
	}); err != nil {
		t.Fatal(err)
	}
	if flow.Packets == 0 {
		t.Fatalf("no flow from %v to %v", from, to)
	}
	return flow
}

// TestFlowShares: a namespace with more connections than its share takes no room
// from other namespaces, and its packets that find no room are counted. The share
// grows if the namespace needs more room and others do not.
func TestFlowShares(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	p := l.load("flow", Config{Flows: 512, Ports: true})
	before := counters(t, p, 0)
	const n = 2000
	connect := func(from *namespace, to netip.Addr, n int) {
		t.Helper()
		from.do(t, func() error {
			for i := range n {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				err = unix.Sendto(fd, []byte("x"), 0, sockaddr(netip.AddrPortFrom(to, uint16(1000+i))))
				unix.Close(fd)
				if err != nil && err != unix.ECONNREFUSED {
					return err
				}
			}
			return nil
		})
	}
	connect(a, b.v4, n)
	connect(b, a.v4, 10)
	held := func() (of map[uint64]int, packets uint64) {
		t.Helper()
		of = map[uint64]int{}
		if err := p.Flows(func(f Flow) {
			of[f.Netns]++
			packets += f.Packets
		}); err != nil {
			t.Fatal(err)
		}
		return of, packets
	}
	// Every packet is either part of a flow or counted as having found no room.
	var of map[uint64]int
	l.eventually("the flows and what had no room to be all packets", func() bool {
		was := counters(t, p, 0)
		var packets uint64
		of, packets = held()
		now := counters(t, p, 0)
		return was == now && packets+now[FlowsFailed] == now[FlowPackets] && now[FlowPackets]-before[FlowPackets] >= n+10
	})
	if of[a.inode] == 0 || of[a.inode] > 320 || of[b.inode] < 10 {
		t.Errorf("%d flows of the one with %d connections and %d of the one with 10, in a map of 512", of[a.inode], n, of[b.inode])
	}
	sweep := func() {
		t.Helper()
		if err := p.SweepFlows(func(FlowEntry) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	first := of[a.inode]
	sweep()
	if state, limitations := p.State(); state != Degraded {
		t.Errorf("nothing is said of the connections without room: %s %v", state, limitations)
	}
	sweep()
	connect(a, b.v4, n)
	of, _ = held()
	if of[a.inode] <= first || of[a.inode] > 320 || of[b.inode] < 10 {
		t.Errorf("%d flows after the share has grown, %d before; %d of the other", of[a.inode], first, of[b.inode])
	}
	// The room of deleted entries is free again.
	if err := p.SweepFlows(func(e FlowEntry) bool { return e.Key.Netns().Inode() != a.inode }); err != nil {
		t.Fatal(err)
	}
	sweep()
	connect(a, b.v4, 50)
	if of, _ = held(); of[a.inode] < 50 || of[b.inode] < 10 {
		t.Errorf("%d flows of 50 when there is room again, %d of the other", of[a.inode], of[b.inode])
	}
	sweep()
	if _, limitations := p.State(); slices.Contains(limitations, lackOfFlows) {
		t.Error("it is still said that connections have no room")
	}
}
