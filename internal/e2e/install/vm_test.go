package install

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/slowfilter"
)

// vmStages are the stages that a VM runs, on a kernel of its own with function hooks, with
// cgroup v2 alone, which systemd manages.
var vmStages = []stage{
	{"the system: systemd, cgroup v2, hooks", (*suite).aWholeSystem},
	{"apt installs it and the service is ready", (*suite).install},
	{"pods of containerd, in control groups of systemd's", (*suite).runPods},
	{"a reload enables every probe", (*suite).enableAll},
	{"all 23 probes work", (*suite).allWork},
	{"the limits of the unit are in force", (*suite).limitsInForce},
	{"the scrape has every metric of the contract", (*suite).scrapeContract},
	{"events caused in pods are in the journal", (*suite).causeEvents},
	{"events of slow drivers, softirqs and virtio-net", (*suite).causeLongOnes},
	{"remove and purge", (*suite).purge},
}

// inVM says that this process runs in the VM that TestVM has made.
const inVM = "NODESKOOP_INSTALL_IN_VM"

// TestVM runs the stages in a VM: a Debian system from a disk image, with its release's
// kernel. `make test-vm` passes the program that boots kernels in NODESKOOP_INSTALL_VM.
func TestVM(t *testing.T) {
	if os.Getenv(inVM) != "" {
		testSystem(t)
		return
	}
	boots := os.Getenv("NODESKOOP_INSTALL_VM")
	need.Target(t, "test-vm", boots != "")
	need.Root(t)
	need.Program(t, "mmdebstrap", "mke2fs", "tar", "qemu-system-x86_64")
	dir := t.TempDir()
	start := time.Now()
	image := vmImage(t, dir)
	t.Logf("made a disk of it in %.0f s", time.Since(start).Seconds())
	results := filepath.Join(dir, "results")
	start = time.Now()
	cmd := exec.Command(boots, "-disk", image, "-results", results, "-timeout", "40m")
	var log testkit.Log
	cmd.Stdout, cmd.Stderr = &log, &log
	p := testkit.Start(t, cmd)
	<-p.Done()
	out, err := os.ReadFile(results)
	console, _ := os.ReadFile(results + ".console")
	if err != nil || !p.ProcessState.Success() {
		t.Fatalf("boot the VM: %v, %v\n%s\n%s", p.ProcessState, err, &log, tail(string(console)))
	}
	t.Logf("%s", out)
	t.Logf("the VM ran for %.0f s:\n%s%s", time.Since(start).Seconds(), &log, vmTable(string(out)))
	if !bytes.Contains(out, []byte("\n@end 0\n")) {
		t.Errorf("the stages failed in the VM; its console ends with\n%s", tail(string(console)))
	}
}

var (
	stageBegun = regexp.MustCompile(`== (\d+): (.*)`)
	stageEnded = regexp.MustCompile(`   (\d+) took ([0-9.]+) s`)
)

// vmTable is the stages with their results and times.
func vmTable(out string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-58s %-8s %s\n", "situation", "result", "seconds, by the VM's clock")
	took := map[string]string{}
	for _, m := range stageEnded.FindAllStringSubmatch(out, -1) {
		took[m[1]] = m[2]
	}
	for _, m := range stageBegun.FindAllStringSubmatch(out, -1) {
		result := "passed"
		if took[m[1]] == "" {
			result = "FAILED"
		}
		fmt.Fprintf(&b, "%-58s %-8s %s\n", strings.TrimSpace(m[2]), result, took[m[1]])
	}
	return b.String()
}

// vmImage makes the disk: the system as test-install has it, this program, the tables that
// it reads, and a unit that runs it.
func vmImage(t *testing.T, dir string) string {
	t.Helper()
	t.Setenv("NODESKOOP_INSTALL_DEBIAN", "trixie")
	root := filepath.Join(dir, "root")
	// Without udev there are no units of devices, for which these would wait.
	unpack(t, tarball(t), root, "serial-getty@ttyS0.service", "getty@tty1.service")
	s := &suite{T: t}
	s.prepare(root)
	// The system's own kernel has no AppArmor profiles of others, and systemd its groups.
	config := strings.ReplaceAll(containerdConfig, "  restrict_oom_score_adj = true\n", "") +
		"  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"\n" +
		"    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n      SystemdCgroup = true\n"
	writeFile(t, root+"/etc/containerd/config.toml", config)
	copyFile(t, "/proc/self/exe", root+"/srv/proof", 0o755)
	in := exec.Command("cp", "-a", "--parents", "testdata/spec", "packaging", root+"/srv")
	in.Dir = "../../.."
	if out, err := in.CombinedOutput(); err != nil {
		t.Fatalf("copy the tables: %v\n%s", err, out)
	}
	if err := os.MkdirAll(root+"/srv/internal/e2e/install", 0o755); err != nil {
		t.Fatal(err)
	}
	name := func(path string) string { return "/srv/" + filepath.Base(path) }
	// The port appears when the module's device does; udev, which would name it, is not
	// installed.
	writeFile(t, root+"/srv/run-proof", `#!/bin/sh
port=$(basename "$(dirname "$(grep -lx results /sys/class/virtio-ports/*/name)")")
exec > "/dev/$port" 2>&1
uname -a
cd /srv/internal/e2e/install
/srv/proof -test.v -test.timeout 35m -test.run '^TestVM$'
printf '\n@end %s\n' $?
# Nothing of it is needed any more.
systemctl poweroff --force --force
`)
	writeFile(t, root+"/etc/systemd/system/proof.service", fmt.Sprintf(`[Unit]
After=multi-user.target containerd.service prometheus.service prometheus-node-exporter.service
[Service]
Type=exec
Environment=%s=1 NODESKOOP_TEST_STRICT=1 HOME=/root
Environment=NODESKOOP_INSTALL_DEB=%s NODESKOOP_INSTALL_OLDER=%s NODESKOOP_INSTALL_ONLY=%s
ExecStart=/bin/sh /srv/run-proof
`, inVM, name(s.deb), name(s.older), os.Getenv("NODESKOOP_INSTALL_ONLY")))
	if err := os.Symlink("../proof.service", root+"/etc/systemd/system/multi-user.target.wants/proof.service"); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "root.img")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(4<<30), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, image).CombinedOutput(); err != nil {
		t.Fatalf("make a disk of %s: %v\n%s", root, err, out)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	return image
}

// testSystem runs the stages on the system that it runs on.
func testSystem(t *testing.T) {
	s := &suite{T: t, deb: os.Getenv("NODESKOOP_INSTALL_DEB"), older: os.Getenv("NODESKOOP_INSTALL_OLDER")}
	s.machine = &machine{t: t, root: "/", leader: 1, systemdGroups: true, exited: make(chan struct{}), client: &http.Client{Timeout: time.Minute}}
	t.Cleanup(func() {
		if t.Failed() {
			s.diagnose(t)
		}
	})
	only := os.Getenv("NODESKOOP_INSTALL_ONLY") // numbers of stages, to work on one
	for i, st := range vmStages {
		if only != "" && !slices.Contains(strings.Split(only, ","), strconv.Itoa(i)) {
			continue
		}
		t.Logf("== %d: %s", i, st.name)
		start := time.Now()
		st.run(s)
		if t.Failed() {
			t.Fatalf("   %d failed after %.1f s", i, time.Since(start).Seconds())
		}
		t.Logf("   %d took %.1f s", i, time.Since(start).Seconds())
	}
	for _, p := range []*pods.Pod{s.web, s.client, s.agent} {
		if p != nil {
			p.Remove()
		}
	}
}

// aWholeSystem: no unit has failed, and the system has what this test needs.
func (s *suite) aWholeSystem() {
	t := s.T
	s.until("the system has started", 3*time.Minute, func() error {
		out, err := s.try("systemctl", "is-system-running")
		if v := strings.TrimSpace(out); v != "running" && v != "degraded" {
			return fmt.Errorf("it is %q: %w", v, err)
		}
		return nil
	})
	if out, _ := s.try("systemctl", "--failed", "--no-legend", "--plain"); strings.TrimSpace(out) != "" {
		t.Errorf("units of the untouched system failed:\n%s", out)
	}
	if kind := strings.TrimSpace(s.run("stat", "-f", "-c", "%T", "/sys/fs/cgroup")); kind != "cgroup2fs" {
		t.Errorf("/sys/fs/cgroup is %s", kind)
	}
	if one := strings.TrimSpace(s.read("/proc/1/comm")); one != "systemd" {
		t.Errorf("process 1 is %s", one)
	}
	t.Logf("%s", strings.TrimSpace(s.run("systemctl", "--version")))
}

// allWork: this kernel has every hook, so no probe has a reason not to work.
func (s *suite) allWork() {
	for _, p := range s.probes {
		if !p.Works {
			s.Errorf("the probe %s does not work: %s", p.Probe, p.Reason)
		}
	}
	f := parse(s.T, []byte(s.read(textfile)))
	if up, n := f.value("nodeskoop_probe_up"); up != 23 || n != 23 {
		s.Errorf("nodeskoop_probe_up: the sum of %d series is %v, want 23 of 23", n, up)
	}
	for _, p := range []*pods.Pod{s.web, s.client} {
		group := ""
		for line := range strings.Lines(s.read(fmt.Sprintf("/proc/%d/cgroup", p.PID))) {
			group = strings.TrimSpace(strings.TrimPrefix(line, "0::"))
		}
		if !strings.Contains(group, ".slice/") || !strings.HasSuffix(group, ".scope") {
			s.Errorf("the pod %s is in %q, not in a scope of systemd's", p.Name, group)
		}
		if v, n := f.value("kubeskoop_fd_openfd", "k8s_namespace", p.Namespace, "k8s_pod", p.Name); n != 1 || v < 1 {
			s.Errorf("kubeskoop_fd_openfd of %s: %d series, %v", p.Name, n, v)
		}
	}
}

// limitsInForce: the kernel has the unit's limits, and holds a process of the unit to them.
func (s *suite) limitsInForce() {
	t := s.T
	group := "/sys/fs/cgroup" + s.property(unit, "ControlGroup")
	for file, want := range map[string]string{
		"memory.max": s.property(unit, "MemoryMax"), // 256M
		"pids.max":   s.property(unit, "TasksMax"),
		"cpu.max":    "50000 100000", // CPUQuota=50%
	} {
		if got := strings.TrimSpace(s.read(group + "/" + file)); got != want || want == "infinity" {
			t.Errorf("%s of the unit is %q, want %q", file, got, want)
		}
	}
	used := func() (usec, throttled int) {
		for line := range strings.Lines(s.read(group + "/cpu.stat")) {
			f := strings.Fields(line)
			n, _ := strconv.Atoi(f[1])
			switch f[0] {
			case "usage_usec":
				usec = n
			case "nr_throttled":
				throttled = n
			}
		}
		return usec, throttled
	}
	// Others would take the CPU from it.
	s.run("systemctl", "stop", "prometheus", "prometheus-node-exporter")
	usec, throttled := used()
	start := time.Now()
	s.run("sh", "-c", `echo $$ > "$0/cgroup.procs"; timeout 6 sh -c 'while :; do :; done' || true`, group)
	took := time.Since(start)
	now, stopped := used()
	s.run("systemctl", "start", "prometheus", "prometheus-node-exporter")
	share := float64(now-usec) / float64(took.Microseconds())
	t.Logf("a busy process in the unit's group: %.0f %% of a CPU, stopped in %d periods", 100*share, stopped-throttled)
	// One period's quota may be used at each end.
	if share > 0.5+0.1/took.Seconds() || stopped <= throttled {
		t.Errorf("a busy process in the unit's group had %.2f of a CPU and was stopped %d times, want 0.5 at most", share, stopped-throttled)
	}

	// systemd stops a unit of which the kernel killed a process, and starts it again.
	pid := s.property(unit, "MainPID")
	out, err := s.try("sh", "-c", `echo $$ > "$0/cgroup.procs"; exec dd if=/dev/zero of=/dev/null bs=400M count=1`, group)
	if err == nil {
		t.Errorf("a process in the unit's group got 400 MB: %s", out)
	}
	s.until("the journal tells of the killed process", time.Minute, func() error {
		if out := s.run("journalctl", "-k", "-b", "-q", "-o", "cat"); !strings.Contains(out, "Memory cgroup out of memory: Killed process") {
			return errors.New("the kernel has not")
		}
		return nil
	})
	s.until("the service is active again", 2*time.Minute, func() error {
		if v := s.property(unit, "ActiveState"); v != "active" {
			return fmt.Errorf("it is %s", v)
		}
		return nil
	})
	t.Logf("400 MB in the unit's group: killed; the service's process was %s and is %s", pid, s.property(unit, "MainPID"))
	s.nextCycles(1)
}

// causeLongOnes causes what only function hooks show, and what takes over 100 ms.
func (s *suite) causeLongOnes() {
	t := s.T
	s.configure("journal.rate", "5000", "journal.burst", "5000", "journal.total_rate", "100000", "probes.virtcmdlatency.slow", `"1us"`)

	// The kernel's own count of the commands is that of a kprobe.
	const kprobes = "/sys/kernel/tracing/kprobe_"
	// Newer drivers have renamed the function.
	s.run("sh", "-c", `{ echo p:proof virtnet_send_command_reply || echo p:proof virtnet_send_command; } 2>/dev/null > `+kprobes+`events; echo 1 > /sys/kernel/tracing/events/kprobes/proof/enable`)
	commands := func() int {
		f := strings.Fields(s.read(kprobes + "profile"))
		if len(f) < 2 {
			t.Fatalf("%sprofile has %q", kprobes, f)
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const n = 6
	before := commands()
	s.expectNode("a virtio-net device gets another address", "VIRTCMDEXCUTE", n, func() {
		for i := range n {
			s.run("ip", "link", "set", "eth1", "address", fmt.Sprintf("52:54:00:00:01:%02x", i))
		}
	})
	if got := commands() - before; got != n {
		t.Errorf("the kernel made %d commands, want %d", got, n)
	}
	s.run("sh", "-c", "echo 0 > /sys/kernel/tracing/events/kprobes/proof/enable; echo > "+kprobes+"events")

	// A bridge sends to its ports one after the other: to the newest at once, whose other
	// end then awaits its softirq, and to the older one through a filter that takes 150 ms.
	// So the bridge's driver takes as long, and so does the softirq until it begins.
	s.run("sh", "-ec", `
		ip link add slow0 type bridge mcast_snooping 0
		for i in 1 2; do
			ip link add slowp$i type veth peer name slowe$i
			for d in slowp$i slowe$i; do echo 1 > /proc/sys/net/ipv6/conf/$d/disable_ipv6; done
			ip link set slowp$i master slow0 up
			ip link set slowe$i up
		done
		echo 1 > /proc/sys/net/ipv6/conf/slow0/disable_ipv6
		ip address add 198.18.7.1/24 dev slow0
		ip link set slow0 up
		ip neighbour replace 198.18.7.9 lladdr 02:00:00:00:07:09 dev slow0`)
	s.until("the bridge sends", 30*time.Second, func() error {
		if out := s.run("ip", "-o", "link", "show", "slow0"); strings.Contains(out, "qdisc noop ") || !strings.Contains(out, "LOWER_UP") {
			return errors.New(out)
		}
		return nil
	})
	time.Sleep(2 * time.Second) // the ports forward
	filter := func(device string, hook uint32) *slowfilter.Filter {
		f, err := slowfilter.Load(150 * time.Millisecond)
		if err == nil {
			err = f.Attach(device, hook)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Close)
		return f
	}
	send := func(f *slowfilter.Filter) func() {
		return func() {
			for range n {
				s.run("/srv"+causeProgram, "datagrams", "198.18.7.9:9", "1", "100")
			}
			if held, err := f.Held(); err != nil || held != n {
				t.Errorf("the filter held %d packets (%v), want %d", held, err, n)
			}
		}
	}
	driver := filter("slowp1", netlink.HANDLE_MIN_EGRESS)
	late := len(s.journal("KUBESKOOP_EVENT=NETSOFTIRQ_SCHED_100MS"))
	s.expectNode("datagrams through a slow driver", "TXLAT_NETDEV_100MS", n, send(driver), "KUBESKOOP_IFNAME=slow0", "KUBESKOOP_DPORT=9")
	if late != 0 {
		t.Errorf("%d softirqs were late before", late)
	}
	s.until("the softirqs that waited for it are in the journal", windows, func() error {
		if got := occurrences(s.journal("KUBESKOOP_EVENT=NETSOFTIRQ_SCHED_100MS", "K8S_POD=hostNetwork")); got != n {
			return fmt.Errorf("it has %d times NETSOFTIRQ_SCHED_100MS, want %d", got, n)
		}
		return nil
	})
	t.Logf("%-42s %d times NETSOFTIRQ_SCHED_100MS of the node", "softirqs that waited for it", n)
	s.run("tc", "qdisc", "del", "dev", "slowp1", "clsact")

	// What a softirq receives takes as long as the filter at the receiving end.
	s.expectNode("datagrams that take long to receive", "NETSOFTIRQ_EXCUTE_100MS", n, send(filter("slowe2", netlink.HANDLE_MIN_INGRESS)))
	s.run("sh", "-c", "ip link del slow0; ip link del slowp1; ip link del slowp2")
	s.configure("journal.rate", "1", "journal.burst", "20", "probes.virtcmdlatency.slow", `"10ms"`)
}

// expectNode is expect for an event of the node, of which there must be none before.
func (s *suite) expectNode(what, event string, n int, do func(), more ...string) {
	s.Helper()
	of := func() int {
		return occurrences(s.journal(append(more, "KUBESKOOP_EVENT="+event, "K8S_POD=hostNetwork")...))
	}
	if before := of(); before != 0 {
		s.Errorf("%s: the journal has %d times %s before", what, before, event)
	}
	do()
	_ = s.awaits(windows, func() error {
		if of() < n {
			return errors.New("not yet")
		}
		return nil
	})
	got := of()
	if got != n {
		s.Errorf("%s: the journal has %d times %s, want %d", what, got, event, n)
	}
	s.Logf("%-42s %d times %s of the node", what, got, event)
}
