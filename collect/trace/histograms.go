package trace

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

// latencies are the histograms of a namespace or of the node, by their index in
// the kernel.
type latencies [bpf.MaxHistograms]bpf.Histogram

// grow adds the growth of a histogram in the kernel.
func grow(to, now, was *bpf.Histogram) {
	if now.Count() < was.Count() {
		was = &bpf.Histogram{} // the kernel's entry was deleted and recreated
	}
	for i, n := range now.Buckets {
		to.Buckets[i] += n - was.Buckets[i]
	}
	to.SumNs += now.SumNs - was.SumNs
}

func (l *latencies) clone() *latencies {
	if l == nil {
		return nil
	}
	c := *l
	return &c
}

// plus returns the sum of two histograms. Either may be nil; the sum is nil if
// both are.
func (l *latencies) plus(o *latencies) *latencies {
	switch {
	case l == nil:
		return o.clone()
	case o == nil:
		return l.clone()
	}
	sum := *l
	for i := range o {
		grow(&sum[i], &o[i], &bpf.Histogram{})
	}
	return &sum
}

// keptHistograms marks the start of the histograms in the saved state of a
// carried. No reason of the kernel has that number.
const keptHistograms = 1 << 40

// keep appends a histogram in the form that recall reads.
func keep(b []byte, h *bpf.Histogram) []byte {
	return collect.AppendUints(collect.AppendUints(b, h.Buckets[:]...), h.SumNs)
}

func recall(d *collect.Decoder, h *bpf.Histogram) {
	d.Uints(h.Buckets[:])
	h.SumNs = d.Uint()
}

// written converts a histogram to the form of its metric.
func written(h *bpf.Histogram) *collect.Histogram {
	return &collect.Histogram{Buckets: slices.Clone(h.Buckets[:]), Sum: float64(h.SumNs) / float64(time.Second)}
}

// histogramsBy converts the value of the option histograms.
func histogramsBy(options map[string]any) bpf.HistogramsBy {
	switch options["histograms"] {
	case catalog.HistogramsPods:
		return bpf.HistogramsPods
	case catalog.HistogramsOff:
		return bpf.HistogramsOff
	}
	return bpf.HistogramsNode
}

// addHistogram adds one histogram of the kernel.
func (c *counts) addHistogram(netns bpf.NetnsID, which int, h *bpf.Histogram) {
	n := c.found(netns)
	if n.kernel == nil {
		n.kernel = &latencies{}
	}
	if n.latencies == nil {
		n.latencies = &latencies{}
	}
	grow(&n.latencies[which], h, &n.kernel[which])
	n.kernel[which] = *h
}

// histogram is one of the histograms.
func (t *tally) histogram(which int) *collect.Histogram {
	if t.latencies == nil {
		return written(&bpf.Histogram{})
	}
	return written(&t.latencies[which])
}

// readLatencies reads the node's histograms.
func (p *probe) readLatencies() (*latencies, error) {
	var now latencies
	err := p.bpf.Histograms(len(p.kind.histograms), func(_ bpf.NetnsID, which int, h *bpf.Histogram) { now[which] = *h })
	return &now, err
}

// addLatencies adds the values of the node's histograms.
func (p *probe) addLatencies(v *collect.View, shown *tally) {
	for which, labels := range p.kind.histograms {
		v.AddHistogram(p.kind.histogram, shown.histogram(which), labels...)
	}
}

// biolatencyHistogram has a histogram for each disk and operation.
var biolatencyHistogram = catalog.MustMetric("nodeskoop_biolatency_seconds")

// operations are the label's values, by the kernel's number.
var operations = map[uint32]string{
	bpf.BlockRead: "read", bpf.BlockWrite: "write", bpf.BlockFlush: "flush", bpf.BlockDiscard: "discard", bpf.BlockOther: "other",
}

// disks holds the histograms of the disks.
type disks struct{ all map[diskKey]*diskLatency }

type diskKey struct {
	disk      string
	operation uint32
}

type diskLatency struct {
	kernel, shown bpf.Histogram
	read          bool // seen in the last reading
}

// Keep appends the histograms that are not empty.
func (d *disks) Keep(b []byte) []byte {
	for k, l := range d.all {
		b = collect.AppendUints(b, uint64(len(k.disk)))
		b = collect.AppendUints(append(b, k.disk...), uint64(k.operation))
		b = keep(b, &l.shown)
	}
	return b
}

// Recall restores the histograms whose disks still exist.
func (d *disks) Recall(b []byte) error {
	d.all = map[diskKey]*diskLatency{}
	in := collect.NewDecoder(b)
	for in.More() {
		name := string(in.Bytes())
		k, l := diskKey{name, uint32(in.Uint())}, &diskLatency{}
		recall(in, &l.shown)
		if name == "" || there(name) {
			d.all[k] = l
		}
	}
	return in.Err()
}

// there reports whether a disk exists; true if that cannot be determined.
func there(disk string) bool {
	_, err := os.Lstat("/sys/block/" + strings.ReplaceAll(disk, "/", "!"))
	return !errors.Is(err, os.ErrNotExist)
}

// take updates the histograms from the kernel's. If the kernel no longer has an
// earlier one, its disk is gone.
func (d *disks) take(read func(func(disk string, operation uint32, h *bpf.Histogram)) error) error {
	if d.all == nil {
		d.all = map[diskKey]*diskLatency{}
	}
	now := map[diskKey]*bpf.Histogram{}
	err := read(func(disk string, operation uint32, h *bpf.Histogram) {
		k := diskKey{disk, operation}
		if now[k] == nil {
			now[k] = &bpf.Histogram{}
		}
		grow(now[k], h, &bpf.Histogram{})
	})
	if err != nil {
		return err
	}
	for k, l := range d.all {
		if l.read && now[k] == nil {
			delete(d.all, k)
		}
	}
	for k, h := range now {
		l := d.all[k]
		if l == nil {
			if h.Count() == 0 {
				continue // the entry for disks that find no room
			}
			l = &diskLatency{}
			d.all[k] = l
		}
		grow(&l.shown, h, &l.kernel)
		l.kernel, l.read = *h, true
	}
	return nil
}

// sampleDisks adds the histograms of biolatency.
func (p *probe) sampleDisks(v *collect.View) error {
	if p.histograms == bpf.HistogramsOff {
		return nil
	}
	d := collect.State[disks](v)
	if err := d.take(p.bpf.DiskHistograms); err != nil {
		return err
	}
	keys := make([]diskKey, 0, len(d.all))
	for k := range d.all {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b diskKey) int {
		if c := strings.Compare(a.disk, b.disk); c != 0 {
			return c
		}
		return int(a.operation) - int(b.operation)
	})
	for _, k := range keys {
		l := d.all[k]
		v.AddHistogram(biolatencyHistogram, written(&l.shown), k.disk, operations[k.operation])
	}
	return nil
}
