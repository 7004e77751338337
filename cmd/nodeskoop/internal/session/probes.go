package session

import (
	"errors"
	"slices"
	"strings"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/trace"
)

// Probe describes how one probe works here. `nodeskoop probes` prints it.
type Probe struct {
	Probe    string `json:"probe"`
	Title    string `json:"title"`
	Kinds    string `json:"kinds"`
	Source   string `json:"source"`
	Overhead string `json:"overhead"` // as measured
	Granted  string `json:"granted"`  // by the specification
	Enabled  bool   `json:"enabled"`
	// Escalated: the probe runs after a sign of a fault (probes.escalate).
	Escalated bool `json:"escalated"`
	Works     bool `json:"works"`
	// Supported is false if this machine cannot run the probe.
	Supported bool   `json:"supported"`
	Reason    string `json:"reason,omitempty"` // one line
	// Detail is the kernel's answer, including the verifier's log.
	Detail string `json:"detail,omitempty"`
	Hook   string `json:"hook,omitempty"`
	// Devices lists the devices that the hook is attached to, for a probe that
	// watches devices.
	Devices []string `json:"devices,omitempty"`
	// Limitations lists what the probe cannot see on this machine.
	Limitations []string `json:"lacks,omitempty"`
	// Refused says why the kernel refused better hooks; Answers is the same with
	// the verifier's log.
	Refused []string `json:"refused,omitempty"`
	Answers []string `json:"answers,omitempty"`
	Metrics int      `json:"metrics"`
	Events  int      `json:"events"`
}

// TryProbes samples every probe once on the host, whether enabled or not.
func (s *Session) TryProbes() ([]Probe, error) {
	if s.HostErr != nil {
		return nil, s.HostErr
	}
	o := s.Options(s.Config, s.Host)
	o.Log = nil // failures are in the rows
	var err error
	if o.Enabled, err = config.SelectProbes([]string{"all"}); err != nil {
		return nil, err
	}
	tracer := trace.New(trace.Options{})
	r, err := collect.NewRunner(o, Factories(tracer)...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	r.Cycle()
	var rows []Probe
	for _, st := range r.Status() {
		p := catalog.ProbeByName(st.Name)
		row := Probe{Probe: p.Name, Title: p.Title, Kinds: p.Kinds(), Source: p.Source.String(), Overhead: p.Measured, Granted: p.Overhead,
			Enabled: slices.Contains(s.Config.Probes, p.Name), Escalated: slices.Contains(s.Config.Escalate, p.Name), Works: st.Up, Supported: !st.Unsupported, Hook: st.Hook, Devices: tracer.Devices(p.Name), Limitations: st.Limitations, Metrics: len(p.Metrics), Events: len(p.Events)}
		row.Refused, row.Answers = tracer.Refusals(p.Name)
		var lack *collect.UnsupportedError
		switch {
		case errors.Is(st.Err, collect.ErrNotBuilt):
			row.Reason = collect.ErrNotBuilt.Error()
		case errors.As(st.Err, &lack):
			row.Reason, row.Detail = lack.Reason, lack.Detail
		case st.Err != nil:
			row.Reason, row.Detail, _ = strings.Cut(st.Err.Error(), "\n") // a panic's error includes its stack
		}
		rows = append(rows, row)
	}
	return rows, nil
}
