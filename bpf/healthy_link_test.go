package bpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

var order = binary.NativeEndian

// unhandled lists counters that count packets of unknown protocols besides lost
// ones.
var unhandled = []string{"device.dropped", "Ip6InDiscards"}

var healthyLink = []healthyCase{
	{name: "frames that no protocol handles", run: foreignFrames, moves: unhandled},
	{name: "frames for another host", run: otherHost},
	{name: "multicast and broadcast that nobody asked for", run: nobodyAsked, moves: []string{"Icmp.InErrors"}},
	{name: "multicast that somebody asked for", run: somebodyAsked},
	{name: "groups joined and left", run: groups},
	{name: "containers at a bridge", run: idleContainers},
	{name: "bridges with STP and a blocked link", run: spanningTree, moves: unhandled},
	{name: "neighbour discovery", run: neighbours},
	{name: "announcements of addresses", run: announcements},
	{name: "an offer of DHCP", run: offer},
	{name: "udhcpc and udhcpd", run: dhcp},
	{name: "captures", run: captures},
	{name: "macvlan", run: func(t *testing.T, h *healthy) { childDevices(t, h, "macvlan mode bridge") }},
	{name: "macvlan, private", run: func(t *testing.T, h *healthy) { childDevices(t, h, "macvlan mode private") }},
	{name: "ipvlan", run: func(t *testing.T, h *healthy) { childDevices(t, h, "ipvlan mode l2") }},
	{name: "VLAN", run: vlan, moves: unhandled},
	{name: "bond", run: bond, moves: unhandled},
	{name: "VXLAN", run: tunnel("vxlan id 7 dstport 4789 local 10.99.0.%d remote 10.99.0.%d")},
	{name: "VXLAN over IPv6", run: tunnel("vxlan id 7 dstport 4789 local fd99::%d remote fd99::%d")},
	{name: "Geneve", run: tunnel("geneve id 7 remote 10.99.0.%[2]d")},
	{name: "GRE", run: tunnel("gre local 10.99.0.%d remote 10.99.0.%d")},
	{name: "GRE of Ethernet", run: tunnel("gretap local 10.99.0.%d remote 10.99.0.%d")},
	{name: "IP in IP", run: tunnel("ipip local 10.99.0.%d remote 10.99.0.%d")},
	{name: "IP in IPv6", run: tunnel("ip6tnl mode any local fd99::%d remote fd99::%d")},
	{name: "tun", run: tun},
	{name: "NAT and conntrack", run: nat},
	{name: "redirection by tc", run: redirected, moves: unhandled},
	{name: "mirroring by tc", run: mirrored},
	{name: "generic XDP", run: func(t *testing.T, h *healthy) { xdp(t, h, unix.XDP_FLAGS_SKB_MODE) }},
	{name: "XDP of the driver", run: func(t *testing.T, h *healthy) { xdp(t, h, unix.XDP_FLAGS_DRV_MODE) }},
	{name: "delay by netem", run: netemDelay},
	{name: "queue of tbf", run: tbfQueue},
	{name: "interface set down", run: interfaceDown},
	// The sender counts the packets that the bridge could not forward.
	{name: "ports of a bridge that go down", run: portsDown, moves: append([]string{"Ip6OutDiscards", "Ip.OutDiscards"}, unhandled...)},
	{name: "namespace deleted", run: namespaceDeleted},
}

// container connects a namespace to a bridge in another.
func (h *healthy) container(t *testing.T, bridge *namespace, i int) *namespace {
	t.Helper()
	n := h.namespace(t)
	n.v4, n.v6 = netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd96::%d", i))
	port := fmt.Sprintf("port%d", i)
	cable(t, n, "eth0", bridge, port)
	bridge.ip(t, "link set "+port+" master br0")
	bridge.ip(t, "link set br0 up")
	return n
}

func (n *namespace) addresses(t *testing.T, dad string) {
	t.Helper()
	n.ip(t, "addr add "+n.v4.String()+"/24 dev "+n.device)
	n.ip(t, "addr add "+n.v6.String()+"/64 dev "+n.device+dad)
}

// cabled returns two namespaces joined by a veth, with the kernel's defaults.
func (h *healthy) cabled(t *testing.T) (a, b *namespace) {
	t.Helper()
	a, b = h.namespace(t), h.namespace(t)
	cable(t, a, "eth0", b, "eth0")
	for i, n := range []*namespace{a, b} {
		n.v4, n.v6 = netip.AddrFrom4([4]byte{10, 95, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd95::%d", i+1))
		n.addresses(t, " nodad")
		n.mac = hardwareAddr(t, n, "eth0")
	}
	return a, b
}

// someTraffic sends traffic of every kind from a to b, over IPv4 and IPv6.
func someTraffic(t *testing.T, h *healthy, a, b *namespace) {
	t.Helper()
	over := &healthy{t: h.t, l: h.l, a: a, b: b}
	each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		someTrafficTo(t, h, from, to)
	})(t, over)
}

func someTrafficTo(t *testing.T, h *healthy, from, to netip.Addr) {
	t.Helper()
	ping(t, h, from, to, unix.SOCK_RAW, 3)
	requests(t, h, unix.IPPROTO_UDP, from, to, 10)
	client, server := connect(t, h.a, h.b, to)
	sendAll(t, client, server, 100<<10)
	sendAll(t, server, client, 100<<10)
	client.Close()
	receiveEnd(t, server)
	server.Close()
}

// packetSocket opens a socket for the frames of a device.
func (n *namespace) packetSocket(t *testing.T, device string, protocol uint16) int {
	t.Helper()
	s := n.socketIn(t, unix.AF_PACKET, unix.SOCK_RAW, int(htons(protocol)))
	must(t, unix.Bind(s, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: n.index(t, device)}))
	return s
}

func (n *namespace) index(t *testing.T, device string) (index int) {
	t.Helper()
	n.do(t, func() error {
		link, err := net.InterfaceByName(device)
		if err == nil {
			index = link.Index
		}
		return err
	})
	return index
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func parseMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

func ethernetFrame(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	frame := append(append([]byte{}, to...), from...)
	frame = binary.BigEndian.AppendUint16(frame, kind)
	frame = append(frame, payload...)
	return append(frame, make([]byte, max(0, 60-len(frame)))...)
}

// ipv4UDP builds a datagram with its headers.
func ipv4UDP(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload))) // without a checksum
	return append(b, payload...)
}

// foreignFrames sends frames of switches, routers and tools, whose protocols a host
// does not handle.
func foreignFrames(t *testing.T, h *healthy) {
	s := h.a.packetSocket(t, h.a.device, 0)
	llc := func(rest ...byte) []byte { return append(rest, make([]byte, 46-len(rest))...) }
	multicast := ipv4UDP(netip.MustParseAddrPort("10.99.0.77:5353"), netip.MustParseAddrPort("224.0.0.251:5353"), []byte("query"))
	for _, f := range []struct {
		what    string
		to      string
		kind    uint16
		payload []byte
	}{
		{"LLDP", "01:80:c2:00:00:0e", 0x88cc, nil},
		{"STP", "01:80:c2:00:00:00", 38, llc(0x42, 0x42, 3)},
		{"PVST", "01:00:0c:cc:cc:cd", 50, llc(0xaa, 0xaa, 3, 0, 0, 0x0c, 1, 0x0b)},
		{"CDP", "01:00:0c:cc:cc:cc", 50, llc(0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0)},
		{"IS-IS", "01:80:c2:00:00:14", 46, llc(0xfe, 0xfe, 3)},
		{"LACP", "01:80:c2:00:00:02", 0x8809, []byte{1, 1}},
		{"pause", "01:80:c2:00:00:01", 0x8808, []byte{0, 1}},
		{"EAPOL", "01:80:c2:00:00:03", 0x888e, []byte{1, 1}},
		{"PTP", "01:1b:19:00:00:00", 0x88f7, nil},
		{"wake on LAN", "ff:ff:ff:ff:ff:ff", 0x0842, nil},
		{"PPPoE discovery", "ff:ff:ff:ff:ff:ff", 0x8863, nil},
		{"RARP", "ff:ff:ff:ff:ff:ff", 0x8035, nil},
		{"local experiment", "ff:ff:ff:ff:ff:ff", 0x88b5, nil},
		{"multicast of MPLS", "01:00:5e:80:00:01", 0x8848, nil},
		{"multicast in a VLAN", "01:00:5e:00:00:fb", 0x8100, append([]byte{0, 77, 8, 0}, multicast...)},
		{"broadcast in a VLAN", "ff:ff:ff:ff:ff:ff", 0x8100, append([]byte{0, 77, 8, 6}, make([]byte, 28)...)},
		{"unknown type in a VLAN", "ff:ff:ff:ff:ff:ff", 0x8100, []byte{0, 77, 0x88, 0xb5}},
		{"multicast in two VLANs", "01:00:5e:00:00:fb", 0x88a8, append([]byte{0, 77, 0x81, 0, 0, 78, 8, 0}, multicast...)},
		{"multicast", "01:00:5e:00:00:fb", 0x0800, multicast},
	} {
		for range 3 {
			if _, err := unix.Write(s, ethernetFrame(parseMAC(f.to), h.a.mac, f.kind, f.payload)); err != nil {
				t.Errorf("%s: %v", f.what, err)
			}
		}
	}
}

// otherHost sends frames for another host's hardware address, as flooded by a
// switch and received by a promiscuous device.
func otherHost(t *testing.T, h *healthy) {
	capture := h.b.packetSocket(t, h.b.device, unix.ETH_P_ALL)
	must(t, unix.SetsockoptPacketMreq(capture, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
		&unix.PacketMreq{Ifindex: int32(h.b.index(t, h.b.device)), Type: unix.PACKET_MR_PROMISC}))
	s := h.a.packetSocket(t, h.a.device, 0)
	other := parseMAC("02:00:00:00:00:77")
	v4 := ipv4UDP(netip.AddrPortFrom(h.a.v4, 1000), netip.MustParseAddrPort("10.99.0.77:1000"), []byte("for another host"))
	v6 := append([]byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}, h.a.v6.AsSlice()...)
	v6 = append(append(v6, h.b.v6.AsSlice()...), 0x10, 0, 0x10, 0, 0, 8, 0, 0)
	arp := make([]byte, 28)
	for range 5 {
		for _, frame := range [][]byte{ethernetFrame(other, h.a.mac, 0x0800, v4), ethernetFrame(other, h.a.mac, 0x86dd, v6), ethernetFrame(other, h.a.mac, 0x0806, arp), ethernetFrame(other, h.a.mac, 0x0842, nil)} {
			_, err := unix.Write(s, frame)
			must(t, err)
		}
	}
	testkit.Eventually(t, "the capture", func() bool {
		n, from, err := unix.Recvfrom(capture, make([]byte, 2000), unix.MSG_DONTWAIT)
		if err != nil || n == 0 {
			return false
		}
		l, ok := from.(*unix.SockaddrLinklayer)
		return ok && l.Pkttype == unix.PACKET_OTHERHOST
	})
}

// nobodyAsked sends to groups and broadcast addresses without listeners.
func nobodyAsked(t *testing.T, h *healthy) {
	a, _ := h.cabled(t)
	device := a.index(t, "eth0")
	s4 := a.bound(t, unix.IPPROTO_UDP, a.v4)
	must(t, unix.SetsockoptInt(s4, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	must(t, unix.SetsockoptString(s4, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0"))
	for _, to := range []string{"255.255.255.255:1900", "10.95.0.255:137", "224.0.0.1:5000", "224.0.0.251:5353", "239.255.255.250:1900", "232.1.2.3:5000"} {
		for range 5 {
			must(t, unix.Sendto(s4, []byte("anybody?"), 0, sockaddr(netip.MustParseAddrPort(to))))
		}
	}
	s6 := a.bound(t, unix.IPPROTO_UDP, a.v6)
	for _, to := range []string{"ff02::1", "ff02::fb", "ff02::1:2", "ff05::1:3", "ff0e::1234"} {
		for range 5 {
			must(t, unix.Sendto(s6, []byte("anybody?"), 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr(to).As16(), Port: 5353, ZoneId: uint32(device)}))
		}
	}
	// No host answers a broadcast ping either.
	r := a.socketIn(t, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	must(t, unix.SetsockoptInt(r, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	must(t, unix.SetsockoptString(r, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0"))
	for _, to := range []string{"255.255.255.255:0", "10.95.0.255:0", "224.0.0.1:0"} {
		must(t, unix.Sendto(r, echoRequest(a.v4, 1, 1, 56), 0, sockaddr(netip.MustParseAddrPort(to))))
	}
	time.Sleep(time.Second) // includes packets that the kernel sends by itself
}

func somebodyAsked(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	group4, group6 := netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("ff05::1234")
	listen := func(n *namespace) (readers []int) {
		for range 2 {
			s := n.socketIn(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
			must(t, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			must(t, unix.Bind(s, &unix.SockaddrInet4{Addr: group4.As4(), Port: 5000}))
			must(t, unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group4.As4(), Ifindex: int32(n.index(t, "eth0"))}))
			s6 := n.socketIn(t, unix.AF_INET6, unix.SOCK_DGRAM, 0)
			must(t, unix.SetsockoptInt(s6, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			must(t, unix.Bind(s6, &unix.SockaddrInet6{Addr: group6.As16(), Port: 5000}))
			must(t, unix.SetsockoptIPv6Mreq(s6, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group6.As16(), Interface: uint32(n.index(t, "eth0"))}))
			readers = append(readers, s, s6)
		}
		return readers
	}
	readers := append(listen(a), listen(b)...) // including the sender's own
	s4, s6 := a.bound(t, unix.IPPROTO_UDP, a.v4), a.bound(t, unix.IPPROTO_UDP, a.v6)
	must(t, unix.SetsockoptIPMreqn(s4, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(a.index(t, "eth0"))}))
	for range 10 {
		must(t, unix.Sendto(s4, []byte("to all"), 0, &unix.SockaddrInet4{Addr: group4.As4(), Port: 5000}))
		must(t, unix.Sendto(s6, []byte("to all"), 0, &unix.SockaddrInet6{Addr: group6.As16(), Port: 5000, ZoneId: uint32(a.index(t, "eth0"))}))
		for _, r := range readers {
			must(t, unix.SetsockoptTimeval(r, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
			readDatagram(t, r, 6)
		}
	}
}

// groups makes both ends send unsolicited membership reports.
func groups(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	for _, n := range []*namespace{a, b} {
		s, s6 := n.socketIn(t, unix.AF_INET, unix.SOCK_DGRAM, 0), n.socketIn(t, unix.AF_INET6, unix.SOCK_DGRAM, 0)
		index := n.index(t, "eth0")
		for _, join := range []bool{true, false} {
			opt4, opt6 := unix.IP_ADD_MEMBERSHIP, unix.IPV6_JOIN_GROUP
			if !join {
				opt4, opt6 = unix.IP_DROP_MEMBERSHIP, unix.IPV6_LEAVE_GROUP
				time.Sleep(200 * time.Millisecond)
			}
			for i := range 5 {
				must(t, unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, opt4, &unix.IPMreqn{Multiaddr: [4]byte{239, 1, 1, byte(i)}, Ifindex: int32(index)}))
				must(t, unix.SetsockoptIPv6Mreq(s6, unix.IPPROTO_IPV6, opt6, &unix.IPv6Mreq{Multiaddr: [16]byte{0: 0xff, 1: 5, 15: byte(i + 20)}, Interface: uint32(index)}))
			}
		}
	}
	time.Sleep(time.Second)
}

// idleContainers lets several namespaces do their usual background work: duplicate
// address detection, router solicitation with answers, reports to a querier. Some
// exchange traffic.
func idleContainers(t *testing.T, h *healthy) {
	host := h.namespace(t)
	host.ip(t, "link add br0 type bridge mcast_snooping 0")
	host.ip(t, "addr add 10.96.0.254/24 dev br0")
	var all []*namespace
	for i := range 5 {
		n := h.container(t, host, i+1)
		n.addresses(t, "")
		all = append(all, n)
	}
	// Without carrier the bridge would drop its own membership report.
	testkit.Eventually(t, "the bridge's queue", func() bool { return !strings.Contains(host.ip(t, "link show br0"), "qdisc noop ") })
	host.ip(t, "link set br0 type bridge mcast_snooping 1 mcast_querier 1")
	router := all[0]
	s := router.socketIn(t, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	must(t, unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
	advertisement := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xfd, 0x94, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, n := range all {
		testkit.Eventually(t, "the addresses to be nobody else's", func() bool {
			return !strings.Contains(n.ip(t, "-6 addr show dev eth0"), " tentative")
		})
	}
	for i := range 4 {
		time.Sleep(700 * time.Millisecond)
		if i > 0 {
			must(t, unix.Sendto(s, advertisement, 0, &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 2, 15: 1}, ZoneId: uint32(router.index(t, "eth0"))}))
		}
	}
	someTraffic(t, h, all[1], all[2])
	testkit.Eventually(t, "an address by the advertisement", func() bool { return strings.Contains(all[3].ip(t, "-6 addr show dev eth0"), "fd94:") })
}

// spanningTree joins two bridges by two links, one of them a standby, on which
// flooded frames are dropped. Each port gets a BPDU every second, including those
// of containers.
func spanningTree(t *testing.T, h *healthy) {
	left, right := h.namespace(t), h.namespace(t)
	for _, n := range []*namespace{left, right} {
		n.sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
		n.ip(t, "link add br0 type bridge stp_state 1 forward_delay 200 hello_time 100 mcast_snooping 0")
		n.ip(t, "link set br0 up")
	}
	for i := range 2 {
		port := fmt.Sprintf("link%d", i)
		attach := func(n *namespace) { n.ip(t, "link set "+port+" master br0") }
		cable(t, left, port, right, port)
		attach(left)
		attach(right)
	}
	all := []*namespace{h.namespace(t), h.namespace(t), h.namespace(t)}
	for i, n := range all {
		bridge, port := []*namespace{left, right, right}[i], fmt.Sprintf("port%d", i)
		n.sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
		cable(t, n, "eth0", bridge, port)
		bridge.ip(t, "link set "+port+" master br0")
		n.v4, n.v6 = netip.AddrFrom4([4]byte{10, 96, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd96::%d", i+1))
	}
	testkit.Eventually(t, "one link to be blocked and all else to forward", func() bool {
		states := left.ip(t, "-d link show master br0") + right.ip(t, "-d link show master br0")
		return strings.Count(states, "state blocking") == 1 && strings.Count(states, "state forwarding") == 6
	})
	// Wait until the ports forward.
	for _, n := range all {
		n.sysctl(t, "ipv6/conf/eth0/disable_ipv6", "0")
		n.addresses(t, " nodad")
	}
	someTraffic(t, h, all[0], all[1])
	someTraffic(t, h, all[2], all[0])
	time.Sleep(1200 * time.Millisecond)
}

// neighbours makes each end resolve the other's address a hundred times.
func neighbours(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	flush := func(n *namespace) {
		n.do(t, func() error {
			all, err := netlink.NeighList(n.index(t, "eth0"), netlink.FAMILY_ALL)
			for _, entry := range all {
				if entry.State != unix.NUD_NOARP && (entry.IP.Equal(a.v4.AsSlice()) || entry.IP.Equal(b.v4.AsSlice()) || entry.IP.Equal(a.v6.AsSlice()) || entry.IP.Equal(b.v6.AsSlice())) {
					netlink.NeighDel(&entry)
				}
			}
			return err
		})
	}
	for range times(100, 10) {
		flush(a)
		flush(b)
		ping(t, h2(h, a, b), a.v4, b.v4, unix.SOCK_RAW, 1)
		ping(t, h2(h, a, b), a.v6, b.v6, unix.SOCK_RAW, 1)
	}
}

// h2 returns a pair of namespaces that replaces the group's.
func h2(h *healthy, a, b *namespace) *healthy { return &healthy{t: h.t, l: h.l, a: a, b: b} }

// announcements sends ARP and ICMPv6 announcements of possibly moved addresses, and
// requests for addresses of other hosts.
func announcements(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	s := a.packetSocket(t, "eth0", 0)
	everybody := parseMAC("ff:ff:ff:ff:ff:ff")
	arp := func(operation byte, sender, target netip.Addr) []byte {
		p := []byte{0, 1, 8, 0, 6, 4, 0, operation}
		p = append(append(p, a.mac...), sender.AsSlice()...)
		return append(append(p, make([]byte, 6)...), target.AsSlice()...)
	}
	known, unknown := a.v4, netip.MustParseAddr("10.95.0.77")
	ping(t, h2(h, a, b), a.v4, b.v4, unix.SOCK_RAW, 1)
	for range 5 {
		for _, p := range [][]byte{arp(1, known, known), arp(2, known, known), arp(1, unknown, unknown), arp(2, unknown, unknown), arp(1, known, unknown), arp(1, netip.IPv4Unspecified(), unknown)} {
			_, err := unix.Write(s, ethernetFrame(everybody, a.mac, 0x0806, p))
			must(t, err)
		}
	}
	icmp := a.socketIn(t, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	must(t, unix.SetsockoptInt(icmp, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
	for _, target := range []netip.Addr{a.v6, netip.MustParseAddr("fd95::77")} {
		p := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...)
		p = append(append(p, 2, 1), a.mac...)
		for range 5 {
			must(t, unix.Sendto(icmp, p, 0, &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 2, 15: 1}, ZoneId: uint32(a.index(t, "eth0"))}))
		}
	}
}

// offer sends a client a DHCP server's reply, addressed to an address that the
// client does not have yet. The client's packet socket gets the reply.
func offer(t *testing.T, h *healthy) {
	client, server := h.namespace(t), h.namespace(t)
	cable(t, client, "eth0", server, "eth0")
	server.ip(t, "addr add 10.94.0.1/24 dev eth0")
	mac, from := hardwareAddr(t, client, "eth0"), hardwareAddr(t, server, "eth0")
	capture, s := client.packetSocket(t, "eth0", unix.ETH_P_IP), server.packetSocket(t, "eth0", unix.ETH_P_IP)
	for range 5 {
		discover := ipv4UDP(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), make([]byte, 240))
		_, err := unix.Write(capture, ethernetFrame(parseMAC("ff:ff:ff:ff:ff:ff"), mac, 0x0800, discover))
		must(t, err)
		awaitDatagram(t, h, s)
		must(t, unix.SetsockoptTimeval(capture, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
		offer := ipv4UDP(netip.MustParseAddrPort("10.94.0.1:67"), netip.MustParseAddrPort("10.94.0.77:68"), make([]byte, 240))
		_, err = unix.Write(s, ethernetFrame(mac, from, 0x0800, offer))
		must(t, err)
		readDatagram(t, capture, 14+len(offer))
	}
}

// dhcp does the same with a real client and server.
func dhcp(t *testing.T, h *healthy) {
	need.Program(t, "busybox")
	client, server := h.namespace(t), h.namespace(t)
	cable(t, client, "eth0", server, "eth0")
	server.ip(t, "addr add 10.94.0.1/24 dev eth0")
	dir := t.TempDir()
	config, script := filepath.Join(dir, "udhcpd.conf"), filepath.Join(dir, "script")
	must(t, os.WriteFile(config, []byte("start 10.94.0.100\nend 10.94.0.110\ninterface eth0\nlease_file "+dir+"/leases\npidfile "+dir+"/pid\noption subnet 255.255.255.0\n"), 0o644))
	must(t, os.WriteFile(dir+"/leases", nil, 0o644))
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && exec ip addr add $ip/24 dev $interface\nexit 0\n"), 0o755))
	daemon := exec.Command("busybox", "udhcpd", "-f", config)
	if err := server.can("busybox", "udhcpd", "--help"); err != nil && strings.Contains(err.Error(), "not found") {
		t.Skip("this kernel: its busybox has no udhcpd")
	}
	server.do(t, daemon.Start)
	t.Cleanup(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	client.run(t, "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", script)
	if !strings.Contains(client.ip(t, "addr show dev eth0"), "10.94.0.1") {
		t.Error("the client got no address")
	}
	client.v4, server.v4 = netip.MustParseAddr("10.94.0.100"), netip.MustParseAddr("10.94.0.1")
	ping(t, h2(h, client, server), client.v4, server.v4, unix.SOCK_RAW, 1)
}

// captures run beside traffic: one that reads, one whose filter accepts nothing,
// one with a ring, and one whose buffer is never read.
func captures(t *testing.T, h *healthy) {
	open := func(n *namespace) int { return n.packetSocket(t, n.device, unix.ETH_P_ALL) }
	for _, n := range []*namespace{h.a, h.b} {
		reads, filtered, ring, full := open(n), open(n), open(n), open(n)
		must(t, unix.SetsockoptInt(reads, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
		nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		must(t, unix.SetsockoptSockFprog(filtered, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]}))
		must(t, unix.SetsockoptInt(ring, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3))
		must(t, unix.SetsockoptTpacketReq3(ring, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
			Block_size: 1 << 17, Block_nr: 2, Frame_size: 1 << 11, Frame_nr: 1 << 7, Retire_blk_tov: 10,
		}))
		must(t, unix.SetsockoptInt(full, unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
		t.Cleanup(func() {
			b, got := make([]byte, 1<<17), 0
			for {
				if _, _, err := unix.Recvfrom(reads, b, unix.MSG_DONTWAIT); err != nil {
					break
				}
				got++
			}
			if got == 0 {
				t.Error("the capture saw nothing")
			}
		})
	}
	someTraffic(t, h, h.a, h.b)
	s := h.b.bound(t, unix.IPPROTO_UDP, h.b.v4)
	c := h.a.bound(t, unix.IPPROTO_UDP, h.a.v4)
	for range 200 {
		must(t, unix.Sendto(c, make([]byte, 1000), 0, nameOf(t, s)))
		readDatagram(t, s, 1000)
	}
	foreign := h.a.packetSocket(t, h.a.device, 0)
	other := ethernetFrame(parseMAC("02:00:00:00:00:77"), h.a.mac, 0x0800, ipv4UDP(netip.AddrPortFrom(h.a.v4, 1), netip.AddrPortFrom(h.b.v4, 1), nil))
	_, err := unix.Write(foreign, other)
	must(t, err)
}

// childDevices are devices of one parent, each in its own namespace, which all
// receive the parent's broadcasts.
func childDevices(t *testing.T, h *healthy, kind string) {
	host, outside := h.cabled(t)
	name, _, _ := strings.Cut(kind, " ")
	var children []*namespace
	for i := range 2 {
		n := h.namespace(t)
		n.v4, n.v6 = netip.AddrFrom4([4]byte{10, 95, 0, byte(i + 10)}), netip.MustParseAddr(fmt.Sprintf("fd95::1%d", i))
		if err := host.can("ip", strings.Fields("link add link eth0 name child type "+kind)...); err != nil {
			t.Skipf("this kernel: no %s: %v", name, err)
		}
		host.do(t, func() error {
			link, err := netlink.LinkByName("child")
			if err != nil {
				return err
			}
			return netlink.LinkSetNsFd(link, int(n.handle))
		})
		n.ip(t, "link set child name eth0")
		n.ip(t, "link set eth0 up")
		n.addresses(t, " nodad")
		children = append(children, n)
	}
	someTraffic(t, h, outside, children[0])
	if !strings.Contains(kind, "private") {
		someTraffic(t, h, children[0], children[1])
	}
	s := outside.bound(t, unix.IPPROTO_UDP, outside.v4)
	must(t, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	for range 10 {
		must(t, unix.Sendto(s, []byte("anybody?"), 0, sockaddr(netip.MustParseAddrPort("10.95.0.255:137"))))
	}
	time.Sleep(500 * time.Millisecond)
}

// vlan sends frames of two VLANs to a host that has only one of them.
func vlan(t *testing.T, h *healthy) {
	a, b := h.namespace(t), h.namespace(t)
	cable(t, a, "eth0", b, "eth0")
	for i, n := range []*namespace{a, b} {
		if err := n.can("ip", strings.Fields("link add link eth0 name eth0.5 type vlan id 5")...); err != nil {
			t.Skipf("this kernel: no VLANs: %v", err)
		}
		n.ip(t, "link set eth0.5 up")
		n.device, n.v4, n.v6 = "eth0.5", netip.AddrFrom4([4]byte{10, 95, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd95::%d", i+1))
		n.addresses(t, " nodad")
	}
	someTraffic(t, h, a, b)
	a.ip(t, "link add link eth0 name eth0.6 type vlan id 6")
	a.ip(t, "link set eth0.6 up")
	a.ip(t, "addr add 10.93.0.1/24 dev eth0.6")
	s := a.bound(t, unix.IPPROTO_UDP, netip.MustParseAddr("10.93.0.1"))
	must(t, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	for range 5 {
		must(t, unix.Sendto(s, []byte("anybody?"), 0, sockaddr(netip.MustParseAddrPort("10.93.0.255:137"))))
	}
	time.Sleep(500 * time.Millisecond)
}

// bond has two links to one bridge, one active. The inactive link receives all
// broadcasts too.
func bond(t *testing.T, h *healthy) {
	bridge, x := h.namespace(t), h.namespace(t)
	if err := x.can("ip", strings.Fields("link add bond0 type bond mode active-backup miimon 100")...); err != nil {
		t.Skipf("this kernel: no bonding: %v", err)
	}
	bridge.ip(t, "link add br0 type bridge mcast_snooping 0")
	for i := range 2 {
		device, port := fmt.Sprintf("eth%d", i), fmt.Sprintf("link%d", i)
		x.sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
		veth(t, x, device, bridge, port)
		x.ip(t, "link set "+device+" master bond0")
		bridge.ip(t, "link set "+port+" master br0")
		bridge.ip(t, "link set "+port+" up")
	}
	bridge.ip(t, "link set br0 up")
	x.ip(t, "link set bond0 up")
	x.device, x.v4, x.v6 = "bond0", netip.MustParseAddr("10.96.0.99"), netip.MustParseAddr("fd96::99")
	testkit.Eventually(t, "the bond", func() bool { return strings.Contains(x.ip(t, "link show bond0"), "LOWER_UP") })
	x.sysctl(t, "ipv6/conf/bond0/disable_ipv6", "0")
	x.addresses(t, " nodad")
	y := h.container(t, bridge, 1)
	y.addresses(t, " nodad")
	someTraffic(t, h, x, y)
	s := y.bound(t, unix.IPPROTO_UDP, y.v4)
	must(t, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	for range 10 {
		must(t, unix.Sendto(s, []byte("anybody?"), 0, sockaddr(netip.MustParseAddrPort("10.96.0.255:137"))))
	}
	time.Sleep(500 * time.Millisecond)
}

// tunnel returns a case with a tunnel between the two namespaces. format is ip's
// description of it, with places for the numbers of the local and remote ends.
func tunnel(format string) func(*testing.T, *healthy) {
	return func(t *testing.T, h *healthy) {
		inner := []*namespace{{handle: h.a.handle, inode: h.a.inode}, {handle: h.b.handle, inode: h.b.inode}}
		for i, n := range inner {
			words := fmt.Sprintf(format, i+1, 2-i)
			if err := n.can("ip", strings.Fields("link add tunnel0 type "+words)...); err != nil {
				t.Skipf("this kernel: no such tunnel: %v", err)
			}
			t.Cleanup(func() { n.ip(t, "link del tunnel0") })
			n.sysctl(t, "ipv6/conf/tunnel0/disable_ipv6", "1")
			n.sysctl(t, "ipv6/conf/tunnel0/router_solicitations", "0")
			n.ip(t, "link set tunnel0 mtu 1300 up")
		}
		// Wait for silence before removing an end: delayed membership reports, up
		// to a second apart, would find no tunnel.
		t.Cleanup(func() {
			sent := func() (n uint64) {
				for _, end := range inner {
					packets, _ := deviceSent(t, end)
					n += packets
				}
				return n
			}
			still(sent, 100*time.Millisecond, 12, 200)
		})
		// Add addresses once both ends exist, including the kernel's own, which are
		// announced.
		for i, n := range inner {
			n.sysctl(t, "ipv6/conf/tunnel0/disable_ipv6", "0")
			n.device, n.v4, n.v6 = "tunnel0", netip.AddrFrom4([4]byte{10, 92, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd92::%d", i+1))
			n.ip(t, "addr add "+n.v4.String()+"/24 dev tunnel0")
			if !strings.HasPrefix(format, "ipip") { // ipip carries no IPv6
				n.ip(t, "addr add "+n.v6.String()+"/64 dev tunnel0 nodad")
			}
		}
		over := h2(h, inner[0], inner[1])
		someTrafficTo(t, over, inner[0].v4, inner[1].v4)
		if !strings.HasPrefix(format, "ipip") {
			someTrafficTo(t, over, inner[0].v6, inner[1].v6)
		}
	}
}

// tun sends echo requests through a tun device, and answers them from the device's file.
func tun(t *testing.T, h *healthy) {
	a := newNamespace(t)
	a.inode = h.own0(t, a)
	file := a.tap(t, "tun0", unix.IFF_TUN)
	a.ip(t, "link set tun0 up")
	testkit.Eventually(t, "the device's queue", func() bool { return !strings.Contains(a.ip(t, "link show tun0"), "qdisc noop") })
	a.ip(t, "addr add 10.91.0.1/24 dev tun0")
	a.v4 = netip.MustParseAddr("10.91.0.1")
	go func() {
		b := make([]byte, 2000)
		for {
			n, err := file.Read(b)
			if err != nil {
				return
			}
			if p := b[:n]; p[0]>>4 == 4 && p[9] == unix.IPPROTO_ICMP {
				// Turn the echo request into a reply.
				source := [4]byte(p[12:16])
				copy(p[12:], p[16:20])
				copy(p[16:], source[:])
				p[20] = 0
				clear(p[22:24])
				binary.BigEndian.PutUint16(p[22:], checksum(p[20:]))
				file.Write(p)
			}
		}
	}()
	ping(t, h2(h, a, a), a.v4, netip.MustParseAddr("10.91.0.2"), unix.SOCK_RAW, 20)
}

// own0 includes the losses of a namespace in which the traffic creates further
// packets.
func (h *healthy) own0(t *testing.T, n *namespace) uint64 {
	h.own = append(h.own, n)
	return n.inode
}

// routed returns two namespaces and a router between them.
func (h *healthy) routed(t *testing.T) (a, r, b *namespace) {
	t.Helper()
	a, r, b = h.namespace(t), h.namespace(t), h.namespace(t)
	r.sysctl(t, "ipv4/ip_forward", "1")
	r.sysctl(t, "ipv6/conf/all/forwarding", "1")
	for i, n := range []*namespace{a, b} {
		port := fmt.Sprintf("r%d", i+1)
		cable(t, n, "eth0", r, port)
		r.ip(t, fmt.Sprintf("addr add 10.98.%d.1/24 dev %s", i+1, port))
		r.ip(t, fmt.Sprintf("addr add fd98:%d::1/64 dev %s nodad", i+1, port))
		n.v4, n.v6 = netip.AddrFrom4([4]byte{10, 98, byte(i + 1), 2}), netip.MustParseAddr(fmt.Sprintf("fd98:%d::2", i+1))
		n.addresses(t, " nodad")
		n.ip(t, fmt.Sprintf("route add default via 10.98.%d.1", i+1))
		n.ip(t, fmt.Sprintf("-6 route add default via fd98:%d::1", i+1))
	}
	return a, r, b
}

// nat makes the router masquerade one namespace and publish the other.
func nat(t *testing.T, h *healthy) {
	a, r, b := h.routed(t)
	r.run(t, "nft", `add table inet nat
add chain inet nat post { type nat hook postrouting priority 100; }
add rule inet nat post oifname "r2" masquerade
add chain inet nat pre { type nat hook prerouting priority -100; }
add rule inet nat pre iifname "r1" ip daddr 10.98.1.1 dnat ip to 10.98.2.2
add rule inet nat pre iifname "r1" ip6 daddr fd98:1::1 dnat ip6 to fd98:2::2
add chain inet nat forward { type filter hook forward priority 0; }
add rule inet nat forward ct state established,related accept`)
	someTraffic(t, h, a, b)
	for _, addrs := range [][2]string{{"10.98.1.1", "10.98.2.2"}, {"fd98:1::1", "fd98:2::2"}} {
		l := b.listen(t, netip.MustParseAddr(addrs[1]))
		client := a.dial(t, "tcp", netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), addrPort(l.Addr()).Port()))
		server, err := l.Accept()
		must(t, err)
		sendAll(t, client, server, 100<<10)
		client.Close()
		receiveEnd(t, server)
		server.Close()
		l.Close()
	}
}

// redirected makes tc redirect all frames from one port to the other and back.
func redirected(t *testing.T, h *healthy) {
	middle, a, b := h.namespace(t), h.namespace(t), h.namespace(t)
	middle.sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
	for i, n := range []*namespace{a, b} {
		cable(t, n, "eth0", middle, fmt.Sprintf("m%d", i))
		n.v4, n.v6 = netip.AddrFrom4([4]byte{10, 95, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd95::%d", i+1))
	}
	for i := range 2 {
		device, other := fmt.Sprintf("m%d", i), fmt.Sprintf("m%d", 1-i)
		middle.run(t, "tc", strings.Fields("qdisc add dev "+device+" ingress")...)
		if err := middle.can("tc", strings.Fields("filter add dev "+device+" ingress matchall action mirred egress redirect dev "+other)...); err != nil {
			t.Skipf("this kernel: no redirection: %v", err)
		}
	}
	for _, n := range []*namespace{a, b} {
		n.addresses(t, " nodad")
	}
	someTraffic(t, h, a, b)
}

// mirrored makes tc copy received frames to a port without a listener.
func mirrored(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	watcher := h.namespace(t)
	cable(t, b, "copy", watcher, "eth0")
	b.run(t, "tc", strings.Fields("qdisc add dev eth0 ingress")...)
	if err := b.can("tc", strings.Fields("filter add dev eth0 ingress matchall action mirred egress mirror dev copy")...); err != nil {
		t.Skipf("this kernel: no mirroring: %v", err)
	}
	someTraffic(t, h, a, b)
}

// xdp attaches a program that passes all packets.
func xdp(t *testing.T, h *healthy, mode int) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	must(t, err)
	defer program.Close()
	a, b := h.cabled(t)
	for _, n := range []*namespace{a, b} {
		n.do(t, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetXdpFdWithFlags(link, program.FD(), mode)
		})
	}
	// No bulk transfer: after an XDP program each packet takes a whole page, so a
	// few packets fill a receive buffer and are lost.
	each(func(t *testing.T, h *healthy, from, to netip.Addr) {
		ping(t, h, from, to, unix.SOCK_RAW, 3)
		requests(t, h, unix.IPPROTO_UDP, from, to, 10)
		client, server := connect(t, h.a, h.b, to)
		echo(t, client, server, 1)
		client.Close()
		receiveEnd(t, server)
		server.Close()
	})(t, &healthy{t: h.t, l: h.l, a: a, b: b})
	foreign := a.packetSocket(t, "eth0", 0)
	_, err = unix.Write(foreign, ethernetFrame(parseMAC("02:00:00:00:00:77"), a.mac, 0x0800, ipv4UDP(netip.AddrPortFrom(a.v4, 1), netip.AddrPortFrom(b.v4, 1), nil)))
	must(t, err)
}

func netemDelay(t *testing.T, h *healthy) {
	h.a.disturb(t, "delay", "2ms", "1ms")
	defer h.a.run(t, "tc", "qdisc", "del", "dev", h.a.device, "root")
	someTraffic(t, h, h.a, h.b)
}

func tbfQueue(t *testing.T, h *healthy) {
	h.a.run(t, "tc", "qdisc", "add", "dev", h.a.device, "root", "tbf", "rate", "20mbit", "burst", "10000", "limit", "10000000")
	defer h.a.run(t, "tc", "qdisc", "del", "dev", h.a.device, "root")
	someTraffic(t, h, h.a, h.b)
}

func interfaceDown(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	someTraffic(t, h, a, b)
	time.Sleep(time.Second)
	a.ip(t, "link set eth0 down")
	b.ip(t, "link set eth0 down")
	a.ip(t, "link del eth0")
}

// portsDown floods announcements and broadcasts while a port, and the end behind it, go
// down again and again, as when pods end: for a moment the bridge still forwards to them.
func portsDown(t *testing.T, h *healthy) {
	host := h.namespace(t)
	host.ip(t, "link add br0 type bridge mcast_snooping 0")
	from, to := h.container(t, host, 1), h.container(t, host, 2)
	for _, n := range []*namespace{from, to} {
		n.addresses(t, " nodad")
	}
	testkit.Eventually(t, "the bridge's queue", func() bool { return !strings.Contains(host.ip(t, "link show br0"), "qdisc noop ") })
	device := from.index(t, "eth0")
	report := from.socketIn(t, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	names := from.bound(t, unix.IPPROTO_UDP, from.v4)
	must(t, unix.SetsockoptInt(names, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	must(t, unix.SetsockoptString(names, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0"))
	var sends sync.WaitGroup
	stop := make(chan struct{})
	sends.Add(1)
	go func() {
		defer sends.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = unix.Sendto(report, []byte{143, 0, 0, 0, 0, 0, 0, 0}, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::16").As16(), ZoneId: uint32(device)})
			_ = unix.Sendto(names, []byte("anybody?"), 0, sockaddr(netip.MustParseAddrPort("255.255.255.255:137")))
			time.Sleep(20 * time.Microsecond)
		}
	}()
	for range times(60, 10) {
		host.ip(t, "link set port2 down")
		host.ip(t, "link set port2 up")
		to.ip(t, "link set eth0 down")
		to.ip(t, "link set eth0 up")
	}
	close(stop)
	sends.Wait()
}

func namespaceDeleted(t *testing.T, h *healthy) {
	a, b := h.cabled(t)
	someTraffic(t, h, a, b)
	time.Sleep(time.Second)
	a.handle.Close()
	b.handle.Close()
	time.Sleep(time.Second)
}
