package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/need"
)

// program is the real nodeskoop.
func program(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("NODESKOOP_TEST_BINARY"); p != "" {
		return p
	}
	need.Program(t, "go")
	p := filepath.Join(t.TempDir(), "nodeskoop")
	if out, err := exec.Command("go", "build", "-o", p, "nodeskoop/cmd/nodeskoop").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return p
}

// row is the part of `nodeskoop probes --json` that a test reads.
type row struct {
	Probe, Source, Reason, Hook string
	Works                       bool
}

// finding is the part of `nodeskoop check --json` that a test reads.
type finding struct{ Check, Verdict, Found, Do string }

// command runs nodeskoop, without type information if hidden, and returns its
// standard output and its exit code.
func command(t *testing.T, hidden bool, args ...string) ([]byte, int) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	if hidden {
		cmd = exec.Command("sh", append([]string{"-c", `mount -t tmpfs none /sys/kernel/btf && exec "$@"`, "sh"}, args...)...)
		cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "STATE_DIRECTORY="+cmd.Dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	t.Logf("%v: exit code %d, standard error: %s", args[1:], cmd.ProcessState.ExitCode(), &stderr)
	return out, cmd.ProcessState.ExitCode()
}

// refused runs nodeskoop on a kernel that refuses eBPF programs. It checks that the
// other probes work and that the output says what is wrong. It returns the eBPF
// probes that work all the same.
func refused(t *testing.T, hidden bool, reason string) (working []string) {
	t.Helper()
	need.Root(t)
	nodeskoop := program(t)
	config := filepath.Join(t.TempDir(), "none.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := command(t, hidden, nodeskoop, "probes", "--json", "--config", config)
	var rows []row
	if err := json.Unmarshal(out, &rows); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	tracing := 0
	for _, r := range rows {
		info := catalog.ProbeByName(r.Probe)
		if info.Source != catalog.EBPF {
			// Ignore processes that the kernel hides from everyone.
			if !r.Works {
				t.Errorf("%s does not work: %s", r.Probe, r.Reason)
			}
			continue
		}
		tracing++
		switch {
		case r.Works && r.Hook != "":
			working = append(working, r.Probe)
		case r.Works:
			t.Errorf("%s works by no hook", r.Probe)
		case !strings.Contains(r.Reason, reason):
			t.Errorf("%s: %q does not say %q", r.Probe, r.Reason, reason)
		case strings.Contains(r.Reason, "MEMLOCK") || strings.Contains(r.Reason, "load program: "):
			t.Errorf("%s: %q tells of something else", r.Probe, r.Reason)
		default:
			t.Logf("%s: %s", r.Probe, r.Reason)
		}
	}
	if len(rows) != 23 || tracing != 10 {
		t.Errorf("%d probes, %d of them by eBPF", len(rows), tracing)
	}
	text, _ := command(t, hidden, nodeskoop, "probes", "--config", config)
	if want := " is not supported here: "; tracing > len(working) && (strings.Count(string(text), want) != tracing-len(working) || !strings.Contains(string(text), reason)) {
		t.Errorf("the table does not name %d probes and %q:\n%s", tracing-len(working), reason, text)
	}

	// The other probes' series are complete. A probe that the machine cannot run is
	// a failure only if it was requested by name.
	out, code = command(t, hidden, nodeskoop, "collect", "--probe", "all", "--config", config)
	if code != 0 {
		t.Errorf("collect: exit code %d, want 0", code)
	}
	for _, r := range rows {
		series := func(metric string, value int) bool {
			return regexp.MustCompile(fmt.Sprintf(`(?m)^%s\{.*probe="%s"\} %d$`, metric, r.Probe, value)).Match(out)
		}
		switch {
		case r.Works:
			if !series("nodeskoop_probe_supported", 1) || !series("nodeskoop_probe_up", 1) {
				t.Errorf("%s works, and is not supported and up", r.Probe)
			}
		case !series("nodeskoop_probe_supported", 0) || series("nodeskoop_probe_up", 0) || series("nodeskoop_probe_up", 1):
			t.Errorf("%s is not marked as not supported, or as up or down", r.Probe)
		}
	}
	if i := slices.IndexFunc(rows, func(r row) bool { return !r.Works }); i >= 0 {
		if _, code := command(t, hidden, nodeskoop, "collect", "--probe", "tcp,"+rows[i].Probe, "--config", config); code != 3 {
			t.Errorf("collect of %s by name: exit code %d, want 3", rows[i].Probe, code)
		}
	}
	series := 0
	for _, p := range catalog.Probes() {
		works := p.Source != catalog.EBPF || slices.Contains(working, p.Name)
		for _, m := range p.Metrics {
			has := bytes.Contains(out, []byte("\n# TYPE "+m.Name+" ")) || bytes.HasPrefix(out, []byte("# TYPE "+m.Name+" "))
			if works && len(m.Labels) == 0 && !has {
				t.Errorf("collect does not give %s of %s", m.Name, p.Name)
			}
			if has {
				series++
			}
		}
	}
	t.Logf("%d families, and by eBPF: %v", series, working)
	return working
}

// checked runs `nodeskoop check` and returns the finding with a name. It checks
// that the finding has the verdict, and advice.
func checked(t *testing.T, hidden bool, about string) finding {
	t.Helper()
	out, _ := command(t, hidden, program(t), "check", "--json", "--config", os.DevNull)
	var findings []finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range findings {
		t.Logf("%s %s: %s -> %s", f.Verdict, f.Check, f.Found, f.Do)
	}
	i := slices.IndexFunc(findings, func(f finding) bool { return f.Check == about })
	if i < 0 {
		t.Fatalf("check says nothing about %s: %s", about, out)
	}
	if findings[i].Verdict == "ok" || findings[i].Do == "" {
		t.Errorf("%+v is no warning with an advice", findings[i])
	}
	for _, f := range findings {
		if strings.HasPrefix(f.Check, "probe") && f.Verdict == "FAIL" && f.Do == "" {
			t.Errorf("%+v does not say what to do", f)
		}
	}
	return findings[i]
}

// TestNoBTF hides the kernel's type information, without which no eBPF program can
// be loaded.
func TestNoBTF(t *testing.T) {
	need.Program(t, "sh", "mount")
	const reason = "the kernel has no type information (no /sys/kernel/btf/vmlinux; it needs CONFIG_DEBUG_INFO_BTF)"
	if working := refused(t, true, reason); len(working) > 0 {
		t.Errorf("%v work without type information", working)
	}
	if f := checked(t, true, "BTF"); !strings.Contains(f.Found, "/sys/kernel/btf") {
		t.Errorf("%+v", f)
	}
}

// TestLockdown runs on a kernel under lockdown, which keeps eBPF programs from
// reading its memory.
func TestLockdown(t *testing.T) {
	state, err := os.ReadFile("/sys/kernel/security/lockdown")
	if os.Getenv("NODESKOOP_TEST_VM") == "lockdown" && (err != nil || !strings.Contains(string(state), "[confidentiality]")) {
		t.Fatalf("this VM was to be locked down: %q %v", state, err)
	}
	need.Kernel(t, strings.Contains(string(state), "[confidentiality]"), "not booted with lockdown=confidentiality")
	working := refused(t, false, "lockdown")
	f := checked(t, false, "lockdown")
	if !strings.Contains(f.Found, "confidentiality") {
		t.Errorf("%+v", f)
	}
	t.Logf("under lockdown=confidentiality these eBPF probes work: %v", working)
}
