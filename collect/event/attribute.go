package event

import (
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// attribute finds the event's pod, and reports whether it can be sure of it.
// An event on which the resolver panics is nobody's.
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
		h.say("finding out whose an event is failed; it is sent without", err)
		e.Pod, e.unresolved, sure = nil, true, true
	}
	return sure
}

// label gives e the node's name and whose it is, and its ends whose they are.
func (h *Hub) label(opt *HubOptions, e *Event) {
	e.Node = opt.Node
	e.unowned = e.Pod == nil && h.who.Unowned(e.Netns)
	// Events of packets and sockets have a namespace; others are the node's.
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
