package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/daemon"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/escalate"
	"nodeskoop/collect/event"
	"nodeskoop/output"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the daemon: sample every probe each interval, update the textfile, send events",
		Description: "SIGHUP reads the configuration again; if that has a mistake, the old one stays in effect.\n" +
			"SIGTERM and SIGINT end it and remove the textfile, unless textfile.keep is set. A second one ends it at once; it too removes the textfile.",
		Flags:  append(commonFlags(), &cli.BoolFlag{Name: "foreground-events", Usage: "also print the journal's entries, one line each", EnvVars: []string{"NODESKOOP_FOREGROUND_EVENTS"}}),
		Action: runDaemon,
	}
}

func runDaemon(c *cli.Context) error {
	// The daemon must survive readers of standard output or error that close the
	// pipe.
	signal.Ignore(syscall.SIGPIPE)
	s, err := newSession(c, c.App.ErrWriter)
	if err != nil {
		return err
	}
	s.Service = true
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	abrt := make(chan os.Signal, 1)
	signal.Notify(abrt, syscall.SIGABRT)
	defer signal.Stop(abrt)
	err = daemon.Run(c.Context, daemon.Options{
		Session: s, Reload: hup, Aborted: abrt, Abort: func() { abort(c.App.ErrWriter) }, Sinks: func() []event.Sink { return sinks(c, s.Log) },
		BeforeForcedEnd: func(f func()) { beforeForcedEnd.Store(&f) },
		Load:            func() (*config.Config, error) { return loadConfig(c) },
		Minute:          historyMinute,
		Escalate:        escalateOptions,
	})
	if errors.Is(err, daemon.ErrTimer) {
		return cli.Exit(err.Error(), exitHeld)
	}
	return err
}

// historyMinute is the length of a history minute, for tests; 0 means a minute.
var historyMinute time.Duration

// escalateOptions is the budget of the probes on standby, for tests; zero means that of
// the documentation.
var escalateOptions escalate.Options

// abort ends the program at once, with the exit code that shells use for SIGABRT.
func abort(log io.Writer) {
	if p, ok := log.(*output.Patient); ok {
		p.Flush(flushFor)
	}
	os.Exit(128 + int(syscall.SIGABRT))
}

// sinks returns the sinks of the daemon's events. With --foreground-events and
// without journald, events are only printed.
func sinks(c *cli.Context, log *slog.Logger) []event.Sink {
	if !c.Bool("foreground-events") {
		return []event.Sink{session.JournalSink(log)}
	}
	lines := output.NewTerminal(c.App.Writer, output.TerminalOptions{})
	go func() {
		select {
		case <-lines.Failed():
			log.Warn("printing events failed; the journal has them", "error", outputError(lines.Err()))
		case <-c.Context.Done():
		}
	}()
	if err := output.JournalAvailable(""); err != nil {
		log.Warn("there is no journald: events are only printed", "error", err)
		return []event.Sink{lines}
	}
	return []event.Sink{session.JournalSink(log), lines}
}
