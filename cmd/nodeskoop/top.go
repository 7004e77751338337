package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/cmd/nodeskoop/internal/top"
	"nodeskoop/cmd/nodeskoop/internal/when"
	"nodeskoop/collect"
	"nodeskoop/output"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "show the network activity and problems of each pod in a live table",
		Description: "One row per pod with a network namespace of its own, and one for the host. Rates are those of the last\n" +
			"interval; \"-\" is an unknown value: there is no second sample yet, or a counter was reset.\n" +
			"Enter opens one pod: its drops and who caused them, peers, queues, events, processes.\n" +
			"It runs only the probes of its columns (" + strings.Join(top.Probes(), ", ") + "), until it ends, beside a\n" +
			"running daemon if there is one. The key ? lists the keys.\n" +
			"--at prints the table of a minute of the past, from the history that the daemon keeps on the node; for queues\n" +
			"it shows the highest value. It needs neither probes nor a running daemon.\n" +
			"If standard output is not a terminal, TERM is dumb or unset, or with --count, it prints one table after\n" +
			"each interval.",
		Flags: append(commonFlags(),
			&cli.DurationFlag{Name: "interval", Aliases: []string{"i"}, Usage: "`TIME` between two samples", Value: 2 * time.Second, EnvVars: []string{"NODESKOOP_TOP_INTERVAL"}},
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Usage: "print `N` tables and end", EnvVars: []string{"NODESKOOP_TOP_COUNT"}},
			&cli.BoolFlag{Name: "once", Usage: "print one table, after one interval: --count 1", EnvVars: []string{"NODESKOOP_TOP_ONCE"}},
			&cli.StringFlag{Name: "at", Usage: "print the table as it was in the minute of `TIME`: " + when.Forms, EnvVars: []string{"NODESKOOP_TOP_AT"}},
			&cli.StringFlag{Name: "sort", Usage: "sort by `COLUMN`: " + strings.Join(append([]string{"pod"}, top.Names()...), ", "), Value: "drops", EnvVars: []string{"NODESKOOP_TOP_SORT"}},
			&cli.StringFlag{Name: "filter", Usage: "only pods whose NAMESPACE/NAME contains `TEXT`", EnvVars: []string{"NODESKOOP_TOP_FILTER"}},
			podFlag("only the pod `NAMESPACE/NAME`; NAME alone is in any namespace; \"host\" is the host"),
			jsonFlag("print JSON, one line per pod and interval"),
		),
		Action: runTop,
	}
}

// topArguments are the validated arguments.
type topArguments struct {
	interval time.Duration
	count    int // 0 means without end
	order    top.Order
}

func topArgumentsOf(c *cli.Context) (a topArguments, err error) {
	a.interval, a.count = c.Duration("interval"), c.Int("count")
	a.order = top.Order{Column: c.String("sort"), Filter: c.String("filter")}
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
	if names := top.Names(); a.order.Column != "pod" && !slices.Contains(names, a.order.Column) {
		return a, fmt.Errorf("--sort: there is no column %q: use pod, %s", a.order.Column, strings.Join(names, ", "))
	}
	a.order.Pods, err = session.NewFilter(c.StringSlice("pod"), nil)
	return a, err
}

// hasScreen reports whether the terminal type can draw a screen, not only lines of
// text.
func hasScreen(term string) bool { return term != "" && term != "dumb" }

func runTop(c *cli.Context) error {
	args, err := topArgumentsOf(c)
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	if c.IsSet("at") {
		return pastTop(c, args.order)
	}
	live := !c.Bool("json") && args.count == 0 && output.IsTerminal(c.App.Writer) && output.IsTerminal(os.Stdin) && hasScreen(os.Getenv("TERM"))
	var log *top.Log
	var to io.Writer = c.App.ErrWriter
	if live {
		log = new(top.Log)
		to = log
	}
	s, err := newSession(c, to)
	if err != nil {
		return err
	}
	if _, given := common(c, "probe"); !given {
		s.Config.Probes = top.Probes()
	}
	columns := top.Columns(s.Config.Probes)
	if len(columns) == 0 {
		return cli.Exit("top shows none of the chosen probes; it shows "+strings.Join(top.Probes(), ", "), exitUsage)
	}
	if args.order.Column != "pod" && !slices.ContainsFunc(columns, func(t top.Column) bool { return t.Name == args.order.Column }) {
		if c.IsSet("sort") {
			return cli.Exit(fmt.Sprintf("--sort: the probe of the column %s is not among the chosen ones", args.order.Column), exitUsage)
		}
		args.order.Column = columns[0].Name
	}
	s.ForPods = args.order.Pods.NamesPods()
	speak := s.Hush()
	sampler, end, err := top.NewSampler(c.Context, s, columns)
	if err != nil {
		return err
	}
	defer end()
	named := sampler.Named()
	if err := args.order.Pods.Check(sampler.Running(), named); err != nil {
		return unknownPod(err)
	}
	if !live {
		status := sampler.Begin(c.Context)
		if failed := slices.ContainsFunc(status, func(st collect.ProbeStatus) bool { return !st.Up && !st.Unsupported }); anyUp(status) && (failed || args.count == 0 || logIsTerminal(to)) {
			say(to, firstWords(status, named))
		}
		speak()
		return sampler.Each(c.Context, args.interval, args.count, s.Log, func(t *top.Table) error {
			write := func(w io.Writer, o top.Order) error { return t.Write(w, o, output.Width(w)) }
			if c.Bool("json") {
				write = t.WriteJSON
			}
			if err := write(c.App.Writer, args.order); err != nil {
				return outputError(err)
			}
			return nil
		})
	}
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("use the terminal (TERM=%q): %w; --count prints tables without it", os.Getenv("TERM"), err)
	}
	defer screen.Fini() // restore the terminal even after a panic
	fini := screen.Fini
	beforeForcedEnd.Store(&fini)
	defer beforeForcedEnd.Store(nil)
	speak()
	v := &top.View{Screen: screen, Order: args.order, Interval: args.interval, Log: log}
	v.Run(c.Context, sampler)
	screen.Fini()
	log.Flush(c.App.ErrWriter)
	return nil
}
