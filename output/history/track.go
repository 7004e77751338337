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
	// maxSeries is the maximum number of series that are followed at a time, and of
	// series in one file: a reader needs memory for all series of a file.
	maxSeries = 1 << 16
	// ownShare is the number of series of a pod that always find room, several times
	// what a pod has. Further series of the pod find room only in the first half of
	// maxSeries, so a pod that makes up series leaves room for others.
	ownShare = 512
	// The contract's labels for the owner of a series.
	labelNamespace, labelPod = "k8s_namespace", "k8s_pod"
	// maxName is the maximum length of a name or a label value, in bytes.
	maxName = 4096
)

// minute is the content of one frame. It is immutable once it is passed to the writer.
type minute struct {
	start    time.Time // on the wall clock
	from, to instant   // times of the sample that increases are relative to, and of the last sample
	cycles   int
	first    bool // first minute of this run of the daemon
	// Counters that increased, and all gauges.
	counters, gauges []value
}

// value is the value of one series in one minute.
type value struct {
	of   *Series
	v    float64
	peak float64 // a gauge's highest value
}

// tracker turns cycles into minutes.
type tracker struct {
	length   time.Duration // length of a minute
	families map[string]*family
	sets     map[string]*labelSet // by key, from appendKey
	all      int                  // series that are followed
	most     int                  // maxSeries, except in tests
	owners   map[string]*seriesOwner
	leftOut  int    // series without room in the last cycle
	n        uint64 // cycles so far

	begun bool
	open  minute
	base  uint64 // cycle that the current minute's increases are relative to
	key   []byte
	sizes [2]int // number of the last minute's counters and gauges
}

// family is the state of a metric family.
type family struct {
	skip bool
	kind Kind
	// alias is the family that this one repeats under another name.
	alias string
	order []*tracked // order of the last cycle
	spare []*tracked // buffer for the next cycle
	bySet map[*labelSet]*tracked
	seen  uint64 // last cycle with this family
}

// labelSet is a set of labels, shared by all series of a pod.
type labelSet struct {
	key    string
	pairs  []*dto.LabelPair // pairs of the last cycle in which they changed
	labels []Label          // nil: cannot be recorded
	users  int              // number of series
	owner  *seriesOwner
}

// seriesOwner is a pod, or the node, with its series.
type seriesOwner struct {
	name   string // "" for series without a pod's labels, which are the node's
	series int
}

// tracked is one series, or all series of a histogram.
type tracked struct {
	set   *labelSet
	parts []part
	seen  uint64 // last cycle with this series
}

// part is one series of a tracked. Only a histogram has several.
type part struct {
	of    *Series
	last  float64
	base  float64 // for a counter, the value at the start of the minute
	carry float64 // for a counter, the increase in this minute before a reset
	peak  float64 // for a gauge, the highest value in this minute
}

func newTracker(length time.Duration) *tracker {
	return &tracker{length: length, most: maxSeries, families: map[string]*family{}, sets: map[string]*labelSet{}, owners: map[string]*seriesOwner{}}
}

// observe adds a cycle. With the first cycle of a new minute it returns the previous
// minute.
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

// family returns the state of a family.
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

// take adds the values of a family's series.
func (t *tracker) take(known *family, f *dto.MetricFamily) {
	next, was := 0, known.order
	known.order = known.spare[:0]
	for _, m := range f.Metric {
		var s *tracked
		// Series come in the order of the previous cycle, except for those that come or go.
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

// sameLabels reports whether two sets of labels are equal. The engine gives all series of a
// pod the same pairs in every cycle.
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

// appendKey appends a key of a set of labels, unique within a family.
func appendKey(b []byte, labels []*dto.LabelPair) []byte {
	for _, l := range labels {
		b = append(append(b, l.GetName()...), 0xff) // 0xff does not occur in UTF-8
		b = append(append(b, l.GetValue()...), 0xff)
	}
	return b
}

// find returns the series with the labels of m. It adds the series if there is none, and
// returns nil if there is no room.
func (t *tracker) find(known *family, f *dto.MetricFamily, m *dto.Metric) *tracked {
	t.key = appendKey(t.key[:0], m.Label)
	set := t.sets[string(t.key)]
	if set == nil {
		if t.all >= t.most {
			return nil
		}
		set = newLabelSet(string(t.key), m.Label)
		set.owner = t.owner(m.Label)
	} else if s := known.bySet[set]; s != nil {
		set.pairs = append(set.pairs[:0], m.Label...) // the engine may have replaced them
		return s
	}
	s := newTracked(known.kind, set, f, m)
	if s == nil || !t.hasRoom(set.owner, len(s.parts)) {
		return nil
	}
	t.all += len(s.parts)
	t.owners[set.owner.name] = set.owner
	set.owner.series += len(s.parts)
	t.sets[set.key] = set
	set.users++
	known.bySet[set] = s
	return s
}

// owner returns the owner of a set of labels.
func (t *tracker) owner(labels []*dto.LabelPair) *seriesOwner {
	var namespace, pod string
	for _, l := range labels {
		switch l.GetName() {
		case labelNamespace:
			namespace = l.GetValue()
		case labelPod:
			pod = l.GetValue()
		}
	}
	name := ""
	if pod != "" && pod != namespace { // both labels of the host have the same value; no pod has such labels
		name = namespace + "/" + pod
	}
	if o := t.owners[name]; o != nil {
		return o
	}
	return &seriesOwner{name: name}
}

// hasRoom reports whether there is room for n more series of an owner.
func (t *tracker) hasRoom(o *seriesOwner, n int) bool {
	if o.name != "" && o.series+n > min(ownShare, t.most/2) && t.all+n > t.most/2 {
		return false
	}
	return t.all+n <= t.most
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
	if len(labels) < maxLabels { // leave room for a histogram's le
		set.labels = labels
	}
	return set
}

// newTracked returns nil for a series that cannot be recorded.
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

// update adds a series' value.
func (t *tracker) update(known *family, s *tracked, m *dto.Metric) {
	before := s.seen
	v := m.GetGauge().GetValue()
	if known.kind == Counter {
		v = m.GetCounter().GetValue()
	}
	if math.IsNaN(v) || math.IsInf(v, 0) || m.Histogram != nil && len(m.Histogram.Bucket)+1 != len(s.parts) {
		return // no valid value, or the buckets have changed: treat the series as absent
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

// count adds a counter's value; before is the last cycle with the series.
func (t *tracker) count(p *part, before uint64, v float64) {
	switch {
	case before == 0:
		// New, or absent for a minute and forgotten, so it is not known in which minute
		// the value rose.
		p.base, p.carry = v, 0
	case before <= t.base:
		// Seen in the previous minute, perhaps not in its last cycle.
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

// end returns the current minute and ends it; nil if it has only the sample that increases
// are relative to.
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

// forget drops the series that were absent in the whole current minute.
func (t *tracker) forget() {
	for name, f := range t.families {
		for set, s := range f.bySet {
			if s.seen > t.base {
				continue
			}
			delete(f.bySet, set)
			t.all -= len(s.parts)
			if set.owner.series -= len(s.parts); set.owner.series == 0 {
				delete(t.owners, set.owner.name)
			}
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
