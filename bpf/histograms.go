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

// Names of the maps of headers/histogram.h, which each probe has, and of
// biolatency's maps.
const (
	mapHistograms      = objects.KernellatencyMapHistograms
	mapNetnsHistograms = objects.KernellatencyMapNetnsHistograms
	mapDiskHistograms  = objects.BiolatencyMapDiskHistograms
	mapDiskNumbers     = objects.BiolatencyMapDiskNumbers
	mapFreeNumbers     = objects.BiolatencyMapFreeNumbers
	mapRecentDisks     = objects.BiolatencyMapRecentDisks
)

// HistogramsBy selects whether a probe keeps one set of histograms, or one for each
// namespace.
type HistogramsBy uint32

// The values of HistogramsBy. A probe that does not know namespaces keeps
// node-wide histograms even if set to HistogramsPods.
const (
	HistogramsNode HistogramsBy = iota // one set for the node, or in biolatency one for each disk
	HistogramsPods                     // one set for each followed namespace
	HistogramsOff                      // none
)

// HistogramBounds are the upper bounds of the buckets. The last bucket has no
// bound. A latency equal to a bound counts as above it.
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
	// HistogramBuckets is the number of buckets of a histogram.
	HistogramBuckets = len(objects.SharedHistogram{}.Bucket)
	// MaxHistograms is the maximum number of histograms per namespace and probe.
	MaxHistograms = len(objects.SharedHistograms{}.Of)
)

// Histogram is a distribution of latencies.
type Histogram struct {
	Buckets [HistogramBuckets]uint64 // not cumulative
	SumNs   uint64
}

// Count returns the number of latencies in the histogram.
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
	walker[NetnsID, objects.SharedHistograms]
	disks  walker[objects.BiolatencyDiskName, uint32]
	disk   []objects.BiolatencyOperationHistograms
	single []objects.SharedHistograms
}

// setHistograms sets how the histograms are divided, and sizes the map for
// namespaces.
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

// histogramsOfNetns returns the map of histograms by namespace, nil if there is
// none.
func (p *Probe) histogramsOfNetns() *ebpf.Map {
	if p.config.Histograms != HistogramsPods {
		return nil
	}
	return p.maps[mapNetnsHistograms]
}

// followHistograms creates the histogram entries of followed namespaces.
func (p *Probe) followHistograms(set []NetnsID) {
	m := p.histogramsOfNetns()
	if m == nil {
		return
	}
	none := make([]objects.SharedHistograms, p.loader.cpus)
	for _, n := range set {
		// Without room, the namespace's latencies count as unattributed. Its
		// counters find no room either, which State reports.
		if err := m.Update(n, none, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			p.loader.options.Warn("making room for histograms failed", p.name, err)
			return
		}
	}
}

// numberDisks fills the list of free disk numbers. 0 stands for disks without room.
func (p *Probe) numberDisks() error {
	m := p.maps[mapFreeNumbers]
	if m == nil {
		return nil
	}
	for number := uint32(1); number < p.maps[mapDiskHistograms].MaxEntries(); number++ {
		if err := m.Put(nil, number); err != nil {
			return fmt.Errorf("make the numbers of disks: %w", err)
		}
	}
	return nil
}

// Histograms calls f for each namespace and each of its first n histograms, with
// the sum over the CPUs. Namespace 0 has the node's histograms and the latencies
// of unfollowed namespaces. The histogram is valid until f returns.
func (p *Probe) Histograms(n int, f func(netns NetnsID, which int, h *Histogram)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("read the histograms of probe %s: it is closed", p.name)
	}
	r := &p.histogram
	each := func(netns NetnsID, values []objects.SharedHistograms) {
		for which := range n {
			var h Histogram
			for cpu := range values {
				h.add(&values[cpu].Of[which])
			}
			f(netns, which, &h)
		}
	}
	var err error
	if m := p.histogramsOfNetns(); m != nil {
		err = r.each(m, p.loader.cpus, func(netns *NetnsID, values []objects.SharedHistograms) { each(*netns, values) })
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

// DiskHistograms calls f for each disk that biolatency has seen and each of its
// operations (BlockRead and others), with the sum over the CPUs. Disks that found no
// room have the name "". The histogram is valid until f returns.
func (p *Probe) DiskHistograms(f func(disk string, operation uint32, h *Histogram)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("read the histograms of probe %s: it is closed", p.name)
	}
	if p.maps[mapDiskHistograms] == nil || p.config.Histograms == HistogramsOff {
		return nil
	}
	if err := p.readDisks(f); err != nil {
		return fmt.Errorf("read the histograms of probe %s: %w", p.name, err)
	}
	return nil
}

func (p *Probe) readDisks(f func(disk string, operation uint32, h *Histogram)) error {
	histograms := p.maps[mapDiskHistograms]
	disks := []numberedDisk{{}}
	if err := p.histogram.disks.each(p.maps[mapDiskNumbers], 1, func(name *objects.BiolatencyDiskName, number []uint32) {
		disks = append(disks, numberedDisk{key: *name, number: number[0]})
	}); err != nil {
		return err
	}
	for _, d := range disks {
		if err := histograms.Lookup(d.number, &p.histogram.disk); err != nil {
			return err
		}
		for operation := range p.histogram.disk[0].Of {
			var h Histogram
			for cpu := range p.histogram.disk {
				h.add((*objects.SharedHistogram)(&p.histogram.disk[cpu].Of[operation]))
			}
			f(d.name(), uint32(operation), &h)
		}
	}
	if len(disks) > int(histograms.MaxEntries())/2 {
		return p.forgetDisks(disks[1:])
	}
	return nil
}

// A numberedDisk is a disk that biolatency has seen. The one without a name has the
// number 0.
type numberedDisk struct {
	key    objects.BiolatencyDiskName
	number uint32
}

func (d *numberedDisk) name() string {
	b := make([]byte, len(d.key.Name))
	for i, c := range d.key.Name {
		b[i] = byte(c)
	}
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}

// forgetDisks frees the numbers of disks that are gone.
func (p *Probe) forgetDisks(disks []numberedDisk) error {
	const block = "/sys/block/"
	if _, err := os.Stat(block); err != nil {
		return nil // without a list of disks, none is known to be gone
	}
	none := make([]objects.BiolatencyOperationHistograms, p.loader.cpus)
	for i := range disks {
		d := &disks[i]
		// In sysfs a name has "!" for "/".
		if _, err := os.Lstat(block + strings.ReplaceAll(d.name(), "/", "!")); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := p.maps[mapDiskNumbers].Delete(&d.key); err != nil {
			return err
		}
		if err := p.forgetRecent(d.number); err != nil {
			return err
		}
		if err := p.maps[mapDiskHistograms].Put(d.number, none); err != nil {
			return err
		}
		if err := p.maps[mapFreeNumbers].Put(nil, d.number); err != nil {
			return err
		}
	}
	return nil
}

// forgetRecent makes the programs look a disk up by its name again.
func (p *Probe) forgetRecent(number uint32) error {
	m := p.maps[mapRecentDisks]
	for at := range m.MaxEntries() {
		var recent uint64
		if err := m.Lookup(at, &recent); err != nil {
			return err
		}
		if uint32(recent&0xff) == number {
			if err := m.Put(at, uint64(0)); err != nil {
				return err
			}
		}
	}
	return nil
}
