package event

import (
	"testing"

	"nodeskoop/collect/catalog"
)

// Every occurrence is in one place of the account, and every suppressed one is told
// of once.
func TestAccount(t *testing.T) {
	a := newAccount()
	c, e := a.of(lossType), &Event{Type: lossType, Suppressed: 5}
	want := func(what string, n Counts, untold uint64) {
		t.Helper()
		if got := c.counts(); got != n || c.untold.Load() != untold {
			t.Errorf("%s: %+v, %d untold", what, got, c.untold.Load())
		}
	}
	want("at first", Counts{}, 0)
	c.countOnly(40, 2)
	want("in the kernel", Counts{Offered: 42, Suppressed: 40, Lost: 2}, 40)
	c.offer(e)
	want("on the way", Counts{Offered: 48, Suppressed: 45, Lost: 2, Pending: 1}, 40)
	if n := c.tell() + c.tell(); n != 40 {
		t.Errorf("told of %d", n)
	}
	e.Suppressed += 40
	c.report(e, false)
	want("lost", Counts{Offered: 48, Suppressed: 45, Lost: 3}, 45)
	c.tell()
	e.Suppressed = 3
	c.offer(e)
	c.ignore(e)
	want("ignored", Counts{Offered: 52, Suppressed: 48, Lost: 3, Ignored: 1}, 3)
	e.Suppressed = 0
	c.offer(e)
	c.report(e, true)
	want("written", Counts{Offered: 53, Written: 1, Suppressed: 48, Lost: 3, Ignored: 1}, 3)
	c.countIgnored(7)
	want("ignored in the kernel", Counts{Offered: 60, Written: 1, Suppressed: 48, Lost: 3, Ignored: 8}, 3)
	if a.of(nil) != nil || a.of(&catalog.EventType{}) != nil || a.of(bioType) == c {
		t.Error("another type has the account")
	}
}
