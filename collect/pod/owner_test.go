package pod

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

const endLeaderEnv = "NODESKOOP_TEST_END_LEADER"

// init makes the test binary serve as a process whose main thread has exited while another
// thread runs.
func init() {
	if os.Getenv(endLeaderEnv) == "" {
		return
	}
	runtime.LockOSThread()
	go func() {
		runtime.LockOSThread()
		for {
			time.Sleep(time.Hour)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

// TestOneName: two different pods or containers never have the same labels, in whichever
// order they come.
func TestOneName(t *testing.T) {
	c := pods.Start(t)
	x, log := follow(t, c, Options{Reserved: []string{"hostNetwork"}})
	synced(t, x)
	// name waits until the index has a pod or container with that name.
	name := func(x *Index, id, want string) {
		t.Helper()
		soon(t, func() error {
			for _, p := range x.Running() {
				if p.ID == id {
					if label(p) != want {
						return fmt.Errorf("%s is called %s, want %s", id, label(p), want)
					}
					return nil
				}
			}
			return fmt.Errorf("%s does not run", id)
		})
	}
	first := c.RunPod(pods.PodSpec{Namespace: "default", Name: "web", Containers: []pods.ContainerSpec{{Name: "main"}}})
	name(x, first.ID, "default/web")
	plain := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "web"})
	name(x, plain.ID, "default/containerd:web")
	name(x, first.ID, "default/web")
	named(t, "the pod's namespace", x.ByNetns(netnsOf(t, first.PID), time.Time{}), first.ID)
	named(t, "the container's process", x.ByPID(plain.PID), plain.ID)
	// A pod that appears later gets its own name.
	early := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "db"})
	name(x, early.ID, "default/db")
	late := c.RunPod(pods.PodSpec{Namespace: "default", Name: "db"})
	name(x, late.ID, "default/db")
	name(x, early.ID, "default/containerd:db")
	// A container that had to change its labels keeps the new ones.
	late.Remove()
	awaitEnd(t, x, "default", "db")
	name(x, early.ID, "default/containerd:db")
	// Two containers claim the same name.
	one := c.RunPlain(pods.PlainSpec{Namespace: "tools", ID: "id-1", Labels: map[string]string{labelNerdctl: "x"}})
	name(x, one.ID, "tools/x")
	two := c.RunPlain(pods.PlainSpec{Namespace: "tools", ID: "id-2", Labels: map[string]string{labelNerdctl: "x"}})
	name(x, two.ID, "tools/containerd:id-2")
	name(x, one.ID, "tools/x")
	// Containers with the names that label the host and unattributed series.
	host := c.RunPlain(pods.PlainSpec{Namespace: "hostNetwork", ID: "hostNetwork"})
	name(x, host.ID, "hostNetwork/containerd:hostNetwork")
	unknown := c.RunPod(pods.PodSpec{Namespace: "unknown", Name: "unknown"})
	name(x, unknown.ID, "unknown/pod:unknown")
	// An image may carry any label.
	fake := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "fake", Labels: map[string]string{
		labelKind: "sandbox", labelNamespace: "default", labelPodName: "web", labelUID: first.UID}})
	name(x, fake.ID, "default/fake")
	if p := x.ByPID(fake.PID); p == nil || p.UID != "" {
		t.Errorf("a container that is labelled as a pod: %+v", p)
	}
	// Without a conflict a container keeps its name.
	free := c.RunPlain(pods.PlainSpec{Namespace: "default", ID: "free"})
	name(x, free.ID, "default/free")
	if n := log.count("has a name that is taken"); n != 4 {
		t.Errorf("said %d times, want once for each of four: %q", n, log.lines())
	}
	// A second Index sees the same, except for a container whose rival is gone.
	y, _ := follow(t, c, Options{Reserved: []string{"hostNetwork"}})
	synced(t, y)
	for id, want := range map[string]string{first.ID: "default/web", plain.ID: "default/containerd:web", host.ID: "hostNetwork/containerd:hostNetwork", fake.ID: "default/fake", free.ID: "default/free"} {
		name(y, id, want)
	}
	seen := map[string]bool{}
	for _, p := range y.Running() {
		if seen[label(p)] {
			t.Errorf("%s is there twice", label(p))
		}
		seen[label(p)] = true
	}
}

// groupsOf lists the directories of a process's control groups.
func groupsOf(t *testing.T, pid int) (dirs []string) {
	t.Helper()
	trees := parseMountinfo(readFile(t, "/proc/self/mountinfo"))
	data := readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))
	for c, path, rest, ok := nextCgroup(data); ok; c, path, rest, ok = nextCgroup(rest) {
		first, _, _ := strings.Cut(string(c), ",")
		for i := range trees {
			if h := &trees[i]; h.v2 == (len(c) == 0) && (h.v2 || h.has(first)) {
				if dir, ok := h.dir(string(path)); ok {
					dirs = append(dirs, dir)
				}
				break
			}
		}
	}
	return dirs
}

// enter moves a process into a new control group, except for cpuset: a new cpuset has no
// CPUs and takes no processes.
func enter(t *testing.T, dir string, pid int) {
	t.Helper()
	if strings.Contains(dir, "/cpuset/") {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o644); err != nil {
		t.Fatalf("move process %d to %s: %v", pid, dir, err)
	}
}

// TestFirstProcessMoved: the first process of a container has moved itself to a group below
// its own, in any of the trees, before the Index saw it.
func TestFirstProcessMoved(t *testing.T) {
	c := pods.Start(t)
	p := c.RunPod(pods.PodSpec{Namespace: "vm", Name: "systemd", Containers: []pods.ContainerSpec{
		{Name: "main", Command: []string{"sh", "-c", "sleep 1001 & sleep 1002 & wait"}}}})
	plain := c.RunPlain(pods.PlainSpec{Namespace: "vm", ID: "vm"}) // a container in the same containerd namespace
	other := c.RunPod(pods.PodSpec{Namespace: "vm", Name: "other"})
	main := p.Container("main").PID
	var children []int
	soon(t, func() error {
		children = nil
		for _, f := range strings.Fields(string(readFile(t, fmt.Sprintf("/proc/%d/task/%[1]d/children", main)))) {
			var pid int
			_, _ = fmt.Sscan(f, &pid)
			children = append(children, pid)
		}
		if len(children) != 2 {
			return fmt.Errorf("children %v", children)
		}
		return nil
	})
	trees := func(pid int, keep func(string) bool) {
		for _, dir := range groupsOf(t, pid) {
			if keep(dir) && strings.Contains(dir, c.Cgroup) {
				enter(t, dir+"/init.scope", pid)
			}
		}
	}
	check := func(what string) {
		t.Helper()
		x, _ := follow(t, c, Options{})
		synced(t, x)
		for _, q := range []struct {
			name string
			pids []int
			id   string
		}{{"systemd", append([]int{p.PID, main}, children...), p.ID}, {"vm", []int{plain.PID}, plain.ID}, {"other", []int{other.PID}, other.ID}} {
			pod := find(x, "vm", q.name)
			if pod == nil {
				t.Fatalf("%s: %s is not known: %q", what, q.name, runningNames(x))
			}
			slices.Sort(q.pids)
			if got, err := x.Processes(pod, nil); err != nil || !slices.Equal(got, q.pids) {
				t.Errorf("%s: %s has the processes %v, %v; want %v", what, q.name, got, err, q.pids)
			}
			for _, pid := range q.pids {
				named(t, fmt.Sprintf("%s: process %d", what, pid), x.ByPID(pid), q.id)
				if id := cgroupID(t, pid); id != 0 {
					named(t, fmt.Sprintf("%s: the control group of process %d", what, pid), x.ByCgroup(id), q.id)
				}
			}
		}
	}
	check("nobody has moved")
	trees(main, func(dir string) bool {
		return strings.Contains(dir, "/systemd/") || strings.Contains(dir, "/unified/") || !strings.Contains(dir, "/cgroup/")
	})
	trees(plain.PID, func(dir string) bool { return strings.Contains(dir, "/systemd/") || strings.Contains(dir, "/unified/") })
	check("in some trees")
	trees(main, func(dir string) bool { return !strings.HasSuffix(dir, "/init.scope") })
	trees(plain.PID, func(dir string) bool { return !strings.HasSuffix(dir, "/init.scope") })
	check("in all trees")
}

// TestGroupsOfThatName: a control group belongs to a pod because of its path, not its name,
// at any depth below a container's.
func TestGroupsOfThatName(t *testing.T) {
	c := pods.Start(t)
	x, _ := follow(t, c, Options{})
	synced(t, x)
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front", Containers: []pods.ContainerSpec{{Name: "main"}}})
	pod := awaitPod(t, x, "web", "front", 2)
	k := p.Container("main")
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pid := cmd.Process.Pid
	own := groupsOf(t, k.PID)
	for _, name := range []string{k.ID, "cri-containerd-" + k.ID + ".scope", "pod" + p.UID + "/" + k.ID, "kubepods/besteffort/pod" + p.UID, strings.TrimPrefix(c.Cgroup, "/") + "/kubepods/besteffort/pod" + p.UID + "/" + k.ID} {
		for _, dir := range own {
			if root, _, ok := strings.Cut(dir, c.Cgroup); ok {
				enter(t, root+c.Cgroup+"/user.slice/"+name, pid)
			}
		}
		if q := x.ByPID(pid); q != nil {
			t.Errorf("a process in a group of its own, called %s, is said to be of %s", name, label(q))
		}
		if id := cgroupID(t, pid); id != 0 {
			if q := x.ByCgroup(id); q != nil {
				t.Errorf("a group called %s is said to be of %s", name, label(q))
			}
		}
		if got, err := x.Processes(pod, nil); err != nil || len(got) != 2 || slices.Contains(got, pid) {
			t.Errorf("processes %v, %v: want two, not %d", got, err, pid)
		}
	}
	// A group below a container's may have another pod's name and still be the container's.
	q := c.RunPod(pods.PodSpec{Namespace: "web", Name: "victim"})
	awaitPod(t, x, "web", "victim", 1)
	for _, dir := range own {
		if strings.Contains(dir, c.Cgroup) {
			enter(t, dir+"/cri-containerd-"+q.ID+".scope", pid)
		}
	}
	named(t, "a process in a pod's container, in a group called like another", x.ByPID(pid), p.ID)
	// Nested deeply.
	const depth = 300
	for _, dir := range own {
		if strings.Contains(dir, c.Cgroup) {
			enter(t, dir+strings.Repeat("/d", depth), pid)
		}
	}
	named(t, "a process deep down", x.ByPID(pid), p.ID)
	if got, err := x.Processes(pod, nil); err != nil || !slices.Contains(got, pid) {
		t.Errorf("processes %v, %v: want %d among them, %d groups down", got, err, pid, depth)
	}
}

// TestFirstThreadEnded: a container continues after the main thread of its first process
// has exited; its network namespace, control groups and processes are found.
func TestFirstThreadEnded(t *testing.T) {
	c := pods.Start(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x, _ := followEvery(t, c, Options{}, intervals{resync: 200 * time.Millisecond, ping: time.Second})
	synced(t, x)
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "front", Containers: []pods.ContainerSpec{
		{Name: "main", Command: []string{"sh", "-c", endLeaderEnv + "=1 exec /test"}, Mounts: map[string]string{"/test": exe}}}})
	pid := p.Container("main").PID
	soon(t, func() error {
		if s, err := kernel.ReadStat("/proc", pid); err != nil || s.State != 'Z' {
			return fmt.Errorf("state %c, %v", s.State, err)
		}
		return nil
	})
	y, _ := follow(t, c, Options{}) // never saw the main thread
	synced(t, y)
	time.Sleep(time.Second) // several listings
	want := []int{p.PID, pid}
	slices.Sort(want)
	for i, x := range []*Index{x, y} {
		pod := awaitPod(t, x, "web", "front", 2)
		if got, err := x.Processes(pod, nil); err != nil || !slices.Equal(got, want) || len(pod.Cgroups) != 2 {
			t.Errorf("%d: processes %v, %v, want %v; control groups %q", i, got, err, want, pod.Cgroups)
		}
		named(t, "the process", x.ByPID(pid), p.ID)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitPod(t, x, "web", "front", 1)
}

// TestAlive: a process whose state cannot be read counts as alive.
func TestAlive(t *testing.T) {
	root := t.TempDir()
	w := &watcher{opt: Options{ProcRoot: root}}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stat := func(pid int, state string, start int) string {
		return fmt.Sprintf("%d (x) %s 1 1 1 0 -1 0 5 6 0 0 1 2 3 4 20 0 1 0 %d\n", pid, state, start)
	}
	write("7/stat", stat(7, "S", 100))
	write("8/stat", stat(8, "Z", 100))
	write("8/task/8/stat", stat(8, "Z", 100))
	write("9/stat", stat(9, "Z", 100))
	write("9/task/9/stat", stat(9, "Z", 100))
	write("9/task/10/stat", stat(10, "R", 101))
	if err := os.MkdirAll(filepath.Join(root, "11/stat"), 0o755); err != nil { // EISDIR
		t.Fatal(err)
	}
	for _, x := range []struct {
		what string
		of   process
		want bool
	}{
		{"one that runs", process{pid: 7, start: 100}, true},
		{"another with its number", process{pid: 7, start: 99}, false},
		{"one that has ended", process{pid: 6, start: 100}, false},
		{"a zombie", process{pid: 8, start: 100}, false},
		{"one with another thread", process{pid: 9, start: 100}, true},
		{"one that cannot be read", process{pid: 11, start: 100}, true},
		{"one that could not be read", process{pid: 7, unread: true}, true},
	} {
		if got := w.alive(x.of); got != x.want {
			t.Errorf("%s: %v", x.what, got)
		}
	}
}

// TestUnlisted: if a container's first process cannot be examined, the pod's processes are
// unknown, and not just fewer.
func TestUnlisted(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"11/stat", "12"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w := testWatcher(root)
	c := w.set(key{"ns", "a"}, &about{kind: plain, sandbox: "a", namespace: "ns", name: "a", created: now})
	w.setTask(c, 11, now)
	w.evaluate(w.groupOf(c), now, false)
	p := find(w.x, "ns", "a")
	if p == nil {
		t.Fatal("not known")
	}
	if got, err := w.x.Processes(p, nil); err == nil || !errors.Is(err, unix.EISDIR) {
		t.Errorf("processes %v, %v", got, err)
	}
	// A process that has exited is not an error.
	w.setTask(c, 12, now)
	w.evaluate(w.groupOf(c), now, false)
	if got, err := w.x.Processes(find(w.x, "ns", "a"), nil); err != nil || !slices.Equal(got, []int{12}) {
		t.Errorf("processes %v, %v", got, err)
	}
	// A container without a control group of its own, beside one with a group, is listed by
	// its first process.
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/cgroup.procs", []byte("5\n6\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	q := &owner.Pod{PIDs: []int{5, 12}, Cgroups: []string{dir}, Alone: []int{12}}
	if got, err := w.x.Processes(q, nil); err != nil || !slices.Equal(got, []int{5, 6, 12}) {
		t.Errorf("processes %v, %v", got, err)
	}
}

// testWatcher is a watcher without a containerd.
func testWatcher(root string) *watcher {
	return &watcher{
		opt: Options{ProcRoot: root, Log: slog.New(slog.DiscardHandler), Reserved: []string{owner.UnknownLabel}}, x: newIndex(root),
		containers: map[key]*container{}, groups: map[key]*group{}, names: map[podName][]*group{}, sharedShims: map[int]bool{},
	}
}

// TestSharedShim: a shim that serves two pods is attributed to neither.
func TestSharedShim(t *testing.T) {
	w := testWatcher("/proc")
	put := func(id string, shim int) {
		c := w.set(key{"ns", id}, &about{kind: plain, sandbox: id, namespace: "ns", name: id, created: now})
		c.task = process{pid: os.Getpid(), start: 1}
		c.shim = owner.Process{PID: shim, Start: 7}
		w.evaluate(w.groupOf(c), now, false)
	}
	check := func(id string, want int) {
		t.Helper()
		p := find(w.x, "ns", id)
		if p == nil || len(p.Reapers) != want {
			t.Errorf("%s: %+v, want %d shims", id, p, want)
		}
	}
	put("a", 100)
	put("b", 200)
	check("a", 1)
	check("b", 1)
	put("c", 100)
	check("a", 0)
	check("b", 1)
	check("c", 0)
	// A parent process that is not a shim does not count as a shim.
	if s := w.shimOf(1); s.PID != 0 {
		t.Errorf("process 1 is a shim: %+v", s)
	}
	if s := w.shimOf(os.Getppid()); s.PID != 0 {
		t.Errorf("%d is a shim: %+v", os.Getppid(), s)
	}
}

// holder keeps a network namespace alive until end is called.
func holder(t *testing.T) (path string, end func()) {
	t.Helper()
	need.Root(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	end = func() {
		if !done {
			done = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), end
}

// TestStoredEnds: a sandbox without processes ends with its network namespace, without an
// event, and does not block its successor.
func TestStoredEnds(t *testing.T) {
	w := testWatcher("/proc")
	addr := netip.MustParseAddr("10.1.2.3")
	put := func(id, path string, created time.Time) *group {
		g := w.group(key{"ns", id})
		g.stored = &about{kind: sandbox, sandbox: id, namespace: "vm", name: "kata", uid: id, created: created, netnsPath: path, addrs: []netip.Addr{addr}}
		w.evaluate(g, now, false)
		return g
	}
	path, end := holder(t)
	inode := inodeOf(t, path)
	old := put("old", path, now)
	if p := find(w.x, "vm", "kata"); p == nil || p.ID != "old" || p.Netns != inode {
		t.Fatalf("%+v", p)
	}
	w.checkStored(now)
	named(t, "while it runs", w.x.ByNetns(inode, time.Time{}), "old")
	end()
	// Its successor gets the address, and maybe the inode number, before the next check.
	next, endNext := holder(t)
	g := put("new", next, now.Add(time.Second))
	named(t, "the address", w.x.ByAddr(addr), "new")
	if g.netns == inode {
		// The number is in use again: the previous owner was checked.
		if !g.owner || old.running {
			t.Errorf("the namespace %d is still the old one's", inode)
		}
	}
	w.checkStored(now)
	if p := find(w.x, "vm", "kata"); p == nil || p.ID != "new" || len(w.x.Running()) != 1 || p.Netns != inodeOf(t, next) {
		t.Errorf("%+v, running %q", p, runningNames(w.x))
	}
	named(t, "the successor's namespace", w.x.ByNetns(inodeOf(t, next), time.Time{}), "new")
	endNext()
	w.checkStored(now)
	if r := runningNames(w.x); len(r) != 0 {
		t.Errorf("running: %q", r)
	}
}

// TestStoredNumberReused: the inode number of a stored sandbox's namespace is reused before
// the namespace was checked.
func TestStoredNumberReused(t *testing.T) {
	w := testWatcher("/proc")
	path, end := holder(t)
	inode := inodeOf(t, path)
	old := w.group(key{"ns", "old"})
	old.stored = &about{kind: sandbox, sandbox: "old", namespace: "vm", name: "a", uid: "u", created: now, netnsPath: path}
	w.evaluate(old, now, false)
	end()
	next, _ := holder(t)
	if inodeOf(t, next) != inode {
		// Simulate a reuse of the number by the kernel.
		old.netns, inode = inodeOf(t, next), inodeOf(t, next)
	}
	g := w.group(key{"ns", "new"})
	g.stored = &about{kind: sandbox, sandbox: "new", namespace: "vm", name: "b", uid: "v", created: now.Add(time.Second), netnsPath: next}
	w.evaluate(g, now, false)
	if p := find(w.x, "vm", "b"); p == nil || p.Netns != inode {
		t.Errorf("the successor is %+v, want namespace %d", p, inode)
	}
	if old.running {
		t.Error("the old one runs still")
	}
	named(t, "the number", w.x.ByNetns(inode, time.Time{}), "new")
}

// TestNumberAfterTheEnd: an occurrence under the inode number of an ended pod's network
// namespace is the pod's only while that namespace exists. The next namespace often gets
// the number.
func TestNumberAfterTheEnd(t *testing.T) {
	x := newIndex("/proc")
	path, end := holder(t)
	inode := inodeOf(t, path)
	k := key{"k8s.io", "web"}
	x.put(k, &owner.Pod{ID: "web", Netns: inode, NetnsPath: path}, running, traces{netns: []uint64{inode}}, at(0))
	named(t, "while it runs", x.ByNetns(inode, at(9)), "web")
	x.end(k, waiting, at(10))
	named(t, "stopped, still there", x.ByNetns(inode, at(11)), "web")
	x.end(k, ended, at(12))
	named(t, "ended, still there", x.ByNetns(inode, at(13)), "web")
	end()
	named(t, "what was seen before the end", x.ByNetns(inode, at(9)), "web")
	for what, when := range map[string]time.Time{"between the stop and the end": at(11), "after the end": at(13)} {
		if p := x.ByNetns(inode, when); p != nil {
			t.Errorf("%s, the namespace being gone: %s", what, p.ID)
		}
	}
	// Another namespace has the pod's number, at another path, or at the path of another
	// process.
	next, _ := holder(t)
	if inodeOf(t, next) == inode {
		if p := x.ByNetns(inode, at(13)); p != nil {
			t.Errorf("a stranger's namespace with the number is %s's", p.ID)
		}
	}
	// The pod runs again.
	x.put(k, &owner.Pod{ID: "web", Netns: inode, NetnsPath: path}, running, traces{netns: []uint64{inode}}, at(20))
	named(t, "while it runs again", x.ByNetns(inode, at(21)), "web")
}
