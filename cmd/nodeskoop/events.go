package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/output"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "print events as they happen, or those of the journal, one line each",
		Description: "Needs neither journald nor a configuration file. Without --probe every probe that has events runs.\n" +
			"It can run beside a daemon; each counts separately. Events of one kind (type, pod, peer, reason, process, disk) are merged:\n" +
			"the first is a line at once, and further ones are one line at the end of each window, with their number and the\n" +
			"longest latency. The window is 2 s, and doubles up to 10 s while events continue. --all prints each event as it comes.\n" +
			"\"(+N suppressed)\" in a line is the number of events of that type and pod that a rate limit suppressed since their last line.\n" +
			"Where standard output is a terminal, lines are cut to its width. At the end standard error has a summary by kind.\n" +
			"With --since or --until it prints the journal's entries by the daemon instead, and ends. The daemon merges over windows of\n" +
			"10 s to 10 min; a merged entry is printed if any of its events may lie in the range.",
		Flags: append(append(commonFlags(), pastFlags("events of the journal that occurred", "")...),
			jsonFlag("print JSON, with the names of the journal's fields"),
			podFlag("only events of `NAMESPACE/NAME`, at either end; NAME alone is in any namespace; \"host\" is the host, \"unknown\" an owner that the kernel gives no way to know"),
			&cli.BoolFlag{Name: "all", Usage: "print each event, without merging", EnvVars: []string{"NODESKOOP_ALL"}},
			&cli.StringSliceFlag{Name: "event", Usage: "only events of `TYPE`", EnvVars: []string{"NODESKOOP_EVENT"}},
		),
		Action: watchEvents,
	}
}

// The windows in which events of one kind share a line. They are short, since a
// person is waiting.
const (
	watchWindow    = 2 * time.Second
	watchMaxWindow = 10 * time.Second
)

func watchEvents(c *cli.Context) error {
	filter, err := session.NewFilter(c.StringSlice("pod"), c.StringSlice("event"))
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	if c.IsSet("since") || c.IsSet("until") {
		return pastEvents(c, filter)
	}
	s, err := newSession(c, c.App.ErrWriter)
	if err != nil {
		return err
	}
	if _, given := common(c, "probe"); !given {
		s.Config.Probes, _ = config.SelectProbes([]string{"all"})
	}
	s.Config.Probes = slices.DeleteFunc(s.Config.Probes, func(name string) bool {
		p := catalog.ProbeByName(name)
		return len(p.Events) == 0 || !filter.WantsProbe(p)
	})
	if len(s.Config.Probes) == 0 {
		return cli.Exit("none of the chosen probes has such events; see nodeskoop probes", exitUsage)
	}
	s.ForPods = filter.NamesPods()
	speak := s.Hush()
	pods := s.WatchPods(c.Context, s.Config, s.Host)
	named := session.Named(pods)
	if err := filter.Check(pods.Running(), named); err != nil {
		return unknownPod(err)
	}
	lines := output.NewTerminal(c.App.Writer, output.TerminalOptions{JSON: c.Bool("json")})
	seen := event.NewSummary(lines)
	ev := s.NewEvents(pods, func(o *event.HubOptions) {
		o.Filter = filter.Wants
		if o.Window, o.MaxWindow = watchWindow, watchMaxWindow; c.Bool("all") {
			o.Window, o.Rate, o.Burst, o.TotalRate = 0, 0, 0, 0
		}
	}, seen)
	r, err := s.NewRunner(pods, ev.Tracer)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	go func() {
		select {
		case <-lines.Failed(): // nobody reads on
			stop()
		case <-ctx.Done():
		}
	}()
	first, begun := true, time.Now()
	r.Run(ctx, func([]*dto.MetricFamily) {
		if !first {
			return
		}
		first = false
		if status := r.Status(); anyUp(status) {
			say(c.App.ErrWriter, firstWords(status, named))
		}
		speak()
	}, nil)
	up := anyUp(r.Status())
	r.Close()
	ev.Close(s.Log)
	if err := lines.Err(); up && !errors.Is(err, syscall.EPIPE) {
		if logIsTerminal(c.App.ErrWriter) {
			fmt.Fprintln(c.App.ErrWriter) // after the ^C that the terminal shows
		}
		_ = writeSummary(c.App.ErrWriter, seen, "in "+lasting(time.Since(begun)), logWidth(c.App.ErrWriter))
	}
	var lost uint64
	for _, t := range catalog.Events() {
		_, n := lines.Counts(t)
		lost += n
	}
	switch err := lines.Err(); {
	case errors.Is(err, syscall.EPIPE):
		return err
	case err != nil:
		return fmt.Errorf("%w; %d events are missing", outputError(err), lost)
	case lost > 0:
		return fmt.Errorf("%d events are missing on standard output: its reader did not keep up", lost)
	case !up:
		return errors.New("none of the probes works here; nodeskoop probes says why")
	}
	return nil
}

// anyUp reports whether at least one probe works.
func anyUp(status []collect.ProbeStatus) bool {
	return slices.ContainsFunc(status, func(st collect.ProbeStatus) bool { return st.Up })
}
