package collect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
)

// somePods is a Pods with fixed answers.
type somePods struct {
	owner.NoPods
	running []*owner.Pod
	pids    map[string][]int
}

func (s *somePods) Running() []*owner.Pod { return s.running }
func (s *somePods) Processes(p *owner.Pod, buf []int) ([]int, error) {
	return append(buf, s.pids[p.ID]...), nil
}
func (s *somePods) Connected() bool              { return true }
func (s *somePods) ByAddr(netip.Addr) *owner.Pod { return nil }

// fnProbe is a Probe whose Sample is a function.
type fnProbe struct {
	granularity Granularity
	sample      func(*View) error
	closed      *int
}

func (p fnProbe) Granularity() Granularity { return p.granularity }
func (p fnProbe) Sample(v *View) error     { return p.sample(v) }
func (p fnProbe) Close() error {
	if p.closed != nil {
		*p.closed++
	}
	return nil
}

func probe(name string, granularity Granularity, sample func(*View) error) Factory {
	return Factory{name, func(Env) (Probe, error) { return fnProbe{granularity: granularity, sample: sample}, nil }}
}

// fakeProc makes a procfs tree with processes, each in a network namespace that is a plain
// file. It returns the root and the inode numbers of these files.
func fakeProc(t *testing.T, pids ...int) (root string, netns []uint64) {
	t.Helper()
	root = t.TempDir()
	for _, pid := range append([]int{1}, pids...) {
		dir := filepath.Join(root, fmt.Sprint(pid))
		for _, d := range []string{"ns", "net"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(dir, "ns/net"), "")
		write(t, filepath.Join(dir, "net/value"), fmt.Sprint(pid))
		ino, err := kernel.Inode(filepath.Join(dir, "ns/net"))
		if err != nil {
			t.Fatal(err)
		}
		netns = append(netns, ino)
	}
	return root, netns
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// hungTimeout is for tests with a call that never returns. The other tests use a long
// timeout, so that a busy machine does not fail them.
const hungTimeout = 500 * time.Millisecond

func newRunner(t *testing.T, o Options, f ...Factory) *Runner {
	t.Helper()
	if o.Enabled == nil {
		for _, x := range f {
			o.Enabled = append(o.Enabled, x.Name)
		}
	}
	if o.HostLabel == "" {
		o.HostLabel = owner.DefaultHostLabel
	}
	if o.Timeout == 0 {
		o.Timeout = testkit.Patience
	}
	o.Interval, o.Node = time.Hour, "node1"
	r, err := NewRunner(o, f...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// values flattens families to "name{label values}" -> value.
func values(fams []*dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for _, f := range fams {
		for _, m := range f.Metric {
			var l []string
			for _, p := range m.Label {
				l = append(l, p.GetValue())
			}
			v := m.GetGauge().GetValue()
			if m.Counter != nil {
				v = m.GetCounter().GetValue()
			}
			key := f.GetName() + "{" + strings.Join(l, ",") + "}"
			if _, twice := out[key]; twice {
				panic("twice: " + key)
			}
			out[key] = v
		}
	}
	return out
}

var (
	mInsegs = catalog.MustMetric("kubeskoop_tcp_insegs")
	mDgrams = catalog.MustMetric("kubeskoop_udp_indatagrams")
	mFD     = catalog.MustMetric("kubeskoop_fdopenfd")
	mSoft   = catalog.MustMetric("kubeskoop_softnet_processed")
)

// readValue is a Sample function that reads net/value.
func readValue(m *catalog.Metric) func(*View) error {
	return func(v *View) error {
		b, err := v.ReadNet("value")
		if err != nil {
			return err
		}
		var n float64
		if _, err := fmt.Sscan(string(b), &n); err != nil {
			return err
		}
		v.Add(m, n)
		return nil
	}
}

func pod(id string, inode uint64, pid int) *owner.Pod {
	return &owner.Pod{ID: id, Namespace: "ns", Name: id, Netns: inode, PIDs: []int{pid},
		Started: time.Unix(int64(pid), 0), Labels: map[string]string{"app": "a-" + id}}
}

func want(t *testing.T, got map[string]float64, key string, value float64) {
	t.Helper()
	if v, ok := got[key]; !ok || v != value {
		t.Errorf("%s = %v (present %v), want %v", key, v, ok, value)
	}
}

func absent(t *testing.T, got map[string]float64, key string) {
	t.Helper()
	if v, ok := got[key]; ok {
		t.Errorf("%s = %v, want no such series", key, v)
	}
}

func TestCycleLabelsEachTarget(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	tmpl, err := owner.ParseLabelTemplate("app", "${labels:app}!")
	if err != nil {
		t.Fatal(err)
	}
	pods := &somePods{running: []*owner.Pod{pod("a", ns[1], 20), pod("b", ns[2], 30)}, pids: map[string][]int{"a": {20}}}
	r := newRunner(t, Options{ProcRoot: root, Pods: pods, Labels: []owner.LabelTemplate{tmpl}, CompatNames: true},
		probe("tcp", EachNetns, readValue(mInsegs)),
		probe("udp", HostNetns, readValue(mDgrams)),
		probe("softnet", Node, func(v *View) error { v.Add(mSoft, 7); return nil }),
		probe("fd", EachPod, func(v *View) error { v.Add(mFD, float64(len(v.PIDs()))); return nil }),
	)
	got := values(r.Cycle())
	want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork,!}", 1)
	want(t, got, "kubeskoop_tcp_insegs{node1,ns,a,a-a!}", 20)
	want(t, got, "kubeskoop_tcp_insegs{node1,ns,b,a-b!}", 30)
	want(t, got, "kubeskoop_udp_indatagrams{node1,hostNetwork,hostNetwork,!}", 1)
	absent(t, got, "kubeskoop_udp_indatagrams{node1,ns,a,a-a!}")
	want(t, got, "kubeskoop_softnet_processed{node1,hostNetwork,hostNetwork,!}", 7)
	want(t, got, "kubeskoop_fdopenfd{node1,hostNetwork,hostNetwork,!}", 2) // processes 1 and 30
	want(t, got, "kubeskoop_fdopenfd{node1,ns,a,a-a!}", 1)
	want(t, got, "kubeskoop_fdopenfd{node1,ns,b,a-b!}", 0)
	want(t, got, "kubeskoop_fd_openfd{node1,ns,a,a-a!}", 1) // the compatibility name
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,!,tcp}", 1)
	want(t, got, "nodeskoop_pods{node1,hostNetwork,hostNetwork,!}", 2)
	want(t, got, "nodeskoop_series{node1,hostNetwork,hostNetwork,!}", 11)
}

func TestHostLabelAndHostNetworkPods(t *testing.T) {
	root, ns := fakeProc(t, 20)
	h := pod("h", ns[0], 20)
	h.HostNetwork = true
	shared := pod("s", ns[0], 20) // a container outside pods, in the host's namespace
	r := newRunner(t, Options{ProcRoot: root, Pods: &somePods{running: []*owner.Pod{h, shared}}},
		probe("tcp", EachNetns, readValue(mInsegs)))
	o := r.opt
	o.HostLabel = ""
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	got := values(r.Cycle())
	want(t, got, "kubeskoop_tcp_insegs{node1,,}", 1)
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,h}")
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,s}")
}

// A recreated pod has two sandboxes for a while. Only one has series, the newer one.
func TestNewestSandboxSpeaksForPod(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	a, b := pod("old", ns[1], 20), pod("new", ns[2], 30)
	a.Name, b.Name = "web", "web"
	r := newRunner(t, Options{ProcRoot: root, Pods: &somePods{running: []*owner.Pod{a, b}}},
		probe("tcp", EachNetns, readValue(mInsegs)))
	want(t, values(r.Cycle()), "kubeskoop_tcp_insegs{node1,ns,web}", 30)
}

// A PID that was reused must not give the new process's values to the pod of the old one.
func TestReusedProcessNumber(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	stale := pod("a", ns[1], 30)
	both := pod("b", ns[2], 20)
	both.PIDs = []int{999, 20, 30} // exited, in another namespace, its own
	r := newRunner(t, Options{ProcRoot: root, Pods: &somePods{running: []*owner.Pod{stale, both}}},
		probe("tcp", EachNetns, readValue(mInsegs)))
	got := values(r.Cycle())
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,a}")
	want(t, got, "kubeskoop_tcp_insegs{node1,ns,b}", 30)
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,tcp}", 1)
}

func TestPodThatEndsMidwayHasNoSeries(t *testing.T) {
	root, ns := fakeProc(t, 20)
	r := newRunner(t, Options{ProcRoot: root, Pods: &somePods{running: []*owner.Pod{pod("a", ns[1], 20)}}},
		probe("tcp", EachNetns, readValue(mInsegs)),
		probe("udp", EachNetns, func(v *View) error {
			if v.Pod() != nil {
				return fmt.Errorf("read something: %w", kernel.ErrGone)
			}
			v.Add(mDgrams, 1)
			return nil
		}))
	got := values(r.Cycle())
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,a}")
	want(t, got, "kubeskoop_udp_indatagrams{node1,hostNetwork,hostNetwork}", 1)
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,udp}", 1)
}

func TestErrorsAndPanicsStayWithTheirProbe(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	n := 0
	r := newRunner(t, Options{ProcRoot: root, Log: slog.New(slog.NewTextHandler(&log, nil))},
		probe("ip", EachNetns, func(*View) error { panic("boom") }),
		probe("sock", EachNetns, func(v *View) error {
			if n++; n <= 2 {
				v.Add(catalog.MustMetric("kubeskoop_sock_tw"), 1) // partial values before the error
				return errors.New("no luck")
			}
			return nil
		}),
		probe("tcp", EachNetns, readValue(mInsegs)))
	got := values(r.Cycle())
	want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 1)
	absent(t, got, "kubeskoop_sock_tw{node1,hostNetwork,hostNetwork}")
	for name, up := range map[string]float64{"ip": 0, "sock": 0, "tcp": 1} {
		want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,"+name+"}", up)
	}
	r.Cycle()
	if c := strings.Count(log.String(), "no luck"); c != 1 {
		t.Errorf("a lasting failure was logged %d times, want once:\n%s", c, &log)
	}
	if !strings.Contains(log.String(), "boom") {
		t.Errorf("the panic is not in the log:\n%s", &log)
	}
	r.Cycle()
	if !strings.Contains(log.String(), "works again") {
		t.Errorf("the recovery is not in the log:\n%s", &log)
	}
	for _, s := range r.Status() {
		if s.Name == "sock" && !s.Up {
			t.Errorf("sock: %+v", s)
		}
	}
}

// A sum with a missing part is left out.
func TestPartialResultIsLeftOut(t *testing.T) {
	root, _ := fakeProc(t)
	r := newRunner(t, Options{ProcRoot: root}, probe("tcp", EachNetns, func(v *View) error {
		v.Add(mInsegs, 5)
		return &PartialError{Err: errors.New("the rest is missing")}
	}))
	got := values(r.Cycle())
	absent(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}")
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,tcp}", 0)
	want(t, got, "nodeskoop_probe_failed_targets{node1,hostNetwork,hostNetwork,tcp}", 1)
}

// Namespaces without values do not affect the others.
func TestMissingNamespaces(t *testing.T) {
	root, _ := fakeProc(t)
	r := newRunner(t, Options{ProcRoot: root}, probe("tcp", Node, func(v *View) error {
		for inode := range v.Netns() {
			v.AddNetns(inode, mInsegs, 5)
		}
		return &MissingError{errors.New("there is no room for others")}
	}))
	got := values(r.Cycle())
	want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 5)
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,tcp}", 0)
	want(t, got, "nodeskoop_probe_failed_targets{node1,hostNetwork,hostNetwork,tcp}", 1)
}

// Protected processes are logged, and are not a failure.
func TestProtectedProcesses(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	r := newRunner(t, Options{ProcRoot: root, Log: slog.New(slog.NewTextHandler(&log, nil))}, probe("fd", EachPod, func(v *View) error {
		v.Add(mFD, 5)
		return &PartialError{Err: errors.New("process 1 is protected"), Protected: 1}
	}))
	r.Cycle()
	got := values(r.Cycle())
	want(t, got, "kubeskoop_fdopenfd{node1,hostNetwork,hostNetwork}", 5)
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,fd}", 1)
	want(t, got, "nodeskoop_probe_protected_processes{node1,hostNetwork,hostNetwork,fd}", 1)
	if n := strings.Count(log.String(), "process 1 is protected"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, &log)
	}
}

// A read that hangs in the kernel costs its own series and one timeout, and no time in
// later cycles. When it returns, the series are back.
func TestHungReadOfOnePod(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	fifo := filepath.Join(root, "20/net/value")
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "20/net/other"), "5")
	r := newRunner(t, Options{Timeout: hungTimeout, ProcRoot: root, Pods: &somePods{running: []*owner.Pod{pod("a", ns[1], 20), pod("b", ns[2], 30)}}},
		probe("tcp", EachNetns, readValue(mInsegs)),
		probe("udp", EachNetns, func(v *View) error { v.Add(mDgrams, 3); return nil }))
	got := values(r.Cycle())
	check := func(up float64) {
		t.Helper()
		want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 1)
		want(t, got, "kubeskoop_tcp_insegs{node1,ns,b}", 30)
		want(t, got, "kubeskoop_udp_indatagrams{node1,ns,a}", 3)
		want(t, got, "kubeskoop_udp_indatagrams{node1,ns,b}", 3)
		want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,tcp}", up)
		want(t, got, "nodeskoop_probe_failed_targets{node1,hostNetwork,hostNetwork,tcp}", 1-up)
	}
	check(0)
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,a}")

	// No cycle waits for the hanging read: the timeout is an hour now.
	o := r.opt
	o.Timeout = time.Hour
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	got = values(r.Cycle())
	check(0)
	var stuck *StuckError
	for _, s := range r.Status() {
		if s.Name == "tcp" && (!errors.As(s.Err, &stuck) || stuck.PID != 20 || !strings.Contains(s.Err.Error(), "pod ns/a")) {
			t.Errorf("the error does not name what hangs: %v", s.Err)
		}
	}

	// The read returns at last.
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	write(t, fifo, "20")
	w.Close()
	testkit.Within(testkit.Patience, func() bool {
		got = values(r.Cycle())
		return got["nodeskoop_probe_up{node1,hostNetwork,hostNetwork,tcp}"] == 1
	})
	check(1)
	want(t, got, "kubeskoop_tcp_insegs{node1,ns,a}", 20)
}

// A probe that hangs in its own code does not affect other probes.
func TestHungProbe(t *testing.T) {
	root, _ := fakeProc(t)
	release := make(chan struct{})
	var mu sync.Mutex
	calls := 0
	r := newRunner(t, Options{Timeout: hungTimeout, ProcRoot: root},
		probe("ip", EachNetns, func(*View) error {
			mu.Lock()
			calls++
			mu.Unlock()
			<-release
			return nil
		}),
		probe("tcp", EachNetns, readValue(mInsegs)))
	for range 3 {
		got := values(r.Cycle())
		want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 1)
		want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,ip}", 0)
	}
	mu.Lock()
	if calls != 1 {
		t.Errorf("a probe that hangs was called %d times, want once", calls)
	}
	mu.Unlock()
	close(release)
	testkit.Eventually(t, "the probe is up again", func() bool {
		return values(r.Cycle())["nodeskoop_probe_up{node1,hostNetwork,hostNetwork,ip}"] == 1
	})
}

func TestProbeThatCannotBeBuiltIsRetried(t *testing.T) {
	root, _ := fakeProc(t)
	n := 0
	r := newRunner(t, Options{ProcRoot: root, Enabled: []string{"tcp", "udp", "flow"}},
		Factory{"udp", func(Env) (Probe, error) {
			if n++; n == 1 {
				panic("not today")
			}
			return fnProbe{granularity: EachNetns, sample: readValue(mDgrams)}, nil
		}},
		probe("tcp", EachNetns, readValue(mInsegs)))
	got := values(r.Cycle())
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,udp}", 0)
	want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,flow}", 0)
	want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 1)
	for _, s := range r.Status() {
		if s.Name == "flow" && !errors.Is(s.Err, ErrNotBuilt) {
			t.Errorf("flow: %v", s.Err)
		}
	}
	r.Cycle()
	if n != 1 {
		t.Errorf("built %d times without waiting", n)
	}
	for _, in := range r.instances {
		in.retry = time.Time{}
	}
	want(t, values(r.Cycle()), "kubeskoop_udp_indatagrams{node1,hostNetwork,hostNetwork}", 1)
}

func TestApplyKeepsWhatDidNotChange(t *testing.T) {
	root, _ := fakeProc(t)
	built, closed := map[string]int{}, 0
	counting := func(name string, granularity Granularity, m *catalog.Metric) Factory {
		return Factory{name, func(Env) (Probe, error) {
			built[name]++
			return fnProbe{granularity, func(v *View) error {
				n := State[float64](v)
				*n++
				v.Add(m, *n)
				return nil
			}, &closed}, nil
		}}
	}
	r := newRunner(t, Options{ProcRoot: root},
		counting("tcp", EachNetns, mInsegs), counting("ipvs", HostNetns, catalog.MustMetric("kubeskoop_ipvs_connections")))
	r.Cycle()
	o := r.opt
	o.Probes = map[string]map[string]any{"ipvs": {"pods": true}}
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	got := values(r.Cycle())
	want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 2)
	want(t, got, "kubeskoop_ipvs_connections{node1,hostNetwork,hostNetwork}", 1)
	if built["tcp"] != 1 || built["ipvs"] != 2 || closed != 1 {
		t.Errorf("built %v, closed %d", built, closed)
	}
	bad := r.opt
	bad.Enabled = []string{"nonsense"}
	if err := r.Apply(bad); err == nil {
		t.Error("an unknown probe was accepted")
	}
	bad = r.opt
	bad.Exclude = []string{"["}
	if err := r.Apply(bad); err == nil {
		t.Error("a bad glob was accepted")
	}
	bad = r.opt
	bad.Include = []string{"["}
	if err := r.Apply(bad); err == nil {
		t.Error("a bad glob was accepted")
	}
	want(t, values(r.Cycle()), "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 3)
}

func TestWhatIsLeftOut(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	count := 0.0
	pods := &somePods{running: []*owner.Pod{pod("a", ns[1], 20), pod("b", ns[2], 30)}}
	pods.running[0].Started = time.Unix(99, 0) // the younger one
	r := newRunner(t, Options{ProcRoot: root, Pods: pods, SkipZero: true, Exclude: []string{"kubeskoop_tcp_out*"}},
		probe("tcp", EachNetns, func(v *View) error {
			v.Add(mInsegs, count)
			v.Add(catalog.MustMetric("kubeskoop_tcp_outsegs"), 1)
			v.Add(catalog.MustMetric("kubeskoop_tcp_currestab"), 0)
			return nil
		}))
	got := values(r.Cycle())
	absent(t, got, "kubeskoop_tcp_outsegs{node1,hostNetwork,hostNetwork}")
	want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 0) // the host's are always written
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,a}")
	want(t, got, "kubeskoop_tcp_currestab{node1,ns,a}", 0) // a gauge
	count = 2
	want(t, values(r.Cycle()), "kubeskoop_tcp_insegs{node1,ns,a}", 2)
	count = 0
	want(t, values(r.Cycle()), "kubeskoop_tcp_insegs{node1,ns,a}", 0)

	o := r.opt
	o.SkipZero, o.Exclude, o.MaxSeries = false, nil, 7
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	got = values(r.Cycle())
	want(t, got, "kubeskoop_tcp_currestab{node1,ns,b}", 0)
	want(t, got, "kubeskoop_tcp_currestab{node1,ns,a}", 0) // first in the Catalogue's order
	absent(t, got, "kubeskoop_tcp_insegs{node1,ns,a}")
	want(t, got, "nodeskoop_series{node1,hostNetwork,hostNetwork}", 7)
	want(t, got, "nodeskoop_series_left_out{node1,hostNetwork,hostNetwork,kubeskoop_tcp_outsegs}", 1)
	want(t, got, "nodeskoop_series_left_out{node1,hostNetwork,hostNetwork,kubeskoop_tcp_insegs}", 1)
}

func TestLabelTemplates(t *testing.T) {
	p := &owner.Pod{Labels: map[string]string{"app": "web", "a/b": "\xff\"\n"}}
	for _, c := range []struct{ name, text, want, err string }{
		{"x", "", "", ""},
		{"x", "lit", "lit", ""},
		{"x", "${labels:app}", "web", ""},
		{"x", "<${labels:app}|${labels:none}|${labels:a/b}>", "<web||\xff\"\n>", ""},
		{"x", "${labels:app", "", "not a reference"},
		{"x", "${app}", "", "not a reference"},
		{"__x", "v", "", "__"},
		{"1x", "v", "", "not a label name"},
		{"", "v", "", "not a label name"},
		{"k8s_pod", "v", "", "sets itself"},
		{"sport", "v", "", "sets itself"},
	} {
		tm, err := owner.ParseLabelTemplate(c.name, c.text)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q=%q: error %v, want %q", c.name, c.text, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q=%q: %v", c.name, c.text, err)
		} else if got := tm.Value(p); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
	var s labelSet
	s.set("n", "a\xffb", "c", p, nil)
	if v := s.pairs[1].GetValue(); v != "a\uFFFDb" {
		t.Errorf("invalid UTF-8 became %q", v)
	}
}

// TestStoppedCycleIsNoFailure: a cycle that is cut short because the process ends leaves
// probes without values, but none has failed.
func TestStoppedCycleIsNoFailure(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	wait := make(chan struct{})
	defer close(wait)
	r := newRunner(t, Options{ProcRoot: root, Log: slog.New(slog.NewTextHandler(&log, nil))},
		Factory{"flow", func(Env) (Probe, error) { <-wait; return nil, unix.EMFILE }},
		probe("tcp", EachNetns, func(*View) error { <-wait; return nil }))
	ctx, stop := context.WithCancel(context.Background())
	stop()
	r.Until(ctx)
	r.Cycle()
	if said := log.String(); strings.Contains(said, "probe failed") {
		t.Error(said)
	}
	for _, s := range r.Status() {
		if s.Up {
			t.Errorf("%s is up without a sample", s.Name)
		}
	}
}
