package bpf

import "nodeskoop/bpf/internal/objects"

//go:generate internal/objects/bpf2go -type process -type state Activity activity.bpf.c

// Activities detects which processes have run, for all processes at once. It is not
// safe for concurrent use.
type Activities struct {
	iterators[objects.ActivityProcess]
	all map[uint32]Activity
}

// Activity changes whenever the process has run: a thread was on a CPU, the process
// began to exit, or its parent changed. The zero Activity means that the process is
// running or that nothing is known of it.
type Activity struct {
	threads, parent, exitState uint32
	switches, start            uint64
}

// Idle reports whether the process has not run between the readings a and b.
func (a Activity) Idle(b Activity) bool { return a == b && a != Activity{} }

// NewActivities loads the iterator.
func NewActivities(types *KernelTypes) (*Activities, error) {
	a := &Activities{all: map[uint32]Activity{}}
	spec, err := objects.LoadActivity()
	if err != nil {
		return nil, err
	}
	if err := a.load(types, spec, func(p *objects.ActivityProcess) uint32 { return p.Generation }, objects.ActivityProgEachThread); err != nil {
		return nil, err
	}
	return a, nil
}

// Read walks all tasks. The map holds the processes that are not on a CPU, keyed by
// PID in the initial PID namespace, up to 16,384 of them. The map is valid until
// the next call.
func (a *Activities) Read() (map[uint32]Activity, error) {
	clear(a.all)
	err := a.each(func(pid uint32, x *objects.ActivityProcess) {
		if x.State&objects.ActivityStateRUNS == 0 {
			a.all[pid] = Activity{x.Threads, x.Parent, uint32(x.State), x.Switches, x.Start}
		}
	})
	if err != nil {
		return nil, err
	}
	return a.all, nil
}
