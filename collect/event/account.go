package event

import (
	"sync/atomic"

	"nodeskoop/collect/catalog"
)

// Counts tell what became of the events of one type:
// Offered = Written + Suppressed + Lost + Ignored + Pending.
type Counts struct {
	// Offered counts those that occurred: handed to the Hub, or kept back by
	// limits in the kernel and lost on the way from there.
	Offered uint64
	// Written counts those that the first sink handed over to its reader.
	Written uint64
	// Suppressed counts those that a rate limit kept back, in the kernel or here.
	Suppressed uint64
	// Lost counts those that were to be written and could not be.
	Lost uint64
	// Ignored counts those that nobody wants: by Filter, or in the kernel.
	Ignored uint64
	// Pending counts those on the way.
	Pending uint64
}

// account counts what becomes of the events, by EventType.ID. Its methods may be
// called from any goroutine.
type account []typeAccount

type typeAccount struct {
	offered, written, suppressed, lost, ignored atomic.Uint64

	// untold counts suppressed events that the next entry of the type, of
	// whatever pod, is to tell about.
	untold atomic.Uint64
}

func newAccount() account { return make(account, len(catalog.Events())) }

// of returns the account of a type, nil for one that is not the Catalogue's.
func (a account) of(t *catalog.EventType) *typeAccount {
	if t == nil || t.ID() >= len(a) || catalog.Events()[t.ID()] != t {
		return nil
	}
	return &a[t.ID()]
}

// offer notes an event, and those that its own number of suppressed ones tells of.
func (c *typeAccount) offer(e *Event) {
	c.offered.Add(1 + e.Suppressed)
	if e.Suppressed > 0 {
		c.suppressed.Add(e.Suppressed)
	}
}

// countOnly notes events of which there is no Event.
func (c *typeAccount) countOnly(suppressed, lost uint64) {
	c.offered.Add(suppressed + lost)
	c.suppressed.Add(suppressed)
	c.lost.Add(lost)
	c.untold.Add(suppressed)
}

// countIgnored notes events of which there is no Event, for nobody wants them.
func (c *typeAccount) countIgnored(n uint64) {
	c.offered.Add(n)
	c.ignored.Add(n)
}

// ignore notes that nobody wants an event.
func (c *typeAccount) ignore(e *Event) {
	c.ignored.Add(1)
	c.untold.Add(e.Suppressed)
}

// report notes what became of an event that was sent.
func (c *typeAccount) report(e *Event, written bool) {
	if written {
		c.written.Add(1)
		return
	}
	c.lost.Add(1)
	if e.Suppressed > 0 {
		c.untold.Add(e.Suppressed) // nobody has read of them
	}
}

// tell takes the number of suppressed events for an entry to tell about.
func (c *typeAccount) tell() uint64 {
	if c.untold.Load() == 0 {
		return 0
	}
	return c.untold.Swap(0)
}

func (c *typeAccount) counts() Counts {
	// An event is offered before anything else becomes of it, so offered is
	// read last.
	n := Counts{Written: c.written.Load(), Suppressed: c.suppressed.Load(), Lost: c.lost.Load(), Ignored: c.ignored.Load()}
	n.Offered = c.offered.Load()
	n.Pending = n.Offered - n.Written - n.Suppressed - n.Lost - n.Ignored
	return n
}
