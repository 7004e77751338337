package bpf

import (
	"net"
	"net/netip"
	"testing"
)

// TestLossRouter loses packets in a router, and packets of a sender whose
// neighbour does not answer.
func TestLossRouter(t *testing.T) {
	x := newLossLab(t)
	a, b, r := x.a, x.b, x.r.namespace
	addr := netip.MustParseAddr
	for _, f := range []struct {
		name, ip, mib           string
		noRoutes, tooBig        string
		prefix, via             string
		nowhere                 netip.Addr // an address without a route
		deadByRouter, deadByEnd netip.Addr // addresses without a host
		from, to                netip.Addr
		forwarding              string
		lifetime                int // offset of the TTL in the header
	}{
		{
			"IPv4", "ipv4", "Ip", "IpExt.InNoRoutes", "Ip.FragFails", "10.77.0.0/24", "10.132.0.1",
			addr("10.77.0.1"), addr("10.132.0.99"), addr("10.131.0.99"), a.v4, b.v4, "ipv4/conf/left/forwarding", ipv4TTL,
		},
		{
			"IPv6", "ipv6", "Ip6", "Ip6.InNoRoutes", "Ip6.InTooBigErrors", "fd77::/64", "fd32::1",
			addr("fd77::1"), addr("fd32::99"), addr("fd31::99"), a.v6, b.v6, "ipv6/conf/all/forwarding", ipv6HopLimit,
		},
	} {
		src, dst, nowhere := port(f.from, lossFrom), port(f.to, lossTo), port(f.nowhere, lossTo)
		// packet builds a packet from sender to receiver, with one byte changed.
		packet := func(size, at int, value byte) []byte {
			p := udpPacket(src, dst, make([]byte, size))
			p[at] = value
			if f.ip == "ipv4" {
				checksummed(p)
			}
			return p
		}
		x.lose(t, f.name+" time to live", loss{in: r, n: losses, source: mib(r, f.mib+".InHdrErrors"), reasons: "IP_INHDR", from: src, to: dst, device: "left"}, func(t *testing.T) {
			x.toRouter(t, timesOf(losses, packet(10, f.lifetime, 1))...)
		})
		x.lose(t, f.name+" no route", loss{in: r, n: losses, source: mib(r, f.noRoutes), reasons: "IP_INNOROUTES", from: src, to: nowhere, device: "left"}, func(t *testing.T) {
			a.udp(t, nowhere, losses, 10)
		})
		for _, kind := range []string{"blackhole", "unreachable", "prohibit"} {
			x.lose(t, f.name+" route "+kind, loss{in: r, n: losses, reasons: "IP_INNOROUTES NOT_SPECIFIED", from: src, to: nowhere, prepare: func(t *testing.T) {
				r.run(t, "ip", "route", "add", kind, f.prefix)
				t.Cleanup(func() { r.run(t, "ip", "route", "del", kind, f.prefix) })
			}}, func(t *testing.T) { a.udp(t, nowhere, losses, 10) })
		}
		// The sender's call fails before a packet exists.
		x.lose(t, f.name+" no route at the sender", loss{in: b, n: losses, source: mib(b, f.mib+".OutNoRoutes"), untold: true, prepare: func(t *testing.T) {
			b.run(t, "ip", "route", "del", "default", "via", f.via)
			t.Cleanup(func() { b.run(t, "ip", "route", "add", "default", "via", f.via) })
		}}, func(t *testing.T) { b.udp(t, nowhere, losses, 10) })
		x.lose(t, f.name+" forwarding is off", loss{in: r, n: losses, reasons: "IP_INADDRERRORS", from: src, to: dst, prepare: func(t *testing.T) {
			r.setting(t, f.forwarding, "0")
		}}, func(t *testing.T) { a.udp(t, dst, losses, 10) })

		narrow := func(t *testing.T) {
			r.run(t, "ip", "link", "set", "right", "mtu", "1300")
			t.Cleanup(func() { r.run(t, "ip", "link", "set", "right", "mtu", "1500") })
		}
		x.lose(t, f.name+" packet too big", loss{in: r, n: losses, source: mib(r, f.tooBig), reasons: "PKT_TOO_BIG", from: src, to: dst, prepare: narrow}, func(t *testing.T) {
			p := packet(1350, f.lifetime, 64)
			if f.ip == "ipv4" {
				p = packet(1350, ipv4Fragment, 0x40) // don't fragment
			}
			x.toRouter(t, timesOf(losses, p)...)
		})
		if f.ip == "ipv4" {
			// Without that flag the router fragments, and loses nothing.
			var server *net.UDPConn
			x.lose(t, f.name+" packet too big, fragmented", loss{in: r, n: 2 * losses, source: mib(r, "Ip.FragCreates"), untold: true, prepare: func(t *testing.T) {
				narrow(t)
				server = b.listenUDP(t, f.to)
			}}, func(t *testing.T) {
				x.toRouter(t, timesOf(losses, udpPacket(src, addrPort(server.LocalAddr()), make([]byte, 1350)))...)
				for range losses {
					if n, err := server.Read(make([]byte, 2000)); n != 1350 {
						t.Fatalf("%d bytes: %v", n, err)
					}
				}
			})
		}

		for _, c := range []struct {
			where  string
			in     *namespace
			device string
			dead   netip.Addr
		}{{"router", r, "right", f.deadByRouter}, {"sender", a, "eth0", f.deadByEnd}} {
			want := loss{in: c.in, n: losses, reasons: "NEIGH_QUEUEFULL NEIGH_FAILED NOT_SPECIFIED", from: src, to: port(c.dead, lossTo), device: c.device}
			table := f.ip + "/neigh/" + c.device
			want.prepare = func(t *testing.T) { c.in.setting(t, table+"/retrans_time_ms", "50") }
			x.lose(t, f.name+" neighbour of the "+c.where+" does not answer", want, func(t *testing.T) { a.udp(t, port(c.dead, lossTo), losses, 10) })
			// The neighbour's queue holds a few packets, by total size; further
			// packets evict the oldest, and the remaining ones are lost when the
			// neighbour does not answer.
			want.prepare = func(t *testing.T) {
				c.in.run(t, "ip", "neigh", "flush", "dev", c.device, "nud", "failed", "nud", "incomplete")
				c.in.setting(t, table+"/retrans_time_ms", "100")
				c.in.setting(t, table+"/unres_qlen_bytes", "5000")
			}
			x.lose(t, f.name+" too many packets for a neighbour of the "+c.where, want, func(t *testing.T) { a.udp(t, port(c.dead, lossTo), losses, 10) })
		}
	}
}
