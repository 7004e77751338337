package report

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/collect/event"
	"nodeskoop/internal/quote"
)

// The limits of the text, which fits one or two screens.
const (
	textKinds         = 20
	textLanes         = 15
	textGaps          = 15
	textCounters      = 12
	textDistributions = 8
)

// leastWidth is the minimum width that the text supports.
const leastWidth = 60

// Write writes the report for a terminal of the given width in columns; 0 means 80. If
// nothing happened, it writes one line, followed by what is not known.
func (r *Report) Write(w io.Writer, width int) error {
	if width <= 0 {
		width = 80
	}
	t := text{Report: r, width: max(width, leastWidth)}
	t.head()
	if !r.empty() {
		t.kinds()
		t.timeline()
		t.gaps()
		t.counters("COUNTERS THAT STAND OUT against the hour before", r.Counters, r.MoreCounters)
		t.counters("MORE WORK than in the hour before", r.Traffic, 0)
		t.distributions()
		t.means()
	}
	_, err := w.Write(t.b.Bytes())
	return err
}

// text is a Report being written.
type text struct {
	*Report
	b     bytes.Buffer
	width int
}

func (t *text) line(s string) {
	for _, l := range column.Wrap(s, t.width) {
		t.b.WriteString(l + "\n")
	}
}

// under writes a paragraph whose further lines are indented.
func (t *text) under(s string) {
	for i, l := range column.Wrap(s, t.width-2) {
		if i > 0 {
			l = "  " + l
		}
		t.b.WriteString(l + "\n")
	}
}

func (t *text) section(title string) { t.b.WriteString("\n" + title + "\n") }

func (t *text) left(n int, what string) {
	if n > 0 {
		t.line(fmt.Sprintf("and %s more %s", number(float64(n)), what))
	}
}

const (
	fullTime = "2006-01-02 15:04:05"
	dayTime  = "15:04:05"
)

// clock formats times of the report, with the date if it covers several days.
func (r *Report) clock() string {
	if r.Since.Local().Format(time.DateOnly) == r.Until.Local().Format(time.DateOnly) {
		return dayTime
	}
	return "01-02 " + dayTime
}

// minuteClock formats minutes of the report, with the date if it covers several days.
func (r *Report) minuteClock() string { return strings.TrimSuffix(r.clock(), ":05") }

// Span formats the report's time: "2026-11-27 03:00:00 to 04:00:00 CET". If summer time
// begins or ends in it, both ends have their zone.
func (r *Report) Span() string {
	since, until := fullTime, dayTime
	if r.clock() != dayTime {
		until = fullTime
	}
	_, before := r.Since.Local().Zone()
	if _, after := r.Until.Local().Zone(); before != after {
		since += " MST"
	}
	return r.Since.Local().Format(since) + " to " + r.Until.Local().Format(until+" MST")
}

func (t *text) head() {
	subject := quote.Safe(t.Node)
	if len(t.Pods) > 0 {
		subject = quote.Safe(strings.Join(t.Pods, ", ")) + " on " + subject
	}
	t.line(subject + ", " + t.Span())
	t.line(t.Headline())
	if t.Suppressed > 0 {
		t.line(fmt.Sprintf("Rate limits suppressed %s more events.", number(float64(t.Suppressed))))
	}
	for _, u := range t.Unknown {
		t.line(quote.SafeLine(u))
	}
}

func (t *text) kinds() {
	if len(t.Kinds) == 0 {
		return
	}
	t.section("EVENTS, warnings first")
	clock := t.clock()
	for i := range t.Kinds[:min(len(t.Kinds), textKinds)] {
		k := &t.Kinds[i]
		when := k.First.Local().Format(clock)
		if last := k.Last.Local().Format(clock); last != when {
			when += " to " + last
		}
		first := fmt.Sprintf("%8s  %s  ", number(float64(k.Count)), k.Event)
		room := t.width - len(first) - len(when) - 2
		t.b.WriteString(first + column.Pad(column.Middle(k.Whose, room), room, true) + "  " + when + "\n")
		var more []string
		if k.Worst > 0 {
			more = append(more, "up to "+latency(k.Worst))
		}
		for _, s := range []string{k.Reason, k.Peer} {
			if s != "" {
				more = append(more, s)
			}
		}
		if len(more) > 0 {
			t.b.WriteString("          " + strings.TrimRight(column.Pad(strings.Join(more, ", "), t.width-10, true), " ") + "\n")
		}
	}
	t.left(len(t.Kinds)-textKinds, "kinds")
	if t.MoreEvents > 0 {
		t.line(number(float64(t.MoreEvents)) + " events are of further kinds.")
	}
}

// blocks draw amounts.
var blocks = []rune("▁▂▃▄▅▆▇█")

// bars draws counts in some columns.
func bars(counts []float64, columns int) string {
	sums := resample(counts, columns)
	top := slices.Max(sums)
	out := make([]rune, columns)
	for i, n := range sums {
		if out[i] = ' '; n > 0 {
			out[i] = blocks[min(len(blocks)-1, int(height(n, top)*float64(len(blocks))))]
		}
	}
	return string(out)
}

// height is the height of a bar, from 0 to 1. The square root keeps small counts
// visible beside large ones.
func height(n, top float64) float64 {
	if top <= 0 {
		return 0
	}
	return math.Sqrt(n / top)
}

// resample distributes counts over another number of places.
func resample(counts []float64, places int) []float64 {
	out := make([]float64, places)
	for i, n := range counts {
		from, to := float64(i)*float64(places)/float64(len(counts)), float64(i+1)*float64(places)/float64(len(counts))
		for at := from; at < to-1e-9; {
			p := min(places-1, int(at+1e-9))
			next := min(to, float64(p+1))
			out[p] += n * (next - at) / (to - from)
			if next <= at {
				break
			}
			at = next
		}
	}
	for i := range out {
		if out[i] < 1e-6 {
			out[i] = 0
		}
	}
	return out
}

func (t *text) timeline() {
	if len(t.Timeline) == 0 {
		return
	}
	t.section("WHEN")
	lanes := t.story(textLanes)
	name := 0
	for _, l := range lanes {
		name = max(name, column.Width(l.Whose+" "+l.Event))
	}
	name = min(name, t.width/2)
	room := t.width - name - 2
	for _, l := range lanes {
		t.b.WriteString(column.Pad(laneName(l, name), name, true) + "  " + strings.TrimRight(bars(l.Counts, room), " ") + "\n")
	}
	begin, end := t.Since.Local().Format(t.minuteClock()), t.Until.Local().Format(t.minuteClock())
	t.b.WriteString(strings.Repeat(" ", name+2) + begin + strings.Repeat(" ", max(1, room-len(begin)-len(end))) + end + "\n")
	t.left(len(t.Timeline)-textLanes, "rows")
}

// laneName formats the owner and the type of a lane in the given width.
func laneName(l Lane, width int) string {
	return column.Middle(l.Whose, max(8, width-len(l.Event)-1)) + " " + l.Event
}

func (t *text) gaps() {
	if len(t.Gaps) == 0 {
		return
	}
	t.section("GAPS in sampling")
	for _, g := range t.Gaps[:min(len(t.Gaps), textGaps)] {
		t.under(t.gapTime(g) + ": " + g.Why)
	}
	t.left(len(t.Gaps)-textGaps, "gaps")
}

// gapTime formats the time and the length of a gap.
func (r *Report) gapTime(g Gap) string {
	clock := r.clock()
	if d := g.To.Sub(g.From); d >= time.Second {
		return g.From.Local().Format(clock) + " to " + g.To.Local().Format(clock) + " (" + lasting(d) + ")"
	}
	return g.From.Local().Format(clock)
}

// usualPrefix is the common prefix of almost all counter names. The text shows it
// once, in the head of the column.
const usualPrefix = "kubeskoop_"

// name is the counter with its labels.
func (c *Counter) name() string {
	if c.Labels == "" {
		return c.Metric
	}
	return c.Metric + " " + c.Labels
}

func (t *text) counters(title string, list []Counter, more int) {
	if len(list) == 0 {
		return
	}
	t.section(title)
	rows := [][]string{{"ROSE BY", "EXPECTED", "MOST AT", "WHOSE", "COUNTER " + usualPrefix}}
	for i := range list[:min(len(list), textCounters)] {
		c := &list[i]
		expected := "-"
		if c.Known {
			expected = number(c.Expected)
		}
		rows = append(rows, []string{number(c.Rose), expected, c.MostAt.Local().Format(t.minuteClock()), column.Middle(c.Whose, max(18, t.width/3-6)), strings.TrimPrefix(c.name(), usualPrefix)})
	}
	var table bytes.Buffer
	_ = column.Write(&table, rows) // writing to a buffer never fails
	for l := range strings.Lines(table.String()) {
		t.b.WriteString(strings.TrimRight(column.Pad(strings.TrimSuffix(l, "\n"), t.width, true), " ") + "\n")
	}
	t.left(max(0, len(list)-textCounters)+more, "counters")
}

func (t *text) distributions() {
	if len(t.Distributions) == 0 {
		return
	}
	t.section("HOW LONG IT TOOK")
	for i := range t.Distributions[:min(len(t.Distributions), textDistributions)] {
		d := &t.Distributions[i]
		t.under(d.name() + ": " + d.words())
	}
	t.left(max(0, len(t.Distributions)-textDistributions)+t.MoreDistributions, "distributions")
}

func (d *Distribution) name() string {
	name := quote.Safe(strings.TrimSuffix(strings.TrimPrefix(d.Metric, "nodeskoop_"), "_seconds")) // perhaps another version's
	for _, s := range []string{d.Labels, d.Whose} {
		if s != "" && s != "host" {
			name += " " + s
		}
	}
	return name
}

// words formats a distribution's median and 99th percentile, now and before.
func (d *Distribution) words() string {
	of := func(buckets []float64) string {
		return "p50 " + d.quantile(0.5, buckets) + ", p99 " + d.quantile(0.99, buckets)
	}
	s := of(d.Now) + " of " + number(Count(d.Now))
	if Count(d.Before) > 0 {
		s += " (the hour before: " + of(d.Before) + ")"
	}
	return s
}

// quantile formats one quantile: 12.3ms, over 10.0s, or - if there is none.
func (d *Distribution) quantile(q float64, buckets []float64) string {
	seconds, over, ok := d.Quantile(q, buckets)
	if !ok {
		return "-"
	}
	s := string(event.AppendLatency(nil, time.Duration(seconds*float64(time.Second))))
	if over {
		return "over " + s
	}
	return s
}

func (t *text) means() {
	types := t.Types()
	if len(types) == 0 {
		return
	}
	t.section("WHAT THE EVENTS MEAN (nodeskoop docs events has more)")
	for _, e := range types {
		t.under(e.Name + ": " + e.Summary)
	}
}
