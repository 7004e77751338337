package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/quote"
	"nodeskoop/output/history"
)

func historyCommand() *cli.Command {
	return &cli.Command{
		Name:  "history",
		Usage: "print which counters moved in each minute, from the record that the daemon keeps on the node",
		Description: "Each line has the start of a minute, the increase of a counter in that minute, and its series. For a gauge that moved by more\n" +
			"than an eighth, the line has its last value and, if that was higher, its highest value in the minute. A gap without samples is\n" +
			"a line that begins with --.",
		Flags: append(append(commonFlags(), pastFlags("minutes that begin", ", an hour before --until if it is not given")...),
			podFlag("only series of `NAMESPACE/NAME`; NAME alone is in any namespace; \"host\" is the host"),
			&cli.StringSliceFlag{Name: "metric", Usage: "only metrics of this `NAME`; * and ? match as in a shell", EnvVars: []string{"NODESKOOP_METRIC"}},
			jsonFlag("print one JSON object for each line"),
		),
		Action: printHistory,
	}
}

// historyLine is one line of `nodeskoop history --json`.
type historyLine struct {
	Minute time.Time         `json:"minute"`
	Metric string            `json:"metric,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Increase is set for a counter, Value and Highest for a gauge. Gone: the gauge
	// no longer exists.
	Increase *float64 `json:"increase,omitempty"`
	Value    *float64 `json:"value,omitempty"`
	Highest  *float64 `json:"highest,omitempty"`
	Gone     bool     `json:"gone,omitempty"`
	// Gap says why there are no samples between From and Minute.
	Gap  string     `json:"gap,omitempty"`
	From *time.Time `json:"from,omitempty"`
}

func printHistory(c *cli.Context) error {
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	var q history.Query
	if q.Since, q.Until, err = pastRange(c, time.Now(), usualSpan); err != nil {
		return err
	}
	filter, err := session.NewFilter(c.StringSlice("pod"), nil)
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	globs := c.StringSlice("metric")
	for _, g := range globs {
		if _, err := path.Match(g, ""); err != nil {
			return cli.Exit(fmt.Sprintf("--metric: %q is not a pattern: %v", g, err), exitUsage)
		}
	}
	q.Keep = func(s *history.Series) bool {
		named := len(globs) == 0
		for _, g := range globs {
			ok, _ := path.Match(g, s.Metric)
			named = named || ok
		}
		namespace, pod := s.Label(owner.LabelNamespace), s.Label(owner.LabelPod)
		return named && filter.WantsPod(namespace == cfg.Pods.HostLabel && pod == cfg.Pods.HostLabel, namespace, pod)
	}
	r := history.Reader{Dir: cfg.HistoryDir()}
	if oldest, _, err := r.Span(); err != nil {
		return fmt.Errorf("%w (it belongs to the daemon's user)", err)
	} else if oldest.IsZero() {
		return fmt.Errorf("there is no history in %s: the daemon writes the first minute when it has run for two; see history.enabled and `nodeskoop check`", r.Dir)
	}
	w := bufio.NewWriter(c.App.Writer)
	var last time.Time
	lines := 0
	for m, err := range r.Minutes(q) {
		if err != nil {
			return err
		}
		if err := writeMinute(w, m, last, c.Bool("json")); err != nil {
			return err
		}
		last, lines = m.To, lines+len(m.Samples)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	const form = "2006-01-02 15:04:05"
	span := "from " + q.Since.Local().Format(form) + " to " + q.Until.Local().Format(form)
	switch {
	case last.IsZero():
		say(c.App.ErrWriter, "The history has no minute "+span+".")
	case lines == 0:
		say(c.App.ErrWriter, "No such series moved "+span+".")
	}
	return r.Damage.Err(r.Dir)
}

func writeMinute(w *bufio.Writer, m *history.Minute, last time.Time, asJSON bool) error {
	from, why := m.Gap(last)
	if asJSON {
		return writeMinuteJSON(w, m, from, why)
	}
	at := m.Start.Local().Format("2006-01-02 15:04")
	if why != "" {
		fmt.Fprintf(w, "-- no samples from %s on: %s\n", from.Local().Format("2006-01-02 15:04:05"), why)
	}
	var b []byte
	for _, s := range m.Samples {
		b = append(append(b[:0], at...), "  "...)
		switch {
		case s.Kind == history.Counter:
			b = append(b, '+')
			b = strconv.AppendFloat(b, s.Value, 'f', -1, 64)
		case s.Gone:
			b = append(b, "gone"...)
		default:
			b = append(b, '=')
			b = strconv.AppendFloat(b, s.Value, 'f', -1, 64)
			if s.Peak > s.Value {
				b = append(b, " highest "...)
				b = strconv.AppendFloat(b, s.Peak, 'f', -1, 64)
			}
		}
		b = quote.AppendSafe(append(b, "  "...), s.String())
		if _, err := w.Write(append(b, '\n')); err != nil {
			return err
		}
	}
	return nil
}

func writeMinuteJSON(w *bufio.Writer, m *history.Minute, from time.Time, why string) error {
	put := func(l historyLine) error {
		l.Minute = m.Start.UTC()
		var text bytes.Buffer
		if err := json.NewEncoder(&text).Encode(l); err != nil {
			return err
		}
		_, err := w.Write(quote.AppendSafeJSON(nil, text.Bytes()))
		return err
	}
	if why != "" {
		from = from.UTC()
		if err := put(historyLine{Gap: why, From: &from}); err != nil {
			return err
		}
	}
	for i := range m.Samples {
		s := &m.Samples[i]
		l := historyLine{Metric: s.Metric, Labels: map[string]string{}, Gone: s.Gone}
		for _, x := range s.Labels {
			l.Labels[x.Name] = x.Value
		}
		switch {
		case s.Kind == history.Counter:
			l.Increase = &s.Value
		case !s.Gone:
			if l.Value = &s.Value; s.Peak > s.Value {
				l.Highest = &s.Peak
			}
		}
		if err := put(l); err != nil {
			return err
		}
	}
	return nil
}
