package proc

import (
	"bytes"
	"cmp"
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
// others for the host (fs/proc/base.c, do_io_accounting).
//
// The sums only go up, although processes end. What makes this hard is that
// the kernel hands on what a process counted: a parent that waits for a child
// gets the child's counts, those of the child's own reaped children included,
// added to its own (kernel/exit.c, wait_task_zombie). What an ended process
// counted must stay in the sum where nobody waited for it, and must not be
// counted a second time where it comes back in a parent's count.
//
// The minor page faults tell the two cases apart. A parent's cminflt in
// /proc/PID/stat grows by the faults of a child in the same place in the
// kernel, and by nothing else, and there is no process without faults. So the
// counts of an ended process are found again in the first of its ancestors
// whose cminflt and I/O counts have all grown by at least what the process had.
// They are then taken off that ancestor's growth. The ancestor may belong to
// another target: the process that starts a container is the host's.
//
// A process is counted where it is: one that moves to another control group
// leaves behind what it had counted.
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

	mu       sync.Mutex
	activity snapshot[bpf.Activity]
	lookedAt uint64 // when activity was asked for, or before

	began bool // a target was sampled
	procs map[int]*process
	clock uint64     // numbers the readings
	cycle uint64     // counts the samples of the host, the last target of each cycle
	gone  []*process // ended, and their counts not found yet

	own   ioCounts    // calls of shims, which the host's next sample takes in
	shims map[int]int // their indices in View.Reapers, for the host's sample
}

// The values of /proc/PID/io that are summed.
const (
	ioReadCalls = iota
	ioWriteCalls
	ioReadBytes
	ioWriteBytes
	ioFields
)

var ioNames = [ioFields]string{ioReadCalls: "syscr", ioWriteCalls: "syscw", ioReadBytes: "read_bytes", ioWriteBytes: "write_bytes"}

type ioCounts [ioFields]uint64

func (c *ioCounts) add(d *ioCounts) {
	for i := range c {
		c[i] += d[i]
	}
}

func (c *ioCounts) sub(d *ioCounts) {
	for i := range c {
		c[i] -= d[i]
	}
}

// covers reports whether d can be part of c.
func (c *ioCounts) covers(d *ioCounts) bool {
	for i := range c {
		if c[i] < d[i] {
			return false
		}
	}
	return true
}

// reading is what procfs says of a process at one moment.
type reading struct {
	pid    int
	start  uint64 // when it started, in clock ticks: with the pid, its identity
	parent int
	ending bool   // it exits, or is a zombie, with all its threads
	dead   bool   // its parent gets its counts just now, or nobody does
	faults uint64 // minor page faults, its own and its reaped children's
	reaped uint64 // those of its reaped children
	io     ioCounts

	threads uint64
}

// process is a process that has been counted.
type process struct {
	reading
	owner *ioTotals // the target that counted it last
	seen  uint64    // the owner's sample in which it was listed last
	born  uint64    // the owner's sample in which it was listed first
	at    uint64    // when it was last seen to be there or, if gone, not to be
	// That of a moment before it was read: as long as it is the same, so is
	// what was read.
	activity bpf.Activity
	// What it has counted since the owner's last sample, without what was
	// found to be an ended process's; and how much reaped grew.
	grown       ioCounts
	grownFaults uint64

	gone  bool
	cycle uint64    // gone: since when
	shim  *shim     // it is a pod's shim
	wait  *ioTotals // gone: its counts are in a process of this target
	hops  int       // gone: ended processes between it and its first live ancestor
}

// countsOf reports whether x's growth can hold what the ended process y counted.
func (x *process) countsOf(y *process) bool {
	return x.grownFaults >= y.faults && x.grown.covers(&y.io)
}

// ioTotals is what is remembered of one target.
type ioTotals struct {
	sum     ioCounts
	members []*process
	samples uint64
	cycle   uint64
	at      uint64 // when the last sample began, in clock ticks since the boot

	// What was recalled of an earlier run, until the first sample.
	recalled []reading
	// From when on processes that are not known have counted all that they
	// show; 0: all have.
	since uint64
}

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

// recall makes known what was recalled of s. A process may be known as one of a
// target that is not there.
func (p *ioProbe) recall(s *ioTotals) {
	for _, r := range s.recalled {
		x := p.procs[r.pid]
		switch {
		case x == nil:
			x = &process{reading: r, owner: s}
			p.procs[r.pid] = x
		case x.start == r.start && !x.gone && x.owner.samples == 0:
			for _, y := range p.gone {
				if y.wait == x.owner {
					y.wait = s
				}
			}
			x.owner = s
		default:
			continue
		}
		s.members = append(s.members, x)
	}
	s.recalled = nil
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
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return ticksPerSecond
	}
	return uint64(ts.Nano() / (1e9 / ticksPerSecond))
}

func (t typeInfo) newIO(env collect.Env) (collect.Probe, error) {
	p := &ioProbe{root: env.ProcRoot, procs: map[int]*process{}}
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

// lookAround asks which processes run, if that was not done in this cycle.
func (p *ioProbe) lookAround(v *collect.View) error {
	return v.Do(0, "io", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.activity.cycle != v.Cycle() {
			p.clock++
			p.lookedAt = p.clock
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
	x := p.procs[pid]
	if x == nil || x.gone || x.owner != s || !x.activity.Idle(p.activity.of[uint32(pid)]) {
		return false
	}
	x.seen = s.samples
	x.at = max(x.at, p.lookedAt)
	return true
}

// procFileSize is more than /proc/PID/stat and /proc/PID/io ever have.
const procFileSize = 4096

func (p *ioProbe) Sample(v *collect.View) error {
	if cap(v.Scratch) < 2*procFileSize {
		v.Scratch = make([]byte, 2*procFileSize)
	}
	if err := p.lookAround(v); err != nil {
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
			p.hold(s, pid)
		default:
			return err
		}
	}
	if !host {
		if err := p.readShims(v, s, &failed); err != nil {
			return err
		}
	}
	if err := p.settle(v, s, host, &failed); err != nil {
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
	if x := p.procs[pid]; x != nil {
		reaped = x.reaped
	}
	p.mu.Unlock()
	err = v.Do(pid, "io", func() error {
		r, err = readProcess(p.root, pid, reaped, v.Scratch[:cap(v.Scratch)])
		return err
	})
	return r, err
}

// take counts a reading of a process that belongs to the target of s.
func (p *ioProbe) take(s *ioTotals, r *reading, host bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.procs[r.pid]
	if x != nil && (x.start != r.start || x.gone) {
		p.bury(x)
		x = nil
	}
	if r.ending && (x == nil && host || x != nil && x.owner != s) {
		// A process leaves its control group when it begins to end. It does
		// not become the host's by that. What it counted will show in its
		// parent, if anywhere.
		if x != nil {
			p.grow(x, r)
		}
		return
	}
	if x == nil {
		x = &process{reading: reading{pid: r.pid, start: r.start}, born: s.samples}
		if r.start < s.since {
			// It was there at the last sample of an earlier run, and was not
			// kept: nobody could read it, or there were too many.
			x.reading = *r
		}
		p.procs[r.pid] = x
	}
	if x.owner != s {
		if x.owner != nil {
			x.born = 0
		}
		x.owner = s
		s.members = append(s.members, x)
	}
	x.seen = s.samples
	x.activity = p.activity.of[uint32(r.pid)]
	p.grow(x, r)
}

// since returns what r has counted since x, and how much reaped grew. A new
// process has counted all that it shows.
func (r *reading) since(x *reading) (d ioCounts, faults uint64) {
	for i := range d {
		// The kernel's counts never fall. If one did, it would count again
		// from where it had been.
		d[i] = max(r.io[i], x.io[i]) - x.io[i]
	}
	return d, max(r.reaped, x.reaped) - x.reaped
}

// grow adds to the sum what a process has counted since it was read last.
func (p *ioProbe) grow(x *process, r *reading) {
	d, faults := r.since(&x.reading)
	x.grown.add(&d)
	x.grownFaults += faults
	x.owner.sum.add(&d)
	for i := range r.io {
		r.io[i] = max(r.io[i], x.io[i])
	}
	p.clock++
	x.reading, x.at = *r, p.clock
}

// hold notes that a process that cannot be read is there.
func (p *ioProbe) hold(s *ioTotals, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.procs[pid]; x != nil && x.owner == s {
		x.seen = s.samples
	}
}

// bury notes that a process has ended.
func (p *ioProbe) bury(x *process) {
	if !x.gone {
		p.clock++
		x.gone, x.at, x.cycle = true, p.clock, p.cycle
		p.gone = append(p.gone, x)
	}
}

// settleRounds bounds how often settle looks again for processes that end
// while it looks.
const settleRounds = 30

// settle finds out which processes have ended, and where their counts are.
func (p *ioProbe) settle(v *collect.View, s *ioTotals, host bool, failed *unreadable) error {
	suspects := p.missing(s, host)
	for range settleRounds {
		if err := p.check(v, suspects); err != nil {
			return err
		}
		if err := p.assign(v, s); err != nil {
			return err
		}
		if suspects = p.suspects(s); len(suspects) == 0 && !p.pending(s) {
			break
		}
	}
	if !host {
		if err := p.split(v, s, failed); err != nil {
			return err
		}
	}
	p.finish(s, host)
	return nil
}

// pending reports whether counts of ended processes are still to be found.
func (p *ioProbe) pending(s *ioTotals) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.gone, func(x *process) bool { return x.wait == nil || x.wait == s })
}

// missing lists the processes that were not listed any more. At the end of a
// cycle, which is the host's sample, those of targets that are no more are
// among them.
func (p *ioProbe) missing(s *ioTotals, host bool) (list []*process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.cycle = p.cycle
	for _, x := range s.members {
		if x.owner == s && !x.gone && x.seen != s.samples {
			list = append(list, x)
		}
	}
	if host {
		for _, x := range p.procs {
			if x.owner.cycle != p.cycle && !x.gone {
				list = append(list, x)
			}
		}
	}
	return list
}

// suspects lists processes that were there when they were read, but may have
// been reaped before their parent was read: its growth could hold their counts.
func (p *ioProbe) suspects(s *ioTotals) (list []*process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(s.members, func(x *process) bool { return x.grownFaults > 0 && x.owner == s }) {
		return nil
	}
	for _, x := range p.procs {
		if x.gone {
			continue
		}
		// One that had counted nothing matters, too: it may have handed on
		// what its own children had.
		reaped := func(e *process) bool {
			return e.owner == s && e.at > x.at && e.grownFaults > 0 && e.countsOf(x)
		}
		e := p.ancestor(x)
		for e != nil && e.gone && !reaped(e) {
			e = p.ancestor(e)
		}
		if e != nil && reaped(e) || e == nil && x.owner == s && x.born == s.samples && slices.ContainsFunc(s.members, reaped) {
			list = append(list, x)
		}
	}
	return list
}

// ancestor returns the parent of x, if it was ever counted.
func (p *ioProbe) ancestor(x *process) *process {
	e := p.procs[x.parent]
	if e == nil || e == x || e.start > x.start {
		return nil // the number is another process's by now
	}
	return e
}

// check looks which of the processes have ended. A zombie has not: its parent
// has not got its counts yet.
func (p *ioProbe) check(v *collect.View, list []*process) error {
	for _, x := range list {
		r, err := p.read(v, x.pid)
		if err != nil && !isGone(err) && !partial(err) {
			return err
		}
		p.mu.Lock()
		switch {
		case isGone(err) || err == nil && r.start != x.start:
			p.bury(x)
		default:
			p.clock++
			x.at = p.clock
		}
		p.mu.Unlock()
	}
	return nil
}

// assign looks for what ended processes had counted in their ancestors, and
// takes what it finds off their growth. What is found nowhere has not moved,
// and stays where it is.
func (p *ioProbe) assign(v *collect.View, s *ioTotals) error {
	p.mu.Lock()
	list := p.gone
	p.gone = nil
	for _, x := range list {
		x.hops = 0
		for e := p.ancestor(x); e != nil && e.gone; e = p.ancestor(e) {
			x.hops++
		}
	}
	// The counts of a parent come on top of those of the children that it
	// reaped before it ended, so they are sought first.
	slices.SortStableFunc(list, func(a, b *process) int { return cmp.Compare(a.hops, b.hops) })
	p.mu.Unlock()
	for i, x := range list {
		err := error(nil)
		later := x.wait != nil && x.wait != s
		if !later {
			err = p.find(v, s, x)
		}
		if later || err != nil {
			p.mu.Lock()
			p.gone = append(p.gone, x)
			if err != nil {
				p.gone = append(p.gone, list[i+1:]...)
			}
			p.mu.Unlock()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find looks for the counts of the ended process x.
func (p *ioProbe) find(v *collect.View, s *ioTotals, x *process) error {
	if x.io == (ioCounts{}) {
		return nil
	}
	need := x.at
	for _, e := range p.candidates(v, s, x) {
		got := e.countsOf(x)
		switch {
		case e.gone:
			// It may have got them before it ended itself. If not, they went
			// on to the next with what it had.
			got = got && e.owner == s
			need = max(need, e.at)
		case e.owner != s || e.at < need:
			// What e has got it has by now: x, and who is between them, were
			// seen to be gone.
			r, err := p.read(v, e.pid)
			p.mu.Lock()
			switch {
			case err == nil && r.start == e.start && e.owner == s:
				p.grow(e, &r)
				got = e.countsOf(x)
			case err == nil && r.start == e.start:
				// e is counted with its own target, whose next sample will
				// show the counts. Here they are only looked for.
				now := *e
				d, faults := r.since(&e.reading)
				now.grown.add(&d)
				now.grownFaults += faults
				got = now.countsOf(x)
			case err == nil || isGone(err):
				if e.owner == s {
					p.bury(e)
					need = e.at
				} else {
					got = false
				}
			case partial(err):
				got = false
			default:
				p.mu.Unlock()
				return err
			}
			p.mu.Unlock()
		}
		if !got {
			continue
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if e.owner == s {
			e.grown.sub(&x.io)
			e.grownFaults -= x.faults
			s.sum.sub(&x.io)
		} else {
			x.wait = e.owner
			p.gone = append(p.gone, x)
		}
		return nil
	}
	return nil
}

// candidates lists the processes that can have got the counts of x, the
// likeliest first: its ancestors, and the first processes of its pod, which
// inherit orphans. Where it has no ancestor that was ever read, because a
// parent came and went since the last sample, any that has reaped one may have.
func (p *ioProbe) candidates(v *collect.View, s *ioTotals, x *process) (list []*process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const deepest = 32
	orphan := true
	for e, n := p.ancestor(x), 0; e != nil && n < deepest; e, n = p.ancestor(e), n+1 {
		list = append(list, e)
		orphan = orphan && e.gone
	}
	if x.owner != s {
		return list
	}
	if pod := v.Pod(); pod != nil {
		for _, pid := range pod.PIDs {
			if e := p.procs[pid]; e != nil && !e.gone && e != x && e.start <= x.start {
				list = append(list, e)
			}
		}
	}
	if orphan {
		for _, e := range s.members {
			if e.owner == s && !e.gone && e != x && e.grownFaults > 0 && e.start <= x.start {
				list = append(list, e)
			}
		}
	}
	return list
}

// finish closes a sample, and with the host's the cycle.
func (p *ioProbe) finish(s *ioTotals, host bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.members = slices.DeleteFunc(s.members, func(x *process) bool { return x.gone || x.owner != s })
	for _, x := range s.members {
		x.grown, x.grownFaults = ioCounts{}, 0
	}
	if !host {
		return
	}
	// Ended processes are kept a cycle longer: they tell the ancestors of
	// others that end.
	for pid, x := range p.procs {
		if x.gone && x.cycle != p.cycle {
			delete(p.procs, pid)
		}
	}
	p.gone = slices.DeleteFunc(p.gone, func(x *process) bool { return x.cycle != p.cycle })
	p.cycle++
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
