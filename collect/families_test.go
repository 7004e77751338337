package collect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// series lists the names of a cycle's series other than nodeskoop_*.
func series(got map[string]float64) []string {
	var out []string
	for name := range got {
		if strings.HasPrefix(name, "kubeskoop_") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// A metric and its alias are excluded independently of each other.
func TestExcludeANameAndItsAlias(t *testing.T) {
	root, ns := fakeProc(t, 20)
	pods := &somePods{running: []*owner.Pod{pod("a", ns[1], 20)}}
	m := catalog.MustMetric("kubeskoop_fdopenfd")
	const name, alias, pod = "kubeskoop_fdopenfd", "kubeskoop_fd_openfd", "{node1,ns,a}"
	for _, c := range []struct {
		exclude     []string
		compat      bool
		name, alias bool
	}{
		{nil, true, true, true},
		{nil, false, true, false},
		{[]string{name}, true, false, true},
		{[]string{alias}, true, true, false},
		{[]string{name, alias}, true, false, false},
		{[]string{name}, false, false, false},
		{[]string{"kubeskoop_fd_*"}, true, true, false},
		{[]string{"kubeskoop_fd*"}, true, false, false},
	} {
		for _, limit := range []int{0, 2, 100} {
			r := newRunner(t, Options{ProcRoot: root, Pods: pods, Exclude: c.exclude, CompatNames: c.compat, MaxSeries: limit},
				probe("fd", EachNetns, func(v *View) error { v.Add(m, 7); return nil }))
			for range 2 {
				got := values(r.Cycle())
				series := 0
				for n, there := range map[string]bool{name: c.name, alias: c.alias} {
					if limit == 2 && n == alias && c.name && c.alias {
						want(t, got, "nodeskoop_series_left_out{node1,hostNetwork,hostNetwork,"+alias+"}", 2)
						there = false // no room for both
					}
					if v, ok := got[n+pod]; ok != there || ok && v != 7 {
						t.Errorf("exclude %v, compat %v, limit %d: %s is %v, %v", c.exclude, c.compat, limit, n, v, ok)
					}
					if there {
						series += 2 // the host's and the pod's
					}
				}
				want(t, got, "nodeskoop_series{node1,hostNetwork,hostNetwork}", float64(series))
			}
		}
	}
}

// Only the probes' metrics that are included, by either name, and not excluded are written.
// Include does not apply to nodeskoop_*.
func TestInclude(t *testing.T) {
	root, _ := fakeProc(t)
	fd, io := catalog.MustMetric("kubeskoop_fdopenfd"), catalog.MustMetric("kubeskoop_io_ioreadbytes")
	for _, c := range []struct {
		include, exclude []string
		want             string
	}{
		{nil, nil, "kubeskoop_fd_openfd kubeskoop_fdopenfd kubeskoop_io_ioreadbytes kubeskoop_io_readbytes"},
		{[]string{"kubeskoop_fd*"}, nil, "kubeskoop_fd_openfd kubeskoop_fdopenfd"},
		{[]string{"kubeskoop_fd_*"}, nil, "kubeskoop_fd_openfd"},
		{[]string{"kubeskoop_fd_*", "kubeskoop_io_*"}, nil, "kubeskoop_fd_openfd kubeskoop_io_ioreadbytes kubeskoop_io_readbytes"},
		{[]string{"kubeskoop_*"}, []string{"kubeskoop_io_*"}, "kubeskoop_fd_openfd kubeskoop_fdopenfd"},
		{[]string{"kubeskoop_fdopenfd"}, []string{"kubeskoop_fdopenfd"}, ""},
		{[]string{"none"}, nil, ""},
	} {
		r := newRunner(t, Options{ProcRoot: root, Include: c.include, Exclude: c.exclude, CompatNames: true},
			probe("fd", EachNetns, func(v *View) error { v.Add(fd, 7); v.Add(io, 8); return nil }))
		var got []string
		itself := false
		for _, f := range r.Cycle() {
			if strings.HasPrefix(f.GetName(), "kubeskoop_") {
				got = append(got, f.GetName())
			}
			itself = itself || f.GetName() == "nodeskoop_build_info"
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != c.want || !itself {
			t.Errorf("include %v, exclude %v: %s, want %s; about itself: %v", c.include, c.exclude, s, c.want, itself)
		}
	}
}

// What max_series cuts does not depend on the order in which probes add their values, and
// one owner's many series do not displace another owner's.
func TestMaxSeriesIsDeterministicAndFair(t *testing.T) {
	root, ns := fakeProc(t, 20, 30, 40)
	pods := &somePods{running: []*owner.Pod{pod("old", ns[1], 20), pod("mid", ns[2], 30), pod("new", ns[3], 40)}}
	for i, p := range pods.running {
		p.Started = time.Unix(int64(i), 0)
	}
	pods.running[1].Started, pods.running[2].Started = time.Unix(9, 0), time.Unix(9, 0) // started together
	reason, fixed := catalog.MustMetric("kubeskoop_packetloss_reason"), catalog.MustMetric("kubeskoop_packetloss_total")
	bytes := catalog.MustMetric("kubeskoop_flow_bytes")
	// Rows with a reason, and flows: host 2 and 0, old 1 and 20, mid 200 and 2, new 3 and
	// 2.
	type row struct {
		netns  uint64
		m      *catalog.Metric
		labels []string
	}
	var rows []row
	for pid, n := range map[int]struct{ reasons, flows int }{1: {2, 0}, 20: {1, 20}, 30: {200, 2}, 40: {3, 2}} {
		inode := ns[map[int]int{1: 0, 20: 1, 30: 2, 40: 3}[pid]]
		rows = append(rows, row{inode, fixed, nil})
		for i := range n.reasons {
			rows = append(rows, row{inode, reason, []string{fmt.Sprintf("R%03d", i)}})
		}
		for i := range n.flows {
			labels := slices.Repeat([]string{"x"}, len(bytes.Labels))
			labels[1] = fmt.Sprintf("10.0.0.%02d", i)
			rows = append(rows, row{inode, bytes, labels})
		}
	}
	at := func(limit int) map[string]float64 {
		r := newRunner(t, Options{ProcRoot: root, Pods: pods, MaxSeries: limit},
			probe("packetloss", Node, func(v *View) error {
				rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
				for _, x := range rows {
					v.AddNetns(x.netns, x.m, 1, x.labels...)
				}
				return nil
			}))
		first := values(r.Cycle())
		for range 5 {
			if next := values(r.Cycle()); !slices.Equal(series(first), series(next)) {
				t.Fatalf("limit %d: %v, and then %v", limit, series(first), series(next))
			}
		}
		return first
	}
	// shape gives, for host, old, mid and new: series without labels + reasons + flows.
	shape := func(got map[string]float64) string {
		var out []string
		for _, owner := range []string{"hostNetwork", "old", "mid", "new"} {
			var n [3]int
			for name := range got {
				for i, m := range []*catalog.Metric{fixed, reason, bytes} {
					if strings.HasPrefix(name, m.Name+"{node1,") && strings.Split(strings.Trim(name, "}"), ",")[2] == owner {
						n[i]++
					}
				}
			}
			out = append(out, fmt.Sprintf("%d+%d+%d", n[0], n[1], n[2]))
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		limit int
		want  string
	}{
		{3, "1+2+0 0+0+0 0+0+0 0+0+0"}, // the host's stay
		{5, "1+2+0 1+0+0 1+0+0 0+0+0"}, // then the series that every pod has, oldest pod first
		{6, "1+2+0 1+0+0 1+0+0 1+0+0"},
		{9, "1+2+0 1+1+0 1+1+0 1+1+0"},  // then one reason each
		{13, "1+2+0 1+1+0 1+3+0 1+3+0"}, // then further reasons in turn
		{20, "1+2+0 1+1+0 1+10+0 1+3+0"},
		{213, "1+2+0 1+1+1 1+200+1 1+3+1"}, // no owner's many series before another's few
		{216, "1+2+0 1+1+2 1+200+2 1+3+2"},
		{220, "1+2+0 1+1+6 1+200+2 1+3+2"},
		{1000, "1+2+0 1+1+20 1+200+2 1+3+2"},
		{0, "1+2+0 1+1+20 1+200+2 1+3+2"}, // no cap
	} {
		if got := shape(at(c.limit)); got != c.want {
			t.Errorf("limit %d: %s, want %s", c.limit, got, c.want)
		}
	}
}

// A histogram counts as many series as it has lines, also for a cap, which drops it
// as a whole.
func TestHistogramsCountAsTheirSeries(t *testing.T) {
	root, _ := fakeProc(t, 20)
	m, n := catalog.MustMetric("nodeskoop_kernellatency_seconds"), catalog.MustMetric("kubeskoop_softnet_processed")
	each := m.Series()
	if each != len(m.Bounds)+3 || n.Series() != 1 {
		t.Fatalf("%d and %d series", each, n.Series())
	}
	for _, c := range []struct{ most, histograms, leftOut int }{
		{0, 2, 0}, {2*each + 1, 2, 0}, {2 * each, 1, each}, {each, 0, 2 * each}, {1, 0, 2 * each},
	} {
		r := newRunner(t, Options{ProcRoot: root, MaxSeries: c.most},
			probe("kernellatency", Node, func(v *View) error {
				v.AddHistogram(m, latencies(m, 3), "rx")
				v.AddHistogram(m, latencies(m, 0, 4), "tx")
				return nil
			}),
			probe("softnet", Node, func(v *View) error { v.Add(n, 1); return nil }))
		for range 2 {
			found, series, leftOut := 0, 0.0, 0.0
			for _, f := range r.Cycle() {
				switch f.GetName() {
				case m.Name:
					found = len(f.Metric)
				case "nodeskoop_series":
					series = f.Metric[0].GetGauge().GetValue()
				case "nodeskoop_series_left_out":
					for _, x := range f.Metric {
						leftOut += x.GetGauge().GetValue()
					}
				}
			}
			if found != c.histograms || int(leftOut) != c.leftOut || c.leftOut == 0 && int(series) != 2*each+1 {
				t.Errorf("at most %d: %d histograms, %v series, %v left out; want %d, %d", c.most, found, series, leftOut, c.histograms, c.leftOut)
			}
		}
	}
}
