package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTCPReset(t *testing.T) { eachRung(t, "tcpreset", testTCPReset) }

func testTCPReset(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("tcpreset", Config{})
	reasons, err := l.Reasons()
	if err != nil {
		t.Fatal(err)
	}
	const n = 7
	want := map[*namespace]*[4]uint64{a: {}, b: {}}
	check := func(what string) {
		t.Helper()
		for name, ns := range map[string]*namespace{"a": a, "b": b} {
			got := l.settled(p, ns.inode)
			if [4]uint64(got[:4]) != *want[ns] {
				t.Errorf("%s: namespace %s counted %v (nosock, active, process, receive), want %v", what, name, got[:4], *want[ns])
			}
		}
	}

	for family, addrs := range families(a, b) {
		to := b.closedPort(t, addrs[1])
		for range n {
			a.try(func() error {
				c, err := net.Dial("tcp", to.String())
				if err == nil {
					c.Close()
				}
				return nil
			})
		}
		want[b][ResetNosock] += n
		want[a][ResetReceive] += n
		check(family + ": closed port")
		for _, e := range l.taken(TCPResetNosock, b.inode, 1) {
			if e.Source.Addr() == addrs[1] && (e.Source != to || e.Destination.Addr() != addrs[0] || e.Destination.Port() == 0 || e.TCPState != 0) {
				t.Errorf("%s: %+v", family, e)
			}
		}

		// Call close() with unsent or unread data.
		for range n {
			client, server := connect(t, a, b, addrs[1])
			if err := client.SetLinger(0); err != nil {
				t.Fatal(err)
			}
			client.Close()
			want[a][ResetActive]++
			want[b][ResetReceive]++
			server.SetReadDeadline(time.Now().Add(5 * time.Second))
			server.Read(make([]byte, 1))
			server.Close()
		}
		check(family + ": SO_LINGER 0")
		for range n {
			client, server := connect(t, a, b, addrs[1])
			if _, err := client.Write([]byte("unread")); err != nil {
				t.Fatal(err)
			}
			l.eventually("the data to arrive", func() bool { return unread(t, server) > 0 })
			server.Close()
			want[b][ResetActive]++
			want[a][ResetReceive]++
			client.SetReadDeadline(time.Now().Add(5 * time.Second))
			client.Read(make([]byte, 1))
			client.Close()
		}
		check(family + ": close with unread data")
		for _, e := range l.taken(TCPResetActive, a.inode, 1) {
			if e.Source.Port() == 0 || e.Destination.Port() == 0 || reasons.Reset(e.Reason) == "NOT_SPECIFIED" {
				t.Errorf("%s: active: %s, %s %v -> %v", family, reasons.Reset(e.Reason), TCPStateName(e.TCPState), e.Source, e.Destination)
			}
		}

		// An ACK for a listening socket without a request.
		listener := b.listen(t, addrs[1])
		for i := range n {
			a.injectSegment(t, madeSegment{from: netip.AddrPortFrom(addrs[0], uint16(20000+i)), to: addrPort(listener.Addr()), seq: 1, ack: 1, flags: flagACK})
		}
		want[b][ResetProcess] += n
		check(family + ": stray ACK to a listening socket")
		for _, e := range l.taken(TCPResetProcess, b.inode, 1) {
			if e.Source.Addr() != addrs[1] {
				continue
			}
			if e.Source != addrPort(listener.Addr()) || e.Destination.Addr() != addrs[0] || e.Destination.Port() < 20000 || TCPStateName(e.TCPState) != "LISTEN" {
				t.Errorf("%s: process: %+v", family, e)
			}
		}
		listener.Close()
	}
	for i, typ := range []EventType{TCPResetNosock, TCPResetActive, TCPResetProcess, TCPResetReceive} {
		l.count(p, []string{
			"resets sent without a socket", "resets sent on close", "resets sent by a socket that listens", "resets received",
		}[i], want[a][i]+want[b][i], counters(t, p, a.inode)[i]+counters(t, p, b.inode)[i])
		l.balanced(typ, p, i)
	}
}

// TestMappedAddresses: a dual-stack socket uses IPv4, and its events show IPv4
// addresses.
func TestMappedAddresses(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	l.load("tcpreset", Config{})
	listener := b.listen(t, netip.IPv6Unspecified())
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := listener.Accept()
		accepted <- c
	}()
	client := a.dial(t, "tcp", netip.AddrPortFrom(b.v4, addrPort(listener.Addr()).Port())).(*net.TCPConn)
	server := (<-accepted).(*net.TCPConn)
	if _, err := client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	l.eventually("the data to arrive", func() bool { return unread(t, server) > 0 })
	server.Close()
	e := l.taken(TCPResetActive, b.inode, 1)[0]
	if e.Source != addrPort(client.RemoteAddr()) || e.Destination != addrPort(client.LocalAddr()) || e.Protocol != unix.IPPROTO_TCP {
		t.Errorf("sent: %+v", e)
	}
	e = l.taken(TCPResetReceive, a.inode, 1)[0]
	if e.Source != addrPort(client.LocalAddr()) || e.Destination != addrPort(client.RemoteAddr()) {
		t.Errorf("received: %+v", e)
	}
}

// unread returns the number of unread bytes in a socket.
func unread(t testing.TB, c *net.TCPConn) (n int) {
	t.Helper()
	rawConn(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return n
}

func TestTCPRetrans(t *testing.T) { eachRung(t, "tcpretrans", testTCPRetrans) }

func testTCPRetrans(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("tcpretrans", Config{})
	for family, addrs := range families(a, b) {
		// Compare the counts in a and b with the kernel's own counters.
		before := map[*namespace]uint64{a: a.counter(t, "Tcp.RetransSegs"), b: b.counter(t, "Tcp.RetransSegs")}
		slots := map[*namespace][8]uint64{a: counters(t, p, a.inode), b: counters(t, p, b.inode)}
		checks := map[*namespace]*retransCheck{a: newRetransCheck(t, l, p, a), b: newRetransCheck(t, l, p, b)}
		client, server := connect(t, a, b, addrs[1])

		b.run(t, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in tcp dport != 0 drop")
		// Write may block until acknowledgements free buffer space.
		go client.Write(make([]byte, 64<<10))
		l.eventually("retransmissions", func() bool { return a.counter(t, "Tcp.RetransSegs") >= before[a]+3 })
		b.run(t, "nft", "delete table inet t")
		// The rest arrives, so retransmissions end.
		server.SetReadDeadline(time.Now().Add(20 * time.Second))
		for got := 0; got < 64<<10; {
			n, err := server.Read(make([]byte, 64<<10))
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}

		// Lose the first SYN-ACK of a handshake.
		a.run(t, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in tcp flags & (syn | ack) == (syn | ack) drop")
		listener := b.listen(t, addrs[1])
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.try(func() error {
				c, err := net.DialTimeout("tcp", listener.Addr().String(), 15*time.Second)
				if err == nil {
					c.Close()
				}
				return err
			})
		}()
		l.eventually("a repeated SYN-ACK", func() bool { return b.counter(t, "Tcp.RetransSegs") > before[b] })
		a.run(t, "nft", "delete table inet t")
		<-done
		listener.Close()
		client.Close()
		server.Close()

		for name, ns := range map[string]*namespace{"a": a, "b": b} {
			checks[ns].want(t, fmt.Sprintf("%s segments and SYN-ACKs of namespace %s", family, name))
			got, was := l.settled(p, ns.inode), slots[ns]
			segments, synacks := got[RetransSegments]-was[RetransSegments], got[RetransSynAcks]-was[RetransSynAcks]
			want := ns.counter(t, "Tcp.RetransSegs") - before[ns]
			if ns == b && synacks == 0 {
				t.Errorf("%s: no SYN-ACK counted", family)
			}
			t.Logf("%s: %s: %d segments in %d calls, %d SYN-ACKs, RetransSegs %d", family, name, segments, got[RetransCalls]-was[RetransCalls], synacks, want)
		}
		for _, e := range l.taken(TCPRetrans, 0, 2) {
			if e.Netns != a.inode && e.Netns != b.inode || e.Source.Addr() != addrs[0] && e.Source.Addr() != addrs[1] {
				continue
			}
			if e.Source.Port() == 0 || e.Destination.Port() == 0 || len(e.Stack()) == 0 {
				t.Errorf("%s: %+v", family, e)
			}
			if e.Detail == RetransSynAck && (e.Netns != b.inode || e.Source.Addr() != addrs[1] || TCPStateName(e.TCPState) != "NEW_SYN_RECV") {
				t.Errorf("%s: SYN-ACK: %+v", family, e)
			}
		}
	}
	l.balanced(TCPRetrans, p, RetransSynAcks, RetransCalls)
}
