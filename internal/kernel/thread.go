package kernel

import (
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrGone says that what was to be sampled has ended: not a failure.
var ErrGone = errors.New("it has ended")

// GoneOr makes ErrGone of the errors by which procfs says that a process or a
// thread has ended.
func GoneOr(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", err, ErrGone)
	}
	return err
}

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
			return tid, nil // what is not understood has not ended
		default:
			if err = GoneOr(fmt.Errorf("read %s/%s/stat: %w", dir, name, err)); !errors.Is(err, ErrGone) {
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("process %d has no live thread: %w", pid, ErrGone)
}

// ProcessDir returns the directory below root that shows what a process has:
// /proc/PID, or that of a live thread where the first has ended.
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

// ManyThreads reports whether a process has more than one thread: it has them as
// directories (fs/proc/base.c, proc_task_getattr).
func ManyThreads(root string, pid int) bool {
	var room [pathSize]byte
	path, err := appendProcess(room[:0], root, pid, "/task")
	if err != nil {
		return false
	}
	var st unix.Statx_t
	const itself = 3 // the directory, its name in the one above, and the first thread
	cwd := unix.AT_FDCWD
	// It is unix.Statx without the copy of the path.
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(cwd), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
		0, unix.STATX_NLINK, uintptr(unsafe.Pointer(&st)), 0)
	return e == 0 && st.Nlink > itself
}
