package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/report"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/owner"
	"nodeskoop/output"
	"nodeskoop/output/history"
)

func reportCommand() *cli.Command {
	return &cli.Command{
		Name:  "report",
		Usage: "tell what happened: events by kind and over time, gaps, counters that stand out",
		Description: "Without flags the report covers the last hour. Its events are those that the daemon has written to the\n" +
			"journal; its counters come from the daemon's history (see nodeskoop history) and are compared with the hour before --since. A counter stands\n" +
			"out if it rose by five or more, by three times the expected increase or more, and by more than\n" +
			"chance and a growth in packets explain.\n" +
			"--html writes a page to attach to an incident: one self-contained file without scripts. Only its owner may read it.\n" +
			"The report names what cannot be read; the exit code is then 3.",
		Flags: append(append(commonFlags(), pastFlags("what happened", ", an hour before --until if it is not given")...),
			podFlag("only what concerns `NAMESPACE/NAME`, at either end; NAME alone is in any namespace; \"host\" is the host"),
			&cli.StringFlag{Name: "html", Usage: "write a page to `FILE`; - is standard output", EnvVars: []string{"NODESKOOP_HTML"}},
			jsonFlag("print one JSON object"),
		),
		Action: printReport,
	}
}

func printReport(c *cli.Context) error {
	now := time.Now()
	since, until, err := pastRange(c, now, usualSpan)
	if err != nil {
		return err
	}
	if c.Bool("json") && c.IsSet("html") {
		return cli.Exit("--json and --html exclude each other", exitUsage)
	}
	pods := c.StringSlice("pod")
	filter, err := session.NewFilter(pods, nil)
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	b := report.New(report.Options{Node: cfg.Node(), Version: version, Made: now, Since: since, Until: until, Pods: pods, HostLabel: cfg.Pods.HostLabel})
	if why := inFuture(since, now); why != "" {
		b.Unknown(why)
	}
	noJournal := reportEvents(c.Context, b, filter, since, until)
	if c.Context.Err() != nil {
		return fmt.Errorf("report: %w before the journal was read: nothing was written", errInterrupted)
	}
	noHistory := reportHistory(b, cfg, filter)
	if noJournal != nil && noHistory != nil {
		return errors.Join(noJournal, noHistory)
	}
	if err := writeReport(c, b.Report()); err != nil {
		return err
	}
	if err := errors.Join(noJournal, noHistory); err != nil {
		return cli.Exit("the report is not complete: "+complaint(err, argumentsOf(c)), exitPartial)
	}
	return nil
}

// reportEvents adds the journal's events to a report. Problems with the journal
// become part of the report.
func reportEvents(ctx context.Context, b *report.Builder, filter session.Filter, since, until time.Time) error {
	r := newJournalReader(since, until)
	for e, err := range r.Events(ctx) {
		if err != nil {
			b.Unknown("Which events there were is not known: " + err.Error() + ".")
			return err
		}
		if filter.Wants(e) {
			b.Event(e)
		}
	}
	if err := skippedEntries(r.Skipped); err != nil {
		b.Unknown("The journal could not be read completely: " + err.Error() + ".")
		return err
	}
	if begins, err := r.Begins(ctx); err == nil {
		if words := journalBegins(begins, since); words != "" {
			b.Unknown(words)
		}
	}
	return nil
}

// reportHistory adds the history's counters to a report. Problems with the history
// become part of the report. A missing history is not an error.
func reportHistory(b *report.Builder, cfg *config.Config, filter session.Filter) error {
	r := &history.Reader{Dir: cfg.HistoryDir()}
	oldest, _, err := r.Span()
	switch {
	case err == nil && oldest.IsZero() && !cfg.History.Enabled:
		b.Unknown("Which counters moved is not known: history.enabled is false.")
		return nil
	case err == nil && oldest.IsZero():
		b.Unknown("Which counters moved is not known: there is no history in " + r.Dir + ". The daemon writes the first minute when it has run for two.")
		return nil
	case err == nil:
		err = b.History(r, func(s *history.Series) bool {
			namespace, pod := s.Label(owner.LabelNamespace), s.Label(owner.LabelPod)
			return filter.WantsPod(namespace == cfg.Pods.HostLabel && pod == cfg.Pods.HostLabel, namespace, pod)
		})
	}
	if err != nil {
		b.Unknown("Which counters moved is not known: " + err.Error() + ".")
		return err
	}
	if err := r.Damage.Err(r.Dir); err != nil {
		b.Unknown("The history could not be read completely: " + err.Error() + ".")
		return err
	}
	return nil
}

// pageMode lets only the owner read a page, since failed connections are
// confidential.
const pageMode = 0o600

func writeReport(c *cli.Context, r *report.Report) error {
	switch file := c.String("html"); {
	case file == "-":
		return printed(r.WriteHTML(c.App.Writer))
	case c.IsSet("html"):
		return output.ReplaceFile(file, pageMode, func(w io.Writer) error { return r.WriteHTML(w) })
	case c.Bool("json"):
		return printed(writeJSON(c, r))
	}
	return printed(r.Write(c.App.Writer, output.Width(c.App.Writer)))
}

// printed returns the error of writing to standard output.
func printed(err error) error {
	if err != nil {
		return outputError(err)
	}
	return nil
}
