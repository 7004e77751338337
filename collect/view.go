package collect

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strconv"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// State returns the running probe's state of the target, which lasts between cycles. It is
// zero at first; if *T is a Kept, it continues from saved state.
func State[T any](v *View) *T { return stateOf[T](v, v.t) }

// NetnsState is State of the network namespace with that inode number, for probes of
// granularity Node; 0 means unattributed, as in AddNetns. It is nil if the namespace is not
// a target of this cycle.
func NetnsState[T any](v *View, inode uint64) *T {
	t := v.netns(inode)
	if t == nil {
		return nil
	}
	return stateOf[T](v, t)
}

func stateOf[T any](v *View, t *target) *T {
	t.mu.Lock()
	defer t.mu.Unlock()
	probe := v.source.name
	if s, ok := t.state[probe].(*T); ok {
		return s
	}
	s := new(T)
	if k, ok := any(s).(Kept); ok {
		if err := v.plan.keeper.recall(t.key, probe, k); err != nil {
			v.plan.log.Warn("the saved counters of a probe are unreadable; they start again at 0", "probe", probe, "target", t.String(), "error", err)
			s = new(T)
		}
	}
	if t.state == nil {
		t.state = map[string]any{}
	}
	t.state[probe] = s
	return s
}

// netns returns the target of a namespace, for AddNetns.
func (v *View) netns(inode uint64) *target {
	if inode == 0 {
		return v.plan.unknown
	}
	return v.plan.netns[inode]
}

// View is a probe's access to one target in one cycle.
type View struct {
	plan   *plan
	calls  *calls
	t      *target
	source *source
	dir    int // /proc/PID of a process in the namespace; -1: not open
	pid    int
	files  []netFile // files read under /proc/PID/net in this cycle
	nfile  int
	rows   []row

	// Scratch is memory that a probe may use freely during one Sample.
	Scratch []byte
}

type netFile struct {
	name string
	buf  []byte
	err  error
}

// Add appends one value. labels are the values of Metric.Labels.
func (v *View) Add(m *catalog.Metric, value float64, labels ...string) {
	v.rows = append(v.rows, row{of: &v.t.labels, metric: m, value: value, labels: labels})
}

// AddHistogram is Add for a histogram. The probe must not change h afterwards.
func (v *View) AddHistogram(m *catalog.Metric, h *Histogram, labels ...string) {
	v.rows = append(v.rows, row{of: &v.t.labels, metric: m, hist: h, labels: labels})
}

// AddNetnsHistogram is AddNetns for a histogram, which is as in AddHistogram.
func (v *View) AddNetnsHistogram(inode uint64, m *catalog.Metric, h *Histogram, labels ...string) bool {
	t := v.netns(inode)
	if t == nil {
		return false
	}
	v.rows = append(v.rows, row{of: &t.labels, metric: m, hist: h, labels: labels})
	return true
}

// Netns iterates over the cycle's network namespaces by inode number, with their pods; nil
// stands for the host.
func (v *View) Netns() iter.Seq2[uint64, *owner.Pod] {
	return func(yield func(uint64, *owner.Pod) bool) {
		for inode, t := range v.plan.netns {
			if !yield(inode, t.pod) {
				return
			}
		}
	}
}

// AddNetns appends one value of the network namespace with that inode number, for probes of
// granularity Node. It returns false if the namespace is not a target of this cycle. Number
// 0 is unattributed: the kernel left no way to know the namespace, and the series have
// UnknownLabel.
func (v *View) AddNetns(inode uint64, m *catalog.Metric, value float64, labels ...string) bool {
	t := v.netns(inode)
	if t == nil {
		return false
	}
	v.rows = append(v.rows, row{of: &t.labels, metric: m, value: value, labels: labels})
	return true
}

// Node returns the node's name, the value of k8s_node.
func (v *View) Node() string { return v.plan.node }

// ProcRoot is where procfs is mounted.
func (v *View) ProcRoot() string { return v.plan.procRoot }

// Cycle numbers the Runner's cycles. With it a probe can read a file once per cycle that
// serves several targets.
func (v *View) Cycle() uint64 { return v.plan.cycle }

// LeaveOut counts series that the probe's own cap left out.
func (v *View) LeaveOut(m *catalog.Metric, n int) {
	if n > 0 {
		v.rows = append(v.rows, row{of: &v.t.labels, metric: m, leftOut: n})
	}
}

// Pod returns the target's pod; nil for the host.
func (v *View) Pod() *owner.Pod { return v.t.pod }

// Inode returns the inode number of the target's network namespace; 0 if the target has
// none.
func (v *View) Inode() uint64 { return v.t.inode }

// PIDs returns the processes to sample, for probes of granularity EachPod.
func (v *View) PIDs() []int { return v.t.pids }

// Reapers returns the processes outside the pod that serve only this pod; for the host,
// those of all pods. See Pod.Reapers.
func (v *View) Reapers() []owner.Process { return v.t.reapers }

// Past calls f with the running probe's saved state, as Kept.Keep appended it, of each
// absent target.
func (v *View) Past(f func(data []byte)) { v.plan.keeper.each(v.source.name, f) }

// Do runs fn, which calls the kernel about process pid (0: none). If fn does not return in
// time, the worker is abandoned and its result discarded. Until fn returns, Do with the
// same pid and name fails at once.
func (v *View) Do(pid int, what string, fn func() error) error {
	o := op{pid, what}
	if v.t.isStuck(o) {
		return &StuckError{pid, what}
	}
	if err := v.calls.enter(o); err != nil {
		return err
	}
	err := fn()
	if !v.calls.leave() {
		return errAbandoned
	}
	return err
}

// openNetns opens /proc/PID of a process in the target's namespace, or takes the one that was
// opened in the last cycle. The directory is that of one process: after its exit, reads fail
// even if the number is reused.
func (v *View) openNetns() error {
	if v.dir >= 0 {
		return nil
	}
	if d, ok := v.t.takeDoor(v.t.pids); ok {
		ino, err := v.netnsOf(d.dir, d.pid)
		if err == nil && (ino == v.t.inode || v.t.inode == 0) {
			v.dir, v.pid = d.dir, d.pid
			return nil
		}
		d.close() // the process has ended, or moved to another namespace
		if err == errAbandoned {
			return err
		}
	}
	result := kernel.ErrGone
	for _, pid := range v.t.pids {
		err := v.openNetnsOf(pid)
		switch {
		case err == nil, err == errAbandoned:
			return err
		case !errors.Is(err, kernel.ErrGone):
			result = err // another process may work
		}
	}
	return result
}

func (v *View) openNetnsOf(pid int) error {
	dir, err := v.OpenProc(pid)
	if err != nil {
		return err
	}
	if v.t.inode != 0 {
		ino, err := v.netnsOf(dir, pid)
		if errors.Is(err, kernel.ErrGone) {
			// Perhaps only the main thread has ended.
			if live, e := v.openThread(pid); e == nil {
				_ = unix.Close(dir)
				dir = live
				ino, err = v.netnsOf(dir, pid)
			} else if e == errAbandoned {
				err = e
			}
		}
		if err == nil && ino != v.t.inode {
			err = kernel.ErrGone // the process has moved to another namespace
		}
		if err != nil {
			_ = unix.Close(dir)
			return err
		}
	}
	v.dir, v.pid = dir, pid
	return nil
}

// readNet reads one file of the namespace: through a process in it, or from inside if only
// a bind mount holds the namespace.
func (v *View) readNet(name string, buf []byte) ([]byte, error) {
	err := v.openNetns()
	if err == nil {
		return v.ReadAt(v.dir, v.pid, "net/"+name, buf)
	}
	if err == errAbandoned || v.t.path == "" {
		return nil, err
	}
	err = v.Do(0, v.t.path+" net/"+name, func() error {
		return v.inNetns(unix.AT_FDCWD, v.t.path, v.t.inode, func() (err error) {
			buf, err = kernel.ReadFile(unix.AT_FDCWD, v.plan.procRoot+"/thread-self/net/"+name, buf)
			return err
		})
	})
	if err != nil && err != errAbandoned {
		return nil, fmt.Errorf("read net/%s in the network namespace %s: %w", name, v.t.path, err)
	}
	return buf, err
}

func (v *View) netnsOf(dir, pid int) (uint64, error) {
	var inode uint64
	err := v.Do(pid, "stat ns/net", func() (err error) {
		inode, err = kernel.LinkedNetns(dir, "ns/net")
		return err
	})
	if err != nil {
		return 0, v.procError("stat", pid, "ns/net", err)
	}
	return inode, nil
}

// OpenProc opens the directory of a process under procfs. Reads through the descriptor fail
// after the process has ended. The caller closes it.
func (v *View) OpenProc(pid int) (dir int, err error) {
	dir = -1
	err = v.Do(pid, "open", func() (err error) {
		dir, err = kernel.Open(unix.AT_FDCWD, v.plan.procRoot+"/"+strconv.Itoa(pid), unix.O_DIRECTORY|unix.O_PATH)
		return err
	})
	if err != nil {
		if err == errAbandoned && dir >= 0 {
			_ = unix.Close(dir)
		}
		return -1, v.procError("open", pid, "", err)
	}
	return dir, nil
}

// openThread opens the directory of a live thread of a process, where OpenProc opens that
// of the main thread.
func (v *View) openThread(pid int) (dir int, err error) {
	dir = -1
	err = v.Do(pid, "open task", func() error {
		tid, err := kernel.LiveThread(v.plan.procRoot, pid)
		if err == nil {
			dir, err = kernel.Open(unix.AT_FDCWD, v.plan.procRoot+"/"+strconv.Itoa(pid)+"/task/"+strconv.Itoa(tid), unix.O_DIRECTORY|unix.O_PATH)
		}
		return err
	})
	if err != nil {
		if err == errAbandoned && dir >= 0 {
			_ = unix.Close(dir)
		}
		return -1, v.procError("open", pid, "task", err)
	}
	return dir, nil
}

// ReadAt reads a whole file below a directory from OpenProc into buf, which grows as
// needed.
func (v *View) ReadAt(dir, pid int, name string, buf []byte) ([]byte, error) {
	err := v.Do(pid, name, func() (err error) {
		buf, err = kernel.ReadFile(dir, name, buf)
		return err
	})
	if err != nil {
		return nil, v.procError("read", pid, name, err)
	}
	return buf, nil
}

// ReadNet reads /proc/PID/net/NAME of a process in the target's network namespace, once per
// cycle for all probes. The bytes are valid until Sample returns. A file that this kernel
// does not have is fs.ErrNotExist.
func (v *View) ReadNet(name string) ([]byte, error) {
	for i := range v.files[:v.nfile] {
		if f := &v.files[i]; f.name == name {
			return f.buf, f.err
		}
	}
	if v.nfile == len(v.files) {
		v.files = append(v.files, netFile{})
	}
	f := &v.files[v.nfile]
	f.name = name
	buf, err := v.readNet(name, f.buf)
	if err == errAbandoned {
		return nil, err
	}
	if errors.Is(err, kernel.ErrGone) && v.dir >= 0 {
		// ENOENT is ambiguous. If the process is still alive, the kernel lacks the
		// file.
		if _, e := v.netnsOf(v.dir, v.pid); e == nil {
			err = fmt.Errorf("read %s/%d/net/%s: %w", v.plan.procRoot, v.pid, name, fs.ErrNotExist)
		}
	}
	if buf != nil {
		f.buf = buf
	}
	f.err = err
	v.nfile++
	return f.buf, f.err
}

// ReadHost reads a file of procfs that does not belong to a process. The bytes are in
// v.Scratch.
func (v *View) ReadHost(name string) ([]byte, error) {
	path := v.plan.procRoot + "/" + name
	buf := v.Scratch
	err := v.Do(0, path, func() (err error) {
		buf, err = kernel.ReadFile(unix.AT_FDCWD, path, buf)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	v.Scratch = buf
	return buf, nil
}

// Enter runs fn on a thread in the target's network namespace. A socket that fn opens
// belongs to that namespace and must be closed before Sample returns: an open socket keeps
// the namespace of a dead pod alive.
func (v *View) Enter(what string, fn func() error) error {
	if v.t.inode == v.plan.self.inode {
		return v.Do(v.pid, what, fn)
	}
	dir, name := v.dir, "ns/net"
	if err := v.openNetns(); err == nil {
		dir = v.dir
	} else if err == errAbandoned || v.t.path == "" {
		return err
	} else {
		dir, name = unix.AT_FDCWD, v.t.path
	}
	return v.Do(v.pid, what, func() error { return v.inNetns(dir, name, v.t.inode, fn) })
}

// inNetns switches the thread to the namespace at name below dir, runs fn, and switches
// back.
func (v *View) inNetns(dir int, name string, inode uint64, fn func() error) error {
	ns, err := kernel.Open(dir, name, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
			return kernel.ErrGone
		}
		return fmt.Errorf("open the network namespace: %w (needs CAP_SYS_PTRACE)", err)
	}
	defer unix.Close(ns)
	is, err := kernel.FileInode(ns)
	if err != nil {
		return fmt.Errorf("stat the network namespace: %w", err)
	}
	if is != inode {
		return kernel.ErrGone // the process has moved, or the mount was replaced
	}
	lost, err := kernel.SwitchNetns(ns, v.plan.self.fd, fn)
	if lost {
		v.calls.threadLost = true
	}
	return err
}

// procError adds context to a failed call about a process. It returns ErrGone if the
// process has ended.
func (v *View) procError(verb string, pid int, name string, err error) error {
	if err == errAbandoned {
		return err
	}
	var stuck *StuckError
	if errors.As(err, &stuck) {
		return err
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s %s/%d/%s: %w", verb, v.plan.procRoot, pid, name, kernel.ErrGone)
	}
	hint := ""
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		hint = " (needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
	}
	return fmt.Errorf("%s %s/%d/%s: %w%s", verb, v.plan.procRoot, pid, name, err, hint)
}

// reset prepares the View for another target.
func (v *View) reset(t *target) {
	if v.dir >= 0 {
		v.t.putDoor(door{v.dir, v.pid})
	}
	v.t, v.dir, v.pid, v.nfile = t, -1, 0, 0
}
