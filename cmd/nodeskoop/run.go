package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

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
	ready    bool
	failing  bool // the last write of the textfile failed
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

	d := &daemon{setup: s}
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

// write is the Runner's sink.
func (d *daemon) write(fams []*dto.MetricFamily) {
	err := d.file.Write(fams)
	switch {
	case err != nil && !d.failing:
		d.log.Error("writing the textfile failed; it is tried again each cycle", "error", err)
	case err == nil && d.failing:
		d.log.Info("the textfile is written again", "textfile", d.file.Path())
	}
	d.failing = err != nil
	status := fmt.Sprintf("%d pods, %d probes, %d bytes in %s", len(d.pods.Running()), len(d.cfg.probes), d.file.Stats().Bytes, d.file.Path())
	if err != nil {
		systemd.Status(err.Error())
		return
	}
	d.log.Debug("wrote the textfile", "textfile", d.file.Path(), "bytes", d.file.Stats().Bytes)
	if !d.ready {
		d.ready = true
		d.log.Info("wrote the first textfile", "textfile", d.file.Path(), "bytes", d.file.Stats().Bytes)
		systemd.Ready(status)
		return
	}
	systemd.Status(status)
	systemd.Alive()
}

// reload reads the configuration again and puts it into effect, wholly or not
// at all. It runs between two cycles.
func (d *daemon) reload(ctx context.Context, r *collect.Runner) {
	systemd.Reloading()
	status := "configuration read again"
	if err := d.tryReload(ctx, r); err != nil {
		d.log.Error("reload refused, the configuration in effect is kept", "error", err)
		status = "reload refused: " + err.Error()
	} else {
		d.log.Info("reloaded", "config", d.cfg.File, "probes", len(d.cfg.probes), "textfile", d.file.Path())
	}
	systemd.Ready(status)
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
	d.use(cfg)
	d.events.hub.Apply(d.hubOptions(pods, nil))
	if err := d.events.plane.SetLimits(d.eventLimits()); err != nil {
		d.log.Error("changing the limits on events failed", "error", err)
	}
	return nil
}
