package event

import (
	"sync/atomic"

	"nodeskoop/collect/catalog"
)

// Counts say what became of the events of one type:
//
//	Offered = Written + Suppressed + Lost + Ignored + Pending
type Counts struct {
	// Offered counts occurrences: events handed to the Hub, and events suppressed, ignored
	// or lost before they reached it.
	Offered uint64
	// Written counts the occurrences in entries that the first sink has handed to its
	// reader: the sum of Event.Occurrences.
	Written uint64
	// Suppressed counts occurrences that a rate limit suppressed, in the kernel or in the
	// Hub.
	Suppressed uint64
	// Lost counts occurrences that should have been written and could not be.
	Lost uint64
	// Ignored counts occurrences that Filter, or the probe in the kernel, does not
	// want.
	Ignored uint64
	// Pending counts events that are queued, or merged until their window ends.
	Pending uint64
}

// account counts the events of each type by outcome, indexed by EventType.ID. Its
// methods may be called from any goroutine.
type account []typeAccount

type typeAccount struct {
	offered, written, suppressed, lost, ignored atomic.Uint64

	entries atomic.Uint64 // entries written, however many occurrences each stands for
}

func newAccount() account { return make(account, len(catalog.Events())) }

// of returns the account of a type; nil if the Catalogue does not have it.
func (a account) of(t *catalog.EventType) *typeAccount {
	if t == nil || t.ID() >= len(a) || catalog.Events()[t.ID()] != t {
		return nil
	}
	return &a[t.ID()]
}

// countOnly counts occurrences for which no Event was made.
func (c *typeAccount) countOnly(suppressed, lost uint64) {
	c.offered.Add(suppressed + lost)
	c.suppressed.Add(suppressed)
	c.lost.Add(lost)
}

// countIgnored counts ignored occurrences for which no Event was made.
func (c *typeAccount) countIgnored(n uint64) {
	c.offered.Add(n)
	c.ignored.Add(n)
}

// suppress counts an entry that a limit suppressed. The next entry of its type and owner
// reports the number.
func (c *typeAccount) suppress(e *Event, b *bucket) {
	n := e.Occurrences()
	c.suppressed.Add(n)
	b.owed.Add(n)
}

// report counts an event as written or lost.
func (c *typeAccount) report(e *Event, written bool) {
	n := e.Occurrences()
	if written {
		c.written.Add(n)
		c.entries.Add(1)
		return
	}
	c.lost.Add(n)
	if e.bucket != nil {
		e.bucket.owed.Add(e.Suppressed) // report them with the next entry
	}
}

// recall adds the counts of an earlier process. Its pending events are lost.
func (c *typeAccount) recall(n Counts) {
	c.offered.Add(n.Written + n.Suppressed + n.Lost + n.Ignored + n.Pending)
	c.written.Add(n.Written)
	c.suppressed.Add(n.Suppressed)
	c.lost.Add(n.Lost + n.Pending)
	c.ignored.Add(n.Ignored)
}

func (c *typeAccount) counts() Counts {
	// Every event is counted in offered first, so read offered last: the difference is
	// never negative.
	n := Counts{Written: c.written.Load(), Suppressed: c.suppressed.Load(), Lost: c.lost.Load(), Ignored: c.ignored.Load()}
	n.Offered = c.offered.Load()
	n.Pending = n.Offered - n.Written - n.Suppressed - n.Lost - n.Ignored
	return n
}
