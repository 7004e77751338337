package bpf

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var errNoCgroup2 error = &refusal{text: "no cgroup2 is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)"}

// cgroupRoot returns the mount point of cgroup v2, mounted alone or beside the
// controllers of v1.
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
		// Choose the mount of the whole tree: kernfs gives its root inode number 1.
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
