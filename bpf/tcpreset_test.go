package bpf

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// madeSegment is a hand-made TCP segment.
type madeSegment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    byte
	data     string
}

// TCP header flags.
const (
	flagFIN = 1
	flagSYN = 2
	flagRST = 4
	flagACK = 16
)

// injectSegment sends a segment from inside the namespace, bypassing its TCP.
func (n *namespace) injectSegment(t testing.TB, s madeSegment) {
	t.Helper()
	b := make([]byte, 20, 20+len(s.data))
	binary.BigEndian.PutUint16(b[0:], s.from.Port())
	binary.BigEndian.PutUint16(b[2:], s.to.Port())
	binary.BigEndian.PutUint32(b[4:], s.seq)
	binary.BigEndian.PutUint32(b[8:], s.ack)
	b[12], b[13] = 5<<4, s.flags
	binary.BigEndian.PutUint16(b[14:], 1024)
	b = append(b, s.data...)
	if s.to.Addr().Is4() {
		pseudo := append(append(append(s.from.Addr().AsSlice(), s.to.Addr().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(b))), b...)
		if len(pseudo)%2 != 0 {
			pseudo = append(pseudo, 0)
		}
		var sum uint32
		for i := 0; i < len(pseudo); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	}
	n.do(t, func() error {
		domain := unix.AF_INET
		if s.to.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if domain == unix.AF_INET6 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, 16); err != nil {
				return err
			}
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(s.from.Addr(), 0))); err != nil {
			return err
		}
		return unix.Sendto(fd, b, 0, sockaddr(netip.AddrPortFrom(s.to.Addr(), 0)))
	})
}

// sequenceOf returns the sequence numbers of the next byte that a connection sends
// and of the next that it expects.
func sequenceOf(t testing.TB, c *net.TCPConn) (send, receive uint32) {
	t.Helper()
	rawConn(t, c, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			return err
		}
		for queue, number := range map[int]*uint32{1: &receive, 2: &send} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
				return err
			}
			n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
			if err != nil {
				return err
			}
			*number = uint32(n)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, -1)
	})
	return send, receive
}

// state returns the TCP state of a connection.
func state(t testing.TB, c *net.TCPConn) string {
	t.Helper()
	return TCPStateName(tcpInfo(t, c).State)
}

// states counts the namespace's sockets in a state, including small ones, from
// /proc/net/tcp and tcp6.
func (n *namespace) states(t testing.TB, state uint8) (found int) {
	t.Helper()
	n.do(t, func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(data)) {
				if f := strings.Fields(line); len(f) > 3 && f[3] == fmt.Sprintf("%02X", state) {
					found++
				}
			}
		}
		return nil
	})
	return found
}

// swallow drops packets that arrive in the namespace and match a rule, until the
// returned function is called.
func (n *namespace) swallow(t testing.TB, rule string) func() {
	t.Helper()
	n.run(t, "nft", "add table inet s; add chain inet s in { type filter hook input priority 0; }; add rule inet s in "+rule+" counter drop")
	return func() { n.run(t, "nft", "delete table inet s") }
}

// swallowed returns the number of packets that the rule dropped.
func (n *namespace) swallowed(t testing.TB) (packets int) {
	t.Helper()
	_, counter, _ := strings.Cut(n.run(t, "nft", "list table inet s"), "counter packets ")
	fmt.Sscan(counter, &packets)
	return packets
}

// TestTCPResetReceived: a RST in each state of the receiver counts once, and a RST
// that TCP ignores does not count.
func TestTCPResetReceived(t *testing.T) { rungsInTurn(t, "tcpreset", testTCPResetReceived) }

func testTCPResetReceived(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
	p := l.load("tcpreset", Config{})
	small := p.Hooks()[len(p.Hooks())-1].Kind // the hook for SYN_RECV and TIME_WAIT
	const n = 5
	want := map[*namespace]*[4]uint64{a: {}, b: {}}
	check := func(what string) {
		t.Helper()
		for name, ns := range map[string]*namespace{"a": a, "b": b} {
			got := l.settled(p, ns.inode)
			var caused, counted uint64
			for i, n := range *want[ns] {
				caused, counted = caused+n, counted+got[i]
			}
			if [4]uint64(got[:4]) != *want[ns] && !excused(t, what, caused, counted) {
				t.Errorf("%s: namespace %s counted %v (nosock, active, process, receive), want %v", what, name, got[:4], *want[ns])
				*want[ns] = [4]uint64(got[:4])
			}
		}
	}
	// seen checks the event of a socket in a state.
	seen := func(what string, ns *namespace, state string, from netip.AddrPort) {
		t.Helper()
		l.eventually(what+": the event of "+from.String()+" in "+state, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return slices.ContainsFunc(l.events, func(e Event) bool {
				return e.Type == TCPResetReceive && e.Netns == ns.inode && e.Source == from && TCPStateName(e.TCPState) == state && e.Destination.Port() != 0
			})
		})
	}
	var total uint64
	for family, addrs := range families(a, b) {
		port := uint16(21000)
		next := func() netip.AddrPort {
			port++
			return netip.AddrPortFrom(addrs[0], port)
		}

		listener := b.listen(t, addrs[1])
		to := addrPort(listener.Addr())
		embryonic := b.counter(t, "TcpExt.EmbryonicRsts")
		// a has no socket for the SYN-ACK, and refuses it.
		for range n {
			a.injectSegment(t, madeSegment{from: next(), to: to, seq: 1000, flags: flagSYN})
		}
		l.eventually("the requests to be reset", func() bool { return b.counter(t, "TcpExt.EmbryonicRsts") >= embryonic+n })
		want[a][ResetNosock] += n
		if small != "" {
			want[b][ResetReceive] += n
			total += n
		}
		check(family + ": SYN_RECV")
		if small != "" {
			seen(family+": SYN_RECV", b, "NEW_SYN_RECV", to)
		}

		// A RST outside the request's window, and one without a request.
		release := a.swallow(t, "tcp flags & (syn | ack) == (syn | ack)")
		embryonic = b.counter(t, "TcpExt.EmbryonicRsts")
		for range n {
			from := next()
			a.injectSegment(t, madeSegment{from: from, to: to, seq: 1000, flags: flagSYN})
			l.eventually("the request", func() bool { return b.states(t, 3) > 0 })
			a.injectSegment(t, madeSegment{from: from, to: to, seq: 1001 + 1<<24, flags: flagRST})
			a.injectSegment(t, madeSegment{from: next(), to: to, seq: 1, flags: flagRST})
		}
		check(family + ": SYN_RECV out of window, LISTEN")
		if now := b.counter(t, "TcpExt.EmbryonicRsts"); now != embryonic {
			t.Errorf("%s: %d requests were reset", family, now-embryonic)
		}
		// Closing the listener drops its requests without a RST.
		listener.Close()
		release()

		closed := b.closedPort(t, addrs[1])
		for range n {
			a.injectSegment(t, madeSegment{from: next(), to: closed, seq: 1, flags: flagRST})
		}
		check(family + ": closed port")

		// A fast open request has a full socket in SYN_RECV.
		b.sysctl(t, "ipv4/tcp_fastopen", "1538") // server, no cookie, all listeners
		release = a.swallow(t, "tcp flags & (syn | ack) == (syn | ack)")
		listener = b.listen(t, addrs[1])
		to = addrPort(listener.Addr())
		passive := b.counter(t, "TcpExt.TCPFastOpenPassive")
		for range n {
			from := next()
			a.injectSegment(t, madeSegment{from: from, to: to, seq: 1000, flags: flagSYN, data: "data"})
			a.injectSegment(t, madeSegment{from: from, to: to, seq: 1005, flags: flagRST})
		}
		want[b][ResetReceive] += n
		total += n
		check(family + ": SYN_RECV with fast open")
		if got := b.counter(t, "TcpExt.TCPFastOpenPassive") - passive; got != n {
			t.Errorf("%s: %d sockets by fast open", family, got)
		}
		seen(family+": SYN_RECV with fast open", b, "SYN_RECV", to)
		listener.Close()
		release()
		b.sysctl(t, "ipv4/tcp_fastopen", "1")

		for range n {
			// First a RST with an unexpected sequence number, which a challenge ACK
			// answers, then one with the expected number.
			client, server := connect(t, a, b, addrs[1])
			send, receive := sequenceOf(t, client)
			s := madeSegment{from: addrPort(client.LocalAddr()), to: addrPort(client.RemoteAddr()), ack: receive, flags: flagRST | flagACK}
			for _, off := range []uint32{1 << 24, 100} {
				s.seq = send + off
				a.injectSegment(t, s)
			}
			check(family + ": ESTABLISHED, out of window")
			if got := state(t, server); got != "ESTABLISHED" {
				t.Errorf("%s: %s after resets out of window", family, got)
			}
			s.seq = send
			a.injectSegment(t, s)
			l.eventually("the connection's end", func() bool { return state(t, server) == "CLOSE" })
			want[b][ResetReceive]++
			total++
			server.Close()
			client.SetLinger(0)
			client.Close() // a RST for a port without a socket
			want[a][ResetActive]++
		}
		check(family + ": ESTABLISHED")

		for range n {
			client, server := connect(t, a, b, addrs[1])
			client.CloseWrite()
			l.eventually("FIN_WAIT2", func() bool { return state(t, client) == "FIN_WAIT2" })
			from := addrPort(server.LocalAddr())
			client.SetLinger(0)
			client.Close()
			want[a][ResetActive]++
			want[b][ResetReceive]++
			total++
			l.eventually("CLOSE", func() bool { return state(t, server) == "CLOSE" })
			seen(family, b, "CLOSE_WAIT", from)
			server.Close()
		}
		check(family + ": CLOSE_WAIT")

		for range n {
			client, server := connect(t, a, b, addrs[1])
			from := addrPort(server.LocalAddr())
			client.CloseWrite()
			l.eventually("FIN_WAIT2", func() bool { return state(t, client) == "FIN_WAIT2" })
			release := a.swallow(t, "tcp dport != 0")
			server.Close()
			l.eventually("LAST_ACK", func() bool { return b.states(t, 9) == 1 })
			client.SetLinger(0)
			client.Close()
			want[a][ResetActive]++
			want[b][ResetReceive]++
			total++
			l.eventually("the end of LAST_ACK", func() bool { return b.states(t, 9) == 0 })
			release()
			seen(family, b, "LAST_ACK", from)
		}
		check(family + ": LAST_ACK")

		// Data that arrive after close() are not a RST, although tcp_reset() ends
		// the connection.
		for i := range 2 * n {
			client, server := connect(t, a, b, addrs[1])
			from := addrPort(client.LocalAddr())
			send, receive := sequenceOf(t, client)
			release := b.swallow(t, "tcp dport != 0")
			client.Close()
			l.eventually("FIN_WAIT1", func() bool { return a.states(t, 4) == 1 })
			s := madeSegment{from: addrPort(server.LocalAddr()), to: from, seq: receive, ack: send, flags: flagACK, data: "late"}
			if i%2 == 0 {
				want[a][ResetProcess]++
			} else {
				s.flags, s.data = flagRST|flagACK, ""
				want[a][ResetReceive]++
				total++
			}
			b.injectSegment(t, s)
			l.eventually("the end of FIN_WAIT1", func() bool { return a.states(t, 4) == 0 })
			if i%2 == 1 {
				seen(family, a, "FIN_WAIT1", from)
			}
			release()
			server.SetLinger(0)
			server.Close()
			want[b][ResetActive]++
		}
		check(family + ": FIN_WAIT1, and data after close()")

		// A closed socket in FIN_WAIT2 uses the small structure.
		for range n {
			client, server := connect(t, a, b, addrs[1])
			from := addrPort(client.LocalAddr())
			if _, err := client.Write([]byte("unread")); err != nil {
				t.Fatal(err)
			}
			l.eventually("the data to arrive", func() bool { return unread(t, server) > 0 })
			client.Close()
			// /proc/net/tcp shows the substate of a time-wait socket.
			l.eventually("FIN_WAIT2", func() bool { return a.states(t, 5) == 1 })
			server.Close() // with data unread
			want[b][ResetActive]++
			if small != "" {
				want[a][ResetReceive]++
				total++
				seen(family, a, "FIN_WAIT2", from)
			}
		}
		check(family + ": FIN_WAIT2")

		for i := range 2 * n {
			client, server := connect(t, a, b, addrs[1])
			from, peer := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
			send, receive := sequenceOf(t, client)
			waiting := a.states(t, 6)
			client.Close()
			l.eventually("FIN_WAIT2", func() bool { return a.states(t, 5) == 1 })
			server.Close()
			l.eventually("TIME_WAIT", func() bool { return a.states(t, 6) == waiting+1 })
			s := madeSegment{from: peer, to: from, seq: receive + 1 + 1<<24, ack: send + 1, flags: flagRST | flagACK}
			b.injectSegment(t, s)
			s.seq = receive + 1
			if i < n {
				a.sysctl(t, "ipv4/tcp_rfc1337", "1")
				b.injectSegment(t, s) // with this sysctl, TIME_WAIT ignores a RST
				a.sysctl(t, "ipv4/tcp_rfc1337", "0")
				continue
			}
			b.injectSegment(t, s)
			l.eventually("the end of TIME_WAIT", func() bool { return a.states(t, 6) == waiting })
			if small != "" {
				want[a][ResetReceive]++
				total++
				seen(family, a, "TIME_WAIT", from)
			}
		}
		check(family + ": TIME_WAIT")
	}
	l.count(p, "resets received, in all states", total, counters(t, p, a.inode)[ResetReceive]+counters(t, p, b.inode)[ResetReceive])
	l.balanced(TCPResetReceive, p, ResetReceive)
}

// TestTCPHealthy: connections that end normally, whichever side closes first, cause
// no reset.
func TestTCPHealthy(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	resets, retrans := l.load("tcpreset", Config{}), l.load("tcpretrans", Config{})
	connections := 100_000
	if need.InVM() || testing.Short() {
		connections = 400
	}
	a.sysctl(t, "ipv4/ip_local_port_range", "1024 65535")
	for _, n := range []*namespace{a, b} {
		// Beyond this number, connections end without TIME_WAIT.
		n.sysctl(t, "ipv4/tcp_max_tw_buckets", "1000000")
	}
	const question, answer = "question", "the answer to it"
	// The side that reads the end of the other's data closes second.
	serve := func(c *net.TCPConn) error {
		defer c.Close()
		buf := make([]byte, len(question))
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		if _, err := c.Write([]byte(answer)); err != nil {
			return err
		}
		switch addrPort(c.LocalAddr()).Port() % 4 {
		case 0: // closes first
			return nil
		case 1: // reports first that it has closed
			if err := c.CloseWrite(); err != nil {
				return err
			}
		}
		_, err := c.Read(buf)
		if err != io.EOF {
			return fmt.Errorf("the server read %w, want the end", err)
		}
		return nil
	}
	ask := func(to netip.AddrPort) error {
		domain := unix.AF_INET
		if to.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, sockaddr(to)); err != nil {
			return fmt.Errorf("connect to %v: %w", to, err)
		}
		if _, err := unix.Write(fd, []byte(question)); err != nil {
			return err
		}
		if to.Port()%4 == 3 {
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				return err
			}
		}
		buf := make([]byte, 64)
		for got := 0; ; {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			got += n
			if n == 0 && got != len(answer) || got > len(answer) {
				return fmt.Errorf("%d bytes of %d", got, len(answer))
			}
			if n == 0 || got == len(answer) && to.Port()%4 == 2 {
				return nil
			}
		}
	}
	var servers, clients sync.WaitGroup
	failed := make(chan error, connections)
	var to []netip.AddrPort
	for _, addrs := range families(a, b) {
		for i := range 4 {
			var listener net.Listener
			b.do(t, func() (err error) {
				listener, err = net.Listen("tcp", netip.AddrPortFrom(addrs[1], uint16(8000+i)).String())
				return err
			})
			defer listener.Close()
			to = append(to, addrPort(listener.Addr()))
			go func() {
				for {
					c, err := listener.Accept()
					if err != nil {
						return
					}
					servers.Go(func() {
						if err := serve(c.(*net.TCPConn)); err != nil {
							failed <- err
						}
					})
				}
			}()
		}
	}
	// Even a healthy node sometimes sends a RST. Before Linux 6.19, a packet that
	// arrives while another CPU creates the connection for its request may find
	// only the listening socket (inet_ehash_insert). On a stalled machine a FIN is
	// retransmitted, and the second ACK finds no socket. Rounds with such a RST are
	// compared with the kernel's counters, and at least one round must have none.
	const threads, rounds = 8, 10
	connections -= connections % (rounds * threads)
	var before, after [2]healthyEnd
	quiet := 0
	for range rounds {
		for worker := range threads {
			clients.Go(func() {
				if err := a.try(func() error {
					for i := range connections / rounds / threads {
						if err := ask(to[(worker+i)%len(to)]); err != nil {
							return err
						}
					}
					return nil
				}); err != nil {
					failed <- err
				}
			})
		}
		clients.Wait()
		servers.Wait()
		select {
		case err := <-failed:
			t.Fatal(err)
		default:
		}
		for i, ns := range []*namespace{a, b} {
			after[i] = healthyEndOf(l, ns, resets, retrans)
		}
		for i, name := range []string{"a", "b"} {
			now, peer := after[i].since(before[i]), after[1-i].since(before[1-i])
			if now.sent != now.outRsts {
				t.Errorf("namespace %s: %d resets sent, OutRsts %d", name, now.sent, now.outRsts)
			}
			if now.aborted > now.sent+now.received {
				t.Errorf("namespace %s: %d resets, EmbryonicRsts and EstabResets %d", name, now.sent+now.received, now.aborted)
			}
			if now.received > peer.outRsts {
				t.Errorf("namespace %s: %d resets received, the peer's OutRsts %d", name, now.received, peer.outRsts)
			}
			if now.retransmitted != now.retransSegs {
				t.Errorf("namespace %s: %d retransmissions, RetransSegs %d", name, now.retransmitted, now.retransSegs)
			}
		}
		a, b := after[0].since(before[0]), after[1].since(before[1])
		if a.outRsts+a.aborted+b.outRsts+b.aborted == 0 {
			quiet++
		}
		before = after
	}
	if quiet == 0 {
		t.Errorf("a reset in each of %d rounds: the load is not healthy", rounds)
	}
	if opened := a.counter(t, "Tcp.ActiveOpens"); opened != uint64(connections) {
		t.Errorf("%d connections were opened, want %d", opened, connections)
	}
	events := uint64(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if (e.Netns == a.inode || e.Netns == b.inode) && e.Type != TCPRetrans {
			events++
			t.Logf("event %v: %v -> %v in %q", e.Type, e.Source, e.Destination, TCPStateName(e.TCPState))
		}
	}
	if want := after[0].sent + after[0].received + after[1].sent + after[1].received; events > want {
		t.Errorf("%d events, want at most %d", events, want)
	}
}

// healthyEnd holds a namespace's resets and retransmissions by the probes and by
// the kernel.
type healthyEnd struct{ sent, received, retransmitted, outRsts, aborted, retransSegs uint64 }

func healthyEndOf(l *testLoader, ns *namespace, resets, retrans *Probe) healthyEnd {
	l.t.Helper()
	reset, segments := l.settled(resets, ns.inode), l.settled(retrans, ns.inode)
	return healthyEnd{
		sent:          reset[ResetNosock] + reset[ResetActive] + reset[ResetProcess],
		received:      reset[ResetReceive],
		retransmitted: segments[RetransSegments] + segments[RetransSynAcks],
		outRsts:       ns.counter(l.t, "Tcp.OutRsts"),
		aborted:       ns.counter(l.t, "TcpExt.EmbryonicRsts") + ns.counter(l.t, "Tcp.EstabResets"),
		retransSegs:   ns.counter(l.t, "Tcp.RetransSegs"),
	}
}

func (e healthyEnd) since(before healthyEnd) healthyEnd {
	return healthyEnd{
		sent:          e.sent - before.sent,
		received:      e.received - before.received,
		retransmitted: e.retransmitted - before.retransmitted,
		outRsts:       e.outRsts - before.outRsts,
		aborted:       e.aborted - before.aborted,
		retransSegs:   e.retransSegs - before.retransSegs,
	}
}

// TestTCPResetSent: which end sends a RST, of which kind, in which state, and when
// none is sent.
func TestTCPResetSent(t *testing.T) { eachRung(t, "tcpreset", testTCPResetSent) }

func testTCPResetSent(t *testing.T, rung Kind) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("tcpreset", Config{})
	sent := func(n *namespace) (slots [3]uint64) {
		got := l.settled(p, n.inode)
		return [3]uint64(got[:3])
	}
	var caused, counted uint64
	// expect runs f and checks that the namespace sends n resets of a kind, with
	// events in the state, and none of another kind.
	expect := func(what string, ns *namespace, slot int, state string, n uint64, f func()) {
		t.Helper()
		before, rsts := sent(ns), ns.counter(t, "Tcp.OutRsts")
		f()
		after := sent(ns)
		caused += n
		for i := range after {
			want := before[i]
			if i == slot {
				want += n
			}
			counted += after[i] - before[i]
			if after[i] != want && !excused(t, what, want-before[i], after[i]-before[i]) {
				t.Errorf("%s: %d resets of kind %d, want %d", what, after[i]-before[i], i, want-before[i])
			}
		}
		if got := ns.counter(t, "Tcp.OutRsts") - rsts; got != n {
			t.Errorf("%s: OutRsts is %d, want %d", what, got, n)
		}
		if n == 0 {
			return
		}
		l.eventually(what+": an event in "+state, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return slices.ContainsFunc(l.events, func(e Event) bool {
				return e.Type == TCPResetNosock+EventType(slot) && e.Netns == ns.inode && TCPStateName(e.TCPState) == state
			})
		})
	}
	option := func(c *net.TCPConn, level, name, value int) {
		t.Helper()
		rawConn(t, c, func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) })
	}
	ended := func(c *net.TCPConn) func() bool { return func() bool { return state(t, c) == "CLOSE" } }
	for family, addrs := range families(a, b) {
		client, server := connect(t, a, b, addrs[1])
		expect(family+" TCP_USER_TIMEOUT", a, ResetActive, "", 0, func() {
			release := b.swallow(t, "tcp dport != 0")
			option(client, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 500)
			client.Write([]byte("data"))
			l.eventually("the timeout", ended(client))
			release()
		})
		client.Close()
		server.SetLinger(0)
		server.Close()

		client, server = connect(t, a, b, addrs[1])
		expect(family+" keep-alive", a, ResetActive, "ESTABLISHED", 1, func() {
			release := b.swallow(t, "tcp dport != 0")
			for name, value := range map[int]int{unix.TCP_KEEPIDLE: 1, unix.TCP_KEEPINTVL: 1, unix.TCP_KEEPCNT: 1} {
				option(client, unix.IPPROTO_TCP, name, value)
			}
			option(client, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			l.eventually("the timeout", ended(client))
			release()
		})
		client.Close()
		server.SetLinger(0)
		server.Close()

		listener := stream(t, b, addrs[1], 0)
		if err := unix.Listen(listener.fd, 1); err != nil {
			t.Fatal(err)
		}
		to := addrPortOf(listener.local(t))
		// One connection whose final handshake ACK is lost, and two that fill the
		// accept queue meanwhile.
		release := b.swallow(t, "tcp flags & (syn | ack) == ack")
		late := a.dial(t, "tcp", to).(*net.TCPConn)
		release()
		release = b.swallow(t, fmt.Sprintf("tcp sport %d", addrPort(late.LocalAddr()).Port()))
		waiting := []net.Conn{a.dial(t, "tcp", to), a.dial(t, "tcp", to)}
		l.eventually("a full accept queue", func() bool { return b.states(t, 1) == 2 })
		expect(family+" tcp_abort_on_overflow", b, ResetProcess, "LISTEN", 1, func() {
			b.sysctl(t, "ipv4/tcp_abort_on_overflow", "1")
			release()
			late.Write([]byte("data"))
			l.eventually("the reset", ended(late))
			b.sysctl(t, "ipv4/tcp_abort_on_overflow", "0")
		})
		late.Close()
		expect(family+" close of a listening socket", b, ResetActive, "CLOSE", 2, func() { listener.close() })
		for _, c := range waiting {
			c.Close()
		}

		client, server = connect(t, a, b, addrs[1])
		expect(family+" data after close()", a, ResetProcess, "FIN_WAIT2", 1, func() {
			client.Close()
			l.eventually("FIN_WAIT2", func() bool { return a.states(t, 5) == 1 })
			server.Write([]byte("late"))
			l.eventually("the reset", ended(server))
		})
		server.Close()

		s := stream(t, a, addrs[0], unix.SOCK_NONBLOCK)
		closed := b.closedPort(t, addrs[1])
		expect(family+" ACK in SYN_SENT", a, ResetProcess, "SYN_SENT", 1, func() {
			release := b.swallow(t, "tcp dport != 0")
			defer release()
			if err := unix.Connect(s.fd, sockaddr(closed)); err != unix.EINPROGRESS {
				t.Fatal(err)
			}
			b.injectSegment(t, madeSegment{from: closed, to: addrPortOf(s.local(t)), seq: 1, ack: 1, flags: flagACK})
			l.eventually("the RST", func() bool { return b.swallowed(t) >= 2 })
			s.close()
		})

		// netfilter's RST does not come from TCP.
		received := l.settled(p, a.inode)[ResetReceive]
		expect(family+" reject with tcp reset", b, ResetNosock, "", 0, func() {
			b.run(t, "nft", "add table inet r; add chain inet r in { type filter hook input priority 0; }; add rule inet r in tcp flags & (syn | ack) == syn reject with tcp reset")
			a.try(func() error {
				if c, err := net.Dial("tcp", closed.String()); err == nil {
					c.Close()
					return fmt.Errorf("%v is open", closed)
				}
				return nil
			})
			b.run(t, "nft", "delete table inet r")
		})
		if got := l.settled(p, a.inode)[ResetReceive] - received; got != 1 && !excused(t, family+" resets from netfilter", 1, got) {
			t.Errorf("%s: %d resets received from netfilter, want 1", family, got)
		}
	}
	l.count(p, "resets sent, in all states", caused, counted)
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// TestTCPResetWithoutSymbols: without symbols the owner of some resets is unknown;
// the probe works and reports that limitation.
func TestTCPResetWithoutSymbols(t *testing.T) {
	for _, test := range []struct {
		name    string
		symbols *Symbols
		said    bool
	}{
		{"with", NewSymbols(), false},
		{"without", &Symbols{path: filepath.Join(t.TempDir(), "none"), now: time.Now}, true},
	} {
		l := newTestLoader(t, Options{})
		l.symbols = test.symbols
		p, err := l.Load("tcpreset", Config{})
		if err != nil {
			t.Fatal(err)
		}
		_, limitations := p.State()
		if said := strings.Contains(strings.Join(limitations, "\n"), "data came after close()"); said != test.said {
			t.Errorf("%s symbols: the probe lacks %q", test.name, limitations)
		}
	}
}
