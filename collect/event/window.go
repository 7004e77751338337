package event

import (
	"container/heap"
	"time"
)

// The windows in which the daemon merges what is of one kind.
const (
	DefaultWindow    = 10 * time.Second
	DefaultMaxWindow = 10 * time.Minute
)

// windows are the first and the longest window of HubOptions.
type windows struct{ first, longest time.Duration }

// kind is a kind that is open: its first occurrence has been sent, and those
// that come until its window ends are one entry. After a window in which nothing
// came it is idle: the next occurrence is sent at once again, and begins a window
// of twice the length, so that what comes back now and then is not told each time.
type kind struct {
	of     *group
	peer   peer
	others bool // of all peers of the group that have no kind of their own

	owner      *holder
	prev, next *kind // of the owner, in the order in which they were opened

	seq    uint64 // in the order of opening, over all
	place  int    // in kinds.due
	window time.Duration
	began  time.Time
	ends   time.Time // of the window, or of being idle
	idle   bool

	merged gathered
}

// group holds the kinds that differ by their peer alone.
type group struct {
	key    kindKey
	kinds  []*kind // of one peer each
	opened int     // how many of them there have been since the group was made
	others *kind   // nil: not open
}

// idleWindows is for how many first windows a kind is idle until it is forgotten,
// unless its own window is longer.
const idleWindows = 6

// maxPeers is how many peers of one group have a kind of their own. Those that
// come later share one, until the group is quiet: a pod that serves the
// Internet has ever new peers.
const maxPeers = 8

// kinds are all that are open. They belong to one goroutine.
type kinds struct {
	// write sends an entry.
	write func(e *Event, now time.Time)

	groups map[kindKey]*group
	owners map[whose]*holder
	due    byEnd // all that are open; the next to end first
	seq    uint64
}

func newKinds(write func(*Event, time.Time)) kinds {
	return kinds{write: write, groups: map[kindKey]*group{}, owners: map[whose]*holder{}}
}

// take merges an event into its kind, or begins a window of its kind and reports
// that: such an event is to be sent at once. An event that was merged belongs to
// the kind.
func (ks *kinds) take(e *Event, w windows, now time.Time) (first bool) {
	key, p := keyOf(e), peerOf(e)
	if g := ks.groups[key]; g != nil {
		if k := g.find(p); k != nil && k.idle {
			k.idle = false
			ks.goOn(k, w, now)
			return true
		} else if k != nil {
			k.merged.add(e, p, k.others)
			return false
		}
	}
	if len(ks.due) >= maxKinds {
		ks.makeRoom(now)
	}
	g := ks.groups[key] // making room may have closed it
	if g == nil {
		g = &group{key: key}
		ks.groups[key] = g
	}
	ks.open(g, p, w.first, now)
	return true
}

// find returns the kind that a peer's events belong to, nil if it is to be
// opened.
func (g *group) find(p peer) *kind {
	for _, k := range g.kinds {
		if k.peer == p {
			return k
		}
	}
	return g.others
}

func (ks *kinds) open(g *group, p peer, window time.Duration, now time.Time) {
	ks.seq++
	k := &kind{of: g, peer: p, seq: ks.seq, window: window, began: now, ends: now.Add(window)}
	if g.opened >= maxPeers {
		k.others, k.peer = true, peer{}
		g.others = k
	} else {
		g.opened++
		g.kinds = append(g.kinds, k)
	}
	ks.hold(k)
	heap.Push(&ks.due, k)
}

// close ends a kind. What it has merged is written.
func (ks *kinds) close(k *kind, now time.Time) {
	heap.Remove(&ks.due, k.place)
	ks.release(k)
	g := k.of
	if k.others {
		g.others = nil
	} else {
		for i := range g.kinds {
			if g.kinds[i] == k {
				last := len(g.kinds) - 1
				g.kinds[i], g.kinds[last] = g.kinds[last], nil
				g.kinds = g.kinds[:last]
				break
			}
		}
	}
	if len(g.kinds) == 0 && g.others == nil {
		delete(ks.groups, g.key)
	}
	ks.flush(k, now)
}

// flush writes what a kind has merged, if anything.
func (ks *kinds) flush(k *kind, now time.Time) {
	if e := k.merged.entry(now.Sub(k.began)); e != nil {
		ks.write(e, now)
	}
}

// tick ends the windows that are over: one in which something came is followed
// by one of twice the length, and one in which nothing came makes the kind idle.
func (ks *kinds) tick(w windows, now time.Time) {
	for len(ks.due) > 0 && !now.Before(ks.due[0].ends) {
		switch k := ks.due[0]; {
		case k.idle:
			ks.close(k, now)
		case k.merged.count == 0:
			k.idle, k.ends = true, k.ends.Add(max(idleWindows*w.first, k.window))
			heap.Fix(&ks.due, k.place)
		default:
			ks.flush(k, now)
			ks.goOn(k, w, now)
		}
	}
}

// goOn begins the next window of a kind.
func (ks *kinds) goOn(k *kind, w windows, now time.Time) {
	k.window = min(2*k.window, max(w.longest, w.first))
	k.began, k.ends = now, now.Add(k.window)
	heap.Fix(&ks.due, k.place)
}

// next is when the next window ends, or an idle kind is forgotten; zero if none is
// open.
func (ks *kinds) next() time.Time {
	if len(ks.due) == 0 {
		return time.Time{}
	}
	return ks.due[0].ends
}

// drain closes all kinds.
func (ks *kinds) drain(now time.Time) {
	for len(ks.due) > 0 {
		ks.close(ks.due[0], now)
	}
}

// byEnd is a heap of kinds, and of those that end at once the first opened is
// first.
type byEnd []*kind

func (h byEnd) Len() int { return len(h) }

func (h byEnd) Less(i, j int) bool {
	if c := h[i].ends.Compare(h[j].ends); c != 0 {
		return c < 0
	}
	return h[i].seq < h[j].seq
}

func (h byEnd) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *byEnd) Push(x any) {
	k := x.(*kind)
	k.place = len(*h)
	*h = append(*h, k)
}

func (h *byEnd) Pop() any {
	last := len(*h) - 1
	k := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return k
}
