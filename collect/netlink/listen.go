package netlink

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Listener hears of what comes and goes in the network namespace that it was
// opened in, with the counters of that moment: two readings of counters cannot
// tell an interface that moved in with a history from one that was created.
//
// It keeps its namespace alive, so there is one for the host's only. It is not
// safe for use by several goroutines.
type Listener struct {
	c conn
}

// listenRoom is how many bytes of messages may wait until the next sample. An
// interface that is created takes about 4 KiB. Memory is used as they come.
const listenRoom = 4 << 20

// ListenLinks opens a Listener of interfaces, in the namespace of the thread:
// RTM_NEWLINK for those that were registered or moved in, RTM_DELLINK for
// those that were deleted or moved out, and nothing of what merely changed.
func ListenLinks() (*Listener, error) {
	return listen("interfaces that come and go", unix.RTNLGRP_LINK)
}

// listenQdiscs opens a Listener of RTM_NEWQDISC and RTM_DELQDISC, too: the
// kernel does not tell of the qdiscs that an interface brings and takes along.
func listenQdiscs() (*Listener, error) {
	return listen("queueing disciplines that come and go", unix.RTNLGRP_LINK, unix.RTNLGRP_TC)
}

// comesOrGoes lets all messages through but changes of interfaces. One that
// comes or goes has all bits set in ifi_change (rtmsg_ifinfo with ~0U in
// net/core/rtnetlink.c and dev.c); a bridge tells of its ports with the same
// types in a family of its own.
var comesOrGoes = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: bigEndian16(unix.RTM_NEWLINK), Jt: 1},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: bigEndian16(unix.RTM_DELLINK), Jf: 4},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: unix.SizeofNlMsghdr + 12}, // ifi_change
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0xFFFFFFFF, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: unix.SizeofNlMsghdr}, // ifi_family
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_UNSPEC, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xFFFFFFFF},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// bigEndian16 is a number of the kernel's byte order as a classic filter,
// which loads in that of the network, sees it.
func bigEndian16(x uint16) uint32 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], x)
	return uint32(binary.BigEndian.Uint16(b[:]))
}

func listen(what string, groups ...int) (*Listener, error) {
	c, err := dial(unix.NETLINK_ROUTE, what, nil)
	if err != nil {
		return nil, err
	}
	prog := unix.SockFprog{Len: uint16(len(comesOrGoes)), Filter: &comesOrGoes[0]}
	err = unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
	if err == nil {
		if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenRoom) != nil {
			err = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, listenRoom)
		}
	}
	for _, group := range groups {
		if err == nil {
			err = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("netlink: listen for %s: %w", what, err)
	}
	return &Listener{c}, nil
}

// Drain calls each with the messages that have come, in order, and does not
// wait for more. lost says that the kernel had no room for some.
func (l *Listener) Drain(each func(typ uint16, msg []byte) error) (lost bool, err error) {
	for {
		n, _, err := unix.Recvfrom(l.c.fd, l.c.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return lost, nil
		case err == unix.ENOBUFS:
			lost = true
			continue
		case err != nil:
			return lost, fmt.Errorf("netlink: receive %s: %w", l.c.what, err)
		case n > len(l.c.buf):
			lost = true
			continue
		}
		for b := l.c.buf[:n]; len(b) > 0; {
			h, payload, rest, err := nextMessage(b)
			if err == nil {
				b = rest
				err = each(h.typ, payload)
			}
			if err != nil {
				return lost, fmt.Errorf("netlink: read what was said of %s: %w", l.c.what, err)
			}
		}
	}
}

// Close ends listening.
func (l *Listener) Close() error {
	l.c.close()
	return nil
}

// HostListener is the Listener of the host's namespace, and the memory of that
// namespace which takes in what it hears. Its zero value has none. It is not
// safe for use by several goroutines.
type HostListener[T any] struct {
	l    *Listener
	of   *T
	deaf bool // none could be opened, which is said once
}

// Wanted reports whether a memory has no Listener yet, and may have one.
func (h *HostListener[T]) Wanted(memory *T) bool { return h.of != memory && !h.deaf }

// Set takes the Listener of a memory, in place of another's.
func (h *HostListener[T]) Set(l *Listener, memory *T) {
	_ = h.Close()
	h.l, h.of = l, memory
}

// Deaf notes that none could be opened.
func (h *HostListener[T]) Deaf() { h.deaf = true }

// Of gives the Listener of a memory, nil if it has none.
func (h *HostListener[T]) Of(memory *T) *Listener {
	if h.of != memory {
		return nil
	}
	return h.l
}

// Close ends listening.
func (h *HostListener[T]) Close() error {
	if h.l == nil {
		return nil
	}
	err := h.l.Close()
	h.l, h.of = nil, nil
	return err
}

// LinkMessage is what RTM_NEWLINK and RTM_DELLINK say of an interface.
type LinkMessage struct {
	Index    int32
	Loopback bool
	Name     []byte // of the message, with its NUL
	// Stats are struct rtnl_link_stats64, nil if the message has none.
	Stats []byte
	// NewIndex is the index in the namespace that it moved to, 0 if it did not
	// or the kernel does not tell (before Linux 4.16).
	NewIndex int32
}

const iflaNewIfindex = 49 // IFLA_NEW_IFINDEX

// ParseLink reads the payload of RTM_NEWLINK or RTM_DELLINK (rtnl_fill_ifinfo
// in net/core/rtnetlink.c).
func ParseLink(msg []byte) (m LinkMessage, err error) {
	if len(msg) < unix.SizeofIfInfomsg {
		return m, fmt.Errorf("%w: an interface in %d bytes", errMalformed, len(msg))
	}
	m.Index = int32(binary.NativeEndian.Uint32(msg[4:]))
	m.Loopback = binary.NativeEndian.Uint32(msg[8:])&unix.IFF_LOOPBACK != 0
	for b := msg[unix.SizeofIfInfomsg:]; len(b) > 0; {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return m, err
		}
		b = rest
		switch {
		case typ == unix.IFLA_IFNAME:
			m.Name = value
		case typ == unix.IFLA_STATS64:
			m.Stats = value
		case typ == iflaNewIfindex && len(value) >= 4:
			m.NewIndex = int32(binary.NativeEndian.Uint32(value))
		}
	}
	return m, nil
}
