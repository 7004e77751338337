package bpf

import (
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// A rung is one way to hook in: programs that are attached together or not at
// all, those that end a measurement before those that begin it.
type rung struct {
	kind       Kind
	programs   []string
	limitation string // what this way does not see
}

// A hook is what a probe watches, and the ways to, best first.
type hook struct {
	name     string
	rungs    []rung
	optional bool
	without  string                          // what the probe misses without it, for an optional one
	needed   func(*Probe, *kernelTypes) bool // nil: always; asked when the hooks before it are attached
}

// A definition is all that belongs to one probe. What may be left out says so.
type definition struct {
	spec     func() (*ebpf.CollectionSpec, error)
	prepare  func(*Probe, *ebpf.CollectionSpec, *kernelTypes) error // nil or: sets the program's constants
	begin    func(*Probe) error                                     // nil or: fills maps before anything is attached
	started  func(*Probe) error                                     // nil or: called when everything is attached
	hooks    []hook
	events   []EventType
	slots    int // of the counters in use
	defaults Config
	note     string // for users of kernels on which it cannot work

	// table and shares name a map besides the counters, by namespace and more,
	// and the one that says how namespaces share it.
	table, shares string
	counters      func(*Probe, func(netns uint64, slot int, value uint64)) error // nil: the map of counters says all
	recount       func(*Probe) error                                             // nil or: counts the entries of the table
	forget        func(p *Probe, gone map[uint32]bool) error                     // nil or: deletes those of namespaces
	limitations   func(*Probe) []string                                          // nil or: what State adds to what its hooks lack
	full          string                                                         // what State says while the table is full; "": lackOfRoom
}

// Probes are the names of all probes that Load knows.
func Probes() []string { return slices.Sorted(maps.Keys(definitions)) }

// thresholds sets the constants of the probes that measure a time.
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
