// Command nodeskoop runs KubeSkoop's network probes on one Linux host. It writes
// their metrics as a textfile for node_exporter and asks containerd for the names
// of pods.
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

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/docs"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/quote"
	"nodeskoop/output"
)

// version is set by the linker when a package is built.
var version = "0.1.0-dev"

// Exit codes.
const (
	exitFailure = 1 // the command failed
	exitUsage   = 2 // the command line is wrong
	exitPartial = 3 // some requested probes have incomplete values, containerd did not list its pods, or a report lacks its journal or history; the available rest was written
	exitHeld    = 4 // the daemon: the timer of script mode writes the textfile; nodeskoop.service names it, too
)

// The main thread represents the process in procfs: /proc/self/ns/net is its
// network namespace. Locking it here keeps goroutines that enter a pod's namespace
// off this thread.
func init() { runtime.LockOSThread() }

// The program's own help fits the window and has examples.
func init() { cli.HelpPrinter = docs.Help }

func main() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	// A reader that closes the pipe must cause a write error, which run handles.
	// SIGPIPE would end a daemon that prints events, and keep commands from
	// cleaning up.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go obey(signals, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// endWithin limits a clean shutdown after a signal: shorter than the unit's
// TimeoutStopSec, longer than all steps of a clean shutdown together.
const endWithin = 15 * time.Second

// beforeForcedEnd undoes what must not outlive the process: it restores the terminal that
// a command has taken, or removes the daemon's textfile. nil if there is nothing.
var beforeForcedEnd atomic.Pointer[func()]

// obey starts a clean shutdown at the first signal. A second signal, or the time
// limit, ends the process immediately: standard output without a reader, or a
// hanging file system, may block a clean shutdown.
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

// flushFor is how long the shutdown waits for standard error to accept the remaining
// log.
const flushFor = 2 * time.Second

// run runs the program and returns its exit code. Logging never waits for a reader
// of standard error.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	unsetEmpty()
	log := output.NewPatient(stderr)
	defer log.Flush(flushFor)
	out := output.NewStandard(stdout)
	app := newApp(out, log)
	app.Metadata = map[string]any{argumentsKey: args}
	err := app.RunContext(ctx, args)
	wrote := out.Flush()
	switch {
	case errors.Is(wrote, syscall.EPIPE) && (err == nil || errors.Is(err, syscall.EPIPE)):
		return 0 // the reader, such as head, closed the pipe
	case wrote != nil && !errors.As(err, new(outputFailure)) && (err == nil || errors.Is(err, wrote)):
		err = outputError(wrote)
	}
	if err == nil {
		return 0
	}
	if msg := complaint(err, args); msg != "" {
		fmt.Fprintf(log, "nodeskoop: %s\n", quote.SafeLine(msg))
	}
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		return coder.ExitCode()
	}
	return exitFailure
}

// unsetEmpty makes an empty variable of a flag the same as none. Service managers and
// scripts set variables whose value is not given, and a flag would take the empty text for
// a choice: no probe at all, or a file without a name.
func unsetEmpty() {
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); value == "" && strings.HasPrefix(name, "NODESKOOP_") {
			_ = os.Unsetenv(name)
		}
	}
}

// outputFailure is the error of incomplete standard output.
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
	return fmt.Sprintf("write to standard output: %v: the output is incomplete%s", cause, hint)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:            "nodeskoop",
		Usage:           "network probes of a node and its pods, for node_exporter and the journal",
		Version:         version,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {},        // run reports the error
		Flags:           append(commonFlags(), cli.HelpFlag), // the library adds no help flag if a command "help" exists
		Commands: []*cli.Command{
			runCommand(), collectCommand(), eventsCommand(), diagnoseCommand(), reportCommand(), historyCommand(), topCommand(), probesCommand(), podsCommand(),
			checkCommand(), configCommand(), docsCommand(), helpCommand(),
		},
	}
	app.OnUsageError = usageError("nodeskoop help", app.Flags)
	app.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return noCommand("command", c.Args().First(), app.Commands, "nodeskoop help")
		}
		return cli.ShowAppHelp(c)
	}
	refuseMistakes("", app.Commands)
	return app
}

// refuseMistakes makes every usage error of the commands and their subcommands end
// with exitUsage. parent is the prefix of their names.
func refuseMistakes(parent string, commands []*cli.Command) {
	for _, cmd := range commands {
		name := strings.TrimSpace(parent + " " + cmd.Name)
		help := "nodeskoop help " + name
		cmd.OnUsageError = usageError(help, cmd.Flags)
		cmd.HideHelpCommand = true
		refuseMistakes(name, cmd.Subcommands)
		action, takesArgs := cmd.Action, cmd.Args
		cmd.Action = func(c *cli.Context) error {
			switch {
			case len(cmd.Subcommands) > 0 && c.Args().Present():
				return noCommand("page", c.Args().First(), cmd.Subcommands, help)
			case len(cmd.Subcommands) > 0:
				return cli.ShowSubcommandHelp(c)
			case c.Args().Present() && !takesArgs:
				return cli.Exit(fmt.Sprintf("%s takes no argument, got %q; see %s", name, c.Args().First(), help), exitUsage)
			}
			if flag := emptyFlag(c, cmd.Flags); flag != "" {
				return cli.Exit(fmt.Sprintf("--%s has an empty value: give one, or leave the flag out; see %s", flag, help), exitUsage)
			}
			return action(c)
		}
	}
}

// emptyFlag returns the name of a flag whose value was given as an empty text, as a script
// does whose variable is not set. The command would run as if the flag had not been given:
// events --since would not end, collect --output would print.
func emptyFlag(c *cli.Context, flags []cli.Flag) string {
	for _, f := range flags {
		if s, ok := f.(*cli.StringFlag); ok {
			if value, given := common(c, s.Name); given && value == "" {
				return s.Name
			}
		}
	}
	return ""
}

// commonFlags are accepted before and after the command's name.
func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read the configuration from `FILE`", Value: config.DefaultFile, EnvVars: []string{"NODESKOOP_CONFIG"}},
		&cli.StringFlag{Name: "probe", Aliases: []string{"p"}, Usage: "run these probes: `NAME[,NAME]`, \"default\", \"all\", -NAME to leave one out", EnvVars: []string{"NODESKOOP_PROBE"}},
		&cli.StringFlag{Name: "log-level", Usage: "`LEVEL` of the log: debug, info, warn or error", EnvVars: []string{"NODESKOOP_LOG_LEVEL"}},
	}
}

// jsonFlag is the flag --json of commands that otherwise print text.
func jsonFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: usage, EnvVars: []string{"NODESKOOP_JSON"}}
}

// podFlag is the flag --pod of commands that show pods.
func podFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "pod", Usage: usage, EnvVars: []string{"NODESKOOP_POD"}}
}

// common returns a common flag's value, which may stand before or after the
// command's name. The position nearest to the command wins.
func common(c *cli.Context, name string) (value string, given bool) {
	for _, x := range c.Lineage() {
		if x.Command != nil && x.IsSet(name) {
			return x.String(name), true
		}
	}
	return c.String(name), false
}

// newSession reads flags and configuration, and inspects the host. It logs to log.
func newSession(c *cli.Context, log io.Writer) (*session.Session, error) {
	cfg, err := loadConfig(c)
	if err != nil {
		return nil, err
	}
	if slices.Contains(rootOnly, c.Command.Name) {
		if err := needRoot(c); err != nil {
			return nil, err
		}
	}
	s := session.New(version, cfg, log)
	if _, asked := common(c, "log-level"); !asked && c.Command.Name != "run" && s.Level.Level() == slog.LevelInfo {
		s.Level.Set(slog.LevelWarn) // keep normal conditions out of cron's mail
	}
	return s, s.SeeHost(c.Context)
}

// loadConfig reads the configuration and applies the flags.
func loadConfig(c *cli.Context) (*config.Config, error) {
	file, named := common(c, "config")
	cfg, err := config.Load(file, named)
	if err != nil {
		return nil, err
	}
	if p, ok := common(c, "probe"); ok {
		cfg.Escalation = []string{} // these probes alone
		if err := cfg.Select(strings.FieldsFunc(p, func(r rune) bool { return r == ',' || r == ' ' })); err != nil {
			return nil, cli.Exit("--probe: "+err.Error(), exitUsage)
		}
		if len(cfg.Probes) == 0 {
			return nil, cli.Exit(fmt.Sprintf("--probe: %q leaves no probe to run; see nodeskoop probes", p), exitUsage)
		}
	}
	if l, ok := common(c, "log-level"); ok {
		if _, err := config.ParseLevel(l); err != nil {
			return nil, cli.Exit("--log-level: "+err.Error(), exitUsage)
		}
		cfg.Log.Level = l
	}
	return cfg, nil
}
