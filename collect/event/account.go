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
	// Written counts those that were told: the sum of Event.Occurrences over the
	// entries that the first sink handed over to its reader.
	Written uint64
	// Suppressed counts those that a rate limit kept back, in the kernel or here.
	Suppressed uint64
	// Lost counts those that were to be written and could not be.
	Lost uint64
	// Ignored counts those that nobody wants: by Filter, or in the kernel.
	Ignored uint64
	// Pending counts those on the way, and those that are merged until their
	// window ends.
	Pending uint64
}

// account counts what becomes of the events, by EventType.ID. Its methods may be
// called from any goroutine.
type account []typeAccount

type typeAccount struct {
	offered, written, suppressed, lost, ignored atomic.Uint64

	entries atomic.Uint64 // that were written, of however many events each
}

func newAccount() account { return make(account, len(catalog.Events())) }

// of returns the account of a type, nil for one that is not the Catalogue's.
func (a account) of(t *catalog.EventType) *typeAccount {
	if t == nil || t.ID() >= len(a) || catalog.Events()[t.ID()] != t {
		return nil
	}
	return &a[t.ID()]
}

// countOnly notes events of which there is no Event.
func (c *typeAccount) countOnly(suppressed, lost uint64) {
	c.offered.Add(suppressed + lost)
	c.suppressed.Add(suppressed)
	c.lost.Add(lost)
}

// countIgnored notes events of which there is no Event, for nobody wants them.
func (c *typeAccount) countIgnored(n uint64) {
	c.offered.Add(n)
	c.ignored.Add(n)
}

// suppress notes that a limit kept an entry back, and that the next entry of its
// type and owner is to say so.
func (c *typeAccount) suppress(e *Event, b *bucket) {
	n := e.Occurrences()
	c.suppressed.Add(n)
	b.owed.Add(n)
}

// report notes what became of an event that was sent.
func (c *typeAccount) report(e *Event, written bool) {
	n := e.Occurrences()
	if written {
		c.written.Add(n)
		c.entries.Add(1)
		return
	}
	c.lost.Add(n)
	if e.bucket != nil {
		e.bucket.owed.Add(e.Suppressed) // nobody has read of them
	}
}

// recall goes on from what an earlier run had counted. What was pending then, it
// has not written: that is lost.
func (c *typeAccount) recall(n Counts) {
	c.offered.Add(n.Written + n.Suppressed + n.Lost + n.Ignored + n.Pending)
	c.written.Add(n.Written)
	c.suppressed.Add(n.Suppressed)
	c.lost.Add(n.Lost + n.Pending)
	c.ignored.Add(n.Ignored)
}

func (c *typeAccount) counts() Counts {
	// An event is offered before anything else becomes of it, so offered is
	// read last.
	n := Counts{Written: c.written.Load(), Suppressed: c.suppressed.Load(), Lost: c.lost.Load(), Ignored: c.ignored.Load()}
	n.Offered = c.offered.Load()
	n.Pending = n.Offered - n.Written - n.Suppressed - n.Lost - n.Ignored
	return n
}
