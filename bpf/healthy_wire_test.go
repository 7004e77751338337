package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

// TCP over a line that delivers every packet, but reordered, duplicated or late.
var healthyWire = []healthyCase{
	{name: "a plain wire", run: wired(nil, transferSmall)},
	{name: "segments that come twice", run: wired(duplicate, transferSmall)},
	{name: "segments that come twice, without SACK", run: wired(duplicate, without("ipv4/tcp_sack", transferSmall))},
	{name: "segments that come twice, without timestamps", run: wired(duplicate, without("ipv4/tcp_timestamps", transferSmall))},
	{name: "segments that come again much later", run: wired(repeatLater, transferSmall)},
	{name: "segments in another order", run: wired(swap, transferSmall)},
	{name: "segments in another order, without SACK", run: wired(swap, without("ipv4/tcp_sack", transferSmall))},
	{name: "segments in parts that overlap", run: wired(overlap, without("ipv4/tcp_timestamps", transferSmall))},
	{name: "handshakes that come twice", moves: []string{"Tcp.InErrs"}, run: wired(duplicateSYN, func(t *testing.T, h *healthy, from, to netip.Addr) {
		for range 5 {
			client, server := connect(t, h.a, h.b, to)
			echo(t, client, server, 1)
			client.Close()
			receiveEnd(t, server)
			server.Close()
		}
	})},
	{name: "acknowledgements that come twice", run: wired(duplicateACK, func(t *testing.T, h *healthy, from, to netip.Addr) {
		client, server := connect(t, h.a, h.b, to)
		sendAll(t, client, server, times(2<<20, 200<<10))
		sendAll(t, server, client, times(2<<20, 200<<10))
	})},
	{name: "both ends close at once", run: simultaneousClose},
	{name: "both ends connect at once", run: simultaneousOpen},
	{name: "reset of a connection with segments out of order", run: outOfOrderReset},
	{name: "a ping and UDP whose packets come twice", run: wired(duplicateAll, func(t *testing.T, h *healthy, from, to netip.Addr) {
		// Each request and each reply comes twice; the socket stays open until the
		// last one has come.
		s := h.a.socketIn(t, family(from), unix.SOCK_RAW, icmpOf(from))
		must(t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
		ping(t, h, from, to, unix.SOCK_RAW, 20)
		for answers := 0; answers < 4*20; {
			var b [2048]byte
			n, _, err := unix.Recvfrom(s, b[:], 0)
			if err != nil {
				t.Fatalf("answer %d of %d: %v", answers, 4*20, err)
			}
			message := b[:n]
			if from.Is4() {
				message = message[20:]
			}
			if message[0] == 0 || message[0] == 129 {
				answers++
			}
		}
		server, client := h.b.bound(t, unix.IPPROTO_UDP, to), h.a.bound(t, unix.IPPROTO_UDP, from)
		sendDatagrams(t, client, server, 50)
		for range 100 {
			readDatagram(t, server, len("payload"))
		}
	})},
}

func transferSmall(t *testing.T, h *healthy, from, to netip.Addr) {
	transferSize(t, h, to, times(1<<20, 200<<10))
}

// wire is a line between two namespaces with a tap device each; the test carries
// frames between them.
type wire struct {
	mu    sync.Mutex
	ends  [2]*os.File
	carry func(w *wire, frame []byte, end int)
	kept  [2][][]byte // frames that carry delays
	timer [2]*time.Timer
	hold  bool // keep all frames

	carried int // number of frames carried
}

// wired returns a case that runs over a wire of its own. Without carry each frame
// is delivered at once.
func wired(carry func(w *wire, frame []byte, end int), run func(t *testing.T, h *healthy, from, to netip.Addr)) func(*testing.T, *healthy) {
	return func(t *testing.T, h *healthy) {
		over, _ := h.wire(t, carry)
		each(run)(t, over)
	}
}

func without(sysctl string, run func(t *testing.T, h *healthy, from, to netip.Addr)) func(t *testing.T, h *healthy, from, to netip.Addr) {
	return func(t *testing.T, h *healthy, from, to netip.Addr) {
		h.a.withSysctl(t, sysctl, "0")
		run(t, h, from, to)
	}
}

func (h *healthy) wire(t *testing.T, carry func(w *wire, frame []byte, end int)) (*healthy, *wire) {
	t.Helper()
	w := &wire{carry: carry}
	over := &healthy{t: h.t, l: h.l, a: newNamespace(h.t), b: newNamespace(h.t)}
	h.own = append(h.own, over.a, over.b)
	over.a.v4, over.b.v4 = netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("10.97.0.2")
	over.a.v6, over.b.v6 = netip.MustParseAddr("fd97::1"), netip.MustParseAddr("fd97::2")
	for i, n := range []*namespace{over.a, over.b} {
		n.device = "tap0"
		w.ends[i] = n.tap(t, n.device, unix.IFF_TAP)
		n.ip(t, "link set tap0 multicast off txqueuelen 10000 up")
		// Until the kernel has noticed the carrier, the device drops frames.
		testkit.Eventually(t, "the device's queue", func() bool { return !strings.Contains(n.ip(t, "link show tap0"), "qdisc noop") })
		n.ip(t, "addr add "+n.v4.String()+"/24 dev tap0")
		n.ip(t, "addr add "+n.v6.String()+"/64 dev tap0 nodad")
		// The kernel adds an address asynchronously; before, it drops packets for
		// it.
		testkit.Eventually(t, "the address", func() bool {
			return strings.Contains(n.ip(t, "-6 route show table local"), "local "+n.v6.String()+" ")
		})
		n.mac = hardwareAddr(t, n, "tap0")
	}
	over.a.neighbour(t, over.b)
	over.b.neighbour(t, over.a)
	var readers sync.WaitGroup
	for end := range w.ends {
		readers.Go(func() { w.read(end) })
	}
	t.Cleanup(func() {
		w.idle(t)
		for _, f := range w.ends {
			f.Close()
		}
		readers.Wait()
	})
	return over, w
}

// tap creates a device whose other end is a file.
func (n *namespace) tap(t testing.TB, name string, mode uint16) *os.File {
	t.Helper()
	var file *os.File
	n.do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("open /dev/net/tun", err)
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(mode | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return os.NewSyscallError("TUNSETIFF", err)
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	t.Cleanup(func() { file.Close() })
	return file
}

func hardwareAddr(t testing.TB, n *namespace, device string) (mac net.HardwareAddr) {
	t.Helper()
	n.do(t, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		request, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, unix.SIOCGIFHWADDR, request); err != nil {
			return err
		}
		raw := (*[40]byte)(unsafe.Pointer(request))
		mac = append(mac, raw[18:24]...)
		return nil
	})
	return mac
}

func (w *wire) read(end int) {
	b := make([]byte, 1<<16)
	for {
		n, err := w.ends[end].Read(b)
		if err != nil {
			return
		}
		frame := append([]byte(nil), b[:n]...)
		w.mu.Lock()
		w.carried++
		switch {
		case w.hold:
			w.kept[end] = append(w.kept[end], frame)
		case w.carry == nil:
			w.deliver(frame, end)
		default:
			w.carry(w, frame, end)
		}
		w.mu.Unlock()
	}
}

// idle waits until no frame is in flight: frames in a tap device are lost when its
// file is closed.
func (w *wire) idle(t testing.TB) {
	before := -1
	testkit.Eventually(t, "the wire to be idle", func() bool {
		time.Sleep(30 * time.Millisecond)
		w.mu.Lock()
		now := w.carried
		w.mu.Unlock()
		same := now == before
		before = now
		for _, f := range w.ends {
			raw, err := f.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
					same = false
				}
			}))
		}
		return same
	})
}

// deliver writes a frame to the other end.
func (w *wire) deliver(frame []byte, end int) { w.ends[1-end].Write(frame) }

// release delivers all kept frames.
func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hold = false
	for end := range w.kept {
		w.flush(end)
	}
}

func (w *wire) flush(end int) {
	for _, frame := range w.kept[end] {
		w.deliver(frame, end)
	}
	w.kept[end] = nil
}

// flushSoon delivers kept frames unless another frame comes first.
func (w *wire) flushSoon(end int) {
	if w.timer[end] != nil {
		w.timer[end].Stop()
	}
	w.timer[end] = time.AfterFunc(3*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.hold {
			w.flush(end)
		}
	})
}

// segment is the wire's information about a frame.
type segment struct {
	tcp           int // offset of TCP's header, 0 if the frame has none
	payload, size int // of TCP's or another protocol's
	flags         byte
}

const (
	fin = 1
	syn = 2
	rst = 4
)

func parse(frame []byte) (s segment) {
	const ethernet = 14
	protocol, header, total := byte(0), 0, 0
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		protocol, header = frame[ethernet+9], int(frame[ethernet]&15)*4
		total = int(binary.BigEndian.Uint16(frame[ethernet+2:]))
	case unix.ETH_P_IPV6:
		protocol, header = frame[ethernet+6], 40
		total = int(binary.BigEndian.Uint16(frame[ethernet+4:])) + 40
	default:
		return s
	}
	s.payload = ethernet + header
	if protocol == unix.IPPROTO_TCP {
		s.tcp = ethernet + header
		s.flags = frame[s.tcp+13]
		s.payload += int(frame[s.tcp+12]>>4) * 4
	}
	s.size = ethernet + total - s.payload
	return s
}

// carriesData reports whether a frame has TCP data and neither begins nor ends a
// connection. A copy of a frame that ends one may find the connection gone.
func carriesData(frame []byte) bool {
	s := parse(frame)
	return s.tcp > 0 && s.size > 0 && s.flags&(fin|syn|rst) == 0
}

func duplicate(w *wire, frame []byte, end int) {
	w.deliver(frame, end)
	if carriesData(frame) {
		w.deliver(frame, end)
	}
}

func duplicateAll(w *wire, frame []byte, end int) {
	w.deliver(frame, end)
	w.deliver(frame, end)
}

func duplicateSYN(w *wire, frame []byte, end int) {
	w.deliver(frame, end)
	if parse(frame).flags&syn != 0 {
		w.deliver(frame, end)
	}
}

func duplicateACK(w *wire, frame []byte, end int) {
	w.deliver(frame, end)
	if s := parse(frame); s.tcp > 0 && s.size == 0 && s.flags&(fin|syn|rst) == 0 {
		w.deliver(frame, end)
	}
}

// repeatLater delivers each data segment again after 20 others, while its
// connection exists.
func repeatLater(w *wire, frame []byte, end int) {
	w.deliver(frame, end)
	if parse(frame).flags&(fin|syn|rst) != 0 {
		w.kept = [2][][]byte{}
	}
	if !carriesData(frame) {
		return
	}
	w.kept[end] = append(w.kept[end], frame)
	if len(w.kept[end]) > 20 {
		w.deliver(w.kept[end][0], end)
		w.kept[end] = w.kept[end][1:]
	}
}

// swap reorders data segments: each five of them last first.
func swap(w *wire, frame []byte, end int) {
	if !carriesData(frame) {
		w.flush(end)
		w.deliver(frame, end)
		return
	}
	w.kept[end] = append([][]byte{frame}, w.kept[end]...)
	if len(w.kept[end]) == 5 {
		w.flush(end)
		return
	}
	w.flushSoon(end)
}

// overlap delivers the second half of each data segment, then the whole, then the
// first half.
func overlap(w *wire, frame []byte, end int) {
	s := parse(frame)
	if !carriesData(frame) || s.size < 2 {
		w.deliver(frame, end)
		return
	}
	half := s.size / 2
	w.deliver(cut(frame, s, half, s.size), end)
	w.deliver(frame, end)
	w.deliver(cut(frame, s, 0, half), end)
}

// cut returns a segment with only part of the data.
func cut(frame []byte, s segment, from, to int) []byte {
	const ethernet = 14
	c := append([]byte(nil), frame[:s.payload]...)
	c = append(c, frame[s.payload+from:s.payload+to]...)
	seq := c[s.tcp+4:]
	binary.BigEndian.PutUint32(seq, binary.BigEndian.Uint32(seq)+uint32(from))
	tcp := c[s.tcp:]
	pseudo := make([]byte, 0, 40)
	if c[ethernet]>>4 == 4 {
		binary.BigEndian.PutUint16(c[ethernet+2:], uint16(len(c)-ethernet))
		clear(c[ethernet+10 : ethernet+12])
		binary.BigEndian.PutUint16(c[ethernet+10:], checksum(c[ethernet:s.tcp]))
		pseudo = append(pseudo, c[ethernet+12:ethernet+20]...)
	} else {
		binary.BigEndian.PutUint16(c[ethernet+4:], uint16(len(tcp)))
		pseudo = append(pseudo, c[ethernet+8:ethernet+40]...)
	}
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(tcp)))
	clear(tcp[16:18])
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	return c
}

// simultaneousClose makes the wire hold each FIN until both are sent.
func simultaneousClose(t *testing.T, h *healthy) {
	over, w := h.wire(t, nil)
	for _, addrs := range families(over.a, over.b) {
		client, server := connect(t, over.a, over.b, addrs[1])
		echo(t, client, server, 1)
		w.mu.Lock()
		w.hold = true
		w.mu.Unlock()
		must(t, client.CloseWrite())
		must(t, server.CloseWrite())
		testkit.Eventually(t, "both FINs", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.kept[0]) > 0 && len(w.kept[1]) > 0
		})
		w.release()
		receiveEnd(t, client)
		receiveEnd(t, server)
		testkit.Eventually(t, "TIME_WAIT at both ends", func() bool {
			states := map[byte]int{}
			for _, c := range []*net.TCPConn{client, server} {
				states[tcpInfo(t, c).State]++
			}
			return states[unix.BPF_TCP_CLOSE] == 2 // a socket in TIME_WAIT is itself closed
		})
	}
}

// simultaneousOpen makes two ends connect to each other.
func simultaneousOpen(t *testing.T, h *healthy) {
	over, w := h.wire(t, nil)
	for _, addrs := range families(over.a, over.b) {
		x, y := stream(t, over.a, addrs[0], unix.SOCK_NONBLOCK), stream(t, over.b, addrs[1], unix.SOCK_NONBLOCK)
		w.mu.Lock()
		w.hold = true
		w.mu.Unlock()
		for _, ends := range [][2]*socket{{x, y}, {y, x}} {
			if err := unix.Connect(ends[0].fd, ends[1].local(t)); err != unix.EINPROGRESS {
				t.Fatal(err)
			}
		}
		testkit.Eventually(t, "both SYNs", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.kept[0]) > 0 && len(w.kept[1]) > 0
		})
		w.release()
		for _, ends := range [][2]*socket{{x, y}, {y, x}} {
			testkit.Eventually(t, "the connection", func() bool {
				_, err := unix.Write(ends[0].fd, []byte("hello"))
				return err == nil
			})
			testkit.Eventually(t, "the data", func() bool {
				n, _ := unix.Read(ends[1].fd, make([]byte, 10))
				return n == 5
			})
		}
		x.close()
		testkit.Eventually(t, "the end", func() bool {
			n, err := unix.Read(y.fd, make([]byte, 10))
			return n == 0 && err == nil
		})
		y.close()
	}
}

// outOfOrderReset makes the server close while data waits behind a missing segment.
func outOfOrderReset(t *testing.T, h *healthy) {
	var missing []byte // sequence number of the missing segment, once known
	losing, cut := false, false
	over, w := h.wire(t, func(w *wire, frame []byte, end int) {
		if cut && end == 0 && carriesData(frame) {
			return // data for a socket that is gone would be lost
		}
		if losing && end == 0 && carriesData(frame) {
			at := parse(frame).tcp + 4
			if missing == nil {
				missing = frame[at : at+4]
			}
			if string(frame[at:at+4]) == string(missing) {
				return
			}
		}
		w.deliver(frame, end)
	})
	lose := func(first, all bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		losing, cut, missing = first, all, nil
	}
	for _, addrs := range families(over.a, over.b) {
		client, server := connect(t, over.a, over.b, addrs[1])
		lose(true, false)
		before := over.b.counters(t)["TcpExt.TCPOFOQueue"]
		testkit.Eventually(t, "segments out of order", func() bool {
			_, err := client.Write(make([]byte, 100))
			must(t, err)
			return over.b.counters(t)["TcpExt.TCPOFOQueue"] > before
		})
		lose(false, true)
		w.idle(t)
		must(t, server.SetLinger(0))
		server.Close()
		receiveReset(t, client)
		lose(false, false)
	}
}
