package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

func ptr[T any](v T) *T { return &v }

// pairs makes labels from alternating names and values.
func pairs(nv ...string) []*dto.LabelPair {
	var ls []*dto.LabelPair
	for i := 0; i < len(nv); i += 2 {
		ls = append(ls, &dto.LabelPair{Name: &nv[i], Value: &nv[i+1]})
	}
	return ls
}

// exposition is a cycle's families from lines such as "name{pod} value". A name that ends
// in _g is a gauge.
func exposition(lines ...string) []*dto.MetricFamily {
	byName := map[string]*dto.MetricFamily{}
	var all []*dto.MetricFamily
	for _, l := range lines {
		var name, pod string
		var v float64
		head, text, _ := strings.Cut(l, " ")
		name, pod, _ = strings.Cut(strings.TrimSuffix(head, "}"), "{")
		if _, err := fmt.Sscan(text, &v); err != nil {
			panic(l)
		}
		f := byName[name]
		if f == nil {
			f = &dto.MetricFamily{Name: &name, Type: dto.MetricType_COUNTER.Enum()}
			if strings.HasSuffix(name, "_g") || strings.Contains(name, "_timestamp_") {
				f.Type = dto.MetricType_GAUGE.Enum()
			}
			byName[name] = f
			all = append(all, f)
		}
		m := &dto.Metric{Label: pairs("k8s_node", "n1", "k8s_pod", pod)}
		if *f.Type == dto.MetricType_GAUGE {
			m.Gauge = &dto.Gauge{Value: &v}
		} else {
			m.Counter = &dto.Counter{Value: &v}
		}
		f.Metric = append(f.Metric, m)
	}
	return all
}

// clock is a machine's clocks, which tests set.
type clock struct {
	mu sync.Mutex
	at instant
}

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func newClock() *clock { return &clock{at: instant{noon, time.Hour, time.Hour}} }

func (c *clock) now() instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// pass lets time pass; set changes the wall clock only.
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at.wall, c.at.boot, c.at.mono = c.at.wall.Add(d), c.at.boot+d, c.at.mono+d
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at.wall = t
}

// settle waits until the waiting minutes are written.
func settle(t testing.TB, h *History) {
	t.Helper()
	testkit.Eventually(t, "the history is written", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.reap()
		h.write()
		return h.writing == nil && len(h.pending) == 0
	})
}

func open(t testing.TB, dir string, c *clock, change ...func(*Options)) *History {
	t.Helper()
	o := Options{Dir: dir, MaxBytes: 64 << 20, MaxAge: 14 * 24 * time.Hour, clock: c.now}
	for _, f := range change {
		f(&o)
	}
	h := New(o)
	t.Cleanup(func() { h.Close(time.Minute) }) // runs before the folder is removed
	return h
}

// tell is a minute as text.
func tell(m *Minute) string {
	var b strings.Builder
	b.WriteString(m.Start.UTC().Format("15:04"))
	if m.First {
		b.WriteString(" first")
	}
	if m.Fresh {
		b.WriteString(" fresh")
	}
	fmt.Fprintf(&b, " %v", m.To.Sub(m.From))
	if d := m.Elapsed; d != m.To.Sub(m.From) {
		fmt.Fprintf(&b, " in truth %v", d)
	}
	if m.Asleep > 0 {
		fmt.Fprintf(&b, " asleep %v", m.Asleep)
	}
	lines := make([]string, 0, len(m.Samples))
	for _, s := range m.Samples {
		line := fmt.Sprintf("%s{%s}=%v", s.Metric, s.Label("k8s_pod"), s.Value)
		if le := s.Label("le"); le != "" {
			line = fmt.Sprintf("%s{le=%s}=%v", s.Metric, le, s.Value)
		}
		if s.Peak > s.Value {
			line += fmt.Sprintf("^%v", s.Peak)
		}
		if s.Gone {
			line = fmt.Sprintf("%s{%s} gone", s.Metric, s.Label("k8s_pod"))
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return b.String() + ": " + strings.Join(lines, " ")
}

func readAll(t testing.TB, dir string, q Query) (all []string, r *Reader) {
	t.Helper()
	r = &Reader{Dir: dir}
	for m, err := range r.Minutes(q) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tell(m))
	}
	return all, r
}

// step is a test's next action: let time pass, then observe.
type step struct {
	pass  time.Duration
	lines []string
}

// TestMinutes: what is recorded for given observations.
func TestMinutes(t *testing.T) {
	const q = 15 * time.Second
	for _, c := range []struct {
		name  string
		steps []step
		want  []string
	}{
		{"increases, of those that rose", []step{
			{0, []string{"a{x} 100", "a{y} 5", "b{x} 0"}},
			{q, []string{"a{x} 103", "a{y} 5", "b{x} 0"}},
			{q, []string{"a{x} 104", "a{y} 5", "b{x} 0"}},
			{q, []string{"a{x} 104", "a{y} 5", "b{x} 0"}},
			{q, []string{"a{x} 110", "a{y} 5", "b{x} 0.5"}},
			{3 * q, []string{"a{x} 110", "a{y} 5", "b{x} 0.5"}},
			{q, []string{"a{x} 111", "a{y} 5", "b{x} 0.5"}},
		}, []string{
			"12:00 first fresh 45s: a{x}=4",
			"12:01 1m0s: a{x}=6 b{x}=0.5",
			"12:02 15s: a{x}=1",
		}},
		{"a minute in which nothing moves is there", []step{
			{0, []string{"a{x} 1"}}, {q, []string{"a{x} 1"}}, {4 * q, []string{"a{x} 1"}},
		}, []string{"12:00 first fresh 15s: ", "12:01 1m0s: "}},
		{"a counter that falls counts from 0", []step{
			{0, []string{"a{x} 100"}}, {q, []string{"a{x} 110"}}, {q, []string{"a{x} 4"}}, {q, []string{"a{x} 6"}},
			{q, []string{"a{x} 1"}},
		}, []string{"12:00 first fresh 45s: a{x}=16", "12:01 15s: a{x}=1"}},
		{"one that is new counts from its first value on", []step{
			{0, []string{"a{x} 1"}}, {q, []string{"a{x} 1", "a{y} 1000"}}, {q, []string{"a{x} 1", "a{y} 1002"}},
		}, []string{"12:00 first fresh 30s: a{y}=2"}},
		{"one that is missing for a cycle goes on, one that is for a minute begins", []step{
			{0, []string{"a{x} 1", "a{y} 1"}}, {q, []string{"a{x} 1"}}, {q, []string{"a{x} 1", "a{y} 9"}},
			{2 * q, []string{"a{x} 2"}}, {4 * q, []string{"a{x} 2", "a{y} 500"}}, {q, []string{"a{x} 2", "a{y} 501"}},
		}, []string{"12:00 first fresh 30s: a{y}=8", "12:01 30s: a{x}=1", "12:02 1m15s: a{y}=1"}},
		{"one that is missing for the last or first cycle of a minute goes on", []step{
			{0, []string{"a{x} 1", "a{y} 1"}}, {q, []string{"a{x} 2", "a{y} 2"}}, {q, []string{"a{x} 3", "a{y} 3"}}, {q, []string{"a{y} 4"}},
			{q, []string{"a{x} 5"}}, {q, []string{"a{x} 6", "a{y} 9"}}, {q, []string{"a{x} 7", "a{y} 10"}}, {q, []string{"a{x} 8"}},
			{q, []string{"a{x} 9", "a{y} 4"}},
		}, []string{"12:00 first fresh 45s: a{x}=2 a{y}=3", "12:01 1m0s: a{x}=5 a{y}=6", "12:02 15s: a{x}=1 a{y}=4"}},
		{"gauges, when they changed, and their highest", []step{
			{0, []string{"x_g{x} 1", "x_g{y} 0"}}, {q, []string{"x_g{x} 3", "x_g{y} 0"}}, {q, []string{"x_g{x} 2", "x_g{y} 0"}},
			{2 * q, []string{"x_g{x} 2", "x_g{y} 0"}},
			{4 * q, []string{"x_g{x} 2", "x_g{y} 7"}}, {q, []string{"x_g{x} 2", "x_g{y} 0"}},
			{3 * q, []string{"x_g{x} 0", "x_g{y} 0"}},
			{4 * q, []string{"x_g{x} 0", "x_g{y} 0"}},
			{4 * q, []string{"x_g{x} 0", "x_g{y} 0"}},
			{4 * q, []string{"x_g{x} -1.5", "x_g{y} 0"}},
		}, []string{
			"12:00 first fresh 30s: x_g{x}=2^3",
			"12:01 30s: x_g{x}=2", // written twice, so that one frame may be lost
			"12:02 1m15s: x_g{y}=0^7",
			"12:03 45s: x_g{x}=0",
			"12:04 1m0s: x_g{x}=0",
			"12:05 1m0s: ",
			"12:06 1m0s: x_g{x}=-1.5",
		}},
		{"a gauge that moves by an eighth at most", []step{
			{0, []string{"x_g{x} 80", "x_g{y} 80"}}, {q, []string{"x_g{x} 80", "x_g{y} 80"}}, {4 * q, []string{"x_g{x} 90", "x_g{y} 80"}},
			{4 * q, []string{"x_g{x} 70", "x_g{y} 80"}}, {4 * q, []string{"x_g{x} 91", "x_g{y} 89"}}, {4 * q, []string{"x_g{x} 91", "x_g{y} 80"}},
			{4 * q, []string{"x_g{x} 91", "x_g{y} 92"}}, {q, []string{"x_g{x} 91", "x_g{y} 81"}},
		}, []string{
			"12:00 first fresh 15s: x_g{x}=80 x_g{y}=80", "12:01 1m0s: x_g{x}=90 x_g{y}=80", "12:02 1m0s: x_g{x}=70",
			"12:03 1m0s: x_g{x}=91", "12:04 1m0s: x_g{x}=91", "12:05 1m15s: x_g{y}=81^92",
		}},
		{"a gauge that is there no more", []step{
			{0, []string{"x_g{x} 1", "a{x} 1"}}, {q, []string{"x_g{x} 1", "a{x} 1"}}, {3 * q, []string{"a{x} 1"}},
			{4 * q, []string{"a{x} 1"}}, {4 * q, []string{"a{x} 1"}}, {4 * q, []string{"a{x} 1", "x_g{x} 1"}},
		}, []string{
			"12:00 first fresh 15s: x_g{x}=1", "12:01 45s: x_g{x} gone", "12:02 1m0s: x_g{x} gone", "12:03 1m0s: ", "12:04 1m0s: x_g{x}=1",
		}},
		{"an interval longer than a minute", []step{
			{0, []string{"a{x} 1"}}, {150 * time.Second, []string{"a{x} 3"}}, {150 * time.Second, []string{"a{x} 4"}},
		}, []string{"12:02 first fresh 2m30s: a{x}=2", "12:05 2m30s: a{x}=1"}},
		{"values that are none", []step{
			{0, []string{"a{x} 1", "x_g{x} 5"}}, {q, []string{"a{x} NaN", "x_g{x} NaN"}}, {q, []string{"a{x} +Inf", "x_g{x} 5"}}, {q, []string{"a{x} 4", "x_g{x} -Inf"}},
		}, []string{"12:00 first fresh 45s: a{x}=3"}},
		{"what is not worth a place", []step{
			{0, []string{"kubeskoop_fdopenfd{x} 1", "kubeskoop_fd_openfd{x} 1", "nodeskoop_last_cycle_timestamp_seconds{} 1", "kubeskoop_io_readbytes{x} 1"}},
			{q, []string{"kubeskoop_fdopenfd{x} 2", "kubeskoop_fd_openfd{x} 2", "nodeskoop_last_cycle_timestamp_seconds{} 2", "kubeskoop_io_readbytes{x} 4"}},
			// The alias is recorded if the first spelling is excluded.
		}, []string{"12:00 first fresh 15s: kubeskoop_fdopenfd{x}=1 kubeskoop_io_readbytes{x}=3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, at := filepath.Join(t.TempDir(), Folder), newClock()
			h := open(t, dir, at)
			for _, s := range c.steps {
				at.pass(s.pass)
				h.Observe(exposition(s.lines...))
				settle(t, h)
			}
			h.Close(time.Minute)
			got, r := readAll(t, dir, Query{})
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if r.Damage.Frames+r.Damage.Values+int(r.Damage.Bytes)+len(r.Damage.Files) > 0 {
				t.Errorf("damage: %+v", r.Damage)
			}
			if s := h.Stats(); s.Written != uint64(len(c.want)) || s.Lost > 0 || s.Bytes != block || !s.Oldest.Equal(noon) {
				t.Errorf("it says %+v", s)
			}
		})
	}
}

func TestHistogram(t *testing.T) {
	hist := func(sum float64, counts ...uint64) []*dto.MetricFamily {
		x := &dto.Histogram{SampleCount: &counts[3], SampleSum: &sum}
		for i := range counts[:3] {
			x.Bucket = append(x.Bucket, &dto.Bucket{UpperBound: ptr([]float64{0.001, 0.01, 0.1}[i]), CumulativeCount: &counts[i]})
		}
		return []*dto.MetricFamily{{Name: ptr("lat_seconds"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{{Label: pairs("k8s_pod", "x"), Histogram: x}}}}
	}
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	h := open(t, dir, at)
	h.Observe(hist(1, 5, 6, 6, 6))
	at.pass(15 * time.Second)
	h.Observe(hist(1.5, 5, 7, 9, 13))
	h.Close(time.Minute)
	got, _ := readAll(t, dir, Query{})
	if want := []string{"12:00 first fresh 15s: lat_seconds_bucket{le=+Inf}=4 lat_seconds_bucket{le=0.01}=1 lat_seconds_bucket{le=0.1}=2"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// model is the expected content of a history: the increases of each minute, and the levels
// at its end.
type model struct {
	starts []time.Time
	rises  []map[string]float64
	levels []map[string]float64
}

// randomHistory writes a history of some minutes, with series that come and go, and returns
// its expected content.
func randomHistory(t testing.TB, dir string, at *clock, rnd *rand.Rand, minutes int) (want model) {
	h := open(t, dir, at)
	counters, last := map[string]float64{}, map[string]float64{}
	gauges := map[string]float64{}
	for m := range minutes + 1 {
		rises := map[string]float64{}
		for c := range 4 {
			var lines []string
			for i := range 30 {
				name := fmt.Sprintf("c%d{pod-%d}", i%3, i)
				switch {
				case rnd.IntN(40) == 0:
					counters[name] = float64(rnd.IntN(3)) // reset
				case rnd.IntN(3) == 0:
					counters[name] += float64(rnd.IntN(1 << rnd.IntN(40)))
				case rnd.IntN(30) == 0:
					counters[name] += rnd.Float64()
				}
				v := counters[name]
				was, known := last[name]
				switch {
				case !known:
				case v < was:
					rises[name] += v
				default:
					rises[name] += v - was
				}
				last[name] = v
				lines = append(lines, fmt.Sprintf("%s %v", name, v))
			}
			for i := range 10 {
				name := fmt.Sprintf("x_g{pod-%d}", i)
				if rnd.IntN(8) == 0 {
					gauges[name] = float64(rnd.IntN(4))
				}
				if v := gauges[name]; v < 3 { // otherwise the gauge does not exist
					lines = append(lines, fmt.Sprintf("%s %v", name, v))
				}
			}
			rnd.Shuffle(rnd.IntN(4), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
			h.Observe(exposition(lines...))
			if c == 0 && m == 0 {
				clear(rises)
			}
			at.pass(15 * time.Second)
		}
		if m == minutes {
			break // the current minute
		}
		settle(t, h)
		maps.DeleteFunc(rises, func(_ string, v float64) bool { return v == 0 })
		levels := map[string]float64{}
		for name, v := range gauges {
			if v > 0 && v < 3 {
				levels[name] = v
			}
		}
		want.starts = append(want.starts, at.now().wall.Add(-time.Minute))
		want.rises = append(want.rises, rises)
		want.levels = append(want.levels, levels)
	}
	settle(t, h)
	return want
}

// replay reads a history as a model.
func replay(t testing.TB, dir string, q Query) (got model, r *Reader) {
	r = &Reader{Dir: dir}
	return replayOf(func(yield func(*Minute) bool) {
		for m, err := range r.Minutes(q) {
			if err != nil {
				t.Fatal(err)
			}
			if !yield(m) {
				return
			}
		}
	}), r
}

func replayOf(minutes iter.Seq[*Minute]) (got model) {
	levels := map[string]float64{}
	for m := range minutes {
		rises := map[string]float64{}
		if m.Fresh {
			clear(levels)
		}
		for _, s := range m.Samples {
			name := fmt.Sprintf("%s{%s}", s.Metric, s.Label("k8s_pod"))
			switch {
			case s.Kind == Counter:
				rises[name] += s.Value
			case s.Gone || s.Value == 0:
				delete(levels, name)
			default:
				levels[name] = s.Value
			}
		}
		got.starts = append(got.starts, m.Start.UTC())
		got.rises = append(got.rises, rises)
		got.levels = append(got.levels, maps.Clone(levels))
	}
	return got
}

// near compares models, ignoring rounding in sums of fractions.
var near = cmp.Options{cmp.AllowUnexported(model{}), cmp.Comparer(func(a, b float64) bool { return a-b < 1e-6*(1+a) && b-a < 1e-6*(1+a) })}

// same compares maps as near compares models, but faster.
func same(a, b map[string]float64) bool {
	for name, x := range a {
		if y, ok := b[name]; !ok || x-y > 1e-6*(1+x) || y-x > 1e-6*(1+x) {
			return false
		}
	}
	return len(a) == len(b)
}

// only returns the file of a history that has exactly one.
func only(t testing.TB, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	}
	return names[0]
}

// TestEveryByte: from a file truncated at any byte, the reader returns the minutes
// before that byte. If any byte is damaged, the reader returns all minutes but one,
// with their names and levels.
func TestEveryByte(t *testing.T) {
	at, rnd := newClock(), rand.New(rand.NewPCG(1, 2))
	dir := filepath.Join(t.TempDir(), Folder)
	const minutes = 12
	want := randomHistory(t, dir, at, rnd, minutes)
	got, r := replay(t, dir, Query{})
	if d := cmp.Diff(want, got, near); d != "" || r.Damage.Frames != 0 {
		t.Fatalf("%+v\n%s", r.Damage, d)
	}
	whole, err := os.ReadFile(only(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", len(whole))
	var ends []int // end of each frame
	for i := range whole {
		if n, _, ok := header(whole[i:]); ok {
			ends = append(ends, i+headerSize+n)
		}
	}
	if len(ends) != minutes || ends[minutes-1] != len(whole) {
		t.Fatalf("frames end at %d of %d", ends, len(whole))
	}
	// check reads b, in which the minute lost is damaged, -1 if none is, and the minutes
	// from until on are missing. The damage is counted, and the next minute tells of it.
	check := func(what string, b []byte, lost, until int) {
		t.Helper()
		var r Reader
		unread := ""
		got, i := replayOf(func(yield func(*Minute) bool) {
			for m := range r.minutes(b, Query{}) {
				if m.Unread {
					unread += m.Start.UTC().Format("15:04 ")
				}
				if !yield(m) {
					return
				}
			}
		}), 0
		frames, tells := 0, ""
		if lost >= 0 {
			frames = 1
		}
		if lost >= 0 && lost+1 < until {
			tells = want.starts[lost+1].UTC().Format("15:04 ")
		}
		if r.Damage.Frames != frames || unread != tells {
			t.Fatalf("%s: %d damaged frames, told of at %q; want %d and %q", what, r.Damage.Frames, unread, frames, tells)
		}
		for m := range until {
			if m == lost {
				continue
			}
			if i >= len(got.starts) || !got.starts[i].Equal(want.starts[m]) {
				t.Fatalf("%s: minute %d is missing", what, m)
			}
			if !same(want.rises[m], got.rises[i]) || !same(want.levels[m], got.levels[i]) {
				t.Fatalf("%s: minute %d:\n%s%s", what, m, cmp.Diff(want.rises[m], got.rises[i]), cmp.Diff(want.levels[m], got.levels[i]))
			}
			i++
		}
		if i != len(got.starts) || r.Damage.Values > 0 {
			t.Fatalf("%s: %d minutes more, %+v", what, len(got.starts)-i, r.Damage)
		}
	}
	for i := range whole {
		in, _ := slices.BinarySearch(ends, i+1) // the frame with this byte
		check(fmt.Sprintf("cut at %d", i), whole[:i], -1, in)
		damaged := slices.Clone(whole)
		damaged[i] ^= 1 << (i % 8)
		check(fmt.Sprintf("byte %d of %d flipped", i, len(whole)), damaged, in, minutes)
	}
	// After a crash of the machine a file may end in zeros.
	check("zeros at the end", append(slices.Clone(whole), make([]byte, 4096)...), -1, minutes)
	// If two consecutive frames are damaged, names are lost. Values without a name are
	// counted, and are not assigned to another series.
	whole[headerSize] ^= 1
	whole[ends[0]+headerSize] ^= 1
	r = &Reader{}
	got = replayOf(r.minutes(whole, Query{}))
	if len(got.starts) != minutes-2 || r.Damage.Frames != 2 || r.Damage.Values == 0 {
		t.Errorf("%d minutes, %+v", len(got.starts), r.Damage)
	}
	for i, rises := range got.rises {
		for name, v := range rises {
			if x := want.rises[i+2][name]; x-v > 1e-6*(1+x) || v-x > 1e-6*(1+x) {
				t.Errorf("minute %d: %s rose by %v, want %v", i+2, name, v, x)
			}
		}
	}
}

// TestRoom: series and names beyond the limits are counted, and the others are recorded.
func TestRoom(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	h := open(t, dir, at)
	name, long, one, two := "c", strings.Repeat("x", maxName+1), 1.0, 2.0
	f := &dto.MetricFamily{Name: &name, Type: dto.MetricType_COUNTER.Enum()}
	for i := range maxSeries + 100 {
		f.Metric = append(f.Metric, &dto.Metric{Label: pairs("k8s_pod", fmt.Sprint(i)), Counter: &dto.Counter{Value: &one}})
	}
	f.Metric[7].Label = pairs("k8s_pod", long)
	f.Metric[8].Label = pairs(slices.Repeat([]string{"l", "v"}, maxLabels)...)
	h.Observe([]*dto.MetricFamily{f})
	if s := h.Stats(); s.LeftOut != 100 {
		t.Errorf("%d series are left out", s.LeftOut)
	}
	for _, m := range f.Metric {
		m.Counter.Value = &two
	}
	at.pass(time.Second)
	h.Observe([]*dto.MetricFamily{f})
	h.Close(time.Minute)
	n := 0
	for m, err := range (&Reader{Dir: dir}).Minutes(Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		n += len(m.Samples)
	}
	if n != maxSeries {
		t.Errorf("%d series are recorded", n)
	}
}

// TestRoomIsFair: a pod that makes up series leaves room for other pods' series,
// including later ones. Once its series are gone, it has room itself again.
func TestRoomIsFair(t *testing.T) {
	const most, each = 8 * ownShare, 140
	tr, at := newTracker(time.Minute), newClock()
	tr.most = most
	observe := func(own map[string]int) {
		t.Helper()
		name, one := "c", 1.0
		f := &dto.MetricFamily{Name: &name, Type: dto.MetricType_COUNTER.Enum()}
		for _, pod := range slices.Sorted(maps.Keys(own)) {
			for i := range own[pod] {
				f.Metric = append(f.Metric, &dto.Metric{Label: pairs("k8s_namespace", "team", "k8s_pod", pod, "port", fmt.Sprint(i)), Counter: &dto.Counter{Value: &one}})
			}
		}
		tr.observe(at.now(), []*dto.MetricFamily{f})
		at.pass(time.Minute)
	}
	own := func(pod string) int {
		if o := tr.owners["team/"+pod]; o != nil {
			return o.series
		}
		return 0
	}
	observe(map[string]int{"a-thief": 10 * most})
	if n := own("a-thief"); n != most/2 {
		t.Errorf("the flood has %d series, want %d", n, most/2)
	}
	pods := map[string]int{"a-thief": 10 * most}
	for i := range 14 {
		pods[fmt.Sprintf("web-%02d", i)] = each
	}
	observe(pods)
	for pod, n := range pods {
		if got := own(pod); pod != "a-thief" && got != n {
			t.Errorf("of %d series of %s %d are followed", n, pod, got)
		}
	}
	if tr.leftOut != 10*most-most/2 {
		t.Errorf("%d series are left out, want those of the flood", tr.leftOut)
	}
	for range 3 { // a whole minute passes without the other series
		observe(map[string]int{"web-00": each})
	}
	if tr.all != each || len(tr.owners) != 1 || own("web-00") != each {
		t.Errorf("%d series of %d owners are left", tr.all, len(tr.owners))
	}
	observe(map[string]int{"b-thief": 10 * most, "web-00": each})
	if n := own("b-thief"); n+each != most/2 {
		t.Errorf("the next flood has %d series, want %d", n, most/2-each)
	}
}

// TestProperties writes many random histories, and reads them whole and in part.
func TestProperties(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		at := newClock()
		at.set(noon.Add(time.Duration(rnd.IntN(60)) * time.Minute))
		dir := filepath.Join(t.TempDir(), Folder)
		want := randomHistory(t, dir, at, rnd, 20)
		got, _ := replay(t, dir, Query{})
		if d := cmp.Diff(want, got, near); d != "" {
			t.Fatalf("seed %d: %s", seed, d)
		}
		from, to := rnd.IntN(10), 10+rnd.IntN(10)
		got, _ = replay(t, dir, Query{Since: want.starts[from], Until: want.starts[to]})
		part := model{starts: want.starts[from:to], rises: want.rises[from:to], levels: want.levels[from:to]}
		if d := cmp.Diff(part, got, near); d != "" {
			t.Fatalf("seed %d, minutes %d to %d: %s", seed, from, to, d)
		}
		got, _ = replay(t, dir, Query{Keep: func(s *Series) bool { return s.Label("k8s_pod") == "pod-3" }})
		for i := range got.rises {
			for name := range got.rises[i] {
				if !strings.HasSuffix(name, "{pod-3}") {
					t.Fatalf("%s was not asked for", name)
				}
			}
		}
	}
}

// TestRestart: a daemon that is killed and restarted within a minute starts another file,
// and only the current minute is lost. The clock is set back, too.
func TestRestart(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	run := func(cycles int, clean bool) {
		h := open(t, dir, at)
		for i := range cycles {
			h.Observe(exposition(fmt.Sprintf("a{x} %d", i), "x_g{x} 1"))
			settle(t, h)
			at.pass(15 * time.Second)
		}
		if clean {
			h.Close(time.Minute)
		} else {
			h.writer.close() // as the kernel does when a process ends
		}
	}
	run(6, false) // 12:00:00 to 12:01:15, of which 12:01 is not written yet
	run(4, true)  // 12:01:30 to 12:02:15
	at.set(noon.Add(time.Minute))
	run(5, true)
	got, r := readAll(t, dir, Query{})
	want := []string{
		"12:00 first fresh 45s: a{x}=3 x_g{x}=1",
		"12:01 first fresh 15s: a{x}=1 x_g{x}=1",
		"12:01 first fresh 45s: a{x}=3 x_g{x}=1",
		"12:02 30s: a{x}=2 x_g{x}=1",
		"12:02 15s: a{x}=1 x_g{x}=1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if r.Damage.Bytes != 0 {
		t.Errorf("%+v", r.Damage)
	}
}

// TestClockSet: the reader sees a gap if the clock is set while the daemon runs, or if the
// machine was suspended.
func TestClockSet(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	h := open(t, dir, at)
	n := 0
	cycles := func(count int) {
		for range count {
			n++
			h.Observe(exposition(fmt.Sprintf("a{x} %d", n)))
			settle(t, h)
			at.pass(30 * time.Second)
		}
	}
	cycles(3)
	at.set(noon.Add(-30 * time.Minute)) // set back
	cycles(2)
	at.set(noon.Add(3 * time.Hour)) // set ahead
	cycles(2)
	at.mu.Lock() // suspended
	at.at.wall, at.at.boot = at.at.wall.Add(2*time.Hour), at.at.boot+2*time.Hour
	at.mu.Unlock()
	cycles(2)
	h.Close(time.Minute)
	got, _ := readAll(t, dir, Query{})
	want := []string{
		"11:30 -30m30s in truth 1m0s: a{x}=2",
		"12:00 first fresh 30s: a{x}=1",
		"12:01 30s: a{x}=1",
		"15:00 fresh 3h30m0s in truth 1m0s: a{x}=2",
		"17:01 fresh 2h1m0s asleep 2h0m0s: a{x}=2",
	}
	// Fresh depends on the file of a minute, which is not tested here.
	for _, l := range [][]string{got, want} {
		for i := range l {
			l[i] = strings.Replace(l[i], " fresh", "", 1)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestBound: the oldest files are removed if there are too many bytes or they are too old.
// Files dated ahead by a wrong clock are removed first.
func TestBound(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{
		fileName(noon.AddDate(4, 0, 0), 0):  200_000, // dated ahead
		fileName(noon.Add(-time.Hour), 1):   300_000,
		fileName(noon.Add(-time.Hour), 0):   300_000,
		fileName(noon.Add(-2*time.Hour), 0): 1,
		"20261127T110000Z-01" + suffix:      500_000, // not a file of the history
		"notes":                             500_000,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const most = 700_000
	h := open(t, dir, at, func(o *Options) { o.MaxBytes, o.MaxAge = most, 90*time.Minute })
	rnd := rand.New(rand.NewPCG(1, 1))
	lines := make([]string, 1000)
	gone := map[string]int{}
	for m := range 130 {
		for i := range lines {
			lines[i] = fmt.Sprintf("a{%d} %d", i, m<<40+rnd.IntN(1<<40))
		}
		h.Observe(exposition(lines...))
		settle(t, h)
		at.pass(time.Minute)
		sum := int64(0)
		list, err := (&Reader{Dir: dir}).files()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			sum += f.size
		}
		if m > 1 && sum > most {
			t.Fatalf("minute %d: %d bytes", m, sum)
		}
		if s := h.Stats(); m > 1 && (s.Bytes != sum || s.Lost > 0) {
			t.Fatalf("minute %d: %d bytes on disk, it says %+v", m, sum, s)
		}
		for _, f := range []string{fileName(noon.AddDate(4, 0, 0), 0), fileName(noon.Add(-2*time.Hour), 0), fileName(noon.Add(-time.Hour), 0), fileName(noon.Add(-time.Hour), 1)} {
			if !slices.ContainsFunc(list, func(x file) bool { return x.name == f }) && gone[f] == 0 {
				gone[f] = m
			}
		}
	}
	if a, b, c := gone[fileName(noon.AddDate(4, 0, 0), 0)], gone[fileName(noon.Add(-time.Hour), 0)], gone[fileName(noon.Add(-time.Hour), 1)]; a == 0 || b == 0 || c == 0 || a > b || b > c {
		t.Errorf("the files went in the wrong order: %v", gone)
	}
	for _, name := range []string{"20261127T110000Z-01" + suffix, "notes"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("a file of somebody else's: %v", err)
		}
	}
	if got, _ := readAll(t, dir, Query{}); len(got) == 0 {
		t.Error("nothing is left")
	}
	h.Limit(100_000, time.Hour)
	h.Observe(exposition(lines...))
	settle(t, h)
	if s := h.Stats(); s.Bytes > 100_000 {
		t.Errorf("after the limit was lowered: %+v", s)
	}
}

// TestAge: files that are too old are removed, one per minute.
func TestAge(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := os.WriteFile(filepath.Join(dir, fileName(noon.Add(-time.Duration(i)*time.Hour), 0)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := open(t, dir, at, func(o *Options) { o.MaxAge = 90 * time.Minute })
	for m, want := range []int{5, 5, 5, 4, 4} { // the files of 8:00 and 9:00 are too old
		h.Observe(exposition("a{x} 1"))
		settle(t, h)
		at.pass(time.Minute)
		if list, _ := (&Reader{Dir: dir}).files(); len(list) != want {
			t.Errorf("minute %d: %d files, want %d", m, len(list), want)
		}
	}
}

// logTo makes a history log into l.
func logTo(l *testkit.Log) func(*Options) {
	return func(o *Options) { o.Log = l.Logger() }
}

// times counts the occurrences of a text in a log.
func times(l *testkit.Log, text string) int { return strings.Count(l.String(), text) }

// TestTwo: while one daemon writes the history, another does not, and logs that once.
func TestTwo(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	var log testkit.Log
	a, b := open(t, dir, at), open(t, dir, at, logTo(&log))
	cycle := func() {
		for _, h := range []*History{a, b} {
			h.Observe(exposition("a{x} 1"))
			settle(t, h)
		}
		at.pass(time.Minute)
	}
	for range 5 {
		cycle()
	}
	if sa, sb := a.Stats(), b.Stats(); sa.Written != 3 || sa.Lost != 0 || sb.Written != 0 || sb.Lost != 3 {
		t.Errorf("%+v and %+v", sa, sb)
	}
	if n := times(&log, "another process writes its history there"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	// The first one ends; the other retries in the next hour.
	a.Close(time.Minute)
	at.set(noon.Add(time.Hour))
	for range 3 {
		b.Observe(exposition("a{x} 1"))
		settle(t, b)
		at.pass(time.Minute)
	}
	if s := b.Stats(); s.Written != 2 || times(&log, "is written again") != 1 {
		t.Errorf("%+v, %s", s, log.String())
	}
}

// TestFullDisk: a full file system costs the minutes that do not fit; the others can be
// read.
func TestFullDisk(t *testing.T) {
	need.Root(t)
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	state := filepath.Join(mount, "state")
	dir, at := filepath.Join(state, Folder), newClock()
	var log testkit.Log
	h := open(t, dir, at, logTo(&log))
	rnd := rand.New(rand.NewPCG(1, 1))
	text := make([]string, 2000)
	cycle := func(m int) {
		for i := range text {
			text[i] = fmt.Sprintf("a{%d} %d", i, m<<40+rnd.IntN(1<<40))
		}
		h.Observe(exposition(text...))
		settle(t, h)
		at.pass(time.Minute)
	}
	for m := range 20 {
		cycle(m)
	}
	s := h.Stats()
	if s.Written == 0 || s.Lost == 0 || s.Written+s.Lost != 18 || times(&log, "writing the history failed") != 1 || times(&log, "no space left") != 1 {
		t.Errorf("%+v, %s", s, log.String())
	}
	got, r := readAll(t, dir, Query{})
	if len(got) != int(s.Written) || r.Damage.Frames > 0 {
		t.Errorf("%d minutes can be read of %d, %+v", len(got), s.Written, r.Damage)
	}
	// In the next hour there is room again.
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT, "size=10m"); err != nil {
		t.Fatal(err)
	}
	at.set(noon.Add(time.Hour))
	for m := range 4 {
		cycle(20 + m)
	}
	if now := h.Stats(); now.Written != s.Written+3 || times(&log, "is written again") != 1 {
		t.Errorf("%+v, %s", now, log.String())
	}
	// Read-only.
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err == nil {
		t.Fatal("a file system with an open file became read-only")
	}
	h.Close(time.Minute)
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	var other testkit.Log
	h = open(t, dir, at, logTo(&other))
	for m := range 4 {
		cycle(30 + m)
	}
	if s := h.Stats(); s.Written != 0 || s.Lost != 2 || times(&other, "read-only file system") != 1 {
		t.Errorf("%+v, %s", s, other.String())
	}
}

// stuck is a disk that hangs on request.
type stuck struct {
	disk
	gate chan struct{}
}

func (s stuck) open() (room, error) { <-s.gate; return s.disk.open() }

// TestHangingDisk: nobody waits for a hanging disk. The waiting minutes are written when it
// answers; those for which there was no room are lost.
func TestHangingDisk(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	gate := make(chan struct{})
	h := open(t, dir, at, func(o *Options) { o.disk = stuck{folder{dir}, gate} })
	for range 12 { // 11 minutes: one in the goroutine, 5 waiting
		h.Observe(exposition("a{x} 1"))
		at.pass(time.Minute)
	}
	start := time.Now()
	_ = h.Stats()
	if time.Since(start) > 10*time.Second {
		t.Error("it waits for the disk")
	}
	close(gate)
	settle(t, h)
	if s := h.Stats(); s.Written != 1+maxPending || s.Lost != 10-1-maxPending {
		t.Errorf("%+v", s)
	}
}

// panicking is a disk that panics.
type panicking struct{}

func (panicking) open() (room, error) { panic("a mistake") }

// TestPanic: a panic in the history ends the history only.
func TestPanic(t *testing.T) {
	at := newClock()
	var log testkit.Log
	h := open(t, t.TempDir(), at, logTo(&log), func(o *Options) { o.disk = panicking{} })
	for range 4 {
		h.Observe(exposition("a{x} 1"))
		at.pass(time.Minute)
		testkit.Eventually(t, "the goroutine has ended", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.writing == nil || h.writing.Over(0, nil)
		})
	}
	h = open(t, t.TempDir(), at, logTo(&log))
	h.Observe([]*dto.MetricFamily{{Name: ptr("a"), Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{nil}}})
	h.Observe(nil)
	if n := times(&log, "the history is off until the next start"); n != 2 {
		t.Errorf("it was said %d times: %s", n, log.String())
	}
}

// FuzzReader: any file is read to its end, with bounded memory, and its content can be
// formatted.
func FuzzReader(f *testing.F) {
	at := newClock()
	dir := filepath.Join(f.TempDir(), Folder)
	randomHistory(f, dir, at, rand.New(rand.NewPCG(3, 3)), 3)
	b, err := os.ReadFile(only(f, dir))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, false)
	f.Add(append([]byte("torn"), b[5:]...), false)
	var r Reader
	for plain := range r.frames(b) {
		f.Add(slices.Clone(plain), true)
	}
	length, _, _ := header(b)
	first := b[:headerSize+length] // has the bases of the others
	// A value that no recorder writes, and a minute of the year 12000.
	odd := encoder{}
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -0.5, -7} {
		n := newNames()
		sealed, err := odd.frame(n, &minute{start: noon, from: at.now(), to: at.now(), counters: []value{{of: &Series{Metric: "a"}, v: v}}, gauges: []value{{of: &Series{Metric: "b", Kind: Gauge}, v: v, peak: v}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(slices.Clone(sealed), false)
	}
	late := instant{wall: time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)}
	sealed, err := odd.frame(newNames(), &minute{start: late.wall, from: late, to: late})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slices.Clone(sealed), false)
	east, west := time.FixedZone("", 14*3600), time.FixedZone("", -12*3600)
	f.Fuzz(func(t *testing.T, b []byte, payload bool) {
		if payload { // build a frame with the right checksums
			var e encoder
			sealed, err := e.seal(b)
			if err != nil {
				return
			}
			b = slices.Concat(sealed, first, sealed, first)
		}
		var r Reader
		for m := range r.minutes(b, Query{Since: time.UnixMilli(5)}) {
			if len(m.Samples) > 2*maxFileSeries {
				t.Fatalf("%d samples", len(m.Samples))
			}
			for _, s := range m.Samples {
				if len(s.Metric) > maxName || len(s.Labels) > maxLabels {
					t.Fatalf("%d bytes of a name, %d labels", len(s.Metric), len(s.Labels))
				}
			}
			for _, s := range m.Samples {
				if math.IsNaN(s.Value+s.Peak) || math.IsInf(s.Value, 0) || math.IsInf(s.Peak, 0) || s.Kind == Counter && s.Value <= 0 {
					t.Fatalf("%+v", s)
				}
			}
			if _, err := json.Marshal([]time.Time{m.Start.In(east), m.From.In(west), m.To.In(east)}); err != nil {
				t.Fatal(err)
			}
			_ = tell(m)
		}
		if r.Damage.Bytes < 0 || r.Damage.Bytes > int64(len(b)) {
			t.Fatalf("%d damaged bytes of %d", r.Damage.Bytes, len(b))
		}
	})
}

// TestTakenName: a folder or a link with the name of a new file costs no minute and is
// left alone.
func TestTakenName(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), Folder), newClock()
	hour := noon.Truncate(time.Hour)
	err := errors.Join(os.MkdirAll(filepath.Join(dir, fileName(hour, 0)), 0o700), os.Symlink("/etc/passwd", filepath.Join(dir, fileName(hour, 1))), unix.Mkfifo(filepath.Join(dir, fileName(hour, 3)), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a restart
		h := open(t, dir, at)
		h.Observe(exposition("a{x} 1"))
		at.pass(10 * time.Second)
		h.Observe(exposition("a{x} 2"))
		h.Close(time.Minute)
		if s := h.Stats(); s.Written != 1 || s.Lost != 0 {
			t.Fatalf("%+v", s)
		}
		at.pass(10 * time.Second)
	}
	got, r := readAll(t, dir, Query{})
	if want := []string{"12:00 first fresh 10s: a{x}=1", "12:00 first fresh 10s: a{x}=1"}; !slices.Equal(got, want) || r.Damage.Err(dir) != nil {
		t.Errorf("%q, %+v", got, r.Damage)
	}
	for turn, kind := range map[int]fs.FileMode{0: fs.ModeDir, 1: fs.ModeSymlink, 3: fs.ModeNamedPipe} {
		if fi, err := os.Lstat(filepath.Join(dir, fileName(hour, turn))); err != nil || fi.Mode().Type() != kind {
			t.Errorf("%d: %v, %v", turn, fi, err)
		}
	}
}
