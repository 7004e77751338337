package kernel

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// listPIDs lists the processes under procfs.
func PIDs(root string) ([]int, error) {
	names, err := DirNames(root)
	if err != nil {
		return nil, fmt.Errorf("list the processes in %s: %w", root, err)
	}
	pids := make([]int, 0, len(names))
	for _, n := range names {
		if strings.Trim(n, "0123456789") != "" {
			continue
		}
		if pid, err := strconv.Atoi(n); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	// There is always a process 1 (fs/proc/base.c, proc_pid_readdir).
	if len(pids) == 0 || pids[0] != 1 {
		return nil, fmt.Errorf("list the processes in %s: other users' are hidden (mount option hidepid; needs CAP_SYS_PTRACE)", root)
	}
	return pids, nil
}
