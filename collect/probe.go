package collect

import (
	"errors"
	"fmt"
	"log/slog"

	"nodeskoop/collect/owner"
)

// Granularity says for which targets Sample is called in a cycle.
type Granularity uint8

// The granularities.
const (
	// EachNetns: once for the host's network namespace and once for each pod's.
	EachNetns Granularity = iota + 1
	// HostNetns: once, for the host's network namespace.
	HostNetns
	// EachPod: once for the processes of each pod, and once for those outside pods.
	EachPod
	// Node: once.
	Node
)

// Probe samples one kind of kernel counter.
//
// Sample appends its values with v.Add. It must reach the kernel only through
// v (Read, Do, Enter), so that a worker whose call hangs can be abandoned, and must
// return at once when one of these fails. What it wants to remember of a
// target between cycles it keeps in State, what it needs as scratch in v.
// Sample is never called twice at the same time for one target, but may be
// for two targets after one of them hung.
type Probe interface {
	Granularity() Granularity
	Sample(v *View) error
	Close() error
}

// Hooked is a Probe that can attach to the kernel in several ways.
type Hooked interface {
	// Hook names the kinds of the ways in use, which become a label: nothing in
	// it may change with pods. limitations say what the probe cannot see by them.
	Hook() (hook string, limitations []string)
}

// Env is what a Factory gets to build its probe from.
type Env struct {
	// Options are the values of the probe's configuration table, defaults
	// included, as the Catalogue's Option declares them.
	Options map[string]any
	// ProcRoot is where procfs is mounted, /proc but for tests.
	ProcRoot string
	// HostNetns is a file that is the host's network namespace.
	HostNetns string
	// Once: see the Runner's Options.
	Once bool
	// Who says whose an address or a namespace is, at any time: after a reload by
	// the new pods. Its ReadAddrs may be called from a worker only.
	Who *owner.Resolver
	Log *slog.Logger
}

// Factory builds one probe of the Catalogue.
type Factory struct {
	Name string
	New  func(Env) (Probe, error)
}

// ErrNotBuilt says that the program does not contain a probe.
var ErrNotBuilt = errors.New("this program does not contain it")

// UnsupportedError says that this machine cannot run a probe: the kernel lacks
// what the probe needs, or a policy forbids it. It is no failure. A Factory
// returns it, or Sample where only that can tell.
type UnsupportedError struct {
	// Reason is one line that a person understands. It is the same for all
	// probes that lack the same.
	Reason string
	// Detail is what the kernel answered; "" where the reason says all.
	Detail string
}

func (e *UnsupportedError) Error() string { return e.Reason }

// StuckError says that a kernel call made earlier has not returned yet.
type StuckError struct {
	PID  int
	What string
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("%s of process %d: the call made in an earlier cycle still hangs in the kernel (see /proc/%d/stack)", e.What, e.PID, e.PID)
}

// PartialError says that a probe's values lack some processes.
type PartialError struct {
	Err error
	// Protected counts processes that the kernel shows to nobody, whatever the
	// capabilities. If it is not 0 nothing else is missing: the values are written,
	// and the probe counts as working. Else the values are left out.
	Protected int
}

func (e *PartialError) Error() string { return e.Err.Error() }

// Unwrap returns the failure of the part.
func (e *PartialError) Unwrap() error { return e.Err }

// MissingError says that a probe of the granularity Node has no values of some
// namespaces. Those of the others are whole, and are written; the probe counts as
// failed.
type MissingError struct{ Err error }

func (e *MissingError) Error() string { return e.Err.Error() }

// Unwrap returns why they are missing.
func (e *MissingError) Unwrap() error { return e.Err }
