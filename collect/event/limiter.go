package event

import "time"

// The limits that the configuration has by default.
const (
	DefaultEventRate  = 20  // a second, of one type and pod
	DefaultEventBurst = 100 // at once, of one type and pod
	DefaultTotalRate  = 200 // a second, of all
)

const maxBuckets = 8192

// limits are the rates of HubOptions.
type limits struct{ rate, burst, total int }

func (l limits) atOnce() float64 { return float64(max(l.burst, 1)) }

// limiter holds a token bucket per event type and pod, and one over all. It
// belongs to one goroutine.
type limiter struct {
	start   time.Time
	buckets map[bucketKey]*bucket
	total   bucket
}

func newLimiter(now time.Time) limiter {
	return limiter{start: now, buckets: map[bucketKey]*bucket{}}
}

// bucketKey names a type's events of one pod; of all unowned namespaces; of what is
// unattributed; or, with none of these, of the host.
type bucketKey struct {
	typ          int
	pod          string
	unowned      bool
	unattributed bool
	rest         bool // of all for which there was no room
}

// bucketOf says which limit an event counts against.
func bucketOf(e *Event) bucketKey {
	key := bucketKey{typ: e.Type.ID()}
	switch {
	case e.Pod != nil:
		// Two sandboxes of one pod are one.
		if key.pod = e.Pod.UID; key.pod == "" {
			key.pod = e.Pod.ID
		}
	case e.unowned:
		key.unowned = true
	case e.unattributed:
		key.unattributed = true
	}
	return key
}

type bucket struct {
	tokens     float64
	last       time.Duration // since limiter.start
	used       bool
	loud       bool   // it was empty, and has not been full since
	suppressed uint64 // since the last one that was let through
}

// fill adds the tokens of the time that has passed.
func (b *bucket) fill(now time.Duration, rate, burst float64) {
	if !b.used {
		b.tokens, b.used = burst, true
	} else if now > b.last {
		b.tokens = min(burst, b.tokens+rate*(now-b.last).Seconds())
	}
	b.last = now
}

// allow reports whether an event is within the limits. It returns the event's
// bucket, nil if nothing is limited. Who keeps below its own limit takes from what
// there is for all without asking for it; what then is left, also the debt, is
// shared by those that do not.
func (l *limiter) allow(by limits, key bucketKey, at time.Time) (*bucket, bool) {
	if by.rate <= 0 && by.total <= 0 {
		return nil, true
	}
	now := at.Sub(l.start)
	b := l.buckets[key]
	if b == nil && len(l.buckets) >= maxBuckets {
		key = bucketKey{typ: key.typ, rest: true}
		b = l.buckets[key]
	}
	if b == nil {
		b = &bucket{}
		l.buckets[key] = b
	}
	if by.rate > 0 {
		b.fill(now, float64(by.rate), by.atOnce())
		if b.loud = b.loud && b.tokens < by.atOnce(); b.tokens < 1 {
			b.loud = true
			return b, false
		}
		b.tokens-- // also for one that is held back below: it is what its owner had to say
	} else {
		b.last, b.loud = now, true // there is no limit to keep below
	}
	if by.total > 0 {
		rate := float64(by.total)
		if l.total.fill(now, rate, max(rate, by.atOnce())); b.loud && l.total.tokens < 1 {
			return b, false
		}
		l.total.tokens = max(l.total.tokens-1, -rate)
	}
	return b, true
}

// sweep drops the buckets that are full again: those of pods that are gone
// among them. A new one would be the same, but for the number of suppressed
// events, which is handed to untold.
func (l *limiter) sweep(by limits, at time.Time, untold func(typ int, suppressed uint64)) {
	now := at.Sub(l.start)
	for key, b := range l.buckets {
		idle := now - b.last
		full := by.rate <= 0 || b.tokens+float64(by.rate)*idle.Seconds() >= by.atOnce()
		if idle >= sweepEvery && full {
			untold(key.typ, b.suppressed)
			delete(l.buckets, key)
		}
	}
}
