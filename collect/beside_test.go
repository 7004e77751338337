package collect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/hang"
)

// fifo makes a FIFO. A reader blocks in open(2) until release.
func fifo(t *testing.T) (path string, release func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		// Open both ends: opening one end alone would block. Blocked readers then return.
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = f.Close() })
	})
	t.Cleanup(release)
	return path, release
}

// open blocks on a FIFO.
func open(path string) {
	if f, err := os.Open(path); err == nil {
		_ = f.Close()
	}
}

func up(name string) string { return "nodeskoop_probe_up{node1,hostNetwork,hostNetwork," + name + "}" }

// While listing processes hangs, metrics of processes are missing, the probes' state is
// kept, and other metrics are unaffected.
func TestHungListing(t *testing.T) {
	root, ns := fakeProc(t, 20)
	pods := &somePods{running: []*owner.Pod{pod("a", ns[1], 20)}, pids: map[string][]int{"a": {20}}}
	r := newRunner(t, Options{Timeout: hungTimeout, ProcRoot: root, Pods: pods},
		probe("tcp", EachNetns, readValue(mInsegs)),
		probe("fd", EachPod, func(v *View) error {
			n := State[float64](v)
			*n++
			v.Add(mFD, *n)
			return nil
		}))
	host, a := "kubeskoop_fdopenfd{node1,hostNetwork,hostNetwork}", "kubeskoop_fdopenfd{node1,ns,a}"
	got := values(r.Cycle())
	want(t, got, host, 1)
	want(t, got, a, 1)
	want(t, got, up("fd"), 1)
	release := hang.Open(t, root)
	for range 3 {
		got = values(r.Cycle())
		absent(t, got, host)
		absent(t, got, a)
		want(t, got, up("fd"), 0)
		want(t, got, up("tcp"), 1)
		want(t, got, "kubeskoop_tcp_insegs{node1,ns,a}", 20)
	}
	release()
	testkit.Eventually(t, "processes are listed again", func() bool { got = values(r.Cycle()); return got[up("fd")] == 1 })
	want(t, got, host, 2)
	want(t, got, a, 2)
}

// If building a probe hangs, the other probes run. The probe joins once it is built.
func TestHungLoading(t *testing.T) {
	root, _ := fakeProc(t)
	path, release := fifo(t)
	var made, closed atomic.Int32
	slow := Factory{"ip", func(Env) (Probe, error) {
		made.Add(1)
		open(path)
		return closing{fnProbe{granularity: Node, sample: func(v *View) error { return nil }}, &closed}, nil
	}}
	r := newRunner(t, Options{Timeout: hungTimeout, ProcRoot: root}, slow, probe("tcp", EachNetns, readValue(mInsegs)))
	for range 3 {
		got := values(r.Cycle())
		want(t, got, up("ip"), 0)
		want(t, got, up("tcp"), 1)
		want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 1)
	}
	release()
	testkit.Eventually(t, "the probe is taken up", func() bool { return values(r.Cycle())[up("ip")] == 1 })
	if n := made.Load(); n != 1 {
		t.Errorf("it was made %d times", n)
	}
	o := r.opt
	o.Enabled = []string{"tcp"}
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	if n := closed.Load(); n != 1 {
		t.Errorf("it was closed %d times", n)
	}
}

// A probe that is disabled while it is being built is closed once it is built.
func TestLoadingThatIsNotWantedAnyMore(t *testing.T) {
	root, _ := fakeProc(t)
	path, release := fifo(t)
	var closed atomic.Int32
	r := newRunner(t, Options{Timeout: hungTimeout, ProcRoot: root}, Factory{"ip", func(Env) (Probe, error) {
		open(path)
		return closing{fnProbe{granularity: Node, sample: func(v *View) error { return nil }}, &closed}, nil
	}}, probe("tcp", EachNetns, readValue(mInsegs)))
	r.Cycle()
	o := r.opt
	o.Enabled = []string{"tcp"}
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	release()
	testkit.Eventually(t, "it is closed", func() bool { return closed.Load() == 1 })
}

type closing struct {
	fnProbe
	n *atomic.Int32
}

func (c closing) Close() error { c.n.Add(1); return nil }

// hooked is a probe whose Hook method a test supplies.
type hooked struct {
	fnProbe
	hook func() (string, []string)
}

func (h hooked) Hook() (string, []string) { return h.hook() }

// A probe whose Hook hangs or panics affects only itself.
func TestHookThatHangsOrPanics(t *testing.T) {
	root, _ := fakeProc(t)
	path, release := fifo(t)
	make := func(name string, hook func() (string, []string)) Factory {
		return Factory{name, func(Env) (Probe, error) {
			return hooked{fnProbe{granularity: Node, sample: func(v *View) error { return nil }}, hook}, nil
		}}
	}
	r := newRunner(t, Options{Timeout: hungTimeout, ProcRoot: root},
		make("ip", func() (string, []string) { open(path); return "late", nil }),
		make("udp", func() (string, []string) { panic("boom") }),
		make("sock", func() (string, []string) { return "raw_tp", []string{"anything"} }),
		probe("tcp", EachNetns, readValue(mInsegs)))
	got := values(r.Cycle())
	for name, v := range map[string]float64{"ip": 0, "udp": 0, "sock": 1, "tcp": 1} {
		want(t, got, up(name), v)
	}
	want(t, got, "nodeskoop_probe_hook{node1,hostNetwork,hostNetwork,sock,raw_tp}", 1)
	release()
	testkit.Eventually(t, "the probe that hung works", func() bool { return values(r.Cycle())[up("ip")] == 1 })
}

// A sink that hangs, for example on a file system that does not answer, stops neither
// sampling nor shutdown. The families that it holds stay unchanged, and after it returns it
// gets the next ones.
func TestHungSink(t *testing.T) {
	root, _ := fakeProc(t)
	path, release := fifo(t)
	log := &testkit.Log{}
	var cycles, sunk atomic.Int32
	r := newRunner(t, Options{ProcRoot: root, Log: log.Logger()}, probe("softnet", Node, func(v *View) error {
		v.Add(mSoft, float64(cycles.Add(1)))
		return nil
	}))
	r.opt.Interval = 10 * time.Millisecond
	var before, after float64
	const name = "kubeskoop_softnet_processed{node1,hostNetwork,hostNetwork}"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx, func(f []*dto.MetricFamily) {
			if sunk.Load() == 0 {
				before = values(f)[name]
				open(path)
				after = values(f)[name]
			}
			sunk.Add(1)
		}, nil)
	}()
	testkit.Eventually(t, "sampling goes on", func() bool { return cycles.Load() > 20 })
	if sunk.Load() != 0 {
		t.Error("the sink did not hang")
	}
	release()
	testkit.Eventually(t, "the sink gets values again", func() bool { return sunk.Load() > 3 })
	if before != after {
		t.Errorf("what the sink had changed under its hands: %v became %v", before, after)
	}
	if n := strings.Count(log.String(), "hangs"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, log)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}

// Run ends although a probe hangs on many targets.
func TestEndWhileTargetsHang(t *testing.T) {
	root, ns := fakeProc(t, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29)
	path, release := fifo(t)
	defer release()
	var pods somePods
	for i, n := range ns[1:] {
		pods.running = append(pods.running, pod(fmt.Sprint("p", i), n, 20+i))
	}
	var hung atomic.Int32
	r := newRunner(t, Options{ProcRoot: root, Pods: &pods, Timeout: 20 * time.Second}, probe("tcp", EachNetns, func(v *View) error {
		return v.Do(0, "wait", func() error { hung.Add(1); open(path); return nil })
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx, func([]*dto.MetricFamily) {}, nil) }()
	testkit.Eventually(t, "a probe hangs", func() bool { return hung.Load() > 0 })
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the end waits for each target")
	}
}

// panicking is a Pods that panics on request.
type panicking struct {
	somePods
	now atomic.Bool
}

func (p *panicking) Running() []*owner.Pod {
	if p.now.Load() {
		panic("boom in the resolver")
	}
	return p.somePods.Running()
}

func (p *panicking) ByNetns(uint64, time.Time) *owner.Pod {
	if p.now.Load() {
		panic("boom in the resolver")
	}
	return nil
}

// A panic in the resolver, the sink or a Self function is logged once, and the probes'
// values are still there.
func TestPanicsBesideTheLoop(t *testing.T) {
	root, ns := fakeProc(t, 20)
	log := &testkit.Log{}
	pods := &panicking{somePods: somePods{running: []*owner.Pod{pod("a", ns[1], 20)}}}
	r := newRunner(t, Options{ProcRoot: root, Pods: pods, Log: log.Logger()}, probe("tcp", EachNetns, readValue(mInsegs)))
	r.Self(func(func(string, float64, ...string)) {
		if pods.now.Load() {
			panic("boom in an account")
		}
	})
	want(t, values(r.Cycle()), "kubeskoop_tcp_insegs{node1,ns,a}", 20)
	if log.String() != "" {
		t.Errorf("without a panic: %s", log)
	}
	pods.now.Store(true)
	for range 3 {
		fams := r.Cycle()
		want(t, values(fams), "kubeskoop_tcp_insegs{node1,ns,a}", 20)
		r.hand(func([]*dto.MetricFamily) {}, fams)
	}
	for _, what := range []string{"boom in the resolver", "boom in an account"} {
		if n := strings.Count(log.String(), what); n != 1 {
			t.Errorf("%q was said %d times, want once:\n%s", what, n, log)
		}
	}
	r.hand(func([]*dto.MetricFamily) { panic("boom in the sink") }, r.Cycle())
	if !strings.Contains(log.String(), "boom in the sink") {
		t.Errorf("the sink's panic is not said:\n%s", log)
	}
}

// Changed options reach probes that keep running over a reload.
func TestReloadReachesProbesThatStay(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	first, second := &somePods{running: []*owner.Pod{pod("a", ns[1], 20)}}, &somePods{running: []*owner.Pod{pod("b", ns[2], 30)}}
	built := 0
	var env Env
	r := newRunner(t, Options{ProcRoot: root, Pods: first}, Factory{"softnet", func(e Env) (Probe, error) {
		built++
		env = e
		return fnProbe{granularity: Node, sample: func(v *View) error {
			v.Add(mSoft, float64(e.Who.Running()[0].PIDs[0]))
			return nil
		}}, nil
	}})
	const name = "{node1,hostNetwork,hostNetwork}"
	want(t, values(r.Cycle()), "kubeskoop_softnet_processed"+name, 20)
	o := r.opt
	o.Pods = second
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	want(t, values(r.Cycle()), "kubeskoop_softnet_processed"+name, 30)
	if built != 1 || len(env.Who.Running()) != 1 {
		t.Errorf("the probe was built %d times", built)
	}
	// Another host namespace: no state of the previous one is left.
	o.HostNetns = filepath.Join(root, "20/ns/net")
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	r.Cycle()
	if r.plan.host.inode != ns[1] || built != 2 {
		t.Errorf("the host is namespace %d, want %d; built %d times", r.plan.host.inode, ns[1], built)
	}
}

// A refused probe reports the reason, and is built once it is permitted.
func TestRefusedProbe(t *testing.T) {
	root, _ := fakeProc(t)
	r := newRunner(t, Options{ProcRoot: root, Refused: map[string]error{"tcp": errors.New("not the host's")}}, probe("tcp", EachNetns, readValue(mInsegs)))
	got := values(r.Cycle())
	want(t, got, up("tcp"), 0)
	absent(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}")
	if err := r.Status()[0].Err; err == nil || err.Error() != "not the host's" {
		t.Errorf("%v", err)
	}
	o := r.opt
	o.Refused = nil
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	want(t, values(r.Cycle()), up("tcp"), 1)
}

func TestWithin(t *testing.T) {
	if v, err := bounded.Within(time.Minute, func() (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Errorf("%v %v", v, err)
	}
	if _, err := bounded.Within(time.Minute, func() (int, error) { panic("boom") }); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("%v", err)
	}
	path, release := fifo(t)
	if _, err := bounded.Within(50*time.Millisecond, func() (int, error) { open(path); return 7, nil }); !errors.Is(err, bounded.ErrNoAnswer) {
		t.Errorf("%v", err)
	}
	release()
}

// ReadFile refuses a file that is not regular without opening it, and also a file that
// never ends and a file system that does not answer.
func TestReadBounded(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		write(t, path, text)
		return path
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("target", "abc"), link); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{file("empty", ""): "", file("full", "12345678"): "12345678", link: "abc", os.DevNull: ""} {
		if b, err := bounded.ReadFile(path, 8); err != nil || string(b) != text {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	for path, why := range map[string]string{
		pipe: "a FIFO", dir: "a folder", "/dev/zero": "a device", "/dev/full": "a device", file("long", "123456789"): "more than 8 bytes",
		filepath.Join(dir, "none"): "no such file", "/proc/self/status": "more than 8 bytes",
	} {
		if _, err := bounded.ReadFile(path, 8); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, why)
		}
	}
}
