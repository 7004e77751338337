package recording

import (
	"compress/gzip"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestNotation(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{nil, ""},
		{[]float64{7}, "7"},
		{[]float64{0, 0, 0, 0}, "0x3"},
		{[]float64{0.25, 0.25}, "0.25x1"},
		{[]float64{1, 3}, "1 3"},
		{[]float64{1, 3, 5, 7, 7, 7, 8}, "1+2x3 7x1 8"},
		{[]float64{9, 6, 3, 0}, "9-3x3"},
		{[]float64{-4, -2, 0}, "-4+2x2"},
		{[]float64{0.1, 0.2, 0.3}, "0.1 0.2 0.3"}, // sums of steps would differ
		{[]float64{1e15, 1e15 + 1, 1e15 + 2}, "1000000000000000+1x2"},
		{[]float64{nan, nan, 1, nan, nan, nan, 2, 2}, "_x2 1 stale _x2 2x1"},
		{[]float64{1, 1, nan, nan}, "1x1 stale"},
		{[]float64{nan, nan}, ""},
	} {
		if got := Notation(c.values); got != c.want {
			t.Errorf("%v is %q, want %q", c.values, got, c.want)
		}
	}
}

// FuzzNotation: what is written is read back unchanged, except for missing samples at the
// end of a series.
func FuzzNotation(f *testing.F) {
	f.Add([]byte{1, 1, 1, 255, 255, 4, 6, 8, 0}, false)
	f.Add([]byte{255, 9, 255}, true)
	f.Fuzz(func(t *testing.T, b []byte, fraction bool) {
		var values []float64
		sum := 0.0
		for _, c := range b {
			if c == 255 {
				values = append(values, math.NaN())
				continue
			}
			sum += float64(c>>4) - 3
			if fraction {
				sum += 0.125
			}
			values = append(values, sum)
		}
		got, err := Expand(Notation(values))
		if err != nil {
			t.Fatalf("%q: %v", Notation(values), err)
		}
		for i, v := range values {
			if i >= len(got) {
				if !math.IsNaN(v) {
					t.Fatalf("%v is written as %q: sample %d is missing", values, Notation(values), i)
				}
			} else if got[i] != v && !(math.IsNaN(v) && math.IsNaN(got[i])) {
				t.Fatalf("%v is written as %q, which is %v", values, Notation(values), got)
			}
		}
	})
}

// TestRead: what is written is read back unchanged, also labels of any content.
func TestRead(t *testing.T) {
	nan := math.NaN()
	want := []Series{
		{Labels: map[string]string{"__name__": "a_total", "k8s_pod": `it's "web-0", {x="y"}', values: '`}, Values: []float64{1, 2, 3, nan, 5}},
		{Labels: map[string]string{"__name__": "b_timestamp_seconds"}, Values: []float64{0, 30}},
	}
	file := filepath.Join(t.TempDir(), "x.yml.gz")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	text := "# of a machine\ntests:\n- interval: 30s\n  input_series:\n" + want[0].Line() + want[1].Line() + "  promql_expr_test:\n"
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	got, step, err := Read(file)
	if err != nil || step != 30*time.Second {
		t.Fatalf("%v, %v", step, err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateNaNs()); d != "" {
		t.Error(d)
	}
	var b strings.Builder
	if err := OpenMetrics(&b, got, time.Unix(1000, 0), step); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(`# TYPE a_total unknown
a_total{k8s_pod="it's \"web-0\", {x=\"y\"}', values: '"} 1 1000
a_total{k8s_pod="it's \"web-0\", {x=\"y\"}', values: '"} 2 1030
a_total{k8s_pod="it's \"web-0\", {x=\"y\"}', values: '"} 3 1060
a_total{k8s_pod="it's \"web-0\", {x=\"y\"}', values: '"} 5 1120
# TYPE b_timestamp_seconds unknown
b_timestamp_seconds{} 1000 1000
b_timestamp_seconds{} 1030 1030
# EOF
`, b.String()); d != "" {
		t.Error(d)
	}
}

func TestReadRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"  - {series: 'a{}', values: '1x", "is no series and its values"},
		{"  - {series: 'a', values: '1'}", "is no name and labels"},
		{`  - {series: 'a{b=c}', values: '1'}`, "the label b"},
		{`  - {series: 'a{b="c"x="d"}', values: '1'}`, "is no name and labels"},
		{"  - {series: 'a{}', values: '1x99999999'}", "repeats a sample"},
		{"  - {series: 'a{}', values: 'one'}", "invalid syntax"},
		{"- interval: soon", "invalid duration"},
		{"  - {series: 'a{}', values: '1'}", "time between two samples"},
	} {
		if _, _, err := parse(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.text, err, c.want)
		}
	}
}

// FuzzRead: no input makes the reader panic or use unbounded memory, and what it reads is
// read back unchanged after writing.
func FuzzRead(f *testing.F) {
	f.Add("- interval: 30s\n" + Series{Labels: map[string]string{"__name__": "a", "b": "c"}, Values: []float64{1, 2, 4}}.Line())
	f.Add("- interval: 1m\n  - {series: 'a{b=\"\\n''\"}', values: '_x2 1-1x3 stale'}\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, step, err := parse(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range list {
			again, _, err := parse(strings.NewReader("- interval: " + step.String() + "\n" + s.Line()))
			if err != nil || len(again) != 1 {
				t.Fatalf("%q is written as %q, which gives %v (%v)", text, s.Line(), again, err)
			}
			if d := cmp.Diff(s.Labels, again[0].Labels); d != "" {
				t.Fatal(d)
			}
		}
	})
}
