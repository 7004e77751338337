package pod

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"nodeskoop/collect/owner"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }

// TestReuse gives inode numbers and addresses to one pod after another.
func TestReuse(t *testing.T) {
	x := newIndex("/proc")
	addr := netip.MustParseAddr("10.0.0.7")
	put := func(name string, started int, to rank) {
		x.put(key{"k8s.io", name}, &owner.Pod{ID: name, Name: name, Netns: 42, Started: at(started)}, to,
			traces{netns: []uint64{42}, addrs: []netip.Addr{addr}}, at(started))
	}
	check := func(want string, number ...string) {
		t.Helper()
		found := map[string]*owner.Pod{
			"namespace":      x.ByNetns(42, time.Time{}),
			"address":        x.ByAddr(addr),
			"mapped address": x.ByAddr(netip.MustParseAddr("::ffff:10.0.0.7")),
		}
		if len(number) > 0 {
			delete(found, "namespace")
			if p := x.ByNetns(42, time.Time{}); p != nil {
				t.Errorf("the namespace is still %q's", p.Name)
			}
		}
		for what, p := range found {
			got := ""
			if p != nil {
				got = p.Name
			}
			if got != want {
				t.Errorf("the %s is %q's, want %q's", what, got, want)
			}
		}
	}
	check("")
	put("a", 0, running)
	check("a")
	put("b", 10, running) // the younger of two running
	check("b")
	x.end(key{"k8s.io", "b"}, ended, at(20))
	check("a") // running before ended
	x.end(key{"k8s.io", "a"}, ended, at(21))
	check("b") // the younger of two ended
	put("c", 5, waiting)
	check("c")
	put("d", 1, running)
	check("d")
	x.end(key{"k8s.io", "d"}, waiting, at(30))
	check("c")
	put("d", 1, running) // a pod may run again
	check("d")
	x.end(key{"k8s.io", "d"}, ended, at(31))
	x.end(key{"k8s.io", "c"}, ended, at(31))
	x.prune(at(35)) // a and b have lost the number
	if p := x.ByNetns(42, time.Time{}); p == nil || p.Name != "c" {
		t.Errorf("the namespace is not c's: %+v", p)
	}
	x.prune(at(81))
	check("c", "given up") // a and b are forgotten, and c has lost the inode number
	if len(x.records) != 2 {
		t.Errorf("%d records", len(x.records))
	}
	x.prune(at(91))
	check("")
	if n := len(x.records) + len(x.netns.m) + len(x.addrs.m) + len(x.Running()); n != 0 {
		t.Errorf("%d things are kept of pods that are forgotten", n)
	}
}

// TestEndedBound ends more pods than the index remembers.
func TestEndedBound(t *testing.T) {
	x := newIndex("/proc")
	const n = maxEnded + 100
	for i := range n {
		k := key{"k8s.io", fmt.Sprint(i)}
		x.put(k, &owner.Pod{ID: k.id, Started: at(i)}, running, traces{netns: []uint64{uint64(i + 1)}}, now)
		x.end(k, ended, now.Add(time.Duration(i)*time.Millisecond))
	}
	x.put(key{"k8s.io", "runs"}, &owner.Pod{ID: "runs"}, running, traces{netns: []uint64{n + 1}}, now)
	x.prune(at(2))
	if len(x.records) != maxEnded+1 || x.ByNetns(100, time.Time{}) != nil || x.ByNetns(101, time.Time{}) == nil || x.ByNetns(n+1, time.Time{}) == nil {
		t.Errorf("%d records are kept", len(x.records))
	}
}

func TestRunning(t *testing.T) {
	x := newIndex("/proc")
	for i, p := range []*owner.Pod{
		{ID: "1", Namespace: "b", Name: "x", Started: at(2)},
		{ID: "2", Namespace: "a", Name: "z", Started: at(1)},
		{ID: "3", Namespace: "b", Name: "x", Started: at(1)},
		{ID: "4", Namespace: "a", Name: "y", Started: at(9)},
	} {
		x.put(key{"k8s.io", fmt.Sprint(i)}, p, running, traces{}, now)
	}
	x.put(key{"k8s.io", "w"}, &owner.Pod{ID: "w"}, waiting, traces{}, now)
	ids := func() (s string) {
		for _, p := range x.Running() {
			s += p.ID
		}
		return s
	}
	if got := ids(); got != "4231" {
		t.Errorf("order %s", got)
	}
	before := x.Running()
	x.put(key{"k8s.io", "3"}, &owner.Pod{ID: "4", Namespace: "a", Name: "y", Started: at(9)}, running, traces{}, now)
	if after := x.Running(); &after[0] != &before[0] || after[0] != before[0] {
		t.Error("what is the same as before is a new Pod or a new list")
	}
	x.end(key{"k8s.io", "1"}, ended, now)
	if got := ids(); got != "431" || len(before) != 4 {
		t.Errorf("order %s, the list that was handed out has %d", got, len(before))
	}
	if n := testing.AllocsPerRun(100, func() { x.Running() }); n != 0 {
		t.Errorf("Running allocates %v times", n)
	}
}

// TestLookupsAgainstScan compares each lookup with a search of all records, over a random
// history.
func TestLookupsAgainstScan(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	x := newIndex("/proc")
	pick := func(n int) []uint64 {
		var s []uint64
		for range rnd.IntN(3) {
			if v := uint64(rnd.IntN(n) + 1); !slices.Contains(s, v) {
				s = append(s, v)
			}
		}
		return s
	}
	for step := range 5000 {
		k := key{"n", fmt.Sprint(rnd.IntN(12))}
		when := at(step / 10)
		switch rnd.IntN(4) {
		case 0:
			x.end(k, rank(rnd.IntN(2)), when)
		case 1:
			x.prune(when)
		default:
			// Distinct start times, so that exactly one record is best.
			p := &owner.Pod{ID: k.id, Started: now.Add(time.Duration(step) * time.Millisecond)}
			x.put(k, p, rank(1+rnd.IntN(2)), traces{netns: pick(8), groups: pick(8)}, when)
		}
		for n := uint64(1); n <= 8; n++ {
			for what, l := range map[string]*lookup[uint64]{"namespace": &x.netns, "control group": &x.groups} {
				var best *record
				for _, r := range x.records {
					if slices.Contains(l.keys(r), n) && (best == nil || r.beats(best)) {
						best = r
					}
				}
				if l.m[n] != best {
					t.Fatalf("step %d: %s %d is %+v, want %+v", step, what, n, l.m[n], best)
				}
			}
		}
	}
}

// BenchmarkPut changes one of many pods, as each event does.
func BenchmarkPut(b *testing.B) {
	for _, n := range []int{110, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			x := newIndex("/proc")
			put := func(i, version int) {
				k := key{"k8s.io", fmt.Sprintf("%064x", i)}
				a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
				x.put(k, &owner.Pod{ID: k.id, PIDs: []int{i, version}}, running, traces{
					netns: []uint64{uint64(i)}, addrs: []netip.Addr{a}, groups: []uint64{uint64(2 * i), uint64(2*i + 1)},
					pids: []int{2 * i, 2*i + 1}, starts: []uint64{1, uint64(version)}, paths: []string{"/a/" + k.id, "/b/" + k.id},
				}, now)
			}
			for i := range n {
				put(i, 0)
			}
			b.ReportAllocs()
			for i := 1; b.Loop(); i++ {
				put(i%n, i)
			}
		})
	}
}
