package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

func probesCommand() *cli.Command {
	return &cli.Command{
		Name:  "probes",
		Usage: "print the probes: whether they are enabled or escalated, and whether they work here or why not",
		Flags: append(commonFlags(), jsonFlag("print JSON")),
		Action: func(c *cli.Context) error {
			s, err := newSession(c, c.App.ErrWriter)
			if err != nil {
				return err
			}
			rows, err := s.TryProbes()
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return writeJSON(c, rows)
			}
			lines := [][]string{{"PROBE", "KINDS", "SOURCE", "OVERHEAD", "ENABLED", "HOOK", "WORKS HERE"}}
			for _, r := range rows {
				works := "yes"
				switch {
				case !r.Supported:
					works = "not supported"
				case !r.Works:
					works = "no"
				case len(r.Limitations) > 0:
					works = "in part"
				}
				enabled := column.YesNo(r.Enabled)
				if r.Escalated {
					enabled = "escalated"
				}
				lines = append(lines, []string{r.Probe, r.Kinds, r.Source, column.Dash(r.Overhead), enabled, column.Dash(r.Hook), works})
			}
			if err := column.Write(c.App.Writer, lines); err != nil {
				return err
			}
			for _, r := range rows {
				switch {
				case !r.Supported:
					fmt.Fprintf(c.App.Writer, "\n%s is not supported here: %s\n", r.Probe, quote.Safe(r.Reason))
				case !r.Works:
					fmt.Fprintf(c.App.Writer, "\n%s does not work: %s\n", r.Probe, quote.Safe(r.Reason))
				}
				if len(r.Devices) > 0 {
					fmt.Fprintf(c.App.Writer, "\n%s watches the devices %s\n", r.Probe, quote.Safe(strings.Join(r.Devices, ", ")))
				}
				if len(r.Limitations) > 0 {
					fmt.Fprintf(c.App.Writer, "\n%s does not see:\n", r.Probe)
					for _, l := range r.Limitations {
						fmt.Fprintf(c.App.Writer, "  - %s\n", quote.SafeLine(l))
					}
				}
			}
			if unprivileged() {
				fmt.Fprintf(c.App.ErrWriter, "nodeskoop: trying every probe needs root: %s\n", withSudo(argumentsOf(c)))
			}
			return nil
		},
	}
}
