package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect/catalog"
)

// pages are the project's pages for users.
func pages(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../../../docs/*.md")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %d files in docs", err, len(files))
	}
	out := map[string]string{}
	for _, f := range append(files, "../../../../README.md") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[f] = string(b)
	}
	return out
}

func TestPagesNameWhatExists(t *testing.T) {
	names := regexp.MustCompile(`\b(?:kubeskoop|nodeskoop)_[a-z0-9_]+[*.{]?`)
	events := regexp.MustCompile(`\b(?:TCPRESET|TXLAT|NETSOFTIRQ|BIOLAT|SOCKETLAT|RXKERNEL|TXKERNEL)_[A-Z0-9_]+\b`)
	for file, text := range pages(t) {
		for _, n := range names.FindAllString(text, -1) {
			base := strings.TrimRight(n, "*.{")
			// What stands for several, and the names of recording rules.
			if strings.HasSuffix(n, "*") || strings.HasSuffix(n, ".") || strings.HasSuffix(base, "_") || strings.Contains(text, ":"+base+":") {
				continue
			}
			if catalog.MetricByName(base) == nil {
				t.Errorf("%s: there is no metric %s", file, base)
			}
		}
		for _, n := range events.FindAllString(text, -1) {
			if catalog.EventByName(n) == nil {
				t.Errorf("%s: there is no event %s", file, n)
			}
		}
	}
}

func TestPagesConfigureWhatExists(t *testing.T) {
	block := regexp.MustCompile("(?s)```toml\n(.*?)```")
	key := regexp.MustCompile("`((?:probes\\.[a-z_]+|textfile|metrics|journal|pods|log)\\.[a-z_]+)`")
	known := map[string]bool{"pods.labels": true}
	for _, s := range config.Settings() {
		known[s.Key] = true
	}
	for file, text := range pages(t) {
		for _, m := range block.FindAllStringSubmatch(text, -1) {
			if _, err := config.Parse(file, m[1]); err != nil {
				t.Errorf("%s: %v\n%s", file, err, m[1])
			}
		}
		for _, m := range key.FindAllStringSubmatch(text, -1) {
			if !known[m[1]] {
				t.Errorf("%s: there is no key %s", file, m[1])
			}
		}
	}
}

// What a page shows is often appended to the shipped file, which has every
// section already.
func TestASectionTwiceIsExplained(t *testing.T) {
	shipped, err := os.ReadFile("../../../../packaging/nodeskoop.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = config.Parse("f.toml", string(shipped)+"[pods]\nhost_label = \"\"\n")
	if err == nil || !strings.Contains(err.Error(), "under the one that is there") {
		t.Errorf("%v", err)
	}
}

// TestPagesLink follows the links inside the project, to headings too.
func TestPagesLink(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	fence := regexp.MustCompile("(?ms)^```.*?^```")
	anchors := func(file string) []string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		var out []string
		for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(b), ""), -1) {
			a := strings.ToLower(m[1])
			a = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(a, "")
			out = append(out, strings.ReplaceAll(a, " ", "-"))
		}
		return out
	}
	for file, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(target), anchor) {
				t.Errorf("%s: %s has no heading #%s", file, target, anchor)
			}
		}
	}
}

func TestEachAlertIsListed(t *testing.T) {
	rules, err := os.ReadFile("../../../../packaging/prometheus/nodeskoop.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../../../docs/dashboards.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\b(?:kubeskoop|nodeskoop)_[a-z0-9_]+`)
	for line := range strings.Lines(string(rules)) {
		if alert, ok := strings.CutPrefix(line, "  - alert: "); ok && !strings.Contains(string(page), "| "+strings.TrimSpace(alert)+" |") {
			t.Errorf("docs/dashboards.md does not list %s", alert)
		}
		if strings.HasPrefix(strings.TrimSpace(line), "- record:") || !strings.Contains(line, "expr") && !strings.Contains(line, "rate(") {
			continue
		}
		for _, n := range name.FindAllString(line, -1) {
			if !strings.Contains(string(rules), "record: k8s_node:"+n+":") && catalog.MetricByName(n) == nil {
				t.Errorf("the rules ask for %s, which is no metric: %s", n, line)
			}
		}
	}
}
