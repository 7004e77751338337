package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit/pods"
)

// patience is how long a call of containerd may take on an overloaded machine.
const patience = 3 * time.Minute

// samplePackage is a small package that is installed, upgraded and removed.
const samplePackage = "quiet-sample"

// healthy is a healthy machine: idle pods, pods that talk to each other, and what
// an operator and timers do on a node.
type healthy struct {
	*suite
	idle, busy []*pods.Pod
	made       int
	networks   []netip.Prefix // networks of the pods
	resolver   string         // address of the resolver, the gateway of that network
	zone       string         // folder of the resolver, as seen in the machine
	samples    []string
	must       []string  // alerts that have to fire
	maybe      []string  // alerts that may fire, but need not, because their condition is brief
	slow       *slowDisk // where packages are installed, if not nil

	// netns are the network namespaces in which the machine's processes were seen.
	// lost is the highest kubeskoop_packetloss_total by namespace/pod.
	netns map[string]seen
	lost  map[string]float64
	did   map[string]int // traffic of pods that have ended, by kind
}

// seen holds the first and the last time that a namespace was seen, and when its
// pod was removed.
type seen struct{ first, last, removed time.Time }

// lookEach is the time between two looks.
const lookEach = 5 * time.Second

// bootHealthy boots a machine with a disk of its own and installs the package.
func bootHealthy(t *testing.T) *healthy {
	t.Helper()
	// Machines that run at the same time differ in their pods' addresses.
	net4, net6 := fmt.Sprintf("10.89.%d.", os.Getpid()%250), fmt.Sprintf("fd77:89:%x::", os.Getpid()%250)
	h := &healthy{suite: &suite{T: t}, resolver: net4 + "1:5353",
		networks: []netip.Prefix{netip.MustParsePrefix(net4 + "0/24"), netip.MustParsePrefix(net6 + "/64")},
		zone:     "/srv/zone", netns: map[string]seen{}, lost: map[string]float64{}, did: map[string]int{}}
	h.machine = bootFromDisk(t, func(root string) {
		h.prepare(root)
		// Undo settings that speed up tests: dpkg is as slow, and Prometheus
		// scrapes as seldom, as on a real node.
		if err := os.Remove(root + "/etc/dpkg/dpkg.cfg.d/fast"); err != nil {
			t.Fatal(err)
		}
		writeFile(t, root+"/etc/prometheus/prometheus.yml", strings.ReplaceAll(prometheusConfig, ": 1s", ": 15s"))
		writeFile(t, root+h.zone+"/hosts", "")
		writeFile(t, root+"/etc/cni/net.d/10.conflist", strings.NewReplacer("10.88.77.", net4, "fd77:88::", net6).Replace(podNetwork))
		for _, version := range []string{"1.0", "1.1"} {
			h.samples = append(h.samples, sampleDeb(t, root, version))
		}
	})
	t.Cleanup(func() {
		if t.Failed() && !h.off {
			h.diagnose(t)
		}
	})
	h.run("apt-get", "-qq", "install", "-y", h.deb)
	for _, file := range h.shipped(".rules.yml") {
		h.write(rulesDir+filepath.Base(file), h.read(file))
	}
	h.run("systemctl", "reload", "prometheus")
	h.ctd = pods.Attach(t, pods.Service{Root: h.root, Socket: "/run/containerd/containerd.sock", Dir: "/srv/pods", Command: h.command})
	return h
}

// sampleDeb builds a package of some files below /usr/share.
func sampleDeb(t *testing.T, root, version string) (path string) {
	t.Helper()
	tree := t.TempDir()
	writeFile(t, tree+"/DEBIAN/control", "Package: "+samplePackage+"\nVersion: "+version+
		"\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: files for a test\n")
	for i := range 40 {
		writeFile(t, fmt.Sprintf("%s/usr/share/%s/%d", tree, samplePackage, i), strings.Repeat(version+" of a file\n", 500))
	}
	path = "/srv/" + samplePackage + "_" + version + ".deb"
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, root+path).CombinedOutput(); err != nil {
		t.Fatalf("build the package %s: %v\n%s", path, err, out)
	}
	return path
}

// pod makes a pod of one container.
func (h *healthy) pod(namespace, name string, hostNetwork bool, mounts map[string]string, command ...string) *pods.Pod {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	all := map[string]string{causeProgram: "/srv" + causeProgram}
	maps.Copy(all, mounts)
	p, err := h.ctd.TryRunPod(ctx, pods.PodSpec{Namespace: namespace, Name: name, HostNetwork: hostNetwork,
		Containers: []pods.ContainerSpec{{Name: "main", Command: command, Mounts: all}}})
	if err != nil {
		h.Fatal(err)
	}
	h.saw(fmt.Sprintf("%s/proc/%d/ns/net", h.root, p.PID))
	return p
}

func (h *healthy) remove(p *pods.Pod) {
	h.Helper()
	h.look()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ns := netnsOf(fmt.Sprintf("%s/proc/%d/ns/net", h.root, p.PID))
	if err := p.TryRemove(ctx); err != nil {
		h.Fatal(err)
	}
	s := h.netns[ns]
	s.removed = time.Now()
	h.netns[ns] = s
}

// fill starts idle pods, and pods that talk to each other.
func (h *healthy) fill(idle, busy int) {
	h.Helper()
	start := time.Now()
	h.pod("kube-system", "resolver", true, map[string]string{"/zone": h.zone}, causeProgram, "resolve", "0.0.0.0:5353", "/zone/hosts")
	for range idle {
		h.idle = append(h.idle, h.idlePod())
	}
	for range busy {
		h.busy = append(h.busy, h.busyPod())
		h.publish()
	}
	h.look()
	h.Logf("%d idle and %d busy pods run after %.0f s", idle, busy, time.Since(start).Seconds())
}

func (h *healthy) idlePod() *pods.Pod {
	h.Helper()
	h.made++
	return h.pod("idle", fmt.Sprintf("idle-%d", h.made), false, nil)
}

func (h *healthy) busyPod() *pods.Pod {
	h.Helper()
	h.made++
	return h.pod("shop", fmt.Sprintf("web-%d", h.made), false, nil, causeProgram, "busy", h.resolver)
}

// publish writes the addresses of the busy pods for the resolver, which reads them
// on each query.
func (h *healthy) publish() {
	h.Helper()
	var b strings.Builder
	for _, p := range h.busy {
		for _, a := range p.Addrs {
			fmt.Fprintf(&b, "%s %s\n", busyName, a)
		}
	}
	h.write(h.zone+"/hosts.new", b.String())
	if err := os.Rename(h.root+h.zone+"/hosts.new", h.root+h.zone+"/hosts"); err != nil {
		h.Fatal(err)
	}
}

// rollIdle replaces the oldest idle pod.
func (h *healthy) rollIdle() {
	h.Helper()
	h.idle = append(h.idle, h.idlePod())
	h.remove(h.idle[0])
	h.idle = h.idle[1:]
}

// rollBusy replaces the oldest busy pod as a rollout does: the new pod is ready
// before the old one leaves the resolver, and the old one drains before it is
// stopped.
func (h *healthy) rollBusy() {
	h.Helper()
	h.busy = append(h.busy, h.busyPod())
	old := h.busy[0]
	h.busy = h.busy[1:]
	h.publish()
	time.Sleep(2 * lookupEach)
	h.drain(old)
	h.remove(old)
}

// drain asks a busy pod to end, and waits until it has.
func (h *healthy) drain(p *pods.Pod) {
	h.Helper()
	main := p.Container("main")
	h.run("kill", "-TERM", strconv.Itoa(main.PID))
	h.until("the replica "+p.Name+" has no connection any more and ends", patience, func() error {
		if h.exists(fmt.Sprintf("/proc/%d/ns", main.PID)) {
			return errors.New("it runs")
		}
		return nil
	})
	h.count(p)
}

var trafficLine = regexp.MustCompile(`traffic: (.*)\n`)

// count adds the traffic of a busy pod.
func (h *healthy) count(p *pods.Pod) {
	h.Helper()
	log := h.read("/srv/pods/logs/" + p.UID + "/main.log")
	all := trafficLine.FindAllStringSubmatch(log, -1)
	if all == nil {
		h.Errorf("%s tells of no traffic:\n%s", p.Name, tail(log))
		return
	}
	for _, f := range strings.Split(all[len(all)-1][1], ", ") {
		what, number, _ := strings.Cut(f, " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			h.Errorf("%s: %q: %v", p.Name, f, err)
		}
		h.did[what] += n
		if what == "errors" && n > 0 {
			h.Errorf("%s: traffic that was to be healthy failed:\n%s", p.Name, tail(log))
		}
	}
}

// upgradeSample installs the package, or its next version.
func (h *healthy) upgradeSample(version int) {
	h.Helper()
	run := h.run
	if h.slow != nil {
		run = func(name string, args ...string) string { return h.slow.run(append([]string{name}, args...)...) }
	}
	run("apt-get", "-qq", "install", "-y", "--allow-downgrades", h.samples[version%len(h.samples)])
}

// rotateLogs rotates logs as a node does daily.
func (h *healthy) rotateLogs() {
	h.Helper()
	h.run("journalctl", "-q", "--rotate")
	h.run("savelog", "-q", "-c", "3", "/var/log/dpkg.log")
}

// rhythm is how often each activity happens on a machine; 0 means never.
type rhythm struct {
	idle, busy     time.Duration // a pod is replaced
	packages, logs time.Duration // a package is upgraded, the logs are rotated
}

// live lets the machine live for a while.
func (h *healthy) live(d time.Duration, r rhythm) {
	h.Helper()
	begin := time.Now()
	every := func(interval time.Duration, do func(n int)) func() {
		if interval == 0 {
			return func() {}
		}
		n, next := 0, begin.Add(interval/2)
		return func() {
			if time.Now().After(next) {
				do(n)
				n++
				next = time.Now().Add(interval)
			}
		}
	}
	timers := []func(){
		every(r.idle, func(int) { h.rollIdle() }),
		every(r.busy, func(int) { h.rollBusy() }),
		every(r.logs, func(int) { h.rotateLogs() }),
		every(r.packages, h.upgradeSample),
		every(lookEach, func(int) { h.look() }),
	}
	for time.Since(begin) < d {
		for _, t := range timers {
			t()
		}
		time.Sleep(100 * time.Millisecond)
	}
	h.sampled()
	h.look()
}

// sampled waits until the daemon has sampled everything up to now.
func (h *healthy) sampled() {
	h.Helper()
	since := float64(time.Now().Unix())
	h.until("the daemon samples", patience, func() error {
		b, err := os.ReadFile(h.root + textfile)
		if err != nil {
			return err
		}
		// The next cycle to end may have begun earlier.
		f := parse(h.T, b)
		at, _ := f.value("nodeskoop_last_cycle_timestamp_seconds")
		if took, _ := f.value("nodeskoop_last_cycle_duration_seconds"); at-took <= since {
			return fmt.Errorf("its last cycle began %.0f s before what it is to see", since-at+took)
		}
		return nil
	})
}

// look records the daemon's counts and the existing namespaces.
func (h *healthy) look() {
	h.Helper()
	links, _ := filepath.Glob(h.root + "/proc/[0-9]*/ns/net")
	for _, l := range links {
		h.saw(l)
	}
	b, err := os.ReadFile(h.root + textfile)
	if err != nil {
		h.Fatal(err)
	}
	f := parse(h.T, b)["kubeskoop_packetloss_total"]
	for _, m := range f.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.Label {
			labels[l.GetName()] = l.GetValue()
		}
		who := labels["k8s_namespace"] + "/" + labels["k8s_pod"]
		h.lost[who] = max(h.lost[who], m.GetCounter().GetValue())
	}
}

// saw records that a network namespace exists now.
func (h *healthy) saw(link string) {
	ns := netnsOf(link)
	if ns == "" {
		return // the process has ended
	}
	s := seen{first: h.netns[ns].first, last: time.Now()}
	if s.first.IsZero() {
		s.first = s.last
	}
	h.netns[ns] = s
}

// netnsOf returns the number of a network namespace, given the link in /proc/PID/ns
// of a process in it.
func netnsOf(link string) string {
	to, _ := os.Readlink(link)
	return strings.Trim(strings.TrimPrefix(to, "net:"), "[]")
}

// ours selects the daemon's entries about this machine. Other entries are about other
// disks and namespaces on this kernel (such a namespace may have the number of an ended
// pod's), and about the test program.
func (h *healthy) ours(entries []entry) (list, elsewhere []entry) {
	own := filepath.Base(os.Args[0])
	own = own[:min(len(own), 15)]
	inMachine := func(e entry) bool {
		ours, foreign := ends(e, h.networks)
		ns := e.text("KUBESKOOP_NETNS")
		switch {
		case foreign && !ours:
			return false
		case ns == "":
			// Entries about unowned namespaces are merged.
			return ours || e.text("K8S_POD") != "" || e.text("KUBESKOOP_SADDR") == ""
		}
		at, s := e.time(), h.netns[ns]
		end := s.last.Add(lookEach + time.Second)
		if !s.removed.IsZero() {
			end = s.removed.Add(time.Second)
		}
		return at.After(s.first.Add(-2*lookEach)) && at.Before(end)
	}
	for _, e := range entries {
		if disk := e.text("KUBESKOOP_DISK"); disk != "" && disk != h.disk || !inMachine(e) || e.text("KUBESKOOP_COMM") == own {
			elsewhere = append(elsewhere, e)
		} else {
			list = append(list, e)
		}
	}
	return list, elsewhere
}

// ends reports whether an end of an entry's packet has an address in the pods'
// networks, and whether an end has an address that does not exist in the machine.
func ends(e entry, networks []netip.Prefix) (ours, foreign bool) {
	for _, field := range []string{"KUBESKOOP_SADDR", "KUBESKOOP_DADDR"} {
		a, err := netip.ParseAddr(e.text(field))
		switch {
		case err != nil, a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsMulticast(), a.IsUnspecified():
		case slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }):
			ours = true
		default:
			foreign = true
		}
	}
	return ours, foreign
}

func TestEnds(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.88.77.0/24"), netip.MustParsePrefix("fd77:88::/64")}
	for _, c := range []struct {
		from, to      string
		ours, foreign bool
	}{
		{"10.88.77.4", "10.88.77.5", true, false},
		{"fd77:88::4", "fd77:89::5", true, true},
		{"10.0.0.1", "10.0.0.2", false, true},
		{"127.0.0.1", "127.0.0.1", false, false},
		{"fe80::1", "ff02::1", false, false},
		{"", "", false, false},
	} {
		if ours, foreign := ends(entry{"KUBESKOOP_SADDR": c.from, "KUBESKOOP_DADDR": c.to}, networks); ours != c.ours || foreign != c.foreign {
			t.Errorf("%s -> %s: ours %v, foreign %v, want %v, %v", c.from, c.to, ours, foreign, c.ours, c.foreign)
		}
	}
}

// written returns all entries of the daemon, events and log.
func (h *healthy) written() []entry {
	h.Helper()
	var list []entry
	out := h.run("journalctl", "-b", "-q", "-a", "-o", "json", "SYSLOG_IDENTIFIER=nodeskoop", "+", "_SYSTEMD_UNIT="+unit)
	for line := range strings.Lines(out) {
		list = append(list, h.parseEntry(line))
	}
	return list
}

func (h *healthy) parseEntry(line string) entry {
	h.Helper()
	e := entry{}
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		h.Fatalf("journalctl prints %q: %v", line, err)
	}
	return e
}

// time is when journald received the entry.
func (e entry) time() time.Time { return e.micros("__REALTIME_TIMESTAMP") }

func (e entry) micros(field string) time.Time {
	n, _ := strconv.ParseInt(e.text(field), 10, 64)
	return time.UnixMicro(n)
}

// occurrences returns the number of occurrences of an entry.
func (e entry) occurrences() int {
	if n, err := strconv.Atoi(e.text("KUBESKOOP_COUNT")); err == nil {
		return n
	}
	return 1
}

var digits = regexp.MustCompile(`[0-9]+`)

// kindOf returns what entries about the same problem have in common.
func kindOf(e entry) string {
	if e.text("KUBESKOOP_EVENT") == "" {
		return "log: " + digits.ReplaceAllString(e.text("MESSAGE"), "N")
	}
	var b strings.Builder
	b.WriteString(e.text("KUBESKOOP_EVENT"))
	for _, field := range []string{"K8S_NAMESPACE", "K8S_POD", "KUBESKOOP_REASON", "KUBESKOOP_COMM", "KUBESKOOP_DISK", "KUBESKOOP_TCP_STATE", "KUBESKOOP_VECTOR"} {
		if v := e.text(field); v != "" {
			b.WriteString(" " + strings.TrimPrefix(field, "KUBESKOOP_") + "=" + v)
		}
	}
	return b.String()
}

// byKind lists entries by kind, most frequent kinds first.
func byKind(entries []entry) string {
	type sum struct {
		entries, occurrences int
		worst, example       string
	}
	sums := map[string]*sum{}
	for _, e := range entries {
		k := kindOf(e)
		s := sums[k]
		if s == nil {
			s = &sum{worst: "9", example: e.text("MESSAGE")}
			sums[k] = s
		}
		s.entries++
		s.occurrences += e.occurrences()
		s.worst = min(s.worst, e.text("PRIORITY"))
	}
	kinds := slices.SortedFunc(maps.Keys(sums), func(a, b string) int {
		if n := sums[b].entries - sums[a].entries; n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	fmt.Fprintf(&b, "%7s %11s %8s  kind\n", "entries", "occurrences", "priority")
	for _, k := range kinds {
		s := sums[k]
		fmt.Fprintf(&b, "%7d %11d %8s  %s\n%31s%s\n", s.entries, s.occurrences, s.worst, k, "", firstLine(s.example))
	}
	return b.String()
}
