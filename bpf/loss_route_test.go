package bpf

import (
	"net"
	"net/netip"
	"testing"
)

// TestLossRouter loses packets on their way through a router.
func TestLossRouter(t *testing.T) {
	x := newLossLab(t)
	r := x.r.namespace
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		six := family == "IPv6"
		ip := "Ip"
		prefix, nowhere, neighbour := "10.77.0.0/24", netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.132.0.99")
		if six {
			ip = "Ip6"
			prefix, nowhere, neighbour = "fd77::/64", netip.MustParseAddr("fd77::1"), netip.MustParseAddr("fd32::99")
		}
		src := port(from, lossFrom)
		// The header's lifetime ends here.
		expired := udpPacket(src, port(to, lossTo), []byte("payload"))
		if six {
			expired[ipv6HopLimit] = 1
		} else {
			expired[ipv4TTL] = 1
			checksummed(expired)
		}
		x.lose(t, family+" TTL", loss{in: r, n: losses, source: mib(r, ip+".InHdrErrors"), reasons: "IP_INHDR NOT_SPECIFIED", from: src, to: port(to, lossTo), device: "left"}, func(t *testing.T) {
			x.toRouter(t, timesOf(losses, expired)...)
		})
		noRoutes := mib(r, "IpExt.InNoRoutes")
		if six {
			noRoutes = mib(r, "Ip6.InNoRoutes")
		}
		x.lose(t, family+" no route", loss{in: r, n: losses, source: noRoutes, reasons: "IP_INNOROUTES", from: src, to: port(nowhere, lossTo), device: "left"}, func(t *testing.T) {
			x.a.udp(t, port(nowhere, lossTo), losses, 10)
		})
		for _, kind := range []string{"blackhole", "unreachable", "prohibit"} {
			x.lose(t, family+" route "+kind, loss{in: r, n: losses, reasons: "IP_INNOROUTES NOT_SPECIFIED IP_INADDRERRORS", from: src, to: port(nowhere, lossTo)}, func(t *testing.T) {
				r.run(t, "ip", "route", "add", kind, prefix)
				t.Cleanup(func() { r.run(t, "ip", "route", "del", kind, prefix) })
				x.a.udp(t, port(nowhere, lossTo), losses, 10)
			})
		}
		// What has no route is refused before there is a packet.
		x.lose(t, family+" no route at the sender", loss{in: x.b, n: losses, source: mib(x.b, ip+".OutNoRoutes"), untold: true}, func(t *testing.T) {
			x.b.run(t, "ip", map[bool]string{false: "-4", true: "-6"}[six], "route", "del", "default")
			t.Cleanup(func() {
				via := "10.132.0.1"
				if six {
					via = "fd32::1"
				}
				x.b.run(t, "ip", "route", "add", "default", "via", via)
			})
			x.b.udp(t, port(nowhere, lossTo), losses, 10)
		})
		x.lose(t, family+" forwarding off", loss{in: r, n: losses, reasons: "IP_INADDRERRORS NOT_SPECIFIED", from: src, to: port(to, lossTo)}, func(t *testing.T) {
			if six {
				r.setting(t, "ipv6/conf/all/forwarding", "0")
			} else {
				r.setting(t, "ipv4/conf/left/forwarding", "0")
			}
			x.a.udp(t, port(to, lossTo), losses, 10)
		})
		fails := mib(r, "Ip.FragFails")
		if six {
			fails = mib(r, "Ip6.InTooBigErrors")
		}
		x.lose(t, family+" MTU", loss{in: r, n: losses, source: fails, reasons: "PKT_TOO_BIG NOT_SPECIFIED", from: src, to: port(to, lossTo)}, func(t *testing.T) {
			sh(t, r, "ip link set right mtu 1300")
			t.Cleanup(func() { sh(t, r, "ip link set right mtu 1500") })
			p := udpPacket(src, port(to, lossTo), make([]byte, 1350))
			if !six {
				p[ipv4Fragment] = 0x40
				checksummed(p)
			}
			x.toRouter(t, timesOf(losses, p)...)
		})
		if !six {
			// Without the flag the router cuts the packet up, and nothing is lost.
			var server *net.UDPConn
			x.lose(t, family+" MTU without DF", loss{in: r, n: 2 * losses, source: mib(r, "Ip.FragCreates"), untold: true, prepare: func(t *testing.T) {
				r.needRun(t, "ip link set right mtu 1300")
				t.Cleanup(func() { sh(t, r, "ip link set right mtu 1500") })
				server = x.b.listenUDP(t, to)
			}}, func(t *testing.T) {
				x.toRouter(t, timesOf(losses, udpPacket(src, addrPort(server.LocalAddr()), make([]byte, 1350)))...)
				for range losses {
					if n, err := server.Read(make([]byte, 2000)); n != 1350 {
						t.Fatalf("%d bytes: %v", n, err)
					}
				}
			})
		}
		// Neighbours that never answer.
		table := map[bool]string{false: "ipv4", true: "ipv6"}[six] + "/neigh/"
		for _, c := range []struct {
			name   string
			in     *namespace
			device string
			to     netip.Addr
		}{
			{"at the router", r, "right", neighbour},
			{"at the sender", x.a, "eth0", map[bool]netip.Addr{false: netip.MustParseAddr("10.131.0.99"), true: netip.MustParseAddr("fd31::99")}[six]},
		} {
			x.lose(t, family+" neighbour does not answer "+c.name, loss{in: c.in, n: losses, reasons: "NEIGH_FAILED NOT_SPECIFIED", device: c.device, to: port(c.to, lossTo)}, func(t *testing.T) {
				c.in.setting(t, table+c.device+"/retrans_time_ms", "50")
				x.a.udp(t, port(c.to, lossTo), losses, 10)
			})
			// 10 packets fit, by their whole size; each of the others drives out the oldest.
			x.lose(t, family+" neighbour's queue is full "+c.name, loss{in: c.in, n: losses, reasons: "NEIGH_QUEUEFULL NEIGH_FAILED NOT_SPECIFIED", device: c.device, to: port(c.to, lossTo)}, func(t *testing.T) {
				c.in.run(t, "ip", "neigh", "flush", "dev", c.device, "nud", "failed", "nud", "incomplete")
				c.in.setting(t, table+c.device+"/retrans_time_ms", "100")
				c.in.setting(t, table+c.device+"/unres_qlen_bytes", "5000")
				x.a.udp(t, port(c.to, lossTo), losses, 10)
			})
		}
	})
}
