package output

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
)

// queued is an event that waits to be written.
type queued struct {
	e    *event.Event
	done func(e *event.Event, written bool)
}

// eventQueue is the queue between the Hub and a sink's goroutine, whose reader may be slow,
// hang or be gone. When the queue is full, new events are lost and counted.
type eventQueue struct {
	waiting chan queued
	stop    chan struct{} // closed: write the queued events, then end
	kill    chan struct{} // closed: end now
	ended   chan struct{} // closed when the goroutine has ended
	counts  []eventCount  // by EventType.ID

	mu     sync.Mutex
	closed bool     // closed makes Send reject events
	dead   bool     // the goroutine was abandoned and its results are ignored
	busy   []queued // taken by the goroutine, and not reported yet
	told   []queued // second buffer, swapped with busy
}

type eventCount struct{ written, lost atomic.Uint64 }

func (q *eventQueue) init(size int) {
	q.waiting = make(chan queued, size)
	q.stop, q.kill, q.ended = make(chan struct{}), make(chan struct{}), make(chan struct{})
	q.counts = make([]eventCount, len(catalog.Events()))
}

// Send implements event.Sink.
func (q *eventQueue) Send(e *event.Event, done func(*event.Event, bool)) {
	x := queued{e, done}
	q.mu.Lock()
	if !q.closed {
		select {
		case q.waiting <- x:
			q.mu.Unlock()
			return
		default:
		}
	}
	q.mu.Unlock()
	q.tell(x, false)
}

// Counts returns how many events of a type were written and lost.
func (q *eventQueue) Counts(t *catalog.EventType) (written, lost uint64) {
	c := &q.counts[t.ID()]
	return c.written.Load(), c.lost.Load()
}

func (q *eventQueue) tell(x queued, written bool) {
	c := &q.counts[x.e.Type.ID()]
	if written {
		c.written.Add(1)
	} else {
		c.lost.Add(1)
	}
	if x.done != nil {
		x.done(x.e, written)
	}
}

// take waits for the next event; nil: there will be none.
func (q *eventQueue) take() *event.Event {
	var x queued
	select {
	case x = <-q.waiting:
	case <-q.stop:
		select {
		case x = <-q.waiting: // closed, so no more events are added
		default:
			return nil
		}
	}
	return q.taken(x)
}

// more returns the next event if there is one, without waiting.
func (q *eventQueue) more() *event.Event {
	select {
	case x := <-q.waiting:
		return q.taken(x)
	default:
		return nil
	}
}

func (q *eventQueue) taken(x queued) *event.Event {
	q.mu.Lock()
	dead := q.dead
	if !dead {
		q.busy = append(q.busy, x)
	}
	q.mu.Unlock()
	if dead {
		q.tell(x, false)
		return nil
	}
	return x.e
}

// finish reports the first n of the taken events as written, and the others as lost.
func (q *eventQueue) finish(n int) {
	q.mu.Lock()
	if q.dead {
		q.mu.Unlock()
		return
	}
	q.busy, q.told = q.told[:0], q.busy
	q.mu.Unlock()
	for i, x := range q.told {
		q.tell(x, i < n)
	}
	clear(q.told)
}

// killed reports whether Close has run out of time.
func (q *eventQueue) killed() bool {
	select {
	case <-q.kill:
		return true
	default:
		return false
	}
}

// giveUpAfter is how long the goroutine may take to notice that it must end. A goroutine
// that takes longer counts as hanging in the kernel and is abandoned.
const giveUpAfter = 100 * time.Millisecond

// close makes the goroutine write the queued events until ctx ends. Then it uses wake to
// interrupt a blocked call, and reports the remaining events as lost.
func (q *eventQueue) close(ctx context.Context, name string, wake func()) error {
	q.mu.Lock()
	again := q.closed
	q.closed = true
	q.mu.Unlock()
	if again {
		return nil
	}
	close(q.stop)
	select {
	case <-q.ended:
		return nil
	case <-ctx.Done():
	}
	close(q.kill)
	wake()
	t := time.NewTimer(giveUpAfter)
	defer t.Stop()
	select {
	case <-q.ended:
	case <-t.C:
	}
	q.mu.Lock()
	q.dead = true
	rest := q.busy
	q.mu.Unlock()
	for {
		select {
		case x := <-q.waiting:
			rest = append(rest, x)
			continue
		default:
		}
		break
	}
	for _, x := range rest {
		q.tell(x, false)
	}
	if len(rest) == 0 {
		return nil
	}
	return fmt.Errorf("%d events were not written to %s: %w", len(rest), name, context.Cause(ctx))
}
