// Package catalog declares every probe, metric and event: name, meaning, cause,
// next steps and cost. Each probe has a file of its own. Lists, documentation, the
// shipped configuration, the journal's message catalog and the dashboards are
// generated from these declarations. The package holds data only and imports
// nothing of this project.
package catalog

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options that several probes share.
var (
	podsOption = Option{Key: "pods", Default: false,
		Help: "also sample the network namespaces of pods, not only the host's"}
	slowOption = Option{Key: "slow", Default: 10 * time.Millisecond,
		Help: "the latency above which the slow counter counts (the 100ms counter always uses 100 ms)"}
	eventOption = Option{Key: "event", Default: 100 * time.Millisecond,
		Help: "the latency above which an event is sent"}
	stackOption = Option{Key: "stack", Default: true,
		Help: "events carry the kernel stack"}
)

const nodeWide = " The kernel counts this for the whole node, so every namespace shows the same value."

// Type is the Prometheus type of a metric.
type Type uint8

// The types of the contract's metrics, and Histogram, which only nodeskoop's own
// metrics have.
const (
	Counter Type = iota + 1
	Gauge
	Histogram
)

// String returns the type as the text exposition format spells it.
func (t Type) String() string {
	switch t {
	case Counter:
		return "counter"
	case Gauge:
		return "gauge"
	case Histogram:
		return "histogram"
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// Scope says what one series of a metric stands for.
type Scope uint8

// The scopes of the contract.
const (
	PerNetns Scope = iota + 1 // one series per network namespace
	PerPod                    // one series per pod, summed over its processes; processes outside pods are the host's
	PerHost                   // one series
	PerFlow                   // one series per flow: a pair of addresses, and with probes.flow.ports their ports
)

// String returns the scope as the contract's table spells it.
func (s Scope) String() string {
	switch s {
	case PerNetns:
		return "netns"
	case PerPod:
		return "pod"
	case PerHost:
		return "host"
	case PerFlow:
		return "flow"
	}
	return fmt.Sprintf("Scope(%d)", uint8(s))
}

// Source is the origin of a probe's data.
type Source uint8

// The three sources.
const (
	Procfs Source = iota + 1
	Netlink
	EBPF
)

// String returns the source as the contract's table spells it.
func (s Source) String() string {
	switch s {
	case Procfs:
		return "procfs"
	case Netlink:
		return "netlink"
	case EBPF:
		return "eBPF"
	}
	return fmt.Sprintf("Source(%d)", uint8(s))
}

// Metric declares one metric family.
type Metric struct {
	Name  string
	Type  Type
	Scope Scope
	Help  string
	// Labels are the names of the labels beyond k8s_node, k8s_namespace and k8s_pod.
	Labels []string
	// Field is the kernel's name of the value, for probes that look values up by
	// name (such as a column of /proc/PID/net/snmp).
	Field string
	// Alias names the metric whose series this one repeats. Such a metric exists
	// for dashboards that use its name, and is written only with compat_names.
	Alias string
	// Extra marks a metric beyond the contract's table.
	Extra bool
	// Kernel names the kernel's counter or path, and the functions that change it.
	Kernel string
	// Rises says which condition raises the value. For a gauge, it says what
	// changes the value.
	Rises string
	// Recorded makes the history keep a gauge; it keeps every counter. Gauges that
	// top shows and gauges of fill levels are recorded.
	Recorded bool
	// Unit is the unit of a histogram's bounds and sum, and the suffix of the
	// metric's name.
	Unit string
	// Bounds are the upper bounds of a histogram's buckets. The last bucket has
	// no upper bound and is not listed.
	Bounds []float64
	// Work marks a counter that rises in ordinary operation. A higher rate of it
	// is not a sign of trouble.
	Work bool

	probe string
	id    int
}

// Probe returns the name of the probe that yields the metric, or "" for the
// tool's metrics about itself.
func (m *Metric) Probe() string { return m.probe }

// ID returns the metric's index in Metrics.
func (m *Metric) ID() int { return m.id }

// Series is the number of lines in the text format per value: 1, or for a
// histogram its buckets, sum and count.
func (m *Metric) Series() int {
	if m.Type == Histogram {
		return len(m.Bounds) + 3
	}
	return 1
}

// FieldGroup names a group of journal fields that an event type carries.
type FieldGroup string

// The field groups of the contract.
const (
	FieldTuple   FieldGroup = "tuple"
	FieldLatency FieldGroup = "latency"
	FieldPoints  FieldGroup = "points"
	FieldProcess FieldGroup = "process"
	FieldCPU     FieldGroup = "cpu"
	FieldPID     FieldGroup = "pid"
	FieldIfname  FieldGroup = "ifname"
	FieldDisk    FieldGroup = "disk"
	// FieldOperation is the operation of a block I/O and its size in bytes.
	FieldOperation FieldGroup = "operation"
	FieldVector    FieldGroup = "vector"
	FieldLocation  FieldGroup = "location"
	FieldReason    FieldGroup = "reason"
	FieldTCPState  FieldGroup = "tcpstate"
	FieldStack     FieldGroup = "stack"
)

// Priority is a syslog priority.
type Priority uint8

// The priorities that events use. Problems of the daemon itself are logged at
// err, whose journal rate-limit bucket events never fill.
const (
	PriWarning Priority = 4
	PriNotice  Priority = 5
)

// LevelNotice is the slog level of syslog's notice, for which slog has no name:
// something worth knowing, though nothing is wrong.
const LevelNotice = slog.LevelInfo + 2

// String returns the priority's syslog keyword.
func (p Priority) String() string {
	switch p {
	case PriWarning:
		return "warning"
	case PriNotice:
		return "notice"
	}
	return fmt.Sprintf("Priority(%d)", uint8(p))
}

// Warn holds the thresholds at which a journal entry becomes a warning. An entry
// for a single occurrence is always a notice.
type Warn struct {
	// Count is the number of merged occurrences at which an entry is a warning; 0
	// disables this threshold.
	Count uint64
	// Latency is the worst latency at which an entry of two or more occurrences is
	// a warning; 0 disables this threshold.
	Latency time.Duration
}

// EventType declares one kind of event.
type EventType struct {
	Name string
	// Path is the kernel path on which the event is seen.
	Path string
	// Threshold is the default latency above which an occurrence is an event; 0
	// makes every occurrence an event.
	Threshold time.Duration
	// Below is the upper limit of the latency; from there on the occurrence belongs
	// to another event type. 0 means no limit.
	Below  time.Duration
	Warn   Warn
	Fields []FieldGroup
	// Extra lists the members of Fields that the contract's table does not have.
	Extra []FieldGroup
	// Points names the intermediate latencies of FieldPoints. PointsKnown says in
	// which cases the kernel provides them.
	Points      []string
	PointsKnown string
	// MessageID is the journal's MESSAGE_ID, 32 hexadecimal digits.
	MessageID string
	// Summary says in one sentence what happened.
	Summary string
	// Message is Summary as a short log line. {latency} stands for the latency,
	// {operation} for the fields of FieldOperation, {points} for the points in
	// brackets. {from}, {to} and {ends} name the pods at the ends other than the
	// event's own: {from} if the peer sent the data, {to} if the data went to the
	// peer, {ends} for both in the packet's direction. Unknown values become "".
	Message string
	// Explain gives the meaning and the usual causes, in paragraphs separated by an
	// empty line.
	Explain string
	// Next are commands for further investigation.
	Next []Step

	probe string
	id    int
}

// Grade returns the priority of an entry for that number of merged occurrences;
// latency is the worst of them.
func (e *EventType) Grade(occurrences uint64, latency time.Duration) Priority {
	w := e.Warn
	if occurrences > 1 && (w.Count > 0 && occurrences >= w.Count || w.Latency > 0 && latency >= w.Latency) {
		return PriWarning
	}
	return PriNotice
}

// Grades describes the thresholds of Grade in one sentence.
func (e *EventType) Grades() string {
	many := strconv.FormatUint(e.Warn.Count, 10)
	switch w := e.Warn; {
	case w.Count == 0 && w.Latency == 0:
		return "Every entry is a notice."
	case w.Count == 0:
		return fmt.Sprintf("One occurrence is a notice; an entry of two or more is a warning if one took %v or longer.", w.Latency)
	case w.Latency == 0:
		return "One occurrence is a notice; an entry of " + many + " or more is a warning."
	}
	return fmt.Sprintf("One occurrence is a notice; an entry of %s or more is a warning, and so is one of two or more if one took %v or longer.", many, e.Warn.Latency)
}

// Probe returns the name of the probe that reports the event.
func (e *EventType) Probe() string { return e.probe }

// ID returns the event type's index in Events.
func (e *EventType) ID() int { return e.id }

// Probe declares one probe.
type Probe struct {
	Name string
	// Aliases are other names that the command line and configuration accept.
	Aliases []string
	// Title is a short description of the probe's subject.
	Title    string
	Source   Source
	Overhead string // limit by the specification: low, medium or high
	// Measured is the measured cost with its unit, empty if not measured. A test
	// compares it with docs/measurements/costs.md and docs/performance.md.
	Measured string
	// Default says whether the probe runs when the configuration names none.
	Default bool
	// Escalate says whether the probe, where it is not enabled, runs for some minutes
	// after a sign of a fault. Its values explain faults.
	Escalate bool
	// Rank orders the families in the textfile; max_series cuts from the end. Probes
	// with rank 0 come last.
	Rank int
	// Extra marks a probe beyond the contract's table, with all its metrics and
	// events.
	Extra   bool
	Metrics []Metric
	Events  []EventType
	// Options are the keys of the probe's configuration table.
	Options []Option
	// Capabilities are those that the probe needs in addition to CapSysPtrace, which
	// every probe needs.
	Capabilities []Capability
	// Cost describes in one sentence the work that the probe adds to the node. Times
	// come from make bench-bpf, minus those of an empty program at the same hook.
	Cost string
}

// Capability is a capability of capabilities(7) that probes need.
type Capability struct {
	Name string
	Why  string
	// Mild means that without the capability details are missing but no probe fails.
	Mild bool
}

// The capabilities that probes need.
var (
	CapSysPtrace     = Capability{Name: "CAP_SYS_PTRACE", Why: "to read which network namespace each process is in"}
	CapSysAdmin      = Capability{Name: "CAP_SYS_ADMIN", Why: "to enter the network namespaces of pods"}
	CapDACReadSearch = Capability{Name: "CAP_DAC_READ_SEARCH", Why: "to list the descriptors of other users' processes"}
	CapNetAdmin      = Capability{Name: "CAP_NET_ADMIN", Why: "to read conntrack statistics, and to attach BPF programs to devices and cgroups"}
	CapBPF           = Capability{Name: "CAP_BPF", Why: "to load BPF programs"}
	CapPerfmon       = Capability{Name: "CAP_PERFMON", Why: "to attach BPF programs to the kernel's hooks"}
	CapSyslog        = Capability{Name: "CAP_SYSLOG", Why: "to name the kernel functions in events", Mild: true}
)

// Capabilities returns all capabilities in the order of reports.
func Capabilities() []Capability {
	return []Capability{CapSysPtrace, CapSysAdmin, CapDACReadSearch, CapNetAdmin, CapBPF, CapPerfmon, CapSyslog}
}

// Option declares one key of a probe's configuration table, [probes.NAME].
type Option struct {
	Key     string
	Default any // bool, int64, string, []string or time.Duration
	Help    string
	// OneOf are the values that a string may have; nil: any.
	OneOf []string
	// Obsolete says why an option no longer has an effect. The option is still
	// accepted, so that the daemon starts with an older file, but it is not
	// shown.
	Obsolete string
}

// Kinds returns "metrics", "events" or "metrics,events", as the contract's
// table spells it.
func (p *Probe) Kinds() string {
	var k []string
	if p.HasMetrics() {
		k = append(k, "metrics")
	}
	if len(p.Events) > 0 {
		k = append(k, "events")
	}
	return strings.Join(k, ",")
}

func (p *Probe) rank() int {
	if p.Rank == 0 {
		return math.MaxInt
	}
	return p.Rank
}

// HasMetrics reports whether the probe yields metrics.
func (p *Probe) HasMetrics() bool { return len(p.Metrics) > 0 }

// index finds declarations by name and by ID.
type index struct {
	probes  map[string]*Probe // by name and by alias
	metrics map[string]*Metric
	events  map[string]*EventType
	allM    []*Metric
	allE    []*EventType
}

var declared = newIndex()

func newIndex() *index {
	x := &index{probes: map[string]*Probe{}, metrics: map[string]*Metric{}, events: map[string]*EventType{}}
	register := func(m *Metric, probe string) {
		if x.metrics[m.Name] != nil {
			panic("catalog: metric declared twice: " + m.Name)
		}
		m.probe, m.id = probe, len(x.allM)
		x.allM = append(x.allM, m)
		x.metrics[m.Name] = m
	}
	ordered := slices.SortedStableFunc(slices.Values(probes), func(a, b *Probe) int { return cmp.Compare(a.rank(), b.rank()) })
	for _, p := range ordered {
		for _, n := range append([]string{p.Name}, p.Aliases...) {
			if x.probes[n] != nil {
				panic("catalog: probe declared twice: " + n)
			}
			x.probes[n] = p
		}
		for j := range p.Metrics {
			register(&p.Metrics[j], p.Name)
		}
		for j := range p.Events {
			e := &p.Events[j]
			e.probe, e.id = p.Name, len(x.allE)
			x.allE = append(x.allE, e)
			x.events[e.Name] = e
		}
	}
	for i := range selfMetrics {
		register(&selfMetrics[i], "")
	}
	return x
}

// Probes returns the probes in the order of their names.
func Probes() []*Probe {
	out := slices.Clone(probes)
	slices.SortFunc(out, func(a, b *Probe) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Metrics returns every metric in the order of IDs: the contract's, the extras, and
// the tool's metrics about itself.
func Metrics() []*Metric { return declared.allM }

// Events returns every event type in the order of IDs.
func Events() []*EventType { return declared.allE }

// ProbeByName finds a probe by its name or an alias; nil if there is none.
func ProbeByName(name string) *Probe { return declared.probes[name] }

// MetricByName finds a metric; nil if there is none.
func MetricByName(name string) *Metric { return declared.metrics[name] }

// MetricBySeries finds the metric that a series of this name belongs to; nil if there is
// none. The series of a histogram have a suffix.
func MetricBySeries(name string) *Metric {
	if m := declared.metrics[name]; m != nil {
		return m
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if of, cut := strings.CutSuffix(name, suffix); cut {
			if m := declared.metrics[of]; m != nil && m.Type == Histogram {
				return m
			}
		}
	}
	return nil
}

// EventByName finds an event type; nil if there is none.
func EventByName(name string) *EventType { return declared.events[name] }

// MustMetric is MetricByName for names in the program's own code; it panics if there
// is no such metric.
func MustMetric(name string) *Metric {
	m := declared.metrics[name]
	if m == nil {
		panic("catalog: no metric " + name)
	}
	return m
}

// Has reports whether the event type declares the field group.
func (e *EventType) Has(g FieldGroup) bool {
	for _, f := range e.Fields {
		if f == g {
			return true
		}
	}
	return false
}
