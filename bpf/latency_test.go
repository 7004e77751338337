package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/proof"
)

// hold is how long the tests delay packets: well over the probes' 100 ms, and below
// the 200 ms after which TCP retransmits.
const hold = 140 * time.Millisecond

// udpPair returns both ends of a datagram flow from a to b.
func udpPair(t testing.TB, a, b *namespace, addr netip.Addr) (client net.Conn, server *net.UDPConn) {
	t.Helper()
	server = b.listenUDP(t, addr)
	return a.dial(t, "udp", addrPort(server.LocalAddr())), server
}

// TestSocketlatencySlow: data that lie in the socket, and writes that wait in it, count as
// slow. Both run with one load of each rung, which in a VM costs more than either.
func TestSocketlatencySlow(t *testing.T) {
	eachRung(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("socketlatency", Config{})
		readSlow(t, l, p, a, b)
		if writes := p.Hooks()[1]; writes.Kind == "" {
			t.Logf("this kernel: no writes: %+v", writes.Refused)
			return
		}
		sendSlow(t, l, p, a, b)
	})
}

// readSlow reads data after a while.
func readSlow(t *testing.T, l *testLoader, p *Probe, a, b *namespace) {
	const n = 4
	want := 0
	buffer := make([]byte, 64)
	for family, addrs := range families(a, b) {
		tcp, server := connect(t, a, b, addrs[1])
		udp, udpServer := udpPair(t, a, b, addrs[1])
		pairs := [][2]net.Conn{{tcp, server}, {udp, udpServer}}
		if sees := p.Hooks()[0]; sees.Limitation != "" {
			pairs = pairs[:1] // this rung measures only TCP
		}
		for range n {
			for _, pair := range pairs {
				if _, err := pair[0].Write([]byte("wait for it")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(hold)
				if _, err := pair[1].Read(buffer); err != nil {
					t.Fatal(err)
				}
				want++
			}
		}
		got := l.settled(p, b.inode)
		if (got[ReadSlow] != uint64(want) || got[ReadSlow100] != uint64(want)) && !excused(t, family+" reads of data that lay there", uint64(want), got[ReadSlow100]) {
			t.Errorf("%s: %v, want %d slow reads", family, got[:4], want)
		}
		for _, e := range l.taken(SocklatReadSlow, b.inode, want) {
			if e.Latency < 100*time.Millisecond || int(e.PID) != os.Getpid() || e.Comm() == "" || e.Source.Port() == 0 {
				t.Errorf("%s: %+v", family, e)
			}
			// An unconnected datagram socket knows only its own end.
			if e.Protocol == unix.IPPROTO_TCP && e.Source.Addr() == addrs[1] && (e.Source != addrPort(server.LocalAddr()) || e.Destination != addrPort(server.RemoteAddr())) {
				t.Errorf("%s: %+v", family, e)
			}
		}
	}
	l.count(p, "reads of data that lay there for 140 ms", uint64(want), l.settled(p, b.inode)[ReadSlow100])
	l.balanced(SocklatReadSlow, p, ReadSlow100)
}

// TestSocketlatencyNoFalseReads uses a keep-alive connection like a server's:
// polled for seconds, idle, then used at once.
func TestSocketlatencyNoFalseReads(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		client, server := connect(t, a, b, b.v4)
		udp, udpServer := udpPair(t, a, b, b.v4)
		buffer := make([]byte, 4096)
		poll := func(c net.Conn) {
			c.SetReadDeadline(time.Now().Add(hold))
			if _, err := c.Read(buffer); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("an idle connection answered: %v", err)
			}
		}
		// Every kind of read that returns no data, raw system calls included.
		empty := func(c *net.TCPConn) {
			rawConn(t, c, func(fd int) error {
				for _, flags := range []int{unix.MSG_DONTWAIT, unix.MSG_DONTWAIT | unix.MSG_PEEK} {
					if _, _, err := unix.Recvfrom(fd, buffer, flags); err != unix.EAGAIN {
						return errors.New("an idle connection had something to read")
					}
				}
				return nil
			})
		}
		for range 4 {
			poll(server)
			empty(server)
			poll(udpServer)
			for _, pair := range [][2]net.Conn{{client, server}, {udp, udpServer}} {
				got := make(chan error, 1)
				go func() {
					pair[1].SetReadDeadline(time.Now().Add(5 * time.Second))
					_, err := pair[1].Read(buffer)
					got <- err
				}()
				time.Sleep(10 * time.Millisecond) // let the reader sleep
				if _, err := pair[0].Write([]byte("now")); err != nil {
					t.Fatal(err)
				}
				if err := <-got; err != nil {
					t.Fatal(err)
				}
			}
			// An empty datagram is read like any other.
			if _, err := udp.Write(nil); err != nil {
				t.Fatal(err)
			}
			udpServer.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := udpServer.Read(buffer); n != 0 || err != nil {
				t.Fatal(n, err)
			}
		}
		// One call that waits for all data while they arrive in pieces.
		done := make(chan error, 1)
		go func() {
			var err error
			rawConn(t, server, func(fd int) error {
				if err = unix.SetNonblock(fd, false); err != nil {
					return err
				}
				_, _, err = unix.Recvfrom(fd, buffer[:10], unix.MSG_WAITALL)
				return err
			})
			done <- err
		}()
		for range 10 {
			time.Sleep(hold / 4)
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		got := l.settled(p, b.inode)
		if got[ReadSlow100] != 0 || got[WriteSlow100] != 0 {
			t.Errorf("%v, and nothing was slow", got[:4])
		}
		if events := l.taken(SocklatReadSlow, b.inode, 0); len(events) > 0 {
			t.Errorf("false events: %+v", events)
		}
		l.count(p, "slow reads and writes on polled, idle and waiting connections", 0, got[ReadSlow100]+got[WriteSlow100])
		t.Logf("over 1 ms: %d", got[ReadSlow])
	})
}

// TestSocketlatencyPeek peeks at data long before reading them: one slow read, at
// the end.
func TestSocketlatencyPeek(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	p := l.load("socketlatency", Config{})
	client, server := connect(t, a, b, b.v4)
	if _, err := client.Write([]byte("look")); err != nil {
		t.Fatal(err)
	}
	l.eventually("the data to arrive", func() bool { return unread(t, server) == 4 })
	buffer := make([]byte, 16)
	for range 3 {
		rawConn(t, server, func(fd int) error {
			_, _, err := unix.Recvfrom(fd, buffer, unix.MSG_PEEK)
			return err
		})
		time.Sleep(hold / 2)
	}
	if got := l.settled(p, b.inode); got[ReadSlow] != 0 {
		t.Errorf("a peek counted: %v", got[:4])
	}
	if _, err := server.Read(buffer); err != nil {
		t.Fatal(err)
	}
	if got := l.settled(p, b.inode); got[ReadSlow] != 1 || got[ReadSlow100] != 1 {
		t.Errorf("%v, want one slow read", got[:4])
	}
}

// queueHeld delays packets in a netfilter queue whose reader releases each after a
// while. The returned function waits for held packets and returns the number
// released.
func queueHeld(t *testing.T, n *namespace, number uint16, wait time.Duration) func() uint64 {
	t.Helper()
	var came, went atomic.Uint64
	var fd int
	n.do(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	const (
		subsystem  = 3 // NFNL_SUBSYS_QUEUE
		packet     = 0
		verdict    = 1
		config     = 2
		attrConfig = 1 // NFQA_CFG_CMD
		attrParams = 2 // NFQA_CFG_PARAMS
		attrHeader = 1 // NFQA_PACKET_HDR
		attrResult = 2 // NFQA_VERDICT_HDR
	)
	send := func(kind uint16, attr uint16, payload []byte) error {
		m := binary.NativeEndian.AppendUint32(nil, 0)
		m = binary.NativeEndian.AppendUint16(m, subsystem<<8|kind)
		m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST)
		m = append(m, make([]byte, 8)...)
		m = append(m, unix.AF_UNSPEC, 0)
		m = binary.BigEndian.AppendUint16(m, number)
		m = binary.NativeEndian.AppendUint16(m, uint16(4+len(payload)))
		m = binary.NativeEndian.AppendUint16(m, attr)
		m = append(m, payload...)
		m = append(m, make([]byte, -len(m)&3)...)
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		return unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	for _, c := range []struct {
		attr    uint16
		payload []byte
	}{
		{attrConfig, []byte{1, 0, 0, 0}},                  // bind
		{attrParams, []byte{0, 0, 0, 0, 1 /* headers */}}, // copy no data
	} {
		if err := send(config, c.attr, c.payload); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			size, _, err := unix.Recvfrom(fd, buffer, 0)
			if err != nil {
				return
			}
			for b := buffer[:size]; len(b) >= 20; {
				length := int(binary.NativeEndian.Uint32(b))
				if length < 20 || length > len(b) {
					break
				}
				if binary.NativeEndian.Uint16(b[4:]) == subsystem<<8|packet {
					for attrs := b[20:length]; len(attrs) >= 4; {
						n := int(binary.NativeEndian.Uint16(attrs))
						if n < 4 || n > len(attrs) {
							break
						}
						if binary.NativeEndian.Uint16(attrs[2:]) == attrHeader && n >= 8 {
							id := slices.Clone(attrs[4:8])
							came.Add(1)
							time.AfterFunc(wait, func() {
								send(verdict, attrResult, append([]byte{0, 0, 0, 1}, id...))
								went.Add(1)
							})
						}
						attrs = attrs[min((n+3)&^3, len(attrs)):]
					}
				}
				b = b[min((length+3)&^3, len(b)):]
			}
		}
	}()
	t.Cleanup(func() {
		unix.Shutdown(fd, unix.SHUT_RDWR)
		unix.Close(fd)
	})
	return func() uint64 {
		for n := came.Load(); ; n = came.Load() {
			for went.Load() < n {
				time.Sleep(time.Millisecond)
			}
			// Packets on their way to the queue arrive within this time.
			time.Sleep(20 * time.Millisecond)
			if came.Load() == n {
				return n
			}
		}
	}
}

// staged reports whether the hook sees the stages between its ends.
func staged(h HookState) bool { return h.Kind == Fentry || h.Kind == Kprobe }

func TestKernellatency(t *testing.T) {
	eachRung(t, "kernellatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		testKernellatency(t, a, b, rung, hold)
	})
}

// testKernellatency delays packets, on receipt in b and on transmission in a. Each
// is one event, which distinguishes them from packets that a slow machine delays
// itself.
func testKernellatency(t *testing.T, a, b *namespace, rung Kind, wait time.Duration) {
	l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
	p := l.load("kernellatency", Config{Event: 10 * time.Millisecond})
	const n = 3
	for _, tables := range []string{"iptables", "ip6tables"} {
		// Received data are delayed in b, sent data in a, in separate tests.
		b.run(t, tables, "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "--tcp-flags", "PSH", "PSH", "-j", "NFQUEUE", "--queue-num", "1")
		b.run(t, tables, "-t", "mangle", "-A", "INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "3")
	}
	heldTCP, heldUDP := queueHeld(t, b, 1, wait), queueHeld(t, b, 3, wait)
	var buffer [64]byte
	exchange := func(from, to net.Conn) {
		t.Helper()
		for range n {
			if _, err := from.Write([]byte("held")); err != nil {
				t.Fatal(err)
			}
			to.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := to.Read(buffer[:]); err != nil {
				t.Fatal(err)
			}
		}
	}
	// check compares a namespace's counters with the packets delayed there.
	check := func(what string, ns *namespace, typ EventType, want uint64, slow, slow100 int) (held []Event) {
		t.Helper()
		got := l.settled(p, ns.inode)
		l.eventually("the events to be read", func() bool {
			account := l.account(typ)
			return account.Read == account.Written
		})
		var shorter uint64
		for _, e := range l.taken(typ, ns.inode, 0) {
			if e.Latency >= wait {
				held = append(held, e)
			} else {
				shorter++
			}
		}
		if n := uint64(len(held)); (n != want || got[slow]-shorter != want) && !excused(t, what, want, min(n, got[slow]-shorter)) {
			t.Errorf("%s: %d over 10 ms, %d of them over %v, %d events of those; want %d", what, got[slow], got[slow]-shorter, wait, len(held), want)
		}
		if wait >= 100*time.Millisecond && got[slow100] != want || wait < 100*time.Millisecond && got[slow100] > want {
			t.Errorf("%s: %d over 100 ms, want %d held for %v", what, got[slow100], want, wait)
		}
		return held
	}
	// A slow machine may make TCP retransmit a segment, which is delayed too; the
	// queue counts those.
	want, least := uint64(0), uint64(0)
	for family, addrs := range families(a, b) {
		client, server := connect(t, a, b, addrs[1])
		exchange(client, server)
		least += n
		udp, udpServer := udpPair(t, a, b, addrs[1])
		exchange(udp, udpServer)
		if h := p.Hooks()[0]; staged(h) || slices.Contains(h.Programs, "raw_data_ready") || slices.Contains(h.Programs, "btf_data_ready") {
			want, least = heldTCP()+heldUDP(), least+n
		} else {
			want = heldTCP()
		}
		if want < least {
			t.Errorf("%s: %d packets were held, want %d", family, want, least)
		}
		for _, e := range check(family+": received in b", b, RxKernelSlow, want, RxSlow, RxSlow100) {
			if e.Source.Addr() != addrs[0] {
				continue
			}
			to := addrPort(server.LocalAddr())
			if e.Protocol == unix.IPPROTO_UDP {
				to = addrPort(udpServer.LocalAddr())
			}
			if e.Destination != to || e.Source.Port() == 0 {
				t.Errorf("%s: %+v", family, e)
			}
			// TCP was delayed before routing, UDP after it.
			held := PointIP
			if e.Protocol == unix.IPPROTO_UDP {
				held = PointLocalIn
			}
			if staged(p.Hooks()[0]) && (e.Points[held] < wait || e.Points[PointIP]+e.Points[PointLocalIn] != e.Latency) {
				t.Errorf("%s: points %v of %v", family, e.Points, e.Latency)
			}
		}
		if got := counters(t, p, b.inode); got[TxSlow100] != 0 {
			t.Errorf("%s: b sent %d packets late, and none was held", family, got[TxSlow100])
		}
	}
	l.countHeld(p, "received", wait, want, counters(t, p, b.inode), RxSlow, RxSlow100, l.taken(RxKernelSlow, b.inode, 0))
	l.balanced(RxKernelSlow, p, RxSlow)

	for _, tables := range []string{"iptables", "ip6tables"} {
		b.run(t, tables, "-t", "mangle", "-F")
		a.run(t, tables, "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "PSH", "PSH", "-j", "NFQUEUE", "--queue-num", "2")
	}
	heldTCP = queueHeld(t, a, 2, wait)
	least = 0
	for family, addrs := range families(a, b) {
		client, server := connect(t, a, b, addrs[1])
		exchange(client, server)
		least += n
		if want = heldTCP(); want < least {
			t.Errorf("%s: %d packets were held, want %d", family, want, least)
		}
		for _, e := range check(family+": sent by a", a, TxKernelSlow, want, TxSlow, TxSlow100) {
			if staged(p.Hooks()[1]) && (e.Points[PointLocalOut] < wait || e.Points[PointRoute]+e.Points[PointLocalOut]+e.Points[PointPostrouting] != e.Latency) {
				t.Errorf("%s: points %v of %v", family, e.Points, e.Latency)
			}
			if e.Source.Addr() == addrs[0] && (e.Source != addrPort(client.LocalAddr()) || e.Destination != addrPort(client.RemoteAddr()) || e.Device() != a.device) {
				t.Errorf("%s: %+v on %s", family, e, e.Device())
			}
		}
		if got := counters(t, p, a.inode); got[RxSlow100] != 0 {
			t.Errorf("%s: a received %d packets late, and none was held", family, got[RxSlow100])
		}
	}
	l.countHeld(p, "sent", wait, want, counters(t, p, a.inode), TxSlow, TxSlow100, l.taken(TxKernelSlow, a.inode, 0))
	l.balanced(TxKernelSlow, p, TxSlow)
}

// countHeld records both counters of a test that delays packets, minus the packets
// that the machine itself delayed for a shorter time.
func (l *testLoader) countHeld(p *Probe, what string, wait time.Duration, want uint64, got [8]uint64, slow, slow100 int, events []Event) {
	l.t.Helper()
	for _, e := range events {
		if e.Latency < wait {
			got[slow]--
			if e.Latency >= 100*time.Millisecond {
				got[slow100]--
			}
		}
	}
	l.count(p, fmt.Sprintf("packets %s after %d ms: over 10 ms", what, wait.Milliseconds()), want, got[slow])
	if wait >= 100*time.Millisecond {
		l.count(p, fmt.Sprintf("packets %s after %d ms: over 100 ms", what, wait.Milliseconds()), want, got[slow100])
	}
}

// forgetNeighbour makes a resolve b's address at its next transmission, while b
// does not answer. The returned function sets the address. Until then a asks for it
// every second and keeps its packets: by default a would stop after three requests,
// possibly before a busy machine has run the next command.
func forgetNeighbour(t *testing.T, a, b *namespace, addr netip.Addr) (resolve func()) {
	t.Helper()
	a.do(t, func() error {
		family := "ipv6"
		if addr.Is4() {
			family = "ipv4"
		}
		return os.WriteFile("/proc/sys/net/"+family+"/neigh/"+a.device+"/mcast_solicit", []byte("300"), 0)
	})
	if addr.Is4() {
		b.do(t, func() error {
			return os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_ignore", []byte("8"), 0)
		})
	} else {
		b.run(t, "ip6tables", "-A", "INPUT", "-p", "58", "-j", "DROP")
	}
	a.run(t, "ip", "neigh", "del", addr.String(), "dev", a.device)
	return func() {
		a.run(t, "ip", "neigh", "replace", addr.String(), "lladdr", b.mac.String(), "dev", a.device, "nud", "permanent")
	}
}

// TestKernellatencyNeighbour makes packets wait for a neighbour's address. That
// wait belongs to the network, not the kernel: only time before it counts.
func TestKernellatencyNeighbour(t *testing.T) {
	rungsInTurn(t, "kernellatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung, EventRate: allEvents, EventBurst: allEvents})
		p := l.load("kernellatency", Config{})
		const wait = 300 * time.Millisecond
		send := func(what string, from, to net.Conn, resolve func()) {
			t.Helper()
			start := time.Now()
			if _, err := from.Write([]byte("where are you")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait)
			resolve()
			to.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := to.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < wait {
				t.Errorf("%s came after %v: it did not wait", what, took)
			}
		}
		var held uint64
		for family, addrs := range families(a, b) {
			client, server := connect(t, a, b, addrs[1])
			udp, udpServer := udpPair(t, a, b, addrs[1])
			for range 2 {
				send(family+" TCP", client, server, forgetNeighbour(t, a, b, addrs[1]))
				send(family+" UDP", udp, udpServer, forgetNeighbour(t, a, b, addrs[1]))
			}
			got := l.settled(p, a.inode)
			l.count(p, family+": packets over 100 ms in the stack, of those that waited 300 ms for a neighbour", 0, got[TxSlow100]-held)
			// A packet that first waits for a user-space program has waited in the
			// stack.
			tables := map[string]string{"IPv4": "iptables", "IPv6": "ip6tables"}[family]
			number := map[string]uint16{"IPv4": 4, "IPv6": 6}[family]
			a.run(t, tables, "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "PSH", "PSH", "-j", "NFQUEUE", "--queue-num", fmt.Sprint(number))
			let := queueHeld(t, a, number, hold)
			send(family+" TCP", client, server, forgetNeighbour(t, a, b, addrs[1]))
			held += let()
			l.eventually("the packets that were held", func() bool { return counters(t, p, a.inode)[TxSlow100] >= held })
			got = l.settled(p, a.inode)
			l.count(p, family+" and before: packets over 100 ms in the stack, which then waited for a neighbour", held, got[TxSlow100])
			a.run(t, tables, "-t", "mangle", "-F")
		}
		for _, e := range l.taken(TxKernelSlow, a.inode, int(held)) {
			if e.Latency < hold {
				t.Errorf("%+v", e)
			}
		}
		l.balanced(TxKernelSlow, p, TxSlow100)
	})
}

// TestKernellatencyHealthy sends much data to a process that reads slowly: the
// acknowledgement sent by its read is not late.
func TestKernellatencyHealthy(t *testing.T) {
	rungsInTurn(t, "kernellatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("kernellatency", Config{})
		n := 50000
		if need.InVM() {
			n = 2000
		}
		for _, addrs := range families(a, b) {
			send(t, a.dial(t, "udp", addrPort(b.listenUDP(t, addrs[1]).LocalAddr())), n)
			client, server := connect(t, a, b, addrs[1])
			if err := server.SetReadBuffer(16 << 10); err != nil {
				t.Fatal(err)
			}
			buffer := make([]byte, 64<<10)
			for range 4 {
				// Fill the window, which reading opens again.
				client.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				written, _ := client.Write(make([]byte, 256<<10))
				time.Sleep(300 * time.Millisecond)
				server.SetReadDeadline(time.Now().Add(20 * time.Second))
				// Read the rest of the client's data.
				for got := 0; got < written; {
					n, err := server.Read(buffer)
					if err != nil {
						t.Fatal(err)
					}
					got += n
				}
			}
		}
		for name, ns := range map[string]*namespace{"a": a, "b": b} {
			got := l.settled(p, ns.inode)
			l.count(p, fmt.Sprintf("of %d datagrams and TCP to a slow reader, packets over 100 ms in the stack of %s", 2*n, name), 0, got[TxSlow100]+got[RxSlow100])
			if events := append(l.taken(TxKernelSlow, ns.inode, 0), l.taken(RxKernelSlow, ns.inode, 0)...); len(events) != 0 {
				t.Errorf("events of healthy traffic: %+v", events)
			}
		}
	})
}

// idleVirtioNet finds a network device of the driver virtio_net that is down, and
// thus unused.
func idleVirtioNet(t *testing.T) (netlink.Link, bool) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		driver, err := os.Readlink("/sys/class/net/" + link.Attrs().Name + "/device/driver")
		if err == nil && strings.HasSuffix(driver, "/virtio_net") && link.Attrs().Flags&net.FlagUp == 0 {
			return link, true
		}
	}
	return nil, false
}

// TestVirtcmdlatency changes the address of an idle device, which takes one command
// each time. If the kernel has no hook for commands, the test checks that the error
// is useful.
func TestVirtcmdlatency(t *testing.T) {
	eachRung(t, "virtcmdlatency", func(t *testing.T, rung Kind) {
		l := newTestLoader(t, Options{Hooks: rung})
		p, err := l.Load("virtcmdlatency", Config{Slow: Zero, Slow100: time.Hour})
		if err == nil {
			link, ok := idleVirtioNet(t)
			need.VM(t, ok, fmt.Sprintf("an idle virtio-net device; the hooks are %+v", p.Hooks()))
			// Alternate addresses: newer kernels send no command for the current
			// address.
			const n = 6
			own := slices.Clone(link.Attrs().HardwareAddr)
			other := slices.Clone(own)
			other[5] ^= 1
			t.Cleanup(func() { netlink.LinkSetHardwareAddr(link, own) })
			for i := range n {
				address := other
				if i%2 == 1 {
					address = own
				}
				if err := netlink.LinkSetHardwareAddr(link, address); err != nil {
					t.Fatal(err)
				}
			}
			got := l.settled(p, 0)
			l.count(p, "commands that set a device's address", n, got[CommandSlow])
			if got[CommandSlow100] != 0 {
				t.Errorf("%d commands took an hour", got[CommandSlow100])
			}
			l.balanced(VirtcmdExcute, p, CommandSlow)
			for _, e := range l.taken(VirtcmdExcute, 0, n) {
				if int(e.PID) != os.Getpid() || e.Comm() == "" || e.Latency <= 0 {
					t.Errorf("%+v by %q", e, e.Comm())
				}
			}
			return
		}
		var unsupported *UnsupportedError
		if !errors.As(err, &unsupported) {
			t.Fatal(err)
		}
		text := unsupported.Detail()
		kind, _, _ := strings.Cut(string(rung), "-")
		for _, want := range []string{"virtnet_send_command", kind, "no tracepoint"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not mention %s", text, want)
			}
		}
		if strings.Contains(text, "MEMLOCK") {
			t.Errorf("%q gives advice on something else", text)
		}
		proof.Refuse(t, "virtcmdlatency", string(rung), text)
	})
}
