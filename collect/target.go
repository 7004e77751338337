package collect

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
)

// target is the subject of one Sample call: a namespace, a pod or the node. It is
// made for one cycle and immutable; its memory holds the state that lasts longer.
type target struct {
	*memory
	granularity Granularity
	pod         *owner.Pod // nil: the host
	inode       uint64
	pids        []int // processes that give access to the namespace; for EachPod, the processes to sample
	path        string
	// unknown marks the target for values whose namespace is not known.
	unknown bool
	// err, for EachPod, says why the processes are not known; nothing is sampled then.
	err     error
	reapers []owner.Process
}

func (t *target) String() string {
	switch {
	case t.granularity == Node:
		return "the node"
	case t.pod == nil && t.granularity == EachPod:
		return "processes outside pods"
	case t.unknown:
		return "unattributed"
	case t.pod == nil:
		return "the host's network namespace"
	}
	return "pod " + t.pod.Namespace + "/" + t.pod.Name
}

// memory is a target's state between cycles. It lives as long as the pod or namespace.
type memory struct {
	key         string // identifies the target, also over restarts
	granularity Granularity
	live        bool     // present in this cycle
	labels      labelSet // labels of its series; workers do not use them

	mu    sync.Mutex
	state map[string]any     // by probe
	kept  []byte             // state as last encoded, see keeper
	stuck map[op]int         // hanging calls, with the number of workers that hang in each
	hung  map[string]*source // probes whose own code hangs, outside a kernel call
	door  door
	gone  bool // nothing will use the door
}

// door is an open directory of a process, /proc/PID, through which a namespace was
// reached. It pins neither the process nor the namespace: once the process has ended,
// reads through it fail, even if another process has its PID by then.
type door struct{ dir, pid int }

// takeDoor returns the door of the last cycle, which the caller then owns. ok is false if
// there is none, or if its process is not one of pids any more.
func (m *memory) takeDoor(pids []int) (d door, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.door.pid == 0 || !slices.Contains(pids, m.door.pid) {
		return d, false
	}
	d, m.door = m.door, door{}
	return d, true
}

// putDoor leaves a door for the next cycle.
func (m *memory) putDoor(d door) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		d.close()
		return
	}
	m.door.close()
	m.door = d
}

// leave closes the door for good: the target is gone.
func (m *memory) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.door.close()
	m.door, m.gone = door{}, true
}

func (d door) close() {
	if d.pid != 0 {
		_ = unix.Close(d.dir)
	}
}

// op names one call into the kernel.
type op struct {
	pid  int
	what string
}

// hang records that a worker hangs, in a kernel call or in the probe's own code. It returns
// how many calls hang now.
func (m *memory) hang(call op, inCall bool, probe *source) (calls int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if inCall {
		if m.stuck == nil {
			m.stuck = map[op]int{}
		}
		m.stuck[call]++
	} else {
		if m.hung == nil {
			m.hung = map[string]*source{}
		}
		m.hung[probe.name] = probe
	}
	return len(m.stuck)
}

// returned undoes hang: the worker has returned.
func (m *memory) returned(call op, inCall bool, probe *source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !inCall {
		if m.hung[probe.name] == probe { // otherwise the probe was dropped meanwhile
			delete(m.hung, probe.name)
		}
	} else if m.stuck[call]--; m.stuck[call] <= 0 {
		delete(m.stuck, call)
	}
}

// hanging reports whether the probe's own code hangs on this target, and how many calls
// hang, of any probe.
func (m *memory) hanging(probe *source) (itself bool, calls int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hung[probe.name] != nil, len(m.stuck)
}

// isStuck reports whether the call hangs.
func (m *memory) isStuck(call op) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stuck[call] > 0
}

// forget removes a probe's state. State that is a Kept goes to the keeper, for the probe's
// next instance.
func (m *memory) forget(probe string, k *keeper) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.state[probe].(Kept); ok && len(m.stuck) == 0 && m.hung[probe] == nil {
		k.put(m.key, probe, s)
	}
	delete(m.state, probe)
	delete(m.hung, probe)
}

// source is a probe that has been built, and its results.
type source struct {
	name        string
	probe       Probe
	granularity Granularity
	// As of the last call of Hook.
	hook        string
	limitations []string
	keep        bool // keep the rows
	outcome          // result of this cycle
}

// outcome is a probe's result of one cycle.
type outcome struct {
	failed       int     // targets without complete values
	failedOn     *target // last target without complete values
	firstErr     error
	protected    int // processes that the kernel hides
	protectedErr error
	took         time.Duration
	rows         []row // if kept
}

// fail records that the probe has no complete values for t.
func (o *outcome) fail(t *target, err error) {
	if o.firstErr == nil {
		o.firstErr = fmt.Errorf("%s: %w", t, err)
	}
	if o.failedOn != t {
		o.failedOn = t
		o.failed++
	}
}

// sourcesOf returns the probes of the given granularities.
func sourcesOf(all []*source, of ...Granularity) []*source {
	var list []*source
	for _, s := range all {
		if slices.Contains(of, s.granularity) {
			list = append(list, s)
		}
	}
	return list
}
