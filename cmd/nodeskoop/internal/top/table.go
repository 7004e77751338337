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

// Each calls write with a table after each interval, count times, or until ctx ends
// if count is 0. It fails at once if no column has values.
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

// complain logs once which probes are partly visible, and fails if none is visible.
// Failures are in the Runner's log.
func (t *Table) complain(log *slog.Logger) error {
	dead := map[string]bool{}
	for _, x := range t.troubles {
		if dead[x.probe] = x.whole; !x.failed {
			log.Info("a probe is limited on this kernel", "probe", x.probe, "hint", x.text)
		}
	}
	for _, col := range t.columns {
		if !dead[col.probe] {
			return nil
		}
	}
	return errors.New("none of the probes works here; nodeskoop check says what to do")
}

// Write prints the table in lines of at most width columns; 0 means unlimited.
func (t *Table) Write(w io.Writer, order Order, width int) error {
	rows := order.apply(t)
	name, reason := longest(rows)
	if !hasReason(t.columns) {
		reason = 0
	}
	l := arrange(t.columns, width, name, reason, 0, order.Column)
	fields := l.fields(t.columns)
	var b bytes.Buffer
	head := fmt.Sprintf("%s  rates per second over %.1fs", t.clock(), t.interval.Seconds())
	if l.right > 0 {
		head += fmt.Sprintf("  (no room for %d more columns)", l.right)
	}
	if width > 0 {
		head = strings.TrimRight(column.Pad(head, width, true), " ")
	}
	b.WriteString(head + "\n")
	line := func(text func(f field) string) {
		var parts []string
		for _, f := range fields {
			parts = append(parts, text(f))
		}
		b.WriteString(strings.TrimRight(strings.Join(parts, strings.Repeat(" ", columnGap)), " "))
		b.WriteByte('\n')
	}
	line(func(f field) string { return f.head(t.columns) })
	for i := range rows {
		line(func(f field) string { return f.text(t.columns, &rows[i]) })
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// WriteJSON prints one object per row. Unknown numbers are null.
func (t *Table) WriteJSON(w io.Writer, order Order) error {
	var b bytes.Buffer
	for _, r := range order.apply(t) {
		o := map[string]any{
			"time": t.at.Format(time.RFC3339Nano), "seconds": t.interval.Seconds(),
			"host": r.host, "namespace": r.namespace, "pod": r.pod, "netns": r.netns,
		}
		for i, c := range t.columns {
			o[c.Name] = nil
			if !c.gauge() {
				o[c.Name+"_per_second"] = nil
			}
			if r.cells[i].known {
				o[c.Name] = r.cells[i].count
				if !c.gauge() {
					o[c.Name+"_per_second"] = r.cells[i].second
				}
			}
			switch c.Name {
			case "drops":
				o["drops_reason"] = r.reason
			case hostDrops:
				o[hostDrops+"_at_least"] = r.cells[i].least
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
