// Package nfqueue takes packets from a netfilter queue, to which an iptables rule
// sends them, and decides the verdict on each. With it a test can lose, delay,
// reorder or damage packets.
package nfqueue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The parts of linux/netfilter/nfnetlink_queue.h in use.
const (
	subsystem = unix.NFNL_SUBSYS_QUEUE << 8

	messagePacket  = 0
	messageVerdict = 1
	messageConfig  = 2

	packetHeader  = 1  // NFQA_PACKET_HDR
	verdictHeader = 2  // NFQA_VERDICT_HDR
	packetPayload = 10 // NFQA_PAYLOAD

	configCommand    = 1 // NFQA_CFG_CMD
	configParameters = 2 // NFQA_CFG_PARAMS
	commandBind      = 1
	copyMeta         = 1
	copyPacket       = 2

	drop   = 0
	accept = 1
)

// Packet is a packet that waits for its verdict.
type Packet struct {
	ID uint32
	// Data begins with the IP header; nil for a queue without data. It is valid
	// until the callback returns.
	Data []byte
}

// Queue is a netfilter queue of the network namespace in which it was opened.
// Its methods may be called from any goroutine.
type Queue struct {
	file   *os.File
	number uint16
}

// Open opens a queue in the network namespace of the calling thread. With data,
// packets come with all their bytes, and GSO packets are segmented.
func Open(number uint16, data bool) (*Queue, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	q := &Queue{os.NewFile(uintptr(fd), "nfqueue"), number}
	mode := byte(copyMeta)
	if data {
		mode = copyPacket
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = q.configure(configCommand, commandBind, 0, 0, 0)
	}
	if err == nil {
		err = q.configure(configParameters, 0, 0, 0xff, 0xff, mode)
	}
	if err != nil {
		_ = q.file.Close()
		return nil, fmt.Errorf("take the netfilter queue %d: %w", number, err)
	}
	return q, nil
}

// Close closes the queue: packets that still arrive at it are dropped.
func (q *Queue) Close() error { return q.file.Close() }

// Serve calls f for each packet. It returns nil when the queue is closed.
func (q *Queue) Serve(f func(Packet)) error {
	b := make([]byte, 128<<10)
	for {
		n, err := q.file.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue // the socket's buffer overflowed, and packets were dropped
		case err != nil:
			return err
		}
		parse(b[:n], f)
	}
}

// parse calls f for each packet in a kernel message.
func parse(b []byte, f func(Packet)) {
	for len(b) >= 20 {
		length := int(binary.NativeEndian.Uint32(b))
		if length < 20 || length > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[4:]) == subsystem|messagePacket {
			var p Packet
			known := false
			for attrs := b[20:length]; len(attrs) >= 4; {
				n := int(binary.NativeEndian.Uint16(attrs))
				if n < 4 || n > len(attrs) {
					break
				}
				switch value := attrs[4:n]; binary.NativeEndian.Uint16(attrs[2:]) {
				case packetHeader:
					if len(value) >= 4 {
						p.ID, known = binary.BigEndian.Uint32(value), true
					}
				case packetPayload:
					p.Data = value
				}
				attrs = attrs[min((n+3)&^3, len(attrs)):]
			}
			if known {
				f(p)
			}
		}
		b = b[min((length+3)&^3, len(b)):]
	}
}

// Accept accepts a packet. An error means that the queue was closed.
func (q *Queue) Accept(id uint32) error { return q.verdict(id, accept, nil) }

// Drop ends a packet.
func (q *Queue) Drop(id uint32) error { return q.verdict(id, drop, nil) }

// Replace accepts a packet with other bytes. It does not update checksums.
func (q *Queue) Replace(id uint32, data []byte) error { return q.verdict(id, accept, data) }

func (q *Queue) verdict(id, what uint32, data []byte) error {
	v := make([]byte, 8)
	binary.BigEndian.PutUint32(v, what)
	binary.BigEndian.PutUint32(v[4:], id)
	m := q.message(messageVerdict, 0)
	m = attribute(m, verdictHeader, v)
	if data != nil {
		m = attribute(m, packetPayload, data)
	}
	return q.send(m)
}

// configure sends a request and waits for the kernel's answer.
func (q *Queue) configure(kind uint16, payload ...byte) error {
	if err := q.send(attribute(q.message(messageConfig, unix.NLM_F_ACK), kind, payload)); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, err := q.file.Read(b)
	if err != nil {
		return err
	}
	if n >= 20 && binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
		if code := int32(binary.NativeEndian.Uint32(b[16:])); code != 0 {
			return unix.Errno(-code)
		}
	}
	return nil
}

// message returns the start of a message: a header of netlink and one of nfnetlink.
func (q *Queue) message(kind, flags uint16) []byte {
	m := make([]byte, 20)
	binary.NativeEndian.PutUint16(m[4:], subsystem|kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	binary.BigEndian.PutUint16(m[18:], q.number)
	return m
}

func attribute(m []byte, kind uint16, payload []byte) []byte {
	m = binary.NativeEndian.AppendUint16(m, uint16(4+len(payload)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = append(m, payload...)
	return append(m, make([]byte, -len(m)&3)...)
}

func (q *Queue) send(m []byte) error {
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	_, err := q.file.Write(m)
	return err
}
