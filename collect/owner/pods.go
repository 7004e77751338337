// Package owner says whose a namespace, process, control group or address is: the
// Pod, the Pods that know them, and the labels that name them. Who finds the pods
// is package pod.
package owner

import (
	"net/netip"
	"time"
)

// Pod is one pod that containerd runs here, or one container outside any pod,
// whose containerd namespace and name then stand in for the pod's. A Pod that
// has been handed out is never changed.
type Pod struct {
	// ID is the sandbox's container ID: unique over restarts of a pod.
	ID string
	// Namespace, Name and UID are Kubernetes' own; UID is empty outside pods.
	Namespace, Name, UID string
	// Labels are the pod's labels, LabelsLeftOut counts those that it has beyond
	// them: a pod may have more than are worth keeping.
	Labels        map[string]string
	LabelsLeftOut int
	// HostNetwork says that the pod shares the host's network namespace.
	HostNetwork bool
	// Netns is the inode number of the pod's network namespace; 0 if it
	// shares the host's or another pod's, or is not known.
	Netns uint64
	// NetnsPath is a file that is the network namespace, "" if none is known.
	// It outlives the pod's processes.
	NetnsPath string
	// Addrs are the pod's addresses, unmapped.
	Addrs []netip.Addr
	// PIDs are the first processes of its containers, the sandbox's first.
	PIDs []int
	// Cgroups are the directories of its containers' control groups.
	Cgroups []string
	// Alone are those of PIDs whose container has no control group of its own that
	// Cgroups could have.
	Alone []int
	// ProcessesErr says why the pod's processes cannot be listed, nil if they can.
	ProcessesErr error
	// Reapers are processes outside the pod's control groups that serve the pod and
	// nothing else, and inherit what its processes counted: its shim.
	Reapers []Process
	// Started is when the pod was first seen or created.
	Started time.Time
}

// Process names a process: its number may be in use again.
type Process struct {
	PID int
	// Start is when it started, in clock ticks since boot (field 22 of
	// /proc/PID/stat).
	Start uint64
}

// Pods answers who is behind a network namespace, a process, a control group
// or an address. All methods may be called from any goroutine.
type Pods interface {
	// Running returns the pods that run now, sorted by namespace, name and start.
	Running() []*Pod
	// ByNetns, ByAddr, ByPID and ByCgroup return nil for what is not a pod's.
	// For a while they go on naming a pod that has ended: ByNetns if something was
	// seen in the namespace at a time when it was the pod's; the zero time is any.
	ByNetns(inode uint64, at time.Time) *Pod
	ByAddr(netip.Addr) *Pod
	ByPID(pid int) *Pod
	ByCgroup(id uint64) *Pod
	// Processes appends to buf the processes of a pod's control groups, their
	// descendants included. After an error some of them may be missing.
	Processes(p *Pod, buf []int) ([]int, error)
	// Connected reports whether containerd answers.
	Connected() bool
}

// NoPods is the Pods of a machine without containerd: it knows none.
type NoPods struct{}

// Running returns nil.
func (NoPods) Running() []*Pod { return nil }

// ByNetns returns nil.
func (NoPods) ByNetns(uint64, time.Time) *Pod { return nil }

// ByAddr returns nil.
func (NoPods) ByAddr(netip.Addr) *Pod { return nil }

// ByPID returns nil.
func (NoPods) ByPID(int) *Pod { return nil }

// ByCgroup returns nil.
func (NoPods) ByCgroup(uint64) *Pod { return nil }

// Processes returns buf as it is.
func (NoPods) Processes(_ *Pod, buf []int) ([]int, error) { return buf, nil }

// Connected returns false.
func (NoPods) Connected() bool { return false }
