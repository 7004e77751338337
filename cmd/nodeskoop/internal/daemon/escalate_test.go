package daemon

import (
	"fmt"
	"iter"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/escalate"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

func TestLoad(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1500\n": 1500 * time.Microsecond,
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n":                                                    -1,
		"": -1, "full ": -1, "full total=x": -1, "full total=-5": -1, "full total=9223372036854775807": -1,
	} {
		if got := parseFull([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if l := readLoad("/proc"); len(l.cpus) == 0 || total(l.cpus[0]) <= l.cpus[0].SoftIRQ {
		t.Errorf("this machine has no CPU: %+v", l)
	}
	if l := readLoad(t.TempDir()); l.cpus != nil || l.memory != -1 {
		t.Errorf("of nothing: %+v", l)
	}
}

func TestLoadSince(t *testing.T) {
	begin := time.Now()
	cpus := func(all ...procfs.CPUStat) map[int64]procfs.CPUStat {
		by := map[int64]procfs.CPUStat{}
		for i, c := range all {
			by[int64(i)] = c
		}
		return by
	}
	before := &load{begin, cpus(procfs.CPUStat{User: 0.4, Guest: 0.4, Idle: 0.5, SoftIRQ: 0.1}, procfs.CPUStat{Idle: 1}), time.Second}
	later := begin.Add(10 * time.Second)
	for name, c := range map[string]struct {
		now             load
		softirq, memory float64
	}{
		"some":             {load{later, cpus(procfs.CPUStat{User: 1.3, Guest: 1.3, Idle: 0.5, SoftIRQ: 0.2}, procfs.CPUStat{Idle: 1, IRQ: 0.1, Steal: 0.3, SoftIRQ: 0.6}), 3 * time.Second}, 60, 20},
		"a CPU is gone":    {load{later, cpus(procfs.CPUStat{User: 0.4, Guest: 0.4, Idle: 1.3, SoftIRQ: 0.3}), time.Second}, 20, 0},
		"a CPU is new":     {load{later, cpus(before.cpus[0], before.cpus[1], procfs.CPUStat{SoftIRQ: 9}), time.Second}, math.NaN(), 0},
		"numbers fall":     {load{later, cpus(procfs.CPUStat{Idle: 0.9}, procfs.CPUStat{Idle: 1}), 0}, math.NaN(), math.NaN()},
		"only theirs fall": {load{later, cpus(procfs.CPUStat{Idle: 9}, procfs.CPUStat{Idle: 2}), time.Second}, 0, 0},
		"no pressure":      {load{later, cpus(procfs.CPUStat{User: 1.4, SoftIRQ: 0.1, Idle: 0.5}, procfs.CPUStat{Idle: 2}), -1}, 0, math.NaN()},
		"the same moment":  {load{begin, before.cpus, time.Second}, math.NaN(), math.NaN()},
		"nothing is known": {load{at: later, memory: -1}, math.NaN(), math.NaN()},
	} {
		p := c.now.since(before)
		if fmt.Sprintf("%.3f", p) != fmt.Sprintf("%.3f", escalate.Pressure{Softirq: c.softirq, Memory: c.memory}) {
			t.Errorf("%s: %v", name, p)
		}
	}
}

// TestDecide: a sign makes the probes run, which is one line at its beginning and one at
// its end. If the machine can run none of them, nothing is said.
func TestDecide(t *testing.T) {
	for _, supported := range []bool{true, false} {
		r, err := collect.NewRunner(collect.Options{Interval: time.Hour, HostNetns: "/proc/self/ns/net", Standby: []string{"net_softirq"}},
			collect.Factory{Name: "net_softirq", New: func(collect.Env) (collect.Probe, error) {
				if !supported {
					return nil, &collect.UnsupportedError{Reason: "no"}
				}
				return quiet{}, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		log := new(testkit.Log)
		e := escalateFrom(r, escalate.Options{}, slog.New(slog.NewTextHandler(log, nil)))
		now := time.Hour
		e.since = func() time.Duration { return now }
		testkit.Eventually(t, "the trial ends", func() bool {
			r.Cycle()
			st := r.Status()
			return len(st) == 1 && (supported || st[0].Unsupported)
		})
		lost := 0.0
		ran := 0
		pod := &owner.Pod{ID: "x", Namespace: "shop", Name: "web"}
		var values iter.Seq[collect.Value] = func(yield func(collect.Value) bool) {
			for _, m := range []string{"kubeskoop_packetloss_total", "kubeskoop_packetloss_netfilter", "kubeskoop_tcp_insegs"} {
				v := collect.Value{Pod: pod, Metric: catalog.MustMetric(m)}
				if m == "kubeskoop_packetloss_total" {
					v.Value = lost
				}
				if !yield(v) {
					return
				}
			}
		}
		for range 60 {
			lost += 1000
			now += 15 * time.Second
			if e.decide(values) {
				ran++
			}
		}
		want, lines := 20, 2
		if !supported {
			want, lines = 0, 0
		}
		if ran != want || strings.Count(log.String(), "\n") != lines {
			t.Errorf("supported: %v: it runs in %d cycles, want %d:\n%s", supported, ran, want, log)
		}
		if supported && (!strings.Contains(log.String(), `level=INFO msg="watching closer" probes=net_softirq because="shop/web: 1000 packets lost in 15s" until=`) ||
			!strings.Contains(log.String(), `level=INFO msg="watching closer has ended" probes=net_softirq`)) {
			t.Errorf("the log:\n%s", log)
		}
		r.Close()
	}
}

type quiet struct{}

func (quiet) Granularity() collect.Granularity { return collect.Node }
func (quiet) Sample(*collect.View) error       { return nil }
func (quiet) Close() error                     { return nil }
