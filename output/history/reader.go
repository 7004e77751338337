package history

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Query selects what to read.
type Query struct {
	// Since and Until select the minutes that start at or after Since and before Until. The
	// zero value is no limit.
	Since, Until time.Time
	// Keep selects series; nil: all. It is called once for each series of a file.
	Keep func(*Series) bool
}

// Minute is the record of one minute.
type Minute struct {
	// Start is the start of the minute on the wall clock.
	Start time.Time
	// From and To are the wall-clock times of the sample that the increases are relative to, and
	// of the last sample of the minute. Usually From is the previous minute's To. If the
	// daemon did not run, the machine was suspended, or minutes could not be written, From
	// may be another sample, or be long ago.
	From, To time.Time
	// Elapsed is the time between the two samples by a clock that cannot be set. Asleep is
	// the part of it in which the machine was suspended. If To - From differs from Elapsed,
	// the clock was set.
	Elapsed, Asleep time.Duration
	// Cycles is the number of samples after From.
	Cycles int
	// First: the first minute of a run of the daemon. The time since the previous minute
	// was not sampled.
	First bool
	// Unread: minutes before this one could not be read.
	Unread bool
	// Fresh: gauges that are not in Samples are 0 or do not exist. Otherwise they are as in
	// the previous minute. The first minute of a query and of each file is fresh.
	Fresh bool
	// Samples are the values of the series that the query keeps: counters that increased,
	// and gauges that moved by more than an eighth in this minute or the previous one.
	Samples []Sample
}

// Sample is the value of one series in one minute. Equal series of one file share one
// *Series.
type Sample struct {
	*Series
	// Value is a counter's increase, above 0, or a gauge's last value.
	Value float64
	// Peak is the highest value of a gauge in the minute.
	Peak float64
	// Gone: the gauge existed before and no longer does.
	Gone bool
}

// Damage counts what could not be read.
type Damage struct {
	Frames  int   // damaged frames, a minute each; several in a row may count as one
	Foreign int   // frames of a format that this version does not know, a minute each
	Bytes   int64 // bytes outside frames, such as a truncated end
	Values  int   // values whose series lost its name with damaged frames
	Files   []error
}

// Err returns an error that describes the damage to the history in a folder. A truncated
// end is no damage: a daemon that was killed leaves one. It returns nil if there is none.
func (d *Damage) Err(dir string) error {
	errs := slices.Clone(d.Files)
	if d.Frames > 0 || d.Values > 0 {
		errs = append(errs, fmt.Errorf("%d minutes and %d values of the history in %s are damaged and left out", d.Frames, d.Values, dir))
	}
	if d.Foreign > 0 {
		errs = append(errs, fmt.Errorf("%d minutes of the history in %s are left out: another version of nodeskoop wrote them, in a format that this one does not know", d.Foreign, dir))
	}
	return errors.Join(errs...)
}

// Reader reads a history, also while a daemon writes it. It is not safe for concurrent use.
type Reader struct {
	Dir    string
	Damage Damage // damage so far

	unread bool // a frame or file could not be read since the last minute
}

// Span returns the start of the oldest file, or the zero time if there is none, and the
// size of all files on disk.
func (r *Reader) Span() (oldest time.Time, bytes int64, err error) {
	list, err := r.files()
	for i, f := range list {
		if i == 0 {
			oldest = f.start
		}
		bytes += f.size
	}
	return oldest, bytes, err
}

func (r *Reader) files() ([]file, error) {
	root, err := os.OpenRoot(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the history: %w", err)
	}
	defer root.Close()
	list, err := files(root)
	if err != nil {
		return nil, fmt.Errorf("list the history: %w", err)
	}
	return list, nil
}

// Minutes yields the minutes of a query in the order of the wall clock. A minute occurs
// twice if the daemon was restarted in it or the clock was set back; the increases of both
// add up. Damaged parts are left out and counted in r.Damage. An error means that the
// history cannot be read, and ends the sequence.
func (r *Reader) Minutes(q Query) iter.Seq2[*Minute, error] {
	return func(yield func(*Minute, error) bool) {
		list, err := r.files()
		if err != nil {
			yield(nil, err)
			return
		}
		for len(list) > 0 {
			n := 1
			for n < len(list) && list[n].start.Equal(list[0].start) {
				n++
			}
			hour := list[:n]
			list = list[n:]
			if !q.Until.IsZero() && !hour[0].start.Before(q.Until) {
				return
			}
			// A file covers an hour at most.
			if !q.Since.IsZero() && hour[0].start.Add(time.Hour).Before(q.Since) {
				continue
			}
			if !r.hour(hour, q, yield) {
				return
			}
		}
	}
}

// hour yields the minutes of the files of one hour.
func (r *Reader) hour(all []file, q Query, yield func(*Minute, error) bool) bool {
	type next struct {
		m    *Minute
		more func() (*Minute, bool)
	}
	var heads []next
	for _, f := range all {
		b, err := r.read(f.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the writer has removed it to make room
		}
		if err != nil {
			r.Damage.Files, r.unread = append(r.Damage.Files, err), true
			continue
		}
		more, stop := iter.Pull(r.minutes(b, q))
		defer stop()
		if m, ok := more(); ok {
			heads = append(heads, next{m, more})
		}
	}
	for len(heads) > 0 {
		first := 0
		for i := range heads {
			if heads[i].m.Start.Before(heads[first].m.Start) {
				first = i
			}
		}
		m := heads[first].m
		var ok bool
		if heads[first].m, ok = heads[first].more(); !ok {
			heads = slices.Delete(heads, first, first+1)
		}
		if !yield(m, nil) {
			return false
		}
	}
	return true
}

// read reads a file, up to the largest valid size.
func (r *Reader) read(name string) ([]byte, error) {
	root, err := os.OpenRoot(r.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRead))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(r.Dir, name), err)
	}
	return b, nil
}

// frames yields the uncompressed payloads of a file. Each is valid until the next.
func (r *Reader) frames(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var x inflater
		for len(b) > 0 {
			length, sum, ok := header(b)
			if !ok {
				n := untilHeader(b)
				r.Damage.Bytes += int64(n)
				// A kill leaves the beginning of a header at the end, and a crash zeros.
				if n < len(b) || n >= headerSize && len(bytes.Trim(b, "\x00")) > 0 {
					r.lose(&r.Damage.Frames)
				}
				b = b[n:]
				continue
			}
			if length > len(b)-headerSize {
				r.Damage.Bytes += int64(len(b)) // the file is truncated
				return
			}
			payload, known := b[headerSize:headerSize+length], string(b[:len(magic)]) == magic
			b = b[headerSize+length:]
			if crc32.Checksum(payload, castagnoli) != sum {
				r.lose(&r.Damage.Frames)
				continue
			}
			if !known {
				r.lose(&r.Damage.Foreign)
				continue
			}
			plain, err := x.plain(payload)
			if err != nil {
				r.lose(&r.Damage.Frames)
				continue
			}
			if !yield(plain) {
				return
			}
		}
	}
}

// untilHeader returns the number of bytes before the next header, all if there is none.
func untilHeader(b []byte) int {
	for n := 1; ; n++ {
		i := bytes.IndexByte(b[n:], magic[0])
		if i < 0 {
			return len(b)
		}
		n += i
		if _, _, ok := header(b[n:]); ok {
			return n
		}
	}
}

// lose counts a frame that cannot be read.
func (r *Reader) lose(count *int) {
	*count++
	r.unread = true
}

// table has the names defined by a file's frames, by number.
type table struct {
	texts  map[int]string
	sets   map[int][]Label
	series map[int]*Series // nil: the series is known, and not selected
	bytes  int
	labels int
	bases  []base // by series; nil: unknown
	keep   func(*Series) bool
}

func newTable(keep func(*Series) bool) *table {
	return &table{texts: map[int]string{}, sets: map[int][]Label{}, series: map[int]*Series{}, keep: keep}
}

// learn adds the names of a frame, and reports whether they are valid. Known names stay. A
// set with unknown strings, which were lost with damaged frames, is unknown, too, and so
// are its series.
func (t *table) learn(c *content) bool {
	for i, s := range c.texts {
		if _, known := t.texts[c.firstText+i]; known {
			continue
		}
		if t.bytes += len(s) + 16; t.bytes > 2*maxStrings {
			return false
		}
		t.texts[c.firstText+i] = s
	}
	for i, raw := range c.sets {
		if _, known := t.sets[c.firstSet+i]; known {
			continue
		}
		if t.labels += len(raw)/2 + 1; t.labels > 2*maxAllLbls {
			return false
		}
		set, all := make([]Label, len(raw)/2), true
		for j := range set {
			name, ok := t.texts[raw[2*j]]
			value, also := t.texts[raw[2*j+1]]
			set[j], all = Label{name, value}, all && ok && also
		}
		if all {
			t.sets[c.firstSet+i] = set
		}
	}
	for i, raw := range c.series {
		n := c.firstName + i
		if _, known := t.series[n]; known {
			continue
		}
		if n >= maxFileSeries {
			return false
		}
		s := &Series{Kind: raw.kind}
		var ok, also bool
		s.Metric, ok = t.texts[raw.metric]
		s.Labels, also = t.sets[raw.set]
		if !ok || !also {
			continue
		}
		if t.keep != nil && !t.keep(s) {
			s = nil
		}
		t.series[n] = s
	}
	if t.bases == nil {
		t.bases = c.bases
	}
	return true
}

// minutes yields the selected minutes of one file.
func (r *Reader) minutes(b []byte, q Query) iter.Seq[*Minute] {
	return func(yield func(*Minute) bool) {
		t := newTable(q.Keep)
		fresh := true
		levels := map[int]Sample{} // gauges before Since
		for plain := range r.frames(b) {
			c, err := parse(plain)
			if err != nil || !t.learn(c) {
				r.lose(&r.Damage.Frames)
				continue
			}
			if !q.Until.IsZero() && !c.start.Before(q.Until) {
				return
			}
			if !q.Since.IsZero() && c.start.Before(q.Since) {
				_, _ = t.each(c, func(n int, v, _ float64, gone bool) {
					if s := t.series[n]; s != nil && s.Kind == Gauge {
						levels[n] = Sample{s, v, v, gone}
					}
				})
				continue
			}
			m := &Minute{Start: c.start, From: c.from, To: c.to, Elapsed: c.boot, Asleep: max(0, c.boot-c.mono), Cycles: c.cycles, First: c.first, Unread: r.unread, Fresh: fresh}
			lost, err := t.each(c, func(n int, v, peak float64, gone bool) {
				s, known := t.series[n]
				switch {
				case !known, s != nil && s.Kind == Counter && v <= 0:
					r.Damage.Values++
				case s != nil:
					delete(levels, n)
					m.Samples = append(m.Samples, Sample{s, v, peak, gone})
				}
			})
			if err != nil {
				r.lose(&r.Damage.Frames)
				continue
			}
			fresh, r.unread = false, false
			r.Damage.Values += lost
			for _, n := range slices.Sorted(maps.Keys(levels)) {
				if s := levels[n]; !s.Gone && s.Value != 0 {
					m.Samples = append(m.Samples, s)
				}
			}
			clear(levels)
			if !yield(m) {
				return
			}
		}
	}
}
