package proc

import (
	"cmp"
	"slices"

	"nodeskoop/bpf"
)

// ledger adds up counts of processes that only go up, each for its target,
// although processes end. It is plain data: no locks, and no system calls but
// those of the look that its user brings.
//
// What makes this hard is that the kernel hands on what a process counted: a
// parent that waits for a child gets the child's counts, those of the child's own
// reaped children included, added to its own (kernel/exit.c, wait_task_zombie).
// The counts of an ended process must stay in the sum where nobody waited for it,
// and must not count a second time where they come back in a parent's counts.
//
// The minor page faults tell the two cases apart. A parent's cminflt in
// /proc/PID/stat grows by the faults of a child in the same place in the kernel,
// and by nothing else, and there is no process without faults. So the counts of an
// ended process are found again in the first of its ancestors whose cminflt and
// I/O counts have all grown by at least what the process had. They are then
// subtracted from that ancestor's growth. The ancestor may belong to another
// target: the process that starts a container is the host's.
//
// A process is counted where it is: one that moves to another control group
// leaves behind what it had counted.
type ledger struct {
	procs map[int]*process
	clock uint64     // numbers the readings
	cycle uint64     // counts the samples of the host, the last target of each cycle
	gone  []*process // ended, and their counts not found yet
}

// The values of /proc/PID/io that are summed.
const (
	ioReadCalls = iota
	ioWriteCalls
	ioReadBytes
	ioWriteBytes
	ioFields
)

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
	faults uint64 // minor page faults, its own and its reaped children's
	reaped uint64 // those of its reaped children
	io     ioCounts
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

// process is a process that has been counted.
type process struct {
	reading
	owner *ioTotals // the target that counted it last
	seen  uint64    // the owner's sample in which it was listed last
	born  uint64    // the owner's sample in which it was listed first
	at    uint64    // when it was last seen to be there or, if gone, not to be
	read  uint64    // when it was read last, or seen not to have run since
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

// sight is the answer to a look at a process.
type sight int

const (
	there  sight = iota // the reading is good
	ended               // there is no such process
	hidden              // the process cannot be read
)

// look reads the process pid anew. reaped is that of its last reading. An error
// says that the sample has to end at once; it is returned as it is.
type look func(pid int, reaped uint64) (r reading, s sight, err error)

// tick numbers a moment.
func (l *ledger) tick() uint64 {
	l.clock++
	return l.clock
}

// recall makes known what was recalled of s. A process may be known as one of a
// target that is not there.
func (l *ledger) recall(s *ioTotals) {
	for _, r := range s.recalled {
		x := l.procs[r.pid]
		switch {
		case x == nil:
			x = &process{reading: r, owner: s}
			l.procs[r.pid] = x
		case x.start == r.start && !x.gone && x.owner.samples == 0:
			for _, y := range l.gone {
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

// idle reports whether a process of s has not run since it was read, and notes
// that it was there at the moment at, when its activity was now.
func (l *ledger) idle(s *ioTotals, pid int, now bpf.Activity, at uint64) bool {
	x := l.procs[pid]
	if x == nil || x.gone || x.owner != s || !x.activity.Idle(now) {
		return false
	}
	x.seen = s.samples
	x.at, x.read = max(x.at, at), max(x.read, at)
	return true
}

// observe counts a reading of a process that belongs to the target of s. activity
// is that of a moment before.
func (l *ledger) observe(s *ioTotals, r *reading, host bool, activity bpf.Activity) {
	x := l.procs[r.pid]
	if x != nil && (x.start != r.start || x.gone) {
		l.markExited(x)
		x = nil
	}
	if r.ending && (x == nil && host || x != nil && x.owner != s) {
		// A process leaves its control group when it begins to end. It does
		// not become the host's by that. What it counted will show in its
		// parent, if anywhere.
		if x != nil {
			l.grow(x, r)
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
		l.procs[r.pid] = x
	}
	if x.owner != s {
		if x.owner != nil {
			x.born = 0
		}
		x.owner = s
		s.members = append(s.members, x)
	}
	x.seen = s.samples
	x.activity = activity
	l.grow(x, r)
}

// grow adds to the sum what a process has counted since it was read last.
func (l *ledger) grow(x *process, r *reading) {
	d, faults := r.since(&x.reading)
	x.grown.add(&d)
	x.grownFaults += faults
	x.owner.sum.add(&d)
	for i := range r.io {
		r.io[i] = max(r.io[i], x.io[i])
	}
	x.at = l.tick()
	x.reading, x.read = *r, x.at
}

// hold notes that a process that cannot be read is there.
func (l *ledger) hold(s *ioTotals, pid int) {
	if x := l.procs[pid]; x != nil && x.owner == s {
		x.seen = s.samples
	}
}

// markExited notes that a process has ended.
func (l *ledger) markExited(x *process) {
	if !x.gone {
		x.gone, x.at, x.cycle = true, l.tick(), l.cycle
		l.gone = append(l.gone, x)
	}
}

// reconcileRounds bounds how often reconcile looks again for processes that end
// while it looks.
const reconcileRounds = 30

// reconcile finds out which processes have ended, and where their counts are. inits
// are the processes that inherit the orphans of the target of s.
func (l *ledger) reconcile(s *ioTotals, host bool, inits []int, see look) error {
	suspects := l.missing(s, host)
	for range reconcileRounds {
		if err := l.check(suspects, see); err != nil {
			return err
		}
		if err := l.assign(s, inits, see); err != nil {
			return err
		}
		if suspects = l.suspects(s); len(suspects) == 0 && !l.pending(s) {
			break
		}
	}
	return nil
}

// pending reports whether counts of ended processes are still to be found.
func (l *ledger) pending(s *ioTotals) bool {
	return slices.ContainsFunc(l.gone, func(x *process) bool { return x.wait == nil || x.wait == s })
}

// missing lists the processes that were not listed any more. At the end of a
// cycle, which is the host's sample, those of targets that are no more are
// among them.
func (l *ledger) missing(s *ioTotals, host bool) (list []*process) {
	s.cycle = l.cycle
	for _, x := range s.members {
		if x.owner == s && !x.gone && x.seen != s.samples {
			list = append(list, x)
		}
	}
	if host {
		for _, x := range l.procs {
			if x.owner.cycle != l.cycle && !x.gone {
				list = append(list, x)
			}
		}
	}
	return list
}

// suspects lists processes that were there when they were read, but may have
// been reaped before their parent was read: its growth could hold their counts.
func (l *ledger) suspects(s *ioTotals) (list []*process) {
	if !slices.ContainsFunc(s.members, func(x *process) bool { return x.grownFaults > 0 && x.owner == s }) {
		return nil
	}
	for _, x := range l.procs {
		if x.gone {
			continue
		}
		// One that had counted nothing matters, too: it may have handed on
		// what its own children had.
		reaped := func(e *process) bool {
			return e.owner == s && e.at > x.at && e.grownFaults > 0 && e.countsOf(x)
		}
		e := l.ancestor(x)
		for n := 0; e != nil && e.gone && !reaped(e) && n < len(l.procs); n++ {
			e = l.ancestor(e)
		}
		if e != nil && reaped(e) || e == nil && x.owner == s && x.born == s.samples && slices.ContainsFunc(s.members, reaped) {
			list = append(list, x)
		}
	}
	return list
}

// ancestor returns the parent of x, if it was ever counted.
func (l *ledger) ancestor(x *process) *process {
	e := l.procs[x.parent]
	if e == nil || e == x || e.start > x.start {
		return nil // the number is another process's by now
	}
	return e
}

// check looks which of the processes have ended. A zombie has not: its parent
// has not got its counts yet.
func (l *ledger) check(list []*process, see look) error {
	for _, x := range list {
		r, is, err := see(x.pid, x.reaped)
		switch {
		case err != nil:
			return err
		case is == ended || is == there && r.start != x.start:
			l.markExited(x)
		default:
			x.at = l.tick()
		}
	}
	return nil
}

// assign looks for what ended processes had counted in their ancestors, and
// subtracts what it finds from their growth. What is found nowhere has not moved,
// and stays where it is.
func (l *ledger) assign(s *ioTotals, inits []int, see look) error {
	list := l.gone
	l.gone = nil
	for _, x := range list {
		x.hops = 0
		// Readings of several moments could make a circle: a chain is no longer
		// than there are processes.
		for e := l.ancestor(x); e != nil && e.gone && x.hops < len(l.procs); e = l.ancestor(e) {
			x.hops++
		}
	}
	// The counts of a parent come on top of those of the children that it
	// reaped before it ended, so they are sought first.
	slices.SortStableFunc(list, func(a, b *process) int { return cmp.Compare(a.hops, b.hops) })
	for i, x := range list {
		if x.wait != nil && x.wait != s {
			l.gone = append(l.gone, x)
		} else if err := l.find(s, x, inits, see); err != nil {
			l.gone = append(l.gone, list[i:]...)
			return err
		}
	}
	return nil
}

// find looks for the counts of the ended process x.
func (l *ledger) find(s *ioTotals, x *process, inits []int, see look) error {
	if x.io == (ioCounts{}) {
		return nil
	}
	need := x.at
	for _, e := range l.candidates(s, x, inits) {
		got := e.countsOf(x)
		switch {
		case e.gone:
			// It may have got them before it ended itself. If not, they went
			// on to the next with what it had.
			got = got && e.owner == s
			need = max(need, e.at)
		case e.owner != s || e.read < need:
			// What e has got it has by now: x, and who is between them, were
			// seen to be gone.
			r, is, err := see(e.pid, e.reaped)
			switch {
			case err != nil:
				return err
			case is == there && r.start == e.start && e.owner == s:
				l.grow(e, &r)
				got = e.countsOf(x)
			case is == there && r.start == e.start:
				// e is counted with its own target, whose next sample will
				// show the counts. Here they are only looked for.
				now := *e
				d, faults := r.since(&e.reading)
				now.grown.add(&d)
				now.grownFaults += faults
				got = now.countsOf(x)
			case is != hidden && e.owner == s:
				l.markExited(e)
				need = e.at
			default:
				got = false
			}
		}
		if !got {
			continue
		}
		if e.owner == s {
			e.grown.sub(&x.io)
			e.grownFaults -= x.faults
			s.sum.sub(&x.io)
		} else {
			x.wait = e.owner
			l.gone = append(l.gone, x)
		}
		return nil
	}
	return nil
}

// candidates lists the processes that can have got the counts of x, the
// likeliest first: its ancestors, and the first processes of its pod, which
// inherit orphans. Where it has no ancestor that was ever read, because a
// parent came and went since the last sample, any that has reaped one may have.
func (l *ledger) candidates(s *ioTotals, x *process, inits []int) (list []*process) {
	const deepest = 32
	orphan := true
	for e, n := l.ancestor(x), 0; e != nil && n < deepest; e, n = l.ancestor(e), n+1 {
		list = append(list, e)
		orphan = orphan && e.gone
	}
	if x.owner != s {
		return list
	}
	for _, pid := range inits {
		if e := l.procs[pid]; e != nil && !e.gone && e != x && e.start <= x.start {
			list = append(list, e)
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

// end closes a sample, and with the host's the cycle.
func (l *ledger) end(s *ioTotals, host bool) {
	s.members = slices.DeleteFunc(s.members, func(x *process) bool { return x.gone || x.owner != s })
	for _, x := range s.members {
		x.grown, x.grownFaults = ioCounts{}, 0
	}
	if !host {
		return
	}
	// Ended processes are kept a cycle longer: they tell the ancestors of
	// others that end.
	for pid, x := range l.procs {
		if x.gone && x.cycle != l.cycle {
			delete(l.procs, pid)
		}
	}
	l.gone = slices.DeleteFunc(l.gone, func(x *process) bool { return x.cycle != l.cycle })
	l.cycle++
}
