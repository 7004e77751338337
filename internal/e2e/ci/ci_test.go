// Package ci tests the scripts that read the output of `go test -v` for make and CI, on
// outputs in testdata. A failure that a script overlooks would go unnoticed. The
// package needs a shell and awk, and is part of `make test-unit`.
package ci

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nodeskoop/internal/testkit"
)

func TestReports(t *testing.T) {
	for _, c := range []struct {
		name, log, script string
		exit              int
	}{
		{"failures", "failing.log", "report-failures", 0},
		{"panic", "panic.log", "report-failures", 0},
		{"skips without need", "failing.log", "report-skips", 1},
		{"skips with need", "skipping.log", "report-skips", 0},
		{"skips counted", "failing.log", "report-skips --count", 0},
		{"nothing skipped", "panic.log", "report-skips", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			words := strings.Fields(c.script)
			cmd := exec.Command("../../../.ci/"+words[0], append(words[1:], filepath.Join("testdata", c.log))...)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != c.exit {
				t.Errorf("%s: %v, want exit %d", c.script, err, c.exit)
			}
			testkit.Golden(t, strings.ReplaceAll(c.name, " ", "-")+".golden", out)
		})
	}
}
