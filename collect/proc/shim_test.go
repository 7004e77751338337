package proc

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/pod"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/proof"
)

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	s, err := kernel.ReadStat("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	return s.Start
}

// ownCalls sums what the threads of a process have counted themselves.
func ownCalls(t *testing.T, pid int) (c ioCounts) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/io", pid))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		x, err := parseIO(b)
		if err != nil {
			t.Fatal(err)
		}
		c.add(&x)
	}
	return c
}

// TestIOShim: counts of processes that start and end between two samples below a shim are
// the pod's, whether or not other children were sampled. The shim's own calls never are.
func TestIOShim(t *testing.T) {
	rw := direct(t)
	s := newIOPods(t)
	// The shell plays the shim. Its builtins are its own calls.
	shim := startJob(t, nil, "sh", "-c", rw+`
		while read what; do case $what in
		own) for i in 1 2 3 4 5 6 7; do echo x > /dev/null; done;;
		short) w; r; w;;
		long) ( w; r; exec sleep 1000 ) & q=$!; echo $q;;
		end) kill $q; wait 2> /dev/null;;
		nothing) true & wait;;
		esac; echo done; done`)
	pid := shim.cmd.Process.Pid
	var members []int
	s.add("a", 1<<22-1, func() []int { return members })
	s.pods.List[0].Reapers = []owner.Process{{PID: pid, Start: startOf(t, pid)}}
	s.pods.List[0].PIDs = nil
	do := func(what string) {
		t.Helper()
		shim.send(what)
		for {
			line := shim.line()
			if line == "done" {
				return
			}
			if n, err := strconv.Atoi(line); err == nil {
				members = []int{n}
			}
		}
	}
	ended := ioCounts{} // counts of earlier children, which reappear in the shim
	var own ioCounts
	files := func() (want ioCounts) {
		want = ioFile(t, pid)
		own = ownCalls(t, pid)
		want.sub(&own)
		for _, m := range members {
			x := ioFile(t, m)
			want.add(&x)
		}
		return want
	}
	check := func(what string) {
		t.Helper()
		// The kernel counts a call when it returns: wait until all sleep.
		var want ioCounts
		for range 200 {
			before, beforeOwn := files(), own
			s.sample()
			if want = files(); want == before && own == beforeOwn {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		got := s.sums("a")
		proof.Count(t, "io", "procfs", "bytes and calls of a pod and its shim's children after "+what+", by the processes' own files", total(want), total(got))
		if got != want {
			t.Errorf("after %s: %v, want %v; the shim's own calls are %v", what, got, want, own)
		}
	}
	do("short")
	check("what was before the first sample")
	for round := range 3 {
		do("own")
		before := s.sums("a")
		check("its own calls")
		if s.sums("a") != before {
			t.Errorf("the shim's own calls were given to the pod: %v after %v", s.sums("a"), before)
		}
		do("short")
		check("short children")
		do("short")
		do("own")
		check("short children and its own calls")
		do("nothing")
		do("own")
		check("a child without I/O")
		do("long")
		for { // until it is done and has no child left, which would count for the host
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", members[0])); err != nil || string(b) == "sleep\n" {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		check("a child that stays")
		if got := s.sums("a"); total(got) == 0 || got[ioWriteBytes] < uint64(round+1)*256<<10 {
			t.Errorf("%v", got)
		}
		do("short")
		check("short ones beside it")
		x := ioFile(t, members[0])
		ended.add(&x)
		members = nil
		do("end")
		check("its end")
	}
	if ended[ioWriteBytes] < 3*256<<10 {
		t.Errorf("the long ones wrote %v", ended)
	}
}

// TestIOShimOfHost: the shim's own calls are the host's, and none of the pod's calls are.
func TestIOShimOfHost(t *testing.T) {
	rw := direct(t)
	s := newIOPods(t)
	shim := startJob(t, nil, "sh", "-c", rw+`while read what; do case $what in own) for i in $(seq 3000); do echo x; done > /dev/null;; short) for i in 1 2 3 4 5 6 7 8; do w; done;; esac; echo done; done`)
	pid := shim.cmd.Process.Pid
	s.add("a", 1<<22-1, func() []int { return nil })
	s.pods.List[0].Reapers = []owner.Process{{PID: pid, Start: startOf(t, pid)}}
	s.sample()
	host := func() ioCounts { return s.sums(nsnet.Host) }
	before := host()
	shim.send("own")
	shim.line()
	time.Sleep(20 * time.Millisecond)
	s.sample()
	if d := host()[ioWriteCalls] - before[ioWriteCalls]; d < 3000 {
		t.Errorf("the host's writes grew by %d, by the shim's own alone by 3000", d)
	}
	shim.send("short")
	shim.line()
	time.Sleep(20 * time.Millisecond)
	a := s.sums("a")
	s.sample()
	if d := s.sums("a")[ioWriteBytes] - a[ioWriteBytes]; d != 8*256<<10 {
		t.Errorf("the pod wrote %d bytes, want %d", d, 8*256<<10)
	}
	// Other processes write, too; none of the pod's counts are in the host's sum.
	if x := s.probe.ledger.procs[pid]; x == nil || x.owner.sum != s.sums("a") {
		t.Errorf("the shim is counted with %+v, not with the pod", x)
	}
	// Another start time means that the number was reused: not a shim.
	s.pods.List[0].Reapers[0].Start++
	a, before = s.sums("a"), host()
	shim.send("own")
	shim.line()
	time.Sleep(20 * time.Millisecond)
	s.sample()
	if s.sums("a") != a || host()[ioWriteCalls]-before[ioWriteCalls] < 3000 {
		t.Errorf("the pod has %v after %v, the host grew by %d calls", s.sums("a"), a, host()[ioWriteCalls]-before[ioWriteCalls])
	}
}

// TestIOStarting: what a container's first process counts before the container is known is
// the pod's, not the host's. The same process below another parent is the host's.
func TestIOStarting(t *testing.T) {
	for _, c := range []struct {
		name string
		shim bool
	}{{"child of a shim", true}, {"child of another process", false}} {
		t.Run(c.name, func(t *testing.T) {
			rw := direct(t)
			s := newIOPods(t)
			shim := startJob(t, nil, "sh", "-c", rw+`while read what; do ( w; w; exec sleep 1000 ) & q=$!; echo $q; done; kill $q`)
			pid := shim.cmd.Process.Pid
			var members []int
			s.add("a", 1<<22-1, func() []int { return members })
			s.pods.List[0].PIDs = nil
			if c.shim {
				s.pods.List[0].Reapers = []owner.Process{{PID: pid, Start: startOf(t, pid)}}
			}
			s.sample()
			shim.send("start")
			first, err := strconv.Atoi(shim.line())
			if err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "it has written", func() bool {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", first))
				return err == nil && string(b) == "sleep\n"
			})
			wrote := ioFile(t, first)[ioWriteBytes]
			s.sample()
			s.sample()
			if x := s.probe.ledger.procs[first]; (x == nil) != c.shim {
				t.Errorf("before its pod lists it, it is counted with %+v", x)
			}
			members = []int{first}
			s.sample()
			want := uint64(0)
			if c.shim {
				want = wrote
			}
			got := s.sums("a")[ioWriteBytes]
			proof.Count(t, "io", "procfs", "bytes written by a container's first process before the container is known, "+c.name, want, got)
			if got != want || wrote < 2*256<<10 {
				t.Errorf("the pod wrote %d bytes, want %d of %d", got, want, wrote)
			}
		})
	}
}

// TestExecBetweenSamples: every exec in a real pod counts for the pod with all its writes,
// though no sample ever sees its process.
func TestExecBetweenSamples(t *testing.T) {
	need.Short(t)
	c := pods.Start(t)
	p := c.RunPod(pods.PodSpec{Namespace: "web", Name: "probed", Containers: []pods.ContainerSpec{{Name: "main"}}})
	quiet := c.RunPod(pods.PodSpec{Namespace: "web", Name: "quiet", Containers: []pods.ContainerSpec{{Name: "main"}}})
	ctx, cancel := context.WithCancel(context.Background())
	x := pod.Watch(ctx, pod.Options{Sockets: []string{c.Socket}, HostNetns: c.Netns, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		cancel()
		x.Wait()
	})
	if err := x.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for _, q := range x.Running() {
		want := []owner.Process{{PID: c.ShimPID(p.PID), Start: startOf(t, c.ShimPID(p.PID))}}
		if q.Name == "quiet" {
			want = []owner.Process{{PID: c.ShimPID(quiet.PID), Start: startOf(t, c.ShimPID(quiet.PID))}}
		}
		if len(q.Reapers) != 1 || q.Reapers[0] != want[0] {
			t.Fatalf("pod %s has the shims %v, want %v", q.Name, q.Reapers, want)
		}
	}
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"io"}, Pods: x, HostNetns: c.Netns}, collect.Factory{Name: "io", New: keptTypes.newIO})
	const writes = "kubeskoop_io_iowritesyscall"
	first := s.Sample()
	const execs, each = 15, 100
	k := p.Container("main")
	for i := range execs {
		k.Exec("sh", "-c", fmt.Sprintf("for i in $(seq %d); do echo x; done > /dev/null", each))
		if i%5 == 4 {
			s.Sample()
		}
	}
	// runc, a child of the shim, writes, too.
	shim := c.ShimPID(p.PID)
	var last nsnet.Values
	testkit.Within(testkit.Patience, func() bool {
		last = s.Sample()
		return last["probed"][writes]-first["probed"][writes] >= execs*each
	})
	grown := last["probed"][writes] - first["probed"][writes]
	reaped := ioFile(t, shim)
	own := ownCalls(t, shim)
	reaped.sub(&own)
	t.Logf("%d writes in %d execs: the pod's grew by %v; all that its shim's children ever did: %v; the shim itself: %v", execs*each, execs, grown, reaped, own)
	proof.Count(t, "io", "procfs", "writes in execs that were never seen, at least", execs*each, min(execs*each, uint64(grown)))
	if grown < execs*each || grown > execs*(each+200) {
		t.Errorf("the pod's writes grew by %v, by its execs' by %d and runc's", grown, execs*each)
	}
	if d := last["quiet"][writes] - first["quiet"][writes]; d != 0 {
		t.Errorf("a pod without execs grew by %v writes", d)
	}
	for range 3 {
		if v := s.Sample(); v["probed"][writes] != last["probed"][writes] {
			t.Errorf("%v writes, then %v without an exec", last["probed"][writes], v["probed"][writes])
		}
	}
}
