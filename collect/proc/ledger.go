package proc

import (
	"cmp"
	"slices"

	"nodeskoop/bpf"
)

// ledger sums counters of processes per target, such that the sums stay right when
// processes exit. It is plain data: it has no locks, and makes no system calls except
// through the look function of its caller.
//
// The difficulty is that the kernel passes counts on: a parent that waits for a child adds
// the child's counts to its own, including those of the child's own reaped children
// (kernel/exit.c, wait_task_zombie). If nobody waits for a process, its counts must stay in
// the sum; if they reappear in a parent, they must not count twice.
//
// Minor page faults distinguish the two cases. A parent's cminflt in /proc/PID/stat grows
// by the faults of a child at the same place in the kernel, and nowhere else, and every
// process has faults. So the counts of an exited process are attributed to the first
// ancestor whose cminflt and I/O counts have all grown by at least as much, and are
// subtracted from that ancestor's growth. The ancestor may belong to another target: a
// container's first process is started by a process of the host.
//
// Counts stay with the target in which they arose: a process that moves to another control
// group leaves its counts behind.
type ledger struct {
	procs map[int]*process
	clock uint64     // logical time, see tick
	cycle uint64     // number of host samples; the host is the last target of each cycle
	gone  []*process // exited, but the target of their counts is not yet known

	children map[int]*process // the first child of each parent in procs, by the parent's PID
	stamp    uint64           // number of the last search for suspects
}

// The summed values of /proc/PID/io.
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

// covers reports whether every value of d is at most that of c, so that d may be part of c.
func (c *ioCounts) covers(d *ioCounts) bool {
	for i := range c {
		if c[i] < d[i] {
			return false
		}
	}
	return true
}

// reading is the state of a process in procfs at one moment.
type reading struct {
	pid    int
	start  uint64 // start time in clock ticks; with the pid, the identity
	parent int
	ending bool   // all its threads are exiting or zombies
	faults uint64 // minor page faults, including those of its reaped children
	reaped uint64 // minor page faults of its reaped children
	io     ioCounts
}

// since returns the growth of the counts since x, and the growth of reaped. If the
// process is new, all its counts are growth.
func (r *reading) since(x *reading) (d ioCounts, faults uint64) {
	for i := range d {
		// The kernel's counts never fall. If one does, count only what exceeds its
		// previous maximum.
		d[i] = max(r.io[i], x.io[i]) - x.io[i]
	}
	return d, max(r.reaped, x.reaped) - x.reaped
}

// process is a process that has been counted.
type process struct {
	reading
	owner *ioTotals // target that counted it last
	seen  uint64    // owner's sample in which it was last listed
	born  uint64    // owner's sample in which it was first listed
	at    uint64    // tick at which it was last known to exist, or, if gone, known not to exist
	read  uint64    // tick at which it was last read, or known not to have run since
	// activity before the last reading. While it is unchanged, so are the counts.
	activity bpf.Activity
	// Growth since the owner's last sample, without the inherited counts of exited
	// processes; and the growth of reaped.
	grown       ioCounts
	grownFaults uint64

	gone  bool
	cycle uint64    // gone: the cycle in which it exited
	shim  *shim     // set if it is a pod's shim
	wait  *ioTotals // gone: a process of this target has inherited its counts
	hops  int       // gone: number of exited processes up to its first live ancestor

	// Its place among the children of the parent named under.
	under          int
	linked         bool
	before, behind *process
	stamp          uint64 // the last search for suspects that met it
}

// countsOf reports whether x's growth may include the counts of the exited process y.
func (x *process) countsOf(y *process) bool {
	return x.grownFaults >= y.faults && x.grown.covers(&y.io)
}

// ioTotals is the state of one target.
type ioTotals struct {
	sum     ioCounts
	members []*process
	samples uint64
	cycle   uint64
	at      uint64 // start of the last sample, in clock ticks since boot

	// Processes from saved state, until the first sample.
	recalled []reading
	// All counts of an unknown process are growth if it started at since or later; 0:
	// always.
	since uint64
}

// sight is the result of looking at a process.
type sight int

const (
	there  sight = iota // the reading is valid
	ended               // the process does not exist
	hidden              // the process cannot be read
)

// look reads a process again. reaped is that of its last reading. An error ends the sample
// at once and is returned unchanged.
type look func(pid int, reaped uint64) (r reading, s sight, err error)

// tick advances the logical time.
func (l *ledger) tick() uint64 {
	l.clock++
	return l.clock
}

// recall adds the processes from saved state to s. A process may be listed already as one
// of an absent target.
func (l *ledger) recall(s *ioTotals) {
	for _, r := range s.recalled {
		x := l.procs[r.pid]
		switch {
		case x == nil:
			x = &process{reading: r, owner: s}
			l.procs[r.pid] = x
			l.link(x)
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

// idle reports whether a process of s has not run since it was read, given its activity
// now. If so, it marks the process as present at the tick at.
func (l *ledger) idle(s *ioTotals, pid int, now bpf.Activity, at uint64) bool {
	x := l.procs[pid]
	if x == nil || x.gone || x.owner != s || !x.activity.Idle(now) {
		return false
	}
	x.seen = s.samples
	x.at, x.read = max(x.at, at), max(x.read, at)
	return true
}

// observe counts a reading of a process of the target s. activity was read before it.
func (l *ledger) observe(s *ioTotals, r *reading, host bool, activity bpf.Activity) {
	x := l.procs[r.pid]
	if x != nil && (x.start != r.start || x.gone) {
		l.markExited(x)
		x = nil
	}
	if r.ending && (x == nil && host || x != nil && x.owner != s) {
		// An exiting process leaves its control group, but does not thereby become the
		// host's. If its counts are inherited, they will show in its parent.
		if x != nil {
			l.grow(x, r)
		}
		return
	}
	if x == nil {
		x = &process{reading: reading{pid: r.pid, start: r.start}, born: s.samples}
		if r.start < s.since {
			// It existed at the last sample before a restart and was not saved: it was
			// unreadable, or beyond maxKept.
			x.reading = *r
		}
		if earlier := l.procs[r.pid]; earlier != nil {
			l.unlink(earlier)
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

// grow adds the process's growth since its last reading to the sum.
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
	l.link(x)
}

// link puts a process of procs among the children of its parent, which may have changed.
func (l *ledger) link(x *process) {
	if x.linked && x.under == x.parent {
		return
	}
	l.unlink(x)
	if l.children == nil {
		l.children = map[int]*process{}
	}
	first := l.children[x.parent]
	if first != nil {
		first.before = x
	}
	x.linked, x.under, x.behind = true, x.parent, first
	l.children[x.parent] = x
}

// unlink removes a process that leaves procs or changes its parent.
func (l *ledger) unlink(x *process) {
	if !x.linked {
		return
	}
	switch {
	case x.before != nil:
		x.before.behind = x.behind
	case x.behind != nil:
		l.children[x.under] = x.behind
	default:
		delete(l.children, x.under)
	}
	if x.behind != nil {
		x.behind.before = x.before
	}
	x.linked, x.before, x.behind = false, nil, nil
}

// hold marks a process that cannot be read as present.
func (l *ledger) hold(s *ioTotals, pid int) {
	if x := l.procs[pid]; x != nil && x.owner == s {
		x.seen = s.samples
	}
}

// markExited records the exit of a process.
func (l *ledger) markExited(x *process) {
	if !x.gone {
		x.gone, x.at, x.cycle = true, l.tick(), l.cycle
		l.gone = append(l.gone, x)
	}
}

// reconcileRounds limits how often reconcile starts over because further processes exit.
const reconcileRounds = 30

// reconcile finds the processes that have exited and the ancestors that inherited their
// counts. inits are the processes that inherit orphans in the target of s.
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

// pending reports whether the target of an exited process' counts is not yet
// known.
func (l *ledger) pending(s *ioTotals) bool {
	return slices.ContainsFunc(l.gone, func(x *process) bool { return x.wait == nil || x.wait == s })
}

// missing lists the processes that were not listed in this sample. The host's sample, at
// the end of a cycle, includes the processes of targets that are gone.
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

// suspects lists processes that existed when they were read, but may have been reaped
// before their parent was read, so that the parent's growth may include their counts.
//
// It begins at the processes of s that have reaped children and follows their descendants
// through those that have exited: looking at all processes of the node for each pod would
// be quadratic.
func (l *ledger) suspects(s *ioTotals) (list []*process) {
	l.stamp++
	reaped := false
	for _, e := range s.members {
		if e.grownFaults > 0 && e.owner == s {
			reaped = true
			list = l.below(list, s, e)
		}
	}
	if !reaped {
		return nil
	}
	for _, x := range s.members {
		if x.owner == s && x.born == s.samples && l.meets(x) && l.suspect(s, x) {
			list = append(list, x)
		}
	}
	return list
}

// below appends the suspects among the children of e, and of its exited descendants.
func (l *ledger) below(list []*process, s *ioTotals, e *process) []*process {
	for x := l.children[e.pid]; x != nil; x = x.behind {
		if !l.meets(x) {
			continue
		}
		if x.gone {
			list = l.below(list, s, x)
		} else if l.suspect(s, x) {
			list = append(list, x)
		}
	}
	return list
}

// meets reports whether this search for suspects meets x, which is in procs, for the first
// time.
func (l *ledger) meets(x *process) bool {
	if x.stamp == l.stamp || !x.linked {
		return false
	}
	x.stamp = l.stamp
	return true
}

// suspect reports whether a process may have been reaped by one of s.
func (l *ledger) suspect(s *ioTotals, x *process) bool {
	if x.gone {
		return false
	}
	// A process without counts matters, too: it may have passed on those of its
	// children.
	reaped := func(e *process) bool {
		return e.owner == s && e.at > x.at && e.grownFaults > 0 && e.countsOf(x)
	}
	e := l.ancestor(x)
	for n := 0; e != nil && e.gone && !reaped(e) && n < len(l.procs); n++ {
		e = l.ancestor(e)
	}
	return e != nil && reaped(e) || e == nil && x.owner == s && x.born == s.samples && slices.ContainsFunc(s.members, reaped)
}

// ancestor returns the parent of x; nil if it was never counted.
func (l *ledger) ancestor(x *process) *process {
	e := l.procs[x.parent]
	if e == nil || e == x || e.start > x.start {
		return nil // the number has been reused
	}
	return e
}

// check finds which of the processes have exited. A zombie has not exited in this
// sense, since its parent has not inherited its counts yet.
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

// assign finds the ancestors that inherited the counts of exited processes, and subtracts
// these counts from the ancestors' growth. Counts found nowhere stay with their target.
func (l *ledger) assign(s *ioTotals, inits []int, see look) error {
	list := l.gone
	l.gone = nil
	for _, x := range list {
		x.hops = 0
		// The readings are from different moments, so the parents could form a
		// circle. Limit the length of the chain.
		for e := l.ancestor(x); e != nil && e.gone && x.hops < len(l.procs); e = l.ancestor(e) {
			x.hops++
		}
	}
	// An exited parent's counts come in addition to those of its reaped children, so assign
	// the parent first.
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

// find looks for the process that inherited the counts of the exited process x.
func (l *ledger) find(s *ioTotals, x *process, inits []int, see look) error {
	if x.io == (ioCounts{}) {
		return nil
	}
	need := x.at
	for _, e := range l.candidates(s, x, inits) {
		got := e.countsOf(x)
		switch {
		case e.gone:
			// e may have inherited the counts before it exited. If not, they
			// went to e's parent.
			got = got && e.owner == s
			need = max(need, e.at)
		case e.owner != s || e.read < need:
			// Read e again. x and the processes between x and e are known to be gone, so
			// e has inherited by now whatever it inherits from x.
			r, is, err := see(e.pid, e.reaped)
			switch {
			case err != nil:
				return err
			case is == there && r.start == e.start && e.owner == s:
				l.grow(e, &r)
				got = e.countsOf(x)
			case is == there && r.start == e.start:
				// e belongs to another target, whose own sample will count this reading.
				// Here only check whether it includes the counts.
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

// candidates lists the processes that may have inherited the counts of x, likeliest first:
// its ancestors, and the first processes of its pod, which inherit orphans. If no live
// ancestor is known, because a parent came and went since the last sample, every process of
// the target that has reaped a child is a candidate.
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

// end ends a sample, and with the host's sample the cycle.
func (l *ledger) end(s *ioTotals, host bool) {
	s.members = slices.DeleteFunc(s.members, func(x *process) bool { return x.gone || x.owner != s })
	for _, x := range s.members {
		x.grown, x.grownFaults = ioCounts{}, 0
	}
	if !host {
		return
	}
	// Keep exited processes for one more cycle: they link other exited processes to their
	// ancestors.
	for pid, x := range l.procs {
		if x.gone && x.cycle != l.cycle {
			l.unlink(x)
			delete(l.procs, pid)
		}
	}
	l.gone = slices.DeleteFunc(l.gone, func(x *process) bool { return x.cycle != l.cycle })
	l.cycle++
}
