package bpf

import (
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// A rung is one way to attach a hook: a set of programs that are attached together
// or not at all, those that end a measurement before those that begin it.
type rung struct {
	kind       Kind
	programs   []string
	limitation string // what this rung does not see
}

// A hook is one observation point of a probe, with the rungs to attach it, best
// first.
type hook struct {
	name     string
	rungs    []rung
	optional bool
	without  string                          // for an optional hook, what the probe misses without it
	needed   func(*Probe, *kernelTypes) bool // nil means always; called after the previous hooks are attached
}

// A definition holds all properties of one probe.
type definition struct {
	spec     func() (*ebpf.CollectionSpec, error)
	prepare  func(*Probe, *ebpf.CollectionSpec, *kernelTypes) error // sets the programs' constants; may be nil
	begin    func(*Probe) error                                     // fills maps before programs are attached; may be nil
	started  func(*Probe) error                                     // called when all hooks are attached; may be nil
	hooks    []hook
	events   []EventType
	slots    int // number of counters in use
	defaults Config
	note     string // advice for kernels that do not support the probe

	// table names a further map keyed by namespace and more; shares names the map
	// of the namespaces' shares in it.
	table, shares string
	counters      func(*Probe, func(netns NetnsID, slot int, value uint64)) error // reads the counters if they are not only in the map of counters; may be nil
	recount       func(*Probe) error                                              // counts the entries of table; may be nil
	forget        func(p *Probe, gone map[NetnsID]bool) error                     // deletes the entries of namespaces; may be nil
	limitations   func(*Probe) []string                                           // adds to the limitations of the hooks in State; may be nil
	full          string                                                          // the limitation while the table is full; "" means lackOfRoom
}

// Probes returns the names of all probes that Load accepts.
func Probes() []string { return slices.Sorted(maps.Keys(definitions)) }

// thresholds sets the threshold constants of the latency probes.
func thresholds(p *Probe, spec *ebpf.CollectionSpec, _ *kernelTypes) error {
	for name, d := range map[string]time.Duration{
		"slow_ns": p.config.Slow, "slow100_ns": p.config.Slow100, "event_ns": p.config.Event,
	} {
		if _, ok := spec.Variables[name]; !ok {
			continue
		}
		if err := set(spec, name, uint64(d)); err != nil {
			return err
		}
	}
	return nil
}
