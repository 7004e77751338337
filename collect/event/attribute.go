package event

import (
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// attribute finds the event's pod, and reports whether the answer is final. If the
// resolver panics, the event becomes unattributed.
func (h *Hub) attribute(e *Event) (sure bool) {
	if e.Pod != nil {
		return true
	}
	pid := 0
	if h.process[e.Type.ID()] {
		pid = e.PID
	}
	err := bounded.Guard(func() { e.Pod, sure = h.who.Owner(e.Netns, pid, e.Time) })
	if err != nil {
		h.say("finding the owner of an event failed; the event is sent without one", err)
		e.Pod, e.unresolved, sure = nil, true, true
	}
	return sure
}

// label sets the node, the owner, and the owners of both ends.
func (h *Hub) label(opt *HubOptions, e *Event) {
	e.Node = opt.Node
	e.unowned = e.Pod == nil && h.who.Unowned(e.Netns)
	// Only events of packets and sockets have a network namespace; others belong to the
	// node.
	e.unattributed = e.Pod == nil && (e.unresolved || e.Netns == 0 && (e.Type.Has(catalog.FieldTuple) || opt.ForeignPIDs && h.process[e.Type.ID()]))
	switch {
	case e.unattributed:
		e.HostLabel = owner.UnknownLabel
	case e.OfHost():
		e.HostLabel = opt.HostLabel
	}
	for _, end := range [...]*Endpoint{&e.Src, &e.Dst} {
		if !end.Addr.IsValid() || end.Kind != "" {
			continue
		}
		end.Addr = end.Addr.Unmap()
		if end.Kind, end.Pod = h.who.End(end.Addr, e.Pod, e.unowned); end.Kind != EndUnknown {
			end.Node = opt.Node
		}
	}
}
