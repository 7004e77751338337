package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	"nodeskoop/bpf/internal/objects"
)

// EventType is a kind of event that a probe sends.
type EventType uint16

// eventTypes is the number of event types: enum event_type of headers/event.h. Each
// probe's file declares its own types.
const eventTypes = EventType(objects.SharedEventTypeEVENT_TYPES)

// eventNames are the names of enum event_type without their prefix.
var eventNames = sync.OnceValue(func() []string {
	spec, err := objects.LoadShared()
	var types *btf.Enum
	if err == nil {
		err = spec.Types.TypeByName("event_type", &types)
	}
	if err != nil {
		panic(fmt.Sprintf("bpf: the names of the event types: %v", err)) // The object is embedded, so an error is a bug.
	}
	names := make([]string, eventTypes)
	for _, v := range types.Values {
		if v.Value < uint64(eventTypes) {
			names[v.Value] = strings.TrimPrefix(v.Name, "EVENT_")
		}
	}
	return names
})

// String returns the type's name in the BPF objects. The catalogue has the name for
// users.
func (t EventType) String() string {
	if t == 0 || t >= eventTypes {
		return fmt.Sprintf("EventType(%d)", uint16(t))
	}
	return eventNames()[t]
}

// EventTypes returns all event types.
func EventTypes() []EventType {
	types := make([]EventType, 0, eventTypes-1)
	for t := EventType(1); t < eventTypes; t++ {
		types = append(types, t)
	}
	return types
}

// Event is one occurrence. Its type decides which fields are set; the others are
// zero.
type Event struct {
	Type  EventType
	Time  time.Time     // when the kernel saw it
	Clock time.Duration // Time on the kernel's CLOCK_MONOTONIC, regardless of time namespaces

	Netns    uint64 // inode of the network namespace, 0 if none is known
	CPU      uint32
	PID      uint32 // process ID, in the initial PID namespace
	Ifindex  uint32
	Reason   uint32 // see Reasons
	Detail   uint32 // softirq vector, kind of retransmission, block operation
	Bytes    uint32 // size of a block I/O
	Protocol uint8  // IP protocol
	TCPState uint8  // the kernel's number, see TCPStateName

	// Source and Destination are invalid if no addresses are known; the port is 0
	// if there is none. IPv4-mapped addresses become IPv4. If an event is about one
	// end, Source is this node's.
	Source, Destination netip.AddrPort

	Latency  time.Duration
	Points   [len(objects.SharedEvent{}.PointsNs)]time.Duration
	Location uint64 // a return address, see Symbols.Location

	depth uint8
	stack [len(objects.SharedEventStack{}.Stack)]uint64
	comm  [len(objects.SharedEvent{}.Comm)]byte
	name  [len(objects.SharedEvent{}.Name)]byte
}

// Stack returns the return addresses of the kernel stack, innermost first. The
// slice is overwritten together with the event.
func (e *Event) Stack() []uint64 { return e.stack[:e.depth] }

// Comm is the name of the process.
func (e *Event) Comm() string { return text(e.comm[:]) }

// Device is the name of the network device or of the disk.
func (e *Event) Device() string { return text(e.name[:]) }

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	// The name of a process may hold any bytes.
	return strings.ToValidUTF8(string(b), "?")
}

// TCPStateName returns the name of the kernel's number of a TCP state, "" for 0.
func TCPStateName(state uint8) string {
	if int(state) < len(tcpStates) {
		return tcpStates[state]
	}
	return fmt.Sprintf("TCP_STATE_%d", state)
}

var tcpStates = [...]string{
	"", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
	"CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV", "BOUND_INACTIVE",
}

// Sizes of the ring's records: struct event and struct event_stack.
const (
	sizeEvent      = int(unsafe.Sizeof(objects.SharedEvent{}))
	sizeEventStack = int(unsafe.Sizeof(objects.SharedEventStack{}))
)

// decode fills the event from a record of the ring. It checks every length and
// index, although records come from the kernel.
func (e *Event) decode(record []byte, boot time.Time) error {
	if len(record) != sizeEvent && len(record) != sizeEventStack {
		return fmt.Errorf("event of %d bytes; they have %d, or %d with a stack", len(record), sizeEvent, sizeEventStack)
	}
	r := (*objects.SharedEvent)(unsafe.Pointer(unsafe.SliceData(record)))
	t := EventType(r.Type)
	if t == 0 || t >= eventTypes {
		return fmt.Errorf("event of the unknown type %d", t)
	}
	depth := int(r.StackDepth)
	if depth > (len(record)-sizeEvent)/8 {
		return fmt.Errorf("event of type %s with a stack of %d frames in %d bytes", t, depth, len(record))
	}
	e.Type = t
	e.Clock = time.Duration(r.TimeNs)
	e.Time = boot.Add(e.Clock)
	e.Netns = uint64(r.Netns)
	e.CPU = r.Cpu
	e.PID = r.Pid
	e.Ifindex = r.Ifindex
	e.Reason = r.Reason
	e.Detail = r.Detail
	e.Bytes = r.Bytes
	e.TCPState = r.TcpState
	e.Latency = time.Duration(r.LatencyNs)
	for i, ns := range r.PointsNs {
		e.Points[i] = time.Duration(ns)
	}
	e.Location = r.Location
	e.Protocol = r.Tuple.Protocol
	e.Source, e.Destination = ends(&r.Tuple)
	e.comm, e.name = r.Comm, r.Name
	e.depth = r.StackDepth
	if depth > 0 {
		copy(e.stack[:depth], (*objects.SharedEventStack)(unsafe.Pointer(r)).Stack[:])
	}
	return nil
}

// ends returns the addresses and ports of a tuple.
func ends(t *objects.SharedTuple) (source, destination netip.AddrPort) {
	if t.Family != 4 && t.Family != 6 {
		return netip.AddrPort{}, netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom16(t.Saddr).Unmap(), t.Sport), netip.AddrPortFrom(netip.AddrFrom16(t.Daddr).Unmap(), t.Dport)
}
