// Package bounded runs calls that may hang, panic or never end, with a deadline, a guard or
// a size limit, so that the caller can continue.
package bounded

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// Call is a call that may hang in the kernel or in another program. It runs in its own
// goroutine, which is abandoned if the call hangs. A panic in it becomes its error.
type Call[T any] struct {
	Since time.Time
	Done  chan struct{} // closed when Value and Err are set
	Value T
	Err   error
}

// Begin starts f in a goroutine.
func Begin[T any](f func() (T, error)) *Call[T] {
	b := &Call[T]{Since: time.Now(), Done: make(chan struct{})}
	go func() {
		defer close(b.Done)
		if err := Guard(func() { b.Value, b.Err = f() }); err != nil {
			b.Err = err
		}
	}()
	return b
}

// Over waits for the call as Closed does, up to d or until stop is closed, and reports
// whether the call has returned. stop may be nil.
func (b *Call[T]) Over(d time.Duration, stop <-chan struct{}) bool { return Closed(b.Done, d, stop) }

// Hangs returns an error that the call has not returned yet.
func (b *Call[T]) Hangs(what string) error {
	return fmt.Errorf("%s has not returned for %v: it waits in the kernel or for another program, and is not tried again before it returns (the stacks in /proc/PID/task/*/stack of this process say where)",
		what, time.Since(b.Since).Round(100*time.Millisecond))
}

// ErrNoAnswer is wrapped by Within's error for a call that hangs.
var ErrNoAnswer = errors.New("no answer")

// Within runs f, which may hang in the kernel or in another program, and waits up to d;
// after that the error is ErrNoAnswer, and f's result is lost. A panic in f becomes an
// error.
func Within[T any](d time.Duration, f func() (T, error)) (T, error) {
	b := Begin(f)
	if !b.Over(d, nil) {
		var zero T
		return zero, fmt.Errorf("%w within %v", ErrNoAnswer, d)
	}
	return b.Value, b.Err
}

// Guard runs f and returns a panic in it as an error, with its stack.
func Guard(f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = PanicError(p)
		}
	}()
	f()
	return nil
}

func PanicError(p any) error {
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}
