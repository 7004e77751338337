package proc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// ioProbe adds up /proc/PID/io over the processes of each pod, and over all
// others for the host (fs/proc/base.c, do_io_accounting). What became of the counts
// of exited processes is the ledger's to find out.
//
// Where the kernel lets it, an iterator tells once in a cycle which processes
// have not run. They have counted nothing, and are not read again.
type ioProbe struct {
	root    string
	metrics [ioFields]*catalog.Metric

	// mu is not held while the kernel is asked, which may hang: samples of other
	// targets go on.
	mu       sync.Mutex
	activity snapshot[bpf.Activity]
	lookedAt uint64 // when activity was asked for, or before, by the ledger's clock
	ledger   ledger
	shims    map[int]int // their indices in View.Reapers, for the host's sample
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
// gone since an earlier run become known.
func (p *ioProbe) begin(v *collect.View, s *ioTotals) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ledger.began {
		v.Past(func(data []byte) {
			gone := new(ioTotals)
			if gone.Recall(data) == nil {
				p.ledger.adopt(gone)
			}
		})
	}
	at := clockTicks() - ticksPerSecond
	if pod := v.Pod(); pod != nil {
		p.ledger.begin(s, false, pod.PIDs, at)
		return
	}
	p.ledger.begin(s, true, nil, at)
	p.listShims(v)
}

// ticksPerSecond is USER_HZ, in which procfs counts on all architectures that
// Go knows.
const ticksPerSecond = 100

// clockTicks is the time since the boot as /proc/PID/stat has it.
func clockTicks() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return ticksPerSecond
	}
	return uint64(ts.Nano() / (1e9 / ticksPerSecond))
}

func (t typeInfo) newIO(env collect.Env) (collect.Probe, error) {
	p := &ioProbe{root: env.ProcRoot, ledger: newLedger()}
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
			p.lookedAt = p.ledger.tick()
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
	x := p.ledger.known(s, pid)
	if x == nil || !x.activity.Idle(p.activity.of[uint32(pid)]) {
		return false
	}
	s.keep(x)
	x.at = max(x.at, p.lookedAt)
	return true
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
	var failed unreadable
	for _, pid := range v.PIDs() {
		if p.idle(s, pid) {
			continue
		}
		if s.host {
			if is, err := p.isShim(v, pid); err != nil {
				return err
			} else if is {
				continue
			}
		}
		r, err := p.read(v, pid)
		switch {
		case err == nil:
			p.observe(s, &r, false)
		case isGone(err):
		case partial(err):
			failed.add(pid, err)
			p.hold(s, pid)
		default:
			return err
		}
	}
	if !s.host {
		if err := p.readShims(v, s, &failed); err != nil {
			return err
		}
	}
	if err := p.reconcile(v, s, &failed); err != nil {
		return err
	}
	for i, m := range p.metrics {
		v.Add(m, float64(s.sum[i]))
	}
	return failed.err()
}

// read reads a process.
func (p *ioProbe) read(v *collect.View, pid int) (r reading, err error) {
	var reaped uint64
	p.mu.Lock()
	if x := p.ledger.procs[pid]; x != nil {
		reaped = x.reaped
	}
	p.mu.Unlock()
	err = v.Do(pid, "io", func() error {
		r, err = readProcess(p.root, pid, reaped, v.Scratch[:cap(v.Scratch)])
		return err
	})
	return r, err
}

// observe counts a reading of a process, which may be a shim of the target's pod.
func (p *ioProbe) observe(s *ioTotals, r *reading, shim bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var x *process
	if shim {
		x = p.ledger.observeShim(s, r)
	} else {
		x = p.ledger.observe(s, r)
	}
	if x != nil {
		x.activity = p.activity.of[uint32(r.pid)]
	}
}

// hold notes that a process that cannot be read is there.
func (p *ioProbe) hold(s *ioTotals, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.ledger.known(s, pid); x != nil {
		s.keep(x)
	}
}

// reconcile finds out what became of the processes that are missing, and closes the
// sample.
func (p *ioProbe) reconcile(v *collect.View, s *ioTotals, failed *unreadable) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.ledger.reconcile(s, func(x *process) (reading, error) {
		pid, start := x.pid, x.start
		p.mu.Unlock()
		defer p.mu.Lock()
		r, err := p.read(v, pid)
		if err == nil && r.start != start {
			err = errGone // its number is another's
		}
		return r, err
	})
	if err == nil && !s.host {
		err = p.ledger.split(s, v.Reapers(), func(x *process) (ioCounts, error) {
			pid, threads := x.pid, &x.shim.threads
			p.mu.Unlock()
			defer p.mu.Lock()
			return p.readThreads(v, pid, threads, failed)
		})
	}
	if err == nil {
		p.ledger.finish(s)
	}
	return err
}

var (
	nameStat = []byte("stat\x00")
	nameIO   = []byte("io\x00")
)

// readProcess reads what counts of a process, using buf. reaped is what the
// process had reaped when it was read last: if it has reaped more, its two
// files are read until nothing is reaped between them, because a child's
// counts must be in both or in neither.
func readProcess(root string, pid int, reaped uint64, buf []byte) (r reading, err error) {
	// The open directory is this process's, even if the number is given to
	// another between the two files.
	dir, err := openProc(root, pid, "", unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return r, err
	}
	defer unix.Close(dir)
	r.pid = pid
	const tries = 50
	for range tries {
		if err := r.readFiles(root, dir, buf); err != nil {
			return r, err
		}
		switch {
		case r.dead:
			// The kernel is about to take it away. Only then is it sure that
			// the parent has its counts.
			time.Sleep(100 * time.Microsecond)
		case r.reaped == reaped:
			return r, r.askThreads(root)
		}
		reaped = r.reaped
	}
	if r.dead {
		return r, errGone
	}
	return r, r.askThreads(root)
}

// askThreads finds out whether a process whose first thread ends, or has ended,
// goes on with another.
func (r *reading) askThreads(root string) error {
	if !r.ending || r.threads < 2 {
		return nil
	}
	_, err := kernel.LiveThread(root, r.pid)
	r.ending = err != nil
	if err != nil && !isGone(err) {
		return err
	}
	return nil
}

// readFiles reads /proc/PID/io and then stat.
func (r *reading) readFiles(root string, dir int, buf []byte) error {
	b, err := readAt(dir, nameIO, buf)
	if err != nil {
		err = wrapProc("read", root, r.pid, "/io", err)
		if isGone(err) {
			if _, e := readAt(dir, nameStat, buf); e == nil {
				return fmt.Errorf("read %s/%d/io: %w: this kernel does not count the I/O of processes (CONFIG_TASK_IO_ACCOUNTING)", root, r.pid, unix.EOPNOTSUPP)
			}
		}
		return err
	}
	if r.io, err = parseIO(b); err != nil {
		return fmt.Errorf("%s/%d/%w", root, r.pid, err)
	}
	if b, err = readAt(dir, nameStat, buf); err != nil {
		return wrapProc("read", root, r.pid, "/stat", err)
	}
	if err := r.parseStat(b); err != nil {
		return fmt.Errorf("%s/%d/%w", root, r.pid, err)
	}
	return nil
}

// parseStat reads /proc/PID/stat (fs/proc/array.c, do_task_stat).
func (r *reading) parseStat(b []byte) error {
	l := lines{file: "stat", n: 1}
	// The name of the program may hold anything, parentheses and newlines too.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || len(b) == 0 || b[len(b)-1] != '\n' {
		return l.errorf("%.60q is not what a kernel prints", b)
	}
	rest := b[i+1 : len(b)-1]
	var f []byte
	var own uint64
	for n := 3; n <= 22; n++ { // as proc(5) numbers them
		f, rest = field(rest)
		if n == 3 {
			if len(f) != 1 {
				return l.errorf("the state %.20q", f)
			}
			r.dead = f[0] == 'X'
			r.ending = f[0] == 'Z' || r.dead
			continue
		}
		x, ok := parseGauge(f)
		if !ok {
			return l.errorf("field %d, %.30q, is not a number", n, f)
		}
		switch n {
		case 4:
			r.parent = int(x)
		case 9:
			const pfExiting = 0x4 // PF_EXITING in include/linux/sched.h
			r.ending = r.ending || x&pfExiting != 0
		case 10:
			own = x
		case 11:
			r.reaped = x
		case 20:
			r.threads = x
		case 22:
			r.start = x
		}
	}
	r.faults = own + r.reaped
	return nil
}

// parseIO reads /proc/PID/io: a name and a number on each line.
func parseIO(b []byte) (c ioCounts, err error) {
	l := lines{file: "io", rest: b}
	var found [ioFields]bool
	for {
		line, ok, err := l.next()
		if err != nil {
			return c, err
		}
		if !ok {
			break
		}
		name, value, ok := bytes.Cut(line, colon)
		if !ok {
			return c, l.errorf("%.40q has no colon", line)
		}
		for i, want := range ioNames {
			if string(name) != want {
				continue
			}
			f, _ := field(value)
			if c[i], ok = parseUint(f); !ok {
				return c, l.errorf("the value %.30q of %s is not a number", value, name)
			}
			found[i] = true
		}
	}
	for i := range found {
		if !found[i] {
			l.n++
			return c, l.errorf("%s is missing", ioNames[i])
		}
	}
	return c, nil
}

var colon = []byte(":")
