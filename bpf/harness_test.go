package bpf

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

// testLoader is a loader with its event reader for one test.
type testLoader struct {
	*Loader
	t      testing.TB
	mu     sync.Mutex
	events []Event
	stop   func()
}

func newTestLoader(t testing.TB, options Options) *testLoader {
	t.Helper()
	needRoot(t)
	l, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	tl := &testLoader{Loader: l, t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- l.Events(ctx, func(e *Event) {
			tl.mu.Lock()
			defer tl.mu.Unlock()
			tl.events = append(tl.events, *e)
		})
	}()
	tl.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("reader: %v", err)
		}
	})
	t.Cleanup(func() {
		tl.stop()
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return tl
}

// load loads a probe, or skips where the kernel has no hook for it.
func (l *testLoader) load(name string, config Config) *Probe {
	l.t.Helper()
	p, err := l.Load(name, config)
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		l.t.Skipf("this kernel: %v", err)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range p.Hooks() {
		l.t.Logf("%s: %s by %s %v %s", name, h.Name, h.Kind, h.Programs, h.Lacks)
	}
	return p
}

// taken gives the events of a type in one namespace so far, after waiting for
// at least n of them.
func (l *testLoader) taken(t EventType, netns uint64, n int) []Event {
	l.t.Helper()
	var found []Event
	l.eventually("the events "+t.String(), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		found = slices.DeleteFunc(slices.Clone(l.events), func(e Event) bool {
			return e.Type != t || netns != 0 && e.Netns != netns
		})
		return len(found) >= n
	})
	return found
}

// eventually waits for what another CPU or the kernel's softirqs still do.
func (l *testLoader) eventually(what string, ok func() bool) {
	l.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			l.t.Fatalf("waited 20 s for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func counters(t testing.TB, p *Probe, netns uint64) [8]uint64 {
	t.Helper()
	var slots [8]uint64
	if err := p.Counters(func(n uint64, slot int, value uint64) {
		if n == netns {
			slots[slot] = value
		}
	}); err != nil {
		t.Fatal(err)
	}
	return slots
}

// settled reads counters until they stand still for a moment: after traffic,
// the last packets may still be on their way through a softirq.
func (l *testLoader) settled(p *Probe, netns uint64) [8]uint64 {
	l.t.Helper()
	last := counters(l.t, p, netns)
	l.eventually("the counters to settle", func() bool {
		time.Sleep(50 * time.Millisecond)
		now := counters(l.t, p, netns)
		same := now == last
		last = now
		return same
	})
	return last
}

func (l *testLoader) account(t EventType) EventAccount {
	l.t.Helper()
	s, err := l.Stats()
	if err != nil {
		l.t.Fatal(err)
	}
	return s.Events[t-1]
}

// balanced demands that every occurrence the counters know of is accounted
// for, and that the ring gave all that was written to it. The slots are those
// whose occurrences are events of the type. The machine does not stand still
// for a test, so both are read until nothing happens between the readings.
func (l *testLoader) balanced(t EventType, p *Probe, slots ...int) EventAccount {
	l.t.Helper()
	sum := func() (n uint64) {
		if err := p.Counters(func(_ uint64, slot int, value uint64) {
			if slices.Contains(slots, slot) {
				n += value
			}
		}); err != nil {
			l.t.Fatal(err)
		}
		return n
	}
	var a EventAccount
	var before, after uint64
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		before, a, after = sum(), l.account(t), sum()
		if before == after && a.Seen == before && a.Read == a.Written && a.Written+a.Suppressed+a.Lost == a.Seen {
			return a
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.t.Errorf("account %+v, but %d to %d were counted", a, before, after)
	return a
}
