package event

import (
	"testing"
	"time"

	"nodeskoop/collect/owner"
)

// TestLimiter takes a limiter through a timetable: who is let through, and when.
func TestLimiter(t *testing.T) {
	start := time.Unix(1000, 0)
	type ask struct {
		after time.Duration
		pod   string
		n     int // times
		let   int // through
	}
	for name, c := range map[string]struct {
		by   limits
		asks []ask
	}{
		"no limit":   {limits{}, []ask{{0, "a", 1000, 1000}}},
		"burst":      {limits{rate: 10, burst: 5}, []ask{{0, "a", 8, 5}, {0, "b", 8, 5}, {100 * time.Millisecond, "a", 3, 1}, {time.Hour, "a", 8, 5}}},
		"no burst":   {limits{rate: 10}, []ask{{0, "a", 3, 1}, {time.Second, "a", 3, 1}}},
		"total only": {limits{total: 10}, []ask{{0, "a", 25, 10}, {time.Second, "b", 25, 10}}},
		// a has spent what there is for all; b keeps below its own limit, c does not.
		"quiet and loud": {limits{rate: 5, burst: 10, total: 10}, []ask{{0, "a", 20, 10}, {0, "b", 1, 1}, {0, "c", 30, 10}, {time.Second, "c", 5, 0}, {time.Second, "b", 1, 1}}},
		"time stands":    {limits{rate: 10, burst: 2}, []ask{{time.Second, "a", 3, 2}, {0, "a", 3, 0}}},
	} {
		l := newLimiter(start)
		for i, a := range c.asks {
			let := 0
			for range a.n {
				if _, ok := l.allow(c.by, bucketKey{pod: a.pod}, start.Add(a.after)); ok {
					let++
				}
			}
			if let != a.let {
				t.Errorf("%s, %d: %d of %d were let through, want %d", name, i, let, a.n, a.let)
			}
		}
	}
}

// A bucket that is full again is dropped, and what it suppressed handed on.
func TestLimiterSweep(t *testing.T) {
	start := time.Unix(1000, 0)
	l, by := newLimiter(start), limits{rate: 1, burst: 100}
	for range 150 {
		if b, ok := l.allow(by, bucketKey{typ: 3, pod: "a"}, start); !ok {
			b.suppressed++
		}
	}
	untold := map[int]uint64{}
	hand := func(typ int, n uint64) { untold[typ] += n }
	if l.sweep(by, start.Add(99*time.Second), hand); len(l.buckets) != 1 || len(untold) != 0 {
		t.Errorf("a bucket that is not full is gone: %v", untold)
	}
	if l.sweep(by, start.Add(100*time.Second), hand); len(l.buckets) != 0 || untold[3] != 50 {
		t.Errorf("%d buckets, %v", len(l.buckets), untold)
	}
}

func TestBucketOf(t *testing.T) {
	e := event(lossType, 5)
	for name, c := range map[string]struct {
		change func()
		want   bucketKey
	}{
		"1 host":         {func() {}, bucketKey{}},
		"2 unattributed": {func() { e.unattributed = true }, bucketKey{unattributed: true}},
		"3 unowned":      {func() { e.unowned = true }, bucketKey{unowned: true}},
		"4 pod":          {func() { e.Pod = &owner.Pod{ID: "sandbox", UID: "u"} }, bucketKey{pod: "u"}},
		"5 container":    {func() { e.Pod = &owner.Pod{ID: "sandbox"} }, bucketKey{pod: "sandbox"}},
	} {
		*e = Event{Type: lossType}
		c.change()
		c.want.typ = lossType.ID()
		if got := bucketOf(e); got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
