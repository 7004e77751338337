package session

import (
	"errors"
	"slices"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/trace"
)

// Probe is one probe as it works here. `nodeskoop probes` prints it.
type Probe struct {
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
	// Limitations is what the probe cannot see here.
	Limitations []string `json:"lacks,omitempty"`
	// Refused is what the kernel answered to better hooks.
	Refused []string `json:"refused,omitempty"`
	Metrics int      `json:"metrics"`
	Events  int      `json:"events"`
}

// TryProbes samples every probe once on the host, enabled or not.
func (s *Session) TryProbes() ([]Probe, error) {
	if s.HostErr != nil {
		return nil, s.HostErr
	}
	o := s.Options(s.Config, s.Host)
	o.Log = nil // the rows tell
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
		row := Probe{Probe: p.Name, Title: p.Title, Kinds: p.Kinds(), Source: p.Source.String(), Overhead: p.Overhead,
			Enabled: slices.Contains(s.Config.Probes, p.Name), Works: st.Up, Hook: st.Hook, Devices: tracer.Devices(p.Name), Limitations: st.Limitations, Refused: tracer.Refusals(p.Name), Metrics: len(p.Metrics), Events: len(p.Events)}
		if errors.Is(st.Err, collect.ErrNotBuilt) {
			row.Reason = collect.ErrNotBuilt.Error()
		} else if st.Err != nil {
			row.Reason = st.Err.Error()
		}
		rows = append(rows, row)
	}
	return rows, nil
}
