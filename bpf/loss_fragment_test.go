package bpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLossFragments loses fragmented datagrams.
func TestLossFragments(t *testing.T) {
	for _, conntrack := range []bool{false, true} {
		t.Run(fmt.Sprintf("conntrack=%v", conntrack), func(t *testing.T) {
			x := newLossLab(t)
			b := x.b
			if conntrack {
				b.run(t, "nft", "add table inet t; add chain inet t c { type filter hook prerouting priority 0; }; add rule inet t c ct state new accept")
			}
			x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
				six := family == "IPv6"
				udp, ip, sys := "Udp", "Ip", "ipv4/ipfrag"
				if six {
					udp, ip, sys = "Udp6", "Ip6", "ipv6/ip6frag"
				}
				// Connection tracking reassembles IPv6 datagrams itself, with its
				// own limits, and drops by verdict.
				class, fails := DropAbnormal, mib(b, ip+".ReasmFails")
				limit := func(t *testing.T, name, tracked, value string) {
					b.setting(t, sys+name, value)
					if six && conntrack {
						b.setting(t, "netfilter/nf_conntrack_frag6"+tracked, value)
					}
				}
				if six && conntrack {
					class, fails = DropNetfilter, nil
				}
				src, dst := port(from, lossFrom), port(to, lossTo)
				id := uint16(100)
				// pieces returns the fragments of a new datagram.
				pieces := func(n int) [][]byte {
					id++
					return fragments(udpPacket(src, dst, make([]byte, n*1000-8)), id, 1000)
				}
				// The kernel keeps a reassembled datagram as one packet or as six.
				x.lose(t, family+" fragments for a closed port", loss{in: b, n: 10, most: 60, source: mib(b, udp+".NoPorts"), reasons: "NO_SOCKET NOT_SPECIFIED", protocol: unix.IPPROTO_UDP}, func(t *testing.T) {
					x.a.udp(t, dst, 10, 8000)
				})
				x.lose(t, family+" reassembly that times out", loss{in: b, n: 65, reasons: "FRAG_REASM_TIMEOUT NOT_SPECIFIED"}, func(t *testing.T) {
					limit(t, "_time", "_timeout", "1")
					for range 5 {
						x.toReceiver(t, pieces(6)[:5]...)
						x.toReceiver(t, pieces(6)[1:]...)
						p := pieces(6)
						x.toReceiver(t, p[0], p[2], p[4])
					}
					time.Sleep(1100 * time.Millisecond)
				})
				// An overlapping fragment is lost together with the earlier
				// fragments, which newer kernels free without the tracepoint. With
				// conntrack, IPv6 frees them before the overlapping fragment, so
				// the owner of the first one is unknown.
				x.lose(t, family+" fragments that overlap", loss{in: b, n: 5, most: 15, ownerless: conntrack && six, source: fails, class: class, also: []DropClass{DropAbnormal}, reasons: "NOT_SPECIFIED NETFILTER_DROP"}, func(t *testing.T) {
					for range 5 {
						p := pieces(3)
						other := fragments(udpPacket(src, dst, make([]byte, 3*992-8)), id, 992)
						x.toReceiver(t, p[0], p[1], other[2])
					}
				})
				x.lose(t, family+" fragments beyond the memory", loss{in: b, n: 25, class: class, reasons: "NOT_SPECIFIED NETFILTER_DROP"}, func(t *testing.T) {
					// The first fragment always has room.
					server := b.listenUDP(t, to)
					id++
					primer := fragments(udpPacket(src, addrPort(server.LocalAddr()), make([]byte, 2992)), id, 1000)
					x.toReceiver(t, primer[0])
					t.Cleanup(func() {
						x.toReceiver(t, primer[1:]...)
						if n, err := server.Read(make([]byte, 4000)); n != 2992 {
							t.Errorf("%d bytes: %v", n, err)
						}
					})
					limit(t, "_low_thresh", "_low_thresh", "1")
					limit(t, "_high_thresh", "_high_thresh", "1")
					for range 5 {
						x.toReceiver(t, pieces(5)...)
					}
				})
			})
		})
	}
}
