package event

import (
	"net/netip"
	"slices"
	"time"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

const (
	defaultHold = time.Second
	maxHeld     = 1024
	maxHeldOf   = 64 // of one namespace
	retryHeld   = 50 * time.Millisecond

	maxUnowned = 4096
	unownedFor = time.Minute
	// An address that was nobody's a moment ago holds up no other event for so long.
	unknownAddrFor  = 5 * time.Second
	maxUnknownAddrs = 4096
	maxHeldForAddrs = maxHeld / 4
)

// holds are the events that wait: for their pod to become known, or for the node's
// addresses to be read, because one end of theirs may be a new one. They belong to
// one goroutine.
type holds struct {
	who *owner.Resolver
	// attribute finds the pod of an event, and reports whether it can be sure of
	// it; send takes the event when it need not wait any more.
	attribute func(e *Event) (sure bool)
	send      func(e *Event, now time.Time)
	// wake has retry called at t at the latest, wakeSweep sweep in time.
	wake      func(t time.Time)
	wakeSweep func()

	waiting []heldEvent
	ofNetns map[uint64]int // how many wait, by namespace
	forAddr int            // how many wait for an address alone
	unowned map[unowned]time.Time
	unknown map[netip.Addr]time.Time // since when an address is known as nobody's
}

type heldEvent struct {
	e               *Event
	retry, deadline time.Time
	since           time.Time
	addr            bool // it waits for an address alone
}

// unowned is a namespace or a process that was no pod's after an event of it
// had been held. The next ones are not held: a pod's namespace is asked for
// again with each.
type unowned struct {
	netns uint64
	pid   int
}

func unownedOf(e *Event) unowned {
	if e.Netns != 0 {
		return unowned{netns: e.Netns}
	}
	return unowned{pid: e.PID}
}

// forPod keeps e until its pod is known, hold at most, and reports whether it does.
func (h *holds) forPod(e *Event, hold time.Duration, now time.Time) bool {
	if hold < 0 || !h.who.Connected() {
		return false
	}
	if since, ok := h.unowned[unownedOf(e)]; ok && now.Sub(since) < unownedFor {
		return false
	}
	if h.hasNewAddr(e, now) {
		h.who.RefreshAddrs()
	}
	x := heldEvent{e: e, retry: now.Add(retryHeld), deadline: now.Add(hold), since: now}
	if e.Netns == 0 {
		// Asking about a process costs system calls.
		x.retry = now.Add(hold / 2)
	}
	// Who came first has waited longest; one namespace does not take the room
	// of others.
	if h.ofNetns[e.Netns] >= maxHeldOf {
		h.release(slices.IndexFunc(h.waiting, func(y heldEvent) bool { return y.e.Netns == e.Netns }), now)
	} else if len(h.waiting) >= maxHeld {
		h.release(0, now)
	}
	h.keep(x, hold)
	return true
}

// forAddrs keeps e, whose pod is known, while the node's addresses are read, if
// one of its ends may be a new one, and reports whether it does.
func (h *holds) forAddrs(e *Event, hold time.Duration, now time.Time) bool {
	if hold < 0 || h.forAddr >= maxHeldForAddrs || len(h.unknown) >= maxUnknownAddrs || !h.hasNewAddr(e, now) {
		return false
	}
	h.who.RefreshAddrs()
	h.forAddr++
	h.keep(heldEvent{e: e, retry: now.Add(retryHeld), deadline: now.Add(hold), since: now, addr: true}, hold)
	return true
}

func (h *holds) keep(x heldEvent, hold time.Duration) {
	h.waiting = append(h.waiting, x)
	h.ofNetns[x.e.Netns]++
	h.wake(x.since.Add(min(retryHeld, hold)))
}

// hasNewAddr reports whether an end of e has an address that is nobody's, and was not
// so a moment ago.
func (h *holds) hasNewAddr(e *Event, now time.Time) bool {
	return h.isNewAddr(e, &e.Src, now) || h.isNewAddr(e, &e.Dst, now)
}

func (h *holds) isNewAddr(e *Event, end *Endpoint, now time.Time) bool {
	if !end.Addr.IsValid() || end.Kind != "" {
		return false
	}
	nobodys := false
	if bounded.Guard(func() { nobodys = h.who.Nobodys(end.Addr, e.Pod) }) != nil || !nobodys {
		return false // what cannot be found out is not waited for
	}
	since, ok := h.unknown[end.Addr.Unmap()]
	return !ok || now.Sub(since) >= unknownAddrFor
}

// mayBeNode reports whether x has to wait on: an end of it has an address that is
// nobody's so far, and the node's were not read since x came. If they were, the
// address is known as nobody's.
func (h *holds) mayBeNode(x *heldEvent, now time.Time) bool {
	for _, end := range []*Endpoint{&x.e.Src, &x.e.Dst} {
		if !h.isNewAddr(x.e, end, now) {
			continue
		}
		if !h.who.AddrsReadSince(x.since) && now.Before(x.deadline) {
			h.who.RefreshAddrs()
			return true
		}
		if len(h.unknown) < maxUnknownAddrs {
			h.unknown[end.Addr.Unmap()] = now
			h.wakeSweep()
		}
	}
	return false
}

// release sends a held event before its time.
func (h *holds) release(i int, now time.Time) {
	x := h.waiting[i]
	h.waiting = slices.Delete(h.waiting, i, i+1)
	h.gone(&x)
	h.attribute(x.e)
	h.send(x.e, now)
}

// gone notes that an event does not wait any more.
func (h *holds) gone(x *heldEvent) {
	if n := h.ofNetns[x.e.Netns]; n > 1 {
		h.ofNetns[x.e.Netns] = n - 1
	} else {
		delete(h.ofNetns, x.e.Netns)
	}
	if x.addr {
		h.forAddr--
	}
}

// retry sends the held events whose pod is known by now, and those that have
// been held for long enough.
func (h *holds) retry(now time.Time) {
	if len(h.waiting) == 0 {
		return
	}
	kept := h.waiting[:0]
	for _, x := range h.waiting {
		late := !now.Before(x.deadline)
		switch {
		case !late && now.Before(x.retry):
			kept = append(kept, x)
			continue
		case h.attribute(x.e) && !h.mayBeNode(&x, now):
		case x.addr && !late:
			x.retry = now.Add(retryHeld)
			kept = append(kept, x)
			continue
		case x.addr:
		case late:
			h.noteUnowned(x.e, now)
		default:
			x.retry = now.Add(retryHeld)
			if x.e.Netns == 0 {
				x.retry = x.deadline
			}
			kept = append(kept, x)
			continue
		}
		h.gone(&x)
		h.send(x.e, now)
	}
	clear(h.waiting[len(kept):])
	h.waiting = kept
}

func (h *holds) noteUnowned(e *Event, now time.Time) {
	if len(h.unowned) >= maxUnowned {
		for s := range h.unowned { // any: its next event is held once more
			delete(h.unowned, s)
			break
		}
	}
	h.unowned[unownedOf(e)] = now
	h.wakeSweep()
}

// sweep forgets what was known long ago.
func (h *holds) sweep(now time.Time) {
	for s, since := range h.unowned {
		if now.Sub(since) >= unownedFor {
			delete(h.unowned, s)
		}
	}
	for a, since := range h.unknown {
		if now.Sub(since) >= unknownAddrFor {
			delete(h.unknown, a)
		}
	}
}

// drain sends all that wait.
func (h *holds) drain() {
	for _, x := range h.waiting {
		h.attribute(x.e)
		h.send(x.e, time.Now())
	}
	h.waiting, h.forAddr = nil, 0
	clear(h.ofNetns)
}

// empty reports whether nothing waits, and whether there is nothing to sweep.
func (h *holds) empty() (waiting, known bool) {
	return len(h.waiting) == 0, len(h.unowned)+len(h.unknown) == 0
}
