package collect

import (
	"runtime"
	"slices"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/bounded"
)

// Self registers a function that adds values of nodeskoop's own metrics to each cycle.
func (r *Runner) Self(f func(add func(metric string, value float64, labels ...string))) {
	r.selves = append(r.selves, f)
}

// selfValue is one value of nodeskoop's own metrics.
type selfValue struct {
	metric string
	value  float64
	labels []string
}

// askSelf calls the functions registered with Self, in a separate goroutine. If they do not
// return in time, their values are missing.
func (r *Runner) askSelf() []selfValue {
	if len(r.selves) == 0 {
		return nil
	}
	if r.asking != nil && r.asking.Over(0, nil) {
		r.asking = nil
	}
	wait := time.Duration(0)
	if r.asking == nil {
		wait = r.opt.Timeout
		r.asking = bounded.Begin(func() (list []selfValue, err error) {
			for _, f := range r.selves {
				f(func(metric string, value float64, labels ...string) {
					list = append(list, selfValue{metric, value, labels})
				})
			}
			return list, nil
		})
	}
	r.beat(wait)
	if !r.asking.Over(wait, r.stop) {
		r.sayMute(r.asking.Hangs("counting what the tool does itself"))
		return nil
	}
	list, err := r.asking.Value, r.asking.Err
	r.asking = nil
	r.sayMute(err)
	if err != nil {
		return nil
	}
	return list
}

// sayMute logs a failure of askSelf once.
func (r *Runner) sayMute(err error) {
	if err != nil && !r.mute {
		r.opt.Log.Error("some of nodeskoop's own metrics are missing", "error", err)
	}
	r.mute = err != nil
}

// selfValues adds the values of nodeskoop's own metrics.
func (r *Runner) selfValues(start time.Time, others []selfValue, add func(string, float64, ...string)) {
	add("nodeskoop_build_info", 1, r.opt.Version, runtime.Version())
	add("nodeskoop_last_cycle_timestamp_seconds", float64(start.UnixMilli())/1000)
	add("nodeskoop_cycles_missed_total", float64(r.missed))
	if r.opt.Service {
		for _, why := range gapReasons {
			add("nodeskoop_gap_seconds_total", r.gaps.seconds[why], string(why))
		}
	}
	add("nodeskoop_pods", float64(len(r.ran)))
	add("nodeskoop_containerd_up", boolValue(r.opt.Pods.Connected()))
	for _, s := range r.Status() {
		add("nodeskoop_probe_supported", boolValue(!s.Unsupported), s.Name)
		if s.Unsupported {
			continue // unsupported probes are neither up nor down
		}
		if s.Resting {
			continue // nor are probes that are not to run
		}
		add("nodeskoop_probe_up", boolValue(s.Up), s.Name)
		add("nodeskoop_probe_duration_seconds", s.Duration.Seconds(), s.Name)
		add("nodeskoop_probe_failed_targets", float64(s.Failed), s.Name)
		if in := catalog.ProbeByName(s.Name); slices.ContainsFunc(in.Metrics, func(m catalog.Metric) bool { return m.Scope == catalog.PerPod }) {
			add("nodeskoop_probe_protected_processes", float64(s.Protected), s.Name)
		}
		if s.Hook != "" {
			add("nodeskoop_probe_hook", 1, s.Name, s.Hook)
		}
	}
	for _, v := range others {
		add(v.metric, v.value, v.labels...)
	}
	add("nodeskoop_last_cycle_duration_seconds", time.Since(start).Seconds())
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
