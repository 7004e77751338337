package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

const (
	profileEnv  = "NODESKOOP_PROFILED" // folder for a daemon's profiles
	profileTime = time.Minute
)

// profiled runs the daemon in this process, with profiles taken between SIGUSR1 and
// SIGUSR2. The released program has no such signals.
func profiled(dir string) int {
	runtime.MemProfileRate = 512
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	var cpu *os.File
	go func() {
		for s := range signals {
			name := "allocs-before"
			var err error
			if s == syscall.SIGUSR2 {
				name = "allocs-after"
				pprof.StopCPUProfile()
				err = cpu.Close()
			}
			var f *os.File
			if err == nil {
				f, err = os.Create(filepath.Join(dir, name))
			}
			if err == nil {
				err = pprof.Lookup("allocs").WriteTo(f, 0)
				_ = f.Close()
			}
			if err == nil && s == syscall.SIGUSR1 {
				if cpu, err = os.Create(filepath.Join(dir, "cpu")); err == nil {
					err = pprof.StartCPUProfile(cpu)
				}
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name+".done"), nil, 0o644)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "profile: %v\n", err)
				os.Exit(exitFailure)
			}
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args, os.Stdout, os.Stderr)
}

// BenchmarkDaemon runs the daemon beside 0, 110 and 500 real pods, as
// Daemon/PODS/PROBES. Each result gives:
//
//	cpu-ms/cycle       CPU time of the daemon in a cycle, reading events included
//	bpf-%cpu           share of one CPU that runs of its BPF programs took
//	bpf-runs/s         how many runs those were
//	resident-MiB, anonymous-MiB
//	series             of one cycle
//
// With NODESKOOP_PROFILES the profiles stay in that folder, beside cpu.txt and
// allocs.txt, which list the most expensive functions.
func BenchmarkDaemon(b *testing.B) {
	need.Root(b)
	need.Program(b, "go")
	out := cmp.Or(os.Getenv("NODESKOOP_PROFILES"), b.TempDir())
	ctd := pods.Start(b)
	made := 0
	for _, n := range []int{0, 110, 500} {
		start, at := machineCPU(b), time.Now()
		makePods(b, ctd, made, n)
		if n > made {
			b.Logf("%d more pods took %.2f s of CPU and %.2f s each", n-made, (machineCPU(b)-start).Seconds()/float64(n-made), time.Since(at).Seconds()/float64(n-made))
		}
		made = n
		for _, probes := range []string{"default", "all"} {
			b.Run(fmt.Sprintf("%d/%s", n, probes), func(b *testing.B) {
				for b.Loop() {
					profileDaemon(b, ctd, filepath.Join(out, fmt.Sprintf("%d-%s", n, probes)), n, probes)
				}
			})
		}
	}
}

// makePods creates idle pods: a server with a health request every few seconds.
func makePods(b *testing.B, ctd *pods.Containerd, from, to int) {
	b.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				if _, err := ctd.TryRunPod(ctx, pods.PodSpec{Namespace: "shop", Name: fmt.Sprintf("web-%d", i), Containers: []pods.ContainerSpec{{
					Name:    "main",
					Command: []string{"sh", "-c", "echo fine > /tmp/health; httpd -p 8080 -h /tmp; while :; do sleep 10; wget -q -O /dev/null http://127.0.0.1:8080/health; done"},
				}}}); err != nil {
					b.Errorf("pod %d: %v", i, err)
				}
				cancel()
			}
		})
	}
	for i := from; i < to; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

func profileDaemon(b *testing.B, ctd *pods.Containerd, dir string, n int, probes string) {
	b.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		b.Fatal(err)
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	config := filepath.Join(dir, "nodeskoop.toml")
	text := fmt.Sprintf("node_name = 'profile'\ninterval = '1s'\nhost_netns = '%s'\n[probes]\nenabled = ['%s', '-virtcmdlatency']\n[textfile]\ndir = '%s'\n[pods]\nsockets = ['%s']\n", ctd.Netns, probes, dir, ctd.Socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "run", "--config", config)
	cmd.Env = append(os.Environ(), profileEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := ctd.Do(cmd.Start); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	file := filepath.Join(dir, "nodeskoop.prom")
	sample := func() map[string]float64 {
		values := map[string]float64{}
		for name, f := range parseProm(b, file) {
			for _, m := range f.Metric {
				values[name] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return values
	}
	signalled := func(s syscall.Signal, done string) {
		b.Helper()
		if err := cmd.Process.Signal(s); err != nil {
			b.Fatal(err)
		}
		testkit.Eventually(b, "the daemon's profile "+done, func() bool {
			_, err := os.Stat(filepath.Join(dir, done+".done"))
			return err == nil
		})
	}
	testkit.Eventually(b, fmt.Sprintf("a textfile with %d pods", n), func() bool { return int(sample()["nodeskoop_pods"]) == n })
	time.Sleep(5 * time.Second) // let buffers grow

	signalled(syscall.SIGUSR1, "allocs-before")
	before, from, at := sample(), usageOf(b, cmd.Process.Pid), time.Now()
	time.Sleep(profileTime)
	after, to := sample(), usageOf(b, cmd.Process.Pid)
	took := time.Since(at)
	signalled(syscall.SIGUSR2, "allocs-after")

	grown := func(name string) float64 { return after[name] - before[name] }
	cycles := took.Seconds() - grown("nodeskoop_cycles_missed_total") // one per second
	b.ReportMetric(0, "ns/op")                                        // no time per operation
	b.ReportMetric(float64((to.CPU-from.CPU).Microseconds())/1000/cycles, "cpu-ms/cycle")
	b.ReportMetric(100*grown("nodeskoop_bpf_run_seconds_total")/took.Seconds(), "bpf-%cpu")
	b.ReportMetric(grown("nodeskoop_bpf_runs_total")/took.Seconds(), "bpf-runs/s")
	b.ReportMetric(after["nodeskoop_series"], "series")
	b.ReportMetric(float64(to.Resident)/(1<<20), "resident-MiB")
	b.ReportMetric(float64(to.Anonymous)/(1<<20), "anonymous-MiB")
	top := func(name string, args ...string) {
		b.Helper()
		text, err := exec.Command("go", append([]string{"tool", "pprof", "-top", "-cum", "-show=^nodeskoop|^runtime.gcBgMarkWorker$|^runtime.mcall$", "-nodecount=32"}, args...)...).Output()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			b.Errorf("%s: %v", name, err)
		}
	}
	top("cpu.txt", filepath.Join(dir, "cpu"))
	top("allocs.txt", "-sample_index=alloc_space", "-base", filepath.Join(dir, "allocs-before"), filepath.Join(dir, "allocs-after"))
}

func usageOf(b *testing.B, pid int) testkit.Usage {
	b.Helper()
	u, err := testkit.UsageOf(pid)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

// machineCPU returns the busy time of all CPUs together.
func machineCPU(b *testing.B) (busy time.Duration) {
	b.Helper()
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(line) {
		if v, err := strconv.Atoi(f); err == nil && i != 4 && i != 5 && i < 9 {
			busy += time.Duration(v) * 10 * time.Millisecond
		}
	}
	return busy
}
