package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// TestLossBridge loses frames in the router's bridge. Its ports are p1, whose peer
// is p0 in a, and q1 with q0 in b.
func TestLossBridge(t *testing.T) {
	x := newLossLab(t)
	r := x.r.namespace
	for i, c := range []struct {
		n         *namespace
		end, port string
	}{{x.a, "p0", "p1"}, {x.b, "q0", "q1"}} {
		c.n.run(t, "ip", "link", "add", c.end, "address", fmt.Sprintf("02:00:00:00:05:0%d", i+1), "type", "veth", "peer", "name", c.port, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(r.handle)))
		c.n.run(t, "ip", "link", "set", c.end, "multicast", "off", "up")
	}
	r.run(t, "ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
	for _, d := range []string{"br0", "p1", "q1"} {
		if d != "br0" {
			r.run(t, "ip", "link", "set", d, "master", "br0")
		}
		r.run(t, "ip", "link", "set", d, "multicast", "off", "up")
	}
	r.run(t, "bridge", "fdb", "add", "02:00:00:00:05:02", "dev", "q1", "master", "static")
	x.eventually("the ports to forward", func() bool {
		return strings.Contains(r.run(t, "ip", "-d", "link", "show", "dev", "p1"), " state forwarding ") && strings.Contains(r.run(t, "ip", "-d", "link", "show", "dev", "q1"), " state forwarding ")
	})
	x.quiet()
	known, unknown := routerMAC(5, 2), routerMAC(5, 9)
	from, to := port(x.a.v4, lossFrom), port(x.b.v4, lossTo)
	for _, c := range []struct {
		name    string
		do      []string
		undo    []string
		mac     []byte
		class   DropClass
		reasons string
	}{
		{"blocked port", []string{"bridge link set dev p1 state 0"}, []string{"bridge link set dev p1 state 3"}, known, 0, "NOT_SPECIFIED BRIDGE_INGRESS_STP_STATE"},
		{"blocked way out", []string{"bridge link set dev q1 state 0"}, []string{"bridge link set dev q1 state 3"}, known, 0, "NOT_SPECIFIED NO_TX_TARGET"},
		{"isolated ports", []string{"bridge link set dev p1 isolated on", "bridge link set dev q1 isolated on"}, []string{"bridge link set dev p1 isolated off", "bridge link set dev q1 isolated off"}, known, 0, "NOT_SPECIFIED NO_TX_TARGET"},
		{"unknown address, no flooding", []string{"bridge link set dev q1 flood off"}, []string{"bridge link set dev q1 flood on"}, unknown, 0, "NOT_SPECIFIED NO_TX_TARGET"},
		{"VLAN that the port does not have", []string{"ip link set br0 type bridge vlan_filtering 1", "bridge vlan del dev p1 vid 1"}, []string{"ip link set br0 type bridge vlan_filtering 0", "bridge vlan add dev p1 vid 1 pvid untagged"}, known, 0, "NOT_SPECIFIED"},
	} {
		x.lose(t, "bridge: "+c.name, loss{in: r, n: losses, class: c.class, reasons: c.reasons, from: from, to: to}, func(t *testing.T) {
			for i, line := range c.do {
				r.needRun(t, line)
				t.Cleanup(func() { sh(t, r, "%s", c.undo[i]) })
			}
			x.a.inject(t, "p0", timesOf(losses, ethernet(c.mac, routerMAC(5, 1), udpPacket(from, to, []byte("payload"))))...)
		})
	}
	for _, hook := range []string{"prerouting", "forward", "postrouting"} {
		var also []DropClass
		if hook == "prerouting" && len(x.reasons.drop) == 0 {
			// On Linux 5.10 the bridge itself runs the rules of this hook, so a
			// function of the bridge drops the packet.
			also = []DropClass{DropAbnormal}
		}
		x.lose(t, "bridge: nft "+hook, loss{in: r, n: losses, source: nftCount(r), class: DropNetfilter, also: also, reasons: "NETFILTER_DROP", from: from, to: to, prepare: func(t *testing.T) {
			r.ruleset(t, "add table bridge t; add chain bridge t c { type filter hook "+hook+" priority 0; }; add rule bridge t c udp dport 9 counter drop")
		}}, func(t *testing.T) {
			x.a.inject(t, "p0", timesOf(losses, ethernet(known, routerMAC(5, 1), udpPacket(from, to, []byte("payload"))))...)
		})
	}
}

// unreadTap creates a tap device whose descriptor is never read.
func (n *namespace) unreadTap(t *testing.T, name string) {
	t.Helper()
	n.do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		var request [40]byte
		copy(request[:15], name)
		*(*uint16)(unsafe.Pointer(&request[16])) = unix.IFF_TAP | unix.IFF_NO_PI
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request[0]))); errno != 0 {
			return fmt.Errorf("make a tap device: %w", errno)
		}
		return nil
	})
}

// TestLossDevices loses packets in drivers, and because of a device's
// configuration.
func TestLossDevices(t *testing.T) {
	x := newLossLab(t)
	b := x.b
	b.unreadTap(t, "tap0")
	b.unicastOnly(t, "tap0")
	for _, line := range []string{
		"ip link set tap0 txqueuelen 5 multicast off up", "ip addr add 10.131.4.1/24 dev tap0", "ip addr add fd31:4::1/64 dev tap0 nodad",
		"ip neigh add 10.131.4.2 lladdr 02:00:00:00:04:02 dev tap0 nud permanent", "ip neigh add fd31:4::2 lladdr 02:00:00:00:04:02 dev tap0 nud permanent",
	} {
		sh(t, b, "%s", line)
	}
	for family, to := range map[string]string{"IPv4": "10.131.4.2", "IPv6": "fd31:4::2"} {
		to := port(netip.MustParseAddr(to), lossTo)
		// The ring is full from the first case on.
		x.lose(t, family+" tap that nobody reads", loss{in: b, source: linkCount(b, "tap0", "tx.dropped"), reasons: "FULL_RING NOT_SPECIFIED", to: to, device: "tap0"}, func(t *testing.T) {
			b.udp(t, to, 30, 10)
		})
	}
}

// TestLossConntrack loses packets because the table is full or has no entry for
// them.
func TestLossConntrack(t *testing.T) {
	x := newLossLab(t)
	b := x.b
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		x.lose(t, family+" conntrack invalid", loss{in: b, n: losses, source: nftCount(b), class: DropNetfilter, reasons: "NETFILTER_DROP", from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_TCP, prepare: func(t *testing.T) {
			b.ruleset(t, "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c ct state invalid counter drop")
		}}, func(t *testing.T) {
			x.toReceiver(t, timesOf(losses, tcpSegment{flags: tcpSYN | tcpRST}.packet(port(from, lossFrom), port(to, lossTo)))...)
		})
		x.lose(t, family+" conntrack table is full", loss{in: b, n: losses, source: conntrackDrops(b), class: DropNetfilter, reasons: "NETFILTER_DROP", from: port(from, lossFrom), protocol: unix.IPPROTO_UDP, prepare: func(t *testing.T) {
			need.VM(t, need.InVM(), "a limit on connections that all namespaces share")
			b.ruleset(t, "add table inet t; add chain inet t c { type filter hook prerouting priority 0; }; add rule inet t c ct state new accept")
			// Connections that are not evicted to make room.
			for range 12 {
				connect(t, x.a, b, to)
			}
			const limit = "/proc/sys/net/netfilter/nf_conntrack_max"
			old, err := os.ReadFile(limit)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.WriteFile(limit, old, 0) })
			if err := os.WriteFile(limit, []byte("10"), 0); err != nil {
				t.Fatal(err)
			}
		}}, func(t *testing.T) {
			for i := range losses {
				x.toReceiver(t, udpPacket(port(from, lossFrom), port(to, uint16(5000+i)), []byte("payload")))
			}
		})
	})
}

// conntrackDrops reads a column of /proc/net/stat/nf_conntrack.
func conntrackDrops(n *namespace) func(*testing.T) uint64 {
	return func(t *testing.T) (sum uint64) {
		t.Helper()
		n.do(t, func() error {
			data, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
			if err != nil {
				return nil // no entry yet
			}
			at := -1
			for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
				for j, f := range strings.Fields(line) {
					if i == 0 && f == "drop" {
						at = j
					}
					if i > 0 && j == at {
						v, err := strconv.ParseUint(f, 16, 64)
						if err != nil {
							return err
						}
						sum += v
					}
				}
			}
			return nil
		})
		return sum
	}
}
