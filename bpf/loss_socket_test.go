package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// socketDrops reads the drops column of /proc/net/udp, raw and so on.
func socketDrops(n *namespace, file string) func(*testing.T) uint64 {
	return func(t *testing.T) (sum uint64) {
		t.Helper()
		n.do(t, func() error {
			data, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
				if f := strings.Fields(line); i > 0 {
					v, err := strconv.ParseUint(f[len(f)-1], 10, 64)
					if err != nil {
						return err
					}
					sum += v
				}
			}
			return nil
		})
		return sum
	}
}

// small creates a socket inside the namespace with the smallest receive buffer.
func (n *namespace) small(t *testing.T, domain, kind, protocol int, bind unix.Sockaddr) int {
	t.Helper()
	var fd int
	n.do(t, func() (err error) {
		if fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
			return err
		}
		if bind != nil {
			return unix.Bind(fd, bind)
		}
		return nil
	})
	t.Cleanup(func() {
		for b := make([]byte, 2000); ; {
			if _, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		unix.Close(fd)
	})
	return fd
}

// TestLossSockets loses packets at their destination socket.
func TestLossSockets(t *testing.T) {
	x := newLossLab(t)
	b := x.b
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		domain, udp, suffix, icmp := unix.AF_INET, "Udp", "", unix.IPPROTO_ICMP
		if family == "IPv6" {
			domain, udp, suffix, icmp = unix.AF_INET6, "Udp6", "6", unix.IPPROTO_ICMPV6
		}
		src, dst := port(from, lossFrom), port(to, 4000)
		// ICMP's rate limit suppresses most errors before a packet exists.
		x.lose(t, family+" closed port", loss{
			in: b, n: losses, source: mib(b, udp+".NoPorts"), reasons: "NO_SOCKET", functions: "__udp4_lib_rcv __udp6_lib_rcv udp_rcv udpv6_rcv",
			from: src, to: dst, protocol: unix.IPPROTO_UDP, device: "eth0",
		}, func(t *testing.T) {
			x.a.udp(t, dst, losses, 10)
		})
		x.lose(t, family+" UDP connected, full", loss{in: b, source: mib(b, udp+".RcvbufErrors"), reasons: "SOCKET_RCVBUFF", from: src, to: dst, protocol: unix.IPPROTO_UDP}, func(t *testing.T) {
			fd := b.small(t, domain, unix.SOCK_DGRAM, 0, sockaddr(dst))
			if err := unix.Connect(fd, sockaddr(src)); err != nil {
				t.Fatal(err)
			}
			x.a.udp(t, dst, 40, 1000)
		})
		x.lose(t, family+" UDP filter", loss{in: b, n: losses, source: mib(b, udp+".InErrors"), reasons: "SOCKET_FILTER", from: src, to: dst, protocol: unix.IPPROTO_UDP}, func(t *testing.T) {
			fd := b.small(t, domain, unix.SOCK_DGRAM, 0, sockaddr(dst))
			rejectAll(t, fd)
			x.a.udp(t, dst, losses, 10)
		})
		x.lose(t, family+" raw socket, full", loss{in: b, source: socketDrops(b, "raw"+suffix), reasons: "SOCKET_RCVBUFF NOT_SPECIFIED IP_NOPROTO", from: port(from, 0), to: port(to, 0), protocol: 253}, func(t *testing.T) {
			b.small(t, domain, unix.SOCK_RAW, 253, nil)
			x.toReceiver(t, timesOf(40, ipPacket(from, to, 253, make([]byte, 1000)))...)
		})
		// The original packet goes to ping sockets, of which there are none. Since
		// Linux 6.2 there is no copy for a full socket: the loss appears only in
		// the column drops of /proc/net/raw.
		x.lose(t, family+" ping socket, full", loss{in: b, only: "raw_rcv rawv6_rcv", maybe: true, source: socketDrops(b, "raw"+suffix), reasons: "SOCKET_RCVBUFF NOT_SPECIFIED", from: port(from, 0), to: port(to, 0), protocol: uint8(icmp)}, func(t *testing.T) {
			b.small(t, domain, unix.SOCK_RAW, icmp, nil)
			x.toReceiver(t, timesOf(40, echoPacket(from, to, true, make([]byte, 1000)))...)
		})
		x.lose(t, family+" raw socket filter", loss{in: b, n: losses, reasons: "SOCKET_FILTER NOT_SPECIFIED", from: port(from, 0), to: port(to, 0), protocol: 253}, func(t *testing.T) {
			rejectAll(t, b.small(t, domain, unix.SOCK_RAW, 253, nil))
			x.toReceiver(t, timesOf(losses, ipPacket(from, to, 253, make([]byte, 100)))...)
		})
		// A packet socket gets a copy; the packet itself is delivered. The kernel
		// frees the copy by consume_skb and counts it for the socket.
		x.lose(t, family+" packet socket, full", loss{in: b, untold: true}, func(t *testing.T) {
			fd := b.small(t, unix.AF_PACKET, unix.SOCK_RAW, int(networkOrder(unix.ETH_P_ALL)), nil)
			c := b.listenUDP(t, to)
			x.a.udp(t, addrPort(c.LocalAddr()), 20, 1000)
			for range 20 {
				if _, err := c.Read(make([]byte, 2000)); err != nil {
					t.Fatal(err)
				}
			}
			if stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops == 0 {
				t.Errorf("the packet socket dropped nothing: %+v, %v", stats, err)
			}
		})
		for _, c := range []struct {
			name, reasons string
			attach        ebpf.AttachType
			in            *namespace
			source        func(*testing.T) uint64
		}{
			{"ingress", "SOCKET_FILTER", ebpf.AttachCGroupInetIngress, b, mib(b, udp+".InErrors")},
			{"egress", "BPF_CGROUP_EGRESS", ebpf.AttachCGroupInetEgress, x.a, nil},
		} {
			x.lose(t, family+" program of the control group, "+c.name, loss{
				in: c.in, n: losses, source: c.source, reasons: c.reasons,
				from: src, to: dst, protocol: unix.IPPROTO_UDP, prepare: func(t *testing.T) { inOwnCgroup(t, c.attach) },
			}, func(t *testing.T) {
				b.small(t, domain, unix.SOCK_DGRAM, 0, sockaddr(dst))
				x.a.udp(t, dst, losses, 10)
			})
		}
		// Multicast to a joined group.
		group, mac := netip.MustParseAddr("239.1.2.3"), net.HardwareAddr{1, 0, 0x5e, 1, 2, 3}
		if family == "IPv6" {
			group, mac = netip.MustParseAddr("ff0e::123"), net.HardwareAddr{0x33, 0x33, 0, 0, 1, 0x23}
		}
		member := func(t *testing.T) {
			fd := b.small(t, domain, unix.SOCK_DGRAM, 0, sockaddr(port(group, 4000)))
			b.do(t, func() error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				if domain == unix.AF_INET6 {
					return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(l.Attrs().Index)})
				}
				return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(l.Attrs().Index)})
			})
		}
		toGroup := func(n, size int) [][]byte {
			return timesOf(n, ethernet(mac, routerMAC(2, 1), udpPacket(src, port(group, 4000), make([]byte, size))))
		}
		x.lose(t, family+" multicast, full", loss{
			in: b, source: mib(b, udp+".RcvbufErrors"), reasons: "SOCKET_RCVBUFF",
			from: src, to: port(group, 4000), protocol: unix.IPPROTO_UDP, prepare: member,
		}, func(t *testing.T) {
			x.r.inject(t, "right", toGroup(40, 1000)...)
		})
		x.lose(t, family+" multicast that a rule drops", loss{
			in: b, n: losses, source: nftCount(b), class: DropNetfilter, reasons: "NETFILTER_DROP",
			from: src, to: port(group, 4000), protocol: unix.IPPROTO_UDP, prepare: func(t *testing.T) {
				member(t)
				b.ruleset(t, dropPort4000)
			},
		}, func(t *testing.T) {
			x.r.inject(t, "right", toGroup(losses, 10)...)
		})
	})
	broadcast := port(netip.MustParseAddr("10.132.0.255"), 4000)
	x.lose(t, "IPv4 broadcast that a rule drops", loss{
		in: b, n: losses, source: nftCount(b), class: DropNetfilter, reasons: "NETFILTER_DROP",
		from: port(x.a.v4, lossFrom), to: broadcast, protocol: unix.IPPROTO_UDP, prepare: func(t *testing.T) {
			b.ruleset(t, dropPort4000)
			b.small(t, unix.AF_INET, unix.SOCK_DGRAM, 0, sockaddr(port(netip.IPv4Unspecified(), 4000)))
		},
	}, func(t *testing.T) {
		x.r.inject(t, "right", timesOf(losses, ethernet(net.HardwareAddr{255, 255, 255, 255, 255, 255}, routerMAC(2, 1), udpPacket(port(x.a.v4, lossFrom), broadcast, []byte("payload"))))...)
	})
}

const dropPort4000 = "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c udp dport 4000 counter drop"

// inOwnCgroup moves the process into a control group whose program drops its
// sockets' received or sent packets, for one case.
func inOwnCgroup(t *testing.T, attach ebpf.AttachType) {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Skipf("this kernel: %v", err)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	home := root
	for line := range strings.Lines(string(self)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = filepath.Join(root, path)
		}
	}
	own := filepath.Join(root, "nodeskoop-loss")
	enter := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err := errors.Join(os.MkdirAll(own, 0o755), enter(own)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(enter(home), os.Remove(own)); err != nil {
			t.Error(err)
		}
	})
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: own, Attach: attach, Program: verdict(t, ebpf.CGroupSKB, 0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { attached.Close() })
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// rejectAll attaches a filter that rejects every packet.
func rejectAll(t *testing.T, fd int) {
	t.Helper()
	raw, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		t.Fatal(err)
	}
	filter := []unix.SockFilter{{Code: raw[0].Op, Jt: raw[0].Jt, Jf: raw[0].Jf, K: raw[0].K}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &filter[0]}); err != nil {
		t.Fatal(fmt.Errorf("attach a filter: %w", err))
	}
}
