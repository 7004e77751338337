package bpf

import (
	"errors"
	"testing"
)

// TestLoad loads every probe with every kind of hook that this kernel accepts.
func TestLoad(t *testing.T) {
	for _, forced := range []Kind{"", RawTracepoint, BTFTracepoint, Fentry, Kprobe} {
		t.Run("hooks="+string(forced), func(t *testing.T) {
			l := newTestLoader(t, Options{Hooks: forced})
			for _, name := range Probes() {
				p, err := l.Load(name, Config{})
				var unsupported *UnsupportedError
				if errors.As(err, &unsupported) {
					t.Logf("%s: %v", name, err)
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				state, limitations := p.State()
				t.Logf("%s: %s %q", name, state, limitations)
				for _, h := range p.Hooks() {
					t.Logf("  %s: %s %v", h.Name, h.Kind, h.Programs)
					for _, r := range h.Refused {
						t.Logf("    not %s %v: %s", r.Kind, r.Programs, r.Reason)
					}
				}
				if err := p.Counters(func(NetnsID, int, uint64) {}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
