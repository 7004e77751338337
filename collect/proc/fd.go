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

// countFDs counts the descriptors of a process, using buf. They are the first
// thread's; where that one has ended and the process has not, another's.
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

// countIn counts the entries of /proc/PID and name.
func countIn(root string, pid int, name string, buf []byte) (open, socket int, err error) {
	dir, err := openProc(root, pid, name, unix.O_DIRECTORY)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(dir)
	err = kernel.Entries(dir, buf, func(name string, _ byte) error {
		const prefix = "socket:" // as much of the link as tells a socket
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

// linkError is about a link in a directory, not about the directory.
type linkError struct{ error }
