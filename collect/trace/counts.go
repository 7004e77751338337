package trace

import (
	"errors"
	"iter"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// maxUnowned is the number of unowned namespaces that a probe follows before it
// checks which of them are gone.
const maxUnowned = 64

// counts follows the kernel's counters of one probe by network namespace.
type counts struct {
	cycle uint64
	known map[bpf.NetnsID]*count
	// unattributed holds counts for which the kernel gives no way to know the
	// namespace. They have a series of their own, so that totals are complete and
	// no pod gets them.
	unattributed count
	// followed are the namespaces of the cycle by inode number.
	followed map[uint64]bpf.NetnsID
	// most is the number of unowned namespaces at which they are checked next.
	most     int
	roomless []bpf.NetnsID // namespaces that the kernel's table has no room for
	left     int           // number of pods without values in this cycle, and the reason
	why      error         // reason of the pods counted in left
	// The pods whose namespace was unknown in the last cycle, and in this one. A single
	// cycle is not reported: the pod has just appeared, or is about to end.
	unknownBefore, unknown map[string]bool
}

type count struct {
	pod    string               // ID of the pod that owned the namespace last
	cycle  uint64               // last cycle in which the namespace was a pod's or the host's
	values [bpf.MaxSlots]uint64 // values as the kernel has them
	kernel *latencies           // histograms as the kernel has them; nil if none
	tally
}

// tally holds the counts of one owner of a namespace.
type tally struct {
	slots   [bpf.MaxSlots]uint64
	reasons map[uint32]uint64 // for packetloss, the same counts by the kernel's reason
	// latencies are the histograms; nil: none.
	latencies *latencies
}

// carried holds the exported counts of one namespace, or of the node for
// node-wide counters: the counts of earlier runs of the program or the probe,
// plus the kernel's. The kernel's part starts at 0 with each load.
type carried struct{ before, shown tally }

// Keep appends the exported counts, or nothing if they are 0.
func (c *carried) Keep(b []byte) []byte {
	if c.shown.slots == ([bpf.MaxSlots]uint64{}) && len(c.shown.reasons) == 0 && c.shown.latencies == nil {
		return b
	}
	b = collect.AppendUints(b, c.shown.slots[:]...)
	for r, n := range c.shown.reasons {
		b = collect.AppendUints(b, uint64(r), n)
	}
	if c.shown.latencies != nil {
		b = collect.AppendUints(b, keptHistograms)
		for i := range c.shown.latencies {
			b = keep(b, &c.shown.latencies[i])
		}
	}
	return b
}

// Recall restores what Keep appended.
func (c *carried) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	d.Uints(c.before.slots[:])
	for d.More() {
		r := d.Uint()
		if r == keptHistograms {
			c.before.latencies = &latencies{}
			for i := range c.before.latencies {
				recall(d, &c.before.latencies[i])
			}
			continue
		}
		if c.before.reasons == nil {
			c.before.reasons = map[uint32]uint64{}
		}
		c.before.reasons[uint32(r)] = d.Uint()
	}
	c.show(&tally{})
	return d.Err()
}

// show makes now the kernel's part.
func (c *carried) show(now *tally) *tally {
	for i, n := range now.slots {
		c.shown.slots[i] = c.before.slots[i] + n
	}
	if len(c.before.reasons) > 0 || len(now.reasons) > 0 {
		if c.shown.reasons == nil {
			c.shown.reasons = map[uint32]uint64{}
		}
		for r, n := range c.before.reasons {
			c.shown.reasons[r] = n + now.reasons[r]
		}
		for r, n := range now.reasons {
			c.shown.reasons[r] = n + c.before.reasons[r]
		}
	}
	c.shown.latencies = c.before.latencies.plus(now.latencies)
	return &c.shown
}

// begin starts a reading. Each namespace of the cycle gets counters, 0 at first, unless
// the kernel's table has no room for it or id cannot identify it.
func (c *counts) begin(netns iter.Seq2[uint64, *owner.Pod], id func(*owner.Pod) (bpf.NetnsID, error), roomless []bpf.NetnsID) {
	if c.known == nil {
		c.known, c.followed = map[bpf.NetnsID]*count{}, map[uint64]bpf.NetnsID{}
		c.unknown, c.unknownBefore = map[string]bool{}, map[string]bool{}
	}
	c.cycle++
	c.roomless, c.left, c.why = roomless, 0, nil
	clear(c.followed)
	c.unknown, c.unknownBefore = c.unknownBefore, c.unknown
	clear(c.unknown)
	for inode, pod := range netns {
		whose := ""
		if pod != nil {
			whose = pod.ID
		}
		n, err := id(pod)
		if err != nil {
			c.unknown[whose] = true
			if c.unknownBefore[whose] {
				c.left++
				c.why = err
			}
			continue
		}
		c.followed[inode] = n
		c.own(n, whose)
	}
}

// own records the owner of a namespace. Its earlier counts, from before its pod was
// known, are the pod's, too.
func (c *counts) own(netns bpf.NetnsID, pod string) {
	n := c.at(netns)
	if n.cycle != 0 && n.pod != pod {
		n.tally = tally{}
	}
	n.pod, n.cycle = pod, c.cycle
}

func (c *counts) at(netns bpf.NetnsID) *count {
	n := c.known[netns]
	if n == nil {
		n = &count{}
		c.known[netns] = n
	}
	return n
}

// found is at for a namespace with counts in the kernel.
func (c *counts) found(netns bpf.NetnsID) *count {
	if netns == 0 {
		return &c.unattributed
	}
	return c.at(netns)
}

// add takes one counter of the kernel.
func (c *counts) add(netns bpf.NetnsID, slot int, value uint64) {
	n := c.found(netns)
	was := n.values[slot]
	if value < was {
		was = 0 // the kernel's entry was deleted and recreated
	}
	n.slots[slot] += value - was
	n.values[slot] = value
}

// each calls f with the counters of each namespace of the cycle. Unattributed
// counters have namespace 0.
func (c *counts) each(v *collect.View, f func(inode uint64, shown *tally)) {
	for inode, netns := range c.followed {
		if slices.Contains(c.roomless, netns) {
			c.left++
			c.why = bpf.ErrNoRoom
			continue
		}
		if k := collect.NetnsState[carried](v, inode); k != nil {
			f(inode, k.show(&c.at(netns).tally))
		}
	}
	f(0, collect.NetnsState[carried](v, 0).show(&c.unattributed.tally))
}

// sweep forgets namespaces that are gone, and returns them: the namespaces of ended
// pods, namespaces whose number another one has now, and unowned ones that no longer
// exist. It checks unowned ones only if there are many or the kernel's table is nearly
// full.
func (c *counts) sweep(crowded bool, alive func() map[uint64]bool) []bpf.NetnsID {
	var gone []bpf.NetnsID
	unowned := 0
	for netns, n := range c.known {
		now, followed := c.followed[netns.Inode()]
		switch {
		case n.cycle == c.cycle:
		case n.cycle > 0 || followed && now != netns:
			gone = append(gone, netns)
		default:
			unowned++
		}
	}
	if unowned > max(c.most, maxUnowned) || crowded {
		alive := alive()
		for netns, n := range c.known {
			if n.cycle == 0 && !alive[netns.Inode()] {
				gone = append(gone, netns)
				unowned--
			}
		}
		// If many of them stay, do not search all processes in each cycle while
		// the kernel's table has room.
		c.most = min(2*unowned, 8*maxUnowned)
	}
	for _, netns := range gone {
		delete(c.known, netns)
	}
	return gone
}

// liveNetns lists the network namespaces that have a process, or a name below
// /run/netns.
func liveNetns(procRoot string) map[uint64]bool {
	alive := map[uint64]bool{}
	for _, in := range []struct{ dir, file string }{{procRoot, "/ns/net"}, {"/run/netns", ""}} {
		names, _ := kernel.DirNames(in.dir)
		for _, name := range names {
			if in.file != "" && (name[0] < '0' || name[0] > '9') {
				continue
			}
			inode, err := kernel.Inode(in.dir + "/" + name + in.file)
			if in.file != "" && errors.Is(err, unix.ENOENT) {
				// Perhaps only the main thread of the process has exited.
				if pid, e := strconv.Atoi(name); e == nil {
					inode, err = kernel.Inode(kernel.ProcessDir(procRoot, pid) + in.file)
				}
			}
			if err == nil {
				alive[inode] = true
			}
		}
	}
	return alive
}
