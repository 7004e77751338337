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

// Query says what to read.
type Query struct {
	// Since and Until select the minutes that begin at Since or later and before
	// Until. The zero value is no limit.
	Since, Until time.Time
	// Keep selects series; nil: all. It is asked once for each series of a file.
	Keep func(*Series) bool
}

// Minute is what was recorded of a minute.
type Minute struct {
	// Start is when the minute of the clock began.
	Start time.Time
	// From and To are the times of the sample that the increases are against and of
	// the last sample of the minute, as the clock on the wall had them then. Usually
	// From is the To of the minute before; where the daemon did not run, the machine
	// was suspended or minutes could not be written, it is not, or From is long ago.
	From, To time.Time
	// Elapsed is how much time passed between the two samples by a clock that nobody
	// sets, and Asleep for how much of it the machine was suspended. Where To - From
	// is another time, the clock was set.
	Elapsed, Asleep time.Duration
	// Cycles is how many samples were taken after From.
	Cycles int
	// First of a run of the daemon: what came between it and the minute before was
	// not sampled.
	First bool
	// Fresh: gauges that are not among Samples are 0, or not there. Otherwise they
	// are what they were in the minute before. The first minute of a query is fresh,
	// and so is that of each file.
	Fresh bool
	// Samples are those of the series that the query keeps: counters that rose, and
	// gauges that moved by more than an eighth in the minute or the one before it.
	Samples []Sample
}

// Sample is one series in one minute. Series of one file that are the same are one
// *Series.
type Sample struct {
	*Series
	// Value is a counter's increase, above 0, or a gauge's last value.
	Value float64
	// Peak is the highest value of a gauge in the minute.
	Peak float64
	// Gone: the series of a gauge was there before and is not there any more.
	Gone bool
}

// Damage is what could not be read.
type Damage struct {
	Frames int   // whose content is damaged: each is a minute
	Bytes  int64 // that belong to no frame, such as a torn end
	Values int   // whose series has lost its name with damaged frames
	Files  []error
}

// Reader reads a history. A daemon may write it meanwhile. It is not for two
// goroutines at a time.
type Reader struct {
	Dir    string
	Damage Damage // met so far
}

// Span tells when the oldest file of the history begins, the zero time if there is
// none, and how much all take on the disk.
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

// Minutes are those of a query, in the order of the clock on the wall. Two of the
// same minute are there where the daemon was restarted in it or the clock was set
// back; their increases add up. What is damaged is left out and is in r.Damage. An
// error is the last thing: the history cannot be read at all.
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
			// A file has an hour at most.
			if !q.Since.IsZero() && hour[0].start.Add(time.Hour).Before(q.Since) {
				continue
			}
			if !r.hour(hour, q, yield) {
				return
			}
		}
	}
}

// hour yields the minutes of the files of an hour.
func (r *Reader) hour(all []file, q Query, yield func(*Minute, error) bool) bool {
	type next struct {
		m    *Minute
		more func() (*Minute, bool)
	}
	var heads []next
	for _, f := range all {
		b, err := r.read(f.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed to make room
		}
		if err != nil {
			r.Damage.Files = append(r.Damage.Files, err)
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

// read reads a file. One that is larger than any is read as far as any goes.
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

// frames yields the payloads of a file, plain. They are valid until the next one.
func (r *Reader) frames(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var x inflater
		for len(b) > 0 {
			length, sum, ok := header(b)
			if !ok {
				next := len(b)
				if i := bytes.IndexByte(b[1:], magic[0]); i >= 0 {
					next = 1 + i
				}
				r.Damage.Bytes += int64(next)
				b = b[next:]
				continue
			}
			if length > len(b)-headerSize {
				r.Damage.Bytes += int64(len(b)) // torn off
				return
			}
			payload := b[headerSize : headerSize+length]
			b = b[headerSize+length:]
			if crc32.Checksum(payload, castagnoli) != sum {
				r.Damage.Frames++
				continue
			}
			plain, err := x.plain(payload)
			if err != nil {
				r.Damage.Frames++
				continue
			}
			if !yield(plain) {
				return
			}
		}
	}
}

// table is what the frames of a file name, by number.
type table struct {
	texts  map[int]string
	sets   map[int][]Label
	series map[int]*Series // nil: known, and not kept
	bytes  int
	labels int
	keep   func(*Series) bool
}

func newTable(keep func(*Series) bool) *table {
	return &table{texts: map[int]string{}, sets: map[int][]Label{}, series: map[int]*Series{}, keep: keep}
}

// learn takes the names of a frame. Those that are known stay as they are. It
// reports whether they make sense. A set whose strings are lost with damaged frames is
// lost, too, and so are its series.
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
	return true
}

// minutes yields those of one file that a query asks for.
func (r *Reader) minutes(b []byte, q Query) iter.Seq[*Minute] {
	return func(yield func(*Minute) bool) {
		t := newTable(q.Keep)
		fresh := true
		levels := map[int]Sample{} // of gauges, in what comes before Since
		for plain := range r.frames(b) {
			c, err := parse(plain)
			if err != nil || !t.learn(c) {
				r.Damage.Frames++
				continue
			}
			if !q.Until.IsZero() && !c.start.Before(q.Until) {
				return
			}
			if !q.Since.IsZero() && c.start.Before(q.Since) {
				_ = c.each(func(n int, v, _ float64, gone bool) {
					if s := t.series[n]; s != nil && s.Kind == Gauge {
						levels[n] = Sample{s, v, v, gone}
					}
				})
				continue
			}
			m := &Minute{Start: c.start, From: c.from, To: c.to, Elapsed: c.boot, Asleep: max(0, c.boot-c.mono), Cycles: c.cycles, First: c.first, Fresh: fresh}
			fresh = false
			err = c.each(func(n int, v, peak float64, gone bool) {
				s, known := t.series[n]
				switch {
				case !known:
					r.Damage.Values++
				case s != nil:
					delete(levels, n)
					m.Samples = append(m.Samples, Sample{s, v, peak, gone})
				}
			})
			if err != nil {
				r.Damage.Frames++
				continue
			}
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
