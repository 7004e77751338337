package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
	"nodeskoop/bpf"
	"nodeskoop/collect"
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
	open, socket *collect.Metric

	mu  sync.Mutex
	all snapshot[bpf.FileCount]
}

func newFD(env collect.Env) (collect.Probe, error) {
	return &fd{
		root:   env.ProcRoot,
		open:   collect.MustMetric("kubeskoop_fdopenfd"),
		socket: collect.MustMetric("kubeskoop_fd_opensocket"),
		all:    newSnapshot[bpf.FileCount](env, "open files are counted by reading each link of each process", bpf.NewOpenFiles),
	}, nil
}

func (*fd) Over() collect.Over { return collect.EachPod }

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
		for _, pid := range v.PIDs() {
			c, ok := p.all.of[uint32(pid)]
			if !ok {
				unknown = append(unknown, pid)
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

// countFDs counts the descriptors of a process, using buf.
func countFDs(root string, pid int, buf []byte) (open, socket int, err error) {
	dir, err := openProc(root, pid, "/fd", unix.O_DIRECTORY)
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
			return 0, 0, wrapProc("list", root, pid, "/fd", err)
		}
		if n <= 0 {
			return open, socket, nil
		}
		for b := buf[:n]; len(b) > 0; {
			name, rest, ok := nextDirent(b)
			if !ok {
				return 0, 0, fmt.Errorf("list %s/%d/fd: %w", root, pid, errDirent)
			}
			b = rest
			if name[0] < '0' || name[0] > '9' {
				continue // . and ..
			}
			isSocket, err := linksToSocket(dir, name)
			if errors.Is(err, unix.ENOENT) {
				continue // closed since it was listed
			}
			if err != nil {
				return 0, 0, wrapProc("read the links in", root, pid, "/fd", err)
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
