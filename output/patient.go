package output

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Patient writes lines to a writer whose reader may hang: a pipe that nobody reads, a
// stopped terminal, a file system that does not answer. Write never waits. Lines that do
// not fit into the queue are lost, and their number is written when writing works again.
type Patient struct {
	w io.Writer

	mu      sync.Mutex
	waiting [][]byte
	bytes   int
	lost    int
	running bool
	idle    chan struct{} // closed when nothing is queued
}

// The limits of the queue.
const (
	maxWaitingLines = 1000
	maxWaitingBytes = 1 << 20
)

// NewPatient returns a Patient that writes to w.
func NewPatient(w io.Writer) *Patient { return &Patient{w: w} }

// Writer returns the underlying writer.
func (p *Patient) Writer() io.Writer { return p.w }

// Write queues b, which is one or more lines.
func (p *Patient) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) >= maxWaitingLines || p.bytes+len(b) > maxWaitingBytes && len(p.waiting) > 0 {
		p.lost++
		return len(b), nil
	}
	p.waiting = append(p.waiting, append([]byte(nil), b...))
	p.bytes += len(b)
	if !p.running {
		p.running, p.idle = true, make(chan struct{})
		go p.run()
	}
	return len(b), nil
}

// run writes the queue, and ends when it is empty.
func (p *Patient) run() {
	for {
		p.mu.Lock()
		if len(p.waiting) == 0 {
			p.running = false
			close(p.idle)
			p.mu.Unlock()
			return
		}
		lines, lost := p.waiting, p.lost
		p.waiting, p.lost, p.bytes = nil, 0, 0
		p.mu.Unlock()
		for _, l := range lines {
			_, _ = p.w.Write(l) // there is nothing left to report the error to
		}
		if lost > 0 {
			fmt.Fprintf(p.w, "nodeskoop: %d lines of the log are lost: nobody read it\n", lost)
		}
	}
}

// Flush waits until everything is written, for d at most, and reports whether it is.
func (p *Patient) Flush(d time.Duration) bool {
	p.mu.Lock()
	running, idle := p.running, p.idle
	p.mu.Unlock()
	if !running {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-idle:
		return true
	case <-t.C:
		return false
	}
}
