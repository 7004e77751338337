package bpf

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var healthyLocal = []healthyCase{
	{name: "AF_UNIX sockets closed with unread messages", run: func(t *testing.T, h *healthy) {
		for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
			for _, first := range []int{0, 1} {
				h.a.do(t, func() error {
					pair, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
					if err != nil {
						return err
					}
					for range 5 {
						if err := unix.Sendmsg(pair[0], []byte("never read"), unix.UnixRights(pair[0]), nil, 0); err != nil {
							return err
						}
					}
					unix.Close(pair[first])
					return unix.Close(pair[1-first])
				})
			}
		}
	}},
	{name: "netlink sockets closed with unread messages", run: func(t *testing.T, h *healthy) {
		s := h.a.socketIn(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		must(t, unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 0xffffffff}))
		h.a.ip(t, "link add hd0 type veth peer name hd1")
		h.a.ip(t, "link set hd0 up")
		h.a.ip(t, "link del hd0")
	}},
	{name: "netlink messages that nobody listens to", run: func(t *testing.T, h *healthy) {
		h.a.ip(t, "link add hd0 type veth peer name hd1")
		h.a.ip(t, "link del hd0")
		s := h.a.socketIn(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_USERSOCK)
		for range 5 {
			unix.Sendto(s, []byte("nobody"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << 5})
			unix.Sendto(s, []byte("nobody"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 1 << 30})
		}
	}},
	{name: "uevents", run: func(t *testing.T, h *healthy) {
		for _, group := range []uint32{1, 2} {
			s := h.a.socketIn(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)
			must(t, unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: group}))
		}
		for range 3 {
			h.a.ip(t, "link add hd0 type veth peer name hd1")
			h.a.ip(t, "link del hd0")
		}
	}},
	{name: "rule changes of nft", run: func(t *testing.T, h *healthy) {
		h.a.run(t, "nft", "add table inet healthy")
		for i := range 10 {
			h.a.run(t, "nft", fmt.Sprintf("add chain inet healthy c%d", i))
		}
		h.a.run(t, "nft", "delete table inet healthy")
	}},
	{name: "rtnetlink errors and dumps", run: func(t *testing.T, h *healthy) {
		for range 3 {
			h.a.ip(t, "route show")
			h.a.can("ip", "link", "show", "dev", "nosuch")
			h.a.can("ip", "route", "get", "192.0.2.1")
			h.a.can("ip", "route", "del", "192.0.2.0/24")
		}
	}},
	{name: "audit records without auditd", run: audit},
	{name: "vsock loopback", run: vsock},
}

// audit writes records of AUDIT_USER_AVC, which the kernel accepts even while
// auditing is off.
func audit(t *testing.T, h *healthy) {
	if _, err := os.Stat("/proc/self/loginuid"); err != nil {
		t.Skip("this kernel: no audit")
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_AUDIT)
	if err != nil {
		t.Skipf("this kernel: no audit: %v", err)
	}
	defer unix.Close(s)
	for i := range 7 {
		text := fmt.Sprintf("op=nodeskoop-test-%d\x00", i)
		message := make([]byte, 16, 64)
		order.PutUint32(message, uint32(16+len(text)))
		order.PutUint16(message[4:], 1107)
		order.PutUint16(message[6:], 1) // NLM_F_REQUEST
		order.PutUint32(message[8:], uint32(i))
		must(t, unix.Sendto(s, append(message, text...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	}
}

// vsock sends over the loopback of virtual sockets, and closes with unread data.
func vsock(t *testing.T, h *healthy) {
	open := func() (int, error) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return fd, err
	}
	l, err := open()
	if err != nil {
		t.Skipf("this kernel: no vsock: %v", err)
	}
	must(t, unix.Bind(l, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: 7001}))
	must(t, unix.Listen(l, 5))
	for i := range 5 {
		c, err := open()
		must(t, err)
		const connectTimeout = 6 // SO_VM_SOCKETS_CONNECT_TIMEOUT
		must(t, unix.SetsockoptTimeval(c, unix.AF_VSOCK, connectTimeout, &unix.Timeval{Usec: 200_000}))
		if err := unix.Connect(c, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: 7001}); err != nil {
			t.Skipf("this kernel: no vsock loopback: %v", err)
		}
		s, _, err := unix.Accept(l)
		must(t, err)
		_, err = unix.Write(c, make([]byte, 10_000))
		must(t, err)
		if i%2 == 0 {
			_, err = unix.Read(s, make([]byte, 10_000))
			must(t, err)
		}
		unix.Close(s)
	}
}
