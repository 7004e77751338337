package main

import (
	"io"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/docs"
	"nodeskoop/collect/escalate"
	guides "nodeskoop/docs"
	"nodeskoop/systemd"
)

func docsCommand() *cli.Command {
	page := func(name, usage string, f func(io.Writer) error) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Action: func(c *cli.Context) error { return f(c.App.Writer) }}
	}
	// Some pages describe the whole command line; they get the program without a
	// command.
	ofApp := func(name, usage string, f func(io.Writer, *cli.App) error) *cli.Command {
		return page(name, usage, func(w io.Writer) error { return f(w, newApp(io.Discard, io.Discard)) })
	}
	cmd := &cli.Command{
		Name:  "docs",
		Usage: "print the reference pages and the guides",
		Subcommands: []*cli.Command{
			page("metrics", "print the reference of the metrics, in Markdown", docs.Metrics),
			page("events", "print the reference of the events, in Markdown", docs.Events),
			page("causes", "print the reference of the causes that diagnose names, in Markdown", docs.Causes),
			page("probes", "print the table of probes, in Markdown", docs.Probes),
			page("signs", "print the table of the signs after which the daemon watches closer, in Markdown", escalate.WriteSigns),
			ofApp("man", "print the manual page nodeskoop(8)", docs.Man),
			ofApp("man-config", "print the manual page nodeskoop.toml(5)", docs.ManConfig),
			ofApp("bash", "print the completion for bash", docs.Bash),
			ofApp("zsh", "print the completion for zsh", docs.Zsh),
			ofApp("fish", "print the completion for fish", docs.Fish),
			page("catalog", "print the journal's message catalog", systemd.WriteCatalog),
		},
	}
	for _, g := range guides.Guides() {
		cmd.Subcommands = append(cmd.Subcommands, page(g.Name, `print the guide "`+g.Title+`", in Markdown`, func(w io.Writer) error {
			_, err := io.WriteString(w, g.Text)
			return err
		}))
	}
	return cmd
}
