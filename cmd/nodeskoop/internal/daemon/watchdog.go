package daemon

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
	"nodeskoop/systemd"
)

const (
	// patience is how long one step of the sampling loop may take before it counts
	// as hanging: the kernel's verifier on a slow machine, a disk that stalls. It is
	// a time in which the daemon could run.
	patience = 30 * time.Second
	// looks is how often the watchdog looks within the patience.
	looks = 6
	// endAfter is after how many patiences the daemon ends itself.
	endAfter = 2
)

// watchdog tells systemd that the daemon is alive, at a steady rate, but only
// while the sampling loop gets on: however long the interval is, a loop that
// hangs is noticed, and the daemon ends itself if it goes on. Until the first
// textfile is written it asks for time.
//
// That the loop does not get on while the daemon has no CPU is not held against
// it: a machine that stands still is not helped by a restart, which would lose
// what the probes know.
func (d *daemon) watchdog(ctx context.Context) {
	every := systemd.WatchdogInterval()
	step := d.patience / looks
	if every > 0 {
		step = min(step, every)
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	j := newJudge(step)
	told := false
	for {
		overdue := d.runner.Overdue()
		hangs := j.look(overdue, time.Now())
		if overdue < step {
			told = false // another hang is another line; one that was taken back for a while is the same
		}
		switch {
		case hangs >= endAfter*d.patience && every > 0:
			d.Log.Error("the sampling loop still does not get on; the daemon ends itself, to be started again", "for", hangs.Round(time.Second))
			d.abort()
			return
		case hangs > d.patience:
			if !told {
				d.tellStack("the sampling loop does not get on, although the daemon has CPU", hangs)
			}
			told = true
		case !d.ready.Load():
			// Not while the file cannot be written: then the start fails.
			if !d.failing.Load() && !d.writeHangs() {
				systemd.Starting(endAfter * d.patience)
			}
		default:
			if every > 0 {
				systemd.Alive()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tellStack logs an error with the stack of the sampling loop, and no other: who
// looks for what hangs wants that one, and SIGQUIT shows all.
func (d *daemon) tellStack(message string, hung time.Duration) {
	stack, others := stackOf(d.runner.Goroutine())
	d.Log.Error(message, "for", hung.Round(time.Second), "stack", stack, "other goroutines", others, "hint", "systemctl kill -s QUIT nodeskoop shows all goroutines")
}

// endAborted ends the daemon on SIGABRT, by which systemd's watchdog ends what it
// has not heard of for long.
func (d *daemon) endAborted(ctx context.Context, aborted <-chan os.Signal) {
	select {
	case <-ctx.Done():
	case <-aborted:
		d.tellStack("ended by SIGABRT, which systemd's watchdog sends", d.runner.Overdue())
		d.abort()
	}
}

// judge tells a loop that hangs from one that was not let run. It is asked at a
// steady rate.
type judge struct {
	step   time.Duration
	delays func() (map[int]time.Duration, bool) // see kernel.RunDelays
	used   func() time.Duration                 // CPU time of the process

	patience bounded.Patience

	hung   time.Duration // for which the loop did not get on although it could
	before map[int]time.Duration
	passed time.Duration // since it was first seen not to get on
	first  time.Duration // CPU time of the process then
}

func newJudge(step time.Duration) *judge {
	return &judge{step: step, delays: kernel.RunDelays, used: cpuTime, patience: bounded.NewPatience(step)}
}

// cpuTime is how long the process has run.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// look returns for how long the loop has not got on although it could run, of the
// time for which it is overdue. Two things speak for it: that this goroutine, too,
// is asked late (the process was stopped, or nothing of it ran), and that threads
// of the process were ready and waited for a CPU. The kernel tells of a wait when it
// is over, which may be after the look that took the time for the loop's: a long
// wait takes back earlier time. But what the process did run, the loop could have.
func (j *judge) look(overdue time.Duration, now time.Time) time.Duration {
	passed := j.patience.Passed(now)
	if overdue < j.step {
		j.hung, j.before, j.passed = 0, nil, 0
		return 0
	}
	delays, known := j.delays()
	used := j.used()
	switch {
	case !known:
		j.passed += passed
		j.hung += passed
	case j.before == nil:
		j.first = used // the next look knows
	default:
		j.passed += passed
		j.hung = min(max(j.hung+passed-kernel.Waited(j.before, delays), used-j.first), j.passed)
	}
	j.before = delays
	j.hung = min(j.hung, overdue)
	return j.hung
}

// stackOf is the stack of one goroutine in a line, innermost first, and how many
// others there are.
func stackOf(id uint64) (stack string, others int) {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return oneStack(buf[:n], id)
		}
		if len(buf) >= 16<<20 {
			return oneStack(buf, id)
		}
		buf = make([]byte, 4*len(buf))
	}
}

// oneStack finds a goroutine's stack in what runtime.Stack writes of all.
func oneStack(dump []byte, id uint64) (stack string, others int) {
	head := []byte("goroutine " + strconv.FormatUint(id, 10) + " ")
	for block := range bytes.SplitSeq(bytes.TrimSpace(dump), []byte("\n\n")) {
		if !bytes.HasPrefix(block, head) {
			others++
			continue
		}
		lines := strings.Split(string(block), "\n")
		_, state, _ := strings.Cut(strings.TrimSuffix(lines[0], ":"), " [")
		parts := []string{"[" + state}
		for i := 1; i+1 < len(lines); i += 2 {
			parts = append(parts, base(call(lines[i]))+" "+base(place(lines[i+1])))
		}
		stack = strings.Join(parts, " < ")
	}
	return cmp.Or(stack, "the loop has ended"), others
}

// call is a line of a stack that names a function, without its arguments.
func call(line string) string {
	if i := strings.LastIndexByte(line, '('); i > 0 && strings.HasSuffix(line, ")") {
		return line[:i]
	}
	return line
}

// place is the file and line in a line of a stack.
func place(line string) string {
	at, _, _ := strings.Cut(strings.TrimSpace(line), " +0x")
	return at
}

// base leaves out the folders of the last path in s.
func base(s string) string {
	from := strings.LastIndex(s, "created by ")
	if from >= 0 {
		return "created by " + base(s[from+len("created by "):])
	}
	return s[strings.LastIndexByte(s, '/')+1:]
}
