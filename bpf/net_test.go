package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit/need"
)

// namespace is an unnamed network namespace, deleted with its handle.
type namespace struct {
	handle netns.NsHandle
	inode  uint64
	device string
	mac    net.HardwareAddr
	v4, v6 netip.Addr
}

// newNamespace creates a namespace that all loaders of the test follow.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := newUnowned(t)
	following.add(t, n.netns())
	return n
}

// netns is the namespace as a loader follows it.
func (n *namespace) netns() Netns {
	return Netns{n.inode, fmt.Sprintf("/proc/self/fd/%d", int(n.handle))}
}

// newUnowned creates a namespace that no loader follows.
func newUnowned(t testing.TB) *namespace {
	t.Helper()
	need.Root(t)
	n := &namespace{}
	done := make(chan error)
	go func() {
		// The thread stays in the new namespace, so it must not run other
		// goroutines; it ends with this one.
		runtime.LockOSThread()
		var err error
		n.handle, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { n.handle.Close() })
	var err error
	if n.inode, err = kernel.FileInode(int(n.handle)); err != nil {
		t.Fatal(err)
	}
	n.do(t, func() error {
		// Neighbour discovery and multicast reports would add unrelated packets.
		for _, file := range []string{"default/accept_ra", "default/router_solicitations", "default/accept_dad"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+file, []byte("0"), 0); err != nil {
				return err
			}
		}
		for file, value := range map[string]string{
			"addr_gen_mode": "1", "mldv1_unsolicited_report_interval": "2000000000", "mldv2_unsolicited_report_interval": "2000000000",
		} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/"+file, []byte(value), 0); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// try runs f on a thread inside the namespace.
func (n *namespace) try(f func() error) error {
	return kernel.InNetnsFD(int(n.handle), f)
}

func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.try(f); err != nil {
		t.Fatal(err)
	}
}

// run runs a command inside and returns its output.
func (n *namespace) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	need.Program(t, name)
	var out bytes.Buffer
	n.do(t, func() error {
		if name == "ip" {
			if done, err := ipHere(args); done {
				return err
			}
		}
		cmd := exec.Command(name, args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out.String())
		}
		return nil
	})
	return out.String()
}

// ipHere performs the most common ip commands without a process, which in an
// emulated machine costs more than most of a test. It reports whether it knows the
// command.
func ipHere(args []string) (done bool, err error) {
	if len(args) < 3 {
		return false, nil
	}
	switch args[0] + " " + args[1] {
	case "link set":
		args = args[2:]
		if args[0] == "dev" {
			args = args[1:]
		}
		var set func(netlink.Link) error
		switch {
		case len(args) == 2 && args[1] == "up":
			set = netlink.LinkSetUp
		case len(args) == 2 && args[1] == "down":
			set = netlink.LinkSetDown
		case len(args) == 3 && args[1] == "master":
			set = func(link netlink.Link) error {
				master, err := netlink.LinkByName(args[2])
				if err != nil {
					return err
				}
				return netlink.LinkSetMaster(link, master)
			}
		default:
			return false, nil
		}
		link, err := netlink.LinkByName(args[0])
		if err != nil {
			return true, fmt.Errorf("ip link set %v: %w", args, err)
		}
		return true, set(link)
	case "addr add":
		nodad := len(args) == 6 && args[5] == "nodad"
		if len(args) < 5 || !nodad && len(args) != 5 || args[3] != "dev" || !strings.Contains(args[2], "/") {
			return false, nil
		}
		link, err := netlink.LinkByName(args[4])
		if err != nil {
			return true, fmt.Errorf("ip %v: %w", args, err)
		}
		addr, err := netlink.ParseAddr(args[2])
		if err != nil {
			return true, err
		}
		if nodad {
			addr.Flags = unix.IFA_F_NODAD
		}
		addr.Broadcast = net.IPv4zero // none, as ip does
		if err := netlink.AddrAdd(link, addr); err != nil {
			return true, fmt.Errorf("ip %v: %w", args, err)
		}
		return true, nil
	}
	return false, nil
}

// counter reads one of the kernel's counters inside, such as "Udp.InErrors".
func (n *namespace) counter(t testing.TB, name string) uint64 {
	t.Helper()
	group, field, _ := strings.Cut(name, ".")
	var value uint64
	n.do(t, func() error {
		for _, file := range []string{"/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"} {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			lines := strings.Split(string(data), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				if !strings.HasPrefix(lines[i], group+":") {
					continue
				}
				names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				for j := range names {
					if names[j] == field {
						value, err = strconv.ParseUint(values[j], 10, 64)
						return err
					}
				}
			}
		}
		data, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) == 2 && f[0] == group+field {
				value, err = strconv.ParseUint(f[1], 10, 64)
				return err
			}
		}
		return errors.New("the kernel has no counter " + name)
	})
	return value
}

// newPair returns two namespaces connected by a veth pair, with IPv4, IPv6 and
// static neighbour entries.
func newPair(t testing.TB) (a, b *namespace) {
	t.Helper()
	need.Root(t)
	a, b = newNamespace(t), newNamespace(t)
	a.device, b.device = "va", "vb"
	a.v4, b.v4 = netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2")
	a.v6, b.v6 = netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::2")
	a.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.device
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b.device, PeerNamespace: netlink.NsFd(b.handle)})
	})
	for _, n := range []*namespace{a, b} {
		n.do(t, func() error {
			link, err := netlink.LinkByName(n.device)
			if err != nil {
				return err
			}
			n.mac = link.Attrs().HardwareAddr
			if err := netlink.LinkSetMulticastOff(link); err != nil {
				return err
			}
			for _, addr := range []string{n.v4.String() + "/24", n.v6.String() + "/64"} {
				parsed, err := netlink.ParseAddr(addr)
				if err != nil {
					return err
				}
				if strings.Contains(addr, ":") {
					parsed.Flags = unix.IFA_F_NODAD
				}
				if err := netlink.AddrAdd(link, parsed); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		})
	}
	a.neighbour(t, b)
	b.neighbour(t, a)
	// Wait for the one multicast report per address that cannot be suppressed.
	for _, n := range []*namespace{a, b} {
		reports := uint64(0)
		for range 20 {
			time.Sleep(25 * time.Millisecond)
			now := n.counter(t, "Icmp6.OutMsgs")
			if now > 0 && now == reports {
				break
			}
			reports = now
		}
	}
	return a, b
}

func (n *namespace) neighbour(t testing.TB, peer *namespace) {
	t.Helper()
	n.do(t, func() error {
		link, err := netlink.LinkByName(n.device)
		if err != nil {
			return err
		}
		for _, addr := range []netip.Addr{peer.v4, peer.v6} {
			if err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: addr.AsSlice(), HardwareAddr: peer.mac,
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// families returns the addresses of both ends, by IP version.
func families(a, b *namespace) map[string][2]netip.Addr {
	return map[string][2]netip.Addr{"IPv4": {a.v4, b.v4}, "IPv6": {a.v6, b.v6}}
}

// dial and listen create sockets inside the namespace, usable from any thread.
func (n *namespace) dial(t testing.TB, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	n.do(t, func() (err error) {
		conn, err = net.DialTimeout(network, to.String(), 5*time.Second)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (n *namespace) listen(t testing.TB, addr netip.Addr) net.Listener {
	t.Helper()
	var l net.Listener
	n.do(t, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

func (n *namespace) listenUDP(t testing.TB, addr netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	n.do(t, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// connect returns both ends of a TCP connection from a to b.
func connect(t testing.TB, a, b *namespace, addr netip.Addr) (client, server *net.TCPConn) {
	t.Helper()
	l := b.listen(t, addr)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	client = a.dial(t, "tcp", addrPort(l.Addr())).(*net.TCPConn)
	c := <-accepted
	if c == nil {
		t.Fatal("accept failed")
	}
	t.Cleanup(func() { c.Close() })
	l.Close()
	return client, c.(*net.TCPConn)
}

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// closedPort returns a port of addr without a listener.
func (n *namespace) closedPort(t testing.TB, addr netip.Addr) netip.AddrPort {
	t.Helper()
	l := n.listen(t, addr)
	l.Close()
	return addrPort(l.Addr())
}

// rawConn runs f with the socket's descriptor.
func rawConn(t testing.TB, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		var inner error
		err = errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tcpInfo returns the kernel's account of a connection.
func tcpInfo(t testing.TB, c *net.TCPConn) (info *unix.TCPInfo) {
	t.Helper()
	rawConn(t, c, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return info
}

// socket is a TCP socket used through raw system calls, for tests in which a
// connection of package net would behave differently.
type socket struct {
	fd int
}

// stream creates a TCP socket bound to an address inside the namespace.
func stream(t testing.TB, n *namespace, addr netip.Addr, flags int) *socket {
	t.Helper()
	s := &socket{}
	n.do(t, func() (err error) {
		domain := unix.AF_INET
		if addr.Is6() {
			domain = unix.AF_INET6
		}
		if s.fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0); err != nil {
			return err
		}
		return unix.Bind(s.fd, sockaddr(netip.AddrPortFrom(addr, 0)))
	})
	t.Cleanup(s.close)
	return s
}

func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	s.fd = -1
}

func (s *socket) local(t testing.TB) unix.Sockaddr {
	t.Helper()
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		t.Fatal(err)
	}
	return sa
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
