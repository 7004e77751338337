// Command kernels proves on which kernels each hook of each probe loads and counts
// what was caused. It runs the project's tests inside VMs, one per kernel that
// Debian ships, and compares the results with testdata/support.tsv.
//
// `make test-kernels` builds and runs it; README.md beside it has the flags. It
// needs QEMU and the Debian archive's keyring (make deps), 1.5 GiB for each VM,
// /dev/net/tun, and root or user namespaces; the first time it downloads the
// kernels. It is not part of `make test`, which uses the machine's kernel.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

// series are the kernels that run by default, slowest first.
var series = map[string][]string{
	"amd64": {newest, "5.10", newest + "-" + rt, "6.12", "6.1", "6.18"},
	"arm64": {"6.12", "6.1"},
}

// packages lists the packages with tests that depend on the kernel.
var packages = []string{"bpf", "collect/trace", "collect/proc", "collect/netlink"}

// seldom lists tests that depend little on the kernel, and the kernels on which
// they run all the same: emulated CPUs are slow, and each kernel takes a run.
var seldom = []struct {
	tests string
	on    []string
}{
	{"TestLoad", nil},    // TestRungs does more
	{"TestDrained", nil}, // a tool of the tests
	// The loader's messages about a failure.
	{"TestLoaderErrors|TestLimitRaised", []string{"5.10"}},
	// Tests of the loader's own tables and limits, and of parsers with captured
	// files. The machine that runs make test runs these, on its own kernel.
	{"TestObjectsOfBothArchitectures|TestLeaks|TestMemory|TestRingFull|TestForget|TestEventsOff|TestManyNamespaces|TestUnownedLeaveTheMaps", nil},
	{"TestSymbolsRefreshRarely|TestShares|TestManyFlows|TestFlowSeriesAreShared|TestRoomIsSaid|TestMillionDescriptors|TestLoopWhileRTNLIsHeld", nil},
	// The creator of a namespace comes from the kernel. How the tables fill up does not
	// depend on the kernel.
	{"TestRoom", []string{"5.10"}},
	{"TestDropsWithoutRoom|TestRoomForFollowed|TestEventRoom|TestRoomForPods", nil},
	// Each kind of reset in each direction. TestTCPReset compares the rungs on each kernel.
	{"TestTCPResetSent", []string{newest}},
	{"TestTCPResetReceived", []string{"5.10"}},
	// All kernels use the same code to add a clock's offset.
	{"TestEventTime", []string{"5.10"}},
	{"TestEventTimeInTimeNamespace", nil},
	// What user space makes of the programs' tables. The machine that runs make test has it.
	{"TestEntriesTellWhatTheKernelHeldBack|TestHistogramsAsTheOptionSays", nil},
	// Whose an event or a counter is. The same code decides that on all kernels, from fields
	// that TestRungs and the tests of each probe read.
	{"TestBlockEvents|TestUnidentifiedPod|TestResetsOfAPod|TestLossOfAPod|TestFlowVLAN", []string{"5.10"}},
	// Queues of many entries. The machine that runs make test has each hook of the probe.
	{"TestSocketlatencyStandingQueueRead|TestSocketlatencyStandingQueueWrite", []string{"5.10"}},
	// How the probes of files and netlink use what they read. The tests against ip, ss, tc and
	// others run on each kernel.
	{"TestIOShim|TestNetFiles|TestLedgerInvented|TestInterfacesOfTheHost|TestInterfacesAreAskedForOnce", []string{"5.10"}},
	{"TestIOIgnored|TestIOTwoPods|TestQdiscTrees|TestTCPTextEqualsSockDiag|TestConntrackFile|TestFamilies", []string{"5.10", "6.12"}},
	{"TestTCPResetWithoutSymbols", []string{"5.10"}},
	{"TestEndedPodLeavesTheMaps|TestIdleFlowsLeaveTheMap", []string{"5.10"}},
	// It runs hundreds of commands, and compares what every kernel numbers in the same way.
	{"TestInterfacesByIdentity", nil},
	// RTNL is held in the same way on all kernels.
	{"TestFlowWhileRTNLIsHeld|TestLoadWhileRTNLIsHeld", []string{newest}},
	{"TestDamaged|TestTruncated|TestTCPSummaryText|TestTCPSummaryMany|TestTCPSummaryFollows", nil},
	// The whole program, which loads what TestRungs does. The oldest kernel refuses most.
	{"TestEveryProbeLoadsOrSaysWhy", []string{"5.10"}},
	// The hooks see a packet above the driver.
	{"TestKernellatencyOfANIC", []string{newest}},
	// The newest kernel's real-time flavour has the same reasons and paths.
	{"TestHealthy", append([]string{"5.10"}, realtime...)},
	// Which address of a service an event or a flow shows. Conntrack's tables are the same
	// on all kernels; the machine that runs make test has it.
	{"TestServiceAddress", nil},
	// How the next namespace with a number differs. All kernels draw the same value.
	{"TestStrangerOfTheSameNumber", []string{"5.10"}},
	// The text of a block I/O's events.
	{"TestBiolatencyTells", []string{"5.10"}},
	// It reads captured files.
	{"TestLibrary", nil},
	// Requests that end without a tracepoint, which newer kernels do not need.
	{"TestBiolatencyMerged", []string{"5.10", "6.1"}},
	// The owner of a histogram, and that none is counted when it is off, are the same
	// code on all kernels.
	{"TestHistogramsOff|TestHistogramsOfStrangers", nil},
	// The programs' other tests compare each histogram with the probe's counters
	// when they end.
	{"TestHistogramsOfSockets|TestHistogramsOfDevices|TestHistogramsOfDisks", []string{"5.10", newest}},
	// A process's PID in its PID namespace; the test covers another part with
	// each hook.
	{"TestBiolatencyOwnInPIDNamespace", []string{"5.10", newest}},
	// Needs a containerd, which the VMs do not have.
	{"TestExecBetweenSamples", nil},
	// Sockets that come and go on another CPU, of which the VMs have none.
	{"TestTCPWalkBesideChurn", nil},
	// Many processes in turn.
	{"TestIOReaped|TestIOEachRead|TestIORestarted|TestFDComesAndGoes", nil},
	// Other programs beside the probe flow on a device. This kernel attaches by
	// clsact, and segments a packet as older kernels do; the machine that runs make
	// test has tcx.
	{"TestFlowLeavesForeignFilters|TestFlowTakesStaleFiltersOnly|TestFlowDevicesComeAndGo|TestFlowForwardedSegments|TestFlowSegmentsOfOtherKinds", []string{"5.10"}},
}

// The kernels between the oldest and the newest, and the other flavours.
var (
	inner    = []string{"6.1", "6.12", "6.18"}
	middle   = []string{"6.12"}
	realtime = []string{newest + "-" + rt}
)

// between lists the tests that run on the amd64 kernels between the oldest and the newest,
// and on the flavours other than cloud. The oldest and the newest kernel run all tests
// except the seldom ones. A probe differs between kernels only in the hooks and fields that
// it uses. TestRungs therefore loads each rung on every kernel, and one test per probe
// compares the count of each rung with what was caused (the comparison with support.tsv
// fails if there is no such test). The other tests run on the oldest kernel, which has the
// fewest hooks, on the newest, and on one in the middle; their results are the same on
// neighbouring kernels.
//
// With PREEMPT_RT, softirqs run in threads, a task may preempt another's program, and
// spinlocks sleep. Debian's rt flavour otherwise has the settings of the generic flavour, so
// a test on it covers the generic flavour too, and covers the cloud kernel of its series where
// that kernel differs in nothing that the test sees. The newest kernel has it.
var between = []struct {
	tests string
	on    []string
	why   string
}{
	{"TestRungs|TestBlindness|TestSighted|TestLayouts|TestDefinitions|TestReasons|TestKernelReasons", slices.Concat(inner, realtime), "what this kernel has"},
	// With real-time preemption TestBiolatencyQueue shows this: it knows which I/O the kernel
	// has skipped, because it preempted the program in another task.
	{"TestBiolatency|TestBiolatencyMerged", inner, "what each rung counts"},
	{"TestFlow|TestFlowUnits|TestFlowForwarded|TestKernellatency|TestNetSoftirq|TestNetiftxlatencyCountsAll|TestNetiftxlatencyFullQueue|TestSocketlatencySlow|TestTCPReset|TestTCPRetrans|TestVirtcmdlatency|TestVirtcmdlatencyOfADevice|TestPacketlossNetfilter", slices.Concat(inner, realtime), "what each rung counts"},
	{"TestBiolatencyQueue|TestNetiftxlatencyByDelay", realtime, "where each rung begins and ends"},
	{"TestChainWithoutGap", slices.Concat(middle, realtime), "programs that call each other"},
	{"TestHistogramsInParallel|TestHistogramsOfTheStack", realtime, "what programs count that preempt each other"},
	{"TestPacketloss.*|TestLossSockets|TestLossRouter|TestLossTCP|TestLossDevices|TestLossRules", []string{"6.1", "6.12"}, "the kernel's reasons for a loss, of which each series has more"},
	{"TestNetiftxlatencySegments|TestNetiftxlatencySegmentsByDelay", middle, "where the kernel segments a packet"},
	{"TestHealthy|TestKernellatencyHealthy|TestNetiftxlatencyHealthy|TestSocketlatencyHealthy|TestTCPHealthy|TestNoLossOfAPod", realtime, "a healthy machine"},
	{"TestTCPRetransByLoss|TestTCPRetransByReordering|TestTCPRetransKinds", middle, "TCP's own tracepoints"},
	// With real-time preemption the files and netlink's answers are those of the series.
	{"Test.*Against.*|TestIOMoves|TestIOIdle", inner, "what the probes of files and netlink count"},
	{"TestIOTwoPods|TestIOIgnored|TestQdiscTrees|TestTCPTextEqualsSockDiag|TestConntrackFile|TestConntrackModule|TestFamilies|TestListTCP|TestWatch", middle, "the kernel's files and its answers to netlink"},
}

// names reports whether a table's list names a series. The only kernel of the rt flavour
// is the newest.
func names(on []string, series string) bool {
	return slices.Contains(on, series) || slices.Contains(on, newest+"-"+rt) && strings.HasSuffix(series, "-"+rt)
}

// betweenOn returns patterns of the tests that the table between lists for a kernel.
func betweenOn(series string) (patterns []string) {
	for _, t := range between {
		if names(t.on, series) {
			patterns = append(patterns, "^("+t.tests+")$")
		}
	}
	return patterns
}

// listed reports whether the table between names a kernel.
func listed(arch, series string) bool {
	return arch == "amd64" && (slices.Contains(inner, series) || strings.Contains(series, "-"))
}

// turnOf returns which rungs a kernel uses in tests that take turns. Neighbouring
// kernels use different ones. The result does not depend on which kernels run.
func turnOf(series string) int {
	turn := 0
	for _, older := range []string{"5.10", "6.1", "6.12", "6.18"} {
		if compareSeries(older, series) < 0 {
			turn++
		}
	}
	return turn
}

// The halves of the tests of bpf.
const (
	firstHalf  = "^Test[^L-Z]"
	secondHalf = "^Test[L-Z]"
)

// special is the kernel that is also booted under lockdown.
const special = "6.12"

type options struct {
	arch, kernels, run, skip, packages, variants, accel, icount, cache, table string
	jobs, count, dearest                                                      int
	refresh, update, keep, again, all                                         bool
	timeout                                                                   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.arch, "arch", "amd64", "architecture of the VMs: amd64 or arm64")
	flag.StringVar(&o.kernels, "kernels", "", "kernels, as `6.1,newest`; default all")
	flag.StringVar(&o.variants, "variants", allVariants, "boot variants: 1 is the plain boot")
	flag.StringVar(&o.packages, "packages", strings.Join(packages, ","), "packages whose tests run")
	flag.StringVar(&o.run, "run", "", "only tests that match the `regexp`; support.tsv is then left alone")
	flag.StringVar(&o.skip, "skip", "", "no tests that match the `regexp`")
	flag.IntVar(&o.count, "count", 1, "how often to run each test, to look for one that fails now and then")
	flag.IntVar(&o.dearest, "costs", 12, "print as many of the tests that take most CPU time")
	flag.IntVar(&o.jobs, "j", jobs(), "VMs at a time, of 1.5 GiB each")
	flag.StringVar(&o.accel, "accel", "tcg,thread=single", "QEMU's accelerator; kvm where there is one")
	flag.StringVar(&o.icount, "icount", "shift=1,sleep=on", "QEMU's -icount, which ties the VM's time to the instructions that it runs; empty: real time")
	flag.DurationVar(&o.timeout, "timeout", 80*time.Minute, "time that one VM may take; its tests get as much by its own clock")
	flag.StringVar(&o.cache, "cache", "", "folder for kernels and programs; default $NODESKOOP_CACHE, else nodeskoop in the user's cache folder")
	flag.BoolVar(&o.refresh, "refresh", false, "look for newer kernels than the cached ones")
	flag.BoolVar(&o.update, "update", false, "write what was found to support.tsv")
	flag.BoolVar(&o.all, "all", false, "run on each kernel what otherwise runs on the oldest and the newest alone")
	flag.BoolVar(&o.keep, "keep", false, "keep the VMs' files, and print how to boot them")
	flag.BoolVar(&o.again, "again", false, "run nothing: read the logs of the last run again")
	flag.StringVar(&o.table, "readme", "", "run nothing; print docs/kernels.md's table made from this support.tsv")
	disk := flag.String("disk", "", "run no tests: boot this disk `image`, with the first of the kernels, until it turns itself off")
	results := flag.String("results", "results", "the file for what a disk image's system writes to the virtio port of this name")
	memory := flag.Int("memory", 3072, "MiB of a VM that boots a disk image")
	device := flag.String("sink", "", "run nothing: make this tap `device` consume what is written to it")
	flag.Parse()
	if *device != "" {
		if err := sink(*device); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if o.table != "" {
		if err := printReadme(o.table); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, err := untilTold()
	ok := *disk != ""
	switch {
	case err != nil:
	case ok:
		err = bootDisk(ctx, &o, *disk, *results, *memory)
	default:
		ok, err = kernels(ctx, &o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-kernels:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// jobs returns how many VMs run at a time. A VM waits more than half of its time, so there are
// four for each CPU, if they fit into the memory. The slowest start first and have the higher
// priority, so that none of them runs alone at the end.
func jobs() int {
	n := 4 * runtime.NumCPU()
	if proc, err := procfs.NewDefaultFS(); err == nil {
		if m, err := proc.Meminfo(); err == nil && m.MemAvailableBytes != nil {
			n = min(n, int(*m.MemAvailableBytes>>31)) // 2 GiB with QEMU's own memory
		}
	}
	return max(1, n)
}

func kernels(ctx context.Context, o *options) (ok bool, err error) {
	wanted, known := series[o.arch]
	if !known {
		return false, fmt.Errorf("-arch %s: it is amd64 or arm64", o.arch)
	}
	if o.kernels != "" {
		wanted = strings.Split(o.kernels, ",")
	}
	root, archive, err := o.begin()
	if err != nil {
		return false, err
	}
	logs := filepath.Join(root, "build", "kernels")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return false, err
	}
	if o.again {
		reports, err := o.reread(logs)
		if err != nil {
			return false, err
		}
		return o.conclude(root, reports, nil, nil)
	}
	qemu := map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[o.arch]
	if _, err := exec.LookPath(qemu); err != nil {
		return false, fmt.Errorf("needs %s: apt-get install qemu-system-x86 qemu-system-arm (make deps does)", qemu)
	}
	userland, err := fetchUserland(o.cache, archive, o.arch)
	if err != nil {
		return false, fmt.Errorf("the VMs' programs: %w", err)
	}
	var found []*kernel
	var missing []string
	for _, s := range wanted {
		k, err := fetchKernel(o.cache, archive, o.arch, s, o.refresh)
		if err != nil {
			missing = append(missing, fmt.Sprintf("kernel %s is skipped: %v", s, err))
			fmt.Fprintln(os.Stderr, missing[len(missing)-1])
			continue
		}
		if slices.ContainsFunc(found, func(f *kernel) bool { return f.Release == k.Release }) {
			continue
		}
		found = append(found, k)
	}

	built, err := os.MkdirTemp("", "nodeskoop-kernels-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(built)
	tests, err := build(ctx, root, built, o)
	if err != nil {
		return false, err
	}

	machines := o.machines(found, logs)
	if len(machines) == 0 {
		return false, errors.New("there is nothing to run")
	}
	results := make([]result, len(machines))
	slots := make(chan struct{}, max(1, o.jobs))
	var wg sync.WaitGroup
	for i, m := range machines {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			start := time.Now()
			text, err := m.run(ctx, userland, tests, o.keep)
			if err != nil && ctx.Err() == nil && !strings.Contains(text, "\n@run ") {
				// That is not a failure of the tests, since none was started.
				fmt.Fprintf(os.Stderr, "%s did not come up, once more: %v\n", m.name(), err)
				text, err = m.run(ctx, userland, tests, o.keep)
			}
			results[i] = result{m, text, err}
			r := newReport(results[i])
			fmt.Fprintf(os.Stderr, "%-14s %s, %d tests passed, %d failed, %d skipped, in %.0f s (%.0f s of CPU)\n",
				m.name(), m.kernel.Release, r.passed, len(r.failed), len(r.skipped), time.Since(start).Seconds(), m.cpu.Seconds())
		})
	}
	wg.Wait()
	return o.conclude(root, joined(results), wanted, missing)
}

// result is what a VM has written, and what went wrong with it.
type result struct {
	machine *machine
	text    string
	err     error
}

func newReport(of result) *report {
	r := &report{machine: of.machine, err: of.err}
	r.read(of.text)
	r.check()
	return r
}

// joined makes one report of the parts of a boot.
func joined(results []result) (reports []*report) {
	whole := map[string]*result{}
	var names []string
	for _, of := range results {
		name := of.machine.name()
		first, known := whole[name]
		if !known {
			of.machine.part = 0
			whole[name], names = &of, append(names, name)
			continue
		}
		first.text += of.text
		first.err = errors.Join(first.err, of.err)
		first.machine.cpu += of.machine.cpu
		for test, took := range of.machine.costs {
			first.machine.costs[test] += took
		}
	}
	for _, name := range names {
		reports = append(reports, newReport(*whole[name]))
	}
	return reports
}

// begin finds the project and the folder of the cache, and returns how to reach Debian's
// archive.
func (o *options) begin() (root string, archive func() (*apt, error), err error) {
	if root, err = moduleRoot(); err != nil {
		return "", nil, err
	}
	if o.cache, err = cacheFolder(o.cache); err != nil {
		return "", nil, err
	}
	return root, sync.OnceValues(func() (*apt, error) { return newApt(filepath.Join(o.cache, o.arch, "apt"), o.arch) }), nil
}

// reread makes reports from existing logs of plain boots.
func (o *options) reread(logs string) (reports []*report, err error) {
	files, err := filepath.Glob(filepath.Join(logs, o.arch+"-*.log"))
	if err != nil {
		return nil, err
	}
	var results []result
	for _, f := range files {
		series, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), o.arch+"-"), ".log"), "+")
		if strings.HasSuffix(series, "-"+lockdown) || o.kernels != "" && !slices.Contains(strings.Split(o.kernels, ","), series) {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		of := result{machine: &machine{arch: o.arch, variant: plain, kernel: &kernel{Release: series}, costs: costs{}}, text: string(text)}
		if !strings.Contains(of.text, "\n@done ") {
			of.err = errors.New("it ended before its tests did")
		}
		results = append(results, of)
	}
	reports = joined(results)
	if len(reports) == 0 {
		return nil, fmt.Errorf("%s has no logs for %s", logs, o.arch)
	}
	return reports, nil
}

// machines returns the VMs to run: each kernel, and the special boots of one.
func (o *options) machines(found []*kernel, logs string) (machines []*machine) {
	variants := strings.Split(o.variants, ",")
	add := func(k *kernel, variant string, part int, tests []test) {
		if !slices.Contains(variants, variant) {
			return
		}
		name := o.arch + "-" + k.series()
		if variant != plain {
			name += "-" + variant
		}
		if part > 1 {
			name += fmt.Sprintf("+%d", part)
		}
		machines = append(machines, &machine{
			arch: o.arch, accel: o.accel, icount: o.icount, kernel: k, variant: variant, tests: tests,
			timeout: o.timeout, logs: filepath.Join(logs, name), turn: turnOf(k.series()), part: part, costs: costs{},
		})
	}
	var last *kernel
	for _, k := range found {
		if !listed(o.arch, k.series()) && (last == nil || compareSeries(k.series(), last.series()) > 0) {
			last = k
		}
	}
	for _, k := range found {
		var left []string
		for _, t := range seldom {
			if !names(t.on, k.series()) && !(slices.Contains(t.on, newest) && k == last) {
				left = append(left, "^("+t.tests+")$")
			}
		}
		if o.skip != "" {
			left = append(left, o.skip)
		}
		skip := strings.Join(left, "|")
		run := o.run
		if run == "" && !o.all && listed(o.arch, k.series()) {
			run = strings.Join(betweenOn(k.series()), "|")
		}
		var tests []test
		for _, p := range strings.Split(o.packages, ",") {
			tests = append(tests, o.test(p, run, skip))
		}
		if run != "" || len(tests) < 2 {
			add(k, plain, 0, tests)
			continue
		}
		// All tests in one VM would go on when the other kernels' have ended.
		tests[0] = o.test(packages[0], firstHalf, skip)
		add(k, plain, 1, tests)
		add(k, plain, 2, []test{o.test(packages[0], secondHalf, skip)})
	}
	for _, k := range found {
		if k.series() != special || o.run != "" && o.variants == allVariants {
			continue
		}
		add(k, lockdown, 0, []test{o.test("collect/trace", cmp.Or(o.run, "^TestLockdown$"), "")})
	}
	return machines
}

// test runs the tests of a package, in the same folder as on this machine.
func (o *options) test(pkg, run, skip string) test {
	limit := o.timeout - time.Minute
	args := []string{"/t/" + testFile(pkg), "-test.v", "-test.timeout=" + limit.String()}
	if o.count != 1 {
		args = append(args, fmt.Sprintf("-test.count=%d", o.count))
	}
	if run != "" {
		args = append(args, "-test.run="+run)
	}
	if skip != "" {
		args = append(args, "-test.skip="+skip)
	}
	dir := "/t/" + pkg
	if pkg == "collect/proc" {
		dir = "/disk/" + pkg // the probe io counts I/O that reaches a disk
	}
	return test{Name: strings.ReplaceAll(pkg, "/", "."), Dir: dir, Args: args, Timeout: o.timeout}
}

func testFile(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }

// build builds what the VMs run: the tests, the program itself, and the first
// process.
func build(ctx context.Context, root, dir string, o *options) (tree, error) {
	fmt.Fprintf(os.Stderr, "building the tests for %s\n", o.arch)
	t := tree{}
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+o.arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	for _, p := range strings.Split(o.packages, ",") {
		file := filepath.Join(dir, testFile(p))
		if err := run("test", "-c", "-ldflags=-s -w", "-o", file, "./"+p); err != nil {
			return nil, err
		}
		if err := t.add("t/"+testFile(p), file, 0o755); err != nil {
			return nil, err
		}
		t.dir("t/" + p)
		if err := t.addAll(root, filepath.Join(p, "testdata"), "t"); err != nil {
			return nil, err
		}
	}
	if err := t.addAll(root, "testdata/spec", "t"); err != nil {
		return nil, err
	}
	for name, p := range map[string]string{"usr/bin/nodeskoop": "./cmd/nodeskoop", "init": "./internal/e2e/kernels/init"} {
		file := filepath.Join(dir, filepath.Base(name))
		if err := run("build", "-trimpath", "-ldflags=-s -w", "-o", file, p); err != nil {
			return nil, err
		}
		if err := t.add(name, file, 0o755); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// addAll copies a folder, if there is one.
func (t tree) addAll(root, dir, to string) error {
	err := filepath.WalkDir(filepath.Join(root, dir), func(file string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		return t.add(filepath.Join(to, name), file, 0o644)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// skipsAllowed are the reasons for which a test may be skipped in a VM.
var skipsAllowed = regexp.MustCompile(`^this (kernel|containerd): |^long test|^runs by make `)

// check turns skipped tests and suites into failures, unless the VM had no way to run
// them.
func (r *report) check() {
	for _, t := range r.machine.tests {
		if !slices.Contains(r.ended, t.Name) && r.err == nil {
			r.failed = append(r.failed, t.Name+": did not run")
		}
	}
	for test, reason := range r.skipped {
		if !skipsAllowed.MatchString(reason) {
			r.failed = append(r.failed, fmt.Sprintf("%s is skipped: %s", test, reason))
		}
	}
	if r.machine.variant != plain && r.err == nil && r.passed == 0 {
		r.failed = append(r.failed, "no test passed, and this boot is there for one")
	}
	slices.Sort(r.failed)
}

// conclude prints all results, and reports whether they are as expected.
func (o *options) conclude(root string, reports []*report, wanted, missing []string) (ok bool, err error) {
	file := filepath.Join(root, "testdata", "support.tsv")
	expected, err := readSupport(file)
	if err != nil {
		return false, err
	}
	whole := o.run == "" && o.skip == "" && o.packages == strings.Join(packages, ",")
	ok = true
	ran := 0
	var plains []*report
	for _, r := range reports {
		ok = ok && r.ok()
		if r.machine.variant == plain && r.err == nil {
			plains = append(plains, r)
			ran++
		}
	}
	slices.SortStableFunc(plains, func(x, y *report) int {
		return compareSeries(x.machine.kernel.series(), y.machine.kernel.series())
	})
	fmt.Printf("\n%s\n", table(plains))
	for _, r := range reports {
		r.print()
	}
	if o.dearest > 0 && len(reports) > 0 && len(reports[0].machine.costs) > 0 {
		fmt.Printf("\n%s\n\n", costTable(reports, o.dearest))
	}
	if whole {
		for _, r := range plains {
			failures, notes := compare(r, expected)
			for _, n := range notes {
				fmt.Println(n)
			}
			for _, f := range failures {
				fmt.Printf("%s: %s\n", r.machine.name(), f)
			}
			ok = ok && (len(failures) == 0 || o.update)
		}
		if o.update {
			if err := os.WriteFile(file, formatSupport(updated(expected, plains)), 0o644); err != nil {
				return false, err
			}
			fmt.Println("written:", file)
		}
	}
	for _, m := range missing {
		fmt.Println(m)
	}
	if slices.Contains(strings.Split(o.variants, ","), plain) && ran < min(3, len(wanted)) {
		return false, fmt.Errorf("%d kernels ran, and %d are the least", ran, min(3, len(wanted)))
	}
	if !ok {
		return false, fmt.Errorf("failed; what the tests said is in %s", filepath.Join(root, "build", "kernels"))
	}
	fmt.Printf("%d kernels as support.tsv says\n", ran)
	return true, nil
}

func (r *report) print() {
	for _, n := range r.notes {
		fmt.Printf("%s: note: %s\n", r.machine.name(), n)
	}
	if r.err != nil {
		fmt.Printf("%s: FAIL: %v\n", r.machine.name(), r.err)
	}
	for _, f := range r.failed {
		fmt.Printf("%s: FAIL: %s\n", r.machine.name(), f)
		said := r.said[f]
		for _, s := range said[max(0, len(said)-10):] {
			fmt.Printf("    %s\n", s)
		}
	}
}

func cacheFolder(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv("NODESKOOP_CACHE")
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no folder to keep kernels in (%w): set NODESKOOP_CACHE", err)
		}
		dir = filepath.Join(user, "nodeskoop")
	}
	dir, err := filepath.Abs(filepath.Join(dir, "kernels"))
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w: run this inside the project", err)
	}
	return strings.TrimSpace(string(out)), nil
}
