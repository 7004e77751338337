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

// minGap is how long no sample must have been taken at least for that to be told,
// however short the interval is.
const minGap = 15 * time.Second

// moment is when a sample was taken: by the clock that may be set, and by those
// that nobody sets.
type moment struct {
	wall       time.Time
	boot, mono time.Duration // CLOCK_BOOTTIME, CLOCK_MONOTONIC
	bootID     string
}

// gapReason is why there were no samples. Its values are those of a label.
type gapReason string

const (
	gapStopped   gapReason = "stopped"     // the daemon did not run
	gapRebooted  gapReason = "rebooted"    // nor did the machine, which booted since
	gapSuspended gapReason = "suspended"   // the machine
	gapNoCPU     gapReason = "no_cpu"      // the daemon was ready to run and was not let
	gapStood     gapReason = "stood_still" // the daemon was not ready to run
	gapSlow      gapReason = "slow"        // it ran, and a cycle took that long
)

var gapReasons = []gapReason{gapStopped, gapRebooted, gapSuspended, gapNoCPU, gapStood, gapSlow}

// expected says that the gap comes from what somebody did on purpose.
func (r gapReason) expected() bool {
	return r == gapStopped || r == gapRebooted || r == gapSuspended
}

// gaps knows when the last sample was taken, by this process or one before it, and
// for how long there have been none.
type gaps struct {
	last    moment // the zero value: not known
	restart bool   // last is an earlier process's
	stood   time.Duration
	delays  map[int]time.Duration // for a CPU, by thread, at the last sample
	seconds map[gapReason]float64

	// Of the machine; tests give another's.
	now   func() moment
	delay func() (map[int]time.Duration, bool)
}

func newGaps() *gaps {
	return &gaps{seconds: map[gapReason]float64{}, delay: kernel.RunDelays, now: func() moment {
		return moment{wall: time.Now(), boot: kernel.SinceBoot(), mono: kernel.Monotonic()}
	}}
}

// late notes that the loop has not got on for so long beyond what it promised.
func (g *gaps) late(d time.Duration) { g.stood = max(g.stood, d) }

// sampled notes that a sample has been taken. If there was none for longer than most,
// told is what an operator should know of that.
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
		// Only the clock on the wall goes on over a boot, and it may have been set.
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

// keep appends what the next process has to know.
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

// recall goes on from what an earlier process kept. What is damaged is as if there
// were nothing.
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

// markSample notes that a sample has been taken, and tells of a gap before it.
func (r *Runner) markSample() {
	if !r.opt.Service {
		// A timer's period is not the interval, and one who calls by hand knows.
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

// bootID is the part of the machine's identity that names the boot.
func (k *keeper) bootID() string {
	id, _, _ := strings.Cut(k.machine, " ")
	return id
}
