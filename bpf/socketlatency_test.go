package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestSocketlatencyHealthy exchanges many requests and replies with readers that
// wait for data. The probe must not count more reads over 1 ms than the application
// measures, including the path.
func TestSocketlatencyHealthy(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		n := 50000 // requests, and as many replies
		if need.InVM() {
			n = 1000
		}
		for family, addrs := range families(a, b) {
			for _, protocol := range []string{"TCP", "UDP"} {
				client, server := tcpEnds(t, a, b, addrs[1])
				if protocol == "UDP" {
					if p.Hooks()[0].Limitation != "" {
						continue
					}
					client, server = udpEnds(t, a, b, addrs[1])
					connectBack(t, client, server)
				}
				before := [2][8]uint64{l.settled(p, a.inode), l.settled(p, b.inode)}
				asked, answered := questions(t, client, server, protocol == "UDP", n/4)
				for i, side := range []struct {
					name  string
					ns    *namespace
					waits []time.Duration
				}{{"the asking end", a, answered}, {"the answering end", b, asked}} {
					got := l.settled(p, side.ns.inode)
					slow, slow100 := got[ReadSlow]-before[i][ReadSlow], got[ReadSlow100]-before[i][ReadSlow100]
					what := fmt.Sprintf("%s %s, %s, %d reads", family, protocol, side.name, len(side.waits))
					// The probe's clock ticks every 4 us.
					if slow > among(side.waits, ms-8*time.Microsecond) || slow100 > among(side.waits, 100*ms) {
						t.Errorf("%s: counted %d over 1 ms and %d over 100 ms, the application measured %d and %d", what, slow, slow100, among(side.waits, ms), among(side.waits, 100*ms))
					}
					t.Logf("%s: counted %d over 1 ms, the application measured %d", what, slow, among(side.waits, ms))
					if w, most := got[WriteSlow100]-before[i][WriteSlow100], among(asked, 100*ms)+among(answered, 100*ms); w > most {
						t.Errorf("%s: %d writes over 100 ms, of at most %d", what, w, most)
					}
				}
			}
		}
		for _, ns := range []*namespace{a, b} {
			got := l.settled(p, ns.inode)
			if events := append(l.taken(SocklatReadSlow, ns.inode, 0), l.taken(SocklatSendSlow, ns.inode, 0)...); uint64(len(events)) > got[ReadSlow100]+got[WriteSlow100] {
				t.Errorf("%d events of %v", len(events), got[:4])
			}
		}
	})
}

// connectBack connects a datagram socket to its peer.
func connectBack(t *testing.T, client, server *endpoint) {
	t.Helper()
	to, err := unix.Getsockname(client.fd)
	if err == nil {
		err = unix.Connect(server.fd, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// questions returns how long each request and each reply took, of those that are read. A
// request without a reply is repeated: a datagram was lost, or the other end is slow and
// reads the request twice.
func questions(t *testing.T, client, server *endpoint, datagrams bool, n int) (asked, answered []time.Duration) {
	t.Helper()
	if datagrams {
		for _, e := range []*endpoint{client, server} {
			wait := unix.NsecToTimeval(int64(2 * time.Second))
			if err := unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
				t.Fatal(err)
			}
		}
	}
	var over atomic.Bool
	end := time.Now().Add(testkit.Patience)
	// read returns the number in the received message, how long ago it was written, and
	// whether one came.
	read := func(e *endpoint) (number int, took time.Duration, came bool) {
		var b [64]byte
		got, err := again(func() (int, error) { return unix.Read(e.fd, b[:]) })
		switch {
		case err == unix.EAGAIN && datagrams && time.Now().Before(end):
			return 0, 0, false
		case (err != nil || got != len(b)) && !over.Swap(true):
			t.Errorf("%d bytes of a request: %v", got, err)
		}
		return int(binary.NativeEndian.Uint64(b[:])), now() - time.Duration(binary.NativeEndian.Uint64(b[8:])), true
	}
	write := func(e *endpoint, number int) {
		var b [64]byte
		binary.NativeEndian.PutUint64(b[:], uint64(number))
		binary.NativeEndian.PutUint64(b[8:], uint64(now()))
		got, err := again(func() (int, error) { return unix.Write(e.fd, b[:]) })
		if (err != nil || got != len(b)) && !over.Swap(true) {
			t.Errorf("%d bytes of a request: %v", got, err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() {
			switch i, took, came := read(server); {
			case !came:
			case i == n: // the last
				asked = append(asked, took)
				return
			default:
				asked = append(asked, took)
				write(server, i)
			}
		}
	}()
	for i := 0; i < n && !over.Load(); {
		write(client, i)
		number, took, came := read(client)
		for came && number < i && !over.Load() { // a late reply
			answered = append(answered, took)
			number, took, came = read(client)
		}
		if !came {
			t.Logf("no answer to question %d: it is asked again", i)
			continue
		}
		answered = append(answered, took)
		i++
	}
	write(client, n)
	over.Store(true)
	<-done
	return asked, answered
}

// TestSocketlatencyErrorQueue reads the error queue while data wait. That is not a
// read of data.
func TestSocketlatencyErrorQueue(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		want := uint64(0)
		for _, addrs := range families(a, b) {
			for _, protocol := range []string{"TCP", "UDP"} {
				client, server := tcpEnds(t, a, b, addrs[1])
				if protocol == "UDP" {
					if p.Hooks()[0].Limitation != "" {
						continue
					}
					client, server = udpEnds(t, a, b, addrs[1])
					connectBack(t, client, server)
				}
				const stamping = unix.SOF_TIMESTAMPING_TX_SOFTWARE | unix.SOF_TIMESTAMPING_TX_SCHED | unix.SOF_TIMESTAMPING_SOFTWARE
				if err := unix.SetsockoptInt(server.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, stamping); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if _, err := unix.Write(client.fd, []byte("wait")); err != nil {
						t.Fatal(err)
					}
					read := 0
					for range 4 {
						time.Sleep(hold / 4)
						if _, err := unix.Write(server.fd, []byte("stamp")); err != nil {
							t.Fatal(err)
						}
						l.eventually("a timestamp", func() bool {
							_, _, _, _, err := unix.Recvmsg(server.fd, make([]byte, 100), make([]byte, 500), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
							return err == nil
						})
						read++
					}
					if n, err := again(func() (int, error) { return unix.Read(server.fd, make([]byte, 100)) }); n != 4 || err != nil {
						t.Fatal(n, err)
					}
					want++
				}
			}
		}
		got := l.settled(p, b.inode)
		l.count(p, "reads of data that waited while the error queue was read", want, got[ReadSlow100])
		if got[ReadSlow] != want {
			t.Errorf("%v, want %d slow reads", got[:4], want)
		}
	})
}

// TestSocketlatencyMPTCP makes data wait in MPTCP sockets, which the probe does not
// measure, and in a TCP socket accepted by an MPTCP server, which it does.
func TestSocketlatencyMPTCP(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		open := func(n *namespace, protocol int) (fd int) {
			err := n.try(func() (err error) {
				fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
				return err
			})
			need.Kernel(t, err == nil, fmt.Sprintf("no MPTCP: %v", err))
			t.Cleanup(func() { unix.Close(fd) })
			return fd
		}
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		listener := open(b, unix.IPPROTO_MPTCP)
		if err := errors.Join(unix.Bind(listener, sockaddr(netip.AddrPortFrom(b.v4, 0))), unix.Listen(listener, 5)); err != nil {
			t.Fatal(err)
		}
		to, err := unix.Getsockname(listener)
		if err != nil {
			t.Fatal(err)
		}
		for _, protocol := range []int{unix.IPPROTO_MPTCP, unix.IPPROTO_TCP} {
			client := open(a, protocol)
			if err := unix.Connect(client, to); err != nil {
				t.Fatal(err)
			}
			server, err := again(func() (int, error) {
				fd, _, err := unix.Accept(listener)
				return fd, err
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(server) })
			for range 3 {
				for _, pair := range [][2]int{{client, server}, {server, client}} {
					if _, err := unix.Write(pair[0], []byte("wait for it")); err != nil {
						t.Fatal(err)
					}
					time.Sleep(hold)
					if n, err := again(func() (int, error) { return unix.Read(pair[1], make([]byte, 64)) }); n != 11 || err != nil {
						t.Fatal(n, err)
					}
				}
			}
			want := uint64(0)
			if protocol == unix.IPPROTO_TCP {
				want = 3
			}
			for _, n := range []*namespace{a, b} {
				got := l.settled(p, n.inode)
				l.count(p, fmt.Sprintf("held reads of protocol %d that the probe measures", protocol), want, got[ReadSlow100])
				if got[WriteSlow100] != 0 {
					t.Errorf("protocol %d: %v, want no slow write", protocol, got[:4])
				}
			}
		}
	})
}

// TestSocketlatencyBeforeAccept: data also wait while the connection waits to be
// accepted.
func TestSocketlatencyBeforeAccept(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		want := uint64(0)
		for _, addrs := range families(a, b) {
			s := b.listen(t, addrs[1])
			c := a.dial(t, "tcp", addrPort(s.Addr()))
			if _, err := c.Write([]byte("early")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(hold)
			server, err := s.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := server.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			server.Close()
			want++
		}
		l.count(p, "reads of data that came before accept", want, l.settled(p, b.inode)[ReadSlow100])
	})
}

// TestSocketlatencyWriter: an event names the thread whose bytes waited, not the
// last writer.
func TestSocketlatencyWriter(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("socketlatency", Config{})
		if writes := p.Hooks()[1]; writes.Kind == "" {
			t.Skipf("this kernel: %+v", writes.Refused)
		}
		client, server := tcpEnds(t, a, b, b.v4)
		as := func(name string, f func()) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread() // the thread ends with the goroutine
				comm, _ := unix.BytePtrFromString(name)
				_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(comm)), 0, 0, 0)
				f()
			}()
			<-done
		}
		if err := unix.SetsockoptInt(server.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10); err != nil {
			t.Fatal(err)
		}
		full, _ := fillWindow(t, l, client)
		// Both have 100 bytes in the queue, behind the data that fill the window.
		as("first-writer", func() { client.write(100) })
		time.Sleep(2 * hold)
		as("second-writer", func() { client.write(100) })
		time.Sleep(20 * ms)
		for n := 0; n < full+200; {
			got, err := again(func() (int, error) { return unix.Read(server.fd, make([]byte, 64<<10)) })
			if err != nil || got == 0 {
				t.Fatal(got, err)
			}
			n += got
		}
		events := l.taken(SocklatSendSlow, a.inode, 1)
		l.settled(p, a.inode)
		events = l.taken(SocklatSendSlow, a.inode, len(events))
		first := 0
		for _, e := range events {
			if e.Comm() == "first-writer" && e.Latency >= 2*hold && int(e.PID) == os.Getpid() {
				first++
			}
		}
		if first != 1 {
			t.Errorf("%d events name the first writer: %+v", first, events)
		}
	})
}

// fillWindow writes without blocking until the peer's window is closed, and returns
// the number of bytes, and at which byte each write ended. The last write is not sent,
// or only in part.
func fillWindow(t *testing.T, l *testLoader, e *endpoint) (total int, ends []int) {
	t.Helper()
	l.eventually("the window to close", func() bool {
		for unsent(t, e.fd) == 0 {
			n, err := unix.SendmsgN(e.fd, make([]byte, 4096), nil, nil, unix.MSG_DONTWAIT)
			if err != nil && err != unix.EINTR {
				t.Fatal(err)
			}
			if n > 0 {
				total += n
				ends = append(ends, total)
			}
		}
		was := unsent(t, e.fd)
		time.Sleep(30 * ms)
		return was > 0 && unsent(t, e.fd) == was
	})
	return total, ends
}

// unsent returns the number of written bytes that TCP has not sent yet.
func unsent(t testing.TB, fd int) int {
	t.Helper()
	const siocoutqnsd = 0x894b
	n, err := unix.IoctlGetInt(fd, siocoutqnsd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sendSlow writes more than the peer accepts: its window is closed for a while, so the
// last writes wait. The kernel provides the number of unsent bytes.
func sendSlow(t *testing.T, l *testLoader, p *Probe, a, b *namespace) {
	var want, counted uint64
	for family, addrs := range families(a, b) {
		client, server := tcpEnds(t, a, b, addrs[1])
		if err := unix.SetsockoptInt(server.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10); err != nil {
			t.Fatal(err)
		}
		total, ends := fillWindow(t, l, client)
		for range 20 {
			n, err := again(func() (int, error) {
				return unix.SendmsgN(client.fd, make([]byte, 500), nil, nil, unix.MSG_DONTWAIT)
			})
			if err != nil {
				break
			}
			total += n
			ends = append(ends, total)
		}
		time.Sleep(hold)
		// A window probe may send the rest of a write meanwhile, late as well.
		var sent int
		var before [8]uint64
		l.eventually("nothing to be sent", func() bool {
			sent = total - unsent(t, client.fd)
			before = l.settled(p, a.inode)
			return total-unsent(t, client.fd) == sent
		})
		for n := 0; n < total; {
			got, err := again(func() (int, error) { return unix.Read(server.fd, make([]byte, 64<<10)) })
			if err != nil || got == 0 {
				t.Fatal(got, err)
			}
			n += got
		}
		var late uint64
		for _, end := range ends {
			if end > sent {
				late++
			}
		}
		want += late
		got := l.settled(p, a.inode)
		counted += got[WriteSlow100] - before[WriteSlow100]
		if counted != want && !excused(t, family+" writes into a closed window", want, counted) {
			t.Errorf("%s: %v after %v, want %d slow writes more", family, got[:4], before[:4], late)
		}
		for _, e := range l.taken(SocklatSendSlow, a.inode, 1) {
			if e.Latency < 100*ms || int(e.PID) != os.Getpid() || e.Comm() == "" {
				t.Errorf("%s: %+v by %q", family, e, e.Comm())
			}
			local, _ := unix.Getsockname(client.fd)
			if e.Source.Addr() == addrs[0] && !slices.Contains([]int{portOfAddress(local)}, int(e.Source.Port())) {
				t.Errorf("%s: %+v", family, e)
			}
		}
		unix.Close(client.fd)
	}
	l.count(p, "writes into a closed window", want, counted)
	l.balanced(SocklatSendSlow, p, WriteSlow100)
}

// TestSocketlatencySendUnseen: data that wait below TCP, here for the neighbour's
// address, did not wait in the socket, although they pass the device late.
func TestSocketlatencySendUnseen(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("socketlatency", Config{})
		if writes := p.Hooks()[1]; writes.Kind == "" {
			t.Skipf("this kernel: %+v", writes.Refused)
		}
		for family, addrs := range families(a, b) {
			client, server := tcpEnds(t, a, b, addrs[1])
			pass := func(n int) {
				for n > 0 {
					got, err := again(func() (int, error) { return unix.Read(server.fd, make([]byte, n)) })
					if err != nil || got == 0 {
						t.Fatal(family, got, err)
					}
					n -= got
				}
			}
			client.write(100)
			pass(100)
			resolve := forgetNeighbour(t, a, b, addrs[1])
			client.write(100)
			time.Sleep(hold)
			if n := unsent(t, client.fd); n != 0 {
				t.Fatalf("%s: TCP holds %d bytes", family, n)
			}
			resolve()
			pass(100)
			client.write(100)
			pass(100)
			if got := l.settled(p, a.inode); got[WriteSlow] != 0 || got[WriteSlow100] != 0 {
				t.Errorf("%s: %v, want no slow writes", family, got[:4])
			}
		}
		if events := l.taken(SocklatSendSlow, a.inode, 0); len(events) > 0 {
			t.Errorf("%+v", events)
		}
	})
}

func portOfAddress(sa unix.Sockaddr) int {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port
	case *unix.SockaddrInet6:
		return sa.Port
	}
	return 0
}
