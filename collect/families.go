package collect

import (
	"cmp"
	"path"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
)

// selection says which series are written.
type selection struct {
	include     []string // globs of the probes' metrics to write; empty: all
	exclude     []string // globs of names to leave out
	compatNames bool     // write metrics that have an Alias, too
	skipZero    bool     // leave out a pod's counters that have been 0 since the start
	maxSeries   int      // 0: no limit
}

// families turns rows into metric families: in each cycle fill, then add, then list. It
// reuses the memory of the previous cycle.
type families struct {
	selection
	excluded []bool // by metric ID
	aliased  []bool // a written alias repeats this metric, even if the metric's own name is excluded
	aliases  []*catalog.Metric
	order    []capKey
	byID     []family
	out      []*dto.MetricFamily
	leftOut  map[int]int // series cut by a cap, by metric ID
	total    int
}

type family struct {
	dto  *dto.MetricFamily
	pool []*dto.Metric // every Metric ever allocated; the first ones are in use
}

// matches reports whether any of the globs matches name.
func matches(globs []string, name string) bool {
	return slices.ContainsFunc(globs, func(g string) bool {
		ok, _ := path.Match(g, name)
		return ok
	})
}

// types maps the Catalogue's types to those of Prometheus.
var types = map[catalog.Type]dto.MetricType{
	catalog.Counter: dto.MetricType_COUNTER, catalog.Gauge: dto.MetricType_GAUGE, catalog.Histogram: dto.MetricType_HISTOGRAM,
}

func newFamilies(which selection) *families {
	n := len(catalog.Metrics())
	f := &families{selection: which, excluded: make([]bool, n), aliased: make([]bool, n), byID: make([]family, n), leftOut: map[int]int{}}
	for _, m := range catalog.Metrics() {
		f.excluded[m.ID()] = matches(which.exclude, m.Name) ||
			len(which.include) > 0 && m.Probe() != "" && !matches(which.include, m.Name)
		typ := types[m.Type]
		f.byID[m.ID()].dto = &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: &typ}
		if m.Alias != "" && which.compatNames && !f.excluded[m.ID()] {
			f.aliases = append(f.aliases, m)
			f.aliased[catalog.MustMetric(m.Alias).ID()] = true
		}
	}
	return f
}

// fill starts a cycle's families with its rows. It adds nodeskoop_series and
// nodeskoop_series_left_out with the labels of host.
func (f *families) fill(rows []row, host *labelSet) {
	for i := range f.byID {
		f.byID[i].dto.Metric = f.byID[i].dto.Metric[:0]
	}
	f.total = 0
	clear(f.leftOut)

	if f.maxSeries > 0 && seriesOf(rows) > f.maxSeries {
		for _, k := range f.capOrder(rows) {
			f.take(&rows[k.row])
		}
	} else {
		for i := range rows {
			f.take(&rows[i])
		}
	}
	for _, m := range f.aliases {
		src := f.byID[catalog.MustMetric(m.Alias).ID()].dto.Metric
		if f.maxSeries > 0 && f.total+len(src) > f.maxSeries {
			f.leftOut[m.ID()] += len(src)
			continue
		}
		f.total += len(src)
		f.byID[m.ID()].dto.Metric = append(f.byID[m.ID()].dto.Metric, src...)
	}
	f.add(host, "nodeskoop_series", float64(f.total))
	for _, m := range catalog.Metrics() {
		if n := f.leftOut[m.ID()]; n > 0 {
			f.add(host, "nodeskoop_series_left_out", float64(n), m.Name)
		}
	}
}

// seriesOf returns the number of series of some rows. Rows of cut series hold a
// count, so the result is an estimate.
func seriesOf(rows []row) (n int) {
	for i := range rows {
		n += rows[i].metric.Series()
	}
	return n
}

// add adds one value of nodeskoop's own metrics, to which max_series does not apply.
func (f *families) add(of *labelSet, metric string, value float64, labels ...string) {
	if m := catalog.MustMetric(metric); !f.excluded[m.ID()] {
		f.append(m, of.pairs, value, nil, labels)
	}
}

// list returns the families that have series, in the Catalogue's order. They are valid
// until the next fill.
func (f *families) list() []*dto.MetricFamily {
	f.out = f.out[:0]
	for _, m := range catalog.Metrics() {
		if fam := f.byID[m.ID()].dto; len(fam.Metric) > 0 && !f.excluded[m.ID()] {
			f.out = append(f.out, fam)
		}
	}
	return f.out
}

// capKey is the sort key of a row under max_series. The last rows are cut.
type capKey struct {
	rank int8
	turn int32 // index of the row among those of its owner in this rank
	row  int32
}

// The ranks, first to last: the host's series; the series that every pod has, oldest pod
// first; series with further labels; flows. In the last two, where a pod may have any
// number, the owners take turns.
const (
	rankHost = iota
	rankPod
	rankLabelled
	rankFlow
)

func rankOf(r *row) int8 {
	switch {
	case r.metric.Scope == catalog.PerFlow:
		return rankFlow
	case r.of.pod == nil:
		return rankHost
	case len(r.labels) > 0:
		return rankLabelled
	}
	return rankPod
}

// capOrder sorts rows for max_series. The place of a series depends neither on
// other pods nor on the order in which the probes added their rows.
func (f *families) capOrder(rows []row) []capKey {
	f.order = f.order[:0]
	for i := range rows {
		f.order = append(f.order, capKey{rank: rankOf(&rows[i]), row: int32(i)})
	}
	slices.SortFunc(f.order, func(a, b capKey) int {
		x, y := &rows[a.row], &rows[b.row]
		return cmp.Or(cmp.Compare(a.rank, b.rank), compareOwners(x.of, y.of), slices.Compare(x.labels, y.labels),
			cmp.Compare(x.metric.ID(), y.metric.ID()), cmp.Compare(a.row, b.row))
	})
	for i := range f.order[:max(0, len(f.order)-1)] {
		a, b := f.order[i], &f.order[i+1]
		if b.rank >= rankLabelled && b.rank == a.rank && compareOwners(rows[a.row].of, rows[b.row].of) == 0 {
			b.turn = a.turn + 1
		}
	}
	slices.SortStableFunc(f.order, func(a, b capKey) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.turn, b.turn))
	})
	return f.order
}

// compareOwners orders label sets: the host's, unattributed, then pods by age, oldest
// first. Two label sets of one pod are equal.
func compareOwners(a, b *labelSet) int {
	switch {
	case a == b:
		return 0
	case a.pod == nil || b.pod == nil:
		return cmp.Or(cmp.Compare(boolValue(a.pod != nil), boolValue(b.pod != nil)), cmp.Compare(boolValue(a.unknown), boolValue(b.unknown)))
	}
	return cmp.Or(a.pod.Started.Compare(b.pod.Started), strings.Compare(a.pod.Namespace, b.pod.Namespace),
		strings.Compare(a.pod.Name, b.pod.Name), strings.Compare(a.pod.ID, b.pod.ID))
}

// take adds a row's series unless it is excluded or over the cap.
func (f *families) take(r *row) {
	m := r.metric
	hidden := f.excluded[m.ID()] // only its compatibility name is written
	switch {
	case r.leftOut > 0:
		f.leftOut[m.ID()] += r.leftOut
		return
	case hidden && !f.aliased[m.ID()]:
		return
	}
	if f.skipZero && m.Type == catalog.Counter && r.of.pod != nil && len(m.Labels) == 0 {
		if r.value > 0 {
			r.of.setNonzero(m.ID())
		} else if !r.of.wasNonzero(m.ID()) {
			return
		}
	}
	if !hidden {
		n := m.Series()
		if f.maxSeries > 0 && f.total+n > f.maxSeries {
			f.leftOut[m.ID()] += n
			return
		}
		f.total += n
	}
	f.append(m, r.of.pairs, r.value, r.hist, r.labels)
}

func (f *families) append(m *catalog.Metric, pairs []*dto.LabelPair, value float64, hist *Histogram, labels []string) {
	fam := &f.byID[m.ID()]
	n := len(fam.dto.Metric)
	if n == len(fam.pool) {
		fam.pool = append(fam.pool, newMetric(m))
	}
	x := fam.pool[n]
	switch m.Type {
	case catalog.Counter:
		*x.Counter.Value = value
	case catalog.Histogram:
		hist.write(x.Histogram)
	default:
		*x.Gauge.Value = value
	}
	if len(labels) == 0 {
		x.Label = pairs
	} else {
		x.Label = slices.Clone(pairs)
		for i, name := range m.Labels {
			x.Label = append(x.Label, labelPair(name, validUTF8(labels[i])))
		}
	}
	fam.dto.Metric = append(fam.dto.Metric, x)
}

// newMetric makes the memory of a series.
func newMetric(m *catalog.Metric) *dto.Metric {
	switch m.Type {
	case catalog.Counter:
		return &dto.Metric{Counter: &dto.Counter{Value: new(float64)}}
	case catalog.Histogram:
		h := &dto.Histogram{SampleCount: new(uint64), SampleSum: new(float64)}
		for i := range m.Bounds {
			h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &m.Bounds[i], CumulativeCount: new(uint64)})
		}
		return &dto.Metric{Histogram: h}
	}
	return &dto.Metric{Gauge: &dto.Gauge{Value: new(float64)}}
}

// write converts a histogram to the family's form, with cumulative buckets.
func (h *Histogram) write(to *dto.Histogram) {
	var n uint64
	for i, b := range to.Bucket {
		n += h.Buckets[i]
		*b.CumulativeCount = n
	}
	*to.SampleCount, *to.SampleSum = n+h.Buckets[len(to.Bucket)], h.Sum
}
