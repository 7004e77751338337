package proc

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/proof"
)

// keptTypes is the kernel's type information for all tests. It is never released, because
// reading it takes long in a VM.
var keptTypes = typeInfo{new(bpf.KernelTypes), func() {}}

func TestMain(m *testing.M) {
	if script := os.Getenv("NODESKOOP_TEST_IGNORE_CHILDREN"); script != "" {
		ignoreChildren(script)
	}
	if dir := os.Getenv("NODESKOOP_TEST_OPEN_MUCH"); dir != "" {
		openMuch(dir)
	}
	if os.Getenv("NODESKOOP_TEST_ONE_THREAD") != "" {
		oneThread()
	}
	if os.Getenv(endLeaderEnv) != "" {
		endLeader()
	}
	os.Exit(m.Run())
}

// oneThread runs several threads. One of them, not the main thread, writes a byte for each
// byte that it reads.
func oneThread() {
	runtime.LockOSThread() // keep the other goroutine off the main thread
	go func() {
		runtime.LockOSThread()
		var b [1]byte
		for {
			if n, err := unix.Read(0, b[:]); err != nil || n == 0 {
				os.Exit(0)
			}
			_, _ = unix.Write(1, b[:])
		}
	}()
	select {}
}

// openMuch opens files, pipes and sockets, some of them several times, the file of a
// socket, and further files on a thread with a descriptor table of its own.
func openMuch(dir string) {
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	for range 40 {
		_, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
		check(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(err)
	for range 7 {
		_, err = unix.Dup(pair[0])
		check(err)
	}
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	check(err)
	check(unix.Pipe(make([]int, 2)))
	for range 1500 { // more entries than one getdents64 call returns
		_, err = unix.Dup(2)
		check(err)
	}
	listener, err := net.Listen("unix", dir+"/socket")
	check(err)
	defer listener.Close()
	_, err = unix.Open(dir+"/socket", unix.O_PATH, 0)
	check(err)
	apart := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FILES)
		for range 30 {
			if _, e := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err == nil {
				err = e
			}
		}
		apart <- err
		select {}
	}()
	check(<-apart)
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// ignoreChildren starts a shell with the script for each line that it reads. SIGCHLD is
// ignored, so the kernel discards the children and their counts.
func ignoreChildren(script string) {
	signal.Ignore(unix.SIGCHLD)
	_ = os.Unsetenv("NODESKOOP_TEST_IGNORE_CHILDREN")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if _, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script, "sh", in.Text()},
			&os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}}); err != nil {
			fmt.Println("error", err)
		}
	}
	os.Exit(0)
}

// job is a process started by a test, with its descendants.
type job struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string
}

func startJob(t *testing.T, env []string, name string, args ...string) *job {
	t.Helper()
	j := &job{t: t, cmd: exec.Command(name, args...), lines: make(chan string, 1000)}
	j.cmd.Env = append(os.Environ(), env...)
	j.cmd.Stderr = os.Stderr
	var err error
	if j.stdin, err = j.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := j.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			j.lines <- s.Text()
		}
		close(j.lines)
	}()
	t.Cleanup(j.stop)
	return j
}

func (j *job) stop() {
	_ = j.stdin.Close()
	for _, pid := range descendants(j.cmd.Process.Pid) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	_ = j.cmd.Process.Kill()
	_ = j.cmd.Wait()
}

// line waits for a line of output.
func (j *job) line() string {
	j.t.Helper()
	select {
	case s := <-j.lines:
		return s
	case <-time.After(60 * time.Second):
		j.t.Fatal("the process says nothing")
	}
	return ""
}

// send writes a line to the job.
func (j *job) send(s string) {
	j.t.Helper()
	if _, err := io.WriteString(j.stdin, s+"\n"); err != nil {
		j.t.Fatal(err)
	}
}

// descendants lists the processes below pid, from the kernel's lists of children.
func descendants(pid int) (list []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				list = append(append(list, child), descendants(child)...)
			}
		}
	}
	return list
}

// ioFile reads /proc/PID/io without the probe.
func ioFile(t *testing.T, pid int) (c ioCounts) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := fmt.Sscanf(strings.NewReplacer("rchar: ", "", "wchar: ", "", "syscr: ", "", "syscw: ", "", "read_bytes: ", "", "write_bytes: ", "").Replace(string(b)),
		"%d\n%d\n%d\n%d\n%d\n%d\n", new(uint64), new(uint64), &c[ioReadCalls], &c[ioWriteCalls], &c[ioReadBytes], &c[ioWriteBytes])
	if n != 6 || err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return c
}

var ioMetrics = [ioFields]string{"kubeskoop_io_ioreadsyscall", "kubeskoop_io_iowritesyscall", "kubeskoop_io_ioreadbytes", "kubeskoop_io_iowritebytes"}

// ioPods samples pods whose processes are jobs.
type ioPods struct {
	*nsnet.Sampler
	t    *testing.T
	pods *nsnet.Pods
	pids map[string]func() []int
	last nsnet.Values

	probe *ioProbe
}

func newIOPods(t *testing.T) *ioPods {
	t.Helper()
	need.Root(t)
	need.Program(t, "dd", "sh", "unshare")
	s := &ioPods{t: t, pods: &nsnet.Pods{}, pids: map[string]func() []int{}}
	s.pods.Children = func(p *owner.Pod) []int { return s.pids[p.Name]() }
	s.Sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"io"}, Pods: s.pods}, collect.Factory{Name: "io", New: func(env collect.Env) (collect.Probe, error) {
		p, err := ioFactory(env)
		if err == nil {
			s.probe = p.(*ioProbe)
		}
		return p, err
	}})
	return s
}

// ioFactory makes the probe for newIOPods.
var ioFactory = keptTypes.newIO

// TestIOEachRead repeats the tests of exiting processes without the activity iterator.
func TestIOEachRead(t *testing.T) {
	ioFactory = func(env collect.Env) (collect.Probe, error) {
		p, err := keptTypes.newIO(env)
		if err == nil {
			err = p.(*ioProbe).activity.drop()
		}
		return p, err
	}
	defer func() { ioFactory = keptTypes.newIO }()
	t.Run("reaped", TestIOReaped)
	t.Run("ignored", TestIOIgnored)
	t.Run("two pods", TestIOTwoPods)
	t.Run("shim", TestIOShim)
}

// ioRestarts restarts the program before each sample.
var ioRestarts bool

// TestIORestarted repeats the tests of exiting processes as if the program were killed and
// restarted before each sample.
func TestIORestarted(t *testing.T) {
	ioRestarts = true
	defer func() { ioRestarts = false }()
	t.Run("reaped", TestIOReaped)
	t.Run("ignored", TestIOIgnored)
	t.Run("two pods", TestIOTwoPods)
	t.Run("moves", TestIOMoves)
	t.Run("zombie", TestIOZombie)
}

// add adds a pod whose processes pids lists.
func (s *ioPods) add(name string, first int, pids func() []int) {
	s.pods.List = append(s.pods.List, &owner.Pod{ID: name, Namespace: "test", Name: name, PIDs: []int{first}})
	s.pids[name] = pids
}

// control is a control group, whose process list is complete.
type control struct {
	t   *testing.T
	dir string
}

func newControl(t *testing.T) control {
	t.Helper()
	need.Root(t)
	root := t.TempDir()
	err := unix.Mount("cgroup2", root, "cgroup2", 0, "")
	need.Kernel(t, err == nil, "no cgroup2 to mount")
	t.Cleanup(func() { _ = unix.Unmount(root, 0) })
	dir, err := os.MkdirTemp(root, "nodeskoop-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 { // until the last process has exited
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
	})
	return control{t, dir}
}

// enter is a shell command that moves the shell into the group.
func (c control) enter() string { return "echo $$ > " + c.dir + "/cgroup.procs\n" }

func (c control) processes() (list []int) {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "cgroup.procs"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			c.t.Fatalf("%q: %v", b, err)
		}
		list = append(list, pid)
	}
	return list
}

// sample takes a sample, and fails the test if a sum decreased.
func (s *ioPods) sample() {
	s.t.Helper()
	if ioRestarts && s.last != nil {
		s.Sampler = s.Sampler.Again()
	}
	v := s.Sample()
	for pod, m := range s.last {
		for _, name := range ioMetrics {
			if _, there := v[pod]; there && v[pod][name] < m[name] {
				s.t.Fatalf("%s of %s went down from %v to %v", name, pod, m[name], v[pod][name])
			}
		}
	}
	s.last = v
}

func (s *ioPods) sums(pod string) (c ioCounts) {
	for i, name := range ioMetrics {
		c[i] = uint64(s.last[pod][name])
	}
	return c
}

func total(c ioCounts) (n uint64) {
	for _, x := range c {
		n += x
	}
	return n
}

func (s *ioPods) want(pod string, want ioCounts) {
	s.t.Helper()
	got := s.sums(pod)
	proof.Count(s.t, "io", "procfs", "bytes and calls of "+pod+", by the processes' own files", total(want), total(got))
	if got != want {
		s.t.Errorf("pod %s: %v, want %v", pod, got, want)
	}
}

// sampleUntil samples at irregular times until the job reports that it is done.
func (s *ioPods) sampleUntil(j *job) (samples int) {
	s.t.Helper()
	for {
		s.sample()
		samples++
		select {
		case line := <-j.lines:
			if line != "done" {
				s.t.Fatalf("the job says %q", line)
			}
			return samples
		case <-time.After(time.Duration(rand.IntN(6000)) * time.Microsecond):
		}
	}
}

// direct returns shell functions w and r, which write and read 256 KiB with direct I/O.
func direct(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(".", "testio")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f, err := filepath.Abs(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dd", "if=/dev/zero", "of="+f, "bs=64k", "count=1", "oflag=direct", "conv=notrunc").CombinedOutput()
	need.Kernel(t, err == nil, "no direct I/O on this file system: "+string(out))
	return "w() { dd if=/dev/zero of=" + f + " bs=64k count=4 oflag=direct conv=notrunc 2>/dev/null; }\n" +
		"r() { dd if=" + f + " of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null; }\n"
}

// TestIOReaped: a parent that waits for all its children has all counts in the end, and the
// sum must equal them, whatever was sampled in between.
func TestIOReaped(t *testing.T) {
	need.Short(t)
	rw := direct(t)
	for _, x := range []struct{ name, script string }{
		{"children", "for i in $(seq 60); do w; r; done"},
		{"background", "for i in $(seq 20); do w & r & w & wait; done"},
		{"chains", "for i in $(seq 20); do ( w; ( r; ( w; ( r; r ) ; w ); r ) ); done"},
		{"pipes", "for i in $(seq 20); do { w; r; } | { cat; w; } | { cat; r; w; }; done"},
		{"orphans", "for i in $(seq 25); do ( ( sleep 0.01; w; r ) & w ) ; w; done; wait; sleep 0.2; true"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s, group := newIOPods(t), newControl(t)
			// As the first process of a PID namespace the shell inherits orphans, like the
			// first process of a container.
			j := startJob(t, nil, "unshare", "--pid", "--fork", "--kill-child", "sh", "-c",
				group.enter()+rw+"echo ready; read go; "+x.script+"; echo done; read end")
			j.line()
			sh := group.processes()[0]
			s.add("a", sh, group.processes)
			s.sample()
			j.send("go")
			n := s.sampleUntil(j)
			// Orphans exit at any time, and remain zombies until the shell waits for a
			// process.
			whole := func() (c ioCounts) {
				for _, pid := range append(descendants(sh), sh) {
					x := ioFile(t, pid)
					c.add(&x)
				}
				return c
			}
			var before ioCounts
			for range 100 {
				for len(group.processes()) > 1 {
					time.Sleep(20 * time.Millisecond)
				}
				before = whole()
				s.sample()
				if whole() == before {
					break
				}
			}
			s.want("a", before)
			if before[ioWriteBytes] < 5<<20 {
				t.Errorf("only %d bytes written", before[ioWriteBytes])
			}
			t.Logf("%d samples, %v", n, before)
		})
	}
}

// TestIOIgnored: a parent that ignores SIGCHLD inherits no counts. The counts of its exited
// children must remain in the sum.
func TestIOIgnored(t *testing.T) {
	rw := direct(t)
	s, group := newIOPods(t), newControl(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	j := startJob(t, []string{"NODESKOOP_TEST_IGNORE_CHILDREN=" + rw + "for i in $(seq $1); do w; r; done; echo ready $$; read end < " + fifo}, "sh", "-c", group.enter()+"exec /proc/"+strconv.Itoa(os.Getpid())+"/exe")
	s.add("a", j.cmd.Process.Pid, group.processes)
	s.sample()
	var ended ioCounts // counts of exited children
	parent := func() ioCounts { return ioFile(t, j.cmd.Process.Pid) }
	for i := range 6 {
		j.send(strconv.Itoa(1 + i%3))
		line := j.line()
		pid, err := strconv.Atoi(strings.TrimPrefix(line, "ready "))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		time.Sleep(10 * time.Millisecond)
		child := ioFile(t, pid)
		s.sample()
		want := parent()
		want.add(&ended)
		want.add(&child)
		s.want("a", want)
		if err := os.WriteFile(fifo, []byte("\n"), 0); err != nil {
			t.Fatal(err)
		}
		for unix.Kill(pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		ended.add(&child)
		for range 3 {
			s.sample()
			want = parent()
			want.add(&ended)
			s.want("a", want)
		}
	}
	if ended[ioWriteBytes] < 12*256<<10 || ended[ioReadBytes] < 12*256<<10 {
		t.Errorf("the children wrote and read %v", ended)
	}
}

// TestIOTwoPods: a parent and its child are in different pods. The child's counts remain
// with its pod after the parent inherits them, whichever pod is sampled first and whether
// or not the child's pod still exists.
func TestIOTwoPods(t *testing.T) {
	rw := direct(t)
	for _, x := range []struct {
		name     string
		vanishes bool
		order    []string
	}{
		{"child first", false, []string{"child", "parent"}},
		{"parent first", false, []string{"parent", "child"}},
		{"child's pod gone, first", true, []string{"child", "parent"}},
		{"child's pod gone, last", true, []string{"parent", "child"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := newIOPods(t)
			j := startJob(t, nil, "sh", "-c", rw+`exec 3<&0; ( w; r; r; echo ready; read end <&3; w ); echo reaped; read end; w; echo done; read end`)
			if line := j.line(); line != "ready" {
				t.Fatal(line)
			}
			parent := j.cmd.Process.Pid
			child := descendants(parent)[0]
			for _, name := range x.order {
				if name == "parent" {
					s.add("parent", parent, func() []int { return nil })
				} else {
					s.add("child", child, func() []int { return nil })
				}
			}
			time.Sleep(10 * time.Millisecond)
			atChild, atParent := ioFile(t, child), ioFile(t, parent)
			s.sample()
			s.want("child", atChild)
			s.want("parent", atParent)
			if x.vanishes {
				s.pods.List = s.pods.List[:0]
				s.add("parent", parent, func() []int { return nil })
			}
			j.send("end")
			if line := j.line(); line != "reaped" {
				t.Fatal(line)
			}
			time.Sleep(10 * time.Millisecond)
			// The parent has all counts; those already in the child's pod do not count for
			// the parent's.
			for range 3 {
				s.sample()
				want := ioFile(t, parent)
				want.sub(&atChild)
				s.want("parent", want)
				if !x.vanishes {
					s.want("child", atChild)
				}
			}
			j.send("end")
			if line := j.line(); line != "done" {
				t.Fatal(line)
			}
			time.Sleep(10 * time.Millisecond)
			s.sample()
			want := ioFile(t, parent)
			want.sub(&atChild)
			s.want("parent", want)
		})
	}
}

// TestIOMoves: a process that moves to another pod leaves its counts behind.
func TestIOMoves(t *testing.T) {
	rw := direct(t)
	s := newIOPods(t)
	// The shell itself must do the I/O: dd would be a child.
	j := startJob(t, nil, "sh", "-c", rw+`while read x; do w; echo ready; done`)
	pid := j.cmd.Process.Pid
	in := "a"
	for _, name := range []string{"a", "b"} {
		s.add(name, 1<<22-1, func() []int {
			if in == name {
				return []int{pid}
			}
			return nil
		})
	}
	var want [2]ioCounts
	var last ioCounts
	for i := range 6 {
		in = string(rune('a' + i/2%2))
		j.send("go")
		j.line()
		time.Sleep(10 * time.Millisecond)
		now := ioFile(t, pid)
		d := now
		d.sub(&last)
		want[i/2%2].add(&d)
		last = now
		s.sample()
		s.want("a", want[0])
		s.want("b", want[1])
	}
	if want[0][ioWriteBytes] < 4*256<<10 || want[1][ioWriteBytes] < 2*256<<10 {
		t.Errorf("unlikely: %v", want)
	}
}

// TestIOZombie: a zombie still has its counts, and its parent inherits them later.
func TestIOZombie(t *testing.T) {
	rw := direct(t)
	s, group := newIOPods(t), newControl(t)
	// The shell starts a child and execs a program that does not wait for it.
	j := startJob(t, nil, "sh", "-c", group.enter()+rw+`exec 3<&0; ( w; r; echo ready; read end <&3 ) & exec sh -c 'read a; echo $a; wait; exec sh -c "read b; echo \$b; read c"'`)
	if line := j.line(); line != "ready" {
		t.Fatal(line)
	}
	s.add("a", j.cmd.Process.Pid, group.processes)
	s.sample()
	sum := s.sums("a")
	if sum[ioWriteBytes] < 256<<10 {
		t.Errorf("%v", sum)
	}
	for _, pid := range descendants(j.cmd.Process.Pid) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	time.Sleep(20 * time.Millisecond)
	for range 3 {
		s.sample()
		if got := s.sums("a"); got[ioWriteBytes] != sum[ioWriteBytes] || got[ioReadBytes] != sum[ioReadBytes] {
			t.Errorf("%v, want %v", got, sum)
		}
	}
}

// TestIOIdle: a process that has not run is not read again. If any thread of a process has
// run, the next sample shows its counts.
func TestIOIdle(t *testing.T) {
	need.Root(t)
	if look, err := bpf.NewActivities(keptTypes.types); err != nil {
		proof.Refuse(t, "io", "iter", err.Error())
		need.Kernel(t, false, err.Error())
	} else {
		_ = look.Close()
	}
	proof.Take(t, "io", "iter", nil)
	var all []int
	var p *ioProbe
	pods := &nsnet.Pods{List: []*owner.Pod{{ID: "a", Namespace: "test", Name: "a"}}, Children: func(*owner.Pod) []int { return all }}
	v := nsnet.NewSampler(t, collect.Options{Enabled: []string{"io"}, Pods: pods}, collect.Factory{Name: "io", New: func(env collect.Env) (collect.Probe, error) {
		made, err := keptTypes.newIO(env)
		if err == nil {
			p = made.(*ioProbe)
		}
		return made, err
	}})
	self := "/proc/" + strconv.Itoa(os.Getpid()) + "/exe"
	writer := startJob(t, []string{"NODESKOOP_TEST_ONE_THREAD=1"}, self)
	busy := startJob(t, nil, "sh", "-c", "while :; do echo; done > /dev/null")
	idle := startJob(t, nil, "sleep", "1000")
	// A process whose parent exits while it sleeps.
	orphan := startJob(t, nil, "sh", "-c", "sh -c 'sleep 1000 & echo $!; read x; kill -9 $$' 2> /dev/null; sleep 1000")
	child, err := strconv.Atoi(orphan.line())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(child, unix.SIGKILL) })
	all = []int{writer.cmd.Process.Pid, busy.cmd.Process.Pid, idle.cmd.Process.Pid, child}
	read := func(pid int) bool { return p.ledger.procs[pid].at > p.lookedAt }
	v.Sample()
	time.Sleep(200 * time.Millisecond) // all have started and sleep
	v.Sample()
	skipped := 0
	for i := range 100 {
		if i == 50 {
			orphan.send("end")
			time.Sleep(100 * time.Millisecond)
		}
		before := p.ledger.procs[writer.cmd.Process.Pid].io
		writer.send("") // a newline
		if line := writer.line(); line != "" {
			t.Fatalf("the writer says %q", line)
		}
		// The kernel counts a call when it returns.
		testkit.Within(testkit.Patience, func() bool {
			return ioFile(t, writer.cmd.Process.Pid)[ioWriteCalls] != before[ioWriteCalls]
		})
		// Go's runtime may interrupt a waiting thread, which then calls read again.
		least := ioFile(t, writer.cmd.Process.Pid)
		v.Sample()
		now, most := p.ledger.procs[writer.cmd.Process.Pid].io, ioFile(t, writer.cmd.Process.Pid)
		if now[ioWriteCalls] != before[ioWriteCalls]+1 || !now.covers(&least) || !most.covers(&now) {
			t.Fatalf("sample %d: the writer has %v after %v, its file says %v and then %v", i, now, before, least, most)
		}
		// A process that never sleeps is stopped at any point, and sampled at once.
		if i%10 == 9 {
			_ = busy.cmd.Process.Signal(unix.SIGSTOP)
			time.Sleep(20 * time.Millisecond)
			v.Sample()
			if got, want := p.ledger.procs[busy.cmd.Process.Pid].io, ioFile(t, busy.cmd.Process.Pid); got != want {
				t.Fatalf("sample %d: a process that always runs has %v, its file says %v", i, got, want)
			}
			_ = busy.cmd.Process.Signal(unix.SIGCONT)
		}
		if !read(idle.cmd.Process.Pid) {
			skipped++
		}
		if got, want := p.ledger.procs[child].parent, parentOf(t, child); got != want {
			t.Fatalf("sample %d: the parent of the orphan is said to be %d, and is %d", i, got, want)
		}
	}
	proof.Count(t, "io", "iter", "samples without a reading of an idle process, by the samples", 100, uint64(skipped))
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nPPid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestIOFirstSampleIsPlain: the first sample is the plain sum over the processes, for the
// host as for a pod.
func TestIOFirstSampleIsPlain(t *testing.T) {
	s := newIOPods(t)
	s.add("a", os.Getpid(), func() []int { return nil })
	before := ioFile(t, os.Getpid())
	s.sample()
	after := ioFile(t, os.Getpid())
	got := s.sums("a")
	if !got.covers(&before) || !after.covers(&got) {
		t.Errorf("%v, want between %v and %v", got, before, after)
	}
	if host := s.sums(nsnet.Host); host[ioReadCalls] == 0 {
		t.Errorf("the host: %v", host)
	}
}
