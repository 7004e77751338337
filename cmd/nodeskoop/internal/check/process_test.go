package check

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/internal/quote"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// pretender starts a shell under another name, from a file of owner, as user, with
// arguments.
func pretender(t *testing.T, name string, owner, user int, mode os.FileMode, args ...string) (pid string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pretender")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, name)
	if err := errors.Join(os.WriteFile(exe, shell, 0o755), os.Chown(exe, owner, owner), os.Chmod(exe, mode), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"-s", "--"}, args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}}
	pid = strconv.Itoa(testkit.Hold(t, cmd).PID())
	// The process is ready when the kernel has closed its descriptors; the
	// arguments appear slightly later (load_elf_binary in fs/binfmt_elf.c).
	testkit.Eventually(t, "the pretender has its command line", func() bool {
		b, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		return strings.HasPrefix(string(b), exe+"\x00")
	})
	return pid
}

// verdictOn returns the finding on the given processes only, and the time taken.
func verdictOn(dir string, pids ...string) (Finding, time.Duration) {
	k := &checker{cfg: config.Default(), now: time.Now()}
	k.cfg.Textfile.Dir = dir
	start := time.Now()
	only := slices.DeleteFunc(k.exporterProcesses(), func(e runningExporter) bool { return !slices.Contains(pids, e.pid) })
	return k.judgeExporters(only), time.Since(start)
}

// A process's name alone earns no trust, and its text appears in no command.
func TestCheckDoubtsPretenders(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	const evil = "/tmp/$(touch /pwned)\x1b[2J"
	textfiles := func(dir string) string { return "--collector.textfile.directory=" + dir }
	for name, c := range map[string]struct {
		owner, user int
		mode        os.FileMode
		arg         string
		want        Verdict
		found       string
	}{
		"a user's own program":               {1000, 1000, 0o755, textfiles(evil), Warning, "its executable belongs to user 1000"},
		"a user's own that says this folder": {1000, 1000, 0o755, textfiles(dir), Warning, "its executable belongs to user 1000"},
		"a user who runs the system's":       {0, 1000, 0o755, textfiles(dir), Warning, "it is user 1000's"},
		"one that anybody may change":        {0, 0, 0o777, textfiles(dir), Warning, "others may write its executable"},
		"the system's":                       {0, 65534, 0o755, textfiles(dir), Good, "reads " + dir},
		"the system's, by a pattern":         {0, 0, 0o755, textfiles(filepath.Dir(filepath.Dir(dir)) + "/*/" + filepath.Base(dir)[:2] + "*"), Good, "which is " + dir},
		"another folder":                     {0, 0, 0o755, textfiles(evil), Bad, "not " + dir},
		"a pattern without end":              {0, 0, 0o755, textfiles("/*/*/*/*/*/*/*/*/*"), Warning, "too many names"},
		"a pattern through itself":           {0, 0, 0o755, textfiles("/proc/self/root/*/self/root/*/self/root/proc/*/root/*/x"), Bad, "not " + dir},
		"a folder relative to its own":       {0, 0, 0o755, textfiles("x/*"), Warning, "is relative to an unknown folder"},
	} {
		t.Run(name, func(t *testing.T) {
			pid := pretender(t, "node_exporter", c.owner, c.user, c.mode, c.arg)
			f, took := verdictOn(dir, pid)
			if f.Verdict != c.want || !strings.Contains(f.Found, c.found) || !strings.Contains(f.Found, "process "+pid+" ") {
				t.Errorf("%+v, want %s, %q", f, c.want, c.found)
			}
			if strings.Contains(f.Do, "pwned") || strings.ContainsAny(quote.SafeLine(f.Found), "\x1b") {
				t.Errorf("%+v", f)
			}
			if took > 2*maxPatternTime+5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	// Only the name: a different program that calls itself node_exporter.
	cmd := exec.Command("bash", "-c", `exec -a node_exporter sleep 1000`)
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	pid := strconv.Itoa(cmd.Process.Pid)
	testkit.Eventually(t, "the shell becomes the other program", func() bool {
		b, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		return strings.HasPrefix(string(b), "node_exporter\x00")
	})
	if f, _ := verdictOn(dir, pid); f.Verdict != Warning || !strings.Contains(f.Found, "none runs here") || !strings.Contains(f.Found, "calls itself node_exporter, but it runs /") {
		t.Errorf("%+v", f)
	}
	// Beside a real node_exporter, such processes have no effect.
	real := pretender(t, "prometheus-node-exporter", 0, 0, 0o755, textfiles(dir))
	fake := pretender(t, "node_exporter", 1000, 1000, 0o755, textfiles(evil))
	if f, _ := verdictOn(dir, pid, fake, real); f.Verdict != Good {
		t.Errorf("%+v", f)
	}
}

func TestCheckDoubtsDaemons(t *testing.T) {
	need.Root(t)
	k := &checker{cfg: config.Default(), now: time.Now()}
	config := filepath.Join(t.TempDir(), "x.toml")
	k.cfg.File = config
	for _, c := range []struct {
		owner, user int
		believed    bool
	}{{1000, 1000, false}, {0, 1000, false}, {0, 0, true}} {
		pid := pretender(t, "nodeskoop", c.owner, c.user, 0o755, "run", "--config", config)
		if got := k.daemon(); (strconv.Itoa(got) == pid) != c.believed || !c.believed && got != 0 {
			t.Errorf("%+v: the daemon is process %d, the pretender %s", c, got, pid)
		}
	}
}

func TestStartedBySystem(t *testing.T) {
	for text, want := range map[string]bool{
		"0::/kubepods.slice/kubepods-burstable.slice/x":               true,
		"12:cpu:/x\n1:name=systemd:/kubepods/burstable/y\n":           true,
		"0::/system.slice/docker-1234.scope\n":                        true,
		"0::/machine.slice/x\n":                                       true,
		"0::/user.slice/user-1000.slice/user@1000.service/kubepods\n": false,
		"0::/system.slice/cron.service\n":                             false,
		"0::/\n":                                                      false,
		"2:cpu:/kubepods/x\n":                                         false,
		"":                                                            false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/cgroup", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := (&checker{}).startedBySystem(dir); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// Entries that other users put into the folder are inspected, and opened only if
// they are regular files.
func TestOtherWritersOpensFilesOnly(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("kubeskoop_tcp_insegs 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const name = "$(touch pwned) '\x1b[2J.prom"
	for _, err := range []error{
		unix.Mkfifo(dir+"/fifo.prom", 0o644),
		// Opening such a device could rewind a tape or start a watchdog. No such
		// device exists here, so opening it would fail with a different error.
		unix.Mknod(dir+"/device.prom", unix.S_IFCHR|0o666, int(unix.Mkdev(9, 3))),
		os.Symlink(secret, dir+"/link.prom"),
		os.Symlink("/dev/zero", dir+"/zero.prom"),
		os.Mkdir(dir+"/folder.prom", 0o755),
		os.WriteFile(filepath.Join(dir, name), []byte("kubeskoop_tcp_insegs 1\n"), 0o644),
		os.WriteFile(dir+"/well.prom", []byte("x 1\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	k := &checker{cfg: config.Default(), now: time.Now(), uid: os.Geteuid()}
	k.cfg.Textfile.Dir = dir
	for file, want := range map[string]struct {
		Verdict
		found string
	}{
		"fifo.prom": {Bad, "not a regular file"}, "device.prom": {Bad, "not a regular file"}, "folder.prom": {Bad, "not a regular file"},
		"link.prom": {Warning, "is a symbolic link"}, "zero.prom": {Warning, "is a symbolic link"}, name: {Bad, "has metrics of this tool"}, "well.prom": {"", ""},
	} {
		var got []Finding
		for _, f := range k.otherWriters() {
			if strings.Contains(f.Found, filepath.Join(dir, file)) {
				got = append(got, f)
			}
		}
		if want.Verdict == "" {
			if len(got) > 0 {
				t.Errorf("%s: %+v", file, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Verdict != want.Verdict || !strings.Contains(got[0].Found, want.found) {
			t.Errorf("%s: %+v, want %+v", file, got, want)
		}
	}
	// The suggested commands name that file, and have no side effects.
	need.Program(t, "bash")
	for _, f := range k.otherWriters() {
		if i := strings.Index(f.Do, "rm "); i >= 0 && strings.Contains(f.Found, "pwned") {
			cmd := exec.Command("bash", "--norc", "-c", f.Do[i:])
			cmd.Dir = t.TempDir()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", f.Do[i:], err, out)
			}
			if left, _ := os.ReadDir(cmd.Dir); len(left) > 0 {
				t.Errorf("%s made %v", f.Do[i:], left)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
		t.Errorf("the command removed something else: %v", err)
	}
}

// A folder with very many files is read in part, and the finding says so.
func TestOtherWritersIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range maxOtherFiles + 5 {
		if err := os.WriteFile(fmt.Sprintf("%s/%04d.prom", dir, i), []byte("x 1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := &checker{cfg: config.Default(), now: time.Now()}
	k.cfg.Textfile.Dir = dir
	if f := k.otherWriters(); len(f) != 1 || f[0].Verdict != Warning || !strings.Contains(f[0].Found, "only the first 1000 ") {
		t.Errorf("%+v", f)
	}
}

func TestExporterCommandLine(t *testing.T) {
	for line, want := range map[string]string{
		"--collector.textfile.directory=/a":                                      "/a",
		"--web.listen-address=:1 --collector.textfile.directory /a":              "/a",
		"-collector.textfile.directory=/a --collector.textfile.directory=/b/*/c": "/a /b/*/c",
		"--collector.textfile":                                                   "",
		"":                                                                       "",
	} {
		if got := strings.Join(textfileDirs(strings.Fields(line)), " "); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
