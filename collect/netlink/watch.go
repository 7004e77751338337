package netlink

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Watch listens in the host's network namespace for changes of interfaces in the other
// namespaces. A namespace without a change need not be entered to read its interfaces
// again. The kernel reports the changes of each namespace that has an ID in the host's
// namespace. A namespace gets an ID if it has a veth whose peer is in the host's namespace,
// or if an interface is moved to it.
//
// A Watch pins only the host's namespace. It is not safe for use by several goroutines.
type Watch struct {
	events, questions conn
	heard             uint64           // messages received so far
	last              map[int32]uint64 // value of heard at the last message of a namespace, by ID
	lost              uint64           // heard at the last loss of messages
	hdr               unix.Msghdr
	iov               unix.Iovec
	control           [64]byte
}

// NoID is the ID of a namespace to which the host's has assigned none.
const NoID = int32(unix.NETNSA_NSID_NOT_ASSIGNED)

// watchRoom is the receive buffer, in bytes, for the messages between two samples.
const watchRoom = 1 << 20

// WatchLinks opens a Watch in the thread's namespace. It needs CAP_NET_BROADCAST.
func WatchLinks() (*Watch, error) {
	const what = "interfaces of other network namespaces"
	events, err := dial(unix.NETLINK_ROUTE, what, nil)
	if err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(events.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchRoom) != nil {
		err = unix.SetsockoptInt(events.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchRoom)
	}
	for _, o := range [][2]int{{unix.NETLINK_LISTEN_ALL_NSID, 1}, {unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK}, {unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NSID}} {
		if err == nil {
			err = unix.SetsockoptInt(events.fd, unix.SOL_NETLINK, o[0], o[1])
		}
	}
	if err != nil {
		events.close()
		return nil, fmt.Errorf("netlink: listen for %s: %w (needs CAP_NET_BROADCAST)", what, err)
	}
	questions, err := dial(unix.NETLINK_ROUTE, "the ID of a network namespace", nil)
	if err != nil {
		events.close()
		return nil, err
	}
	return &Watch{events: events, questions: questions, last: map[int32]uint64{}}, nil
}

// Close stops listening.
func (w *Watch) Close() error {
	w.events.close()
	w.questions.close()
	return nil
}

// ID returns the ID of an open namespace, or NoID (rtnl_net_getid in
// net/core/net_namespace.c). The kernel does not report changes from before the
// namespace had an ID.
func (w *Watch) ID(ns int) (id int32, err error) {
	var req [unix.SizeofNlMsghdr + 4 + 8]byte // struct rtgenmsg, NETNSA_FD
	putHeader(req[:], unix.RTM_GETNSID, 0)
	a := req[unix.SizeofNlMsghdr+4:]
	binary.NativeEndian.PutUint16(a, 8)
	binary.NativeEndian.PutUint16(a[2:], unix.NETNSA_FD)
	binary.NativeEndian.PutUint32(a[4:], uint32(ns))
	id = NoID
	_, err = w.questions.ask(req[:], func(_ uint16, msg []byte) error {
		id, err = parseID(msg)
		return err
	})
	if err != nil {
		return NoID, err
	}
	return id, nil
}

// parseID reads the payload of RTM_NEWNSID or RTM_DELNSID.
func parseID(msg []byte) (int32, error) {
	if len(msg) < 4 {
		return NoID, fmt.Errorf("%w: the ID of a network namespace in %d bytes", errMalformed, len(msg))
	}
	for b := msg[4:]; len(b) > 0; {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return NoID, err
		}
		if b = rest; typ == unix.NETNSA_NSID && len(value) >= 4 {
			return int32(binary.NativeEndian.Uint32(value)), nil
		}
	}
	return NoID, nil
}

// Mark returns the present position in the stream of messages, for Changed.
func (w *Watch) Mark() (mark uint64, err error) {
	err = w.drain()
	return w.heard, err
}

// Changed reports whether an interface of a namespace may have been created, deleted, moved
// or renamed between a Mark and this call, or whether its ID was assigned to another
// namespace.
func (w *Watch) Changed(id int32, mark uint64) (bool, error) {
	err := w.drain()
	return id < 0 || w.last[id] > mark || w.lost > mark, err
}

// drain receives the messages that are waiting.
func (w *Watch) drain() error {
	for {
		n, id, err := w.receive()
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil
		case err == unix.ENOBUFS:
			w.heard++
			w.lost = w.heard
			continue
		case err != nil:
			// The socket may be unusable, so all namespaces count as changed.
			w.heard++
			w.lost = w.heard
			return fmt.Errorf("netlink: receive %s: %w", w.events.what, err)
		}
		w.heard++
		if id < 0 {
			// From the host's own namespace only assignments of IDs matter.
			h, payload, _, err := nextMessage(w.events.buf[:min(n, len(w.events.buf))])
			if err != nil || h.typ != unix.RTM_NEWNSID && h.typ != rtmDelNSID {
				continue
			}
			if id, err = parseID(payload); err != nil {
				w.lost = w.heard
				continue
			}
		}
		w.last[id] = w.heard
	}
}

const rtmDelNSID = 89 // RTM_DELNSID

// receive receives one message with the ID of its namespace, NoID for the host's own.
func (w *Watch) receive() (n int, id int32, err error) {
	w.iov.Base = unsafe.SliceData(w.events.buf)
	w.iov.SetLen(len(w.events.buf))
	w.hdr = unix.Msghdr{Iov: &w.iov, Iovlen: 1, Control: &w.control[0]}
	w.hdr.SetControllen(len(w.control))
	r, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(w.events.fd), uintptr(unsafe.Pointer(&w.hdr)), unix.MSG_DONTWAIT)
	if e != 0 {
		return 0, NoID, e
	}
	for b := w.control[:w.hdr.Controllen]; len(b) >= unix.SizeofCmsghdr; {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			break
		}
		if h.Level == unix.SOL_NETLINK && h.Type == unix.NETLINK_LISTEN_ALL_NSID && len(data) >= 4 {
			return int(r), int32(binary.NativeEndian.Uint32(data)), nil
		}
		b = rest
	}
	return int(r), NoID, nil
}
