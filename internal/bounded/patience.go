package bounded

import "time"

// Patience measures time in which this process could run. If a step takes much longer
// than planned, the process was stopped or had no CPU, so it could not have seen what
// it waits for. Only a part of such a step counts.
type Patience struct {
	step time.Duration
	last time.Time
}

// NewPatience starts to measure. Call Passed every step.
func NewPatience(step time.Duration) Patience { return Patience{step: step, last: time.Now()} }

// Passed returns how much of the time since its last call counts.
func (p *Patience) Passed(now time.Time) time.Duration {
	passed := min(max(0, now.Sub(p.last)), p.step+p.step/2)
	p.last = now
	return passed
}

// Closed waits until done is closed and reports whether it was. It waits for up to d of
// time in which this process could run, or until stop is closed; stop may be nil.
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
