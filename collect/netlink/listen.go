package netlink

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Listener receives the kernel's messages about interfaces and qdiscs that appear in or
// disappear from its network namespace, with their counters at that moment. Readings of
// the counters alone cannot tell an interface that moved in from one that was created.
//
// It keeps its namespace alive, so only the host's has one. It is not safe for concurrent
// use.
type Listener struct {
	c conn
}

// listenRoom is the socket's receive buffer in bytes, for the messages until the next
// sample. A created interface needs about 4 KiB. The kernel allocates memory only as
// messages arrive.
const listenRoom = 4 << 20

// ListenLinks opens a Listener in the thread's network namespace for interfaces:
// RTM_NEWLINK for those created or moved in, RTM_DELLINK for those deleted or moved out,
// and no messages about changes.
func ListenLinks() (*Listener, error) {
	return listen("interfaces that come and go", unix.RTNLGRP_LINK)
}

// listenQdiscs opens a Listener that also gets RTM_NEWQDISC and RTM_DELQDISC: the kernel
// sends none for the qdiscs that are created and deleted with an interface.
func listenQdiscs() (*Listener, error) {
	return listen("queueing disciplines that come and go", unix.RTNLGRP_LINK, unix.RTNLGRP_TC)
}

// comesOrGoes is a socket filter that drops messages about mere changes of interfaces, and
// those of bridges about their ports, which have the same types but another family. If an
// interface comes or goes, all bits of ifi_change are set (rtmsg_ifinfo with ~0U in
// net/core/rtnetlink.c and dev.c).
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

// bigEndian16 is a number in host byte order as a classic filter, which loads in network
// byte order, sees it.
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

// Drain calls each with the messages received so far, in order, without waiting for more.
// lost reports that the kernel dropped some because the buffer was full.
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
				return lost, fmt.Errorf("netlink: read a notification about %s: %w", l.c.what, err)
			}
		}
	}
}

// Close closes the socket.
func (l *Listener) Close() error {
	l.c.close()
	return nil
}

// HostListener is the Listener of the host's namespace, with the state that it updates.
// The zero value has no Listener. It is not safe for concurrent use.
type HostListener[T any] struct {
	l    *Listener
	of   *T
	deaf bool // opening a Listener failed, and the error was logged
}

// Wanted reports whether a Listener should be opened for this state.
func (h *HostListener[T]) Wanted(memory *T) bool { return h.of != memory && !h.deaf }

// Set replaces the Listener by that of a state.
func (h *HostListener[T]) Set(l *Listener, memory *T) {
	_ = h.Close()
	h.l, h.of = l, memory
}

// Deaf records that a Listener could not be opened.
func (h *HostListener[T]) Deaf() { h.deaf = true }

// Of returns the Listener of a state; nil if it has none.
func (h *HostListener[T]) Of(memory *T) *Listener {
	if h.of != memory {
		return nil
	}
	return h.l
}

// Close closes the Listener.
func (h *HostListener[T]) Close() error {
	if h.l == nil {
		return nil
	}
	err := h.l.Close()
	h.l, h.of = nil, nil
	return err
}

// LinkMessage is the content of RTM_NEWLINK and RTM_DELLINK.
type LinkMessage struct {
	Index    int32
	Loopback bool
	Name     []byte // aliases the message, with the trailing NUL
	// Stats are struct rtnl_link_stats64; nil if the message has none.
	Stats []byte
	// NewIndex is the interface's index in the namespace that it moved to; 0 if it did not
	// move or the kernel does not say (before Linux 4.16).
	NewIndex int32
}

const iflaNewIfindex = 49 // IFLA_NEW_IFINDEX

// ParseLink parses the payload of RTM_NEWLINK or RTM_DELLINK (rtnl_fill_ifinfo in
// net/core/rtnetlink.c).
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
