package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stormAddress is the address of the interface that sends the broadcasts.
const stormAddress = "198.18.0.1"

// causeStorm sends bursts of broadcasts, each as one packet that is segmented into
// sixty when sent, so that they arrive at once.
func causeStorm(seconds int) error {
	c, err := net.Dial("udp4", "198.18.0.255:9")
	if err != nil {
		return err
	}
	defer c.Close()
	const size, pieces = 100, 60
	if err := control(c.(*net.UDPConn), func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, size) }); err != nil {
		return err
	}
	b := make([]byte, size*pieces)
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); time.Sleep(5 * time.Second) {
		for range 3 {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// control sets options of a socket.
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

// causeTracked exchanges datagrams with addresses of lo, each a long-lived tracked
// connection, until the conntrack table is filled to a share. To fill it
// completely, it continues until a hundred were refused.
func causeTracked(percent int) error {
	limit, err := sysctl("nf_conntrack_max")
	if err != nil {
		return err
	}
	have, err := sysctl("nf_conntrack_count")
	if err != nil {
		return err
	}
	server, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := control(server, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }); err != nil {
		return err
	}
	go answer(server)
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer client.Close()
	port := uint16(server.LocalAddr().(*net.UDPAddr).Port)
	made := limit*percent/100 - have
	refused, err := exchanges(client, port, made)
	if err != nil {
		return err
	}
	// An exchange that continues after two seconds is assured and not evicted.
	time.Sleep(2500 * time.Millisecond)
	if _, err := exchanges(client, port, made-refused); err != nil {
		return err
	}
	for i := made; percent == 100 && refused < 100 && i < made+1<<20; i += atOnce {
		n, err := exchangesFrom(client, port, i, atOnce)
		if err != nil {
			return err
		}
		refused += n
	}
	if have, err = sysctl("nf_conntrack_count"); err == nil {
		fmt.Printf("%d of %d entries, %d refused\n", have, limit, refused)
	}
	return err
}

func sysctl(name string) (int, error) {
	text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// atOnce is the number of concurrent exchanges, which a socket's buffer can hold.
const atOnce = 32

func exchanges(c *net.UDPConn, port uint16, count int) (refused int, err error) {
	for i := 0; i < count; i += atOnce {
		n, err := exchangesFrom(c, port, i, min(atOnce, count-i))
		if refused += n; err != nil {
			return refused, err
		}
	}
	return refused, nil
}

// exchangesFrom sends to consecutive addresses from 127.1.0.0 on and awaits the
// answers. The kernel refuses to send packets that it cannot track.
func exchangesFrom(c *net.UDPConn, port uint16, first, count int) (refused int, err error) {
	sent := 0
	for i := first; i < first+count; i++ {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)}), port)
		switch _, err := c.WriteToUDPAddrPort([]byte("?"), to); {
		case errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOMEM):
			refused++
		case err != nil:
			return refused, err
		default:
			sent++
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return refused, err
	}
	var b [16]byte
	for range sent {
		if _, _, err := c.ReadFromUDPAddrPort(b[:]); err != nil {
			return refused, fmt.Errorf("await an answer, after %d exchanges: %w", first, err)
		}
	}
	return refused, nil
}

// answer echoes datagrams, from the address that each was sent to.
func answer(c *net.UDPConn) {
	b, oob := make([]byte, 16), make([]byte, 128)
	for {
		n, m, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			return
		}
		_, _, _ = c.WriteMsgUDPAddrPort(b[:n], oob[:m], from)
	}
}

// causeHoard fills buffers of connections that nobody reads until TCP reports
// memory pressure, and then frees them.
func causeHoard() error {
	pressures := func() (int, error) {
		table, err := os.ReadFile("/proc/self/net/netstat")
		if err != nil {
			return 0, err
		}
		return counter(string(table), "TcpExt", "TCPMemoryPressures")
	}
	before, err := pressures()
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
	defer l.Close()
	chunk := make([]byte, 1<<20)
	for total := 0; total < 8<<30; {
		c, err := (&net.Dialer{Control: large(unix.SO_SNDBUFFORCE)}).Dial("tcp4", l.Addr().String())
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
		for {
			if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			n, err := c.Write(chunk)
			total += n
			if now, err := pressures(); err != nil {
				return err
			} else if now > before {
				fmt.Printf("pressure with %d MB\n", total>>20)
				return nil
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				return err
			}
		}
	}
	return errors.New("8 GB in the buffers of TCP are no pressure")
}

// counter reads a value of a kernel table with a line of names: /proc/net/snmp and
// netstat.
func counter(table, group, name string) (int, error) {
	var names []string
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != group+":" {
			continue
		}
		if i := slices.Index(names, name); i >= 0 && i < len(f) {
			return strconv.Atoi(f[i])
		}
		names = f
	}
	return 0, fmt.Errorf("there is no %s.%s", group, name)
}
