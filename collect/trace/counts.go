package trace

import (
	"errors"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// maxUnowned is the number of unowned namespaces that a probe follows before it
// checks which of them are gone.
const maxUnowned = 64

// counts follows the kernel's counters of one probe by network namespace. The
// kernel keys them by inode number. When a namespace is gone, another may get its
// number, and the counter continues. So each reading's growth counts for the
// current owner of the number, and growth under an earlier owner does not.
type counts struct {
	cycle uint64
	known map[uint64]*count
	// unattributed holds counts for which the kernel gives no way to know the
	// namespace. They have a series of their own, so that totals are complete and
	// no pod gets them.
	unattributed count
	// The times of the last reading and the one before it.
	read, readBefore time.Time
	// most is the number of unowned namespaces at which they are checked next.
	most     int
	roomless []uint64 // namespaces that the kernel's table has no room for
	left     int      // number of pods without values in this cycle because of that
}

type count struct {
	pod    string               // ID of the pod that owned the namespace last
	cycle  uint64               // last cycle in which the namespace was a pod's or the host's
	first  time.Time            // the reading that found it
	values [bpf.MaxSlots]uint64 // as the kernel has them
	kernel *latencies           // the same; nil: none
	tally
	// before is the tally at the reading before the last, while the namespace is
	// unowned.
	before tally
}

// tally is the count of one owner of a namespace number.
type tally struct {
	slots   [bpf.MaxSlots]uint64
	reasons map[uint32]uint64 // packetloss: the same, by the kernel's reason
	// latencies are the histograms; nil: none.
	latencies *latencies
}

func (t *tally) sub(d *tally) {
	for i := range t.slots {
		t.slots[i] -= d.slots[i]
	}
	for r, n := range d.reasons {
		t.reasons[r] -= n
	}
	if d.latencies == nil {
		return
	}
	for i := range d.latencies {
		for b, n := range d.latencies[i].Buckets {
			t.latencies[i].Buckets[b] -= n
		}
		t.latencies[i].SumNs -= d.latencies[i].SumNs
	}
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

// begin starts a reading. Each namespace of the cycle gets counters, 0 at first,
// unless the kernel's table has no room for it.
func (c *counts) begin(v *collect.View, roomless []uint64) {
	c.roomless, c.left = roomless, 0
	c.beginAt(v.Netns(), v.ProcRoot(), time.Now())
}

// beginAt starts a reading at a time, given the namespaces of the cycle and their
// owners.
func (c *counts) beginAt(netns iter.Seq2[uint64, *owner.Pod], root string, now time.Time) {
	if c.known == nil {
		c.known = map[uint64]*count{}
	}
	c.cycle++
	for inode, pod := range netns {
		c.own(inode, pod, root)
	}
	c.readBefore, c.read = c.read, now
	for _, n := range c.known {
		if n.cycle == 0 {
			n.before = tally{n.slots, maps.Clone(n.reasons), n.latencies.clone()}
		}
	}
}

// own notes whose a namespace is.
func (c *counts) own(inode uint64, pod *owner.Pod, root string) {
	id := ""
	if pod != nil {
		id = pod.ID
	}
	n := c.at(inode)
	switch {
	case n.cycle == 0 && pod != nil && !n.first.IsZero():
		// Counts of an unowned namespace may belong to this pod, before the pod
		// was known, or to an earlier namespace of the same number.
		switch born := bornAt(pod, root); {
		case born.After(c.read) || born.After(n.first) && !born.After(c.readBefore):
			n.tally = tally{}
		case born.After(c.readBefore) && born.After(n.first):
			n.sub(&n.before)
		}
		n.before = tally{}
	case n.cycle != 0 && n.pod != id:
		n.tally = tally{}
	}
	n.pod, n.cycle = id, c.cycle
}

// bornAt returns when a pod's network namespace was created, or slightly later.
// The bind mount that CNI makes is as old as the namespace.
func bornAt(pod *owner.Pod, root string) time.Time {
	var st unix.Stat_t
	if p := pod.NetnsPath; p != "" && !strings.HasPrefix(p, root+"/") && unix.Stat(p, &st) == nil && st.Ino == pod.Netns {
		return time.Unix(st.Ctim.Unix())
	}
	return pod.Started
}

func (c *counts) at(netns uint64) *count {
	n := c.known[netns]
	if n == nil {
		n = &count{}
		c.known[netns] = n
	}
	return n
}

// found is at for a namespace with counts in the kernel.
func (c *counts) found(netns uint64) *count {
	if netns == 0 {
		return &c.unattributed
	}
	n := c.at(netns)
	if n.first.IsZero() {
		n.first = c.read
	}
	return n
}

// add takes one counter of the kernel.
func (c *counts) add(netns uint64, slot int, value uint64) {
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
func (c *counts) each(v *collect.View, f func(netns uint64, shown *tally)) {
	for inode, n := range c.known {
		if n.cycle != c.cycle {
			continue
		}
		if slices.Contains(c.roomless, inode) {
			c.left++
			continue
		}
		if k := collect.NetnsState[carried](v, inode); k != nil {
			f(inode, k.show(&n.tally))
		}
	}
	f(0, collect.NetnsState[carried](v, 0).show(&c.unattributed.tally))
}

// sweep forgets namespaces that are gone, and returns them: the namespaces of
// ended pods, and those unowned ones that no longer exist. It checks the unowned
// ones only if there are many or the kernel's table is nearly full.
func (c *counts) sweep(crowded bool, alive func() map[uint64]bool) []uint64 {
	var gone []uint64
	unowned := 0
	for inode, n := range c.known {
		switch {
		case n.cycle == 0:
			unowned++
		case n.cycle < c.cycle:
			gone = append(gone, inode)
		}
	}
	if unowned > max(c.most, maxUnowned) || crowded {
		alive := alive()
		for inode, n := range c.known {
			if n.cycle == 0 && !alive[inode] {
				gone = append(gone, inode)
				unowned--
			}
		}
		// If many of them stay, do not search all processes in each cycle while
		// the kernel's table has room.
		c.most = min(2*unowned, 8*maxUnowned)
	}
	for _, inode := range gone {
		delete(c.known, inode)
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
