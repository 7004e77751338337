package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

const endLeaderEnv = "NODESKOOP_TEST_END_LEADER"

// endLeader ends the main thread, so TestMain must run on it.
func init() {
	if os.Getenv(endLeaderEnv) != "" {
		runtime.LockOSThread()
	}
}

// endLeader becomes a process whose main thread has exited. Another thread opens
// descriptors, and writes a byte to /dev/null for each line that it reads.
func endLeader() {
	first := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		<-first
		check := func(err error) {
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		for range 30 {
			_, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
			check(err)
		}
		for range 5 {
			_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			check(err)
		}
		null, err := unix.Open("/dev/null", unix.O_WRONLY, 0)
		check(err)
		pid := os.Getpid()
		for {
			b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", pid))
			check(err)
			if strings.Contains(string(b), ") Z ") {
				break
			}
			time.Sleep(time.Millisecond)
		}
		fmt.Println("ready", unix.Gettid())
		var b [1]byte
		for {
			if n, err := unix.Read(0, b[:]); err != nil || n == 0 {
				os.Exit(0)
			}
			_, err := unix.Write(null, b[:])
			check(err)
			fmt.Println("written")
		}
	}()
	close(first)
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

// TestFirstThreadEnded: a process that continues after its main thread's exit counts with
// its descriptors and calls, for the host as for a pod.
func TestFirstThreadEnded(t *testing.T) {
	need.Root(t)
	j := startJob(t, []string{endLeaderEnv + "=1"}, "/proc/"+strconv.Itoa(os.Getpid())+"/exe")
	f := strings.Fields(j.line())
	if len(f) != 2 || f[0] != "ready" {
		t.Fatal(f)
	}
	pid := j.cmd.Process.Pid
	if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(entries) != 0 {
		t.Fatalf("its first thread has not ended: %v, %v", entries, err)
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/%s/fd/*", pid, f[1]))
	if err != nil || len(links) < 40 {
		t.Fatal(links, err)
	}
	sockets := 0
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	if tid, err := kernel.LiveThread("/proc", pid); err != nil || tid == pid {
		t.Errorf("thread %d, %v", tid, err)
	}
	for _, each := range []bool{false, true} {
		name := map[bool]string{false: "iterator", true: "each read"}[each]
		t.Run(name, func(t *testing.T) {
			newOne := func(env collect.Env) (collect.Probe, error) {
				env.Once = each
				return keptTypes.newFD(env)
			}
			pods := &nsnet.Pods{List: []*owner.Pod{{ID: "a", Namespace: "test", Name: "a", PIDs: []int{pid}}}}
			s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"fd"}, Pods: pods}, collect.Factory{Name: "fd", New: newOne})
			for range 2 {
				s.Sample().Want(t, "a", map[string]float64{"kubeskoop_fdopenfd": float64(len(links)), "kubeskoop_fd_opensocket": float64(sockets)})
			}
			// The host's share: the difference once the process is a pod's.
			with := nsnet.NewSampler(t, collect.Options{Enabled: []string{"fd"}}, collect.Factory{Name: "fd", New: newOne})
			without := nsnet.NewSampler(t, collect.Options{Enabled: []string{"fd"}, Pods: pods}, collect.Factory{Name: "fd", New: newOne})
			var d float64
			for range 100 { // other processes come and go
				if d = with.Sample()[nsnet.Host]["kubeskoop_fd_opensocket"] - without.Sample()[nsnet.Host]["kubeskoop_fd_opensocket"]; d == float64(sockets) {
					return
				}
			}
			t.Errorf("the host has %v sockets of the process, want %d", d, sockets)
		})
	}
	t.Run("io", func(t *testing.T) {
		for _, host := range []bool{false, true} {
			pods := &nsnet.Pods{}
			target := nsnet.Host
			if !host {
				target = "a"
				pods.List = append(pods.List, &owner.Pod{ID: "a", Namespace: "test", Name: "a", PIDs: []int{pid}})
			}
			var p *ioProbe
			s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"io"}, Pods: pods}, collect.Factory{Name: "io", New: func(env collect.Env) (collect.Probe, error) {
				made, err := keptTypes.newIO(env)
				if err == nil {
					p = made.(*ioProbe)
				}
				return made, err
			}})
			s.Sample()
			const n = 50
			before := ioFile(t, pid)
			for range n {
				j.send("")
				if line := j.line(); line != "written" {
					t.Fatal(line)
				}
			}
			time.Sleep(20 * time.Millisecond)
			after := ioFile(t, pid)
			v := s.Sample()
			x := p.ledger.procs[pid]
			if x == nil || x.io != after || after[ioWriteCalls]-before[ioWriteCalls] < n {
				t.Fatalf("host %v: the process counts %+v, its file says %v after %v", host, x, after, before)
			}
			if got := v[target]["kubeskoop_io_iowritesyscall"]; got < float64(after[ioWriteCalls]) {
				t.Errorf("%s has %v writes, of which the process has made %d", target, got, after[ioWriteCalls])
			}
			if !host && uint64(v["a"]["kubeskoop_io_iowritesyscall"]) != after[ioWriteCalls] {
				t.Errorf("the pod has %v, want %v", v["a"], after)
			}
		}
	})
	// After the exit of all threads it is not a process any more.
	j.stop()
	if tid, err := kernel.LiveThread("/proc", pid); err == nil {
		t.Errorf("thread %d of a process that has ended", tid)
	}
}

// TestEmptyProcesses: a process without descriptors is checked only now and then, but at
// once if its number may have been reused.
func TestEmptyProcesses(t *testing.T) {
	root := tree(t, nil)
	p := &fd{root: root}
	threads := func(n int) {
		t.Helper()
		dir := filepath.Join(root, "7/task")
		_ = os.RemoveAll(dir)
		for i := range n {
			if err := os.MkdirAll(filepath.Join(dir, strconv.Itoa(7+i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(cycle uint64, want bool) {
		t.Helper()
		if got := p.isEmpty(7, cycle); got != want {
			t.Errorf("cycle %d: %v, want %v", cycle, got, want)
		}
	}
	threads(1)
	check(1, true)
	threads(2)
	check(2, true) // not checked again
	for c := uint64(3); c < 1+emptyFor; c++ {
		check(c, true)
	}
	check(1+emptyFor, false)
	threads(1)
	check(2+emptyFor, true)
	threads(2)
	check(4+emptyFor, false) // the process was missing in a cycle
	check(5+emptyFor, false)
	if len(p.empty) != 0 {
		t.Errorf("%v", p.empty)
	}
}

// TestFirstThreadEndedNetns: a pod whose only process has lost its main thread still has
// the counters of its network namespace.
func TestFirstThreadEndedNetns(t *testing.T) {
	need.Root(t)
	space := nsnet.New(t)
	var j *job
	space.Do(func() {
		j = startJob(t, []string{endLeaderEnv + "=1"}, "/proc/"+strconv.Itoa(os.Getpid())+"/exe")
	})
	if line := j.line(); !strings.HasPrefix(line, "ready ") {
		t.Fatal(line)
	}
	for range 3 {
		c := space.Dial("udp", "127.0.0.1:9")
		_, _ = c.Write([]byte("nobody listens"))
	}
	pod := space.Pod("a")
	pod.PIDs = []int{j.cmd.Process.Pid}
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"udp", "tcpsummary"}, Pods: &nsnet.Pods{List: []*owner.Pod{pod}}}, Probes()...)
	s.Sample().Want(t, "a", map[string]float64{"kubeskoop_udp_noports": 3, "kubeskoop_tcpsummary_tcpestablishedconn": 0})
}
