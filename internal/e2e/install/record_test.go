package install

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
	recorded "nodeskoop/internal/testkit/recording"
)

// recordedEach is the time between two samples of a recording.
const recordedEach = 30 * time.Second

// nodes are the machines that can be recorded. Each runs for a while, and
// healthy.must lists the alerts that have to fire.
var nodes = map[string]struct {
	what string
	live func(*healthy, time.Duration)
}{
	"idle":     {"205 pods that idle", liveIdle},
	"busy":     {"20 pods that talk to each other by HTTP, DNS and ping, and are replaced", liveBusy},
	"debian":   {"few pods, packages that are upgraded on a slow disk, and logs that are rotated", liveDebian},
	"troubles": {"troubles of the network, of a disk, of limits of the kernel and of nodeskoop itself", liveTroubles},
	"gone":     {"a daemon that is stopped", liveGone},
	allProbes:  {"all probes, and pods in each kind of trouble", liveAllProbes},
}

// allProbes is the node that is recorded with all its metrics, for the dashboards.
const allProbes = "all-probes"

// TestRecord writes what the shipped rules read of a machine as a promtool test,
// and runs that. The block I/O probes see the whole kernel, so record on an
// otherwise idle machine.
func TestRecord(t *testing.T) {
	d := duration(t, "record", "NODESKOOP_RECORD")
	name := os.Getenv("NODESKOOP_RECORD_NODE")
	n, ok := nodes[name]
	if !ok {
		t.Fatalf("NODESKOOP_RECORD_NODE=%s is none of %s", name, strings.Join(slices.Sorted(maps.Keys(nodes)), ", "))
	}
	dir := os.Getenv("NODESKOOP_RECORD_DIR")
	if dir == "" {
		dir = "../../../packaging/prometheus/tests/recorded"
	}
	h := bootHealthy(t)
	most := 200_000
	if name == allProbes {
		most = 300_000
		h.edit("probes.socketlatency.histograms", `"pods"`)
		h.onlyWorking("all")
	} else {
		h.onlyWorking("default")
	}
	h.fillFor(name)
	start := h.scraped()
	n.live(h, d)
	slices.Sort(h.must)
	end := h.scraped()
	if start.Add(d).Before(end) {
		end = start.Add(d)
	}
	r := recording{name: name, what: n.what, alerts: h.must, maybe: h.maybe, kernel: strings.TrimSpace(h.read("/proc/sys/kernel/osrelease")), version: h.version(), length: end.Sub(start)}
	metrics := h.ruleMetrics()
	if name == allProbes {
		metrics = h.ownMetrics()
	}
	for _, metric := range metrics {
		r.series = append(r.series, h.samplesOf(metric, start, end)...)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name+".yml.gz")
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	text := r.String()
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if packed.Len() > most {
		t.Errorf("%s has %d bytes, want at most %d", file, packed.Len(), most)
	}
	t.Logf("%s: %v, %d series, %d bytes, packed %d; alerts: %s", file, r.length, len(r.series), len(text), packed.Len(), strings.Join(h.must, ", "))
	if name != allProbes { // this recording is for the dashboards; which alerts fire depends on its length
		h.promtool(text)
	}
}

// onlyWorking enables the default probes, or all, without those that this kernel
// does not support.
func (h *healthy) onlyWorking(which string) {
	h.Helper()
	var rows []probeRow
	if err := json.Unmarshal([]byte(h.run("nodeskoop", "probes", "--json")), &rows); err != nil {
		h.Fatal(err)
	}
	enabled := []string{strconv.Quote(which)}
	for _, p := range rows {
		if (p.Enabled || which == "all") && !p.Works {
			h.Logf("left out: %s: %s", p.Probe, firstLine(p.Reason))
			enabled = append(enabled, `"-`+p.Probe+`"`)
		}
	}
	h.reconfigure("probes.enabled", "["+strings.Join(enabled, ", ")+"]")
}

// reconfigure is configure on a machine that samples as seldom as a real node.
func (h *healthy) reconfigure(keys ...string) {
	h.Helper()
	h.edit(keys...)
	h.run("systemctl", "reload", unit)
	if text := h.property(unit, "StatusText"); strings.Contains(text, "refused") {
		h.Fatalf("the reload was refused: %s", text)
	}
}

func (h *healthy) fillFor(name string) {
	h.Helper()
	pods := map[string]struct{ idle, busy int }{"idle": {205, 0}, "busy": {0, 20}, "debian": {5, 2}, "troubles": {0, 2}, "gone": {0, 2}, allProbes: {3, 4}}[name]
	h.fill(pods.idle, pods.busy)
}

// scraped waits until Prometheus has everything up to now, and returns the time.
func (h *healthy) scraped() time.Time {
	h.Helper()
	h.sampled()
	since := time.Now()
	h.until("Prometheus scrapes", patience, func() error {
		list, err := h.rangeOf("timestamp(nodeskoop_build_info)", time.Now(), time.Now())
		if err != nil {
			return err
		}
		for _, s := range list {
			if v := s.Values[0]; v > float64(since.Unix()) {
				return nil
			}
		}
		return fmt.Errorf("its last scrape was before %v", since)
	})
	return time.Now()
}

func liveIdle(h *healthy, d time.Duration) {
	h.live(d, rhythm{})
}

func liveBusy(h *healthy, d time.Duration) {
	h.live(d, rhythm{busy: 5 * time.Minute, logs: 20 * time.Minute})
}

func liveDebian(h *healthy, d time.Duration) {
	h.Helper()
	if disk := h.makeSlowDisk("disk", h.diskPod); disk != nil {
		h.mountSlowly(disk, "/usr/share/"+samplePackage)
	}
	h.live(d, rhythm{idle: 10 * time.Minute, packages: time.Minute, logs: 10 * time.Minute})
}

// mountSlowly installs packages on a disk that takes over 10 ms per block, like a
// busy network disk.
func (h *healthy) mountSlowly(d *slowDisk, folder string) {
	h.Helper()
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", d.device).CombinedOutput(); err != nil {
		h.Fatalf("make a file system on %s: %v\n%s", d.device, err, out)
	}
	h.run("mkdir", "-p", folder)
	h.run("mount", d.device, folder)
	h.Cleanup(func() {
		if !h.off {
			_, _ = h.try("umount", folder)
		}
	})
	d.limit("read", 60)
	d.limit("write", 60)
	h.slow = d
}

// liveTroubles causes trouble for half of the time, then stops containerd, blocks
// netlink, and finally kills the daemon.
func liveTroubles(h *healthy, d time.Duration) {
	h.Helper()
	until, lasts := h.parts(d)
	serve := func(name string, command ...string) *pods.Pod {
		return h.pod("trouble", name, false, nil, append([]string{causeProgram}, command...)...)
	}
	idle := func(name string) *pods.Pod { return h.pod("trouble", name, false, nil) }
	client, nobody, lossy := idle("client"), idle("nobody"), idle("lossy")
	server, full, deaf := serve("server", "serve", "0.0.0.0:80"), serve("full", "full", "0.0.0.0:80"), serve("deaf", "deaf", "0.0.0.0:9")
	disk := h.makeSlowDisk("disk", h.diskPod)
	until(5)
	const from, to = 5, 32
	seconds := strconv.Itoa(int(lasts(from, to) / time.Second))
	var running []*testkit.Process
	cause := func(p *pods.Pod, what string, perSecond int, args ...string) {
		running = append(running, h.causing(p, lasts(from, to), what, perSecond, args...))
	}
	cause(client, "datagrams", 30, v4(nobody, 9))
	h.due("PacketsDropped", lasts(from, to), 15*time.Minute)
	h.in(server, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in tcp flags & psh == psh numgen random mod 100 < 15 drop")
	cause(lossy, "exchange", 25, v4(server, 80), v4(server, 80), v4(server, 80))
	h.due("TCPRetransmissions", lasts(from, to), 15*time.Minute)
	cause(client, "knock", 1, v4(full, 80))
	h.due("AcceptQueueOverflows", lasts(from, to), 15*time.Minute)
	cause(client, "datagrams", troubleEach, v4(deaf, 9))
	h.due("UDPReceiveBufferFull", lasts(from, to), 15*time.Minute)
	if disk != nil {
		disk.limit("read", 4)
		running = append(running, testkit.Start(h.T, disk.command("/srv"+causeProgram, "steadily", "readslowly", seconds, "1", disk.device)))
		h.due("BlockIOStalls", lasts(from, to), 15*time.Minute)
	}
	h.fillConnections(90)
	h.due("ConntrackTableFills", lasts(from, 28), 5*time.Minute)
	storm, hoard := idle("storm"), idle("hoard")
	h.storm(storm, lasts(from, to))
	h.due("ReceiveBacklogDrops", lasts(from, to), 15*time.Minute)
	h.edit("probes.flow.max_series", "1")
	enabled := regexp.MustCompile(`(?m)^enabled = \[(.*)\]$`).FindStringSubmatch(h.read(conffile))
	if enabled == nil {
		h.Fatal("the configuration enables no probes")
	}
	h.reconfigure("probes.enabled", "["+enabled[1]+`, "flow"]`)
	h.due("NodeskoopSeriesLeftOut", lasts(from, 46), 15*time.Minute)
	// A killed daemon loses its pending events. systemd starts another daemon.
	until(28)
	lost := func() (n float64) {
		for _, a := range accountsOf(parse(h.T, []byte(h.read(textfile)))) {
			n += a.lost
		}
		return n
	}
	before := lost()
	h.run("systemctl", "kill", "-s", "KILL", unit)
	h.until("the daemon runs again", patience, func() error {
		if !h.exists(textfile) || h.property(unit, "ActiveState") != "active" {
			return errors.New("not yet")
		}
		return nil
	})
	h.sampled()
	if n := lost(); n > before {
		h.due("NodeskoopEventsLost", lasts(28, 60), time.Minute)
	} else {
		h.Logf("a daemon that was killed has lost no event: %v, now %v", before, n)
	}
	h.fillConnections(100)
	h.emptyConnections()
	h.due("ConntrackDrops", lasts(28, 60), time.Minute)
	h.Log(strings.TrimSpace(h.inNetns(hoard, "hoard")))
	h.due("TCPMemoryPressure", lasts(28, 60), time.Minute)
	until(to)
	h.ended(running)

	h.run("systemctl", "stop", "containerd")
	h.due("NodeskoopPodsUnnamed", lasts(to, 46), 10*time.Minute)
	h.override("[Service]\nRestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX\n")
	h.sampled()
	if up, n := parse(h.T, []byte(h.read(textfile))).value("nodeskoop_probe_up"); int(up) == n {
		h.Errorf("all %d probes work without netlink", n)
	}
	h.due("NodeskoopProbeDown", lasts(to, 46), 10*time.Minute)
	until(46)
	h.run("systemctl", "start", "containerd")
	h.ctd.Await()

	// A daemon that is not restarted, as after its last start attempt, leaves its
	// textfile behind.
	h.override("[Service]\nRestart=no\n")
	h.sampled()
	h.run("systemctl", "kill", "-s", "KILL", unit)
	h.due("NodeskoopStale", lasts(46, 60), 4*time.Minute)
	until(60)
	h.run("systemctl", "start", unit)
}

// causing causes something in a pod's network namespace while the test continues.
func (h *healthy) causing(p *pods.Pod, d time.Duration, what string, perSecond int, args ...string) *testkit.Process {
	h.Helper()
	return testkit.Start(h.T, h.command("nsenter", append([]string{"-t", strconv.Itoa(p.PID), "-n", "/srv" + causeProgram, "steadily", what,
		strconv.Itoa(int(d / time.Second)), strconv.Itoa(perSecond)}, args...)...))
}

// ended waits for the processes that cause trouble.
func (h *healthy) ended(running []*testkit.Process) {
	h.Helper()
	for _, p := range running {
		if p.Ready(h.T, p.Ended); !p.ProcessState.Success() {
			h.Errorf("%s: %v:\n%s", p.Cmd, p.ProcessState, p.Log)
		}
	}
}

// liveAllProbes causes each kind of trouble for a while, and three of them until
// the end.
func liveAllProbes(h *healthy, d time.Duration) {
	h.Helper()
	sixtieths, _ := h.parts(d)
	until := func(twelfth int) { sixtieths(5 * twelfth) }
	serve := func(name string, command ...string) *pods.Pod {
		return h.pod("trouble", name, false, nil, append([]string{causeProgram}, command...)...)
	}
	idle := func(name string) *pods.Pod { return h.pod("trouble", name, false, nil) }
	client, nobody, lossy, firewall, closed, silent := idle("client"), idle("nobody"), idle("lossy"), idle("firewall"), idle("closed"), idle("silent")
	aborts, waits, reader, sender := idle("aborts"), idle("waits"), idle("reader"), idle("sender")
	server, shop := serve("server", "serve", "0.0.0.0:80"), serve("shop", "serve", "0.0.0.0:80")
	full, deaf := serve("full", "full", "0.0.0.0:80"), serve("deaf", "deaf", "0.0.0.0:9")
	disk := h.makeSlowDisk("disk", h.diskPod)
	filter := func(p *pods.Pod, rule string) {
		h.in(p, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in "+rule)
	}
	filter(server, "tcp flags & psh == psh numgen random mod 100 < 15 drop")
	filter(firewall, "udp dport 9 drop")
	filter(silent, "tcp dport 81 drop")

	var running []*testkit.Process
	cause := func(p *pods.Pod, twelfths int, what string, perSecond int, args ...string) {
		running = append(running, h.causing(p, d*time.Duration(twelfths)/12, what, perSecond, args...))
	}
	until(1)
	cause(client, 11, "datagrams", 3*troubleEach, v4(deaf, 9))
	cause(client, 11, "knock", 1, v4(full, 80))
	cause(lossy, 11, "exchange", 25, v4(server, 80), v4(server, 80), v4(server, 80))
	until(3)
	cause(client, 5, "datagrams", troubleEach, v4(nobody, 9))
	cause(client, 4, "datagrams", 2*troubleEach, v4(firewall, 9))
	cause(reader, 4, "readlate", troubleEach)
	if disk != nil {
		disk.limit("read", 4)
		running = append(running, testkit.Start(h.T, disk.command("/srv"+causeProgram, "steadily", "readslowly", strconv.Itoa(int(d.Seconds()/2)), "1", disk.device)))
	}
	until(5)
	cause(client, 3, "refused", troubleEach, v4(closed, 7))
	cause(aborts, 4, "abort", troubleEach, v4(shop, 80))
	cause(waits, 4, "unanswered", 4, v4(silent, 81))
	cause(sender, 4, "sendlate", troubleEach)
	until(12)
	h.ended(running)
}

// ownMetrics returns all of nodeskoop's metrics that Prometheus has.
func (h *healthy) ownMetrics() []string {
	h.Helper()
	names, err := h.values(`label_values({__name__=~"(kubeskoop|nodeskoop)_.+"}, __name__)`)
	if err != nil {
		h.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool {
		m := catalog.MetricBySeries(name)
		return m == nil || m.Alias != ""
	})
}

// ruleMetrics returns the metrics that the rules read, as parsed by Prometheus.
func (h *healthy) ruleMetrics() []string {
	h.Helper()
	var rules struct {
		Groups []struct{ Rules []struct{ Query string } }
	}
	if err := h.ask("rules", &rules); err != nil {
		h.Fatal(err)
	}
	set := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, name := range metricsOf(r.Query) {
				set[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

var metricName = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[a-zA-Z_:][a-zA-Z0-9_:]*`)

// metricsOf lists the metrics in an expression that no rule records: nodeskoop's,
// and up.
func metricsOf(expr string) []string {
	var list []string
	for _, name := range metricName.FindAllString(expr, -1) {
		if name == "up" || strings.HasPrefix(name, "kubeskoop_") || strings.HasPrefix(name, "nodeskoop_") {
			list = append(list, name)
		}
	}
	return list
}

// rangeOf evaluates an expression in Prometheus at all times of a recording.
func (h *healthy) rangeOf(expr string, start, end time.Time) ([]recorded.Series, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
	at := func(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
	q := url.Values{"query": {expr}, "start": {at(start)}, "end": {at(end)}, "step": {at(time.Unix(0, 0).Add(recordedEach))}}
	if err := h.ask("query_range?"+q.Encode(), &data); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	var list []recorded.Series
	for _, r := range data.Result {
		s := recorded.Series{Labels: r.Metric, Values: make([]float64, 1+int(end.Sub(start)/recordedEach))}
		for i := range s.Values {
			s.Values[i] = math.NaN()
		}
		for _, v := range r.Values {
			seconds, ok := v[0].(float64)
			text, _ := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			i := int(math.Round((seconds - float64(start.UnixMilli())/1000) / recordedEach.Seconds()))
			if !ok || err != nil || i < 0 || i >= len(s.Values) {
				return nil, fmt.Errorf("%s: Prometheus answers a sample %v", expr, v)
			}
			s.Values[i] = value
		}
		list = append(list, s)
	}
	return list, nil
}

// samplesOf returns the recording of a metric. Values that are times count from the
// beginning, where promtool's clock starts.
func (h *healthy) samplesOf(metric string, start, end time.Time) []recorded.Series {
	h.Helper()
	list, err := h.rangeOf(metric, start, end)
	if err != nil {
		h.Fatal(err)
	}
	if strings.HasSuffix(metric, "_timestamp_seconds") {
		for _, s := range list {
			for i, v := range s.Values {
				s.Values[i] = math.Round(1000*(v-float64(start.UnixMilli())/1000)) / 1000
			}
		}
	}
	return list
}

// promtool runs the recording with the machine's rules.
func (h *healthy) promtool(test string) {
	h.Helper()
	h.write("/srv/recorded/test.yml", test)
	for _, file := range h.shipped(".rules.yml") {
		h.write("/srv/recorded/"+recordedRules, h.read(file))
	}
	out, err := h.try("promtool", "test", "rules", "/srv/recorded/test.yml")
	if err != nil {
		h.Errorf("the recording and the rules do not agree: %v\n%s", err, out)
	}
}
