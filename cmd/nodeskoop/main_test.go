package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/clipperhouse/displaywidth"
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// call runs the program in this process.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(context.Background(), append([]string{"nodeskoop"}, args...), &o, &e)
	return code, o.String(), e.String()
}

// An empty variable is the same as none.
func TestEmptyVariables(t *testing.T) {
	want := ""
	for _, set := range []bool{false, true} {
		if set {
			for _, name := range []string{"PROBE", "CONFIG", "LOG_LEVEL", "EVENTS", "DURATION", "WAIT", "OUTPUT", "JSON"} {
				t.Setenv("NODESKOOP_"+name, "")
			}
		}
		code, out, errs := call(t, "probes")
		if n := strings.Count(out, "\n"); code != 0 || n < 20 {
			t.Fatalf("set: %v: exit %d, %s%s", set, code, out, errs)
		}
		code, out, errs = call(t, "config")
		if want == "" {
			want = out
		}
		if code != 0 || out != want {
			t.Errorf("set: %v: exit %d, %s, other output than without: %v", set, code, errs, out != want)
		}
	}
}

func TestCommandLineMistakes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"nonsense"}, `no command "nonsense"`},
		{[]string{"collect", "--bogus"}, "bogus"},
		{[]string{"collect", "--probe", "ping"}, `unknown probe "ping"`},
		{[]string{"--probe", "ping", "config"}, `unknown probe "ping"`},
		{[]string{"collect", "--probe", ""}, "--probe has an empty value"},
		{[]string{"--probe=", "collect"}, "--probe has an empty value"},
		{[]string{"check", "--config", ""}, "--config has an empty value"},
		{[]string{"collect", "-o", ""}, "--output has an empty value"},
		{[]string{"events", "--since", ""}, "--since has an empty value"},
		{[]string{"report", "--html="}, "--html has an empty value"},
		{[]string{"top", "--at", ""}, "--at has an empty value"},
		{[]string{"diagnose", "--pod", ""}, "--pod has an empty value"},
		{[]string{"config", "--log-level", ""}, "--log-level has an empty value"},
		{[]string{"collect", "--probe", ","}, `--probe: "," leaves no probe to run`},
		{[]string{"collect", "--probe", "tcp,-tcp"}, `--probe: "tcp,-tcp" leaves no probe to run`},
		{[]string{"collect", "--log-level", "loud"}, `"loud" is not a level`},
		{[]string{"collect", "--duration", "-1s"}, "out of range"},
		{[]string{"collect", "--wait", "2h"}, "--wait: 2h0m0s is out of range"},
		{[]string{"pods", "--wait", "-1s"}, "out of range"},
		{[]string{"collect", "extra"}, "takes no argument"},
		{[]string{"--bogus"}, "there is no flag --bogus; see nodeskoop help\n"},
		{[]string{"collect", "--bogus=3"}, "there is no flag --bogus; see nodeskoop help collect\n"},
		{[]string{"events", "-x"}, "there is no flag -x; see nodeskoop help events\n"},
		{[]string{"docs", "nope"}, `no page "nope": the pages are metrics, `},
		{[]string{"docs", "nope", "--help"}, "nope"},
		{[]string{"docs", "man", "extra"}, `docs man takes no argument, got "extra"; see nodeskoop help docs man`},
		{[]string{"docs", "man", "--bogus"}, "there is no flag --bogus; see nodeskoop help docs man\n"},
		{[]string{"docs", "--bogus"}, "there is no flag --bogus; see nodeskoop help docs\n"},
		{[]string{"help", "nope"}, `no command "nope": the commands are run, `},
		{[]string{"help", "docs", "nope"}, `no page "nope": the pages are metrics, `},
		{[]string{"help", "check", "nope"}, `there is nothing below check, got "nope"`},
		{[]string{"help", "--bogus"}, "there is no flag --bogus"},
		{[]string{"top", "--interval", "5"}, `--interval: "5" is not a duration: give a unit, such as 5s; see nodeskoop help top`},
		{[]string{"top", "-i", "soon"}, `-i: "soon" is not a duration: give a unit, such as 5s`},
		{[]string{"top", "--interval="}, `--interval: "" is not a duration: give a unit, such as 5s`},
		{[]string{"top", "--count", "many"}, `--count: "many" is not a whole number`},
		{[]string{"top", "--once=perhaps"}, `--once: "perhaps" is neither true nor false`},
		{[]string{"collect", "--duration"}, "--duration needs a value"},
		{[]string{"collect", "--config"}, "--config needs a value"},
		{[]string{"pods", "extra"}, "pods takes no argument"},
		{[]string{"probes", "extra"}, "probes takes no argument"},
		{[]string{"check", "extra"}, "check takes no argument"},
		{[]string{"config", "extra"}, "config takes no argument"},
		{[]string{"run", "extra"}, "run takes no argument"},
		{[]string{"top", "extra"}, "top takes no argument"},
		{[]string{"events", "extra"}, "events takes no argument"},
		{[]string{"check", "--probe", "ping"}, `unknown probe "ping"`},
		{[]string{"events", "--probe", "tcp"}, "none of the chosen probes has such events"},
	} {
		code, out, errs := call(t, c.args...)
		if code != exitUsage || !strings.Contains(errs, c.want) || out != "" {
			t.Errorf("%v: exit %d, stdout %q, stderr %q; want exit 2 and %q", c.args, code, out, errs, c.want)
		}
	}
}

// Mistakes in environment variables are usage errors like those in flags, and name
// the variable.
func TestEnvironmentMistakes(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"NODESKOOP_TOP_INTERVAL", "5", `NODESKOOP_TOP_INTERVAL: "5" is not a duration: give a unit, such as 5s`},
		{"NODESKOOP_TOP_COUNT", "x", `NODESKOOP_TOP_COUNT: "x" is not a whole number`},
		{"NODESKOOP_TOP_ONCE", "x", `NODESKOOP_TOP_ONCE: "x" is neither true nor false`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(c.name, c.value)
			code, out, errs := call(t, "top", "--config", "/dev/null")
			if code != exitUsage || !strings.Contains(errs, c.want) || out != "" {
				t.Errorf("exit %d, %q, %q; want exit 2 and %q", code, out, errs, c.want)
			}
		})
	}
}

// Every help fits 80 columns. Every command has examples, and the program accepts
// each.
func TestHelpAndItsExamples(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	if names := app.Flags; len(names) != len(commonFlags())+1 {
		t.Errorf("%d common flags", len(names))
	}
	paths := [][]string{{}}
	for _, cmd := range app.Commands {
		paths = append(paths, []string{cmd.Name})
		for _, sub := range cmd.Subcommands {
			paths = append(paths, []string{cmd.Name, sub.Name})
		}
	}
	for _, path := range paths {
		code, out, errs := call(t, append(slices.Clone(path), "--help")...)
		if code != 0 || errs != "" || len(path) < 2 && !strings.Contains(out, "\nExamples:\n   nodeskoop ") {
			t.Errorf("%v: exit %d, %q\n%s", path, code, errs, out)
		}
		for line := range strings.Lines(out) {
			if n := displaywidth.String(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%v: %d columns: %s", path, n, line)
			}
		}
		_, list, _ := strings.Cut(out, "\nExamples:\n")
		for line := range strings.Lines(list) {
			words := strings.Fields(line)
			if !strings.HasPrefix(line, "   nodeskoop ") {
				continue
			}
			i := slices.IndexFunc(app.Commands, func(c *cli.Command) bool { return c.Name == words[1] })
			if i < 0 {
				t.Errorf("%v: there is no command %s: %s", path, words[1], line)
				continue
			}
			for _, w := range words[2:] {
				if w == ">" {
					break
				}
				name := strings.TrimLeft(w, "-")
				if w != name && !slices.ContainsFunc(app.Commands[i].Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }) {
					t.Errorf("%v: %s has no flag %s", path, words[1], w)
				}
			}
		}
	}
	for _, f := range commonFlags() { // distinguish them from a command's own flags
		if _, out, _ := call(t, "pods", "--help"); !strings.Contains(out[strings.Index(out, "\nFlags of every command:\n"):], "--"+f.Names()[0]) {
			t.Errorf("--%s is not among the flags of every command:\n%s", f.Names()[0], out)
		}
	}
}

// docs/commands.md names each command and each environment variable.
func TestCommandsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	app := newApp(io.Discard, io.Discard)
	flags := app.Flags
	for _, cmd := range app.Commands {
		if !cmd.Hidden && cmd.Name != "help" && !strings.Contains(string(b), "| `"+cmd.Name+"` |") {
			t.Errorf("the command %s is not in the table", cmd.Name)
		}
		flags = append(flags, cmd.Flags...)
	}
	for _, f := range flags {
		if e, ok := f.(cli.DocGenerationFlag); ok {
			for _, name := range e.GetEnvVars() {
				if !strings.Contains(string(b), "`"+name+"`") {
					t.Errorf("the environment variable %s is not listed", name)
				}
			}
		}
	}
}

// `nodeskoop help X` is `nodeskoop X --help`.
func TestHelpOfACommand(t *testing.T) {
	paths := [][]string{{}, {"docs", "man"}}
	for _, cmd := range newApp(io.Discard, io.Discard).Commands {
		paths = append(paths, []string{cmd.Name})
	}
	for _, path := range paths {
		code, want, errs := call(t, append(slices.Clone(path), "--help")...)
		if code != 0 || errs != "" || !strings.Contains(want, strings.Join(path, " ")) {
			t.Errorf("%v --help: exit %d, %q\n%s", path, code, errs, want)
		}
		if code, got, errs := call(t, append([]string{"help"}, path...)...); code != 0 || errs != "" || got != want {
			t.Errorf("help %v: exit %d, %q\n%s\nwant\n%s", path, code, errs, got, want)
		}
	}
	if code, out, errs := call(t, "docs"); code != 0 || errs != "" || !strings.Contains(out, "catalog") {
		t.Errorf("docs: exit %d, %q, %s", code, errs, out)
	}
}

func TestUnreadableConfigIsAFailure(t *testing.T) {
	for _, cmd := range []string{"run", "collect", "pods", "probes", "config"} {
		code, out, errs := call(t, cmd, "--config", "/nonexistent/x.toml")
		if code != exitFailure || !strings.Contains(errs, "/nonexistent/x.toml") || out != "" {
			t.Errorf("%s: exit %d, %q, %q", cmd, code, out, errs)
		}
	}
}

func TestFlagsBeforeAndAfterTheCommand(t *testing.T) {
	for _, args := range [][]string{
		{"--probe", "tcp,ip", "config"},
		{"config", "--probe", "tcp,ip"},
		{"--probe", "udp", "config", "--probe", "tcp,ip"},
	} {
		code, out, errs := call(t, append([]string{"--config", "/dev/null"}, args...)...)
		if code != 0 || !strings.Contains(out, "\nenabled = [\"ip\", \"tcp\"]\n") {
			t.Errorf("%v: exit %d, %s%s", args, code, out, errs)
		}
	}
	t.Setenv("NODESKOOP_PROBE", "sock")
	if _, out, _ := call(t, "config", "--config", "/dev/null"); !strings.Contains(out, "\nenabled = [\"sock\"]\n") {
		t.Errorf("NODESKOOP_PROBE was not read:\n%s", out)
	}
}

// A command that is interrupted says so, in words, and blames no probe.
func TestInterrupted(t *testing.T) {
	need.Root(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"collect", "--duration", "1h"}, "interrupted by a signal before it was done: nothing was written"},
		{[]string{"collect", "--wait", "1h"}, "interrupted by a signal before it was done: nothing was written"},
		{[]string{"diagnose", "--for", "10m"}, "interrupted before the 10m0s were over"},
	} {
		p := start(t, append(c.args, "--config", daemonConf(t, t.TempDir(), ""), "--probe", "tcp", "--log-level", "debug")...)
		testkit.Eventually(t, "it follows containerd", func() bool { return strings.Contains(p.logged(), "containerd") })
		p.signal(syscall.SIGTERM)
		code, said := p.ended(), p.logged()
		if code != exitFailure || !strings.Contains(said, c.want) || strings.Contains(said, "probe failed") || p.printed() != "" {
			t.Errorf("%v: exit %d, %s%s", c.args, code, said, p.printed())
		}
	}
}

// A sample from cron causes no mail if there is no problem.
func TestCollectIsQuiet(t *testing.T) {
	need.Root(t)
	if code, out, errs := call(t, "collect", "--config", "/dev/null", "--probe", "tcp,softnet"); code != 0 || errs != "" || !strings.Contains(out, "kubeskoop_tcp_insegs") {
		t.Errorf("exit %d, %q", code, errs)
	}
	if _, _, errs := call(t, "collect", "--config", "/dev/null", "--probe", "tcp", "--log-level", "info"); !strings.Contains(errs, "level=INFO") {
		t.Errorf("--log-level info: %q", errs)
	}
}

// The path in host_netns is checked before measuring in it.
func TestHostNetnsIsANamespace(t *testing.T) {
	for name, want := range map[string]string{"/etc/passwd": "is not a namespace", "/nonexistent": "no such file", "/proc/self/ns/mnt": "is a namespace of another kind"} {
		file := filepath.Join(t.TempDir(), "x.toml")
		if err := os.WriteFile(file, []byte("host_netns = \""+name+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, errs := call(t, "collect", "--config", file)
		if code != exitFailure || !strings.Contains(errs, "host_netns: "+name) || !strings.Contains(errs, want) || !strings.Contains(errs, "/proc/PID/ns/net") {
			t.Errorf("%s: exit %d, %q", name, code, errs)
		}
	}
}

func TestHelpAndDocs(t *testing.T) {
	code, out, _ := call(t)
	for _, c := range []string{"run", "collect", "pods", "probes", "config", "check", "docs"} {
		if code != 0 || !strings.Contains(out, "\n   "+c) {
			t.Errorf("exit %d, no %s in the help:\n%s", code, c, out)
		}
	}
	for page, want := range map[string]string{"metrics": "`kubeskoop_tcp_insegs`<br>counter per network namespace |", "events": "| biolatency | 10 ms to 100 ms |", "probes": "| `qdisc` |"} {
		if code, out, _ := call(t, "docs", page); code != 0 || !strings.Contains(out, want) {
			t.Errorf("docs %s: exit %d:\n%s", page, code, out)
		}
	}
}

func TestProbesListsAll(t *testing.T) {
	code, out, errs := call(t, "probes", "--json", "--config", "/dev/null")
	var rows []session.Probe
	if err := json.Unmarshal([]byte(out), &rows); err != nil || code != 0 || len(rows) != 23 {
		t.Fatalf("exit %d, %v, %d rows, %s", code, err, len(rows), errs)
	}
	for _, r := range rows {
		if !r.Works && r.Reason == "" {
			t.Errorf("%s does not work and does not say why", r.Probe)
		}
	}
}

// A reload reads the drop-in files again, including new ones; a mistake in one
// leaves the old configuration in effect.
func TestReloadReadsTheFolder(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	p := start(t, "run", "--config", daemonConf(t, dir, ""), "--probe", "tcp")
	testkit.Eventually(t, "it has started", func() bool { return strings.Contains(p.logged(), "wrote the first textfile") })
	own := filepath.Join(dir, "nodeskoop.d", "10-own.toml")
	if err := os.Mkdir(filepath.Dir(own), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(own, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGHUP)
	}
	write("[log]\nformat = 'yaml'\n")
	testkit.Eventually(t, "the mistake is named", func() bool { return strings.Contains(p.logged(), own+":2: log.format:") })
	write("[log]\nformat = 'json'\n")
	testkit.Eventually(t, "the log is JSON", func() bool { return strings.Contains(p.logged(), `"msg":"reloaded"`) })
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "the log is text again", func() bool { return strings.Contains(p.logged(), "msg=reloaded") })
}

// An obsolete key is reported at the start. The log's format follows the effective
// configuration, also after a reload.
func TestLogOfTheConfiguration(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	obsolete := "[probes.packetloss]\nmulticast = true\n"
	code, _, errs := call(t, "collect", "--config", conf(t, dir, obsolete), "--probe", "tcp")
	if code != 0 || !strings.Contains(errs, "multicast has no effect any more") {
		t.Errorf("exit %d, %q", code, errs)
	}
	p := start(t, "run", "--config", daemonConf(t, dir, ""), "--probe", "tcp")
	testkit.Eventually(t, "it has started", func() bool { return strings.Contains(p.logged(), "wrote the first textfile") })
	if strings.Contains(p.logged(), "{") {
		t.Error("the log is JSON before it was asked for")
	}
	daemonConf(t, dir, "[log]\nformat = 'json'\n")
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "the log is JSON", func() bool { return strings.Contains(p.logged(), `"msg":"reloaded"`) })
}
