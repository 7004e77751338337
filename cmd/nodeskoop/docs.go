package main

import (
	"io"

	"github.com/urfave/cli/v2"

	"nodeskoop/systemd"
)

func docsCommand() *cli.Command {
	page := func(name, usage string, f func(io.Writer) error) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Action: func(c *cli.Context) error { return f(c.App.Writer) }}
	}
	return &cli.Command{
		Name:  "docs",
		Usage: "print reference pages made from the catalogue",
		Subcommands: []*cli.Command{
			page("metrics", "print the reference of the metrics, in Markdown", docMetrics),
			page("events", "print the reference of the events, in Markdown", docEvents),
			page("probes", "print the table of probes, in Markdown", docProbes),
			page("man", "print the manual page nodeskoop(8)", docMan),
			page("man-config", "print the manual page nodeskoop.toml(5)", docManConfig),
			page("bash", "print the completion for bash", docBash),
			page("zsh", "print the completion for zsh", docZsh),
			page("fish", "print the completion for fish", docFish),
			page("catalog", "print the journal's message catalog", systemd.WriteCatalog),
		},
	}
}
