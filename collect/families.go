package collect

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
)

// families turns rows into metric families. It keeps the memory of the last
// cycle's for the next one.
type families struct {
	excluded []bool // by metric ID
	aliased  []bool // another name of it is written, whether or not its own is
	aliases  []*catalog.Metric
	order    []capKey
	byID     []family
	out      []*dto.MetricFamily
	leftOut  map[int]int // series that a cap left out, by metric ID
	total    int
}

type family struct {
	dto  *dto.MetricFamily
	pool []*dto.Metric // all that were ever made; the first are in use
}

func (f *families) apply(opt Options) {
	f.excluded = make([]bool, len(catalog.Metrics()))
	f.aliased = make([]bool, len(catalog.Metrics()))
	f.byID = make([]family, len(catalog.Metrics()))
	f.aliases = f.aliases[:0]
	for _, m := range catalog.Metrics() {
		for _, g := range opt.Exclude {
			if ok, _ := path.Match(g, m.Name); ok {
				f.excluded[m.ID()] = true
			}
		}
		typ := dto.MetricType_GAUGE
		if m.Type == catalog.Counter {
			typ = dto.MetricType_COUNTER
		}
		f.byID[m.ID()].dto = &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: &typ}
		if m.Alias != "" && opt.CompatNames && !f.excluded[m.ID()] {
			f.aliases = append(f.aliases, m)
			f.aliased[catalog.MustMetric(m.Alias).ID()] = true
		}
	}
}

// build returns the families of the cycle that began at start, in the
// Catalogue's order.
func (f *families) build(r *Runner, start time.Time, others []selfValue) []*dto.MetricFamily {
	for i := range f.byID {
		f.byID[i].dto.Metric = f.byID[i].dto.Metric[:0]
	}
	f.total, f.leftOut = 0, map[int]int{}

	if r.opt.MaxSeries > 0 && len(r.rows) > r.opt.MaxSeries {
		for _, k := range f.capOrder(r.rows) {
			f.add(r, r.rows[k.row])
		}
	} else {
		for _, row := range r.rows {
			f.add(r, row)
		}
	}
	for _, m := range f.aliases {
		src := f.byID[catalog.MustMetric(m.Alias).ID()].dto.Metric
		if r.opt.MaxSeries > 0 && f.total+len(src) > r.opt.MaxSeries {
			f.leftOut[m.ID()] += len(src)
			continue
		}
		f.total += len(src)
		f.byID[m.ID()].dto.Metric = append(f.byID[m.ID()].dto.Metric, src...)
	}
	self := func(name string, value float64, labels ...string) {
		m := catalog.MustMetric(name)
		if !f.excluded[m.ID()] {
			f.append(m, r.host.labels.pairs, value, labels)
		}
	}
	self("nodeskoop_series", float64(f.total))
	for _, m := range catalog.Metrics() {
		if n := f.leftOut[m.ID()]; n > 0 {
			self("nodeskoop_series_left_out", float64(n), m.Name)
		}
	}
	r.selfValues(start, others, self)

	f.out = f.out[:0]
	for _, m := range catalog.Metrics() {
		if fam := f.byID[m.ID()].dto; len(fam.Metric) > 0 && !f.excluded[m.ID()] {
			f.out = append(f.out, fam)
		}
	}
	return f.out
}

// capKey is the place of a row among those that a cap of series cuts: what is
// left out comes last.
type capKey struct {
	rank int8
	turn int32 // of the rows that its owner has in this rank
	row  int32
}

// The ranks. The host's series stay, then those that every pod has, the oldest
// pod's first. Of what a pod may have any number, each owner's first series
// come before anybody's second.
const (
	rankHost = iota
	rankPod
	rankLabelled
	rankFlow
)

func rankOf(r *Row) int8 {
	switch {
	case r.Metric.Scope == catalog.PerFlow:
		return rankFlow
	case r.t.pod == nil:
		return rankHost
	case len(r.Labels) > 0:
		return rankLabelled
	}
	return rankPod
}

// capOrder orders rows for a cap. It is the same in every cycle, whatever else
// comes and goes, and in whatever order the probes gave them.
func (f *families) capOrder(rows []Row) []capKey {
	f.order = f.order[:0]
	for i := range rows {
		f.order = append(f.order, capKey{rank: rankOf(&rows[i]), row: int32(i)})
	}
	slices.SortFunc(f.order, func(a, b capKey) int {
		x, y := &rows[a.row], &rows[b.row]
		return cmp.Or(cmp.Compare(a.rank, b.rank), compareOwners(x.t, y.t), slices.Compare(x.Labels, y.Labels),
			cmp.Compare(x.Metric.ID(), y.Metric.ID()), cmp.Compare(a.row, b.row))
	})
	for i := range f.order[:max(0, len(f.order)-1)] {
		a, b := f.order[i], &f.order[i+1]
		if b.rank >= rankLabelled && b.rank == a.rank && compareOwners(rows[a.row].t, rows[b.row].t) == 0 {
			b.turn = a.turn + 1
		}
	}
	slices.SortStableFunc(f.order, func(a, b capKey) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.turn, b.turn))
	})
	return f.order
}

// compareOwners orders targets by whose series they make: the host's, what is
// unattributed, and the pods' from the oldest on. Two of one pod are equal.
func compareOwners(a, b *target) int {
	switch {
	case a == b:
		return 0
	case a.pod == nil || b.pod == nil:
		return cmp.Or(cmp.Compare(boolValue(a.pod != nil), boolValue(b.pod != nil)), cmp.Compare(boolValue(a.unknown), boolValue(b.unknown)))
	}
	return cmp.Or(a.pod.Started.Compare(b.pod.Started), strings.Compare(a.pod.Namespace, b.pod.Namespace),
		strings.Compare(a.pod.Name, b.pod.Name), strings.Compare(a.pod.ID, b.pod.ID))
}

func (f *families) add(r *Runner, row Row) {
	m := row.Metric
	hidden := f.excluded[m.ID()] // only its other name is written
	switch {
	case row.leftOut > 0:
		f.leftOut[m.ID()] += row.leftOut
		return
	case hidden && !f.aliased[m.ID()]:
		return
	}
	if r.opt.SkipZero && m.Type == catalog.Counter && row.t.pod != nil && len(m.Labels) == 0 {
		if row.Value > 0 {
			row.t.setNonzero(m.ID())
		} else if !row.t.wasNonzero(m.ID()) {
			return
		}
	}
	if !hidden {
		if r.opt.MaxSeries > 0 && f.total >= r.opt.MaxSeries {
			f.leftOut[m.ID()]++
			return
		}
		f.total++
	}
	f.append(m, row.t.labels.pairs, row.Value, row.Labels)
}

func (f *families) append(m *catalog.Metric, pairs []*dto.LabelPair, value float64, labels []string) {
	fam := &f.byID[m.ID()]
	n := len(fam.dto.Metric)
	if n == len(fam.pool) {
		x := &dto.Metric{}
		if m.Type == catalog.Counter {
			x.Counter = &dto.Counter{Value: new(float64)}
		} else {
			x.Gauge = &dto.Gauge{Value: new(float64)}
		}
		fam.pool = append(fam.pool, x)
	}
	x := fam.pool[n]
	if m.Type == catalog.Counter {
		*x.Counter.Value = value
	} else {
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

func (t *target) setNonzero(id int) {
	for len(t.nonzero) <= id/64 {
		t.nonzero = append(t.nonzero, 0)
	}
	t.nonzero[id/64] |= 1 << (id % 64)
}

func (t *target) wasNonzero(id int) bool {
	return id/64 < len(t.nonzero) && t.nonzero[id/64]&(1<<(id%64)) != 0
}
