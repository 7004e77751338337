package output

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Patient hands lines to a writer whose reader may stand still: a pipe that
// nobody reads, a terminal that is stopped, a file system that does not answer.
// Write never waits. What does not fit into the queue meanwhile is lost, and
// the number of lost lines is written as soon as writing goes on.
type Patient struct {
	w io.Writer

	mu      sync.Mutex
	waiting [][]byte
	bytes   int
	lost    int
	running bool
	idle    chan struct{} // closed when nothing waits
}

// What may wait for a reader that stands still.
const (
	maxWaitingLines = 1000
	maxWaitingBytes = 1 << 20
)

// NewPatient returns a Patient that writes to w.
func NewPatient(w io.Writer) *Patient { return &Patient{w: w} }

// Writer returns what it writes to.
func (p *Patient) Writer() io.Writer { return p.w }

// Write takes b, which is one line or several, for writing.
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

// run writes what waits, and ends when nothing does.
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
			_, _ = p.w.Write(l) // there is nobody to tell
		}
		if lost > 0 {
			fmt.Fprintf(p.w, "nodeskoop: %d lines of the log are lost: nobody read it\n", lost)
		}
	}
}

// Flush waits until all is written, for d at most, and reports whether it is.
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
