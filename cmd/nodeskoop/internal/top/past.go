package top

import (
	"iter"
	"slices"
	"strings"
	"time"

	"nodeskoop/collect/owner"
	"nodeskoop/output/history"
)

// Minutes is a history, as history.Reader reads it.
type Minutes interface {
	Minutes(q history.Query) iter.Seq2[*history.Minute, error]
}

// NoMinuteError says that the history lacks the requested minute.
type NoMinuteError struct{ At time.Time }

func (e NoMinuteError) Error() string {
	return "the history has no minute of " + e.At.Format("2006-01-02 15:04") + ": nodeskoop history --since shows which it has, and why not"
}

// probeUp is the gauge that shows which probes yielded values.
const probeUp = "nodeskoop_probe_up"

// pastMetrics maps columns to the metrics that the history has in place of their own.
var pastMetrics = map[string][]string{resetsSum: {"nodeskoop_tcpreset_total"}}

// PastColumns returns the columns that a history can fill. Columns counted from
// events are not among them.
func PastColumns(columns []Column) []Column {
	return slices.DeleteFunc(slices.Clone(columns), func(c Column) bool { return c.Name == hostDrops })
}

// pastLength is the length of a history minute.
const pastLength = time.Minute

// Past returns the table of the history minute that contains at. A counter missing
// from a minute did not rise, if its probe yielded values then. Pods without any
// change have no row. label is the host's label in the history.
func Past(h Minutes, at time.Time, columns []Column, label string) (*Table, error) {
	start := at.Truncate(pastLength)
	t := &Table{columns: columns, dated: true}
	p := past{table: t, label: label, up: map[string]bool{}, rows: map[podName]*pastRow{}}
	found := false
	for m, err := range h.Minutes(history.Query{Since: start, Until: start.Add(pastLength), Keep: p.keep}) {
		if err != nil {
			return nil, err
		}
		found = true
		t.at = m.To
		t.interval += max(0, m.Elapsed-m.Asleep)
		for i := range m.Samples {
			p.take(&m.Samples[i])
		}
	}
	if !found {
		return nil, NoMinuteError{at}
	}
	for name, r := range p.rows {
		t.rows = append(t.rows, p.row(name, r))
	}
	slices.SortFunc(t.rows, byName)
	for _, c := range columns {
		if !p.up[c.probe] && !slices.ContainsFunc(t.troubles, func(x trouble) bool { return x.probe == c.probe }) {
			t.troubles = append(t.troubles, trouble{c.probe, "gave no values in that minute, or not all", true, true})
		}
	}
	return t, nil
}

// Unknown lists the probes whose values in the minute are missing or incomplete.
func (t *Table) Unknown() []string {
	var names []string
	for _, x := range t.troubles {
		names = append(names, x.probe)
	}
	return names
}

// past makes a table of a minute.
type past struct {
	table *Table
	label string
	up    map[string]bool // by probe: whether it gave all its values
	rows  map[podName]*pastRow
}

// pastRow holds the values of one pod in a minute.
type pastRow struct {
	values, reasons, classes map[string]float64
}

// metricsOf returns the metrics that a column sums in a history.
func metricsOf(c *Column) []string {
	if m := pastMetrics[c.metrics[0]]; m != nil {
		return m
	}
	return c.metrics
}

func (p *past) keep(s *history.Series) bool {
	return s.Metric == probeUp || strings.HasPrefix(s.Metric, "kubeskoop_packetloss_") ||
		slices.ContainsFunc(p.table.columns, func(c Column) bool { return slices.Contains(metricsOf(&c), s.Metric) })
}

func (p *past) take(s *history.Sample) {
	if s.Metric == probeUp {
		p.up[s.Label("probe")] = s.Value > 0 && !s.Gone
		return
	}
	name := podName{s.Label(owner.LabelNamespace), s.Label(owner.LabelPod)}
	switch name {
	case podName{owner.UnknownLabel, owner.UnknownLabel}:
		return // neither a pod's nor the host's, so it has no row
	case podName{p.label, p.label}, podName{owner.DefaultHostLabel, owner.DefaultHostLabel}:
		name = hostName
	}
	r := p.rows[name]
	if r == nil {
		r = &pastRow{map[string]float64{}, map[string]float64{}, map[string]float64{}}
		p.rows[name] = r
	}
	value := s.Value
	if s.Kind == history.Gauge && !s.Gone {
		value = max(s.Value, s.Peak) // show the peak: a queue that filled up and drained matters
	}
	switch class, is := strings.CutPrefix(s.Metric, "kubeskoop_packetloss_"); {
	case class == "reason" && is:
		r.reasons[s.Label("reason")] += value
	case class != "total" && is:
		r.classes[class] += value
	case s.Gone:
		delete(r.values, s.Metric)
	case s.Kind == history.Gauge:
		r.values[s.Metric] = value
	default:
		r.values[s.Metric] += value
	}
}

func (p *past) row(name podName, values *pastRow) row {
	r := row{namespace: name.namespace, pod: name.pod, cells: make([]cell, len(p.table.columns))}
	if name == hostName {
		r = row{host: true, cells: r.cells}
	}
	seconds := p.table.interval.Seconds()
	for i := range p.table.columns {
		col := &p.table.columns[i]
		c := &r.cells[i]
		for _, m := range metricsOf(col) {
			v, have := values.values[m]
			c.known = c.known || have || p.up[col.probe]
			c.count += v
		}
		if c.second = c.count; !col.gauge() && seconds > 0 {
			c.second = c.count / seconds
		}
	}
	if r.reasons = reasonsOf(values.reasons, nil, seconds); len(r.reasons) == 0 {
		r.reasons = reasonsOf(values.classes, nil, seconds)
	}
	if len(r.reasons) > 0 && r.reasons[0].second > 0 {
		r.reason = r.reasons[0].name
	}
	return r
}

// clock formats the time of the table.
func (t *Table) clock() string {
	if t.dated {
		return t.at.Local().Format("2006-01-02 15:04:05")
	}
	return t.at.Format("15:04:05")
}
