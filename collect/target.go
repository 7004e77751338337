package collect

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"nodeskoop/collect/owner"
)

// target is what one Sample call of a cycle is about. It is made for one cycle and
// never changed; what is remembered beyond it is in its memory.
type target struct {
	*memory
	granularity Granularity
	pod         *owner.Pod // nil: the host
	inode       uint64
	pids        []int // processes through which to reach the namespace; for EachPod, those to sample
	path        string
	// unknown: it stands for what belongs to no known namespace.
	unknown bool
	// err, for EachPod, says why the processes cannot be told: nothing is sampled.
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

// memory is what is remembered of a target from cycle to cycle. It lives as long as
// the pod or namespace does.
type memory struct {
	key         string // identifies the target over restarts, too
	granularity Granularity
	live        bool     // seen in this cycle
	labels      labelSet // of its series; workers do not look at it

	mu    sync.Mutex
	state map[string]any     // of each probe
	kept  []byte             // state as it was encoded last, see keeper
	stuck map[op]int         // calls that hang, and how many workers hang in them
	hung  map[string]*source // probes whose code hangs outside the kernel
}

// op names one call into the kernel.
type op struct {
	pid  int
	what string
}

// hang notes that a worker hangs: in a call, or else in the code of the probe. It
// reports how many calls hang by now.
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

// returned notes that what hang was told of has returned.
func (m *memory) returned(call op, inCall bool, probe *source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !inCall {
		if m.hung[probe.name] == probe { // else the probe was dropped meanwhile
			delete(m.hung, probe.name)
		}
	} else if m.stuck[call]--; m.stuck[call] <= 0 {
		delete(m.stuck, call)
	}
}

// hanging reports what hangs of a probe: its own code, and how many calls of
// whatever probe.
func (m *memory) hanging(probe *source) (itself bool, calls int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hung[probe.name] != nil, len(m.stuck)
}

// isStuck reports whether a call hangs.
func (m *memory) isStuck(call op) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stuck[call] > 0
}

// forget ends what a probe remembers of the target. What is to be kept goes to the
// keeper: the next instance goes on from it.
func (m *memory) forget(probe string, k *keeper) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.state[probe].(Kept); ok && len(m.stuck) == 0 && m.hung[probe] == nil {
		k.put(m.key, probe, s)
	}
	delete(m.state, probe)
	delete(m.hung, probe)
}

// source is a probe that has been built, as workers sample it, and how it did.
type source struct {
	name        string
	probe       Probe
	granularity Granularity
	// What the probe said last of the ways in which it is attached.
	hook        string
	limitations []string
	outcome     // of the cycle
}

// outcome is how a probe did in one cycle.
type outcome struct {
	failed       int     // targets without whole values
	failedOn     *target // the last of them
	firstErr     error
	protected    int // processes that the kernel shows to nobody
	protectedErr error
	took         time.Duration
}

// fail notes that the probe gave no whole values for t.
func (o *outcome) fail(t *target, err error) {
	if o.firstErr == nil {
		o.firstErr = fmt.Errorf("%s: %w", t, err)
	}
	if o.failedOn != t {
		o.failedOn = t
		o.failed++
	}
}

// sourcesOf are those that are sampled on a target of one of the granularities.
func sourcesOf(all []*source, of ...Granularity) []*source {
	var list []*source
	for _, s := range all {
		if slices.Contains(of, s.granularity) {
			list = append(list, s)
		}
	}
	return list
}
