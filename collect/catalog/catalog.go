// Package catalog declares every probe, metric and event: what it is called,
// what it means, what moves it, what to do about it, and what it costs. Each
// probe has a file of its own; lists, documentation, the shipped configuration,
// the journal's message catalog and the dashboards follow from it. It is data
// alone, and imports nothing of this project.
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

// Options that several probes have.
var (
	podsOption = Option{Key: "pods", Default: false,
		Help: "also sample the network namespaces of pods; otherwise the host's alone"}
	slowOption = Option{Key: "slow", Default: 10 * time.Millisecond,
		Help: "the latency above which the slow counter counts (the name of the 100ms counter says its own)"}
	eventOption = Option{Key: "event", Default: 100 * time.Millisecond,
		Help: "the latency above which there is an event"}
	stackOption = Option{Key: "stack", Default: true,
		Help: "events carry the kernel's stack"}
)

const nodeWide = " The kernel counts this for the whole node, so every namespace shows the host's figure."

// Type is the Prometheus type of a metric.
type Type uint8

// The two types that the contract uses, and one of ours.
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
	PerPod                    // one series per pod, over all its processes; the host's is everything outside pods
	PerHost                   // one series
	PerFlow                   // one series per connection
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

// Source names where a probe's data come from.
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
	// Field is the kernel's own name for the value where the probe looks it up
	// by name (a column of /proc/PID/net/snmp, say).
	Field string
	// Alias names another metric whose series this one repeats under the
	// spelling that dashboards in the wild use. Written only with compat_names.
	Alias string
	// Extra marks a metric beyond the contract's table.
	Extra bool
	// Kernel names the kernel's counter or path, and the functions that move it.
	Kernel string
	// Rises says what makes it rise, or for a gauge what moves it.
	Rises string
	// Recorded says of a gauge that the history on the node keeps it, as it does all
	// counters: those that top shows, and those that say how full something was.
	Recorded bool
	// Unit is that of a histogram's bounds and sum. Its name ends in it.
	Unit string
	// Bounds are the upper bounds of a histogram's buckets, but for the last one,
	// which has none.
	Bounds []float64
	// Work says of a counter that ordinary work moves it: that it rises, or rises
	// faster, is no trouble by itself.
	Work bool

	probe string
	id    int
}

// Probe returns the name of the probe that yields the metric, or "" for the
// tool's metrics about itself.
func (m *Metric) Probe() string { return m.probe }

// ID returns the metric's index in Metrics.
func (m *Metric) ID() int { return m.id }

// Series is how many lines of the text format one value of the metric is: of a
// histogram its buckets, its sum and its count.
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
	// FieldOperation is what a block I/O does, and to how many bytes.
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

// LevelNotice is the level of syslog's notice in the log, which slog has no name
// for: what an operator may want to know although nothing is wrong.
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

// Warn says from where on an entry of the journal is a warning. A single
// occurrence is a notice, however bad it is.
type Warn struct {
	// Count is the number of occurrences, of one kind and in one window, that an
	// entry stands for; 0: no number of them is.
	Count uint64
	// Latency is a longest latency that makes an entry of two or more a warning;
	// 0: none does.
	Latency time.Duration
}

// EventType declares one kind of event.
type EventType struct {
	Name string
	// Path is the kernel path on which the event is seen.
	Path string
	// Threshold is the default above which a latency is an event; 0 where
	// every occurrence is one.
	Threshold time.Duration
	// Below, where not 0, is the upper end: from there on the occurrence is
	// another event type's.
	Below  time.Duration
	Warn   Warn
	Fields []FieldGroup
	// Extra are those of Fields that are beyond the contract's table.
	Extra []FieldGroup
	// Points are the intermediate latencies of FieldPoints, and PointsKnown says
	// when there are any.
	Points      []string
	PointsKnown string
	// MessageID is the journal's MESSAGE_ID, 32 hexadecimal digits.
	MessageID string
	// Summary says in one sentence what happened.
	Summary string
	// Message says the same in a few words, as one line of a log does.
	// {latency} stands for the latency, {operation} for what FieldOperation says,
	// {points} for the points in brackets, or nothing. {from}, {to} and {ends}
	// stand for the pods at the ends other than the event's own, or nothing:
	// {from} where the peer sent what the event is about, {to} where it was sent
	// to the peer, {ends} where the connection is written in the direction of the
	// packet.
	Message string
	// Explain says what that means and what it usually comes from, in
	// paragraphs separated by an empty line.
	Explain string
	// Next are the commands that look further.
	Next []Step

	probe string
	id    int
}

// Grade is the priority of an entry that stands for so many occurrences, of which
// the worst took latency.
func (e *EventType) Grade(occurrences uint64, latency time.Duration) Priority {
	w := e.Warn
	if occurrences > 1 && (w.Count > 0 && occurrences >= w.Count || w.Latency > 0 && latency >= w.Latency) {
		return PriWarning
	}
	return PriNotice
}

// Grades says in a sentence which priority an entry has.
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

// Probe returns the name of the probe that sees the event.
func (e *EventType) Probe() string { return e.probe }

// ID returns the event type's index in Events.
func (e *EventType) ID() int { return e.id }

// Probe declares one probe.
type Probe struct {
	Name string
	// Aliases are other names that the command line and configuration accept.
	Aliases []string
	// Title says in a few words what the probe looks at.
	Title    string
	Source   Source
	Overhead string // what the specification grants it: low, medium or high
	// Measured is what it costs, in a word or two: docs/performance.md has how that
	// was measured, and a test holds the two together. Empty for a probe that nobody
	// has measured.
	Measured string
	// Default says whether the probe runs when the configuration names none.
	Default bool
	// Rank decides the order of the families in the textfile, and which of them
	// max_series cuts first: the last ones. Without it a probe is behind all.
	Rank int
	// Extra marks a probe beyond the contract's table, with all its metrics and
	// events.
	Extra   bool
	Metrics []Metric
	Events  []EventType
	// Options are the keys of the probe's configuration table.
	Options []Option
	// Capabilities are those that the probe needs beside CapSysPtrace, which all
	// need.
	Capabilities []Capability
	// Cost says in a sentence what the probe adds to the node's work. The times
	// are those of make bench-bpf, net of an empty program at the same place.
	Cost string
}

// Capability is one of capabilities(7) that probes need.
type Capability struct {
	Name string
	Why  string
	// Mild says that without it something is missing, but no probe fails.
	Mild bool
}

// The capabilities that probes need.
var (
	CapSysPtrace     = Capability{Name: "CAP_SYS_PTRACE", Why: "to tell the network namespaces of processes apart"}
	CapSysAdmin      = Capability{Name: "CAP_SYS_ADMIN", Why: "to enter the network namespaces of pods"}
	CapDACReadSearch = Capability{Name: "CAP_DAC_READ_SEARCH", Why: "to list the descriptors of other users' processes"}
	CapNetAdmin      = Capability{Name: "CAP_NET_ADMIN", Why: "to read statistics, and to count what devices and cgroups send"}
	CapBPF           = Capability{Name: "CAP_BPF", Why: "to load BPF programs"}
	CapPerfmon       = Capability{Name: "CAP_PERFMON", Why: "to attach BPF programs to the kernel's hooks"}
	CapSyslog        = Capability{Name: "CAP_SYSLOG", Why: "to name the kernel functions in events", Mild: true}
)

// Capabilities lists them in the order in which they are reported.
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
	// Obsolete says why an option that once was has no effect any more. It is
	// accepted, so that no daemon refuses an older file, and shown nowhere.
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

// index finds what is declared by name and by ID.
type index struct {
	probes  map[string]*Probe // aliases too
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

// Metrics returns every metric, by ID: the contract's, the extras, and those
// of the tool about itself.
func Metrics() []*Metric { return declared.allM }

// Events returns every event type, by ID.
func Events() []*EventType { return declared.allE }

// ProbeByName finds a probe by its name or an alias; nil if there is none.
func ProbeByName(name string) *Probe { return declared.probes[name] }

// MetricByName finds a metric; nil if there is none.
func MetricByName(name string) *Metric { return declared.metrics[name] }

// EventByName finds an event type; nil if there is none.
func EventByName(name string) *EventType { return declared.events[name] }

// MustMetric is MetricByName for names that the program itself spells: an
// unknown one is a mistake in the code, and panics.
func MustMetric(name string) *Metric {
	m := declared.metrics[name]
	if m == nil {
		panic("catalog: no metric " + name)
	}
	return m
}

// Has reports whether the event type declares a group of fields.
func (e *EventType) Has(g FieldGroup) bool {
	for _, f := range e.Fields {
		if f == g {
			return true
		}
	}
	return false
}
