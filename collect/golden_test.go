package collect

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/common/expfmt"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
)

// changing matches what differs from run to run.
var changing = regexp.MustCompile(`(?m)^(nodeskoop_(?:last_cycle_\w+|probe_duration_seconds)\{[^}]*\}) .*$|goversion="[^"]*"`)

// exposition returns a cycle's families in the text format, as a scrape shows them.
func exposition(t *testing.T, r *Runner) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, f := range r.Cycle() {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return changing.ReplaceAllFunc(b.Bytes(), func(m []byte) []byte {
		if x := changing.FindSubmatch(m)[1]; x != nil {
			return append(x, " ..."...)
		}
		return []byte(`goversion="..."`)
	})
}

// machine is a node with three pods, one in the host's namespace and one terminating, and
// with a container outside pods that has a pod's name.
func machine(t *testing.T) Options {
	root, ns := fakeProc(t, 20, 30, 40)
	web, db, host, plain := pod("web", ns[1], 20), pod("db", ns[2], 30), pod("proxy", ns[0], 40), pod("x", ns[3], 40)
	web.UID, db.UID, host.UID = "u-web", "u-db", "u-proxy"
	web.Labels = map[string]string{"app": "a\"\n\xff"}
	host.HostNetwork = true
	plain.Name = "web"
	app, err := owner.ParseLabelTemplate("app", "<${labels:app}>")
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		ProcRoot: root, Version: "test", Labels: []owner.LabelTemplate{app},
		Pods: &failingPods{
			somePods: somePods{running: []*owner.Pod{db, host, plain, web}, pids: map[string][]int{"web": {20}, "proxy": {40}}},
			fail:     map[string]error{},
		},
		Refused: map[string]error{"ipvs": errors.New("not the host's")},
	}
}

// probes yield every kind of value (each granularity, other namespaces, flows,
// unattributed) and every kind of failure: partial values, errors, a panic, limitations.
func probes(cycle *int) []Factory {
	n := func() float64 { return float64(*cycle) }
	reason := catalog.MustMetric("kubeskoop_packetloss_reason")
	bytes := catalog.MustMetric("kubeskoop_flow_bytes")
	return []Factory{
		probe("tcp", EachNetns, readValue(mInsegs)),
		probe("udp", HostNetns, func(v *View) error { v.Add(mDgrams, 10*n()); return nil }),
		probe("softnet", Node, func(v *View) error {
			s := State[keptSum](v)
			s.n++
			v.Add(mSoft, float64(s.n))
			return nil
		}),
		probe("fd", EachPod, func(v *View) error {
			v.Add(mFD, float64(len(v.PIDs())))
			if v.Pod() == nil {
				return &PartialError{Err: errors.New("process 1 is protected"), Protected: 1}
			}
			return nil
		}),
		probe("io", EachPod, func(v *View) error {
			v.Add(catalog.MustMetric("kubeskoop_io_ioreadsyscall"), 1)
			return &PartialError{Err: errors.New("a part is missing")}
		}),
		// The counter is 0 in the first and third cycle.
		probe("netdev", EachNetns, func(v *View) error {
			v.Add(catalog.MustMetric("kubeskoop_netdev_rxbytes"), float64((*cycle+1)%2))
			return nil
		}),
		{"packetloss", func(Env) (Probe, error) {
			return hooked{fnProbe{granularity: Node, sample: func(v *View) error {
				netns := map[string]uint64{}
				for inode, pod := range v.Netns() {
					if pod != nil {
						netns[pod.Name] = inode
					}
				}
				for _, name := range slices.Sorted(maps.Keys(netns)) {
					v.AddNetns(netns[name], reason, float64(len(name)), "NO_SOCKET")
					v.AddNetns(netns[name], reason, 1, "OTHER \xff")
				}
				v.AddNetns(0, reason, 3*n(), "NO_SOCKET")
				if v.AddNetns(1, reason, 1, "of a namespace that is none of the cycle's") {
					panic("it is")
				}
				return &MissingError{errors.New("one namespace is missing")}
			}}, func() (string, []string) { return "fentry+kprobe", []string{"what is fragmented"} }}, nil
		}},
		probe("flow", Node, func(v *View) error {
			v.Add(bytes, 100*n(), "TCP", "192.0.2.1", "node", "node1", "", "", "203.0.113.1", "unknown", "", "", "", "1", "2")
			v.LeaveOut(bytes, 7)
			return nil
		}),
		probe("kernellatency", Node, func(v *View) error {
			m := catalog.MustMetric("nodeskoop_kernellatency_seconds")
			v.AddHistogram(m, latencies(m, 1, 0, 5, 0), "rx")
			for inode, pod := range v.Netns() {
				if pod != nil && pod.Name == "db" {
					v.AddNetnsHistogram(inode, m, latencies(m, uint64(*cycle)), "tx")
				}
			}
			v.AddNetnsHistogram(0, m, latencies(m), "tx")
			if v.AddNetnsHistogram(1, m, latencies(m), "of a namespace that is none of the cycle's") {
				panic("it is")
			}
			return nil
		}),
		probe("ip", EachNetns, func(*View) error { panic("boom") }),
		probe("tcpext", EachNetns, func(v *View) error {
			if v.Pod() == nil {
				return errors.New("no luck")
			}
			v.Add(catalog.MustMetric("kubeskoop_tcpext_listendrops"), 1)
			if v.Pod().Name == "db" {
				return fmt.Errorf("read something: %w", kernel.ErrGone)
			}
			return nil
		}),
		probe("ipvs", HostNetns, func(*View) error { panic("it may not run") }),
		{"conntrack", func(Env) (Probe, error) { return nil, errors.New("no such module") }},
	}
}

// latencies returns a histogram with the given counts in its first buckets and in
// its last one, each of a second.
func latencies(m *catalog.Metric, buckets ...uint64) *Histogram {
	h := &Histogram{Buckets: make([]uint64, len(m.Bounds)+1)}
	copy(h.Buckets, buckets)
	h.Buckets[len(m.Bounds)] = uint64(len(buckets))
	for _, n := range h.Buckets {
		h.Sum += float64(n)
	}
	return h
}

// TestGoldenCycles compares the text and the log of whole cycles with golden files.
func TestGoldenCycles(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"default": func(*Options) {},
		"compat":  func(o *Options) { o.CompatNames = true; o.HostLabel = "the-host" },
		"exclude": func(o *Options) {
			o.Exclude = []string{"kubeskoop_tcp*", "kubeskoop_fdopenfd", "nodeskoop_probe_*"}
			o.CompatNames = true
		},
		"skip-zero":  func(o *Options) { o.SkipZero = true; o.Enabled = []string{"netdev", "tcp", "softnet"} },
		"max-series": func(o *Options) { o.MaxSeries = 12 },
		"few":        func(o *Options) { o.Enabled = []string{"tcp", "qdisc"}; o.Labels = nil },
		"unlisted": func(o *Options) {
			o.Pods.(*failingPods).fail["web"] = errors.New("read cgroup.procs: no luck")
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out, log bytes.Buffer
			o := machine(t)
			o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}}))
			change(&o)
			cycle, last := 1, 1
			if o.SkipZero {
				last = 3
			}
			for r := newRunner(t, o, probes(&cycle)...); cycle <= last; cycle++ {
				fmt.Fprintf(&out, "# cycle %d\n%s", cycle, exposition(t, r))
			}
			// The stack of a panic differs from machine to machine.
			lines := regexp.MustCompile(`(panic: \w+)\\n.*?" hint`).ReplaceAll(log.Bytes(), []byte(`$1" hint`))
			lines = bytes.ReplaceAll(lines, []byte(o.ProcRoot), []byte("/proc"))
			fmt.Fprintf(&out, "# log\n%s", lines)
			testkit.Golden(t, "cycle/"+name+".prom", out.Bytes())
		})
	}
}
