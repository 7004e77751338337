package catalog

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// table reads one of the contract's tables: rows by column name.
func table(t *testing.T, name string) []map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../testdata/spec/" + name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	head := strings.Split(lines[0], "\t")
	var rows []map[string]string
	for _, l := range lines[1:] {
		row := map[string]string{}
		for i, c := range strings.Split(l, "\t") {
			row[head[i]] = c
		}
		rows = append(rows, row)
	}
	return rows
}

func TestCatalogueHoldsTheContractsProbes(t *testing.T) {
	rows := table(t, "probes.tsv")
	ours := slices.DeleteFunc(Probes(), func(p *Probe) bool { return p.Extra })
	if len(rows) == 0 || len(rows) != len(ours) {
		t.Errorf("%d probes in the table, %d in the catalogue", len(rows), len(ours))
	}
	for _, row := range rows {
		p := ProbeByName(row["probe"])
		if p == nil {
			t.Errorf("no probe %s", row["probe"])
			continue
		}
		kinds := row["kinds"]
		// The contract's table says that tcpretrans has metrics but lists none, so the
		// probe's metric is an extra one. Probes without metrics in the table may have
		// extra ones, too.
		extra := !strings.Contains(kinds, "metrics") && !slices.ContainsFunc(p.Metrics, func(m Metric) bool { return !m.Extra })
		if p.Kinds() != kinds && !(extra && p.Kinds() == "metrics,"+kinds) || p.Source.String() != row["source"] || p.Overhead != row["overhead that the specification grants it"] {
			t.Errorf("%s: %s, %s, %s; the table says %v", p.Name, p.Kinds(), p.Source, p.Overhead, row)
		}
	}
	for alias, name := range map[string]string{"softirq": "net_softirq", "netiftxlat": "netiftxlatency"} {
		if p := ProbeByName(alias); p == nil || p.Name != name {
			t.Errorf("%s does not stand for %s", alias, name)
		}
	}
}

func TestCatalogueHoldsTheContractsMetrics(t *testing.T) {
	rows := table(t, "metrics.tsv")
	if len(rows) == 0 {
		t.Error("the table lists no metrics")
	}
	contract := map[string]bool{}
	for _, row := range rows {
		name := row["metric"]
		contract[name] = true
		m := MetricByName(name)
		if m == nil {
			t.Errorf("no metric %s", name)
			continue
		}
		if m.Probe() != row["probe"] || m.Type.String() != row["type"] || m.Scope.String() != row["scope"] || m.Extra {
			t.Errorf("%s: %s, %s, %s, extra %v; the table says %v", name, m.Probe(), m.Type, m.Scope, m.Extra, row)
		}
		// If the table names a column of a MIB file, the probe must read that column.
		if f := regexp.MustCompile(`\b(Tcp|Udp|TcpExt|IpExt)\.\w+$`).FindString(row["kernel source"]); f != "" && m.Field != f {
			t.Errorf("%s reads %s; the table says %s", name, m.Field, f)
		}
	}
	label := regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	for i, m := range Metrics() {
		if m.ID() != i || MustMetric(m.Name) != m {
			t.Errorf("%s: ID %d at %d", m.Name, m.ID(), i)
		}
		if !contract[m.Name] && !m.Extra && !(m.Probe() != "" && ProbeByName(m.Probe()).Extra) {
			t.Errorf("%s is neither in the table nor marked as extra", m.Name)
		}
		if m.Help == "" || !strings.HasSuffix(m.Help, ".") || strings.Contains(m.Help, "\n") {
			t.Errorf("%s: help %q", m.Name, m.Help)
		}
		if a := MetricByName(m.Alias); m.Alias != "" && (a == nil || a.Type != m.Type || a.Alias != "") {
			t.Errorf("%s is an alias of %q", m.Name, m.Alias)
		}
		if (m.Type == Histogram) != (len(m.Bounds) > 0) || (m.Type == Histogram) != (m.Unit != "") || m.Type == Histogram && !strings.HasSuffix(m.Name, "_"+m.Unit) {
			t.Errorf("%s: %v in %q with bounds %v", m.Name, m.Type, m.Unit, m.Bounds)
		}
		if !slices.IsSorted(m.Bounds) || len(slices.Compact(slices.Clone(m.Bounds))) != len(m.Bounds) {
			t.Errorf("%s: bounds %v", m.Name, m.Bounds)
		}
		for _, l := range m.Labels {
			if l == "le" {
				t.Errorf("%s: a label of buckets", m.Name)
			}
			if !label.MatchString(l) || strings.HasPrefix(l, "__") {
				t.Errorf("%s: label %q", m.Name, l)
			}
		}
	}
	for _, name := range []string{
		"kubeskoop_fd_openfd", "kubeskoop_io_readsyscall", "kubeskoop_io_writesyscall", "kubeskoop_io_readbytes",
		"kubeskoop_io_writebytes", "kubeskoop_tcpretrans_total", "kubeskoop_tcpsummary_tcpclosewaitconn",
		"kubeskoop_tcpsummary_tcpsynsentconn", "kubeskoop_tcpsummary_tcpsynrecvconn", "kubeskoop_packetloss_reason",
	} {
		if MetricByName(name) == nil {
			t.Errorf("no metric %s", name)
		}
	}
}

func TestCatalogueHoldsTheContractsEvents(t *testing.T) {
	rows := table(t, "events.tsv")
	ours := slices.DeleteFunc(slices.Clone(Events()), func(e *EventType) bool { return ProbeByName(e.Probe()).Extra })
	if len(rows) == 0 || len(rows) != len(ours) {
		t.Errorf("%d events in the table, %d in the catalogue", len(rows), len(ours))
	}
	ids := map[string]bool{}
	threshold := regexp.MustCompile(`^(\d+ms)(?: \(up to (\d+ms)\))?$`)
	for _, row := range rows {
		e := EventByName(row["event"])
		if e == nil {
			t.Errorf("no event %s", row["event"])
			continue
		}
		var from, below time.Duration
		if row["default threshold"] != "-" {
			m := threshold.FindStringSubmatch(row["default threshold"])
			from, _ = time.ParseDuration(m[1])
			below, _ = time.ParseDuration(m[2])
		}
		var groups []string
		for _, f := range e.Fields {
			if slices.Contains(e.Extra, f) {
				continue
			}
			g := string(f)
			if f == FieldPoints {
				g += "(" + strings.Join(e.Points, ",") + ")"
			}
			groups = append(groups, g)
		}
		if e.Probe() != row["probe"] || e.Path != row["kernel path"] || e.Threshold != from || e.Below != below ||
			strings.Join(groups, ",") != row["field groups"] ||
			e.MessageID != row["message_id"] || e.Summary != row["what happened"] {
			t.Errorf("%s: %+v\nthe table says %v", e.Name, e, row)
		}
		for _, f := range e.Extra {
			if !e.Has(f) {
				t.Errorf("%s: %s is beyond the table, and not one of its fields", e.Name, f)
			}
		}
		if (len(e.Points) > 0) != e.Has(FieldPoints) || (e.PointsKnown != "") != e.Has(FieldPoints) {
			t.Errorf("%s: points %v, known %q", e.Name, e.Points, e.PointsKnown)
		}
		// The table's priority is that of many occurrences. Types with the priority
		// warning reach it with far fewer.
		if many := row["priority"] == "warning"; e.Warn.Count < 2 || many != (e.Warn.Count <= 100) {
			t.Errorf("%s is a warning from %d occurrences on; the table says %s", e.Name, e.Warn.Count, row["priority"])
		}
		if ids[e.MessageID] || len(e.MessageID) != 32 {
			t.Errorf("%s: message ID %s", e.Name, e.MessageID)
		}
		ids[e.MessageID] = true
	}
}

// A single occurrence is a notice; many are a warning, and so are two with an extreme
// latency.
func TestGrade(t *testing.T) {
	for _, e := range Events() {
		for _, c := range []struct {
			occurrences uint64
			latency     time.Duration
			want        Priority
		}{
			{1, 0, PriNotice}, {1, time.Hour, PriNotice}, {2, 0, PriNotice},
			{e.Warn.Count - 1, 0, PriNotice}, {e.Warn.Count, 0, PriWarning}, {1 << 40, 0, PriWarning},
		} {
			if got := e.Grade(c.occurrences, c.latency); got != c.want {
				t.Errorf("%s: %d of %v: %v, want %v", e.Name, c.occurrences, c.latency, got, c.want)
			}
		}
		if far := e.Warn.Latency; far > 0 {
			if far <= e.Threshold || e.Grade(2, far) != PriWarning || e.Grade(2, far-1) != PriNotice {
				t.Errorf("%s: two of %v", e.Name, far)
			}
		} else if e.Grade(2, time.Hour) != PriNotice {
			t.Errorf("%s: two that took long", e.Name)
		}
	}
	if never := (&EventType{}); never.Grade(1<<60, time.Hour) != PriNotice {
		t.Error("a type without a number")
	}
}

func TestCatalogueSaysWhatMovesEachMetric(t *testing.T) {
	for _, m := range Metrics() {
		if m.Alias != "" && m.Kernel+m.Rises != "" {
			t.Errorf("%s repeats %s, and has a reference of its own", m.Name, m.Alias)
		}
		if m.Probe() == "" || m.Alias != "" {
			continue
		}
		if m.Kernel == "" || len(m.Rises) < 20 || !strings.HasSuffix(m.Rises, ".") {
			t.Errorf("%s: kernel %q, rises %q", m.Name, m.Kernel, m.Rises)
		}
		if _, field, ok := strings.Cut(m.Field, "."); ok && m.Probe() != "netdev" && !strings.Contains(m.Kernel, " "+field+";") {
			t.Errorf("%s is read from %s, but described as %s", m.Name, m.Field, m.Kernel)
		}
	}
}

// TestProbesHaveAFile checks that the file of each probe has the probe's name.
func TestProbesHaveAFile(t *testing.T) {
	for _, p := range Probes() {
		b, err := os.ReadFile(p.Name + ".go")
		if err != nil || !strings.Contains(string(b), "Name:") || !strings.Contains(string(b), strconv.Quote(p.Name)) {
			t.Errorf("%s is not declared in collect/catalog/%s.go: %v", p.Name, p.Name, err)
		}
		if !strings.HasSuffix(p.Cost, ".") || p.Title == "" {
			t.Errorf("%s: title %q, cost %q", p.Name, p.Title, p.Cost)
		}
	}
}

func TestMetricBySeries(t *testing.T) {
	for name, want := range map[string]string{
		"kubeskoop_packetloss_total":            "kubeskoop_packetloss_total",
		"nodeskoop_biolatency_seconds_bucket":   "nodeskoop_biolatency_seconds",
		"nodeskoop_biolatency_seconds_sum":      "nodeskoop_biolatency_seconds",
		"nodeskoop_biolatency_seconds_count":    "nodeskoop_biolatency_seconds",
		"kubeskoop_packetloss_total_count":      "", // packetloss_total is not a histogram
		"nodeskoop_biolatency_seconds_quantile": "",
		"":                                      "",
	} {
		got := ""
		if m := MetricBySeries(name); m != nil {
			got = m.Name
		}
		if got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
