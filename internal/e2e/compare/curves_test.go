package compare

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// TestCurves prints how the cost of a cycle of the 13 probes grows with namespaces,
// idle sockets and processes, and each probe's share. It does not judge the growth;
// the gate checks the slope.
func TestCurves(t *testing.T) {
	need.Target(t, "bench-curves", os.Getenv("NODESKOOP_CURVES") != "")
	need.Root(t)
	need.Program(t, "ip", "cat")
	nsnet.MoreFiles()
	t.Run("namespaces", curveNamespaces)
	t.Run("sockets", curveSockets)
	t.Run("processes", curveProcesses)
}

// processProbes read every process of the node; the others read namespaces.
var processProbes = []string{"fd", "io"}

// cycles returns the CPU time of a cycle: the median of several, in microseconds,
// after cycles that allocate what later ones reuse. between runs before each.
func cycles(r *collect.Runner, n int, between func()) float64 {
	var took []float64
	for i := range n + 2 {
		if between != nil {
			between()
		}
		if c := cycleCPU(r); i >= 2 {
			took = append(took, c/1e3)
		}
	}
	return testkit.Quantile(took, 0.5)
}

func without(names, left []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(left, n) })
}

// curveNamespaces: each namespace has a process and 10 idle ends of connections,
// whose sockets belong to this process. So the cost of the process probes does not
// depend on the number of namespaces.
func curveNamespaces(t *testing.T) {
	const most = 1000
	names, factories := procfsProbes()
	pods := spaces(t, most, 5) // open files may be limited to 20,000
	t.Logf("%10s %22s %22s %16s", "namespaces", "11 probes, us", "each namespace, us", "13 probes, us")
	for _, n := range []int{1, 10, 50, 110, 250, 500, most} {
		some := &nsnet.Pods{List: pods.List[:n]}
		eleven := cycles(newRunner(t, some, without(names, processProbes), factories), 7, nil)
		all := cycles(newRunner(t, some, names, factories), 5, nil)
		t.Logf("%10d %22.0f %22.1f %16.0f", n, eleven, eleven/float64(n+1), all)
	}
	for _, n := range []int{0, 110, 500} {
		some := &nsnet.Pods{List: pods.List[:n]}
		none := cycles(newRunner(t, some, nil, factories), 7, nil)
		line := fmt.Sprintf("%d namespaces, us of each probe alone: none %.0f", n, none)
		for _, name := range names {
			line += fmt.Sprintf(", %s %.0f", name, cycles(newRunner(t, some, []string{name}, factories), 7, nil)-none)
		}
		t.Log(line)
		r := newRunner(t, some, names, factories)
		r.Cycle()
		r.Cycle()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r.Cycle()
		runtime.ReadMemStats(&after)
		t.Logf("%d namespaces: a cycle of all 13 allocates %d times, %d KiB", n, after.Mallocs-before.Mallocs, (after.TotalAlloc-before.TotalAlloc)>>10)
	}
}

// curveSockets: one namespace with idle connections, and again with a segment
// before each cycle, after which all connections must be read.
func curveSockets(t *testing.T) {
	names, factories := procfsProbes()
	names = without(names, processProbes)
	t.Logf("%10s %22s %22s", "sockets", "idle, us", "one of them used, us")
	for _, n := range []int{0, 1000, 10000, 50000, 100000} {
		s := nsnet.New(t)
		l := s.Listen("tcp", "127.0.0.1:0")
		c := s.Dial("tcp", l.Addr().String())
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.Sockets(n)
		r := newRunner(t, &nsnet.Pods{List: []*owner.Pod{s.Pod("a")}}, names, factories)
		idle := cycles(r, 7, nil)
		used := cycles(r, 5, func() { say(t, c, d) })
		t.Logf("%10d %22.0f %22.0f", n, idle, used)
		_ = d.Close()
	}
}

// say sends a byte and reads it.
func say(t *testing.T, from, to net.Conn) {
	t.Helper()
	var b [1]byte
	if _, err := from.Write(b[:]); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the acknowledgement
}

// curveProcesses: idle processes of the host.
func curveProcesses(t *testing.T) {
	names, factories := procfsProbes()
	t.Logf("%10s %16s %16s %16s", "processes", "11 probes, us", "fd, us", "io, us")
	started := 0
	for _, n := range []int{0, 500, 1000, 2000} {
		for ; started < n; started++ {
			testkit.Hold(t, exec.Command("cat"))
		}
		one := func(names ...string) float64 {
			return cycles(newRunner(t, &nsnet.Pods{}, names, factories), 7, nil)
		}
		t.Logf("%10d %16.0f %16.0f %16.0f", n, one(without(names, processProbes)...), one("fd"), one("io"))
	}
}
