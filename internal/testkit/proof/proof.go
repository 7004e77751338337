// Package proof records what a test has proved: that a probe, on one of its
// hooks, counted exactly what was caused. The lines go to the test's log, from
// where `make test-kernels` makes its table of kernels and probes.
package proof

import (
	"encoding/json"
	"testing"
)

// Mark begins each line, for who looks for them in the output of `go test -v`.
const Mark = "proof: "

// Line is one record. Its JSON follows Mark.
type Line struct {
	Probe   string `json:"probe"`
	Hook    string `json:"hook"`              // the kind of hook in use, or the one that was asked for if Refused; for a probe without hooks its source ("procfs", "netlink")
	What    string `json:"what,omitempty"`    // what was caused
	Caused  uint64 `json:"caused,omitempty"`  // how often, by an independent source
	Counted uint64 `json:"counted,omitempty"` // by the probe
	Refused string `json:"refused,omitempty"` // why this kernel does not have the hook

	Taken       bool     `json:"taken,omitempty"`  // this kernel has the hook
	Chosen      bool     `json:"chosen,omitempty"` // it is what the probe uses here by itself
	Limitations []string `json:"lacks,omitempty"`  // what the probe does not see by it
}

// Count demands that a probe counted as much as was caused, and records it.
func Count(t testing.TB, probe, hook, what string, caused, counted uint64) {
	t.Helper()
	log(t, Line{Probe: probe, Hook: hook, What: what, Caused: caused, Counted: counted})
	if caused != counted {
		t.Errorf("%s by %s: %s: %d were caused, %d counted", probe, hook, what, caused, counted)
	}
}

// Take records that this kernel has a hook of a probe, and what the probe does
// not see by it.
func Take(t testing.TB, probe, hook string, limitations []string) {
	t.Helper()
	log(t, Line{Probe: probe, Hook: hook, Taken: true, Limitations: limitations})
}

// Choose records what a probe uses on this kernel when nothing is asked of it.
func Choose(t testing.TB, probe, hook string, limitations []string) {
	t.Helper()
	log(t, Line{Probe: probe, Hook: hook, Chosen: true, Limitations: limitations})
}

// Refuse records that this kernel does not have a hook of a probe.
func Refuse(t testing.TB, probe, hook, reason string) {
	t.Helper()
	log(t, Line{Probe: probe, Hook: hook, Refused: reason})
}

func log(t testing.TB, l Line) {
	t.Helper()
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s%s", Mark, b)
}
