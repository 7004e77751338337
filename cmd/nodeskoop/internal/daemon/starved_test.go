package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodeskoop/internal/testkit/need"
)

// TestJudge: which part of the time without progress counts as hanging.
func TestJudge(t *testing.T) {
	const step = time.Second
	for name, c := range map[string]struct {
		late    time.Duration // extra delay of each look
		wait    time.Duration // time waiting for a CPU between two looks, over all threads
		used    time.Duration // CPU time between two looks
		unknown bool          // the kernel does not report waits
		tells   int           // number of looks until the kernel reports a wait; 0 means at each look
		looks   int
		min     time.Duration
		max     time.Duration
	}{
		"it hangs":                          {looks: 60, min: 57 * time.Second, max: 60 * time.Second},
		"it hangs, and no kernel tells":     {looks: 60, unknown: true, min: 57 * time.Second, max: 60 * time.Second},
		"it hangs on a busy machine":        {wait: step / 2, looks: 60, min: 28 * time.Second, max: 31 * time.Second},
		"it hangs while others run":         {wait: 3 * step, used: step / 2, looks: 60, min: 28 * time.Second, max: 31 * time.Second},
		"it has no CPU":                     {wait: step, looks: 600},
		"it has hardly any":                 {wait: step, used: step / 100, looks: 600, max: 7 * time.Second},
		"its waits are told late":           {wait: step, used: step / 100, tells: 5, looks: 600, max: 11 * time.Second},
		"many threads wait":                 {wait: 10 * step, looks: 600},
		"it is stopped for long":            {late: time.Hour, looks: 1, max: 2 * step},
		"it is stopped, no kernel tells":    {late: time.Hour, unknown: true, looks: 1, max: 2 * step},
		"it is let run once in ten minutes": {late: 10 * time.Minute, looks: 10, max: 15 * step},
	} {
		t.Run(name, func(t *testing.T) {
			now, delay, used := time.Now(), time.Minute, time.Minute
			j := newJudge(step)
			j.delays = func() (map[int]time.Duration, bool) { return map[int]time.Duration{7: delay}, !c.unknown }
			j.used = func() time.Duration { return used }
			if got := j.look(0, now); got != 0 {
				t.Errorf("a loop that gets on hangs for %v", got)
			}
			begin, got, untold := now, time.Duration(0), time.Duration(0)
			for i := range c.looks {
				now, untold, used = now.Add(step+c.late), untold+c.wait, used+c.used
				if c.tells == 0 || i%c.tells == c.tells-1 {
					delay, untold = delay+untold, 0
				}
				got = j.look(now.Sub(begin), now)
			}
			if got < c.min || got > c.max {
				t.Errorf("it hangs for %v, want %v to %v", got, c.min, c.max)
			}
			if got := j.look(0, now.Add(step)); got != 0 {
				t.Errorf("a loop that gets on again hangs for %v", got)
			}
		})
	}
}

// TestOneStack extracts the requested goroutine, in one line, and no other.
func TestOneStack(t *testing.T) {
	const dump = "goroutine 1 [select, 2 minutes, locked to thread]:\n" +
		"nodeskoop/collect.(*Runner).hand(0xc000, {0x1, 0x2})\n\t/src/nodeskoop/collect/runner.go:270 +0x1f\n" +
		"main.main.func1(...)\n\t/src/nodeskoop/cmd/nodeskoop/main.go:60\n" +
		"created by nodeskoop/cmd/x.(*T).main in goroutine 12\n\t/src/main.go:7 +0x2\n\n" +
		"goroutine 12 [running]:\nruntime.other()\n\t/go/other.go:1 +0x1\n\ngoroutine 13 [running]:\nruntime.other()\n\t/go/other.go:1 +0x1\n"
	stack, others := oneStack([]byte(dump), 1)
	if want := "[select, 2 minutes, locked to thread] < collect.(*Runner).hand runner.go:270 < main.main.func1 main.go:60 < created by x.(*T).main in goroutine 12 main.go:7"; stack != want || others != 2 {
		t.Errorf("got  %q and %d others\nwant %q and 2", stack, others, want)
	}
	if stack, others := oneStack([]byte(dump), 99); stack != "the loop has ended" || others != 3 {
		t.Errorf("%q and %d others", stack, others)
	}
}

// starvedVariable makes TestStarved run as the starved process.
const starvedVariable = "NODESKOOP_TEST_STARVED"

// TestStarved: a loop whose process gets hardly any CPU is not ended; on the same
// machine, with the same patience, a hanging loop is
// (TestWatchdogStarvesWhenTheLoopHangs).
func TestStarved(t *testing.T) {
	if os.Getenv(starvedVariable) != "" {
		starve(t)
		return
	}
	need.Root(t)
	need.Short(t)
	group := smallGroup(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestStarved$", "-test.v")
	cmd.Env = append(os.Environ(), starvedVariable+"="+group)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "got on after") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// smallGroup creates a control group limited to 2 % of a CPU.
func smallGroup(t *testing.T) (procs string) {
	t.Helper()
	name := fmt.Sprintf("nodeskoop-starved-%d", os.Getpid())
	for _, kind := range []struct{ root, file, value string }{
		{"/sys/fs/cgroup", "cpu.max", "2000 100000"},
		{"/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "2000"},
	} {
		dir := filepath.Join(kind.root, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = syscall.Rmdir(dir) })
		// Do not create the file: if it is missing, this is no cgroup folder.
		f, err := os.OpenFile(filepath.Join(dir, kind.file), os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		_, err = f.WriteString(kind.value)
		_ = f.Close()
		if err == nil {
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	need.Kernel(t, false, "it has no control group of CPU time that this process may use")
	return ""
}

func starve(t *testing.T) {
	newManager(t)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(time.Hour.Microseconds()))
	between, took := make(chan func(), 1), make(chan time.Duration)
	log, aborted := watched(t, time.Second, true, between)
	group := os.Getenv(starvedVariable)
	between <- func() {
		if err := os.WriteFile(group, []byte(fmt.Sprint(os.Getpid())), 0o644); err != nil {
			t.Error(err)
		}
		begin := time.Now()
		for start := cpuTime(); cpuTime()-start < 400*time.Millisecond; {
			for range 1_000_000 {
			}
		}
		took <- time.Since(begin)
	}
	select {
	case d := <-took:
		if d < 5*time.Second {
			t.Errorf("it took %v alone, and shows nothing", d)
		}
		fmt.Printf("400ms of CPU: the loop got on after %v, and ends itself after 2s if it hangs\n", d)
	case <-aborted:
		t.Errorf("the daemon ends itself although it has no CPU:\n%s", log)
	}
	select {
	case <-aborted:
		t.Errorf("the daemon has ended itself although it had no CPU:\n%s", log)
	default:
	}
	if strings.Contains(log.String(), "makes no progress") {
		t.Errorf("it is said to hang:\n%s", log)
	}
}
