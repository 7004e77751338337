package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/check"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/terminal"
)

// checkIn runs check as a child of another program, and returns its findings by
// name.
func checkIn(t *testing.T, config string, under ...string) (map[string][]check.Finding, int) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	args := append(under, path, "check", "--json", "--config", config)
	cmd := exec.Command(args[0], args[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var list []check.Finding
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs.String())
	}
	by := map[string][]check.Finding{}
	for _, f := range list {
		by[f.Check] = append(by[f.Check], f)
		if f.Verdict == check.Bad && f.Do == "" {
			t.Errorf("%+v does not say what to do", f)
		}
		if strings.Contains(f.Found+f.Do, "MEMLOCK") {
			t.Errorf("a hint that misleads: %+v", f)
		}
	}
	return by, cmd.ProcessState.ExitCode()
}

func configFor(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nodeskoop.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "[textfile]\ndir = %q\n", dir), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCheckWithoutCapabilities(t *testing.T) {
	need.Root(t)
	need.Program(t, "setpriv")
	config := configFor(t, t.TempDir())
	for _, c := range []struct {
		drop string
		want map[string]string // expected failing or warning findings, with their texts
	}{
		{"-sys_admin,-bpf", map[string]string{"CAP_SYS_ADMIN": "missing", "CAP_BPF": "missing", "4 probes": "the process lacks CAP_BPF"}},
		{"-sys_admin,-perfmon", map[string]string{"CAP_PERFMON": "missing", "probe packetloss": "or dropped packets (kfree_skb): not permitted: the process lacks CAP_PERFMON"}},
		{"-sys_ptrace", map[string]string{"CAP_SYS_PTRACE": "missing", "probe io": "CAP_SYS_PTRACE"}},
		{"-dac_read_search,-dac_override", map[string]string{"CAP_DAC_READ_SEARCH": "missing", "probe fd": "CAP_DAC_READ_SEARCH"}},
		{"-net_admin", map[string]string{"CAP_NET_ADMIN": "missing"}},
		{"-syslog", map[string]string{"CAP_SYSLOG": "missing"}},
	} {
		t.Run(c.drop, func(t *testing.T) {
			by, code := checkIn(t, config, "setpriv", "--bounding-set", c.drop, "--inh-caps", "-all")
			failed := false
			for name, text := range c.want {
				f := by[name]
				if len(f) != 1 || f[0].Verdict == check.Good || !strings.Contains(f[0].Found, text) {
					t.Errorf("%s: %+v, want %q", name, f, text)
					continue
				}
				failed = failed || f[0].Verdict == check.Bad
			}
			if want := map[bool]int{true: exitFailure}[failed]; code != want && failed {
				t.Errorf("exit %d, want %d", code, want)
			}
		})
	}
}

func TestCheckOfABadConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte("interval = 5\nnonsense = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := call(t, "check", "--config", file)
	if code != exitFailure || errs != "" || !strings.Contains(out, "FAIL  configuration") || !strings.Contains(out, file+":1: interval") || !strings.Contains(out, file+":2: nonsense") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs := call(t, "check", "--probe", "ping"); code != exitUsage || out != "" || !strings.Contains(errs, `unknown probe "ping"`) {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestCheckWithoutRoot(t *testing.T) {
	need.Root(t)
	need.Program(t, "setpriv")
	config := configFor(t, "/var/lib")
	for _, p := range []string{filepath.Dir(config), buildDirOf(t)} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The parents of t.TempDir also belong to the test's user.
	if err := os.Chmod(filepath.Dir(filepath.Dir(config)), 0o755); err != nil {
		t.Fatal(err)
	}
	by, code := checkIn(t, config, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
	if code != exitFailure || len(by["CAP_BPF"]) != 1 || by["CAP_BPF"][0].Verdict != check.Bad || len(by["textfile folder"]) != 1 || by["textfile folder"][0].Verdict != check.Bad {
		t.Errorf("exit %d, %+v", code, by)
	}
}

func buildDirOf(t *testing.T) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(path)
}

func TestCheckFoldersThatCannotBeWritten(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare", "mount")
	dir := t.TempDir()
	config := configFor(t, dir)
	for _, c := range []struct{ name, options, found, do string }{
		{"read-only", "ro", "read-only file system", "ReadWritePaths"},
		{"full", "size=4k", "no space left", "df -h"},
		{"no inode left", "nr_inodes=1", "no space left", "df"},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := fmt.Sprintf(`mount -t tmpfs -o %s x %s && exec "$@"`, c.options, dir)
			by, code := checkIn(t, config, "unshare", "-m", "sh", "-c", script, "sh")
			f := by["textfile folder"]
			if code != exitFailure || len(f) != 1 || f[0].Verdict != check.Bad || !strings.Contains(f[0].Found, c.found) || !strings.Contains(f[0].Do, c.do) {
				t.Errorf("exit %d, %+v", code, f)
			}
		})
	}
	by, code := checkIn(t, configFor(t, filepath.Join(dir, "absent")))
	if f := by["textfile folder"]; code != exitFailure || len(f) != 1 || !strings.Contains(f[0].Found, "does not exist") {
		t.Errorf("exit %d, %+v", code, f)
	}
}

// Another writer of the same metrics: a file that script mode wrote.
func TestCheckSeesAnotherWriter(t *testing.T) {
	need.Root(t)
	other := t.TempDir()
	config := configFor(t, other)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "collect", "--config", config, "--probe", "tcp,udp", "-o", filepath.Join(other, "scan.prom")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	by, code := checkIn(t, config)
	if f := by["other writers"]; code != exitFailure || len(f) != 1 || f[0].Verdict != check.Bad || !strings.Contains(f[0].Found, "scan.prom, by nodeskoop in another mode") {
		t.Errorf("exit %d, %+v", code, f)
	}
}

func TestCheckInATerminal(t *testing.T) {
	need.Short(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range []string{"NO_COLOR=", "NO_COLOR=1"} {
		x, err := terminal.Start(100, 100, []string{env}, path, "check", "--config", "/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.End(60 * time.Second); err != nil {
			t.Error(err)
		}
		text, picture := x.Text(), x.SVG("check")
		x.Close()
		if !strings.Contains(text, " checks: ") {
			t.Errorf("no summary:\n%s", text)
		}
		// The picture contains green only if the program printed it.
		if coloured := strings.Contains(picture, terminal.Green); coloured != (env == "NO_COLOR=") {
			t.Errorf("%s: coloured: %v", env, coloured)
		}
	}
}
