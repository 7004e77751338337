package collect

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// failingPods cannot list the processes of some pods.
type failingPods struct {
	somePods
	fail map[string]error
}

func (s *failingPods) Processes(p *owner.Pod, buf []int) ([]int, error) {
	buf, _ = s.somePods.Processes(p, buf)
	return buf, s.fail[p.ID]
}

// count is a probe whose value is the number of a target's processes.
func count(name string, m *catalog.Metric) Factory {
	return probe(name, EachPod, func(v *View) error { v.Add(m, float64(len(v.PIDs()))); return nil })
}

// While a pod's processes cannot be listed, neither the pod nor the host has values.
func TestProcessesThatCannotBeListed(t *testing.T) {
	root, _ := fakeProc(t, 20, 21, 30)
	a, b := pod("a", 0, 20), pod("b", 0, 30)
	pods := &failingPods{somePods{running: []*owner.Pod{a, b}, pids: map[string][]int{"a": {20}, "b": {30}}}, map[string]error{}}
	var log bytes.Buffer
	r := newRunner(t, Options{ProcRoot: root, Pods: pods, Log: slog.New(slog.NewTextHandler(&log, nil))}, count("fd", mFD), probe("softnet", Node, func(v *View) error { v.Add(mSoft, 7); return nil }))
	check := func(what string, pod, host bool) {
		t.Helper()
		got := values(r.Cycle())
		up := 1.0
		if pod {
			want(t, got, "kubeskoop_fdopenfd{node1,ns,a}", 1)
		} else {
			absent(t, got, "kubeskoop_fdopenfd{node1,ns,a}")
			up = 0
		}
		if host {
			want(t, got, "kubeskoop_fdopenfd{node1,hostNetwork,hostNetwork}", 2) // processes 1 and 21
		} else {
			absent(t, got, "kubeskoop_fdopenfd{node1,hostNetwork,hostNetwork}")
			up = 0
		}
		want(t, got, "kubeskoop_fdopenfd{node1,ns,b}", 1)
		want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,fd}", up)
		want(t, got, "nodeskoop_probe_up{node1,hostNetwork,hostNetwork,softnet}", 1)
		if t.Failed() {
			t.Fatal(what)
		}
	}
	check("all is well", true, true)
	for _, err := range []error{unix.EIO, unix.EMFILE, unix.EACCES} {
		pods.fail["a"] = fmt.Errorf("read cgroup.procs: %w", err)
		check(err.Error(), false, false)
		if s := r.Status()[0]; !errors.Is(s.Err, err) || s.Failed != 2 {
			t.Errorf("%v: %+v", err, s)
		}
		delete(pods.fail, "a")
		check("again well", true, true)
	}
	// Listing all processes fails.
	if err := os.Rename(filepath.Join(root, "1"), filepath.Join(root, "hidden")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		check("process 1 is hidden, so others may be", true, false)
	}
	if err := os.Rename(filepath.Join(root, "hidden"), filepath.Join(root, "1")); err != nil {
		t.Fatal(err)
	}
	check("at the end", true, true)
	if n := strings.Count(log.String(), "hidepid"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

// An unreadable process costs its own target's sum, not the other targets'.
func TestListPIDs(t *testing.T) {
	root, _ := fakeProc(t, 20, 3)
	for _, name := range []string{"self", "1x", "x1", "-5", "007", "99999999999999999999"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := kernel.PIDs(root); err != nil || fmt.Sprint(got) != "[1 3 7 20]" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := kernel.PIDs(root + "/nowhere"); err == nil || !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, %v", got, err)
	}
}

// Two sandboxes of one pod count as one pod, with the processes of both and the network
// namespace of the newer.
func TestTwoSandboxesOfOnePod(t *testing.T) {
	root, ns := fakeProc(t, 20, 30)
	a, b := pod("old", ns[1], 20), pod("new", ns[2], 30)
	a.Name, b.Name = "web", "web"
	a.UID, b.UID = "u", "u"
	pods := &somePods{running: []*owner.Pod{a}, pids: map[string][]int{"old": {20}, "new": {30}}}
	r := newRunner(t, Options{ProcRoot: root, Pods: pods},
		probe("tcp", EachNetns, readValue(mInsegs)), count("fd", mFD),
		probe("io", EachPod, func(v *View) error {
			n := State[float64](v) // the counter continues
			*n += float64(len(v.PIDs()))
			v.Add(catalog.MustMetric("kubeskoop_io_ioreadsyscall"), *n)
			return nil
		}))
	for _, step := range []struct {
		running        []*owner.Pod
		tcp, fd, count float64
	}{{[]*owner.Pod{a}, 20, 1, 1}, {[]*owner.Pod{a, b}, 30, 2, 3}, {[]*owner.Pod{b}, 30, 1, 4}} {
		pods.running = step.running
		got := values(r.Cycle())
		want(t, got, "kubeskoop_tcp_insegs{node1,ns,web}", step.tcp)
		want(t, got, "kubeskoop_fdopenfd{node1,ns,web}", step.fd)
		want(t, got, "kubeskoop_io_ioreadsyscall{node1,ns,web}", step.count)
	}
	// A recreated pod of the same name starts from zero, with its own processes only.
	c := pod("next", ns[1], 20)
	c.Name, c.UID, c.Started = "web", "v", time.Unix(1000, 0)
	pods.running, pods.pids["next"] = []*owner.Pod{b, c}, []int{20}
	got := values(r.Cycle())
	want(t, got, "kubeskoop_tcp_insegs{node1,ns,web}", 20)
	want(t, got, "kubeskoop_fdopenfd{node1,ns,web}", 1)
	want(t, got, "kubeskoop_io_ioreadsyscall{node1,ns,web}", 1)
	want(t, got, "kubeskoop_fdopenfd{node1,hostNetwork,hostNetwork}", 1) // process 1
}

// A container outside pods never gets a pod's series. Neither a pod nor a container
// gets the host's.
func TestLabelsOfSomethingElse(t *testing.T) {
	root, ns := fakeProc(t, 20, 30, 40, 50)
	web, plain, unknown, host := pod("web", ns[1], 20), pod("p", ns[2], 30), pod("unknown", ns[3], 40), pod("h", ns[4], 50)
	web.UID, unknown.UID = "u", "v"
	plain.Name = "web" // and younger than the pod
	unknown.Namespace = "unknown"
	host.Namespace, host.Name = owner.DefaultHostLabel, owner.DefaultHostLabel
	for i, running := range [][]*owner.Pod{{web, plain, unknown, host}, {plain, web, host, unknown}} {
		var log bytes.Buffer
		r := newRunner(t, Options{ProcRoot: root, Pods: &somePods{running: running}, Log: slog.New(slog.NewTextHandler(&log, nil))}, probe("tcp", EachNetns, readValue(mInsegs)), count("fd", mFD))
		for range 3 {
			got := values(r.Cycle()) // values panics on a duplicate series
			want(t, got, "kubeskoop_tcp_insegs{node1,ns,web}", 20)
			want(t, got, "kubeskoop_tcp_insegs{node1,hostNetwork,hostNetwork}", 1)
			absent(t, got, "kubeskoop_tcp_insegs{node1,unknown,unknown}")
		}
		if n := strings.Count(log.String(), "left out"); n != 3 {
			t.Errorf("order %d: said %d times, want once for each of three:\n%s", i, n, &log)
		}
	}
}
