// Package install proves that the packages do on a node what the documentation
// says. They are installed with apt on a Debian system with real systemd,
// node_exporter, Prometheus, and containerd with pods. The installed program must
// report the caused events, survive restarts of every service that it uses,
// upgrade, and leave nothing behind when removed. The system is a container with
// systemd as its process 1.
//
// `make test-install` builds the packages and runs the test, and passes the
// packages in NODESKOOP_INSTALL_DEB and NODESKOOP_INSTALL_RPM; without these it is
// skipped. It needs root, systemd-nspawn, nsenter and tar, and the first time
// mmdebstrap and a Debian mirror (make-root).
package install

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == filepath.Base(causeProgram) {
		causeMain()
	}
	os.Exit(m.Run())
}

const (
	unit     = "nodeskoop.service"
	conffile = "/etc/nodeskoop/nodeskoop.toml"
	textfile = "/var/lib/prometheus/node-exporter/nodeskoop.prom"
	node     = "node-1" // the machine's host name
)

// stage is one step of the test. Each builds on the state that the previous ones
// left.
type stage struct {
	name string
	run  func(*suite)
}

// suite is the machine and what runs on it.
type suite struct {
	*machine
	*testing.T

	deb    string // the package, as the machine sees it
	older  string // the package as an earlier version; newer is a later one with another conffile
	newer  string
	before []string // the machine's files before the first installation
	ctd    *pods.Containerd
	web    *pods.Pod
	client *pods.Pod
	agent  *pods.Pod
	probes []probeRow
	rules  []string // the shipped rules, as given to Prometheus
}

// stages are the proof, in its order.
var stages = []stage{
	{"apt installs it and the service is ready", (*suite).install},
	{"pods of containerd", (*suite).runPods},
	{"a reload enables every probe", (*suite).enableAll},
	{"the scrape has every metric of the contract", (*suite).scrapeContract},
	{"events caused in pods are in the journal", (*suite).causeEvents},
	{"catalog and journalctl -x", (*suite).explain},
	{"what the rate limit keeps back is counted", (*suite).flood},
	{"an alert fires, and lost events are counted", (*suite).alert},
	{"dashboards have data", (*suite).dashboards},
	{"the original's panels have data", (*suite).originalPanels},
	{"neighbours restart under load", (*suite).restarts},
	{"the watchdog", (*suite).watchdog},
	{"a journal of its own", (*suite).logNamespace},
	{"upgrade and downgrade", (*suite).upgrade},
	{"script mode", (*suite).scriptMode},
	{"remove and purge", (*suite).purge},
	{"the rpm", (*suite).rpmPackage},
}

func TestInstall(t *testing.T) {
	need.Target(t, "test-install", os.Getenv("NODESKOOP_INSTALL_DEB") != "")
	s := &suite{T: t}
	s.machine = boot(t, s.prepare)
	t.Cleanup(func() {
		if t.Failed() && !s.off {
			s.diagnose(t)
		}
	})
	only := os.Getenv("NODESKOOP_INSTALL_ONLY") // numbers of stages, to work on one
	for i, st := range stages {
		if only != "" && !slices.Contains(strings.Split(only, ","), strconv.Itoa(i)) {
			continue
		}
		t.Logf("== %d: %s", i, st.name)
		start := time.Now()
		st.run(s)
		t.Logf("   %d took %.1f s", i, time.Since(start).Seconds())
	}
	start := time.Now()
	// As the kubelet does when a node shuts down.
	for _, p := range []*pods.Pod{s.web, s.client, s.agent} {
		if p != nil {
			p.Remove()
		}
	}
	s.poweroff()
	t.Logf("   powered off in %.1f s", time.Since(start).Seconds())
}

// diagnose prints what helps to find the cause of a failure.
func (s *suite) diagnose(t *testing.T) {
	for _, c := range [][]string{
		{"systemctl", "--failed", "--no-legend", "--plain"},
		{"systemctl", "status", "--no-pager", "--lines=0", "nodeskoop", "nodeskoop-collect.timer", "containerd", "prometheus", "prometheus-node-exporter"},
	} {
		out, err := s.try(c[0], c[1:]...)
		t.Logf("%s (%v):\n%s", strings.Join(c, " "), err, out)
	}
	out, err := s.try("journalctl", "-b", "-q", "-u", unit, "-o", "json")
	var lines []string
	for line := range strings.Lines(out) {
		e := entry{}
		if json.Unmarshal([]byte(line), &e) == nil && e.text("KUBESKOOP_EVENT") == "" {
			lines = append(lines, e.text("SYSLOG_IDENTIFIER")+"["+e.text("_PID")+"]: "+e.text("MESSAGE"))
		}
	}
	t.Logf("the log of %s (%v):\n%s", unit, err, strings.Join(lines[max(0, len(lines)-60):], "\n"))
}

const podNetwork = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local",
    "ranges": [[{"subnet": "10.88.77.0/24"}], [{"subnet": "fd77:88::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "loopback"}]}
`

// AppArmor profiles would be loaded into the host's kernel.
const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
`

const prometheusConfig = `global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["/etc/prometheus/rules/*.yml"]
scrape_configs:
- job_name: node
  static_configs:
  - targets: ["127.0.0.1:9100"]
`

// prepare configures the system as its operator would have done before.
func (s *suite) prepare(root string) {
	t := s.T
	writeFile(t, root+"/etc/hostname", node+"\n")
	writeFile(t, root+"/etc/cni/net.d/10.conflist", podNetwork)
	writeFile(t, root+"/etc/containerd/config.toml", containerdConfig)
	writeFile(t, root+"/etc/prometheus/prometheus.yml", prometheusConfig)
	if err := os.MkdirAll(root+"/etc/prometheus/rules", 0o755); err != nil {
		t.Fatal(err)
	}
	// Nothing of the machine outlives the test.
	writeFile(t, root+"/etc/dpkg/dpkg.cfg.d/fast", "force-unsafe-io\n")
	// No repository can be reached.
	_ = os.Remove(root + "/etc/apt/sources.list")
	copyFile(t, "/proc/self/exe", root+"/srv"+causeProgram, 0o755)
	deb := os.Getenv("NODESKOOP_INSTALL_DEB")
	s.deb = "/srv/" + filepath.Base(deb)
	copyFile(t, deb, root+s.deb, 0o644)
	s.older = repack(t, root, s.deb, "older", nil)
	s.newer = repack(t, root, s.deb, "newer", func(tree string) {
		file := tree + conffile
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, string(b)+"\n# A line that a later version adds.\n")
	})
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// files lists all files of the system, except those that programs write while they
// run.
func (s *suite) files() []string {
	s.Helper()
	out := s.run("find", "/", "-xdev", "(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/run", "-o", "-path", "/dev", "-o", "-path", "/tmp",
		"-o", "-path", "/srv", "-o", "-path", "/var/log", "-o", "-path", "/var/tmp", "-o", "-path", "/var/lib/prometheus/metrics2",
		"-o", "-path", "/var/lib/cni", "-o", "-path", "/var/lib/containerd", "-o", "-path", "/var/cache", "-o", "-path", "/opt/containerd",
		"-o", "-path", "/var/lib/systemd/timers", "-o", "-path", "/var/lib/apt", ")", "-prune", "-o", "-print")
	list := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(list)
	return list
}

// install does what an operator does: apt install ./nodeskoop_*.deb.
func (s *suite) install() {
	t := s.T
	s.before = s.files()
	mode := func(path string) string { return strings.TrimSpace(s.run("stat", "-c", "%a %U %G", path)) }
	folder := mode(filepath.Dir(textfile))
	s.run("apt-get", "-qq", "install", "-y", s.older)
	// apt returns when the service is ready, which means that the first textfile is
	// complete.
	if !s.exists(textfile) {
		t.Fatalf("apt has installed the package, and %s is missing: %s", textfile, s.property(unit, "ActiveState"))
	}
	parse(t, []byte(s.read(textfile)))
	if v := s.property(unit, "ActiveState"); v != "active" {
		t.Fatalf("%s is %q", unit, v)
	}
	for _, what := range []string{"is-enabled", "is-active"} {
		if out, err := s.try("systemctl", what, unit); err != nil {
			t.Errorf("systemctl %s: %v: %s", what, err, out)
		}
	}
	text := s.property(unit, "StatusText")
	t.Logf("status: %s", text)
	for _, want := range []string{"series", "pods", "probes"} {
		if !strings.Contains(text, want) {
			t.Errorf("the status does not tell the number of %s: %q", want, text)
		}
	}
	if out := s.run("systemctl", "status", "--no-pager", unit); !strings.Contains(out, text) {
		t.Errorf("systemctl status does not show %q:\n%s", text, out)
	}
	if out, _ := s.try("systemctl", "is-enabled", "nodeskoop-collect.timer"); strings.TrimSpace(out) != "disabled" {
		t.Errorf("the timer of script mode is %q after the installation, want disabled", strings.TrimSpace(out))
	}

	// Owners and permissions of the files.
	for path, want := range map[string]string{
		textfile:               "644 root root",
		conffile:               "644 root root",
		"/usr/sbin/nodeskoop":  "755 root root",
		filepath.Dir(textfile): folder, // belongs to node_exporter's user
	} {
		if got := mode(path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}

	out := s.run("systemd-analyze", "security", "--no-pager", unit)
	score := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
	if score == nil {
		t.Fatalf("systemd-analyze security says no number:\n%s", out)
	}
	if v, err := strconv.ParseFloat(score[1], 64); err != nil || v >= 4 {
		t.Errorf("exposure level %s, want under 4.0:\n%s", score[1], out)
	}
	t.Logf("systemd-analyze security: exposure level %s", score[1])
	units := strings.Fields(s.run("sh", "-c", `dpkg -L nodeskoop | grep -E '/systemd/system/.*\.(service|timer)$'`))
	if _, err := s.try("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...); err != nil {
		t.Error(err)
	}

	// The tool itself must report that all is well.
	if out, err := s.try("nodeskoop", "check"); err != nil {
		t.Errorf("nodeskoop check: %v\n%s", err, out)
	} else if !strings.Contains(out, "node_exporter") {
		t.Errorf("nodeskoop check says nothing of the node_exporter that runs:\n%s", out)
	}
	// It must also report a problem, with the fix, if there is one.
	const exporter = "/etc/default/prometheus-node-exporter"
	was := s.read(exporter)
	s.write(exporter, "ARGS=--collector.textfile.directory=/srv/elsewhere\n")
	s.run("systemctl", "restart", "prometheus-node-exporter")
	s.until("nodeskoop check sees that node_exporter reads another folder", 10*time.Second, func() error {
		out, err := s.try("nodeskoop", "check")
		if err == nil || !strings.Contains(out, "reads /srv/elsewhere, not /var/lib/prometheus/node-exporter") {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	s.write(exporter, was)
	s.run("systemctl", "restart", "prometheus-node-exporter")
}

// runPods attaches to the machine's containerd and runs some pods.
func (s *suite) runPods() {
	s.ctd = pods.Attach(s.T, pods.Service{Root: s.root, Socket: "/run/containerd/containerd.sock", Dir: "/srv/pods", Command: s.command, Systemd: s.systemdGroups})
	tools := map[string]string{causeProgram: "/srv" + causeProgram}
	container := func(command ...string) []pods.ContainerSpec {
		return []pods.ContainerSpec{{Name: "main", Command: command, Mounts: tools}}
	}
	s.web = s.ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: "web-0", Labels: map[string]string{"app": "web"},
		Containers: container(causeProgram, "serve", "0.0.0.0:80", "[::]:8080")})
	s.client = s.ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: "client-0", Containers: container()})
	s.agent = s.ctd.RunPod(pods.PodSpec{Namespace: "kube-system", Name: "agent", HostNetwork: true, Containers: container()})
	for _, p := range []*pods.Pod{s.web, s.client} {
		if len(p.Addrs) != 2 {
			s.Fatalf("pod %s has the addresses %v, want IPv4 and IPv6", p.Name, p.Addrs)
		}
	}
	var rows []struct {
		Namespace, Pod string
		Addresses      []string
	}
	s.until("nodeskoop pods knows the three pods", 10*time.Second, func() error {
		out, err := s.try("nodeskoop", "pods", "--json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &rows); err != nil {
			return err
		}
		if len(rows) != 3 {
			return fmt.Errorf("it knows %d: %s", len(rows), out)
		}
		return nil
	})
	t := s.T
	for _, r := range rows {
		if r.Pod != "agent" && len(r.Addresses) != 2 {
			t.Errorf("nodeskoop pods: %s/%s has the addresses %v", r.Namespace, r.Pod, r.Addresses)
		}
	}
}

// setKey changes a key in a configuration file as an operator would with an editor:
// it replaces the commented default.
func setKey(t *testing.T, config, table, key, value string) string {
	t.Helper()
	lines := strings.Split(config, "\n")
	in := ""
	for i, l := range lines {
		if strings.HasPrefix(l, "[") {
			in = strings.Trim(l, "[]")
		}
		if in == table && (strings.HasPrefix(l, "#"+key+" = ") || strings.HasPrefix(l, key+" = ")) {
			lines[i] = key + " = " + value
			return strings.Join(lines, "\n")
		}
	}
	t.Fatalf("the configuration has no key %s in [%s]", key, table)
	return ""
}

// edit changes keys ("table.key", value) of the configuration.
func (s *suite) edit(keys ...string) {
	s.Helper()
	config := s.read(conffile)
	for i := 0; i < len(keys); i += 2 {
		table, key := "", keys[i]
		if dot := strings.LastIndexByte(keys[i], '.'); dot >= 0 {
			table, key = keys[i][:dot], keys[i][dot+1:]
		}
		config = setKey(s.T, config, table, key, keys[i+1])
	}
	s.write(conffile, config)
}

// configure changes keys and reloads. The daemon must remain the same process.
func (s *suite) configure(keys ...string) {
	s.Helper()
	s.edit(keys...)
	pid := s.property(unit, "MainPID")
	s.run("systemctl", "reload", unit)
	if now := s.property(unit, "MainPID"); now != pid {
		s.Fatalf("a reload made process %s into %s", pid, now)
	}
	if text := s.property(unit, "StatusText"); strings.Contains(text, "refused") {
		s.Fatalf("the reload was refused: %s", text)
	}
	s.nextCycles(2)
}

// nextCycles waits until the daemon has written its textfile n more times.
func (s *suite) nextCycles(n int) {
	s.Helper()
	first := ""
	for range n {
		s.until("the textfile is written again", 20*time.Second, func() error {
			b, err := os.ReadFile(s.root + textfile)
			if err != nil {
				return err
			}
			at := regexp.MustCompile(`(?m)^nodeskoop_last_cycle_timestamp_seconds.*$`).FindString(string(b))
			if at == "" || at == first {
				return fmt.Errorf("it stays at %q", at)
			}
			first = at
			return nil
		})
	}
}

type probeRow struct {
	Probe, Source, Reason string
	Enabled, Works        bool
	Supported             bool
}

// unsupported returns the probes that nodeskoop reports as unsupported on the
// machine's kernel.
func (s *suite) unsupported() map[string]string {
	out := map[string]string{}
	for _, p := range s.probes {
		if !p.Works && !p.Supported {
			out[p.Probe] = p.Reason
		}
	}
	return out
}

func (s *suite) enableAll() {
	t := s.T
	pid := s.property(unit, "MainPID")

	// A mistake changes nothing, and is reported.
	good := s.read(conffile)
	s.write(conffile, setKey(t, good, "", "interval", `"soon"`))
	if out, err := s.try("systemctl", "reload", unit); err == nil {
		t.Errorf("systemctl reload takes a mistake: %s", out)
	}
	if log := s.run("journalctl", "-u", unit, "-n", "20", "-o", "cat"); !strings.Contains(log, conffile+":") || !strings.Contains(log, `interval: "soon" is not a duration`) {
		t.Errorf("the journal does not name the mistake of a reload:\n%s", log)
	}
	// The daemon itself must refuse a reload by a signal from elsewhere.
	s.run("systemctl", "kill", "--kill-who=main", "--signal=HUP", unit)
	s.until("the status names the mistake", 30*time.Second, func() error {
		if text := s.property(unit, "StatusText"); !strings.Contains(text, "interval") {
			return fmt.Errorf("it is %q", text)
		}
		return nil
	})
	if v, now := s.property(unit, "ActiveState"), s.property(unit, "MainPID"); v != "active" || now != pid {
		t.Errorf("after a reload with a mistake the service is %s, its process %s, before %s", v, now, pid)
	}
	s.write(conffile, good)

	// A tool that manages many nodes adds a file and removes it.
	const own = "/etc/nodeskoop/nodeskoop.d/50-fleet.toml"
	s.write(own, "interval = \"7s\"\n")
	s.run("systemctl", "reload", unit)
	if out := s.run("nodeskoop", "config"); !strings.Contains(out, "# Set by "+own+":1\ninterval = \"7s\"\n") {
		t.Errorf("%s is not in effect:\n%s", own, out)
	}
	s.write(own, "interval = 7\n")
	if out, err := s.try("systemctl", "reload", unit); err == nil {
		t.Errorf("systemctl reload takes a mistake in %s: %s", own, out)
	}
	s.run("rm", own)

	s.configure("interval", `"1s"`, "probes.enabled", `["all"]`, "probes.conntrack.pods", "true", "probes.ipvs.pods", "true", "probes.socketlatency.histograms", `"pods"`,
		// Exact numbers come first, with high limits; the limits are tested later.
		"journal.rate", "5000", "journal.burst", "5000", "journal.total_rate", "100000")
	if err := json.Unmarshal([]byte(s.run("nodeskoop", "probes", "--json")), &s.probes); err != nil {
		t.Fatal(err)
	}
	if len(s.probes) != 23 {
		t.Errorf("%d probes", len(s.probes))
	}
	for _, p := range s.probes {
		if !p.Enabled {
			t.Errorf("the probe %s is not enabled", p.Probe)
		}
		if !p.Works && (p.Source != "eBPF" || p.Supported) {
			t.Errorf("the probe %s does not work: %s", p.Probe, p.Reason)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.unsupported())) {
		t.Logf("exception: this kernel has no hook for %s: %s", name, firstLine(s.unsupported()[name]))
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
