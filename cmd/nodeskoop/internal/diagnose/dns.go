package diagnose

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// lookup is a query to a DNS server over UDP, as seen on the node's interfaces.
type lookup struct {
	client, server netip.Addr
	asked          time.Time
	answered       time.Time // zero if there was no answer
	device         int       // index of the node's interface at which the query arrived
}

// lookupKey identifies a query. The server is not part of it: a service's address
// is translated on the way, and the packet is seen before and after.
type lookupKey struct {
	client netip.Addr
	port   uint16
	id     uint16
}

// mostLookups is the maximum number of queries that are followed. Beyond it, queries of
// the interface with the most queries are left out. A pod may invent source addresses,
// but all of its queries arrive by its own interface.
const mostLookups = 100_000

// lookups follows the DNS queries that pass through one namespace.
type lookups struct {
	fd   int
	all  map[lookupKey]*lookup
	by   map[int][]lookupKey // keys of the queries, by interface
	rich int                 // the interface with the most queries
	most int
	done chan struct{}
}

func newLookups(most int) *lookups {
	return &lookups{fd: -1, all: map[lookupKey]*lookup{}, by: map[int][]lookupKey{}, most: most, done: make(chan struct{})}
}

// follow begins to follow a query. It returns nil if there is no room.
func (l *lookups) follow(k lookupKey, device int, at time.Time) *lookup {
	if len(l.all) >= l.most {
		keys := l.by[l.rich]
		if len(keys) <= len(l.by[device])+1 {
			return nil
		}
		delete(l.all, keys[len(keys)-1])
		l.by[l.rich] = keys[:len(keys)-1]
	}
	x := &lookup{client: k.client, asked: at, device: device}
	l.all[k] = x
	l.by[device] = append(l.by[device], k)
	if len(l.by[device]) > len(l.by[l.rich]) {
		l.rich = device
	}
	return x
}

// dnsOnly passes UDP from and to port 53 that is not encapsulated, and of a
// fragmented datagram only the first fragment. The socket is of type SOCK_DGRAM: the
// filter sees the packet from the IP header on.
var dnsOnly = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
	{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 4},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 6, Jt: 10},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 4, Jf: 16},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9}, // protocol
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_UDP, Jf: 14},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 6}, // fragment
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x1fff, Jt: 12},
	{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 0},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: dnsPort, Jt: 8},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: dnsPort, Jt: 6, Jf: 7},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6}, // next header
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_UDP, Jf: 5},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 40},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: dnsPort, Jt: 2},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 42},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: dnsPort, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xFFFF},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

const (
	dnsPort   = 53
	allFrames = 0x0300 // ETH_P_ALL in the network's byte order
)

// watchDNS starts to follow the DNS queries in the network namespace at path, until
// ctx ends. The socket receives copies and does not affect the traffic.
func watchDNS(ctx context.Context, path string) (*lookups, error) {
	l := newLookups(mostLookups)
	err := kernel.InNetns(path, 0, func() error {
		// With protocol 0 the socket receives nothing before the filter is set.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a packet socket: %w (needs CAP_NET_RAW)", err)
		}
		prog := unix.SockFprog{Len: uint16(len(dnsOnly)), Filter: &dnsOnly[0]}
		tv := unix.NsecToTimeval(int64(100 * time.Millisecond))
		const room = 4 << 20
		if err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		}
		if err == nil && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allFrames})
		}
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("prepare a packet socket: %w", err)
		}
		l.fd = fd
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("watch DNS: %w", err)
	}
	go func() {
		defer close(l.done)
		defer unix.Close(l.fd)
		var buf [512]byte
		for ctx.Err() == nil {
			n, from, err := unix.Recvfrom(l.fd, buf[:], 0)
			if err == nil {
				device := 0
				if ll, ok := from.(*unix.SockaddrLinklayer); ok {
					device = ll.Ifindex
				}
				l.add(buf[:n], device, time.Now())
			} else if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENETDOWN) {
				return
			}
		}
	}()
	return l, nil
}

// add records a packet, given from its IP header on, that was seen at a device.
func (l *lookups) add(b []byte, device int, at time.Time) {
	var src, dst netip.Addr
	var udp []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if n := int(b[0]&15) * 4; n >= 20 && n <= len(b) {
			udp = b[n:]
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		src, dst, udp = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:]
	}
	if len(udp) < 8+12 { // the headers of UDP and DNS
		return
	}
	from, to := binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])
	id, response := binary.BigEndian.Uint16(udp[8:]), udp[10]&0x80 != 0
	switch {
	case to == dnsPort && !response:
		k := lookupKey{src, from, id}
		x := l.all[k]
		if x == nil {
			x = l.follow(k, device, at)
		}
		if x != nil && x.answered.IsZero() {
			x.server = dst // the last server seen is the one that really receives the query
		}
	case from == dnsPort && response:
		if x := l.all[lookupKey{dst, to, id}]; x != nil && x.answered.IsZero() {
			x.answered = at
		}
	}
}

// end waits until the observation has ended, and returns the queries.
func (l *lookups) end() []lookup {
	<-l.done
	list := make([]lookup, 0, len(l.all))
	for _, x := range l.all {
		list = append(list, *x)
	}
	return list
}
