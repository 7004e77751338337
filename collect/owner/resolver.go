package owner

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nodeskoop/internal/bounded"
)

// The kinds of an end of a connection.
const (
	EndPod     = "pod"
	EndNode    = "node"
	EndUnknown = "unknown"
)

// Sources are what a Resolver asks.
type Sources struct {
	// Pods know the pods; nil: there are none.
	Pods Pods
	// HostNetns is the inode number of the host's network namespace. If it is
	// 0, every namespace that is no pod's counts as the host's.
	HostNetns uint64
	// ForeignPIDs says that the kernel's process numbers are not those of this
	// process's PID namespace, so that nobody can be found by them.
	ForeignPIDs bool
	// NodeAddrs lists the node's own addresses: those in the host's network
	// namespace. The call may hang.
	NodeAddrs func() ([]netip.Addr, error)
}

// Resolver answers whose a network namespace, a process, a control group or an
// address is. Events and flows ask the same Resolver, and it has the only copy of
// the node's addresses. As Pods it is that of its Sources at any time. All methods
// may be called from any goroutine.
type Resolver struct {
	currentPods
	addrs nodeAddrs
}

// NewResolver returns a Resolver that asks s.
func NewResolver(s Sources) *Resolver {
	r := &Resolver{}
	r.Apply(s)
	return r
}

// Apply changes whom the Resolver asks from now on.
func (r *Resolver) Apply(s Sources) {
	if s.Pods == nil {
		s.Pods = NoPods{}
	}
	old := r.from.Swap(&s)
	r.addrs.apply(s.NodeAddrs, old != nil && old.HostNetns == s.HostNetns)
}

// Owner returns the pod that a network namespace was of at a time, or else that a
// process is of; 0 is neither. sure says that no pod is about to appear that would change the answer.
func (r *Resolver) Owner(netns uint64, pid int, at time.Time) (p *Pod, sure bool) {
	s := r.from.Load()
	inPod := netns != 0 && netns != s.HostNetns
	if inPod {
		if p = s.Pods.ByNetns(netns, at); p != nil {
			return p, true
		}
	}
	if pid > 0 && !s.ForeignPIDs {
		// Pods in the host's network namespace are found so, too.
		if p = s.Pods.ByPID(pid); p != nil {
			return p, true
		}
		return nil, !inPod && netns != 0
	}
	return nil, !inPod
}

// Unowned reports whether a network namespace that is no pod's is not the host's
// either.
func (r *Resolver) Unowned(netns uint64) bool {
	host := r.from.Load().HostNetns
	return netns != 0 && host != 0 && netns != host
}

// End tells whose the address of one end of a connection is: the kind, and for
// EndPod the pod. where is the pod in whose network namespace the address was
// seen; nil is the host's, or, with unowned, that of neither.
func (r *Resolver) End(a netip.Addr, where *Pod, unowned bool) (kind string, p *Pod) {
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		// The other end is where this one is.
		if p = where; p == nil && !unowned {
			return EndNode, nil
		}
	case where != nil && slices.Contains(where.Addrs, a):
		// An address may be another pod's by now.
		p = where
	default:
		p = r.from.Load().Pods.ByAddr(a)
	}
	switch {
	case p != nil && p.HostNetwork: // its addresses are the node's
		return EndNode, nil
	case p != nil:
		return EndPod, p
	case r.addrs.contains(a):
		return EndNode, nil
	}
	r.addrs.refreshAfter(nodeAddrAge) // for those to come
	return EndUnknown, nil
}

// Nobodys reports whether an address that was seen in the network namespace of
// where is nobody's so far: it may be an address that the node has only just got.
func (r *Resolver) Nobodys(a netip.Addr, where *Pod) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsLoopback() && !a.IsMulticast() && !r.addrs.contains(a) &&
		r.from.Load().Pods.ByAddr(a) == nil && (where == nil || !slices.Contains(where.Addrs, a))
}

// RefreshAddrs has the node's addresses read again, beside the caller, unless
// that was begun just now.
func (r *Resolver) RefreshAddrs() { r.addrs.refreshAfter(nodeAddrPause) }

// AddrsReadSince reports whether the node's addresses are those of a reading that
// began at t or later.
func (r *Resolver) AddrsReadSince(t time.Time) bool {
	known := r.addrs.known.Load()
	return known != nil && !known.asked.Before(t)
}

// ReadAddrs reads the node's addresses, and waits for the kernel no longer than
// half a second: then those of before stay. It fails if there are none.
func (r *Resolver) ReadAddrs() error { return r.addrs.readNow() }

const (
	nodeAddrAge = 30 * time.Second
	// nodeAddrPause is the least time between two readings of the node's addresses.
	nodeAddrPause = 200 * time.Millisecond
	// nodeAddrsWait is how long a caller waits for one.
	nodeAddrsWait = 500 * time.Millisecond
)

// nodeAddrs knows the node's own addresses. They are read in a goroutine: the
// kernel's lock on network devices can be held for long.
type nodeAddrs struct {
	known atomic.Pointer[addrSet] // nil: none were read yet

	mu   sync.Mutex
	list func() ([]netip.Addr, error)
	call *bounded.Call[struct{}] // the last reading; nil: none
}

type addrSet struct {
	asked time.Time // when the reading began
	addrs map[netip.Addr]struct{}
}

// apply changes how the addresses are read. Those of another namespace are
// forgotten.
func (n *nodeAddrs) apply(list func() ([]netip.Addr, error), sameHost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = list
	if !sameHost {
		n.call = nil // what it reads is of no use
		n.known.Store(nil)
	}
}

// contains reports whether a is the node's, as far as is known.
func (n *nodeAddrs) contains(a netip.Addr) bool {
	known := n.known.Load()
	if known == nil {
		return false
	}
	_, ok := known.addrs[a]
	return ok
}

// refreshAfter begins a reading if the last began at least age ago.
func (n *nodeAddrs) refreshAfter(age time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.call == nil || time.Since(n.call.Since) >= age {
		n.begin()
	}
}

// begin begins a reading unless one is under way. The caller holds the lock.
func (n *nodeAddrs) begin() *bounded.Call[struct{}] {
	if n.list == nil || n.call != nil && !n.call.Over(0, nil) {
		return n.call
	}
	list, asked := n.list, time.Now()
	var call *bounded.Call[struct{}]
	call = bounded.Begin(func() (none struct{}, err error) {
		found, err := list()
		if err != nil {
			return none, err
		}
		addrs := make(map[netip.Addr]struct{}, len(found))
		for _, a := range found {
			addrs[a.WithZone("").Unmap()] = struct{}{}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.call == call {
			n.known.Store(&addrSet{asked, addrs})
		}
		return none, nil
	})
	n.call = call
	return call
}

// readNow waits for a reading. While an earlier one hangs, and when this one takes
// too long or fails, the addresses of before stay.
func (n *nodeAddrs) readNow() error {
	n.mu.Lock()
	call := n.begin()
	n.mu.Unlock()
	switch {
	case call == nil:
		return nil
	case !call.Over(nodeAddrsWait-time.Since(call.Since), nil):
		if n.known.Load() == nil {
			return call.Hangs("listing the node's addresses")
		}
	case n.known.Load() == nil:
		return call.Err
	}
	return nil
}

// currentPods are the Pods of a Resolver's sources at any time: who asks stays,
// while a reload puts others in their place.
type currentPods struct{ from atomic.Pointer[Sources] }

func (c *currentPods) now() Pods { return c.from.Load().Pods }

// Running implements Pods.
func (c *currentPods) Running() []*Pod { return c.now().Running() }

// ByNetns implements Pods.
func (c *currentPods) ByNetns(inode uint64, at time.Time) *Pod { return c.now().ByNetns(inode, at) }

// ByAddr implements Pods.
func (c *currentPods) ByAddr(a netip.Addr) *Pod { return c.now().ByAddr(a) }

// ByPID implements Pods.
func (c *currentPods) ByPID(pid int) *Pod { return c.now().ByPID(pid) }

// ByCgroup implements Pods.
func (c *currentPods) ByCgroup(id uint64) *Pod { return c.now().ByCgroup(id) }

// Processes implements Pods.
func (c *currentPods) Processes(p *Pod, buf []int) ([]int, error) { return c.now().Processes(p, buf) }

// Connected implements Pods.
func (c *currentPods) Connected() bool { return c.now().Connected() }
