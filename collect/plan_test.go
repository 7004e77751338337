package collect

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// describe names the targets of a plan, each with the probes of its job.
func describe(p *plan) string {
	run := map[*target][]string{}
	for _, j := range p.jobs {
		for _, s := range j.run {
			run[j.target] = append(run[j.target], s.name)
		}
	}
	var out []string
	for _, t := range p.targets {
		out = append(out, fmt.Sprintf("%s: %s", t, strings.Join(run[t], " ")))
	}
	return strings.Join(out, "; ")
}

// TestPlan: which probes run on which targets in which order, and whose memory is kept when
// a target is present, absent or unknown.
func TestPlan(t *testing.T) {
	a, b := pod("a", 5, 20), pod("b", 6, 30)
	shared := pod("c", 5, 21) // a pod in a's namespace
	onHost := pod("h", 0, 40)
	onHost.HostNetwork = true
	from := inventory{
		node: "node1", hostLabel: "host", log: slog.New(slog.DiscardHandler),
		host: hostNetns{key: "host 1", inode: 1, pids: []int{1}},
		pods: []*owner.Pod{a, b, shared, onHost},
		sources: []*source{
			{name: "each", granularity: EachNetns}, {name: "host", granularity: HostNetns},
			{name: "node", granularity: Node}, {name: "pods", granularity: EachPod},
		},
	}
	lists := processLists{pods: map[podKey]*processList{keyOf(a): {pids: []int{20}}, keyOf(onHost): {pids: []int{40}}}, host: processList{pids: []int{1, 2}}}
	p := newPlanner()
	check := func(what, want string) *plan {
		t.Helper()
		got := p.plan(&from)
		if d := describe(got); d != want {
			t.Errorf("%s: %s\nwant %s", what, d, want)
		}
		return got
	}
	check("processes are not listed", "the node: node; the host's network namespace: each host; pod ns/a: each; pod ns/b: each")
	from.processes = &lists
	first := check("all", "the node: node; the host's network namespace: each host; pod ns/a: each; pod ns/a: pods; pod ns/b: each; pod ns/h: pods; processes outside pods: pods")
	if len(first.netns) != 3 || first.netns[1] != first.host || first.netns[5].pod != a || len(first.gone) != 0 {
		t.Errorf("%+v", first)
	}
	labels := func(t *target) string {
		var l []string
		for _, p := range t.labels.pairs {
			l = append(l, p.GetValue())
		}
		return strings.Join(l, "/")
	}
	if labels(first.host) != "node1/host/host" || labels(first.netns[5]) != "node1/ns/a" || labels(first.unknown) != "node1/unknown/unknown" {
		t.Errorf("labels %s, %s, %s", labels(first.host), labels(first.netns[5]), labels(first.unknown))
	}

	// Processes are unknown: what is remembered of them stays.
	from.processes, from.processesUnknown = nil, true
	p.plan(&from)
	from.processes, from.processesUnknown = &lists, false
	if again := p.plan(&from); again.targets[3].memory != first.targets[3].memory {
		t.Error("what was remembered of a pod's processes is gone")
	}

	// A pod with more details is the same pod, and the previous cycle's target is
	// unchanged.
	more := *a
	more.PIDs, more.Labels = []int{20, 22}, map[string]string{"app": "x"}
	from.pods = []*owner.Pod{&more, b}
	second := p.plan(&from)
	if second.netns[5].memory != first.netns[5].memory || first.netns[5].pod != a || len(first.netns[5].pids) != 1 || len(second.netns[5].pids) != 2 {
		t.Errorf("%+v became %+v", first.netns[5], second.netns[5])
	}

	// A target that is gone is listed once, and starts from zero if it comes back.
	from.pods = []*owner.Pod{b}
	var gone []string
	for _, m := range p.plan(&from).gone {
		gone = append(gone, m.key)
	}
	if slices.Sort(gone); len(gone) != 2 || gone[0] != "netns a 5" || !strings.HasPrefix(gone[1], "pids ") {
		t.Errorf("gone: %q", gone)
	}
	from.pods = []*owner.Pod{a, b}
	if third := p.plan(&from); third.netns[5].memory == first.netns[5].memory {
		t.Error("what was forgotten is remembered")
	}
}

// TestSample: workers need nothing but a plan.
func TestSample(t *testing.T) {
	of := func(name string, sample func(*View) error) *source {
		return &source{name: name, probe: fnProbe{sample: sample}}
	}
	release := make(chan struct{})
	defer close(release)
	good := of("good", func(v *View) error { v.Add(mInsegs, 1); v.Add(mDgrams, 2); return nil })
	slow := of("slow", func(v *View) error {
		v.Add(mFD, 1)
		return v.Do(7, "wait", func() error { <-release; return nil })
	})
	hung := of("hung", func(v *View) error { <-release; return nil })
	node, host := &target{memory: &memory{}, granularity: Node}, &target{memory: &memory{}, granularity: EachNetns}
	p := &plan{timeout: 50 * time.Millisecond, jobs: []job{{node, []*source{slow, good}}, {host, []*source{hung, good}}}}
	beats := 0
	rows := sample(p, nil, nil, func() { beats++ })
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprint(r.metric.Name, " ", r.of == &node.labels))
	}
	if s := strings.Join(got, ", "); s != "kubeskoop_tcp_insegs true, kubeskoop_udp_indatagrams true, kubeskoop_tcp_insegs false, kubeskoop_udp_indatagrams false" {
		t.Error(s)
	}
	for probe, want := range map[*source]string{good: "", slow: "the node: wait of process 7: ", hung: "the host's network namespace: it did not return within 50ms"} {
		if err := probe.firstErr; (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", probe.name, err)
		}
	}
	if beats == 0 {
		t.Error("nobody was told that the workers get on")
	}
	stop := make(chan struct{})
	close(stop)
	if rows := sample(&plan{timeout: time.Hour, jobs: []job{{host, []*source{of("another", func(*View) error { <-release; return nil })}}}}, rows, stop, nil); len(rows) != 4 {
		t.Errorf("%d rows at the end", len(rows))
	}
}

// TestFamilies: encoding depends only on rows and label sets.
func TestFamilies(t *testing.T) {
	host, some := &labelSet{}, &labelSet{pod: pod("a", 5, 20)}
	host.set("node1", "host", "host", nil, nil)
	some.set("node1", "ns", "a", some.pod, nil)
	f := newFamilies(selection{skipZero: true, maxSeries: 3})
	reason := catalog.MustMetric("kubeskoop_packetloss_reason")
	for cycle, c := range []struct {
		rows []row
		want string
	}{
		{[]row{{of: some, metric: mInsegs}, {of: host, metric: mInsegs}}, "kubeskoop_tcp_insegs{node1,host,host}=0"},
		{[]row{{of: some, metric: mInsegs, value: 5}, {of: host, metric: mInsegs, leftOut: 4}}, "kubeskoop_tcp_insegs{node1,ns,a}=5 nodeskoop_series_left_out{node1,host,host,kubeskoop_tcp_insegs}=4"},
		{[]row{{of: some, metric: mInsegs}}, "kubeskoop_tcp_insegs{node1,ns,a}=0"},
		{[]row{
			{of: some, metric: reason, value: 1, labels: []string{"X"}}, {of: some, metric: reason, value: 2, labels: []string{"Y"}},
			{of: some, metric: mFD, value: 3}, {of: host, metric: mFD, value: 4},
		}, "kubeskoop_fdopenfd{node1,host,host}=4 kubeskoop_fdopenfd{node1,ns,a}=3 kubeskoop_packetloss_reason{node1,ns,a,X}=1 nodeskoop_series_left_out{node1,host,host,kubeskoop_packetloss_reason}=1"},
	} {
		f.fill(c.rows, host)
		f.add(host, "nodeskoop_pods", 7)
		var got []string
		for k, v := range values(f.list()) {
			if !strings.HasPrefix(k, "nodeskoop_series{") && !strings.HasPrefix(k, "nodeskoop_pods") {
				got = append(got, fmt.Sprintf("%s=%v", k, v))
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("cycle %d: %s\nwant %s", cycle, s, c.want)
		}
	}
}
