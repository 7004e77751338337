package event

import "context"

// Sink writes events, for example to the journal or a terminal. A Hub calls Send from one
// goroutine, in the order of the events, and Close once, after the last Send. A sink may
// keep and read the Event even after done; nobody changes it after Send.
type Sink interface {
	// Send takes e and returns at once, however slow the reader is. Unless done is nil, it
	// is called exactly once for e, from any goroutine and possibly before Send returns:
	// with true if e was handed to the reader, with false if it was lost. If Send panics,
	// it has not taken e and must not call done.
	Send(e *Event, done func(e *Event, written bool))
	// Close writes the events that Send took until ctx ends, and drops the rest. Events
	// sent later are lost. When Close returns, every done has been called. The error says
	// what could not be written, and why.
	Close(ctx context.Context) error
}
