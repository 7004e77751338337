package bpf

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/servers"
)

// TestServers measures what probes cost nginx, Redis, PostgreSQL and memcached, for `make
// bench-servers`. Turns of a second with and without probes alternate. Each comparison is
// of neighbouring turns, so that both meet the same load from other processes.
//
//	NODESKOOP_SERVERS         the number of pairs of each comparison
//	NODESKOOP_SERVERS_ONLY    a regular expression for SERVER/WORKLOAD/PATH, to measure only some
//	NODESKOOP_SERVERS_PROBES  the sets of probes, with commas, instead of all
//	NODESKOOP_SERVERS_OUT     a file for the results
func TestServers(t *testing.T) {
	pairs, err := strconv.Atoi(os.Getenv("NODESKOOP_SERVERS"))
	need.Target(t, "bench-servers", err == nil && pairs > 0)
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	only, err := regexp.Compile(os.Getenv("NODESKOOP_SERVERS_ONLY"))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(machine())
	var results []servers.Result
	for _, k := range servers.Kinds {
		type turns struct {
			of   servers.Workload
			path servers.Path
		}
		var wanted []turns
		for _, w := range k.Workloads {
			for _, path := range servers.Paths {
				if only.MatchString(fmt.Sprintf("%s/%s/%s", k.Name, w.Name, path)) {
					wanted = append(wanted, turns{w, path})
				}
			}
		}
		if len(wanted) == 0 {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			s := servers.Start(t, k, root)
			following.add(t, Netns{s.Near.Inode, s.Near.Path})
			following.add(t, Netns{s.Far.Inode, s.Far.Path})
			apart := newSwitches(t, Options{NoChains: true})
			sets := serverSets(t, apart)
			for _, w := range wanted {
				for _, r := range compareSets(t, sets, pairs, func() servers.Turn { return s.Turn(w.of, w.path) }) {
					r.Server, r.Workload, r.Path = k.Name, w.of.Name, w.path
					t.Logf("%s, %s over %s, %s: CPU %s of %.1f us, of the server %s; rate %s of %.0f/s; p99 %s of %.0f us",
						r.Server, r.Workload, r.Path, r.Probes, r.CPU, r.BaseCPU, r.ServerCPU, r.Rate, r.BaseRate, r.P99, r.BaseP99)
					results = append(results, r)
				}
				t.Logf("%s, %s over %s:\n%s", k.Name, w.of.Name, w.path, apart.shares(t, func() servers.Turn { return s.Turn(w.of, w.path) }))
			}
		})
	}
	if out := os.Getenv("NODESKOOP_SERVERS_OUT"); out != "" && !t.Failed() {
		var text strings.Builder
		err := servers.Write(&text, machine(), results)
		if err == nil {
			err = os.WriteFile(out, []byte(text.String()), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// probeSet is a set of probes that turns have on.
type probeSet struct {
	name string
	on   []toggle
}

// serverSets loads the probes with the settings that the daemon has by default, and
// leaves them detached. "all apart" are all probes without chains, only on request.
func serverSets(t *testing.T, apart *probeSwitches) (sets []probeSet) {
	t.Helper()
	switches := newSwitches(t, Options{})
	var byDefault []toggle
	var alone []probeSet
	for _, name := range Probes() {
		one := switches.byName[name]
		if one == nil {
			t.Logf("probe %s does not work here: %v", name, switches.refused[name])
			continue
		}
		alone = append(alone, probeSet{name, []toggle{one}})
		if catalog.ProbeByName(name).Default {
			byDefault = append(byDefault, one)
		}
	}
	sets = append([]probeSet{
		{servers.Hooks, switches.empty(t)}, {servers.Default, byDefault}, {servers.All, toggles(switches.all())},
	}, alone...)
	if only := os.Getenv("NODESKOOP_SERVERS_PROBES"); only != "" {
		sets = append(sets, probeSet{servers.All + " apart", toggles(apart.all())})
		sets = slices.DeleteFunc(sets, func(s probeSet) bool { return !slices.Contains(strings.Split(only, ","), s.name) })
	}
	return sets
}

// shares runs a turn with all probes and returns a table of their programs: the runs of each
// for one request, and the time of these runs by the kernel's statistics.
func (s *probeSwitches) shares(t *testing.T, run func() servers.Turn) string {
	t.Helper()
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Sprintf("the kernel has no BPF statistics: %v", err)
	}
	defer stats.Close()
	type row struct {
		name string
		*ebpf.Program
		runs, ns float64
	}
	var rows []row
	for _, p := range s.all() {
		for name, program := range p.programs {
			rows = append(rows, row{name: p.name + " " + name, Program: program})
		}
		p.on(t)
		defer p.off(t)
	}
	count := func(sign float64) {
		for i := range rows {
			of, err := rows[i].Stats()
			if err != nil {
				t.Fatal(err)
			}
			rows[i].runs += sign * float64(of.RunCount)
			rows[i].ns += sign * float64(of.Runtime)
		}
	}
	count(-1)
	turn := run()
	count(1)
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(b.ns, a.ns) })
	var table strings.Builder
	for _, r := range rows {
		if r.runs > turn.Operations/1000 {
			fmt.Fprintf(&table, "%-40s %6.2f runs %6.0f ns\n", r.name, r.runs/turn.Operations, r.ns/turn.Operations)
		}
	}
	return table.String()
}

// compareSets compares turns with each set of probes to one without. Two sets share a turn
// without probes, which lies between them. Every second round has the reverse order, so
// that a steady trend affects both sides alike.
func compareSets(t *testing.T, sets []probeSet, pairs int, run func() servers.Turn) []servers.Result {
	t.Helper()
	runtime.GC()
	run() // warm up
	type values struct{ cpu, server, rate, p99, baseCPU, baseRate, baseP99 []float64 }
	by := make([]values, len(sets))
	with := func(set probeSet) servers.Turn {
		for _, p := range set.on {
			p.on(t)
		}
		defer func() {
			for _, p := range set.on {
				p.off(t)
			}
		}()
		return run()
	}
	for round := range pairs {
		// In round 2 and later each set has another neighbour.
		order := make([]int, len(sets))
		for i := range order {
			order[i] = (i + round/2) % len(sets)
		}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for two := range slices.Chunk(order, 2) {
			turns := make([]servers.Turn, len(two))
			first := len(two) == 2 || round%2 == 0
			if first {
				turns[0] = with(sets[two[0]])
			}
			off := run()
			if !first {
				turns[0] = with(sets[two[0]])
			}
			if len(two) == 2 {
				turns[1] = with(sets[two[1]])
			}
			for i, set := range two {
				v, on := &by[set], turns[i]
				v.cpu = append(v.cpu, on.CPU()/off.CPU())
				v.server = append(v.server, on.ServerCPU()/off.ServerCPU())
				v.rate = append(v.rate, on.Rate/off.Rate)
				v.p99 = append(v.p99, float64(on.P99)/float64(off.P99))
				v.baseCPU = append(v.baseCPU, off.CPU()/1e3)
				v.baseRate = append(v.baseRate, off.Rate)
				v.baseP99 = append(v.baseP99, float64(off.P99)/1e3)
			}
		}
	}
	results := make([]servers.Result, len(sets))
	for i, v := range by {
		results[i] = servers.Result{
			Probes: sets[i].name, Pairs: pairs,
			CPU: servers.RatioOf(v.cpu), ServerCPU: servers.RatioOf(v.server), Rate: servers.RatioOf(v.rate), P99: servers.RatioOf(v.p99),
			BaseCPU: median(v.baseCPU), BaseRate: median(v.baseRate), BaseP99: median(v.baseP99),
		}
	}
	return results
}

// machine describes this machine in one line.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpu := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	spectre, _ := os.ReadFile("/sys/devices/system/cpu/vulnerabilities/spectre_v2")
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-") // without the flavour
	return fmt.Sprintf("Linux %s, %d CPUs (%s; spectre_v2: %s), load %s", release, runtime.NumCPU(), cpu, strings.TrimSpace(string(spectre)), first)
}
