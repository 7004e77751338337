package collect

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// minGap is the shortest gap between samples that is reported, even if the interval is
// shorter.
const minGap = 15 * time.Second

// moment is the time of a sample: by the wall clock, and by the two clocks that nobody
// can set.
type moment struct {
	wall       time.Time
	boot, mono time.Duration // CLOCK_BOOTTIME, CLOCK_MONOTONIC
	bootID     string
}

// gapReason is why there were no samples. It is a label value.
type gapReason string

const (
	gapStopped   gapReason = "stopped"     // the daemon did not run
	gapRebooted  gapReason = "rebooted"    // the machine was rebooted
	gapSuspended gapReason = "suspended"   // the machine was suspended
	gapNoCPU     gapReason = "no_cpu"      // the daemon was runnable and got no CPU
	gapStood     gapReason = "stood_still" // the daemon was stopped
	gapSlow      gapReason = "slow"        // a cycle took that long
)

var gapReasons = []gapReason{gapStopped, gapRebooted, gapSuspended, gapNoCPU, gapStood, gapSlow}

// expected reports whether an operator caused the gap on purpose.
func (r gapReason) expected() bool {
	return r == gapStopped || r == gapRebooted || r == gapSuspended
}

// gaps remembers the last sample, of this process or an earlier one, and sums the time
// without samples by reason.
type gaps struct {
	last    moment // zero: unknown
	restart bool   // an earlier process took the last sample
	stood   time.Duration
	delays  map[int]time.Duration // run delay by thread at the last sample
	seconds map[gapReason]float64

	// Clocks of the machine; tests replace them.
	now   func() moment
	delay func() (map[int]time.Duration, bool)
}

func newGaps() *gaps {
	return &gaps{seconds: map[gapReason]float64{}, delay: kernel.RunDelays, now: func() moment {
		return moment{wall: time.Now(), boot: kernel.SinceBoot(), mono: kernel.Monotonic()}
	}}
}

// late records that the loop is d behind the heartbeat that it promised.
func (g *gaps) late(d time.Duration) { g.stood = max(g.stood, d) }

// sampled records a sample. If more than most passed since the previous one, it returns
// a message for the operator and the reason; otherwise both are empty.
func (g *gaps) sampled(bootID string, most time.Duration) (told string, why gapReason) {
	now := g.now()
	now.bootID = bootID
	delays, known := g.delay()
	last, restart, stood, before := g.last, g.restart, g.stood, g.delays
	g.last, g.restart, g.stood, g.delays = now, false, 0, delays
	if last.wall.IsZero() {
		return "", ""
	}
	gap := now.boot - last.boot
	if last.bootID != now.bootID {
		// Only the wall clock continues across a boot, and it may have been set.
		gap = now.wall.Sub(last.wall)
		if gap <= 0 {
			return fmt.Sprintf("no samples between %s, by a clock that has been set back since, and %s: the machine was restarted", stamp(last.wall), stamp(now.wall)), gapRebooted
		}
	}
	if gap <= most {
		return "", ""
	}
	waited := kernel.Waited(before, delays)
	asleep := gap - (now.mono - last.mono)
	text := ""
	switch {
	case last.bootID != now.bootID:
		why, text = gapRebooted, "the machine was restarted"
	case asleep >= gap/2:
		why, text = gapSuspended, "the machine was suspended for "+short(asleep)
	case restart:
		why, text = gapStopped, "the daemon was not running"
	case known && waited >= gap/2:
		why, text = gapNoCPU, fmt.Sprintf("the daemon was ready to run and had no CPU (its threads waited %s for one)", short(waited))
	case stood >= gap/2:
		why, text = gapStood, "the daemon stood still: it was stopped by a signal, or the machine stood still"
	default:
		why, text = gapSlow, "a cycle took that long; nodeskoop_probe_duration_seconds says which probe"
	}
	g.seconds[why] += gap.Seconds()
	return fmt.Sprintf("no samples between %s and %s (%s): %s", stamp(now.wall.Add(-gap)), stamp(now.wall), short(gap), text), why
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func short(d time.Duration) string { return d.Round(time.Second).String() }

// keep appends the state that the next process needs.
func (g *gaps) keep(b []byte) []byte {
	b = appendString(b, g.last.bootID)
	b = AppendUints(b, uint64(g.last.wall.UnixNano()), uint64(g.last.boot), uint64(g.last.mono), uint64(len(g.seconds)))
	for _, r := range gapReasons {
		if s, ok := g.seconds[r]; ok {
			b = AppendUints(appendString(b, string(r)), uint64(s*1000))
		}
	}
	return b
}

// recall continues from an earlier process's state. Damaged state is ignored.
func (g *gaps) recall(b []byte) {
	d := NewDecoder(b)
	last := moment{bootID: string(d.Bytes())}
	last.wall = time.Unix(0, int64(d.Uint()))
	last.boot, last.mono = time.Duration(d.Uint()), time.Duration(d.Uint())
	seconds := map[gapReason]float64{}
	for n := d.Uint(); n > 0 && d.Err() == nil; n-- {
		r := gapReason(d.Bytes())
		seconds[r] = float64(d.Uint()) / 1000
	}
	if d.Err() != nil || last.boot < 0 || last.mono < 0 {
		return
	}
	g.last, g.restart, g.seconds = last, true, seconds
}

// markSample records a sample, and logs the gap before it if there was one.
func (r *Runner) markSample() {
	if !r.opt.Service {
		// A timer's period is not the interval, and a manual run needs no report of gaps.
		r.gaps.last = r.gaps.now()
		r.gaps.last.bootID = r.keeper.bootID()
		return
	}
	told, why := r.gaps.sampled(r.keeper.bootID(), max(3*r.opt.Interval, minGap))
	if told == "" {
		return
	}
	level := slog.LevelWarn
	if why.expected() {
		level = catalog.LevelNotice
	}
	r.opt.Log.Log(context.Background(), level, told)
}

// bootID returns the boot ID, the first word of the machine identity.
func (k *keeper) bootID() string {
	id, _, _ := strings.Cut(k.machine, " ")
	return id
}
