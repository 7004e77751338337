package bpf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// Rooms in a table for network namespaces that the caller does not follow, by
// creator: enum room of headers/room.h, which explains them.
const (
	roomNode  = uint32(objects.SharedRoomROOM_NODE)
	roomRoot  = uint32(objects.SharedRoomROOM_ROOT)
	roomUsers = uint32(objects.SharedRoomROOM_USERS)
	roomsEnd  = uint32(objects.SharedRoomROOMS)
)

type share = objects.SharedShare

// roomsOf returns the size of each room in a table of n entries. The rest is for
// followed namespaces.
func roomsOf(n int) (most [roomsEnd]uint32) {
	most[roomNode] = uint32(max(1, n/4))
	most[roomRoot] = uint32(max(1, n/16))
	most[roomUsers] = uint32(max(1, n/16))
	return most
}

// followed returns the number of entries for followed namespaces in a table of n
// entries.
func followed(n int) int {
	for _, most := range roomsOf(n) {
		n -= int(most)
	}
	return max(n, 1)
}

// tableSize is the size of a table by namespace, with one entry for unattributed
// occurrences.
func (l *Loader) tableSize() uint32 { return uint32(max(l.options.Namespaces, 8) + 1) }

// keepFormer is how long entries of a namespace that is no longer followed are kept
// unless Forget deletes them. It is longer than a cycle of most nodes.
const keepFormer = time.Minute

// ErrNoRoom is wrapped by the error of Own if the tables cannot hold all followed
// namespaces.
var ErrNoRoom = errors.New("more network namespaces than the tables have room for")

// Own names the network namespaces that the caller follows: the node's own and
// others. From then on each has reserved room in all tables, and all other
// namespaces share the rest. Counts from before the call stay with the namespace.
// On an error, Probe.Lacking lists the namespaces without counters of their own.
// ID returns the key of each in the counts.
//
// Call Own as soon as a namespace is known. A call without changes is cheap.
func (l *Loader) Own(node Netns, others []Netns) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("name the network namespaces to follow: the loader is closed")
	}
	l.identify(append([]Netns{node}, others...))
	set := make([]NetnsID, 0, len(l.identified))
	for _, i := range l.identified {
		if i.err == nil && i.id != 0 {
			set = append(set, i.id)
		}
	}
	slices.Sort(set)
	set = slices.Compact(set)
	now := time.Now()
	if own := l.identified[node].id; l.node != own || !slices.Equal(set, l.owned) || l.lacking {
		l.follow(own, set, now)
	}
	for n, since := range l.former {
		if now.Sub(since) >= keepFormer {
			delete(l.former, n)
			for p := range l.probes {
				_ = p.Forget(n)
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

// follow replaces the set of followed namespaces. The caller holds the lock.
func (l *Loader) follow(node NetnsID, set []NetnsID, now time.Time) {
	buckets := l.shared[mapBuckets]
	for _, n := range l.owned {
		if _, still := slices.BinarySearch(set, n); !still {
			_ = buckets.Delete(uint32(n))
			l.former[n] = now
		}
	}
	for _, n := range set {
		delete(l.former, n)
		// On failure the namespace shares the bucket of a room.
		_ = buckets.Update(uint32(n), &objects.SharedEventBucket{}, ebpf.UpdateNoExist)
	}
	l.node, l.owned = node, set
	for p := range l.probes {
		p.follow(node, set)
	}
}

// roomState is a probe's record of the namespaces in its tables. Probe.mu guards
// it.
type roomState struct {
	owned []uint32 // inode numbers, sorted, including namespace 0

	lacking []NetnsID // followed namespaces without counters of their own
	refused uint64    // occurrences that found no room
	full    bool      // occurrences found no room recently
	calm    int       // readings since the last refusal
	crowded bool      // a room is more than half full
	// the same for the table of drops
	dropsCrowded bool

	shares map[string]*shares // by map name
}

// calmAfter is the number of readings without a refusal after which a table no
// longer counts as full.
const calmAfter = 4

func (s *roomState) owns(netns uint32) bool {
	_, ok := slices.BinarySearch(s.owned, netns)
	return ok
}

// shares divides one table among namespaces.
type shares struct {
	m       *ebpf.Map
	size    int  // entries of the table
	rooms   bool // only rooms have shares, because followed namespaces have their entries already
	demand  map[uint32]int
	most    map[uint32]uint32 // the shares written last
	used    map[uint32]uint32 // counted during the current reading
	read    map[uint32]share  // entries of the map, read during the current reading
	refused uint64            // occurrences in followed namespaces that found no room
}

func newShares(m *ebpf.Map, size int) *shares {
	return &shares{m: m, size: size, most: map[uint32]uint32{}, used: map[uint32]uint32{}, read: map[uint32]share{}, demand: map[uint32]int{}}
}

// seedRooms writes the shares of the rooms.
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

// allot divides the part of the table outside the rooms among the followed
// namespaces. Each gets a base that no other can take. Namespaces that ask for more
// share the rest equally, up to what they ask for. The remainder is spread over
// all.
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

// write updates the map: the shares of the followed namespaces, and the number of
// used entries where it was counted. read holds entries of the map that were read
// already.
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

// begin starts a count of entries.
func (s *shares) begin() { clear(s.used) }

// count adds an entry of a namespace that occupies room.
func (s *shares) count(st *roomState, netns NetnsID, room uint32) {
	if inode := uint32(netns); st.owns(inode) {
		s.used[inode]++
	} else {
		s.used[room]++
	}
}

// end writes the entries in use and the demands after a complete count. It reports
// whether a room is more than half full.
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

// follow reserves room for the followed namespaces.
func (p *Probe) follow(node NetnsID, set []NetnsID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	// Unattributed occurrences (namespace 0) have reserved room, too.
	set = append([]NetnsID{0}, set...)
	st := &p.rooms
	inodes := make([]uint32, 0, len(set))
	for _, n := range set {
		inodes = append(inodes, uint32(n))
	}
	slices.Sort(inodes)
	st.owned = slices.Compact(inodes)
	st.lacking = st.lacking[:0]
	if m := p.maps[mapCounters]; m != nil && m.Type() == ebpf.PerCPUHash {
		none := make([]counterEntry, p.loader.cpus)
		for _, n := range set {
			if err := m.Update(n, none, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				st.lacking = append(st.lacking, n)
			}
		}
	}
	p.followHistograms(set)
	for _, s := range st.shares {
		if s.rooms {
			continue
		}
		if _, had := s.most[uint32(node)]; !had && node != 0 {
			s.demand[uint32(node)] = s.size // The node's own namespace needs the most.
		}
		if err := s.write(st.owned, false, nil); err != nil {
			// Without a share of its own, the namespace uses that of a room.
			p.loader.options.Warn("sharing a table failed", p.name, err)
		}
	}
}

// Lacking lists the namespaces named to Own that have no counters of their own.
// Their counts are unknown.
func (p *Probe) Lacking() []NetnsID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.rooms.lacking)
}

// Room returns the number of occurrences counted for namespace 0 because an
// unfollowed namespace found no room for counters (for flow: packets in no flow),
// whether that happened recently, and whether a room is more than half full, so
// that forgetting namespaces that are gone is worthwhile. All values are as of the
// last reading of the counters.
func (p *Probe) Room() (refused uint64, full, crowded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rooms.refused, p.rooms.full, p.rooms.crowded || p.rooms.dropsCrowded
}

// lackOfRoom is the limitation that State reports while counters of unowned
// namespaces find no room.
const lackOfRoom = "the owners of some occurrences in namespaces outside pods: such namespaces have used up their room in the table, and occurrences that find none count as unknown; pods and the host have room of their own"
