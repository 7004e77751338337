package output

import (
	"bufio"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// EncodeTo writes families to w in the Prometheus text format 0.0.4, for standard output.
// As in a Textfile, series that would spoil the whole exposition are left out and logged.
// The error is that of w.
func EncodeTo(w io.Writer, families []*dto.MetricFamily, log *slog.Logger) error {
	var e encoder
	e.guard.log = log
	if _, err := e.encode(w, families); err != nil {
		return fmt.Errorf("write the metrics: %w", err)
	}
	return nil
}

// encoder reuses its buffers for the next exposition.
type encoder struct {
	buf   *bufio.Writer
	guard guard
}

// encode writes families to w and returns the number of bytes.
func (e *encoder) encode(w io.Writer, families []*dto.MetricFamily) (int64, error) {
	if e.buf == nil {
		e.buf = bufio.NewWriterSize(w, 64<<10)
	}
	e.buf.Reset(w)
	defer e.buf.Reset(nil)
	e.guard.begin()
	defer e.guard.end()
	var total int64
	for _, f := range families {
		if f = e.guard.check(f); f == nil {
			continue
		}
		n, err := expfmt.MetricFamilyToText(e.buf, f)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, e.buf.Flush()
}

// guard drops series that would make readers reject the whole exposition: node_exporter
// drops a file for one bad line, and exits at a label name that begins with __. expfmt does
// not check its input.
//
// The values are counters, gauges and classic histograms; other types are dropped.
type guard struct {
	log     *slog.Logger
	dropped uint64 // series dropped since the start

	logged map[complaint]struct{}
	names  map[string]struct{} // families of this exposition
	seed   maphash.Seed
	slices map[labelSlice]labelSum

	// seen is an open-addressing hash table of the series of one family. A slot of another
	// generation is free, so the table need not be cleared for each family.
	seen []slot
	gen  uint32
}

// complaint is a reason for dropping series of a family, which is logged once.
type complaint struct{ family, why string }

// labelSlice identifies a slice of labels by its address. All series of a network namespace
// share one slice, so it is checked once for dozens of families. Labels do not change
// during an exposition.
type labelSlice struct {
	first **dto.LabelPair
	n     int
}

// labelSum is the hash of a set of labels, or the reason why they are invalid.
type labelSum struct {
	hash uint64
	why  string
}

type slot struct {
	hash       uint64
	index, gen uint32
}

func (g *guard) begin() {
	if g.names == nil {
		g.names, g.slices, g.logged = map[string]struct{}{}, map[labelSlice]labelSum{}, map[complaint]struct{}{}
		g.seed = maphash.MakeSeed()
	}
}

// end forgets the labels of the exposition, so that their memory can be freed and reused.
func (g *guard) end() {
	clear(g.names)
	clear(g.slices)
}

// check returns f, a copy without the series to drop, or nil if none is left.
func (g *guard) check(f *dto.MetricFamily) *dto.MetricFamily {
	all := f.GetMetric()
	if len(all) == 0 {
		return nil
	}
	if why := g.family(f); why != "" {
		g.drop(f, all, why)
		return nil
	}
	g.forget(len(all))
	var kept []*dto.Metric
	whole := true
	for i, m := range all {
		why := g.series(f, m, i)
		if why != "" {
			if whole {
				whole, kept = false, append(make([]*dto.Metric, 0, len(all)), all[:i]...)
			}
			g.drop(f, all[i:i+1], why)
		} else if !whole {
			kept = append(kept, m)
		}
	}
	switch {
	case whole:
		return f
	case len(kept) == 0:
		return nil
	}
	return &dto.MetricFamily{Name: f.Name, Help: f.Help, Type: f.Type, Metric: kept}
}

// family returns why no series of f can be written; "" if they can.
func (g *guard) family(f *dto.MetricFamily) string {
	name := f.GetName()
	if !model.LegacyValidation.IsValidMetricName(name) {
		return "its name is not [a-zA-Z_:][a-zA-Z0-9_:]*"
	}
	switch f.GetType() {
	case dto.MetricType_COUNTER, dto.MetricType_GAUGE, dto.MetricType_HISTOGRAM:
	default:
		return "its type is neither counter nor gauge nor histogram"
	}
	if !utf8.ValidString(f.GetHelp()) {
		return "its HELP is not UTF-8"
	}
	names := []string{name}
	if f.GetType() == dto.MetricType_HISTOGRAM {
		names = append(names, name+"_bucket", name+"_sum", name+"_count")
	}
	for _, n := range names {
		if _, twice := g.names[n]; twice {
			return "another family has the same name"
		}
	}
	for _, n := range names {
		g.names[n] = struct{}{}
	}
	return ""
}

// series returns why the series with this index in f cannot be written; "" if it can.
func (g *guard) series(f *dto.MetricFamily, m *dto.Metric, index int) string {
	if m == nil {
		return "it is nil"
	}
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		if m.Counter == nil {
			return noValue
		}
		if v := m.Counter.GetValue(); math.IsNaN(v) || math.IsInf(v, 0) {
			return "a counter must be finite"
		}
	case dto.MetricType_HISTOGRAM:
		if why := histogramRefused(m); why != "" {
			return why
		}
	default:
		if m.Gauge == nil {
			return noValue
		}
	}
	if m.TimestampMs != nil {
		return "node_exporter refuses files with timestamps"
	}
	sum := g.labels(m.Label)
	if sum.why != "" {
		return sum.why
	}
	if g.twice(f, m.Label, sum.hash, index) {
		return "another series of its family has the same labels"
	}
	return ""
}

const noValue = "it has no value of its family's type"

// histogramRefused returns why a histogram cannot be written, "" if it can. expfmt adds
// the bucket of +Inf.
func histogramRefused(m *dto.Metric) string {
	h := m.Histogram
	if h == nil {
		return noValue
	}
	if h.SampleCountFloat != nil || h.Schema != nil {
		return "a histogram must have counts that are integers and buckets that have bounds"
	}
	if v := h.GetSampleSum(); math.IsNaN(v) || math.IsInf(v, 0) {
		return "the sum of a histogram must be finite"
	}
	bound, count := math.Inf(-1), uint64(0)
	for _, b := range h.Bucket {
		if b == nil || b.CumulativeCountFloat != nil || !(b.GetUpperBound() > bound) || math.IsInf(b.GetUpperBound(), 1) || b.GetCumulativeCount() < count {
			return "the bounds of a histogram must be finite and rise, and its counts may not fall"
		}
		bound, count = b.GetUpperBound(), b.GetCumulativeCount()
	}
	if h.GetSampleCount() < count {
		return "the bounds of a histogram must be finite and rise, and its counts may not fall"
	}
	for _, l := range m.Label {
		if l.GetName() == "le" {
			return "a histogram has a label le"
		}
	}
	return ""
}

// labels checks a set of labels. Its hash is independent of their order and ignores labels
// with an empty value, which are equivalent to no label.
func (g *guard) labels(ls []*dto.LabelPair) labelSum {
	if len(ls) == 0 {
		return labelSum{}
	}
	key := labelSlice{&ls[0], len(ls)}
	sum, ok := g.slices[key]
	if ok {
		return sum
	}
	for i, l := range ls {
		name, value := l.GetName(), l.GetValue()
		switch {
		case !model.LegacyValidation.IsValidLabelName(name):
			sum.why = "a label's name is not [a-zA-Z_][a-zA-Z0-9_]*"
		case strings.HasPrefix(name, "__"):
			sum.why = "a label's name begins with __, which ends node_exporter's process"
		case !utf8.ValidString(value):
			sum.why = "a label's value is not UTF-8"
		}
		for _, other := range ls[:i] {
			if other.GetName() == name {
				sum.why = "it has a label twice"
			}
		}
		if sum.why != "" {
			break
		}
		if value != "" {
			hi, lo := bits.Mul64(maphash.String(g.seed, name)|1, maphash.String(g.seed, value)+1)
			sum.hash += hi ^ lo
		}
	}
	g.slices[key] = sum
	return sum
}

// forget empties the table and makes room for n series.
func (g *guard) forget(n int) {
	if size := 1 << bits.Len(uint(2*n)); size > len(g.seen) {
		g.seen, g.gen = make([]slot, size), 0
	}
	if g.gen++; g.gen == 0 {
		clear(g.seen)
		g.gen = 1
	}
}

// twice reports whether an earlier series of f has the same labels. If not, it adds this
// series to the table.
func (g *guard) twice(f *dto.MetricFamily, ls []*dto.LabelPair, hash uint64, index int) bool {
	mask := uint64(1)<<bits.Len(uint(2*len(f.Metric))) - 1
	for i := hash & mask; ; i = (i + 1) & mask {
		s := &g.seen[i]
		if s.gen != g.gen {
			*s = slot{hash, uint32(index), g.gen}
			return false
		}
		if s.hash == hash && sameLabels(f.Metric[s.index].Label, ls) {
			return true
		}
	}
}

// sameLabels compares two sets of labels in any order. Names must be unique within each.
func sameLabels(a, b []*dto.LabelPair) bool {
	return includes(a, b) && includes(b, a)
}

func includes(all, some []*dto.LabelPair) bool {
next:
	for _, s := range some {
		if s.GetValue() == "" {
			continue
		}
		for _, l := range all {
			if l.GetName() == s.GetName() {
				if l.GetValue() == s.GetValue() {
					continue next
				}
				break
			}
		}
		return false
	}
	return true
}

// drop counts dropped series, and logs the first of each family and reason.
func (g *guard) drop(f *dto.MetricFamily, series []*dto.Metric, why string) {
	g.dropped += uint64(len(series))
	c := complaint{f.GetName(), why}
	if _, ok := g.logged[c]; ok || g.log == nil {
		return
	}
	g.logged[c] = struct{}{}
	g.log.Error("a series is left out, because node_exporter would reject the whole file with it; logged once",
		"family", c.family, "reason", why, "series", len(series), "first", labelsText(series[0].GetLabel()))
}

func labelsText(ls []*dto.LabelPair) string {
	b := []byte{'{'}
	for i, l := range ls {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, l.GetName()...)
		b = append(b, '=')
		b = strconv.AppendQuote(b, l.GetValue())
	}
	return string(append(b, '}'))
}
