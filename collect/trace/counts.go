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

// maxUnowned is how many unowned namespaces (neither the host's nor a pod's) a
// probe follows before it looks which of them are gone.
const maxUnowned = 64

// counts follows the kernel's counters of one probe by network namespace. The
// kernel's keys are inode numbers, and a number is given to another namespace
// once its own is gone, while the counter under it goes on. So each reading
// counts for whoever has the number then, and what an earlier owner of it had
// counted does not.
type counts struct {
	cycle uint64
	known map[uint64]*count
	// unattributed is what the kernel left no way to know the namespace of. It
	// is a series of its own, so that it is nobody's and no total lacks it.
	unattributed count
	// The times of the last reading and the one before it.
	read, readBefore time.Time
	// most is how many unowned namespaces there may be until the next look at them.
	most     int
	roomless []uint64 // namespaces that the kernel's table has no room for
	left     int      // how many pods were left out of the cycle for that
}

type count struct {
	pod    string               // the ID of the pod whose namespace it was last
	cycle  uint64               // when it was last a pod's or the host's
	first  time.Time            // the reading that found it
	values [bpf.MaxSlots]uint64 // as the kernel has them
	kernel *latencies           // the same; nil: none
	tally
	// before is the tally of the reading before the last, while it is
	// nobody's.
	before tally
}

// tally is what one owner of a number has counted.
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

// carried is what is shown of one namespace (or, of counters that are the
// node's, of all): what earlier runs of the program or the probe had counted,
// and what the kernel has since. The kernel's part begins at 0 with each load.
type carried struct{ before, shown tally }

// Keep appends what is shown, or nothing if that is 0.
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

// begin starts a reading: each namespace of the cycle has counters, 0 at first, but
// for those that the kernel's table has no room for.
func (c *counts) begin(v *collect.View, roomless []uint64) {
	c.roomless, c.left = roomless, 0
	c.beginAt(v.Netns(), v.ProcRoot(), time.Now())
}

// beginAt starts a reading at a moment, over the namespaces of the cycle and whose
// each is.
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
		// What was nobody's may have been this pod's before the pod was known,
		// or that of a namespace that is gone.
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

// bornAt is when a pod's network namespace was made, or a little later. A file
// that is the namespace, as CNI has it, is as old as the namespace is.
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

// found is at for what the kernel has counted.
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
		was = 0 // the kernel's entry was deleted and made anew
	}
	n.slots[slot] += value - was
	n.values[slot] = value
}

// each calls f with the counters of each namespace of the cycle, and with those
// of none as namespace 0.
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

// sweep returns the namespaces that are gone, and forgets them: pods' that
// ended, and, once there are many others or the kernel's table is crowded,
// those of them that are not alive.
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
		// Where many of them stay, not each cycle has to go through all
		// processes, as long as the kernel's table has room.
		c.most = min(2*unowned, 8*maxUnowned)
	}
	for _, inode := range gone {
		delete(c.known, inode)
	}
	return gone
}

// liveNetns lists the network namespaces that processes are in, or that have
// a name below /run/netns.
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
				// Perhaps only the first thread of the process has ended.
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
