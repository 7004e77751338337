package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTimerHolds(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	active := script("active", `[ "$*" = "--quiet is-active nodeskoop-collect.timer" ]`)
	for name, c := range map[string]struct {
		running, systemctl string
		held               bool
	}{
		"active":       {dir, active, true},
		"inactive":     {dir, script("inactive", "exit 3"), false},
		"unknown":      {dir, script("unknown", "echo unknown >&2; exit 4"), false},
		"no systemctl": {dir, filepath.Join(dir, "absent"), false},
		"no systemd":   {filepath.Join(dir, "absent"), active, false},
		"no folder":    {active, active, false},
	} {
		err := timerHolds(t.Context(), c.running, c.systemctl, "/x/nodeskoop.prom")
		if errors.Is(err, ErrTimer) != c.held || (err != nil) != c.held {
			t.Errorf("%s: %v", name, err)
		}
		if c.held && (!strings.Contains(err.Error(), "/x/nodeskoop.prom") || !strings.Contains(err.Error(), "systemctl disable --now nodeskoop-collect.timer")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
