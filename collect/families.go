package collect

import (
	"cmp"
	"path"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// families turns rows into metric families. It keeps the memory of the last
// cycle's for the next one.
type families struct {
	excluded []bool // by metric ID
	aliases  []*Metric
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
	f.excluded = make([]bool, len(catalogue.allM))
	f.byID = make([]family, len(catalogue.allM))
	f.aliases = f.aliases[:0]
	for _, m := range catalogue.allM {
		for _, g := range opt.Exclude {
			if ok, _ := path.Match(g, m.Name); ok {
				f.excluded[m.id] = true
			}
		}
		typ := dto.MetricType_GAUGE
		if m.Type == Counter {
			typ = dto.MetricType_COUNTER
		}
		f.byID[m.id].dto = &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: &typ}
		if m.Alias != "" && opt.CompatNames {
			f.aliases = append(f.aliases, m)
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

	rows := r.rows
	if r.opt.MaxSeries > 0 && len(rows) > r.opt.MaxSeries {
		// The host's series stay, then the oldest pods', then flows: the same
		// series in every cycle, whatever else comes and goes.
		rows = slices.Clone(rows)
		slices.SortStableFunc(rows, func(a, b Row) int {
			if d := cmp.Compare(rank(a), rank(b)); d != 0 || a.t.pod == nil || b.t.pod == nil {
				return d
			}
			return a.t.pod.Started.Compare(b.t.pod.Started)
		})
	}
	for _, row := range rows {
		if row.leftOut > 0 {
			f.leftOut[row.Metric.id] += row.leftOut
		} else {
			f.add(r, row)
		}
	}
	for _, m := range f.aliases {
		if !f.excluded[m.id] {
			src := f.byID[MustMetric(m.Alias).id].dto.Metric
			if r.opt.MaxSeries > 0 && f.total+len(src) > r.opt.MaxSeries {
				f.leftOut[m.id] += len(src)
				continue
			}
			f.total += len(src)
			f.byID[m.id].dto.Metric = append(f.byID[m.id].dto.Metric, src...)
		}
	}
	self := func(name string, value float64, labels ...string) {
		m := MustMetric(name)
		if !f.excluded[m.id] {
			f.append(m, r.host.labels.pairs, value, labels)
		}
	}
	self("nodeskoop_series", float64(f.total))
	for _, m := range catalogue.allM {
		if n := f.leftOut[m.id]; n > 0 {
			self("nodeskoop_series_left_out", float64(n), m.Name)
		}
	}
	r.selfValues(start, others, self)

	f.out = f.out[:0]
	for _, m := range catalogue.allM {
		if fam := f.byID[m.id].dto; len(fam.Metric) > 0 {
			f.out = append(f.out, fam)
		}
	}
	return f.out
}

// rank orders rows by what is left out last.
func rank(r Row) int {
	switch {
	case r.Metric.Scope == PerFlow:
		return 2
	case r.t.pod != nil:
		return 1
	}
	return 0
}

func (f *families) add(r *Runner, row Row) {
	m := row.Metric
	if f.excluded[m.id] {
		return
	}
	if r.opt.SkipZero && m.Type == Counter && row.t.pod != nil && len(m.Labels) == 0 {
		if row.Value > 0 {
			row.t.setNonzero(m.id)
		} else if !row.t.wasNonzero(m.id) {
			return
		}
	}
	if r.opt.MaxSeries > 0 && f.total >= r.opt.MaxSeries {
		f.leftOut[m.id]++
		return
	}
	f.total++
	f.append(m, row.t.labels.pairs, row.Value, row.Labels)
}

func (f *families) append(m *Metric, pairs []*dto.LabelPair, value float64, labels []string) {
	fam := &f.byID[m.id]
	n := len(fam.dto.Metric)
	if n == len(fam.pool) {
		x := &dto.Metric{}
		if m.Type == Counter {
			x.Counter = &dto.Counter{Value: new(float64)}
		} else {
			x.Gauge = &dto.Gauge{Value: new(float64)}
		}
		fam.pool = append(fam.pool, x)
	}
	x := fam.pool[n]
	if m.Type == Counter {
		*x.Counter.Value = value
	} else {
		*x.Gauge.Value = value
	}
	if len(labels) == 0 {
		x.Label = pairs
	} else {
		x.Label = slices.Clone(pairs)
		for i, name := range m.Labels {
			x.Label = append(x.Label, labelPair(name, valid(labels[i])))
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
