package event

import (
	"time"

	"nodeskoop/internal/bounded"
)

// say logs the first panic.
func (h *Hub) say(what string, err error) {
	if log := h.opt.Load().Log; !h.panicked && log != nil {
		h.panicked = true
		log.Error(what, "error", err)
	}
}

// send labels e, and then merges it into its kind or delivers it. If that panics, the event
// is lost.
func (h *Hub) send(e *Event, now time.Time) {
	fate := undecided
	if err := bounded.Guard(func() { fate = h.decide(e, now) }); err != nil {
		h.say("an event is lost", err)
		h.reported(e, false)
		return
	}
	if fate == delivered {
		h.deliver(e, now)
	}
}

// fate is the outcome of decide for an event.
type fate uint8

const (
	undecided fate = iota
	ignored
	merged
	delivered
)

func (h *Hub) decide(e *Event, now time.Time) fate {
	opt := h.opt.Load()
	h.label(opt, e)
	if opt.Filter != nil && !opt.Filter(e) {
		h.account[e.Type.ID()].ignored.Add(1)
		return ignored
	}
	if w := opt.windows(); w.first > 0 {
		if !h.kinds.take(e, w, now) {
			return merged
		}
		h.wakeKinds()
	}
	return delivered
}

// deliver hands an entry to the sinks, unless a limit suppresses it.
func (h *Hub) deliver(e *Event, now time.Time) {
	b, ok := h.limits.allow(h.opt.Load().limits(), bucketOf(e), now)
	if b != nil {
		h.wakeSweep()
	}
	if !ok && !h.ending {
		h.account[e.Type.ID()].suppress(e, b)
		return
	}
	if e.bucket = b; b != nil && b.owed.Load() > 0 {
		e.Suppressed = b.owed.Swap(0)
	}
	if len(h.sinks) == 0 {
		h.reported(e, false)
	}
	for i, s := range h.sinks {
		report := h.report
		if i > 0 {
			report = nil
		}
		if err := bounded.Guard(func() { s.Send(e, report) }); err != nil {
			h.say("a sink did not take an event", err)
			if i == 0 {
				h.reported(e, false)
			}
		}
	}
}

// owe makes the next entry of a type and owner report occurrences that the kernel's limit
// suppressed.
func (h *Hub) owe(o owing, now time.Time) {
	e := Event{Type: o.typ, Netns: o.netns, PID: -1, CPU: -1}
	if err := bounded.Guard(func() { h.attribute(&e); h.label(h.opt.Load(), &e) }); err != nil {
		h.say("finding the owner of suppressed events failed", err)
		return
	}
	if e.Pod == nil && h.process[o.typ.ID()] {
		return // the owner depends on the process, and the namespace does not identify it
	}
	h.limits.bucket(bucketOf(&e), now).owed.Add(o.n)
	h.wakeSweep()
}
