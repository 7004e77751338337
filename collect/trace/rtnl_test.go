package trace

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/hang"
	"nodeskoop/internal/testkit/need"
)

// If another program holds a lock of the kernel, only flow loses its values: probes
// are still loaded, sampled and closed.
func TestLoopWhileRTNLIsHeld(t *testing.T) {
	need.Root(t)
	var log bytes.Buffer
	tracer := New(Options{})
	r, err := collect.NewRunner(collect.Options{
		Node: "n1", HostLabel: "host", Interval: time.Hour, Timeout: 200 * time.Millisecond, HostNetns: "/proc/self/ns/net",
		Enabled: []string{"biolatency", "flow", "tcpretrans"}, Probes: map[string]map[string]any{"flow": {"devices": []string{"lo"}}},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}, tracer.Factories()...)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			r.Close()
		}
	}()
	state := func() (up map[string]bool, flow collect.ProbeStatus) {
		up = map[string]bool{}
		for _, s := range r.Status() {
			if up[s.Name] = s.Up; s.Name == "flow" {
				flow = s
			}
		}
		return up, flow
	}
	const held = 10 * time.Second
	quick := func(what string, f func()) {
		t.Helper()
		begin := time.Now()
		f()
		if took := time.Since(begin); took > held-2*time.Second {
			t.Errorf("%s took %v: as long as the lock was held", what, took)
		}
	}

	release := hang.RTNL(t, held)
	quick("the first cycle", func() { r.Cycle() })
	up, flow := state()
	if up["flow"] || !up["biolatency"] || !up["tcpretrans"] {
		t.Errorf("while flow waits for the lock: %v", up)
	}
	if flow.Err == nil || !strings.Contains(flow.Err.Error(), "loading it has not returned") {
		t.Errorf("flow: %v", flow.Err)
	}
	release()
	testkit.Await(t, func() error {
		r.Cycle()
		if up, flow = state(); !up["flow"] {
			return fmt.Errorf("flow is not taken up when the lock is free: %v", flow.Err)
		}
		return nil
	})
	if n := strings.Count(log.String(), "probe failed"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, &log)
	}

	release = hang.RTNL(t, held)
	quick("a cycle", func() { r.Cycle() })
	quick("the end", r.Close)
	closed = true
	release()
}
