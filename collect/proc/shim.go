package proc

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
)

// listShims notes which processes pods' samples count, for the host's. The caller
// holds the lock.
func (p *ioProbe) listShims(v *collect.View) {
	if p.shims == nil {
		p.shims = map[int]int{}
	}
	clear(p.shims)
	for i, x := range v.Reapers() {
		p.shims[x.PID] = i
	}
}

// isShim reports whether a process is one that a pod's sample counts.
func (p *ioProbe) isShim(v *collect.View, pid int) (bool, error) {
	p.mu.Lock()
	i, ok := p.shims[pid]
	x := p.ledger.procs[pid]
	p.mu.Unlock()
	if !ok {
		return false, nil
	}
	want := v.Reapers()[i].Start
	if x != nil && !x.exited && x.start == want {
		return true, nil
	}
	// Its pod has not been sampled, or its number is another's by now.
	r, err := p.read(v, pid)
	if err != nil && !isGone(err) && !partial(err) {
		return false, err
	}
	return err == nil && r.start == want, nil
}

// readShims counts the processes that serve a pod among the pod's.
func (p *ioProbe) readShims(v *collect.View, s *ioTotals, failed *unreadable) error {
	for _, x := range v.Reapers() {
		if p.idle(s, x.PID) {
			continue
		}
		r, err := p.read(v, x.PID)
		switch {
		case err == nil && r.start == x.Start:
			p.observe(s, &r, true)
		case err == nil || isGone(err):
		case partial(err):
			failed.add(x.PID, err)
			p.hold(s, x.PID)
		default:
			return err
		}
	}
	return nil
}

// readThreads reads what the threads of a shim have counted themselves.
func (p *ioProbe) readThreads(v *collect.View, pid int, threads *threadSums, failed *unreadable) (sum ioCounts, err error) {
	// The threads are read after the process: what they did meanwhile is
	// taken from the next growth.
	err = v.Do(pid, "io of threads", func() (err error) {
		sum, err = threads.read(p.root, pid, v.Cycle(), v.Scratch[:cap(v.Scratch)])
		return err
	})
	if err != nil && !isGone(err) && partial(err) {
		failed.add(pid, err)
	}
	return sum, err
}

// threadSums is what is remembered of the threads of a process.
type threadSums struct {
	live   map[int]*threadCounts
	exited ioCounts // of threads that have exited, as they were read last
}

type threadCounts struct {
	ioCounts
	cycle uint64
}

// read adds up what the threads of a process have counted themselves
// (fs/proc/base.c, proc_tid_io_accounting), using buf. What a thread counted that
// has exited is among what the process has of its children, and known from the last
// reading.
func (h *threadSums) read(root string, pid int, cycle uint64, buf []byte) (sum ioCounts, err error) {
	if h.live == nil {
		h.live = map[int]*threadCounts{}
	}
	dir, err := openProc(root, pid, "/task", unix.O_DIRECTORY)
	if err != nil {
		return sum, err
	}
	defer unix.Close(dir)
	names, file := buf[:len(buf)/2], buf[len(buf)/2:]
	for {
		n, err := unix.Getdents(dir, names)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return sum, wrapProc("list", root, pid, "/task", err)
		}
		if n <= 0 {
			break
		}
		for b := names[:n]; len(b) > 0; {
			entry, rest, ok := nextDirent(b)
			if !ok {
				return sum, fmt.Errorf("list %s/%d/task: %w", root, pid, errDirent)
			}
			b = rest
			tid, e := strconv.Atoi(string(entry[:len(entry)-1]))
			if e != nil {
				continue // . and ..
			}
			var path [32]byte
			data, err := readAt(dir, append(append(path[:0], entry[:len(entry)-1]...), "/io\x00"...), file)
			if err != nil {
				if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
					continue
				}
				return sum, wrapProc("read", root, pid, "/task/"+strconv.Itoa(tid)+"/io", err)
			}
			c, err := parseIO(data)
			if err != nil {
				return sum, fmt.Errorf("%s/%d/task/%d/%w", root, pid, tid, err)
			}
			t := h.live[tid]
			if t == nil {
				t = &threadCounts{}
				h.live[tid] = t
			} else if !c.covers(&t.ioCounts) {
				h.exited.add(&t.ioCounts) // another with its number
			}
			t.ioCounts, t.cycle = c, cycle
		}
	}
	for tid, t := range h.live {
		if t.cycle != cycle {
			h.exited.add(&t.ioCounts)
			delete(h.live, tid)
			continue
		}
		sum.add(&t.ioCounts)
	}
	sum.add(&h.exited)
	return sum, nil
}
