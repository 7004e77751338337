package trace

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect/catalog"
)

// The catalogue's bounds are those of the BPF programs, for all latency histograms,
// since the documentation describes one set.
func TestBoundsAreTheKernels(t *testing.T) {
	found := 0
	for _, m := range catalog.Metrics() {
		if m.Type != catalog.Histogram {
			continue
		}
		found++
		if len(m.Bounds) != len(bpf.HistogramBounds) || len(m.Bounds) != bpf.HistogramBuckets-1 {
			t.Fatalf("%s: %d bounds, the kernel has %d buckets", m.Name, len(m.Bounds), bpf.HistogramBuckets)
		}
		for i, b := range m.Bounds {
			if d := time.Duration(b*1e9 + 0.5); d != bpf.HistogramBounds[i] {
				t.Errorf("%s: bound %d is %v, the kernel's is %v", m.Name, i, d, bpf.HistogramBounds[i])
			}
		}
	}
	if found != 5 {
		t.Errorf("%d histograms", found)
	}
}

func some(n ...uint64) (h bpf.Histogram) {
	copy(h.Buckets[:], n)
	for i, b := range h.Buckets {
		h.SumNs += uint64(i+1) * b
	}
	return h
}

// The counts of earlier runs are the base, and the kernel's counts are added. If the
// kernel's entry is recreated, nothing is lost.
func TestHistogramsAreCarried(t *testing.T) {
	var first carried
	first.show(&tally{latencies: &latencies{1: some(3, 0, 7)}})
	var second carried
	if err := second.Recall(first.Keep(nil)); err != nil {
		t.Fatal(err)
	}
	second.show(&tally{latencies: &latencies{0: some(1), 1: some(1)}})
	second.show(&tally{latencies: &latencies{0: some(2), 1: some(1)}})
	if want := (latencies{0: some(2), 1: some(4, 0, 7)}); *second.shown.latencies != want {
		t.Errorf("%v, want %v", *second.shown.latencies, want)
	}
	h := second.shown.histogram(1)
	if !slices.Equal(h.Buckets[:3], []uint64{4, 0, 7}) || h.Sum != 25e-9 {
		t.Errorf("%v", h)
	}
	// Reasons and slots are beside them.
	first.show(&tally{slots: [bpf.MaxSlots]uint64{2}, reasons: map[uint32]uint64{7: 9}, latencies: &latencies{3: some(0, 5)}})
	var third carried
	if err := third.Recall(first.Keep(nil)); err != nil || third.shown.slots[0] != 2 || third.shown.reasons[7] != 9 || third.shown.latencies[3] != some(0, 5) {
		t.Errorf("%v, %+v", err, third.shown)
	}
	if err := new(carried).Recall(first.Keep(nil)[:40]); err == nil {
		t.Error("what is cut off is recalled")
	}

	c := counts{known: map[bpf.NetnsID]*count{}}
	for _, h := range []bpf.Histogram{some(3), some(5, 1), some(1)} {
		c.addHistogram(7, 2, &h)
	}
	if got, want := c.known[7].latencies[2], some(6, 1); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// A disk's histograms continue after a restart, and are removed with the disk.
func TestDisksAreCarried(t *testing.T) {
	kernel := map[diskKey]bpf.Histogram{}
	read := func(f func(string, uint32, *bpf.Histogram)) error {
		for k, h := range kernel {
			f(k.disk, k.operation, &h)
		}
		return nil
	}
	is := func(what string, d *disks, want string) {
		t.Helper()
		if err := d.take(read); err != nil {
			t.Fatal(err)
		}
		got := map[string]uint64{}
		for k, l := range d.all {
			got[fmt.Sprintf("%s/%s", k.disk, operations[k.operation])] = l.shown.Count()
		}
		if s := fmt.Sprint(got); s != want {
			t.Errorf("%s: %s, want %s", what, s, want)
		}
	}
	var first disks
	kernel[diskKey{"", bpf.BlockRead}] = bpf.Histogram{} // stands for those without room
	is("nothing yet", &first, "map[]")
	kernel[diskKey{"vda", bpf.BlockRead}] = some(3)
	kernel[diskKey{"vda", bpf.BlockFlush}] = some(0, 1)
	kernel[diskKey{"", bpf.BlockRead}] = some(1)
	is("some", &first, "map[/read:1 vda/flush:1 vda/read:3]")
	kernel[diskKey{"vda", bpf.BlockRead}] = some(4)
	delete(kernel, diskKey{"vda", bpf.BlockFlush})
	is("one more, one gone", &first, "map[/read:1 vda/read:4]")

	data := first.Keep(nil)
	var second disks
	if err := second.Recall(data); err != nil {
		t.Fatal(err)
	}
	// Normally no such disk exists on this machine.
	if there("vda") != (second.all[diskKey{"vda", bpf.BlockRead}] != nil) || second.all[diskKey{"", bpf.BlockRead}] == nil {
		t.Errorf("recalled %v", slices.Collect(maps.Keys(second.all)))
	}
	second.all[diskKey{"vda", bpf.BlockRead}] = &diskLatency{shown: some(4)}
	kernel[diskKey{"vda", bpf.BlockRead}] = some(2)
	delete(kernel, diskKey{"", bpf.BlockRead})
	is("after a restart", &second, "map[/read:1 vda/read:6]")
	if err := new(disks).Recall(data[:len(data)-3]); err == nil {
		t.Error("what is cut off is recalled")
	}
}

// Histograms are the node's, or each pod's on request, or off. All exist from the
// first cycle on.
func TestHistogramsAsTheOptionSays(t *testing.T) {
	const driver, n = "nodeskoop_netiftxlatency_seconds{%s,driver}", 500
	for option, want := range map[string][]string{
		"node": {"hostNetwork"}, "pods": {"hostNetwork", "web-0", "db-0", "unknown"}, "off": nil,
	} {
		t.Run(option, func(t *testing.T) {
			l := newLab(t, EventLimits{20, 100}, map[string]map[string]any{"netiftxlatency": {"histograms": option}}, "netiftxlatency")
			before := l.values()
			var owners []string
			for _, of := range []string{"hostNetwork", "web-0", "db-0", "unknown"} {
				if _, ok := before[fmt.Sprintf(driver, of)]; ok {
					owners = append(owners, of)
				}
			}
			if !slices.Equal(owners, want) {
				t.Fatalf("histograms of %v, want %v", owners, want)
			}
			l.flood(l.a, "10.0.0.2:9", n)
			got := l.values()
			grown := func(of string) int {
				return int(got[fmt.Sprintf(driver, of)] - before[fmt.Sprintf(driver, of)])
			}
			switch option {
			case "node":
				if grown("hostNetwork") < n {
					t.Errorf("%d of the node, want %d at least", grown("hostNetwork"), n)
				}
			case "pods":
				if grown("web-0") < n || grown("web-0") > n+n/10 {
					t.Errorf("%d of the pod that sent %d", grown("web-0"), n)
				}
				if k := "nodeskoop_netiftxlatency_seconds{web-0,qdisc}"; got[k] != 0 {
					t.Errorf("%s = %v of a device without a queue", k, got[k])
				}
			}
		})
	}
}
