package bpf

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// timestamps is the TCP option.
func timestamps(value, echo uint32) []byte {
	b := []byte{1, 1, 8, 10}
	b = binary.BigEndian.AppendUint32(b, value)
	return binary.BigEndian.AppendUint32(b, echo)
}

// TestLossTCP loses segments in TCP itself.
func TestLossTCP(t *testing.T) {
	x := newLossLab(t)
	b := x.b
	// mute drops the receiver's answers, which would cause further losses.
	mute := func(t *testing.T) { x.r.steal(t, "right", false) }
	// Drops at the end of tcp_rcv_established count for tcp_v4_do_rcv if the
	// compiler made that a tail call, which leaves no address, else for the
	// function itself.
	inPlace := []DropClass{DropAbnormal}
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		established := func(t *testing.T) (client, server *net.TCPConn, src, dst netip.AddrPort) {
			client, server = connect(t, x.a, b, to)
			return client, server, addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
		}
		x.lose(t, family+" data for a closed port", loss{in: b, n: losses, class: DropTCPRcv, prepare: mute, reasons: "NO_SOCKET", from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: 1, ack: 1, flags: tcpACK | tcpPSH, payload: []byte("data")}.packet(port(from, lossFrom), port(to, lossTo)))...)
		})
		var src, dst netip.AddrPort
		var next, mine uint32
		x.lose(t, family+" data for a connection that was reset", loss{in: b, n: losses, class: DropTCPRcv, reasons: "NO_SOCKET", protocol: unix.IPPROTO_TCP, prepare: func(t *testing.T) {
			var server *net.TCPConn
			_, server, src, dst = established(t)
			mine, next = sequenceOf(t, server)
			mute(t)
			server.SetLinger(0)
			server.Close()
		}}, func(t *testing.T) {
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next, ack: mine, flags: tcpACK | tcpPSH, payload: []byte("data")}.packet(src, dst))...)
		})
		// When TCP refuses a segment, Linux 5.10 frees it with __kfree_skb(), which
		// does not pass the tracepoint kfree_skb. The sockets' own counts (letter d
		// of ss -m) include them, and for some kinds the MIB (PAWSEstab,
		// TCPZeroWindowDrop, TCPRcvQDrop).
		x.lose(t, family+" data beyond the window", loss{in: b, ownerless: true, withReasons: true, n: losses, class: DropAbnormal, reasons: "TCP_INVALID_SEQUENCE TCP_OVERWINDOW TCP_INVALID_END_SEQUENCE", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			_, server, src, dst := established(t)
			mine, next := sequenceOf(t, server)
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next + 50_000_000, ack: mine, flags: tcpACK | tcpPSH, payload: []byte("data")}.packet(src, dst))...)
		})
		x.lose(t, family+" data with a timestamp of the past", loss{in: b, ownerless: true, withReasons: true, n: losses, source: mib(b, "TcpExt.PAWSEstab"), class: DropAbnormal, reasons: "TCP_RFC7323_PAWS", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			client, server, src, dst := established(t)
			mine, next := sequenceOf(t, server)
			var now int
			rawConn(t, client, func(fd int) (err error) {
				now, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
				return err
			})
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next, ack: mine, flags: tcpACK | tcpPSH, options: timestamps(uint32(now)-1_000_000, 0), payload: []byte("data")}.packet(src, dst))...)
		})
		x.lose(t, family+" data that acknowledges what was not sent", loss{in: b, ownerless: true, withReasons: true, n: losses, class: DropTCPHandle, also: inPlace, reasons: "TCP_INVALID_ACK_SEQUENCE TCP_ACK_UNSENT_DATA", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			_, server, src, dst := established(t)
			mine, next := sequenceOf(t, server)
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next, ack: mine + 1_000_000, flags: tcpACK | tcpPSH, payload: []byte("data")}.packet(src, dst))...)
		})
		x.lose(t, family+" data without ACK", loss{in: b, ownerless: true, withReasons: true, n: losses, class: DropTCPHandle, also: inPlace, reasons: "TCP_FLAGS", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			_, server, src, dst := established(t)
			_, next := sequenceOf(t, server)
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next, payload: []byte("data")}.packet(src, dst))...)
		})
		// If the kernel does not pass the socket (before 6.11), the owner is
		// unknown: tcp_data_queue, like the backlog of a locked socket above, has
		// already released device and route.
		x.lose(t, family+" data beyond a closed window", loss{in: b, ownerless: true, withReasons: true, n: losses, reasons: "PROTO_MEM TCP_ZEROWINDOW TCP_OVERWINDOW TCP_INVALID_SEQUENCE TCP_INVALID_END_SEQUENCE", protocol: unix.IPPROTO_TCP, prepare: func(t *testing.T) {
			client, server, s, d := established(t)
			src, dst = s, d
			if err := server.SetReadBuffer(4096); err != nil {
				t.Fatal(err)
			}
			for n := 1; n > 0; {
				client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				n, _ = client.Write(make([]byte, 1<<20))
			}
			// The client's own retransmissions would be lost too.
			x.a.steal(t, "eth0", true)
			mine, next = sequenceOf(t, server)
		}}, func(t *testing.T) {
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next, ack: mine, flags: tcpACK | tcpPSH, payload: []byte("data")}.packet(src, dst))...)
		})
		x.lose(t, family+" socket filter", loss{in: b, n: losses, class: DropTCPRcv, reasons: "SOCKET_FILTER", protocol: unix.IPPROTO_TCP, prepare: func(t *testing.T) {
			_, server, s, d := established(t)
			src, dst = s, d
			mine, next = sequenceOf(t, server)
			rawConn(t, server, func(fd int) error {
				rejectAll(t, fd)
				return nil
			})
			// Do not count the packets that end the connection.
			t.Cleanup(func() {
				rawConn(t, server, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
			})
		}}, func(t *testing.T) {
			x.toReceiver(t, timesOf(losses, tcpSegment{seq: next, ack: mine, flags: tcpACK | tcpPSH, payload: []byte("data")}.packet(src, dst))...)
		})
		x.lose(t, family+" SYN with FIN", loss{in: b, ownerless: true, withReasons: true, n: losses, class: DropTCPStatM, reasons: "TCP_FLAGS", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			l := b.listen(t, to)
			x.toReceiver(t, timesOf(losses, tcpSegment{flags: tcpSYN | tcpFIN}.packet(port(from, lossFrom), addrPort(l.Addr())))...)
		})
		x.lose(t, family+" MD5 unexpected", loss{in: b, n: losses, source: mib(b, "TcpExt.TCPMD5Unexpected"), class: DropTCPRcv, reasons: "TCP_MD5UNEXPECTED", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			l := b.listen(t, to)
			x.toReceiver(t, timesOf(losses, tcpSegment{flags: tcpSYN, options: append([]byte{19, 18, 15: 0}, 0, 0, 0, 0)}.packet(port(from, lossFrom), addrPort(l.Addr())))...)
		})
		x.lose(t, family+" MD5 missing", loss{in: b, n: losses, source: mib(b, "TcpExt.TCPMD5NotFound"), class: DropTCPRcv, reasons: "TCP_MD5NOTFOUND", protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			// Package net listens with MPTCP, which does not support TCP-MD5 signatures.
			l := stream(t, b, to, 0)
			key := unix.TCPMD5Sig{Keylen: 4}
			switch sa := sockaddr(port(from, 0)).(type) {
			case *unix.SockaddrInet4:
				key.Addr.Family = unix.AF_INET
				copy(key.Addr.Data[2:], sa.Addr[:])
			case *unix.SockaddrInet6:
				key.Addr.Family = unix.AF_INET6
				copy(key.Addr.Data[6:], sa.Addr[:])
			}
			if err := errors.Join(unix.SetsockoptTCPMD5Sig(l.fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &key), unix.Listen(l.fd, 5)); err != nil {
				t.Fatal(err)
			}
			listener := netip.AddrPortFrom(to, portOf(l.local(t)))
			x.toReceiver(t, timesOf(losses, tcpSegment{flags: tcpSYN}.packet(port(from, lossFrom), listener))...)
		})
		x.lose(t, family+" data after the receiver has closed", loss{in: b, n: losses, reasons: "TCP_ABORT_ON_DATA NOT_SPECIFIED TCP_CLOSE", class: DropTCPHandle, also: []DropClass{DropTCPRcv}, protocol: unix.IPPROTO_TCP}, func(t *testing.T) {
			for range losses {
				client, server, _, _ := established(t)
				server.Close()
				if _, err := client.Write([]byte("data")); err != nil {
					t.Fatal(err)
				}
			}
		})
		// A SYN without room: the kernel frees it by consume_skb, like an answered
		// SYN. ListenDrops and, for the accept queue, ListenOverflows count it, on
		// all kernels. With SYN cookies a full SYN queue loses nothing.
		var fd *socket
		var listener netip.AddrPort
		listening := func(backlog int, cookies string) func(*testing.T) {
			return func(t *testing.T) {
				b.setting(t, "ipv4/tcp_syncookies", cookies)
				b.setting(t, "ipv4/tcp_max_syn_backlog", "4")
				fd = stream(t, b, to, 0)
				if err := unix.Listen(fd.fd, backlog); err != nil {
					t.Fatal(err)
				}
				listener = netip.AddrPortFrom(to, portOf(fd.local(t)))
				if backlog == 0 {
					x.a.dial(t, "tcp", listener)
				}
				mute(t)
				// More requests than there is room for.
				x.toReceiver(t, syns(from, listener, 100, 5)...)
			}
		}
		x.lose(t, family+" SYN queue is full", loss{in: b, n: losses, source: mib(b, "TcpExt.ListenDrops"), untold: true, prepare: listening(4, "0")}, func(t *testing.T) {
			x.toReceiver(t, syns(from, listener, 200, losses)...)
		})
		x.lose(t, family+" SYN queue is full, with SYN cookies", loss{in: b, n: losses, source: mib(b, "TcpExt.SyncookiesSent"), untold: true, prepare: listening(4, "1")}, func(t *testing.T) {
			x.toReceiver(t, syns(from, listener, 200, losses)...)
		})
		x.lose(t, family+" SYN, accept queue is full", loss{in: b, n: losses, source: mib(b, "TcpExt.ListenOverflows"), untold: true, prepare: listening(0, "0")}, func(t *testing.T) {
			x.toReceiver(t, syns(from, listener, 200, losses)...)
		})
	})
}

// syns returns the first segments of n handshakes, from different ports.
func syns(from netip.Addr, to netip.AddrPort, id, n int) (packets [][]byte) {
	for i := range n {
		packets = append(packets, tcpSegment{seq: 1, flags: tcpSYN}.packet(port(from, uint16(30000+id+i)), to))
	}
	return packets
}

func portOf(sa unix.Sockaddr) uint16 {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	return 0
}
