package bpf

import "nodeskoop/bpf/internal/objects"

//go:generate internal/objects/bpf2go -type process -type state Activity activity.bpf.c

// Activities tells of all processes at once whether they have run. It is not
// safe for use by several goroutines.
type Activities struct {
	iterators[objects.ActivityProcess]
	all map[uint32]Activity
}

// Activity is different after a process has run: has been on a CPU, with any of
// its threads, has begun to end, or got another parent. The zero Activity is
// that of a process that runs, or of which nothing is known.
type Activity struct {
	threads, parent, exitState uint32
	switches, start            uint64
}

// Idle reports whether the process has not run between the moments at which a
// and then b was read.
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

// Read walks through the tasks again. The map has the processes that are not on
// a CPU, by their number in the first PID namespace, but for those beyond
// 16,384. It is the caller's until the next call.
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
