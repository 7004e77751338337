package main

import (
	"context"
	little "encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/report"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/output/history"
)

// minuteEnv sets the length of a history minute for a test's daemon.
const minuteEnv = "NODESKOOP_TEST_MINUTE"

// withMinute runs the program in this process with a different history minute. The
// released program has no such setting.
func withMinute(minute string) int {
	var err error
	if historyMinute, err = time.ParseDuration(minute); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args, os.Stdout, os.Stderr)
}

// recorded is the history of one of the host's counters.
type recorded struct {
	minutes []string // start and increase of each minute
	sum     float64
	first   int // number of minutes that are the first of a run
	damage  history.Damage
}

func (n *node) recorded(metric string) (r recorded) {
	n.t.Helper()
	reader := &history.Reader{Dir: filepath.Join(n.state(), history.Folder)}
	for m, err := range reader.Minutes(history.Query{Keep: func(s *history.Series) bool { return s.Metric == metric && s.Label("k8s_pod") == "hostNetwork" }}) {
		if err != nil {
			n.t.Fatal(err)
		}
		rise := 0.0
		for _, s := range m.Samples {
			rise += s.Value
		}
		r.sum += rise
		r.minutes = append(r.minutes, fmt.Sprintf("%s %v", m.To.UTC().Format(time.RFC3339Nano), rise))
		if m.First {
			r.first++
		}
	}
	r.damage = reader.Damage
	return r
}

// TestHistory: the history equals the counts, also after a kill; an idle node
// records nothing.
func TestHistory(t *testing.T) {
	const metric = "kubeskoop_netdev_txpackets"
	n := newNode(t, "'netdev','tcp'", "")
	n.link("nic", 100)
	daemon := func() *program {
		return begin(t, func(cmd *exec.Cmd) {
			cmd.Path, cmd.Env = "/proc/self/exe", append(os.Environ(), minuteEnv+"=2s")
		}, "run", "--config", n.cfg)
	}
	more := func(minutes int) {
		t.Helper()
		have := len(n.recorded(metric).minutes)
		testkit.Eventually(t, fmt.Sprintf("%d more minutes are written", minutes), func() bool { return len(n.recorded(metric).minutes) >= have+minutes })
	}
	p := daemon()
	more(2)
	if r := n.recorded(metric); r.sum != 0 {
		t.Errorf("nothing was sent, and %v were recorded: %v", r.sum, r.minutes)
	}
	n.link("more", 30)
	testkit.Eventually(t, "the 30 packets are recorded", func() bool { return n.recorded(metric).sum >= 30 })
	if r := n.recorded(metric); r.sum != 30 {
		t.Errorf("30 packets were sent, and %v were recorded: %v", r.sum, r.minutes)
	}
	more(1)
	before := n.recorded(metric)
	p.signal(syscall.SIGKILL)
	<-p.Done()

	p = daemon()
	more(2)
	n.link("again", 7)
	testkit.Eventually(t, "the 7 packets are recorded, too", func() bool { return n.recorded(metric).sum >= 37 })
	after := n.recorded(metric)
	if after.sum != 37 || after.first != 2 || after.damage.Bytes+int64(after.damage.Frames+after.damage.Values) > 0 {
		t.Errorf("%+v", after)
	}
	// One more minute may have been written between the reading and the kill.
	if got := strings.Join(after.minutes, "\n"); !strings.HasPrefix(got, strings.Join(before.minutes, "\n")) {
		t.Errorf("before the kill:\n%v\nafter it:\n%v", before.minutes, after.minutes)
	}
	fams := n.cycles(1)
	if f := fams["nodeskoop_history_frames_lost_total"]; f == nil || f.Metric[0].GetCounter().GetValue() != 0 {
		t.Errorf("lost: %v", f)
	}
	if f := fams["nodeskoop_history_bytes"]; f == nil || f.Metric[0].GetGauge().GetValue() < 4096 {
		t.Errorf("bytes: %v", f)
	}

	// A clean shutdown loses nothing.
	n.link("last", 5)
	n.cycles(2)
	p.signal(syscall.SIGTERM)
	if code := p.ended(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if r := n.recorded(metric); r.sum != 42 {
		t.Errorf("%v of 42 packets are recorded: %v", r.sum, r.minutes)
	}
	code, out, errs := call(t, "history", "--config", n.cfg, "--since", "-1d", "--metric", "kubeskoop_netdev_tx*", "--pod", "host", "--json")
	sum := 0.0
	for line := range strings.Lines(out) {
		var l historyLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if l.Metric == metric {
			sum += *l.Increase
		}
	}
	if code != 0 || errs != "" || sum != 42 || strings.Count(out, `"gap":"the daemon was started"`) != 1 || strings.Contains(out, "tcp") {
		t.Errorf("history --json: exit %d, %v packets, %s\n%s", code, sum, errs, out)
	}
	if code, out, errs := call(t, "history", "--config", n.cfg, "--metric", metric); code != 0 || errs != "" || !strings.Contains(out, "  kubeskoop_netdev_txpackets{k8s_node=\"n1\",k8s_namespace=\"hostNetwork\",k8s_pod=\"hostNetwork\"}\n") || !strings.Contains(out, ": the daemon was started\n") {
		t.Errorf("history: exit %d, %s\n%s", code, errs, out)
	}
	// A report on the same history, and the table of one of its minutes.
	journalFile(t)
	code, out, errs = call(t, "report", "--config", n.cfg, "--json")
	var r report.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || errs != "" || !slices.ContainsFunc(r.Gaps, func(g report.Gap) bool { return g.Why == "the daemon was started" }) || len(r.Counters) != 0 {
		t.Errorf("report: exit %d, %v, %s\n%s", code, err, errs, out)
	}
	if code, out, errs := call(t, "top", "--config", n.cfg, "--at", "-2d"); code != exitFailure || out != "" || !strings.Contains(errs, "the history has no minute of ") {
		t.Errorf("top --at -2d: exit %d, %s\n%s", code, errs, out)
	}
	// In a minute of the clock in which nothing was sent, the table has no row.
	sent := slices.IndexFunc(after.minutes, func(m string) bool { return !strings.HasSuffix(m, " 0") })
	at, _, _ := strings.Cut(after.minutes[sent], " ")
	if code, out, errs := call(t, "top", "--config", n.cfg, "--at", at, "--probe", "netdev"); code != 0 || errs != "" || !strings.Contains(out, "\nhost ") || !strings.Contains(out, " TX-P") {
		t.Errorf("top --at %s: exit %d, %s\n%s", at, code, errs, out)
	}
	if code, out, _ := call(t, "history", "--config", n.cfg, "--metric", metric, "--until", "-1h"); code != 0 || out != "" {
		t.Errorf("history of before: exit %d, %s", code, out)
	}
	if strings.Contains(p.logged(), "level=WARN msg=\"the history") {
		t.Errorf("the log:\n%s", p.logged())
	}
}

// TestHistoryMistakes: unreadable history is reported, with a solution.
func TestHistoryMistakes(t *testing.T) {
	cfg := conf(t, t.TempDir(), "[state]\ndir = '/nonexistent'\n")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitFailure, "there is no history in /nonexistent/history"},
		{[]string{"--since", "soon"}, exitUsage, `--since: "soon" is not a point in time`},
		{[]string{"--until", "25:00"}, exitUsage, `--until: "25:00" is not a point in time`},
		{[]string{"--metric", "["}, exitUsage, `--metric: "[" is not a pattern`},
		{[]string{"--pod", "a/"}, exitUsage, "is not NAMESPACE/NAME"},
	} {
		if code, out, errs := call(t, append([]string{"history", "--config", cfg}, c.args...)...); code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
}

// TestHistoryReload: a reload turns the history off and on.
func TestHistoryReload(t *testing.T) {
	n := newNode(t, "'tcp'", "")
	text, err := os.ReadFile(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "run", "--config", n.cfg)
	shown := func() bool { return parseProm(t, n.file())["nodeskoop_history_frames_lost_total"] != nil }
	testkit.Eventually(t, "the history has metrics", shown)
	n.cycles(2)
	conf(t, n.dir, string(text)+"[history]\nenabled = false\n")
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "it has none when it is off", func() bool { return parseProm(t, n.file()) != nil && !shown() })
	conf(t, n.dir, string(text)+"[history]\nmax = \"2 MB\"\n")
	p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "it has them again", shown)
	n.cycles(2)
	p.signal(syscall.SIGTERM)
	p.ended()
	if r := n.recorded("kubeskoop_tcp_insegs"); r.first != 2 || r.damage.Bytes > 0 {
		t.Errorf("the minutes that were open are lost: %+v", r)
	}
}

// BenchmarkHistory runs the daemon for some minutes beside 110 real pods: 99 pods
// of makePods with health requests, and 11 that serve requests all the time. Each
// result has the number of counters that changed per minute, and the history's
// bytes per day.
func BenchmarkHistory(b *testing.B) {
	need.Root(b)
	const idle, busy, minutes = 99, 11, 8
	ctd := pods.Start(b)
	makePods(b, ctd, 0, idle)
	for i := range busy {
		ctd.RunPod(pods.PodSpec{Namespace: "load", Name: fmt.Sprintf("api-7c9d8b6f5-%05d", i), Containers: []pods.ContainerSpec{{
			Name:    "main",
			Command: []string{"sh", "-c", fmt.Sprintf("seq %d000 > /tmp/page; httpd -p 8080 -h /tmp; while :; do wget -q -O /dev/null http://127.0.0.1:8080/page; sleep 0.%d; done", 1+i%4, 3+i%6)},
		}}})
	}
	for b.Loop() {
		dir := b.TempDir()
		cfg := conf(b, dir, fmt.Sprintf("node_name = 'ip-10-0-12-34.eu-central-1.compute.internal'\nhost_netns = '%s'\n[textfile]\ndir = '%s'\n[state]\ndir = '%s/state'\n[pods]\nsockets = ['%s']\n", ctd.Netns, dir, dir, ctd.Socket))
		cmd := exec.Command(testkit.Nodeskoop(b), "run", "--config", cfg)
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			b.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = log, log
		if err := ctd.Do(cmd.Start); err != nil {
			b.Fatal(err)
		}
		var sizes []int64
		var counters, gauges int
		for len(sizes) < minutes {
			time.Sleep(5 * time.Second)
			n, file := 0, int64(0)
			counters, gauges = 0, 0
			r := &history.Reader{Dir: filepath.Join(dir, "state", history.Folder)}
			for m, err := range r.Minutes(history.Query{}) {
				if err != nil {
					b.Fatal(err)
				}
				n++
				for _, s := range m.Samples {
					if s.Kind == history.Counter {
						counters++
					} else {
						gauges++
					}
				}
			}
			names, _ := filepath.Glob(filepath.Join(r.Dir, "*.nsh"))
			for _, name := range names {
				if fi, err := os.Stat(name); err == nil {
					file += fi.Size()
				}
			}
			if len(names) > 1 { // a new hour began, so its names appear twice
				sizes = nil
			} else if n > len(sizes) {
				sizes = append(sizes, file)
			}
		}
		series := 0
		for _, f := range parseProm(b, filepath.Join(dir, "nodeskoop.prom")) {
			series += len(f.Metric)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = log.Close()
		// The first two frames contain the names of series and gauges.
		each := float64(sizes[minutes-1]-sizes[1]) / (minutes - 2)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(series), "series")
		b.ReportMetric(float64(counters)/minutes, "counters/minute")
		b.ReportMetric(float64(gauges)/minutes, "gauges/minute")
		b.ReportMetric(float64(sizes[1]), "bytes-of-names/hour")
		b.ReportMetric(each, "bytes/minute")
		b.ReportMetric((float64(sizes[1])+58*each)*24/1e6, "MB/day")
	}
}

// What is not in the history is said on standard error: a range without minutes, series
// that did not move, minutes that are damaged or of another version. Standard output and
// the exit code are those of the rest.
func TestHistoryOfLittle(t *testing.T) {
	cfg, dir := withHistory(t)
	name, kind := "kubeskoop_tcp_insegs", dto.MetricType_COUNTER
	h := history.New(history.Options{Dir: dir, MaxBytes: 1 << 20, MaxAge: time.Hour})
	for i := range 2 {
		n := float64(7 * i)
		h.Observe([]*dto.MetricFamily{{Name: &name, Type: &kind, Metric: []*dto.Metric{{Counter: &dto.Counter{Value: &n}}}}})
	}
	h.Close(time.Minute)
	for _, c := range []struct {
		args      []string
		out, errs string
	}{
		{nil, "  +7  kubeskoop_tcp_insegs\n", ""},
		{[]string{"--metric", "kubeskoop_udp*"}, "", "No such series moved from "},
		{[]string{"--pod", "shop/wbe-0", "--json"}, "", "No such series moved from "},
		{[]string{"--since", "-3h", "--until", "-2h"}, "", "The history has no minute from "},
	} {
		code, out, errs := call(t, append([]string{"history", "--config", cfg}, c.args...)...)
		if code != 0 || !strings.HasSuffix(out, c.out) || (out == "") != (c.out == "") || !strings.HasPrefix(errs, c.errs) || (errs == "") != (c.errs == "") {
			t.Errorf("%v: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.nsh"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	newer := slices.Clone(b)
	newer[3] = 9
	little.LittleEndian.PutUint32(newer[12:], crc32.Checksum(newer[:12], crc32.MakeTable(crc32.Castagnoli)))
	flipped := slices.Clone(b)
	flipped[5] ^= 1
	for what, content := range map[string][]byte{
		"1 minutes of the history in " + dir + " are left out: another version of nodeskoop wrote them": slices.Concat(b, newer),
		"1 minutes and 0 values of the history in " + dir + " are damaged and left out":                 slices.Concat(flipped, b),
	} {
		if err := os.WriteFile(files[0], content, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errs := call(t, "history", "--config", cfg); code != exitFailure || !strings.HasSuffix(out, "  +7  kubeskoop_tcp_insegs\n") || !strings.Contains(errs, what) {
			t.Errorf("%s: exit %d, %q, %q", what, code, out, errs)
		}
		journalFile(t)
		if code, out, errs := call(t, "report", "--config", cfg); code != exitPartial || !strings.Contains(strings.ReplaceAll(out, "\n", " "), "The history could not be read completely: ") || !strings.Contains(errs, what) {
			t.Errorf("%s: exit %d, %q, %q", what, code, out, errs)
		}
	}
}
