package bpf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// The rooms in a table of network namespaces that the caller does not follow,
// by who made them: enum room of headers/room.h, which explains them.
const (
	roomNode  = uint32(objects.SharedRoomROOM_NODE)
	roomRoot  = uint32(objects.SharedRoomROOM_ROOT)
	roomUsers = uint32(objects.SharedRoomROOM_USERS)
	roomsEnd  = uint32(objects.SharedRoomROOMS)
)

type share = objects.SharedShare

// roomsOf says how much of a table of n entries each room has. The rest is for
// namespaces that are followed.
func roomsOf(n int) (most [roomsEnd]uint32) {
	most[roomNode] = uint32(max(1, n/4))
	most[roomRoot] = uint32(max(1, n/16))
	most[roomUsers] = uint32(max(1, n/16))
	return most
}

// followed is what is left of a table of n entries when the rooms have theirs.
func followed(n int) int {
	for _, most := range roomsOf(n) {
		n -= int(most)
	}
	return max(n, 1)
}

// tableSize is the size of a table by namespace: one entry is that of what
// belongs to no known namespace.
func (l *Loader) tableSize() uint32 { return uint32(max(l.options.Namespaces, 8) + 1) }

// keepFormer is for how long a namespace that is no longer followed keeps what
// nobody has forgotten: for longer than a cycle of most nodes.
const keepFormer = time.Minute

// ErrNoRoom is wrapped by the error of Own where more namespaces are to be
// followed than the tables have room for.
var ErrNoRoom = errors.New("more network namespaces than the tables have room for")

// Own names the network namespaces that the caller follows: the node's own and
// others. Each has room of its own in all tables from now on, whatever the
// namespaces that are not named do: these share what is left. What a namespace
// had counted before it was named stays its own. On an error, Probe.Lacking
// says which namespaces have no counters of their own.
//
// Call it as soon as a namespace is known. It costs little where nothing has
// changed.
func (l *Loader) Own(node uint64, others []uint64) error {
	set := make([]uint32, 0, len(others)+1)
	for _, n := range append([]uint64{node}, others...) {
		if n != 0 && n <= 1<<32-1 {
			set = append(set, uint32(n))
		}
	}
	slices.Sort(set)
	set = slices.Compact(set)

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("name the network namespaces to follow: the loader is closed")
	}
	now := time.Now()
	if l.node != uint32(node) || !slices.Equal(set, l.owned) || l.lacking {
		l.follow(uint32(node), set, now)
	}
	for n, since := range l.former {
		if now.Sub(since) >= keepFormer {
			delete(l.former, n)
			for p := range l.probes {
				_ = p.Forget(uint64(n))
			}
		}
	}
	lacking := 0
	for p := range l.probes {
		lacking = max(lacking, len(p.Lacking()))
	}
	if l.lacking = lacking > 0; l.lacking {
		return fmt.Errorf("keep counters of %d network namespaces: %w; %d have none", len(set), ErrNoRoom, lacking)
	}
	return nil
}

// follow takes over another set of namespaces. The caller holds the lock.
func (l *Loader) follow(node uint32, set []uint32, now time.Time) {
	buckets := l.shared[mapBuckets]
	for _, n := range l.owned {
		if _, still := slices.BinarySearch(set, n); !still {
			_ = buckets.Delete(n)
			l.former[n] = now
		}
	}
	for _, n := range set {
		if _, was := slices.BinarySearch(l.owned, n); !was {
			delete(l.former, n)
		}
		// Without an entry it shares the bucket of a room.
		_ = buckets.Update(n, &objects.SharedEventBucket{}, ebpf.UpdateNoExist)
	}
	l.node, l.owned = node, set
	for p := range l.probes {
		p.follow(node, set)
	}
}

// roomState is what a probe knows of the namespaces in its tables. Probe.mu
// guards it.
type roomState struct {
	owned []uint32 // sorted, with namespace 0

	lacking []uint64 // of owned: those without counters of their own
	refused uint64   // counts that found no room
	full    bool     // some did lately
	calm    int      // for how many readings none did
	crowded bool     // a room is more than half used
	// One is in the table of drops.
	dropsCrowded bool

	shares map[string]*shares // by the name of their map
}

// calmAfter is how many readings without a refusal end the word of a full table
// whose rooms are still crowded.
const calmAfter = 4

func (s *roomState) owns(netns uint32) bool {
	_, ok := slices.BinarySearch(s.owned, netns)
	return ok
}

// shares is how one table is shared.
type shares struct {
	m       *ebpf.Map
	size    int  // of the table
	rooms   bool // only the rooms have shares: others have their entries already
	demand  map[uint32]int
	most    map[uint32]uint32 // as it was written last
	used    map[uint32]uint32 // counted in the reading that goes on
	read    map[uint32]share  // of the map, in that reading
	refused uint64            // to namespaces that are followed
}

func newShares(m *ebpf.Map, size int) *shares {
	return &shares{m: m, size: size, most: map[uint32]uint32{}, used: map[uint32]uint32{}, read: map[uint32]share{}, demand: map[uint32]int{}}
}

// seedRooms gives the rooms their shares.
func (s *shares) seedRooms() error {
	for room, most := range roomsOf(s.size) {
		if room == 0 {
			continue
		}
		if err := s.m.Put(uint32(room), &share{Most: most}); err != nil {
			return fmt.Errorf("share a table: %w", err)
		}
		s.most[uint32(room)] = most
	}
	return nil
}

// allot divides what the rooms leave of the table among the namespaces that are
// followed. Each gets a base, so that no other can take what it has not asked
// for yet; the rest goes to those that ask for more, in equal parts up to what
// they ask for. What is left over then is spread.
func (s *shares) allot(owned []uint32) map[uint32]uint32 {
	out := make(map[uint32]uint32, len(owned))
	if len(owned) == 0 || s.rooms {
		return out
	}
	total := followed(s.size)
	base := max(1, total/2/len(owned))
	spare := max(0, total-base*len(owned))
	type asking struct {
		netns uint32
		more  int
	}
	var ask []asking
	for _, n := range owned {
		out[n] = uint32(base)
		if more := s.demand[n] - base; more > 0 {
			ask = append(ask, asking{n, more})
		}
	}
	slices.SortFunc(ask, func(a, b asking) int { return a.more - b.more })
	for i, a := range ask {
		give := min(a.more, spare/(len(ask)-i))
		out[a.netns] += uint32(give)
		spare -= give
	}
	for _, n := range owned {
		out[n] += uint32(spare / len(owned))
	}
	return out
}

// write brings the map up to date: shares of those that are followed, and how
// much is in use, where that was counted. What is in read was read of it already.
func (s *shares) write(owned []uint32, counted bool, read map[uint32]share) error {
	most := s.allot(owned)
	var errs []error
	for n := range s.most {
		if _, ok := most[n]; !ok && n >= roomsEnd {
			delete(s.most, n)
			delete(s.demand, n)
			if err := s.m.Delete(n); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
		}
	}
	for room := uint32(1); room < roomsEnd; room++ {
		most[room] = s.most[room]
	}
	for n, m := range most {
		now, have := read[n]
		if !have {
			if err := s.m.Lookup(n, &now); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
				continue
			}
		}
		want := share{Used: now.Used, Most: m}
		if counted {
			want.Used = s.used[n]
		} else {
			want.Refused = now.Refused
		}
		if want != now || s.most[n] != m {
			if err := s.m.Put(n, &want); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		s.most[n] = m
	}
	return errors.Join(errs...)
}

// begin starts to count entries.
func (s *shares) begin() { clear(s.used) }

// count counts an entry of a namespace, which takes room.
func (s *shares) count(st *roomState, netns, room uint32) {
	if st.owns(netns) {
		s.used[netns]++
	} else {
		s.used[room]++
	}
}

// end writes how much is in use, once all entries have been counted, and what
// is asked for. It reports whether a room is more than half used.
func (s *shares) end(st *roomState) (crowded bool, err error) {
	clear(s.read)
	for _, n := range st.owned {
		var now share
		if s.rooms {
			break
		}
		err := s.m.Lookup(n, &now)
		if err == nil {
			s.read[n] = now
		}
		if err == nil && now.Refused > 0 {
			s.refused += uint64(now.Refused)
			s.demand[n] = int(s.used[n]) + int(now.Refused)
		} else if used := int(s.used[n]); used > s.demand[n] || used < s.demand[n]/4 {
			s.demand[n] = used + used/2
		}
	}
	for room := uint32(1); room < roomsEnd; room++ {
		crowded = crowded || s.used[room] > s.most[room]/2
	}
	return crowded, s.write(st.owned, true, s.read)
}

// follow makes room for the namespaces that are followed.
func (p *Probe) follow(node uint32, set []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	// What belongs to no known namespace has its room, too.
	set = append([]uint32{0}, set...)
	st := &p.rooms
	st.owned = set
	st.lacking = st.lacking[:0]
	if m := p.maps[mapCounters]; m != nil && m.Type() == ebpf.PerCPUHash {
		none := make([]counterEntry, p.loader.cpus)
		for _, n := range set {
			if err := m.Update(n, none, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				st.lacking = append(st.lacking, uint64(n))
			}
		}
	}
	p.followHistograms(set)
	for _, s := range st.shares {
		if s.rooms {
			continue
		}
		if _, had := s.most[node]; !had && node != 0 {
			s.demand[node] = s.size // what the node has of its own is much
		}
		if err := s.write(set, false, nil); err != nil {
			// Without a share of its own it has that of a room.
			p.loader.options.Warn("sharing a table failed", p.name, err)
		}
	}
}

// Lacking lists the namespaces named to Own that found no room for counters of
// their own: what is counted of them is not known.
func (p *Probe) Lacking() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.rooms.lacking)
}

// Room tells how much the probe counted for namespace 0 because a namespace
// that is not followed found no room for counters of its own (of the probe flow,
// how many packets are in no flow), whether that was so lately, and whether
// entries of namespaces that are gone are worth forgetting: a room is more than
// half used. It is as the last reading of the counters found it.
func (p *Probe) Room() (refused uint64, full, crowded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rooms.refused, p.rooms.full, p.rooms.crowded || p.rooms.dropsCrowded
}

// lackOfRoom is what State says while unowned namespaces' counters find no room.
const lackOfRoom = "in which namespaces outside pods something happened: such namespaces have used up their room in the table, and what finds none counts as unknown; pods and the host have room of their own"
