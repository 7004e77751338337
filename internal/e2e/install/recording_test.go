package install

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/internal/testkit/need"
	recorded "nodeskoop/internal/testkit/recording"
)

// recordedRules is the file name of the rules, beside which `make check-rules`
// unpacks the recordings.
const recordedRules = "nodeskoop.rules.yml"

// recording holds what the rules read of a machine, and which alerts have to fire.
type recording struct {
	name, what, kernel, version string
	length                      time.Duration
	series                      []recorded.Series
	alerts                      []string
	maybe                       []string // alerts that may fire, but need not
}

// String returns the recording as a promtool test: over its whole length these
// alerts fire, and no others.
func (r recording) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# A machine with %s, recorded for %v by\n# `make record NODE=%s`: nodeskoop %s, Linux %s.\n", r.what, r.length.Round(time.Second), r.name, r.version, r.kernel)
	fmt.Fprintf(&b, "rule_files: [%s]\nevaluation_interval: %s\ntests:\n- interval: %s\n  input_series:\n", recordedRules, seconds(recordedEach), seconds(recordedEach))
	for _, s := range r.series {
		b.WriteString(s.Line())
	}
	end := seconds(r.length.Truncate(recordedEach))
	fmt.Fprintf(&b, "  promql_expr_test:\n  - expr: group by (alertname) (max_over_time(ALERTS{alertstate=\"firing\", alertname!~\"%s\"}[%s]))\n    eval_time: %s\n", strings.Join(r.maybe, "|"), end, end)
	if len(r.alerts) == 0 {
		b.WriteString("    exp_samples: []\n")
	} else {
		b.WriteString("    exp_samples:\n")
	}
	for _, a := range r.alerts {
		fmt.Fprintf(&b, "    - {labels: '{alertname=%q}', value: 1}\n", a)
	}
	return b.String()
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)) + "s" }

func TestMetricsOf(t *testing.T) {
	got := metricsOf(`sum by (k8s_node) (increase(nodeskoop_events_seen_total{event="up",k8s_pod!~"hostNetwork|kubeskoop_x"}[5m])) > 10 and on (instance) up == 1 unless k8s_node:kubeskoop_conntrack_used:ratio > 1`)
	if d := cmp.Diff([]string{"nodeskoop_events_seen_total", "up"}, got); d != "" {
		t.Error(d)
	}
}

// TestRecording: promtool can read a recording, and reports an alert that fires
// unexpectedly or does not fire.
func TestRecording(t *testing.T) {
	need.Program(t, "promtool")
	dir := t.TempDir()
	rules, err := os.ReadFile("../../../packaging/prometheus/" + recordedRules)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, recordedRules), string(rules))
	gauge := func(name string, value float64, labels ...string) recorded.Series {
		s := recorded.Series{Labels: map[string]string{"__name__": name, "k8s_node": "a's"}}
		for i := 0; i < len(labels); i += 2 {
			s.Labels[labels[i]] = labels[i+1]
		}
		for range 61 {
			s.Values = append(s.Values, value)
		}
		return s
	}
	well := gauge("nodeskoop_probe_up", 1, "probe", "tcp")
	down := gauge("nodeskoop_probe_up", 0, "probe", `a "probe"`)
	for _, c := range []struct {
		name   string
		series []recorded.Series
		alerts []string
		maybe  []string
		passes bool
	}{
		{"well", []recorded.Series{well}, nil, nil, true},
		{"down", []recorded.Series{well, down}, []string{"NodeskoopProbeDown"}, nil, true},
		{"down-untold", []recorded.Series{down}, nil, nil, false},
		{"down-perhaps", []recorded.Series{down}, nil, []string{"Other", "NodeskoopProbeDown"}, true},
		{"well-told", []recorded.Series{well}, []string{"NodeskoopProbeDown"}, nil, false},
	} {
		r := recording{name: c.name, what: "nothing", length: 30 * time.Minute, series: c.series, alerts: c.alerts, maybe: c.maybe}
		file := filepath.Join(dir, c.name+".yml")
		writeFile(t, file, r.String())
		out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput()
		if (err == nil) != c.passes {
			t.Errorf("%s: promtool: %v\n%s\n%s", c.name, err, out, r)
		}
	}
}
