package diagnose

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// socket is one TCP socket of a namespace.
type socket struct {
	state         uint8
	local, remote netip.AddrPort
	// rx and tx are bytes. For a listening socket they are the number of waiting
	// connections and its limit.
	rx, tx uint32
	timer  uint8 // the running timer (idiag_timer)
	// info is nil if the kernel reports none, as for sockets that are not
	// connections.
	info *netlink.TCPInfo
}

// TCP states (include/net/tcp_states.h).
const (
	established = 1
	synSent     = 2
	synRecv     = 3
	timeWait    = 6
	closeWait   = 8
	listening   = 10
)

// qdisc is one queueing discipline.
type qdisc struct {
	device         string
	kind           string
	handle         uint32
	bytes, packets uint64
	drops, limits  uint64 // overlimits
	rate           uint64 // configured rate in bytes per second; 0: not known
	qlen, backlog  uint64
}

// neighbour is an entry of the neighbour tables (ARP, NDP).
type neighbour struct {
	addr  netip.Addr
	mac   string
	state int
}

// address is an address of an interface.
type address struct {
	addr   netip.Addr
	bits   int
	device string
}

// link is an interface.
type link struct {
	name, mac string
	mtu       int
	up        bool
	index     int
	// peer is the index of a veth's other end, if that end is in the node's namespace.
	peer int
}

// timerPersist is the timer of window probes (net/ipv4/inet_diag.c,
// inet_diag_msg_sock_fill).
const timerPersist = 4

// netnsState is the state of one network namespace at one moment.
type netnsState struct {
	counters   map[string]uint64 // named as in nstat
	sockets    []socket
	qdiscs     []qdisc
	neighbours []neighbour
	addrs      []address
	links      []link
	// default4 and default6: there is a default route.
	default4, default6 bool
	// portsFrom to portsTo are the ephemeral ports.
	portsFrom, portsTo uint16
	twMax, tw          uint64 // TIME_WAIT sockets
	// failed maps missing parts to the reason.
	failed map[string]error
}

// mostSockets is the maximum number of sockets per namespace that are examined. Beyond
// it, sockets of the user with the most sockets are left out, so that on the node one
// user's hundred thousand sockets do not hide another user's service.
const mostSockets = 50_000

// readNetns reads the state of the calling thread's namespace. whole also reads
// state that no counter depends on. node is the file of the node's namespace.
func readNetns(whole bool, node string) *netnsState {
	s := &netnsState{counters: map[string]uint64{}, failed: map[string]error{}}
	part := func(name string, err error) {
		if err != nil {
			s.failed[name] = err
		}
	}
	for _, file := range []string{"snmp", "netstat", "snmp6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		switch {
		case err == nil && file == "snmp6":
			err = parseCounters6(b, s.counters)
		case err == nil:
			err = parseCounters(b, s.counters)
		case errors.Is(err, fs.ErrNotExist) && file == "snmp6":
			err = nil // no IPv6
		}
		part("counters ("+file+")", err)
	}
	part("connections", s.readSockets())
	part("queueing disciplines", s.readQdiscs())
	if !whole {
		return s
	}
	part("interfaces", s.readLinks(node))
	part("neighbours", s.readNeighbours())
	part("routes", s.readRoutes())
	part("range of ports", s.readPorts())
	return s
}

// parseCounters parses /proc/PID/net/snmp or netstat: pairs of lines, one with
// names and one with numbers. It skips negative numbers (Tcp MaxConn).
func parseCounters(b []byte, to map[string]uint64) error {
	for len(b) > 0 {
		var names, values []byte
		names, b, _ = bytes.Cut(b, []byte{'\n'})
		values, b, _ = bytes.Cut(b, []byte{'\n'})
		n, v := strings.Fields(string(names)), strings.Fields(string(values))
		if len(n) == 0 {
			continue
		}
		if len(n) != len(v) || n[0] != v[0] || !strings.HasSuffix(n[0], ":") {
			return fmt.Errorf("read the counters: %d names under %.40q and %d numbers", len(n), names, len(v))
		}
		prefix := strings.TrimSuffix(n[0], ":")
		for i := 1; i < len(n); i++ {
			if x, err := strconv.ParseUint(v[i], 10, 64); err == nil {
				to[prefix+n[i]] = x
			} else if !strings.HasPrefix(v[i], "-") {
				return fmt.Errorf("read the counters: %s%s: %.40q is not a number", prefix, n[i], v[i])
			}
		}
	}
	return nil
}

// parseCounters6 parses /proc/PID/net/snmp6: a name and a number per line.
func parseCounters6(b []byte, to map[string]uint64) error {
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 2 {
			return fmt.Errorf("read the counters of IPv6: %.60q is not a name and a number", line)
		}
		x, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return fmt.Errorf("read the counters of IPv6: %s: %.40q is not a number", f[0], f[1])
		}
		to[f[0]] = x
	}
	return nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func (s *netnsState) readSockets() error {
	var all []*netlink.InetDiagTCPInfoResp
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.SocketDiagTCPInfo(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			if family == unix.AF_INET6 && errors.Is(err, unix.ENOENT) {
				continue // no IPv6
			}
			return fmt.Errorf("list TCP sockets (sock_diag): %w", err)
		}
		all = append(all, list...)
	}
	for _, x := range fairShare(all, mostSockets, func(x *netlink.InetDiagTCPInfoResp) socketClass {
		m := x.InetDiagMsg
		switch m.State {
		case timeWait, synRecv: // these have no user
			return socketClass{state: m.State}
		case listening:
			return socketClass{uid: m.UID, state: listening}
		}
		return socketClass{uid: m.UID}
	}) {
		m := x.InetDiagMsg
		s.sockets = append(s.sockets, socket{
			state: m.State, rx: m.RQueue, tx: m.WQueue, timer: m.Timer, info: x.TCPInfo,
			local:  netip.AddrPortFrom(addrOf(m.ID.Source), m.ID.SourcePort),
			remote: netip.AddrPortFrom(addrOf(m.ID.Destination), m.ID.DestinationPort),
		})
	}
	return nil
}

// socketClass distinguishes the sockets that share the room.
type socketClass struct {
	uid   uint32
	state uint8 // 0 stands for any other state
}

// fairShare returns the elements in their order, at most `most` of them. Each class
// gets an equal share of the room; the part of a share that a class does not need
// goes to the others.
func fairShare[T any, C comparable](all []T, most int, of func(T) C) []T {
	if len(all) <= most {
		return all
	}
	count := map[C]int{}
	for _, x := range all {
		count[of(x)]++
	}
	share, room := most, most
	for left, sizes := len(count), slices.Sorted(maps.Values(count)); left > 0; left-- {
		if share = room / left; sizes[len(sizes)-left] > share {
			break // the remaining classes need at least as much
		}
		room -= sizes[len(sizes)-left]
	}
	out := make([]T, 0, most)
	taken := map[C]int{}
	for _, x := range all {
		if c := of(x); taken[c] < max(share, 1) && len(out) < most {
			taken[c]++
			out = append(out, x)
		}
	}
	return out
}

func (s *netnsState) readQdiscs() error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	list, err := netlink.QdiscList(nil)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list queueing disciplines: %w", err)
	}
	for _, q := range list {
		a := q.Attrs()
		x := qdisc{device: names[a.LinkIndex], kind: q.Type(), handle: a.Handle}
		if tbf, ok := q.(*netlink.Tbf); ok {
			x.rate = tbf.Rate
		}
		if st := a.Statistics; st != nil {
			if st.Basic != nil {
				x.bytes, x.packets = st.Basic.Bytes, uint64(st.Basic.Packets)
			}
			if st.Queue != nil {
				x.drops, x.limits = uint64(st.Queue.Drops), uint64(st.Queue.Overlimits)
				x.qlen, x.backlog = uint64(st.Queue.Qlen), uint64(st.Queue.Backlog)
			}
		}
		s.qdiscs = append(s.qdiscs, x)
	}
	return nil
}

func (s *netnsState) readLinks(node string) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	// The list gives each other end's namespace a number. An index alone proves nothing: a
	// pod with CAP_NET_ADMIN chooses those of its interfaces.
	ofNode, unknown := numberOfNetns(node)
	if unknown != nil {
		unknown, ofNode = fmt.Errorf("find the interfaces that lead to the node: %w", unknown), -1
	}
	for _, l := range links {
		a := l.Attrs()
		x := link{name: a.Name, mac: a.HardwareAddr.String(), mtu: a.MTU, up: a.Flags&net.FlagUp != 0, index: a.Index}
		if l.Type() == "veth" && a.NetNsID >= 0 && a.NetNsID == ofNode {
			x.peer = a.ParentIndex
		}
		s.links = append(s.links, x)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list the addresses of %s: %w", a.Name, err)
		}
		for _, x := range addrs {
			bits, _ := x.Mask.Size()
			s.addrs = append(s.addrs, address{addrOf(x.IP), bits, a.Name})
		}
	}
	return unknown
}

// numberOfNetns returns the number by which the calling thread's namespace refers to another
// one, -1 if it has none (rtnl_net_getid in net/core/net_namespace.c).
func numberOfNetns(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	id, err := netlink.GetNetNsIdByFd(int(f.Fd()))
	if err != nil {
		return 0, fmt.Errorf("number of the network namespace %s: %w", path, err)
	}
	return id, nil
}

func (s *netnsState) readNeighbours() error {
	list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range list {
		if n.Family == unix.AF_INET || n.Family == unix.AF_INET6 {
			s.neighbours = append(s.neighbours, neighbour{addrOf(n.IP), n.HardwareAddr.String(), n.State})
		}
	}
	return nil
}

func (s *netnsState) readRoutes() error {
	list, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range list {
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if r.Family == unix.AF_INET6 {
			s.default6 = true
		} else {
			s.default4 = true
		}
	}
	return nil
}

// readPorts reads the limits on a namespace's connections.
func (s *netnsState) readPorts() error {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(b), &s.portsFrom, &s.portsTo); err != nil || s.portsTo < s.portsFrom {
		return fmt.Errorf("read net.ipv4.ip_local_port_range: %q is not a range", b)
	}
	if s.twMax, err = readNumber("/proc/sys/net/ipv4/tcp_max_tw_buckets"); errors.Is(err, fs.ErrNotExist) {
		err = nil // before Linux 4.20 only the initial namespace has this file
	}
	s.tw = uint64(len(slices.DeleteFunc(slices.Clone(s.sockets), func(x socket) bool { return x.state != timeWait })))
	return err
}

func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %.40q is not a number", path, b)
	}
	return n, nil
}
