package session

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/kernel"
	"nodeskoop/output"
)

// drainFor is how long the shutdown waits for queued events.
const drainFor = 2 * time.Second

// Events connects the tracing probes through the hub to the sinks.
type Events struct {
	Tracer *trace.Tracer
	Hub    *event.Hub // nil: events are discarded
}

// NewEvents starts the delivery of events to the sinks. adjust, unless nil, changes
// merging, limits and selection.
func (s *Session) NewEvents(pods owner.Pods, adjust func(*event.HubOptions), sinks ...event.Sink) *Events {
	o := s.HubOptions(s.Config, s.Host, pods)
	if adjust != nil {
		adjust(&o)
	}
	hub := event.NewHub(o, sinks...)
	return &Events{Hub: hub, Tracer: trace.New(trace.Options{Hub: hub, Limits: EventLimits(s.Config), Log: s.Log})}
}

func (s *Session) HubOptions(cfg *config.Config, view Host, pods owner.Pods) event.HubOptions {
	file := view.NetnsFile()
	host, err := kernel.Inode(file)
	if err != nil {
		s.Log.Debug("events of foreign namespaces will count as the host's", "error", err)
	}
	return event.HubOptions{
		Node: cfg.Node(), HostLabel: cfg.Pods.HostLabel, HostNetns: host,
		Window: event.DefaultWindow, MaxWindow: event.DefaultMaxWindow,
		Rate: int(cfg.Journal.Rate), Burst: int(cfg.Journal.Burst), TotalRate: int(cfg.Journal.TotalRate),
		Pods: pods, ForeignPIDs: view.ForeignPIDs, Log: s.Log,
		// The node's addresses are those of the host's network namespace, which may
		// differ from this process's.
		NodeAddrs: func() ([]netip.Addr, error) { return kernel.AddrsOf(file) },
	}
}

// EventLimits returns the kernel's limits. They bound the events that the daemon
// reads; the configured limits apply to merged entries.
func EventLimits(cfg *config.Config) trace.EventLimits {
	l := trace.DefaultEventLimits
	return trace.EventLimits{Rate: max(l.Rate, int(cfg.Journal.Rate)), Burst: max(l.Burst, int(cfg.Journal.Burst))}
}

// JournalSink returns the sink for the daemon's events.
func JournalSink(log *slog.Logger) event.Sink {
	if err := output.JournalAvailable(""); err != nil {
		log.Warn("there is no journald: events go to standard error as JSON", "error", err)
		return output.NewStderrJSON()
	}
	return output.NewJournal(output.JournalOptions{Log: log})
}

// Close ends the delivery of events. Close the probes first.
func (e *Events) Close(log *slog.Logger) {
	if err := e.Tracer.Close(); err != nil {
		log.Warn("detaching from the kernel failed", "error", err)
	}
	if e.Hub == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainFor)
	defer cancel()
	if err := e.Hub.Close(ctx); err != nil {
		log.Warn("some events were not written", "error", err)
	}
}

// Self returns a function that adds the accounts of the enabled probes' event
// types, and the cost of the BPF programs if the kernel measures it.
func (e *Events) Self(r *collect.Runner) func(add func(string, float64, ...string)) {
	return func(add func(string, float64, ...string)) {
		e.Tracer.Account()
		enabled := map[string]bool{}
		for _, s := range r.Status() {
			enabled[s.Name] = true
		}
		for _, t := range catalog.Events() {
			if !enabled[t.Probe()] {
				continue
			}
			n := e.Hub.Counts(t)
			add("nodeskoop_events_seen_total", float64(n.Offered), t.Name)
			add("nodeskoop_events_written_total", float64(n.Written), t.Name)
			add("nodeskoop_events_ignored_total", float64(n.Ignored), t.Name)
			add("nodeskoop_events_suppressed_total", float64(n.Suppressed), t.Name)
			add("nodeskoop_events_lost_total", float64(n.Lost), t.Name)
			add("nodeskoop_events_pending", float64(n.Pending), t.Name)
			add("nodeskoop_event_entries_total", float64(e.Hub.Entries(t)), t.Name)
		}
		unroomed := e.Tracer.Unroomed()
		for _, p := range catalog.Probes() {
			if n, ok := unroomed[p.Name]; ok {
				add("nodeskoop_probe_no_room_total", float64(n), p.Name)
			}
		}
		type cost struct {
			time         float64
			runs, missed uint64
		}
		costs := map[string]cost{}
		for _, p := range e.Tracer.Programs() {
			c := costs[p.Probe]
			costs[p.Probe] = cost{c.time + p.RunTime.Seconds(), c.runs + p.Runs, c.missed + p.Missed}
		}
		names := []string{trace.ChainsProbe}
		for _, p := range catalog.Probes() {
			names = append(names, p.Name)
		}
		for _, name := range names {
			c, loaded := costs[name]
			if loaded && name != trace.ChainsProbe {
				add("nodeskoop_bpf_missed_total", float64(c.missed), name)
			}
			if c.runs > 0 {
				add("nodeskoop_bpf_run_seconds_total", c.time, name)
				add("nodeskoop_bpf_runs_total", float64(c.runs), name)
			}
		}
	}
}
