package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// EventType is a kind of occurrence that a probe tells of.
type EventType uint16

// The types of events, in the order of headers/event.h.
const (
	TxlatQdisc100ms EventType = iota + 1
	TxlatNetdev100ms
	Biolat10ms
	Biolat100ms
	RxKernelSlow
	TxKernelSlow
	PacketLoss
	SocklatReadSlow
	SocklatSendSlow
	TCPResetNosock
	TCPResetActive
	TCPResetProcess
	TCPResetReceive
	VirtcmdExcute
	NetsoftirqSchedSlow
	NetsoftirqSched100ms
	NetsoftirqExcuteSlow
	NetsoftirqExcute100ms
	TCPRetrans
	eventTypes
)

var eventNames = [eventTypes]string{
	TxlatQdisc100ms:       "TXLAT_QDISC_100MS",
	TxlatNetdev100ms:      "TXLAT_NETDEV_100MS",
	Biolat10ms:            "BIOLAT_10MS",
	Biolat100ms:           "BIOLAT_100MS",
	RxKernelSlow:          "RXKERNEL_SLOW",
	TxKernelSlow:          "TXKERNEL_SLOW",
	PacketLoss:            "PACKETLOSS",
	SocklatReadSlow:       "SOCKETLAT_READSLOW",
	SocklatSendSlow:       "SOCKETLAT_SENDSLOW",
	TCPResetNosock:        "TCPRESET_NOSOCK",
	TCPResetActive:        "TCPRESET_ACTIVE",
	TCPResetProcess:       "TCPRESET_PROCESS",
	TCPResetReceive:       "TCPRESET_RECEIVE",
	VirtcmdExcute:         "VIRTCMDEXCUTE",
	NetsoftirqSchedSlow:   "NETSOFTIRQ_SCHED_SLOW",
	NetsoftirqSched100ms:  "NETSOFTIRQ_SCHED_100MS",
	NetsoftirqExcuteSlow:  "NETSOFTIRQ_EXCUTE_SLOW",
	NetsoftirqExcute100ms: "NETSOFTIRQ_EXCUTE_100MS",
	TCPRetrans:            "TCPRETRANS",
}

// String is the type's name in the BPF objects. What users see it called is
// the catalogue's to say.
func (t EventType) String() string {
	if t == 0 || t >= eventTypes {
		return fmt.Sprintf("EventType(%d)", uint16(t))
	}
	return eventNames[t]
}

// EventTypes are all types there are.
func EventTypes() []EventType {
	types := make([]EventType, 0, eventTypes-1)
	for t := EventType(1); t < eventTypes; t++ {
		types = append(types, t)
	}
	return types
}

// What Event.Detail says of a TCPRetrans event: a segment that was sent
// before, or the second packet of a handshake.
const (
	RetransSegment uint32 = 0
	RetransSynAck  uint32 = 1
)

// Indexes into Event.Points. A receive event has the first two, a transmit
// event the other three; a point that the hooks in use do not see is zero.
const (
	PointIP      = 0 // entry into the stack -> local delivery decided
	PointLocalIn = 1 // local delivery decided -> transport protocol

	PointRoute       = 0 // socket -> packet has its route and header
	PointLocalOut    = 1 // -> past the LOCAL_OUT hooks
	PointPostrouting = 2 // -> past the POSTROUTING hooks
)

const (
	eventPoints = 3
	eventStack  = 20
)

// Event is one occurrence. Which fields are set depends on the type; those
// without meaning are zero.
type Event struct {
	Type  EventType
	Time  time.Time     // when the kernel saw it
	Clock time.Duration // the same on the kernel's CLOCK_MONOTONIC, outside time namespaces

	Netns    uint64 // inode of the network namespace, 0 if none is known
	CPU      uint32
	PID      uint32 // of the process, as user space counts processes
	Ifindex  uint32
	Reason   uint32 // see Reasons
	Detail   uint32 // softirq vector, kind of retransmission, block operation
	Protocol uint8  // IP protocol
	TCPState uint8  // the kernel's number, see TCPStateName

	// Source and Destination are not valid where no addresses are known;
	// the port is 0 where there is none. An IPv4-mapped address is IPv4.
	// Where an event is about one end, the source is this node's.
	Source, Destination netip.AddrPort

	Latency  time.Duration
	Points   [eventPoints]time.Duration
	Location uint64 // a return address, see Symbols.Location

	depth uint8
	stack [eventStack]uint64
	comm  [16]byte
	name  [32]byte
}

// Stack holds the return addresses of the kernel's stack, innermost first; it
// is the event's own and is overwritten with it.
func (e *Event) Stack() []uint64 { return e.stack[:e.depth] }

// Comm is the name of the process.
func (e *Event) Comm() string { return text(e.comm[:]) }

// Device is the name of the network device or of the disk.
func (e *Event) Device() string { return text(e.name[:]) }

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	// A process may call itself anything.
	return strings.ToValidUTF8(string(b), "?")
}

// TCPStateName names the kernel's number of a TCP state, "" for 0.
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

// Offsets in struct event of headers/event.h. A test holds them against the
// type information of the objects.
const (
	offTime     = 0
	offLatency  = 8
	offPoints   = 16
	offLocation = 40
	offTuple    = 48
	offNetns    = 88
	offReason   = 92
	offPID      = 96
	offCPU      = 100
	offDetail   = 104
	offIfindex  = 108
	offType     = 112
	offTCPState = 114
	offDepth    = 115
	offComm     = 120
	offName     = 136

	sizeEvent      = 168
	sizeEventStack = sizeEvent + 8*eventStack

	tupleSaddr    = 0
	tupleDaddr    = 16
	tupleSport    = 32
	tupleDport    = 34
	tupleProtocol = 36
	tupleFamily   = 37
)

// decode fills the event from a record of the ring. Records come from the
// kernel, but every length and index in them is checked all the same.
func (e *Event) decode(record []byte, boot time.Time) error {
	if len(record) != sizeEvent && len(record) != sizeEventStack {
		return fmt.Errorf("event of %d bytes; they have %d, or %d with a stack", len(record), sizeEvent, sizeEventStack)
	}
	order := binary.NativeEndian
	t := EventType(order.Uint16(record[offType:]))
	if t == 0 || t >= eventTypes {
		return fmt.Errorf("event of the unknown type %d", t)
	}
	depth := int(record[offDepth])
	if depth > (len(record)-sizeEvent)/8 {
		return fmt.Errorf("event of type %s with a stack of %d frames in %d bytes", t, depth, len(record))
	}
	e.Type = t
	e.Clock = time.Duration(order.Uint64(record[offTime:]))
	e.Time = boot.Add(e.Clock)
	e.Netns = uint64(order.Uint32(record[offNetns:]))
	e.CPU = order.Uint32(record[offCPU:])
	e.PID = order.Uint32(record[offPID:])
	e.Ifindex = order.Uint32(record[offIfindex:])
	e.Reason = order.Uint32(record[offReason:])
	e.Detail = order.Uint32(record[offDetail:])
	e.TCPState = record[offTCPState]
	e.Latency = time.Duration(order.Uint64(record[offLatency:]))
	for i := range e.Points {
		e.Points[i] = time.Duration(order.Uint64(record[offPoints+8*i:]))
	}
	e.Location = order.Uint64(record[offLocation:])
	e.Protocol, e.Source, e.Destination = decodeTuple(record[offTuple:offNetns])
	copy(e.comm[:], record[offComm:])
	copy(e.name[:], record[offName:])
	e.depth = uint8(depth)
	for i := range depth {
		e.stack[i] = order.Uint64(record[sizeEvent+8*i:])
	}
	return nil
}

// decodeTuple reads a struct tuple of headers/tuple.h.
func decodeTuple(b []byte) (protocol uint8, source, destination netip.AddrPort) {
	if b[tupleFamily] != 4 && b[tupleFamily] != 6 {
		return b[tupleProtocol], netip.AddrPort{}, netip.AddrPort{}
	}
	order := binary.NativeEndian
	s := netip.AddrFrom16([16]byte(b[tupleSaddr : tupleSaddr+16])).Unmap()
	d := netip.AddrFrom16([16]byte(b[tupleDaddr : tupleDaddr+16])).Unmap()
	return b[tupleProtocol], netip.AddrPortFrom(s, order.Uint16(b[tupleSport:])), netip.AddrPortFrom(d, order.Uint16(b[tupleDport:]))
}

// encodeTuple writes one, of valid addresses.
func encodeTuple(b []byte, protocol uint8, source, destination netip.AddrPort) {
	order := binary.NativeEndian
	s, d := source.Addr().As16(), destination.Addr().As16()
	copy(b[tupleSaddr:], s[:])
	copy(b[tupleDaddr:], d[:])
	order.PutUint16(b[tupleSport:], source.Port())
	order.PutUint16(b[tupleDport:], destination.Port())
	b[tupleProtocol] = protocol
	b[tupleFamily] = 6
	if source.Addr().Is4() {
		b[tupleFamily] = 4
	}
}
