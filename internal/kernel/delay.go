package kernel

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic is CLOCK_MONOTONIC, which stands still while the machine is
// suspended, as SinceBoot does not. It is 0 if the kernel does not tell.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// RunDelays tells by thread how long this process's threads have been ready to run
// and had no CPU (/proc/PID/task/TID/schedstat, of which the second number is
// sched_info.run_delay): other threads had it, or the control group has used up its
// share. ok is false for a kernel without CONFIG_SCHED_INFO.
func RunDelays() (delays map[int]time.Duration, ok bool) {
	const tasks = "/proc/self/task"
	dir, err := os.Open(tasks)
	if err != nil {
		return nil, false
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, false
	}
	delays = make(map[int]time.Duration, len(names))
	for _, name := range names {
		b, err := os.ReadFile(tasks + "/" + name + "/schedstat")
		if err != nil {
			continue // the thread has ended, or no thread has this file
		}
		if d, ok := parseSchedstat(string(b)); ok {
			if tid, err := strconv.Atoi(name); err == nil {
				delays[tid] = d
			}
		}
	}
	return delays, len(delays) > 0
}

func parseSchedstat(s string) (delay time.Duration, ok bool) {
	f := strings.Fields(s)
	if len(f) != 3 {
		return 0, false
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	return time.Duration(n), err == nil && n >= 0
}

// Waited is how much longer the threads of a process have waited for a CPU than
// they had before, over all. A thread that has ended since is not in it.
func Waited(before, now map[int]time.Duration) (sum time.Duration) {
	for tid, d := range now {
		sum += max(0, d-before[tid])
	}
	return sum
}
