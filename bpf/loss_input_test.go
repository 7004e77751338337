package bpf

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// routeCache adds up a column of /proc/net/stat/rt_cache, where the kernel
// counts packets with impossible addresses.
func routeCache(n *namespace, column string) func(*testing.T) uint64 {
	return func(t *testing.T) (sum uint64) {
		t.Helper()
		n.do(t, func() error {
			data, err := os.ReadFile("/proc/thread-self/net/stat/rt_cache")
			if err != nil {
				return err
			}
			at := -1
			for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
				for j, f := range strings.Fields(line) {
					if i == 0 && f == column {
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

// TestLossMalformed gives a host packets that it cannot take.
func TestLossMalformed(t *testing.T) {
	x := newLossLab(t)
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		six := family == "IPv6"
		src, dst := port(from, lossFrom), port(to, lossTo)
		server := x.b.listenUDP(t, to)
		open := addrPort(server.LocalAddr())
		ip, icmp, udp := "Ip", "Icmp", "Udp"
		if six {
			ip, icmp, udp = "Ip6", "Icmp6", "Udp6"
		}
		type malformed struct {
			name, source, reasons string
			class                 DropClass
			functions             string
			packet                []byte
			only                  string
		}
		header := func(f func(p []byte)) []byte {
			p := udpPacket(src, dst, []byte("payload"))
			f(p)
			return p
		}
		headerErrors, truncated := ip+".InHdrErrors", "IpExt.InTruncatedPkts"
		if six {
			truncated = "Ip6.InTruncatedPkts"
		}
		for _, c := range []malformed{
			{name: "IP header checksum", only: "IPv4", source: "IpExt.InCsumErrors", reasons: "IP_CSUM", functions: "ip_rcv_core ip_rcv", packet: header(func(p []byte) { p[ipv4Checksum] ^= 1 })},
			{name: "IP version", source: headerErrors, reasons: "IP_INHDR UNHANDLED_PROTO", functions: "ip_rcv_core ip_rcv ip6_rcv_core ipv6_rcv ip6_rcv_core.constprop.0 ip6_rcv_core.isra.0 ip_rcv_core.isra.0", packet: nil},
			{name: "IP header length", only: "IPv4", source: headerErrors, reasons: "IP_INHDR", packet: header(func(p []byte) { p[0] = 0x44 })},
			{name: "IP header cut off", source: headerErrors, reasons: "IP_INHDR", packet: header(func(p []byte) {})[:12]},
			{name: "IP length beyond the frame", source: truncated, reasons: "PKT_TOO_SMALL", packet: func() []byte {
				p := udpPacket(src, dst, make([]byte, 64))
				return p[:len(p)-30]
			}()},
			{name: "UDP header cut off", source: udp + ".InErrors", reasons: "NOT_SPECIFIED PKT_TOO_SMALL UDP_CSUM", packet: ipPacket(from, to, unix.IPPROTO_UDP, []byte{1, 2, 3})},
			{name: "UDP length beyond the packet", source: udp + ".InErrors", reasons: "PKT_TOO_SMALL", packet: func() []byte {
				b := udpDatagram(src, dst, []byte("payload"))
				b[5] = 200
				return ipPacket(from, to, unix.IPPROTO_UDP, b)
			}()},
			{name: "TCP header cut off", source: "", class: DropTCPRcv, reasons: "PKT_TOO_SMALL NOT_SPECIFIED", packet: ipPacket(from, to, unix.IPPROTO_TCP, make([]byte, 9))},
			{name: "TCP header length", source: "Tcp.InErrs", class: DropTCPRcv, reasons: "PKT_TOO_SMALL", packet: ipPacket(from, to, unix.IPPROTO_TCP, make([]byte, 40))},
			{name: "UDP checksum", source: udp + ".InCsumErrors", reasons: "UDP_CSUM", functions: "__udp4_lib_rcv __udp6_lib_rcv udp_rcv udpv6_rcv", packet: damage(udpPacket(src, open, []byte("payload")), udpChecksum)},
			{name: "TCP checksum", source: "Tcp.InCsumErrors", class: DropTCPRcv, reasons: "TCP_CSUM", functions: "tcp_v4_rcv tcp_v6_rcv", packet: damage(tcpSegment{flags: tcpSYN}.packet(src, dst), tcpChecksum)},
			{name: "ICMP checksum", source: icmp + ".InCsumErrors", reasons: "ICMP_CSUM", functions: "icmp_rcv icmpv6_rcv", packet: damage(echo(from, to, false, []byte("payload")), icmpChecksum)},
			{name: "unknown protocol", source: ip + ".InUnknownProtos", reasons: "IP_NOPROTO UNHANDLED_PROTO", packet: ipPacket(from, to, 253, []byte("payload of more than eight bytes"))},
			{name: "no next header", only: "IPv6", source: "", reasons: "", packet: nil},
		} {
			if c.only != "" && c.only != family || c.name == "no next header" {
				continue
			}
			if c.name == "IP version" {
				p := udpPacket(src, dst, []byte("payload"))
				p[0] = p[0]&15 | 0x50
				x.lose(t, family+" "+c.name, loss{in: x.b, n: losses, source: mib(x.b, c.source), reasons: c.reasons, device: "eth0"}, func(t *testing.T) {
					f := ethernet(routerMAC(2, 2), routerMAC(2, 1), p)
					binary.BigEndian.PutUint16(f[12:], map[bool]uint16{false: unix.ETH_P_IP, true: unix.ETH_P_IPV6}[six])
					x.r.inject(t, "right", times(losses, f)...)
				})
				continue
			}
			var source func(*testing.T) uint64
			if c.source != "" {
				source = mib(x.b, c.source)
			}
			x.lose(t, family+" "+c.name, loss{in: x.b, n: losses, source: source, class: c.class, reasons: c.reasons, functions: c.functions, device: "eth0"}, func(t *testing.T) {
				x.toReceiver(t, times(losses, c.packet)...)
			})
		}

		// The checksum of a large datagram is looked at when it is read.
		x.lose(t, family+" UDP checksum found by the reader", loss{
			in: x.b, n: losses, source: mib(x.b, udp+".InCsumErrors"), reasons: "UDP_CSUM NOT_SPECIFIED",
			from: src, to: open, protocol: unix.IPPROTO_UDP,
		}, func(t *testing.T) {
			x.toReceiver(t, times(losses, damage(udpPacket(src, open, make([]byte, 1000)), 8+500))...)
			x.toReceiver(t, udpPacket(src, open, []byte("good")))
			b := make([]byte, 2000)
			x.b.do(t, func() error {
				if n, err := server.Read(b); err != nil || n != 4 {
					t.Errorf("read %d bytes: %v", n, err)
				}
				return nil
			})
		})
		x.lose(t, family+" ethertype", loss{in: x.b, n: losses, source: linkCount(x.b, "eth0", "rx.dropped"), reasons: "UNHANDLED_PROTO"}, func(t *testing.T) {
			f := ethernet(routerMAC(2, 2), routerMAC(2, 1), header(func([]byte) {}))
			f[12], f[13] = 0x88, 0xb5
			x.r.inject(t, "right", times(losses, f)...)
		})
	})
}

// TestLossAddresses gives a host packets whose addresses it refuses.
func TestLossAddresses(t *testing.T) {
	x := newLossLab(t)
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name     string
		from, to string
		source   func(*testing.T) uint64
		reasons  string
	}{
		{"IPv4 for another host", "10.131.0.1", "10.132.0.77", mib(x.b, "Ip.InAddrErrors"), "IP_INADDRERRORS"},
		{"IPv6 for another host", "fd31::1", "fd32::77", nil, "IP_INADDRERRORS NOT_SPECIFIED"},
		{"IPv4 from itself", "10.132.0.2", "10.132.0.2", routeCache(x.b, "in_martian_src"), "NOT_SPECIFIED IP_LOCAL_SOURCE"},
		{"IPv4 from loopback", "127.0.0.1", "10.132.0.2", routeCache(x.b, "in_martian_src"), "NOT_SPECIFIED IP_INVALID_SOURCE IP_LOCAL_SOURCE IP_LOCALNET"},
		{"IPv4 to loopback", "10.131.0.1", "127.0.0.1", routeCache(x.b, "in_martian_dst"), "NOT_SPECIFIED IP_INVALID_DEST IP_LOCALNET"},
		{"IPv4 from broadcast", "255.255.255.255", "10.132.0.2", routeCache(x.b, "in_martian_src"), "NOT_SPECIFIED IP_INVALID_SOURCE"},
		{"IPv6 from loopback", "::1", "fd32::2", mib(x.b, "Ip6.InHdrErrors"), "NOT_SPECIFIED IP_INHDR"},
		{"IPv6 to loopback", "fd31::1", "::1", mib(x.b, "Ip6.InHdrErrors"), "NOT_SPECIFIED IP_INHDR"},
		{"IPv6 from multicast", "ff02::1", "fd32::2", mib(x.b, "Ip6.InHdrErrors"), "NOT_SPECIFIED IP_INHDR"},
	} {
		from, to := port(addr(c.from), lossFrom), port(addr(c.to), lossTo)
		x.lose(t, c.name, loss{in: x.b, n: losses, source: c.source, reasons: c.reasons, from: from, to: to, device: "eth0"}, func(t *testing.T) {
			x.toReceiver(t, times(losses, udpPacket(from, to, []byte("payload")))...)
		})
	}
	x.lose(t, "IPv4 reverse path", loss{in: x.r.namespace, n: losses, source: mib(x.r.namespace, "TcpExt.IPReversePathFilter"), reasons: "IP_RPFILTER", functions: "ip_rcv_finish_core ip_rcv_finish ip_rcv_finish_core.constprop.0 ip_rcv_finish_core.isra.0"}, func(t *testing.T) {
		x.r.setting(t, "ipv4/conf/left/rp_filter", "1")
		x.toRouter(t, times(losses, udpPacket(port(addr("10.132.0.55"), lossFrom), port(x.b.v4, lossTo), []byte("payload")))...)
	})
	x.lose(t, "IPv6 disabled", loss{in: x.b, n: losses, source: mib(x.b, "Ip6.InDiscards"), reasons: "IPV6DISABLED"}, func(t *testing.T) {
		x.b.sysctl(t, "ipv6/conf/eth0/disable_ipv6", "1")
		x.toReceiver(t, times(losses, udpPacket(port(x.a.v6, lossFrom), port(x.b.v6, lossTo), []byte("payload")))...)
	})
}
