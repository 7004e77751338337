package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

var healthyDatagram = []healthyCase{
	{name: "UDP requests and answers", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		requests(t, h, unix.IPPROTO_UDP, from, to, times(50_000, 1000))
	})},
	{name: "UDP-Lite requests and answers", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		requests(t, h, unix.IPPROTO_UDPLITE, from, to, 100)
	})},
	{name: "UDP without checksum", run: func(t *testing.T, h *healthy) {
		server := h.b.bound(t, unix.IPPROTO_UDP, h.b.v4)
		client := h.a.bound(t, unix.IPPROTO_UDP, h.a.v4)
		must(t, unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
		for range 10 {
			must(t, unix.Sendto(client, []byte("x"), 0, nameOf(t, server)))
			readDatagram(t, server, 1)
		}
	}},
	{name: "UDP socket closed with unread datagrams", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		for _, connected := range []bool{false, true} {
			server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
			if connected {
				must(t, unix.Connect(server, nameOf(t, client)))
			}
			sendDatagrams(t, client, server, 25)
			awaitDatagram(t, h, server)
		}
	})},
	{name: "UDP socket closed with fragmented datagrams unread", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
		must(t, unix.SetsockoptInt(server, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20))
		for range 5 {
			must(t, unix.Sendto(client, make([]byte, 8000), 0, nameOf(t, server)))
		}
		awaitDatagram(t, h, server)
	})},
	{name: "UDP socket peeked at and closed", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
		sendDatagrams(t, client, server, 3)
		awaitDatagram(t, h, server)
		_, _, err := unix.Recvfrom(server, make([]byte, 1), unix.MSG_PEEK)
		must(t, err)
		// The reader truncates one datagram.
		_, _, err = unix.Recvfrom(server, make([]byte, 1), 0)
		must(t, err)
	})},
	{name: "UDP fragments", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
		for range 100 {
			must(t, unix.Sendto(client, make([]byte, 8000), 0, nameOf(t, server)))
			readDatagram(t, server, 8000)
		}
	})},
	{name: "UDP GSO to a plain socket", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) { segmented(t, h, from, to, false) })},
	{name: "UDP GSO to a GRO socket", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) { segmented(t, h, from, to, true) })},
	{name: "UDP datagrams that GRO merges", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		offload(t, h.b, "gro", "on")
		for _, aware := range []bool{true, false} {
			merged(t, h, from, to, aware)
		}
	})},
	{name: "UDP datagrams that GRO chains", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		offload(t, h.b, "gro", "on")
		if err := h.b.can("ethtool", "-K", h.b.device, "rx-gro-list", "on"); err != nil {
			t.Skipf("this kernel: no GRO by lists: %v", err)
		}
		defer h.b.run(t, "ethtool", "-K", h.b.device, "rx-gro-list", "off")
		for _, aware := range []bool{true, false} {
			merged(t, h, from, to, aware)
		}
	})},
	{name: "all over lo", run: func(t *testing.T, h *healthy) {
		for _, at := range []string{"127.0.0.1", "::1"} {
			addr := netip.MustParseAddr(at)
			someTrafficTo(t, h2(h, h.a, h.a), addr, addr)
		}
	}},
	{name: "UDP transmit timestamps that nobody reads", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
		must(t, unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_TX_SOFTWARE|unix.SOF_TIMESTAMPING_SOFTWARE))
		sendDatagrams(t, client, server, 5)
		for range 5 {
			readDatagram(t, server, 7)
		}
	})},
	{name: "port unreachable to a connected UDP socket", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.except(h.b)
		closed := h.b.closedPort(t, to)
		for _, take := range []bool{true, false} {
			client := h.a.bound(t, unix.IPPROTO_UDP, from)
			must(t, unix.SetsockoptInt(client, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
			if to.Is6() {
				must(t, unix.SetsockoptInt(client, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
			}
			must(t, unix.Connect(client, sockaddr(closed)))
			_, err := unix.Write(client, []byte("x"))
			must(t, err)
			awaitError(t, h, client)
			if take {
				_, _, _, _, err := unix.Recvmsg(client, make([]byte, 100), make([]byte, 200), unix.MSG_ERRQUEUE)
				must(t, err)
			}
		}
	})},
	{name: "port unreachable to an unconnected UDP socket", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.except(h.b)
		closed := h.b.closedPort(t, to)
		client := h.a.bound(t, unix.IPPROTO_UDP, from)
		must(t, unix.Sendto(client, []byte("x"), 0, sockaddr(closed)))
	})},
	{name: "path MTU discovery", run: pathMTU, moves: []string{"Tcp.InErrs"}},
	{name: "ping over a raw socket", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) { ping(t, h, from, to, unix.SOCK_RAW, 20) })},
	{name: "ping over a ping socket", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.a.withSysctl(t, "ipv4/ping_group_range", "0 2147483647")
		ping(t, h, from, to, unix.SOCK_DGRAM, 20)
	})},
	{name: "ping over a raw socket from the other side", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		ping(t, &healthy{l: h.l, a: h.b, b: h.a}, to, from, unix.SOCK_RAW, 20)
	})},
	{name: "pings of several processes", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.a.withSysctl(t, "ipv4/ping_group_range", "0 2147483647")
		// Each raw socket also gets the others' replies.
		idle := h.a.socketIn(t, family(from), unix.SOCK_RAW, icmpOf(from))
		_ = idle
		ping(t, h, from, to, unix.SOCK_RAW, 5)
		ping(t, h, from, to, unix.SOCK_DGRAM, 5)
	})},
	{name: "big pings in fragments", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		pingSize(t, h, from, to, unix.SOCK_RAW, 5, 5000)
	})},
	{name: "ping socket closed with answers unread", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.a.withSysctl(t, "ipv4/ping_group_range", "0 2147483647")
		for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_RAW} {
			s := h.a.socketIn(t, family(from), kind, icmpOf(from))
			must(t, unix.Connect(s, sockaddr(netip.AddrPortFrom(to, 0))))
			for i := range 5 {
				_, err := unix.Write(s, echoRequest(to, 77, i, 56))
				must(t, err)
			}
			awaitDatagram(t, h, s)
		}
	})},
	{name: "raw socket with a protocol of its own", run: each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		server, client := h.b.socketIn(t, family(to), unix.SOCK_RAW, 253), h.a.socketIn(t, family(to), unix.SOCK_RAW, 253)
		for range 5 {
			must(t, unix.Sendto(client, []byte("payload"), 0, sockaddr(netip.AddrPortFrom(to, 0))))
			awaitDatagram(t, h, server)
			_, _, err := unix.Recvfrom(server, make([]byte, 100), 0)
			must(t, err)
		}
		must(t, unix.Sendto(client, []byte("payload"), 0, sockaddr(netip.AddrPortFrom(to, 0))))
		awaitDatagram(t, h, server)
	})},
	{name: "SCTP", run: each(sctp)},
}

// bound creates a datagram socket bound to an address.
func (n *namespace) bound(t testing.TB, protocol int, at netip.Addr) int {
	t.Helper()
	fd := -1
	err := n.try(func() (err error) {
		fd, err = unix.Socket(family(at), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if isUnsupported(err) {
		t.Skipf("this kernel: no protocol %d: %v", protocol, err)
	}
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, 0))))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	return fd
}

func nameOf(t testing.TB, fd int) unix.Sockaddr {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	must(t, err)
	return sa
}

func sendDatagrams(t *testing.T, from, to, n int) {
	t.Helper()
	for range n {
		must(t, unix.Sendto(from, []byte("payload"), 0, nameOf(t, to)))
	}
}

func readDatagram(t *testing.T, fd, size int) {
	t.Helper()
	n, _, err := unix.Recvfrom(fd, make([]byte, 64<<10), 0)
	if n != size || err != nil {
		t.Fatalf("read %d bytes, want %d: %v", n, size, err)
	}
}

func awaitDatagram(t *testing.T, h *healthy, fd int) {
	t.Helper()
	testkit.Eventually(t, "a datagram", func() bool {
		_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err == nil
	})
}

func awaitError(t *testing.T, h *healthy, fd int) {
	t.Helper()
	testkit.Eventually(t, "the ICMP error", func() bool {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(poll, 0)
		return err == nil && poll[0].Revents&unix.POLLERR != 0
	})
}

func requests(t *testing.T, h *healthy, protocol int, from, to netip.Addr, n int) {
	t.Helper()
	server, client := h.b.bound(t, protocol, to), h.a.bound(t, protocol, from)
	request, b, at, back := make([]byte, 100), make([]byte, 200), nameOf(t, server), nameOf(t, client)
	for range n {
		must(t, unix.Sendto(client, request, 0, at))
		if k, _, err := unix.Recvfrom(server, b, 0); k != len(request) || err != nil {
			t.Fatalf("%d bytes: %v", k, err)
		}
		must(t, unix.Sendto(server, request, 0, back))
		if k, _, err := unix.Recvfrom(client, b, 0); k != len(request) || err != nil {
			t.Fatalf("%d bytes: %v", k, err)
		}
	}
}

const (
	udpSegment = 103 // UDP_SEGMENT
	udpGRO     = 104 // UDP_GRO
)

// segmented sends ten datagrams in one GSO packet, which the receiver segments or
// reads as one.
func segmented(t *testing.T, h *healthy, from, to netip.Addr, gro bool) {
	server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
	must(t, unix.SetsockoptInt(client, unix.IPPROTO_UDP, udpSegment, 1000))
	if gro {
		must(t, unix.SetsockoptInt(server, unix.IPPROTO_UDP, udpGRO, 1))
	}
	for range 10 {
		must(t, unix.Sendto(client, make([]byte, 10_000), 0, nameOf(t, server)))
		for got := 0; got < 10_000; {
			n, _, err := unix.Recvfrom(server, make([]byte, 64<<10), 0)
			must(t, err)
			got += n
		}
	}
}

// merged sends single datagrams that wait in the device's queue, so that the
// receiver may merge them (GRO). Some are read, others are not.
func merged(t *testing.T, h *healthy, from, to netip.Addr, aware bool) {
	t.Helper()
	server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
	if aware {
		must(t, unix.SetsockoptInt(server, unix.IPPROTO_UDP, udpGRO, 1))
	}
	must(t, unix.SetsockoptInt(client, unix.IPPROTO_UDP, udpSegment, 500))
	if strings.Contains(h.a.run(t, "ethtool", "-k", h.a.device), "tx-udp-segmentation: on") {
		offload(t, h.a, "tx-udp-segmentation", "off")
	}
	const size = 10 * 500
	for range 10 {
		must(t, unix.Sendto(client, make([]byte, size), 0, nameOf(t, server)))
		for got := 0; got < size; {
			n, _, err := unix.Recvfrom(server, make([]byte, 64<<10), 0)
			must(t, err)
			got += n
		}
	}
	must(t, unix.Sendto(client, make([]byte, size), 0, nameOf(t, server)))
	awaitDatagram(t, h, server)
}

func icmpOf(a netip.Addr) int {
	if a.Is4() {
		return unix.IPPROTO_ICMP
	}
	return unix.IPPROTO_ICMPV6
}

func echoRequest(to netip.Addr, id, seq, size int) []byte {
	b := make([]byte, 8+size)
	b[0] = 8
	if to.Is6() {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], uint16(id))
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	if to.Is4() {
		binary.BigEndian.PutUint16(b[2:], checksum(b)) // for ICMPv6 the kernel computes the checksum
	}
	return b
}

func ping(t *testing.T, h *healthy, from, to netip.Addr, kind, n int) {
	t.Helper()
	pingSize(t, h, from, to, kind, n, 56)
}

func pingSize(t *testing.T, h *healthy, from, to netip.Addr, kind, n, size int) {
	t.Helper()
	s := h.a.socketIn(t, family(from), kind, icmpOf(from))
	must(t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	b := make([]byte, 10_000)
	for i := range n {
		must(t, unix.Sendto(s, echoRequest(to, os.Getpid()&0xffff, i, size), 0, sockaddr(netip.AddrPortFrom(to, 0))))
		for {
			k, _, err := unix.Recvfrom(s, b, 0)
			if err != nil {
				t.Fatalf("echo %d of %d: %v", i, n, err)
			}
			message := b[:k]
			if kind == unix.SOCK_RAW && to.Is4() {
				message = message[20:]
			}
			if message[0] == 0 || message[0] == 129 {
				break // an echo reply
			}
		}
	}
}

// pathMTU uses a router with a smaller MTU towards the receiver. Packets that it
// cannot forward are lost there, and the sender is informed.
func pathMTU(t *testing.T, h *healthy) {
	a, r, b := h.namespace(t), h.namespace(t), h.namespace(t)
	h.except(r)
	cable(t, a, "eth0", r, "ra")
	cable(t, b, "eth0", r, "rb")
	r.sysctl(t, "ipv4/ip_forward", "1")
	r.sysctl(t, "ipv6/conf/all/forwarding", "1")
	for _, n := range []struct {
		*namespace
		device, v4, v6, gate4, gate6 string
	}{{a, "eth0", "10.98.1.2/24", "fd98:1::2/64", "10.98.1.1", "fd98:1::1"}, {b, "eth0", "10.98.2.2/24", "fd98:2::2/64", "10.98.2.1", "fd98:2::1"}, {r, "ra", "10.98.1.1/24", "fd98:1::1/64", "", ""}, {r, "rb", "10.98.2.1/24", "fd98:2::1/64", "", ""}} {
		n.ip(t, "addr add "+n.v4+" dev "+n.device)
		n.ip(t, "addr add "+n.v6+" dev "+n.device+" nodad")
		if n.gate4 != "" {
			n.ip(t, "route add default via "+n.gate4)
			n.ip(t, "route add default via "+n.gate6)
		}
	}
	r.ip(t, "link set rb mtu 1300")
	b.ip(t, "link set eth0 mtu 1300")
	a.run(t, "ethtool", "-K", "eth0", "tso", "off", "gso", "off")
	for _, to := range []string{"10.98.2.2", "fd98:2::2"} {
		client, server := connect(t, a, b, netip.MustParseAddr(to))
		// Avoid TCP's announced segment size, which would fit the path.
		sendAndClose(t, client, server, 200<<10)
		c := a.bound(t, unix.IPPROTO_UDP, netip.MustParseAddr(map[bool]string{true: "fd98:1::2", false: "10.98.1.2"}[client.LocalAddr().(interface{ String() string }).String()[0] == '[']))
		s := b.bound(t, unix.IPPROTO_UDP, netip.MustParseAddr(to))
		for range 5 {
			unix.Sendto(c, make([]byte, 1400), 0, nameOf(t, s)) // fails once the smaller path MTU is known
		}
	}
}

// sctp sends messages that are read, over sockets of either style, and ends the
// association in each way.
func sctp(t *testing.T, h *healthy, from, to netip.Addr) {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		open := func(n *namespace, at netip.Addr) (fd int, err error) {
			err = n.try(func() (err error) {
				fd, err = unix.Socket(family(at), kind|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
				return err
			})
			if err == nil {
				const noDelay = 3 // SCTP_NODELAY: otherwise each message waits for a delayed acknowledgement
				err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_SCTP, noDelay, 1), unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, 0))),
					unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
			}
			return fd, err
		}
		messages := times(200, 20)
		for _, abort := range []bool{false, true} {
			for _, serverFirst := range []bool{false, true} {
				l, err := open(h.b, to)
				if err != nil {
					t.Skipf("this kernel: no SCTP: %v", err)
				}
				must(t, unix.Listen(l, 10))
				c, err := open(h.a, from)
				must(t, err)
				must(t, unix.Connect(c, nameOf(t, l)))
				ends := []int{c, l}
				s := l
				if kind == unix.SOCK_STREAM {
					s, _, err = unix.Accept(l)
					must(t, err)
					ends = []int{c, s, l}
				}
				for i := range messages {
					message := make([]byte, 1+i*37%3000)
					var to unix.Sockaddr // one-to-many sockets need an address, one-to-one sockets refuse it
					if kind == unix.SOCK_SEQPACKET {
						to = nameOf(t, l)
					}
					must(t, unix.Sendto(c, message, 0, to))
					readDatagram(t, s, len(message))
				}
				messages = 3
				if serverFirst {
					slices.Reverse(ends)
				}
				for _, fd := range ends {
					if abort {
						must(t, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
					}
					must(t, unix.Close(fd))
				}
			}
		}
	}
	time.Sleep(300 * time.Millisecond) // the last acknowledgement is delayed
}
