package event

import (
	"sync/atomic"
	"time"
)

// The default limits on entries.
const (
	DefaultEventRate  = 1  // per second, of one type and pod
	DefaultEventBurst = 20 // at once, of one type and pod
	DefaultTotalRate  = 20 // per second, of all
)

const (
	maxBuckets = 8192

	// owedFor is how long an idle bucket is kept because it holds a number of suppressed
	// events that no entry has reported. The account counts them in any case.
	owedFor = 10 * time.Minute
)

// limits are the rates of HubOptions.
type limits struct{ rate, burst, total int }

func (l limits) atOnce() float64 { return float64(max(l.burst, 1)) }

// limiter has a token bucket per event type and owner, and one for all. One goroutine owns
// it.
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
	last   time.Duration // time since limiter.start
	used   bool
	loud   bool // the tokens ran out, and the bucket has not been full since

	// owed counts suppressed occurrences that the next entry of the type and owner must
	// report. A sink that loses that entry adds its number again.
	owed atomic.Uint64
}

// fill adds the tokens for the time since last.
func (b *bucket) fill(now time.Duration, rate, burst float64) {
	if !b.used {
		b.tokens, b.used = burst, true
	} else if now > b.last {
		b.tokens = min(burst, b.tokens+rate*(now-b.last).Seconds())
	}
	b.last = now
}

// bucket returns the bucket of a key. If there is no room for a new one, it returns the one
// that the remaining owners share.
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

// allow reports whether an entry is within the limits, and returns the entry's bucket,
// which may be nil if nothing is limited. An owner within its own limit always takes a
// token of the total, even into debt; owners beyond their own limit share the rest.
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
		b.tokens-- // even if the total suppresses it below: the owner has used its share
	} else {
		b.last, b.loud = now, true // without a rate, every owner counts as over its limit
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

// sweep removes full buckets, such as those of deleted pods: a new bucket would be equal. A
// bucket that owes a number is kept for owedFor.
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
