package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/trace"
	"nodeskoop/output"
)

func collectCommand() *cli.Command {
	return &cli.Command{
		Name:  "collect",
		Usage: "take one sample and write it to standard output or a file (script mode)",
		Description: "Exit code 0: every probe gave all its values. 3: some values are missing, the others were written.\n" +
			"The values of pods are missing if containerd has a socket here and did not list its pods in time.\n" +
			"A probe that this machine cannot run counts as missing only if you named it, not with \"default\" or \"all\".\n" +
			"1: nothing could be written. 2: the command line is wrong.",
		Flags: append(commonFlags(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write `FILE` atomically; FOLDER/ for the configured name in that folder; - for standard output", EnvVars: []string{"NODESKOOP_OUTPUT"}},
			&cli.BoolFlag{Name: "events", Usage: "send events that occur meanwhile to the journal", EnvVars: []string{"NODESKOOP_EVENTS"}},
			&cli.DurationFlag{Name: "duration", Usage: "let the eBPF probes watch for `TIME` before the sample", EnvVars: []string{"NODESKOOP_DURATION"}},
			waitFlag(),
		),
		Action: collectOnce,
	}
}

func collectOnce(c *cli.Context) error {
	s, err := newSession(c, c.App.ErrWriter)
	if err != nil {
		return err
	}
	s.Once = true
	d := c.Duration("duration")
	if d < 0 || d > 24*time.Hour {
		return cli.Exit(fmt.Sprintf("--duration: %v is out of range: use 0 to 24h", d), exitUsage)
	}
	if s.PodsWait, err = waitTime(c); err != nil {
		return err
	}
	var file *output.Textfile
	if o := c.String("output"); o != "" && !isStandardOutput(o) {
		err := session.Within(session.FileWait, func() (err error) { file, err = s.OutputFile(o); return err })
		if errors.Is(err, output.ErrNotReplaced) {
			return fmt.Errorf("%w (-o - is standard output)", err)
		} else if err != nil {
			return fmt.Errorf("write to %s: %w", o, err)
		}
		defer func() { _ = session.Within(time.Second, func() error { file.Close(); return nil }) }()
	}
	pods := s.WatchPods(c.Context, s.Config, s.Host)
	ev := &session.Events{Tracer: trace.New(trace.Options{Log: s.Log})}
	if c.Bool("events") {
		ev = s.NewEvents(pods, nil, session.JournalSink(s.Log))
	}
	var r *collect.Runner
	var kept *session.Counters
	defer func() {
		if kept != nil {
			if ev.Hub != nil {
				kept.KeepAtEnd(r) // by now every merged event has been written
			}
			kept.Close()
		}
	}()
	defer ev.Close(s.Log)
	if r, err = s.NewRunner(pods, ev.Tracer); err != nil {
		return err
	}
	defer r.Close()
	if ev.Hub != nil {
		r.KeepAlso("events", ev)
		r.Self(ev.Self(r))
	}
	kept = s.KeepCounters(r, true)
	r.Until(c.Context)
	if err := c.Context.Err(); err != nil {
		return err // while it waited for containerd
	}
	if d > 0 {
		r.Cycle() // also loads the probes
		select {
		case <-c.Context.Done():
			return c.Context.Err()
		case <-time.After(d):
		}
	}
	fams := r.Cycle()
	if err := c.Context.Err(); err != nil {
		return err // the sample was cut short
	}
	kept.Keep(r)
	if file != nil {
		err = session.Within(session.FileWait, func() error { return file.Write(fams) })
	} else {
		err = writeMetrics(c.App.Writer, fams, s.Log)
	}
	if err != nil {
		return err
	}
	missing := missingProbes(r.Status(), s.Config.Named)
	if err := s.MissingPods(pods); err != nil {
		if missing != "" {
			missing += "; "
		}
		missing += fmt.Sprintf("the values of pods are missing, as containerd has not listed them: %v", err)
		if s.PodsWait == 0 && !unprivileged() {
			missing += "; --wait 30s waits longer for it"
		}
	}
	if missing != "" {
		if unprivileged() {
			missing += "; to get the missing values, run it as root: " + withSudo(argumentsOf(c))
		}
		return cli.Exit(missing, exitPartial)
	}
	return nil
}

// waitFlag is the flag --wait of commands that ask containerd once.
func waitFlag() cli.Flag {
	return &cli.DurationFlag{Name: "wait", Usage: "wait up to `TIME` until containerd has listed its pods, even if it does not run yet", EnvVars: []string{"NODESKOOP_WAIT"}}
}

// waitTime returns the value of --wait.
func waitTime(c *cli.Context) (time.Duration, error) {
	d := c.Duration("wait")
	if d < 0 || d > time.Hour {
		return 0, cli.Exit(fmt.Sprintf("--wait: %v is out of range: use 0 to 1h", d), exitUsage)
	}
	return d, nil
}

// missingProbes names the requested probes that did not give complete values, "" if
// all did. A probe that this machine cannot run counts only if the user named it.
func missingProbes(status []collect.ProbeStatus, named []string) string {
	var failed, lacking []string
	for _, st := range status {
		switch {
		case st.Up:
		case !st.Unsupported:
			failed = append(failed, st.Name)
		case slices.Contains(named, st.Name):
			lacking = append(lacking, fmt.Sprintf("%s (%v)", st.Name, st.Err))
		}
	}
	var parts []string
	if len(failed) > 0 {
		parts = append(parts, "these probes gave no complete values: "+strings.Join(failed, ", "))
	}
	if len(lacking) > 0 {
		parts = append(parts, "this machine cannot run these probes: "+strings.Join(lacking, ", "))
	}
	return strings.Join(parts, "; ")
}

// writeMetrics writes the families to standard output. On a terminal it escapes
// control characters: a label may hold any text that a pod's owner chose.
func writeMetrics(w io.Writer, fams []*dto.MetricFamily, log *slog.Logger) error {
	if !output.IsTerminal(w) {
		if err := output.EncodeTo(w, fams, log); err != nil {
			return outputError(err)
		}
		return nil
	}
	lines := output.LineWriter(w)
	err := output.EncodeTo(lines, fams, log)
	if err == nil {
		err = lines.Flush()
	}
	if err != nil {
		return outputError(err)
	}
	return nil
}

// isStandardOutput reports whether -o names standard output, which is written
// directly because a rename cannot replace it.
func isStandardOutput(o string) bool {
	if o == "-" {
		return true
	}
	abs, err := filepath.Abs(o)
	return err == nil && slices.Contains([]string{"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}, abs)
}
