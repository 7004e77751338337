package proc

import (
	"errors"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
)

// walk reads the connections of all network namespaces at once, in cycles in which that
// costs less than asking the kernel about each namespace.
type walk struct {
	all    snapshot[*bpf.TCPCounts]
	of     *bpf.Connections // nil: not possible here
	choice choice
	always bool // for tests: whatever it costs
}

// table says where a namespace has its connections. It never changes.
type table uint8

const (
	tableUnknown table = iota
	tableShared        // in the table of most namespaces, which the walk reads
	tableOwn           // in a small one of its own, which sock_diag reads at little cost
)

func newWalk(env collect.Env, t typeInfo) (w walk) {
	w.all = snapshot[*bpf.TCPCounts]{log: env.Log, release: t.release, instead: "TCP connections are read for each network namespace separately"}
	var not error
	if env.Once {
		not = errors.New("it is done once only")
	}
	w.all.load(not, func() (iterator[*bpf.TCPCounts], error) {
		of, err := bpf.NewConnections(t.types)
		if err != nil {
			return nil, err
		}
		w.of = of
		return of, nil
	})
	return w
}

func (w *walk) drop() error {
	w.of = nil
	return w.all.drop()
}

// choice compares the costs of the two ways, by estimates of CPU time in nanoseconds.
type choice struct {
	cycle uint64
	walks bool // from here on in this cycle

	// What this cycle costs without the walk, as far as it got, and the connections of
	// the namespaces that share the table; of the last cycle, too.
	single, connections uint64
	lastConnections     uint64
}

// The prices are those of BenchmarkTCPWalk. They depend on the machine, but less so their
// ratios, which matter here.
const (
	walkBucket     = 2
	walkConnection = 450
	dumpNamespace  = 50_000
	dumpBucket     = 1
	dumpConnection = 700
	askNamespace   = 20_000
	askConnection  = 3500
	usualBuckets   = 1 << 18 // until their number is known
)

// count adds a namespace to the costs of a cycle, and reports whether the walk is to be
// used: where the last cycle would have cost more without it, or this one already has. still
// says that the set of the namespace's connections may be the same as in the last cycle.
func (c *choice) count(cycle uint64, buckets int, still bool, connections uint64) bool {
	n := uint64(buckets)
	if n == 0 {
		n = usualBuckets
	}
	if c.cycle != cycle {
		all := n*walkBucket + c.connections*walkConnection
		if c.walks {
			all -= all / 4 // or the ways might alternate
		}
		*c = choice{cycle: cycle, walks: c.single > all, lastConnections: c.connections}
	}
	c.connections += connections
	if still {
		c.single += askNamespace + min(connections, netlink.MostKnown)*askConnection
	} else {
		c.single += dumpNamespace + n*dumpBucket + connections*dumpConnection
	}
	c.walks = c.walks || c.single > n*walkBucket+max(c.connections, c.lastConnections)*walkConnection
	return c.walks
}

// readAll takes the connections of the target's namespace from the walk through those of all.
// It returns false if that is not possible, or would cost more in this cycle.
func (p *tcpsummary) readAll(v *collect.View, t *netlink.TCPTable, last *known, still bool) (done bool, err error) {
	if v.Inode() == 0 || last.table == tableOwn || !p.walks(v, last, still) {
		return false, nil
	}
	if last.table == tableUnknown {
		err := v.Enter("ask for the table of TCP connections", func() error {
			last.table = p.tableHere()
			return nil
		})
		if err != nil || last.table != tableShared {
			return false, err
		}
	}
	err = v.Do(0, "tcpsummary", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.walk.all.refresh(v)
		if p.walk.all.of == nil {
			return nil
		}
		done = true
		if c := p.walk.all.of[uint32(v.Inode())]; c != nil {
			*t = netlink.TCPTable{States: c.States, RxQueue: c.RxQueue, TxQueue: c.TxQueue}
		}
		last.connections = t.Connections()
		return nil
	})
	return done, err
}

func (p *tcpsummary) walks(v *collect.View, last *known, still bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.walk.all.release()
	if p.walk.of == nil {
		return false
	}
	cheaper := p.walk.choice.count(v.Cycle(), p.walk.of.Buckets(), still, last.connections)
	return cheaper || p.walk.always
}

// tableHere asks for the table of the calling thread's network namespace.
func (p *tcpsummary) tableHere() table {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.walk.of == nil {
		return tableUnknown
	}
	switch shared, err := p.walk.of.Shares(); {
	case err != nil:
		p.log.Debug(p.walk.all.instead, "reason", err)
		_ = p.walk.drop()
		return tableUnknown
	case shared:
		return tableShared
	default:
		return tableOwn
	}
}
