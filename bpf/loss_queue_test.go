package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// spare creates a veth pair x0 in a and x1 in b, for cases that destroy their
// devices. Both ends have static neighbour entries.
func (x *lossLab) spare(t *testing.T) {
	t.Helper()
	x.a.do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "x0", HardwareAddr: routerMAC(3, 1)}, PeerName: "x1",
			PeerHardwareAddr: routerMAC(3, 2), PeerNamespace: netlink.NsFd(int(x.b.handle)),
		})
	})
	t.Cleanup(func() {
		_ = x.a.try(func() error { // some cases have deleted it
			l, err := netlink.LinkByName("x0")
			if err == nil {
				err = netlink.LinkDel(l)
			}
			return err
		})
	})
	f4, t4, _ := spareAddrs(false)
	f6, t6, _ := spareAddrs(true)
	x.b.configure(t, "x1", routerMAC(3, 1), []netip.Prefix{netip.PrefixFrom(t4, 24), netip.PrefixFrom(t6, 64)}, f4, f6)
	x.a.unicastOnly(t, "x0")
	x.a.configure(t, "x0", routerMAC(3, 2), []netip.Prefix{netip.PrefixFrom(f4, 24), netip.PrefixFrom(f6, 64)}, t4, t6)
}

// unicastOnly keeps a device from sending multicast, for cases that need to know
// the content of a queue.
func (n *namespace) unicastOnly(t *testing.T, device string) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(0, asm.Byte), // the first byte of the destination's hardware address
		asm.And.Imm(asm.R0, 1),
		asm.LSh.Imm(asm.R0, 2), // TC_ACT_OK or TC_ACT_STOLEN
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	n.run(t, "tc", "qdisc", "add", "dev", device, "clsact")
	n.attach(t, device, netlink.HANDLE_MIN_EGRESS, p)
}

// spareAddrs returns the addresses of x0 and x1.
func spareAddrs(six bool) (from, to, nobody netip.Addr) {
	p := "10.131.3."
	if six {
		p = "fd31:3::"
	}
	return netip.MustParseAddr(p + "1"), netip.MustParseAddr(p + "2"), netip.MustParseAddr(p + "99")
}

// rootDrops reads the drops of a device's root qdisc.
func rootDrops(n *namespace, device string) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 {
		t.Helper()
		if err := n.try(func() error { _, err := netlink.LinkByName(device); return err }); err != nil {
			return 0
		}
		for _, part := range strings.Split(n.run(t, "tc", "-s", "qdisc", "show", "dev", device), "qdisc ") {
			if strings.Contains(part, " root ") {
				return number(t, part, `dropped (\d+),`)
			}
		}
		return 0
	}
}

// sink opens a port that accepts everything.
func (n *namespace) sink(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	c := n.listenUDP(t, addr)
	go func() {
		for b := make([]byte, 2000); ; {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	return addrPort(c.LocalAddr())
}

// TestLossQueues loses packets between the stack and the driver.
func TestLossQueues(t *testing.T) {
	x := newLossLab(t)
	a, r := x.a, x.r.namespace
	x.each(t, func(t *testing.T, family string, sender, receiver netip.Addr) {
		from, to, nobody := spareAddrs(family == "IPv6")
		src, dst := port(from, lossFrom), port(to, lossTo)

		// Full queues. Each qdisc counts its drops.
		x.spare(t)
		const slow = "root handle 1: tbf rate 8bit burst 200 limit 100000"
		for _, c := range []struct {
			name string
			sent int
			tc   []string
		}{
			{"pfifo behind tbf", 31, []string{slow, "parent 1:1 pfifo limit 5"}},
			{"bfifo behind tbf", 31, []string{slow, "parent 1:1 bfifo limit 600"}},
			{"tbf", 31, []string{"root handle 1: tbf rate 8bit burst 200 limit 600"}},
			{"fq_codel behind tbf", 40, []string{slow, "parent 1:1 fq_codel limit 10"}},
			{"fq behind tbf", 40, []string{slow, "parent 1:1 fq limit 10"}},
			{"sfq behind tbf", 40, []string{slow, "parent 1:1 sfq limit 10"}},
			{"netem", losses, []string{"root handle 1: netem loss 100%"}},
		} {
			var open netip.AddrPort
			x.lose(t, family+" "+c.name, loss{
				in: a, source: rootDrops(a, "x0"), reasons: qdiscReasons, from: src, protocol: unix.IPPROTO_UDP, device: "x0",
				prepare: func(t *testing.T) {
					a.discipline(t, "x0", c.tc...)
					open = x.b.sink(t, to)
				},
			}, func(t *testing.T) { a.udp(t, open, c.sent, 50) })
		}
		a.run(t, "ip", "link", "del", "x0")

		// Packets in a queue that is deleted. tbf has room for one datagram. netem
		// keeps packets in a tree, whose links overwrite their device pointer.
		tbf, netem := "root handle 1: tbf rate 8bit burst 500 limit 100000", "root handle 1: netem delay 1000s limit 1000"
		type end struct {
			name, discipline string
			sent             int
			do               func(t *testing.T)
		}
		linkDown := func(t *testing.T) { a.run(t, "ip", "link", "set", "x0", "down") }
		linkGone := func(t *testing.T) { a.run(t, "ip", "link", "del", "x0") }
		for _, c := range []end{
			{"the queue is replaced", tbf, losses + 1, func(t *testing.T) { sh(t, a, "tc qdisc replace dev x0 root handle 2: pfifo") }},
			{"the queue is deleted", tbf, losses + 1, func(t *testing.T) { sh(t, a, "tc qdisc del dev x0 root") }},
			{"the link goes down", tbf, losses + 1, linkDown},
			{"the device is deleted", tbf, losses + 1, linkGone},
			{"netem is deleted", netem, losses, func(t *testing.T) { sh(t, a, "tc qdisc del dev x0 root") }},
		} {
			x.lose(t, family+" packets wait in the queue when "+c.name, loss{
				in: a, n: losses, reasons: qdiscReasons, from: src, protocol: unix.IPPROTO_UDP,
				prepare: func(t *testing.T) {
					x.spare(t)
					a.discipline(t, "x0", c.discipline)
					a.udp(t, x.b.sink(t, to), c.sent, 300)
				},
			}, c.do)
		}
		for _, c := range []end{{"tbf", tbf, losses + 1, nil}, {"netem", netem, losses, nil}} {
			x.lose(t, family+" forwarded packets wait in the queue when "+c.name+" is deleted", loss{
				in: r, n: losses, reasons: qdiscReasons, from: port(sender, lossFrom), protocol: unix.IPPROTO_UDP,
				prepare: func(t *testing.T) {
					r.discipline(t, "right", c.discipline)
					a.udp(t, x.b.sink(t, receiver), c.sent, 300)
				},
			}, func(t *testing.T) { sh(t, r, "tc qdisc del dev right root") })
		}

		// Packets that wait for a neighbour's address.
		for _, c := range []end{
			{"the link goes down", "", 20, linkDown},
			{"the device is deleted", "", 20, linkGone},
			{"the entry is deleted", "", 20, func(t *testing.T) { a.run(t, "ip", "neigh", "del", nobody.String(), "dev", "x0") }},
		} {
			x.lose(t, family+" packets wait for a neighbour when "+c.name, loss{
				in: a, n: uint64(c.sent), reasons: "QUEUE_PURGE NEIGH_FAILED NOT_SPECIFIED",
				from: src, to: port(nobody, lossTo), protocol: unix.IPPROTO_UDP, device: "x0", prepare: x.spare,
			}, func(t *testing.T) {
				a.udp(t, port(nobody, lossTo), c.sent, 10)
				c.do(t)
			})
		}

		x.lose(t, family+" the other end is down", loss{
			in: a, n: losses, reasons: qdiscReasons, from: src, to: dst, protocol: unix.IPPROTO_UDP, device: "x0",
			prepare: func(t *testing.T) {
				x.spare(t)
				x.b.run(t, "ip", "link", "set", "x1", "down")
				x.eventually("the device to notice", func() bool { return strings.Contains(sh(t, a, "ip link show x0"), "NO-CARRIER") })
			},
		}, func(t *testing.T) { a.udp(t, dst, losses, 10) })
		// The sender's call fails before a packet exists.
		x.lose(t, family+" the device is down", loss{in: a, n: losses, untold: true, prepare: func(t *testing.T) {
			x.spare(t)
			linkDown(t)
			a.run(t, "ip", "route", "add", "unreachable", to.String())
			t.Cleanup(func() { a.run(t, "ip", "route", "del", "unreachable", to.String()) })
		}}, func(t *testing.T) { a.udp(t, dst, losses, 10) })
	})
}

// qdiscReasons are the kernels' reasons for a loss in a qdisc: one common name,
// then names of some qdiscs, then those of a subsystem.
const qdiscReasons = "QDISC_DROP QDISC_OVERLIMIT FQ_FLOW_LIMIT FQ_BAND_LIMIT QDISC_DROP_GENERIC QDISC_DROP_OVERLIMIT QDISC_DROP_FLOW_LIMIT QUEUE_PURGE NOT_SPECIFIED"

// discipline configures a device's qdiscs for one case, root first.
func (n *namespace) discipline(t *testing.T, device string, tc ...string) {
	t.Helper()
	t.Cleanup(func() {
		_ = n.try(func() error { return exec.Command("tc", "qdisc", "del", "dev", device, "root").Run() })
	})
	for _, line := range tc {
		n.needRun(t, "tc qdisc add dev "+device+" "+line)
	}
}

// softnetDropped sums the dropped column of /proc/net/softnet_stat.
func softnetDropped(t *testing.T) (sum uint64) {
	t.Helper()
	data, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		v, err := strconv.ParseUint(strings.Fields(line)[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// TestLossRings loses packets between a driver and the stack.
func TestLossRings(t *testing.T) {
	x := newLossLab(t)
	x.b.steal(t, "eth0", false) // discards the packets that get through
	x.r.run(t, "ethtool", "-K", "right", "tso", "off")
	from, to := port(x.a.v4, lossFrom), port(x.b.v4, lossTo)
	// One packet that the router's device segments, so that all segments arrive at
	// once.
	burst := func(t *testing.T, segments int) {
		x.r.do(t, func() error {
			// A kernel may report to the sender that some were dropped.
			if err := sendSegments(from, to, segments); !errors.Is(err, unix.ENOBUFS) {
				return err
			}
			return nil
		})
	}
	if n := backlogLimit(t); n > 1500 {
		need.Kernel(t, false, fmt.Sprintf("net.core.netdev_max_backlog is %d, more than one packet has segments", n))
	}
	x.lose(t, "CPU backlog is full", loss{in: x.b, source: softnetDropped, reasons: "CPU_BACKLOG", from: from, to: to, protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
		burst(t, 2000)
	})
	// GRO gives the device a ring. Creating a ring makes the kernel free an empty
	// packet (netif_napi_add), which is not a loss.
	x.b.run(t, "ethtool", "-K", "eth0", "gro", "on")
	x.lose(t, "veth ring is full", loss{in: x.b, source: linkCount(x.r.namespace, "right", "tx.dropped"), reasons: "FULL_RING NOT_SPECIFIED", from: from, to: to, protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
		burst(t, 2000)
	})
}

// TestLossGroups: if a CPU's queue is full, frames to a joined group are lost;
// frames to other groups are ignored.
func TestLossGroups(t *testing.T) {
	x := newLossLab(t)
	if n := backlogLimit(t); n > 1500 {
		need.Kernel(t, false, fmt.Sprintf("net.core.netdev_max_backlog is %d, more than one packet has segments", n))
	}
	x.b.steal(t, "eth0", false) // discards the packets that get through
	x.r.run(t, "ethtool", "-K", "right", "tso", "off")
	from, to := port(x.a.v4, lossFrom), port(x.b.v4, lossTo)
	group := net.HardwareAddr{1, 0, 0x5e, 1, 2, 3}
	burst := func(t *testing.T) {
		x.r.do(t, func() error {
			if err := sendFrame(group, from, to, 2000); !errors.Is(err, unix.ENOBUFS) {
				return err
			}
			return nil
		})
	}
	source := softnetDropped
	unjoined := func(t *testing.T) {
		x.begin()
		before, dropped := x.dropped(), source(t)
		ignored, err := x.p.Ignored()
		if err != nil {
			t.Fatal(err)
		}
		burst(t)
		n := steady(func() uint64 { return source(t) - dropped })
		if n == 0 {
			t.Fatal("the queue was not full")
		}
		now, err := x.p.Ignored()
		if err != nil {
			t.Fatal(err)
		}
		seen := now[Unwanted] - ignored[Unwanted]
		if excused(t, "unwanted frames", n, seen) {
			return
		}
		if lost := x.lost(x.dropped()) - x.lost(before); lost > 0 || seen < n {
			t.Errorf("of %d frames that nobody asked for, %d count as lost and %d as unwanted", n, lost, seen)
		}
	}
	lost := func(t *testing.T, why string) {
		x.lose(t, why, loss{in: x.b, source: softnetDropped, reasons: "CPU_BACKLOG", from: from, to: to, protocol: unix.IPPROTO_TCP}, burst)
	}
	sighted(t, "nobody has joined", unjoined)
	// The group among others, and among too many to search.
	for _, others := range []int{0, 10, 40} {
		for i := range others {
			x.b.run(t, "ip", "maddress", "add", fmt.Sprintf("01:00:5e:02:00:%02x", i), "dev", "eth0")
		}
		if others == 10 {
			sighted(t, "others have been joined", unjoined)
		}
		x.b.run(t, "ip", "maddress", "add", group.String(), "dev", "eth0")
		lost(t, fmt.Sprintf("joined, with %d others", others))
		x.b.run(t, "ip", "maddress", "del", group.String(), "dev", "eth0")
		for i := range others {
			x.b.run(t, "ip", "maddress", "del", fmt.Sprintf("01:00:5e:02:00:%02x", i), "dev", "eth0")
		}
	}
	x.b.run(t, "ip", "link", "set", "eth0", "allmulticast", "on")
	lost(t, "a device that takes all groups")
	x.b.run(t, "ip", "link", "set", "eth0", "allmulticast", "off")
	sighted(t, "nobody has joined any more", unjoined)
	some := group
	group = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	lost(t, "to everybody")
	group = some
	x.b.run(t, "ethtool", "-K", "eth0", "gro", "on") // GRO gives the device a ring
	source = linkCount(x.r.namespace, "right", "tx.dropped")
	sighted(t, "nobody has joined, and a ring is full", unjoined)
}

// backlogLimit is the maximum length of a CPU's backlog.
func backlogLimit(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/net/core/netdev_max_backlog")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sendSegments sends one TCP packet through the device right, to be split into
// segments of 30 bytes. Its IP option prevents GRO.
func sendSegments(from, to netip.AddrPort, segments int) error {
	return sendFrame(routerMAC(2, 2), from, to, segments)
}

// sendFrame is sendSegments to a given hardware address.
func sendFrame(host net.HardwareAddr, from, to netip.AddrPort, segments int) error {
	l, err := netlink.LinkByName("right")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	vnet := []byte{1, 1} // checksum offload; TCP over IPv4
	for _, v := range []int{58, 30, 38, 16} {
		vnet = binary.NativeEndian.AppendUint16(vnet, uint16(v))
	}
	p := tcpSegment{flags: tcpACK, payload: make([]byte, 30*segments)}.packet(from, to)
	p = slices.Concat(p[:20], []byte{1, 1, 1, 1}, p[20:])
	p[0] = 0x46
	binary.BigEndian.PutUint16(p[ipv4Length:], uint16(len(p)))
	return unix.Sendto(fd, slices.Concat(vnet, ethernet(host, routerMAC(2, 1), checksummed(p))), 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
}
