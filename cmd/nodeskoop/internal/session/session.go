// Package session holds what all commands use: the effective configuration, the
// log, the view of the host, its pods, a Runner, and the delivery of events.
package session

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/pod"
	"nodeskoop/collect/proc"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/kernel"
)

// Session is one run of a command.
type Session struct {
	Version string // version of the program
	Once    bool   // ends after one or two cycles
	Service bool   // the command runs unattended until it is stopped
	ForPods bool   // the command is about named pods, so it fails without the list of pods
	// PodsWait is how long to wait for a containerd that has not listed its pods, or does
	// not run yet. 0: for a containerd that answers slowly, FirstPods.
	PodsWait time.Duration
	Config   *config.Config
	Log      *slog.Logger
	Level    *slog.LevelVar
	Host     Host  // view of the host under Config
	HostErr  error // why measuring is not allowed here, nil if it is

	json atomic.Bool // the log is JSON
}

// New begins a session whose log goes to log.
func New(version string, cfg *config.Config, log io.Writer) *Session {
	s := &Session{Version: version, Level: new(slog.LevelVar)}
	s.Log = slog.New(newHandler(log, &s.json, s.Level))
	s.Use(cfg)
	return s
}

// Use applies the configuration's log settings.
func (s *Session) Use(cfg *config.Config) {
	s.Config = cfg
	if l, err := config.ParseLevel(cfg.Log.Level); err == nil {
		s.Level.Set(l)
	}
	s.json.Store(cfg.Log.Format == "json")
	for _, text := range cfg.Obsolete {
		s.Log.Warn(text)
	}
}

// Hush silences the log until the returned function is called, for commands that
// describe their start in words. If the user chose a log level, the log stays as it
// is.
func (s *Session) Hush() (speak func()) {
	if s.Level.Level() != slog.LevelWarn {
		return func() {}
	}
	s.Level.Set(slog.LevelError + 1)
	return func() { s.Level.Set(slog.LevelWarn) }
}

// SeeHost determines which parts of the host are visible, and logs anything
// unusual.
func (s *Session) SeeHost(ctx context.Context) error {
	if s.Host, s.HostErr = ViewHost(s.Config); s.HostErr != nil {
		return s.HostErr
	}
	if s.Host.Machine {
		s.Log.Info("this is a container that has booted a system of its own, which stands for the host", "hint", "run nodeskoop on the host to measure that")
	}
	if s.Host.Guessed != nil {
		level, hint := slog.LevelWarn, "it needs CAP_SYS_PTRACE, as do the network namespaces of pods"
		if have, err := kernel.OwnCapabilities(); err == nil && have&(1<<unix.CAP_SYS_PTRACE) != 0 {
			level, hint = slog.LevelInfo, "this kernel hides process 1 from everyone"
		}
		s.Log.Log(ctx, level, "cannot read the network namespace of process 1; this process's own is the initial one, which is the host's", "error", s.Host.Guessed, "hint", hint)
	}
	return nil
}

// Factories returns the factories of all probes; tracing probes share the tracer.
func Factories(tracer *trace.Tracer) []collect.Factory {
	return slices.Concat(proc.Probes(), netlink.Probes(), tracer.Factories())
}

// FirstPods is how long a command waits for containerd before it continues without
// pods.
const FirstPods = 2 * time.Second

// namedPods is how long a command waits for containerd if it cannot continue
// without pods.
const namedPods = 20 * time.Second

// WatchPods starts to follow containerd, and returns when its pods are known or
// when it clearly does not answer.
func (s *Session) WatchPods(ctx context.Context, cfg *config.Config, host Host) *pod.Index {
	index := pod.Watch(ctx, pod.Options{
		Sockets:   cfg.Pods.Sockets,
		Namespace: cfg.Pods.Namespace,
		HostNetns: host.Netns,
		Reserved:  []string{cfg.Pods.HostLabel},
		Labels:    owner.Keys(cfg.Pods.Templates()),
		Runtimes:  s.Service,
		Log:       s.Log,
	})
	patience, sync := FirstPods, index.Sync
	switch {
	case s.PodsWait > 0:
		patience, sync = s.PodsWait, index.Await
	case s.ForPods:
		patience = namedPods
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := sync(wait); err != nil {
		s.Log.Debug("no pods yet", "error", err)
	}
	return index
}

// MissingPods returns why no pods have been listed although they were expected: there is
// a containerd's socket, or the session was to wait for them. It returns nil otherwise.
func (s *Session) MissingPods(index *pod.Index) error { return index.Missing(s.PodsWait > 0) }

// Named returns why the pods of an index are unknown, nil while containerd answers.
func Named(index *pod.Index) error {
	if index.Connected() {
		return nil
	}
	return cmp.Or(index.Status().Err, errors.New("containerd has not answered yet"))
}

// NewRunner creates the Runner for the session's configuration.
func (s *Session) NewRunner(pods owner.Pods, tracer *trace.Tracer) (*collect.Runner, error) {
	o := s.Options(s.Config, s.Host)
	o.Pods = pods
	return collect.NewRunner(o, Factories(tracer)...)
}

// Options returns the Runner's options for a configuration, without pods.
func (s *Session) Options(cfg *config.Config, host Host) collect.Options {
	o := cfg.Options()
	if s.Service {
		o.Standby = cfg.Escalate
	}
	o.Version, o.Log, o.HostNetns, o.Refused, o.Once, o.Service = s.Version, s.Log, host.Netns, host.Refused, s.Once, s.Service
	return o
}
