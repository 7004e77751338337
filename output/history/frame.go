package history

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// A file is a sequence of frames, one per minute:
//
//	magic     4 bytes
//	length    uint32, of the payload
//	sum       uint32, CRC-32C of the payload
//	header    uint32, CRC-32C of the 12 bytes before
//	payload   compressed on its own
//
// Integers of fixed size are little-endian. After a damaged header the reader searches for
// the next header; after a damaged payload it skips the frame's length. So a flipped bit
// costs one minute, and a truncation only what was cut off. The header is the same in all
// versions of the format, and the reader skips the frames of other versions.
//
// The payload is compressed by DEFLATE (RFC 1951). Its integers are varints as in
// encoding/binary:
//
//	flags     bit 0: the first minute of a run of the daemon
//	start     of the minute, in milliseconds since 1970
//	from, to  of the sample that increases are against and of the last one, in
//	          milliseconds after start (from may be less)
//	boot, mono  the milliseconds between the two by CLOCK_BOOTTIME and CLOCK_MONOTONIC
//	cycles
//	strings   the number of the first, how many, and each with its length
//	sets      of labels: the number of the first, how many, and of each how many
//	          labels, with name and value by string
//	series    how many of the file have a base, the number of the first that follows, how
//	          many, then of each its metric's string, as the difference to that of the one
//	          before, times two, plus its kind; then of each its set, as such a difference;
//	          then the bases of those that have one
//	toggles   series with a base that have no value, and series without a base that have
//	          one: how many, then of each how many series are between the one before and it
//	values    as in values.go
//
// Each file numbers its own strings, sets and series, from 0. A frame defines those that
// are new in it, and repeats those that were new in the previous frame. Likewise a changed
// gauge is written in the frame of the change and in the next one. So after the loss of any
// single frame the rest of the file still has all names and all gauge levels. Gauges start
// at 0 in each file: a gauge that was not written is 0 or does not exist.
//
// The bases are in a file's first two frames. If both are lost, so are nearly all names, and
// the other frames' values count as lost.
const (
	magic      = "nsk\x02" // the last byte is the version of the format
	anyMagic   = 3         // how many bytes of magic the frames of all versions share
	headerSize = 16
	suffix     = ".nsh" // of file names

	maxPayload = 4 << 20  // maximum size of a compressed payload
	maxPlain   = 16 << 20 // maximum size of an uncompressed payload
	maxFile    = 16 << 20 // size at which a writer starts another file
	maxRead    = maxFile + maxPayload + headerSize
	maxStrings = 8 << 20 // bytes of all strings in a file
	maxLabels  = 64      // labels of a series
	maxAllLbls = 1 << 20 // labels of all sets in a file

	flagFirst = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged is the error for a payload that has the right checksum but cannot be parsed.
// Another version or a bug wrote it.
var errDamaged = errors.New("the frame's content is invalid")

// names assigns numbers to the strings, label sets and series of one file, for the writer.
type names struct {
	strings map[string]uint64
	texts   []string
	setsOf  map[string]uint64 // keyed by all names and values, as add builds it
	sets    [][]Label
	series  map[*Series]uint64
	list    []named
	told    []told // gauges as last written, by series
	bases   []base // bases by series: those of the first frame
	frames  int
	bytes   int // total length of the strings
	labels  int // labels of all sets
	key     []byte

	// The first string, set and series that were new in the previous frame, and in the
	// current one.
	before, now [3]int
}

// named is a series with the number of its set.
type named struct {
	*Series
	set uint64
}

// told is the last written value of a gauge.
type told struct {
	value float64 // 0 also if the gauge does not exist
	frame int     // frame that first had this value; 0: none
}

func newNames() *names {
	return &names{strings: map[string]uint64{}, setsOf: map[string]uint64{}, series: map[*Series]uint64{}}
}

// full reports whether the file has reached a limit, so that another must be started.
func (n *names) full() bool {
	return len(n.list) >= maxSeries || n.bytes >= maxStrings/2 || n.labels >= maxAllLbls/2
}

func (n *names) text(s string) uint64 {
	i, ok := n.strings[s]
	if !ok {
		i = uint64(len(n.texts))
		n.strings[s] = i
		n.texts = append(n.texts, s)
		n.bytes += len(s)
	}
	return i
}

// add numbers a series, its metric and its labels.
func (n *names) add(s *Series) {
	n.key = n.key[:0]
	for _, l := range s.Labels {
		n.key = append(append(n.key, l.Name...), 0xff) // 0xff does not occur in UTF-8
		n.key = append(append(n.key, l.Value...), 0xff)
	}
	set, known := n.setsOf[string(n.key)]
	if !known {
		set = uint64(len(n.sets))
		n.setsOf[string(n.key)] = set
		n.sets = append(n.sets, s.Labels)
		n.labels += len(s.Labels) + 1
		for _, l := range s.Labels {
			n.text(l.Name)
			n.text(l.Value)
		}
	}
	n.text(s.Metric)
	n.series[s] = uint64(len(n.list))
	n.list = append(n.list, named{s, set})
	n.told = append(n.told, told{})
}

// tell records a gauge's value, and reports whether it must be written: because it has
// changed, or did in the previous frame.
func (n *names) tell(series uint64, v float64) bool {
	t := &n.told[series]
	switch {
	case differs(t.value, v):
		*t = told{v, n.frames}
	case t.frame == 0 || t.frame < n.frames-1:
		return false
	}
	t.value = v
	return true
}

// differs reports whether a gauge has changed enough to be written again: by more than an
// eighth, or to or from 0.
func differs(was, is float64) bool {
	if was == 0 || is == 0 {
		return was != is
	}
	return math.Abs(is-was) > math.Abs(was)/8
}

// peaked reports whether a gauge's highest value must be written beside its last.
func (v *value) peaked() bool { return v.peak > v.v && differs(v.v, v.peak) }

// entry is a value to be written into a frame.
type entry struct {
	series uint64
	value
	gone bool
}

// encoder makes frames. It reuses its buffers.
type encoder struct {
	entries []entry
	fresh   []*Series
	there   []bool // by series: the gauge exists
	plain   []byte
	toggles []byte
	out     bytes.Buffer
	deflate *flate.Writer
}

// frame encodes a minute, and numbers new names. The bytes are valid until the next call.
func (e *encoder) frame(n *names, m *minute) ([]byte, error) {
	e.choose(n, m)
	if n.frames == 1 {
		n.bases = basesOf(n.list, e.entries)
	}
	b := e.plain[:0]
	flags := uint64(0)
	if m.first {
		flags |= flagFirst
	}
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendVarint(b, m.start.UnixMilli())
	b = binary.AppendVarint(b, m.from.wall.Sub(m.start).Milliseconds())
	b = binary.AppendVarint(b, m.to.wall.Sub(m.start).Milliseconds())
	b = binary.AppendUvarint(b, uint64(max(0, m.to.boot-m.from.boot).Milliseconds()))
	b = binary.AppendUvarint(b, uint64(max(0, m.to.mono-m.from.mono).Milliseconds()))
	b = binary.AppendUvarint(b, uint64(m.cycles))

	first := n.before
	b = binary.AppendUvarint(b, uint64(first[0]))
	b = binary.AppendUvarint(b, uint64(len(n.texts)-first[0]))
	for _, s := range n.texts[first[0]:] {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	b = binary.AppendUvarint(b, uint64(first[1]))
	b = binary.AppendUvarint(b, uint64(len(n.sets)-first[1]))
	for _, set := range n.sets[first[1]:] {
		b = binary.AppendUvarint(b, uint64(len(set)))
		for _, l := range set {
			b = binary.AppendUvarint(b, n.strings[l.Name])
			b = binary.AppendUvarint(b, n.strings[l.Value])
		}
	}
	b = binary.AppendUvarint(b, uint64(len(n.bases)))
	b = binary.AppendUvarint(b, uint64(first[2]))
	fresh := n.list[first[2]:]
	b = binary.AppendUvarint(b, uint64(len(fresh)))
	var metric, set int64
	for _, s := range fresh {
		m := int64(n.strings[s.Metric])
		b = binary.AppendVarint(b, (m-metric)<<1|int64(s.Kind))
		metric = m
	}
	for _, s := range fresh {
		b = binary.AppendVarint(b, int64(s.set)-set)
		set = int64(s.set)
	}
	for _, base := range n.bases[min(first[2], len(n.bases)):] {
		b = binary.AppendUvarint(b, uint64(base.value))
	}
	b = e.appendValues(b, n)
	e.plain = b
	if len(b) > maxPlain {
		return nil, fmt.Errorf("a minute has %d bytes, more than the %d that a frame may have", len(b), maxPlain)
	}
	return e.seal(b)
}

// choose selects the values to write, sorted by series number.
func (e *encoder) choose(n *names, m *minute) {
	e.entries, e.fresh = e.entries[:0], e.fresh[:0]
	n.before, n.now = n.now, [3]int{len(n.texts), len(n.sets), len(n.list)}
	n.frames++
	for _, v := range m.counters {
		if _, known := n.series[v.of]; !known {
			e.fresh = append(e.fresh, v.of)
		}
	}
	for _, v := range m.gauges {
		if _, known := n.series[v.of]; !known && (v.v != 0 || v.peaked()) {
			e.fresh = append(e.fresh, v.of)
		}
	}
	// Neighbouring numbers then have similar values, which compress better.
	slices.SortFunc(e.fresh, compareSeries)
	for _, s := range e.fresh {
		n.add(s)
	}
	for _, v := range m.counters {
		e.entries = append(e.entries, entry{series: n.series[v.of], value: v})
	}
	e.there = slices.Grow(e.there[:0], len(n.list))[:len(n.list)]
	clear(e.there)
	for _, v := range m.gauges {
		i, known := n.series[v.of]
		if !known {
			continue // a gauge that was not written is 0
		}
		e.there[i] = true
		if told := n.tell(i, v.v); told || v.peaked() {
			e.entries = append(e.entries, entry{series: i, value: v})
		}
	}
	for i, s := range n.list {
		if s.Kind == Gauge && !e.there[i] && n.tell(uint64(i), 0) {
			e.entries = append(e.entries, entry{series: uint64(i), value: value{of: s.Series}, gone: true})
		}
	}
	slices.SortFunc(e.entries, func(a, b entry) int { return int(int64(a.series) - int64(b.series)) })
}

func compareSeries(a, b *Series) int {
	if c := strings.Compare(a.Metric, b.Metric); c != 0 {
		return c
	}
	return slices.CompareFunc(a.Labels, b.Labels, func(x, y Label) int {
		if c := strings.Compare(x.Value, y.Value); c != 0 {
			return c
		}
		return strings.Compare(x.Name, y.Name)
	})
}

// seal makes a frame from an uncompressed payload.
func (e *encoder) seal(plain []byte) ([]byte, error) {
	e.out.Reset()
	e.out.Write(make([]byte, headerSize))
	if e.deflate == nil {
		w, err := flate.NewWriter(&e.out, flate.BestCompression)
		if err != nil {
			return nil, err
		}
		e.deflate = w
	} else {
		e.deflate.Reset(&e.out)
	}
	if _, err := e.deflate.Write(plain); err != nil {
		return nil, err
	}
	if err := e.deflate.Close(); err != nil {
		return nil, err
	}
	b := e.out.Bytes()
	payload := b[headerSize:]
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("a minute has %d bytes compressed, more than the %d that a frame may have", len(payload), maxPayload)
	}
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[:12], castagnoli))
	return b, nil
}

// header parses the header at the start of b, of any version. ok is false if there is none.
func header(b []byte) (length int, sum uint32, ok bool) {
	if len(b) < headerSize || string(b[:anyMagic]) != magic[:anyMagic] || binary.LittleEndian.Uint32(b[12:]) != crc32.Checksum(b[:12], castagnoli) {
		return 0, 0, false
	}
	n := binary.LittleEndian.Uint32(b[4:])
	return int(n), binary.LittleEndian.Uint32(b[8:]), n <= maxPayload
}

// content is a parsed payload, except for its values.
type content struct {
	first           bool
	start, from, to time.Time
	boot, mono      time.Duration
	cycles          int
	firstText       int
	texts           []string
	firstSet        int
	sets            [][]int // of each set, the string numbers of the names and values of its labels
	firstName       int
	series          []rawSeries
	based           int    // how many of the file's series have a base
	bases           []base // nil if another frame has them
	values          cursor // position of the toggles
}

// rawSeries is a series with the numbers of its metric and label set.
type rawSeries struct {
	kind        Kind
	metric, set int
}

// cursor reads a payload. After the first error it reads zeros.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.b)
	return c.took(v, n)
}

func (c *cursor) took(v uint64, n int) uint64 {
	if n <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

// ms reads a signed number of milliseconds, within the range of valid times.
func (c *cursor) ms() int64 {
	v, n := binary.Varint(c.b)
	c.took(0, n)
	if v < -1<<50 || v > 1<<50 {
		c.bad = true
		return 0
	}
	return v
}

// step reads a difference between two string or set numbers.
func (c *cursor) step() int {
	v, n := binary.Varint(c.b)
	c.took(0, n)
	if v < -maxStrings || v > maxStrings {
		c.bad = true
		return 0
	}
	return int(v)
}

// count reads a number of at most limit.
func (c *cursor) count(limit int) int {
	v := c.uint()
	if v > uint64(limit) {
		c.b, c.bad = nil, true
		return 0
	}
	return int(v)
}

func (c *cursor) bytes(n int) []byte {
	if n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

// inflater decompresses payloads into a buffer that it reuses.
type inflater struct {
	r   io.ReadCloser
	buf bytes.Buffer
}

func (x *inflater) plain(payload []byte) ([]byte, error) {
	src := bytes.NewReader(payload)
	if x.r == nil {
		x.r = flate.NewReader(src)
	} else if err := x.r.(flate.Resetter).Reset(src, nil); err != nil {
		return nil, err
	}
	x.buf.Reset()
	if _, err := x.buf.ReadFrom(io.LimitReader(x.r, maxPlain+1)); err != nil {
		return nil, err
	}
	if x.buf.Len() > maxPlain {
		return nil, errDamaged
	}
	return x.buf.Bytes(), nil
}

// parse parses a payload up to its values.
func parse(plain []byte) (*content, error) {
	c := &content{values: cursor{b: plain}}
	r := &c.values
	c.first = r.uint()&flagFirst != 0
	start := r.ms()
	c.start = time.UnixMilli(start)
	c.from = time.UnixMilli(start + r.ms())
	c.to = time.UnixMilli(start + r.ms())
	c.boot = time.Duration(r.count(1<<42)) * time.Millisecond
	c.mono = time.Duration(r.count(1<<42)) * time.Millisecond
	c.cycles = r.count(math.MaxInt32)
	c.firstText = r.count(maxStrings)
	for n := r.count(min(maxStrings, len(r.b))); n > 0 && !r.bad; n-- {
		c.texts = append(c.texts, string(r.bytes(r.count(maxName))))
	}
	c.firstSet = r.count(maxFileSeries)
	labels := 0
	for n := r.count(min(maxFileSeries, len(r.b))); n > 0 && !r.bad; n-- {
		all := r.count(maxLabels)
		if labels += all; labels > maxAllLbls {
			return nil, errDamaged
		}
		set := make([]int, 2*all)
		for i := range set {
			set[i] = r.count(maxStrings)
		}
		c.sets = append(c.sets, set)
	}
	c.based = r.count(maxFileSeries)
	c.firstName = r.count(maxFileSeries)
	c.series = make([]rawSeries, r.count(min(maxFileSeries, len(r.b))))
	metric, set := 0, 0
	for i := range c.series {
		v := r.step()
		metric += v >> 1
		c.series[i] = rawSeries{kind: Kind(v & 1), metric: metric}
	}
	for i := range c.series {
		set += r.step()
		c.series[i].set = set
	}
	if c.firstName == 0 && c.based <= len(c.series) {
		c.bases = make([]base, c.based)
		for i, s := range c.series[:c.based] {
			c.bases[i] = base{kind: s.kind, set: uint64(s.set), value: float64(r.count(1<<53 - 1))}
		}
		setLeads(c.bases)
	}
	for _, t := range []time.Time{c.start, c.from, c.to} {
		if y := t.UTC().Year(); y < 1 || y > 9998 { // in no zone a year that RFC 3339 cannot write
			r.bad = true
		}
	}
	if r.bad {
		return nil, errDamaged
	}
	return c, nil
}

// maxFileSeries is the most series in a file: the last frame may exceed the limit of full.
const maxFileSeries = 2 * maxSeries
