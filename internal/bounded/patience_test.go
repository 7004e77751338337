package bounded

import (
	"testing"
	"testing/synctest"
	"time"
)

// The excess of a step that takes too long does not count.
func TestPatience(t *testing.T) {
	at := time.Unix(1000, 0)
	p := Patience{step: 100 * time.Millisecond, last: at}
	var spent time.Duration
	for _, c := range []struct{ after, want time.Duration }{
		{100 * time.Millisecond, 100 * time.Millisecond},
		{120 * time.Millisecond, 220 * time.Millisecond},
		{time.Hour, 370 * time.Millisecond}, // the process was stopped
		{50 * time.Millisecond, 420 * time.Millisecond},
		{-time.Minute, 420 * time.Millisecond},
	} {
		at = at.Add(c.after)
		if spent += p.Passed(at); spent != c.want {
			t.Errorf("after %v more: %v, want %v", c.after, spent, c.want)
		}
	}
}

func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		start := time.Now()
		if Closed(never, time.Second, nil) || time.Since(start) != time.Second {
			t.Errorf("it took %v of a second", time.Since(start))
		}
		for name, c := range map[string]struct {
			after time.Duration
			stop  bool
			want  bool
		}{
			"in time": {900 * time.Millisecond, false, true},
			"stopped": {300 * time.Millisecond, true, false},
		} {
			done, stop := make(chan struct{}), make(chan struct{})
			time.AfterFunc(c.after, func() {
				if c.stop {
					close(stop)
				} else {
					close(done)
				}
			})
			start := time.Now()
			if got := Closed(done, time.Second, stop); got != c.want || time.Since(start) != c.after {
				t.Errorf("%s: %v after %v", name, got, time.Since(start))
			}
		}
		over := make(chan struct{})
		close(over)
		if !Closed(over, 0, nil) || Closed(never, 0, nil) {
			t.Error("without a wait")
		}
	})
}
