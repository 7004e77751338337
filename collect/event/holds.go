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
	maxHeldOf   = 64 // limit for one namespace
	retryHeld   = 50 * time.Millisecond

	maxUnowned = 4096
	unownedFor = time.Minute
	// unknownAddrFor is how long an address without an owner does not hold further events.
	unknownAddrFor  = 5 * time.Second
	maxUnknownAddrs = 4096
	maxHeldForAddrs = maxHeld / 4
)

// holds keeps the events that wait until their pod is known, or until the node's addresses
// have been read because one of their ends may be a new address. One goroutine owns it.
type holds struct {
	who *owner.Resolver
	// attribute finds the pod of an event, and reports whether the answer is final; send
	// takes an event that need not wait any more.
	attribute func(e *Event) (sure bool)
	send      func(e *Event, now time.Time)
	// wake schedules a call of retry at t or earlier, wakeSweep the next sweep.
	wake      func(t time.Time)
	wakeSweep func()

	waiting []heldEvent
	ofNetns map[uint64]int // events waiting, by namespace
	forAddr int            // events waiting for an address only
	unowned map[unowned]time.Time
	unknown map[netip.Addr]time.Time // addresses without an owner, and the time of each lookup
}

type heldEvent struct {
	e               *Event
	retry, deadline time.Time
	since           time.Time
	addr            bool // waits for an address only
}

// unowned is a network namespace or process that still belonged to no pod when a held event
// was sent. Its next events are not held, but the owner is looked up for each.
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

// forPod keeps e until its pod is known, for hold at most. It returns false if e need not
// wait.
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
		// Ask again later: looking up a process costs system calls.
		x.retry = now.Add(hold / 2)
	}
	// Without room, send the event that has waited longest: of the same namespace if that
	// has used up its share.
	if h.ofNetns[e.Netns] >= maxHeldOf {
		h.release(slices.IndexFunc(h.waiting, func(y heldEvent) bool { return y.e.Netns == e.Netns }), now)
	} else if len(h.waiting) >= maxHeld {
		h.release(0, now)
	}
	h.keep(x, hold)
	return true
}

// forAddrs keeps e, whose pod is known, while the node's addresses are read, if one of its
// ends may be a new address. It returns false if e need not wait.
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

// hasNewAddr reports whether an end of e has an address without an owner, unless it was
// looked up a moment ago.
func (h *holds) hasNewAddr(e *Event, now time.Time) bool {
	return h.isNewAddr(e, &e.Src, now) || h.isNewAddr(e, &e.Dst, now)
}

func (h *holds) isNewAddr(e *Event, end *Endpoint, now time.Time) bool {
	if !end.Addr.IsValid() || end.Kind != "" {
		return false
	}
	nobodys := false
	if bounded.Guard(func() { nobodys = h.who.Nobodys(end.Addr, e.Pod) }) != nil || !nobodys {
		return false // if the resolver panics, do not wait
	}
	since, ok := h.unknown[end.Addr.Unmap()]
	return !ok || now.Sub(since) >= unknownAddrFor
}

// mayBeNode reports whether x must keep waiting: an end has an address without an owner,
// and the node's addresses have not been read since x came. If they have, it records the
// address as unknown.
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

// release sends a held event early.
func (h *holds) release(i int, now time.Time) {
	x := h.waiting[i]
	h.waiting = slices.Delete(h.waiting, i, i+1)
	h.gone(&x)
	h.attribute(x.e)
	h.send(x.e, now)
}

// gone updates the counts after an event was removed.
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

// retry sends the held events whose pod is known now, and those whose hold time has
// expired.
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
		for s := range h.unowned { // an arbitrary one: its next event is held again
			delete(h.unowned, s)
			break
		}
	}
	h.unowned[unownedOf(e)] = now
	h.wakeSweep()
}

// sweep removes expired entries.
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

// drain sends all held events.
func (h *holds) drain() {
	for _, x := range h.waiting {
		h.attribute(x.e)
		h.send(x.e, time.Now())
	}
	h.waiting, h.forAddr = nil, 0
	clear(h.ofNetns)
}

// empty reports whether no event is waiting, and whether there is nothing to sweep.
func (h *holds) empty() (waiting, known bool) {
	return len(h.waiting) == 0, len(h.unowned)+len(h.unknown) == 0
}
