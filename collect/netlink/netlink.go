// Package netlink has the probes that use netlink, qdisc and conntrack, and the sock_diag
// reader of the tcpsummary probe.
//
// A socket is opened inside the network namespace, used for one sample and closed: an open
// one would keep the namespace of a dead pod alive.
package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusal is the kernel's error in answer to a request.
type refusal struct {
	what  string
	errno unix.Errno
}

func (e *refusal) Error() string {
	hint := ""
	if e.errno == unix.EPERM || e.errno == unix.EACCES {
		hint = " (needs CAP_NET_ADMIN)"
	}
	return fmt.Sprintf("netlink: ask for %s: the kernel answered: %v%s", e.what, error(e.errno), hint)
}

func (e *refusal) Unwrap() error { return e.errno }

func refused(err error) bool {
	var no *refusal
	return errors.As(err, &no)
}

// answerWithin limits the wait for one part of an answer. The kernel answers during the
// system call; the limit only keeps a thread from hanging forever.
const answerWithin = 3 * time.Second

// bufSize is the largest part that the kernel sends of a dump (netlink_recvmsg in
// net/netlink/af_netlink.c: 32 KiB). A smaller buffer needs more system calls.
const bufSize = 32 << 10

// conn is a netlink socket for one sample.
type conn struct {
	fd   int
	what string // for errors: "the sockets (sock_diag)"
	buf  []byte
}

// dial opens a socket of a netlink protocol. It receives into buf, which it grows as
// needed.
func dial(proto int, what string, buf []byte) (conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return conn{}, fmt.Errorf("netlink: open a socket to ask for %s: %w", what, err)
	}
	c := conn{fd: fd, what: what, buf: buf}
	if cap(c.buf) < bufSize {
		c.buf = make([]byte, bufSize)
	}
	c.buf = c.buf[:cap(c.buf)]
	// A connected socket receives from the kernel only (netlink_getsockbyportid), so no
	// process in the namespace can answer instead.
	kernel := unix.RawSockaddrNetlink{Family: unix.AF_NETLINK}
	_, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&kernel)), unix.SizeofSockaddrNetlink)
	if e == 0 {
		tv := unix.NsecToTimeval(int64(answerWithin))
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	} else {
		err = e
	}
	if err != nil {
		c.close()
		return conn{}, fmt.Errorf("netlink: prepare a socket to ask for %s: %w", what, err)
	}
	return c, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// header is a message header.
type header struct {
	typ, flags uint16
	seq        uint32
}

// errMalformed is wrapped by errors about a malformed answer.
var errMalformed = errors.New("malformed netlink message")

// nextMessage splits the first message off b.
func nextMessage(b []byte) (h header, payload, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, fmt.Errorf("%w: %d bytes where a header of %d should be", errMalformed, len(b), unix.SizeofNlMsghdr)
	}
	n := binary.NativeEndian.Uint32(b)
	if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
		return h, nil, nil, fmt.Errorf("%w: it says that it has %d bytes, and %d are there", errMalformed, n, len(b))
	}
	h.typ = binary.NativeEndian.Uint16(b[4:])
	h.flags = binary.NativeEndian.Uint16(b[6:])
	h.seq = binary.NativeEndian.Uint32(b[8:])
	return h, b[unix.SizeofNlMsghdr:n], b[min(align(int(n)), len(b)):], nil
}

// nextAttr splits the first attribute off b. typ is without flags.
func nextAttr(b []byte) (typ uint16, value, rest []byte, err error) {
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, nil, fmt.Errorf("%w: %d bytes where an attribute should be", errMalformed, len(b))
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < unix.SizeofNlAttr || n > len(b) {
		return 0, nil, nil, fmt.Errorf("%w: an attribute says that it has %d bytes, and %d are there", errMalformed, n, len(b))
	}
	typ = binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	return typ, b[unix.SizeofNlAttr:n], b[min(align(n), len(b)):], nil
}

func align(n int) int { return (n + 3) &^ 3 }

// putHeader writes the header of the request b.
func putHeader(b []byte, typ, flags uint16) {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], requestSeq)
}

// requestSeq is the sequence number of every request: each sample has its own socket, and
// reads an answer to its end before the next request.
const requestSeq = 1

// ask sends a request and calls each for every message of the answer. interrupted says that
// the dump changed while it was read, so that parts may be missing or duplicate. If the
// kernel refuses, the error is a *refusal.
func (c *conn) ask(req []byte, each func(typ uint16, payload []byte) error) (interrupted bool, err error) {
	dump := binary.NativeEndian.Uint16(req[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	if err := c.send(req); err != nil {
		return false, err
	}
	for {
		part, err := c.receive()
		if err != nil {
			return interrupted, err
		}
		done, intr, err := readPart(part, c.what, dump, each)
		interrupted = interrupted || intr
		if err != nil {
			return interrupted, err
		}
		if done {
			return interrupted, nil
		}
	}
}

func (c *conn) send(req []byte) error {
	for {
		_, err := unix.Write(c.fd, req)
		if err == unix.EINTR {
			continue
		}
		// The kernel processes a request during write(2), so this error may be its answer.
		var errno unix.Errno
		if errors.As(err, &errno) {
			return &refusal{c.what, errno}
		}
		if err != nil {
			return fmt.Errorf("netlink: ask for %s: %w", c.what, err)
		}
		return nil
	}
}

func (c *conn) receive() ([]byte, error) {
	for {
		n, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(c.buf))),
			uintptr(len(c.buf)), unix.MSG_TRUNC, 0, 0)
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return nil, fmt.Errorf("netlink: ask for %s: the kernel did not answer within %v", c.what, answerWithin)
		case e != 0:
			return nil, fmt.Errorf("netlink: receive %s: %w", c.what, error(e))
		case int(n) > len(c.buf):
			return nil, fmt.Errorf("netlink: receive %s: a part of %d bytes was cut to %d", c.what, n, len(c.buf))
		}
		return c.buf[:n], nil
	}
}

// readPart parses one part of an answer. done: it was the last. Only a dump has several
// messages and an end, but some subsystems set NLM_F_MULTI on a single message, too.
func readPart(b []byte, what string, dump bool, each func(typ uint16, payload []byte) error) (done, interrupted bool, err error) {
	wrap := func(err error) error { return fmt.Errorf("netlink: read the answer about %s: %w", what, err) }
	if len(b) == 0 {
		return false, false, wrap(fmt.Errorf("%w: it is empty", errMalformed))
	}
	for len(b) > 0 {
		h, payload, rest, err := nextMessage(b)
		if err != nil {
			return false, interrupted, wrap(err)
		}
		b = rest
		if h.seq != requestSeq {
			continue
		}
		interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
		switch h.typ {
		case unix.NLMSG_NOOP:
			continue
		case unix.NLMSG_OVERRUN:
			return false, interrupted, wrap(errors.New("the kernel lost a part of it"))
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			// An error starts with its number, 0 for an acknowledgement. Since Linux 4.12
			// the end of a dump does, too.
			var code int32
			if len(payload) >= 4 {
				code = int32(binary.NativeEndian.Uint32(payload))
			} else if h.typ == unix.NLMSG_ERROR {
				return false, interrupted, wrap(fmt.Errorf("%w: an error of %d bytes", errMalformed, len(payload)))
			}
			if code < 0 {
				return false, interrupted, &refusal{what, unix.Errno(-code)}
			}
			return true, interrupted, nil
		}
		if err := each(h.typ, payload); err != nil {
			return false, interrupted, wrap(err)
		}
		if !dump || h.flags&unix.NLM_F_MULTI == 0 {
			return true, interrupted, nil
		}
	}
	return false, interrupted, nil
}
