package event

import (
	"testing"
	"time"

	"nodeskoop/collect/owner"
)

// TestLimiter runs a limiter through a timetable.
func TestLimiter(t *testing.T) {
	start := time.Unix(1000, 0)
	type ask struct {
		after time.Duration
		pod   string
		n     int // entries tried
		let   int // entries allowed
	}
	for name, c := range map[string]struct {
		by   limits
		asks []ask
	}{
		"no limit":   {limits{}, []ask{{0, "a", 1000, 1000}}},
		"burst":      {limits{rate: 10, burst: 5}, []ask{{0, "a", 8, 5}, {0, "b", 8, 5}, {100 * time.Millisecond, "a", 3, 1}, {time.Hour, "a", 8, 5}}},
		"no burst":   {limits{rate: 10}, []ask{{0, "a", 3, 1}, {time.Second, "a", 3, 1}}},
		"total only": {limits{total: 10}, []ask{{0, "a", 25, 10}, {time.Second, "b", 25, 10}}},
		// a has used up the total; b stays within its own limit, c does not.
		"quiet and loud": {limits{rate: 5, burst: 10, total: 10}, []ask{{0, "a", 20, 10}, {0, "b", 1, 1}, {0, "c", 30, 10}, {time.Second, "c", 5, 0}, {time.Second, "b", 1, 1}}},
		"time stands":    {limits{rate: 10, burst: 2}, []ask{{time.Second, "a", 3, 2}, {0, "a", 3, 0}}},
	} {
		l := newLimiter(start)
		for i, a := range c.asks {
			let := 0
			for range a.n {
				if _, ok := l.allow(c.by, bucketKey{whose: whose{pod: a.pod}}, start.Add(a.after)); ok {
					let++
				}
			}
			if let != a.let {
				t.Errorf("%s, %d: %d of %d were let through, want %d", name, i, let, a.n, a.let)
			}
		}
	}
}

// A full bucket is removed, after owedFor if it owes a number.
func TestLimiterSweep(t *testing.T) {
	start := time.Unix(1000, 0)
	by := limits{rate: 1, burst: 100}
	for _, owes := range []bool{false, true} {
		l := newLimiter(start)
		key := bucketKey{typ: 3, whose: whose{pod: "a"}}
		for range 150 {
			if b, ok := l.allow(by, key, start); !ok && owes {
				b.owed.Add(1)
			}
		}
		kept := 100 * time.Second
		if owes {
			kept = owedFor
		}
		if l.sweep(by, start.Add(kept-time.Second)); len(l.buckets) != 1 {
			t.Errorf("owes %v: a bucket that is not full, or owes, is gone", owes)
		}
		if l.sweep(by, start.Add(kept)); len(l.buckets) != 0 {
			t.Errorf("owes %v: %d buckets", owes, len(l.buckets))
		}
	}
	// A bucket created only for a number that it owes.
	l := newLimiter(start)
	l.bucket(bucketKey{}, start.Add(time.Minute)).owed.Add(1)
	if l.sweep(limits{}, start.Add(owedFor)); len(l.buckets) != 1 {
		t.Error("a new bucket that owes is gone")
	}
	if l.sweep(limits{}, start.Add(time.Minute+owedFor)); len(l.buckets) != 0 {
		t.Error("it is kept for ever")
	}
}

func TestBucketOf(t *testing.T) {
	e := event(lossType, 5)
	for name, c := range map[string]struct {
		change func()
		want   bucketKey
	}{
		"1 host":         {func() {}, bucketKey{}},
		"2 unattributed": {func() { e.unattributed = true }, bucketKey{whose: whose{unattributed: true}}},
		"3 unowned":      {func() { e.unowned = true }, bucketKey{whose: whose{unowned: true}}},
		"4 pod":          {func() { e.Pod = &owner.Pod{ID: "sandbox", UID: "u"} }, bucketKey{whose: whose{pod: "u"}}},
		"5 container":    {func() { e.Pod = &owner.Pod{ID: "sandbox"} }, bucketKey{whose: whose{pod: "sandbox"}}},
	} {
		*e = Event{Type: lossType}
		c.change()
		c.want.typ = lossType.ID()
		if got := bucketOf(e); got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
