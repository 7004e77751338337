// Package daemon implements `nodeskoop run`: it samples every interval, writes the
// textfile, sends events, reloads its configuration on request, and reports its
// state to systemd.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/escalate"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/output"
	"nodeskoop/output/history"
	"nodeskoop/systemd"
)

// daemon is a running `nodeskoop run`.
type daemon struct {
	*session.Session
	load     func() (*config.Config, error)
	file     *output.Textfile
	events   *session.Events
	runner   *collect.Runner
	counters *session.Counters
	ready    atomic.Bool  // the first textfile was written
	keep     atomic.Bool  // the textfile stays at the end
	failing  atomic.Bool  // the last write of the textfile failed
	writing  atomic.Int64 // start of the write in progress, in Unix nanoseconds; 0 if there is none
	patience time.Duration
	abort    func()        // ends the program immediately
	minute   time.Duration // length of a history minute

	mu       sync.Mutex
	history  *history.History // nil if disabled
	pods     owner.Pods
	stopPods context.CancelFunc
	refused  error // why the last reload was refused, nil if it was not
}

// Options configure a daemon.
type Options struct {
	Session *session.Session
	// Load reads the configuration.
	Load func() (*config.Config, error)
	// Sinks creates the sinks for events.
	Sinks func() []event.Sink
	// Reload receives requests to reload, Aborted requests to end immediately.
	Reload, Aborted <-chan os.Signal
	// Abort ends the program immediately, as failed.
	Abort func()
	// BeforeForcedEnd registers what to do if the program must end without a clean
	// shutdown, such as after a second signal.
	BeforeForcedEnd func(f func())
	// Minute is the length of a history minute; 0 means a minute. Only tests change
	// it.
	Minute time.Duration
	// Escalate is the budget of the probes on standby. Only tests change it.
	Escalate escalate.Options
}

// Run runs the daemon until ctx ends.
func Run(ctx context.Context, o Options) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := o.Session

	if err := timerHolds(ctx, systemdRuns, "systemctl", filepath.Join(s.Config.Textfile.Dir, s.Config.Textfile.File)); err != nil {
		return err
	}
	// A cycle allocates little, so frequent garbage collection costs little CPU
	// time and keeps memory small.
	debug.SetGCPercent(25)

	d := &daemon{Session: s, load: o.Load, patience: patience, abort: o.Abort, minute: o.Minute}
	err := session.Within(session.FileWait, func() (err error) {
		if d.file, err = session.OpenTextfile(s.Config, s.Log); err != nil {
			return err
		}
		if err := d.file.Clean(); err != nil {
			s.Log.Warn("cleaning up after an earlier writer failed", "error", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare the textfile in %s: %w", s.Config.Textfile.Dir, err)
	}
	defer func() { _ = session.Within(endStep, func() error { d.file.Close(); return nil }) }()
	d.keep.Store(s.Config.Textfile.Keep)
	if o.BeforeForcedEnd != nil {
		// timeout(1) and others send their signal to the process and to its group, so a
		// second signal need not mean that somebody has lost patience.
		o.BeforeForcedEnd(func() { _ = d.removeFile() })
	}
	d.pods, d.stopPods = d.follow(ctx, s.Config, s.Host)
	defer func() {
		if d.counters != nil {
			d.counters.KeepAtEnd(d.runner)
			d.counters.Close()
		}
	}()
	d.events = s.NewEvents(d.pods, nil, o.Sinks()...)
	defer func() { d.events.Close(s.Log) }()
	r, err := s.NewRunner(d.pods, d.events.Tracer)
	if err != nil {
		return err
	}
	defer r.Close()
	d.runner = r
	r.KeepAlso("events", d.events)
	escalateFrom(r, o.Escalate, s.Log)
	d.counters = s.KeepCounters(r, false)
	d.history = s.NewHistory(s.Config, o.Minute)
	defer d.closeHistory()
	r.Self(d.events.Self(r))
	r.Self(d.historySelf)
	r.Self(func(add func(string, float64, ...string)) {
		st := d.file.Stats()
		add("nodeskoop_textfile_bytes", float64(st.Bytes))
		add("nodeskoop_textfile_write_failures_total", float64(st.Failures))
		add("nodeskoop_textfile_series_dropped_total", float64(st.Dropped))
	})
	s.Log.Info("started", "version", s.Version, "node", s.Config.Node(), "interval", s.Config.Interval,
		"probes", len(s.Config.Probes), "textfile", d.file.Path(), "config", strings.Join(s.Config.Files, ", "))

	between := make(chan func())
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-o.Reload:
				d.reload(ctx, between)
			}
		}
	}()
	go d.watchdog(ctx)
	go d.endAborted(ctx, o.Aborted)
	r.Run(ctx, d.write, between)

	systemd.Stopping()
	d.stopPods()
	if err := session.Within(endStep, d.removeFile); err != nil {
		s.Log.Error("removing the textfile failed; node_exporter keeps serving it", "error", err)
	}
	s.Log.Info("stopped")
	return nil
}

// removeFile removes the textfile, unless it is to be kept.
func (d *daemon) removeFile() error {
	if d.keep.Load() {
		return nil
	}
	return d.file.Remove()
}

// endStep limits how long the textfile's file system may delay the shutdown.
const endStep = 2 * time.Second

// follow starts to follow containerd according to the configuration.
func (d *daemon) follow(ctx context.Context, cfg *config.Config, view session.Host) (owner.Pods, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	return d.WatchPods(ctx, cfg, view), stop
}

// writeHangs reports whether a write of the textfile has been running for too long.
func (d *daemon) writeHangs() bool {
	since := d.writing.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > d.patience
}

// write is the Runner's sink. It hangs if the file system hangs.
func (d *daemon) write(fams []*dto.MetricFamily) {
	d.writing.Store(time.Now().UnixNano())
	defer d.writing.Store(0)
	d.counters.Keep(d.runner)
	if h := d.recorder(); h != nil {
		h.Observe(fams)
	}
	err := d.file.Write(fams)
	failed := d.failing.Swap(err != nil)
	switch {
	case err != nil && !failed:
		d.Log.Error("writing the textfile failed; it is tried again each cycle", "error", err)
	case err == nil && failed:
		d.Log.Info("the textfile is written again", "textfile", d.file.Path())
	}
	if err != nil {
		systemd.Status(err.Error())
		return
	}
	status := d.status(fams)
	d.Log.Debug("wrote the textfile", "textfile", d.file.Path(), "bytes", d.file.Stats().Bytes)
	if !d.ready.Swap(true) {
		d.Log.Info("wrote the first textfile", "textfile", d.file.Path(), "bytes", d.file.Stats().Bytes)
		systemd.Ready(status)
		return
	}
	systemd.Status(status)
}

// status returns the status line for `systemctl status`.
func (d *daemon) status(fams []*dto.MetricFamily) string {
	series := 0
	for _, f := range fams {
		series += len(f.Metric)
	}
	d.mu.Lock()
	refused, pods := d.refused, d.pods
	d.mu.Unlock()
	probes := d.runner.Status()
	var down, lacking []string
	able := 0
	for _, p := range probes {
		if !p.Unsupported && !p.Resting {
			able++
		}
		switch {
		case p.Unsupported:
			lacking = append(lacking, p.Name)
		case !p.Up:
			down = append(down, p.Name)
		}
	}
	var b strings.Builder
	if refused != nil {
		fmt.Fprintf(&b, "configuration refused, the previous one stays in effect: %v; ", refused)
	}
	fmt.Fprintf(&b, "%d series, %d pods", series, len(pods.Running()))
	if !pods.Connected() {
		b.WriteString(" (containerd does not answer)")
	}
	fmt.Fprintf(&b, ", %d of %d probes work", able-len(down), able)
	if len(down) > 0 {
		fmt.Fprintf(&b, " (not %s)", strings.Join(down, ", "))
	}
	if len(lacking) > 0 {
		fmt.Fprintf(&b, ", not supported here: %s", strings.Join(lacking, ", "))
	}
	return b.String()
}

// reload reads the configuration and applies it completely or not at all. Slow
// steps run concurrently with the sampling loop; the change itself takes effect
// between two cycles.
func (d *daemon) reload(ctx context.Context, between chan<- func()) {
	// Before the first textfile the unit is still starting; READY=1 would end that.
	ready := d.ready.Load()
	if ready {
		systemd.Reloading()
	}
	status := "configuration read again"
	var err error
	if panicked := bounded.Guard(func() { err = d.tryReload(ctx, between) }); panicked != nil {
		err = panicked
	}
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	d.refused = err
	d.mu.Unlock()
	if err != nil {
		d.Log.Error("reload refused, the configuration in effect is kept", "error", err)
		status = "reload refused: " + err.Error()
	} else {
		d.Log.Info("reloaded", "config", strings.Join(d.Config.Files, ", "), "probes", len(d.Config.Probes), "textfile", d.file.Path())
	}
	if ready {
		systemd.Ready(status)
	}
}

func (d *daemon) tryReload(ctx context.Context, between chan<- func()) error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	view, err := session.ViewHost(cfg)
	if err != nil {
		return err
	}
	o := d.Options(cfg, view)
	pods, stop := d.pods, func() {}
	if !slices.Equal(cfg.Pods.Sockets, d.Config.Pods.Sockets) || cfg.Pods.Namespace != d.Config.Pods.Namespace || cfg.Pods.HostLabel != d.Config.Pods.HostLabel || view.Netns != d.Host.Netns {
		pods, stop = d.follow(ctx, cfg, view)
	}
	o.Pods = pods
	undo := stop
	commit, err := d.runner.Prepare(o)
	if err == nil {
		err = d.retarget(cfg)
	}
	if err != nil {
		undo()
		return err
	}
	hub := d.HubOptions(cfg, view, pods)
	done := make(chan struct{})
	apply := func() {
		defer close(done)
		commit()
		if pods != d.pods {
			d.stopPods()
			d.mu.Lock()
			d.pods, d.stopPods = pods, stop
			d.mu.Unlock()
		}
		if cfg.StateDir() != d.Config.StateDir() || cfg.State.Counters != d.Config.State.Counters {
			d.counters.Close()
			d.counters = d.NewCounters(d.runner, cfg)
		}
		d.useHistory(cfg)
		d.Host = view
		d.Use(cfg)
		d.keep.Store(cfg.Textfile.Keep)
		d.file.SetInterval(cfg.Interval)
		d.events.Hub.Apply(hub)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case between <- apply:
	}
	<-done
	if index, ok := pods.(interface{ KeepLabels([]string) }); ok {
		index.KeepLabels(owner.Keys(cfg.Pods.Templates()))
	}
	if err := d.events.Tracer.SetLimits(session.EventLimits(cfg)); err != nil {
		d.Log.Error("changing the limits on events failed", "error", err)
	}
	return nil
}

// retarget switches to the textfile of another configuration. If the file system of
// the new one hangs, the old textfile stays in use, even if the new one answers
// later.
func (d *daemon) retarget(cfg *config.Config) error {
	was, is := d.Config.Textfile, cfg.Textfile
	if was.Dir == is.Dir && was.File == is.File && was.Mode == is.Mode {
		return nil
	}
	const pending, done, abandoned = 0, 1, 2
	var state atomic.Int32
	err := session.Within(session.FileWait, func() error {
		err := d.file.Retarget(is.Dir, is.File, is.Perm())
		if !state.CompareAndSwap(pending, done) && err == nil {
			return d.file.Retarget(was.Dir, was.File, was.Perm())
		}
		return err
	})
	if errors.Is(err, bounded.ErrNoAnswer) && !state.CompareAndSwap(pending, abandoned) {
		return nil // the file system has answered meanwhile
	}
	return err
}
