// Package history records on the node, minute by minute, which counters moved and
// which gauges changed, so that a question about last night needs no Prometheus.
//
// A History is a sink: Observe is given the families of each cycle, and allocates
// next to nothing. When a minute of the clock is over, what moved in it is handed to
// a goroutine, which appends one frame to the file of the hour (see frame.go for the
// format). A disk that hangs, is full or read-only costs minutes of the history, and
// nothing else. Read is the way back.
//
// A counter is recorded as its increase. The first value of a series is where its
// increases begin; a value below the one before is an increase from 0, as
// Prometheus' increase() has it. Of a histogram is recorded what came
// into each bucket: see BucketSuffix. Its sum takes as much room as five of them.
//
// Gauges are recorded if the Catalogue says so, which it does of those that top shows
// and of those that say how full something was. A gauge is written when it has moved by
// more than an eighth since it was written last: as the last value of the minute and,
// where it was higher in between, the highest. A queue that filled up and drained
// between two minutes is what one looks for, the average is not.
//
// Nothing is synced to disk. A killed daemon loses the minute that is open; a machine
// that crashes may lose those that the kernel had not written back, half a minute's
// worth usually.
package history

import (
	"log/slog"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// Folder is the history's name in the folder of the state.
const Folder = "history"

// Options say where a history is and how much of it is kept.
type Options struct {
	// Dir is the folder. It is made when it is needed, but not the one above the
	// state's.
	Dir string
	// MaxBytes and MaxAge bound what is kept. The oldest files go first.
	MaxBytes int64
	MaxAge   time.Duration
	// Minute is how long a minute is; 0: a minute. A file holds 60 of them. Only
	// tests want another.
	Minute time.Duration
	Log    *slog.Logger

	// Of the machine; tests give another's.
	clock func() instant
	disk  disk
}

// instant is one moment by the three clocks.
type instant struct {
	wall       time.Time
	boot, mono time.Duration // CLOCK_BOOTTIME, CLOCK_MONOTONIC
}

func now() instant {
	return instant{wall: time.Now(), boot: kernel.SinceBoot(), mono: kernel.Monotonic()}
}

const (
	// maxPending is how many minutes wait for a disk that hangs.
	maxPending = 5
	// slowWrite is how long the disk may take before that is said.
	slowWrite = 30 * time.Second
)

// Stats is what a History says of itself.
type Stats struct {
	Known   bool      // Bytes and Oldest are: something was written since the start
	Bytes   int64     // on disk
	Oldest  time.Time // when the oldest file begins
	Written uint64    // minutes
	Lost    uint64    // minutes that could not be written
	LeftOut int       // series that were not recorded in the last cycle: see maxSeries
}

// History records. All methods may be called from any goroutine, and none waits for
// the disk but Close.
type History struct {
	opt Options

	mu      sync.Mutex
	track   *tracker
	pending []*minute
	writing *bounded.Call[struct{}] // nil: none is under way
	writer  *writer                 // the call's that is under way
	slow    bool                    // it was said that the disk hangs
	failing bool                    // it was said that writing fails
	broken  bool                    // Observe panicked: nothing is recorded any more
	closed  bool
	stats   Stats
}

// New returns a History that writes into o.Dir. Nothing is done there before the
// first minute is over.
func New(o Options) *History {
	if o.Minute <= 0 {
		o.Minute = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.clock == nil {
		o.clock = now
	}
	if o.disk == nil {
		o.disk = folder{o.Dir}
	}
	return &History{opt: o, track: newTracker(o.Minute), writer: newWriter(o)}
}

// Observe takes the values of a cycle, which it does not keep. A panic in it ends
// the history, and harms nobody else.
func (h *History) Observe(families []*dto.MetricFamily) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.broken {
		return
	}
	h.reap()
	err := bounded.Guard(func() {
		if m := h.track.observe(h.opt.clock(), families); m != nil {
			h.enqueue(m)
		}
	})
	h.stats.LeftOut = h.track.leftOut
	if err != nil {
		h.broken = true
		h.opt.Log.Error("the history is off until the next start", "error", err)
	}
	h.write()
}

// Limit changes how much is kept.
func (h *History) Limit(maxBytes int64, maxAge time.Duration) { h.writer.limit(maxBytes, maxAge) }

// Stats tells how the history does.
func (h *History) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Bytes, s.Oldest = h.writer.size()
	s.Known = !s.Oldest.IsZero()
	return s
}

// Close writes the minute that is open and lets another process write. It waits up
// to d for the disk; 0: not at all, and what was not written goes on beside the
// caller.
func (h *History) Close(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	if !h.broken {
		if m := h.track.end(); m != nil {
			h.enqueue(m)
		}
	}
	before, rest, w := h.writing, h.pending, h.writer
	h.pending = nil
	end := bounded.Begin(func() (none struct{}, err error) {
		if before != nil {
			<-before.Done
		}
		for _, m := range rest {
			w.append(m)
		}
		w.close()
		return none, nil
	})
	if end.Over(d, nil) {
		h.result(end.Err)
	} else if d > 0 {
		h.opt.Log.Warn("the last minutes of the history are not written: the disk does not answer", "folder", h.opt.Dir)
	}
}

func (h *History) enqueue(m *minute) {
	if len(h.pending) >= maxPending {
		h.pending = h.pending[1:]
		h.stats.Lost++
	}
	h.pending = append(h.pending, m)
}

// write hands the minutes that wait to a goroutine, unless one is at work.
func (h *History) write() {
	if len(h.pending) == 0 || h.writing != nil {
		return
	}
	batch, w := h.pending, h.writer
	h.pending = nil
	h.writing = bounded.Begin(func() (none struct{}, err error) {
		for _, m := range batch {
			w.append(m)
		}
		return none, nil
	})
}

// reap takes the result of a goroutine that has ended.
func (h *History) reap() {
	c := h.writing
	if c == nil {
		return
	}
	if !c.Over(0, nil) {
		if !h.slow && time.Since(c.Since) > slowWrite {
			h.slow = true
			h.opt.Log.Warn("the history is not written: the disk does not answer; sampling goes on, and minutes are lost until it does", "folder", h.opt.Dir, "error", c.Hangs("writing it"))
		}
		return
	}
	h.writing = nil
	h.result(c.Err)
}

// result takes what the writer did.
func (h *History) result(panicked error) {
	written, lost, err := h.writer.result()
	h.stats.Written += written
	h.stats.Lost += lost
	switch {
	case panicked != nil:
		h.broken = true
		h.opt.Log.Error("the history is off until the next start", "error", panicked)
	case err != nil && !h.failing:
		h.failing = true
		h.opt.Log.Warn("the history cannot be written; it is tried again each hour, and the minutes until then are lost", "error", err,
			"hint", "give it room, or a folder that can be written with state.dir, or set history.enabled = false")
	case err == nil && written > 0 && (h.failing || h.slow):
		h.failing, h.slow = false, false
		h.opt.Log.Info("the history is written again", "folder", h.opt.Dir)
	}
}
