package proc

import (
	"cmp"
	"slices"

	"nodeskoop/bpf"
	"nodeskoop/collect/owner"
)

// ledger adds up the I/O counts of the processes of each target. The sums never
// fall, although processes exit.
//
// The kernel hands counts on: a parent that waits for a child gets the child's
// counts, those of the child's own reaped children included, added to its own
// (kernel/exit.c, wait_task_zombie). The counts of an exited process must stay in
// the sum if nobody waited for it, and must not be counted a second time where they
// come back in a parent's counts.
//
// Minor page faults tell the two cases apart. A parent's cminflt in /proc/PID/stat
// grows by the faults of a child in the same place in the kernel, and by nothing
// else, and no process is without faults. So the ledger finds the counts of an
// exited process in the first of its ancestors whose cminflt and I/O counts have all
// grown by at least what the process had, and takes them off that ancestor's growth.
// The ancestor may belong to another target: the process that starts a container is
// the host's.
//
// A process counts where it is: one that moves to another target leaves behind what
// it had counted.
//
// A process that starts and exits between two samples, such as an exec probe, is
// never read. Its counts are those of the pod's shim, which reaps it: the growth of
// the shim beyond the shim's own calls is the pod's. The shim's own calls are the
// host's.
//
// A sample of a target is begin, observe or keep for each process that is there,
// reconcile, for a pod split, and finish. The host's sample is the last of a cycle.
//
// The ledger makes no system call and takes no lock: the caller lets one goroutine
// in at a time. Only in a question to the kernel, which may hang, may the caller let
// samples of other targets go on.
type ledger struct {
	began  bool // a target was sampled
	procs  map[int]*process
	clock  uint64     // numbers the readings
	cycle  uint64     // counts the samples of the host
	exited []*process // their counts are not found yet
	own    ioCounts   // calls of shims, which the host's next sample takes in
}

func newLedger() ledger { return ledger{procs: map[int]*process{}} }

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
	start  uint64 // when the process started, in clock ticks: with the pid, its identity
	parent int
	ending bool   // it exits, or is a zombie, with all its threads
	dead   bool   // its parent gets its counts just now, or nobody does
	faults uint64 // minor page faults, its own and its reaped children's
	reaped uint64 // those of its reaped children
	io     ioCounts

	threads uint64
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
	at    uint64    // when it was last seen to be there or, if exited, not to be
	// Its activity at a moment before it was read. As long as the activity is the
	// same, so is what was read.
	activity bpf.Activity
	// What it has counted since the owner's last sample, without the counts that
	// were found to be an exited process's; and how much reaped grew.
	grown       ioCounts
	grownFaults uint64
	shim        *shim // it is a pod's shim

	// Of an exited process only.
	exited bool
	cycle  uint64    // in which it was found to have exited
	heldBy *ioTotals // its counts are in a process of this target
	hops   int       // exited processes between it and its first live ancestor
}

// holds reports whether x's growth can hold what the exited process y counted.
func (x *process) holds(y *process) bool {
	return x.grownFaults >= y.faults && x.grown.covers(&y.io)
}

// shim is what is remembered of a process that serves a pod and reaps what exits in
// it.
type shim struct {
	threads threadSums
	told    ioCounts // its own calls that were given to the host
	reaped  uint64   // cminflt of the last split
	begun   bool
	// taken over from the host, which had counted it: which of its counts are
	// its own cannot be told of what came before.
	moved bool
	// recalled of an earlier run: what it has counted since then is its pod's,
	// for its own calls in that time are few, and not told apart.
	recalled bool
}

// ioTotals is what is remembered of one target.
type ioTotals struct {
	sum     ioCounts
	members []*process
	samples uint64
	cycle   uint64
	at      uint64 // when the last sample began, in clock ticks since the boot

	host  bool
	inits []int // a pod's: the first processes of its containers, which inherit orphans

	// What was recalled of an earlier run, until the first sample.
	recalled []reading
	// From when on processes that are not known have counted all that they
	// show; 0: all have.
	since uint64
}

// ask reads a process as it is now. The error is errGone if the process is no more;
// one that is partial leaves open whether the process is there; any other ends the
// sample. Other targets may be sampled before ask returns.
type ask func(x *process) (reading, error)

// tick returns a moment later than all before.
func (l *ledger) tick() uint64 {
	l.clock++
	return l.clock
}

// adopt makes known what an earlier run kept of a target that is not there: what
// its processes had counted may come back in the counts of a process of the host's.
func (l *ledger) adopt(gone *ioTotals) {
	l.recall(gone)
	gone.cycle = l.cycle - 1
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
		case x.start == r.start && !x.exited && x.owner.samples == 0:
			for _, y := range l.exited {
				if y.heldBy == x.owner {
					y.heldBy = s
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

// begin opens a sample of a target: the host, or a pod with the first processes of its
// containers. at is the time, in clock ticks since the boot.
func (l *ledger) begin(s *ioTotals, host bool, inits []int, at uint64) {
	l.began = true
	l.recall(s)
	s.samples++
	s.host, s.inits, s.at = host, inits, at
	if host {
		s.sum.add(&l.own)
		l.own = ioCounts{}
	}
}

// known returns a process that the target counts, nil if it counts none with that
// number.
func (l *ledger) known(s *ioTotals, pid int) *process {
	if x := l.procs[pid]; x != nil && !x.exited && x.owner == s {
		return x
	}
	return nil
}

// keep notes that a process that is not read in this sample is there.
func (s *ioTotals) keep(x *process) { x.seen = s.samples }

// observe counts a reading of a process that belongs to the target, and returns the
// process if it is one that the target counts.
func (l *ledger) observe(s *ioTotals, r *reading) *process {
	x := l.procs[r.pid]
	if x != nil && (x.start != r.start || x.exited) {
		l.markExited(x)
		x = nil
	}
	if r.ending && (x == nil && s.host || x != nil && x.owner != s) {
		// A process leaves its control group when it begins to exit. It does
		// not become the host's by that. What it counted will show in its
		// parent, if anywhere.
		if x != nil {
			l.grow(x, r)
		}
		return nil
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
	s.keep(x)
	l.grow(x, r)
	return x
}

// observeShim is observe for a process that serves the target's pod.
func (l *ledger) observeShim(s *ioTotals, r *reading) *process {
	x := l.procs[r.pid]
	known := x != nil && x.start == r.start && !x.exited
	moved := known && x.owner != s
	if x = l.observe(s, r); x != nil && (x.shim == nil || moved) {
		x.shim = &shim{moved: moved, recalled: known && !moved}
	}
	return x
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
	x.reading, x.at = *r, l.tick()
}

// markExited notes that a process has exited.
func (l *ledger) markExited(x *process) {
	if !x.exited {
		x.exited, x.at, x.cycle = true, l.tick(), l.cycle
		l.exited = append(l.exited, x)
	}
}

// reconcileRounds bounds how often reconcile asks again for processes that exit
// while it asks.
const reconcileRounds = 30

// reconcile finds out which processes have exited, and where their counts are.
func (l *ledger) reconcile(s *ioTotals, now ask) error {
	s.cycle = l.cycle
	suspects := l.missing(s)
	for range reconcileRounds {
		if err := l.check(suspects, now); err != nil {
			return err
		}
		if err := l.assign(s, now); err != nil {
			return err
		}
		if suspects = l.suspects(s); len(suspects) == 0 && !l.pending(s) {
			break
		}
	}
	return nil
}

// pending reports whether counts of exited processes are still to be found.
func (l *ledger) pending(s *ioTotals) bool {
	return slices.ContainsFunc(l.exited, func(x *process) bool { return x.heldBy == nil || x.heldBy == s })
}

// missing lists the processes that were not listed any more. At the end of a
// cycle, which is the host's sample, those of targets that are no more are
// among them.
func (l *ledger) missing(s *ioTotals) (list []*process) {
	for _, x := range s.members {
		if x.owner == s && !x.exited && x.seen != s.samples {
			list = append(list, x)
		}
	}
	if s.host {
		for _, x := range l.procs {
			if x.owner.cycle != l.cycle && !x.exited {
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
		if x.exited {
			continue
		}
		// One that had counted nothing matters, too: it may have handed on
		// what its own children had.
		reaped := func(e *process) bool {
			return e.owner == s && e.at > x.at && e.grownFaults > 0 && e.holds(x)
		}
		e := l.ancestor(x)
		for e != nil && e.exited && !reaped(e) {
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

// check asks which of the processes have exited. A zombie counts as there: its
// parent has not got its counts yet.
func (l *ledger) check(list []*process, now ask) error {
	for _, x := range list {
		switch _, err := now(x); {
		case isGone(err):
			l.markExited(x)
		case err == nil || partial(err):
			x.at = l.tick()
		default:
			return err
		}
	}
	return nil
}

// assign looks for the counts of exited processes in their ancestors, and takes
// what it finds off the ancestors' growth. Counts that are found nowhere have not
// moved, and stay where they are.
func (l *ledger) assign(s *ioTotals, now ask) error {
	list := l.exited
	l.exited = nil
	for _, x := range list {
		x.hops = 0
		for e := l.ancestor(x); e != nil && e.exited; e = l.ancestor(e) {
			x.hops++
		}
	}
	// The counts of a parent come on top of those of the children that it
	// reaped before it exited, so they are sought first.
	slices.SortStableFunc(list, func(a, b *process) int { return cmp.Compare(a.hops, b.hops) })
	for i, x := range list {
		if x.heldBy != nil && x.heldBy != s {
			l.exited = append(l.exited, x) // its time comes with that target
			continue
		}
		if err := l.find(s, x, now); err != nil {
			l.exited = append(l.exited, list[i:]...)
			return err
		}
	}
	return nil
}

// find looks for the counts of the exited process x.
func (l *ledger) find(s *ioTotals, x *process, now ask) error {
	if x.io == (ioCounts{}) {
		return nil
	}
	need := x.at
	for _, e := range l.candidates(s, x) {
		got := e.holds(x)
		switch {
		case e.exited:
			// It may have got them before it exited itself. If not, they went
			// on to the next with what it had.
			got = got && e.owner == s
			need = max(need, e.at)
		case e.owner != s || e.at < need:
			// What e has got it has by now: x, and who is between them, were
			// seen to have exited.
			r, err := now(e)
			switch {
			case err == nil && e.owner == s:
				l.grow(e, &r)
				got = e.holds(x)
			case err == nil:
				// e is counted with its own target, whose next sample will
				// show the counts. Here they are only looked for.
				later := *e
				d, faults := r.since(&e.reading)
				later.grown.add(&d)
				later.grownFaults += faults
				got = later.holds(x)
			case isGone(err) && e.owner == s:
				l.markExited(e)
				need = e.at
			case isGone(err) || partial(err):
				got = false
			default:
				return err
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
			x.heldBy = e.owner
			l.exited = append(l.exited, x)
		}
		return nil
	}
	return nil
}

// candidates lists the processes that can have got the counts of x, the
// likeliest first: its ancestors, and the first processes of its pod, which
// inherit orphans. Where it has no ancestor that was ever read, because a
// parent came and went since the last sample, any that has reaped one may have.
func (l *ledger) candidates(s *ioTotals, x *process) (list []*process) {
	const deepest = 32
	orphan := true
	for e, n := l.ancestor(x), 0; e != nil && n < deepest; e, n = l.ancestor(e), n+1 {
		list = append(list, e)
		orphan = orphan && e.exited
	}
	if x.owner != s {
		return list
	}
	for _, pid := range s.inits {
		if e := l.procs[pid]; e != nil && !e.exited && e != x && e.start <= x.start {
			list = append(list, e)
		}
	}
	if orphan {
		for _, e := range s.members {
			if e.owner == s && !e.exited && e != x && e.grownFaults > 0 && e.start <= x.start {
				list = append(list, e)
			}
		}
	}
	return list
}

// split gives the own calls of the shims of a pod to the host. own returns what a
// shim's threads have counted themselves; its errors are as those of ask. split comes
// after reconcile: by then nothing is left in a shim's growth of children that were
// counted before they exited.
func (l *ledger) split(s *ioTotals, shims []owner.Process, own func(x *process) (ioCounts, error)) error {
	for _, id := range shims {
		x := l.known(s, id.PID)
		if x == nil || x.shim == nil || x.start != id.Start || x.grown == (ioCounts{}) {
			continue
		}
		h := x.shim
		calls := x.grown // if nothing was reaped
		reaped := !h.begun || h.reaped != x.reaped
		h.reaped = x.reaped
		if !reaped {
			h.told.add(&calls)
		} else {
			sum, err := own(x)
			switch {
			case isGone(err) || err != nil && partial(err):
				continue
			case err != nil:
				return err
			case h.recalled:
				h.told, calls = sum, ioCounts{}
			case h.moved:
				h.told = sum
			default:
				for i := range calls {
					calls[i] = min(calls[i], max(sum[i], h.told[i])-h.told[i])
				}
				h.told.add(&calls)
			}
		}
		h.begun, h.moved, h.recalled = true, false, false
		x.grown.sub(&calls)
		s.sum.sub(&calls)
		l.own.add(&calls)
	}
	return nil
}

// finish closes a sample, and with the host's the cycle.
func (l *ledger) finish(s *ioTotals) {
	s.members = slices.DeleteFunc(s.members, func(x *process) bool { return x.exited || x.owner != s })
	for _, x := range s.members {
		x.grown, x.grownFaults = ioCounts{}, 0
	}
	if !s.host {
		return
	}
	// Exited processes are kept a cycle longer: they tell the ancestors of
	// others that exit.
	for pid, x := range l.procs {
		if x.exited && x.cycle != l.cycle {
			delete(l.procs, pid)
		}
	}
	l.exited = slices.DeleteFunc(l.exited, func(x *process) bool { return x.cycle != l.cycle })
	l.cycle++
}
