package trace

import (
	"strconv"

	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
)

// converter turns records of the kernel into events. It belongs to the
// goroutine that reads the ring.
type converter struct {
	loader  *bpf.Loader
	reasons *bpf.Reasons
}

// event makes an event from a record. It copies data that is only valid during
// the call.
func (c *converter) event(e *bpf.Event) *event.Event {
	t := eventTypes[e.Type]
	out := &event.Event{Type: t, Time: e.Time, Netns: e.Netns, Latency: e.Latency, PID: -1, CPU: -1}
	for _, g := range t.Fields {
		switch g {
		case catalog.FieldTuple:
			out.Protocol = protocolName(e.Protocol)
			out.Src = event.Endpoint{Addr: e.Source.Addr(), Port: e.Source.Port()}
			// No packet goes to the unspecified address: it is what a datagram socket has for
			// a peer while it is not connected to one. The peer is then unknown.
			if !e.Destination.Addr().IsUnspecified() || e.Destination.Port() != 0 {
				out.Dst = event.Endpoint{Addr: e.Destination.Addr(), Port: e.Destination.Port()}
			}
		case catalog.FieldPoints:
			for i, name := range t.Points {
				if i < len(e.Points) && e.Points[i] > 0 {
					out.Points = append(out.Points, event.Point{Name: name, Latency: e.Points[i]})
				}
			}
		case catalog.FieldOperation:
			out.Operation, out.Bytes = operationName(e.Detail), uint64(e.Bytes)
		case catalog.FieldProcess:
			out.Comm, out.PID = e.Comm(), int(e.PID)
		case catalog.FieldCPU:
			out.CPU = int(e.CPU)
		case catalog.FieldPID:
			out.PID = int(e.PID)
		case catalog.FieldIfname:
			out.Ifname = e.Device()
		case catalog.FieldDisk:
			out.Disk = e.Device()
		case catalog.FieldVector:
			out.Vector = vectorName(e.Detail)
		case catalog.FieldLocation:
			out.Location = c.loader.Symbols().Location(e.Location)
		case catalog.FieldReason:
			out.Reason = c.reason(e)
		case catalog.FieldTCPState:
			out.TCPState = bpf.TCPStateName(e.TCPState)
		case catalog.FieldStack:
			out.Stack = c.loader.Symbols().Stack(e.Stack())
		}
	}
	return out
}

func (c *converter) reason(e *bpf.Event) string {
	if c.reasons == nil {
		r, err := c.loader.Reasons()
		if err != nil {
			return ""
		}
		c.reasons = r
	}
	if e.Type == bpf.PacketLoss {
		return c.reasons.Drop(e.Reason)
	}
	return c.reasons.Reset(e.Reason)
}

// protocolName names an IP protocol (IANA's assigned Internet protocol numbers).
func protocolName(n uint8) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "ICMP"
	case 2:
		return "IGMP"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 33:
		return "DCCP"
	case 47:
		return "GRE"
	case 50:
		return "ESP"
	case 58:
		return "ICMPv6"
	case 132:
		return "SCTP"
	case 136:
		return "UDPLITE"
	}
	return strconv.Itoa(int(n))
}

// operationName names the operation of a block I/O. It returns "" for an
// operation whose number differs between kernels.
func operationName(detail uint32) string {
	switch detail {
	case bpf.BlockRead | bpf.BlockBackground:
		return "read-ahead"
	case bpf.BlockWrite | bpf.BlockBackground:
		return "writeback"
	}
	switch detail & bpf.BlockOperation {
	case bpf.BlockRead:
		return "read"
	case bpf.BlockWrite:
		return "write"
	case bpf.BlockFlush:
		return "flush"
	case bpf.BlockDiscard:
		return "discard"
	case bpf.BlockSecureErase:
		return "secure-erase"
	case bpf.BlockWriteZeroes:
		return "write-zeroes"
	}
	return ""
}

// vectorName names a softirq.
func vectorName(n uint32) string {
	switch n {
	case bpf.SoftirqNetTX:
		return "NET_TX"
	case bpf.SoftirqNetRX:
		return "NET_RX"
	}
	return strconv.Itoa(int(n))
}
