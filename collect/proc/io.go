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

// ioProbe sums /proc/PID/io over the processes of each pod, and for the host over all other
// processes (fs/proc/base.c, do_io_accounting). A ledger keeps the sums.
//
// A process that starts and ends between two samples, such as an exec probe, is never read.
// Its counts pass to the pod's shim, which reaps it. So the growth of the shim's counts is
// the pod's, except for the shim's own calls, which its threads' files show and which are
// the host's.
//
// Where the kernel permits it, a BPF iterator tells once per cycle which processes have not
// run. Their counts are unchanged, and they are not read again.
type ioProbe struct {
	root    string
	metrics [ioFields]*catalog.Metric

	// mu is never held during a call into the kernel: a worker may hang there forever, and
	// the next worker needs the ledger.
	mu sync.Mutex
	ledger
	activity snapshot[bpf.Activity]
	lookedAt uint64 // tick of the last reading of activity, or earlier

	began bool        // at least one target has been sampled
	own   ioCounts    // the shims' own calls, to be added to the host's next sample
	shims map[int]int // indexes into the host's View.Reapers, by PID
}

var ioNames = [ioFields]string{ioReadCalls: "syscr", ioWriteCalls: "syscw", ioReadBytes: "read_bytes", ioWriteBytes: "write_bytes"}

// maxKept is the most processes of one target in the saved state. Of further ones, only
// counts after the first sample of the next run are added.
const maxKept = 20000

// Keep appends the sums and the processes behind them.
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

// begin starts a sample. Before the first one it loads the saved processes of targets that
// are gone: a process of the host may have inherited their counts.
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

// ticksPerSecond is USER_HZ, the unit of times in procfs on all architectures that Go
// supports.
const ticksPerSecond = 100

// clockTicks is the time since boot in clock ticks, as in /proc/PID/stat.
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

// refresh reads the processes' activity, once per cycle.
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

// idle reports whether a process has not run since it was read, and if so marks it as
// present.
func (p *ioProbe) idle(s *ioTotals, pid int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ledger.idle(s, pid, p.activity.of[uint32(pid)], p.lookedAt)
}

// procFileSize is larger than /proc/PID/stat and /proc/PID/io ever are.
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
		case err == nil && host && p.starting(v, &r):
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

// read reads one process.
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

// take is ledger.observe.
func (p *ioProbe) take(s *ioTotals, r *reading, host bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observe(s, r, host, p.activity.of[uint32(r.pid)])
}

// holdBack is ledger.hold.
func (p *ioProbe) holdBack(s *ioTotals, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold(s, pid)
}

// finish reconciles the counts of exited processes and ends the sample.
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
