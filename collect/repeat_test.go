package collect

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// A lasting failure is one log line, however long it lasts and however its text varies.
// Probes that fail for the same reason share the line, and the line about its end says how
// long it lasted.
func TestFailuresAreLoggedOnceAndCounted(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	n := 0
	failing := func(*View) error {
		if n < 50 {
			return errors.New("not permitted")
		}
		return nil
	}
	r := newRunner(t, Options{ProcRoot: root, Log: slog.New(slog.NewTextHandler(&log, nil))},
		probe("ip", EachNetns, failing), probe("sock", EachNetns, failing),
		probe("tcp", EachNetns, func(v *View) error {
			if n < 50 {
				return fmt.Errorf("and %d more", n)
			}
			return nil
		}))
	for ; n < 60; n++ {
		r.Cycle()
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	var failed, again int
	for _, l := range lines {
		switch {
		case strings.Contains(l, "probe failed"):
			failed++
			if strings.Contains(l, "not permitted") && !strings.Contains(l, `probe="ip, sock"`) {
				t.Errorf("not one line for both: %s", l)
			}
		case strings.Contains(l, "works again") && strings.Contains(l, "cycles=50"):
			again++
		default:
			t.Errorf("an unexpected line: %s", l)
		}
	}
	if failed != 2 || again != 3 {
		t.Errorf("%d failures and %d recoveries, want 2 and 3:\n%s", failed, again, &log)
	}
}
