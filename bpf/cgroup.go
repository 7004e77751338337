package bpf

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var errNoCgroup2 error = &refusal{text: "no cgroup2 is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)"}

// cgroupRoot finds where the second version of the cgroup file system is
// mounted: alone, or beside the first one's controllers.
func cgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	first := ""
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "cgroup2" {
			continue
		}
		path := strings.ReplaceAll(fields[1], `\040`, " ")
		// Of several mounts the one of the whole tree; kernfs numbers its root 1.
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == 1 {
			return path, nil
		}
		if first == "" {
			first = path
		}
	}
	if first != "" {
		return first, nil
	}
	return "", errNoCgroup2
}
