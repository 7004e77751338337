package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/urfave/cli/v2"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/output"
	"nodeskoop/systemd"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "sample every probe each interval and keep the textfile fresh (the daemon)",
		Description: "SIGHUP reads the configuration again; a mistake in it keeps what was in effect.\n" +
			"SIGTERM and SIGINT end it and remove the textfile, unless textfile.keep is set. A second one ends it at once.",
		Flags:  append(commonFlags(), &cli.BoolFlag{Name: "foreground-events", Usage: "also print events, one line each", EnvVars: []string{"NODESKOOP_FOREGROUND_EVENTS"}}),
		Action: func(c *cli.Context) error { return runDaemon(c) },
	}
}

// daemon is a running `nodeskoop run`.
type daemon struct {
	*setup
	file     *output.Textfile
	events   *events
	runner   *collect.Runner
	counters *counters
	ready    atomic.Bool  // the first textfile was written
	failing  atomic.Bool  // the last write of the textfile failed
	writing  atomic.Int64 // when the write that is under way began, in Unix nanoseconds; 0: none is
	patience time.Duration

	mu       sync.Mutex
	pods     owner.Pods
	stopPods context.CancelFunc
	refused  error // why the configuration in effect is not the file's
}

func runDaemon(c *cli.Context) error {
	// A reader of standard output or error that goes away must not end the
	// daemon.
	signal.Ignore(syscall.SIGPIPE)
	s, err := newSetup(c)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	// A cycle allocates little, so collecting more often costs little time and
	// keeps the daemon small.
	debug.SetGCPercent(25)

	d := &daemon{setup: s, patience: patience}
	err = within(fileWait, func() (err error) {
		if d.file, err = openTextfile(s.cfg, s.log); err != nil {
			return err
		}
		if err := d.file.Clean(); err != nil {
			s.log.Warn("cleaning up after an earlier writer failed", "error", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare the textfile in %s: %w", s.cfg.text("textfile.dir"), err)
	}
	defer func() { _ = within(endStep, func() error { d.file.Close(); return nil }) }()
	d.pods, d.stopPods = d.follow(ctx, s.cfg, s.view)
	d.events = s.newEvents(d.pods, nil, s.sinks(c.Bool("foreground-events"))...)
	defer func() { d.events.close(s.log) }()
	r, err := s.newRunner(d.pods, d.events.plane)
	if err != nil {
		return err
	}
	defer r.Close()
	d.runner = r
	d.counters = s.keepCounters(r, false)
	defer func() { d.counters.close() }()
	r.Self(d.events.self(r))
	r.Self(func(add func(string, float64, ...string)) {
		st := d.file.Stats()
		add("nodeskoop_textfile_bytes", float64(st.Bytes))
		add("nodeskoop_textfile_write_failures_total", float64(st.Failures))
		add("nodeskoop_textfile_series_dropped_total", float64(st.Dropped))
	})
	s.log.Info("started", "version", version, "node", s.cfg.nodeName(), "interval", s.cfg.duration("interval"),
		"probes", len(s.cfg.probes), "textfile", d.file.Path(), "config", s.cfg.File)

	between := make(chan func())
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				d.reload(ctx, between)
			}
		}
	}()
	go d.watchdog(ctx)
	r.Run(ctx, d.write, between)

	systemd.Stopping()
	d.stopPods()
	if !s.cfg.flag("textfile.keep") {
		if err := within(endStep, d.file.Remove); err != nil {
			s.log.Error("removing the textfile failed; node_exporter goes on serving it", "error", err)
		}
	}
	s.log.Info("stopped")
	return nil
}

// endStep is how long the textfile's file system may hold up the end.
const endStep = 2 * time.Second

func openTextfile(cfg *Config, log *slog.Logger) (*output.Textfile, error) {
	mode, err := parseMode(cfg.text("textfile.mode"))
	if err != nil {
		return nil, err
	}
	return output.NewTextfile(cfg.text("textfile.dir"), cfg.text("textfile.file"), mode, log)
}

// retarget lets the textfile be the one of another configuration.
func retarget(file *output.Textfile, cfg *Config) error {
	mode, err := parseMode(cfg.text("textfile.mode"))
	if err != nil {
		return err
	}
	return file.Retarget(cfg.text("textfile.dir"), cfg.text("textfile.file"), mode)
}

// follow starts to follow containerd as a configuration says.
func (d *daemon) follow(ctx context.Context, cfg *Config, view hostView) (owner.Pods, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	return d.watchPods(ctx, cfg, view), stop
}

// patience is how long one step of the sampling loop may take before it counts
// as hanging: the kernel's verifier on a slow machine, a disk that stalls.
const patience = 30 * time.Second

// watchdog tells systemd that the daemon is alive, at a steady rate, but only
// while the sampling loop gets on: however long the interval is, a loop that
// hangs is noticed. Until the first textfile is written it asks for time.
func (d *daemon) watchdog(ctx context.Context) {
	every := systemd.WatchdogInterval()
	tick := time.NewTicker(cmp.Or(every, d.patience/3))
	defer tick.Stop()
	hangs := false
	for {
		overdue := d.runner.Overdue()
		switch {
		case overdue > d.patience:
			if !hangs {
				d.log.Error("the sampling loop does not get on; systemd's watchdog will restart the daemon unless it does soon", "for", overdue.Round(time.Second))
			}
			hangs = true
		case !d.ready.Load():
			// Not while the file cannot be written: then the start fails.
			if !d.failing.Load() && !d.writeHangs() {
				systemd.Starting(d.patience + 2*max(every, d.patience/3))
			}
			hangs = false
		default:
			if every > 0 {
				systemd.Alive()
			}
			hangs = false
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// writeHangs reports whether a write of the textfile has not returned for long.
func (d *daemon) writeHangs() bool {
	since := d.writing.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > d.patience
}

// write is the Runner's sink. It may hang on a file system that does not answer.
func (d *daemon) write(fams []*dto.MetricFamily) {
	d.writing.Store(time.Now().UnixNano())
	defer d.writing.Store(0)
	d.counters.keep(d.runner)
	err := d.file.Write(fams)
	failed := d.failing.Swap(err != nil)
	switch {
	case err != nil && !failed:
		d.log.Error("writing the textfile failed; it is tried again each cycle", "error", err)
	case err == nil && failed:
		d.log.Info("the textfile is written again", "textfile", d.file.Path())
	}
	if err != nil {
		systemd.Status(err.Error())
		return
	}
	status := d.status(fams)
	d.log.Debug("wrote the textfile", "textfile", d.file.Path(), "bytes", d.file.Stats().Bytes)
	if !d.ready.Swap(true) {
		d.log.Info("wrote the first textfile", "textfile", d.file.Path(), "bytes", d.file.Stats().Bytes)
		systemd.Ready(status)
		return
	}
	systemd.Status(status)
}

// status is the line that `systemctl status` shows.
func (d *daemon) status(fams []*dto.MetricFamily) string {
	series := 0
	for _, f := range fams {
		series += len(f.Metric)
	}
	d.mu.Lock()
	refused, pods := d.refused, d.pods
	d.mu.Unlock()
	probes := d.runner.Status()
	var down []string
	for _, p := range probes {
		if !p.Up {
			down = append(down, p.Name)
		}
	}
	var b strings.Builder
	if refused != nil {
		fmt.Fprintf(&b, "configuration refused, the one before is in effect: %v; ", refused)
	}
	fmt.Fprintf(&b, "%d series, %d pods", series, len(pods.Running()))
	if !pods.Connected() {
		b.WriteString(" (containerd does not answer)")
	}
	fmt.Fprintf(&b, ", %d of %d probes work", len(probes)-len(down), len(probes))
	if len(down) > 0 {
		fmt.Fprintf(&b, " (not %s)", strings.Join(down, ", "))
	}
	return b.String()
}

// reload reads the configuration again and puts it into effect, wholly or not
// at all. All that may take time is done beside the sampling loop; between two
// cycles only what is ready takes effect.
func (d *daemon) reload(ctx context.Context, between chan<- func()) {
	// Before the first textfile the start goes on: Ready would end it.
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
		d.log.Error("reload refused, the configuration in effect is kept", "error", err)
		status = "reload refused: " + err.Error()
	} else {
		d.log.Info("reloaded", "config", d.cfg.File, "probes", len(d.cfg.probes), "textfile", d.file.Path())
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
	view, err := viewHost(cfg)
	if err != nil {
		return err
	}
	o, err := d.options(cfg, view)
	if err != nil {
		return err
	}
	pods, stop := d.pods, func() {}
	if !slices.Equal(cfg.list("pods.sockets"), d.cfg.list("pods.sockets")) || cfg.text("pods.namespace") != d.cfg.text("pods.namespace") || cfg.text("pods.host_label") != d.cfg.text("pods.host_label") || view.netns != d.view.netns {
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
	hub := d.hubOptions(cfg, view, pods, nil)
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
		if cfg.stateDir() != d.cfg.stateDir() || cfg.flag("state.counters") != d.cfg.flag("state.counters") {
			d.counters.close()
			d.counters = d.newCounters(d.runner, cfg)
		}
		d.view = view
		d.use(cfg)
		d.events.hub.Apply(hub)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case between <- apply:
	}
	<-done
	if index, ok := pods.(interface{ KeepLabels([]string) }); ok {
		index.KeepLabels(podLabels(cfg))
	}
	if err := d.events.plane.SetLimits(eventLimits(cfg)); err != nil {
		d.log.Error("changing the limits on events failed", "error", err)
	}
	return nil
}

// retarget lets the textfile be the one of another configuration, if it is
// another. A file system that does not answer keeps it where it is, also when it
// answers later.
func (d *daemon) retarget(cfg *Config) error {
	same := true
	for _, key := range []string{"textfile.dir", "textfile.file", "textfile.mode"} {
		same = same && cfg.text(key) == d.cfg.text(key)
	}
	if same {
		return nil
	}
	const pending, done, abandoned = 0, 1, 2
	var state atomic.Int32
	before := d.cfg
	err := within(fileWait, func() error {
		err := retarget(d.file, cfg)
		if !state.CompareAndSwap(pending, done) && err == nil {
			return retarget(d.file, before)
		}
		return err
	})
	if errors.Is(err, bounded.ErrNoAnswer) && !state.CompareAndSwap(pending, abandoned) {
		return nil // it has just answered
	}
	return err
}
