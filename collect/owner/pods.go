// Package owner defines Pod and Pods, which name the owner of a network namespace,
// process, control group or address, and the labels of owners. Package pod finds the pods.
package owner

import (
	"net/netip"
	"time"
)

// Pod is a pod that containerd runs here, or a container outside pods, whose containerd
// namespace and name then stand for the pod's. A Pod is immutable once handed out.
type Pod struct {
	// ID is the sandbox's container ID. A new sandbox of the same pod has another
	// ID.
	ID string
	// Namespace, Name and UID are Kubernetes' own. UID is empty outside pods.
	Namespace, Name, UID string
	// Labels are the pod's labels, up to a limit; LabelsLeftOut counts the others.
	Labels        map[string]string
	LabelsLeftOut int
	// HostNetwork says that the pod shares the host's network namespace.
	HostNetwork bool
	// Netns is the inode number of the pod's network namespace; 0 if the pod shares the
	// host's or another pod's, or if it is not known.
	Netns uint64
	// NetnsPath is a path of the network namespace that outlives the pod's processes; "" if
	// none is known.
	NetnsPath string
	// Addrs are the pod's addresses, unmapped.
	Addrs []netip.Addr
	// PIDs are the first processes of its containers, that of the sandbox first.
	PIDs []int
	// Cgroups are the directories of its containers' control groups.
	Cgroups []string
	// Alone are the PIDs whose container has no control group of its own, so that Cgroups
	// does not cover them.
	Alone []int
	// ProcessesErr says why the pod's processes cannot be listed; nil if they can.
	ProcessesErr error
	// Reapers are the pod's shims: processes outside its control groups that serve
	// only this pod and inherit the counts of its exited processes.
	Reapers []Process
	// Started is when the pod was first seen or created.
	Started time.Time
}

// Process identifies a process: a PID alone may be reused.
type Process struct {
	PID int
	// Start is the start time in clock ticks since boot (field 22 of /proc/PID/stat).
	Start uint64
}

// Pods finds the pod of a network namespace, process, control group or address. All methods
// may be called from any goroutine.
type Pods interface {
	// Running returns the running pods, sorted by namespace, name and start.
	Running() []*Pod
	// ByNetns, ByAddr, ByPID and ByCgroup return nil if there is no such pod. They find an
	// ended pod for a while. ByNetns takes the time of the occurrence, since inode numbers
	// are reused; the zero time stands for any.
	ByNetns(inode uint64, at time.Time) *Pod
	ByAddr(netip.Addr) *Pod
	ByPID(pid int) *Pod
	ByCgroup(id uint64) *Pod
	// Processes appends to buf the processes in a pod's control groups and below. After an
	// error some may be missing.
	Processes(p *Pod, buf []int) ([]int, error)
	// Connected reports whether containerd answers.
	Connected() bool
}

// NoPods is the Pods of a machine without containerd.
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

// Processes returns buf unchanged.
func (NoPods) Processes(_ *Pod, buf []int) ([]int, error) { return buf, nil }

// Connected returns false.
func (NoPods) Connected() bool { return false }
