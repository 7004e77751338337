package session

import (
	"context"
	"io"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit/need"
)

// TestOnlookerIsWhole: an Onlooker has the values that the configuration leaves out of
// the textfile, under the same names and labels.
func TestOnlookerIsWhole(t *testing.T) {
	need.Root(t)
	families := func(change func(*config.Config)) map[string][]*dto.Metric {
		cfg := config.Default()
		cfg.Pods.Namespace = "none-is-named-so"
		change(cfg)
		s := New("test", cfg, io.Discard)
		var err error
		if s.Host, err = ViewHost(cfg); err != nil {
			t.Fatal(err)
		}
		x, err := s.NewOnlooker(t.Context(), []string{"softnet", "udp"}, nil, nothing{})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		all := map[string][]*dto.Metric{}
		for _, f := range x.Runner.Cycle() {
			all[f.GetName()] = f.Metric
		}
		return all
	}
	want := families(func(*config.Config) {})
	if len(want["kubeskoop_softnet_processed"]) == 0 {
		t.Fatal("the probe softnet told nothing")
	}
	for what, change := range map[string]func(*config.Config){
		"include":    func(c *config.Config) { c.Metrics.Include = []string{"kubeskoop_udp_*"} },
		"exclude":    func(c *config.Config) { c.Metrics.Exclude = []string{"kubeskoop_softnet_*"} },
		"skip_zero":  func(c *config.Config) { c.Metrics.SkipZero = true },
		"max_series": func(c *config.Config) { c.Textfile.MaxSeries = 1 },
		"host_label": func(c *config.Config) { c.Pods.HostLabel = "this" },
	} {
		got := families(change)
		for name, metrics := range want {
			if len(got[name]) != len(metrics) {
				t.Errorf("with %s set: %d series of %s, %d without", what, len(got[name]), name, len(metrics))
			}
		}
	}
}

// nothing is a sink that discards events.
type nothing struct{}

func (nothing) Send(e *event.Event, done func(*event.Event, bool)) {
	if done != nil {
		done(e, true)
	}
}

func (nothing) Close(context.Context) error { return nil }
