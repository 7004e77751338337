package collect

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/bounded"
)

// ProbeStatus tells how one probe did in the last cycle.
type ProbeStatus struct {
	Name string
	Up   bool
	// Err is the first failure of the cycle, nil if Up.
	Err error
	// Failed counts the targets that lack values.
	Failed   int
	Duration time.Duration
	// Protected counts the processes that the kernel shows to nobody.
	Protected int
	// Hook names the ways in which a probe is attached to the kernel, Limitations
	// its limitations: what the probe cannot see.
	Hook        string
	Limitations []string
}

// instance is one enabled probe.
type instance struct {
	info   *catalog.Probe
	source *source // nil: the probe could not be built yet
	err    error   // why not
	opts   map[string]any
	// refused says why the probe may not run.
	refused error
	retry   time.Time
	delay   time.Duration
	// loading is the call that makes the probe; nil: none is under way.
	loading *bounded.Call[Probe]

	limited string // its limitations, as logged last
	logged  string // the failure that was logged last, "" while up
	downs   int    // cycles since then
	told    bool   // that processes are protected has been logged
}

const (
	minRetry = 5 * time.Second
	maxRetry = 5 * time.Minute

	// loadWait is for how many timeouts a cycle waits for one probe to be made
	// before it goes on without, and minLoadWait how long at least: the kernel's
	// verifier may take seconds on a slow machine. One that is not ready by then
	// is taken up when it is.
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

// build makes the probes that could not be made so far.
func (r *Runner) build(now time.Time) {
	for _, in := range r.instances {
		if in.source != nil {
			in.source.outcome = outcome{}
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
		probe, err := in.loading.Value, in.loading.Err
		in.loading, in.err = nil, err
		r.beat(0)
		if err == nil {
			in.source = &source{name: in.info.Name, probe: probe, granularity: probe.Granularity()}
		} else {
			in.delay = min(max(2*in.delay, minRetry), maxRetry)
			in.retry = now.Add(in.delay)
		}
	}
}

// create begins to make a probe.
func (r *Runner) create(in *instance) *bounded.Call[Probe] {
	f, ok := r.factories[in.info.Name]
	env := Env{Options: in.opts, ProcRoot: r.opt.ProcRoot, HostNetns: r.host.path, Once: r.opt.Once, Who: r.who, Log: r.opt.Log.With("probe", in.info.Name)}
	return bounded.Begin(func() (Probe, error) {
		switch {
		case !ok:
			return nil, ErrNotBuilt
		case in.refused != nil:
			return nil, in.refused
		}
		return f.New(env)
	})
}

// drop closes instances, side by side, and forgets what they remembered. One
// that hangs goes on to be closed when the kernel lets it.
func (r *Runner) drop(list []*instance) {
	closings := map[*instance]*bounded.Call[struct{}]{}
	for _, in := range list {
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
			r.opt.Log.Warn("closing a probe hangs in the kernel; it goes on beside", "probe", in.info.Name, "error", c.Hangs("closing it"))
		} else if c.Err != nil {
			r.opt.Log.Warn("closing a probe failed", "probe", in.info.Name, "error", c.Err)
		}
	}
	r.beat(0)
}

// judge turns the outcomes of the cycle into the probes' status, and logs
// what has changed.
func (r *Runner) judge() {
	status := make([]ProbeStatus, 0, len(r.instances))
	// What fails several probes at once is one line.
	failures := map[string][]string{}
	var order []string
	for _, in := range r.instances {
		s := ProbeStatus{Name: in.info.Name, Err: in.err}
		if of := in.source; of != nil {
			s.Failed, s.Duration, s.Err, s.Protected = of.failed, of.took, of.firstErr, of.protected
			s.Hook, s.Limitations = of.hook, slices.Clone(of.limitations)
		}
		s.Up = s.Err == nil
		if l := strings.Join(s.Limitations, "; "); l != in.limited {
			if in.limited = l; l != "" {
				r.opt.Log.Info("probe works in part", "probe", s.Name, "does not see", l)
			}
		}
		if s.Protected > 0 {
			err := in.source.protectedErr
			s.Limitations = append(s.Limitations, err.Error())
			if !in.told {
				in.told = true
				r.opt.Log.Info("some processes are shown to nobody, and are left out", "probe", s.Name, "processes", s.Protected, "error", err)
			}
		}
		status = append(status, s)
		switch {
		case !s.Up && in.logged == "":
			in.logged, in.downs = s.Err.Error(), 1
			if failures[in.logged] == nil {
				order = append(order, in.logged)
			}
			name := s.Name
			if s.Failed > 1 {
				name = fmt.Sprintf("%s (%d targets)", s.Name, s.Failed)
			}
			failures[in.logged] = append(failures[in.logged], name)
		case !s.Up:
			in.downs++
		case in.logged != "":
			in.logged = ""
			r.opt.Log.Info("probe works again", "probe", s.Name, "cycles", in.downs)
		}
	}
	for _, err := range order {
		r.opt.Log.Error("probe failed; it is tried again", "probe", strings.Join(failures[err], ", "), "error", err,
			"hint", "nodeskoop check says what to do")
	}
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
}
