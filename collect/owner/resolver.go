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

// Sources are the sources of a Resolver's answers.
type Sources struct {
	// Pods finds the pods; nil: there are none.
	Pods Pods
	// HostNetns is the inode number of the host's network namespace. If it is 0, every
	// namespace that is not a pod's counts as the host's.
	HostNetns uint64
	// ForeignPIDs says that the kernel's PIDs are those of another PID namespace,
	// so that they identify nobody here.
	ForeignPIDs bool
	// NodeAddrs lists the node's own addresses: those in the host's network namespace. It
	// may hang.
	NodeAddrs func() ([]netip.Addr, error)
}

// Resolver finds the owner of a network namespace, process, control group or address.
// Events and flows share one Resolver, which holds the only copy of the node's addresses.
// As a Pods it answers with its current Sources. All methods may be called from any
// goroutine.
type Resolver struct {
	currentPods
	addrs nodeAddrs
}

// NewResolver returns a Resolver with the sources s.
func NewResolver(s Sources) *Resolver {
	r := &Resolver{}
	r.Apply(s)
	return r
}

// Apply replaces the sources.
func (r *Resolver) Apply(s Sources) {
	if s.Pods == nil {
		s.Pods = NoPods{}
	}
	old := r.from.Swap(&s)
	r.addrs.apply(s.NodeAddrs, old != nil && old.HostNetns == s.HostNetns)
}

// Owner returns the pod that had a network namespace at a time, or else the pod of a
// process; 0 is neither. If sure is false, a pod may still appear that changes the answer.
func (r *Resolver) Owner(netns uint64, pid int, at time.Time) (p *Pod, sure bool) {
	s := r.from.Load()
	inPod := netns != 0 && netns != s.HostNetns
	if inPod {
		if p = s.Pods.ByNetns(netns, at); p != nil {
			return p, true
		}
	}
	if pid > 0 && !s.ForeignPIDs {
		// This finds pods in the host's network namespace, too.
		if p = s.Pods.ByPID(pid); p != nil {
			return p, true
		}
		return nil, !inPod && netns != 0
	}
	return nil, !inPod
}

// Unowned reports whether a network namespace that is not a pod's is not the host's either.
func (r *Resolver) Unowned(netns uint64) bool {
	host := r.from.Load().HostNetns
	return netns != 0 && host != 0 && netns != host
}

// End finds the owner of the address of one end of a connection: the kind, and for EndPod
// the pod. where is the pod whose network namespace the address was seen in. If it is nil,
// that is the host's namespace, or with unowned one that belongs to no one.
func (r *Resolver) End(a netip.Addr, where *Pod, unowned bool) (kind string, p *Pod) {
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		// A loopback address is in the namespace where it was seen.
		if p = where; p == nil && !unowned {
			return EndNode, nil
		}
	case where != nil && slices.Contains(where.Addrs, a):
		// Prefer this pod: the index may give the address to a later pod.
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
	r.addrs.refreshAfter(nodeAddrAge) // later events profit
	return EndUnknown, nil
}

// Nobodys reports whether an address, seen in the network namespace of where, has no known
// owner. It may be an address that the node has just got.
func (r *Resolver) Nobodys(a netip.Addr, where *Pod) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsLoopback() && !a.IsMulticast() && !r.addrs.contains(a) &&
		r.from.Load().Pods.ByAddr(a) == nil && (where == nil || !slices.Contains(where.Addrs, a))
}

// RefreshAddrs starts to read the node's addresses in another goroutine, unless a reading
// was started a moment ago.
func (r *Resolver) RefreshAddrs() { r.addrs.refreshAfter(nodeAddrPause) }

// AddrsReadSince reports whether the node's addresses come from a reading that began at t
// or later.
func (r *Resolver) AddrsReadSince(t time.Time) bool {
	known := r.addrs.known.Load()
	return known != nil && !known.asked.Before(t)
}

// ReadAddrs reads the node's addresses. It waits for half a second at most and then keeps
// the previous addresses. It fails if there are none.
func (r *Resolver) ReadAddrs() error { return r.addrs.readNow() }

const (
	nodeAddrAge = 30 * time.Second
	// nodeAddrPause is the minimum time between two readings of the node's addresses.
	nodeAddrPause = 200 * time.Millisecond
	// nodeAddrsWait is how long a caller waits for a reading.
	nodeAddrsWait = 500 * time.Millisecond
)

// nodeAddrs holds the node's own addresses. A goroutine reads them: another program may
// hold the kernel's RTNL lock for long.
type nodeAddrs struct {
	known atomic.Pointer[addrSet] // nil: not read yet

	mu   sync.Mutex
	list func() ([]netip.Addr, error)
	call *bounded.Call[struct{}] // the last reading; nil: none
}

type addrSet struct {
	asked time.Time // start of the last reading
	addrs map[netip.Addr]struct{}
}

// apply replaces the function that reads the addresses, and drops the addresses if
// the host's namespace has changed.
func (n *nodeAddrs) apply(list func() ([]netip.Addr, error), sameHost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = list
	if !sameHost {
		n.call = nil // nobody wants this reading's result any more
		n.known.Store(nil)
	}
}

// contains reports whether a is one of the node's addresses, as far as known.
func (n *nodeAddrs) contains(a netip.Addr) bool {
	known := n.known.Load()
	if known == nil {
		return false
	}
	_, ok := known.addrs[a]
	return ok
}

// refreshAfter starts a reading if the last one started at least age ago.
func (n *nodeAddrs) refreshAfter(age time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.call == nil || time.Since(n.call.Since) >= age {
		n.begin()
	}
}

// begin starts a reading unless one is under way. The caller holds the lock.
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

// readNow waits for a reading. If an earlier one hangs, or this one takes too long or
// fails, the previous addresses stay.
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

// currentPods is the Pods of the Resolver's current sources: callers keep it over a reload.
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
