package history

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
)

const (
	// maxSeries is how many series are followed at a time, and how many one file
	// has at most: a reader needs memory for all of a file's.
	maxSeries = 1 << 16
	// maxName is how long a name or a label's value may be at most.
	maxName = 4096
)

// minute is what one frame tells. It is never changed once it is handed over.
type minute struct {
	start    time.Time // of the minute, by the clock on the wall
	from, to instant   // of the sample that differences are against, and of the last one
	cycles   int
	first    bool // of this run of the daemon
	// counters that moved, and all gauges.
	counters, gauges []value
}

// value is of one series and minute.
type value struct {
	of   *Series
	v    float64
	peak float64 // of a gauge: the highest value
}

// tracker makes minutes of cycles.
type tracker struct {
	length   time.Duration // of a minute
	families map[string]*family
	sets     map[string]*labelSet // by what appendKey makes of them
	all      int                  // series that are followed
	leftOut  int                  // in the last cycle, as there was no room
	n        uint64               // cycles so far

	begun bool
	open  minute
	base  uint64 // the cycle that differences of the open minute are against
	key   []byte
	sizes [2]int // of the last minute's counters and gauges
}

// family is what is known of a metric family.
type family struct {
	skip bool
	kind Kind
	// alias names the family that this one repeats under another spelling.
	alias string
	order []*tracked // in the order of the last cycle
	spare []*tracked // memory for the next one
	bySet map[*labelSet]*tracked
	seen  uint64 // the last cycle
}

// labelSet is a set of labels, which all series of a pod share.
type labelSet struct {
	key    string
	pairs  []*dto.LabelPair // of the last cycle in which there were others
	labels []Label          // nil: they cannot be recorded
	users  int              // series
}

// tracked is one series, or the series of a histogram.
type tracked struct {
	set   *labelSet
	parts []part
	seen  uint64 // the last cycle
}

// part is one series of a tracked: the only one but for a histogram.
type part struct {
	of    *Series
	last  float64
	base  float64 // of a counter, when the minute began
	carry float64 // of a counter: what it counted in the minute before it fell
	peak  float64 // of a gauge, in the minute
}

func newTracker(length time.Duration) *tracker {
	return &tracker{length: length, families: map[string]*family{}, sets: map[string]*labelSet{}}
}

// observe takes a cycle. If it is the first one of another minute, what is returned
// is the minute before.
func (t *tracker) observe(at instant, families []*dto.MetricFamily) (over *minute) {
	start := at.wall.Truncate(t.length)
	if !t.begun {
		t.begun = true
		t.open = minute{start: start, from: at, first: true}
	} else if !start.Equal(t.open.start) {
		over = t.end()
		t.open = minute{start: start, from: t.open.to, first: t.open.first && over == nil}
		t.base = t.n
	}
	t.n++
	t.base = max(t.base, 1)
	t.open.to = at
	t.open.cycles++
	t.leftOut = 0
	for _, f := range families {
		known := t.family(f)
		if known.skip || known.alias != "" && slices.ContainsFunc(families, func(o *dto.MetricFamily) bool { return o.GetName() == known.alias }) {
			continue
		}
		known.seen = t.n
		t.take(known, f)
	}
	return over
}

// family knows a family by its name.
func (t *tracker) family(f *dto.MetricFamily) *family {
	if known := t.families[f.GetName()]; known != nil {
		return known
	}
	known := &family{bySet: map[*labelSet]*tracked{}}
	switch f.GetType() {
	case dto.MetricType_COUNTER, dto.MetricType_HISTOGRAM:
		known.kind = Counter
	case dto.MetricType_GAUGE:
		known.kind = Gauge
	default:
		known.skip = true
	}
	if m := catalog.MetricByName(f.GetName()); m != nil {
		known.skip = known.skip || known.kind == Gauge && !m.Recorded
		known.alias = m.Alias
	}
	known.skip = known.skip || len(f.GetName()) > maxName
	t.families[strings.Clone(f.GetName())] = known
	return known
}

// take takes the series of a family.
func (t *tracker) take(known *family, f *dto.MetricFamily) {
	next, was := 0, known.order
	known.order = known.spare[:0]
	for _, m := range f.Metric {
		var s *tracked
		// They come in the order of the cycle before, but for those that came or went.
		switch {
		case next < len(was) && sameLabels(was[next].set.pairs, m.Label):
			s, next = was[next], next+1
		case next+1 < len(was) && sameLabels(was[next+1].set.pairs, m.Label):
			s, next = was[next+1], next+2
		default:
			if s = t.find(known, f, m); s == nil {
				t.leftOut++
				continue
			}
		}
		known.order = append(known.order, s)
		t.update(known, s, m)
	}
	known.spare = was
}

// sameLabels reports whether two sets of labels are the same. The engine gives all
// series of a pod the same pairs in every cycle.
func sameLabels(a, b []*dto.LabelPair) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && (a[i].GetValue() != b[i].GetValue() || a[i].GetName() != b[i].GetName()) {
			return false
		}
	}
	return true
}

// appendKey appends what tells one set of labels of a family from another.
func appendKey(b []byte, labels []*dto.LabelPair) []byte {
	for _, l := range labels {
		b = append(append(b, l.GetName()...), 0xff) // which no UTF-8 has
		b = append(append(b, l.GetValue()...), 0xff)
	}
	return b
}

// find returns the series of these labels, which is new if need be, or nil if there
// is no room for it.
func (t *tracker) find(known *family, f *dto.MetricFamily, m *dto.Metric) *tracked {
	t.key = appendKey(t.key[:0], m.Label)
	set := t.sets[string(t.key)]
	if set == nil {
		if t.all >= maxSeries {
			return nil
		}
		set = newLabelSet(string(t.key), m.Label)
	} else if s := known.bySet[set]; s != nil {
		set.pairs = append(set.pairs[:0], m.Label...) // the engine may have made others
		return s
	}
	s := newTracked(known.kind, set, f, m)
	if s == nil || t.all+len(s.parts) > maxSeries {
		return nil
	}
	t.all += len(s.parts)
	t.sets[set.key] = set
	set.users++
	known.bySet[set] = s
	return s
}

func newLabelSet(key string, pairs []*dto.LabelPair) *labelSet {
	set := &labelSet{key: key, pairs: slices.Clone(pairs)}
	labels := make([]Label, 0, len(pairs))
	for _, l := range pairs {
		if len(l.GetName()) > maxName || len(l.GetValue()) > maxName {
			return set
		}
		labels = append(labels, Label{l.GetName(), l.GetValue()})
	}
	if len(labels) < maxLabels { // a histogram has one more
		set.labels = labels
	}
	return set
}

// newTracked is nil for what cannot be recorded.
func newTracked(kind Kind, set *labelSet, f *dto.MetricFamily, m *dto.Metric) *tracked {
	if set.labels == nil {
		return nil
	}
	name := f.GetName()
	if f.GetType() != dto.MetricType_HISTOGRAM {
		x := &struct {
			tracked
			one [1]part
		}{one: [1]part{{of: &Series{Metric: name, Kind: kind, Labels: set.labels}}}}
		x.set, x.parts = set, x.one[:]
		return &x.tracked
	}
	s := &tracked{set: set}
	bucket := func(le string) {
		s.parts = append(s.parts, part{of: &Series{name + BucketSuffix, Counter, append(slices.Clone(set.labels), Label{"le", le})}})
	}
	for _, b := range m.GetHistogram().GetBucket() {
		bucket(strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))
	}
	bucket("+Inf")
	return s
}

// update takes the value of a series.
func (t *tracker) update(known *family, s *tracked, m *dto.Metric) {
	before := s.seen
	v := m.GetGauge().GetValue()
	if known.kind == Counter {
		v = m.GetCounter().GetValue()
	}
	if math.IsNaN(v) || math.IsInf(v, 0) || m.Histogram != nil && len(m.Histogram.Bucket)+1 != len(s.parts) {
		return // it is not there: a value that is none, or other buckets than it began with
	}
	s.seen = t.n
	switch {
	case m.Histogram != nil:
		h, below := m.Histogram, uint64(0)
		for i, b := range h.Bucket {
			t.count(&s.parts[i], before, float64(b.GetCumulativeCount()-below))
			below = b.GetCumulativeCount()
		}
		t.count(&s.parts[len(h.Bucket)], before, float64(h.GetSampleCount()-below))
	case known.kind == Counter:
		t.count(&s.parts[0], before, v)
	default:
		p := &s.parts[0]
		if before <= t.base || v > p.peak {
			p.peak = v
		}
		p.last = v
	}
}

// count takes a value of a counter that was seen before in the cycle before.
func (t *tracker) count(p *part, before uint64, v float64) {
	switch {
	case before < t.base || before == 0:
		// New, or not seen for a minute: what it counted meanwhile is of no minute.
		p.base, p.carry = v, 0
	case before == t.base:
		p.base, p.carry = p.last, 0
		fallthrough
	default:
		if v < p.last {
			p.carry += p.last - p.base
			p.base = 0
		}
	}
	p.last = v
}

// end ends the open minute. It is nil if there is but the sample that differences are
// to be against.
func (t *tracker) end() *minute {
	if t.n <= t.base {
		return nil
	}
	m := t.open
	m.counters = make([]value, 0, t.sizes[0]+t.sizes[0]/8)
	m.gauges = make([]value, 0, t.sizes[1]+t.sizes[1]/8)
	for _, f := range t.families {
		if f.seen <= t.base {
			continue
		}
		for _, s := range f.bySet {
			for i := range s.parts {
				p := &s.parts[i]
				switch {
				case f.kind == Counter && s.seen > t.base:
					if d := p.carry + p.last - p.base; d > 0 {
						m.counters = append(m.counters, value{of: p.of, v: d})
					}
				case f.kind == Gauge && s.seen == t.n:
					m.gauges = append(m.gauges, value{of: p.of, v: p.last, peak: p.peak})
				}
			}
		}
	}
	t.sizes = [2]int{len(m.counters), len(m.gauges)}
	t.forget()
	return &m
}

// forget drops the series that were not seen in the open minute.
func (t *tracker) forget() {
	for name, f := range t.families {
		for set, s := range f.bySet {
			if s.seen > t.base {
				continue
			}
			delete(f.bySet, set)
			t.all -= len(s.parts)
			if set.users--; set.users == 0 {
				delete(t.sets, set.key)
			}
			f.order = f.order[:0]
		}
		if len(f.bySet) == 0 && f.seen <= t.base && !f.skip {
			delete(t.families, name)
		}
	}
}
