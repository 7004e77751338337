package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// fd counts the open descriptors of processes, and those of them that are
// sockets: the entries of /proc/PID/fd and what they link to (fs/proc/fd.c).
// Each descriptor counts, also where several are of one file.
//
// Where the kernel lets it, an iterator counts those of all processes once in a
// cycle, which takes a fraction of what reading each link does. Processes that
// it has not seen, such as have just started, are read one by one.
type fd struct {
	root         string
	open, socket *catalog.Metric

	mu    sync.Mutex
	all   snapshot[bpf.FileCount]
	empty map[int]emptyProcess
}

// emptyProcess is a process of one thread without descriptors: kernel threads are
// such. It is looked at again after a while, and at once if it was away: its number
// may be another's by now.
type emptyProcess struct{ seen, checked uint64 } // cycles

const emptyFor = 16 // cycles

// isEmpty reports whether a process of which the iterator saw no descriptor has none.
// The iterator asks the first thread, which has none once it has ended.
func (p *fd) isEmpty(pid int, cycle uint64) bool {
	e, ok := p.empty[pid]
	if !ok || cycle-e.seen > 1 || cycle-e.checked >= emptyFor {
		if manyThreads(p.root, pid) {
			delete(p.empty, pid)
			return false
		}
		e.checked = cycle
	}
	e.seen = cycle
	if p.empty == nil {
		p.empty = map[int]emptyProcess{}
	}
	p.empty[pid] = e
	return true
}

func (t typeInfo) newFD(env collect.Env) (collect.Probe, error) {
	return &fd{
		root:   env.ProcRoot,
		open:   catalog.MustMetric("kubeskoop_fdopenfd"),
		socket: catalog.MustMetric("kubeskoop_fd_opensocket"),
		all:    newSnapshot[bpf.FileCount](env, t, "open files are counted by reading each link of each process", bpf.NewOpenFiles),
	}, nil
}

func (*fd) Granularity() collect.Granularity { return collect.EachPod }

func (p *fd) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.drop()
}

// count counts the descriptors of all processes, if that was not done in this
// cycle, and adds up those of the target's. It returns the processes that it
// knows nothing of.
func (p *fd) count(v *collect.View) (sum bpf.FileCount, unknown []int, err error) {
	err = v.Do(0, "fd", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all.refresh(v)
		if p.all.of == nil {
			unknown = v.PIDs()
			return nil
		}
		if v.Pod() == nil && v.Cycle()%emptyFor == 0 {
			maps.DeleteFunc(p.empty, func(_ int, e emptyProcess) bool { return v.Cycle()-e.seen > 1 })
		}
		for _, pid := range v.PIDs() {
			c, ok := p.all.of[uint32(pid)]
			if !ok || c.Open == 0 && !p.isEmpty(pid, v.Cycle()) {
				unknown = append(unknown, pid)
				continue
			}
			sum.Open += c.Open
			sum.Sockets += c.Sockets
		}
		return nil
	})
	return sum, unknown, err
}

// direntSize is the size of the buffer for the entries of a directory: room
// for about a thousand.
const direntSize = 32 << 10

func (p *fd) Sample(v *collect.View) error {
	if cap(v.Scratch) < direntSize {
		v.Scratch = make([]byte, direntSize)
	}
	sum, unknown, err := p.count(v)
	if err != nil {
		return err
	}
	var failed unreadable
	for _, pid := range unknown {
		var o, s int
		err := v.Do(pid, "fd", func() (err error) {
			o, s, err = countFDs(p.root, pid, v.Scratch[:cap(v.Scratch)])
			return err
		})
		switch {
		case err == nil:
			sum.Open += o
			sum.Sockets += s
		case isGone(err):
		case partial(err):
			failed.add(pid, err)
		default:
			return err
		}
	}
	v.Add(p.open, float64(sum.Open))
	v.Add(p.socket, float64(sum.Sockets))
	return failed.err()
}

// manyThreads reports whether a process has more than one thread: it has them as
// directories (fs/proc/base.c, proc_task_getattr).
func manyThreads(root string, pid int) bool {
	var buf [256]byte
	path := append(buf[:0], root...)
	path = append(path, '/')
	path = strconv.AppendInt(path, int64(pid), 10)
	path = append(path, "/task\x00"...)
	var st unix.Statx_t
	const itself = 3 // the directory, its name in the one above, and the first thread
	cwd := unix.AT_FDCWD
	// It is unix.Statx without the copy of the path.
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(cwd), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
		0, unix.STATX_NLINK, uintptr(unsafe.Pointer(&st)), 0)
	return e == 0 && st.Nlink > itself
}

// countFDs counts the descriptors of a process, using buf. They are the first
// thread's; where that one has ended and the process has not, another's.
func countFDs(root string, pid int, buf []byte) (open, socket int, err error) {
	open, socket, err = countIn(root, pid, "/fd", buf)
	if err != nil || open > 0 || !manyThreads(root, pid) {
		return open, socket, err
	}
	tid, err := kernel.LiveThread(root, pid)
	if err != nil {
		if isGone(err) {
			err = nil
		}
		return 0, 0, err
	}
	if tid == pid {
		return 0, 0, nil
	}
	return countIn(root, pid, "/task/"+strconv.Itoa(tid)+"/fd", buf)
}

// countIn counts the entries of /proc/PID and name.
func countIn(root string, pid int, name string, buf []byte) (open, socket int, err error) {
	dir, err := openProc(root, pid, name, unix.O_DIRECTORY)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(dir)
	for {
		n, err := unix.Getdents(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, 0, wrapProc("list", root, pid, name, err)
		}
		if n <= 0 {
			return open, socket, nil
		}
		for b := buf[:n]; len(b) > 0; {
			entry, rest, ok := nextDirent(b)
			if !ok {
				return 0, 0, fmt.Errorf("list %s/%d%s: %w", root, pid, name, errDirent)
			}
			b = rest
			if entry[0] < '0' || entry[0] > '9' {
				continue // . and ..
			}
			isSocket, err := linksToSocket(dir, entry)
			if errors.Is(err, unix.ENOENT) {
				continue // closed since it was listed
			}
			if err != nil {
				return 0, 0, wrapProc("read the links in", root, pid, name, err)
			}
			open++
			if isSocket {
				socket++
			}
		}
	}
}

var errDirent = errors.New("the kernel returned a malformed directory entry")

// nextDirent splits the first struct linux_dirent64 off b. The name includes
// its terminating NUL.
func nextDirent(b []byte) (name, rest []byte, ok bool) {
	const header = 19 // d_ino, d_off, d_reclen, d_type
	if len(b) < header {
		return nil, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b[16:]))
	if n <= header+1 || n > len(b) {
		return nil, nil, false
	}
	for i, c := range b[header:n] {
		if c == 0 {
			return b[header : header+i+1], b[n:], i > 0
		}
	}
	return nil, nil, false
}

// linksToSocket reads the link name, which ends with NUL, below dir. Only as
// much of it is read as tells a socket; what it leads to is not touched.
func linksToSocket(dir int, name []byte) (bool, error) {
	const prefix = "socket:"
	var buf [len(prefix)]byte
	for {
		n, _, e := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(name))),
			uintptr(unsafe.Pointer(&buf)), uintptr(len(buf)), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return false, e
		}
		return string(buf[:n]) == prefix, nil
	}
}
