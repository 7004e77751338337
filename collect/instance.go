package collect

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/bounded"
)

// ProbeStatus is a probe's result in the last cycle.
type ProbeStatus struct {
	Name string
	Up   bool
	// Resting: the probe is on standby and does not run. Up is then true.
	Resting bool
	// Unsupported: this machine cannot run the probe, which is not a failure. Err is the
	// reason and wraps an *UnsupportedError.
	Unsupported bool
	// Err is the first failure of the cycle; nil if Up.
	Err error
	// Failed counts targets without complete values.
	Failed   int
	Duration time.Duration
	// Protected counts processes that the kernel hides from everybody.
	Protected int
	// Hook names the hooks in use; Limitations says what the probe cannot see on this
	// kernel.
	Hook        string
	Limitations []string
}

// instance is one enabled probe.
type instance struct {
	info   *catalog.Probe
	source *source // nil: not built yet
	err    error   // why the probe could not be built
	opts   map[string]any
	// refused says why the probe may not run; nil if it may.
	refused error
	retry   time.Time
	delay   time.Duration
	// loading is the call that builds the probe; nil: none is under way.
	loading *bounded.Call[Probe]

	// standby: see Options.Standby. tried says that the probe was loaded once, trial that
	// loading closes it at once. closing is the call that closes it; nil: none is under way.
	standby, tried, trial bool
	closing               *bounded.Call[struct{}]

	limited string // limitations, as logged last
	lacking bool   // the log has said that the machine cannot run it
	logged  string // failure, as logged last; "" if there is none
	downs   int    // cycles since the failure was logged
	told    bool   // protected processes have been logged
}

const (
	minRetry = 5 * time.Second
	maxRetry = 5 * time.Minute

	// A kernel module may add support later, but each check costs a load of the probe. So
	// an unsupported probe is checked seldom, without a log line.
	minLookAgain = 5 * time.Minute
	maxLookAgain = time.Hour

	// A cycle waits loadWait sample timeouts for a probe to be built, and at least
	// minLoadWait: the kernel's verifier may take seconds on a slow machine. A probe that
	// takes longer joins a later cycle.
	loadWait    = 10
	minLoadWait = time.Second
)

func probeOptions(info *catalog.Probe, given map[string]any) map[string]any {
	o := make(map[string]any, len(info.Options))
	for _, d := range info.Options {
		if d.Obsolete == "" {
			o[d.Key] = d.Default
		}
	}
	maps.Copy(o, given)
	return o
}

func sameError(a, b error) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Error() == b.Error())
}

// build builds the probes that are not built yet and whose retry time has come.
func (r *Runner) build(now time.Time) {
	for _, in := range r.instances {
		if in.source != nil {
			in.source.outcome = outcome{}
			continue
		}
		if in.standby {
			r.advance(in, now)
			continue
		}
		if in.loading == nil && now.Before(in.retry) {
			continue
		}
		wait := time.Duration(0)
		if in.loading == nil {
			wait = max(loadWait*r.opt.Timeout, minLoadWait)
			in.loading = r.create(in)
		}
		r.beat(wait)
		if !in.loading.Over(wait, r.stop) {
			in.err = in.loading.Hangs("loading it")
			continue
		}
		r.take(in, now)
		r.beat(0)
	}
}

// take takes a probe that has been loaded. If loading failed, it sets the time of the next
// attempt.
func (r *Runner) take(in *instance, now time.Time) {
	probe, err := in.loading.Value, in.loading.Err
	in.loading, in.err = nil, err
	if err == nil {
		in.tried = true
		if probe != nil { // nil: it was a trial
			in.source = &source{name: in.info.Name, probe: probe, granularity: probe.Granularity(), keep: in.standby}
		}
		return
	}
	least, most := minRetry, maxRetry
	if errors.As(err, new(*UnsupportedError)) {
		least, most = minLookAgain, maxLookAgain
	}
	in.delay = min(max(2*in.delay, least), most)
	in.retry = now.Add(in.delay)
}

// create starts to build a probe.
func (r *Runner) create(in *instance) *bounded.Call[Probe] {
	f, ok := r.factories[in.info.Name]
	env := Env{Options: in.opts, ProcRoot: r.opt.ProcRoot, HostNetns: r.host.path, Once: r.opt.Once, Who: r.who, Log: r.opt.Log.With("probe", in.info.Name)}
	standby, trial, turn := in.standby, in.standby && in.trial, r.turn
	return bounded.Begin(func() (Probe, error) {
		if standby {
			select {
			case turn <- struct{}{}:
				defer func() { <-turn }()
			case <-time.After(loadTurn): // the other one hangs
			}
		}
		switch {
		case !ok:
			return nil, ErrNotBuilt
		case in.refused != nil:
			return nil, in.refused
		}
		probe, err := f.New(env)
		if trial && err == nil {
			return nil, probe.Close()
		}
		return probe, err
	})
}

// drop closes instances in parallel and removes their state from the targets. A probe whose
// Close hangs is abandoned.
func (r *Runner) drop(list []*instance) {
	closings := map[*instance]*bounded.Call[struct{}]{}
	for _, in := range list {
		if in.closing != nil {
			closings[in] = in.closing // a probe on standby that is not loaded either
		}
		if source, loading := in.source, in.loading; source != nil || loading != nil {
			closings[in] = bounded.Begin(func() (none struct{}, err error) {
				var probe Probe
				if source != nil {
					probe = source.probe
				} else {
					<-loading.Done
					probe = loading.Value
				}
				if probe != nil {
					err = probe.Close()
				}
				return none, err
			})
		}
		in.source, in.loading = nil, nil
		r.planner.each(func(m *memory) { m.forget(in.info.Name, r.keeper) })
	}
	deadline := time.Now().Add(closeWait)
	r.beat(closeWait)
	for in, c := range closings {
		if !c.Over(time.Until(deadline), nil) {
			r.opt.Log.Warn("closing a probe hangs in the kernel; sampling continues without it", "probe", in.info.Name, "error", c.Hangs("closing it"))
		} else {
			r.closed(in, c)
		}
	}
	r.beat(0)
}

// closed logs a failure to close a probe.
func (r *Runner) closed(in *instance, c *bounded.Call[struct{}]) {
	if c.Err != nil {
		r.opt.Log.Warn("closing a probe failed", "probe", in.info.Name, "error", c.Err)
	}
}

// judge turns the cycle's outcomes into the probes' status and logs changes.
func (r *Runner) judge() {
	status := make([]ProbeStatus, 0, len(r.instances))
	// One line per error, with the names of all probes that it affects.
	var failures, lacking sayings
	for _, in := range r.instances {
		s := ProbeStatus{Name: in.info.Name, Err: in.err}
		if of := in.source; of != nil {
			s.Failed, s.Duration, s.Err, s.Protected = of.failed, of.took, of.firstErr, of.protected
			s.Hook, s.Limitations = of.hook, slices.Clone(of.limitations)
		}
		s.Up = s.Err == nil
		s.Resting = in.standby && in.source == nil && s.Up
		var lack *UnsupportedError
		s.Unsupported = errors.As(s.Err, &lack)
		if l := strings.Join(s.Limitations, "; "); in.source != nil && l != in.limited {
			if in.limited = l; l != "" {
				r.opt.Log.Info("probe works in part", "probe", s.Name, "does not see", l)
			}
		}
		if s.Protected > 0 {
			err := in.source.protectedErr
			s.Limitations = append(s.Limitations, err.Error())
			if !in.told {
				in.told = true
				r.opt.Log.Info("skipped processes that the kernel hides from everyone", "probe", s.Name, "processes", s.Protected, "error", err)
			}
		}
		status = append(status, s)
		if s.Unsupported {
			// Once: which of several programs the kernel refuses first, and so the text, may
			// differ at the next attempt.
			if !in.lacking {
				lacking.add(lack.Reason, s.Name)
			}
			in.lacking, in.logged, in.downs = true, "", 0
			continue
		}
		switch {
		case !s.Up && in.logged == "":
			in.logged, in.downs = s.Err.Error(), 1
			name := s.Name
			if s.Failed > 1 {
				name = fmt.Sprintf("%s (%d targets)", s.Name, s.Failed)
			}
			failures.add(in.logged, name)
		case !s.Up:
			in.downs++
		case in.logged != "":
			in.logged = ""
			r.opt.Log.Info("probe works again", "probe", s.Name, "cycles", in.downs)
		case in.lacking:
			r.opt.Log.Info("probe works now: this machine has what it needs", "probe", s.Name)
		}
		if s.Up {
			in.lacking = false
		}
	}
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
	for _, x := range lacking {
		r.opt.Log.Info(fmt.Sprintf("left out, as this machine cannot run them: %s: %s", strings.Join(x.probes, ", "), x.text))
	}
	select {
	case <-r.stop:
		return // the cycle was cut short: what is missing is no failure
	default:
	}
	failed := "probe failed"
	if r.opt.Service {
		failed += "; it is tried again"
	}
	for _, x := range failures {
		r.opt.Log.Error(failed, "probe", strings.Join(x.probes, ", "), "error", x.text,
			"hint", "nodeskoop check says what to do")
	}
}

// sayings are messages in order of first use, each with its probes.
type sayings []saying

type saying struct {
	text   string
	probes []string
}

func (l *sayings) add(text, probe string) {
	i := slices.IndexFunc(*l, func(s saying) bool { return s.text == text })
	if i < 0 {
		i = len(*l)
		*l = append(*l, saying{text: text})
	}
	(*l)[i].probes = append((*l)[i].probes, probe)
}
