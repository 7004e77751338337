package top

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

// Each gives a table to write after each interval, count times, or until ctx
// ends if that is 0. It fails at once if no column has anything to show.
func (s *Sampler) Each(ctx context.Context, interval time.Duration, count int, log *slog.Logger, write func(*Table) error) error {
	s.runner.Until(ctx)
	if err := s.sample().complain(log); err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 0; count == 0 || n < count; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := write(s.sample()); err != nil {
			return err
		}
	}
	return nil
}

// complain says once what is seen in part, and fails if nothing is. What fails
// is in the Runner's log.
func (t *Table) complain(log *slog.Logger) error {
	dead := map[string]bool{}
	for _, x := range t.troubles {
		if dead[x.probe] = x.whole; !x.failed {
			log.Info("a probe sees a part only", "probe", x.probe, "hint", x.text)
		}
	}
	for _, col := range t.columns {
		if !dead[col.probe] {
			return nil
		}
	}
	return errors.New("none of the probes works here; nodeskoop check says what to do")
}

// titles are the table's heads: the pod's, those of the columns, and after the
// drops their reason.
func (t *Table) titles() []string {
	out := []string{"POD"}
	for _, c := range t.columns {
		if out = append(out, c.title); c.Name == "drops" {
			out = append(out, "REASON")
		}
	}
	return out
}

// texts are the cells of one row, as titles has them.
func (t *Table) texts(r *row) []string {
	out := []string{quote.Safe(r.name())}
	for i, c := range t.columns {
		if out = append(out, r.cells[i].text(c)); c.Name == "drops" {
			out = append(out, quote.Safe(column.Dash(r.reason)))
		}
	}
	return out
}

// leftAligned says which of titles are words.
func leftAligned(title string) bool { return title == "POD" || title == "REASON" }

// Write prints the table.
func (t *Table) Write(w io.Writer, order Order) error {
	lines := [][]string{t.titles()}
	for _, r := range order.apply(t) {
		lines = append(lines, t.texts(&r))
	}
	widths := column.Widths(lines)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s  %.1fs\n", t.at.Format("15:04:05"), t.interval.Seconds())
	for _, l := range lines {
		line := ""
		for i, text := range l {
			if i > 0 {
				line += "  "
			}
			line += column.Pad(text, widths[i], leftAligned(lines[0][i]))
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// WriteJSON prints one object per row. Numbers that are not known are null.
func (t *Table) WriteJSON(w io.Writer, order Order) error {
	var b bytes.Buffer
	for _, r := range order.apply(t) {
		o := map[string]any{
			"time": t.at.Format(time.RFC3339Nano), "seconds": t.interval.Seconds(),
			"host": r.host, "namespace": r.namespace, "pod": r.pod, "netns": r.netns,
		}
		for i, c := range t.columns {
			o[c.Name] = nil
			if !c.gauge {
				o[c.Name+"_per_second"] = nil
			}
			if r.cells[i].known {
				o[c.Name] = r.cells[i].count
				if !c.gauge {
					o[c.Name+"_per_second"] = r.cells[i].second
				}
			}
			if c.Name == "drops" {
				o["drops_reason"] = r.reason
			}
		}
		line, err := json.Marshal(o)
		if err != nil {
			return err
		}
		b.Write(quote.AppendSafeJSON(nil, line))
		b.WriteByte('\n')
	}
	_, err := w.Write(b.Bytes())
	return err
}
