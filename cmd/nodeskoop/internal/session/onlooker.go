package session

import (
	"context"

	"nodeskoop/collect"
	"nodeskoop/collect/event"
	"nodeskoop/collect/pod"
	"nodeskoop/collect/trace"
)

// OnlookerHost is the host's label in an Onlooker's families. No pod can have that name.
const OnlookerHost = "(host)"

// OnlookerEvents are the kernel's limits on an Onlooker's events of one type and network
// namespace: above what most faults cause, so that each event is seen, and low enough
// that a flood costs a few percent of a CPU.
var OnlookerEvents = trace.EventLimits{Rate: 500, Burst: 2000}

// Onlooker runs probes for a command that looks at their values and events itself, beside
// a daemon if one runs.
type Onlooker struct {
	Runner *collect.Runner
	Tracer *trace.Tracer
	Hub    *event.Hub
	Pods   *pod.Index

	session *Session
}

// NewOnlooker starts the enabled probes with these options, usually made from s.Config.
// It yields all values, including those that the configuration leaves out of the
// textfile. sink gets each event at once, without merging or limits.
func (s *Session) NewOnlooker(ctx context.Context, enabled []string, probes map[string]map[string]any, sink event.Sink) (*Onlooker, error) {
	x := &Onlooker{Pods: s.WatchPods(ctx, s.Config, s.Host), session: s}
	h := s.HubOptions(s.Config, s.Host, x.Pods)
	h.HostLabel, h.Window, h.Rate, h.Burst, h.TotalRate = OnlookerHost, 0, 0, 0, 0
	x.Hub = event.NewHub(h, sink)
	x.Tracer = trace.New(trace.Options{Hub: x.Hub, Limits: OnlookerEvents, Log: s.Log})
	o := s.Options(s.Config, s.Host)
	o.Enabled, o.Probes, o.Pods = enabled, probes, x.Pods
	o.HostLabel, o.Include, o.Exclude, o.SkipZero, o.MaxSeries, o.CompatNames, o.Labels = OnlookerHost, nil, nil, false, 0, false, nil
	var err error
	if x.Runner, err = collect.NewRunner(o, Factories(x.Tracer)...); err != nil {
		x.closeEvents()
		return nil, err
	}
	return x, nil
}

// Close stops the probes and delivers the events that are left.
func (x *Onlooker) Close() {
	x.Runner.Close()
	x.closeEvents()
}

func (x *Onlooker) closeEvents() {
	way := Events{Tracer: x.Tracer, Hub: x.Hub}
	way.Close(x.session.Log)
}
