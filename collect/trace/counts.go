package trace

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
)

// maxSlots is the most counters that a probe has for one namespace.
const maxSlots = 5

// maxStrangers is how many namespaces that are neither the host's nor a pod's
// a probe follows before it looks which of them are gone.
const maxStrangers = 64

// counts follows the kernel's counters of one probe by network namespace. An
// inode number is given to another namespace once its own is gone, and the
// kernel's counter under that number goes on: what an earlier pod counted is
// taken off.
type counts struct {
	cycle uint64
	known map[uint64]*count
	// unattributed is what the kernel left no way to know the namespace of. It
	// is a series of its own, so that it is nobody's and no total lacks it.
	unattributed [maxSlots]uint64
	// most is how many strangers there may be until the next look at them.
	most    int
	lacking []uint64 // namespaces whose counters are not known
	left    int      // how many pods were left out of the cycle for that
}

type count struct {
	pod    string           // the ID of the pod whose namespace it was last
	cycle  uint64           // when it was last a pod's or the host's
	values [maxSlots]uint64 // as the kernel has them
	base   [maxSlots]uint64 // what an earlier owner of the number had counted
}

// begin starts a cycle: each of its namespaces has counters, 0 at first, but
// for those that the kernel's table lacks.
func (c *counts) begin(v *collect.View, lacking []uint64) {
	if c.known == nil {
		c.known = map[uint64]*count{}
	}
	c.cycle++
	c.lacking, c.left = lacking, 0
	for inode, pod := range v.Netns() {
		id := ""
		if pod != nil {
			id = pod.ID
		}
		n := c.at(inode)
		if n.cycle != 0 && n.pod != id {
			n.base = n.values
		}
		n.pod, n.cycle = id, c.cycle
	}
}

func (c *counts) at(netns uint64) *count {
	n := c.known[netns]
	if n == nil {
		n = &count{}
		c.known[netns] = n
	}
	return n
}

// add takes one counter of the kernel.
func (c *counts) add(netns uint64, slot int, value uint64) {
	if netns == 0 {
		c.unattributed[slot] = value
		return
	}
	n := c.at(netns)
	if value < n.values[slot] {
		n.base[slot] = 0 // the kernel's entry was deleted and made anew
	}
	n.values[slot] = value
}

// each calls f with the counters of each namespace of the cycle, and with those
// of none as namespace 0.
func (c *counts) each(f func(netns uint64, values *[maxSlots]uint64)) {
	for inode, n := range c.known {
		if n.cycle != c.cycle {
			continue
		}
		if slices.Contains(c.lacking, inode) {
			c.left++
			continue
		}
		v := n.values
		for i := range v {
			v[i] -= n.base[i]
		}
		f(inode, &v)
	}
	v := c.unattributed
	f(0, &v)
}

// sweep returns the namespaces that are gone, and forgets them: pods' that
// ended, and, once there are many others or the kernel's table is crowded,
// those of them that are not alive.
func (c *counts) sweep(crowded bool, alive func() map[uint64]bool) []uint64 {
	var gone []uint64
	strangers := 0
	for inode, n := range c.known {
		switch {
		case n.cycle == 0:
			strangers++
		case n.cycle < c.cycle:
			gone = append(gone, inode)
		}
	}
	if strangers > max(c.most, maxStrangers) || crowded {
		alive := alive()
		for inode, n := range c.known {
			if n.cycle == 0 && !alive[inode] {
				gone = append(gone, inode)
				strangers--
			}
		}
		// Where many of them stay, not each cycle has to go through all
		// processes, as long as the kernel's table has room.
		c.most = min(2*strangers, 8*maxStrangers)
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
		d, err := os.Open(in.dir)
		if err != nil {
			continue
		}
		names, _ := d.Readdirnames(-1)
		_ = d.Close()
		for _, name := range names {
			if in.file != "" && (name[0] < '0' || name[0] > '9') {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(in.dir+"/"+name+in.file, &st) == nil {
				alive[st.Ino] = true
			}
		}
	}
	return alive
}
