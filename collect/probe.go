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
// Sample appends its values with v.Add. It must call the kernel only through v (Read, Do,
// Enter), so that a hanging worker can be abandoned, and must return at once when such a
// call fails. State between cycles of a target is in State; scratch memory is v.Scratch.
// Sample is never called concurrently for one target, but may be for two targets after a
// call for one of them hung.
type Probe interface {
	Granularity() Granularity
	Sample(v *View) error
	Close() error
}

// Hooked is a Probe that can attach to the kernel in several ways.
type Hooked interface {
	// Hook names the kinds of hooks in use, which become a label value: it must not
	// depend on pods. limitations say what the probe cannot see with these hooks.
	Hook() (hook string, limitations []string)
}

// Env is the input of a Factory.
type Env struct {
	// Options are the values of the probe's configuration table, defaults
	// included, as the Catalogue's Option declares them.
	Options map[string]any
	// ProcRoot is where procfs is mounted: /proc, except in tests.
	ProcRoot string
	// HostNetns is the path of the host's network namespace, such as /proc/1/ns/net.
	HostNetns string
	// Once: see the Runner's Options.
	Once bool
	// Who finds the owners of addresses and namespaces. After a reload it uses the new
	// configuration. Call Who.ReadAddrs only from a worker.
	Who *owner.Resolver
	Log *slog.Logger
}

// Factory builds one probe of the Catalogue.
type Factory struct {
	Name string
	New  func(Env) (Probe, error)
}

// ErrNotBuilt says that the program was built without the probe.
var ErrNotBuilt = errors.New("this program does not contain it")

// UnsupportedError says that this machine cannot run a probe: the kernel lacks a feature,
// or a policy forbids it. It is not a failure. A Factory returns it, or Sample if the
// lack is only detected there.
type UnsupportedError struct {
	// Reason is one readable line. Probes that lack the same feature give the same Reason.
	Reason string
	// Detail is the kernel's answer; "" if Reason says everything.
	Detail string
}

func (e *UnsupportedError) Error() string { return e.Reason }

// StuckError says that an earlier kernel call has not returned yet.
type StuckError struct {
	PID  int
	What string
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("%s of process %d: the call made in an earlier cycle still hangs in the kernel (see /proc/%d/stack)", e.What, e.PID, e.PID)
}

// PartialError says that some processes are missing in a probe's values.
type PartialError struct {
	Err error
	// Protected counts processes that the kernel hides regardless of capabilities. If
	// it is not 0, only these are missing: the values are written, and the probe counts
	// as working. If it is 0, other processes are missing and the values are left out.
	Protected int
}

func (e *PartialError) Error() string { return e.Err.Error() }

// Unwrap returns the error of the missing processes.
func (e *PartialError) Unwrap() error { return e.Err }

// MissingError says that a probe of granularity Node has no values for some namespaces. The
// values of the others are complete and are written; the probe counts as failed.
type MissingError struct{ Err error }

func (e *MissingError) Error() string { return e.Err.Error() }

// Unwrap returns why the values are missing.
func (e *MissingError) Unwrap() error { return e.Err }
