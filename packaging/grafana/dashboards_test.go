package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/need"
)

// file is the part of a dashboard that these tests read.
type file struct {
	UID           string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage
		}
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
	Panels []filePanel
}

type filePanel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Panels      []filePanel
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		RefID, Expr, LegendFormat, Format string
	}
	FieldConfig struct {
		Defaults struct {
			Unit   string
			Custom struct{ AxisSoftMax float64 }
		}
	}
	Options struct {
		Calculate bool
		YAxis     struct{ Unit string }
		Legend    struct {
			SortBy   string
			SortDesc bool
		}
		SortBy []struct{ DisplayName string }
	}
	Datasource struct{ UID string }
}

func load(t *testing.T, uid string) (file, []byte) {
	t.Helper()
	b, err := os.ReadFile(uid + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatalf("%s.json: %v", uid, err)
	}
	return f, b
}

// all returns all panels, including those in closed rows.
func (f file) all() []filePanel {
	var out []filePanel
	for _, p := range f.Panels {
		out = append(append(out, p), p.Panels...)
	}
	return out
}

func TestFilesAreFresh(t *testing.T) {
	for _, d := range dashboards() {
		want, err := render(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := load(t, d.uid); !bytes.Equal(got, want) {
			t.Errorf("%s.json is not what dashboards.go says; run make generate", d.uid)
		}
	}
}

var (
	label = regexp.MustCompile(`([a-z0-9_]+)\s*(?:=~|!~|!=|=)\s*"`)
	rule  = regexp.MustCompile(`\b[a-z0-9_]+:[a-z0-9_:]+`)
	// Grafana's units used here. Its pps, cps and Bps are forbidden, since they
	// write 0.7 as 700 m.
	units = []string{count, duration, bytesPerSecond, octets, share}
)

// rules returns the names of all recording rules.
func rules(t *testing.T) (names []string) {
	t.Helper()
	b, err := os.ReadFile("../prometheus/nodeskoop.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ *- record: (\S+)$`).FindAllSubmatch(b, -1) {
		names = append(names, string(m[1]))
	}
	if len(names) == 0 {
		t.Fatal("the rules record nothing")
	}
	return names
}

func TestPanelsAskForWhatExists(t *testing.T) {
	shown, recorded := map[string]bool{}, rules(t)
	for _, d := range dashboards() {
		f, _ := load(t, d.uid)
		if f.UID != d.uid || f.SchemaVersion != schemaVersion {
			t.Errorf("%s.json: uid %q, schemaVersion %d", d.uid, f.UID, f.SchemaVersion)
		}
		seen := map[int]bool{}
		check := func(where, expr string) {
			labels := []string{"k8s_node", "k8s_namespace", "k8s_pod"}
			whole := expr
			// Replace recording rules by plain metrics.
			expr = rule.ReplaceAllStringFunc(expr, func(n string) string {
				if !slices.Contains(recorded, n) {
					t.Errorf("%s: no rule records %s", where, n)
				}
				shown[n] = true
				return ""
			})
			if strings.Contains(expr, "ALERTS{") {
				labels = append(labels, "alertstate")
			}
			names := metricName.FindAllString(expr, -1)
			if len(names) == 0 && expr == whole && !strings.Contains(expr, "ALERTS{") {
				t.Errorf("%s: %q names no metric", where, expr)
			}
			for _, n := range names {
				m := catalog.MetricByName(n)
				if h := histogram(n); h != nil {
					m, n = h, h.Name
					if strings.Contains(expr, n+"_bucket") && !strings.Contains(expr, "by (le") {
						t.Errorf("%s: buckets are summed without le: %s", where, expr)
					}
				} else if m != nil && m.Type == catalog.Histogram {
					t.Errorf("%s: %s is a histogram: ask for its series", where, n)
				}
				if m == nil {
					t.Errorf("%s: there is no metric %s", where, n)
					continue
				}
				if m.Alias != "" {
					t.Errorf("%s: %s is there with compat_names only; ask for %s", where, n, m.Alias)
				}
				shown[n] = true
				labels = append(labels, m.Labels...)
				isRate := strings.Contains(expr, "rate("+n) || strings.Contains(expr, "increase("+n)
				if isRate != (m.Type != catalog.Gauge) && !strings.HasPrefix(expr, "label_values") {
					t.Errorf("%s: %s is a %v: %s", where, n, m.Type, expr)
				}
			}
			for _, l := range label.FindAllStringSubmatch(expr, -1) {
				if !slices.Contains(labels, l[1]) {
					t.Errorf("%s: no metric of %q has a label %s", where, expr, l[1])
				}
			}
		}
		for _, v := range f.Templating.List {
			if v.Type == "query" {
				var q struct{ Query string }
				if err := json.Unmarshal(v.Query, &q); err != nil {
					t.Errorf("%s, variable %s: %v", d.uid, v.Name, err)
				}
				check(d.uid+", variable "+v.Name, q.Query)
			}
		}
		for _, a := range f.Annotations.List {
			if a.Expr != "" {
				check(d.uid+", annotation "+a.Name, a.Expr)
			}
		}
		titles := map[string]bool{}
		for _, p := range f.all() {
			where := fmt.Sprintf("%s, %s %q", d.uid, p.Type, p.Title)
			if titles[p.Type+p.Title] {
				t.Errorf("%s is there twice", where)
			}
			titles[p.Type+p.Title] = true
			if seen[p.ID] || p.ID == 0 {
				t.Errorf("%s: id %d is taken", where, p.ID)
			}
			seen[p.ID] = true
			g := p.GridPos
			if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
				t.Errorf("%s: does not fit: %+v", where, g)
			}
			if p.Type == "row" {
				continue
			}
			u := p.FieldConfig.Defaults.Unit
			if p.Type == "heatmap" {
				u = p.Options.YAxis.Unit
				if len(p.Targets) != 1 || p.Targets[0].Format != "heatmap" || p.Options.Calculate {
					t.Errorf("%s: Grafana would not take its series for buckets", where)
				}
			}
			if !slices.Contains(units, u) && !strings.HasPrefix(u, "count:") {
				t.Errorf("%s: unit %q", where, u)
			}
			if p.Description == "" {
				t.Errorf("%s: no description", where)
			}
			switch p.Type {
			case "timeseries":
				if p.FieldConfig.Defaults.Custom.AxisSoftMax == 0 {
					t.Errorf("%s: an axis of a line at 0 has no end", where)
				}
				if !p.Options.Legend.SortDesc || p.Options.Legend.SortBy == "" {
					t.Errorf("%s: the legend is not sorted", where)
				}
			case "table":
				if len(p.Targets) > 1 && len(p.Options.SortBy) == 0 {
					t.Errorf("%s: not sorted", where)
				}
			}
			if p.Datasource.UID != "${datasource}" {
				t.Errorf("%s: data source %q", where, p.Datasource.UID)
			}
			if len(p.Targets) == 0 {
				t.Errorf("%s: asks nothing", where)
			}
			for _, x := range p.Targets {
				check(where, x.Expr)
				// A lower-case legend is a metric name without words.
				if l := x.LegendFormat; p.Type != "table" && !regexp.MustCompile(`^(\{\{|[A-Z])`).MatchString(l) {
					t.Errorf("%s: query %s has the legend %q", where, x.RefID, l)
				}
			}
		}
	}
	for _, r := range recorded {
		if !shown[r] {
			t.Errorf("on no dashboard: %s", r)
		}
	}
	// The dashboards together show every metric of the contract.
	for _, m := range catalog.Metrics() {
		if m.Alias == "" && m.Probe() != "" && !shown[m.Name] {
			t.Errorf("on no dashboard: %s", m.Name)
		}
	}
}

func TestPanelsDoNotOverlap(t *testing.T) {
	for _, d := range dashboards() {
		f, _ := load(t, d.uid)
		groups := [][]filePanel{f.Panels}
		for _, p := range f.Panels {
			groups = append(groups, p.Panels) // the panels of a closed row
		}
		for _, panels := range groups {
			place(t, d.uid, panels)
		}
	}
}

func place(t *testing.T, where string, panels []filePanel) {
	t.Helper()
	taken := map[[2]int]string{}
	for _, p := range panels {
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s: %q lies over %q", where, p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// TestQueriesParse checks every query with Prometheus' own parser, as a rule.
func TestQueriesParse(t *testing.T) {
	need.Program(t, "promtool")
	fill := strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$__interval", "15s", "$top", "10", "$node", "n.+", "$namespace", "shop", "$pod", "web-0")
	var b strings.Builder
	b.WriteString("groups:\n")
	queries := 0
	add := func(name, expr string) {
		queries++
		text, err := json.Marshal(fill.Replace(expr)) // JSON is YAML
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  - record: query:%s\n    expr: %s\n", name, text)
	}
	for _, d := range dashboards() {
		fmt.Fprintf(&b, "- name: %s\n  rules:\n", d.uid)
		f, _ := load(t, d.uid)
		for _, p := range f.all() {
			for _, x := range p.Targets {
				add(fmt.Sprintf("panel%d:%s", p.ID, x.RefID), x.Expr)
			}
		}
		for _, a := range f.Annotations.List {
			if a.Expr != "" {
				add("annotation:"+a.Name, a.Expr)
			}
		}
	}
	if strings.Contains(b.String(), "$") {
		t.Error("a variable that no dashboard declares is in a query")
	}
	rules := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(rules, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", rules).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	t.Logf("%d queries", queries)
}

// TestLinksLeadSomewhere checks that each link leads to a shipped dashboard, or to
// Node Exporter Full.
func TestLinksLeadSomewhere(t *testing.T) {
	known := []string{"rYdddlPWk"}
	for _, d := range dashboards() {
		known = append(known, d.uid)
	}
	links := regexp.MustCompile(`"url": "(/d/[^"?]*)[^"]*"`)
	for _, d := range dashboards() {
		_, b := load(t, d.uid)
		found := links.FindAllSubmatch(b, -1)
		if len(found) == 0 {
			t.Errorf("%s has no link", d.uid)
		}
		for _, m := range found {
			if !slices.Contains(known, strings.TrimPrefix(string(m[1]), "/d/")) {
				t.Errorf("%s: a link leads to %s", d.uid, m[1])
			}
		}
	}
}

// TestEveryMetricHasWords checks that words has a legend for each metric that a
// panel may show, and no other.
func TestEveryMetricHasWords(t *testing.T) {
	for name, w := range words {
		m := catalog.MetricByName("kubeskoop_" + name)
		if m == nil || m.Alias != "" {
			t.Errorf("words for kubeskoop_%s, which is no metric", name)
		}
		if w == "" || w[0] < 'A' || w[0] > 'Z' {
			t.Errorf("%s is called %q", name, w)
		}
	}
}
