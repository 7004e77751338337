// Command nodeskoop runs KubeSkoop's network probes on one Linux host: it
// writes their metrics as a textfile for node_exporter and names the pods by
// asking containerd.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/pod"
	"nodeskoop/collect/proc"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/quote"
	"nodeskoop/output"
	"nodeskoop/systemd"
)

// version is set when a package is built.
var version = "0.1.0-dev"

// The exit codes.
const (
	exitFailure = 1 // it could not do what was asked
	exitUsage   = 2 // the command line is wrong
	exitPartial = 3 // some probes failed; what the others gave was written
)

// The main thread stands for the process in procfs: /proc/self/ns/net is its
// network namespace. No goroutine that enters a pod's namespace may run on it.
func init() { runtime.LockOSThread() }

func main() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	// A reader that goes away is an error of the write, for run to judge: it
	// must not end a daemon that prints events, nor keep a command from
	// cleaning up.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go obey(signals, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// endWithin is how long the end may take after a signal: less than the unit's
// TimeoutStopSec, and more than the steps of a clean end may take together.
const endWithin = 15 * time.Second

// beforeForcedEnd restores the terminal, if a command has taken it; nil: none
// has.
var beforeForcedEnd atomic.Pointer[func()]

// obey begins the end at the first signal. A second one ends the process
// whatever it waits for, and so does time: standard output that nobody reads, or
// a file system that does not answer, may make a clean end impossible.
func obey(signals <-chan os.Signal, stop func()) {
	<-signals
	stop()
	code := exitFailure
	select {
	case s := <-signals:
		if n, ok := s.(syscall.Signal); ok {
			code = 128 + int(n)
		}
	case <-time.After(endWithin):
	}
	if f := beforeForcedEnd.Load(); f != nil {
		_, _ = bounded.Within(200*time.Millisecond, func() (none struct{}, err error) { (*f)(); return none, nil })
	}
	os.Exit(code)
}

// flushFor is how long the end waits for standard error to take what is left
// of the log.
const flushFor = 2 * time.Second

// run is the program: it returns the exit code. Nothing that is logged waits
// for standard error to be read.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	log := output.NewPatient(stderr)
	defer log.Flush(flushFor)
	out := output.NewStandard(stdout)
	err := newApp(out, log).RunContext(ctx, args)
	wrote := out.Flush()
	switch {
	case errors.Is(wrote, syscall.EPIPE) && (err == nil || errors.Is(err, syscall.EPIPE)):
		return 0 // the reader, as head, has had enough
	case wrote != nil && !errors.As(err, new(outputFailure)) && (err == nil || errors.Is(err, wrote)):
		err = outputError(wrote)
	}
	if err == nil {
		return 0
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(log, "nodeskoop: %s\n", quote.SafeLine(msg))
	}
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		return coder.ExitCode()
	}
	return exitFailure
}

// outputFailure says that something is missing on standard output.
type outputFailure struct{ cause error }

func outputError(err error) error { return outputFailure{err} }

func (e outputFailure) Unwrap() error { return e.cause }

func (e outputFailure) Error() string {
	cause, hint := e.cause, ""
	var errno syscall.Errno
	if errors.As(cause, &errno) {
		cause = errno
	}
	if errno == syscall.ENOSPC || errno == syscall.EDQUOT {
		hint = "; free some space there: see df and df -i"
	}
	return fmt.Sprintf("write to standard output: %v: what is there is incomplete%s", cause, hint)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	usageError := func(_ *cli.Context, err error, _ bool) error {
		return cli.Exit(err.Error()+"; see nodeskoop --help", exitUsage)
	}
	app := &cli.App{
		Name:                 "nodeskoop",
		Usage:                "network probes of a node and its pods, for node_exporter and the journal",
		Version:              version,
		HideHelpCommand:      true,
		EnableBashCompletion: true,
		Writer:               stdout,
		ErrWriter:            stderr,
		ExitErrHandler:       func(*cli.Context, error) {}, // run says it
		OnUsageError:         usageError,
		Flags:                commonFlags(),
		Commands: []*cli.Command{
			runCommand(), collectCommand(), eventsCommand(), topCommand(), probesCommand(), podsCommand(),
			checkCommand(), configCommand(), docsCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cli.Exit(fmt.Sprintf("no command %q; see nodeskoop --help", c.Args().First()), exitUsage)
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = usageError
		action := cmd.Action
		if action == nil {
			continue
		}
		takesArgs := cmd.Args
		cmd.Action = func(c *cli.Context) error {
			if c.Args().Present() && !takesArgs {
				return cli.Exit(fmt.Sprintf("%s takes no argument, got %q", c.Command.Name, c.Args().First()), exitUsage)
			}
			return action(c)
		}
	}
	return app
}

// commonFlags are accepted before and after the command's name.
func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read the configuration from `FILE`", Value: defaultConfigFile, EnvVars: []string{"NODESKOOP_CONFIG"}},
		&cli.StringFlag{Name: "probe", Aliases: []string{"p"}, Usage: "run these probes: `NAME[,NAME]`, \"default\", \"all\", -NAME to leave one out", EnvVars: []string{"NODESKOOP_PROBE"}},
		&cli.StringFlag{Name: "log-level", Usage: "`LEVEL` of the log: debug, info, warn or error", EnvVars: []string{"NODESKOOP_LOG_LEVEL"}},
	}
}

// jsonFlag is --json of the commands that print for people otherwise.
func jsonFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: usage, EnvVars: []string{"NODESKOOP_JSON"}}
}

// podFlag is --pod of the commands that show pods.
func podFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "pod", Usage: usage, EnvVars: []string{"NODESKOOP_POD"}}
}

// common finds a common flag wherever it was given, the nearest to the
// command's name first.
func common(c *cli.Context, name string) (value string, given bool) {
	for _, x := range c.Lineage() {
		if x.Command != nil && x.IsSet(name) {
			return x.String(name), true
		}
	}
	return c.String(name), false
}

// setup is what every command begins with.
type setup struct {
	once  bool // it ends after a cycle or two
	cfg   *Config
	log   *slog.Logger
	level *slog.LevelVar
	json  atomic.Bool // the log's format
	c     *cli.Context

	view    hostView // what of the host is seen with cfg
	hostErr error    // why nothing may be measured here; for check
}

// newSetup reads the flags and the configuration.
func newSetup(c *cli.Context) (*setup, error) { return newSetupLogging(c, c.App.ErrWriter) }

// newSetupLogging is newSetup with the log elsewhere.
func newSetupLogging(c *cli.Context, log io.Writer) (*setup, error) {
	s := &setup{c: c, level: new(slog.LevelVar)}
	cfg, err := s.load()
	if err != nil {
		return nil, err
	}
	s.log = slog.New(newHandler(log, &s.json, s.level))
	s.use(cfg)
	if _, asked := common(c, "log-level"); !asked && !slices.Contains([]string{"run", "events"}, c.Command.Name) && s.level.Level() == slog.LevelInfo {
		s.level.Set(slog.LevelWarn) // what is as it should be is not worth a line of cron's mail
	}
	if c.Command.Name == "config" {
		return s, nil // it looks at nothing
	}
	if s.view, s.hostErr = viewHost(cfg); s.hostErr != nil {
		if c.Command.Name == "check" {
			return s, nil // it says so in its place
		}
		return nil, s.hostErr
	}
	s.sayHost()
	return s, nil
}

// sayHost logs how the host is seen, where that is not as usual.
func (s *setup) sayHost() {
	if s.view.machine {
		s.log.Info("this is a container that has booted a system of its own, which stands for the host", "hint", "run nodeskoop on the host to measure that")
	}
	if s.view.guessed != nil {
		level, hint := slog.LevelWarn, "it needs CAP_SYS_PTRACE, as do the network namespaces of pods"
		if have, err := kernel.OwnCapabilities(); err == nil && have&(1<<unix.CAP_SYS_PTRACE) != 0 {
			level, hint = slog.LevelInfo, "this kernel hides process 1 from everyone"
		}
		s.log.Log(s.c.Context, level, "cannot look at process 1; this process is in the kernel's first network namespace, which is the host's", "error", s.view.guessed, "hint", hint)
	}
}

// load reads the configuration and lays the flags over it.
func (s *setup) load() (*Config, error) {
	file, named := common(s.c, "config")
	cfg, err := loadConfig(file, named)
	if err != nil {
		return nil, err
	}
	if p, ok := common(s.c, "probe"); ok {
		if cfg.probes, err = selectProbes(strings.FieldsFunc(p, func(r rune) bool { return r == ',' || r == ' ' })); err != nil {
			return nil, cli.Exit("--probe: "+err.Error(), exitUsage)
		}
	}
	if l, ok := common(s.c, "log-level"); ok {
		if err := new(slog.Level).UnmarshalText([]byte(l)); err != nil {
			return nil, cli.Exit(fmt.Sprintf("--log-level: %q is not a level: use debug, info, warn or error", l), exitUsage)
		}
		cfg.values["log.level"] = l
	}
	return cfg, nil
}

// use puts a configuration into effect.
func (s *setup) use(cfg *Config) {
	s.cfg = cfg
	var l slog.Level
	if l.UnmarshalText([]byte(cfg.text("log.level"))) == nil {
		s.level.Set(l)
	}
	s.json.Store(cfg.text("log.format") == "json")
	for _, text := range cfg.obsolete {
		s.log.Warn(text)
	}
}

func newHandler(w io.Writer, json *atomic.Bool, level slog.Leveler) slog.Handler {
	h := formats{json: json, lines: slog.NewTextHandler(output.LogWriter(w, false), &slog.HandlerOptions{Level: level}), objects: slog.NewJSONHandler(output.LogWriter(w, true), &slog.HandlerOptions{Level: level})}
	if p, ok := w.(*output.Patient); ok && p.Writer() == os.Stderr && systemd.StderrIsJournal() {
		h.lines = systemd.NewHandler(output.LogWriter(w, false), level)
	}
	return h
}

// formats writes lines or JSON objects: a reload may change which.
type formats struct {
	json           *atomic.Bool
	lines, objects slog.Handler
}

func (f formats) now() slog.Handler {
	if f.json.Load() {
		return f.objects
	}
	return f.lines
}

func (f formats) Enabled(ctx context.Context, l slog.Level) bool { return f.now().Enabled(ctx, l) }

func (f formats) Handle(ctx context.Context, r slog.Record) error { return f.now().Handle(ctx, r) }

func (f formats) WithAttrs(a []slog.Attr) slog.Handler {
	return formats{f.json, f.lines.WithAttrs(a), f.objects.WithAttrs(a)}
}

func (f formats) WithGroup(name string) slog.Handler {
	return formats{f.json, f.lines.WithGroup(name), f.objects.WithGroup(name)}
}

// factories are the probes; those that trace share a plane.
func factories(plane *trace.Plane) []collect.Factory {
	return slices.Concat(proc.Probes(), netlink.Probes(), plane.Factories())
}

// firstPods is how long a command waits to hear from containerd before it
// goes on without pods.
const firstPods = 2 * time.Second

// watchPods starts to follow containerd, and waits until its pods are known
// or it is clear that it does not answer.
func (s *setup) watchPods(ctx context.Context, cfg *Config, view hostView) *pod.Index {
	index := pod.Watch(ctx, pod.Options{
		Sockets:   cfg.list("pods.sockets"),
		Namespace: cfg.text("pods.namespace"),
		HostNetns: view.netns,
		Reserved:  []string{cfg.text("pods.host_label")},
		Labels:    podLabels(cfg),
		Log:       s.log,
	})
	wait, cancel := context.WithTimeout(ctx, firstPods)
	defer cancel()
	if err := index.Sync(wait); err != nil {
		s.log.Debug("no pods yet", "error", err)
	}
	return index
}

// podLabels are the labels of pods that the configuration refers to.
func podLabels(cfg *Config) []string {
	o, err := cfg.options()
	if err != nil {
		return nil
	}
	return owner.Keys(o.Labels)
}

// newRunner builds the Runner of one configuration.
func (s *setup) newRunner(pods owner.Pods, plane *trace.Plane) (*collect.Runner, error) {
	o, err := s.options(s.cfg, s.view)
	if err != nil {
		return nil, err
	}
	o.Pods = pods
	return collect.NewRunner(o, factories(plane)...)
}

// options are the Runner's for a configuration, but for the pods.
func (s *setup) options(cfg *Config, view hostView) (collect.Options, error) {
	o, err := cfg.options()
	o.Log, o.HostNetns, o.Refused, o.Once = s.log, view.netns, view.refused, s.once
	return o, err
}
