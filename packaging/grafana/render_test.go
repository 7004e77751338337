package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
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

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/recording"
)

// empty lists the panels that are empty with the recorded nodes, and why. It is an
// error if a listed panel shows data.
var empty = map[string]string{
	`nodeskoop-nodes, timeseries "Time in BPF programs"`:              "the kernel's statistics are off",
	`nodeskoop-nodes, timeseries "virtio-net control commands"`:       "the recorded machine's kernel does not support the probe virtcmdlatency",
	`nodeskoop-nodes, timeseries "Most storage read"`:                 "no recorded pod uses storage",
	`nodeskoop-nodes, timeseries "Most storage written"`:              "no recorded pod uses storage",
	`nodeskoop-events, timeseries "VIRTCMDEXCUTE"`:                    "the recorded machine's kernel does not support the probe virtcmdlatency",
	`nodeskoop-events, timeseries "TXKERNEL: over 100 ms"`:            "no packet was slow inside the kernel",
	`nodeskoop-events, timeseries "Suppressed by a rate limit"`:       "no event was over its rate limit",
	`nodeskoop-events, timeseries "TXLAT: over 100 ms in the qdisc"`:  "no packet was slow on the way out",
	`nodeskoop-events, timeseries "TXLAT: over 100 ms in the driver"`: "no packet was slow on the way out",
}

// The page's measures, those of render/board.tsx.
const (
	pageWidth = 1400
	pageTop   = 96
	pageCell  = 38
	pageEnd   = 16
)

// largest is the maximum size of a picture in bytes.
const largest = 300_000

// recorded is the time to which recordings are shifted.
var recorded = time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC)

// view is one picture of a dashboard.
type view struct {
	board dashboard
	theme string
	open  bool // only its closed rows, which the test opens
	query url.Values
}

func (v view) name() string {
	name := strings.Replace(v.board.uid, "nodeskoop-", "dashboard-", 1)
	if v.open {
		name += "-rows"
	}
	if v.theme == "light" {
		name += "-light"
	}
	return name + ".png"
}

// report is the page's report on what it has drawn.
type report struct {
	Board     string
	Variables []struct {
		Name, Text string
		Offered    []string
	}
	Annotations []struct {
		Name  string
		Count int
	}
	Panels []struct {
		Title, Kind, Error   string
		Values, Series, Rows int
		Names, Texts, Links  []string
	}
}

// TestRender draws each dashboard in a browser with Grafana's own components, from
// a Prometheus with recorded nodes, and checks each panel.
func TestRender(t *testing.T) {
	pictures := os.Getenv("NODESKOOP_RENDER")
	need.Target(t, "render", pictures != "")
	need.ProgramFrom(t, ".ci/deps render", "node", "npm", "chromium")
	need.Program(t, "prometheus", "promtool")
	bundle := bundle(t)
	nodes, length, step := blocks(t)
	prometheus := nodes.start(t)
	prometheus = nodes.evaluate(t, prometheus, recorded, recorded.Add(length))

	target, err := url.Parse(prometheus)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 100)
	mux := http.NewServeMux()
	mux.Handle("/api/", httputil.NewSingleHostReverseProxy(target))
	mux.Handle("/boards/", http.StripPrefix("/boards/", http.FileServer(http.Dir("."))))
	mux.Handle("/", http.FileServer(http.Dir(bundle)))
	for _, path := range []string{"/drawn", "/failed"} {
		mux.HandleFunc("POST "+path, func(_ http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				b = []byte(err.Error())
			}
			said <- path + " " + string(b)
		})
	}
	server := httptest.NewServer(mux)
	defer server.Close()

	var views []view
	for _, d := range dashboards() {
		query := url.Values{}
		switch d.uid {
		case "nodeskoop-nodes":
			query.Set("var-node", "node-1")
		case "nodeskoop-pods":
			query["var-namespace"] = []string{"shop", "trouble"}
		}
		views = append(views, view{d, "dark", false, query}, view{d, "light", false, query})
		if slices.ContainsFunc(d.rows, func(r row) bool { return r.closed }) {
			views = append(views, view{d, "dark", true, query})
		}
	}
	found := map[string]bool{}
	for _, v := range views {
		q := maps.Clone(v.query)
		for k, value := range map[string]string{"board": v.board.uid, "theme": v.theme, "rows": map[bool]string{true: "open", false: "closed"}[v.open], "width": strconv.Itoa(pageWidth),
			"from": strconv.FormatInt(recorded.Unix(), 10), "to": strconv.FormatInt(recorded.Add(length).Unix(), 10), "interval": strconv.Itoa(int(step / time.Second))} {
			q.Set(k, value)
		}
		picture := filepath.Join(t.TempDir(), v.name())
		begin := time.Now()
		photograph(t, server.URL+"/?"+q.Encode(), picture, height(v))
		answer := ""
		select {
		case answer = <-said:
		default:
			t.Fatalf("%s: the page said nothing", v.name())
		}
		path, text, _ := strings.Cut(answer, " ")
		var r report
		if err := json.Unmarshal([]byte(text), &r); path != "/drawn" || err != nil {
			t.Fatalf("%s: the page failed: %s", v.name(), text)
		}
		r.check(t, v, found)
		small, err := shrink(picture)
		if err == nil {
			err = os.MkdirAll(pictures, 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(pictures, v.name()), small, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(small) > largest {
			t.Errorf("%s has %d bytes, want at most %d", v.name(), len(small), largest)
		}
		t.Logf("%s: %d panels, %d bytes, %.1f s", v.name(), len(r.Panels), len(small), time.Since(begin).Seconds())
	}
	for _, where := range slices.Sorted(maps.Keys(empty)) {
		if !found[where] {
			t.Errorf("%s is listed as empty, and is no panel", where)
		}
	}
}

var (
	// milli matches a number with the SI prefix m (milli), which looks like M
	// (mega).
	milli = regexp.MustCompile(`^-?[0-9.]+ *m[A-Za-z/]+$`)
	timed = regexp.MustCompile(`^-?[0-9.]+ *(ms|mins?)$`)
	leads = regexp.MustCompile(` /d/([A-Za-z0-9-]+)\?`)
)

// check compares the drawn panels with the expected ones.
func (r report) check(t *testing.T, v view, found map[string]bool) {
	t.Helper()
	boards := []string{"rYdddlPWk"}
	for _, d := range dashboards() {
		boards = append(boards, d.uid)
	}
	for _, x := range r.Variables {
		if len(x.Offered) == 0 || x.Text == "" {
			t.Errorf("%s: the variable %s offers %q, and is %q", v.name(), x.Name, x.Offered, x.Text)
		}
	}
	if len(r.Annotations) == 0 {
		t.Errorf("%s: no annotations", v.name())
	}
	for _, a := range r.Annotations {
		if a.Count == 0 {
			t.Errorf("%s: none of the annotations %s", v.name(), a.Name)
		}
	}
	if len(r.Panels) == 0 {
		t.Errorf("%s: no panels", v.name())
	}
	for _, p := range r.Panels {
		where := r.Board + ", " + p.Kind + " " + strconv.Quote(p.Title)
		found[where] = true
		why, listed := empty[where]
		switch {
		case p.Error != "":
			t.Errorf("%s: %s", where, p.Error)
		case p.Values == 0 && !listed:
			t.Errorf("%s is empty", where)
		case p.Values > 0 && listed:
			t.Errorf("%s shows %d values, and is listed as empty: %s", where, p.Values, why)
		}
		for _, text := range p.Texts {
			if milli.MatchString(text) && !timed.MatchString(text) {
				t.Errorf("%s shows %s", where, text)
			}
		}
		for _, name := range p.Names {
			if metricName.MatchString(name) || strings.Contains(name, "{") || name == "" {
				t.Errorf("%s names a series %q", where, name)
			}
		}
		for _, l := range p.Links {
			if m := leads.FindStringSubmatch(l); m == nil || !slices.Contains(boards, m[1]) || strings.Contains(l, "${") {
				t.Errorf("%s: a link leads to %q", where, l)
			}
		}
	}
}

// height returns the height of a picture with all panels.
func height(v view) int {
	rows, y := 0, 0
	for _, o := range layOut(v.board.rows) {
		at := o["gridPos"].(object)
		if !v.open {
			rows = max(rows, at["y"].(int)+at["h"].(int))
			continue
		}
		if closed, _ := o["collapsed"].(bool); !closed {
			continue
		}
		below := y + 1
		for _, p := range o["panels"].([]object) {
			in := p["gridPos"].(object)
			below = max(below, y+in["y"].(int)-at["y"].(int)+in["h"].(int))
		}
		y, rows = below, below
	}
	return pageTop + rows*pageCell + pageEnd
}

// run runs a program and returns its output.
func run(t *testing.T, dir string, limit time.Duration, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.WaitDelay = dir, time.Second
	out, err := cmd.CombinedOutput()
	// A browser's helper processes may hold the output open for some time.
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// bundle builds the page with the npm packages of the lock file, below .cache.
func bundle(t *testing.T) (dir string) {
	t.Helper()
	work, err := filepath.Abs("../../.cache/render")
	if err != nil {
		t.Fatal(err)
	}
	copied := func(name string) (changed bool) {
		b, err := os.ReadFile("render/" + name)
		if err != nil {
			t.Fatal(err)
		}
		was, _ := os.ReadFile(filepath.Join(work, name))
		if bytes.Equal(was, b) {
			return false
		}
		if err := os.WriteFile(filepath.Join(work, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return true
	}
	dir = filepath.Join(work, "out")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	installed := filepath.Join(work, "node_modules/.package-lock.json") // npm writes this file last
	changed := copied("package.json")
	if copied("package-lock.json") || changed {
		_ = os.Remove(installed)
	}
	if _, err := os.Stat(installed); err != nil {
		run(t, work, 15*time.Minute, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	}
	for _, f := range []string{"board.tsx", "build.mjs", "index.html"} {
		copied(f)
	}
	run(t, work, 5*time.Minute, "node", "build.mjs", dir)
	page, err := os.ReadFile("render/index.html")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "index.html"), page, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// store is a Prometheus data folder.
type store struct {
	dir  string
	runs *testkit.Process
}

// blocks loads the recordings, each as a node of its own. length is the duration of
// the first.
func blocks(t *testing.T) (s *store, length, step time.Duration) {
	t.Helper()
	files, err := filepath.Glob("testdata/recorded/*.yml.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("nothing is recorded in testdata/recorded (%v): make record-boards", err)
	}
	s = &store{dir: t.TempDir()}
	type node struct {
		list   []recording.Series
		length time.Duration
	}
	var nodes []node
	for i, f := range files {
		list, each, err := recording.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		if step != 0 && step != each {
			t.Fatalf("%s has samples each %v, others each %v", f, each, step)
		}
		step = each
		n := node{list: list}
		name := fmt.Sprintf("node-%d", i+1)
		for _, s := range list {
			s.Labels["k8s_node"], s.Labels["instance"] = name, name+":9100"
			n.length = max(n.length, time.Duration(len(s.Values)-1)*step)
		}
		nodes = append(nodes, n)
	}
	// The first recording has all metrics; the displayed time range is its own, and
	// the other recordings end with it.
	length = nodes[0].length
	for i, n := range nodes {
		text := filepath.Join(t.TempDir(), "samples")
		f, err := os.Create(text)
		if err == nil {
			err = recording.OpenMetrics(f, n.list, recorded.Add(length-n.length), step)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatalf("%s: %v", files[i], err)
		}
		run(t, ".", 5*time.Minute, "promtool", "tsdb", "create-blocks-from", "openmetrics", text, s.dir)
	}
	return s, length, step
}

// start starts or restarts Prometheus, and returns its address.
func (s *store) start(t *testing.T) string {
	t.Helper()
	if s.runs != nil {
		s.runs.Stop()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	rules, err := filepath.Abs("../prometheus/nodeskoop.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "rule_files: [%q]\n", rules), 0o644); err != nil {
		t.Fatal(err)
	}
	s.runs = testkit.Start(t, exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+s.dir, "--storage.tsdb.retention.time=100y", "--web.listen-address="+addr))
	testkit.Await(t, func() error {
		r, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return err
		}
		r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("Prometheus is not ready: %s", r.Status)
		}
		return nil
	})
	return "http://" + addr
}

// evaluate adds the results of the rules for the recordings. promtool creates
// series for recording rules but not for alerts, so each alert is written as a rule
// that records ALERTS once its condition has held long enough. It restarts
// Prometheus and returns its address.
func (s *store) evaluate(t *testing.T, prometheus string, start, end time.Time) string {
	t.Helper()
	var answer struct {
		Data struct {
			Groups []struct {
				Name  string
				Rules []struct {
					Type, Name, Query string
					Duration          float64
					Labels            map[string]string
				}
			}
		}
	}
	r, err := http.Get(prometheus + "/api/v1/rules")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	const each = 15 * time.Second
	// Most alerts fire after ten minutes of trouble, and the recordings are shorter.
	const longestWait = 5 * time.Minute
	records, alerts := []object{}, []object{}
	for _, g := range answer.Data.Groups {
		for _, r := range g.Rules {
			if r.Type == "recording" {
				records = append(records, object{"record": r.Name, "expr": r.Query})
				continue
			}
			labels := maps.Clone(r.Labels)
			labels["alertname"], labels["alertstate"] = r.Name, "firing"
			expr := r.Query
			wait := min(r.Duration, longestWait.Seconds())
			if n := int(wait / each.Seconds()); n > 0 {
				expr = fmt.Sprintf("count_over_time((%s)[%.0fs:%.0fs]) >= %d", r.Query, wait, each.Seconds(), n)
			}
			alerts = append(alerts, object{"record": "ALERTS", "expr": expr, "labels": labels})
		}
	}
	// Alerts read recorded series.
	for _, rules := range [][]object{records, alerts} {
		b, err := json.Marshal(object{"groups": []object{{"name": "all", "rules": rules}}}) // JSON is YAML
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "rules.yml")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, ".", 5*time.Minute, "promtool", "tsdb", "create-blocks-from", "rules", "--url="+prometheus, "--output-dir="+s.dir, "--eval-interval="+each.String(),
			"--start="+start.Format(time.RFC3339), "--end="+end.Format(time.RFC3339), file)
		prometheus = s.start(t)
	}
	return prometheus
}

// photograph writes a screenshot of a page.
func photograph(t *testing.T, address, file string, height int) {
	t.Helper()
	profile := t.TempDir()
	run(t, ".", 3*time.Minute, "env", "HOME="+profile, "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1",
		"--user-data-dir="+profile, fmt.Sprintf("--window-size=%d,%d", pageWidth, height), "--virtual-time-budget=60000", "--screenshot="+file, address)
}

// shrink reduces a picture to its 256 most frequent colours; a page has few, and
// the others are edges of letters.
func shrink(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	from, err := png.Decode(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	bounds := from.Bounds()
	pixels := map[color.RGBA]int{}
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(from.At(x, y)).(color.RGBA) }
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			pixels[at(x, y)]++
		}
	}
	colors := slices.SortedFunc(maps.Keys(pixels), func(a, b color.RGBA) int {
		return cmp.Or(cmp.Compare(pixels[b], pixels[a]), cmp.Compare(a.R, b.R), cmp.Compare(a.G, b.G), cmp.Compare(a.B, b.B))
	})
	var palette color.Palette
	for _, c := range colors[:min(len(colors), 256)] {
		palette = append(palette, c)
	}
	nearest := map[color.RGBA]uint8{}
	for _, c := range colors {
		nearest[c] = uint8(palette.Index(c))
	}
	to := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			to.SetColorIndex(x, y, nearest[at(x, y)])
		}
	}
	var b bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, to)
	return b.Bytes(), err
}
