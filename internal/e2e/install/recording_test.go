package install

import (
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/internal/testkit/need"
)

// recordedRules is the name of the rules, beside which `make check-rules`
// unpacks the recordings.
const recordedRules = "nodeskoop.rules.yml"

// recording is what the rules read of a machine, and which alerts have to fire.
type recording struct {
	name, what, kernel, version string
	length                      time.Duration
	series                      []series
	alerts                      []string
	maybe                       []string // those that may fire or not
}

// String is the recording as a test of promtool: over its whole length these
// alerts fire, and no others.
func (r recording) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# A machine with %s, recorded for %v by\n# `make record NODE=%s`: nodeskoop %s, Linux %s.\n", r.what, r.length.Round(time.Second), r.name, r.version, r.kernel)
	fmt.Fprintf(&b, "rule_files: [%s]\nevaluation_interval: %s\ntests:\n- interval: %s\n  input_series:\n", recordedRules, seconds(recordedEach), seconds(recordedEach))
	for _, s := range r.series {
		fmt.Fprintf(&b, "  - {series: %s, values: '%s'}\n", quoteYAML(s.String()), notation(s.values))
	}
	end := seconds(r.length.Truncate(recordedEach))
	fmt.Fprintf(&b, "  promql_expr_test:\n  - expr: group by (alertname) (max_over_time(ALERTS{alertstate=\"firing\", alertname!~\"%s\"}[%s]))\n    eval_time: %s\n", strings.Join(r.maybe, "|"), end, end)
	if len(r.alerts) == 0 {
		b.WriteString("    exp_samples: []\n")
	} else {
		b.WriteString("    exp_samples:\n")
	}
	for _, a := range r.alerts {
		fmt.Fprintf(&b, "    - {labels: '{alertname=%q}', value: 1}\n", a)
	}
	return b.String()
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)) + "s" }

func quoteYAML(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// String is the series' name and labels.
func (s series) String() string {
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(s.labels)) {
		if k != "__name__" {
			labels = append(labels, fmt.Sprintf("%s=%q", k, s.labels[k]))
		}
	}
	return s.labels["__name__"] + "{" + strings.Join(labels, ", ") + "}"
}

// notation writes samples as promtool reads them: a+bxn is a sample and n more
// that rise by b each, _ is one that is missing, and stale ends a series.
func notation(values []float64) string {
	var words []string
	for i := 0; i < len(values); {
		n := 1
		if math.IsNaN(values[i]) {
			for i+n < len(values) && math.IsNaN(values[i+n]) {
				n++
			}
			i += n
			if i > n { // there was one before
				words = append(words, "stale")
				n--
			}
			if n > 0 && i < len(values) {
				words = append(words, fmt.Sprintf("_x%d", n))
			}
			continue
		}
		step := math.NaN()
		if i+1 < len(values) {
			step = values[i+1] - values[i]
		}
		for i+n < len(values) && values[i+n]-values[i+n-1] == step && exactly(values[i], values[i+n], step) {
			n++
		}
		word := strconv.FormatFloat(values[i], 'f', -1, 64)
		switch {
		case n < 3 && step != 0 || n == 1:
			n = 1
		case step == 0:
			word += fmt.Sprintf("x%d", n-1)
		default:
			sign := "+"
			if step < 0 {
				sign = ""
			}
			word += sign + strconv.FormatFloat(step, 'f', -1, 64) + fmt.Sprintf("x%d", n-1)
		}
		words = append(words, word)
		i += n
	}
	return strings.Join(words, " ")
}

// exactly reports whether a sum from a to b by steps has no error of rounding.
func exactly(a, b, step float64) bool {
	whole := func(f float64) bool { return f == math.Trunc(f) && math.Abs(f) < 1<<53 }
	return step == 0 || whole(a) && whole(b)
}

// expand is what promtool makes of a notation.
func expand(text string) ([]float64, error) {
	var values []float64
	for _, word := range strings.Fields(text) {
		body, times, run := strings.Cut(word, "x")
		n := 0
		if run {
			var err error
			if n, err = strconv.Atoi(times); err != nil {
				return nil, err
			}
		}
		if body == "_" || body == "stale" {
			if !run {
				n = 1
			}
			for range n {
				values = append(values, math.NaN())
			}
			continue
		}
		at := strings.LastIndexAny(body, "+-")
		first, step := body, 0.0
		if at > 0 {
			var err error
			if step, err = strconv.ParseFloat(body[at:], 64); err != nil {
				return nil, err
			}
			first = body[:at]
		}
		v, err := strconv.ParseFloat(first, 64)
		if err != nil {
			return nil, err
		}
		for i := range n + 1 {
			values = append(values, v+float64(i)*step)
		}
	}
	return values, nil
}

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
		{[]float64{0.1, 0.2, 0.3}, "0.1 0.2 0.3"}, // their sum is another
		{[]float64{1e15, 1e15 + 1, 1e15 + 2}, "1000000000000000+1x2"},
		{[]float64{nan, nan, 1, nan, nan, nan, 2, 2}, "_x2 1 stale _x2 2x1"},
		{[]float64{1, 1, nan, nan}, "1x1 stale"},
		{[]float64{nan, nan}, ""},
	} {
		if got := notation(c.values); got != c.want {
			t.Errorf("%v is %q, want %q", c.values, got, c.want)
		}
	}
}

// FuzzNotation: what is written is read again as it was, but for the end of a
// series, where nothing is said.
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
		got, err := expand(notation(values))
		if err != nil {
			t.Fatalf("%q: %v", notation(values), err)
		}
		for i, v := range values {
			if i >= len(got) {
				if !math.IsNaN(v) {
					t.Fatalf("%v is written as %q: sample %d is missing", values, notation(values), i)
				}
			} else if got[i] != v && !(math.IsNaN(v) && math.IsNaN(got[i])) {
				t.Fatalf("%v is written as %q, which is %v", values, notation(values), got)
			}
		}
	})
}

func TestMetricsOf(t *testing.T) {
	got := metricsOf(`sum by (k8s_node) (increase(nodeskoop_events_seen_total{event="up",k8s_pod!~"hostNetwork|kubeskoop_x"}[5m])) > 10 and on (instance) up == 1 unless k8s_node:kubeskoop_conntrack_used:ratio > 1`)
	if d := cmp.Diff([]string{"nodeskoop_events_seen_total", "up"}, got); d != "" {
		t.Error(d)
	}
}

// TestRecording: promtool reads a recording, and says so where an alert fires
// that does not belong there, or one that belongs there does not.
func TestRecording(t *testing.T) {
	need.Program(t, "promtool")
	dir := t.TempDir()
	rules, err := os.ReadFile("../../../packaging/prometheus/" + recordedRules)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, recordedRules), string(rules))
	gauge := func(name string, value float64, labels ...string) series {
		s := series{labels: map[string]string{"__name__": name, "k8s_node": "a's"}}
		for i := 0; i < len(labels); i += 2 {
			s.labels[labels[i]] = labels[i+1]
		}
		for range 61 {
			s.values = append(s.values, value)
		}
		return s
	}
	well := gauge("nodeskoop_probe_up", 1, "probe", "tcp")
	down := gauge("nodeskoop_probe_up", 0, "probe", `a "probe"`)
	for _, c := range []struct {
		name   string
		series []series
		alerts []string
		maybe  []string
		passes bool
	}{
		{"well", []series{well}, nil, nil, true},
		{"down", []series{well, down}, []string{"NodeskoopProbeDown"}, nil, true},
		{"down-untold", []series{down}, nil, nil, false},
		{"down-perhaps", []series{down}, nil, []string{"Other", "NodeskoopProbeDown"}, true},
		{"well-told", []series{well}, []string{"NodeskoopProbeDown"}, nil, false},
	} {
		r := recording{name: c.name, what: "nothing", length: 30 * time.Minute, series: c.series, alerts: c.alerts, maybe: c.maybe}
		file := filepath.Join(dir, c.name+".yml")
		writeFile(t, file, r.String())
		out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput()
		if (err == nil) != c.passes {
			t.Errorf("%s: promtool: %v\n%s\n%s", c.name, err, out, r)
		}
	}
}
