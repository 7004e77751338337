package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/check"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/cmd/nodeskoop/internal/top"
	"nodeskoop/cmd/nodeskoop/internal/when"
	"nodeskoop/collect/event"
	"nodeskoop/output"
	"nodeskoop/output/history"
)

// usualSpan is the time before --until at which a report, or a query of the history,
// begins by default.
const usualSpan = time.Hour

// pastFlags returns --since and --until for the commands that look back. what is a
// phrase that ends in a verb, such as "minutes that begin". usual describes the
// default of --since.
func pastFlags(what, usual string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "since", Usage: "only " + what + " at `TIME` or later" + usual + ": " + when.Forms, EnvVars: []string{"NODESKOOP_SINCE"}},
		&cli.StringFlag{Name: "until", Usage: "only " + what + " before `TIME`", EnvVars: []string{"NODESKOOP_UNTIL"}},
	}
}

// pastRange reads --since and --until. The default of --since is span before the end;
// with a span of 0, times that are not given are the zero time.
func pastRange(c *cli.Context, now time.Time, span time.Duration) (since, until time.Time, err error) {
	for _, f := range []struct {
		name string
		at   *time.Time
	}{{"since", &since}, {"until", &until}} {
		if !c.IsSet(f.name) {
			continue
		}
		if *f.at, err = when.Parse(c.String(f.name), now); err != nil {
			return since, until, cli.Exit("--"+f.name+": "+err.Error(), exitUsage)
		}
	}
	if span > 0 && until.IsZero() {
		until = now
	}
	if span > 0 && since.IsZero() {
		since = until.Add(-span)
	}
	if !since.IsZero() && !until.IsZero() && !since.Before(until) {
		const form = "2006-01-02 15:04:05"
		return since, until, cli.Exit(fmt.Sprintf("--since (%s) is not before --until (%s)", since.Format(form), until.Format(form)), exitUsage)
	}
	return since, until, nil
}

// inFuture says that a range begins after now, "" if it does not. Such a range is not
// refused: if the clock was wrong, records may lie in it.
func inFuture(since, now time.Time) string {
	if !since.After(now) {
		return ""
	}
	return fmt.Sprintf("The range begins in the future, at %s: now it is %s.", since.Local().Format("2006-01-02 15:04:05"), now.Local().Format("2006-01-02 15:04:05 MST"))
}

// journalCommand is the command that reads the journal; nil means journalctl. Tests
// replace it.
var journalCommand []string

// newJournalReader reads the journal to which the unit writes.
func newJournalReader(since, until time.Time) *output.JournalReader {
	return &output.JournalReader{Since: since, Until: until, Namespace: check.LogNamespace(), Command: journalCommand}
}

// maxUnwritten is the maximum number of events that were read and not yet written.
const maxUnwritten = 1024

// pastEvents prints events of the journal in the format of watchEvents.
func pastEvents(c *cli.Context, filter session.Filter) error {
	now := time.Now()
	since, until, err := pastRange(c, now, 0)
	if err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	r := newJournalReader(since, until)
	probes := cfg.Probes
	if _, given := common(c, "probe"); !given {
		probes = nil
	}
	if r.Types = filter.Types(probes); len(r.Types) == 0 {
		return cli.Exit("none of the chosen probes has such events; see nodeskoop probes", exitUsage)
	}
	end := until
	if end.IsZero() {
		end = now
		if since.After(now) {
			end = since
		}
	}
	lines := output.NewTerminal(c.App.Writer, output.TerminalOptions{JSON: c.Bool("json"), Dates: !sameDay(since, now) || !sameDay(end, now)})
	seen := event.NewSummary(lines)
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	go func() {
		select {
		case <-lines.Failed(): // nobody reads on
			stop()
		case <-ctx.Done():
		}
	}()
	// A terminal drops what does not fit into its queue, so read the journal only
	// as fast as events are written.
	room := make(chan struct{}, maxUnwritten)
	for e, failed := range r.Events(ctx) {
		if failed != nil {
			err = failed
			break
		}
		if !filter.Wants(e) {
			continue
		}
		select {
		case room <- struct{}{}:
			seen.Send(e, func(*event.Event, bool) { <-room })
		case <-ctx.Done():
		}
	}
	// Wait without a limit, since the reader may be a pager.
	for range maxUnwritten {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
	}
	closing, done := context.WithTimeout(context.WithoutCancel(c.Context), closeWait)
	defer done()
	closed := seen.Close(closing)
	if wrote := lines.Err(); wrote != nil {
		if errors.Is(wrote, syscall.EPIPE) {
			return wrote
		}
		return outputError(wrote)
	}
	if closed != nil && c.Context.Err() == nil {
		return closed
	}
	if err == nil {
		span := spanOf(since, end)
		if c.Context.Err() != nil {
			span += ", interrupted before all were read"
		}
		_ = writeSummary(c.App.ErrWriter, seen, span, logWidth(c.App.ErrWriter))
		say(c.App.ErrWriter, inFuture(since, now))
		if c.Context.Err() == nil {
			if begins, err := r.Begins(c.Context); err == nil {
				say(c.App.ErrWriter, journalBegins(begins, since))
			}
		}
	}
	return errors.Join(err, skippedEntries(r.Skipped))
}

// closeWait is how long the shutdown waits for a reader that has stopped reading.
const closeWait = time.Second

// sameDay reports whether two times are on the same day.
func sameDay(a, b time.Time) bool {
	return a.Local().Format(time.DateOnly) == b.Local().Format(time.DateOnly)
}

// spanOf describes the period of a summary.
func spanOf(since, until time.Time) string {
	from := "until "
	if !since.IsZero() {
		from = "from " + since.Local().Format("2006-01-02 15:04:05") + " to "
	}
	form := "2006-01-02 15:04:05"
	if sameDay(since, until) {
		form = "15:04:05"
	}
	return from + until.Local().Format(form)
}

// journalBegins says that the journal does not reach back far enough, "" if it
// does.
func journalBegins(begins, since time.Time) string {
	switch {
	case begins.IsZero():
		return "There is no journal here, or none that this user may read."
	case !since.IsZero() && begins.After(since):
		return "The journal begins at " + begins.Local().Format("2006-01-02 15:04:05") + ": events from before are not in it."
	}
	return ""
}

// skippedEntries is the error that parts of the journal could not be read, nil if
// there are none.
func skippedEntries(s output.JournalSkipped) error {
	var err error
	if s.Damaged > 0 {
		err = fmt.Errorf("%d entries of the journal are damaged and left out: journalctl --verify says which files", s.Damaged)
	}
	if s.Unknown > 0 {
		err = errors.Join(err, fmt.Errorf("%d entries are of events that this version does not know, and are left out", s.Unknown))
	}
	return err
}

// pastTop prints the table of a history minute.
func pastTop(c *cli.Context, order top.Order) error {
	for _, name := range []string{"interval", "count"} {
		if c.IsSet(name) {
			return cli.Exit("--at prints one table, of a minute: it excludes --"+name, exitUsage)
		}
	}
	at, err := when.Parse(c.String("at"), time.Now())
	if err != nil {
		return cli.Exit("--at: "+err.Error(), exitUsage)
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	probes := top.Probes()
	if _, given := common(c, "probe"); given {
		probes = cfg.Probes
	}
	columns := top.PastColumns(top.Columns(probes))
	if len(columns) == 0 {
		return cli.Exit("top shows none of the chosen probes; it shows "+strings.Join(top.Probes(), ", "), exitUsage)
	}
	if order.Column != "pod" && !slices.ContainsFunc(columns, func(t top.Column) bool { return t.Name == order.Column }) {
		if c.IsSet("sort") {
			return cli.Exit(fmt.Sprintf("--sort: the column %s is not in the history, or its probe is not among the chosen ones", order.Column), exitUsage)
		}
		order.Column = columns[0].Name
	}
	r := &history.Reader{Dir: cfg.HistoryDir()}
	t, err := top.Past(r, at, columns, cfg.Pods.HostLabel)
	if err != nil {
		return err
	}
	if err := r.Damage.Err(r.Dir); err != nil {
		say(c.App.ErrWriter, err.Error()+".")
	}
	if names := t.Unknown(); len(names) > 0 {
		say(c.App.ErrWriter, fmt.Sprintf("In that minute %s gave no values, or not all.", list(names)))
	}
	if c.Bool("json") {
		return printed(t.WriteJSON(c.App.Writer, order))
	}
	return printed(t.Write(c.App.Writer, order, output.Width(c.App.Writer)))
}
