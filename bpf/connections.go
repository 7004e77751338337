package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type connection -type table_run Connections connections.bpf.c

// bucketsPerRun is how many buckets of the table one run of the program begins with.
const bucketsPerRun = 4096

// Connections counts the TCP connections of all network namespaces in one walk through
// the kernel's table, which sock_diag walks for each namespace. It needs Linux 5.10. It
// is not safe for concurrent use.
type Connections struct {
	read, shares  *ebpf.Program
	progress, got *ebpf.Variable
	batch         []objects.ConnectionsConnection
	counts        map[uint32]*TCPCounts
}

// TCPStates is one more than the kernel's largest number of a TCP state
// (include/net/tcp_states.h).
const TCPStates = 13

// TCPCounts has sums over the TCP connections of one network namespace, IPv4 and IPv6,
// as sock_diag would give them. Listening sockets are not in the table.
type TCPCounts struct {
	// States counts by the kernel's number of the state. A connection request counts as
	// SYN_RECV.
	States [TCPStates]uint64
	// RxQueue and TxQueue are bytes: not read by the applications, and not
	// acknowledged by the peers.
	RxQueue, TxQueue uint64
}

// Connections returns the number of all of them.
func (t *TCPCounts) Connections() (n uint64) {
	for _, sockets := range t.States {
		n += sockets
	}
	return n
}

// NewConnections loads the programs. If the error says that the kernel or the process's
// privileges do not allow it, sock_diag is the slower alternative.
func NewConnections(types *KernelTypes) (*Connections, error) {
	spec, err := objects.LoadConnections()
	if err != nil {
		return nil, err
	}
	_ = rlimit.RemoveMemlock() // see New
	c := &Connections{
		batch:  make([]objects.ConnectionsConnection, spec.Variables[objects.ConnectionsVarConnections].Size()/16),
		counts: map[uint32]*TCPCounts{},
	}
	err = types.use(func(t *kernelTypes) error {
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: t.cache})
		if err != nil {
			return fmt.Errorf("load the programs that read the table of TCP connections: %w", explain(err))
		}
		defer coll.Close()
		c.progress, c.got = coll.Variables[objects.ConnectionsVarProgress], coll.Variables[objects.ConnectionsVarConnections]
		c.read, c.shares = coll.DetachProgram(objects.ConnectionsProgReadTable), coll.DetachProgram(objects.ConnectionsProgSharesTable)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close frees the programs.
func (c *Connections) Close() error { return errors.Join(c.read.Close(), c.shares.Close()) }

// ErrUnknownTable says that the kernel's table of TCP connections is not as expected.
var ErrUnknownTable = errors.New("this kernel's table of TCP connections is not as expected")

// Shares reports whether the connections of the calling thread's network namespace are in
// the table that Read walks. On Linux 6.1 and newer a namespace may have its own
// (net.ipv4.tcp_child_ehash_entries). The answer holds as long as the namespace exists.
// Read works once it was true.
func (c *Connections) Shares() (bool, error) {
	switch n, err := c.shares.Run(&ebpf.RunOptions{}); {
	case err != nil:
		return false, fmt.Errorf("ask for the table of a namespace's TCP connections: %w", err)
	case n > 1:
		return false, ErrUnknownTable
	default:
		return n == 1, nil
	}
}

// Buckets returns the size of the table, which the cost of Read grows with, or 0 if Shares
// has not been true yet.
func (c *Connections) Buckets() int {
	var p objects.ConnectionsTableRun
	if c.progress.Get(&p) != nil || p.Mask == 0 {
		return 0
	}
	return int(p.Mask) + 1
}

// maxWalk limits the CPU time of a walk. It reads some million connections per second.
const maxWalk = 2 * time.Second

// Read counts the connections by the inode numbers of their namespaces. Namespaces without
// connections are not in the map, which is valid until the next call.
//
// The walk is as exact as sock_diag's: connections that come and go meanwhile may be
// missed, all others are counted once.
func (c *Connections) Read() (map[uint32]*TCPCounts, error) {
	runtime.LockOSThread() // for threadTime
	defer runtime.UnlockOSThread()
	end := threadTime() + maxWalk
	buckets := c.Buckets()
	if buckets == 0 {
		return nil, ErrUnknownTable
	}
	clear(c.counts)
	for first := 0; first < buckets; first += bucketsPerRun {
		for from, left := first+1, true; left; from = 0 {
			var err error
			if left, err = c.run(from); err != nil {
				return nil, fmt.Errorf("read the table of TCP connections: %w", err)
			}
			if threadTime() > end {
				return nil, fmt.Errorf("read the table of TCP connections: not done after %v of CPU time", maxWalk)
			}
		}
	}
	return c.counts, nil
}

// run runs the program once, and counts what it has read. left says that not all of the
// buckets were read.
func (c *Connections) run(from int) (left bool, err error) {
	n, err := c.read.Run(&ebpf.RunOptions{Context: []uint64{uint64(from)}})
	if err != nil {
		return false, err
	}
	if n != 0 {
		return false, ErrUnknownTable
	}
	var p objects.ConnectionsTableRun
	if err := c.progress.Get(&p); err != nil {
		return false, err
	}
	if p.TooLong != 0 || int(p.Found) > len(c.batch) {
		return false, fmt.Errorf("more than %d connections have one hash", len(c.batch))
	}
	if p.Found > 0 {
		if err := c.got.Get(c.batch); err != nil {
			return false, err
		}
	}
	for _, x := range c.batch[:p.Found] {
		t := c.counts[x.Netns]
		if t == nil {
			t = new(TCPCounts)
			c.counts[x.Netns] = t
		}
		if x.State >= TCPStates {
			return false, fmt.Errorf("a TCP socket in the state %d, which no kernel has", x.State)
		}
		t.States[x.State]++
		t.RxQueue += uint64(x.Rx)
		t.TxQueue += uint64(x.Tx)
	}
	return p.At < p.Used, nil
}
