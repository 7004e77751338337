package proc

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/internal/kernel"
)

// shim is the state of a process that serves a pod and reaps the pod's processes.
type shim struct {
	threads map[int]*threadCounts
	ended   ioCounts // last counts of its exited threads
	told    ioCounts // own calls already added to the host
	reaped  uint64   // cminflt at the last split
	begun   bool
	// moved: the host counted it before, so its earlier own calls are not known.
	moved bool
	// recalled from saved state: all counts since then go to the pod. The shim's own
	// calls in that time are few and cannot be separated.
	recalled bool
}

type threadCounts struct {
	ioCounts
	cycle uint64
}

// beginShims adds the shims' own calls, found in the pods' samples, to the host's sum.
func (p *ioProbe) beginShims(v *collect.View, s *ioTotals) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.sum.add(&p.own)
	p.own = ioCounts{}
	if p.shims == nil {
		p.shims = map[int]int{}
	}
	clear(p.shims)
	for i, x := range v.Reapers() {
		p.shims[x.PID] = i
	}
}

// isShim reports whether a process is counted in a pod's sample.
func (p *ioProbe) isShim(v *collect.View, pid int) (bool, error) {
	p.mu.Lock()
	i, ok := p.shims[pid]
	x := p.procs[pid]
	p.mu.Unlock()
	if !ok {
		return false, nil
	}
	want := v.Reapers()[i].Start
	if x != nil && !x.gone && x.start == want {
		return true, nil
	}
	// Its pod has not been sampled, or its PID was reused.
	r, err := p.read(v, pid)
	if err != nil && !isGone(err) && !partial(err) {
		return false, err
	}
	return err == nil && r.start == want, nil
}

// startTime is how long a container may take from the start of its first process until
// containerd's event about it has been handled.
const startTime = 60 * ticksPerSecond // in clock ticks

// starting reports whether a process listed as the host's may be the first of a container
// that is not known yet, or has joined its control group since the listing: a young child of
// a pod's shim. It is not the host's then: what it counts until its pod's next sample is the
// pod's, and if it ends before, the shim inherits its counts.
func (p *ioProbe) starting(v *collect.View, r *reading) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.shims[r.parent]
	if !ok || clockTicks() > r.start+startTime {
		return false
	}
	x := p.procs[r.parent]
	return x != nil && !x.gone && x.start == v.Reapers()[i].Start
}

// readShims counts the shims of a pod as processes of the pod.
func (p *ioProbe) readShims(v *collect.View, s *ioTotals, failed *unreadable) error {
	for _, x := range v.Reapers() {
		if p.idle(s, x.PID) {
			continue
		}
		r, err := p.read(v, x.PID)
		switch {
		case err == nil && r.start == x.Start:
			p.takeShim(s, &r)
		case err == nil || isGone(err):
		case partial(err):
			failed.add(x.PID, err)
			p.holdBack(s, x.PID)
		default:
			return err
		}
	}
	return nil
}

func (p *ioProbe) takeShim(s *ioTotals, r *reading) {
	p.mu.Lock()
	x := p.procs[r.pid]
	known := x != nil && x.start == r.start && !x.gone
	moved := known && x.owner != s
	p.mu.Unlock()
	p.take(s, r, false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if x = p.procs[r.pid]; x == nil || x.owner != s {
		return
	}
	if x.shim == nil || moved {
		x.shim = &shim{threads: map[int]*threadCounts{}, moved: moved, recalled: known && !moved}
	}
}

// split moves the shims' own calls from the pod to the host. It runs last, when the shims'
// growth no longer contains the counts of children that were counted while they lived.
func (p *ioProbe) split(v *collect.View, s *ioTotals, failed *unreadable) error {
	for _, id := range v.Reapers() {
		p.mu.Lock()
		x := p.procs[id.PID]
		if x == nil || x.shim == nil || x.gone || x.owner != s || x.start != id.Start || x.grown == (ioCounts{}) {
			p.mu.Unlock()
			continue
		}
		h := x.shim
		own := x.grown // right if nothing was reaped
		ask := !h.begun || h.reaped != x.reaped
		h.reaped = x.reaped
		p.mu.Unlock()
		if ask {
			// The threads are read after the process. Calls in between are
			// subtracted from the next growth.
			var sum ioCounts
			err := v.Do(x.pid, "io of threads", func() (err error) {
				sum, err = h.read(p.root, x.pid, v.Cycle(), v.Scratch[:cap(v.Scratch)])
				return err
			})
			switch {
			case err == nil:
			case isGone(err):
				continue
			case partial(err):
				failed.add(x.pid, err)
				continue
			default:
				return err
			}
			if h.recalled {
				h.told, own = sum, ioCounts{}
			} else if h.moved {
				h.told = sum
			} else {
				for i := range own {
					own[i] = min(own[i], max(sum[i], h.told[i])-h.told[i])
				}
				h.told.add(&own)
			}
		} else {
			h.told.add(&own)
		}
		p.mu.Lock()
		h.begun, h.moved, h.recalled = true, false, false
		x.grown.sub(&own)
		s.sum.sub(&own)
		p.own.add(&own)
		p.mu.Unlock()
	}
	return nil
}

// read sums what the shim's threads have counted themselves (fs/proc/base.c,
// proc_tid_io_accounting), using buf. The counts of exited threads are mixed with those of
// reaped children, so it uses their last readings.
func (h *shim) read(root string, pid int, cycle uint64, buf []byte) (sum ioCounts, err error) {
	dir, err := openProc(root, pid, "/task", unix.O_DIRECTORY)
	if err != nil {
		return sum, err
	}
	defer unix.Close(dir)
	names, file := buf[:len(buf)/2], buf[len(buf)/2:]
	var read error // error of a thread's file
	err = kernel.Entries(dir, names, func(name string, _ byte) error {
		tid, err := strconv.Atoi(name)
		if err != nil {
			return nil
		}
		read = h.readThread(root, pid, dir, tid, name+"/io", cycle, file)
		return read
	})
	if read != nil {
		return sum, read
	}
	if err != nil {
		return sum, wrapProc("list", root, pid, "/task", err)
	}
	for tid, t := range h.threads {
		if t.cycle != cycle {
			h.ended.add(&t.ioCounts)
			delete(h.threads, tid)
			continue
		}
		sum.add(&t.ioCounts)
	}
	sum.add(&h.ended)
	return sum, nil
}

// readThread stores the counts of a thread, from the file name below dir, using buf. A
// thread that has exited is not an error.
func (h *shim) readThread(root string, pid, dir, tid int, name string, cycle uint64, buf []byte) error {
	data, err := kernel.ReadSmall(dir, name, buf)
	if err != nil {
		if err = wrapProc("read", root, pid, "/task/"+name, err); isGone(err) {
			return nil
		}
		return err
	}
	c, err := parseIO(data)
	if err != nil {
		return fmt.Errorf("%s/%d/task/%d/%w", root, pid, tid, err)
	}
	t := h.threads[tid]
	if t == nil {
		t = &threadCounts{}
		h.threads[tid] = t
	} else if !c.covers(&t.ioCounts) {
		h.ended.add(&t.ioCounts) // the number was reused
	}
	t.ioCounts, t.cycle = c, cycle
	return nil
}
