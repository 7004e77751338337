package testkit

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a process has of the machine.
type Usage struct {
	CPU                 time.Duration // of all its threads, so far, to the nanosecond
	Resident, Anonymous int           // bytes
	Threads             int
}

// UsageOf asks the kernel about a process.
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

// CPUOf is the CPU time that a process has used so far.
func CPUOf(pid int) (time.Duration, error) {
	const wholeProcess = 2 // CPUCLOCK_SCHED, see clock_getcpuclockid(3)
	d, err := clock(int32(^pid<<3 | wholeProcess))
	if err != nil {
		return 0, fmt.Errorf("ask for the CPU time of process %d: %w", pid, err)
	}
	return d, nil
}

// OwnCPU is the CPU time that this process has used so far.
func OwnCPU() time.Duration { return must(clock(unix.CLOCK_PROCESS_CPUTIME_ID)) }

// ThreadCPU is the CPU time that the caller's thread has used so far. The
// caller's goroutine has to be locked to it.
func ThreadCPU() time.Duration { return must(clock(unix.CLOCK_THREAD_CPUTIME_ID)) }

func clock(id int32) (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(id, &ts)
	return time.Duration(ts.Nano()), err
}

// must is for clocks that every kernel has.
func must(d time.Duration, err error) time.Duration {
	if err != nil {
		panic(err)
	}
	return d
}

// OpenFiles is how many descriptors this process has.
func OpenFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
