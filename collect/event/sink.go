package event

import "context"

// Sink writes events somewhere: to the journal, to a terminal. A Hub calls Send from
// one goroutine, in the order in which the events are sent, and Close once, when
// Send is not called any more. A sink may keep the Event and read it, also after
// done; nobody changes it once Send has it.
type Sink interface {
	// Send takes e for writing and returns at once, however slow the reader
	// is. done, unless it is nil, is called exactly once for e, from any
	// goroutine, perhaps before Send returns: with true when e has been handed
	// over to the reader, with false when it is lost. A sink whose Send panics
	// has not taken e, and must not call done.
	Send(e *Event, done func(e *Event, written bool))
	// Close writes what Send took, until ctx ends, and gives up the rest. What
	// Send gets later is lost. When Close returns, every done has been called.
	// The error says what could not be written, and why.
	Close(ctx context.Context) error
}
