package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/quote"
)

// probeRow is one probe as `nodeskoop probes` prints it.
type probeRow struct {
	Probe    string `json:"probe"`
	Title    string `json:"title"`
	Kinds    string `json:"kinds"`
	Source   string `json:"source"`
	Overhead string `json:"overhead"`
	Enabled  bool   `json:"enabled"`
	Works    bool   `json:"works"`
	Reason   string `json:"reason,omitempty"`
	Hook     string `json:"hook,omitempty"`
	// Devices are those that the hook is on, for a probe that watches devices.
	Devices []string `json:"devices,omitempty"`
	// Lacks is what the probe cannot see here.
	Lacks []string `json:"lacks,omitempty"`
	// Refused is what the kernel answered to better hooks.
	Refused []string `json:"refused,omitempty"`
	Metrics int      `json:"metrics"`
	Events  int      `json:"events"`
}

func probesCommand() *cli.Command {
	return &cli.Command{
		Name:  "probes",
		Usage: "print the probes, whether they are enabled, and whether they work here or why not",
		Flags: append(commonFlags(), jsonFlag("print JSON")),
		Action: func(c *cli.Context) error {
			s, err := newSetup(c)
			if err != nil {
				return err
			}
			rows, err := s.tryProbes()
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return writeJSON(c, rows)
			}
			lines := [][]string{{"PROBE", "KINDS", "SOURCE", "OVERHEAD", "ENABLED", "HOOK", "WORKS HERE"}}
			for _, r := range rows {
				works := "yes"
				if !r.Works {
					works = "no"
				} else if len(r.Lacks) > 0 {
					works = "in part"
				}
				lines = append(lines, []string{r.Probe, r.Kinds, r.Source, r.Overhead, yesNo(r.Enabled), dash(r.Hook), works})
			}
			if err := writeColumns(c.App.Writer, lines); err != nil {
				return err
			}
			for _, r := range rows {
				if !r.Works {
					fmt.Fprintf(c.App.Writer, "\n%s does not work: %s\n", r.Probe, quote.Safe(strings.TrimPrefix(firstLine(r.Reason), "probe "+r.Probe+" ")))
				}
				if len(r.Devices) > 0 {
					fmt.Fprintf(c.App.Writer, "\n%s watches the devices %s\n", r.Probe, quote.Safe(strings.Join(r.Devices, ", ")))
				}
				if len(r.Lacks) > 0 {
					fmt.Fprintf(c.App.Writer, "\n%s does not see:\n", r.Probe)
					for _, l := range r.Lacks {
						fmt.Fprintf(c.App.Writer, "  - %s\n", quote.SafeLine(l))
					}
				}
			}
			return nil
		},
	}
}

// tryProbes samples every probe once on the host, enabled or not.
func (s *setup) tryProbes() ([]probeRow, error) {
	if s.hostErr != nil {
		return nil, s.hostErr
	}
	o, err := s.options(s.cfg, s.view)
	o.Log = nil // the rows tell
	if err != nil {
		return nil, err
	}
	if o.Enabled, err = selectProbes([]string{"all"}); err != nil {
		return nil, err
	}
	plane := trace.New(trace.Options{})
	r, err := collect.NewRunner(o, factories(plane)...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	r.Cycle()
	var rows []probeRow
	for _, st := range r.Status() {
		p := catalog.ProbeByName(st.Name)
		row := probeRow{Probe: p.Name, Title: p.Title, Kinds: p.Kinds(), Source: p.Source.String(), Overhead: p.Overhead,
			Enabled: slices.Contains(s.cfg.probes, p.Name), Works: st.Up, Hook: st.Hook, Devices: plane.Devices(p.Name), Lacks: st.Lacks, Refused: plane.Refusals(p.Name), Metrics: len(p.Metrics), Events: len(p.Events)}
		if errors.Is(st.Err, collect.ErrNotBuilt) {
			row.Reason = collect.ErrNotBuilt.Error()
		} else if st.Err != nil {
			row.Reason = st.Err.Error()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
