package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/gdamore/tcell/v3"
	"github.com/urfave/cli/v2"

	"nodeskoop/collect"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/quote"
	"nodeskoop/output"
)

func topCommand() *cli.Command {
	names := []string{"pod"}
	for _, c := range topColumns {
		names = append(names, c.name)
	}
	return &cli.Command{
		Name:  "top",
		Usage: "show what the network does to each pod now, in a live table",
		Description: "One row per pod with a network namespace of its own, and one for the host. Rates are of the last\n" +
			"interval; \"-\" is what is not known: before the second sample, or because a counter was reset.\n" +
			"It enables just the probes of its columns (" + strings.Join(topProbes(), ", ") + "), beside a daemon\n" +
			"that may run, and ends them with it. Keys: ? lists them.\n" +
			"Where standard output is no terminal, and with --count, it prints one table after each interval.",
		Flags: append(commonFlags(),
			&cli.DurationFlag{Name: "interval", Aliases: []string{"i"}, Usage: "`TIME` between two samples", Value: 2 * time.Second, EnvVars: []string{"NODESKOOP_TOP_INTERVAL"}},
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Usage: "print `N` tables and end", EnvVars: []string{"NODESKOOP_TOP_COUNT"}},
			&cli.BoolFlag{Name: "once", Usage: "print one table, after one interval: --count 1", EnvVars: []string{"NODESKOOP_TOP_ONCE"}},
			&cli.StringFlag{Name: "sort", Usage: "sort by `COLUMN`: " + strings.Join(names, ", "), Value: "drops", EnvVars: []string{"NODESKOOP_TOP_SORT"}},
			&cli.StringFlag{Name: "filter", Usage: "only pods whose NAMESPACE/NAME contains `TEXT`", EnvVars: []string{"NODESKOOP_TOP_FILTER"}},
			podFlag("only the pod `NAMESPACE/NAME`; NAME alone is in any namespace; \"host\" is the host"),
			jsonFlag("print JSON, one line per pod and interval"),
		),
		Action: runTop,
	}
}

// topArguments are the checked arguments.
type topArguments struct {
	interval time.Duration
	count    int // 0: until it is ended
	order    topOrder
}

func topArgumentsOf(c *cli.Context) (a topArguments, err error) {
	a.interval, a.count = c.Duration("interval"), c.Int("count")
	a.order = topOrder{column: c.String("sort"), filter: c.String("filter")}
	if a.interval < 100*time.Millisecond || a.interval > time.Hour {
		return a, fmt.Errorf("--interval: %v is out of range: use 100ms to 1h", a.interval)
	}
	if a.count < 0 {
		return a, fmt.Errorf("--count: %d is out of range: use 1 or more, or leave it out", a.count)
	}
	if c.Bool("once") {
		if a.count > 1 {
			return a, fmt.Errorf("--once means --count 1, but --count is %d", a.count)
		}
		a.count = 1
	}
	if a.order.column != "pod" && !slices.ContainsFunc(topColumns, func(t topColumn) bool { return t.name == a.order.column }) {
		var names []string
		for _, t := range topColumns {
			names = append(names, t.name)
		}
		return a, fmt.Errorf("--sort: there is no column %q: use pod, %s", a.order.column, strings.Join(names, ", "))
	}
	a.order.pods, err = eventFilter(c.StringSlice("pod"), nil)
	return a, err
}

// shownColumns are those of the chosen probes.
func shownColumns(probes []string) []topColumn {
	return slices.DeleteFunc(slices.Clone(topColumns), func(c topColumn) bool { return !slices.Contains(probes, c.probe) })
}

func runTop(c *cli.Context) error {
	args, err := topArgumentsOf(c)
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	live := !c.Bool("json") && args.count == 0 && output.IsTerminal(c.App.Writer) && output.IsTerminal(os.Stdin)
	var log *screenLog
	var to io.Writer = c.App.ErrWriter
	if live {
		log = newScreenLog()
		to = log
	}
	s, err := newSetupLogging(c, to)
	if err != nil {
		return err
	}
	if _, given := common(c, "probe"); !given {
		s.cfg.probes = topProbes()
	}
	columns := shownColumns(s.cfg.probes)
	if len(columns) == 0 {
		return cli.Exit("top shows none of the chosen probes; it shows "+strings.Join(topProbes(), ", "), exitUsage)
	}
	if args.order.column != "pod" && !slices.ContainsFunc(columns, func(t topColumn) bool { return t.name == args.order.column }) {
		if c.IsSet("sort") {
			return cli.Exit(fmt.Sprintf("--sort: the probe of the column %s is not among the chosen ones", args.order.column), exitUsage)
		}
		args.order.column = columns[0].name
	}
	sampler, end, err := s.newTopSampler(c, columns)
	if err != nil {
		return err
	}
	defer end()
	if !live {
		return printTop(c, sampler, args, s.log)
	}
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("use the terminal (TERM=%q): %w; --count prints tables without it", os.Getenv("TERM"), err)
	}
	defer screen.Fini() // a panic must not leave the terminal as it is
	fini := screen.Fini
	beforeForcedEnd.Store(&fini)
	defer beforeForcedEnd.Store(nil)
	v := &topView{screen: screen, order: args.order, interval: args.interval, log: log}
	v.run(c.Context, sampler)
	screen.Fini()
	log.flush(c.App.ErrWriter)
	return nil
}

// newTopSampler makes the sampler of the chosen columns; end releases it.
func (s *setup) newTopSampler(c *cli.Context, columns []topColumn) (sampler *topSampler, end func(), err error) {
	o, err := s.options(s.cfg, s.view)
	if err != nil {
		return nil, nil, err
	}
	o.Enabled = nil
	for _, col := range columns {
		o.Enabled = append(o.Enabled, col.probe)
	}
	// What the configuration leaves out of the textfile is not left out here.
	o.HostLabel, o.Exclude, o.SkipZero, o.MaxSeries, o.CompatNames, o.Labels = topHost, nil, false, 0, false, nil
	index := s.watchPods(c.Context, s.cfg, s.view)
	plane := trace.New(trace.Options{Log: s.log})
	o.Pods = index
	r, err := collect.NewRunner(o, factories(plane)...)
	if err != nil {
		return nil, nil, err
	}
	end = func() {
		r.Close()
		if err := plane.Close(); err != nil {
			s.log.Warn("detaching from the kernel failed", "error", err)
		}
	}
	host, err := kernel.Inode(cmp.Or(o.HostNetns, "/proc/1/ns/net"))
	if err != nil {
		end()
		return nil, nil, fmt.Errorf("find the host's network namespace: %w", err)
	}
	status := func() error {
		if index.Connected() {
			return nil
		}
		return cmp.Or(index.Status().Err, errors.New("it has not answered yet"))
	}
	return &topSampler{runner: r, plane: plane, pods: index, status: status, host: host, columns: columns}, end, nil
}

// printTop prints tables, or JSON, without using the terminal's abilities.
func printTop(c *cli.Context, s *topSampler, args topArguments, log *slog.Logger) error {
	s.runner.Until(c.Context)
	first := s.sample()
	if err := first.complain(log); err != nil {
		return err
	}
	tick := time.NewTicker(args.interval)
	defer tick.Stop()
	for n := 0; args.count == 0 || n < args.count; n++ {
		select {
		case <-c.Context.Done():
			return nil
		case <-tick.C:
		}
		t := s.sample()
		write := t.write
		if c.Bool("json") {
			write = t.writeJSON
		}
		if err := write(c.App.Writer, args.order); err != nil {
			return outputError(err)
		}
	}
	return nil
}

// complain says once what is seen in part, and fails if nothing is. What fails
// is in the Runner's log.
func (t *topTable) complain(log *slog.Logger) error {
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
func (t *topTable) titles() []string {
	out := []string{"POD"}
	for _, c := range t.columns {
		if out = append(out, c.title); c.name == "drops" {
			out = append(out, "REASON")
		}
	}
	return out
}

// texts are the cells of one row, as titles has them.
func (t *topTable) texts(r *topRow) []string {
	out := []string{quote.Safe(r.name())}
	for i, c := range t.columns {
		if out = append(out, r.cells[i].text(c)); c.name == "drops" {
			out = append(out, quote.Safe(dash(r.reason)))
		}
	}
	return out
}

// leftAligned says which of titles are words.
func leftAligned(title string) bool { return title == "POD" || title == "REASON" }

// write prints the table.
func (t *topTable) write(w io.Writer, order topOrder) error {
	lines := [][]string{t.titles()}
	for _, r := range order.apply(t) {
		lines = append(lines, t.texts(&r))
	}
	widths := widthsOf(lines)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s  %.1fs\n", t.at.Format("15:04:05"), t.interval.Seconds())
	for _, l := range lines {
		line := ""
		for i, text := range l {
			if i > 0 {
				line += "  "
			}
			line += pad(text, widths[i], leftAligned(lines[0][i]))
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

func widthsOf(lines [][]string) []int {
	widths := make([]int, len(lines[0]))
	for _, l := range lines {
		for i, text := range l {
			widths[i] = max(widths[i], displaywidth.String(text))
		}
	}
	return widths
}

// pad fills text up with spaces, or cuts it, to width columns.
func pad(text string, width int, left bool) string {
	n := displaywidth.String(text)
	if n > width {
		if width <= 0 {
			return ""
		}
		text = displaywidth.TruncateString(text, width, "…")
		n = displaywidth.String(text)
	}
	switch {
	case left:
		return text + strings.Repeat(" ", width-n)
	}
	return strings.Repeat(" ", width-n) + text
}

// writeJSON prints one object per row. Numbers that are not known are null.
func (t *topTable) writeJSON(w io.Writer, order topOrder) error {
	var b bytes.Buffer
	for _, r := range order.apply(t) {
		o := map[string]any{
			"time": t.at.Format(time.RFC3339Nano), "seconds": t.interval.Seconds(),
			"host": r.host, "namespace": r.namespace, "pod": r.pod, "netns": r.netns,
		}
		for i, c := range t.columns {
			o[c.name] = nil
			if !c.gauge {
				o[c.name+"_per_second"] = nil
			}
			if r.cells[i].known {
				o[c.name] = r.cells[i].count
				if !c.gauge {
					o[c.name+"_per_second"] = r.cells[i].second
				}
			}
			if c.name == "drops" {
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
