package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// LiveThread returns a thread of process pid that has not ended; root is where
// procfs is mounted. /proc/PID shows the first thread. Once that one has ended it
// has no descriptors, no namespaces and, in cgroup v1, no control group, although
// the other threads, and with them the process, go on: what they have is in
// /proc/PID/task/TID. A process without such a thread is ErrGone.
func LiveThread(root string, pid int) (tid int, err error) {
	dir := root + "/" + strconv.Itoa(pid) + "/task"
	names, err := DirNames(dir)
	if err != nil {
		return 0, GoneOr(fmt.Errorf("list the threads of process %d: %w", pid, err))
	}
	var buf []byte
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		buf, err = ReadFile(unix.AT_FDCWD, dir+"/"+name+"/stat", buf)
		if err != nil {
			if err = GoneOr(fmt.Errorf("read %s/%s/stat: %w", dir, name, err)); errors.Is(err, ErrGone) {
				continue
			}
			return 0, err
		}
		if !ThreadEnded(buf) {
			return tid, nil
		}
	}
	return 0, fmt.Errorf("process %d has no live thread: %w", pid, ErrGone)
}

// ProcessDir returns the directory below root that shows what a process has:
// /proc/PID, or that of a live thread where the first has ended.
func ProcessDir(root string, pid int) string {
	dir := root + "/" + strconv.Itoa(pid)
	b, err := ReadFile(unix.AT_FDCWD, dir+"/stat", nil)
	if err != nil || !ThreadEnded(b) {
		return dir
	}
	if tid, err := LiveThread(root, pid); err == nil {
		return dir + "/task/" + strconv.Itoa(tid)
	}
	return dir
}

// threadEnded reads /proc/PID/stat (fs/proc/array.c, do_task_stat). What it does
// not understand has not ended.
func ThreadEnded(b []byte) bool {
	// The name may hold anything, parentheses too.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 7 || len(f[0]) != 1 {
		return false
	}
	const exiting = 0x4 // PF_EXITING of include/linux/sched.h
	flags, _ := strconv.ParseUint(string(f[6]), 10, 64)
	return f[0][0] == 'Z' || f[0][0] == 'X' || flags&exiting != 0
}

func DirNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// goneOr makes ErrGone of the errors by which procfs says that a process or a
// thread has ended.
func GoneOr(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", err, ErrGone)
	}
	return err
}

// ErrGone says that what was to be sampled has ended: not a failure.
var ErrGone = errors.New("it has ended")
