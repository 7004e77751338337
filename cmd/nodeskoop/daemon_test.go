package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// binary builds the program once.
var binary = testkit.Build

func TestMain(m *testing.M) {
	if dir := os.Getenv(profileEnv); dir != "" {
		os.Exit(profiled(dir))
	}
	if minute := os.Getenv(minuteEnv); minute != "" {
		os.Exit(withMinute(minute))
	}
	if length := os.Getenv(escalateEnv); length != "" {
		os.Exit(withEscalation(length))
	}
	os.Exit(testkit.Main(m))
}

// program is a running nodeskoop.
type program struct {
	*testkit.Process
	t   *testing.T
	out testkit.Log
}

func (p *program) printed() string { return p.out.String() }

func (p *program) logged() string { return p.Log.String() }

// start runs the program and kills it at the end of the test.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	return begin(t, func(*exec.Cmd) {}, args...)
}

// begin starts the program after prepare, and kills it at the end of the test.
// Output that prepare does not redirect goes to the program's log.
func begin(t *testing.T, prepare func(*exec.Cmd), args ...string) *program {
	t.Helper()
	p := &program{t: t}
	cmd := exec.Command(testkit.Nodeskoop(t), args...)
	cmd.Stdout = &p.out
	prepare(cmd)
	p.Process = testkit.Start(t, cmd)
	return p
}

func (p *program) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.Process.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ended waits for the program to exit and returns its exit code.
func (p *program) ended() int {
	p.t.Helper()
	if !testkit.Within(testkit.Patience, p.Ended) {
		p.t.Fatalf("it does not end:\n%s", p.logged())
	}
	return p.ProcessState.ExitCode()
}

// parseProm reads an exposition, nil if there is none.
func parseProm(t testing.TB, path string) map[string]*dto.MetricFamily {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	fams, err := p.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return fams
}

// conf writes a configuration and returns its path.
func conf(t testing.TB, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, "nodeskoop.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const noPods = "\n[pods]\nsockets = [\"/nonexistent/containerd.sock\"]\n"

func TestDaemonLivesAndEnds(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "n.prom")
	text := func(interval, rest string) string {
		return fmt.Sprintf("node_name = 'n1'\ninterval = '%s'\n[textfile]\ndir = '%s'\nfile = 'n.prom'\n%s%s", interval, dir, rest, noPods)
	}
	cfg := conf(t, dir, text("1s", ""))
	p := start(t, "run", "--config", cfg)
	testkit.Eventually(t, "the textfile is there", func() bool { return parseProm(t, file) != nil })
	fams := parseProm(t, file)
	for name := range fams {
		for _, m := range fams[name].Metric {
			l := map[string]string{}
			for _, x := range m.Label {
				l[x.GetName()] = x.GetValue()
			}
			owner := l["k8s_namespace"]
			if l["k8s_node"] != "n1" || owner != "hostNetwork" && owner != "unknown" || l["k8s_pod"] != owner {
				t.Errorf("%s: labels %v", name, l)
			}
		}
	}
	first := fams["nodeskoop_last_cycle_timestamp_seconds"].Metric[0].GetGauge().GetValue()
	testkit.Eventually(t, "the file is refreshed", func() bool {
		return parseProm(t, file)["nodeskoop_last_cycle_timestamp_seconds"].Metric[0].GetGauge().GetValue() > first
	})

	// A second daemon on the same file refuses.
	second := start(t, "run", "--config", cfg)
	if code := second.ended(); code != exitFailure || !strings.Contains(second.logged(), "n.prom") {
		t.Errorf("a second daemon on the same file: exit %d, %s", code, second.logged())
	}

	// A mistake is reported and leaves the old configuration in effect.
	conf(t, dir, text("1s", "keeep = true\n"))
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "the mistake is logged", func() bool { return strings.Contains(p.logged(), "keeep: unknown key") })
	if parseProm(t, file) == nil {
		t.Error("a refused reload lost the textfile")
	}

	// A valid change takes effect.
	moved := filepath.Join(dir, "moved.prom")
	conf(t, dir, strings.Replace(text("1s", "[metrics]\nexclude = ['kubeskoop_tcpext_*']\n"), "n.prom", "moved.prom", 1))
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "the new file is there and the old one gone", func() bool {
		return parseProm(t, moved) != nil && parseProm(t, file) == nil
	})
	fams = parseProm(t, moved)
	if fams["kubeskoop_tcpext_tcptimeouts"] != nil || fams["kubeskoop_tcp_insegs"] == nil {
		t.Error("the reload did not change what is left out")
	}

	p.signal(syscall.SIGTERM)
	if code := p.ended(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*.prom"))
	hidden, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left)+len(hidden) > 0 {
		t.Errorf("left behind: %v %v", left, hidden)
	}
}

func TestDaemonKeepsTheFileOnRequest(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	cfg := conf(t, dir, fmt.Sprintf("[textfile]\ndir = '%s'\nkeep = true%s", dir, noPods))
	p := start(t, "run", "--config", cfg)
	file := filepath.Join(dir, "nodeskoop.prom")
	testkit.Eventually(t, "the textfile is there", func() bool { return parseProm(t, file) != nil })
	p.signal(syscall.SIGINT)
	if code := p.ended(); code != 0 || parseProm(t, file) == nil {
		t.Errorf("exit %d, file kept: %v", code, parseProm(t, file) != nil)
	}
}

// Two signals in a row, as timeout(1) sends them, leave no stale textfile either.
func TestDaemonRemovesTheFileAtOnce(t *testing.T) {
	need.Root(t)
	for keep, left := range map[string]bool{"": false, "keep = true\n": true} {
		for range 5 {
			dir := t.TempDir()
			file := filepath.Join(dir, "nodeskoop.prom")
			p := start(t, "run", "--probe", "tcp", "--config", conf(t, dir, fmt.Sprintf("[textfile]\ndir = '%s'\n%s%s", dir, keep, noPods)))
			testkit.Eventually(t, "the textfile is there", func() bool { return parseProm(t, file) != nil })
			p.signal(syscall.SIGHUP)
			p.signal(syscall.SIGTERM)
			p.signal(syscall.SIGINT)
			if code := p.ended(); code != 0 && code != 128+int(syscall.SIGINT) && code != 128+int(syscall.SIGTERM) {
				t.Errorf("exit code %d", code)
			}
			if (parseProm(t, file) != nil) != left {
				t.Errorf("%q: the textfile is left: %v, want %v", keep, !left, left)
			}
		}
	}
}

// However often the daemon is killed while writing, readers find a complete file,
// and the next start cleans up temporary files.
func TestDaemonKilledAgainAndAgain(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	cfg := conf(t, dir, fmt.Sprintf("[textfile]\ndir = '%s'%s", dir, noPods))
	file := filepath.Join(dir, "nodeskoop.prom")
	for i := range 15 {
		p := start(t, "run", "--config", cfg)
		time.Sleep(time.Duration(20+11*i) * time.Millisecond)
		p.signal(syscall.SIGKILL)
		<-p.Done()
		parseProm(t, file)
	}
	p := start(t, "run", "--config", cfg)
	testkit.Eventually(t, "the file is written after all that", func() bool { return strings.Contains(p.logged(), "wrote the first textfile") })
	p.signal(syscall.SIGTERM)
	p.ended()
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDaemonRefusesBadConfig(t *testing.T) {
	dir := t.TempDir()
	p := start(t, "run", "--config", conf(t, dir, "\n[probes]\nenabled = ['nonsense']\n"))
	if code := p.ended(); code != exitFailure || !strings.Contains(p.logged(), "nodeskoop.toml:3: probes.enabled: unknown probe \"nonsense\"") {
		t.Errorf("exit %d: %s", code, p.logged())
	}
}

// The folder may appear later, and disappear.
func TestDaemonWaitsForItsFolder(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	folder := filepath.Join(dir, "late")
	p := start(t, "run", "--config", conf(t, dir, fmt.Sprintf("interval = '1s'\n[textfile]\ndir = '%s'%s", folder, noPods)))
	testkit.Eventually(t, "the missing folder is logged", func() bool { return strings.Contains(p.logged(), "writing the textfile failed") })
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the file is there", func() bool { return parseProm(t, filepath.Join(folder, "nodeskoop.prom")) != nil })
	fams := parseProm(t, filepath.Join(folder, "nodeskoop.prom"))
	if v := fams["nodeskoop_textfile_write_failures_total"].Metric[0].GetCounter().GetValue(); v < 1 {
		t.Errorf("%v failures counted", v)
	}
	if n := strings.Count(p.logged(), "writing the textfile failed"); n != 1 {
		t.Errorf("the failure was logged %d times", n)
	}
}

func TestCollectIsAScript(t *testing.T) {
	need.Root(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := conf(t, dir, noPods)
	var out, errs bytes.Buffer
	cmd := exec.Command(path, "collect", "--config", cfg)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	s := bufio.NewScanner(bytes.NewReader(out.Bytes()))
	for s.Scan() {
		if l := s.Text(); !strings.HasPrefix(l, "# HELP ") && !strings.HasPrefix(l, "# TYPE ") && !strings.HasPrefix(l, "kubeskoop_") && !strings.HasPrefix(l, "nodeskoop_") {
			t.Errorf("on standard output: %q", l)
		}
	}
	if !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
		t.Error("no newline at the end")
	}

	for _, o := range []string{filepath.Join(dir, "x.prom"), dir + "/", dir} {
		if out, err := exec.Command(path, "collect", "--config", cfg, "-o", o).CombinedOutput(); err != nil {
			t.Errorf("-o %s: %v\n%s", o, err, out)
		}
	}
	for _, f := range []string{"x.prom", "nodeskoop.prom"} {
		if parseProm(t, filepath.Join(dir, f))["kubeskoop_tcp_insegs"] == nil {
			t.Errorf("%s was not written", f)
		}
	}

	// A probe without privileges is named, the others' values are written, exit
	// code 3.
	need.Program(t, "setpriv")
	cmd = exec.Command("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin", path, "collect", "--config", cfg, "--probe", "tcp,flow")
	out.Reset()
	errs.Reset()
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitPartial || !strings.Contains(errs.String(), "flow") || !strings.Contains(errs.String(), "CAP_BPF") || !strings.Contains(out.String(), "kubeskoop_tcp_insegs") {
		t.Errorf("%v, %s", err, &errs)
	}
	// A full device on standard output is a failure.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd = exec.Command(path, "collect", "--config", cfg)
	errs.Reset()
	cmd.Stdout, cmd.Stderr = full, &errs
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure || !strings.Contains(errs.String(), "standard output") {
		t.Errorf("%v, %s", err, &errs)
	}
}
