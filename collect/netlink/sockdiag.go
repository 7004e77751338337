package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
)

// TCP states as the kernel numbers them (include/net/tcp_states.h).
const (
	TCPEstablished = 1
	TCPSynSent     = 2
	TCPSynRecv     = 3
	TCPTimeWait    = 6
	TCPCloseWait   = 8
	TCPListen      = 10
	tcpNewSynRecv  = 12
	tcpStates      = 13
)

// TCPTable has sums over the TCP sockets of one network namespace, IPv4 and IPv6.
type TCPTable struct {
	// States counts the sockets by the kernel's number of their state. A connection request
	// that waits for the last ACK of the handshake counts as SYN_RECV.
	States [tcpStates]uint64
	// RxQueue and TxQueue are bytes: not read by the applications, and not acknowledged by
	// the peers. Listening sockets, whose queues hold connections, are left out.
	RxQueue, TxQueue uint64
}

// Add counts one socket with its state and its two queues.
func (t *TCPTable) Add(state uint8, rx, tx uint32) error {
	if state == 0 || state >= tcpStates {
		return fmt.Errorf("a TCP socket in the state %d, which no kernel has", state)
	}
	t.States[state]++
	if state != TCPListen {
		t.RxQueue += uint64(rx)
		t.TxQueue += uint64(tx)
	}
	return nil
}

// Connections returns the number of sockets that do not listen.
func (t *TCPTable) Connections() (n uint64) {
	for state, sockets := range t.States {
		if state != TCPListen {
			n += sockets
		}
	}
	return n
}

const (
	inetDiagGetSock = 18 // TCPDIAG_GETSOCK, the older request for both families
	sizeofSockID    = 48 // struct inet_diag_sockid
	sizeofDiagReq   = 4 + sizeofSockID + 8
	sizeofDiagReqV2 = 8 + sizeofSockID
	sizeofDiagMsg   = 4 + sizeofSockID + 20
	offsetOfRqueue  = 4 + sizeofSockID + 4
	offsetOfWqueue  = offsetOfRqueue + 4
)

// tcpMask selects the states in the connection table. Without LISTEN the kernel skips its
// listening table; above NEW_SYN_RECV newer kernels have bound sockets, which are not
// connections.
const tcpMask = 1<<(tcpNewSynRecv+1) - 1<<TCPEstablished - 1<<TCPListen

// ErrNoSockDiag is wrapped if the kernel cannot list TCP sockets through sock_diag at all.
var ErrNoSockDiag = errors.New("this kernel does not list TCP sockets through sock_diag (CONFIG_INET_DIAG)")

// ReadTCP sums the connections in v's network namespace, without listening sockets. It
// follows inet_diag_dump_icsk in net/ipv4/inet_diag.c.
//
// The kernel keeps the connections of all namespaces in one hash table, and each request
// walks all of it. So ReadTCP makes one request for both families, in the older format
// (TCPDIAG_GETSOCK); if the kernel no longer supports that format, ReadTCP makes one
// request per family.
//
// Unless known is nil, ReadTCP remembers the connections in known.
func ReadTCP(v *collect.View, t *TCPTable, known *TCPSockets) error {
	return onSockDiag(v, "list TCP sockets", func(c *conn) error { return readTCP(c, t, known) })
}

// tcpSocket identifies a connection to the kernel: family and struct inet_diag_sockid,
// which includes the kernel's cookie.
type tcpSocket struct {
	family byte
	id     [sizeofSockID]byte
}

func socketOf(msg []byte) tcpSocket { return tcpSocket{msg[0], [sizeofSockID]byte(msg[4:])} }

// MostKnown is the largest number of sockets for which AskTCP makes single requests.
// That many requests cost about as much as a walk through a table of usual size.
const MostKnown = 64

// TCPSockets remembers the connections that ReadTCP found, for AskTCP. The zero value is
// empty.
//
// Up to MostKnown connections are all remembered. If there are more, only those are
// remembered that can change without a segment in or out: those with bytes in a queue, or
// with a timer that may end them. The others are in ESTABLISHED or CLOSE_WAIT with empty
// queues, and change only with a segment. The exception is data held back by TCP_CORK,
// which is sent after 200 ms at the latest.
type TCPSockets struct {
	all      []tcpSocket // the first MostKnown
	restless []tcpSocket // the first MostKnown that can change without a segment
	found    uint64
	quiet    [tcpStates]uint64
	resting  uint64 // the sum of quiet
}

func (s *TCPSockets) reset() {
	*s = TCPSockets{all: s.all[:0], restless: s.restless[:0]}
}

// Complete reports whether s holds all connections that AskTCP must request.
func (s *TCPSockets) Complete() bool {
	return s.found == uint64(len(s.all)) || s.found == uint64(len(s.restless))+s.resting
}

// add remembers the socket of a message.
func (s *TCPSockets) add(msg []byte) {
	s.found++
	if len(s.all) < MostKnown {
		s.all = append(s.all, socketOf(msg))
	}
	state := msg[1]
	if (state == TCPEstablished || state == TCPCloseWait) && binary.NativeEndian.Uint64(msg[offsetOfRqueue:]) == 0 {
		s.quiet[state]++
		s.resting++
	} else if len(s.restless) < MostKnown {
		s.restless = append(s.restless, socketOf(msg))
	}
}

// ErrNoSuchSocket says that a requested connection has ended.
var ErrNoSuchSocket = errors.New("the connection has ended")

// AskTCP sums the connections of v's network namespace that are remembered in known, which
// must be Complete. The kernel looks up each without walking its table. If one has ended,
// the error is ErrNoSuchSocket.
//
// It may be used only if no segment went in or out of the namespace, and no socket came or
// went, since ReadTCP.
func AskTCP(v *collect.View, t *TCPTable, known *TCPSockets) error {
	*t = TCPTable{}
	list := known.all
	if known.found > uint64(len(list)) {
		t.States, list = known.quiet, known.restless
	}
	if len(list) == 0 {
		return nil
	}
	return onSockDiag(v, "ask for TCP sockets", func(c *conn) error {
		for part := range slices.Chunk(list, askAtOnce) {
			if err := askTCP(c, t, part); err != nil {
				return err
			}
		}
		return nil
	})
}

// onSockDiag calls f with a sock_diag socket in v's network namespace.
func onSockDiag(v *collect.View, what string, f func(*conn) error) error {
	return v.Enter(what, func() error {
		c, err := dial(unix.NETLINK_SOCK_DIAG, "TCP sockets (sock_diag)", v.Scratch)
		if err != nil {
			if errors.Is(err, unix.EPROTONOSUPPORT) {
				return fmt.Errorf("%w: %w", err, ErrNoSockDiag)
			}
			return err
		}
		v.Scratch = c.buf
		defer c.close()
		return f(&c)
	})
}

// askAtOnce is the number of requests in one message. All their answers must fit into the
// socket's receive buffer.
const askAtOnce = 16

// askTCP requests single sockets (struct inet_diag_req_v2). The kernel answers each request
// with the socket, or with an error.
func askTCP(c *conn, t *TCPTable, list []tcpSocket) error {
	const size = unix.SizeofNlMsghdr + sizeofDiagReqV2
	var reqs [askAtOnce * size]byte
	for i, s := range list {
		req := reqs[i*size:][:size]
		putHeader(req, unix.SOCK_DIAG_BY_FAMILY, 0)
		req[unix.SizeofNlMsghdr] = s.family
		req[unix.SizeofNlMsghdr+1] = unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4:], tcpMask)
		copy(req[unix.SizeofNlMsghdr+8:], s.id[:])
	}
	if err := c.send(reqs[:len(list)*size]); err != nil {
		return err
	}
	var gone error
	for left := len(list); left > 0; {
		part, err := c.receive()
		if err != nil {
			return err
		}
		for len(part) > 0 {
			h, payload, rest, err := nextMessage(part)
			if err != nil {
				return fmt.Errorf("netlink: read the answer about %s: %w", c.what, err)
			}
			part = rest
			left--
			switch {
			case h.typ != unix.NLMSG_ERROR:
				err = t.addMessage(payload)
			case len(payload) < 4:
				err = fmt.Errorf("%w: an error of %d bytes", errMalformed, len(payload))
			default:
				switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(payload))); errno {
				case unix.ENOENT, unix.ESTALE:
					gone = ErrNoSuchSocket
				default:
					err = &refusal{c.what, errno}
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return gone
}

func readTCP(c *conn, t *TCPTable, known *TCPSockets) error {
	return dumpTCP(c, tcpMask, func() {
		*t = TCPTable{}
		if known != nil {
			known.reset()
		}
	}, t.counter(known))
}

// dumpTCP calls each with the sockets whose state is in mask, and start before each
// attempt.
func dumpTCP(c *conn, mask uint32, start func(), each func(msg []byte) error) error {
	start()
	err := dumpBoth(c, mask, each)
	if err == nil || !refused(err) {
		return err
	}
	start()
	if err = dumpFamily(c, unix.AF_INET, mask, each); err == nil {
		err = dumpFamily(c, unix.AF_INET6, mask, each)
		if errors.Is(err, unix.ENOENT) {
			err = nil // no IPv6
		}
	}
	if err != nil && refused(err) && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		err = fmt.Errorf("%w: %w", err, ErrNoSockDiag)
	}
	return err
}

// dumpBoth makes one request for IPv4 and IPv6 (struct inet_diag_req).
func dumpBoth(c *conn, mask uint32, each func(msg []byte) error) error {
	var req [unix.SizeofNlMsghdr + sizeofDiagReq]byte
	putHeader(req[:], inetDiagGetSock, unix.NLM_F_DUMP)
	req[unix.SizeofNlMsghdr] = unix.AF_UNSPEC
	binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4+sizeofSockID:], mask)
	return dump(c, req[:], each)
}

// dumpFamily makes a request for one family (struct inet_diag_req_v2).
func dumpFamily(c *conn, family byte, mask uint32, each func(msg []byte) error) error {
	var req [unix.SizeofNlMsghdr + sizeofDiagReqV2]byte
	putHeader(req[:], unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req[unix.SizeofNlMsghdr] = family
	req[unix.SizeofNlMsghdr+1] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4:], mask)
	return dump(c, req[:], each)
}

func dump(c *conn, req []byte, each func(msg []byte) error) error {
	// Accept a table that changed during the dump: it always changes, and another dump
	// would be no more accurate.
	_, err := c.ask(req, func(_ uint16, msg []byte) error { return each(msg) })
	return err
}

// counter returns a function that counts each message of a dump, and remembers it in known
// unless that is nil.
func (t *TCPTable) counter(known *TCPSockets) func(msg []byte) error {
	return func(msg []byte) error {
		err := t.addMessage(msg)
		if err == nil && known != nil {
			known.add(msg)
		}
		return err
	}
}

// addMessage counts the socket of one struct inet_diag_msg.
func (t *TCPTable) addMessage(msg []byte) error {
	if len(msg) < sizeofDiagMsg {
		return fmt.Errorf("%w: a socket in %d bytes, not %d", errMalformed, len(msg), sizeofDiagMsg)
	}
	return t.Add(msg[1], binary.NativeEndian.Uint32(msg[offsetOfRqueue:]), binary.NativeEndian.Uint32(msg[offsetOfWqueue:]))
}
