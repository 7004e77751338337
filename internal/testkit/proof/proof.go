// Package proof records what a test has proved: that a probe with a certain hook counted
// exactly what was caused. Each record is a line in the test's log, from which `make
// test-kernels` generates the table of kernels and probes.
package proof

import (
	"encoding/json"
	"testing"
)

// Mark begins each line in the output of `go test -v`.
const Mark = "proof: "

// Line is one record. Its JSON follows Mark.
type Line struct {
	Probe   string `json:"probe"`
	Hook    string `json:"hook"`              // kind of hook in use, or the refused one; for a probe without hooks its source ("procfs", "netlink")
	What    string `json:"what,omitempty"`    // what was caused
	Caused  uint64 `json:"caused,omitempty"`  // how often, from an independent source
	Counted uint64 `json:"counted,omitempty"` // by the probe
	Refused string `json:"refused,omitempty"` // why this kernel does not have the hook

	Taken       bool     `json:"taken,omitempty"`  // this kernel has the hook
	Chosen      bool     `json:"chosen,omitempty"` // the probe's own choice on this kernel
	Limitations []string `json:"lacks,omitempty"`  // what the probe cannot see with this hook
}

// Count checks that a probe counted as much as was caused, and records it.
func Count(t testing.TB, probe, hook, what string, caused, counted uint64) {
	t.Helper()
	log(t, Line{Probe: probe, Hook: hook, What: what, Caused: caused, Counted: counted})
	if caused != counted {
		t.Errorf("%s by %s: %s: %d were caused, %d counted", probe, hook, what, caused, counted)
	}
}

// Take records that this kernel has a hook of a probe, with its limitations.
func Take(t testing.TB, probe, hook string, limitations []string) {
	t.Helper()
	log(t, Line{Probe: probe, Hook: hook, Taken: true, Limitations: limitations})
}

// Choose records the probe's own choice on this kernel.
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
