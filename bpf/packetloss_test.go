package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// Drops is the record that Losses passes to its callback.
func (p *Probe) Drops(f func(Drop)) error {
	_, err := p.Losses(f)
	return err
}

// Ignored returns the number of ignored packets by Why, as Losses does.
func (p *Probe) Ignored() (map[Why]uint64, error) { return p.Losses(func(Drop) {}) }

// drops returns the losses of a namespace by reason and by class.
func drops(l *testLoader, p *Probe, netns uint64) (byReason map[string]uint64, byClass [dropClasses]uint64, total uint64) {
	l.t.Helper()
	reasons, err := l.Reasons()
	if err != nil {
		l.t.Fatal(err)
	}
	byReason = map[string]uint64{}
	if err := p.Drops(func(d Drop) {
		if d.Netns.Inode() != netns {
			return
		}
		byReason[reasons.Drop(d.Reason)] += d.Count
		byClass[d.Class] += d.Count
		total += d.Count
		l.t.Logf("%d x %s in %s", d.Count, reasons.Drop(d.Reason), l.Symbols().Location(d.Location))
	}); err != nil {
		l.t.Fatal(err)
	}
	slots := counters(l.t, p, netns)
	for class, n := range byClass {
		if slots[class] != n {
			l.t.Errorf("class %d: %d by the counters, %d by the reasons", class, slots[class], n)
		}
	}
	return byReason, byClass, total
}

// because returns the number of drops with the reason, or all drops on a kernel
// without reasons.
func because(l *testLoader, byReason map[string]uint64, reason string) uint64 {
	reasons, err := l.Reasons()
	if err != nil {
		l.t.Fatal(err)
	}
	if len(reasons.drop) == 0 {
		return byReason["NOT_SPECIFIED"]
	}
	return byReason[reason]
}

func send(t testing.TB, c net.Conn, n int) {
	t.Helper()
	payload := []byte("payload")
	for range n {
		// A refused datagram causes an error on a later send, which must be
		// repeated.
		if _, err := c.Write(payload); err != nil {
			if _, err := c.Write(payload); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestPacketlossNetfilter(t *testing.T) {
	eachRung(t, "packetloss", testPacketlossNetfilter)
}

func testPacketlossNetfilter(t *testing.T, rung Kind) {
	a, b := newPair(t)
	b.run(t, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 7 counter drop")
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("packetloss", Config{})

	each := uint64(50_000)
	if need.InVM() {
		each = 1_000 // an emulated machine is slow
	}
	var flows []net.Conn
	for _, addrs := range families(a, b) {
		flows = append(flows, a.dial(t, "udp", netip.AddrPortFrom(addrs[1], 7)))
	}
	for range each / 10 { // by turns, so that each has some of the first events
		for _, c := range flows {
			send(t, c, 10)
		}
	}
	l.settled(p, b.inode)
	if list := b.run(t, "nft", "list", "table", "inet", "t"); !strings.Contains(list, fmt.Sprintf("packets %d ", 2*each)) {
		t.Errorf("nft itself counted otherwise: %s", list)
	}
	byReason, byClass, total := drops(l, p, b.inode)
	l.count(p, "packets that a filter drops, by nft's counter", 2*each, total)
	if because(l, byReason, "NETFILTER_DROP") != 2*each || byClass[DropNetfilter] != 2*each {
		t.Errorf("drops %v, classes %v, total %d, want %d of netfilter and no others", byReason, byClass, total, 2*each)
	}
	account := l.balanced(PacketLoss, p, 0, 1, 2, 3, 4)
	if account.Suppressed == 0 {
		t.Error("the token bucket held nothing back in a flood")
	}
	t.Logf("%+v", account)
	testkit.Eventually(t, "every event that was held back is of a namespace", func() bool {
		list, err := l.HeldBack()
		stats, err2 := l.Stats()
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		var held, suppressed uint64
		for _, h := range list {
			if h.Type == PacketLoss {
				held += h.N
			}
		}
		for _, a := range stats.Events {
			if a.Type == PacketLoss {
				suppressed = a.Suppressed
			}
		}
		return held == suppressed && held > 0
	})

	events := l.taken(PacketLoss, b.inode, 2)
	for family, addrs := range families(a, b) {
		found := false
		for _, e := range events {
			if e.Source.Addr() != addrs[0] {
				continue
			}
			found = true
			if e.Destination != netip.AddrPortFrom(addrs[1], 7) || e.Protocol != unix.IPPROTO_UDP || e.Source.Port() == 0 || e.Device() != b.device {
				t.Fatalf("%s: %+v on %s", family, e, e.Device())
			}
			if got := l.Symbols().Function(e.Location); got != "nft_do_chain" && got != "nf_hook_slow" {
				t.Fatalf("%s: dropped in %s", family, got)
			}
			stack := strings.Join(l.Symbols().Stack(e.Stack()), "\n")
			if !strings.Contains(stack, "nf_hook_slow") {
				t.Fatalf("%s: stack\n%s", family, stack)
			}
		}
		if !found {
			t.Errorf("%s: no event of %d", family, len(events))
		}
	}
	t.Log("\n" + strings.Join(l.Symbols().Stack(events[0].Stack()), "\n"))
}

func TestPacketlossClosedPort(t *testing.T) {
	rungsInTurn(t, "packetloss", testPacketlossClosedPort)
}

func testPacketlossClosedPort(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("packetloss", Config{})
	const n = 25
	for _, addrs := range families(a, b) {
		for range n {
			c := a.dial(t, "udp", netip.AddrPortFrom(addrs[1], 9))
			c.Write([]byte("x"))
			c.Close()
		}
	}
	l.settled(p, b.inode)
	byReason, byClass, total := drops(l, p, b.inode)
	l.count(p, "datagrams to a closed port", 2*n, total)
	if because(l, byReason, "NO_SOCKET") != 2*n || byClass[DropAbnormal] != 2*n {
		t.Errorf("UDP: drops %v, classes %v, total %d, want %d without a socket", byReason, byClass, total, 2*n)
	}

	for _, addrs := range families(a, b) {
		to := b.closedPort(t, addrs[1])
		for range n {
			if err := a.try(func() error {
				c, err := net.Dial("tcp", to.String())
				if err == nil {
					c.Close()
				}
				return err
			}); err == nil {
				t.Fatal("a closed port answered")
			}
		}
	}
	l.settled(p, b.inode)
	byReason, byClass, total = drops(l, p, b.inode)
	l.count(p, "connections to a closed port", 2*n, byClass[DropTCPRcv])
	if because(l, byReason, "NO_SOCKET") != 4*n || total != 4*n {
		t.Errorf("TCP: drops %v, classes %v, total %d, want %d in tcp_v4_rcv and tcp_v6_rcv", byReason, byClass, total, 2*n)
	}
}

func TestPacketlossSocketBuffer(t *testing.T) {
	rungsInTurn(t, "packetloss", testPacketlossSocketBuffer)
}

func testPacketlossSocketBuffer(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("packetloss", Config{NoStack: true})
	for family, addrs := range families(a, b) {
		before, group := l.settled(p, b.inode), "Udp"
		if family == "IPv6" {
			group = "Udp6"
		}
		s := b.listenUDP(t, addrs[1])
		if err := s.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		send(t, a.dial(t, "udp", addrPort(s.LocalAddr())), 200)
		l.settled(p, b.inode)
		byReason, _, _ := drops(l, p, b.inode)
		got := counters(t, p, b.inode)[DropAbnormal] - before[DropAbnormal]
		want := b.counter(t, group+".RcvbufErrors")
		l.count(p, family+" datagrams for a full socket, by "+group+"RcvbufErrors", want, got)
		if want == 0 || because(l, byReason, "SOCKET_RCVBUFF") < want {
			t.Errorf("%s: %d drops, the kernel's RcvbufErrors say %d; %v", family, got, want, byReason)
		}
		// Data in a closing socket are not lost.
		s.Close()
		if after := l.settled(p, b.inode)[DropAbnormal] - before[DropAbnormal]; after != got {
			t.Errorf("%s: closing the socket added %d drops", family, after-got)
		}
	}
}

// TestPacketlossBacklog completes handshakes while the accept queue is full: the
// kernel drops their last packet, and counts ListenOverflows. (It consumes a SYN
// that finds the queue full without a drop.)
func TestPacketlossBacklog(t *testing.T) {
	rungsInTurn(t, "packetloss", testPacketlossBacklog)
}

func testPacketlossBacklog(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("packetloss", Config{})
	for family, addrs := range families(a, b) {
		a.run(t, "nft", "add table inet t; add chain inet t out { type filter hook output priority 0; }; add rule inet t out tcp flags & (syn | ack) == ack drop")
		server := stream(t, b, addrs[1], 0)
		if err := unix.Listen(server.fd, 100); err != nil {
			t.Fatal(err)
		}
		to := server.local(t)
		for range 6 {
			c := stream(t, a, addrs[0], unix.SOCK_NONBLOCK)
			if err := unix.Connect(c.fd, to); err != nil && err != unix.EINPROGRESS {
				t.Fatal(err)
			}
		}
		before, overflows := l.settled(p, b.inode), b.counter(t, "TcpExt.ListenOverflows")
		// Now the answers to the server's retransmitted SYN-ACKs get through, but
		// there is room for only two connections.
		if err := unix.Listen(server.fd, 1); err != nil {
			t.Fatal(err)
		}
		a.run(t, "nft", "delete table inet t")
		l.eventually("the backlog to overflow", func() bool { return b.counter(t, "TcpExt.ListenOverflows") > overflows })
		// The server's timers keep running: read both counters with nothing
		// between.
		var after [8]uint64
		var want uint64
		l.eventually("the overflows to end", func() bool {
			want = b.counter(t, "TcpExt.ListenOverflows") - overflows
			after = l.settled(p, b.inode)
			return b.counter(t, "TcpExt.ListenOverflows")-overflows == want
		})
		var got uint64
		for i := range after {
			got += after[i] - before[i]
		}
		byReason, byClass, _ := drops(l, p, b.inode)
		t.Logf("%s: ListenOverflows %d, drops %d; %v %v", family, want, got, byReason, byClass)
		l.count(p, family+" handshakes that find the accept queue full, by ListenOverflows", want, got)
	}
}

// TestPacketlossLocalMessages: dropped messages of local sockets are not packets.
func TestPacketlossLocalMessages(t *testing.T) {
	need.Root(t)
	a := newNamespace(t)
	l := newTestLoader(t, Options{})
	p := l.load("packetloss", Config{})
	a.do(t, func() error {
		for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
			pair, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
			if err != nil {
				return err
			}
			for range 5 {
				if _, err := unix.Write(pair[0], []byte("never read")); err != nil {
					return err
				}
			}
			unix.Close(pair[1])
			unix.Close(pair[0])
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_USERSOCK)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range 5 {
			// To a group and a port without a listener.
			unix.Sendto(fd, []byte("nobody"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << 5})
			unix.Sendto(fd, []byte("nobody"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 1 << 30})
		}
		return nil
	})
	l.settled(p, a.inode)
	if _, _, total := drops(l, p, a.inode); total != 0 {
		t.Errorf("%d messages counted as packets", total)
	}
}
