package bpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hand-made packets that no socket would send.

// Offsets of the header fields that cases damage.
const (
	ipv4Length   = 2
	ipv4Fragment = 6
	ipv4TTL      = 8
	ipv4Checksum = 10
	ipv6Length   = 4
	ipv6HopLimit = 7
	udpChecksum  = 6
	tcpChecksum  = 16
	icmpChecksum = 2
)

func checksum(parts ...[]byte) uint16 {
	b := slices.Concat(parts...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// pseudoHeader returns the part outside the packet that checksums of UDP, TCP and
// ICMPv6 cover.
func pseudoHeader(from, to netip.Addr, protocol uint8, length int) []byte {
	return slices.Concat(from.AsSlice(), to.AsSlice(), []byte{byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length), 0, 0, 0, protocol})
}

// headerLength is the length of the IP header.
func headerLength(a netip.Addr) int {
	if a.Is4() {
		return 20
	}
	return 40
}

// ipPacket adds an IP header to a payload.
func ipPacket(from, to netip.Addr, protocol uint8, payload []byte) []byte {
	if from.Is4() {
		h := make([]byte, 20)
		h[0], h[ipv4TTL], h[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(h[ipv4Length:], uint16(20+len(payload)))
		copy(h[12:], from.AsSlice())
		copy(h[16:], to.AsSlice())
		return checksummed(append(h, payload...))
	}
	h := make([]byte, 40)
	h[0], h[6], h[ipv6HopLimit] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(h[ipv6Length:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, payload...)
}

// checksummed recomputes the IPv4 header's checksum.
func checksummed(packet []byte) []byte {
	h := packet[:int(packet[0]&15)*4]
	h[ipv4Checksum], h[ipv4Checksum+1] = 0, 0
	binary.BigEndian.PutUint16(h[ipv4Checksum:], checksum(h))
	return packet
}

func udpPacket(from, to netip.AddrPort, payload []byte) []byte {
	return ipPacket(from.Addr(), to.Addr(), unix.IPPROTO_UDP, udpDatagram(from, to, payload))
}

// udpDatagram is UDP's header and payload, without IP's header.
func udpDatagram(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	copy(b[8:], payload)
	binary.BigEndian.PutUint16(b[udpChecksum:], checksum(pseudoHeader(from.Addr(), to.Addr(), unix.IPPROTO_UDP, len(b)), b))
	return b
}

// tcpSegment is a hand-made TCP segment.
type tcpSegment struct {
	seq, ack uint32
	flags    uint8
	options  []byte // a multiple of four
	payload  []byte
}

const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
)

func (s tcpSegment) packet(from, to netip.AddrPort) []byte {
	b := make([]byte, 20, 20+len(s.options)+len(s.payload))
	binary.BigEndian.PutUint16(b[0:], from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], s.seq)
	binary.BigEndian.PutUint32(b[8:], s.ack)
	b[12], b[13] = byte(5+len(s.options)/4)<<4, s.flags
	binary.BigEndian.PutUint16(b[14:], 1024)
	b = append(append(b, s.options...), s.payload...)
	binary.BigEndian.PutUint16(b[tcpChecksum:], checksum(pseudoHeader(from.Addr(), to.Addr(), unix.IPPROTO_TCP, len(b)), b))
	return ipPacket(from.Addr(), to.Addr(), unix.IPPROTO_TCP, b)
}

// echoPacket builds an ICMP echo request or reply.
func echoPacket(from, to netip.Addr, answer bool, payload []byte) []byte {
	b := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, payload...)
	protocol, pseudo := uint8(unix.IPPROTO_ICMP), []byte(nil)
	if answer {
		b[0] = 0
	}
	if from.Is6() {
		b[0] = 128
		if answer {
			b[0] = 129
		}
		protocol, pseudo = unix.IPPROTO_ICMPV6, pseudoHeader(from, to, unix.IPPROTO_ICMPV6, len(b))
	}
	binary.BigEndian.PutUint16(b[icmpChecksum:], checksum(pseudo, b))
	return ipPacket(from, to, protocol, b)
}

// damage flips a byte of a packet, at an offset from the end of the IP header.
func damage(packet []byte, offset int) []byte {
	at := 40 + offset
	if packet[0]>>4 == 4 {
		at = 20 + offset
	}
	packet[at] ^= 0x55
	return packet
}

// fragments splits an IP packet into fragments with the given payload size.
func fragments(packet []byte, id uint16, size int) (list [][]byte) {
	six := packet[0]>>4 == 6
	head := 20
	if six {
		head = 40
	}
	payload := packet[head:]
	for at := 0; at < len(payload); at += size {
		part := payload[at:min(at+size, len(payload))]
		more := at+size < len(payload)
		if six {
			h := slices.Clone(packet[:40])
			ext := make([]byte, 8)
			ext[0], h[6] = h[6], unix.IPPROTO_FRAGMENT
			field := uint16(at)
			if more {
				field |= 1
			}
			binary.BigEndian.PutUint16(ext[2:], field)
			binary.BigEndian.PutUint16(ext[6:], id)
			binary.BigEndian.PutUint16(h[ipv6Length:], uint16(8+len(part)))
			list = append(list, slices.Concat(h, ext, part))
			continue
		}
		h := slices.Clone(packet[:20])
		field := uint16(at / 8)
		if more {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(h[4:], id)
		binary.BigEndian.PutUint16(h[ipv4Fragment:], field)
		binary.BigEndian.PutUint16(h[ipv4Length:], uint16(20+len(part)))
		list = append(list, checksummed(slices.Concat(h, part)))
	}
	return list
}

// The hardware addresses of newRouter.
func routerMAC(subnet, host byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, subnet, host} }

// ethernet adds an Ethernet header to an IP packet.
func ethernet(to, from net.HardwareAddr, packet []byte) []byte {
	kind := []byte{8, 0}
	if len(packet) > 0 && packet[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	return slices.Concat(to, from, kind, packet)
}

// inject sends raw frames through a device.
func (n *namespace) inject(t testing.TB, device string, frames ...[]byte) {
	t.Helper()
	n.do(t, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			// A device may report a dropped frame at once; that is a loss too.
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil && err != unix.ENOBUFS {
				return fmt.Errorf("send a frame of %d bytes through %s: %w", len(f), device, err)
			}
		}
		return nil
	})
}

// toReceiver sends packets to b from the router's device, bypassing the router's
// stack.
func (x *lossLab) toReceiver(t testing.TB, packets ...[]byte) {
	t.Helper()
	var frames [][]byte
	for _, p := range packets {
		frames = append(frames, ethernet(routerMAC(2, 2), routerMAC(2, 1), p))
	}
	x.r.inject(t, "right", frames...)
}

// toRouter sends packets to the router from a's device, bypassing a's stack.
func (x *lossLab) toRouter(t testing.TB, packets ...[]byte) {
	t.Helper()
	var frames [][]byte
	for _, p := range packets {
		frames = append(frames, ethernet(routerMAC(1, 2), routerMAC(1, 1), p))
	}
	x.a.inject(t, "eth0", frames...)
}

// timesOf repeats a packet.
func timesOf(n int, packet []byte) [][]byte { return slices.Repeat([][]byte{packet}, n) }
