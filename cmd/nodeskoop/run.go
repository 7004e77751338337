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
	"nodeskoop/collect/event"
	"nodeskoop/output"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "sample every probe each interval and keep the textfile fresh (the daemon)",
		Description: "SIGHUP reads the configuration again; a mistake in it keeps what was in effect.\n" +
			"SIGTERM and SIGINT end it and remove the textfile, unless textfile.keep is set. A second one ends it at once.",
		Flags:  append(commonFlags(), &cli.BoolFlag{Name: "foreground-events", Usage: "also print what goes to the journal, one line each: what is of one kind is one line, with its number", EnvVars: []string{"NODESKOOP_FOREGROUND_EVENTS"}}),
		Action: runDaemon,
	}
}

func runDaemon(c *cli.Context) error {
	// A reader of standard output or error that goes away must not end the
	// daemon.
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
		Load:   func() (*config.Config, error) { return loadConfig(c) },
		Minute: historyMinute,
	})
	if errors.Is(err, daemon.ErrTimer) {
		return cli.Exit(err.Error(), exitHeld)
	}
	return err
}

// historyMinute is how long a minute of the history is; 0: a minute. Tests set it.
var historyMinute time.Duration

// abort ends the program at once, with the exit code that a shell gives to what
// SIGABRT ends.
func abort(log io.Writer) {
	if p, ok := log.(*output.Patient); ok {
		p.Flush(flushFor)
	}
	os.Exit(128 + int(syscall.SIGABRT))
}

// sinks are where the daemon's events go. Without journald, the lines that
// were asked for stand in for it.
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
