package bpf

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type counter -type event -type event_account -type event_bucket -type event_limit -type event_stack -type event_type -type reason -type room -type share -type tuple -type histogram -type histograms -type histogram_bound -type histograms_by Shared shared.bpf.c

// Maps of headers/event.h, created once for all probes.
const (
	mapEvents   = objects.SharedMapEvents
	mapLimits   = objects.SharedMapEventLimits
	mapAccounts = objects.SharedMapEventAccounts
	mapBuckets  = objects.SharedMapEventBuckets
)

// Maps of headers/counter.h, created per probe.
const (
	mapCounters      = objects.PacketlossMapCounters
	mapCounterShares = objects.PacketlossMapCounterShares
)

// createShared creates the maps and enables events of all types unless the options
// disable them.
func (l *Loader) createShared() error {
	spec, err := objects.LoadShared()
	if err != nil {
		return err
	}
	spec.Maps[mapEvents].MaxEntries = ringSize(l.options.RingSize)
	spec.Maps[mapBuckets].MaxEntries = l.tableSize() + roomsEnd
	for _, name := range []string{mapEvents, mapLimits, mapAccounts, mapBuckets} {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return fmt.Errorf("create the BPF map %s: %w", name, explain(err))
		}
		l.shared[name] = m
	}
	if err := l.createChains(); err != nil {
		return err
	}
	// Create the buckets of the rooms and of unattributed events.
	for room := range roomsEnd {
		if err := l.shared[mapBuckets].Put(room, &objects.SharedEventBucket{}); err != nil {
			return fmt.Errorf("make the first buckets of events: %w", err)
		}
	}
	for t := EventType(1); t < eventTypes && !l.options.NoEvents; t++ {
		if err := l.SetEventLimit(t, l.options.EventRate, l.options.EventBurst); err != nil {
			return err
		}
	}
	return nil
}

// ringSize rounds up to a size that the kernel accepts for a ring: a power of two
// and a multiple of the page size, which is not 4 KiB everywhere.
func ringSize(n int) uint32 {
	size := os.Getpagesize()
	for size < n && size < 1<<30 {
		size *= 2
	}
	return uint32(size)
}

// sharedOf returns the shared maps that a probe's programs use.
func (l *Loader) sharedOf(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	shared := map[string]*ebpf.Map{}
	for name, m := range l.shared {
		if _, ok := spec.Maps[name]; ok {
			shared[name] = m
		}
	}
	return shared
}
