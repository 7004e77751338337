package install

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit/need"
)

// duration is how long the machine runs, as passed by make.
func duration(t *testing.T, target, variable string) time.Duration {
	t.Helper()
	text := os.Getenv(variable)
	need.Target(t, target, text != "")
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return d
}

// TestQuiet: on a healthy machine the daemon writes almost nothing and no warning,
// and no pod loses a packet.
func TestQuiet(t *testing.T) {
	const mostEntries = 20
	d := duration(t, "quiet", "NODESKOOP_QUIET")
	h := bootHealthy(t)
	h.fill(50, 5)
	settled := time.Now()
	h.live(d, rhythm{idle: 10 * time.Second, busy: 30 * time.Second, logs: max(d/4, time.Minute), packages: max(d/3, time.Minute)})
	for _, p := range h.busy {
		h.count(p)
	}
	for _, what := range []string{"requests", "lookups", "pings", "connections"} {
		if h.did[what] < 5*int(d/time.Minute) {
			t.Errorf("the busy pods did %d %s in %v", h.did[what], what, d)
		}
	}
	t.Logf("in %v: %v, %d pods made", d, h.did, h.made)

	entries, elsewhere := h.ours(h.written())
	var grave []entry
	before := 0
	for _, e := range entries {
		if p := e.text("PRIORITY"); p != "" && p <= "4" {
			grave = append(grave, e)
		}
		if e.time().Before(settled) {
			before++
		}
	}
	t.Logf("%d entries in the journal, %d of them before all pods ran, %d of them at warning or above; %d more are about others on this kernel", len(entries), before, len(grave), len(elsewhere))
	if len(entries) > mostEntries {
		t.Errorf("a machine in good health wrote %d entries, want at most %d:\n%s", len(entries), mostEntries, byKind(entries))
	} else {
		t.Logf("\n%s", byKind(entries))
	}
	if len(grave) > 0 {
		t.Errorf("%d entries are at warning or above:\n%s", len(grave), byKind(grave))
	}
	if len(elsewhere) > 0 {
		t.Logf("about others on this kernel:\n%s", byKind(elsewhere))
	}
	for _, who := range slices.Sorted(maps.Keys(h.lost)) {
		switch n := h.lost[who]; {
		case n == 0:
		case strings.HasSuffix(who, "/hostNetwork"), strings.HasSuffix(who, "/unknown"):
			t.Logf("kubeskoop_packetloss_total of %s is %v: packets of others on this kernel, too", who, n)
		default:
			t.Errorf("kubeskoop_packetloss_total of %s is %v, want 0", who, n)
		}
	}
}
