package output

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit"
)

// TestGoldenTextfile records the text of series with all kinds of names and numbers, and of
// the families with series that the guard drops, together with the log.
func TestGoldenTextfile(t *testing.T) {
	var out, log bytes.Buffer
	numbers := []float64{0, 1, -1, 1 << 32, 1 << 53, math.MaxUint64, 0.1, 1.5e-9, 1e21, 123456789.125, math.MaxFloat64,
		math.SmallestNonzeroFloat64, math.NaN(), math.Inf(1), math.Inf(-1)}
	var series []*dto.Metric
	for i, n := range numbers {
		series = append(series, gauge(n, pairs("number", strconv.Itoa(i))...))
	}
	for _, name := range nasty {
		series = append(series, gauge(1, pairs("k8s_namespace", "default", "k8s_pod", name)...))
	}
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	encode := func(name string, fams []*dto.MetricFamily) {
		log.Reset()
		fmt.Fprintf(&out, "== %s\n", name)
		if err := EncodeTo(&out, fams, logger); err != nil {
			t.Fatal(err)
		}
		out.Write(log.Bytes())
	}
	encode("numbers and names", []*dto.MetricFamily{family("nodeskoop_test", "A HELP with a \\ and a\nnewline.", dto.MetricType_GAUGE, series...)})
	for _, c := range guardCases {
		encode(c.name, c.families)
	}
	testkit.Golden(t, "textfile.golden", out.Bytes())
}

// inEveryForm calls f with an event of every type, and with one that has every field.
func inEveryForm(f func(name string, e *event.Event)) {
	for _, typ := range catalog.Events() {
		f(typ.Name, eventOf(typ))
	}
	for _, name := range slices.Sorted(maps.Keys(variants)) {
		if name != "long" { // the size has a test of its own
			e := eventOf(catalog.EventByName("PacketLoss"))
			variants[name](e)
			f("PacketLoss, "+name, e)
		}
	}
}

// TestGoldenJournal records events' entries in journald's native protocol: a line per
// field, except for values of several lines, which are preceded by their length.
func TestGoldenJournal(t *testing.T) {
	var out bytes.Buffer
	var c journalEncoder
	c.init()
	inEveryForm(func(name string, e *event.Event) {
		c.encode(e, false)
		fmt.Fprintf(&out, "== %s\n", name)
		for line := range bytes.Lines(c.buf) {
			quoted := strconv.Quote(string(line))
			fmt.Fprintf(&out, "%s\n", quoted[1:len(quoted)-1])
		}
	})
	testkit.Golden(t, "journal.golden", out.Bytes())
}

// TestGoldenTerminal records the terminal's lines: plain, coloured, and as JSON.
func TestGoldenTerminal(t *testing.T) {
	var events []*event.Event
	inEveryForm(func(_ string, e *event.Event) { events = append(events, e) })
	var out bytes.Buffer
	for _, opt := range []TerminalOptions{{Color: ColorNever}, {Color: ColorAlways}, {JSON: true}} {
		fmt.Fprintf(&out, "== %+v\n", opt)
		for line := range bytes.Lines([]byte(printed(t, opt, events...))) {
			out.Write(bytes.ReplaceAll(line, []byte("\x1b"), []byte(`\x1b`)))
		}
	}
	testkit.Golden(t, "terminal.golden", out.Bytes())
}
