package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/trace"
)

// topColumn is one number that top shows of each pod.
type topColumn struct {
	name  string // for --sort, and in JSON
	key   rune   // sorts by it
	title string
	probe string
	// metrics are summed up. topResets stands for what no metric tells.
	metrics []string
	gauge   bool // shown as it is, not as a rate
}

// topResets is the sum of the kernel's four counters of the probe tcpreset.
const topResets = "resets"

var topColumns = []topColumn{
	{"drops", 'd', "DROPS/s", "packetloss", []string{"kubeskoop_packetloss_total"}, false},
	{"retransmits", 't', "RETRANS/s", "tcpretrans", []string{"kubeskoop_tcpretrans_total"}, false},
	{"resets", 'e', "RESETS/s", "tcpreset", []string{topResets}, false},
	{"socket_slow", 'o', "SOCKSLOW/s", "socketlatency", []string{"kubeskoop_socketlatency_read1ms", "kubeskoop_socketlatency_write1ms"}, false},
	{"kernel_slow", 'k', "KERNSLOW/s", "kernellatency", []string{"kubeskoop_kernellatency_rxslow", "kubeskoop_kernellatency_txslow"}, false},
	{"rx_bytes", 'b', "RX B/s", "netdev", []string{"kubeskoop_netdev_rxbytes"}, false},
	{"tx_bytes", 'B', "TX B/s", "netdev", []string{"kubeskoop_netdev_txbytes"}, false},
	{"rx_packets", 'p', "RX pkt/s", "netdev", []string{"kubeskoop_netdev_rxpackets"}, false},
	{"tx_packets", 'P', "TX pkt/s", "netdev", []string{"kubeskoop_netdev_txpackets"}, false},
	{"tx_queue", 'u', "TXQ B", "tcpsummary", []string{"kubeskoop_tcpsummary_tcptxqueue"}, true},
	{"rx_queue", 'v', "RXQ B", "tcpsummary", []string{"kubeskoop_tcpsummary_tcprxqueue"}, true},
}

// topProbes are the probes that top has a column for.
func topProbes() []string {
	var names []string
	for _, c := range topColumns {
		if !slices.Contains(names, c.probe) {
			names = append(names, c.probe)
		}
	}
	return names
}

// topCell is one number of one pod. A counter's is there only if it was sampled
// twice of the same pod and was not reset in between.
type topCell struct {
	known  bool
	count  float64 // what a counter rose by in the interval, or a gauge's value
	second float64 // the same per second, or a gauge's value
}

// topRow is one pod, or the host.
type topRow struct {
	host           bool
	namespace, pod string
	netns          uint64
	cells          []topCell // by column
	reason         string    // of most of the drops, "" if there were none
}

func (r *topRow) name() string {
	if r.host {
		return "host"
	}
	return r.namespace + "/" + r.pod
}

// topTable is one sample.
type topTable struct {
	at       time.Time
	interval time.Duration // since the one before; 0 for the first
	columns  []topColumn
	rows     []topRow
	took     time.Duration
	// troubles says by probe what is not seen here.
	troubles []topTrouble
	// containerd is why pods are not named, nil while it answers.
	containerd error
}

type topTrouble struct {
	probe  string
	text   string
	failed bool // and it failed: more may be seen later
	whole  bool // nothing of the probe is seen
}

// topSampler takes the samples, with the Runner that the daemon uses.
type topSampler struct {
	runner  *collect.Runner
	plane   *trace.Tracer
	pods    owner.Pods
	status  func() error // of containerd
	host    uint64       // network namespace
	columns []topColumn

	last   map[podName]topCounters
	lastAt time.Time
	// seen counts by column the cycles on end with a value. The first of them is
	// not compared: the probe was loaded in that cycle, some time after it began.
	seen map[string]int
}

type podName struct{ namespace, pod string }

// topCounters are the values of one pod in one sample.
type topCounters struct {
	id      string // of the pod: another of the same name counts from 0
	netns   uint64
	values  map[string]float64 // by metric
	reasons map[string]float64
	classes map[string]float64
}

// topHost is the host's label in the families. No pod can have that name.
const topHost = "(host)"

// sample takes one sample and compares it with the one before.
func (s *topSampler) sample() *topTable {
	if s.seen == nil {
		s.seen = map[string]int{}
		s.look(s.counters(s.runner.Cycle())) // loads the probes
	}
	before := s.identities()
	at := time.Now()
	fams := s.runner.Cycle()
	resets, loaded, resetErr := s.plane.Resets()
	now := s.counters(fams)
	if loaded {
		for _, c := range now {
			c.values[topResets] = float64(resets[c.netns])
			if c.netns == s.host {
				c.values[topResets] += float64(resets[0]) // of no known namespace
			}
		}
	}
	for name, c := range now {
		if name.pod != topHost && before[name].id != c.id {
			delete(now, name) // replaced while it was sampled: the next sample tells
		}
	}
	s.look(now)
	t := &topTable{at: at, columns: s.columns, took: time.Since(at), containerd: s.status()}
	if !s.lastAt.IsZero() {
		t.interval = at.Sub(s.lastAt)
	}
	for name, c := range now {
		t.rows = append(t.rows, s.row(name, c, t.interval))
	}
	slices.SortFunc(t.rows, byName)
	for _, st := range s.runner.Status() {
		switch {
		case st.Err != nil:
			t.troubles = append(t.troubles, topTrouble{st.Name, firstLine(st.Err.Error()), true, !s.sees(st.Name)})
		case st.Name == "tcpreset" && resetErr != nil:
			t.troubles = append(t.troubles, topTrouble{st.Name, resetErr.Error(), true, true})
		case len(st.Lacks) > 0:
			t.troubles = append(t.troubles, topTrouble{st.Name, "does not see " + strings.Join(st.Lacks, "; "), false, false})
		}
	}
	s.last, s.lastAt = now, at
	return t
}

// look takes down which probes gave values.
func (s *topSampler) look(now map[podName]topCounters) {
	for _, col := range s.columns {
		some := false
		for _, c := range now {
			for _, m := range col.metrics {
				_, have := c.values[m]
				some = some || have
			}
		}
		if col.name == topResets {
			_, some, _ = s.plane.Resets()
		}
		if some {
			s.seen[col.name]++
		} else {
			s.seen[col.name] = 0
		}
	}
}

// sees reports whether any column of a probe has values.
func (s *topSampler) sees(probe string) bool {
	return slices.ContainsFunc(s.columns, func(c topColumn) bool { return c.probe == probe && s.seen[c.name] > 0 })
}

// identities are the pods that have a network namespace of their own, as the
// Runner names them: the newest of those with the same name.
func (s *topSampler) identities() map[podName]topCounters {
	ids := map[podName]topCounters{}
	newest := map[podName]time.Time{}
	for _, p := range s.pods.Running() {
		k := podName{p.Namespace, p.Name}
		if t, twice := newest[k]; twice && !p.Started.After(t) {
			continue
		}
		newest[k] = p.Started
		ids[k] = topCounters{id: fmt.Sprintf("%s %d", p.ID, p.Netns), netns: p.Netns}
	}
	return ids
}

// counters sorts the families' values by pod.
func (s *topSampler) counters(fams []*dto.MetricFamily) map[podName]topCounters {
	wanted := map[string]bool{}
	for _, col := range s.columns {
		for _, m := range col.metrics {
			wanted[m] = true
		}
	}
	ids := s.identities()
	out := map[podName]topCounters{}
	for _, f := range fams {
		name := f.GetName()
		class, isClass := strings.CutPrefix(name, "kubeskoop_packetloss_")
		isClass = isClass && class != "total" && class != "reason"
		isReason := class == "reason"
		if !wanted[name] && !isClass && !isReason {
			continue
		}
		for _, m := range f.GetMetric() {
			var k podName
			reason := ""
			for _, l := range m.GetLabel() {
				switch l.GetName() {
				case owner.LabelNamespace:
					k.namespace = l.GetValue()
				case owner.LabelPod:
					k.pod = l.GetValue()
				case "reason":
					reason = l.GetValue()
				}
			}
			if k == (podName{owner.UnknownLabel, owner.UnknownLabel}) {
				continue // no pod's and not the host's: a row has an owner
			}
			c, ok := out[k]
			if !ok {
				c = ids[k]
				if k.pod == topHost {
					c = topCounters{id: topHost, netns: s.host}
				}
				c.values, c.reasons, c.classes = map[string]float64{}, map[string]float64{}, map[string]float64{}
				out[k] = c
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			switch {
			case isReason:
				c.reasons[reason] = value
			case isClass:
				c.classes[class] = value
			default:
				c.values[name] = value
			}
		}
	}
	return out
}

// row compares one pod's values with those of the sample before.
func (s *topSampler) row(name podName, now topCounters, interval time.Duration) topRow {
	r := topRow{namespace: name.namespace, pod: name.pod, netns: now.netns, cells: make([]topCell, len(s.columns))}
	if name.pod == topHost {
		r = topRow{host: true, netns: now.netns, cells: r.cells}
	}
	last, ok := s.last[name]
	same := ok && last.id == now.id && interval > 0
	for i, col := range s.columns {
		c := topCell{known: true}
		for _, m := range col.metrics {
			v, have := now.values[m]
			if col.gauge {
				c.known = c.known && have
				c.count += v
				continue
			}
			was, had := last.values[m]
			c.known = c.known && same && s.seen[col.name] > 2 && have && had && v >= was
			c.count += v - was
		}
		if !c.known {
			continue
		}
		if c.second = c.count; !col.gauge {
			c.second = c.count / interval.Seconds()
		}
		r.cells[i] = c
	}
	if i := slices.IndexFunc(s.columns, func(c topColumn) bool { return c.name == "drops" }); i >= 0 && r.cells[i].known && r.cells[i].count > 0 {
		r.reason = cmp.Or(leading(now.reasons, last.reasons), leading(now.classes, last.classes))
	}
	return r
}

// leading names what rose most.
func leading(now, last map[string]float64) string {
	best, most := "", 0.0
	for name, v := range now {
		if d := v - last[name]; d > most || d == most && d > 0 && name < best {
			best, most = name, d
		}
	}
	return best
}

func byName(a, b topRow) int {
	if a.host != b.host {
		if a.host {
			return -1
		}
		return 1
	}
	return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.pod, b.pod))
}

// topOrder says which rows are shown, and in which order.
type topOrder struct {
	column  string // its name, or "pod"
	reverse bool
	filter  string // part of the name
	pods    wanted // exact names
}

// apply returns the rows to show: the greatest first, what is not known last.
func (o topOrder) apply(t *topTable) []topRow {
	rows := slices.DeleteFunc(slices.Clone(t.rows), func(r topRow) bool {
		if o.filter != "" && !strings.Contains(strings.ToLower(r.name()), strings.ToLower(o.filter)) {
			return true
		}
		return len(o.pods.pods) > 0 && !slices.ContainsFunc(o.pods.pods, func(w [2]string) bool {
			if w == [2]string{"", "host"} {
				return r.host
			}
			return !r.host && r.pod == w[1] && (w[0] == "" || w[0] == r.namespace)
		})
	})
	i := slices.IndexFunc(t.columns, func(c topColumn) bool { return c.name == o.column })
	slices.SortStableFunc(rows, func(a, b topRow) int {
		if i < 0 {
			if o.reverse {
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
		if o.reverse {
			d = -d
		}
		return cmp.Or(d, byName(a, b))
	})
	return rows
}

// short writes a number in at most six characters.
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

// text is what a table shows of the cell.
func (c topCell) text(col topColumn) string {
	switch {
	case !c.known:
		return "-"
	case col.gauge && c.count < 9999.5:
		return fmt.Sprintf("%.0f", c.count)
	}
	return short(c.second)
}
