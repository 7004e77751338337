package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/hang"
	"nodeskoop/internal/testkit/need"
)

// unread creates a pipe without a reader, of the smallest possible size.
func unread(t *testing.T) (w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return w
}

// cycleTime returns the start of the last cycle from the textfile; 0 if there is
// none.
func cycleTime(t *testing.T, file string) float64 {
	f := parseProm(t, file)["nodeskoop_last_cycle_timestamp_seconds"]
	if f == nil {
		return 0
	}
	return f.Metric[0].GetGauge().GetValue()
}

// goesOn waits for further cycles.
func goesOn(t *testing.T, file string) {
	t.Helper()
	for range 3 {
		last := cycleTime(t, file)
		testkit.Eventually(t, "sampling goes on", func() bool { return cycleTime(t, file) > last })
	}
}

func daemonConf(t *testing.T, dir, rest string) string {
	return conf(t, dir, fmt.Sprintf("interval = '1s'\n[textfile]\ndir = '%s'\n%s%s", dir, rest, noPods))
}

// A process that does not read the daemon's output, or does not answer it, blocks
// neither sampling nor the shutdown.
func TestDaemonWhomNobodyReads(t *testing.T) {
	need.Root(t)
	for name, prepare := range map[string]func(*testing.T, *exec.Cmd){
		"systemd's socket": func(t *testing.T, cmd *exec.Cmd) {
			path := filepath.Join(t.TempDir(), "notify")
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			out, err := net.DialUnix("unixgram", nil, c.LocalAddr().(*net.UnixAddr))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = out.Close() })
			for err == nil { // until it is full
				_ = out.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				_, err = out.Write([]byte("full"))
			}
			cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=2000000")
		},
		"standard error": func(t *testing.T, cmd *exec.Cmd) {
			cmd.Stderr = unread(t)
			cmd.Args = append(cmd.Args, "--log-level", "debug")
			_, _ = cmd.Stderr.(*os.File).Write(make([]byte, 4096)) // full
		},
		"standard output": func(t *testing.T, cmd *exec.Cmd) {
			cmd.Stdout = unread(t)
			cmd.Args = append(cmd.Args, "--foreground-events")
			_, _ = cmd.Stdout.(*os.File).Write(make([]byte, 4096)) // full
		},
		"nothing": func(*testing.T, *exec.Cmd) {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := begin(t, func(cmd *exec.Cmd) { prepare(t, cmd) }, "run", "--config", daemonConf(t, dir, ""), "--probe", "tcp,packetloss")
			file := filepath.Join(dir, "nodeskoop.prom")
			testkit.Eventually(t, "the textfile is there", func() bool { return cycleTime(t, file) > 0 })
			goesOn(t, file)
			p.signal(syscall.SIGHUP)
			goesOn(t, file)
			p.signal(syscall.SIGTERM)
			if code := p.ended(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if _, err := os.Stat(file); err == nil {
				t.Error("the textfile is left behind")
			}
		})
	}
}

// The reader of standard error may exit.
func TestDaemonWhoseReaderGoes(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := begin(t, func(cmd *exec.Cmd) { cmd.Stderr = w }, "run", "--config", daemonConf(t, dir, ""), "--probe", "tcp", "--log-level", "debug")
	r.Close()
	w.Close()
	file := filepath.Join(dir, "nodeskoop.prom")
	testkit.Eventually(t, "the textfile is there", func() bool { return cycleTime(t, file) > 0 })
	goesOn(t, file)
	p.signal(syscall.SIGTERM)
	if code := p.ended(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A hanging file system affects only the textfile: the loop runs, a signal ends the
// daemon, and once the file system answers, the file is up to date.
func TestTextfileOnAHungFileSystem(t *testing.T) {
	need.Root(t)
	for _, ends := range []bool{false, true} {
		dir, etc := t.TempDir(), t.TempDir()
		path := filepath.Join(etc, "nodeskoop.toml")
		if err := os.Rename(daemonConf(t, dir, ""), path); err != nil {
			t.Fatal(err)
		}
		p := start(t, "run", "--config", path, "--probe", "tcp")
		file := filepath.Join(dir, "nodeskoop.prom")
		testkit.Eventually(t, "the textfile is there", func() bool { return cycleTime(t, file) > 0 })
		last := cycleTime(t, file)
		release := hang.Open(t, dir)
		testkit.Eventually(t, "it is said", func() bool { return strings.Contains(p.logged(), "writing the values hangs") })
		if ends {
			p.signal(syscall.SIGTERM)
			if code := p.ended(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(p.logged(), "removing the textfile failed") {
				t.Error("it is not said that the file stays")
			}
			release()
			continue
		}
		// A reload with the same textfile needs no file system.
		p.signal(syscall.SIGHUP)
		testkit.Eventually(t, "a reload goes on", func() bool { return strings.Contains(p.logged(), "reloaded") })
		release()
		testkit.Eventually(t, "the file is fresh again", func() bool { return cycleTime(t, file) > last+1 })
		goesOn(t, file)
		if n := strings.Count(p.logged(), "writing the values hangs"); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
		p.signal(syscall.SIGTERM)
		if code := p.ended(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// A configuration path that is no file, is endless, or hangs is refused by each
// command, and does not block a daemon.
func TestConfigThatIsNoFile(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	pipe, long := filepath.Join(dir, "pipe.toml"), filepath.Join(dir, "long.toml")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(long, []byte(strings.Repeat("# a comment\n", 100_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{pipe: "a FIFO", "/dev/zero": "a device", long: "more than 262144 bytes", dir: "a folder"}
	for _, cmd := range []string{"run", "collect", "check", "config", "probes", "pods", "events", "top"} {
		for file, why := range bad {
			p := start(t, cmd, "--config", file)
			if code := p.ended(); code != exitFailure || !strings.Contains(p.logged()+p.printed(), why) || !strings.Contains(p.logged()+p.printed(), file) {
				t.Errorf("%s --config %s: exit %d, %s%s; want %q", cmd, file, code, p.logged(), p.printed(), why)
			}
		}
	}

	file := filepath.Join(dir, "nodeskoop.prom")
	cfg := daemonConf(t, dir, "")
	text, err := os.ReadFile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "run", "--config", cfg, "--probe", "tcp")
	testkit.Eventually(t, "the textfile is there", func() bool { return cycleTime(t, file) > 0 })
	for path, why := range bad {
		if err := os.Remove(cfg); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, cfg); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGHUP)
		testkit.Eventually(t, "the reload is refused: "+why, func() bool { return strings.Contains(p.logged(), why) })
		goesOn(t, file)
	}
	if err := os.Remove(cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg, text, 0o644); err != nil {
		t.Fatal(err)
	}
	release := hang.Open(t, cfg)
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "a file system that does not answer is said", func() bool { return strings.Contains(p.logged(), "the file system does not answer") })
	goesOn(t, file)
	release()
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "a reload goes on", func() bool { return strings.Contains(p.logged(), "reloaded") })
	p.signal(syscall.SIGTERM)
	if code := p.ended(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A second signal ends each command, whatever it waits for.
func TestSecondSignalEnds(t *testing.T) {
	need.Root(t)
	for _, args := range [][]string{
		{"collect", "--probe", "tcp"},
		{"events", "--json"},
		{"top", "--json", "--interval", "100ms"},
		{"probes", "--json"},
		{"check"},
		{"config"},
		{"docs", "metrics"},
		{"run"},
	} {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			if s == syscall.SIGINT && args[0] != "collect" && args[0] != "run" {
				continue
			}
			t.Run(args[0]+" "+s.String(), func(t *testing.T) {
				dir := t.TempDir()
				out := unread(t)
				_, _ = out.Write(make([]byte, 4096)) // full
				full := args
				if args[0] != "docs" {
					full = append(full[:len(full):len(full)], "--config", daemonConf(t, dir, ""))
				}
				p := begin(t, func(cmd *exec.Cmd) { cmd.Stdout = out }, full...)
				if args[0] == "run" {
					testkit.Eventually(t, "the textfile is there", func() bool { return cycleTime(t, filepath.Join(dir, "nodeskoop.prom")) > 0 })
					hang.Open(t, dir)
					time.Sleep(1500 * time.Millisecond) // the next write hangs; if it does not, the shutdown is clean
				} else {
					testkit.Eventually(t, "it waits for its reader", func() bool {
						return waitsIn(p.PID(), "pipe_w") || args[0] == "events" && strings.Contains(p.logged(), "Watching ")
					})
				}
				p.signal(s)
				// Two distinct signals, which the kernel must not merge.
				time.Sleep(200 * time.Millisecond)
				begin := time.Now()
				if err := p.Process.Process.Signal(s); err != nil && args[0] != "events" {
					t.Logf("it has ended already: %v", err)
				}
				code := p.ended()
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
				if want := 128 + int(s); code != want && args[0] != "events" && args[0] != "run" {
					t.Errorf("exit code %d, want %d", code, want)
				}
			})
		}
	}
}

// waitsIn reports whether a thread of the process waits in the kernel function.
func waitsIn(pid int, function string) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	for _, t := range tasks {
		if b, _ := os.ReadFile(t); strings.Contains(string(b), function) {
			return true
		}
	}
	return false
}

// One signal also ends a command that waits for a reader, within the limit.
func TestOneSignalEndsInTime(t *testing.T) {
	need.Root(t)
	need.Short(t)
	out := unread(t)
	p := begin(t, func(cmd *exec.Cmd) { cmd.Stdout = out }, "docs", "metrics")
	testkit.Eventually(t, "it waits for its reader", func() bool { return waitsIn(p.PID(), "pipe_w") })
	p.signal(syscall.SIGTERM)
	if code := p.ended(); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
}
