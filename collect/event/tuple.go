package event

import (
	"net/netip"
	"strconv"

	"nodeskoop/internal/quote"
)

// AppendTuple appends the connection, 10.0.0.5:443 -> 10.0.0.9:51234 TCP. It leaves out the
// ports if neither end has one, and the addresses if neither end has one. A * stands for a
// value that differs between merged occurrences.
func (e *Event) AppendTuple(b []byte) []byte {
	if e.Src.isGiven() || e.Dst.isGiven() {
		ports := e.Src.hasPort() || e.Dst.hasPort()
		b = appendEnd(b, &e.Src, ports)
		b = append(b, " -> "...)
		b = appendEnd(b, &e.Dst, ports)
		if e.Protocol != "" {
			b = append(b, ' ')
		}
	}
	return quote.AppendSafe(b, e.Protocol)
}

func (p *Endpoint) isGiven() bool { return p.anyAddr || p.Addr.IsValid() }

// isKnown: the peer of a datagram socket that is not connected is not.
func (p *Endpoint) isKnown() bool { return p.isGiven() || p.hasPort() }
func (p *Endpoint) hasPort() bool { return p.anyPort || p.Port != 0 }

func appendEnd(b []byte, end *Endpoint, ports bool) []byte {
	a := end.Addr.Unmap()
	switch {
	case end.anyAddr && (!ports || end.anyPort):
		return append(b, '*')
	case end.anyAddr:
		b = append(b, '*')
	case !end.isKnown():
		return append(b, '?')
	case !a.IsValid():
		b = append(b, '?')
	case !ports:
		return a.AppendTo(b)
	case !end.anyPort:
		return netip.AddrPortFrom(a, end.Port).AppendTo(b)
	case a.Is4():
		b = a.AppendTo(b)
	default:
		b = append(a.AppendTo(append(b, '[')), ']')
	}
	if !ports {
		return b
	}
	if b = append(b, ':'); end.anyPort {
		return append(b, '*')
	}
	return strconv.AppendUint(b, uint64(end.Port), 10)
}

// endFields are the journal field names of one end.
type endFields struct{ addr, port, kind, namespace, pod, node string }

var (
	srcFields = endFields{"KUBESKOOP_SADDR", "KUBESKOOP_SPORT", "KUBESKOOP_SRC_TYPE",
		"KUBESKOOP_SRC_NAMESPACE", "KUBESKOOP_SRC_POD", "KUBESKOOP_SRC_NODE"}
	dstFields = endFields{"KUBESKOOP_DADDR", "KUBESKOOP_DPORT", "KUBESKOOP_DST_TYPE",
		"KUBESKOOP_DST_NAMESPACE", "KUBESKOOP_DST_POD", "KUBESKOOP_DST_NODE"}
)

func (w *fieldWriter) end(f *endFields, end *Endpoint, ports bool) {
	if a := end.Addr.Unmap(); a.IsValid() {
		w.buf = a.AppendTo(w.buf[:0])
		w.put(f.addr, w.buf)
	}
	if ports && !end.anyPort && end.isKnown() {
		w.unsigned(f.port, uint64(end.Port))
	}
	if !end.Addr.IsValid() {
		return
	}
	if end.Kind == "" {
		w.text(f.kind, EndUnknown)
	} else {
		w.text(f.kind, end.Kind)
	}
	if end.Pod != nil {
		w.text(f.namespace, end.Pod.Namespace)
		w.text(f.pod, end.Pod.Name)
	}
	w.given(f.node, end.Node)
}
