// Package recording stores samples of a machine in the notation of promtool's tests, so
// that a file of some kilobytes can restore what Prometheus had.
package recording

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Series is one series of a recording, with one sample per step; NaN: missing.
type Series struct {
	Labels map[string]string
	Values []float64
}

// String returns the series' name and labels.
func (s Series) String() string {
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if k != "__name__" {
			labels = append(labels, fmt.Sprintf("%s=%q", k, s.Labels[k]))
		}
	}
	return s.Labels["__name__"] + "{" + strings.Join(labels, ", ") + "}"
}

// Line returns the series as an element of input_series.
func (s Series) Line() string {
	return fmt.Sprintf("  - {series: '%s', values: '%s'}\n", strings.ReplaceAll(s.String(), "'", "''"), Notation(s.Values))
}

// Notation writes samples in promtool's notation: a+bxn is a sample and n more that rise by
// b each, _ is a missing sample, and stale ends a series.
func Notation(values []float64) string {
	var words []string
	for i := 0; i < len(values); {
		n := 1
		if math.IsNaN(values[i]) {
			for i+n < len(values) && math.IsNaN(values[i+n]) {
				n++
			}
			i += n
			if i > n { // there is an earlier sample
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

// exactly reports whether stepping from a to b has no rounding error.
func exactly(a, b, step float64) bool {
	whole := func(f float64) bool { return f == math.Trunc(f) && math.Abs(f) < 1<<53 }
	return step == 0 || whole(a) && whole(b)
}

// Expand parses the notation as promtool does.
func Expand(text string) ([]float64, error) {
	const most = 1 << 20
	var values []float64
	for _, word := range strings.Fields(text) {
		body, times, run := strings.Cut(word, "x")
		n := 0
		if run {
			var err error
			if n, err = strconv.Atoi(times); err != nil {
				return nil, err
			}
			if n < 0 || n > most-len(values) {
				return nil, fmt.Errorf("%q repeats a sample %d times", word, n)
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

// Read reads the series of a recording, a gzipped promtool test, and the time between two
// samples.
func Read(file string) (list []Series, step time.Duration, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", file, err)
	}
	if list, step, err = parse(z); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", file, err)
	}
	return list, step, nil
}

func parse(r io.Reader) (list []Series, step time.Duration, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, "- interval: "); ok {
			if step, err = time.ParseDuration(text); err != nil {
				return nil, 0, fmt.Errorf("line %d: %w", n, err)
			}
		}
		rest, ok := strings.CutPrefix(line, "  - {series: '")
		if !ok {
			continue
		}
		const between = "', values: '"
		at := strings.LastIndex(rest, between) // the last match, since a label may contain the text
		notation, ok := strings.CutSuffix(rest[max(at, 0):], "'}")
		if at < 0 || !ok {
			return nil, 0, fmt.Errorf("line %d: %.80q is no series and its values", n, line)
		}
		s := Series{}
		if s.Labels, err = labels(strings.ReplaceAll(rest[:at], "''", "'")); err == nil {
			s.Values, err = Expand(notation[len(between):])
		}
		if err != nil {
			return nil, 0, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, s)
	}
	if step <= 0 && len(list) > 0 {
		return nil, 0, fmt.Errorf("no line says the time between two samples (interval)")
	}
	return list, step, lines.Err()
}

// labels parses a series' name and labels, as written by String.
func labels(text string) (map[string]string, error) {
	name, rest, ok := strings.Cut(text, "{")
	out := map[string]string{"__name__": name}
	for first := true; ok && rest != "}"; first = false {
		if !first {
			if rest, ok = strings.CutPrefix(rest, ", "); !ok {
				break
			}
		}
		var key, quoted, value string
		if key, rest, ok = strings.Cut(rest, "="); !ok {
			break
		}
		var err error
		if quoted, err = strconv.QuotedPrefix(rest); err == nil {
			value, err = strconv.Unquote(quoted)
		}
		if err != nil {
			return nil, fmt.Errorf("the label %s of %.80q: %w", key, text, err)
		}
		out[key], rest = value, rest[len(quoted):]
	}
	if !ok {
		return nil, fmt.Errorf("%.80q is no name and labels of a series", text)
	}
	return out, nil
}

// OpenMetrics writes series as `promtool tsdb create-blocks-from openmetrics` reads them.
// The first sample is at start. Metrics whose values are times count them from the start of
// the recording, and are converted to Unix time.
func OpenMetrics(w io.Writer, list []Series, start time.Time, step time.Duration) error {
	b := bufio.NewWriter(w)
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(x, y Series) int { return strings.Compare(x.Labels["__name__"], y.Labels["__name__"]) })
	last := ""
	for _, s := range list {
		name := s.Labels["__name__"]
		if name != last {
			fmt.Fprintf(b, "# TYPE %s unknown\n", name)
			last = name
		}
		var text []string
		for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
			if k != "__name__" {
				text = append(text, k+`="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s.Labels[k])+`"`)
			}
		}
		for i, v := range s.Values {
			if math.IsNaN(v) {
				continue
			}
			if strings.HasSuffix(name, "_timestamp_seconds") {
				v += float64(start.Unix())
			}
			fmt.Fprintf(b, "%s{%s} %s %d\n", name, strings.Join(text, ","), strconv.FormatFloat(v, 'f', -1, 64), start.Add(time.Duration(i)*step).Unix())
		}
	}
	fmt.Fprintln(b, "# EOF")
	return b.Flush()
}
