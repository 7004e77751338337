package bpf

import (
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// spare makes a device x0 in a, whose other end is x1 in b, for cases that the
// devices on the way would not survive. Both ends know each other.
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
	x.a.configure(t, "x0", routerMAC(3, 2), []netip.Prefix{netip.PrefixFrom(f4, 24), netip.PrefixFrom(f6, 64)}, t4, t6)
}

// spareAddrs are x0's and x1's.
func spareAddrs(six bool) (from, to, nobody netip.Addr) {
	p := "10.131.3."
	if six {
		p = "fd31:3::"
	}
	return netip.MustParseAddr(p + "1"), netip.MustParseAddr(p + "2"), netip.MustParseAddr(p + "99")
}

// rootDrops is what the root of a device's queueing disciplines dropped.
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

// waiting is how many packets a device's queueing discipline holds.
func (n *namespace) waiting(t *testing.T, device string) uint64 {
	t.Helper()
	for _, part := range strings.Split(n.run(t, "tc", "-s", "qdisc", "show", "dev", device), "qdisc ") {
		if strings.Contains(part, " root ") {
			return number(t, part, `backlog \S+ (\d+)p`)
		}
	}
	return 0
}

func TestLossQueues(t *testing.T) {
	x := newLossLab(t)
	a := x.a
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		six := family == "IPv6"
		from, to, nobody := spareAddrs(six)
		src, dst := port(from, lossFrom), port(to, lossTo)
		// An open port, for what gets through.
		open := func(t *testing.T) netip.AddrPort {
			c := x.b.listenUDP(t, to)
			go func() {
				for b := make([]byte, 2000); ; {
					if _, err := c.Read(b); err != nil {
						return
					}
				}
			}()
			return addrPort(c.LocalAddr())
		}
		// still makes x0 keep what it is to send: one packet goes out.
		still := func(t *testing.T) {
			// The bucket is for one datagram, and for reports of the device itself.
			a.run(t, "tc", "qdisc", "replace", "dev", "x0", "root", "handle", "1:", "tbf", "rate", "8bit", "burst", "650", "limit", "100000")
		}
		const overlimit = "QDISC_DROP QDISC_DROP_OVERLIMIT OVERLIMIT QDISC_DROP_GENERIC GENERIC NOT_SPECIFIED"
		x.spare(t)
		x.quiet()
		for _, c := range []struct {
			name string
			tc   [][]string
			sent int
		}{
			{"pfifo behind tbf", [][]string{{"root", "handle", "1:", "tbf", "rate", "8bit", "burst", "200", "limit", "100000"}, {"parent", "1:1", "pfifo", "limit", "5"}}, 31},
			{"bfifo behind tbf", [][]string{{"root", "handle", "1:", "tbf", "rate", "8bit", "burst", "200", "limit", "100000"}, {"parent", "1:1", "bfifo", "limit", "600"}}, 31},
			{"tbf", [][]string{{"root", "handle", "1:", "tbf", "rate", "8bit", "burst", "200", "limit", "600"}}, 31},
			{"fq_codel behind tbf", [][]string{{"root", "handle", "1:", "tbf", "rate", "8bit", "burst", "200", "limit", "100000"}, {"parent", "1:1", "fq_codel", "limit", "10"}}, 40},
			{"fq behind tbf", [][]string{{"root", "handle", "1:", "tbf", "rate", "8bit", "burst", "200", "limit", "100000"}, {"parent", "1:1", "fq", "limit", "10"}}, 40},
			{"sfq behind tbf", [][]string{{"root", "handle", "1:", "tbf", "rate", "8bit", "burst", "200", "limit", "100000"}, {"parent", "1:1", "sfq", "limit", "10"}}, 40},
			{"netem", [][]string{{"root", "handle", "1:", "netem", "loss", "100%"}}, losses},
		} {
			x.lose(t, family+" "+c.name, loss{in: a, source: rootDrops(a, "x0"), reasons: overlimit + " QDISC_DROP_FLOW_LIMIT FQ_FLOW_LIMIT", from: src, protocol: unix.IPPROTO_UDP, device: "x0"}, func(t *testing.T) {
				t.Cleanup(func() {
					_ = a.try(func() error { return exec.Command("tc", "qdisc", "del", "dev", "x0", "root").Run() })
				})
				for _, line := range c.tc {
					a.needRun(t, "tc qdisc add dev x0 "+strings.Join(line, " "))
				}
				port := open(t)
				a.udp(t, port, c.sent, 50)
			})
		}
		a.run(t, "ip", "link", "del", "x0")
		// Packets that wait when their queue goes.
		for _, c := range []struct {
			name string
			undo func(t *testing.T)
		}{
			{"the queue is replaced", func(t *testing.T) { a.run(t, "tc", "qdisc", "replace", "dev", "x0", "root", "handle", "2:", "pfifo") }},
			{"the queue is deleted", func(t *testing.T) { a.run(t, "tc", "qdisc", "del", "dev", "x0", "root") }},
			{"the link goes down", func(t *testing.T) { a.run(t, "ip", "link", "set", "x0", "down") }},
			{"the device is deleted", func(t *testing.T) { a.run(t, "ip", "link", "del", "x0") }},
		} {
			x.lose(t, family+" packets wait in the queue when "+c.name, loss{in: a, n: losses, reasons: "QDISC_DROP QUEUE_PURGE NOT_SPECIFIED", from: src, protocol: unix.IPPROTO_UDP}, func(t *testing.T) {
				x.spare(t)
				still(t)
				open := open(t)
				a.udp(t, open, losses+1, 300)
				if n := a.waiting(t, "x0"); n != losses && n != losses+1 { // a report may be among them
					t.Fatalf("%d packets wait", n)
				}
				c.undo(t)
			})
		}
		for _, c := range []struct {
			name string
			undo func(t *testing.T)
		}{
			{"the link goes down", func(t *testing.T) { a.run(t, "ip", "link", "set", "x0", "down") }},
			{"the entry is deleted", func(t *testing.T) { a.run(t, "ip", "neigh", "del", nobody.String(), "dev", "x0") }},
			{"the device is deleted", func(t *testing.T) { a.run(t, "ip", "link", "del", "x0") }},
		} {
			x.lose(t, family+" packets wait for a neighbour when "+c.name, loss{in: a, n: 20, reasons: "QUEUE_PURGE NEIGH_FAILED NOT_SPECIFIED", from: src, to: port(nobody, lossTo), protocol: unix.IPPROTO_UDP, device: "x0"}, func(t *testing.T) {
				x.spare(t)
				a.udp(t, port(nobody, lossTo), 20, 10)
				c.undo(t)
			})
		}
		x.lose(t, family+" the other end is down", loss{in: a, n: losses, reasons: "QDISC_DROP NOT_SPECIFIED QDISC_DROP_GENERIC GENERIC DEV_READY", from: src, to: dst, protocol: unix.IPPROTO_UDP, device: "x0"}, func(t *testing.T) {
			x.spare(t)
			x.b.run(t, "ip", "link", "set", "x1", "down")
			within(func() bool { return strings.Contains(a.run(t, "ip", "link", "show", "x0"), "qdisc noop") })
			if six {
				a.run(t, "ip", "-6", "route", "replace", "fd31:3::/64", "dev", "x0")
			}
			a.udp(t, dst, losses, 10)
		})
		// The sender hears that there is no way, before there is a packet.
		x.lose(t, family+" the device is down", loss{in: a, n: losses, untold: true, from: src, to: dst}, func(t *testing.T) {
			x.spare(t)
			a.run(t, "ip", "link", "set", "x0", "down")
			a.run(t, "ip", "route", "add", "unreachable", to.String())
			t.Cleanup(func() { a.run(t, "ip", "route", "del", "unreachable", to.String()) })
			a.udp(t, dst, losses, 10)
		})
	})
}

// softnetDropped is the column of /proc/net/softnet_stat.
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

func TestLossRings(t *testing.T) {
	x := newLossLab(t)
	// What gets through is taken by a filter, without a word.
	taker := verdict(t, ebpf.SchedCLS, 4 /* TC_ACT_STOLEN */)
	x.b.run(t, "tc", "qdisc", "add", "dev", "eth0", "clsact")
	x.b.attach(t, "eth0", netlink.HANDLE_MIN_INGRESS, taker)
	x.r.run(t, "ethtool", "-K", "right", "tso", "off")
	from, to := port(x.a.v4, lossFrom), port(x.b.v4, lossTo)
	// One packet that the router's device cuts into segments, so that all of
	// them reach the other end at once.
	burst := func(t *testing.T, segments int) {
		x.r.do(t, func() error { return sendSegments(from, to, segments) })
	}
	x.lose(t, "CPU backlog is full", loss{in: x.b, source: softnetDropped, reasons: "CPU_BACKLOG", from: from, to: to, protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
		burst(t, 2000)
	})
	// The device gets a ring with GRO. Each ring that is made costs the kernel
	// an empty packet (netif_napi_add), which nobody loses.
	x.b.run(t, "ethtool", "-K", "eth0", "gro", "on")
	x.lose(t, "veth ring is full", loss{in: x.b, source: linkCount(x.r.namespace, "right", "tx.dropped"), reasons: "FULL_RING NOT_SPECIFIED", from: from, to: to, protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
		burst(t, 2000)
	})
}

// sendSegments sends one TCP packet through the device right that has to be cut
// into so many segments of 30 bytes. It has an IP option, with which GRO leaves
// it alone.
func sendSegments(from, to netip.AddrPort, segments int) error {
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
	vnet := []byte{1, 1} // the checksum is to be filled in; TCP over IPv4
	for _, v := range []int{58, 30, 38, 16} {
		vnet = binary.NativeEndian.AppendUint16(vnet, uint16(v))
	}
	p := tcpSegment{flags: tcpACK, payload: make([]byte, 30*segments)}.packet(from, to)
	p = slices.Concat(p[:20], []byte{1, 1, 1, 1}, p[20:])
	p[0] = 0x46
	binary.BigEndian.PutUint16(p[ipv4Length:], uint16(len(p)))
	return unix.Sendto(fd, slices.Concat(vnet, ethernet(routerMAC(2, 2), routerMAC(2, 1), checksummed(p))), 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
}
