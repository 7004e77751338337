package event

import (
	"testing"

	"nodeskoop/collect/catalog"
)

// Each occurrence is counted exactly once, and each suppressed one is reported exactly
// once, in an entry of its own owner.
func TestAccount(t *testing.T) {
	a := newAccount()
	c, b := a.of(lossType), &bucket{}
	one := &Event{Type: lossType, bucket: b}
	many := &Event{Type: lossType, bucket: b, Merged: &Merged{Count: 7}}
	want := func(what string, n Counts, owed uint64) {
		t.Helper()
		if got := c.counts(); got != n || b.owed.Load() != owed {
			t.Errorf("%s: %+v, %d owed", what, got, b.owed.Load())
		}
	}
	want("at first", Counts{}, 0)
	c.countOnly(40, 2)
	want("in the kernel", Counts{Offered: 42, Suppressed: 40, Lost: 2}, 0)
	c.offered.Add(8)
	want("on the way", Counts{Offered: 50, Suppressed: 40, Lost: 2, Pending: 8}, 0)
	c.suppress(one, b)
	c.suppress(many, b)
	want("suppressed", Counts{Offered: 50, Suppressed: 48, Lost: 2}, 8)
	c.offered.Add(8)
	many.Suppressed = b.owed.Swap(0)
	c.report(many, false)
	want("lost", Counts{Offered: 58, Suppressed: 48, Lost: 9, Pending: 1}, 8)
	many.Suppressed = b.owed.Swap(0)
	c.report(one, false)
	want("another lost, that told of nothing", Counts{Offered: 58, Suppressed: 48, Lost: 10}, 0)
	c.offered.Add(9)
	c.ignored.Add(1)
	c.report(many, true)
	c.report(one, true)
	want("written", Counts{Offered: 67, Written: 8, Suppressed: 48, Lost: 10, Ignored: 1}, 0)
	c.countIgnored(7)
	want("ignored in the kernel", Counts{Offered: 74, Written: 8, Suppressed: 48, Lost: 10, Ignored: 8}, 0)
	if a.of(nil) != nil || a.of(&catalog.EventType{}) != nil || a.of(bioType) == c {
		t.Error("another type has the account")
	}
}

// Pending events of an earlier process are lost; the other counts continue.
func TestAccountGoesOn(t *testing.T) {
	a := newAccount()
	c := a.of(lossType)
	c.offered.Add(3)
	c.recall(Counts{Offered: 60, Written: 30, Suppressed: 10, Lost: 5, Ignored: 8, Pending: 7})
	if got, want := c.counts(), (Counts{Offered: 63, Written: 30, Suppressed: 10, Lost: 12, Ignored: 8, Pending: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
