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
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/pod"
	"nodeskoop/collect/proc"
	"nodeskoop/collect/trace"
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
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newApp(stdout, stderr).RunContext(ctx, args)
	if err == nil {
		return 0
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(stderr, "nodeskoop: %s\n", msg)
	}
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		return coder.ExitCode()
	}
	return exitFailure
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
	c     *cli.Context

	noInit error // why process 1 may not be looked at
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
	s.use(cfg)
	if _, asked := common(c, "log-level"); !asked && !slices.Contains([]string{"run", "events"}, c.Command.Name) && s.level.Level() == slog.LevelInfo {
		s.level.Set(slog.LevelWarn) // what is as it should be is not worth a line of cron's mail
	}
	s.log = slog.New(newHandler(log, cfg.text("log.format"), s.level))
	if h := cfg.text("host_netns"); h != "" {
		var st unix.Statfs_t
		switch err := unix.Statfs(h, &st); {
		case err != nil:
			return nil, fmt.Errorf("host_netns: %s: %w (it names a file that is a network namespace, such as /proc/PID/ns/net or /run/netns/NAME)", h, err)
		case st.Type != unix.NSFS_MAGIC:
			return nil, fmt.Errorf("host_netns: %s is not a namespace: let it name a file such as /proc/PID/ns/net or /run/netns/NAME", h)
		}
		return s, nil
	}
	if _, s.noInit = os.Stat("/proc/1/ns/net"); s.noInit != nil {
		level, hint := slog.LevelWarn, "it needs CAP_SYS_PTRACE; in a container set host_netns"
		if have, err := effectiveCapabilities(); err == nil && have&(1<<unix.CAP_SYS_PTRACE) != 0 {
			level, hint = slog.LevelInfo, "this kernel hides process 1 from everyone; in a container set host_netns"
		}
		s.log.Log(c.Context, level, "cannot tell the network namespace of process 1, taking this process's own for the host's", "error", s.noInit, "hint", hint)
	}
	return s, nil
}

// hostNetns is the file that is the host's network namespace; "" stands for
// that of process 1.
func (s *setup) hostNetns(cfg *Config) string {
	if h := cfg.text("host_netns"); h != "" || s.noInit == nil {
		return h
	}
	return "/proc/self/ns/net"
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
	for _, text := range cfg.obsolete {
		s.log.Warn(text)
	}
}

func newHandler(w io.Writer, format string, level slog.Leveler) slog.Handler {
	switch {
	case format == "json":
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	case w == os.Stderr && systemd.StderrIsJournal():
		return systemd.NewHandler(w, level)
	}
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
}

// factories are the 23 probes; those that trace share a plane.
func factories(plane *trace.Plane) []collect.Factory {
	return slices.Concat(proc.Probes(), netlink.Probes(), plane.Factories())
}

// firstPods is how long a command waits to hear from containerd before it
// goes on without pods.
const firstPods = 2 * time.Second

// watchPods starts to follow containerd, and waits until its pods are known
// or it is clear that it does not answer.
func (s *setup) watchPods(ctx context.Context, cfg *Config) *pod.Index {
	index := pod.Watch(ctx, pod.Options{
		Sockets:   cfg.list("pods.sockets"),
		Namespace: cfg.text("pods.namespace"),
		HostNetns: s.hostNetns(cfg),
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
	return collect.Keys(o.Labels)
}

// newRunner builds the Runner of one configuration.
func (s *setup) newRunner(pods collect.Pods, plane *trace.Plane) (*collect.Runner, error) {
	o, err := s.options(s.cfg)
	if err != nil {
		return nil, err
	}
	o.Pods = pods
	return collect.NewRunner(o, factories(plane)...)
}

// options are the Runner's for a configuration, but for the pods.
func (s *setup) options(cfg *Config) (collect.Options, error) {
	o, err := cfg.options()
	o.Log, o.HostNetns, o.Once = s.log, s.hostNetns(cfg), s.once
	return o, err
}
