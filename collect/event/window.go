package event

import (
	"container/heap"
	"time"
)

// The daemon's windows for merging events of one kind.
const (
	DefaultWindow    = 10 * time.Second
	DefaultMaxWindow = 10 * time.Minute
)

// windows are Window and MaxWindow of HubOptions.
type windows struct{ first, longest time.Duration }

// kind is an open kind. Its first occurrence was sent at once; the occurrences until its
// window ends become one entry. After a window without occurrences it is idle: the next one
// is sent at once and starts a window of twice the length. An intermittent problem is thus
// reported at growing intervals.
type kind struct {
	of     *group
	peer   peer
	others bool // covers all peers of the group that have no kind of their own

	owner      *holder
	prev, next *kind // neighbours of the same owner, in order of opening

	seq    uint64 // position in the order of opening
	place  int    // index in kinds.due
	window time.Duration
	began  time.Time
	ends   time.Time // end of the window or of the idle time
	idle   bool

	merged gathered
}

// group holds the kinds that differ in the peer only.
type group struct {
	key    kindKey
	kinds  []*kind // one peer each
	opened int     // number of kinds opened since the group exists
	others *kind   // nil: not open
}

// idleWindows is the number of first windows that an idle kind is kept, or its own
// window if that is longer.
const idleWindows = 6

// maxPeers is how many peers of one group get a kind of their own. Later peers share one
// until the group is closed: a pod that serves the Internet always has new peers.
const maxPeers = 8

// kinds are the open kinds. One goroutine owns them.
type kinds struct {
	// write sends an entry.
	write func(e *Event, now time.Time)

	groups map[kindKey]*group
	owners map[whose]*holder
	due    byEnd // all open kinds, ordered by the end of their window
	seq    uint64
}

func newKinds(write func(*Event, time.Time)) kinds {
	return kinds{write: write, groups: map[kindKey]*group{}, owners: map[whose]*holder{}}
}

// take merges an event into its kind, which then owns the event. If the kind is idle or not
// open, take starts a window and returns true: the caller must send the event at once.
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
	g := ks.groups[key] // makeRoom may have closed it
	if g == nil {
		g = &group{key: key}
		ks.groups[key] = g
	}
	ks.open(g, p, w.first, now)
	return true
}

// find returns the kind that covers a peer; nil if none is open.
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

// close closes a kind and writes its merged entry.
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

// flush writes a kind's merged entry, if there is one.
func (ks *kinds) flush(k *kind, now time.Time) {
	if e := k.merged.entry(now.Sub(k.began)); e != nil {
		ks.write(e, now)
	}
}

// tick ends the windows that are due. If something was merged, the next window is twice as
// long; otherwise the kind becomes idle.
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

// goOn starts the next window of a kind.
func (ks *kinds) goOn(k *kind, w windows, now time.Time) {
	k.window = min(2*k.window, max(w.longest, w.first))
	k.began, k.ends = now, now.Add(k.window)
	heap.Fix(&ks.due, k.place)
}

// next returns when the next window or idle time ends; zero if no kind is open.
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

// byEnd is a heap of kinds by end, then by order of opening.
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
