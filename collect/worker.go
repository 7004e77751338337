package collect

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

const (
	maxOrphans  = 4 // workers that may hang on one target at a time
	pollOrphans = 20 * time.Millisecond
)

// errAbandoned stops an abandoned worker.
var errAbandoned = errors.New("abandoned after a timeout")

// calls is the state that a worker shares with the loop that watches it.
type calls struct {
	mu        sync.Mutex
	abandoned bool // the loop no longer wants the worker's results
	op        op   // the kernel call under way, if inOp
	inOp      bool

	threadLost bool // the thread could not return to its namespace; used by the worker only
}

// enter records the start of a kernel call. It fails if the worker is abandoned.
func (c *calls) enter(o op) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandoned {
		return errAbandoned
	}
	c.op, c.inOp = o, true
	return nil
}

// leave records the return of a kernel call, and reports whether the worker still owns its
// job.
func (c *calls) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inOp = false
	return !c.abandoned
}

// worker runs the jobs of a plan in order. If a probe hangs, the worker is abandoned: its
// results are discarded, it ends as soon as the kernel returns, and its successor continues
// behind the hanging probe.
type worker struct {
	plan *plan
	view View
	done chan<- *worker // receives the worker when it has finished, or when it must be replaced

	calls
	// calls.mu protects the following fields, too.
	byOp    bool // abandoned because of a kernel call, not the probe's own code
	j, i    int  // position: jobs[j].run[i]
	started time.Time
	mark    int // rows before this index are complete
	jobMark int // rows before this index belong to earlier jobs
	rows    []row

	// State of overtime: the start of the last probe that it saw, and how long the
	// process had run by then.
	seen      time.Time
	ranBefore time.Duration
}

// sample runs all jobs of a plan and appends their rows to rows. If stop is closed, it
// returns the rows so far. It calls beat regularly. It always ends, since each probe has a
// timeout.
func sample(p *plan, rows []row, stop <-chan struct{}, beat func()) []row {
	if len(p.jobs) == 0 {
		return rows
	}
	done := make(chan *worker, 1)
	w := &worker{plan: p, done: done, rows: rows, mark: len(rows), jobMark: len(rows), started: time.Now()}
	go w.work()
	tick := time.NewTicker(pollOrphans)
	defer tick.Stop()
	patience, ran := bounded.NewPatience(pollOrphans), time.Duration(0)
	for {
		select {
		case w = <-done:
			if w.j >= len(p.jobs) {
				return w.rows
			}
			w = w.successor() // the old worker lost its thread
			go w.work()
		case <-stop:
			// The plan is no longer wanted; the worker ends when its call returns.
			w.mu.Lock()
			defer w.mu.Unlock()
			w.abandoned = true
			return w.rows[:w.mark:w.mark]
		case <-tick.C:
			beat()
			ran += patience.Passed(time.Now())
			if w.overtime(ran) {
				w = w.successor()
				go w.work()
			}
		}
	}
}

// successor is a worker that continues where w stopped. The slice's capacity is limited,
// so that append copies the rows: w may still write behind its mark.
func (w *worker) successor() *worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &worker{plan: w.plan, done: w.done, j: w.j, i: w.i, started: time.Now(),
		rows: w.rows[:w.mark:w.mark], mark: w.mark, jobMark: w.jobMark}
}

// overtime abandons the worker if its probe exceeds the timeout, and reports whether it
// did. ran is how long this process has been able to run since the jobs began.
func (w *worker) overtime(ran time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.j >= len(w.plan.jobs):
		return false
	case w.seen != w.started: // a new probe has started
		w.seen, w.ranBefore = w.started, ran
		return false
	case ran-w.ranBefore < w.plan.timeout:
		return false
	}
	job := &w.plan.jobs[w.j]
	probe := job.run[w.i]
	err := fmt.Errorf("it did not return within %v", w.plan.timeout)
	stuck := job.hang(w.op, w.inOp, probe)
	// Remember the hanging call, so that the same probe can still be tried on the
	// target's other processes and files.
	if w.inOp {
		err = &StuckError{w.op.pid, w.op.what}
	}
	probe.fail(job.target, err)
	probe.took += time.Since(w.started)
	if !w.inOp || stuck >= maxOrphans {
		w.next(job)
	}
	w.abandoned, w.byOp = true, w.inOp
	return true
}

// next advances to the next probe, or to the first probe of the next job.
func (w *worker) next(job *job) {
	if w.i++; w.i >= len(job.run) {
		w.i, w.j = 0, w.j+1
		w.jobMark = w.mark
	}
}

func (w *worker) work() {
	w.view = View{plan: w.plan, calls: &w.calls, dir: -1}
	v := &w.view
	defer func() { v.reset(nil) }()
	var cur *target
	for {
		w.mu.Lock()
		if w.abandoned {
			w.mu.Unlock()
			return
		}
		if w.j >= len(w.plan.jobs) {
			w.mu.Unlock()
			w.done <- w
			return
		}
		job := &w.plan.jobs[w.j]
		probe := job.run[w.i]
		w.started, w.inOp = time.Now(), false
		v.rows = w.rows
		w.mu.Unlock()
		if job.target != cur {
			v.reset(job.target)
			cur = job.target
		}
		v.source = probe
		if w.finish(job, probe, w.one(job, probe)) {
			return
		}
	}
}

// report is the result of one Sample call, without its rows.
type report struct {
	err         error
	hooked      bool // the probe is Hooked; hook and limitations are set
	hook        string
	limitations []string
}

// one runs one probe on one target.
func (w *worker) one(job *job, probe *source) (r report) {
	if job.err != nil {
		return report{err: job.err}
	}
	switch hung, stuck := job.hanging(probe); {
	case hung:
		return report{err: errors.New("the call made in an earlier cycle has not returned yet")}
	case stuck >= maxOrphans:
		return report{err: fmt.Errorf("%d calls hang in the kernel already", stuck)}
	}
	defer func() {
		if p := recover(); p != nil {
			r.err = bounded.PanicError(p)
		}
	}()
	r.err = probe.probe.Sample(&w.view)
	if h, ok := probe.probe.(Hooked); ok {
		r.hook, r.limitations = h.Hook()
		r.hooked = true
	}
	return r
}

// finish records the result of a Sample call, and reports whether the worker must stop.
func (w *worker) finish(job *job, probe *source, r report) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.abandoned {
		job.returned(w.op, w.byOp, probe) // the hanging call has returned
		return true
	}
	probe.took += time.Since(w.started)
	if r.hooked {
		probe.hook, probe.limitations = r.hook, r.limitations
	}
	w.take(job, probe, r.err)
	if w.threadLost {
		w.done <- w
		return true
	}
	return false
}

// take keeps the rows that are complete, and advances to the next probe.
func (w *worker) take(job *job, probe *source, err error) {
	var part *PartialError
	var missing *MissingError
	switch {
	case err == nil:
		w.rows = w.view.rows
	case errors.Is(err, kernel.ErrGone) && job.pod != nil:
		// A pod that ended while it was sampled has no values in this cycle.
		w.rows = w.rows[:w.jobMark]
		w.i = len(job.run)
	case errors.As(err, &part) && part.Protected > 0:
		// Hidden processes are not part of the sum, which is complete without
		// them.
		w.rows = w.view.rows
		probe.protected += part.Protected
		probe.protectedErr = fmt.Errorf("%s: %w", job.target, err)
	case errors.As(err, &missing):
		w.rows = w.view.rows
		probe.fail(job.target, err)
	default:
		// A sum with a missing part is not written.
		probe.fail(job.target, err)
	}
	if probe.keep && w.mark < len(w.rows) {
		probe.rows = append(probe.rows, w.rows[w.mark:]...)
	}
	w.mark = len(w.rows)
	w.next(job)
}
