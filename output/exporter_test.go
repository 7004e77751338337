package output

import (
	"fmt"
	"log/slog"
	"math"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/need"
)

// awkward is a whole exposition with all kinds of label values and numbers.
func awkward() []*dto.MetricFamily {
	var sets [][]*dto.LabelPair
	for _, name := range []string{
		"hostNetwork",
		`quo"te`, `back\slash`, "new\nline", `\n`, `trailing\`, "tab\tand\rreturn", "nul\x00byte",
		"für-日本-🐧", strings.ToValidUTF8("in\xffvalid \xc3", "\uFFFD"),
		"", " ", "{}", `a="b",c="d"`, "# HELP x y", "\u2028\ufeff", strings.Repeat("long", 1000),
	} {
		sets = append(sets, pairs("k8s_node", "node-1", "k8s_namespace", "ns "+name, "k8s_pod", name))
	}
	numbers := []float64{0, 1, 2, 1 << 32, 1 << 53, math.MaxUint64, 0.1, 1.5e-9, 1e21, 123456789.125, math.MaxFloat64, math.SmallestNonzeroFloat64}
	return familiesOver(sets, func(f, s int) float64 { return numbers[(f+s)%len(numbers)] })
}

// remarks are promtool's remarks about the contract's names, which are the only accepted
// ones.
func remarks() map[string]bool {
	want := map[string]bool{}
	for _, m := range catalog.Metrics() {
		total := strings.HasSuffix(m.Name, "_total")
		switch {
		case m.Type == catalog.Counter && !total:
			want[m.Name+` counter metrics should have "_total" suffix`] = true
		case m.Type != catalog.Counter && total:
			want[m.Name+` non-counter metrics should not have "_total" suffix`] = true
		}
	}
	return want
}

func TestPromtoolAcceptsTheWholeCatalogue(t *testing.T) {
	need.Program(t, "promtool")
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(encodeText(t, awkward()))
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 0 && code != 3 {
		t.Fatalf("promtool: %v\n%s", err, out)
	}
	got := map[string]bool{}
	for l := range strings.Lines(string(out)) {
		got[strings.TrimSpace(l)] = true
	}
	if d := difference(got, remarks()); d != "" {
		t.Error(d)
	}
}

// scrape returns the families that node_exporter shows, separately from its own.
func scrape(t *testing.T, e *exporter.Exporter) (ours []*dto.MetricFamily, own map[string]*dto.MetricFamily) {
	t.Helper()
	body, err := e.Scrape()
	if err != nil {
		t.Fatal(err)
	}
	own = map[string]*dto.MetricFamily{}
	for _, f := range parse(t, string(body)) {
		if strings.HasPrefix(f.GetName(), "node_") || strings.HasPrefix(f.GetName(), "promhttp_") {
			own[f.GetName()] = f
		} else {
			ours = append(ours, f)
		}
	}
	return ours, own
}

func TestNodeExporterShowsEveryFamilyAndSample(t *testing.T) {
	dir := t.TempDir()
	e := exporter.Start(t, exporter.Textfile(dir)...)
	tf, err := NewTextfile(dir, "nodeskoop.prom", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for round, fams := range [][]*dto.MetricFamily{awkward(), catalogueFamilies(30, func(f, s int) float64 { return float64(f * s) })} {
		if err := tf.Write(fams); err != nil {
			t.Fatal(err)
		}
		ours, own := scrape(t, e)
		if d := difference(plain(ours), plain(fams)); d != "" {
			t.Errorf("round %d: node_exporter shows other metrics than were written:\n%s", round, d)
		}
		if v := own["node_textfile_scrape_error"].GetMetric()[0].GetGauge().GetValue(); v != 0 {
			t.Errorf("node_textfile_scrape_error %v", v)
		}
		mtime := own["node_textfile_mtime_seconds"].GetMetric()
		if len(mtime) != 1 || mtime[0].Label[0].GetValue() != filepath.Join(dir, "nodeskoop.prom") {
			t.Errorf("node_exporter read %v", mtime)
		}
	}
	if err := tf.Remove(); err != nil {
		t.Fatal(err)
	}
	if ours, _ := scrape(t, e); len(ours) > 0 {
		t.Errorf("after Remove node_exporter still shows %d families", len(ours))
	}
}

// Families that would make node_exporter reject the file or exit are written together with
// good ones.
func TestNodeExporterOutlivesWhatTheGuardLeavesOut(t *testing.T) {
	dir := t.TempDir()
	e := exporter.Start(t, exporter.Textfile(dir)...)
	tf, err := NewTextfile(dir, "nodeskoop.prom", 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	var fams []*dto.MetricFamily
	for i, c := range guardCases {
		for _, f := range c.families {
			if f.GetName() == "x" {
				// Give each case its own family name.
				name := fmt.Sprintf("x%d", i)
				f = &dto.MetricFamily{Name: &name, Help: f.Help, Type: f.Type, Metric: f.Metric}
			}
			fams = append(fams, f)
		}
		good, bad = good+c.kept, bad+c.dropped
	}
	if err := tf.Write(fams); err != nil {
		t.Fatal(err)
	}
	if s := tf.Stats(); s.Dropped != uint64(bad) {
		t.Errorf("%d series left out, want %d", s.Dropped, bad)
	}
	ours, own := scrape(t, e)
	if v := own["node_textfile_scrape_error"].GetMetric()[0].GetGauge().GetValue(); v != 0 {
		t.Errorf("node_textfile_scrape_error %v", v)
	}
	if n := seriesOf(ours); n != good {
		t.Errorf("node_exporter shows %d series, want %d", n, good)
	}
}
