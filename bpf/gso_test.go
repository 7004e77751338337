package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// seen is a packet that left a queue, as captured by a packet socket just before
// the driver gets it.
type seen struct {
	at       time.Time
	protocol uint8
	to       uint16 // destination port
	seq      uint32 // TCP
	payload  int
}

// capture captures the packets sent by a namespace's device, and counts those of
// all devices.
type capture struct {
	mu    sync.Mutex
	what  []seen
	count uint64
}

func newCapture(t *testing.T, n *namespace) *capture {
	t.Helper()
	var fd, device int
	n.do(t, func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		link, err := net.InterfaceByName(n.device)
		if err != nil {
			return err
		}
		device = link.Index
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}))
	})
	c := &capture{}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buffer, control := make([]byte, 128), make([]byte, 256)
		for {
			size, m, _, from, err := unix.Recvmsg(fd, buffer, control, unix.MSG_TRUNC)
			if err != nil {
				select {
				case <-stop:
					return
				default:
					continue
				}
			}
			l, ok := from.(*unix.SockaddrLinklayer)
			if !ok || l.Pkttype != unix.PACKET_OUTGOING {
				continue
			}
			s := parseSeen(buffer[:min(size, len(buffer))], size)
			messages, _ := unix.ParseSocketControlMessage(control[:m])
			for _, m := range messages {
				if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
					ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
					s.at = time.Unix(ts.Unix())
				}
			}
			c.mu.Lock()
			c.count++
			if l.Ifindex == device {
				c.what = append(c.what, s)
			}
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		unix.Close(fd)
	})
	return c
}

func parseSeen(frame []byte, size int) (s seen) {
	if len(frame) < 14+20 {
		return s
	}
	ip := frame[14:]
	l4 := 20
	switch ip[0] >> 4 {
	case 4:
		l4, s.protocol = int(ip[0]&15)*4, ip[9]
	case 6:
		l4, s.protocol = 40, ip[6]
	default:
		return s
	}
	if len(ip) < l4+8 {
		return s
	}
	s.to = binary.BigEndian.Uint16(ip[l4+2:])
	s.payload = size - 14 - l4
	switch {
	case s.protocol == unix.IPPROTO_TCP && len(ip) >= l4+20:
		s.seq = binary.BigEndian.Uint32(ip[l4+4:])
		s.payload -= int(ip[l4+12]>>4) * 4
	case s.protocol == unix.IPPROTO_UDP:
		s.payload -= 8
	}
	return s
}

// taken returns the packets with data captured so far for a port, including
// repetitions.
func (c *capture) taken(protocol uint8, port uint16) (found []seen) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.what {
		if s.protocol == protocol && s.to == port && s.payload > 0 {
			found = append(found, s)
		}
	}
	return found
}

// all returns the number of packets sent by the device, and by any device.
func (c *capture) all() (device int, any uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.what), c.count
}

func bytesOf(packets []seen) (n int) {
	for _, s := range packets {
		n += s.payload
	}
	return n
}

// written is data that was queued between two times.
type written struct {
	from, to time.Time
	size     int
}

// waited returns how many packets left well over 100 ms after their bytes were
// queued, and how many near 100 ms, which a busy machine cannot decide. The bytes
// arrived in the order of writing.
func waited(packets []seen, writes []written, first uint32) (slow, about uint64) {
	var before int
	for i, s := range packets {
		at := before
		if s.protocol == unix.IPPROTO_TCP {
			at = int(s.seq - first)
		}
		before += packets[i].payload
		w, end := 0, writes[0].size
		for at >= end && w+1 < len(writes) {
			w++
			end += writes[w].size
		}
		switch {
		case s.at.Sub(writes[w].to) >= 110*time.Millisecond:
			slow++
		case s.at.Sub(writes[w].from) >= 90*time.Millisecond:
			about++
		}
	}
	return slow, about
}

// slowSegments sends GSO packets into a queue and compares the probe with a packet
// socket behind the queue.
type slowSegments struct {
	l        *testLoader
	p        *Probe
	queue    *namespace // owner of the queue
	behind   *capture
	traced   *Probe // counts packets for which the tracepoints ran
	skipped  uint64 // packets that left although no program ran
	expected uint64
	counted  uint64
	packets  int
}

func newSlowSegments(t *testing.T, l *testLoader, queue *namespace) *slowSegments {
	t.Helper()
	s := &slowSegments{l: l, p: l.load("netiftxlatency", Config{}), queue: queue}
	s.traced = newTestLoader(t, Options{Hooks: l.rung, NoEvents: true}).load("netiftxlatency", Config{Slow100: Zero})
	s.behind = newCapture(t, queue)
	return s
}

func (s *slowSegments) check(t *testing.T, what string, slow, about uint64) {
	t.Helper()
	got := s.l.settled(s.p, s.queue.inode)[QdiscSlow] - s.counted
	s.counted += got
	// Some machines' kernels run no BPF program for some of the packets that a
	// timer dequeues.
	_, left := s.behind.all()
	skipped := left - min(left, counters(t, s.traced, s.queue.inode)[NetdevSlow]+s.skipped)
	s.skipped += skipped
	if skipped > 0 {
		t.Logf("the kernel passed %d packets without the tracepoint net_dev_start_xmit", skipped)
	}
	if got > slow && got <= slow+about || got < slow && got+skipped >= slow {
		slow = got
	}
	s.l.count(s.p, what, slow, got)
	s.expected += slow
}

// tcp sends on a new connection. Its round-trip time is still short, so TCP queues
// a write at once, and nothing later.
func (s *slowSegments) tcp(t *testing.T, family string, from, to *namespace, addrs [2]netip.Addr, via string, sizes ...int) {
	t.Helper()
	// Packets in a slow queue must not be retransmitted.
	from.do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_early_retrans", []byte("0"), 0)
	})
	route := []string{"route", "replace", addrs[1].String(), "dev", from.device, "rto_min", "60s", "initcwnd", "40"}
	if via != "" {
		route = append(route, "via", via)
	}
	from.run(t, "ip", route...)
	client, server := connect(t, from, to, addrs[1])
	go io.Copy(io.Discard, server)
	port := uint16(server.LocalAddr().(*net.TCPAddr).Port)
	again := from.counter(t, "Tcp.RetransSegs")
	var writes []written
	total := 0
	for _, size := range sizes {
		at := time.Now()
		if _, err := client.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		// TCP may hold back part of a write, for example while its CPU was taken away.
		// That part is queued later.
		s.l.eventually("the data to be queued", func() bool {
			kept := 0
			rawConn(t, client, func(fd int) error { kept = unsent(t, fd); return nil })
			return kept == 0
		})
		writes = append(writes, written{at, time.Now(), size})
		total += size
		s.l.eventually("the data to leave", func() bool {
			return bytesOf(s.behind.taken(unix.IPPROTO_TCP, port)) >= total && unacknowledged(t, client) == 0
		})
	}
	if now := from.counter(t, "Tcp.RetransSegs"); now != again {
		t.Fatalf("%d segments were retransmitted: this run says nothing", now-again)
	}
	packets := s.behind.taken(unix.IPPROTO_TCP, port)
	slices.SortFunc(packets, func(a, b seen) int { return int(int32(a.seq - b.seq)) })
	slow, about := waited(packets, writes, packets[0].seq)
	s.packets += len(packets)
	s.check(t, fmt.Sprintf("%s: of %d segments, those over 100 ms in the queue", family, len(packets)), slow, about)
	client.Close()
	server.Close()
}

// unacknowledged returns the number of a socket's bytes in flight.
func unacknowledged(t *testing.T, c *net.TCPConn) (n int) {
	rawConn(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n
}

// udp sends with UDP_SEGMENT, so each call sends one GSO packet.
func (s *slowSegments) udp(t *testing.T, family string, from, to *namespace, addr netip.Addr, segment, calls int) {
	t.Helper()
	client, server := udpPair(t, from, to, addr)
	port := uint16(server.LocalAddr().(*net.UDPAddr).Port)
	rawConn(t, client.(*net.UDPConn), func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, segment)
	})
	var writes []written
	total := 0
	for range calls {
		at := time.Now()
		n := 10*segment - segment/3
		if _, err := client.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		writes = append(writes, written{at, time.Now(), n})
		total += n
	}
	s.l.eventually("the datagrams to leave", func() bool {
		return bytesOf(s.behind.taken(unix.IPPROTO_UDP, port)) >= total
	})
	packets := s.behind.taken(unix.IPPROTO_UDP, port)
	slow, about := waited(packets, writes, 0)
	s.packets += len(packets)
	s.check(t, fmt.Sprintf("%s: of %d datagrams of UDP_SEGMENT, those over 100 ms in the queue", family, len(packets)), slow, about)
}

func (s *slowSegments) events(t *testing.T, device string) {
	t.Helper()
	s.l.balanced(TxlatQdisc100ms, s.p, QdiscSlow)
	for _, e := range s.l.taken(TxlatQdisc100ms, s.queue.inode, int(s.expected)) {
		if e.Latency < 100*time.Millisecond || e.Latency > 60*time.Second || e.Device() != device || e.Source.Port() == 0 || e.Destination.Port() == 0 {
			t.Errorf("%+v on %s", e, e.Device())
		}
	}
}

const allEvents = 1e6

// TestNetiftxlatencySegments uses a token bucket that segments GSO packets larger
// than its burst, as described in the man page of tc-tbf.
func TestNetiftxlatencySegments(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		for _, c := range []struct {
			name string
			rate string
			slow bool
		}{{"slow", "128kbit", true}, {"fast", "1gbit", false}} {
			t.Run(c.name, func(t *testing.T) {
				a, b := newPair(t)
				a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "tbf", "rate", c.rate, "burst", "10kb", "limit", "1000000")
				l := newTestLoader(t, Options{Hooks: rung, EventRate: allEvents, EventBurst: allEvents})
				s := newSlowSegments(t, l, a)
				for family, addrs := range families(a, b) {
					s.udp(t, family, a, b, addrs[1], 1200, 3)
					s.tcp(t, family, a, b, addrs, "", 24*1400)
				}
				if c.slow != (s.expected > 20) {
					t.Errorf("%d of %d packets were slow at %s", s.expected, s.packets, c.rate)
				}
				s.events(t, a.device)
			})
		}
	})
}

// TestNetiftxlatencySegmentsAtTheDriver queues GSO packets whole; the kernel
// segments them afterwards for a device without TSO.
func TestNetiftxlatencySegmentsAtTheDriver(t *testing.T) {
	need.Program(t, "ethtool")
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "tbf", "rate", "128kbit", "burst", "40000", "limit", "1000000")
		a.run(t, "ethtool", "-K", a.device, "tso", "off", "tx-udp-segmentation", "off")
		l := newTestLoader(t, Options{Hooks: rung, EventRate: allEvents, EventBurst: allEvents})
		s := newSlowSegments(t, l, a)
		for family, addrs := range families(a, b) {
			s.udp(t, family, a, b, addrs[1], 1200, 3)
			s.tcp(t, family, a, b, addrs, "", 24*1400)
		}
		if s.expected < 20 {
			t.Errorf("%d of %d packets were slow", s.expected, s.packets)
		}
		s.events(t, a.device)
	})
}

// linked connects two namespaces with a further veth pair.
func linked(t *testing.T, a *namespace, aDevice string, b *namespace, bDevice string, addrs map[*namespace][]string) {
	t.Helper()
	a.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aDevice
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bDevice, PeerNamespace: netlink.NsFd(b.handle)})
	})
	for n, device := range map[*namespace]string{a: aDevice, b: bDevice} {
		n.do(t, func() error {
			link, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			return netlink.LinkSetMulticastOff(link)
		})
		for _, addr := range addrs[n] {
			args := []string{"addr", "add", addr, "dev", device}
			if strings.Contains(addr, ":") {
				args = append(args, "nodad")
			}
			n.run(t, "ip", args...)
		}
		n.run(t, "ip", "link", "set", device, "up")
	}
}

// newRouted returns a pair in which a routes for a third namespace, the source,
// whose packets reach b through a's device.
func newRouted(t *testing.T) (source, a, b *namespace) {
	t.Helper()
	a, b = newPair(t)
	source = newNamespace(t)
	source.device = "vs"
	source.v4, source.v6 = netip.MustParseAddr("10.98.0.2"), netip.MustParseAddr("fd98::2")
	linked(t, source, source.device, a, "vr", map[*namespace][]string{
		source: {"10.98.0.2/24", "fd98::2/64"}, a: {"10.98.0.1/24", "fd98::1/64"},
	})
	router := &namespace{handle: a.handle, device: "vr", v4: netip.MustParseAddr("10.98.0.1"), v6: netip.MustParseAddr("fd98::1")}
	for _, n := range []*namespace{source, router} {
		n.do(t, func() error {
			link, err := net.InterfaceByName(n.device)
			if err == nil {
				n.mac = link.HardwareAddr
			}
			return err
		})
	}
	source.neighbour(t, router)
	router.neighbour(t, source)
	a.do(t, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
	source.run(t, "ip", "route", "add", "default", "via", "10.98.0.1")
	source.run(t, "ip", "-6", "route", "add", "default", "via", "fd98::1")
	b.run(t, "ip", "route", "add", "10.98.0.0/24", "via", "10.99.0.1")
	b.run(t, "ip", "-6", "route", "add", "fd98::/64", "via", "fd99::1")
	return source, a, b
}

// TestNetiftxlatencySegmentsForwarded segments another namespace's packets in a
// router's queue.
func TestNetiftxlatencySegmentsForwarded(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		source, a, b := newRouted(t)
		a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "tbf", "rate", "128kbit", "burst", "10kb", "limit", "1000000")
		l := newTestLoader(t, Options{Hooks: rung, EventRate: allEvents, EventBurst: allEvents})
		s := newSlowSegments(t, l, a)
		for family, addrs := range families(source, b) {
			via := map[string]string{"IPv4": "10.98.0.1", "IPv6": "fd98::1"}[family]
			s.udp(t, family, source, b, addrs[1], 1200, 3)
			s.tcp(t, family, source, b, addrs, via, 24*1400)
		}
		if s.expected < 20 {
			t.Errorf("%d of %d packets were slow", s.expected, s.packets)
		}
		if got := counters(t, s.p, source.inode)[QdiscSlow]; got != 0 {
			t.Errorf("%d in the namespace that only sent", got)
		}
		s.events(t, a.device)
	})
}

// TestNetiftxlatencySegmentsWithoutTime forwards GSO packets without a send time,
// like those of a virtual machine, or of another host after GRO.
func TestNetiftxlatencySegmentsWithoutTime(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		tun := newTun(t, a, "tun0", "10.98.0.1/24", "fd98::1/64")
		a.do(t, func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
				os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
		})
		a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "tbf", "rate", "128kbit", "burst", "10kb", "limit", "1000000")
		l := newTestLoader(t, Options{Hooks: rung, EventRate: allEvents, EventBurst: allEvents})
		s := newSlowSegments(t, l, a)
		port := uint16(9000)
		for family, addrs := range families(a, b) {
			port++
			from := netip.MustParseAddr("10.98.0.2")
			if family == "IPv6" {
				from = netip.MustParseAddr("fd98::2")
			}
			first := uint32(0xffffffff - 20000) // sequence numbers that wrap around
			var writes []written
			total := 0
			for _, size := range []int{14000, 2500, 30000, 1400} {
				at := time.Now()
				if _, err := tun.Write(gsoPacket(netip.AddrPortFrom(from, 7000), netip.AddrPortFrom(addrs[1], port), first+uint32(total), size)); err != nil {
					t.Fatal(err)
				}
				writes = append(writes, written{at, time.Now(), size})
				total += size
			}
			l.eventually("the segments to leave", func() bool {
				return bytesOf(s.behind.taken(unix.IPPROTO_TCP, port)) >= total
			})
			packets := s.behind.taken(unix.IPPROTO_TCP, port)
			slow, about := waited(packets, writes, first)
			s.packets += len(packets)
			s.check(t, fmt.Sprintf("%s: of %d forwarded segments without a time, those over 100 ms in the queue", family, len(packets)), slow, about)
		}
		if s.expected < 20 {
			t.Errorf("%d of %d packets were slow", s.expected, s.packets)
		}
		s.events(t, a.device)
	})
}

// newTun creates a device whose packets the test writes, like a virtual machine.
func newTun(t *testing.T, n *namespace, name string, addrs ...string) *os.File {
	t.Helper()
	var file *os.File
	n.do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "tun")
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	t.Cleanup(func() { file.Close() })
	for _, addr := range addrs {
		n.run(t, "ip", "addr", "add", addr, "dev", name)
	}
	n.run(t, "ip", "link", "set", name, "up")
	return file
}

// gsoPacket builds TCP data of many segments with a virtio header.
func gsoPacket(from, to netip.AddrPort, seq uint32, size int) []byte {
	const mss = 1400
	const tcpLength = 20
	var ip []byte
	kind := byte(1) // VIRTIO_NET_HDR_GSO_TCPV4
	if from.Addr().Is4() {
		ip = make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(ip[2:], uint16(20+tcpLength+size))
		copy(ip[12:], from.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	} else {
		kind = 4 // VIRTIO_NET_HDR_GSO_TCPV6
		ip = make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_TCP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(tcpLength+size))
		copy(ip[8:], from.Addr().AsSlice())
		copy(ip[24:], to.Addr().AsSlice())
	}
	tcp := make([]byte, tcpLength)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = tcpLength/4<<4, 0x10 // ACK
	header := make([]byte, 10)
	header[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(header[6:], uint16(len(ip)))
	binary.NativeEndian.PutUint16(header[8:], 16)
	if size > mss {
		header[1] = kind
		binary.NativeEndian.PutUint16(header[2:], uint16(len(ip)+tcpLength))
		binary.NativeEndian.PutUint16(header[4:], mss)
	}
	return slices.Concat(header, ip, tcp, make([]byte, size))
}

// TestNetiftxlatencySegmentsByDelay sends TCP through netem, which delays every
// packet.
func TestNetiftxlatencySegmentsByDelay(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		for _, tso := range []string{"on", "off"} {
			t.Run("tso="+tso, func(t *testing.T) {
				a, b := newPair(t)
				a.disturb(t, "delay", "150ms")
				a.run(t, "ethtool", "-K", a.device, "tso", tso)
				l := newTestLoader(t, Options{Hooks: rung, EventRate: allEvents, EventBurst: allEvents})
				p := l.load("netiftxlatency", Config{})
				behind := newCapture(t, a)
				for _, addrs := range families(a, b) {
					client, server := connect(t, a, b, addrs[1])
					const size = 300000
					go client.Write(make([]byte, size))
					server.SetReadDeadline(time.Now().Add(60 * time.Second))
					buffer := make([]byte, 64<<10)
					for got := 0; got < size; {
						n, err := server.Read(buffer)
						if err != nil {
							t.Fatal(err)
						}
						got += n
					}
				}
				var left int
				l.eventually("all to have left", func() bool {
					left, _ = behind.all()
					time.Sleep(300 * time.Millisecond)
					now, _ := behind.all()
					return now == left
				})
				l.count(p, fmt.Sprintf("packets that netem held for 150 ms (segmentation by the device: %s), by a packet socket", tso), uint64(left), l.settled(p, a.inode)[QdiscSlow])
				l.balanced(TxlatQdisc100ms, p, QdiscSlow)
			})
		}
	})
}

// TestNetiftxlatencyHealthy sends a hundred thousand packets through a queue that
// is not slow.
func TestNetiftxlatencyHealthy(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "pfifo", "limit", "1000")
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{})
		n := 50000
		if need.InVM() {
			n = 2000
		}
		for _, addrs := range families(a, b) {
			send(t, a.dial(t, "udp", addrPort(b.listenUDP(t, addrs[1]).LocalAddr())), n)
			client, server := connect(t, a, b, addrs[1])
			size := n * 100
			go client.Write(make([]byte, size))
			server.SetReadDeadline(time.Now().Add(60 * time.Second))
			buffer := make([]byte, 1<<20)
			for got := 0; got < size; {
				n, err := server.Read(buffer)
				if err != nil {
					t.Fatal(err)
				}
				got += n
			}
		}
		l.count(p, fmt.Sprintf("of %d datagrams and two streams of TCP, packets over 100 ms in the queue", 2*n), 0, l.settled(p, a.inode)[QdiscSlow])
		if events := l.taken(TxlatQdisc100ms, a.inode, 0); len(events) != 0 {
			t.Errorf("events of healthy traffic: %+v", events)
		}
	})
}
