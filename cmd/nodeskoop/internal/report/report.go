// Package report describes what happened on a node: the journal's events by kind and
// over time, gaps in sampling, and the history's counters and distributions that stand
// out against the hour before. A Builder collects the data, a Report is the result,
// and it is written as text, JSON or an HTML page.
//
// A Report is bounded, whatever the journal and the history hold. What it leaves out
// is counted.
package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
)

// Report is what happened between two moments.
type Report struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Made    time.Time `json:"made"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	// Pods are the requested pods; none: all.
	Pods []string `json:"pods,omitempty"`
	// Quiet: nothing happened. It is false if Unknown says that data are missing.
	Quiet   bool     `json:"quiet"`
	Unknown []string `json:"unknown,omitempty"`

	// Events counts occurrences, and Suppressed those that a rate limit suppressed.
	Events     uint64 `json:"events"`
	Suppressed uint64 `json:"suppressed,omitempty"`
	// Owners lists the owners of the events: pods, the host.
	Owners int    `json:"owners"`
	Kinds  []Kind `json:"kinds"`
	// MoreEvents counts the occurrences of kinds for which there was no room.
	MoreEvents uint64 `json:"more_events,omitempty"`

	// Step is the time that each count in Timeline covers.
	Step     time.Duration `json:"step_ns"`
	Timeline []Lane        `json:"timeline"`
	// MoreLanes counts the occurrences that no lane shows.
	MoreLanes uint64 `json:"more_lanes,omitempty"`

	Gaps []Gap `json:"gaps"`

	// Counters are the symptoms that stand out, Traffic the counters of ordinary
	// work that do.
	Counters []Counter `json:"counters"`
	Traffic  []Counter `json:"traffic"`
	// MoreCounters is the number of counters left out of Counters.
	MoreCounters int `json:"more_counters,omitempty"`

	Distributions     []Distribution `json:"distributions,omitempty"`
	MoreDistributions int            `json:"more_distributions,omitempty"`
}

// Kind is one kind of event: of one type, owner, reason and peer.
type Kind struct {
	Event    string        `json:"event"`
	Probe    string        `json:"probe"`
	Whose    string        `json:"whose"`
	Peer     string        `json:"peer,omitempty"`
	Reason   string        `json:"reason,omitempty"`
	Count    uint64        `json:"count"`
	Worst    time.Duration `json:"worst_ns,omitempty"`
	First    time.Time     `json:"first"`
	Last     time.Time     `json:"last"`
	Priority string        `json:"priority"`
	// Message is the message of the entry with the most occurrences.
	Message string `json:"message"`

	most uint64
	typ  *catalog.EventType
}

// Warning reports whether an entry of the kind was a warning.
func (k *Kind) Warning() bool { return k.Priority == catalog.PriWarning.String() }

// Lane is a timeline of one type and owner.
type Lane struct {
	Event   string `json:"event"`
	Whose   string `json:"whose"`
	Count   uint64 `json:"count"`
	Warning bool   `json:"warning"`
	// Counts has one number per Step from Since on. The occurrences of a merged
	// entry are spread evenly between the first and the last.
	Counts []float64 `json:"counts"`
}

// Gap is a period without samples, or with incomplete ones.
type Gap struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Why  string    `json:"why"`
}

// Counter is a counter that stands out.
type Counter struct {
	Metric string `json:"metric"`
	Whose  string `json:"whose"`
	// Labels are the labels other than node and pod: reason=NO_SOCKET.
	Labels string `json:"labels,omitempty"`
	// Rose is the increase. Expected is the increase at the rate of the hour
	// before, times the growth of its owner's packets; Known says whether it is
	// known.
	Rose     float64 `json:"rose"`
	Expected float64 `json:"expected"`
	Known    bool    `json:"expected_known"`
	// Most is the largest increase within a minute.
	Most   float64   `json:"most"`
	MostAt time.Time `json:"most_at"`
	// Minutes has the increase in each Step from Since on.
	Minutes []float64 `json:"steps,omitempty"`

	score float64
	typ   *catalog.Metric
}

// Distribution is a latency histogram, for the report's time and for the hour
// before.
type Distribution struct {
	Metric string `json:"metric"`
	Whose  string `json:"whose"`
	Labels string `json:"labels,omitempty"`
	// Bounds are the upper bounds of the buckets, in seconds. Now and Before have
	// one more bucket, for longer latencies.
	Bounds []float64 `json:"bounds_seconds"`
	Now    []float64 `json:"now"`
	Before []float64 `json:"before"`
}

// Count returns the number of values in a distribution.
func Count(buckets []float64) (n float64) {
	for _, b := range buckets {
		n += b
	}
	return n
}

// Quantile estimates the value below which the share q of the values in buckets lies.
// over says that it is above the last bound, which is then returned; ok is false if the
// buckets are empty.
func (d *Distribution) Quantile(q float64, buckets []float64) (seconds float64, over, ok bool) {
	all := Count(buckets)
	if all <= 0 {
		return 0, false, false
	}
	rank, below := q*all, 0.0
	for i, upper := range d.Bounds {
		if n := buckets[i]; below+n >= rank && n > 0 {
			lower := 0.0
			if i > 0 {
				lower = d.Bounds[i-1]
			}
			return lower + (upper-lower)*(rank-below)/n, false, true
		}
		below += buckets[i]
	}
	return d.Bounds[len(d.Bounds)-1], true, true
}

// Types are the event types that occurred, by name.
func (r *Report) Types() []*catalog.EventType {
	var types []*catalog.EventType
	for i := range r.Kinds {
		if t := catalog.EventByName(r.Kinds[i].Event); t != nil && !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	slices.SortFunc(types, func(a, b *catalog.EventType) int { return cmp.Compare(a.Name, b.Name) })
	return types
}

// Headline is the report in one line.
func (r *Report) Headline() string {
	switch {
	case r.Quiet:
		return "Nothing happened: no event, no gap in sampling, no counter that stands out."
	case r.empty():
		return "Nothing is known to have happened, but not all is known."
	}
	var parts []string
	switch {
	case r.Events == 1:
		parts = append(parts, "One event")
	case r.Events > 1:
		parts = append(parts, fmt.Sprintf("%s events of %s%s", number(float64(r.Events)), counted(len(r.Kinds), "kind"), r.owners()))
	default:
		parts = append(parts, "No events")
	}
	if n := len(r.Gaps); n > 0 {
		parts = append(parts, counted(n, "gap")+" in sampling")
	}
	if n := len(r.Counters) + r.MoreCounters; n > 0 {
		stand := " stand out"
		if n == 1 {
			stand = " stands out"
		}
		parts = append(parts, counted(n, "counter")+stand)
	}
	return strings.Join(parts, "; ") + "."
}

// empty reports whether there is nothing to report.
func (r *Report) empty() bool { return r.Events == 0 && len(r.Gaps) == 0 && len(r.Counters) == 0 }

// owners names the owners of the events, unless there is only one.
func (r *Report) owners() string {
	switch {
	case r.Owners < 2:
		return ""
	case !slices.ContainsFunc(r.Kinds, func(k Kind) bool { return !strings.Contains(k.Whose, "/") }):
		return " at " + counted(r.Owners, "pod")
	case !slices.ContainsFunc(r.Kinds, func(k Kind) bool { return !strings.Contains(k.Whose, "/") && k.Whose != "host" }):
		return " at " + counted(r.Owners-1, "pod") + " and the host"
	}
	return " at " + counted(r.Owners, "owner")
}

// story returns the first lanes of the timeline, ordered by their start.
func (r *Report) story(lanes int) []Lane {
	shown := slices.Clone(r.Timeline[:min(len(r.Timeline), lanes)])
	begin := func(l Lane) int { return slices.IndexFunc(l.Counts, func(n float64) bool { return n > 0 }) }
	slices.SortStableFunc(shown, func(a, b Lane) int { return cmp.Compare(begin(a), begin(b)) })
	return shown
}

// counted formats a number of things: "1 gap", "2 gaps".
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// number formats a number with a comma between groups of three digits.
func number(f float64) string {
	s := strconv.FormatFloat(f, 'f', 0, 64)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// latency formats a latency, "" if it is not known.
func latency(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return string(event.AppendLatency(nil, d))
}

// lasting formats the length of a gap.
func lasting(d time.Duration) string {
	if d >= time.Minute {
		return strings.TrimSuffix(d.Round(time.Second).String(), "0s")
	}
	return d.Round(time.Second).String()
}

// Times formats the factor by which a counter exceeded its expected increase, "" if
// that is meaningless.
func (c *Counter) Times() string {
	switch {
	case !c.Known:
		return ""
	case c.Expected < 0.5:
		return "new"
	}
	return number(c.Rose/c.Expected) + "x"
}

// Help describes in a sentence what increases the counter; "" if the catalogue does
// not say.
func (c *Counter) Help() string {
	if c.typ == nil {
		return ""
	}
	first, _, more := strings.Cut(c.typ.Rises, ". ")
	if more {
		first += "."
	}
	return first
}
