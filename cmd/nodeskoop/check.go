package main

import (
	"errors"
	"io"
	"log/slog"
	"slices"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/check"
	"nodeskoop/output"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "test the configuration and this machine, and say how to fix each failure",
		Description: "Run it as root, like the daemon: it tests the privileges of its own process.\n" +
			"Exit code 0: no failure; there may be warnings. 1: a failure. 2: the command line is wrong.",
		Flags: append(commonFlags(),
			jsonFlag("print JSON: a list of check, verdict (ok, warn or FAIL), found and do"),
			&cli.BoolFlag{Name: "problems", Usage: "print only the problems", EnvVars: []string{"NODESKOOP_PROBLEMS"}},
		),
		Action: runCheck,
	}
}

func runCheck(c *cli.Context) error {
	// Discard the log, because the findings report the same problems.
	s, err := newSession(c, io.Discard)
	if errors.As(err, new(cli.ExitCoder)) {
		return err // a usage error
	}
	var findings []check.Finding
	if s == nil {
		findings = check.BadConfig(err)
	} else {
		s.Log = slog.New(slog.DiscardHandler)
		findings = check.Run(c.Context, s)
	}
	switch problems := c.Bool("problems"); {
	case c.Bool("json") && problems:
		err = writeJSON(c, check.Problems(findings))
	case c.Bool("json"):
		err = writeJSON(c, findings)
	default:
		err = check.Write(c.App.Writer, findings, output.Width(c.App.Writer), output.UseColor(c.App.Writer), problems)
	}
	if err != nil {
		return outputError(err)
	}
	if slices.ContainsFunc(findings, func(f check.Finding) bool { return f.Verdict == check.Bad }) {
		return cli.Exit("", exitFailure) // the findings contain the reason
	}
	return nil
}
