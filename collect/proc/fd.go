package proc

import (
	"maps"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// fd counts the open descriptors of processes, and how many of them are sockets: the
// entries of /proc/PID/fd and their link targets (fs/proc/fd.c). Each descriptor counts,
// even if several refer to one file.
//
// Where the kernel permits it, a BPF iterator counts those of all processes once per cycle,
// at a fraction of the cost of reading each link. Processes that the iterator did not see,
// such as new ones, are read one by one.
type fd struct {
	root         string
	open, socket *catalog.Metric

	mu    sync.Mutex
	all   snapshot[bpf.FileCount]
	empty map[int]emptyProcess
}

// emptyProcess is a process with one thread and no descriptors, such as a kernel thread. It
// is checked again after emptyFor cycles, or at once if it was missing in a cycle, since
// its number may have been reused.
type emptyProcess struct{ seen, checked uint64 } // counted in cycles

const emptyFor = 16 // counted in cycles

// isEmpty reports whether a process without descriptors in the iterator really has none.
// The iterator looks at the main thread, which has none after its exit.
func (p *fd) isEmpty(pid int, cycle uint64) bool {
	e, ok := p.empty[pid]
	if !ok || cycle-e.seen > 1 || cycle-e.checked >= emptyFor {
		if kernel.ManyThreads(p.root, pid) {
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

// count counts the descriptors of all processes, once per cycle, and adds up those of the
// target's processes. It returns the processes that the iterator did not see.
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

// direntSize is the buffer size for directory entries: room for about a thousand.
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

// countFDs counts the descriptors of a process, using buf. It reads them through the main
// thread, or through another thread if the main thread has exited.
func countFDs(root string, pid int, buf []byte) (open, socket int, err error) {
	open, socket, err = countIn(root, pid, "/fd", buf)
	if err != nil || open > 0 || !kernel.ManyThreads(root, pid) {
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

// countIn counts the entries of the directory name below /proc/PID.
func countIn(root string, pid int, name string, buf []byte) (open, socket int, err error) {
	dir, err := openProc(root, pid, name, unix.O_DIRECTORY)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(dir)
	err = kernel.Entries(dir, buf, func(name string, _ byte) error {
		const prefix = "socket:" // enough of the link to recognise a socket
		var to [len(prefix)]byte
		link, err := kernel.ReadLink(dir, name, to[:])
		if err == unix.ENOENT {
			return nil // closed since it was listed
		}
		if err != nil {
			return linkError{err}
		}
		open++
		if string(link) == prefix {
			socket++
		}
		return nil
	})
	if err == nil {
		return open, socket, nil
	}
	if bad, ok := err.(linkError); ok {
		return 0, 0, wrapProc("read the links in", root, pid, name, bad.error)
	}
	return 0, 0, wrapProc("list", root, pid, name, err)
}

// linkError is an error about a link in a directory, not about the directory.
type linkError struct{ error }
