package proc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"nodeskoop/bpf"
)

// TestIOKept: after a restart, a process that was not saved starts from its current counts
// if it existed before, and counts in full if it is newer.
func TestIOKept(t *testing.T) {
	l := &ledger{procs: map[int]*process{}}
	s := &ioTotals{samples: 1, at: 5000}
	for pid := 1; pid <= maxKept+10; pid++ {
		r := reading{pid: pid, start: 100, io: ioCounts{1, 2, 3, 4}}
		l.observe(s, &r, true, bpf.Activity{})
	}
	if want := uint64(maxKept+10) * 4; s.sum[3] != want {
		t.Fatalf("%d, want %d", s.sum[3], want)
	}
	again := new(ioTotals)
	if err := again.Recall(s.Keep(nil)); err != nil {
		t.Fatal(err)
	}
	l = &ledger{procs: map[int]*process{}}
	l.recall(again)
	again.samples = 1
	if len(again.members) != maxKept || again.sum != s.sum {
		t.Errorf("%d processes, %v, want %d and %v", len(again.members), again.sum, maxKept, s.sum)
	}
	for pid := 1; pid <= maxKept+10; pid++ {
		r := reading{pid: pid, start: 100, io: ioCounts{1, 2, 3, 5}}
		l.observe(again, &r, true, bpf.Activity{})
	}
	r := reading{pid: 1 << 20, start: 5001, io: ioCounts{0, 0, 0, 7}}
	l.observe(again, &r, true, bpf.Activity{})
	if want := s.sum[3] + maxKept + 7; again.sum[3] != want {
		t.Errorf("%d, want %d", again.sum[3], want)
	}
}

// TestIOFalls: falling counts, which no kernel shows, neither underflow nor count twice.
func TestIOFalls(t *testing.T) {
	l := &ledger{procs: map[int]*process{}}
	s := &ioTotals{}
	for i, x := range []struct{ n, want uint64 }{{10, 10}, {4, 10}, {10, 10}, {12, 12}} {
		r := reading{pid: 1, start: 1, io: ioCounts{x.n, x.n, x.n, x.n}}
		l.observe(s, &r, true, bpf.Activity{})
		if s.sum != (ioCounts{x.want, x.want, x.want, x.want}) {
			t.Errorf("step %d: %v, want %d", i, s.sum, x.want)
		}
	}
}

// world is a simulated kernel: processes count, fork, exit and are reaped. Events can be
// scheduled between two looks of a sample.
type world struct {
	t      *testing.T
	l      *ledger
	procs  map[int]*invented
	totals map[string]*ioTotals // by target; "host" is the host's
	true   map[string]uint64    // expected sums: what processes counted while they were in the target
	later  []func()             // events before the next looks, one before each
	clock  uint64
}

// invented is a process of world. Its counts, and the sums, are a single number.
type invented struct {
	pid, parent    int
	start          uint64
	target         string
	io             uint64
	faults, reaped uint64
	zombie, hidden bool
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, l: &ledger{procs: map[int]*process{}}, procs: map[int]*invented{}, totals: map[string]*ioTotals{}, true: map[string]uint64{}}
	w.fork(1, 0, "host")
	return w
}

func (w *world) fork(pid, parent int, target string) {
	w.clock++
	w.procs[pid] = &invented{pid: pid, parent: parent, start: w.clock, target: target, faults: uint64(100 + 7*pid)}
	if w.totals[target] == nil {
		w.totals[target] = &ioTotals{}
	}
}

// work makes a process count. Each call also causes faults.
func (w *world) work(pid int, n uint64) {
	x := w.procs[pid]
	x.io += n
	x.faults += n%13 + 1
	w.true[x.target] += n
}

func (w *world) exit(pid int) {
	w.procs[pid].zombie = true
	for _, x := range w.procs {
		if x.parent == pid {
			x.parent = 1
		}
	}
}

// reap passes the counts of a zombie to its parent.
func (w *world) reap(pid int) {
	x := w.procs[pid]
	e := w.procs[x.parent]
	e.io += x.io
	e.reaped += x.faults + x.reaped
	delete(w.procs, pid)
}

func (w *world) end(pid int)  { w.exit(pid); w.reap(pid) }
func (w *world) drop(pid int) { w.exit(pid); delete(w.procs, pid) }

func (w *world) look(pid int, _ uint64) (r reading, is sight, err error) {
	if len(w.later) > 0 {
		w.later[0]()
		w.later = w.later[1:]
	}
	x := w.procs[pid]
	switch {
	case x == nil:
		return r, ended, nil
	case x.hidden:
		return r, hidden, nil
	}
	return reading{pid: pid, start: x.start, parent: x.parent, ending: x.zombie, faults: x.faults + x.reaped, reaped: x.reaped, io: ioCounts{x.io, x.io, x.io, x.io}}, there, nil
}

// sample samples the targets in this order; the host comes last in a cycle.
func (w *world) sample(targets ...string) {
	w.t.Helper()
	for _, name := range targets {
		s, host := w.totals[name], name == "host"
		before := s.sum
		w.l.recall(s)
		s.samples++
		var pids []int
		for pid, x := range w.procs {
			if x.target == name && !(x.zombie && !host) || x.zombie && host {
				pids = append(pids, pid)
			}
		}
		slices.Sort(pids)
		for _, pid := range pids {
			switch r, is, _ := w.look(pid, 0); is {
			case there:
				w.l.observe(s, &r, host, bpf.Activity{})
			case hidden:
				w.l.hold(s, pid)
			}
		}
		err := w.l.reconcile(s, host, nil, func(pid int, reaped uint64) (reading, sight, error) {
			w.compare(s)
			return w.look(pid, reaped)
		})
		if err != nil {
			w.t.Fatal(err)
		}
		w.compare(s)
		w.l.end(s, host)
		if !s.sum.covers(&before) {
			w.t.Errorf("the sum of %s fell from %v to %v", name, before, s.sum)
		}
	}
}

// compare compares the suspects with those that a search through all processes finds.
func (w *world) compare(s *ioTotals) {
	w.t.Helper()
	var want, got []int
	if slices.ContainsFunc(s.members, func(x *process) bool { return x.grownFaults > 0 && x.owner == s }) {
		for pid, x := range w.l.procs {
			if w.l.suspect(s, x) {
				want = append(want, pid)
			}
		}
	}
	for _, x := range w.l.suspects(s) {
		got = append(got, x.pid)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.t.Fatalf("the suspects are %v, a search through all processes finds %v", got, want)
	}
	linked := 0
	for parent, x := range w.l.children {
		for ; x != nil; x = x.behind {
			if linked++; w.l.procs[x.pid] != x || x.parent != parent {
				w.t.Fatalf("process %d is listed below %d", x.pid, parent)
			}
		}
	}
	if linked != len(w.l.procs) {
		w.t.Fatalf("%d of %d processes are listed below their parents", linked, len(w.l.procs))
	}
}

func (w *world) want(target string, want uint64) {
	w.t.Helper()
	if got := w.totals[target].sum; got != (ioCounts{want, want, want, want}) {
		w.t.Errorf("%s has counted %v, want %d", target, got, want)
	}
}

// TestLedger runs scenarios. Unless a scenario says otherwise, each target ends with the
// counts of its processes while they were in it.
func TestLedger(t *testing.T) {
	all := func(w *world) { w.sample("pod", "host") }
	for name, story := range map[string]func(w *world){
		"nothing ends": func(w *world) { w.work(10, 5); all(w); w.work(10, 7); all(w) },
		"a program is replaced": func(w *world) { // exec changes neither the PID nor the counts
			w.work(10, 5)
			all(w)
			w.procs[10].faults += 1000
			w.work(10, 3)
			all(w)
		},
		"waited for":             func(w *world) { w.work(11, 50); all(w); w.end(11); all(w); all(w) },
		"waited for, and worked": func(w *world) { w.work(11, 50); all(w); w.end(11); w.work(10, 9); all(w) },
		"dropped": func(w *world) {
			w.work(11, 50)
			all(w)
			w.drop(11)
			all(w)
			w.work(10, 500)
			all(w)
		},
		"a zombie for a while": func(w *world) {
			w.work(11, 50)
			all(w)
			w.exit(11)
			all(w)
			all(w)
			w.reap(11)
			all(w)
		},
		"a zombie that had reaped another": func(w *world) {
			w.fork(30, 10, "pod")
			w.fork(12, 30, "pod") // read before its parent
			w.work(12, 4)
			all(w)
			w.end(12)
			w.exit(30)
			all(w)
			all(w)
			w.reap(30)
			all(w)
		},
		"parent and child together": func(w *world) {
			w.work(10, 20)
			w.work(11, 50)
			all(w)
			w.end(11)
			w.end(10)
			all(w)
		},
		"the parent first, then the orphan": func(w *world) {
			w.work(10, 20)
			w.work(11, 50)
			all(w)
			w.end(10)
			all(w)
			w.end(11)
			all(w)
		},
		"re-parented unseen": func(w *world) { w.work(11, 50); all(w); w.end(10); w.end(11); all(w) },
		"a chain of four ends from below": func(w *world) {
			w.fork(12, 11, "pod")
			w.fork(13, 12, "pod")
			for pid, n := range map[int]uint64{10: 3, 11: 40, 12: 500, 13: 6000} {
				w.work(pid, n)
			}
			all(w)
			for pid := 13; pid >= 10; pid-- {
				w.end(pid)
			}
			all(w)
			all(w)
		},
		"its number is another's": func(w *world) {
			w.work(11, 50)
			all(w)
			w.end(11)
			w.fork(11, 10, "pod")
			w.work(11, 4)
			all(w)
			w.end(11)
			all(w)
		},
		"its number is another target's": func(w *world) {
			w.work(11, 50)
			all(w)
			w.end(11)
			w.fork(11, 1, "host")
			w.work(11, 4)
			all(w)
		},
		"never seen, and waited for": func(w *world) {
			all(w)
			w.fork(12, 10, "pod")
			w.work(12, 70)
			w.end(12)
			all(w)
		},
		"its parent came and went": func(w *world) {
			all(w)
			w.fork(12, 10, "pod")
			w.fork(13, 12, "pod")
			w.work(13, 70)
			all(w)
			w.end(13)
			w.end(12)
			all(w)
		},
		"waited for by another pod's process": func(w *world) {
			w.fork(20, 1, "other")
			w.fork(21, 20, "pod")
			w.work(20, 6)
			w.work(21, 300)
			w.sample("pod", "other", "host")
			w.end(21)
			w.sample("other", "pod", "host")
			w.sample("pod", "other", "host")
		},
		"with its pod": func(w *world) { // the pod is not sampled any more
			w.work(10, 20)
			w.work(11, 50)
			all(w)
			w.end(11)
			w.end(10)
			w.sample("host")
			w.sample("host")
		},
		"it moves": func(w *world) {
			w.fork(20, 1, "other")
			w.work(11, 50)
			w.sample("pod", "other", "host")
			w.procs[11].target = "other"
			w.work(11, 8)
			w.sample("pod", "other", "host")
			w.end(11)
			w.sample("pod", "other", "host")
		},
		"it cannot be read for a while": func(w *world) {
			w.work(11, 50)
			all(w)
			w.procs[11].hidden = true
			all(w)
			w.work(11, 5)
			w.procs[11].hidden = false
			all(w)
			w.end(11)
			all(w)
		},
		"waited for between two looks": func(w *world) {
			w.work(10, 20)
			w.work(11, 50)
			all(w)
			// The child exits between two readings: the parent is read before it
			// reaps the child, and the child is gone when it is read.
			w.later = []func(){func() {}, func() { w.end(11) }}
			all(w)
			all(w)
		},
		"waited for before its parent is read, after it was": func(w *world) {
			w.fork(9, 10, "pod") // read before its parent
			w.procs[9].start = w.procs[11].start
			w.work(9, 50)
			all(w)
			w.later = []func(){func() {}, func() { w.end(9) }}
			all(w)
			all(w)
		},
		"one of two is dropped, and one never seen": func(w *world) {
			w.fork(12, 10, "pod")
			w.work(11, 50)
			w.work(12, 50)
			all(w)
			w.end(12)
			w.drop(11)
			w.fork(13, 10, "pod")
			w.end(13)
			all(w)
		},
		"one of two is dropped, and the parent works as much": func(w *world) {
			w.fork(12, 10, "pod")
			w.work(11, 50)
			w.work(12, 50)
			all(w)
			w.end(12)
			w.drop(11)
			w.work(10, 50)
			all(w)
		},
		"dropped, and the parent works as much": func(w *world) { w.work(11, 50); all(w); w.drop(11); w.work(10, 50); all(w) },
		"dropped by one that is waited for": func(w *world) {
			w.fork(9, 11, "pod")
			w.work(11, 500)
			w.procs[11].faults += 1000
			w.work(9, 50)
			all(w)
			w.drop(9)
			w.end(11)
			all(w)
		},
		"handed on by one that had counted nothing, after its parent was read": func(w *world) {
			w.fork(9, 11, "pod")
			w.work(9, 50)
			all(w)
			w.end(9)
			w.fork(9, 1, "pod") // read first because of its lower PID
			w.later = []func(){func() {}, func() {}, func() { w.end(11) }}
			all(w)
			all(w)
		},
		"its parent cannot be read": func(w *world) {
			w.fork(12, 10, "pod")
			w.procs[12].hidden = true
			w.fork(13, 12, "pod")
			w.work(13, 70)
			all(w)
			w.end(13)
			w.end(12)
			all(w)
		},
		"the number of its parent is another's": func(w *world) {
			w.work(11, 50)
			all(w)
			w.end(10)
			w.drop(11)
			w.fork(10, 1, "pod")
			w.fork(13, 10, "pod")
			w.work(13, 50)
			w.end(13)
			all(w)
		},
		"new, of an unseen parent, and waited for before its ancestor is read": func(w *world) {
			all(w)
			w.fork(12, 10, "pod")
			w.procs[12].hidden = true
			w.fork(9, 12, "pod")
			w.work(9, 70)
			w.later = []func(){func() {}, func() { w.end(9); w.procs[12].hidden = false; w.end(12) }}
			all(w)
			all(w)
		},
		"all end while they are looked for": func(w *world) {
			w.fork(12, 11, "pod")
			for pid, n := range map[int]uint64{10: 3, 11: 40, 12: 500} {
				w.work(pid, n)
			}
			all(w)
			w.end(12)
			w.later = []func(){func() {}, func() { w.end(11) }, func() {}, func() { w.end(10) }}
			all(w)
			all(w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.fork(10, 1, "pod")
			w.fork(11, 10, "pod")
			story(w)
			for target, n := range w.true {
				w.want(target, n)
			}
		})
	}
}

// TestLedgerEnding: an exiting process leaves its control group before it is reaped, and
// does not become the host's.
func TestLedgerEnding(t *testing.T) {
	w := newWorld(t)
	w.fork(10, 1, "pod")
	w.work(10, 5)
	w.sample("pod", "host")
	w.work(10, 6)
	w.exit(10)
	w.fork(11, 1, "pod") // process 11 starts and ends between two samples
	w.work(11, 100)
	w.exit(11)
	w.sample("pod", "host")
	w.want("pod", 5+6)
	w.want("host", 0)
	w.reap(10)
	w.sample("pod", "host")
	w.want("pod", 5+6)
	w.want("host", 0)
}

// TestLedgerRecalled: counts of an earlier run continue, whether or not processes exit
// meanwhile.
func TestLedgerRecalled(t *testing.T) {
	w := newWorld(t)
	w.fork(10, 1, "pod")
	w.fork(11, 10, "pod")
	w.work(10, 20)
	w.work(11, 50)
	again := func() {
		w.l = &ledger{procs: map[int]*process{}}
		for name, s := range w.totals {
			n := &ioTotals{}
			if err := n.Recall(s.Keep(nil)); err != nil {
				t.Fatal(err)
			}
			w.totals[name] = n
		}
	}
	w.sample("pod", "host")
	again()
	w.work(11, 5)
	w.sample("pod", "host")
	w.want("pod", 75)
	w.end(11)
	again()
	w.sample("pod", "host")
	w.want("pod", 75)
	w.drop(10)
	again()
	w.sample("pod", "host")
	w.want("pod", 75)
	w.want("host", 0)
}

// TestLedgerCircle: a circle of ancestors, from readings of different moments, does not
// loop forever.
func TestLedgerCircle(t *testing.T) {
	l, s := &ledger{procs: map[int]*process{}}, &ioTotals{samples: 1}
	for _, r := range []reading{{pid: 1, parent: 2}, {pid: 2, parent: 3}, {pid: 3, parent: 1}} {
		r.start, r.faults, r.io = 5, 9, ioCounts{1, 1, 1, 1}
		l.observe(s, &r, true, bpf.Activity{})
	}
	for _, x := range s.members {
		x.grownFaults = 1 // makes them suspects
	}
	s.samples++
	if err := l.reconcile(s, true, nil, func(int, uint64) (r reading, is sight, err error) { return r, ended, nil }); err != nil || s.sum[0] > 3 {
		t.Errorf("%v, %v", s.sum, err)
	}
}

// TestLedgerStops: the first error of a look ends the sample, and what is still open is
// resolved later.
func TestLedgerStops(t *testing.T) {
	for n := range 4 {
		w := newWorld(t)
		w.fork(10, 1, "pod")
		w.fork(11, 10, "pod")
		w.fork(12, 10, "pod")
		w.work(11, 50)
		w.work(12, 700)
		w.sample("pod", "host")
		w.end(11)
		w.end(12)
		s, no := w.totals["pod"], errors.New("given up")
		s.samples++
		left := n
		err := w.l.reconcile(s, false, nil, func(pid int, reaped uint64) (reading, sight, error) {
			if left--; left < 0 {
				return reading{}, there, no
			}
			return w.look(pid, reaped)
		})
		if err != no && n < 3 {
			t.Errorf("after %d looks: %v", n, err)
		}
		w.sample("pod", "host")
		w.sample("pod", "host")
		w.want("pod", 750)
	}
}

// TestLedgerInvented runs random scenarios. After each event all targets are sampled and
// must have the counts of their processes.
func TestLedgerInvented(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		targets := []string{"a", "b", "host"}
		next, history := 10, []string{}
		pick := func(zombie bool) int {
			var pids []int
			for pid, x := range w.procs {
				if pid != 1 && x.zombie == zombie {
					pids = append(pids, pid)
				}
			}
			if len(pids) == 0 {
				return 0
			}
			slices.Sort(pids)
			return pids[rnd.IntN(len(pids))]
		}
		w.fork(2, 1, "a")
		w.fork(3, 1, "b")
		for range 60 {
			pid, what := pick(false), ""
			switch n := rnd.IntN(10); {
			case n < 3 || pid == 0:
				parent := max(pid, 1)
				next++
				w.fork(next, parent, w.procs[parent].target)
				what = fmt.Sprintf("%d forks %d", parent, next)
			case n < 7:
				w.work(pid, 1+rnd.Uint64N(1000))
				what = fmt.Sprintf("%d works", pid)
			case n < 9:
				w.exit(pid)
				what = fmt.Sprintf("%d exits", pid)
			default:
				if pid = pick(true); pid != 0 {
					w.reap(pid)
					what = fmt.Sprintf("%d is reaped", pid)
				}
			}
			history = append(history, what)
			w.sample(targets...)
			for _, target := range targets {
				w.want(target, w.true[target])
			}
			if t.Failed() {
				t.Fatalf("seed %d: %v", seed, history)
			}
		}
	}
}
