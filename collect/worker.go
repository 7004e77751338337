package collect

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// job is the work of one cycle on one target.
type job struct {
	t   *target
	run []*instance
}

// worker runs the jobs of a cycle one after another. When a probe hangs, the
// worker is disowned: it ends by itself as soon as the kernel lets it, what it
// did meanwhile is thrown away, and another worker goes on behind it.
type worker struct {
	r    *Runner
	jobs []*job
	root string // where procfs is: r.opt may change while a worker hangs
	node string

	cycle uint64
	// unknown stands for what belongs to no known namespace.
	unknown *target
	netns   map[uint64]*target // of the cycle

	view View
	done chan *worker // told when the worker has stopped at the end, or must be replaced

	mu       sync.Mutex
	disowned bool
	byOp     bool // for what a call did, not the probe
	j, i     int  // the position: jobs[j].run[i]
	started  time.Time
	op       op
	inOp     bool
	mark     int // rows up to here are whole
	jobMark  int // rows of the jobs before this one
	rows     []Row

	// What the probe says of its hooks, if it is Hooked.
	hooked bool
	hook   string
	blind  []string

	poisoned bool // the thread could not be brought back to its namespace
}

// runJobs runs all jobs and returns their rows, appended to rows.
func (r *Runner) runJobs(jobs []*job, rows []Row) []Row {
	if len(jobs) == 0 {
		return rows
	}
	done := make(chan *worker, 1)
	w := &worker{r: r, jobs: jobs, root: r.opt.ProcRoot, node: r.opt.Node, cycle: r.cycles, unknown: r.unknown, netns: r.netns, done: done, rows: rows, mark: len(rows), jobMark: len(rows), started: time.Now()}
	go w.work()
	tick := time.NewTicker(pollOrphans)
	defer tick.Stop()
	for {
		select {
		case w = <-done:
			if w.j >= len(jobs) {
				return w.rows
			}
			w = w.successor() // its thread was lost
			go w.work()
		case <-r.stop:
			// What it samples is nobody's any more; it ends when it can.
			w.mu.Lock()
			defer w.mu.Unlock()
			w.disowned = true
			return w.rows[:w.mark:w.mark]
		case <-tick.C:
			// Each probe's time is limited here, so the jobs end while this runs.
			r.beat(0)
			if w.takeOver() {
				w = w.successor()
				go w.work()
			}
		}
	}
}

// successor continues where w stopped. The rows are copied on the next append:
// w may still write behind its mark.
func (w *worker) successor() *worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &worker{r: w.r, jobs: w.jobs, root: w.root, node: w.node, cycle: w.cycle, unknown: w.unknown, netns: w.netns, done: w.done, j: w.j, i: w.i, started: time.Now(),
		rows: w.rows[:w.mark:w.mark], mark: w.mark, jobMark: w.jobMark}
}

// takeOver disowns the worker if its probe has run for too long, and reports
// whether it did.
func (w *worker) takeOver() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.j >= len(w.jobs) || time.Since(w.started) < w.r.opt.Timeout {
		return false
	}
	job := w.jobs[w.j]
	in := job.run[w.i]
	t := job.t
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if w.inOp {
		// The call is remembered, so that the same probe can be tried again
		// on what else the target has.
		if t.stuck == nil {
			t.stuck = map[op]int{}
		}
		t.stuck[w.op]++
		w.byOp = true
		err = &StuckError{w.op.pid, w.op.what}
		if len(t.stuck) >= maxOrphans {
			w.i++
		}
	} else {
		if t.hung == nil {
			t.hung = map[*instance]bool{}
		}
		t.hung[in] = true
		err = fmt.Errorf("it did not return within %v", w.r.opt.Timeout)
		w.i++
	}
	in.fail(t, err)
	in.took += time.Since(w.started)
	if w.i >= len(job.run) {
		w.i, w.j = 0, w.j+1
		w.jobMark = w.mark
	}
	w.disowned = true
	return true
}

func (w *worker) work() {
	w.view = View{w: w, dir: -1, Scratch: w.view.Scratch}
	v := &w.view
	defer func() { v.reset(nil) }()
	var cur *job
	for {
		w.mu.Lock()
		if w.j >= len(w.jobs) {
			w.mu.Unlock()
			w.done <- w
			return
		}
		job := w.jobs[w.j]
		in := job.run[w.i]
		probe := in.probe // it may be dropped while it hangs
		w.started, w.inOp = time.Now(), false
		v.rows = w.rows
		w.mu.Unlock()
		if job != cur {
			v.reset(job.t)
			cur = job
		}
		v.inst = in
		err := w.one(v, in, probe)
		if w.finish(v, job, in, err) {
			return
		}
	}
}

// one runs one probe on one target.
func (w *worker) one(v *View, in *instance, probe Probe) (err error) {
	v.t.mu.Lock()
	hung, stuck := v.t.hung[in], len(v.t.stuck)
	v.t.mu.Unlock()
	if v.t.err != nil {
		return v.t.err
	}
	if hung {
		return errors.New("the call made in an earlier cycle has not returned yet")
	}
	if stuck >= maxOrphans {
		return fmt.Errorf("%d calls hang in the kernel already", stuck)
	}
	defer func() {
		if p := recover(); p != nil {
			err = bounded.PanicError(p)
		}
	}()
	err = probe.Sample(v)
	if h, ok := probe.(Hooked); ok {
		w.hook, w.blind = h.Hook()
		w.hooked = true
	}
	return err
}

// finish takes down the outcome and reports whether the worker must stop.
func (w *worker) finish(v *View, job *job, in *instance, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disowned {
		// What hung has come back.
		t := v.t
		t.mu.Lock()
		if !w.byOp {
			delete(t.hung, in) // gone already if the probe was dropped meanwhile
		} else if t.stuck[w.op]--; t.stuck[w.op] <= 0 {
			delete(t.stuck, w.op)
		}
		t.mu.Unlock()
		return true
	}
	in.took += time.Since(w.started)
	if w.hooked {
		in.hook, in.blind, w.hooked = w.hook, w.blind, false
	}
	switch {
	case err == nil:
		w.rows = v.rows
	case errors.Is(err, kernel.ErrGone) && job.t.pod != nil:
		// A pod that ends while it is sampled has no values in this cycle.
		w.rows = w.rows[:w.jobMark]
		w.i = len(job.run)
	default:
		// A sum that lacks what could not be read is no value. What the kernel
		// shows to nobody is no part of it.
		var part *PartialError
		var missing *MissingError
		switch {
		case errors.As(err, &part) && part.Protected > 0:
			w.rows = v.rows
			in.protected += part.Protected
			in.protectedErr = fmt.Errorf("%s: %w", job.t, err)
		case errors.As(err, &missing):
			w.rows = v.rows
			in.fail(job.t, err)
		default:
			in.fail(job.t, err)
		}
	}
	w.mark = len(w.rows)
	if w.i++; w.i >= len(job.run) {
		w.i, w.j = 0, w.j+1
		w.jobMark = w.mark
	}
	if w.poisoned {
		w.done <- w
		return true
	}
	return false
}

// PartialError says that a probe's values lack some processes.
type PartialError struct {
	Err error
	// Protected counts processes that the kernel shows to nobody, whatever the
	// capabilities. If it is not 0 nothing else is missing: the values are written,
	// and the probe counts as working. Else the values are left out.
	Protected int
}

func (e *PartialError) Error() string { return e.Err.Error() }

// Unwrap returns the failure of the part.
func (e *PartialError) Unwrap() error { return e.Err }

// MissingError says that a probe over Node has no values of some namespaces. Those
// of the others are whole, and are written; the probe counts as failed.
type MissingError struct{ Err error }

func (e *MissingError) Error() string { return e.Err.Error() }

// Unwrap returns why they are missing.
func (e *MissingError) Unwrap() error { return e.Err }

// fail takes down that the probe gave no whole values for t.
func (in *instance) fail(t *target, err error) {
	if in.firstErr == nil {
		in.firstErr = fmt.Errorf("%s: %w", t, err)
	}
	if in.failedOn != t {
		in.failedOn = t
		in.failed++
	}
}
