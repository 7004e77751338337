package bpf

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// retransCheck compares the probe's counts of a namespace with the kernel's
// counters since its creation.
type retransCheck struct {
	l      *testLoader
	p      *Probe
	ns     *namespace
	before map[string]uint64
	slots  [8]uint64
}

// Kernel counters that distinguish kinds of retransmissions, and probes that are
// none.
var retransCounters = []string{
	"Tcp.RetransSegs", "TcpExt.TCPRetransFail", "TcpExt.TCPTimeouts", "TcpExt.TCPLossProbes", "TcpExt.TCPFastRetrans",
	"TcpExt.TCPSynRetrans", "TcpExt.TCPKeepAlive", "TcpExt.TCPWinProbe", "TcpExt.TCPSpuriousRtxHostQueues", "TcpExt.TCPDSACKRecv",
}

func newRetransCheck(t *testing.T, l *testLoader, p *Probe, ns *namespace) *retransCheck {
	c := &retransCheck{l: l, p: p, ns: ns, before: map[string]uint64{}, slots: l.settled(p, ns.inode)}
	for _, name := range retransCounters {
		c.before[name] = ns.counter(t, name)
	}
	return c
}

// since returns the growth of a kernel counter.
func (c *retransCheck) since(t *testing.T, name string) uint64 {
	return c.ns.counter(t, name) - c.before[name]
}

// want checks that the probe has counted the segments that the kernel
// retransmitted, without those that it could not send.
func (c *retransCheck) want(t *testing.T, what string) (counted uint64) {
	t.Helper()
	var sent, refused uint64
	// The kernel counts before sending, the probe after.
	testkit.Within(10*time.Second, func() bool {
		sent, refused = c.since(t, "Tcp.RetransSegs"), c.since(t, "TcpExt.TCPRetransFail")
		got := c.l.settled(c.p, c.ns.inode)
		counted = got[RetransSegments] + got[RetransSynAcks] - c.slots[RetransSegments] - c.slots[RetransSynAcks]
		return counted == sent-refused && c.since(t, "Tcp.RetransSegs") == sent && c.since(t, "TcpExt.TCPRetransFail") == refused
	})
	c.l.count(c.p, what+", by RetransSegs less TCPRetransFail", sent-refused, counted)
	t.Logf("%s: %d retransmitted, %d refused, %d counted", what, sent, refused, counted)
	return counted
}

// TestTCPRetransKinds: what counts as a retransmission, and what does not.
func TestTCPRetransKinds(t *testing.T) { rungsInTurn(t, "tcpretrans", testTCPRetransKinds) }

func testTCPRetransKinds(t *testing.T, rung Kind) {
	a, b := newPair(t)
	need.Program(t, "tc")
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("tcpretrans", Config{})
	for family, addrs := range families(a, b) {
		if rung != RawTracepoint && family == "IPv6" {
			continue // timeouts take long
		}
		// refused loses a connection's first segment, then keeps its sender from
		// retransmitting.
		refused := func(what string, block, unblock func(), counter string) {
			t.Helper()
			client, server := connect(t, a, b, addrs[1])
			c := newRetransCheck(t, l, p, a)
			release := b.swallow(t, "tcp dport != 0")
			if _, err := client.Write([]byte("data")); err != nil {
				t.Fatal(err)
			}
			l.eventually("the segment to be lost", func() bool { return b.swallowed(t) > 0 })
			block()
			attempts := c.since(t, counter)
			l.eventually(what, func() bool { return c.since(t, counter) >= attempts+2 })
			fail := c.since(t, "TcpExt.TCPRetransFail")
			if counter == "TcpExt.TCPRetransFail" != (fail > 0) {
				t.Errorf("%s: %s: TCPRetransFail is %d", family, what, fail)
			}
			unblock()
			release()
			server.SetReadDeadline(time.Now().Add(60 * time.Second))
			if _, err := io.ReadFull(server, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			if n := c.want(t, family+" "+what); n == 0 {
				t.Errorf("%s: %s: the data came without a retransmission", family, what)
			}
			client.Close()
			server.Close()
		}
		refused("a firewall on the way out", func() {
			a.run(t, "nft", "add table inet o; add chain inet o out { type filter hook output priority 0; }; add rule inet o out tcp dport != 0 drop")
		}, func() { a.run(t, "nft", "delete table inet o") }, "TcpExt.TCPRetransFail")
		refused("a full queue", func() {
			a.run(t, "tc", "qdisc", "replace", "dev", a.device, "root", "pfifo", "limit", "0")
		}, func() { a.run(t, "tc", "qdisc", "del", "dev", a.device, "root") }, "TcpExt.TCPRetransFail")
		route := []string{"10.99.0.0/24", "dev", a.device}
		if family == "IPv6" {
			route[0] = "fd99::/64"
		}
		refused("no route", func() { a.run(t, "ip", append([]string{"route", "del"}, route...)...) },
			func() { a.run(t, "ip", append([]string{"route", "add"}, route...)...) }, "TcpExt.TCPTimeouts")

		// A segment that still waits in this host's queue is not retransmitted. The
		// queue must not segment it.
		a.run(t, "ip", "link", "set", "dev", a.device, "gso_max_segs", "1")
		client, server := connect(t, a, b, addrs[1])
		c := newRetransCheck(t, l, p, a)
		a.run(t, "tc", "qdisc", "replace", "dev", a.device, "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "100000")
		if _, err := client.Write(make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
		l.eventually("a timeout while the segment waits", func() bool { return c.since(t, "TcpExt.TCPSpuriousRtxHostQueues") > 0 })
		c.want(t, family+" waiting in the host's queue")
		a.run(t, "tc", "qdisc", "del", "dev", a.device, "root")
		a.run(t, "ip", "link", "set", "dev", a.device, "gso_max_segs", "65535")
		client.Close()
		server.Close()

		// The end of the data is lost: a loss probe, or the timer, retransmits.
		client, server = connect(t, a, b, addrs[1])
		c = newRetransCheck(t, l, p, a)
		for range 3 { // the first round trips
			client.Write([]byte("data"))
			server.Read(make([]byte, 4))
		}
		release := b.swallow(t, "tcp dport != 0")
		client.Write([]byte("data"))
		l.eventually("a loss probe and timeouts", func() bool {
			return c.since(t, "TcpExt.TCPLossProbes") > 0 && c.since(t, "TcpExt.TCPTimeouts") > 0
		})
		release()
		if _, err := io.ReadFull(server, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		c.want(t, family+" loss probe and timeouts")

		// Keep-alives and window probes are not retransmissions.
		c = newRetransCheck(t, l, p, a)
		rawConn(t, client, func(fd int) error {
			for option, value := range map[int]int{unix.TCP_KEEPIDLE: 1, unix.TCP_KEEPINTVL: 1} {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value); err != nil {
					return err
				}
			}
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		})
		l.eventually("keep-alives", func() bool { return c.since(t, "TcpExt.TCPKeepAlive") >= 2 })
		if n := c.want(t, family+" keep-alives"); n != 0 {
			t.Errorf("%s: %d retransmissions by keep-alives", family, n)
		}
		c = newRetransCheck(t, l, p, a)
		client.SetWriteDeadline(time.Now().Add(time.Second))
		for {
			if _, err := client.Write(make([]byte, 1<<16)); err != nil {
				break // the window is closed, and all queues are full
			}
		}
		l.eventually("window probes", func() bool { return c.since(t, "TcpExt.TCPWinProbe") >= 2 })
		// As the window closes, the acknowledgement may come after a loss probe.
		if n, others := c.want(t, family+" window probes"), c.since(t, "TcpExt.TCPLossProbes"); n > others {
			t.Errorf("%s: %d retransmissions by window probes, %d loss probes", family, n, others)
		}
		client.Close()
		server.SetLinger(0)
		server.Close()

		// A SYN without an answer.
		c = newRetransCheck(t, l, p, a)
		listener := b.listen(t, addrs[1])
		release = b.swallow(t, "tcp flags & (syn | ack) == syn")
		done := make(chan error, 1)
		go func() {
			done <- a.try(func() error {
				conn, err := net.DialTimeout("tcp", listener.Addr().String(), 60*time.Second)
				if err == nil {
					conn.Close()
				}
				return err
			})
		}()
		l.eventually("a second SYN", func() bool { return c.since(t, "TcpExt.TCPSynRetrans") > 0 })
		release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		listener.Close()
		c.want(t, family+" SYN")
	}
	l.balanced(TCPRetrans, p, RetransSynAcks, RetransCalls)
}

// TestTCPRetransByReordering: reordered packets cause unnecessary retransmissions,
// which count as the kernel counts them.
func TestTCPRetransByReordering(t *testing.T) {
	a, b := newPair(t)
	a.run(t, "ip", "link", "set", "dev", a.device, "gso_max_segs", "1")
	a.disturb(t, "delay", "20ms", "reorder", "10%")
	l := newTestLoader(t, Options{})
	p := l.load("tcpretrans", Config{})
	for family, addrs := range families(a, b) {
		c := newRetransCheck(t, l, p, a)
		client, server := connect(t, a, b, addrs[1])
		const size = 1 << 20
		go func() {
			client.Write(make([]byte, size))
			client.CloseWrite()
		}()
		server.SetReadDeadline(time.Now().Add(60 * time.Second))
		if n, err := io.Copy(io.Discard, server); n != size {
			t.Fatalf("%s: %d of %d bytes arrived: %v", family, n, size, err)
		}
		server.Close()
		c.want(t, fmt.Sprintf("%s reordering, %d duplicates", family, c.since(t, "TcpExt.TCPDSACKRecv")))
		client.Close()
	}
}
