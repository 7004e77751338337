package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCPSocket is one TCP socket as sock_diag reports it.
type TCPSocket struct {
	State         uint8 // TCPEstablished and its like
	Local, Remote netip.AddrPort
	// RxQueue and TxQueue are bytes, as in TCPTable. For TCPListen, RxQueue is the number
	// of connections in the accept queue, and TxQueue its limit (net/ipv4/tcp_diag.c,
	// tcp_diag_get_info).
	RxQueue, TxQueue uint32
}

// ListTCP lists the TCP sockets of the calling thread's network namespace, listening ones
// included. It returns the first most sockets, and the number of all. It is meant for
// interactive use: each call makes the kernel walk its whole connection table.
func ListTCP(most int) (list []TCPSocket, total int, err error) {
	c, err := dial(unix.NETLINK_SOCK_DIAG, "TCP sockets (sock_diag)", nil)
	if err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil, 0, fmt.Errorf("%w: %w", err, ErrNoSockDiag)
		}
		return nil, 0, err
	}
	defer c.close()
	err = dumpTCP(&c, tcpMask|1<<TCPListen, func() { list, total = list[:0], 0 }, func(msg []byte) error {
		s, err := parseSocket(msg)
		if err != nil {
			return err
		}
		if total++; len(list) < most {
			list = append(list, s)
		}
		return nil
	})
	return list, total, err
}

// parseSocket parses a struct inet_diag_msg.
func parseSocket(msg []byte) (s TCPSocket, err error) {
	if len(msg) < sizeofDiagMsg {
		return s, fmt.Errorf("%w: a socket in %d bytes, not %d", errMalformed, len(msg), sizeofDiagMsg)
	}
	s = TCPSocket{State: msg[1], RxQueue: binary.NativeEndian.Uint32(msg[offsetOfRqueue:]), TxQueue: binary.NativeEndian.Uint32(msg[offsetOfWqueue:])}
	if s.State == 0 || s.State >= tcpStates {
		return s, fmt.Errorf("a TCP socket in the state %d, which no kernel has", s.State)
	}
	addr := func(b []byte) netip.Addr {
		if msg[0] == unix.AF_INET6 {
			return netip.AddrFrom16([16]byte(b)).Unmap()
		}
		return netip.AddrFrom4([4]byte(b))
	}
	// struct inet_diag_sockid: ports and addresses in network byte order.
	id := msg[4:]
	s.Local = netip.AddrPortFrom(addr(id[4:]), binary.BigEndian.Uint16(id))
	s.Remote = netip.AddrPortFrom(addr(id[20:]), binary.BigEndian.Uint16(id[2:]))
	return s, nil
}
