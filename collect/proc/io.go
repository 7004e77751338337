package proc

import (
	"errors"
	"slices"
	"sync"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// ioProbe adds up /proc/PID/io over the processes of each pod, and over all
// others for the host (fs/proc/base.c, do_io_accounting). The sums are those of a
// ledger.
//
// What starts and ends between two samples, such as an exec probe, is never read.
// Its counts are those of the pod's shim, which reaps it: what the shim's counts
// grew by beyond its own calls, which its threads' files show, is the pod's. Its own
// calls are the host's.
//
// Where the kernel lets it, an iterator tells once in a cycle which processes
// have not run. They have counted nothing, and are not read again.
type ioProbe struct {
	root    string
	metrics [ioFields]*catalog.Metric

	// mu is never held during a call into the kernel: a worker may hang there
	// for good, and the next needs the ledger.
	mu sync.Mutex
	ledger
	activity snapshot[bpf.Activity]
	lookedAt uint64 // when activity was asked for, or before

	began bool        // a target was sampled
	own   ioCounts    // calls of shims, which the host's next sample takes in
	shims map[int]int // their indices in View.Reapers, for the host's sample
}

var ioNames = [ioFields]string{ioReadCalls: "syscr", ioWriteCalls: "syscw", ioReadBytes: "read_bytes", ioWriteBytes: "write_bytes"}

// maxKept bounds the processes of one target that are kept. Of those beyond
// nothing counts that they had counted before a restart.
const maxKept = 20000

// Keep appends the sums and the processes that they have come from.
func (s *ioTotals) Keep(b []byte) []byte {
	if s.samples == 0 {
		return b
	}
	b = collect.AppendUints(b, s.at)
	b = collect.AppendUints(b, s.sum[:]...)
	for i, x := range s.members {
		if i == maxKept {
			break
		}
		b = collect.AppendUints(b, uint64(x.pid), x.start, uint64(x.parent), x.faults, x.reaped)
		b = collect.AppendUints(b, x.io[:]...)
	}
	return b
}

// Recall restores what Keep appended.
func (s *ioTotals) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	s.since = d.Uint()
	d.Uints(s.sum[:])
	for d.More() {
		r := reading{pid: int(int32(d.Uint())), start: d.Uint(), parent: int(int32(d.Uint())), faults: d.Uint(), reaped: d.Uint()}
		d.Uints(r.io[:])
		s.recalled = append(s.recalled, r)
	}
	return d.Err()
}

// begin opens a sample. Before the first, the processes of targets that are
// gone since an earlier run become known: what they had counted may come back
// in the counts of a process of the host's.
func (p *ioProbe) begin(v *collect.View, s *ioTotals) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.began {
		p.began = true
		v.Past(func(data []byte) {
			gone := new(ioTotals)
			if gone.Recall(data) == nil {
				p.recall(gone)
				gone.cycle = p.cycle - 1
			}
		})
	}
	p.recall(s)
	s.samples++
	s.at = clockTicks() - ticksPerSecond
}

// ticksPerSecond is USER_HZ, in which procfs counts on all architectures that
// Go knows.
const ticksPerSecond = 100

// clockTicks is the time since the boot as /proc/PID/stat has it.
func clockTicks() uint64 {
	return max(uint64(kernel.SinceBoot()/(time.Second/ticksPerSecond)), ticksPerSecond)
}

func (t typeInfo) newIO(env collect.Env) (collect.Probe, error) {
	p := &ioProbe{root: env.ProcRoot, ledger: ledger{procs: map[int]*process{}}}
	for _, m := range metricsOf("io") {
		i := slices.Index(ioNames[:], m.Field)
		if i < 0 {
			return nil, errors.New("the metric " + m.Name + " is of no value of /proc/PID/io")
		}
		p.metrics[i] = m
	}
	p.activity = newSnapshot[bpf.Activity](env, t, "each process is read in each cycle", bpf.NewActivities)
	return p, nil
}

func (*ioProbe) Granularity() collect.Granularity { return collect.EachPod }

func (p *ioProbe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.activity.drop()
}

// refresh asks which processes run, if that was not done in this cycle.
func (p *ioProbe) refresh(v *collect.View) error {
	return v.Do(0, "io", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.activity.cycle != v.Cycle() {
			p.lookedAt = p.tick()
		}
		p.activity.refresh(v)
		return nil
	})
}

// idle reports whether a process has not run since it was read, and notes that
// it was there when that was asked.
func (p *ioProbe) idle(s *ioTotals, pid int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ledger.idle(s, pid, p.activity.of[uint32(pid)], p.lookedAt)
}

// procFileSize is more than /proc/PID/stat and /proc/PID/io ever have.
const procFileSize = 4096

func (p *ioProbe) Sample(v *collect.View) error {
	if cap(v.Scratch) < 2*procFileSize {
		v.Scratch = make([]byte, 2*procFileSize)
	}
	if err := p.refresh(v); err != nil {
		return err
	}
	s := collect.State[ioTotals](v)
	p.begin(v, s)
	host := v.Pod() == nil
	if host {
		p.beginShims(v, s)
	}
	var failed unreadable
	for _, pid := range v.PIDs() {
		if p.idle(s, pid) {
			continue
		}
		if host {
			if is, err := p.isShim(v, pid); err != nil {
				return err
			} else if is {
				continue
			}
		}
		r, err := p.read(v, pid)
		switch {
		case err == nil:
			p.take(s, &r, host)
		case isGone(err):
		case partial(err):
			failed.add(pid, err)
			p.holdBack(s, pid)
		default:
			return err
		}
	}
	if !host {
		if err := p.readShims(v, s, &failed); err != nil {
			return err
		}
	}
	if err := p.finish(v, s, host, &failed); err != nil {
		return err
	}
	for i, m := range p.metrics {
		v.Add(m, float64(s.sum[i]))
	}
	return failed.err()
}

// read reads a process.
func (p *ioProbe) read(v *collect.View, pid int) (reading, error) {
	var reaped uint64
	p.mu.Lock()
	if x := p.procs[pid]; x != nil {
		reaped = x.reaped
	}
	p.mu.Unlock()
	return p.readAfter(v, pid, reaped)
}

func (p *ioProbe) readAfter(v *collect.View, pid int, reaped uint64) (r reading, err error) {
	err = v.Do(pid, "io", func() error {
		r, err = readProcess(p.root, pid, reaped, v.Scratch[:cap(v.Scratch)])
		return err
	})
	return r, err
}

// take is the ledger's observe.
func (p *ioProbe) take(s *ioTotals, r *reading, host bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observe(s, r, host, p.activity.of[uint32(r.pid)])
}

// holdBack is the ledger's hold.
func (p *ioProbe) holdBack(s *ioTotals, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold(s, pid)
}

// finish has the ledger book what ended children had counted, and closes the
// sample.
func (p *ioProbe) finish(v *collect.View, s *ioTotals, host bool, failed *unreadable) error {
	var inits []int
	if pod := v.Pod(); pod != nil {
		inits = pod.PIDs
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.reconcile(s, host, inits, func(pid int, reaped uint64) (r reading, is sight, err error) {
		p.mu.Unlock()
		defer p.mu.Lock()
		r, err = p.readAfter(v, pid, reaped)
		switch {
		case isGone(err):
			is, err = ended, nil
		case err != nil && partial(err):
			is, err = hidden, nil
		}
		return r, is, err
	})
	if err == nil && !host {
		p.mu.Unlock()
		err = p.split(v, s, failed)
		p.mu.Lock()
	}
	if err == nil {
		p.end(s, host)
	}
	return err
}
