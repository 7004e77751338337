package collect

import (
	"net/netip"
	"sync"
	"time"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// nodeAddrsWait is how long a cycle waits for the list of the node's addresses.
const nodeAddrsWait = 500 * time.Millisecond

// nodeAddrs is the list of the addresses in the host's network namespace. Its
// methods may be called from any goroutine.
type nodeAddrs struct {
	mu      sync.Mutex
	path    string
	listing *bounded.Call[[]netip.Addr] // nil: none is under way
	known   map[netip.Addr]struct{}
}

// list reads the addresses. While an earlier reading hangs, and when this one
// takes too long, the answer is what was read before.
func (n *nodeAddrs) list(path string) (map[netip.Addr]struct{}, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.path != path {
		n.path, n.listing, n.known = path, nil, nil
	}
	wait := time.Duration(0)
	if n.listing == nil {
		n.listing, wait = bounded.Begin(func() ([]netip.Addr, error) { return kernel.AddrsOf(path) }), nodeAddrsWait
	}
	if !n.listing.Over(wait, nil) {
		if n.known == nil {
			return nil, n.listing.Hangs("listing the node's addresses")
		}
		return n.known, nil
	}
	addrs, err := n.listing.Value, n.listing.Err
	n.listing = nil
	if err != nil {
		if n.known == nil {
			return nil, err
		}
		return n.known, nil
	}
	known := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		known[a] = struct{}{}
	}
	n.known = known
	return known, nil
}
