package install

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

type families map[string]*dto.MetricFamily

// parse reads the text format.
func parse(t *testing.T, b []byte) families {
	t.Helper()
	f, err := tryParse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tryParse(b []byte) (families, error) {
	p := expfmt.NewTextParser(model.LegacyValidation)
	f, err := p.TextToMetricFamilies(bytes.NewReader(b))
	if err == nil && !bytes.HasSuffix(b, []byte("\n")) {
		err = fmt.Errorf("%d bytes that do not end with a line", len(b))
	}
	return f, err
}

// value returns the sum and the number of the series with these labels ("name",
// "value").
func (f families) value(name string, labels ...string) (sum float64, n int) {
	if f[name] == nil {
		return 0, 0
	}
series:
	for _, m := range f[name].Metric {
		has := map[string]string{}
		for _, l := range m.Label {
			has[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(labels); i += 2 {
			if has[labels[i]] != labels[i+1] {
				continue series
			}
		}
		sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
		n++
	}
	return sum, n
}

// scrape is the answer that Prometheus gets from node_exporter.
func (s *suite) scrape() families {
	s.Helper()
	b, err := s.get("http://127.0.0.1:9100/metrics")
	if err != nil {
		s.Fatalf("scrape node_exporter: %v", err)
	}
	return parse(s.T, b)
}

// podValue is a metric of a pod in the textfile.
func (s *suite) podValue(name, namespace, pod string) float64 {
	s.Helper()
	v, _ := parse(s.T, []byte(s.read(textfile))).value(name, "k8s_namespace", namespace, "k8s_pod", pod)
	return v
}

// table reads one of the tables of the specification.
func table(t *testing.T, name string) []map[string]string {
	t.Helper()
	f, err := os.Open("../../../testdata/spec/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.LazyQuotes, r.FieldsPerRecord = '\t', true, -1
	rows, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]string
	for _, row := range rows[1:] {
		m := map[string]string{}
		for i, v := range row {
			m[rows[0][i]] = v
		}
		out = append(out, m)
	}
	return out
}

// TestTables: the tables contain everything that the stages look up. This test fails
// before a stage does.
func TestTables(t *testing.T) {
	for name, columns := range map[string][]string{"metrics.tsv": {"metric", "probe", "type", "scope"}, "events.tsv": {"event", "message_id"}} {
		rows := table(t, name)
		if len(rows) == 0 {
			t.Errorf("%s is empty", name)
		}
		for i, row := range rows {
			for _, c := range columns {
				if row[c] == "" {
					t.Errorf("%s: row %d has no %s", name, i+1, c)
				}
			}
		}
	}
}

// scrapeContract compares one scrape of node_exporter with the table of all
// metrics.
func (s *suite) scrapeContract() {
	t := s.T
	// Some traffic, so that there are flows.
	main := s.client.Container("main")
	main.Exec(causeProgram, "exchange", s.web.Addrs[0].String()+":80", "20")
	main.Exec(causeProgram, "exchange", "["+s.web.Addrs[1].String()+"]:8080", "20")
	s.nextCycles(2)
	unsupported := s.unsupported()
	var f families
	var lacks []string
	check := func() error {
		f, lacks = s.scrape(), nil
		for _, m := range table(t, "metrics.tsv") {
			name := m["metric"]
			if _, ok := unsupported[m["probe"]]; ok {
				if f[name] != nil {
					lacks = append(lacks, name+" is there although its probe does not work")
				}
				continue
			}
			if f[name] == nil {
				lacks = append(lacks, name+" is missing")
				continue
			}
			if got, want := f[name].GetType().String(), strings.ToUpper(m["type"]); got != want {
				lacks = append(lacks, fmt.Sprintf("%s is a %s, want %s", name, got, want))
			}
			host, pod, hostPod := true, false, false
			switch m["scope"] {
			case "netns":
				pod = true
			case "pod":
				pod, hostPod = true, true
			case "host":
			case "flow":
				// One line for each direction and version of IP.
				host, pod = false, true
			default:
				t.Fatalf("%s has the scope %q", name, m["scope"])
			}
			for _, c := range []struct {
				namespace, pod string
				want           bool
			}{{"hostNetwork", "hostNetwork", host}, {"shop", "web-0", pod}, {"shop", "client-0", pod}, {"kube-system", "agent", hostPod}} {
				_, n := f.value(name, "k8s_node", node, "k8s_namespace", c.namespace, "k8s_pod", c.pod)
				flowOfHost := m["scope"] == "flow" && c.pod == "hostNetwork" // may talk or not
				if (n > 0) != c.want && !flowOfHost {
					lacks = append(lacks, fmt.Sprintf("%s has %d series of %s/%s", name, n, c.namespace, c.pod))
				}
			}
			for _, series := range f[name].Metric {
				for _, l := range series.Label {
					if l.GetName() == "k8s_node" && l.GetValue() != node {
						lacks = append(lacks, fmt.Sprintf("%s is of the node %q", name, l.GetValue()))
					}
				}
			}
		}
		if len(lacks) > 0 {
			return fmt.Errorf("%s", strings.Join(lacks, "\n"))
		}
		return nil
	}
	if err := s.awaits(10*time.Second, check); err != nil {
		t.Errorf("the scrape against testdata/spec/metrics.tsv:\n%v", err)
	}
	if v, n := f.value("node_textfile_scrape_error"); v != 0 || n != 1 {
		t.Errorf("node_textfile_scrape_error is %v (%d series)", v, n)
	}
	if _, n := f.value("node_textfile_mtime_seconds", "file", textfile); n != 1 {
		t.Errorf("node_exporter does not name %s among the files that it reads", textfile)
	}
	// A flow between two pods has a pod at either end.
	if v, n := f.value("kubeskoop_flow_packets", "k8s_pod", "client-0", "src_pod", "client-0", "dst_pod", "web-0", "dst_type", "pod"); n == 0 || v < 20 {
		t.Errorf("kubeskoop_flow_packets from client-0 to web-0 is %v in %d series", v, n)
	}
	for _, p := range s.probes {
		supported, up := 1.0, 1
		if _, ok := unsupported[p.Probe]; ok {
			supported, up = 0, 0 // such a probe is neither up nor down
		}
		if v, n := f.value("nodeskoop_probe_up", "probe", p.Probe); n != up || n == 1 && v != 1 {
			t.Errorf("nodeskoop_probe_up of %s is %v (%d series), want %d series", p.Probe, v, n, up)
		}
		if v, n := f.value("nodeskoop_probe_supported", "probe", p.Probe); n != 1 || v != supported {
			t.Errorf("nodeskoop_probe_supported of %s is %v (%d series), want %v", p.Probe, v, n, supported)
		}
	}
	if v, _ := f.value("nodeskoop_pods"); v != 3 {
		t.Errorf("nodeskoop_pods is %v, want 3", v)
	}
}
