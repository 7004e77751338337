package history

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Values are written as differences to predictions. The better a prediction, the
// smaller the difference, and the better DEFLATE compresses it. Predictions come from
// the bases: the values of the series in the file's first frame, rounded to whole
// numbers.
//
// The prediction for a gauge is its base. Each label set has a lead, the counter with
// the largest base, whose prediction is also its base. Every other counter of the set
// is predicted to change in proportion to its lead: a pod with twice the packets has
// twice the segments. The prediction for a series without a base, which appeared later,
// is 0.

// base is a series of the file's first frame.
type base struct {
	kind  Kind
	set   uint64
	value float64 // always a whole number
	lead  uint64  // series number of the set's lead; for a gauge its own
}

// basesOf returns the bases of a file, from the values of its first frame.
//
// Pods that get only health checks have nearly the same counts. For these, the mean
// over the pods predicts later minutes better than a pod's own first value. So the base
// of a counter is the mean over the values of the same metric and the same number of
// bits, if its own value differs from that mean by chance only: by at most the square
// root.
func basesOf(list []named, entries []entry) []base {
	bases := make([]base, len(list))
	for i, s := range list {
		bases[i] = base{kind: s.Kind, set: s.set}
	}
	type group struct {
		metric string
		bits   int
	}
	type sum struct{ of, n float64 }
	sums := map[group]sum{}
	groupOf := func(x entry) group { return group{x.of.Metric, bits.Len64(uint64(x.v))} }
	for _, x := range entries {
		if whole(x.v) {
			bases[x.series].value = x.v
			s := sums[groupOf(x)]
			sums[groupOf(x)] = sum{s.of + x.v, s.n + 1}
		}
	}
	for _, x := range entries {
		b, s := &bases[x.series], sums[groupOf(x)]
		if mean := math.Round(s.of / s.n); b.kind == Counter && math.Abs(b.value-mean) <= math.Sqrt(mean) {
			b.value = mean
		}
	}
	setLeads(bases)
	return bases
}

// setLeads sets the lead of each base.
func setLeads(bases []base) {
	leads := map[uint64]uint64{} // series number of the lead, by set
	for i, b := range bases {
		l, known := leads[b.set]
		if b.kind == Counter && (!known || b.value > bases[l].value) {
			leads[b.set] = uint64(i)
		}
	}
	for i := range bases {
		b := &bases[i]
		if b.lead = uint64(i); b.kind == Counter {
			b.lead = leads[b.set]
		}
	}
}

// predictor predicts the values of one frame. The prediction for a counter depends on
// the value of its lead, so values are written in two rounds: leads and gauges first.
type predictor struct {
	bases []base
	now   []float64 // value in the frame of each series with a base; 0 while unknown
}

func newPredictor(bases []base) *predictor {
	return &predictor{bases, make([]float64, len(bases))}
}

// round returns the round of a series, 0 or 1.
func (p *predictor) round(series uint64) int {
	if series < uint64(len(p.bases)) && p.bases[series].lead == series {
		return 0
	}
	return 1
}

// expect returns the prediction for a series.
func (p *predictor) expect(series uint64) float64 {
	if series >= uint64(len(p.bases)) {
		return 0
	}
	b := p.bases[series]
	lead, now := p.bases[b.lead].value, p.now[b.lead]
	if b.lead == series || lead == 0 || now == 0 {
		return b.value
	}
	return math.Round(b.value * now / lead) // IEEE 754 rounds in the same way on all machines
}

// learn records the value of a series for later predictions.
func (p *predictor) learn(series uint64, v float64) {
	if series < uint64(len(p.bases)) && whole(v) {
		p.now[series] = v
	}
}

// whole reports whether a value can be written as a difference.
func whole(v float64) bool { return v >= 0 && v < 1<<53 && v == math.Trunc(v) }

// A number is a code or, from codes on, a difference in zig-zag encoding.
const (
	codeFloat = iota // precedes the 8 bytes of a number that is not whole
	codeGone         // replaces the value of a gauge that no longer exists
	codePeak         // precedes a gauge's last and highest value; the last is the prediction for the highest
	codes
)

// appendValues appends which series have values, and then the values.
func (e *encoder) appendValues(b []byte, n *names) []byte {
	toggles, count, next := e.toggles[:0], uint64(0), uint64(0)
	entries := e.entries
	for s := range uint64(len(n.list)) {
		there := len(entries) > 0 && entries[0].series == s
		if there {
			entries = entries[1:]
		}
		if there != (s < uint64(len(n.bases))) {
			toggles = binary.AppendUvarint(toggles, s-next)
			count, next = count+1, s+1
		}
	}
	b = append(binary.AppendUvarint(b, count), toggles...)
	e.toggles = toggles
	p := newPredictor(n.bases)
	for round := range 2 {
		for _, x := range e.entries {
			if p.round(x.series) != round {
				continue
			}
			expected := p.expect(x.series)
			switch {
			case x.gone:
				b = append(b, codeGone)
			case x.of.Kind == Gauge && x.peaked():
				b = appendNumber(append(b, codePeak), x.v, expected)
				b = appendNumber(b, x.peak, x.v)
			default:
				b = appendNumber(b, x.v, expected)
			}
			p.learn(x.series, x.v)
		}
	}
	return b
}

// appendNumber appends a number as the difference to its prediction.
func appendNumber(b []byte, v, expected float64) []byte {
	if !whole(v) || !whole(expected) {
		return binary.LittleEndian.AppendUint64(append(b, codeFloat), math.Float64bits(v))
	}
	d := int64(v) - int64(expected)
	return binary.AppendUvarint(b, uint64(d<<1^d>>63)+codes)
}

// each reads the values, and yields them in the order of the series. Without bases, all
// values are lost.
func (t *table) each(c *content, yield func(series int, v, peak float64, gone bool)) (lost int, err error) {
	entries, r, err := c.present()
	if err != nil || len(t.bases) != c.based {
		return len(entries), err
	}
	p := newPredictor(t.bases)
	for round := range 2 {
		for i := range entries {
			x := &entries[i]
			if p.round(x.series) != round {
				continue
			}
			expected := p.expect(x.series)
			switch {
			case r.code(codeGone):
				x.gone = true
			case r.code(codePeak):
				x.v = r.number(expected)
				x.peak = r.number(x.v)
			default:
				x.v = r.number(expected)
				x.peak = x.v
			}
			p.learn(x.series, x.v)
		}
	}
	if r.bad {
		return 0, errDamaged
	}
	for _, x := range entries {
		yield(int(x.series), x.v, x.peak, x.gone)
	}
	return 0, nil
}

// present returns which series have a value, and a cursor at the values.
func (c *content) present() ([]entry, cursor, error) {
	r := c.values
	toggles := r.count(min(maxFileSeries, len(r.b)))
	if c.based > toggles+len(r.b) {
		return nil, r, errDamaged // each value takes at least one byte
	}
	var entries []entry
	next := 0
	for ; toggles > 0; toggles-- {
		s := next + r.count(maxFileSeries)
		if r.bad || s >= maxFileSeries {
			return nil, r, errDamaged
		}
		for ; next < min(s, c.based); next++ {
			entries = append(entries, entry{series: uint64(next)})
		}
		if next = s + 1; s >= c.based {
			entries = append(entries, entry{series: uint64(s)})
		}
	}
	for ; next < c.based; next++ {
		entries = append(entries, entry{series: uint64(next)})
	}
	return entries, r, nil
}

// code consumes the next byte if it is the given code, and reports whether it was.
func (c *cursor) code(code byte) bool {
	if len(c.b) == 0 || c.b[0] != code {
		return false
	}
	c.b = c.b[1:]
	return true
}

// number reads a number, given its prediction.
func (c *cursor) number(expected float64) float64 {
	u := c.uint()
	if u == codeFloat {
		b := c.bytes(8)
		if b == nil {
			return 0
		}
		v := math.Float64frombits(binary.LittleEndian.Uint64(b))
		if math.IsNaN(v) || math.IsInf(v, 0) { // the recorder writes none
			c.bad = true
			return 0
		}
		return v
	}
	z := u - codes
	v := float64(int64(expected) + int64(z>>1^-(z&1)))
	if u < codes || !whole(expected) || !whole(v) {
		c.bad = true
		return 0
	}
	return v
}
