// Package history records on the node, minute by minute, which counters and gauges changed,
// so that questions about the recent past need no Prometheus server.
//
// A History is a sink: Observe gets the families of each cycle, and allocates almost
// nothing. When a minute of the wall clock is over, a goroutine appends its changes as one
// frame to the file of the hour (see frame.go for the format). If the disk hangs, is full
// or is read-only, only minutes of the history are lost. A Reader reads the files.
//
// A counter is recorded as its increase. The first value of a series is the base of its
// increases; a value below the previous one is an increase from 0, as in Prometheus'
// increase(). Of a histogram, each bucket's own count is recorded (see BucketSuffix). Its
// sum would take the space of five buckets.
//
// A gauge is recorded if the Catalogue says so: gauges that top shows, and those that show
// how full something was. It is written when it has moved by more than an eighth since it
// was last written: the last value of the minute and, if that was exceeded in between, the
// highest. A queue that fills up and drains between two minutes matters; its average does
// not.
//
// Nothing is synced to disk. A killed daemon loses the current minute. A crash of the
// machine also loses what the kernel had not written back, usually half a minute.
package history

import (
	"log/slog"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// Folder is the history's name in the state folder.
const Folder = "history"

// Options are the settings of a History.
type Options struct {
	// Dir is the folder. It is created when needed, and so is its parent, the state folder.
	Dir string
	// MaxBytes and MaxAge limit the files, oldest removed first.
	MaxBytes int64
	MaxAge   time.Duration
	// Minute is the length of a recorded minute; 0 means one minute, and only tests set
	// another. A file holds 60 of them.
	Minute time.Duration
	Log    *slog.Logger

	// The machine's; tests replace them.
	clock func() instant
	disk  disk
}

// instant is one moment on three clocks.
type instant struct {
	wall       time.Time
	boot, mono time.Duration // CLOCK_BOOTTIME, CLOCK_MONOTONIC
}

func now() instant {
	return instant{wall: time.Now(), boot: kernel.SinceBoot(), mono: kernel.Monotonic()}
}

const (
	// maxPending is the number of minutes that can wait while the disk hangs.
	maxPending = 5
	// slowWrite is how long a write may take before it is logged.
	slowWrite = 30 * time.Second
)

// Stats are a History's statistics.
type Stats struct {
	Known   bool      // something was written since the start, so Bytes and Oldest are valid
	Bytes   int64     // on disk
	Oldest  time.Time // start of the oldest file
	Written uint64    // minutes written
	Lost    uint64    // minutes that could not be written
	LeftOut int       // series not recorded in the last cycle because of maxSeries
}

// History records the families of each cycle. All methods may be called from any goroutine,
// and only Close waits for the disk.
type History struct {
	opt Options

	mu      sync.Mutex
	track   *tracker
	pending []*minute
	writing *bounded.Call[struct{}] // nil: none is under way
	writer  *writer                 // used by that call
	slow    bool                    // the hanging disk has been logged
	failing bool                    // the failing writes have been logged
	broken  bool                    // Observe panicked; nothing more is recorded
	closed  bool
	stats   Stats
}

// New returns a History that writes to o.Dir. It does not touch the folder before the first
// minute is over.
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

// Observe records the values of a cycle. It does not keep families. A panic in it ends the
// history only.
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

// Limit changes MaxBytes and MaxAge.
func (h *History) Limit(maxBytes int64, maxAge time.Duration) { h.writer.limit(maxBytes, maxAge) }

// Stats returns the statistics.
func (h *History) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Bytes, s.Oldest = h.writer.size()
	s.Known = !s.Oldest.IsZero()
	return s
}

// Close writes the current minute and releases the folder's lock. It waits up to d for the
// disk. With d = 0 it does not wait, and the write continues in the background.
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
		h.opt.Log.Warn("the last minutes of the history are not written: the disk does not respond", "folder", h.opt.Dir)
	}
}

func (h *History) enqueue(m *minute) {
	if len(h.pending) >= maxPending {
		h.pending = h.pending[1:]
		h.stats.Lost++
	}
	h.pending = append(h.pending, m)
}

// write passes the waiting minutes to a goroutine, unless one is running.
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

// reap collects the result of a goroutine that has ended.
func (h *History) reap() {
	c := h.writing
	if c == nil {
		return
	}
	if !c.Over(0, nil) {
		if !h.slow && time.Since(c.Since) > slowWrite {
			h.slow = true
			h.opt.Log.Warn("the history is not written: the disk does not respond; sampling continues, and minutes are lost until it does", "folder", h.opt.Dir, "error", c.Hangs("writing it"))
		}
		return
	}
	h.writing = nil
	h.result(c.Err)
}

// result adds the writer's results to the statistics, and logs changes.
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
		h.opt.Log.Warn("writing the history failed; it is tried again each hour, and the minutes until then are lost", "error", err,
			"hint", "give it room, or a folder that can be written with state.dir, or set history.enabled = false")
	case err == nil && written > 0 && (h.failing || h.slow):
		h.failing, h.slow = false, false
		h.opt.Log.Info("the history is written again", "folder", h.opt.Dir)
	}
}
