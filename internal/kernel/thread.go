package kernel

import (
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process or namespace to sample has ended, which is not a failure.
var ErrGone = errors.New("it has ended")

// GoneOr turns the errors by which procfs shows that a process or thread has ended into
// ErrGone.
func GoneOr(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", err, ErrGone)
	}
	return err
}

// LiveThread returns a thread of process pid that has not ended; root is where procfs is
// mounted. /proc/PID shows the main thread. After its exit it has no descriptors, no
// namespaces and, in cgroup v1, no control group, while the process continues with its
// other threads; their state is in /proc/PID/task/TID. If no thread is left, the error is
// ErrGone.
func LiveThread(root string, pid int) (tid int, err error) {
	dir := root + "/" + strconv.Itoa(pid) + "/task"
	names, err := DirNames(dir)
	if err != nil {
		return 0, GoneOr(fmt.Errorf("list the threads of process %d: %w", pid, err))
	}
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		s, err := readStat(unix.AT_FDCWD, dir+"/"+name+"/stat")
		var bad *BadLine
		switch {
		case err == nil && s.Ended():
		case err == nil, errors.As(err, &bad):
			return tid, nil // an unreadable state counts as alive
		default:
			if err = GoneOr(fmt.Errorf("read %s/%s/stat: %w", dir, name, err)); !errors.Is(err, ErrGone) {
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("process %d has no live thread: %w", pid, ErrGone)
}

// ProcessDir returns the directory below root that shows a process's state: /proc/PID, or
// that of a live thread if the main thread has ended.
func ProcessDir(root string, pid int) string {
	dir := root + "/" + strconv.Itoa(pid)
	s, err := readStat(unix.AT_FDCWD, dir+"/stat")
	if err != nil || !s.Ended() {
		return dir
	}
	if tid, err := LiveThread(root, pid); err == nil {
		return dir + "/task/" + strconv.Itoa(tid)
	}
	return dir
}

// ManyThreads reports whether a process has more than one thread, from the link count of
// its task directory (fs/proc/base.c, proc_task_getattr).
func ManyThreads(root string, pid int) bool {
	var room [pathSize]byte
	path, err := appendProcess(room[:0], root, pid, "/task")
	if err != nil {
		return false
	}
	var st unix.Statx_t
	const itself = 3 // links of a directory with one subdirectory: itself, its parent's entry, and the main thread's
	cwd := unix.AT_FDCWD
	// Like unix.Statx, but without copying the path to the heap.
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(cwd), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
		0, unix.STATX_NLINK, uintptr(unsafe.Pointer(&st)), 0)
	return e == 0 && st.Nlink > itself
}
