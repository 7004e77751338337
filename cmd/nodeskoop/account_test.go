package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/internal/testkit"
)

// lossAccount is the account of PacketLoss events in the metrics.
type lossAccount struct{ seen, written, suppressed, lost, ignored, pending float64 }

func lossAccountIn(fams map[string]*dto.MetricFamily) lossAccount {
	get := func(name string) float64 {
		for _, m := range fams[name].GetMetric() {
			for _, l := range m.Label {
				if l.GetName() == "event" && l.GetValue() == "PacketLoss" {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
		return -1
	}
	return lossAccount{get("nodeskoop_events_seen_total"), get("nodeskoop_events_written_total"), get("nodeskoop_events_suppressed_total"),
		get("nodeskoop_events_lost_total"), get("nodeskoop_events_ignored_total"), get("nodeskoop_events_pending")}
}

// toldIn sums the occurrences in the PacketLoss entries that a daemon without
// journald wrote.
func toldIn(t *testing.T, log string) (told float64) {
	t.Helper()
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, `{"MESSAGE":`) || !strings.Contains(line, `"KUBESKOOP_EVENT":"PacketLoss"`) {
			continue
		}
		var fields map[string]string
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		n := 1.0
		if c := fields["KUBESKOOP_COUNT"]; c != "" {
			n, _ = strconv.ParseFloat(c, 64)
		}
		told += n
	}
	return told
}

// TestEventsMergesForAPerson: events of one kind become one line with their number;
// with --all each is a line. Both report the same total.
func TestEventsMergesForAPerson(t *testing.T) {
	n := newNode(t, "'packetloss'", "")
	watch := func(more ...string) *program {
		p := start(t, append([]string{"events", "--config", n.cfg, "--event", "PacketLoss", "--pod", "host"}, more...)...)
		testkit.Eventually(t, "it watches", func() bool { return strings.Contains(p.logged(), "Watching ") })
		return p
	}
	lines, merged, all := watch(), watch("--json"), watch("--json", "--all")
	const rounds = 5
	for range rounds {
		n.trouble()
	}
	var told, each float64
	testkit.Eventually(t, "as many are told one by one as together", func() bool {
		told, each = toldIn(t, merged.printed()), toldIn(t, all.printed())
		return each > rounds && told == each
	})
	if c := strings.Count(all.printed(), "\n"); float64(c) != each || strings.Contains(all.printed(), "KUBESKOOP_COUNT") {
		t.Errorf("--all: %d lines tell of %v:\n%s", c, each, all.printed())
	}
	if c := strings.Count(merged.printed(), "\n"); float64(c) >= each || !strings.Contains(merged.printed(), `"KUBESKOOP_COUNT":"`) || !strings.Contains(merged.printed(), `"KUBESKOOP_LAST_US":"`) {
		t.Errorf("%d lines tell of %v:\n%s", c, told, merged.printed())
	}
	testkit.Eventually(t, "a person reads the number", func() bool { return strings.Contains(lines.printed(), " times in ") })
	for _, p := range []*program{lines, merged, all} {
		p.signal(syscall.SIGINT)
		if code := p.ended(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, p.logged())
		}
		// The output begins and ends with prose; the log is opt-in.
		said := p.logged()
		if !strings.HasPrefix(said, "Watching 1 probe") || !strings.Contains(said, " events in ") || !strings.Contains(said, "\nCOUNT  EVENT       WHOSE ") || !strings.Contains(said, "  PacketLoss  host ") || strings.Contains(said, "level=") {
			t.Errorf("standard error says:\n%s", said)
		}
	}
	for line := range strings.Lines(lines.printed()) {
		if !strings.Contains(line, "  host: packet dropped") || !strings.HasSuffix(line, "  PacketLoss\n") {
			t.Errorf("a line does not begin with whose it is: %s", line)
		}
	}
	t.Logf("\n%s", lines.printed())
}

// TestEventAccountGoesOn: merged events that a killed daemon had not written count
// as lost at the next start; a clean shutdown writes them. The sum is always exact, and
// no counter falls.
func TestEventAccountGoesOn(t *testing.T) {
	n := newNode(t, "'packetloss'", "[journal]\nrate = 1000\nburst = 1000\ntotal_rate = 1000\n")
	var last lossAccount
	// settled returns the account once it is stable.
	settled := func(what string) lossAccount {
		t.Helper()
		now := lossAccountIn(n.cycles(1))
		testkit.Eventually(t, what+": the account stands still", func() bool {
			was := now
			now = lossAccountIn(n.cycles(2))
			return was == now
		})
		if now.seen != now.written+now.suppressed+now.lost+now.ignored+now.pending || now.ignored != 0 || now.suppressed != 0 {
			t.Errorf("%s: %+v", what, now)
		}
		if now.seen < last.seen || now.written < last.written || now.lost < last.lost {
			t.Errorf("%s: from %+v to %+v", what, last, now)
		}
		last = now
		return now
	}
	for i, end := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
		what := fmt.Sprintf("run %d, ends by %v", i, end)
		p := start(t, "run", "--config", n.cfg)
		if before := last; i > 0 {
			if now := settled(what); now.seen != before.seen || now.pending != 0 {
				t.Errorf("%s: it begins with %+v, before it was %+v", what, now, before)
			}
		} else {
			settled(what)
		}
		begin := last
		var now lossAccount
		testkit.Eventually(t, what+": some events are merged", func() bool {
			n.trouble()
			now = settled(what)
			return now.pending > 0
		})
		// A window may end at any moment.
		if told := toldIn(t, p.logged()); told < now.written-begin.written || told > now.written+now.pending-begin.written {
			t.Errorf("%s: entries tell of %v; from %+v to %+v", what, told, begin, now)
		}
		p.signal(end)
		if end == syscall.SIGKILL {
			<-p.Done()
			now = lossAccountIn(parseProm(t, n.file()))
			last = now
			last.lost, last.pending = now.lost+now.pending, 0
		} else {
			if code := p.ended(); code != 0 {
				t.Errorf("%s: exit code %d", what, code)
			}
			if told := toldIn(t, p.logged()); told != now.written+now.pending-begin.written {
				t.Errorf("%s: entries tell of %v; from %+v to %+v", what, told, begin, now)
			}
			last.written, last.pending = now.written+now.pending, 0
		}
	}
	p := start(t, "run", "--config", n.cfg)
	want := last
	if got := settled("at the end"); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	p.signal(syscall.SIGTERM)
	p.ended()
}
