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
	"sync/atomic"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/urfave/cli/v2"

	"nodeskoop/collect"
	"nodeskoop/output"
	"nodeskoop/systemd"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "sample every probe each interval and keep the textfile fresh (the daemon)",
		Description: "SIGHUP reads the configuration again; a mistake in it keeps what was in effect.\n" +
			"SIGTERM and SIGINT end it and remove the textfile, unless textfile.keep is set.",
		Flags:  append(commonFlags(), &cli.BoolFlag{Name: "foreground-events", Usage: "also print events, one line each", EnvVars: []string{"NODESKOOP_FOREGROUND_EVENTS"}}),
		Action: func(c *cli.Context) error { return runDaemon(c) },
	}
}

// daemon is a running `nodeskoop run`.
type daemon struct {
	*setup
	file     *output.Textfile
	pods     collect.Pods
	stopPods context.CancelFunc
	events   *events
	runner   *collect.Runner
	ready    atomic.Bool // the first textfile was written
	failing  atomic.Bool // the last write of the textfile failed
	refused  error       // why the configuration in effect is not the file's
	patience time.Duration
}

func runDaemon(c *cli.Context) error {
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
	if d.file, err = openTextfile(s.cfg, s.log); err != nil {
		return err
	}
	defer d.file.Close()
	if err := d.file.Clean(); err != nil {
		s.log.Warn("cleaning up after an earlier writer failed", "error", err)
	}
	d.pods, d.stopPods = d.follow(ctx, s.cfg)
	d.events = s.newEvents(d.pods, nil, s.sinks(c.Bool("foreground-events"))...)
	defer func() { d.events.close(s.log) }()
	r, err := s.newRunner(d.pods, d.events.plane)
	if err != nil {
		return err
	}
	defer r.Close()
	d.runner = r
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
			}
			select {
			case <-ctx.Done():
			case between <- func() { d.reload(ctx, r) }:
			}
		}
	}()
	go d.watchdog(ctx)
	r.Run(ctx, d.write, between)

	systemd.Stopping()
	d.stopPods()
	if !s.cfg.flag("textfile.keep") {
		if err := d.file.Remove(); err != nil {
			s.log.Error("removing the textfile failed; node_exporter goes on serving it", "error", err)
		}
	}
	s.log.Info("stopped")
	return nil
}

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
func (d *daemon) follow(ctx context.Context, cfg *Config) (collect.Pods, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	return d.watchPods(ctx, cfg), stop
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
			if !d.failing.Load() {
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

// write is the Runner's sink.
func (d *daemon) write(fams []*dto.MetricFamily) {
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
	probes := d.runner.Status()
	var down []string
	for _, p := range probes {
		if !p.Up {
			down = append(down, p.Name)
		}
	}
	var b strings.Builder
	if d.refused != nil {
		fmt.Fprintf(&b, "configuration refused, the one before is in effect: %v; ", d.refused)
	}
	fmt.Fprintf(&b, "%d series, %d pods", series, len(d.pods.Running()))
	if !d.pods.Connected() {
		b.WriteString(" (containerd does not answer)")
	}
	fmt.Fprintf(&b, ", %d of %d probes work", len(probes)-len(down), len(probes))
	if len(down) > 0 {
		fmt.Fprintf(&b, " (not %s)", strings.Join(down, ", "))
	}
	return b.String()
}

// reload reads the configuration again and puts it into effect, wholly or not
// at all. It runs between two cycles.
func (d *daemon) reload(ctx context.Context, r *collect.Runner) {
	// Before the first textfile the start goes on: Ready would end it.
	ready := d.ready.Load()
	if ready {
		systemd.Reloading()
	}
	status := "configuration read again"
	if d.refused = d.tryReload(ctx, r); d.refused != nil {
		d.log.Error("reload refused, the configuration in effect is kept", "error", d.refused)
		status = "reload refused: " + d.refused.Error()
	} else {
		d.log.Info("reloaded", "config", d.cfg.File, "probes", len(d.cfg.probes), "textfile", d.file.Path())
	}
	if ready {
		systemd.Ready(status)
	}
}

func (d *daemon) tryReload(ctx context.Context, r *collect.Runner) error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	o, err := d.options(cfg)
	if err != nil {
		return err
	}
	pods, stop := d.pods, d.stopPods
	if !slices.Equal(cfg.list("pods.sockets"), d.cfg.list("pods.sockets")) || cfg.text("pods.namespace") != d.cfg.text("pods.namespace") {
		pods, stop = d.follow(ctx, cfg)
	}
	o.Pods = pods
	err = retarget(d.file, cfg)
	if err == nil {
		if err = r.Apply(o); err != nil {
			err = errors.Join(err, retarget(d.file, d.cfg))
		}
	}
	if err != nil {
		if pods != d.pods {
			stop()
		}
		return err
	}
	if pods != d.pods {
		d.stopPods()
	}
	d.pods, d.stopPods = pods, stop
	if index, ok := pods.(interface{ KeepLabels([]string) }); ok {
		index.KeepLabels(podLabels(cfg))
	}
	d.use(cfg)
	d.events.hub.Apply(d.hubOptions(pods, nil))
	if err := d.events.plane.SetLimits(d.eventLimits()); err != nil {
		d.log.Error("changing the limits on events failed", "error", err)
	}
	return nil
}
