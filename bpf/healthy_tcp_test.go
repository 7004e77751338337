package bpf

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

var healthyTCP = []healthyCase{
	{name: "connections that the client closes first", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		churn(t, h, from, to, times(25_000, 100), true)
	})},
	{name: "connections that the server closes first", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		churn(t, h, from, to, times(25_000, 100), false)
	})},
	{name: "connections by SYN cookies", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.b.withSysctl(t, "ipv4/tcp_syncookies", "2")
		churn(t, h, from, to, 100, true)
	})},
	{name: "connections over lo", run: func(t *testing.T, h *healthy) {
		churn(t, h, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1"), 200, true)
		churn(t, h, netip.IPv6Loopback(), netip.IPv6Loopback(), 200, false)
	}},
	{name: "the same ports again and again", run: each(samePorts)},
	{name: "transfer of GSO packets", run: each(transferBoth)},
	{name: "transfer of segments", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		offload(t, h.a, "tso", "off", "gso", "off")
		offload(t, h.b, "tso", "off", "gso", "off")
		transferBoth(t, h, from, to)
	})},
	{name: "transfer of segments that GRO merges", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		for _, n := range []*namespace{h.a, h.b} {
			offload(t, n, "tso", "off", "gso", "off")
			offload(t, n, "gro", "on")
		}
		// The receiving veth queues 256 segments and drops further ones.
		client, server := connect(t, h.a, h.b, to)
		must(t, server.SetReadBuffer(50_000))
		must(t, client.SetReadBuffer(50_000))
		received, merged := h.b.received(t), h.b.counters(t)
		sendAll(t, client, server, times(8<<20, 1<<20))
		packets, inReceives := h.b.received(t)-received, h.b.counters(t)["Ip.InReceives"]+h.b.counters(t)["Ip6InReceives"]-merged["Ip.InReceives"]-merged["Ip6InReceives"]
		t.Logf("%d packets came as %d", packets, inReceives)
		sendAll(t, server, client, times(8<<20, 1<<20))
	})},
	{name: "close with unread data that GRO merged", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		offload(t, h.a, "tso", "off", "gso", "off")
		offload(t, h.b, "gro", "on")
		client, server := connect(t, h.a, h.b, to)
		_, err := client.Write(make([]byte, 50_000))
		must(t, err)
		awaitUnread(t, h, server, 50_000)
		server.Close()
		receiveReset(t, client)
	})},
	{name: "transfer without timestamps", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.a.withSysctl(t, "ipv4/tcp_timestamps", "0")
		transferBoth(t, h, from, to)
	})},
	{name: "transfer without SACK", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.a.withSysctl(t, "ipv4/tcp_sack", "0")
		transferBoth(t, h, from, to)
	})},
	{name: "transfer to a small receive buffer", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		must(t, server.SetReadBuffer(100_000))
		sendAndClose(t, client, server, times(4<<20, 1<<20))
	})},
	{name: "small writes without Nagle", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to) // package net sets TCP_NODELAY
		echo(t, client, server, times(2000, 200))
	})},
	{name: "urgent data", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		rawConn(t, client, func(fd int) error { return unix.Send(fd, []byte("abc"), unix.MSG_OOB) })
		receive(t, server, 2)
	})},
	{name: "MSG_ZEROCOPY", run: each(zerocopy)},
	{name: "splice", run: each(splice)},
	{name: "TCP_FASTOPEN", run: each(fastopen)},
	{name: "TCP_DEFER_ACCEPT", run: atOnce(deferAccept)},
	{name: "transmit timestamps that nobody reads", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		timestamping(t, client)
		echo(t, client, server, 20)
	})},
	{name: "MPTCP", run: each(mptcp)},

	{name: "half-close by the client", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		must(t, client.CloseWrite())
		receiveEnd(t, server)
		sendAndClose(t, server, client, times(20<<20, 2<<20))
	})},
	{name: "half-close by the server", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		must(t, server.CloseWrite())
		receiveEnd(t, client)
		sendAndClose(t, client, server, times(20<<20, 2<<20))
	})},
	{name: "shutdown both ways", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		echo(t, client, server, 1)
		rawConn(t, client, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
		receiveEnd(t, server)
		rawConn(t, server, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	})},
	{name: "close in FIN_WAIT2", run: atOnce(finWait2)},
	{name: "reset by a client with SO_LINGER 0", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		must(t, client.SetLinger(0))
		client.Close()
		receiveReset(t, server)
	})},
	{name: "reset by a server with SO_LINGER 0", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		must(t, server.SetLinger(0))
		server.Close()
		receiveReset(t, client)
	})},
	{name: "reset of a half-closed connection", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		must(t, client.CloseWrite())
		receiveEnd(t, server)
		must(t, server.SetLinger(0))
		server.Close()
		receiveReset(t, client)
	})},
	{name: "close with unread data", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		for range 5 {
			client, server := connect(t, h.a, h.b, to)
			for range 5 {
				_, err := client.Write(make([]byte, 3000))
				must(t, err)
			}
			awaitUnread(t, h, server, 15_000)
			server.Close()
			receiveReset(t, client)
		}
	})},
	{name: "client closes with unread data", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		_, err := server.Write(make([]byte, 3000))
		must(t, err)
		awaitUnread(t, h, client, 3000)
		client.Close()
		receiveReset(t, server)
	})},
	{name: "abort by connect to AF_UNSPEC", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		rawConn(t, client, func(fd int) error {
			unspec := make([]byte, 16)
			return connectRaw(fd, unspec)
		})
		receiveReset(t, server)
	})},
	{name: "listener closed that nobody connected to", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		for range 20 {
			h.b.listen(t, to).Close()
		}
	})},
	{name: "listener closed with connections not accepted", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		listener := listening(t, h.b, to)
		c := stream(t, h.a, from, 0)
		must(t, unix.Connect(c.fd, listener.local(t)))
		listener.close()
		_, err := unix.Read(c.fd, make([]byte, 1))
		if err != unix.ECONNRESET {
			t.Errorf("the connection ended with %v, want a reset", err)
		}
	})},
	{name: "server ended by SIGTERM", run: func(t *testing.T, h *healthy) { serverEnds(t, h, unix.SIGTERM) }},
	{name: "server ended by SIGKILL", run: func(t *testing.T, h *healthy) { serverEnds(t, h, unix.SIGKILL) }},
	{name: "client ended by SIGKILL", run: clientEnds},

	{name: "keep-alive probes", run: atOnce(keepalive)},
	{name: "zero window", run: atOnce(zeroWindow)},
}

// churn opens n connections with a byte in each direction, and closes them with the
// client or the server first. A single thread keeps each connection to a few
// microseconds.
func churn(t *testing.T, h *healthy, from, to netip.Addr, n int, clientFirst bool) {
	t.Helper()
	in := h.b
	if from == to {
		in = h.a // over lo
	}
	h.a.withSysctl(t, "ipv4/ip_local_port_range", "1024 65535")
	l := listening(t, in, to)
	at := l.local(t)
	h.a.do(t, func() error {
		one := make([]byte, 1)
		for i := range n {
			c, err := unix.Socket(family(from), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(c, at); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			s, _, err := unix.Accept(l.fd)
			if err != nil {
				return err
			}
			first, second := s, c
			if clientFirst {
				first, second = c, s
			}
			for _, ends := range [][2]int{{c, s}, {s, c}} {
				if _, err := unix.Write(ends[0], one); err != nil {
					return err
				}
				if _, err := unix.Read(ends[1], one); err != nil {
					return err
				}
			}
			unix.Close(first)
			if k, err := unix.Read(second, one); k != 0 || err != nil {
				return fmt.Errorf("connection %d: the other end read %d bytes: %v, want its end", i, k, err)
			}
			unix.Close(second)
		}
		return nil
	})
}

// listening creates a blocking listener with raw system calls.
func listening(t testing.TB, n *namespace, at netip.Addr) *socket {
	t.Helper()
	s := stream(t, n, at, 0)
	must(t, unix.Listen(s.fd, 128))
	return s
}

// samePorts makes the client reuse one port, so that each connection finds the
// previous one in TIME_WAIT at the server.
func samePorts(t *testing.T, h *healthy, from, to netip.Addr) {
	l := listening(t, h.b, to)
	first := stream(t, h.a, from, 0)
	local := first.local(t)
	first.close()
	for range 20 {
		c := h.a.socketIn(t, family(from), unix.SOCK_STREAM, 0)
		must(t, unix.SetsockoptInt(c, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		must(t, unix.Bind(c, local))
		must(t, unix.Connect(c, l.local(t)))
		s, _, err := unix.Accept(l.fd)
		must(t, err)
		must(t, unix.Close(s))
		if n, err := unix.Read(c, make([]byte, 1)); n != 0 || err != nil {
			t.Fatalf("read %d: %v", n, err)
		}
		// Closed at the end of the test, since the descriptor would be reused.
		must(t, unix.Shutdown(c, unix.SHUT_RDWR))
		must(t, unix.Dup2(l.fd, c))
	}
}

func offload(t *testing.T, n *namespace, features ...string) {
	t.Helper()
	n.run(t, "ethtool", append([]string{"-K", n.device}, features...)...)
	t.Cleanup(func() {
		for i := 0; i < len(features); i += 2 {
			was := "on"
			if features[i] == "gro" || features[i+1] == "on" {
				was = "off"
			}
			n.run(t, "ethtool", "-K", n.device, features[i], was)
		}
	})
}

// transferBoth sends data in both directions, sequentially and concurrently.
func transferBoth(t *testing.T, h *healthy, from, to netip.Addr) {
	t.Helper()
	transferSize(t, h, to, times(20<<20, 1<<20))
}

func transferSize(t *testing.T, h *healthy, to netip.Addr, size int) {
	t.Helper()
	client, server := connect(t, h.a, h.b, to)
	sendAll(t, client, server, size)
	sendAll(t, server, client, size)
	var both sync.WaitGroup
	both.Go(func() { sendAll(t, client, server, size) })
	sendAll(t, server, client, size)
	both.Wait()
	client.Close()
	receiveEnd(t, server)
	server.Close()
}

// sendAll sends data and checks that they arrive unchanged.
func sendAll(t *testing.T, from io.Writer, to net.Conn, size int) {
	t.Helper()
	chunk := make([]byte, 64<<10)
	for i := range chunk {
		chunk[i] = byte(i % 251)
	}
	go func() {
		for left := size; left > 0; left -= len(chunk) {
			if _, err := from.Write(chunk[:min(left, len(chunk))]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
		}
	}()
	to.SetReadDeadline(time.Now().Add(60 * time.Second))
	got := make([]byte, len(chunk))
	for left := size; left > 0; left -= len(chunk) {
		part := got[:min(left, len(chunk))]
		if _, err := io.ReadFull(to, part); err != nil {
			t.Errorf("%d of %d bytes did not arrive: %v", left, size, err)
			return
		}
		if string(part) != string(chunk[:len(part)]) {
			t.Error("other bytes arrived than were sent")
			return
		}
	}
}

// sendAndClose sends data in one direction and closes, sender first.
func sendAndClose(t *testing.T, from, to *net.TCPConn, size int) {
	t.Helper()
	sendAll(t, from, to, size)
	from.Close()
	receiveEnd(t, to)
	to.Close()
}

func echo(t *testing.T, client, server net.Conn, n int) {
	t.Helper()
	b := make([]byte, 100)
	for range n {
		for _, ends := range [][2]net.Conn{{client, server}, {server, client}} {
			if _, err := ends[0].Write(b); err != nil {
				t.Fatal(err)
			}
			receive(t, ends[1], len(b))
		}
	}
}

func receive(t *testing.T, c net.Conn, n int) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
}

func receiveEnd(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end of the connection", n, err)
	}
}

func receiveReset(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF || os.IsTimeout(err) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

// awaitUnread waits until the socket holds n unread bytes.
func awaitUnread(t *testing.T, h *healthy, c *net.TCPConn, n int) {
	t.Helper()
	testkit.Eventually(t, "the data to arrive", func() bool {
		unread := 0
		rawConn(t, c, func(fd int) (err error) {
			unread, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		})
		return unread == n
	})
}

func zerocopy(t *testing.T, h *healthy, from, to netip.Addr) {
	client, server := connect(t, h.a, h.b, to)
	const size, n = 64 << 10, 16
	data := make([]byte, size)
	rawConn(t, client, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1) })
	go io.CopyN(io.Discard, server, size*n)
	raw, err := client.SyscallConn()
	must(t, err)
	for left := size * n; left > 0; {
		var sent int
		var failed error
		must(t, raw.Write(func(fd uintptr) bool {
			sent, failed = unix.SendmsgN(int(fd), data[:min(left, size)], nil, nil, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
			return failed != unix.EAGAIN && failed != unix.ENOBUFS
		}))
		must(t, failed)
		left -= sent
	}
	// Some notifications are read, the others remain at the end.
	testkit.Eventually(t, "a notification", func() bool {
		read := false
		rawConn(t, client, func(fd int) error {
			_, _, _, _, err := unix.Recvmsg(fd, nil, make([]byte, 100), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			read = err == nil
			return nil
		})
		return read
	})
	client.CloseWrite()
	testkit.Eventually(t, "all data to be read", func() bool {
		_, err := server.Read(make([]byte, 1))
		return err == io.EOF
	})
}

func splice(t *testing.T, h *healthy, from, to netip.Addr) {
	client, server := connect(t, h.a, h.b, to)
	const size = 1 << 20
	go client.Write(make([]byte, size))
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	raw, err := server.SyscallConn()
	must(t, err)
	into := make([]byte, 64<<10)
	for got := 0; got < size; {
		var n int64
		var failed error
		must(t, raw.Read(func(fd uintptr) bool {
			n, failed = unix.Splice(int(fd), nil, pipe[1], nil, len(into), unix.SPLICE_F_NONBLOCK)
			return failed != unix.EAGAIN
		}))
		must(t, failed)
		if n == 0 {
			t.Fatalf("the connection ended after %d bytes", got)
		}
		for left := int(n); left > 0; {
			k, err := unix.Read(pipe[0], into[:left])
			must(t, err)
			left -= k
		}
		got += int(n)
	}
}

// fastopen sends data in the SYN, first to get a cookie and then with it.
func fastopen(t *testing.T, h *healthy, from, to netip.Addr) {
	h.a.withSysctl(t, "ipv4/tcp_fastopen", "3")
	h.b.withSysctl(t, "ipv4/tcp_fastopen", "3")
	l := stream(t, h.b, to, 0)
	must(t, unix.SetsockoptInt(l.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16))
	must(t, unix.Listen(l.fd, 16))
	at := l.local(t)
	before := h.b.counters(t)["TcpExt.TCPFastOpenPassive"]
	const n = 5
	for range n {
		c := stream(t, h.a, from, 0)
		must(t, unix.Sendto(c.fd, []byte("hello"), unix.MSG_FASTOPEN, at))
		s, _, err := unix.Accept(l.fd)
		must(t, err)
		if k, err := unix.Read(s, make([]byte, 10)); k != 5 || err != nil {
			t.Errorf("read %d: %v", k, err)
		}
		unix.Close(s)
		if k, err := unix.Read(c.fd, make([]byte, 10)); k != 0 || err != nil {
			t.Errorf("read %d: %v", k, err)
		}
		c.close()
	}
	if got := h.b.counters(t)["TcpExt.TCPFastOpenPassive"] - before; got != n-1 {
		t.Errorf("%d connections carried data in the SYN, want %d", got, n-1)
	}
}

func deferAccept(t *testing.T, h *healthy, from, to netip.Addr) {
	l := stream(t, h.b, to, 0)
	must(t, unix.SetsockoptInt(l.fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5))
	must(t, unix.Listen(l.fd, 16))
	for range 3 {
		c := stream(t, h.a, from, 0)
		must(t, unix.Connect(c.fd, l.local(t)))
		_, err := unix.Write(c.fd, []byte("hello"))
		must(t, err)
		s, _, err := unix.Accept(l.fd)
		must(t, err)
		if k, err := unix.Read(s, make([]byte, 10)); k != 5 || err != nil {
			t.Errorf("read %d: %v", k, err)
		}
		unix.Close(s)
		c.close()
	}
}

// timestamping requests transmit timestamps, which arrive in the error queue.
func timestamping(t *testing.T, c syscall.Conn) {
	t.Helper()
	rawConn(t, c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_TX_SOFTWARE|unix.SOF_TIMESTAMPING_TX_SCHED|unix.SOF_TIMESTAMPING_TX_ACK|unix.SOF_TIMESTAMPING_SOFTWARE)
	})
}

func mptcp(t *testing.T, h *healthy, from, to netip.Addr) {
	open := func(n *namespace) (fd int, err error) {
		fd = -1
		err = n.try(func() (err error) {
			fd, err = unix.Socket(family(to), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			return err
		})
		return fd, err
	}
	l, err := open(h.b)
	if err != nil {
		t.Skipf("this kernel: no MPTCP: %v", err)
	}
	defer unix.Close(l)
	must(t, unix.Bind(l, sockaddr(netip.AddrPortFrom(to, 0))))
	must(t, unix.Listen(l, 10))
	at, err := unix.Getsockname(l)
	must(t, err)
	for range 5 {
		c, err := open(h.a)
		must(t, err)
		must(t, unix.Connect(c, at))
		s, _, err := unix.Accept(l)
		must(t, err)
		for _, ends := range [][2]int{{c, s}, {s, c}} {
			_, err := unix.Write(ends[0], make([]byte, 100))
			must(t, err)
			_, err = unix.Read(ends[1], make([]byte, 100))
			must(t, err)
		}
		unix.Close(c)
		if n, err := unix.Read(s, make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("read %d: %v", n, err)
		}
		unix.Close(s)
	}
}

// finWait2 closes a client before its server, so that the client's end waits as an
// orphan in FIN_WAIT2.
func finWait2(t *testing.T, h *healthy, from, to netip.Addr) {
	client, server := connect(t, h.a, h.b, to)
	client.Close()
	receiveEnd(t, server)
	time.Sleep(500 * time.Millisecond)
	server.Close()
}

const healthyRole = "NODESKOOP_TEST_HEALTHY"

// Cases that kill a process start this program again; it serves or connects, and
// then waits to be killed.
func init() {
	role, addr, _ := strings.Cut(os.Getenv(healthyRole), " ")
	var conns []net.Conn
	const n = 4
	switch role {
	case "serve":
		l, err := net.Listen("tcp", "[::]:0")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
		for range n {
			c, err := l.Accept()
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			conns = append(conns, c)
		}
	case "connect":
		for _, to := range strings.Fields(addr) {
			c, err := net.Dial("tcp", to)
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			conns = append(conns, c)
		}
	default:
		return
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
	runtime.KeepAlive(conns)
}

// self starts this program in a role.
func (n *namespace) self(t *testing.T, role string) (cmd *exec.Cmd, said *bufio.Reader) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), healthyRole+"="+role)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	n.do(t, cmd.Start)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, bufio.NewReader(stdout)
}

func serverEnds(t *testing.T, h *healthy, signal os.Signal) {
	cmd, said := h.b.self(t, "serve")
	var port uint16
	if _, err := fmt.Fscanln(said, &port); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for _, addrs := range families(h.a, h.b) {
		for range 2 {
			conns = append(conns, h.a.dial(t, "tcp", netip.AddrPortFrom(addrs[1], port)))
		}
	}
	if line, err := said.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	must(t, cmd.Process.Signal(signal))
	cmd.Wait()
	for _, c := range conns {
		receiveEnd(t, c)
		c.Close()
	}
}

func clientEnds(t *testing.T, h *healthy) {
	role := "connect"
	var listeners []net.Listener
	for _, addrs := range families(h.a, h.b) {
		l := h.b.listen(t, addrs[1])
		listeners = append(listeners, l)
		role += " " + l.Addr().String() + " " + l.Addr().String()
	}
	cmd, said := h.a.self(t, role)
	if line, err := said.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	var conns []net.Conn
	for _, l := range listeners {
		for range 2 {
			c, err := l.Accept()
			must(t, err)
			conns = append(conns, c)
		}
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	for _, c := range conns {
		receiveEnd(t, c)
		c.Close()
	}
}

// keepalive makes both ends send keep-alives, also on a half-closed connection.
func keepalive(t *testing.T, h *healthy, from, to netip.Addr) {
	client, server := connect(t, h.a, h.b, to)
	for _, c := range []*net.TCPConn{client, server} {
		must(t, c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}))
	}
	probes := func(n *namespace) uint64 { return n.counters(t)["TcpExt.TCPKeepAlive"] }
	before := probes(h.a)
	testkit.Eventually(t, "keep-alive probes", func() bool { return probes(h.a) >= before+3 })
	echo(t, client, server, 1)
	must(t, client.CloseWrite())
	receiveEnd(t, server)
	before = probes(h.b)
	testkit.Eventually(t, "keep-alive probes", func() bool { return probes(h.b) >= before+3 })
}

// zeroWindow stops reading until the sender probes the closed window.
func zeroWindow(t *testing.T, h *healthy, from, to netip.Addr) {
	client, server := connect(t, h.a, h.b, to)
	size := times(16<<20, 1<<20)
	wrote := make(chan error, 1)
	go func() {
		_, err := client.Write(make([]byte, size))
		wrote <- err
	}()
	// Probes follow after 200, 400 and 800 ms.
	before := h.a.counters(t)["TcpExt.TCPWinProbe"]
	testkit.Eventually(t, "window probes", func() bool {
		return h.a.counters(t)["TcpExt.TCPWinProbe"] >= before+4
	})
	receive(t, server, size)
	must(t, <-wrote)
}

// connectRaw is connect(2) with the raw bytes of an address.
func connectRaw(fd int, address []byte) error {
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), addressOf(address), uintptr(len(address))); e != 0 {
		return e
	}
	return nil
}

// received returns the number of packets received by the namespace's device.
func (n *namespace) received(t *testing.T) (packets uint64) {
	t.Helper()
	n.do(t, func() error {
		link, err := netlink.LinkByName(n.device)
		if err == nil {
			packets = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	return packets
}
