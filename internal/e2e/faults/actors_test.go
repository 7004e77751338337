package faults

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The test binary also runs in pods, at this path.
const actorPath = "/bin/actor"

// actorVerb, as the first argument, makes the test binary an actor.
const actorVerb = "act"

// actors are the programs that pods run, by the second argument.
var actors = map[string]func([]string) error{
	"serve":  actServe,
	"ask":    actAsk,
	"stream": actStream,
	"hold":   actHold,
	"deaf":   actDeaf,
	"drain":  actDrain,
	"send":   actSend,
	"dns":    actResolver,
	"lookup": actLookup,
	"once":   func(args []string) error { return lookUp(net.Dialer{}, args[0], 10*time.Second) },
	"scan":   actScan,
	"syns":   actSyns,
	"read":   actRead,
	"hoard":  actHoard,
}

// requestSize is the default size of a request and of its answer.
const requestSize = 64

// actServe answers each request with the same number of bytes.
func actServe(args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	backlog := f.Int("backlog", 128, "connections that wait to be accepted")
	acceptEvery := f.Duration("accept-every", 0, "time between two accepts")
	after := f.Duration("after", 0, "time for which a request waits in the socket")
	burn := f.Duration("burn", 0, "CPU time for each request")
	abort := f.Bool("abort", false, "close with the request unread")
	rate := f.Int("rate", 0, "bytes a second that are read, with no answer")
	discard := f.Bool("discard", false, "read all, with no answer")
	files := f.Uint64("files", 0, "limit on open files")
	late := f.Duration("late", 0, "time until it listens")
	drain := f.Bool("drain", false, "on SIGTERM stop listening, and end when all connections have")
	_ = f.Parse(args)
	time.Sleep(*late)
	if *files > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: *files, Max: *files}); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	var listeners []net.Listener
	for _, addr := range f.Args() {
		l, err := listen(addr, *backlog)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					time.Sleep(10 * time.Millisecond) // pause while no descriptor is free
					continue
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					defer c.Close()
					switch {
					case *abort:
						time.Sleep(20 * time.Millisecond) // the request arrives
					case *discard:
						_, _ = io.Copy(io.Discard, c)
					case *rate > 0:
						trickle(c, *rate)
					default:
						answerRequests(c, *after, *burn)
					}
				}()
				time.Sleep(*acceptEvery)
			}
		}()
	}
	if *drain {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, unix.SIGTERM)
		<-stop
		for _, l := range listeners {
			l.Close()
		}
	}
	wg.Wait()
	return nil
}

// listen is net.Listen with a backlog. The kernel's number is one less than the
// connections that fit.
func listen(addr string, backlog int) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return l, control(l.(*net.TCPListener), func(fd int) error { return unix.Listen(fd, backlog) })
}

func control(c syscall.Conn, set func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = set(int(fd)) }); err != nil {
		return err
	}
	return failed
}

func answerRequests(c net.Conn, after, burn time.Duration) {
	b := make([]byte, requestSize)
	for {
		if after > 0 && !awaitData(c, after) {
			return
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		for end := time.Now().Add(burn); time.Now().Before(end); {
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// awaitData waits until a request has arrived, and leaves it in the socket for a
// while.
func awaitData(c net.Conn, after time.Duration) bool {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		var e error
		n, _, e = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		return e != unix.EAGAIN
	})
	if err != nil || n <= 0 {
		return false
	}
	time.Sleep(after)
	return true
}

// trickle reads so slowly that the peer's window closes.
func trickle(c net.Conn, rate int) {
	_ = c.(*net.TCPConn).SetReadBuffer(8 << 10)
	b := make([]byte, max(rate/5, 1))
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// actAsk sends requests and awaits the answers repeatedly. It retries failures.
func actAsk(args []string) error {
	f := flag.NewFlagSet("ask", flag.ExitOnError)
	every := f.Duration("every", 200*time.Millisecond, "time between two requests of one asker")
	askers := f.Int("askers", 1, "how many ask at once")
	size := f.Int("size", requestSize, "bytes of a request, of which each 64 are answered")
	fresh := f.Bool("fresh", false, "a connection for each request")
	keep := f.Int("keep", 0, "requests of a connection, 0 for no limit")
	limit := f.Duration("limit", 3*time.Second, "time for a connection and for an answer")
	follow := f.Bool("follow", false, "go on to the next address only after a failure or an end")
	_ = f.Parse(args)
	d := net.Dialer{Timeout: *limit, KeepAlive: -1}
	var wg sync.WaitGroup
	for range *askers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b := make([]byte, *size)
			for i := 0; ; {
				err := askFrom(d, f.Args()[i%f.NArg()], b, *every, *limit, *fresh, *keep)
				if !*follow || err != nil {
					i++
				}
				time.Sleep(*every)
			}
		}()
	}
	wg.Wait()
	return nil
}

// askFrom opens a connection and sends requests until one fails or the number is
// reached.
func askFrom(d net.Dialer, addr string, b []byte, every, limit time.Duration, fresh bool, keep int) error {
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := 1; ; i++ {
		_ = c.SetDeadline(time.Now().Add(limit))
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		if fresh || i == keep {
			return nil
		}
		time.Sleep(every)
	}
}

// actStream writes to a server that reads, at a limited rate in bytes per second.
func actStream(args []string) error {
	f := flag.NewFlagSet("stream", flag.ExitOnError)
	rate := f.Int("rate", 0, "bytes a second, 0 for as many as go")
	chunk := f.Int("chunk", 16<<10, "bytes of a write")
	_ = f.Parse(args)
	b := make([]byte, *chunk)
	for {
		c, err := net.Dial("tcp", f.Arg(0))
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		for start, sent := time.Now(), 0; err == nil; sent += len(b) {
			if *rate > 0 {
				time.Sleep(time.Until(start.Add(time.Duration(sent) * time.Second / time.Duration(*rate))))
			}
			_, err = c.Write(b)
		}
		c.Close()
	}
}

// actHold opens connections that it never uses, and keeps trying to open more.
func actHold(args []string) error {
	f := flag.NewFlagSet("hold", flag.ExitOnError)
	every := f.Duration("every", 10*time.Millisecond, "time between two connections")
	count := f.Int("count", 0, "how many to hold, 0 for no limit")
	again := f.Duration("again", 100*time.Millisecond, "time after a failure")
	_ = f.Parse(args)
	var held []net.Conn
	for {
		if *count > 0 && len(held) >= *count {
			time.Sleep(time.Hour)
		}
		c, err := net.DialTimeout("tcp", f.Arg(0), 3*time.Second)
		if err != nil {
			time.Sleep(*again)
			continue
		}
		held = append(held, c)
		time.Sleep(*every)
	}
}

// actDeaf has a datagram socket that it never reads.
func actDeaf(args []string) error {
	c, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	time.Sleep(time.Hour)
	return nil
}

// actDrain reads datagrams and answers none.
func actDrain(args []string) error {
	c, err := net.ListenPacket("udp", args[0])
	for b := make([]byte, 2048); err == nil; {
		_, _, err = c.ReadFrom(b)
	}
	return err
}

// actSend sends datagrams.
func actSend(args []string) error {
	f := flag.NewFlagSet("send", flag.ExitOnError)
	every := f.Duration("every", 10*time.Millisecond, "time between two bursts")
	burst := f.Int("burst", 1, "datagrams of a burst")
	size := f.Int("size", 200, "bytes of a datagram")
	_ = f.Parse(args)
	b := make([]byte, *size)
	for {
		c, err := net.Dial("udp", f.Arg(0))
		for ; err == nil; time.Sleep(*every) {
			for range *burst {
				if _, err = c.Write(b); errors.Is(err, unix.ECONNREFUSED) {
					err = nil
				}
			}
		}
		if c != nil {
			c.Close()
		}
		time.Sleep(*every)
	}
}

// actResolver answers queries for any name.
func actResolver(args []string) error {
	f := flag.NewFlagSet("dns", flag.ExitOnError)
	after := f.Duration("after", 0, "time until the answer")
	_ = f.Parse(args)
	c, err := net.ListenPacket("udp", f.Arg(0))
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(b[:n]); err != nil {
			continue
		}
		m.Response = true
		for _, q := range m.Questions {
			if q.Type == dnsmessage.TypeA {
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
			}
		}
		answer, err := m.Pack()
		if err != nil {
			return err
		}
		time.AfterFunc(*after, func() { _, _ = c.WriteTo(answer, from) })
	}
}

// actLookup queries a resolver as the C library does: one socket per name, both
// types at once, and a retry after the timeout.
func actLookup(args []string) error {
	f := flag.NewFlagSet("lookup", flag.ExitOnError)
	every := f.Duration("every", 200*time.Millisecond, "time between two names")
	limit := f.Duration("limit", 5*time.Second, "time until it asks again")
	askers := f.Int("askers", 1, "how many ask at once")
	port := f.Int("port", 0, "the first local port of those that are aligned")
	aligned := f.Bool("aligned", false, "ask when the clock is at a multiple of every, each time from another port, the same for all")
	_ = f.Parse(args)
	var wg sync.WaitGroup
	for range *askers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				time.Sleep(*every)
				var d net.Dialer
				if *aligned {
					next := time.Now().Truncate(*every).Add(*every)
					time.Sleep(time.Until(next))
					// Consecutive ports would look like those of an exhausted
					// range.
					d.LocalAddr = &net.UDPAddr{Port: *port + int(next.UnixNano()/int64(*every)*7919%20000)}
				}
				_ = lookUp(d, f.Arg(0), *limit)
			}
		}()
	}
	wg.Wait()
	return nil
}

func lookUp(d net.Dialer, resolver string, limit time.Duration) error {
	c, err := d.Dial("udp", resolver)
	if err != nil {
		return err
	}
	defer c.Close()
	for range 2 {
		for i, typ := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
			m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(i + 1), RecursionDesired: true},
				Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("web.shop.svc.cluster.local."), Type: typ, Class: dnsmessage.ClassINET}}}
			query, err := m.Pack()
			if err != nil {
				return err
			}
			if _, err := c.Write(query); err != nil {
				return err
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(limit))
		b := make([]byte, 4096)
		for got := 0; got < 2; got++ {
			if _, err = c.Read(b); err != nil {
				break
			}
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// actSyns sends SYNs from unused addresses.
func actSyns(args []string) error {
	f := flag.NewFlagSet("syns", flag.ExitOnError)
	every := f.Duration("every", 5*time.Millisecond, "time between two")
	from := f.String("from", "203.0.113.0", "the network of 256 addresses")
	_ = f.Parse(args)
	to, err := netip.ParseAddrPort(f.Arg(0))
	if err != nil {
		return err
	}
	source, err := netip.ParseAddr(*from)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	defer unix.Close(fd)
	for {
		a := source.As4()
		a[3] = byte(1 + rand.IntN(254))
		s := make([]byte, 20)
		binary.BigEndian.PutUint16(s[0:], uint16(1024+rand.IntN(60000)))
		binary.BigEndian.PutUint16(s[2:], to.Port())
		binary.BigEndian.PutUint32(s[4:], rand.Uint32())
		s[12], s[13] = 5<<4, 0x02 // 20 bytes, SYN
		binary.BigEndian.PutUint16(s[14:], 64240)
		binary.BigEndian.PutUint16(s[16:], checksum(slices.Concat(a[:], to.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, 20}, s)))
		ip := make([]byte, 20) // the kernel fills in the length, the ID and the checksum
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
		copy(ip[12:], a[:])
		copy(ip[16:], to.Addr().AsSlice())
		if err := unix.Sendto(fd, append(ip, s...), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
			return err
		}
		time.Sleep(*every)
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// actScan sends a datagram to each of 60,000 consecutive addresses, 2,000 per
// second.
func actScan(args []string) error {
	first, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	// A packet that waits for its neighbour takes up its socket's send buffer, which
	// holds less than 300 of them, for three seconds.
	var sockets [64]*net.UDPConn
	for i := range sockets {
		if sockets[i], err = net.ListenUDP("udp4", nil); err != nil {
			return err
		}
	}
	for {
		a := first
		for i := range 60000 {
			_, _ = sockets[i%len(sockets)].WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(a, 9)) // fails while the table is full
			if a = a.Next(); i%20 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}

// actRead reads a block device, bypassing all caches.
func actRead(args []string) error {
	f := flag.NewFlagSet("read", flag.ExitOnError)
	every := f.Duration("every", 20*time.Millisecond, "time between two reads")
	size := f.Int("size", 4096, "bytes of a read")
	_ = f.Parse(args)
	dev, err := os.OpenFile(f.Arg(0), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	b := make([]byte, *size+4096)
	b = b[4096-int(uintptr(unsafe.Pointer(&b[0]))%4096):][:*size]
	for at := int64(0); ; at += int64(*size) {
		n, err := dev.ReadAt(b, at)
		if n < len(b) || err != nil {
			if at == 0 {
				return fmt.Errorf("read %s: %w", f.Arg(0), err)
			}
			at = -int64(*size) // end of the device
		}
		time.Sleep(*every)
	}
}

// actHoard fills buffers of connections that nobody reads until TCP is under memory
// pressure, frees them, and starts over.
func actHoard(args []string) error {
	pages, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	large := func(option int) func(network, address string, c syscall.RawConn) error {
		return func(_, _ string, c syscall.RawConn) (failed error) {
			err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 256<<20) })
			return errors.Join(err, failed)
		}
	}
	l, err := (&net.ListenConfig{Control: large(unix.SO_RCVBUFFORCE)}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	for {
		if err := hoard(l, &net.Dialer{Control: large(unix.SO_SNDBUFFORCE)}, pages); err != nil {
			return err
		}
	}
}

// hoard fills memory until TCP uses the given number of pages.
func hoard(l net.Listener, d *net.Dialer, pages int) error {
	chunk := make([]byte, 1<<20)
	for {
		c, err := d.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			return err
		}
		defer s.Close()
		if err := s.(*net.TCPConn).SetLinger(0); err != nil {
			return err
		}
		for err == nil {
			have, e := memoryOfTCP()
			if e != nil {
				return e
			}
			if have > pages {
				time.Sleep(time.Second)
				return nil
			}
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			_, err = c.Write(chunk)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// memoryOfTCP returns TCP's memory of all namespaces, in pages.
func memoryOfTCP() (int, error) {
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "TCP:" {
			return strconv.Atoi(f[len(f)-1])
		}
	}
	return 0, errors.New("/proc/net/sockstat has no line TCP")
}

// heldVariable makes an actor end when its standard input ends. Actors in pods have
// no standard input.
const heldVariable = "NODESKOOP_TEST_HELD"

// act runs an actor.
func act(args []string) {
	if os.Getenv(heldVariable) != "" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	f, ok := actors[args[0]]
	if !ok {
		fmt.Fprintf(os.Stderr, "actor %q is not known\n", args[0])
		os.Exit(2)
	}
	if err := f(args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "actor %s: %v\n", strings.Join(args, " "), err)
		os.Exit(1)
	}
	os.Exit(0)
}
