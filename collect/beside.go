package collect

import (
	"errors"
	"fmt"
	"time"
)

// begun is a call that may hang in the kernel or in another program. It runs
// in a goroutine of its own, which is abandoned if it does. A panic in it is
// its error.
type begun[T any] struct {
	since time.Time
	done  chan struct{} // closed when value and err are there
	value T
	err   error
}

// begin starts f.
func begin[T any](f func() (T, error)) *begun[T] {
	b := &begun[T]{since: time.Now(), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		if err := Guard(func() { b.value, b.err = f() }); err != nil {
			b.err = err
		}
	}()
	return b
}

// over reports whether the call has returned, and waits up to d for it, or
// until stop, unless it is nil, is closed.
func (b *begun[T]) over(d time.Duration, stop <-chan struct{}) bool {
	select {
	case <-b.done:
		return true
	default:
	}
	if d <= 0 {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-b.done:
		return true
	case <-stop:
	case <-t.C:
	}
	return false
}

// hangs words that the call has not returned yet.
func (b *begun[T]) hangs(what string) error {
	return fmt.Errorf("%s has not returned for %v: it waits in the kernel or for another program, and is not tried again before it returns (the stacks in /proc/PID/task/*/stack of this process say where)",
		what, time.Since(b.since).Round(100*time.Millisecond))
}

// ErrNoAnswer is wrapped by what Within returns for a call that hangs.
var ErrNoAnswer = errors.New("no answer")

// Within runs f, which may hang in the kernel or in another program, and waits
// up to d for it: beyond that the error is ErrNoAnswer. A panic in f is an
// error. What f returns after d is lost.
func Within[T any](d time.Duration, f func() (T, error)) (T, error) {
	b := begin(f)
	if !b.over(d, nil) {
		var zero T
		return zero, fmt.Errorf("%w within %v", ErrNoAnswer, d)
	}
	return b.value, b.err
}

// Guard runs f and turns a panic in it into an error, with its stack.
func Guard(f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	f()
	return nil
}
