package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/urfave/cli/v2"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/kernel"
	"nodeskoop/output"
)

// drainFor is how long the end of the program waits for what was queued.
const drainFor = 2 * time.Second

// events is the way of an event: from the tracing probes through the hub to
// the sinks.
type events struct {
	plane *trace.Plane
	hub   *event.Hub
}

// newEvents starts the way of events to sinks.
func (s *setup) newEvents(pods owner.Pods, filter func(*event.Event) bool, sinks ...event.Sink) *events {
	hub := event.NewHub(s.hubOptions(s.cfg, s.view, pods, filter), sinks...)
	return &events{hub: hub, plane: trace.New(trace.Options{Hub: hub, Limits: eventLimits(s.cfg), Log: s.log})}
}

func (s *setup) hubOptions(cfg *Config, view hostView, pods owner.Pods, filter func(*event.Event) bool) event.HubOptions {
	file := view.netnsFile()
	host, err := kernel.Inode(file)
	if err != nil {
		s.log.Debug("events of foreign namespaces will count as the host's", "error", err)
	}
	return event.HubOptions{
		Node: cfg.nodeName(), HostLabel: cfg.text("pods.host_label"), HostNetns: host,
		Rate: cfg.number("journal.rate"), Burst: cfg.number("journal.burst"), TotalRate: cfg.number("journal.total_rate"),
		Pods: pods, Filter: filter, ForeignPIDs: view.foreignPIDs, Log: s.log,
		// The node's addresses are those of the host's namespace, which need not
		// be this process's.
		NodeAddrs: func() ([]netip.Addr, error) { return kernel.AddrsOf(file) },
	}
}

func eventLimits(cfg *Config) trace.EventLimits {
	return trace.EventLimits{Rate: cfg.number("journal.rate"), Burst: cfg.number("journal.burst")}
}

// journalSink is where the daemon's events go.
func journalSink(log *slog.Logger) event.Sink {
	if err := output.JournalAvailable(""); err != nil {
		log.Warn("there is no journald: events go to standard error as JSON", "error", err)
		return output.NewStderrJSON()
	}
	return output.NewJournal(output.JournalOptions{Log: log})
}

// sinks are where the daemon's events go. Without journald, the lines that
// were asked for stand in for it.
func (s *setup) sinks(foreground bool) []event.Sink {
	if !foreground {
		return []event.Sink{journalSink(s.log)}
	}
	lines := output.NewTerminal(s.c.App.Writer, output.TerminalOptions{})
	go func() {
		select {
		case <-lines.Failed():
			s.log.Warn("printing events failed; the journal has them", "error", outputError(lines.Err()))
		case <-s.c.Context.Done():
		}
	}()
	if err := output.JournalAvailable(""); err != nil {
		s.log.Warn("there is no journald: events are only printed", "error", err)
		return []event.Sink{lines}
	}
	return []event.Sink{journalSink(s.log), lines}
}

// close ends the way of events. The probes must have been closed before.
func (e *events) close(log *slog.Logger) {
	if err := e.plane.Close(); err != nil {
		log.Warn("detaching from the kernel failed", "error", err)
	}
	if e.hub == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainFor)
	defer cancel()
	if err := e.hub.Close(ctx); err != nil {
		log.Warn("some events were not written", "error", err)
	}
}

// self adds the accounts of the event types of the probes that run, and what
// the BPF programs cost where the kernel tells.
func (e *events) self(r *collect.Runner) func(add func(string, float64, ...string)) {
	return func(add func(string, float64, ...string)) {
		e.plane.Account()
		up := map[string]bool{}
		for _, s := range r.Status() {
			up[s.Name] = s.Up
		}
		for _, t := range catalog.Events() {
			if !up[t.Probe()] {
				continue
			}
			n := e.hub.Counts(t)
			add("nodeskoop_events_seen_total", float64(n.Offered), t.Name)
			add("nodeskoop_events_written_total", float64(n.Written), t.Name)
			add("nodeskoop_events_suppressed_total", float64(n.Suppressed), t.Name)
			add("nodeskoop_events_lost_total", float64(n.Lost), t.Name)
		}
		unroomed := e.plane.Unroomed()
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
		for _, p := range e.plane.Programs() {
			c := costs[p.Probe]
			costs[p.Probe] = cost{c.time + p.RunTime.Seconds(), c.runs + p.Runs, c.missed + p.Missed}
		}
		for _, p := range catalog.Probes() {
			c, loaded := costs[p.Name]
			if loaded {
				add("nodeskoop_bpf_missed_total", float64(c.missed), p.Name)
			}
			if c.runs > 0 {
				add("nodeskoop_bpf_run_seconds_total", c.time, p.Name)
				add("nodeskoop_bpf_runs_total", float64(c.runs), p.Name)
			}
		}
	}
}

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "print events as they happen, one line each",
		Description: "Needs neither journald nor a configuration file. Without --probe every probe that has events runs.\n" +
			"It watches beside a daemon that runs; each counts for itself. \"(+N suppressed)\" at the end of a line is how many events of\n" +
			"that type, of any pod, a rate limit held back since the last one.",
		Flags: append(commonFlags(),
			jsonFlag("print JSON, with the names of the journal's fields"),
			podFlag("only events of `NAMESPACE/NAME`, at either end; NAME alone is in any namespace; \"host\" is the host, \"unknown\" what the kernel left no way to know the owner of"),
			&cli.StringSliceFlag{Name: "event", Usage: "only events of `TYPE`", EnvVars: []string{"NODESKOOP_EVENT"}},
		),
		Action: watchEvents,
	}
}

func watchEvents(c *cli.Context) error {
	s, err := newSetup(c)
	if err != nil {
		return err
	}
	filter, err := eventFilter(c.StringSlice("pod"), c.StringSlice("event"))
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	if _, given := common(c, "probe"); !given {
		s.cfg.probes, _ = selectProbes([]string{"all"})
	}
	s.cfg.probes = slices.DeleteFunc(s.cfg.probes, func(name string) bool {
		p := catalog.ProbeByName(name)
		return len(p.Events) == 0 || !filter.wantsProbe(p)
	})
	if len(s.cfg.probes) == 0 {
		return cli.Exit("none of the chosen probes has such events; see nodeskoop probes", exitUsage)
	}
	pods := s.watchPods(c.Context, s.cfg, s.view)
	lines := output.NewTerminal(c.App.Writer, output.TerminalOptions{JSON: c.Bool("json")})
	ev := s.newEvents(pods, filter.wants, lines)
	r, err := s.newRunner(pods, ev.plane)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	go func() {
		select {
		case <-lines.Failed(): // nobody reads on
			stop()
		case <-ctx.Done():
		}
	}()
	first := true
	r.Run(ctx, func([]*dto.MetricFamily) {
		if !first {
			return
		}
		first = false
		up := 0
		for _, st := range r.Status() {
			if st.Up {
				up++
			}
		}
		if up > 0 {
			s.log.Info("watching; Ctrl-C ends it", "probes", up)
		}
	}, nil)
	up := slices.ContainsFunc(r.Status(), func(st collect.ProbeStatus) bool { return st.Up })
	r.Close()
	ev.close(s.log)
	var lost uint64
	for _, t := range catalog.Events() {
		_, n := lines.Counts(t)
		lost += n
	}
	switch err := lines.Err(); {
	case errors.Is(err, syscall.EPIPE):
		return err
	case err != nil:
		return fmt.Errorf("%w; %d events are missing", outputError(err), lost)
	case lost > 0:
		return fmt.Errorf("%d events are missing on standard output: its reader did not keep up", lost)
	case !up:
		return errors.New("none of the probes works here; nodeskoop probes says why")
	}
	return nil
}

// wanted says which events to print.
type wanted struct {
	pods  [][2]string // namespace ("" is any) and name
	types map[string]bool
}

func eventFilter(pods, types []string) (wanted, error) {
	w := wanted{types: map[string]bool{}}
	for _, p := range pods {
		namespace, name, both := strings.Cut(p, "/")
		if !both {
			namespace, name = "", p
		}
		if name == "" || both && namespace == "" {
			return w, fmt.Errorf("--pod: %q is not NAMESPACE/NAME", p)
		}
		w.pods = append(w.pods, [2]string{namespace, name})
	}
	for _, t := range types {
		i := slices.IndexFunc(catalog.Events(), func(e *catalog.EventType) bool { return strings.EqualFold(e.Name, t) })
		if i < 0 {
			var names []string
			for _, e := range catalog.Events() {
				names = append(names, e.Name)
			}
			return w, fmt.Errorf("--event: no event %q: the events are %s", t, strings.Join(names, ", "))
		}
		w.types[catalog.Events()[i].Name] = true
	}
	return w, nil
}

func (w wanted) wantsProbe(p *catalog.Probe) bool {
	return len(w.types) == 0 || slices.ContainsFunc(p.Events, func(e catalog.EventType) bool { return w.types[e.Name] })
}

func (w wanted) wants(e *event.Event) bool {
	if len(w.types) > 0 && !w.types[e.Type.Name] {
		return false
	}
	if len(w.pods) == 0 {
		return true
	}
	return slices.ContainsFunc(w.pods, func(want [2]string) bool {
		switch want {
		case [2]string{"", "host"}, [2]string{owner.DefaultHostLabel, owner.DefaultHostLabel}:
			return e.OfHost()
		case [2]string{"", owner.UnknownLabel}, [2]string{owner.UnknownLabel, owner.UnknownLabel}:
			return e.Unattributed()
		}
		return slices.ContainsFunc([]*owner.Pod{e.Pod, e.Src.Pod, e.Dst.Pod}, func(p *owner.Pod) bool {
			return p != nil && p.Name == want[1] && (want[0] == "" || p.Namespace == want[0])
		})
	})
}
