package kernel

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// SinceBoot is CLOCK_BOOTTIME, which continues over restarts of the program and cannot be
// set. It is 0 if the kernel does not have it.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// MachineID identifies the boot, the PID namespace and the time namespace. PIDs, namespace
// numbers and times since boot are comparable only with equal IDs.
func MachineID(root string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("find out which boot this is: %w", err)
	}
	id := []string{strings.TrimSpace(string(boot))}
	// Before Linux 5.6 there are no time namespaces; process 1 may be hidden.
	for _, ns := range [][]string{{root + "/1/ns/pid", root + "/self/ns/pid"}, {"/proc/self/ns/time"}} {
		var ino uint64
		for _, path := range ns {
			if ino, err = Inode(path); err == nil {
				break
			}
		}
		id = append(id, fmt.Sprint(ino))
	}
	return strings.Join(id, " "), nil
}
