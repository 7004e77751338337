package install

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/nfqueue"
)

// The test binary is also the program that causes events. Pods have it at this
// path.
const causeProgram = "/cause"

// hold is how long packets and data are delayed: well over the probes' 100 ms. TCP
// does not retransmit them; see patientTCP.
const hold = 300 * time.Millisecond

// cause runs one way of causing events. It prints how many it caused, unless the
// caller knows the number.
func cause(args []string) error {
	if len(args) == 0 {
		return errors.New("which?")
	}
	number := func(i int) int {
		if i >= len(args) {
			return 0
		}
		n, _ := strconv.Atoi(args[i])
		return n
	}
	switch args[0] {
	case "datagrams": // ADDRESS COUNT BYTES [PER-SECOND]
		return causeDatagrams(args[1], number(2), number(3), number(4))
	case "refused": // ADDRESS COUNT
		return causeRefused(args[1], number(2))
	case "abort": // ADDRESS COUNT
		return causeAborts(args[1], number(2))
	case "stray": // ADDRESS COUNT
		return causeStray(args[1], number(2))
	case "serve": // ADDRESS...
		return serve(args[1:])
	case "unanswered": // MILLISECONDS ADDRESS...
		return causeUnanswered(time.Duration(number(1))*time.Millisecond, args[2:])
	case "readlate": // COUNT
		return causeLateReads(number(1))
	case "sendlate":
		return causeLateSends()
	case "exchange": // ADDRESS COUNT
		return causeExchange(args[1], number(2))
	case "queue": // NUMBER
		return holdQueue(uint16(number(1)))
	case "steadily": // WHAT SECONDS PER-SECOND [ARGUMENT]...
		return causeSteadily(args[1], number(2), number(3), args[4:])
	case "deaf": // ADDRESS
		return deaf(args[1])
	case "full": // ADDRESS
		return full(args[1])
	case "resolve": // ADDRESS FILE
		return resolve(args[1], args[2])
	case "busy": // RESOLVER
		return busy(args[1])
	case "storm": // SECONDS
		return causeStorm(number(1))
	case "track": // PERCENT
		return causeTracked(number(1))
	case "forget":
		return netlink.ConntrackTableFlush(netlink.ConntrackTable)
	case "hoard":
		return causeHoard()
	case "reads": // DEVICE COUNT STRIDE OFFSET
		return causeReads(args[1], number(2), int64(number(3)), int64(number(4)))
	}
	return fmt.Errorf("%q is not known", args[0])
}

// causeDatagrams sends datagrams, evenly if given a rate per second.
func causeDatagrams(addr string, count, size, perSecond int) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, size)
	if perSecond > 0 {
		// The caller may stop a long run early.
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	start := time.Now()
	for i := range count {
		if perSecond > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		}
		_, err := c.Write(b)
		if errors.Is(err, unix.ECONNREFUSED) {
			_, err = c.Write(b) // this error answered an earlier datagram; nothing was sent
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// causeRefused connects to a closed port.
func causeRefused(addr string, count int) error {
	for range count {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return fmt.Errorf("%s is open", addr)
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

// serve echoes each line until the peer closes.
func serve(addrs []string) error {
	failed := make(chan error)
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					c.Close()
				}()
			}
		}()
	}
	return <-failed
}

// causeAborts connects to a server, waits until the server has accepted, and aborts
// the connection.
func causeAborts(addr string, count int) error {
	for range count {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		if err := echo(c); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			return err
		}
		c.Close()
	}
	return nil
}

func echo(c net.Conn) error {
	if _, err := c.Write([]byte("are you there?")); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 14))
	return err
}

// causeExchange exchanges one line after another with a server.
func causeExchange(addr string, count int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for range count {
		if err := echo(c); err != nil {
			return err
		}
	}
	return nil
}

// causeUnanswered tries for a while to connect to all addresses at once.
func causeUnanswered(limit time.Duration, addrs []string) error {
	done := make(chan error)
	for _, addr := range addrs {
		go func() {
			c, err := net.DialTimeout("tcp", addr, limit)
			if err == nil {
				c.Close()
				done <- fmt.Errorf("%s answered", addr)
				return
			}
			done <- nil
		}()
	}
	var errs []error
	for range addrs {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

// causeStray sends ACKs that belong to no connection to a listening socket.
func causeStray(addr string, count int) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", addr) // finds our own address
	if err != nil {
		return err
	}
	from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	c.Close()
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	defer unix.Close(fd)
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, 16); err != nil {
			return err
		}
	}
	for i := range count {
		segment := make([]byte, 20)
		binary.BigEndian.PutUint16(segment[0:], uint16(20000+i))
		binary.BigEndian.PutUint16(segment[2:], to.Port())
		binary.BigEndian.PutUint32(segment[4:], 1)
		binary.BigEndian.PutUint32(segment[8:], 1)
		segment[12], segment[13] = 5<<4, 0x10 // 20 bytes, ACK
		binary.BigEndian.PutUint16(segment[14:], 1024)
		var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16()}
		if domain == unix.AF_INET {
			binary.BigEndian.PutUint16(segment[16:], checksum(slices.Concat(from.AsSlice(), to.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, 20}, segment)))
			sa = &unix.SockaddrInet4{Addr: to.Addr().As4()}
		}
		if err := unix.Sendto(fd, segment, 0, sa); err != nil {
			return err
		}
	}
	return nil
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

// pair returns both ends of a connection within this process.
func pair(network, addr string) (client, server *net.TCPConn, err error) {
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	s, err := l.Accept()
	if err != nil {
		return nil, nil, err
	}
	return c.(*net.TCPConn), s.(*net.TCPConn), nil
}

var loopbacks = [][2]string{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}}

// causeLateReads leaves received data unread for a while.
func causeLateReads(count int) error {
	for _, at := range loopbacks {
		client, server, err := pair(at[0], at[1])
		if err != nil {
			return err
		}
		for range count {
			if err := lateRead(client, server); err != nil {
				return err
			}
		}
		client.Close()
		server.Close()
	}
	return nil
}

func lateRead(client, server *net.TCPConn) error {
	if _, err := client.Write([]byte("wait for it")); err != nil {
		return err
	}
	time.Sleep(hold)
	_, err := io.ReadFull(server, make([]byte, 11))
	return err
}

// causeLateSends writes more than the peer reads, in one call, so that its window
// is closed for a while.
func causeLateSends() error {
	for _, at := range loopbacks {
		client, server, err := pair(at[0], at[1])
		if err != nil {
			return err
		}
		if err := errors.Join(closeWindow(client, server), lateSend(client, server)); err != nil {
			return err
		}
		client.Close()
		server.Close()
	}
	return nil
}

// closeWindow gives the receiver a small buffer and the sender a large one. The
// sender's socket then takes all data in one call, since two calls would be two
// writes.
func closeWindow(client, server *net.TCPConn) error {
	return errors.Join(server.SetReadBuffer(16<<10), client.SetWriteBuffer(1<<20))
}

func lateSend(client, server *net.TCPConn) error {
	written, err := client.Write(make([]byte, 160<<10))
	if err != nil {
		return err
	}
	time.Sleep(hold)
	if err := server.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	_, err = io.ReadFull(server, make([]byte, written))
	return err
}

// openPastCaches opens a block device for direct I/O, and allocates a buffer of one
// block.
func openPastCaches(device string) (*os.File, []byte, error) {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	b := make([]byte, 8192)
	return f, b[4096-int(uintptr(unsafe.Pointer(&b[0]))%4096):][:4096], err
}

// causeReads reads a block device, bypassing all caches.
func causeReads(device string, count int, stride, offset int64) error {
	f, b, err := openPastCaches(device)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range count {
		start := time.Now()
		if _, err := f.ReadAt(b, int64(i)*stride+offset); err != nil {
			return err
		}
		fmt.Println(time.Since(start).Milliseconds())
	}
	return nil
}

// holdQueue delays each packet of a netfilter queue. It ends with its standard
// input.
func holdQueue(number uint16) error {
	q, err := nfqueue.Open(number, false)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return q.Serve(func(p nfqueue.Packet) { time.AfterFunc(hold, func() { _ = q.Accept(p.ID) }) })
}

// causeMain is main of the program under its other name.
func causeMain() {
	if err := cause(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "cause %s: %v\n", strings.Join(os.Args[1:], " "), err)
		os.Exit(1)
	}
	os.Exit(0)
}
