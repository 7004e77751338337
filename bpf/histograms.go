package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// The maps of headers/histogram.h, of which each probe has its own, and that of
// biolatency.
const (
	mapHistograms      = objects.KernellatencyMapHistograms
	mapNetnsHistograms = objects.KernellatencyMapNetnsHistograms
	mapDiskHistograms  = objects.BiolatencyMapDiskHistograms
)

// HistogramsBy says what the histograms of a probe are kept for.
type HistogramsBy uint32

// What they are kept for. A probe that measures what is no namespace's keeps them
// for the node where it is told to keep them for pods.
const (
	HistogramsNode HistogramsBy = iota // one set for the node, biolatency one for each disk
	HistogramsPods                     // one set for each namespace that is followed
	HistogramsOff                      // none
)

// HistogramBounds are the upper bounds of the buckets but for the last, which has
// none. A latency of exactly a bound is above it.
var HistogramBounds = func() []time.Duration {
	var out []time.Duration
	for _, us := range []objects.SharedHistogramBound{
		objects.SharedHistogramBoundHISTOGRAM_BOUND_0, objects.SharedHistogramBoundHISTOGRAM_BOUND_1,
		objects.SharedHistogramBoundHISTOGRAM_BOUND_2, objects.SharedHistogramBoundHISTOGRAM_BOUND_3,
		objects.SharedHistogramBoundHISTOGRAM_BOUND_4, objects.SharedHistogramBoundHISTOGRAM_BOUND_5,
		objects.SharedHistogramBoundHISTOGRAM_BOUND_6, objects.SharedHistogramBoundHISTOGRAM_BOUND_7,
		objects.SharedHistogramBoundHISTOGRAM_BOUND_8, objects.SharedHistogramBoundHISTOGRAM_BOUND_9,
		objects.SharedHistogramBoundHISTOGRAM_BOUND_10, objects.SharedHistogramBoundHISTOGRAM_BOUND_11,
	} {
		out = append(out, time.Duration(us)*time.Microsecond)
	}
	return out
}()

const (
	// HistogramBuckets is how many buckets a histogram has.
	HistogramBuckets = len(objects.SharedHistogram{}.Bucket)
	// MaxHistograms is the most that a probe has for one namespace.
	MaxHistograms = len(objects.SharedHistograms{}.Of)
)

// Histogram is how often something took how long.
type Histogram struct {
	Buckets [HistogramBuckets]uint64 // not cumulative
	SumNs   uint64
}

// Count is how many latencies are in it.
func (h Histogram) Count() (n uint64) {
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

func (h *Histogram) add(one *objects.SharedHistogram) {
	for i, n := range one.Bucket {
		h.Buckets[i] += n
	}
	h.SumNs += one.SumNs
}

// histogramReader keeps the buffers of a reading.
type histogramReader struct {
	walker[uint32, objects.SharedHistograms]
	disks  walker[objects.BiolatencyDiskOperation, objects.SharedHistogram]
	single []objects.SharedHistograms
}

// setHistograms says what the histograms are kept for, and makes room for those
// of namespaces.
func (p *Probe) setHistograms(spec *ebpf.CollectionSpec) error {
	if _, has := spec.Variables[objects.KernellatencyVarKeepHistograms]; !has {
		return nil
	}
	by := objects.SharedHistogramsByHISTOGRAMS_NODE
	m, byNetns := spec.Maps[mapNetnsHistograms]
	switch {
	case p.config.Histograms == HistogramsOff:
		by = objects.SharedHistogramsByHISTOGRAMS_OFF
	case p.config.Histograms == HistogramsPods && byNetns:
		by = objects.SharedHistogramsByHISTOGRAMS_PODS
		m.MaxEntries = p.loader.tableSize()
	}
	return set(spec, objects.KernellatencyVarKeepHistograms, uint32(by))
}

// histogramsOfNetns is the map of them, nil if they are not kept for namespaces.
func (p *Probe) histogramsOfNetns() *ebpf.Map {
	if p.config.Histograms != HistogramsPods {
		return nil
	}
	return p.maps[mapNetnsHistograms]
}

// followHistograms makes the entries of namespaces.
func (p *Probe) followHistograms(set []uint32) {
	m := p.histogramsOfNetns()
	if m == nil {
		return
	}
	none := make([]objects.SharedHistograms, p.loader.cpus)
	for _, n := range set {
		// One that finds no room is counted with what is no followed namespace's;
		// its counters find none, either, and say so.
		if err := m.Update(n, none, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			p.loader.options.Warn("making room for histograms failed", p.name, err)
			return
		}
	}
}

// seedDisks makes the entries of the disk that stands for those without room.
func (p *Probe) seedDisks() error {
	m := p.maps[mapDiskHistograms]
	if m == nil {
		return nil
	}
	none := make([]objects.SharedHistogram, p.loader.cpus)
	for operation := BlockRead; operation <= BlockOther; operation++ {
		if err := m.Put(objects.BiolatencyDiskOperation{Operation: operation}, none); err != nil {
			return fmt.Errorf("make the first histograms: %w", err)
		}
	}
	return nil
}

// Histograms calls f for each namespace that has histograms and each of the first
// n, with the sum over the CPUs. Those of the node are of namespace 0, and so is
// what belongs to no namespace that is followed. f has the histogram until it
// returns.
func (p *Probe) Histograms(n int, f func(netns uint64, which int, h *Histogram)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("read the histograms of probe %s: it is closed", p.name)
	}
	r := &p.histogram
	each := func(netns uint32, values []objects.SharedHistograms) {
		for which := range n {
			var h Histogram
			for cpu := range values {
				h.add(&values[cpu].Of[which])
			}
			f(uint64(netns), which, &h)
		}
	}
	var err error
	if m := p.histogramsOfNetns(); m != nil {
		err = r.each(m, p.loader.cpus, func(netns *uint32, values []objects.SharedHistograms) { each(*netns, values) })
	} else if m := p.maps[mapHistograms]; m != nil && p.config.Histograms != HistogramsOff {
		if err = m.Lookup(uint32(0), &r.single); err == nil {
			each(0, r.single)
		}
	}
	if err != nil {
		return fmt.Errorf("read the histograms of probe %s: %w", p.name, err)
	}
	return nil
}

// DiskHistograms calls f for each disk and operation (BlockRead and others) that
// biolatency has seen, with the sum over the CPUs. A disk that found no room has
// the name "". f may be called twice for one disk and operation, and has the
// histogram until it returns.
func (p *Probe) DiskHistograms(f func(disk string, operation uint32, h *Histogram)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("read the histograms of probe %s: it is closed", p.name)
	}
	m := p.maps[mapDiskHistograms]
	if m == nil || p.config.Histograms == HistogramsOff {
		return nil
	}
	var keys []objects.BiolatencyDiskOperation
	err := p.histogram.disks.each(m, p.loader.cpus, func(key *objects.BiolatencyDiskOperation, values []objects.SharedHistogram) {
		var h Histogram
		for cpu := range values {
			h.add(&values[cpu])
		}
		keys = append(keys, *key)
		f(diskName(key), key.Operation, &h)
	})
	if err == nil && len(keys) > int(m.MaxEntries())/2 {
		err = forgetDisks(m, keys)
	}
	if err != nil {
		return fmt.Errorf("read the histograms of probe %s: %w", p.name, err)
	}
	return nil
}

func diskName(key *objects.BiolatencyDiskOperation) string {
	b := make([]byte, len(key.Disk))
	for i, c := range key.Disk {
		b[i] = byte(c)
	}
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}

// forgetDisks deletes what a table that is half full has of disks that are gone.
func forgetDisks(m *ebpf.Map, keys []objects.BiolatencyDiskOperation) error {
	const disks = "/sys/block/"
	if _, err := os.Stat(disks); err != nil {
		return nil // who sees no disk knows of none that is gone
	}
	var gone []objects.BiolatencyDiskOperation
	for i := range keys {
		name := diskName(&keys[i])
		if _, err := os.Lstat(disks + strings.ReplaceAll(name, "/", "!")); name != "" && errors.Is(err, os.ErrNotExist) {
			gone = append(gone, keys[i])
		}
	}
	return remove(m, gone)
}
