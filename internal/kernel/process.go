package kernel

import (
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/procfs"
)

// PIDs lists the processes under procfs, in the order of their numbers. Where
// other users' are hidden it is an error: who is not listed would be nobody's.
func PIDs(root string) ([]int, error) {
	var all procfs.Procs
	fs, err := procfs.NewFS(root)
	if err == nil {
		all, err = fs.AllProcs()
	}
	if err != nil {
		return nil, fmt.Errorf("list the processes in %s: %w", root, err)
	}
	pids := make([]int, 0, len(all))
	for _, p := range all {
		if p.PID > 0 { // a name that begins with a dash is no process
			pids = append(pids, p.PID)
		}
	}
	slices.Sort(pids)
	// There is always a process 1 (fs/proc/base.c, proc_pid_readdir).
	if len(pids) == 0 || pids[0] != 1 {
		return nil, fmt.Errorf("list the processes in %s: other users' are hidden (mount option hidepid; needs CAP_SYS_PTRACE)", root)
	}
	return pids, nil
}

// Status returns what /proc/PID/status says of a process (fs/proc/array.c,
// proc_pid_status); pid 0 stands for this one.
func Status(root string, pid int) (procfs.ProcStatus, error) {
	fs, err := procfs.NewFS(root)
	var s procfs.ProcStatus
	if err == nil {
		var p procfs.Proc
		if pid == 0 {
			p, err = fs.Self()
		} else {
			p, err = fs.Proc(pid)
		}
		if err == nil {
			s, err = p.NewStatus()
		}
	}
	if err == nil && s.TGID == 0 {
		err = errors.New("it has no line Tgid")
	}
	if err != nil {
		return s, fmt.Errorf("read the status of a process in %s: %w", root, err)
	}
	return s, nil
}
