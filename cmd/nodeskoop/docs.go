package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"nodeskoop/collect"
)

func docsCommand() *cli.Command {
	page := func(name, usage string, f func(io.Writer) error) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Action: func(c *cli.Context) error { return f(c.App.Writer) }}
	}
	return &cli.Command{
		Name:  "docs",
		Usage: "print reference pages made from the catalogue",
		Subcommands: []*cli.Command{
			page("metrics", "print the table of metrics, in Markdown", docMetrics),
			page("events", "print the table of events, in Markdown", docEvents),
		},
	}
}

func docMetrics(w io.Writer) error {
	var b strings.Builder
	for _, p := range collect.Probes() {
		if len(p.Metrics) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s, from %s.", p.Name, upperFirst(p.Title), p.Source)
		b.WriteString("\n\n| metric | type | one series per | meaning |\n|---|---|---|---|\n")
		for _, m := range p.Metrics {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, scopeWords(&m), cell(m.Help))
		}
	}
	b.WriteString("\n### nodeskoop itself\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range collect.Metrics() {
		if m.Probe() == "" {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Labels, ", "), cell(m.Help))
		}
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

func scopeWords(m *collect.Metric) string {
	s := map[collect.Scope]string{
		collect.PerNetns: "network namespace", collect.PerPod: "pod",
		collect.PerHost: "node", collect.PerFlow: "connection",
	}[m.Scope]
	if len(m.Labels) > 0 && m.Scope != collect.PerFlow {
		s += " and " + strings.Join(m.Labels, ", ")
	}
	return s
}

func docEvents(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| event | probe | when | priority | what happened |\n|---|---|---|---|---|\n")
	for _, e := range collect.Events() {
		when := "each one"
		switch {
		case e.Below != 0:
			when = fmt.Sprintf("%v to %v", e.Threshold, e.Below)
		case e.Threshold != 0:
			when = fmt.Sprintf("over %v", e.Threshold)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", e.Name, e.Probe(), when, e.Priority, cell(e.Summary))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell makes a text safe inside a Markdown table.
func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
