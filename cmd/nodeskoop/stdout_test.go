package main

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// printers are command lines that print without needing anything.
var printers = [][]string{
	{"--help"}, {"--version"}, {"config"}, {"config", "--default"}, {"probes"}, {"probes", "--json"}, {"check"}, {"check", "--json"},
	{"docs", "metrics"}, {"docs", "events"}, {"docs", "probes"}, {"docs", "man"}, {"docs", "man-config"}, {"docs", "bash"}, {"docs", "zsh"}, {"docs", "fish"}, {"docs", "catalog"},
	{"collect", "--probe", "tcp"}, {"collect", "--probe", "tcp", "-o", "-"}, {"collect", "--probe", "tcp", "-o", "/dev/stdout"},
	{"top", "--once", "--interval", "100ms", "--probe", "netdev"}, {"top", "--once", "--json", "--interval", "100ms", "--probe", "netdev"},
}

// execute runs the program as a process with standard output to out.
func execute(t *testing.T, out *os.File, args ...string) (code int, stderr string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "NODESKOOP_CONFIG=/dev/null")
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), errs.String()
}

// Failing to print is an error of every command.
func TestFullDiskIsAFailure(t *testing.T) {
	need.Root(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range printers {
		code, errs := execute(t, full, args...)
		if code != exitFailure || !strings.Contains(errs, "write to standard output: no space left on device: the output is incomplete") {
			t.Errorf("%v: exit %d, %q", args, code, errs)
		}
	}
}

// A reader that closes the pipe is no failure, and causes no message.
func TestClosedPipeIsNoFailure(t *testing.T) {
	need.Root(t)
	for _, args := range printers {
		if args[0] == "check" {
			continue // its exit code depends on findings
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		code, errs := execute(t, w, args...)
		w.Close()
		if code != 0 || strings.Contains(errs, "pipe") {
			t.Errorf("%v: exit %d, %q", args, code, errs)
		}
	}
}

func TestPrintedWhole(t *testing.T) {
	need.Root(t)
	for _, args := range printers {
		if args[0] == "check" || args[0] == "probes" {
			continue // may print to standard error
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		code, errs := execute(t, out, args...)
		fi, err := out.Stat()
		out.Close()
		if code != 0 || errs != "" || err != nil || fi.Size() == 0 {
			t.Errorf("%v: exit %d, %q, %d bytes", args, code, errs, fi.Size())
		}
	}
}

// /dev/stdout may be a file: it is written, not replaced, and its earlier content
// stays.
func TestOutputIsStandardOutput(t *testing.T) {
	need.Root(t)
	for _, name := range []string{"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/../dev/stdout"} {
		path := filepath.Join(t.TempDir(), "out")
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.WriteString("# before\n"); err != nil {
			t.Fatal(err)
		}
		code, errs := execute(t, out, "collect", "--probe", "tcp", "-o", name)
		before, err := out.Stat()
		out.Close()
		now, err2 := os.Stat(path)
		text, err3 := os.ReadFile(path)
		if code != 0 || errs != "" || err != nil || err2 != nil || err3 != nil || !os.SameFile(before, now) {
			t.Errorf("-o %s: exit %d, %q, %v %v %v", name, code, errs, err, err2, err3)
		}
		if !regexp.MustCompile(`(?s)^# before\n# HELP .*kubeskoop_tcp_insegs\{.*\n$`).Match(text) {
			t.Errorf("-o %s: %.200q", name, text)
		}
	}
}

// -o replaces regular files only.
func TestOutputRefusesWhatIsNoFile(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	for _, c := range []struct{ make, name, want string }{
		{"mknod NAME c 1 3", "null", "a character device"},
		{"mkfifo NAME", "fifo", "a FIFO"},
		{"ln -s null NAME", "link", "a character device"},
		{"ln -s /dev/stdout NAME", "stdout", "open file of a process"},
		{":", "/dev/fd/2", "procfs"},
	} {
		path := c.name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, c.name)
		}
		if out, err := exec.Command("sh", "-c", strings.ReplaceAll(c.make, "NAME", path)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		before, err := os.Lstat(path)
		if err != nil && path != "/dev/fd/2" {
			t.Fatal(err)
		}
		code, out, errs := call(t, "collect", "--config", "/dev/null", "--probe", "tcp", "-o", path)
		if code != exitFailure || out != "" || !strings.Contains(errs, c.want) || !strings.Contains(errs, path) || !strings.Contains(errs, "-o - is standard output") {
			t.Errorf("%s: exit %d, %q, %q", path, code, out, errs)
		}
		if after, err := os.Lstat(path); before != nil && (err != nil || after.Mode() != before.Mode() || !os.SameFile(before, after)) {
			t.Errorf("%s is %v now, %v", path, after.Mode(), err)
		}
	}
	// Relative names, and a folder behind a link, work too.
	t.Chdir(dir)
	if err := os.Mkdir("real", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", "folder"); err != nil {
		t.Fatal(err)
	}
	for o, file := range map[string]string{"x.prom": "x.prom", "./y.prom": "y.prom", "folder": "real/nodeskoop.prom", "folder/": "real/nodeskoop.prom", "folder/z.prom": "real/z.prom", "./-": "-"} {
		if code, _, errs := call(t, "collect", "--config", "/dev/null", "--probe", "tcp", "-o", o); code != 0 || errs != "" {
			t.Errorf("%s: exit %d, %q", o, code, errs)
		}
		if fi, err := os.Lstat(file); err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 {
			t.Errorf("%s: %v", o, err)
		}
	}
}

// watching runs `nodeskoop events` with standard output to out, and calls knock,
// which causes one event, until the program exits.
func watching(t *testing.T, out *os.File, knock func()) (code int, stderr string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "events", "--config", "/dev/null", "--probe", "tcpreset", "--event", "TCPRESET_NOSOCK")
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer func() { _ = cmd.Process.Kill(); <-ended }()
	testkit.Eventually(t, "nodeskoop events ends by itself", func() bool {
		knock()
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	return cmd.ProcessState.ExitCode(), errs.String()
}

// If events cannot be printed, the command ends.
func TestEventsIntoAFullDisk(t *testing.T) {
	need.Root(t)
	s := nsnet.New(t)
	knock := func() {
		s.Do(func() {
			if c, err := net.Dial("tcp", "127.0.0.1:9"); err == nil {
				c.Close()
			}
		})
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	code, errs := watching(t, full, knock)
	if code != exitFailure || !regexp.MustCompile(`no space left on device.*; [1-9][0-9]* events are missing`).MatchString(errs) {
		t.Errorf("exit %d, %q", code, errs)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r)
	first := make(chan string, 1)
	go func() { // like head -n 1
		line, _ := lines.ReadString('\n')
		r.Close()
		first <- line
	}()
	code, errs = watching(t, w, knock)
	w.Close()
	if line := <-first; code != 0 || strings.Contains(errs, "pipe") || strings.Contains(errs, "missing") || !strings.Contains(line, "TCPRESET_NOSOCK") {
		t.Errorf("exit %d, %q, line %q", code, errs, line)
	}
}
