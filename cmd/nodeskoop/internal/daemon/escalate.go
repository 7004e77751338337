package daemon

import (
	"iter"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"

	"nodeskoop/collect"
	"nodeskoop/collect/escalate"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// escalation runs the probes on standby after a sign of a fault.
type escalation struct {
	log    *slog.Logger
	runner *collect.Runner
	watch  *escalate.Watch
	since  func() time.Duration // time since boot
	on     []string             // names of the probes that run, as logged

	mu       sync.Mutex
	pressure *escalate.Pressure // since the cycle before; nil: not known
	before   *load
}

// escalateFrom makes the probes on standby run after signs in r's values.
func escalateFrom(r *collect.Runner, o escalate.Options, log *slog.Logger) *escalation {
	e := &escalation{log: log, runner: r, watch: escalate.New(o), since: kernel.SinceBoot}
	r.KeepAlso("escalation", e.watch)
	r.Decide(e.decide)
	r.Self(e.self)
	return e
}

// decide judges the values of a cycle.
func (e *escalation) decide(values iter.Seq[collect.Value]) (run bool) {
	e.watch.Begin()
	var last *owner.Pod
	name := ""
	for v := range values {
		switch {
		case !escalate.Wants(v.Metric):
		case v.Pod == nil:
			e.watch.Add("", "", v.Metric, v.Value)
		default:
			if v.Pod != last {
				last, name = v.Pod, v.Pod.Namespace+"/"+v.Pod.Name
			}
			e.watch.Add(v.Pod.ID, name, v.Metric, v.Value)
		}
	}
	e.mu.Lock()
	if e.pressure != nil {
		e.watch.Press(*e.pressure)
	}
	e.pressure = nil
	e.mu.Unlock()
	able := e.able()
	if len(able) == 0 {
		return false // nothing could run, so nothing is told
	}
	v := e.watch.Judge(e.since())
	switch {
	case v.Began:
		e.on = able
		e.log.Info("watching closer", "probes", strings.Join(able, ", "), "because", v.Why, "until", time.Now().Add(v.For).Format(time.RFC3339))
	case v.Ended:
		e.log.Info("watching closer has ended", "probes", strings.Join(e.on, ", "))
	}
	return v.Run
}

// able lists the probes on standby that this machine can run.
func (e *escalation) able() (names []string) {
	standby := e.runner.Standby()
	for _, st := range e.runner.Status() {
		if _, ok := standby[st.Name]; ok && !st.Unsupported {
			names = append(names, st.Name)
		}
	}
	return names
}

// self reads the node's pressure for the next cycle, and adds which probes run.
func (e *escalation) self(add func(metric string, value float64, labels ...string)) {
	standby := e.runner.Standby()
	if len(standby) == 0 {
		return
	}
	for _, st := range e.runner.Status() {
		if runs, ok := standby[st.Name]; ok {
			value := 0.0
			if runs {
				value = 1
			}
			add("nodeskoop_probe_escalated", value, st.Name)
		}
	}
	now := readLoad("/proc")
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.before != nil {
		p := now.since(e.before)
		e.pressure = &p
	}
	e.before = now
}

// load is how long the node was busy since boot.
type load struct {
	at   time.Time
	cpus map[int64]procfs.CPUStat // nil: not known
	// memory is how long all processes at once waited for memory; -1: the kernel does not
	// say.
	memory time.Duration
}

// readLoad reads stat (show_stat in fs/proc/stat.c) and pressure/memory (psi_show in
// kernel/sched/psi.c) of a /proc. What cannot be read is not known.
func readLoad(root string) *load {
	l := &load{at: time.Now(), memory: -1}
	if proc, err := procfs.NewFS(root); err == nil {
		if stat, err := proc.Stat(); err == nil {
			l.cpus = stat.CPU
		}
	}
	if b, err := os.ReadFile(root + "/pressure/memory"); err == nil {
		l.memory = parseFull(b)
	}
	return l
}

func parseFull(b []byte) time.Duration {
	n, err := kernel.ParseStall(b, "full")
	if err != nil || n > math.MaxInt64/1000 {
		return -1
	}
	return time.Duration(n) * time.Microsecond
}

// total returns the time of a CPU. That of guests is part of the others.
func total(c procfs.CPUStat) float64 {
	return c.User + c.Nice + c.System + c.Idle + c.Iowait + c.IRQ + c.SoftIRQ + c.Steal
}

// since returns the pressure from before to l.
func (l *load) since(before *load) escalate.Pressure {
	p := escalate.Pressure{Softirq: math.NaN(), Memory: math.NaN()}
	for id, now := range l.cpus {
		was, ok := before.cpus[id]
		took, softirq := total(now)-total(was), now.SoftIRQ-was.SoftIRQ
		if x := 100 * softirq / took; ok && took > 0 && softirq >= 0 && !(p.Softirq >= x) {
			p.Softirq = x
		}
	}
	if took := l.at.Sub(before.at); took > 0 && before.memory >= 0 && l.memory >= before.memory {
		p.Memory = min(100, 100*(l.memory-before.memory).Seconds()/took.Seconds())
	}
	return p
}
