package kernel

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic is CLOCK_MONOTONIC. Unlike SinceBoot it stands still while the machine is
// suspended. It is 0 if the kernel does not have it.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// RunDelays returns, by thread of this process, how long it has been runnable without a CPU
// (/proc/PID/task/TID/schedstat, second value: sched_info.run_delay): because of other
// threads or an exhausted CPU quota. ok is false on a kernel without CONFIG_SCHED_INFO.
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
			continue // the thread has ended, or the kernel lacks the file
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

// Waited returns the time by which the threads' waits for a CPU have grown. A thread
// that has ended since is not included.
func Waited(before, now map[int]time.Duration) (sum time.Duration) {
	for tid, d := range now {
		sum += max(0, d-before[tid])
	}
	return sum
}
