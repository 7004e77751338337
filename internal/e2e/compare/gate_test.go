package compare

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/proc"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/servers"
	"nodeskoop/output"
)

// budgetsFile holds the limit of each ratio, and the measured value.
const budgetsFile = "../../../testdata/budgets.tsv"

// budget is the limit of a ratio.
type budget struct {
	measured, limit float64
	against         string
}

func budgets(t testing.TB) map[string]*budget {
	t.Helper()
	text, err := os.ReadFile(budgetsFile)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*budget{}
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 {
			t.Fatalf("budgets.tsv line %d: %d fields, not 4", i+1, len(f))
		}
		measured, err1 := strconv.ParseFloat(f[1], 64)
		limit, err2 := strconv.ParseFloat(f[2], 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("budgets.tsv line %d: %v %v", i+1, err1, err2)
		}
		all[f[0]] = &budget{measured, limit, f[3]}
	}
	return all
}

// TestGate compares the ratios that are cheap to measure with their budgets. A
// ratio over its budget is measured once more: a disturbance by other programs
// passes, a regression stays.
func TestGate(t *testing.T) {
	need.Target(t, "bench-gate", os.Getenv("NODESKOOP_GATE") != "")
	need.Root(t)
	all := budgets(t)
	hold := func(t *testing.T, measure func(testing.TB) map[string]float64) {
		got := measure(t)
		over := func() (list []string) {
			for name, v := range got {
				if b := all[name]; b == nil || v > b.limit {
					list = append(list, name)
				}
			}
			return list
		}
		if len(over()) > 0 {
			for name, v := range measure(t) {
				got[name] = min(got[name], v)
			}
		}
		bad := over()
		for name, v := range got {
			if b := all[name]; b != nil {
				t.Logf("%-44s %6.2f  (budget %.2f, when it was set %.2f)", name, v, b.limit, b.measured)
			}
		}
		for _, name := range bad {
			if all[name] == nil {
				t.Errorf("%s has no line in budgets.tsv", name)
				continue
			}
			t.Errorf("%s: %.2f times its baseline, the budget is %.2f: make it cheaper, or say in budgets.tsv why it may cost more", name, got[name], all[name].limit)
		}
	}
	t.Run("cycle", func(t *testing.T) { hold(t, gateCycle) })
	t.Run("encode", func(t *testing.T) { hold(t, gateEncode) })
	t.Run("resident", func(t *testing.T) { hold(t, gateResident) })
	t.Run("programs", func(t *testing.T) { hold(t, gatePrograms) })
	t.Run("servers", func(t *testing.T) { hold(t, gateServers) })
}

// spaces creates namespaces with a process and some connections each.
func spaces(t testing.TB, n, connections int) *nsnet.Pods {
	t.Helper()
	pods := &nsnet.Pods{}
	for i := range n {
		s := nsnet.Make(t)
		s.Connections(connections)
		pods.List = append(pods.List, s.Pod(fmt.Sprintf("pod-%d", i)))
	}
	return pods
}

func procfsProbes() ([]string, []collect.Factory) {
	factories := append(proc.Probes(), netlink.Probes()...)
	var names []string
	for _, f := range factories {
		names = append(names, f.Name)
	}
	return names, factories
}

// newRunner creates the daemon's Runner for the namespaces of a test.
func newRunner(t testing.TB, pods owner.Pods, names []string, factories []collect.Factory) *collect.Runner {
	t.Helper()
	r, err := collect.NewRunner(collect.Options{Node: "node", HostLabel: "host", HostNetns: "/proc/self/ns/net", Enabled: names, Pods: pods}, factories...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// pairs runs two sides in turn and returns the ratios of their results.
func pairs(n int, ours, base func() float64) []float64 {
	ours()
	base()
	var out []float64
	for i := range n {
		var a, b float64
		if i%2 == 0 {
			a = ours()
			b = base()
		} else {
			b = base()
			a = ours()
		}
		out = append(out, a/b)
	}
	return out
}

const scrapes = 5 // scrapes of node_exporter in one turn

// cycleRatio is the CPU time of a cycle of the 13 probes per namespace, divided by
// that of a scrape of node_exporter, which reads one namespace.
func cycleRatio(t testing.TB, pods *nsnet.Pods, n int) []float64 {
	names, factories := procfsProbes()
	r := newRunner(t, pods, names, factories)
	e := startExporter(t)
	return pairs(n, func() float64 {
		start := testkit.OwnCPU()
		r.Cycle()
		return float64(testkit.OwnCPU()-start) / float64(len(pods.List)+1)
	}, func() float64 {
		start := cpuOf(t, e.Process)
		for range scrapes {
			scrape(t, e)
		}
		return float64(cpuOf(t, e.Process)-start) / scrapes
	})
}

func gateCycle(t testing.TB) map[string]float64 {
	pods := spaces(t, 20, 9)
	got := map[string]float64{"cycle per namespace / node_exporter scrape": ratioOf(cycleRatio(t, pods, 9)).mid}

	// Growth: twice the namespaces may cost twice as much. The process probes are
	// left out, since they would add the cost of the machine's own processes.
	names, factories := procfsProbes()
	names = slices.DeleteFunc(names, func(n string) bool { return n == "io" || n == "fd" })
	whole, half := newRunner(t, pods, names, factories), newRunner(t, &nsnet.Pods{List: pods.List[:10]}, names, factories)
	got["cycle of 20 namespaces / of 10"] = ratioOf(pairs(9, func() float64 { return cycleCPU(whole) }, func() float64 { return cycleCPU(half) })).mid

	// Idle sockets must not add cost, however many there are.
	crowd, quiet := nsnet.New(t), nsnet.New(t)
	crowd.Sockets(10000)
	many := newRunner(t, &nsnet.Pods{List: []*owner.Pod{crowd.Pod("crowd")}}, names, factories)
	few := newRunner(t, &nsnet.Pods{List: []*owner.Pod{quiet.Pod("quiet")}}, names, factories)
	got["cycle with 10,000 idle sockets / with none"] = ratioOf(pairs(9, func() float64 { return cycleCPU(many) }, func() float64 { return cycleCPU(few) })).mid
	return got
}

func gateEncode(t testing.TB) map[string]float64 {
	names, factories := procfsProbes()
	fams := newRunner(t, spaces(t, 20, 1), names, factories).Cycle()
	got := map[string]float64{}
	got["encode / expfmt alone"] = ratioOf(pairs(15, func() float64 {
		start := testkit.OwnCPU()
		for range 20 {
			if err := output.EncodeTo(io.Discard, fams, nil); err != nil {
				t.Fatal(err)
			}
		}
		return float64(testkit.OwnCPU() - start)
	}, func() float64 {
		start := testkit.OwnCPU()
		for range 20 {
			w := bufio.NewWriterSize(io.Discard, 64<<10)
			for _, f := range fams {
				if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
					t.Fatal(err)
				}
			}
		}
		return float64(testkit.OwnCPU() - start)
	})).mid
	return got
}

func cycleCPU(r *collect.Runner) float64 {
	start := testkit.OwnCPU()
	r.Cycle()
	return float64(testkit.OwnCPU() - start)
}

func gateResident(t testing.TB) map[string]float64 {
	e := startExporter(t)
	d, _ := daemon(t, "default", "1s")
	for range 10 {
		scrape(t, e)
		time.Sleep(500 * time.Millisecond) // the daemon's cycles
	}
	defer d.Stop()
	return map[string]float64{"resident memory / node_exporter's": residentOf(t, d) / residentOf(t, e.Process)}
}

// readsOfAPacket is the unit in budgets.tsv for programs that mostly read uncached
// memory, for which clock readings are no reference.
const readsOfAPacket = "a copy of a freed packet's structure and ten reads of it"

// gatePrograms measures, per BPF program, the cost of a run beyond that of an empty
// program at the same hook. Its unit is the cost of a program that reads the clock
// twice, also beyond an empty one. The cost of the empty program itself is not
// suitable as a unit: most of it comes from the statistics, whose cost differs more
// between machines than that of programs.
func gatePrograms(t testing.TB) map[string]float64 {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "Cost/programs", "-benchtime", "1x", "nodeskoop/bpf")
	cmd.Env = append(os.Environ(), "NODESKOOP_TEST_STRICT=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	all, got := budgets(t), map[string]float64{}
	for _, line := range strings.Split(string(out), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "BenchmarkCost/programs/") {
			continue
		}
		values := map[string]float64{}
		for i := 2; i+1 < len(f); i += 2 {
			values[f[i+1]], _ = strconv.ParseFloat(f[i], 64)
		}
		name := strings.TrimPrefix(f[0], "BenchmarkCost/programs/")
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i]
		}
		// A program that runs seldom cannot be measured well, and costs little.
		if values["runs"] < 10000 || values["reference-ns"] <= 0 {
			continue
		}
		// Another kernel chooses other programs.
		if all["program "+name] == nil {
			t.Logf("program %s has no budget: %.2f", name, values["net-ns"]/values["reference-ns"])
			continue
		}
		unit := "reference-ns"
		if strings.HasPrefix(all["program "+name].against, readsOfAPacket) {
			unit = "reads-ns"
		}
		got["program "+name] = math.Max(0, values["net-ns"]) / values[unit]
	}
	if len(got) == 0 {
		t.Fatalf("no program was measured on %s:\n%s", runtime.GOARCH, out)
	}
	return got
}

// gateServers reads what the default and all eBPF probes cost a server whose requests are
// small, over veth.
func gateServers(t testing.TB) map[string]float64 {
	out := filepath.Join(t.TempDir(), "servers.tsv")
	cmd := exec.Command("go", "test", "-count=1", "-run", "^TestServers$", "nodeskoop/bpf")
	cmd.Env = append(os.Environ(), "NODESKOOP_TEST_STRICT=1", "NODESKOOP_SERVERS=9", "NODESKOOP_SERVERS_ONLY=^Redis/GET/veth$",
		"NODESKOOP_SERVERS_PROBES=default,all", "NODESKOOP_SERVERS_OUT="+out)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, said)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, results, err := servers.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, r := range results {
		got[fmt.Sprintf("CPU of a %s %s over %s, %s probes / none", r.Server, r.Workload, r.Path, r.Probes)] = r.CPU.Mid
	}
	return got
}
