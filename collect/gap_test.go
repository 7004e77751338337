package collect

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// clocks are a machine's clocks, controlled by the test.
type clocks struct {
	moment
	delays map[int]time.Duration
}

func (c *clocks) use(g *gaps) {
	g.now = func() moment { return c.moment }
	g.delay = func() (map[int]time.Duration, bool) { return map[int]time.Duration{1: c.delays[1]}, c.delays != nil }
}

func (c *clocks) pass(d time.Duration) {
	c.wall, c.boot, c.mono = c.wall.Add(d), c.boot+d, c.mono+d
}

// TestGaps checks the message and the counter for each kind of gap.
func TestGaps(t *testing.T) {
	const most = 45 * time.Second
	start := time.Date(2026, 3, 1, 16, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		happens func(*clocks, *gaps)
		restart bool // a new process takes the next sample
		boot    string
		told    string // "": no message
		reason  gapReason
		seconds float64
	}{
		"a cycle later":         {happens: func(c *clocks, g *gaps) { c.pass(15 * time.Second); g.late(time.Second) }},
		"three intervals":       {happens: func(c *clocks, g *gaps) { c.pass(most) }},
		"a short restart":       {happens: func(c *clocks, _ *gaps) { c.pass(most) }, restart: true},
		"the clock is set":      {happens: func(c *clocks, _ *gaps) { c.pass(time.Second); c.wall = c.wall.Add(time.Hour) }},
		"the clock is set back": {happens: func(c *clocks, _ *gaps) { c.pass(time.Second); c.wall = c.wall.Add(-time.Hour) }},
		"stopped": {happens: func(c *clocks, _ *gaps) { c.pass(842 * time.Second) }, restart: true,
			told: "no samples between 2026-03-01T16:00:00Z and 2026-03-01T16:14:02Z (14m2s): the daemon was not running", reason: gapStopped, seconds: 842},
		"stopped, and the clock is set meanwhile": {happens: func(c *clocks, _ *gaps) { c.pass(842 * time.Second); c.wall = c.wall.Add(time.Hour) }, restart: true,
			told: "no samples between 2026-03-01T17:00:00Z and 2026-03-01T17:14:02Z (14m2s): the daemon was not running", reason: gapStopped, seconds: 842},
		"suspended": {happens: func(c *clocks, g *gaps) { c.pass(842 * time.Second); c.mono -= 840 * time.Second },
			told: "no samples between 2026-03-01T16:00:00Z and 2026-03-01T16:14:02Z (14m2s): the machine was suspended for 14m0s", reason: gapSuspended, seconds: 842},
		"suspended, and the daemon restarted": {happens: func(c *clocks, g *gaps) { c.pass(842 * time.Second); c.mono -= 840 * time.Second }, restart: true,
			told: "suspended for 14m0s", reason: gapSuspended, seconds: 842},
		"rebooted": {happens: func(c *clocks, _ *gaps) { c.wall, c.boot, c.mono = c.wall.Add(2*time.Minute), time.Minute, time.Minute }, restart: true, boot: "other",
			told: "no samples between 2026-03-01T16:00:00Z and 2026-03-01T16:02:00Z (2m0s): the machine was restarted", reason: gapRebooted, seconds: 120},
		"rebooted at once": {happens: func(c *clocks, _ *gaps) {
			c.wall, c.boot, c.mono = c.wall.Add(40*time.Second), 30*time.Second, 30*time.Second
		}, restart: true, boot: "other"},
		"rebooted, and the clock was wrong": {happens: func(c *clocks, _ *gaps) { c.wall, c.boot, c.mono = c.wall.Add(-time.Hour), time.Minute, time.Minute }, restart: true, boot: "other",
			told: "by a clock that has been set back since", reason: gapRebooted},
		"no CPU": {happens: func(c *clocks, g *gaps) {
			c.pass(842 * time.Second)
			g.late(840 * time.Second)
			c.delays[1] += 800 * time.Second
		},
			told: "(14m2s): the daemon was ready to run and had no CPU (its threads waited 13m20s for one)", reason: gapNoCPU, seconds: 842},
		"stopped by a signal": {happens: func(c *clocks, g *gaps) { c.pass(842 * time.Second); g.late(840 * time.Second) },
			told: "the daemon stood still", reason: gapStood, seconds: 842},
		"no kernel to ask": {happens: func(c *clocks, g *gaps) { c.pass(842 * time.Second); g.late(840 * time.Second); c.delays = nil },
			told: "the daemon stood still", reason: gapStood, seconds: 842},
		"a slow cycle": {happens: func(c *clocks, g *gaps) { c.pass(50 * time.Second); g.late(time.Second) },
			told: "a cycle took that long", reason: gapSlow, seconds: 50},
	} {
		t.Run(name, func(t *testing.T) {
			at := &clocks{moment{wall: start, boot: time.Hour, mono: time.Hour}, map[int]time.Duration{1: time.Second}}
			g := newGaps()
			at.use(g)
			if told, _ := g.sampled("boot", most); told != "" {
				t.Errorf("the first sample ever tells %q", told)
			}
			c.happens(at, g)
			boot := "boot"
			if c.boot != "" {
				boot = c.boot
			}
			if c.restart {
				kept := g.keep(nil)
				g = newGaps()
				at.use(g)
				g.recall(kept)
			}
			told, why := g.sampled(boot, most)
			if (told == "") != (c.told == "") || !strings.Contains(told, c.told) || why != c.reason {
				t.Errorf("it tells %q (%s), want %q (%s)", told, why, c.told, c.reason)
			}
			sum := 0.0
			for _, s := range g.seconds {
				sum += s
			}
			if g.seconds[c.reason] != c.seconds || sum != c.seconds {
				t.Errorf("%v, want %v s of %s", g.seconds, c.seconds, c.reason)
			}
			// The counts continue over a restart, and the next sample reports no gap.
			kept := g.keep(nil)
			g = newGaps()
			at.use(g)
			g.recall(kept)
			at.pass(time.Second)
			if told, _ := g.sampled(boot, most); told != "" || g.seconds[c.reason] != c.seconds {
				t.Errorf("a restart later it tells %q, %v", told, g.seconds)
			}
		})
	}
}

// TestGapOverRestart: the time of the last sample passes from one process to the next with
// the saved state, and also over a boot, where the counters do not.
func TestGapOverRestart(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	o := Options{ProcRoot: root, Service: true, Log: slog.New(slog.NewTextHandler(&log, nil))}
	tcp := probe("tcp", EachNetns, readValue(mInsegs))
	gap := func(r *Runner, why gapReason) float64 {
		return values(r.Cycle())["nodeskoop_gap_seconds_total{node1,hostNetwork,hostNetwork,"+string(why)+"}"]
	}
	r := keeping(t, o, nil, tcp)
	real := r.gaps.now
	if got := values(r.Cycle()); len(got) == 0 || log.Len() > 0 {
		t.Errorf("a first start tells:\n%s", &log)
	} else {
		for _, why := range gapReasons {
			want(t, got, "nodeskoop_gap_seconds_total{node1,hostNetwork,hostNetwork,"+string(why)+"}", 0)
		}
	}
	data := kept(r)

	// The interval of these Runners is an hour.
	r = keeping(t, o, data, tcp)
	r.gaps.now = func() moment {
		m := real()
		m.wall, m.boot, m.mono = m.wall.Add(2*time.Hour), m.boot+2*time.Hour, m.mono+2*time.Hour
		return m
	}
	if n := gap(r, gapStopped); n != 0 || log.Len() > 0 {
		t.Errorf("a restart within three intervals counts %v and tells:\n%s", n, &log)
	}
	r = keeping(t, o, data, tcp)
	r.gaps.now = func() moment {
		m := real()
		m.wall, m.boot, m.mono = m.wall.Add(4*time.Hour), m.boot+4*time.Hour, m.mono+4*time.Hour
		return m
	}
	if n := gap(r, gapStopped); n < 4*3600 || n > 4*3600+60 {
		t.Errorf("4 hours count as %v s", n)
	}
	if got := log.String(); strings.Count(got, "no samples between") != 1 || !strings.Contains(got, "level=INFO+2") {
		t.Errorf("it tells\n%s", got)
	}

	// Another boot: the counters are discarded, the time is used.
	log.Reset()
	r = newRunner(t, o, tcp)
	if err := r.Keep(); err != nil {
		t.Fatal(err)
	}
	r.keeper.machine = "another boot 1 2"
	if err := r.Recall(data); err == nil {
		t.Error("the counters of another boot are used")
	}
	r.gaps.now = func() moment {
		m := real()
		m.wall, m.boot, m.mono = m.wall.Add(5*time.Hour), time.Minute, time.Minute
		return m
	}
	if n := gap(r, gapRebooted); n < 5*3600 || n > 5*3600+60 || !strings.Contains(log.String(), "the machine was restarted") {
		t.Errorf("5 hours count as %v s:\n%s", n, &log)
	}

	// A timer's run reports no gap, but the next daemon continues from its sample.
	log.Reset()
	o.Service = false
	r = keeping(t, o, data, tcp)
	r.gaps.now = func() moment {
		m := real()
		m.wall, m.boot, m.mono = m.wall.Add(9*time.Hour), m.boot+9*time.Hour, m.mono+9*time.Hour
		return m
	}
	if got := values(r.Cycle()); log.Len() > 0 || got["nodeskoop_gap_seconds_total{node1,hostNetwork,hostNetwork,stopped}"] != 0 {
		t.Errorf("one sample by a timer tells\n%s", &log)
	}
	o.Service = true
	next := keeping(t, o, kept(r), tcp)
	next.gaps.now = r.gaps.now
	if n := gap(next, gapStopped); n != 0 || log.Len() > 0 {
		t.Errorf("after a timer's sample %v s are missing:\n%s", n, &log)
	}
}

// FuzzGaps: damaged state is ignored.
func FuzzGaps(f *testing.F) {
	g := newGaps()
	g.seconds[gapNoCPU] = 842
	g.sampled("boot", time.Minute)
	f.Add(g.keep(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newGaps()
		g.recall(b)
		g.sampled("boot", time.Minute)
		for why, s := range g.seconds {
			if s < 0 {
				t.Errorf("%s: %v s", why, s)
			}
		}
	})
}
