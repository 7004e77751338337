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

// file is what these tests look at in a dashboard.
type file struct {
	UID           string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage
		}
	}
	Panels []filePanel
}

type filePanel struct {
	ID      int
	Type    string
	Title   string
	Panels  []filePanel
	GridPos struct{ X, Y, W, H int }
	Targets []struct {
		RefID, Expr, LegendFormat string
	}
	FieldConfig struct {
		Defaults struct{ Unit string }
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

// all returns the panels, those inside closed rows too.
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
	name  = regexp.MustCompile(`\b(kubeskoop|nodeskoop)_[a-z0-9_]+`)
	label = regexp.MustCompile(`([a-z0-9_]+)\s*(?:=~|!~|!=|=)\s*"`)
	// The units that Grafana knows, as far as they are used here.
	units = []string{"none", "s", "Bps", "bytes", "pps", "cps", "ops", "percentunit"}
)

func TestPanelsAskForWhatExists(t *testing.T) {
	shown := map[string]bool{}
	for _, d := range dashboards() {
		f, _ := load(t, d.uid)
		if f.UID != d.uid || f.SchemaVersion != schemaVersion {
			t.Errorf("%s.json: uid %q, schemaVersion %d", d.uid, f.UID, f.SchemaVersion)
		}
		seen := map[int]bool{}
		check := func(where, expr string) {
			names := name.FindAllString(expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %q names no metric", where, expr)
			}
			labels := []string{"k8s_node", "k8s_namespace", "k8s_pod"}
			for _, n := range names {
				m := catalog.MetricByName(n)
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
				if isRate != (m.Type == catalog.Counter) && !strings.HasPrefix(expr, "label_values") {
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
		for _, p := range f.all() {
			where := fmt.Sprintf("%s, panel %q", d.uid, p.Title)
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
			if !slices.Contains(units, p.FieldConfig.Defaults.Unit) {
				t.Errorf("%s: unit %q", where, p.FieldConfig.Defaults.Unit)
			}
			if p.Datasource.UID != "${datasource}" {
				t.Errorf("%s: data source %q", where, p.Datasource.UID)
			}
			if len(p.Targets) == 0 {
				t.Errorf("%s: asks nothing", where)
			}
			for _, x := range p.Targets {
				check(where, x.Expr)
				if p.Type != "table" && x.LegendFormat == "" {
					t.Errorf("%s: query %s has no legend", where, x.RefID)
				}
			}
		}
	}
	// Whoever opens the dashboards sees the whole contract.
	for _, m := range catalog.Metrics() {
		if m.Alias == "" && m.Probe() != "" && !shown[m.Name] {
			t.Errorf("on no dashboard: %s", m.Name)
		}
	}
}

func TestPanelsDoNotOverlap(t *testing.T) {
	for _, d := range dashboards() {
		f, _ := load(t, d.uid)
		taken := map[[2]int]string{}
		for _, p := range f.Panels {
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" {
						t.Fatalf("%s: %q lies over %q", d.uid, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
		}
	}
}

// TestQueriesParse hands every query to Prometheus' own parser, as a rule.
func TestQueriesParse(t *testing.T) {
	need.Program(t, "promtool")
	fill := strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$node", "n.+", "$namespace", "shop", "$pod", "web-0")
	var b strings.Builder
	b.WriteString("groups:\n")
	queries := 0
	for _, d := range dashboards() {
		fmt.Fprintf(&b, "- name: %s\n  rules:\n", d.uid)
		f, _ := load(t, d.uid)
		for _, p := range f.all() {
			for _, x := range p.Targets {
				queries++
				expr, err := json.Marshal(fill.Replace(x.Expr)) // JSON is YAML
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "  - record: query:panel%d:%s\n    expr: %s\n", p.ID, x.RefID, expr)
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
