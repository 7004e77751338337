// Package top samples the network activity of each pod, and shows it as a table, on
// a screen or as JSON.
package top

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// cell is one number of one pod. A counter has a cell only if it was sampled twice
// for the same pod without a reset in between.
type cell struct {
	known  bool
	count  float64 // increase of a counter in the interval, or value of a gauge
	second float64 // the counter's rate per second, or the gauge's value
	least  bool    // the number is a lower bound
}

// row is one pod, or the host.
type row struct {
	host           bool
	namespace, pod string
	netns          uint64
	cells          []cell // by column index
	reason         string // reason of most drops, "" if there were none
	reasons        []reason
}

func (r *row) id() podName {
	if r.host {
		return hostName
	}
	return podName{r.namespace, r.pod}
}

func (r *row) name() string {
	if r.host {
		return "host"
	}
	return r.namespace + "/" + r.pod
}

// Table is one sample.
type Table struct {
	at       time.Time
	dated    bool          // the table is of a time in the past
	interval time.Duration // time since the previous sample; 0 for the first
	columns  []Column
	rows     []row
	took     time.Duration
	// troubles lists by probe what is not visible here.
	troubles []trouble
	// containerd is why pods are not named, nil while containerd answers.
	containerd error
	page       *page // page of the open pod, nil if none is open
}

type trouble struct {
	probe  string
	text   string
	failed bool // the probe failed, so a later sample may see more
	whole  bool // the whole probe is missing
}

// Sampler takes samples with the same Runner as the daemon.
type Sampler struct {
	runner  *collect.Runner
	tracer  *trace.Tracer
	pods    owner.Pods
	status  func() error // state of containerd
	host    uint64       // the host's network namespace
	columns []Column
	events  *tally
	lost    func() uint64 // number of drops whose events were lost
	files   hostFiles

	last   map[podName]*counters
	lastAt time.Time
	// seen counts consecutive cycles with a value, by column. The first of them is
	// not compared, because the probe was loaded only during that cycle.
	seen map[string]int
	held uint64 // suppressed events as of the last sample
	// begun is the start of counting.
	begun time.Time

	table   *Table // last table
	open    atomic.Pointer[podName]
	sockets *bounded.Call[socketList] // last request for sockets; nil if there was none
}

// hostFiles are the paths of the host's network namespace and procfs.
type hostFiles struct{ netns, proc string }

type podName struct{ namespace, pod string }

// counters holds the values of one pod in one sample.
type counters struct {
	sandbox string // ID of the pod's sandbox
	netns   uint64
	values  amounts
	reasons map[string]float64
	classes map[string]float64
}

// amounts holds the values of the columns' metrics, indexed by metricIndex. NaN means
// that a metric has no value.
type amounts []float64

// metricIndex numbers the metrics of all columns. Each pod has values in every cycle,
// and a map per pod would cost more CPU time than the rest of top.
var metricIndex = func() map[string]int {
	index := map[string]int{}
	for i := range columns {
		for _, m := range columns[i].metrics {
			if _, known := index[m]; !known {
				index[m] = len(index)
			}
		}
	}
	return index
}()

func newAmounts() amounts {
	a := make(amounts, len(metricIndex))
	for i := range a {
		a[i] = math.NaN()
	}
	return a
}

// of returns the value of a column's metric.
func (a amounts) of(metric string) (v float64, have bool) {
	if a == nil {
		return 0, false
	}
	v = a[metricIndex[metric]]
	return v, !math.IsNaN(v)
}

func (a amounts) set(metric string, v float64) { a[metricIndex[metric]] = v }

func (a amounts) add(metric string, v float64) { a[metricIndex[metric]] += v }

// of reports whether both belong to the same pod in the same network namespace. Another
// pod of the same name counts from 0.
func (c *counters) of(other *counters) bool {
	return c.sandbox == other.sandbox && c.netns == other.netns
}

const hostLabel = session.OnlookerHost

var hostName = podName{hostLabel, hostLabel}

// NewSampler creates the Sampler for the columns; end releases it.
func NewSampler(ctx context.Context, s *session.Session, columns []Column) (sampler *Sampler, end func(), err error) {
	var enabled []string
	for _, col := range columns {
		enabled = append(enabled, col.probe)
	}
	events := newTally()
	x, err := s.NewOnlooker(ctx, enabled, session.WithoutStacks(s.Config.Options().Probes), events)
	if err != nil {
		return nil, nil, err
	}
	files := hostFiles{netns: s.Host.NetnsFile(), proc: "/proc"}
	host, err := kernel.Inode(files.netns)
	if err != nil {
		x.Close()
		return nil, nil, fmt.Errorf("find the host's network namespace: %w", err)
	}
	return &Sampler{runner: x.Runner, tracer: x.Tracer, pods: x.Pods, status: func() error { return session.Named(x.Pods) }, host: host, files: files, columns: columns, events: events, lost: func() uint64 { return x.Hub.Counts(packetLoss).Lost }}, x.Close, nil
}

// sample takes a sample and compares it with the previous one.
func (s *Sampler) sample() *Table {
	if s.seen == nil {
		s.seen, s.begun = map[string]int{}, time.Now()
		s.look(s.counters(s.runner.Cycle())) // also loads the probes
	}
	before := s.identities()
	at := time.Now()
	fams := s.runner.Cycle()
	s.tracer.Account() // events suppressed in the kernel
	resets, loaded, resetErr := s.tracer.Resets()
	now := s.counters(fams)
	if loaded {
		for _, c := range now {
			c.values.set(resetsSum, float64(resets[c.netns]))
			if c.netns == s.host {
				c.values.add(resetsSum, float64(resets[0])) // unattributed resets
			}
		}
	}
	for name, c := range now {
		if b := before[name]; name.pod != hostLabel && !b.of(c) {
			delete(now, name) // the pod was replaced during the sample; the next sample has its values
		}
	}
	s.look(now)
	t := &Table{at: at, columns: s.columns, took: time.Since(at), containerd: s.status()}
	if !s.lastAt.IsZero() {
		t.interval = at.Sub(s.lastAt)
	}
	held := s.events.heldBack() + s.lost()
	for name, c := range now {
		t.rows = append(t.rows, s.row(name, c, t.interval, held != s.held))
	}
	slices.SortFunc(t.rows, byName)
	for _, st := range s.runner.Status() {
		switch {
		case st.Err != nil:
			first, _, _ := strings.Cut(st.Err.Error(), "\n")
			t.troubles = append(t.troubles, trouble{st.Name, first, true, !s.sees(st.Name)})
		case st.Name == "tcpreset" && resetErr != nil:
			t.troubles = append(t.troubles, trouble{st.Name, resetErr.Error(), true, true})
		case len(st.Limitations) > 0:
			t.troubles = append(t.troubles, trouble{st.Name, "does not see " + strings.Join(st.Limitations, "; "), false, false})
		}
	}
	s.last, s.lastAt, s.held, s.table = now, at, held, t
	s.events.forget(func(name podName) bool { _, runs := now[name]; return runs || before[name].sandbox != "" })
	if name := s.open.Load(); name != nil {
		t.page = s.pageOf(*name)
	}
	return t
}

// look records which probes gave values.
func (s *Sampler) look(now map[podName]*counters) {
	for _, col := range s.columns {
		some := false
		for _, c := range now {
			for _, m := range col.metrics {
				_, have := c.values.of(m)
				some = some || have
			}
			if some {
				break
			}
		}
		if col.Name == resetsSum {
			_, some, _ = s.tracer.Resets()
		}
		if some {
			s.seen[col.Name]++
		} else {
			s.seen[col.Name] = 0
		}
	}
}

// sees reports whether any of a probe's columns has values.
func (s *Sampler) sees(probe string) bool {
	return slices.ContainsFunc(s.columns, func(c Column) bool { return c.probe == probe && s.seen[c.Name] > 0 })
}

// identities returns the pods with a network namespace of their own, by the
// Runner's names; for pods with the same name, the newest.
func (s *Sampler) identities() map[podName]counters {
	pods := s.pods.Running()
	ids := make(map[podName]counters, len(pods))
	newest := make(map[podName]time.Time, len(pods))
	for _, p := range pods {
		k := podName{p.Namespace, p.Name}
		if t, twice := newest[k]; twice && !p.Started.After(t) {
			continue
		}
		newest[k] = p.Started
		ids[k] = counters{sandbox: p.ID, netns: p.Netns}
	}
	return ids
}

// counters groups the families' values by pod.
func (s *Sampler) counters(fams []*dto.MetricFamily) map[podName]*counters {
	ids := s.identities()
	out := make(map[podName]*counters, len(ids)+1)
	// All series of a target that have no further labels share one array of labels.
	shared := make(map[**dto.LabelPair]*counters, len(ids)+1)
	for _, f := range fams {
		name := f.GetName()
		class, isClass := strings.CutPrefix(name, "kubeskoop_packetloss_")
		isClass = isClass && class != "total" && class != "reason"
		isReason := class == "reason"
		wanted := slices.ContainsFunc(s.columns, func(c Column) bool { return slices.Contains(c.metrics, name) })
		if !wanted && !isClass && !isReason {
			continue
		}
		at := metricIndex[name]
		for _, m := range f.GetMetric() {
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if !wanted && value == 0 {
				continue // most pods have no drops
			}
			if len(m.Label) == 0 {
				continue
			}
			c, known := shared[&m.Label[0]]
			if !known {
				c = s.countersOf(m, ids, out)
				shared[&m.Label[0]] = c
			}
			switch {
			case c == nil: // neither a pod nor the host, so it has no row
			case wanted:
				c.values[at] = value
			case isReason:
				c.reasons = put(c.reasons, labelOf(m, "reason"), value)
			default:
				c.classes = put(c.classes, class, value)
			}
		}
	}
	for name, c := range out {
		// Drops on the host that hit pods count for the host too.
		if _, counted := c.values.of("kubeskoop_packetloss_total"); counted && name != hostName {
			c.values.set(hostDropsSum, float64(s.events.hostDropsOf(name, c.sandbox)))
		}
	}
	return out
}

// countersOf returns the counters of a series' owner, and adds them if they are the
// first; nil if it has no owner.
func (s *Sampler) countersOf(m *dto.Metric, ids map[podName]counters, out map[podName]*counters) *counters {
	k := podName{labelOf(m, owner.LabelNamespace), labelOf(m, owner.LabelPod)}
	if k == (podName{owner.UnknownLabel, owner.UnknownLabel}) {
		return nil
	}
	c := out[k]
	if c == nil {
		c = &counters{}
		if *c = ids[k]; k.pod == hostLabel {
			*c = counters{sandbox: hostLabel, netns: s.host}
		}
		c.values = newAmounts()
		out[k] = c
	}
	return c
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func put(m map[string]float64, name string, v float64) map[string]float64 {
	if m == nil {
		m = map[string]float64{}
	}
	m[name] = v
	return m
}

// row compares a pod's values with those of the previous sample. held means that
// some drops on the host were not counted.
func (s *Sampler) row(name podName, now *counters, interval time.Duration, held bool) row {
	r := row{namespace: name.namespace, pod: name.pod, netns: now.netns, cells: make([]cell, len(s.columns))}
	if name.pod == hostLabel {
		r = row{host: true, netns: now.netns, cells: r.cells}
	}
	last := s.last[name]
	same := last != nil && last.of(now) && interval > 0
	if last == nil {
		last = &counters{}
	}
	for i, col := range s.columns {
		c := cell{known: true}
		for _, m := range col.metrics {
			v, have := now.values.of(m)
			if col.gauge() {
				c.known = c.known && have
				c.count += v
				continue
			}
			was, had := last.values.of(m)
			c.known = c.known && same && s.seen[col.Name] > 2 && have && had && v >= was
			c.count += v - was
		}
		if !c.known {
			continue
		}
		if c.second = c.count; !col.gauge() {
			c.second = c.count / interval.Seconds()
		}
		c.least = held && col.Name == hostDrops
		r.cells[i] = c
	}
	second := 0.0
	if same && s.seen["drops"] > 2 {
		second = interval.Seconds()
	}
	if r.reasons = reasonsOf(now.reasons, last.reasons, second); len(r.reasons) == 0 {
		r.reasons = reasonsOf(now.classes, last.classes, second) // before Linux 5.17 there are no reasons
	}
	if len(r.reasons) > 0 && r.reasons[0].second > 0 {
		r.reason = r.reasons[0].name
	}
	return r
}

func byName(a, b row) int {
	if a.host != b.host {
		if a.host {
			return -1
		}
		return 1
	}
	return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.pod, b.pod))
}

// Order selects and sorts the rows to show.
type Order struct {
	Column  string // name of a column, or "pod"
	Reverse bool
	Filter  string         // substring of the name
	Pods    session.Filter // exact names
}

// apply returns the rows to show in descending order, unknown values last.
func (o Order) apply(t *Table) []row {
	rows := slices.DeleteFunc(slices.Clone(t.rows), func(r row) bool {
		return o.Filter != "" && !strings.Contains(strings.ToLower(r.name()), strings.ToLower(o.Filter)) || !o.Pods.WantsPod(r.host, r.namespace, r.pod)
	})
	i := slices.IndexFunc(t.columns, func(c Column) bool { return c.Name == o.Column })
	slices.SortStableFunc(rows, func(a, b row) int {
		if i < 0 {
			if o.Reverse {
				return byName(b, a)
			}
			return byName(a, b)
		}
		x, y := a.cells[i], b.cells[i]
		if x.known != y.known {
			if x.known {
				return -1
			}
			return 1
		}
		d := cmp.Compare(y.second, x.second)
		if o.Reverse {
			d = -d
		}
		return cmp.Or(d, byName(a, b))
	})
	return rows
}

// short formats a number in at most five characters.
func short(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.1:
		return "<0.1"
	case v < 9.95:
		return fmt.Sprintf("%.1f", v)
	case v < 9999.5:
		return fmt.Sprintf("%.0f", v)
	}
	for _, unit := range "kMGTPE" {
		v /= 1000
		if v < 99.95 {
			return fmt.Sprintf("%.1f%c", v, unit)
		}
		if v < 999.5 {
			return fmt.Sprintf("%.0f%c", v, unit)
		}
	}
	return fmt.Sprintf("%.0e", v*math.Pow(1000, 6))
}

// text returns the cell's text in a table.
func (c *cell) text(col *Column) string {
	switch {
	case !c.known:
		return "-"
	case col.gauge() && c.count < 9999.5:
		return fmt.Sprintf("%.0f", c.count)
	case c.least:
		return short(c.second) + "+"
	}
	return short(c.second)
}
