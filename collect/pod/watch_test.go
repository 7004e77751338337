package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	sandboxes "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

// TestPods runs one pod of each kind, and finds it by each key.
func TestPods(t *testing.T) {
	c := pods.Start(t)
	// Half of the pods start before the Index, half after.
	early := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front-0", Labels: map[string]string{"app": "front", "tier": "a\"b\n"},
		Containers: []pods.ContainerSpec{{Name: "main"}, {Name: "side"}}})
	earlyPlain := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "toolbox", Labels: map[string]string{"team": "net"}})
	x, log := follow(t, c, Options{})
	synced(t, x)
	late := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front-1", Labels: map[string]string{"app": "front"},
		Containers: []pods.ContainerSpec{{Name: "main"}}})
	host := c.RunPod(pods.PodSpec{Namespace: "kube-system", Name: "agent", HostNetwork: true, Containers: []pods.ContainerSpec{{Name: "main"}}})
	long := strings.Repeat("0123456789abcdef", 4)
	unlabelled := c.RunPlain(pods.PlainSpec{Namespace: pods.CRINamespace, ID: long})
	nerdctl := c.RunPlain(pods.PlainSpec{Namespace: "other", ID: "id-of-db", Labels: map[string]string{"nerdctl/name": "db"}})
	onHost := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "on-host", HostNetwork: true})

	awaitPod(t, x, "web", "front-1", 2)
	awaitPod(t, x, "default", "on-host", 1)
	want := []string{"default/on-host", "default/toolbox", "k8s.io/0123456789ab", "kube-system/agent", "other/db", "web/front-0", "web/front-1"}
	if diff := cmp.Diff(want, runningNames(x)); diff != "" {
		t.Errorf("running pods, in order (-want +got):\n%s", diff)
	}
	if got := x.Running(); &got[0] != &x.Running()[0] {
		t.Error("Running makes a new list although nothing has changed")
	}
	if !x.Connected() || x.Status().Socket != c.Socket || x.Status().Version == "" {
		t.Errorf("connected %v, status %+v", x.Connected(), x.Status())
	}
	if n := log.count("containerd answers"); n != 1 || len(log.lines()) != 1 {
		t.Errorf("log: %q", log.lines())
	}

	for _, p := range []*pods.Pod{early, late, host} {
		got := awaitPod(t, x, p.Namespace, p.Name, 1+len(p.Containers))
		pids := []int{p.PID}
		for _, k := range p.Containers {
			pids = append(pids, k.PID)
		}
		if got.ID != p.ID || got.UID != p.UID || !slices.Equal(got.PIDs, pids) {
			t.Errorf("pod %s: ID %s, UID %s, processes %v; want %s, %s, %v", p.Name, got.ID, got.UID, got.PIDs, p.ID, p.UID, pids)
		}
		for k, v := range p.Labels {
			if got.Labels[k] != v {
				t.Errorf("pod %s: label %s is %q, want %q", p.Name, k, got.Labels[k], v)
			}
		}
		if !got.Started.Before(time.Now()) || time.Since(got.Started) > time.Minute {
			t.Errorf("pod %s started at %v", p.Name, got.Started)
		}
		if len(got.Cgroups) != len(pids) {
			t.Errorf("pod %s: control groups %q for processes %v", p.Name, got.Cgroups, pids)
		}
		if !got.HostNetwork {
			if got.Netns != netnsOf(t, p.PID) {
				t.Errorf("pod %s: network namespace %d, want %d", p.Name, got.Netns, netnsOf(t, p.PID))
			}
			if ino := inodeOf(t, got.NetnsPath); ino != got.Netns {
				t.Errorf("pod %s: %s is namespace %d, not %d", p.Name, got.NetnsPath, ino, got.Netns)
			}
			if !slices.Equal(got.Addrs, p.Addrs) || len(p.Addrs) != 2 {
				t.Errorf("pod %s: addresses %v, want %v", p.Name, got.Addrs, p.Addrs)
			}
			named(t, "network namespace", x.ByNetns(got.Netns, time.Time{}), p.ID)
			for _, a := range p.Addrs {
				named(t, a.String(), x.ByAddr(a), p.ID)
				if a.Is4() {
					named(t, "mapped "+a.String(), x.ByAddr(netip.AddrFrom16(a.As16())), p.ID)
				}
			}
		}
		list, err := x.Processes(got, []int{-1})
		if slices.Sort(pids); err != nil || !slices.Equal(list, append([]int{-1}, pids...)) {
			t.Errorf("processes of pod %s: %v, %v; want %v", p.Name, list, err, pids)
		}
		for _, pid := range pids {
			named(t, fmt.Sprint("process ", pid), x.ByPID(pid), p.ID)
			if id := cgroupID(t, pid); id != 0 {
				named(t, fmt.Sprint("control group ", id), x.ByCgroup(id), p.ID)
			}
		}
	}
	got := awaitPod(t, x, "kube-system", "agent", 2)
	if !got.HostNetwork || got.Netns != 0 || got.NetnsPath != "" || got.Addrs != nil {
		t.Errorf("hostNetwork pod: %+v", got)
	}
	if p := x.ByNetns(inodeOf(t, c.Netns), time.Time{}); p != nil {
		t.Errorf("the host's network namespace is said to be %s's", label(p))
	}
	if p := awaitPod(t, x, "default", "on-host", 1); !p.HostNetwork || p.Netns != 0 || p.Addrs != nil {
		t.Errorf("plain container on the host's network: %+v", p)
	}
	for _, p := range []*pods.Plain{earlyPlain, unlabelled, nerdctl, onHost} {
		named(t, p.ID, x.ByPID(p.PID), p.ID)
		if !p.HostNetwork {
			named(t, p.ID, x.ByNetns(netnsOf(t, p.PID), time.Time{}), p.ID)
		}
		if list, err := x.Processes(x.ByPID(p.PID), nil); err != nil || !slices.Equal(list, []int{p.PID}) {
			t.Errorf("processes of %s: %v, %v; want %d", p.ID, list, err, p.PID)
		}
	}
	if p := x.ByPID(earlyPlain.PID); p.UID != "" || p.Labels["team"] != "net" {
		t.Errorf("plain container: %+v", p)
	}
	// Keys that belong to no pod.
	for what, p := range map[string]*owner.Pod{
		"this process":     x.ByPID(os.Getpid()),
		"the shim":         x.ByPID(c.ShimPID(early.PID)),
		"containerd":       x.ByPID(c.PID()),
		"process 0":        x.ByPID(0),
		"no process":       x.ByPID(1 << 30),
		"control group 0":  x.ByCgroup(0),
		"no control group": x.ByCgroup(1 << 60),
		"the gateway":      x.ByAddr(netip.MustParseAddr("10.88.77.1")),
		"no address":       x.ByAddr(netip.Addr{}),
		"no namespace":     x.ByNetns(0, time.Time{}),
	} {
		if p != nil {
			t.Errorf("%s is said to be %s", what, label(p))
		}
	}
	named(t, "a plain container's address", x.ByAddr(giveAddress(t, x, nerdctl)), nerdctl.ID)
}

// giveAddress adds an address to a container's loopback device and waits until the index
// has it, without an event.
func giveAddress(t *testing.T, x *Index, p *pods.Plain) netip.Addr {
	t.Helper()
	a := netip.MustParseAddr("192.0.2.77")
	inNetns(t, p.PID, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(a.String() + "/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, addr)
	})
	// The start of a task triggers a reading of the addresses, and so does a listing.
	testkit.Within(2*usual.resync, func() bool { return x.ByAddr(a) != nil })
	return a
}

func inNetns(t *testing.T, pid int, f func() error) {
	t.Helper()
	if err := kernel.InNetns(fmt.Sprintf("/proc/%d/ns/net", pid), 0, f); err != nil {
		t.Fatalf("in the network namespace of process %d: %v", pid, err)
	}
}

// v2Mount returns where the v2 tree is mounted; "" if it is not.
func v2Mount(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range parseMountinfo(data) {
		if h.v2 {
			return h.mount
		}
	}
	return ""
}

// cgroupID returns the inode number of a process's v2 control group; 0 if it has none of
// its own.
func cgroupID(t testing.TB, pid int) uint64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for c, path, rest, ok := nextCgroup(data); ok; c, path, rest, ok = nextCgroup(rest) {
		if len(c) == 0 && string(path) != "/" {
			return inodeOf(t, v2Mount(t)+string(path))
		}
	}
	return 0
}

// TestNamespaces follows only some containerd namespaces.
func TestNamespaces(t *testing.T) {
	c := pods.Start(t)
	c.RunPlain(pods.PlainSpec{Namespace: "one", ID: "a"})
	c.RunPlain(pods.PlainSpec{Namespace: "two", ID: "b"})
	x, _ := follow(t, c, Options{Namespace: "one, three"})
	synced(t, x)
	c.RunPlain(pods.PlainSpec{Namespace: "two", ID: "c"})
	c.RunPlain(pods.PlainSpec{Namespace: "three", ID: "d"})
	awaitPod(t, x, "three", "d", 1)
	if diff := cmp.Diff([]string{"one/a", "three/d"}, runningNames(x)); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
}

// TestShortPods runs pods that live for half a second at most, two at a time. Each must be
// seen running, and be found for a while after its end.
func TestShortPods(t *testing.T) {
	c := pods.Start(t)
	x, _ := follow(t, c, Options{})
	synced(t, x)
	seen := map[string]bool{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			for _, p := range x.Running() {
				seen[p.ID] = true
			}
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()

	type life struct {
		*pods.Pod
		netns, group uint64
		lasted       time.Duration
		ended        time.Time
	}
	const each = 10
	var mu sync.Mutex
	var lives []life
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for i := range each {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				p, err := c.TryRunPod(ctx, pods.PodSpec{Namespace: "jobs", Name: fmt.Sprintf("job-%d-%d", worker, i), Containers: []pods.ContainerSpec{{Name: "main", Command: []string{"true"}}}})
				if err == nil {
					began := time.Now()
					l := life{Pod: p, netns: netnsOf(t, p.PID), group: cgroupID(t, p.PID)}
					err = p.TryStop(ctx)
					l.ended = time.Now()
					l.lasted = l.ended.Sub(began)
					mu.Lock()
					lives = append(lives, l)
					mu.Unlock()
				}
				if err == nil {
					err = p.TryRemove(ctx)
				}
				cancel()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	soon(t, func() error {
		if r := runningNames(x); len(r) > 0 {
			return fmt.Errorf("still running: %q", r)
		}
		return nil
	})
	close(stop)
	<-stopped
	// A reused inode number stands for its last owner.
	last := map[uint64]string{}
	lastGroup := map[uint64]string{}
	for _, l := range lives {
		last[l.netns], lastGroup[l.group] = l.ID, l.ID
	}
	for _, l := range lives {
		if !seen[l.ID] {
			t.Errorf("%s was never seen to run", l.Name)
		}
		if time.Since(l.ended) > keepEnded/2 {
			continue // on a slow machine the index may have forgotten it
		}
		if last[l.netns] == l.ID && time.Since(l.ended) < keepNetns/2 {
			if p := x.ByNetns(l.netns, time.Time{}); p == nil || p.Namespace != "jobs" {
				t.Errorf("%s by its network namespace: %s", l.Name, label(p))
			}
		}
		for _, a := range l.Addrs {
			named(t, l.Name+" by "+a.String(), x.ByAddr(a), l.ID)
		}
		named(t, l.Name+" by its sandbox's process", x.ByPID(l.PID), l.ID)
		if l.group != 0 && lastGroup[l.group] == l.ID {
			named(t, l.Name+" by its control group", x.ByCgroup(l.group), l.ID)
		}
	}
	// A container that ends while its pod continues is remembered, too.
	p := c.RunPod(pods.PodSpec{Namespace: "jobs", Name: "long", Containers: []pods.ContainerSpec{{Name: "short"}}})
	k := p.Container("short")
	awaitPod(t, x, "jobs", "long", 2)
	k.Stop()
	awaitPod(t, x, "jobs", "long", 1)
	named(t, "an ended container", x.ByPID(k.PID), p.ID)
}

// TestSameName recreates a pod under its name. The new pod is found. The old pod's keys
// lead to the old pod, or to the pod that has them now.
func TestSameName(t *testing.T) {
	c := pods.Start(t)
	x, _ := follow(t, c, Options{})
	synced(t, x)
	var last *pods.Pod
	for i := range 3 {
		p := c.RunPod(pods.PodSpec{Namespace: "db", Name: "pg-0", Labels: map[string]string{"generation": fmt.Sprint(i)}, Containers: []pods.ContainerSpec{{Name: "main"}}})
		soon(t, func() error {
			var ids []string
			for _, r := range x.Running() {
				ids = append(ids, r.ID)
			}
			if !slices.Equal(ids, []string{p.ID}) && (last == nil || !slices.Equal(ids, []string{last.ID, p.ID})) {
				return fmt.Errorf("running: %q", ids)
			}
			return nil
		})
		if last != nil {
			last.Remove()
			soon(t, func() error {
				if r := x.Running(); len(r) != 1 || r[0].ID != p.ID || r[0].Labels["generation"] != fmt.Sprint(i) {
					return fmt.Errorf("running: %+v", r)
				}
				return nil
			})
			named(t, "the old one's address", x.ByAddr(last.Addrs[0]), last.ID)
		}
		named(t, "the new one's address", x.ByAddr(p.Addrs[0]), p.ID)
		last = p
	}
	// A container outside pods may be restarted with the same ID.
	a := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "again"})
	awaitPod(t, x, "default", "again", 1)
	a.Kill()
	awaitEnd(t, x, "default", "again")
	c.Ctr("default", "tasks", "start", "--detach", "--null-io", "again")
	p := awaitPod(t, x, "default", "again", 1)
	if p.PIDs[0] == a.PID {
		t.Errorf("process %d, which has ended", p.PIDs[0])
	}
	named(t, "its network namespace", x.ByNetns(netnsOf(t, p.PIDs[0]), time.Time{}), "again")
}

// TestProcesses moves processes between control groups.
func TestProcesses(t *testing.T) {
	c := pods.Start(t)
	x, _ := follow(t, c, Options{})
	synced(t, x)
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "busy", Containers: []pods.ContainerSpec{
		{Name: "main", Command: []string{"sh", "-c", "sleep 1001 & sleep 1002 & sleep 1003 & wait"}}, {Name: "side"}}})
	pod := awaitPod(t, x, "web", "busy", 3)
	children := func() []int {
		var pids []int
		soon(t, func() error {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Container("main").PID))
			if err != nil {
				return err
			}
			pids = nil
			for _, f := range strings.Fields(string(data)) {
				pid, _ := strconv.Atoi(f)
				pids = append(pids, pid)
			}
			if len(pids) != 3 {
				return fmt.Errorf("children %v", pids)
			}
			return nil
		})
		return pids
	}()
	all := append([]int{p.PID, p.Container("main").PID, p.Container("side").PID}, children...)
	check := func(want ...int) {
		t.Helper()
		slices.Sort(want)
		soon(t, func() error {
			got, err := x.Processes(pod, nil)
			if err != nil || !slices.Equal(got, want) {
				return fmt.Errorf("processes %v, %v; want %v", got, err, want)
			}
			return nil
		})
	}
	check(all...)
	for _, pid := range all {
		named(t, fmt.Sprint("process ", pid), x.ByPID(pid), p.ID)
	}

	// To a control group below the container's.
	dir := pod.Cgroups[1]
	below := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(pid int, dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	move(children[0], below)
	check(all...)
	named(t, "a process below", x.ByPID(children[0]), p.ID)
	if mount := v2Mount(t); mount != "" && strings.HasPrefix(dir, mount+"/") {
		named(t, "a control group below", x.ByCgroup(inodeOf(t, below)), p.ID)
		named(t, "a control group between", x.ByCgroup(inodeOf(t, filepath.Dir(below))), p.ID)
		if q := x.ByCgroup(inodeOf(t, mount)); q != nil {
			t.Errorf("the root control group is said to be %s's", label(q))
		}
		// The pod's own control group is recognised by the pod's UID.
		named(t, "the control group above", x.ByCgroup(inodeOf(t, filepath.Dir(dir))), p.ID)
	}
	// Out of the pod's control groups.
	outside := filepath.Join(strings.Split(dir, c.Cgroup)[0], c.Cgroup, "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	move(children[1], outside)
	check(slices.DeleteFunc(slices.Clone(all), func(pid int) bool { return pid == children[1] })...)
	// A process exits.
	if err := unix.Kill(children[2], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	check(p.PID, p.Container("main").PID, p.Container("side").PID, children[0])

	// The list reuses the buffer.
	buf := make([]int, 0, 16)
	if got, err := x.Processes(pod, buf); err != nil || &got[0] != &buf[:1][0] {
		t.Errorf("Processes does not use the buffer: %v", err)
	}
	p.Stop()
	if got, err := x.Processes(pod, nil); err != nil || len(got) != 0 {
		t.Errorf("a stopped pod has processes %v, %v", got, err)
	}
}

// TestKilledPause kills the process that holds a pod's namespaces. containerd keeps its
// record.
func TestKilledPause(t *testing.T) {
	c := pods.Start(t)
	alone := c.RunPod(pods.PodSpec{Namespace: "web", Name: "alone"})
	x, _ := follow(t, c, Options{})
	synced(t, x)
	with := c.RunPod(pods.PodSpec{Namespace: "web", Name: "with", Containers: []pods.ContainerSpec{{Name: "main"}}})
	awaitPod(t, x, "web", "with", 2)
	inode := netnsOf(t, alone.PID)
	for _, p := range []*pods.Pod{alone, with} {
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	awaitEnd(t, x, "web", "alone")
	named(t, "its network namespace, which is still mounted,", x.ByNetns(inode, time.Now()), alone.ID)
	// The other pod's container runs on, and so does the pod.
	p := awaitPod(t, x, "web", "with", 1)
	if p.PIDs[0] != with.Container("main").PID || p.Netns != netnsOf(t, p.PIDs[0]) {
		t.Errorf("without its sandbox's process the pod is %+v", p)
	}
	if err := unix.Kill(p.PIDs[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, x, "web", "with")

	// A second Index does not take the killed processes for running.
	y, _ := follow(t, c, Options{})
	synced(t, y)
	if r := runningNames(y); len(r) > 0 {
		t.Errorf("running: %q", r)
	}
	alone.Remove()
	with.Remove()
}

// TestSharedNetns runs containers in the network namespace of another: the sandbox owns it,
// or else the first container.
func TestSharedNetns(t *testing.T) {
	c := pods.Start(t)
	x, _ := follow(t, c, Options{})
	synced(t, x)
	first := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "z-first"})
	inode := netnsOf(t, first.PID)
	second := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "a-second", JoinPID: first.PID})
	third := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "b-third", JoinPID: first.PID})
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front"})
	c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "debug", JoinPID: p.PID})
	check := func(x *Index, name string, netns uint64) {
		t.Helper()
		soon(t, func() error {
			if p := find(x, "default", name); p == nil || p.Netns != netns || p.HostNetwork || len(p.PIDs) != 1 {
				return fmt.Errorf("%s: %+v; want network namespace %d", name, p, netns)
			}
			return nil
		})
	}
	y, _ := follow(t, c, Options{}) // sees them in another order
	synced(t, y)
	for _, x := range []*Index{x, y} {
		check(x, "z-first", inode)
		check(x, "a-second", 0)
		check(x, "b-third", 0)
		check(x, "debug", 0)
		named(t, "the shared namespace", x.ByNetns(inode, time.Time{}), first.ID)
		named(t, "the pod's namespace", x.ByNetns(netnsOf(t, p.PID), time.Time{}), p.ID)
		named(t, "the pod's address", x.ByAddr(p.Addrs[0]), p.ID)
		named(t, "the second's process", x.ByPID(second.PID), second.ID)
	}
	first.Remove()
	for _, x := range []*Index{x, y} {
		check(x, "a-second", inode)
		check(x, "b-third", 0)
		named(t, "the namespace that was shared", x.ByNetns(inode, time.Time{}), second.ID)
	}
	second.Remove()
	for _, x := range []*Index{x, y} {
		check(x, "b-third", inode)
	}
	third.Remove()
	awaitEnd(t, x, "default", "b-third")
}

// TestRestart kills and restarts containerd while pods come and go.
func TestRestart(t *testing.T) {
	c := pods.Start(t)
	x, log := follow(t, c, Options{})
	synced(t, x)
	keep := c.RunPod(pods.PodSpec{Namespace: "web", Name: "keep", Containers: []pods.ContainerSpec{{Name: "main"}}})
	dies := c.RunPod(pods.PodSpec{Namespace: "web", Name: "dies", Containers: []pods.ContainerSpec{{Name: "main"}}})
	awaitPod(t, x, "web", "keep", 2)
	awaitPod(t, x, "web", "dies", 2)
	for round := range 3 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var made []*pods.Pod
		stop := make(chan struct{})
		for worker := range 2 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					// Failures are expected here: containerd is killed meanwhile.
					p, err := c.TryRunPod(ctx, pods.PodSpec{Namespace: "churn", Name: fmt.Sprintf("%d-%d-%d", round, worker, i), Containers: []pods.ContainerSpec{{Name: "main"}}})
					if p != nil && err == nil && i%2 == 0 {
						_ = p.TryRemove(ctx)
					} else if p != nil {
						mu.Lock()
						made = append(made, p)
						mu.Unlock()
					}
					cancel()
					if err != nil {
						return
					}
				}
			})
		}
		soon(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(made) < 2 {
				return errors.New("no pods come")
			}
			return nil
		})
		c.Kill()
		close(stop)
		wg.Wait()
		soon(t, func() error {
			if x.Connected() {
				return errors.New("still connected")
			}
			return nil
		})
		// A pod that ends while containerd is down is removed, too.
		if round == 0 {
			for _, pid := range []int{dies.Container("main").PID, dies.PID} {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			awaitEnd(t, x, "web", "dies")
		}
		if find(x, "web", "keep") == nil {
			t.Fatal("a pod is forgotten because containerd is away")
		}
		c.Run()
		began := time.Now()
		soon(t, func() error {
			if !x.Connected() {
				return errors.New("not connected")
			}
			return sameAsContainerd(c, x)
		})
		t.Logf("all known again after %v", time.Since(began))
		for _, p := range made {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			_ = p.TryRemove(ctx)
			cancel()
		}
		soon(t, func() error { return sameAsContainerd(c, x) })
	}
	p := awaitPod(t, x, "web", "keep", 2)
	if p.ID != keep.ID || inodeOf(t, p.NetnsPath) != p.Netns {
		t.Errorf("after the restarts: %+v", p)
	}
	if up, down := log.count("containerd answers"), log.count("does not answer"); up != 4 || down != 3 || len(log.lines()) != up+down {
		t.Errorf("log: %q", log.lines())
	}
}

// sameAsContainerd compares the Index with the output of containerd's own tool.
func sameAsContainerd(c *pods.Containerd, x *Index) error {
	out, err := c.TryCtr(pods.CRINamespace, "tasks", "list")
	if err != nil {
		return err
	}
	want := map[int]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "RUNNING" {
			pid, _ := strconv.Atoi(f[1])
			want[pid] = true
		}
	}
	n := 0
	for _, p := range x.Running() {
		for _, pid := range p.PIDs {
			n++
			if !want[pid] {
				return fmt.Errorf("process %d of %s does not run", pid, label(p))
			}
		}
	}
	if n != len(want) {
		return fmt.Errorf("%d tasks are known of %d", n, len(want))
	}
	return nil
}

// TestLate starts Watch before containerd.
func TestLate(t *testing.T) {
	c := pods.New(t)
	x, log := follow(t, c, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.Sync(ctx); !errors.Is(err, errAbsent) {
		t.Errorf("Sync: %v, want that there is no socket", err)
	}
	if x.Connected() || len(x.Running()) != 0 || x.ByPID(os.Getpid()) != nil || x.Status().Err == nil {
		t.Errorf("without containerd: connected %v, status %+v", x.Connected(), x.Status())
	}
	c.Run()
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front"})
	awaitPod(t, x, "web", "front", 1)
	named(t, "its process", x.ByPID(p.PID), p.ID)
	synced(t, x)
	if n := log.count("no containerd found"); n != 1 || len(log.lines()) != 2 {
		t.Errorf("log: %q", log.lines())
	}
}

// TestCandidates tries sockets that are absent, refuse, never answer or belong to another
// program, before the right one.
func TestCandidates(t *testing.T) {
	c, other := pods.Start(t), pods.Start(t)
	c.RunPod(pods.PodSpec{Namespace: "web", Name: "right"})
	other.RunPod(pods.PodSpec{Namespace: "web", Name: "wrong"})
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	listen := func(name string) (*net.UnixListener, string) {
		path := filepath.Join(dir, name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = l.Close() })
		return l, path
	}
	refuses, refusing := listen("refuses")
	_ = refuses.Close()
	_, silent := listen("silent")
	rude, rudePath := listen("rude")
	go func() {
		for {
			conn, err := rude.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 this is no gRPC\r\n"))
			_ = conn.Close()
		}
	}()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	x, log := follow(t, c, Options{Sockets: []string{filepath.Join(dir, "absent"), file, refusing, silent, rudePath, "unix://" + c.Socket, other.Socket}})
	awaitPod(t, x, "web", "right", 1)
	if diff := cmp.Diff([]string{"web/right"}, runningNames(x)); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	if len(log.lines()) != 1 {
		t.Errorf("log: %q", log.lines())
	}
	y, log := follow(t, c, Options{Sockets: []string{refusing, rudePath}})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := y.Sync(ctx); err == nil || !strings.Contains(err.Error(), refusing) {
		t.Errorf("Sync: %v, want an error about %s", err, refusing)
	}
	if log.count("does not answer") != 1 {
		t.Errorf("log: %q", log.lines())
	}
}

// TestHungShim stops a pod's shim: only what needs the shim is unknown, for its pod only.
func TestHungShim(t *testing.T) {
	c := pods.Start(t)
	hung := c.RunPod(pods.PodSpec{Namespace: "web", Name: "hung", Containers: []pods.ContainerSpec{{Name: "main"}}})
	for i := range 3 {
		c.RunPod(pods.PodSpec{Namespace: "web", Name: fmt.Sprint("good-", i), Containers: []pods.ContainerSpec{{Name: "main"}}})
	}
	before, _ := followEvery(t, c, Options{}, intervals{resync: 200 * time.Millisecond, ping: time.Second})
	synced(t, before)
	thaw := c.Freeze(c.ShimPID(hung.PID))
	x, _ := followEvery(t, c, Options{}, intervals{resync: 200 * time.Millisecond, ping: time.Second})
	for i := range 3 {
		awaitPod(t, x, "web", fmt.Sprint("good-", i), 2)
	}
	// Its processes are unknown; its name and namespace are known.
	p := awaitPod(t, x, "web", "hung", 0)
	if p.Netns != netnsOf(t, hung.PID) || inodeOf(t, p.NetnsPath) != p.Netns || !slices.Equal(p.Addrs, hung.Addrs) {
		t.Errorf("the pod of the hung shim: %+v", p)
	}
	named(t, "a process of the pod of the hung shim", x.ByPID(hung.PID), hung.ID)
	// An Index that knew the pod keeps it, and new pods are found as before.
	late := c.RunPod(pods.PodSpec{Namespace: "web", Name: "late", Containers: []pods.ContainerSpec{{Name: "main"}}})
	for _, x := range []*Index{before, x} {
		awaitPod(t, x, "web", "late", 2)
	}
	late.Remove()
	awaitEnd(t, before, "web", "late")
	if p := find(before, "web", "hung"); p == nil || len(p.PIDs) != 2 {
		t.Errorf("the pod of the hung shim was known and is now %+v", p)
	}
	if !x.Connected() || !before.Connected() {
		t.Error("a hung shim is taken for a hung containerd")
	}
	thaw()
	awaitPod(t, x, "web", "hung", 2)
}

// TestHungContainerd stops containerd with SIGSTOP.
func TestHungContainerd(t *testing.T) {
	c := pods.Start(t)
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front"})
	x, _ := followEvery(t, c, Options{}, intervals{resync: 30 * time.Second, ping: 100 * time.Millisecond})
	synced(t, x)
	thaw := c.Freeze(c.PID())
	soon(t, func() error {
		if x.Connected() {
			return errors.New("still connected")
		}
		return nil
	})
	awaitPod(t, x, "web", "front", 1)
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, x, "web", "front")
	thaw()
	soon(t, func() error {
		if !x.Connected() {
			return errors.New("not connected again")
		}
		return nil
	})
}

// TestLeaks connects again and again, and checks for leaked goroutines and descriptors.
func TestLeaks(t *testing.T) {
	need.Short(t)
	c := pods.Start(t)
	c.RunPod(pods.PodSpec{Namespace: "web", Name: "front", Containers: []pods.ContainerSpec{{Name: "main"}}})
	x, _ := follow(t, c, Options{})
	count := func() (goroutines, files int) {
		return runtime.NumGoroutine(), testkit.OpenFiles(t)
	}
	awaitPod(t, x, "web", "front", 2)
	goroutines, files := count()
	for range 20 {
		c.Kill()
		c.Run()
		soon(t, func() error {
			if !x.Connected() {
				return errors.New("not connected")
			}
			return nil
		})
	}
	awaitPod(t, x, "web", "front", 2)
	soon(t, func() error {
		if g, f := count(); g > goroutines || f > files {
			return fmt.Errorf("%d goroutines and %d open files, at first %d and %d", g, f, goroutines, files)
		}
		return nil
	})
}

// TestStop ends a Watch in every state.
func TestStop(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	x := Watch(ctx, Options{Sockets: []string{"/nonexistent/socket"}})
	cancel()
	x.Wait()
	if err := x.Sync(context.Background()); err == nil {
		t.Error("Sync succeeds after the end")
	}
	soon(t, func() error {
		if n := runtime.NumGoroutine(); n > before {
			return fmt.Errorf("%d goroutines, before %d", n, before)
		}
		return nil
	})
}

// TestSandboxStore: a sandbox that is not a container. containerd 2 keeps it in its sandbox
// store, with the CRI plugin's data.
func TestSandboxStore(t *testing.T) {
	c := pods.Start(t)
	if v, err := strconv.Atoi(strings.SplitN(c.Version, ".", 2)[0]); err != nil || v < 2 {
		t.Skipf("this containerd: %s has no sandbox store", c.Version)
	}
	holder := exec.Command("busybox", "sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is sent when the parent's thread ends
	defer runtime.UnlockOSThread()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	defer end()

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cl, _, err := connect(ctx, c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.conn.Close()
	k := key{pods.CRINamespace, strings.Repeat("5a", 32)}
	netns := fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
	meta := fmt.Sprintf(`{"Version":"v1","Metadata":{"ID":%q,"NetNSPath":%q,"IP":"10.1.2.3","Config":{"metadata":{"name":"kata","uid":"u-1","namespace":"vm"},"labels":{"app":"x"}}}}`, k.id, netns)
	store := sandboxes.NewStoreClient(cl.conn)
	if _, err := store.Create(in(ctx, k.ns), &sandboxes.StoreCreateRequest{Sandbox: &types.Sandbox{
		SandboxID: k.id, Sandboxer: "shim", Runtime: &types.Sandbox_Runtime{Name: "io.containerd.kata.v2"},
		CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now(),
		Extensions: map[string]*anypb.Any{"metadata": {TypeUrl: "github.com/containerd/cri/pkg/store/sandbox/Metadata", Value: []byte(meta)}},
	}}); err != nil {
		t.Fatal(err)
	}
	x, _ := follow(t, c, Options{})
	synced(t, x)
	p := awaitPod(t, x, "vm", "kata", 0)
	if p.ID != k.id || p.UID != "u-1" || p.Labels["app"] != "x" || p.Netns != inodeOf(t, netns) || p.NetnsPath != netns ||
		!slices.Equal(p.Addrs, []netip.Addr{netip.MustParseAddr("10.1.2.3")}) || p.Started.IsZero() {
		t.Errorf("pod: %+v", p)
	}
	named(t, "its network namespace", x.ByNetns(p.Netns, time.Time{}), k.id)
	end()
	began := time.Now()
	awaitEnd(t, x, "vm", "kata") // well before the next listing
	t.Logf("its end was seen after %v", time.Since(began))
	named(t, "the network namespace it had", x.ByNetns(p.Netns, time.Time{}), k.id)
	if _, err := store.Delete(in(ctx, k.ns), &sandboxes.StoreDeleteRequest{SandboxID: k.id}); err != nil {
		t.Fatal(err)
	}
}

// TestOtherPIDs refuses a containerd in another PID namespace: its PIDs would stand for
// other processes here.
func TestOtherPIDs(t *testing.T) {
	c := pods.New(t)
	c.PIDNamespace = true
	c.Run()
	x, log := follow(t, c, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.Sync(ctx); err == nil || !strings.Contains(err.Error(), "another PID namespace") {
		t.Errorf("Sync: %v", err)
	}
	if x.Connected() || log.count("another PID namespace") != 1 {
		t.Errorf("connected %v, log %q", x.Connected(), log.lines())
	}
}

// BenchmarkKnown measures the time from the creation and the start of a pod's first process
// until the pod is found by its network namespace, and until its addresses are known. Times
// before the start are negative.
func BenchmarkKnown(b *testing.B) {
	c := pods.Start(b)
	x, _ := follow(b, c, Options{})
	synced(b, x)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cl, _, err := connect(ctx, c.Socket)
	if err != nil {
		b.Fatal(err)
	}
	defer cl.conn.Close()
	stream, err := cl.subscribe(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	type step struct {
		pid int
		at  time.Time
	}
	creations, starts := make(chan step, 1024), make(chan step, 1024)
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			var created apievents.TaskCreate
			var started apievents.TaskStart
			switch at := e.Timestamp.AsTime(); {
			case e.Topic == "/tasks/create" && proto.Unmarshal(e.Event.Value, &created) == nil:
				creations <- step{int(created.Pid), at}
			case e.Topic == "/tasks/start" && proto.Unmarshal(e.Event.Value, &started) == nil:
				starts <- step{int(started.Pid), at}
			}
		}
	}()
	var sinceCreation, sinceStart []time.Duration
	since := func(steps <-chan step, pid int, at time.Time) time.Duration {
		for s := range steps {
			if s.pid == pid {
				return at.Sub(s.at)
			}
		}
		return 0
	}
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprint("pod-", i)
		known := make(chan time.Time, 1)
		go func() {
			for {
				if p := find(x, "bench", name); p != nil && len(p.PIDs) > 0 && len(p.Addrs) == 2 && x.ByNetns(p.Netns, time.Time{}) == p {
					known <- time.Now()
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
		p := c.RunPod(pods.PodSpec{Namespace: "bench", Name: name})
		at := <-known
		sinceCreation = append(sinceCreation, since(creations, p.PID, at))
		sinceStart = append(sinceStart, since(starts, p.PID, at))
		b.StopTimer()
		p.Remove()
		b.StartTimer()
	}
	report := func(d []time.Duration, what string) {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, "ms-after-"+what+"-median")
		b.ReportMetric(float64(d[len(d)-1].Microseconds())/1000, "ms-after-"+what+"-max")
	}
	report(sinceCreation, "creation")
	report(sinceStart, "start")
}

// BenchmarkLookups looks up running pods by each kind of key.
func BenchmarkLookups(b *testing.B) {
	c := pods.Start(b)
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front", Containers: []pods.ContainerSpec{{Name: "main"}}})
	x, _ := follow(b, c, Options{})
	synced(b, x)
	got := awaitPod(b, x, "web", "front", 2)
	group := cgroupID(b, p.PID)
	for _, l := range []struct {
		name string
		f    func() bool
	}{
		{"Running", func() bool { return len(x.Running()) == 1 }},
		{"ByNetns", func() bool { return x.ByNetns(got.Netns, time.Time{}) == got }},
		{"ByAddr", func() bool { return x.ByAddr(got.Addrs[0]) == got }},
		{"ByPID", func() bool { return x.ByPID(p.PID) == got }},
		{"ByPID=host", func() bool { return x.ByPID(os.Getpid()) == nil }},
		{"ByCgroup", func() bool { return group == 0 || x.ByCgroup(group) == got }},
		{"ByCgroup=unknown", func() bool { return x.ByCgroup(1) == nil }},
	} {
		b.Run(l.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !l.f() {
					b.Fatal("not found")
				}
			}
		})
	}
	b.Run("Processes", func(b *testing.B) {
		b.ReportAllocs()
		var buf []int
		for b.Loop() {
			var err error
			if buf, err = x.Processes(got, buf[:0]); err != nil || len(buf) != 2 {
				b.Fatal(buf, err)
			}
		}
	})
}
