package docs

import (
	"compress/gzip"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect/catalog"
)

// pages returns the project's pages for users.
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
			// Skip patterns and names of recording rules.
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

// Users often append a page's example to the shipped file, which already has every
// section; the error must explain that.
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

// anchors returns the anchors of a page's headings, as GitHub generates them.
func anchors(t *testing.T, file string) []string {
	t.Helper()
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

var (
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```")
)

// TestReadme: the README is short, and links to every page.
func TestReadme(t *testing.T) {
	all := pages(t)
	readme := all["../../../../README.md"]
	if n := len(strings.Fields(readme)); n > 700 {
		t.Errorf("the README has %d words; at most 700", n)
	}
	for file := range all {
		if name := filepath.Base(file); name != "README.md" && !strings.Contains(readme, "](docs/"+name+")") {
			t.Errorf("the README does not lead to docs/%s", name)
		}
	}
}

// documents returns all of the project's pages in Markdown, those for contributors
// included.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir("../../../..", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".cache" || d.Name() == ".git" || d.Name() == "build"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil || len(out) <= len(pages(t)) {
		t.Fatalf("%v, %d pages", err, len(out))
	}
	return out
}

// TestPagesLink follows the links inside the project, including those to headings and
// to pictures.
func TestPagesLink(t *testing.T) {
	link := regexp.MustCompile(`(?:\]\(|\bsrc(?:set)?="|\bhref=")([^)\s"]+)[)"]`)
	for file, text := range documents(t) {
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
			if anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s: %s has no heading #%s", file, target, anchor)
			}
		}
	}
}

// TestOverheadIsMeasured compares the catalogue's costs of probes with the
// measurements in docs/measurements/costs.md, and the table of docs/performance.md
// with both.
func TestOverheadIsMeasured(t *testing.T) {
	b, err := os.ReadFile("../../../../docs/measurements/costs.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	page, err := os.ReadFile("../../../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	cells := func(line string) (out []string) {
		for _, c := range strings.Split(line, "|") {
			out = append(out, strings.TrimSpace(c))
		}
		if len(out) < 3 {
			return []string{""}
		}
		return out[1 : len(out)-1]
	}
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(strings.ReplaceAll(s, ",", ""), 64)
		if err != nil {
			t.Fatalf("docs/measurements/costs.md: %q is no number", s)
		}
		return v
	}
	// Nanoseconds of the programs, by probe.
	programs := map[string]string{}
	_, table, _ := strings.Cut(text, "\n| probe | program | runs | ns |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	probe := ""
	for _, line := range strings.Split(table, "\n")[1:] {
		row := cells(line)
		if len(row) < 4 {
			t.Fatalf("docs/measurements/costs.md: %q is no row of the table", line)
		}
		if row[0] != "" {
			probe = row[0]
		}
		programs[probe] += " " + row[2] + " " + row[3] + " "
	}
	// Microseconds of a probe's cycle with 110 namespaces.
	_, table, _ = strings.Cut(text, "### Where it goes\n")
	cycle := map[string]float64{}
	var head []string
	for _, line := range strings.Split(table, "\n") {
		switch row := cells(line); {
		case row[0] == "namespaces":
			head = row
		case row[0] == "110" && len(row) == len(head):
			for i, names := range head[1:] {
				for _, n := range strings.Split(names, ", ") {
					cycle[n] = number(row[i+1])
				}
			}
		}
		if len(cycle) > 0 {
			break
		}
	}
	ns := regexp.MustCompile(`([0-9]+)(?:, | and | to )?(?:([0-9]+) (?:and|to) )?([0-9]+)? ns`)
	for _, p := range catalog.Probes() {
		if rows := programs[p.Name]; rows != "" {
			for _, m := range ns.FindAllStringSubmatch(p.Cost+" "+p.Measured, -1) {
				for _, n := range m[1:] {
					if n != "" && !regexp.MustCompile(`\b`+n+`\b`).MatchString(rows) {
						t.Errorf("%s: %s ns are not in docs/measurements/costs.md: %s", p.Name, n, rows)
					}
				}
			}
		}
		switch value, unit, _ := strings.Cut(p.Measured, "/"); {
		case unit == "namespace":
			got := number(strings.TrimSuffix(value, " us"))
			if want := cycle[p.Name] / 110; math.Abs(got-want) > 1 {
				t.Errorf("%s: %s, docs/measurements/costs.md has %.0f us", p.Name, p.Measured, want)
			}
		case unit == "cycle":
			if value != "under 1 ms" || cycle[p.Name] == 0 || cycle[p.Name] >= 1000 {
				t.Errorf("%s: %s, docs/measurements/costs.md has %.0f us", p.Name, p.Measured, cycle[p.Name])
			}
		case p.Name == "fd" || p.Name == "io":
			if !strings.Contains(text, "fd and io cost 3 to 10 and 1 to 4 us per idle process") || p.Measured != map[string]string{"fd": "3 to 10 us/process", "io": "1 to 4 us/process"}[p.Name] {
				t.Errorf("%s: %s is not in docs/measurements/costs.md", p.Name, p.Measured)
			}
		case p.Measured == "not measurable":
			if !strings.Contains(text, "`packetloss`, `tcpreset`, `tcpretrans`, `biolatency`. Together they have no measurable cost on a request or a datagram") || !strings.Contains("tcpreset tcpretrans biolatency", p.Name) {
				t.Errorf("%s: docs/measurements/costs.md does not say that it is not measurable", p.Name)
			}
		case p.Measured == "" && !p.Extra, programs[p.Name] == "" && p.Measured != "not measured" && p.Measured != "":
			t.Errorf("%s: %q was not measured", p.Name, p.Measured)
		}
		if len(p.Measured) > 20 {
			t.Errorf("%s: %q is too long for a column", p.Name, p.Measured)
		}
	}
	// The page repeats the catalogue's figures of the probes; each other figure in its
	// table is one of the measurements.
	shown := map[string]string{}
	figure := regexp.MustCompile(`[0-9][0-9.]*`)
	for _, line := range strings.Split(string(page), "\n") {
		row := cells(line)
		if len(row) != 5 {
			continue
		}
		shown[strings.Trim(row[0], "`")] = row[2]
		for _, n := range figure.FindAllString(row[2], -1) {
			if strings.Contains(row[0], " ") && !regexp.MustCompile(`\b`+regexp.QuoteMeta(n)+`\b`).MatchString(text) {
				t.Errorf("docs/performance.md: %s of %q is not in docs/measurements/costs.md", n, row[0])
			}
		}
	}
	for _, p := range catalog.Probes() {
		if got := shown[p.Name]; !p.Extra && got != p.Measured {
			t.Errorf("docs/performance.md: %s costs %q, the catalogue says %q", p.Name, got, p.Measured)
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

// rulesFile has the shipped alerts.
const rulesFile = "../../../../packaging/prometheus/nodeskoop.rules.yml"

// TestEachAlertWasRecorded: each alert fires on a recorded faulty node, and none on a
// recorded healthy node. `make check-rules` runs the rules on the recordings.
func TestEachAlertWasRecorded(t *testing.T) {
	rules, err := os.ReadFile("../../../../packaging/prometheus/nodeskoop.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	fires := func(node string) map[string]bool {
		f, err := os.Open("../../../../packaging/prometheus/tests/recorded/" + node + ".yml.gz")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		_, expected, found := strings.Cut(string(text), "exp_samples:")
		if !found {
			t.Fatalf("%s has no expectation", node)
		}
		names := map[string]bool{}
		for _, m := range regexp.MustCompile(`alertname="(\w+)"`).FindAllStringSubmatch(expected, -1) {
			names[m[1]] = true
		}
		return names
	}
	for _, healthy := range []string{"idle", "busy", "debian"} {
		if names := fires(healthy); len(names) > 0 {
			t.Errorf("%s is a healthy node, and has %v", healthy, names)
		}
	}
	troubles, gone := fires("troubles"), fires("gone")
	for line := range strings.Lines(string(rules)) {
		if alert, ok := strings.CutPrefix(strings.TrimSpace(line), "- alert: "); ok && !troubles[alert] && !gone[alert] {
			t.Errorf("%s fires on no recorded trouble", alert)
		}
	}
}

// TestAlertsHaveARunbook: each alert links to an existing heading of
// docs/troubleshooting.md.
func TestAlertsHaveARunbook(t *testing.T) {
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	const page = "https://github.com/nodeskoop/nodeskoop/blob/main/docs/troubleshooting.md#"
	have := anchors(t, "../../../../docs/troubleshooting.md")
	alerts := strings.Split(string(rules), "\n  - alert: ")[1:]
	if len(alerts) < 15 {
		t.Fatalf("%d alerts", len(alerts))
	}
	for _, text := range alerts {
		name, _, _ := strings.Cut(text, "\n")
		_, url, ok := strings.Cut(text, "\n      runbook_url: ")
		url, _, _ = strings.Cut(url, "\n")
		if anchor, ours := strings.CutPrefix(url, page); !ok || !ours || !slices.Contains(have, anchor) {
			t.Errorf("%s: its runbook_url %q is no heading of docs/troubleshooting.md", name, url)
		}
	}
}

// TestConntrackRunbook runs the command of ConntrackTableFills on conntrack's
// output: the source with the most entries comes last, for entries with and without
// a state.
func TestConntrackRunbook(t *testing.T) {
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(rules), "- alert: ConntrackTableFills")
	_, text, _ = strings.Cut(text, "runbook: \"On the node, run `")
	command, _, ok := strings.Cut(text, "`")
	if !ok || !strings.HasPrefix(command, "conntrack -L ") {
		t.Fatalf("the command is %q", command)
	}
	guide, err := os.ReadFile("../../../../docs/troubleshooting.md")
	if err != nil || !strings.Contains(string(guide), "`"+command+"`") {
		t.Errorf("docs/troubleshooting.md has another command than %s: %v", command, err)
	}
	dir := t.TempDir()
	const entries = `tcp      6 431999 ESTABLISHED src=10.0.0.9 dst=10.0.0.2 sport=40000 dport=80 src=10.0.0.2 dst=10.0.0.9 sport=80 dport=40000 [ASSURED] mark=0 use=1
udp      17 29 src=10.0.0.7 dst=10.0.0.2 sport=5353 dport=53 [UNREPLIED] src=10.0.0.2 dst=10.0.0.7 sport=53 dport=5353 mark=0 use=1
tcp      6 117 SYN_SENT src=10.0.0.7 dst=10.0.0.2 sport=1 dport=80 [UNREPLIED] src=10.0.0.2 dst=10.0.0.7 sport=80 dport=1 mark=0 use=1
icmp     1 29 src=10.0.0.7 dst=10.0.0.2 type=8 code=0 id=3 src=10.0.0.2 dst=10.0.0.7 type=0 code=0 id=3 mark=0 use=1
tcp      6 431999 ESTABLISHED src=2001:db8::9 dst=2001:db8::2 sport=40000 dport=80 src=2001:db8::2 dst=2001:db8::9 sport=80 dport=40000 [ASSURED] mark=0 use=1
`
	script := "#!/bin/sh\ncat <<'E'\n" + entries + "E\necho 'conntrack v1.4.7 (conntrack-tools): 5 flow entries have been shown.' >&2\n"
	if err := os.WriteFile(filepath.Join(dir, "conntrack"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := strings.Join(strings.Fields(string(out)), " "); got != "1 src=10.0.0.9 1 src=2001:db8::9 3 src=10.0.0.7" {
		t.Errorf("%s", out)
	}
}
