package event

import (
	"sync/atomic"
	"time"
)

// The limits on entries that the configuration has by default.
const (
	DefaultEventRate  = 1  // a second, of one type and pod
	DefaultEventBurst = 20 // at once, of one type and pod
	DefaultTotalRate  = 20 // a second, of all
)

const (
	maxBuckets = 8192

	// owedFor is how long a bucket whose owner has nothing more to say is kept
	// for the number of suppressed events that it still owes. They are in the
	// account all the same.
	owedFor = 10 * time.Minute
)

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

type bucket struct {
	tokens float64
	last   time.Duration // since limiter.start
	used   bool
	loud   bool // it was empty, and has not been full since

	// owed counts suppressed occurrences that the next entry of the type and
	// owner is to tell of. A sink that lost the entry adds to it.
	owed atomic.Uint64
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

// bucket returns the bucket of a key, and makes it where there is room.
func (l *limiter) bucket(key bucketKey, at time.Time) *bucket {
	b := l.buckets[key]
	if b == nil && len(l.buckets) >= maxBuckets {
		key = bucketKey{typ: key.typ, rest: true}
		b = l.buckets[key]
	}
	if b == nil {
		b = &bucket{last: at.Sub(l.start)}
		l.buckets[key] = b
	}
	return b
}

// allow reports whether an entry is within the limits. It returns the entry's
// bucket, nil if it has none because nothing is limited. Who keeps below its own
// limit takes from what there is for all without asking for it; what then is left,
// also the debt, is shared by those that do not.
func (l *limiter) allow(by limits, key bucketKey, at time.Time) (*bucket, bool) {
	if by.rate <= 0 && by.total <= 0 {
		return l.buckets[key], true
	}
	now := at.Sub(l.start)
	b := l.bucket(key, at)
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
// among them. A new one would be the same, but for what it owes: that is kept
// for a while.
func (l *limiter) sweep(by limits, at time.Time) {
	now := at.Sub(l.start)
	for key, b := range l.buckets {
		idle := now - b.last
		full := by.rate <= 0 || b.tokens+float64(by.rate)*idle.Seconds() >= by.atOnce() || !b.used
		if idle >= sweepEvery && full && (b.owed.Load() == 0 || idle >= owedFor) {
			delete(l.buckets, key)
		}
	}
}
