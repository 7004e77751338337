package bounded

import "time"

// Patience counts time in which this process could run. Of a wait that took much
// longer than it was to, only so much counts: the process was stopped, or had no
// CPU, and so had what it waits for.
type Patience struct {
	step time.Duration
	last time.Time
}

// NewPatience begins to count. Passed is to be asked every step.
func NewPatience(step time.Duration) Patience { return Patience{step: step, last: time.Now()} }

// Passed is how much of the time since it was asked last, or since the beginning,
// counts.
func (p *Patience) Passed(now time.Time) time.Duration {
	passed := min(max(0, now.Sub(p.last)), p.step+p.step/2)
	p.last = now
	return passed
}

// Closed waits until done is closed, and reports whether it was: for d at most, of
// time in which this process could run, or until stop, unless it is nil, is closed.
func Closed(done <-chan struct{}, d time.Duration, stop <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
	}
	if d <= 0 {
		return false
	}
	p := NewPatience(max(d/8, time.Millisecond))
	t := time.NewTicker(p.step)
	defer t.Stop()
	for spent := time.Duration(0); ; {
		select {
		case <-done:
			return true
		case <-stop:
			return false
		case <-t.C:
			if spent += p.Passed(time.Now()); spent >= d {
				return false
			}
		}
	}
}
