package proc

import (
	"testing"

	"nodeskoop/bpf"
)

// TestIOKept: processes that there was no room to keep have counted nothing
// before the next run; those that came since have counted all that they show.
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

// TestIOFalls: counts that fall, which no kernel's do, neither underflow nor
// count again.
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
