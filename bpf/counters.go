package bpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// MaxSlots is the maximum number of counters per namespace of a probe.
const MaxSlots = len(objects.SharedCounter{}.Slot)

// counterEntry holds a namespace's counters on one CPU. Mark is the room that the
// entry occupies; in the entry of namespace 0 it counts occurrences that found no
// room.
type counterEntry = objects.SharedCounter

// counterReader sums per-CPU values.
type counterReader struct {
	walker[NetnsID, counterEntry]
	single []counterEntry
}

// Counters calls f for each namespace with counters and each slot in use, with the
// sum over the CPUs. Node-wide probes report namespace 0; the other probes report
// unattributed occurrences under it.
func (p *Probe) Counters(f func(netns NetnsID, slot int, value uint64)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("read the counters of probe %s: it is closed", p.name)
	}
	read := p.definition.counters
	if read == nil {
		read = (*Probe).readCounters
	}
	if err := read(p, f); err != nil {
		return fmt.Errorf("read the counters of probe %s: %w", p.name, err)
	}
	return nil
}

// readCounters implements Counters and also counts the entries in use.
func (p *Probe) readCounters(f func(netns NetnsID, slot int, value uint64)) error {
	m, r := p.maps[mapCounters], &p.counter
	if m.Type() == ebpf.PerCPUArray {
		if err := m.Lookup(uint32(0), &r.single); err != nil {
			return err
		}
		for slot := range p.definition.slots {
			f(0, slot, sumSlot(r.single, slot))
		}
		return nil
	}

	st, s := &p.rooms, p.rooms.shares[mapCounterShares]
	s.begin()
	var refused uint64
	err := r.each(m, p.loader.cpus, func(key *NetnsID, values []counterEntry) {
		netns := *key
		var mark uint64
		for cpu := range values {
			mark += values[cpu].Mark
		}
		if netns == 0 {
			refused = mark
		} else {
			s.count(st, netns, uint32(mark))
		}
		for slot := range p.definition.slots {
			f(netns, slot, sumSlot(values, slot))
		}
	})
	if err != nil {
		return err
	}
	crowded, err := s.end(st)
	if st.calm++; refused > st.refused {
		st.full, st.calm = true, 0
	} else if !crowded || st.calm >= calmAfter {
		st.full = false
	}
	st.refused, st.crowded = refused, crowded || refused > st.refused
	return err
}

func sumSlot(values []counterEntry, slot int) (sum uint64) {
	for cpu := range values {
		sum += values[cpu].Slot[slot]
	}
	return sum
}

// seedCounters creates the entry for occurrences without room, and sets the shares
// of the tables.
func (p *Probe) seedCounters() error {
	p.rooms.shares = map[string]*shares{}
	if m := p.maps[mapCounters]; m != nil && m.Type() == ebpf.PerCPUHash {
		if err := m.Put(NetnsID(0), make([]counterEntry, p.loader.cpus)); err != nil {
			return fmt.Errorf("make the first counter: %w", err)
		}
		p.rooms.shares[mapCounterShares] = newShares(p.maps[mapCounterShares], p.loader.options.Namespaces)
		p.rooms.shares[mapCounterShares].rooms = true
	}
	if d := p.definition; d.table != "" {
		p.rooms.shares[d.shares] = newShares(p.maps[d.shares], int(p.maps[d.table].MaxEntries()))
	}
	for _, s := range p.rooms.shares {
		if err := s.seedRooms(); err != nil {
			return err
		}
	}
	return nil
}

// recount recounts the entries in use.
func (p *Probe) recount() error {
	var errs []error
	if m := p.maps[mapCounters]; m != nil && m.Type() == ebpf.PerCPUHash {
		errs = append(errs, p.readCounters(func(NetnsID, int, uint64) {}))
	}
	if p.definition.recount != nil {
		errs = append(errs, p.definition.recount(p))
	}
	return errors.Join(errs...)
}

// Forget deletes the counters of network namespaces that are gone.
func (p *Probe) Forget(netns ...NetnsID) error {
	gone := make(map[NetnsID]bool, len(netns))
	for _, n := range netns {
		if n != 0 {
			gone[n] = true
		}
	}
	if len(gone) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	var err error
	if m := p.maps[mapCounters]; m != nil && m.Type() == ebpf.PerCPUHash {
		for n := range gone {
			if e := m.Delete(n); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	if m := p.histogramsOfNetns(); m != nil {
		err = errors.Join(err, remove(m, slices.Collect(maps.Keys(gone))))
	}
	if p.definition.forget != nil {
		err = errors.Join(err, p.definition.forget(p, gone))
	}
	// The room of deleted entries is free again at once.
	err = errors.Join(err, p.recount())
	if err != nil {
		return fmt.Errorf("probe %s: forget the namespaces %x: %w", p.name, netns, err)
	}
	return nil
}
