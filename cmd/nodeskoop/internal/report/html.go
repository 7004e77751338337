package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/quote"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// largestPage is the maximum size of a page. Names may be long, and longer when
// escaped, so a page that exceeds the limit shows fewer rows.
const largestPage = 480_000

// limits are the maximum numbers of rows on a page.
type limits struct{ kinds, lanes, gaps int }

// WriteHTML writes the report as one self-contained page without scripts.
func (r *Report) WriteHTML(w io.Writer) error {
	for l := (limits{200, 40, 100}); ; l = (limits{l.kinds / 2, l.lanes / 2, l.gaps / 2}) {
		var b bytes.Buffer
		if err := pageTemplate.Execute(&b, r.page(l)); err != nil {
			return fmt.Errorf("make the page: %w", err)
		}
		if b.Len() <= largestPage || l.kinds == 0 {
			_, err := w.Write(b.Bytes())
			return err
		}
	}
}

// page is the data of the template. All texts are safe for a terminal; the template
// escapes them for HTML.
type page struct {
	Version, Subject, Span, Headline, Held string
	Quiet                                  bool
	Days                                   bool // times have a date
	Suppressed                             uint64
	Unknown                                []string

	Ticks     []tick
	Places    int // number of places of a timeline
	GapPath   string
	Lanes     []laneRow
	LaneWords string

	Rows      []kindRow
	KindWords string

	GapRows  []gapRow
	GapWords string

	Tables []counterTable

	Figures     []figure
	FigureWords string

	Meanings []meaning
	Foot     string
}

type tick struct {
	Text string
	Wide bool // only if the page is wide enough
}

type laneRow struct {
	Event, Whose, Total, Path string
	Warning                   bool
}

type kindRow struct {
	Total, Event, Whose, Peer, Reason, Worst, First, Last, Message string
	Warning                                                        bool
}

type gapRow struct{ When, Why string }

type counterTable struct {
	Title, Words string
	Rows         []counterRow
}

type counterRow struct{ Rose, Expected, Whose, Name, Help, MostAt, Path string }

type figure struct {
	Name, Words, Path, Before, Low, High string
	Places                               int
}

type meaning struct {
	Name, Summary string
	Explain       []string
	Next          []catalog.Step
}

// The maximum lengths of texts on a page. A message may be longer than a name.
const (
	maxName    = 120
	maxMessage = 300
)

// short shortens a text for a table cell.
func short(s string) string { return column.Middle(quote.Safe(s), maxName) }

// leftOut says how many items are not shown.
func leftOut(n int, what string) string {
	if n <= 0 {
		return ""
	}
	return number(float64(n)) + " more " + what + " are not shown."
}

// join makes one paragraph of sentences and skips empty ones.
func join(sentences ...string) string {
	return strings.Join(slices.DeleteFunc(sentences, func(s string) bool { return s == "" }), " ")
}

func (r *Report) page(l limits) *page {
	p := &page{Version: r.Version, Subject: short(r.Node), Span: r.Span(), Headline: r.Headline(), Held: number(float64(r.Suppressed)), Quiet: r.Quiet, Days: r.clock() != dayTime, Suppressed: r.Suppressed, Places: r.places()}
	if len(r.Pods) > 0 {
		p.Subject = short(strings.Join(r.Pods, ", ")) + " on " + p.Subject
	}
	for _, u := range r.Unknown {
		p.Unknown = append(p.Unknown, column.Middle(quote.SafeLine(u), maxMessage))
	}
	p.timeline(r, l)
	p.events(r, l)
	for _, g := range r.Gaps[:min(len(r.Gaps), l.gaps)] {
		p.GapRows = append(p.GapRows, gapRow{r.gapTime(g), short(g.Why)})
	}
	p.GapWords = leftOut(len(r.Gaps)-l.gaps, "gaps")
	for _, t := range []struct {
		title string
		list  []Counter
		words string
	}{
		{"Counters that stand out", r.Counters, join("Expected is the increase at the rate of the hour before, scaled up where there were more packets.", leftOut(r.MoreCounters, "counters"))},
		{"More work than in the hour before", r.Traffic, ""},
	} {
		// If nothing happened, the first line is all there is.
		if len(t.list) > 0 && !r.empty() {
			p.Tables = append(p.Tables, r.counterTable(t.title, t.list, t.words))
		}
	}
	if !r.empty() {
		for i := range r.Distributions {
			p.Figures = append(p.Figures, r.Distributions[i].figure())
		}
		p.FigureWords = leftOut(r.MoreDistributions, "distributions")
	}
	for _, t := range r.Types() {
		p.Meanings = append(p.Meanings, meaning{t.Name, t.Summary, strings.Split(t.Explain, "\n\n"), t.Next})
	}
	p.Foot = "Made by nodeskoop " + r.Version + " on " + r.Made.Local().Format("2006-01-02 15:04:05 MST") + " from the node's journal and history. The counts of an entry that stands for many are those of all of it, also where it began before or ended after this time."
	return p
}

// ticks is the number of labels on the time axis. A phone shows every second one.
const ticks = 5

func (p *page) timeline(r *Report, l limits) {
	clock := "15:04"
	switch length := r.Until.Sub(r.Since); {
	case length < 10*time.Minute:
		clock = "15:04:05"
	case r.clock() != dayTime:
		clock = "01-02 15:04"
	}
	for i := range ticks {
		at := r.Since.Add(r.Until.Sub(r.Since) * time.Duration(i) / (ticks - 1))
		p.Ticks = append(p.Ticks, tick{at.Local().Format(clock), i%2 == 1})
	}
	gaps := make([]float64, p.Places)
	for _, g := range r.Gaps {
		from := int(max(0, g.From.Sub(r.Since)) / r.Step)
		for i := from; i < len(gaps) && (i == from || r.Since.Add(time.Duration(i)*r.Step).Before(g.To)); i++ {
			gaps[i] = 1
		}
	}
	if slices.Max(gaps) > 0 {
		p.GapPath = barPath(gaps)
	}
	shown := r.story(l.lanes)
	for _, lane := range shown {
		p.Lanes = append(p.Lanes, laneRow{lane.Event, short(lane.Whose), number(float64(lane.Count)), barPath(lane.Counts), lane.Warning})
	}
	what := "A bar is " + lasting(r.Step) + "; its height is the square root of the count, scaled for each row."
	if p.GapPath != "" {
		what += " Where the ground is red there are no samples."
	}
	p.LaneWords = join(what, leftOut(len(r.Timeline)-len(shown), "rows"))
}

func (p *page) events(r *Report, l limits) {
	shown := r.Kinds[:min(len(r.Kinds), l.kinds)]
	clock := r.clock()
	for i := range shown {
		k := &shown[i]
		message := k.Message
		if column.Width(message) > maxMessage {
			message = column.Pad(message, maxMessage, true)
		}
		p.Rows = append(p.Rows, kindRow{number(float64(k.Count)), k.Event, short(k.Whose), short(k.Peer), short(k.Reason), latency(k.Worst), k.First.Local().Format(clock), k.Last.Local().Format(clock), message, k.Warning()})
	}
	more := leftOut(len(r.Kinds)-len(shown), "kinds")
	if r.MoreEvents > 0 {
		more = join(more, number(float64(r.MoreEvents))+" events are of further kinds.")
	}
	p.KindWords = more
}

func (r *Report) counterTable(title string, list []Counter, words string) counterTable {
	t := counterTable{Title: title, Words: words}
	for i := range list {
		c := &list[i]
		expected := "not known"
		if c.Known {
			expected = number(c.Expected)
		}
		minutes := c.Minutes
		if minutes == nil {
			minutes = make([]float64, r.places())
		}
		t.Rows = append(t.Rows, counterRow{number(c.Rose), expected, short(c.Whose), column.Middle(c.name(), maxName), c.Help(), c.MostAt.Local().Format(r.minuteClock()), barPath(minutes)})
	}
	return t
}

// barPath draws counts as an SVG path, 24 units high and one unit wide each.
func barPath(counts []float64) string {
	top := slices.Max(counts)
	var b []byte
	for i, n := range counts {
		if n <= 0 {
			continue
		}
		// Even one occurrence among a million is visible.
		h := max(1.5, 24*height(n, top))
		b = append(b, 'M')
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, " 24v-"...)
		b = strconv.AppendFloat(b, h, 'f', 1, 64)
		b = append(b, "h1V24z"...)
	}
	return string(b)
}

// figure draws a distribution.
func (d *Distribution) figure() figure {
	f := figure{Name: d.name(), Words: d.words(), Places: len(d.Now), Low: "up to " + seconds(d.Bounds[0]), High: "over " + seconds(d.Bounds[len(d.Bounds)-1])}
	f.Name = column.Middle(f.Name, maxName)
	share := func(buckets []float64) []float64 {
		all := Count(buckets)
		out := make([]float64, len(buckets))
		for i, n := range buckets {
			if all > 0 {
				out[i] = n / all
			}
		}
		return out
	}
	now, before := share(d.Now), share(d.Before)
	top := max(slices.Max(now), slices.Max(before))
	var bars, line []byte
	for i := range now {
		if now[i] > 0 {
			bars = fmt.Appendf(bars, "M%.2f 24v-%.1fh.9V24z", float64(i)+.05, max(.6, 23*height(now[i], top)))
		}
		y := 24 - 23*height(before[i], top)
		if i == 0 {
			line = fmt.Appendf(line, "M0 %.1fh1", y)
		} else {
			line = fmt.Appendf(line, "V%.1fh1", y)
		}
	}
	f.Path = string(bars)
	if Count(d.Before) > 0 {
		f.Before = string(line)
	}
	return f
}

// seconds writes a bound.
func seconds(s float64) string {
	return strings.Replace(string(event.AppendLatency(nil, time.Duration(s*float64(time.Second)))), ".0", "", 1)
}
