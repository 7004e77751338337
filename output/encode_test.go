package output

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

func with(m *dto.Metric, change func(*dto.Metric)) *dto.Metric {
	change(m)
	return m
}

// guardCases are families of which some series, or all, must be dropped.
var guardCases = []struct {
	name     string
	families []*dto.MetricFamily
	kept     int
	dropped  int
	why      string // logged reason; "" if nothing is dropped
}{
	{"all good", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1), gauge(2, pairs("a", "1")...), gauge(3, pairs("a", "2")...))}, 3, 0, ""},
	{"a gauge may be anything", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(math.NaN()), gauge(math.Inf(1), pairs("a", "1")...), gauge(-1, pairs("a", "2")...))}, 3, 0, ""},
	{"no families", nil, 0, 0, ""},
	{"a nil family", []*dto.MetricFamily{nil}, 0, 0, ""},
	{"a family without series", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE)}, 0, 0, ""},
	{"empty family name", []*dto.MetricFamily{family("", "h", dto.MetricType_GAUGE, gauge(1), gauge(2))}, 0, 2, "its name"},
	{"family name with a dot", []*dto.MetricFamily{family("x.y", "h", dto.MetricType_GAUGE, gauge(1))}, 0, 1, "its name"},
	{"family name that begins with a digit", []*dto.MetricFamily{family("1x", "h", dto.MetricType_GAUGE, gauge(1))}, 0, 1, "its name"},
	{"family name that adds a line", []*dto.MetricFamily{family("x 1\ny", "h", dto.MetricType_GAUGE, gauge(1))}, 0, 1, "its name"},
	{"HELP not UTF-8", []*dto.MetricFamily{family("x", "h\xff", dto.MetricType_GAUGE, gauge(1))}, 0, 1, "its HELP"},
	{"histogram", []*dto.MetricFamily{family("x", "h", dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: &dto.Histogram{}})}, 0, 1, "its type"},
	{"gauge histogram", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE_HISTOGRAM, &dto.Metric{Histogram: &dto.Histogram{}})}, 0, 1, "its type"},
	{"unknown type", []*dto.MetricFamily{family("x", "h", 99, gauge(1))}, 0, 1, "its type"},
	{"two families with one name", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1)), family("x", "other", dto.MetricType_COUNTER, counter(1, pairs("a", "1")...))}, 1, 1, "the same name"},
	{"nil series", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, nil, gauge(1))}, 1, 1, "it is nil"},
	{"counter without value", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, gauge(1), counter(1))}, 1, 1, "no value"},
	{"gauge without value", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, counter(1), gauge(1))}, 1, 1, "no value"},
	{"counter that is not finite", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, counter(math.NaN()), counter(math.Inf(1), pairs("a", "1")...), counter(math.Inf(-1), pairs("a", "2")...), counter(1, pairs("a", "3")...))}, 1, 3, "finite"},
	{"timestamp", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, with(gauge(1), func(m *dto.Metric) { m.TimestampMs = new(int64) }), gauge(1))}, 1, 1, "timestamps"},
	{"label name with a dash", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("a-b", "1")...), gauge(1))}, 1, 1, "a label's name is not"},
	{"label without name", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("", "1")...), gauge(1))}, 1, 1, "a label's name is not"},
	{"nil label", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, nil), gauge(1))}, 1, 1, "a label's name is not"},
	{"label name that begins with __", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("__foo", "1")...), gauge(1, pairs("_foo", "1")...))}, 1, 1, "begins with __"},
	{"label __name__", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("__name__", "y")...))}, 0, 1, "begins with __"},
	{"label value not UTF-8", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("a", "\xff")...), gauge(1, pairs("a", "\uFFFD")...))}, 1, 1, "not UTF-8"},
	{"label twice", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("a", "1", "b", "2", "a", "3")...), gauge(1))}, 1, 1, "a label twice"},
	{"label twice, once empty", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("a", "1", "a", "")...), gauge(1))}, 1, 1, "a label twice"},
	{"series twice", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, counter(1, pairs("a", "1")...), counter(2, pairs("a", "1")...), counter(3, pairs("a", "2")...))}, 2, 1, "the same labels"},
	{"series twice without labels", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, counter(1), counter(1), counter(1))}, 1, 2, "the same labels"},
	{"series twice in another order", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, counter(1, pairs("a", "1", "b", "2")...), counter(2, pairs("b", "2", "a", "1")...))}, 1, 1, "the same labels"},
	{"series twice but for an empty label", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, counter(1, pairs("a", "1")...), counter(2, pairs("a", "1", "b", "")...), counter(3, pairs("b", "", "a", "2")...))}, 2, 1, "the same labels"},
	{"values change places", []*dto.MetricFamily{family("x", "h", dto.MetricType_COUNTER, counter(1, pairs("a", "1", "b", "2")...), counter(2, pairs("a", "2", "b", "1")...))}, 2, 0, ""},
	{"first and last are bad", []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(0, pairs("__a", "")...), gauge(1, pairs("a", "1")...), gauge(2, pairs("a", "2")...), gauge(3, pairs("__a", "")...))}, 2, 2, "begins with __"},
}

func TestGuard(t *testing.T) {
	for _, c := range guardCases {
		t.Run(c.name, func(t *testing.T) {
			var log, out bytes.Buffer
			var e encoder
			e.guard.log = slog.New(slog.NewTextHandler(&log, nil))
			for range 3 { // the first reason is logged, repetitions are not
				out.Reset()
				before := seriesOf(c.families)
				n, err := e.encode(&out, c.families)
				if err != nil {
					t.Fatal(err)
				}
				if int(n) != out.Len() {
					t.Errorf("%d bytes told, %d written", n, out.Len())
				}
				if seriesOf(c.families) != before {
					t.Error("the caller's families were changed")
				}
				if n := seriesOf(parse(t, out.String())); n != c.kept {
					t.Errorf("%d series written, want %d:\n%s", n, c.kept, out.String())
				}
			}
			if e.guard.dropped != uint64(3*c.dropped) {
				t.Errorf("%d series dropped in three rounds, want 3 x %d", e.guard.dropped, c.dropped)
			}
			if n := strings.Count(log.String(), "\n"); c.why == "" && n != 0 || c.why != "" && n != 1 || !strings.Contains(log.String(), c.why) {
				t.Errorf("want one line in the log with %q:\n%s", c.why, log.String())
			}
		})
	}
}

// Equal hashes alone do not make series equal.
func TestGuardComparesWhatHashesAlike(t *testing.T) {
	var g guard
	g.begin()
	f := family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("a", "1")...), gauge(1, pairs("a", "2")...), gauge(1, pairs("a", "1")...))
	g.forget(len(f.Metric))
	for i, want := range []bool{false, false, true} {
		if got := g.twice(f, f.Metric[i].Label, 42, i); got != want {
			t.Errorf("series %d: told twice %v, want %v", i, got, want)
		}
	}
}

func TestGuardSurvivesItsGenerations(t *testing.T) {
	var g guard
	g.begin()
	f := family("x", "h", dto.MetricType_GAUGE, gauge(1, pairs("a", "1")...))
	g.forget(1)
	g.twice(f, f.Metric[0].Label, 42, 0)
	g.gen = math.MaxUint32
	g.forget(1)
	if g.twice(f, f.Metric[0].Label, 42, 0) {
		t.Error("a series of an earlier family was taken for one of this")
	}
}

func TestEncodeRoundTrip(t *testing.T) {
	fams := awkward()
	text := encodeText(t, fams)
	if d := difference(plain(parse(t, text)), plain(fams)); d != "" {
		t.Error(d)
	}
	if !strings.HasSuffix(text, "\n") {
		t.Error("no newline at the end")
	}
}

type failingWriter struct{ room int }

var errFull = errors.New("no room")

func (w *failingWriter) Write(b []byte) (int, error) {
	if len(b) > w.room {
		n := w.room
		w.room = 0
		return n, errFull
	}
	w.room -= len(b)
	return len(b), nil
}

func TestEncodeToReportsTheWritersError(t *testing.T) {
	fams := awkward()
	size := len(encodeText(t, fams))
	for _, room := range []int{0, 1, 64 << 10, size / 2, size - 1} {
		if err := EncodeTo(&failingWriter{room}, fams, nil); !errors.Is(err, errFull) {
			t.Errorf("room for %d of %d bytes: %v", room, size, err)
		}
	}
	if err := EncodeTo(&failingWriter{size}, fams, nil); err != nil {
		t.Error(err)
	}
}

func FuzzLabelValueAndHelp(f *testing.F) {
	for _, s := range []string{"", "a", `"`, `\`, "\n", `\n`, "\r\n", "\x00", "\xff", "\uFFFD", " ", "  x ", "\t", "日本", "}", "#", "\\\n\"", "\u2028"} {
		f.Add(s, s, 1.5)
	}
	f.Fuzz(func(t *testing.T, value, help string, number float64) {
		value, help = strings.ToValidUTF8(value, "\uFFFD"), strings.ToValidUTF8(help, "\uFFFD")
		fams := []*dto.MetricFamily{
			family("x_gauge", help, dto.MetricType_GAUGE, gauge(number, pairs("a", value)...), gauge(number, pairs("a", value+"2", "b", value)...)),
			family("x_last", "last", dto.MetricType_COUNTER, counter(1)),
		}
		want := plain(fams)
		if trimmed := strings.TrimLeft(help, " \t"); trimmed != help {
			// The format drops leading blanks of HELP.
			want = plain([]*dto.MetricFamily{family("x_gauge", trimmed, dto.MetricType_GAUGE, fams[0].Metric...), fams[1]})
		}
		if d := difference(plain(parse(t, encodeText(t, fams))), want); d != "" {
			t.Error(d)
		}
	})
}

// Whatever the names and values are, readers accept the output, and it has no label that
// makes node_exporter exit.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{"", "a", "__a", "a-b", "1", "\xff", "a{", "a 1\nb", `a"`, "le", "quantile", "__name__"} {
		f.Add(s, "x", "a", s, s, "v", uint8(0))
		f.Add("x", "x", s, "v", "b", s, uint8(1))
		f.Add("x", s, "a", s, s, "v", uint8(2))
	}
	f.Fuzz(func(t *testing.T, name1, name2, label1, value1, label2, value2 string, typ uint8) {
		fams := []*dto.MetricFamily{
			family(name1, value1, dto.MetricType(typ%7), counter(1, pairs(label1, value1, label2, value2)...), gauge(1, pairs(label2, value2, label1, value1)...), gauge(1, pairs(label2, value2)...)),
			family(name2, value2, dto.MetricType_GAUGE, gauge(1, pairs(label1, value1)...), gauge(2, pairs(label1, value2)...), gauge(3, pairs(label1, value1, label2, "")...)),
			family("x_last", "last", dto.MetricType_COUNTER, counter(1)),
		}
		text := encodeText(t, fams)
		if text == "" || text[len(text)-1] != '\n' {
			t.Fatalf("no newline at the end of %q", text)
		}
		seen := map[string]bool{}
		for _, f := range parse(t, text) {
			if len(f.Metric) > 1 && f.GetType() != dto.MetricType_COUNTER && f.GetType() != dto.MetricType_GAUGE {
				t.Errorf("%s has type %s", f.GetName(), f.GetType())
			}
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if strings.HasPrefix(l.GetName(), "__") {
						t.Errorf("label %s", l.GetName())
					}
				}
				for line := range plain([]*dto.MetricFamily{{Name: f.Name, Metric: []*dto.Metric{{Label: m.Label}}}}) {
					if !strings.Contains(line, "HELP") && seen[line] {
						t.Errorf("series twice: %s", line)
					}
					seen[line] = true
				}
			}
		}
	})
}
