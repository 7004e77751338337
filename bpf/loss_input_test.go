package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// routeCache sums a column of /proc/net/stat/rt_cache, where the kernel counts
// packets with impossible addresses.
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

// TestLossMalformed sends malformed packets to a host.
func TestLossMalformed(t *testing.T) {
	x := newLossLab(t)
	b := x.b
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		src, dst := port(from, lossFrom), port(to, lossTo)
		server := b.listenUDP(t, to)
		open := addrPort(server.LocalAddr())
		ip, icmp, udp, truncated := "Ip", "Icmp", "Udp", "IpExt.InTruncatedPkts"
		if family == "IPv6" {
			ip, icmp, udp, truncated = "Ip6", "Icmp6", "Udp6", "Ip6.InTruncatedPkts"
		}
		payload := []byte("payload of more than eight bytes")
		good := udpPacket(src, open, payload)
		// with changes one byte of the valid packet.
		with := func(at int, value byte) []byte {
			p := slices.Clone(good)
			p[at] = value
			return p
		}
		longUDP := udpDatagram(src, open, payload)
		longUDP[5] = 200
		for _, c := range []struct {
			name    string
			family  string // if the case applies to one family only
			packet  []byte
			source  string
			class   DropClass
			reasons string
		}{
			{"IP header checksum", "IPv4", with(ipv4Checksum, ^good[ipv4Checksum]), "IpExt.InCsumErrors", DropAbnormal, "IP_CSUM"},
			{"IP header length", "IPv4", with(0, 0x44), "Ip.InHdrErrors", DropAbnormal, "IP_INHDR"},
			{"IP version", "", with(0, good[0]&15|0x50), ip + ".InHdrErrors", DropAbnormal, "IP_INHDR UNHANDLED_PROTO"},
			{"IP header cut off", "", good[:12], ip + ".InHdrErrors", DropAbnormal, "IP_INHDR"},
			{"IP length beyond the frame", "", good[:len(good)-20], truncated, DropAbnormal, "PKT_TOO_SMALL"},
			{"UDP header cut off", "", ipPacket(from, to, unix.IPPROTO_UDP, []byte{1, 2, 3}), udp + ".InErrors", DropAbnormal, "NOT_SPECIFIED PKT_TOO_SMALL"},
			{"UDP length beyond the packet", "", ipPacket(from, to, unix.IPPROTO_UDP, longUDP), udp + ".InErrors", DropAbnormal, "PKT_TOO_SMALL"},
			{"UDP checksum", "", damage(udpPacket(src, open, payload), udpChecksum), udp + ".InCsumErrors", DropAbnormal, "UDP_CSUM"},
			{"TCP header cut off", "", ipPacket(from, to, unix.IPPROTO_TCP, make([]byte, 9)), "", DropTCPRcv, "NOT_SPECIFIED PKT_TOO_SMALL"},
			{"TCP header length", "", ipPacket(from, to, unix.IPPROTO_TCP, make([]byte, 40)), "Tcp.InErrs", DropTCPRcv, "PKT_TOO_SMALL"},
			{"TCP checksum", "", damage(tcpSegment{flags: tcpSYN}.packet(src, dst), tcpChecksum), "Tcp.InCsumErrors", DropTCPRcv, "TCP_CSUM"},
			{"ICMP checksum", "", damage(echoPacket(from, to, false, payload), icmpChecksum), icmp + ".InCsumErrors", DropAbnormal, "ICMP_CSUM"},
			{"unknown protocol", "", ipPacket(from, to, 253, payload), ip + ".InUnknownProtos", DropAbnormal, "IP_NOPROTO"},
		} {
			if c.family != "" && c.family != family {
				continue
			}
			want := loss{in: b, n: losses, class: c.class, reasons: c.reasons, device: "eth0"}
			if c.source != "" {
				want.source = mib(b, c.source)
			}
			x.lose(t, family+" "+c.name, want, func(t *testing.T) {
				f := ethernet(routerMAC(2, 2), routerMAC(2, 1), c.packet)
				copy(f[12:14], ethernet(nil, nil, good)) // the IPv4 EtherType, whatever the version field says
				x.r.inject(t, "right", timesOf(losses, f)...)
			})
		}
		x.lose(t, family+" ethertype", loss{in: b, n: losses, source: linkCount(b, "eth0", "rx.dropped"), reasons: "UNHANDLED_PROTO", device: "eth0"}, func(t *testing.T) {
			f := ethernet(routerMAC(2, 2), routerMAC(2, 1), good)
			f[12], f[13] = 0x88, 0xb5
			x.r.inject(t, "right", timesOf(losses, f)...)
		})
		// The checksum of a large datagram is verified on reading. By then the
		// packet no longer has a namespace, but the reader does.
		x.lose(t, family+" UDP checksum found by the reader", loss{
			in: b, n: losses, source: mib(b, udp+".InCsumErrors"), reasons: "UDP_CSUM NOT_SPECIFIED",
			from: src, to: open, protocol: unix.IPPROTO_UDP,
		}, func(t *testing.T) {
			x.toReceiver(t, timesOf(losses, damage(udpPacket(src, open, make([]byte, 1000)), 8+500))...)
			x.toReceiver(t, good)
			b.do(t, func() error {
				n, err := server.Read(make([]byte, 2000))
				if n != len(payload) {
					err = fmt.Errorf("read %d bytes: %w", n, err)
				}
				return err
			})
		})
	})
}

// TestLossAddresses sends packets with addresses that the host refuses.
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
			x.toReceiver(t, timesOf(losses, udpPacket(from, to, []byte("payload")))...)
		})
	}
	x.lose(t, "IPv4 reverse path", loss{in: x.r.namespace, n: losses, source: mib(x.r.namespace, "TcpExt.IPReversePathFilter"), reasons: "IP_RPFILTER"}, func(t *testing.T) {
		x.r.setting(t, "ipv4/conf/left/rp_filter", "1")
		x.toRouter(t, timesOf(losses, udpPacket(port(addr("10.132.0.55"), lossFrom), port(x.b.v4, lossTo), []byte("payload")))...)
	})
	x.lose(t, "IPv6 disabled", loss{in: x.b, n: losses, source: mib(x.b, "Ip6.InDiscards"), reasons: "IPV6DISABLED"}, func(t *testing.T) {
		x.b.sysctl(t, "ipv6/conf/eth0/disable_ipv6", "1")
		x.toReceiver(t, timesOf(losses, udpPacket(port(x.a.v6, lossFrom), port(x.b.v6, lossTo), []byte("payload")))...)
	})
}
