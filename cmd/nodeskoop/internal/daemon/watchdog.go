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
	// as hanging: the verifier on a slow machine, a stalled disk. Only time with a
	// CPU counts.
	patience = 30 * time.Second
	// looks is how many times per patience the watchdog looks.
	looks = 6
	// endAfter is the number of patiences after which the daemon ends itself.
	endAfter = 2
)

// watchdog notifies systemd at a steady rate while the sampling loop makes
// progress. It thus detects a hanging loop whatever the interval is; if the loop
// stays hanging, the daemon ends itself. Until the first textfile is written, it
// extends the start timeout.
//
// Time in which the daemon gets no CPU does not count as hanging: a restart does
// not help a stalled machine, and would lose the probes' state.
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
			told = false // Log each hang once, even if it seems to end for a moment.
		}
		switch {
		case hangs >= endAfter*d.patience && every > 0:
			d.Log.Error("the sampling loop still makes no progress; the daemon ends itself to be restarted", "for", hangs.Round(time.Second))
			d.abort()
			return
		case hangs > d.patience:
			if !told {
				d.tellStack("the sampling loop makes no progress, although the daemon has CPU", hangs)
			}
			told = true
		case !d.ready.Load():
			// If the file cannot be written, let the start fail.
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

// tellStack logs an error with the stack of the sampling loop only, the one that
// explains a hang. SIGQUIT prints all stacks.
func (d *daemon) tellStack(message string, hung time.Duration) {
	stack, others := stackOf(d.runner.Goroutine())
	d.Log.Error(message, "for", hung.Round(time.Second), "stack", stack, "other goroutines", others, "hint", "systemctl kill -s QUIT nodeskoop shows all goroutines")
}

// endAborted ends the daemon on SIGABRT, which systemd's watchdog sends to a
// service that stopped notifying.
func (d *daemon) endAborted(ctx context.Context, aborted <-chan os.Signal) {
	select {
	case <-ctx.Done():
	case <-aborted:
		d.tellStack("ended by SIGABRT, which systemd's watchdog sends", d.runner.Overdue())
		d.abort()
	}
}

// judge distinguishes a hanging loop from a loop that gets no CPU. It must be
// called at a steady rate.
type judge struct {
	step   time.Duration
	delays func() (map[int]time.Duration, bool) // see kernel.RunDelays
	used   func() time.Duration                 // CPU time of the process

	patience bounded.Patience

	hung   time.Duration // time without progress although the loop could run
	before map[int]time.Duration
	passed time.Duration // time since the lack of progress was first noticed
	first  time.Duration // CPU time of the process at that moment
}

func newJudge(step time.Duration) *judge {
	return &judge{step: step, delays: kernel.RunDelays, used: cpuTime, patience: bounded.NewPatience(step)}
}

// cpuTime returns the CPU time of the process.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// look returns how long the loop has made no progress although it could run, out of
// the time by which it is overdue. Two signs show that it could not run: this
// goroutine was called late (the process was stopped, or got no CPU), and threads
// of the process waited for a CPU. The kernel reports a wait only when it ends,
// possibly after a look that blamed the loop for that time, so a long wait reduces
// earlier time. CPU time that the process did use always counts, since the loop
// could have used it.
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
		j.first = used // accounted for at the next look
	default:
		j.passed += passed
		j.hung = min(max(j.hung+passed-kernel.Waited(j.before, delays), used-j.first), j.passed)
	}
	j.before = delays
	j.hung = min(j.hung, overdue)
	return j.hung
}

// stackOf returns the stack of one goroutine in one line, innermost first, and the
// number of other goroutines.
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

// oneStack extracts a goroutine's stack from runtime.Stack's dump of all.
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

// call returns the function in a line of a stack, without arguments.
func call(line string) string {
	if i := strings.LastIndexByte(line, '('); i > 0 && strings.HasSuffix(line, ")") {
		return line[:i]
	}
	return line
}

// place returns the file and line in a line of a stack.
func place(line string) string {
	at, _, _ := strings.Cut(strings.TrimSpace(line), " +0x")
	return at
}

// base returns the last element of a path.
func base(s string) string {
	from := strings.LastIndex(s, "created by ")
	if from >= 0 {
		return "created by " + base(s[from+len("created by "):])
	}
	return s[strings.LastIndexByte(s, '/')+1:]
}
