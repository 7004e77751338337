package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTuple feeds crafted packets to the parser that all probes share, through the
// program of the probe flow.
func TestTuple(t *testing.T) {
	l := newTestLoader(t, Options{})
	p := l.load("flow", Config{Ports: true})

	s4, d4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	s6, d6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	ports := func(rest ...byte) []byte { return append([]byte{0x30, 0x39, 0x01, 0xbb}, rest...) } // 12345, 443
	ethernet := func(types []uint16, payload []byte) []byte {
		b := make([]byte, 12)
		for i, typ := range types {
			if i > 0 {
				b = append(b, 0, 7)
			}
			b = binary.BigEndian.AppendUint16(b, typ)
		}
		return append(b, payload...)
	}
	v4 := func(protocol byte, fragment uint16, options, payload []byte) []byte {
		b := make([]byte, 20)
		b[0] = 0x40 | byte(5+len(options)/4)
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(payload)))
		binary.BigEndian.PutUint16(b[6:], fragment)
		b[8], b[9] = 64, protocol
		copy(b[12:], s4.AsSlice())
		copy(b[16:], d4.AsSlice())
		return slices.Concat(b, options, payload)
	}
	v6 := func(next byte, payload []byte) []byte {
		b := make([]byte, 40)
		b[0] = 0x60
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		b[6], b[7] = next, 64
		copy(b[8:], s6.AsSlice())
		copy(b[24:], d6.AsSlice())
		return slices.Concat(b, payload)
	}
	tail := make([]byte, 64)
	ip4, ip6 := []uint16{0x0800}, []uint16{0x86dd}

	for name, c := range map[string]struct {
		packet   []byte
		protocol uint8
		six      bool
		ports    bool
		refused  bool
	}{
		"UDP":                       {ethernet(ip4, v4(unix.IPPROTO_UDP, 0, nil, ports(tail...))), unix.IPPROTO_UDP, false, true, false},
		"SCTP":                      {ethernet(ip4, v4(unix.IPPROTO_SCTP, 0, nil, ports(tail...))), unix.IPPROTO_SCTP, false, true, false},
		"ICMP":                      {ethernet(ip4, v4(unix.IPPROTO_ICMP, 0, nil, tail)), unix.IPPROTO_ICMP, false, false, false},
		"options":                   {ethernet(ip4, v4(unix.IPPROTO_TCP, 0, make([]byte, 12), ports(tail...))), unix.IPPROTO_TCP, false, true, false},
		"don't fragment":            {ethernet(ip4, v4(unix.IPPROTO_TCP, 0x4000, nil, ports(tail...))), unix.IPPROTO_TCP, false, true, false},
		"first fragment":            {ethernet(ip4, v4(unix.IPPROTO_UDP, 0x2000, nil, ports(tail...))), unix.IPPROTO_UDP, false, true, false},
		"later fragment":            {ethernet(ip4, v4(unix.IPPROTO_UDP, 0x00b9, nil, ports(tail...))), unix.IPPROTO_UDP, false, false, false},
		"VLAN":                      {ethernet([]uint16{0x8100, 0x0800}, v4(unix.IPPROTO_UDP, 0, nil, ports(tail...))), unix.IPPROTO_UDP, false, true, false},
		"two VLANs":                 {ethernet([]uint16{0x88a8, 0x8100, 0x86dd}, v6(unix.IPPROTO_UDP, ports(tail...))), unix.IPPROTO_UDP, true, true, false},
		"IPv6":                      {ethernet(ip6, v6(unix.IPPROTO_TCP, ports(tail...))), unix.IPPROTO_TCP, true, true, false},
		"hop-by-hop":                {ethernet(ip6, v6(0, slices.Concat([]byte{17, 0, 0, 0, 0, 0, 0, 0}, ports(tail...)))), unix.IPPROTO_UDP, true, true, false},
		"extensions":                {ethernet(ip6, v6(0, slices.Concat([]byte{43, 1}, make([]byte, 14), []byte{60, 0, 0, 0, 0, 0, 0, 0}, []byte{51, 0, 0, 0, 0, 0, 0, 0}, []byte{6, 4}, make([]byte, 22), ports(tail...)))), unix.IPPROTO_TCP, true, true, false},
		"IPv6 first fragment":       {ethernet(ip6, v6(44, slices.Concat([]byte{17, 0, 0, 1, 0, 0, 0, 9}, ports(tail...)))), unix.IPPROTO_UDP, true, true, false},
		"IPv6 later fragment":       {ethernet(ip6, v6(44, slices.Concat([]byte{17, 0, 0x05, 0xa8, 0, 0, 0, 9}, ports(tail...)))), unix.IPPROTO_UDP, true, false, false},
		"IPv6 cut off":              {ethernet(ip6, v6(unix.IPPROTO_UDP, nil)), unix.IPPROTO_UDP, true, false, false},
		"header length":             {ethernet(ip4, append([]byte{0x44}, v4(unix.IPPROTO_UDP, 0, nil, tail)[1:]...)), 0, false, false, true},
		"version":                   {ethernet(ip4, append([]byte{0x65}, v4(unix.IPPROTO_UDP, 0, nil, tail)[1:]...)), 0, false, false, true},
		"total length":              {ethernet(ip4, append([]byte{0x45, 0, 0, 7}, v4(unix.IPPROTO_UDP, 0, nil, tail)[4:]...)), 0, false, false, true},
		"no IP":                     {ethernet([]uint16{0x0806}, tail), 0, false, false, true},
		"three VLANs, one too many": {ethernet([]uint16{0x88a8, 0x8100, 0x8100, 0x0800}, v4(unix.IPPROTO_UDP, 0, nil, ports(tail...))), 0, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			before := flowsHeld(t, p)
			if verdict, _, err := p.programs["cgroup_egress"].Test(c.packet); err != nil {
				t.Skipf("this kernel: it cannot run the program on a packet: %v", err)
			} else if verdict != 1 {
				t.Errorf("verdict %d: the packet was not let through", verdict)
			}
			var got []Flow
			for flow, packets := range flowsHeld(t, p) {
				if packets != before[flow] && (flow.Source.Addr() == s4 || flow.Source.Addr() == s6) {
					got = append(got, flow)
				}
			}
			if c.refused {
				if len(got) > 0 {
					t.Errorf("accepted as %+v", got)
				}
				return
			}
			want := Flow{Protocol: c.protocol, Source: netip.AddrPortFrom(s4, 0), Destination: netip.AddrPortFrom(d4, 0)}
			if c.six {
				want.Source, want.Destination = netip.AddrPortFrom(s6, 0), netip.AddrPortFrom(d6, 0)
			}
			if c.ports {
				want.Source = netip.AddrPortFrom(want.Source.Addr(), 12345)
				want.Destination = netip.AddrPortFrom(want.Destination.Addr(), 443)
			}
			if len(got) == 1 {
				want.Netns = got[0].Netns
			}
			if len(got) != 1 || got[0] != want || want.Netns == 0 {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

// flowsHeld returns the packets of each flow, keyed by a Flow with zero counters.
func flowsHeld(t testing.TB, p *Probe) map[Flow]uint64 {
	t.Helper()
	held := map[Flow]uint64{}
	if err := p.Flows(func(f Flow) {
		packets := f.Packets
		f.Packets, f.Bytes = 0, 0
		held[f] = packets
	}); err != nil {
		t.Fatal(err)
	}
	return held
}
