package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is a process's use of CPU and memory.
type Usage struct {
	CPU                 time.Duration // CPU time of all threads so far, with nanosecond resolution
	Resident, Anonymous int           // bytes
	Threads             int
}

// UsageOf returns the usage of a process.
func UsageOf(pid int) (u Usage, err error) {
	if u.CPU, err = CPUOf(pid); err != nil {
		return u, err
	}
	path := fmt.Sprintf("/proc/%d/status", pid)
	status, err := os.ReadFile(path)
	if err != nil {
		return u, err
	}
	fields := map[string]*int{"VmRSS:": &u.Resident, "RssAnon:": &u.Anonymous, "Threads:": &u.Threads}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 || fields[f[0]] == nil {
			continue
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			return u, fmt.Errorf("%s: %q: %w", path, line, err)
		}
		if len(f) == 3 && f[2] == "kB" {
			n <<= 10
		}
		*fields[f[0]] = n
		delete(fields, f[0])
	}
	if len(fields) > 0 {
		return u, fmt.Errorf("%s lacks lines for %d values: the process has ended", path, len(fields))
	}
	return u, nil
}

// CPUOf returns the CPU time that a process has used so far.
func CPUOf(pid int) (time.Duration, error) {
	const wholeProcess = 2 // CPUCLOCK_SCHED, see clock_getcpuclockid(3)
	d, err := clock(int32(^pid<<3 | wholeProcess))
	if err != nil {
		return 0, fmt.Errorf("ask for the CPU time of process %d: %w", pid, err)
	}
	return d, nil
}

// OwnCPU returns the CPU time that this process has used so far.
func OwnCPU() time.Duration { return must(clock(unix.CLOCK_PROCESS_CPUTIME_ID)) }

// ThreadCPU returns the CPU time that the calling thread has used so far. The goroutine
// must be locked to the thread.
func ThreadCPU() time.Duration { return must(clock(unix.CLOCK_THREAD_CPUTIME_ID)) }

func clock(id int32) (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(id, &ts)
	return time.Duration(ts.Nano()), err
}

// must panics on an error: every kernel has these clocks.
func must(d time.Duration, err error) time.Duration {
	if err != nil {
		panic(err)
	}
	return d
}

// OpenFiles returns the number of this process's open descriptors, without those of files that
// nothing refers to: it has the garbage collector close them first.
func OpenFiles(t testing.TB) int {
	t.Helper()
	// Finalizers run one after another, so that of the second collection runs after all of
	// the first.
	for range 2 {
		done := make(chan struct{})
		runtime.SetFinalizer(&struct{ done chan struct{} }{done}, func(x *struct{ done chan struct{} }) { close(x.done) })
		runtime.GC()
		select {
		case <-done:
		case <-time.After(Patience):
			t.Fatal("the finalizers of the garbage collector do not end")
		}
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// SoftirqCPU returns the CPU time that the kernel's ksoftirqd threads have used so far.
func SoftirqCPU() (sum time.Duration) {
	for _, file := range ksoftirqds() {
		var ns int64
		if data, err := os.ReadFile(file); err == nil {
			if _, err := fmt.Sscan(string(data), &ns); err == nil {
				sum += time.Duration(ns)
			}
		}
	}
	return sum
}

var ksoftirqds = sync.OnceValue(func() (files []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(comm), "ksoftirqd/") {
			files = append(files, filepath.Join(filepath.Dir(name), "schedstat"))
		}
	}
	return files
})
