// Package report tells what happened on a node: the events of the journal by kind and
// over time, gaps in sampling, and the counters and distributions of the history that
// stand out against the hour before. A Builder gathers, a Report is what it found, and
// text, JSON and a page of HTML are its forms.
//
// Whatever the journal and the history hold, a Report is bounded: what is left out is
// counted.
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
	// Pods are those that were asked for; none: all.
	Pods []string `json:"pods,omitempty"`
	// Quiet: nothing happened. Where Unknown says that not all is known, it is not
	// claimed.
	Quiet   bool     `json:"quiet"`
	Unknown []string `json:"unknown,omitempty"`

	// Events counts occurrences, and Suppressed those that a rate limit held back.
	Events     uint64 `json:"events"`
	Suppressed uint64 `json:"suppressed,omitempty"`
	// Owners are who has events: pods, the host.
	Owners int    `json:"owners"`
	Kinds  []Kind `json:"kinds"`
	// MoreEvents counts the occurrences of kinds for which there was no room.
	MoreEvents uint64 `json:"more_events,omitempty"`

	// Step is how long a place of Timeline's counts is.
	Step     time.Duration `json:"step_ns"`
	Timeline []Lane        `json:"timeline"`
	// MoreLanes counts the occurrences that no lane shows.
	MoreLanes uint64 `json:"more_lanes,omitempty"`

	Gaps []Gap `json:"gaps"`

	// Counters are those of trouble that stand out, Traffic those of work.
	Counters []Counter `json:"counters"`
	Traffic  []Counter `json:"traffic"`
	// MoreCounters counts those of Counters that are left out.
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
	// Message is that of the entry that stands for most.
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
	// Counts are of each Step since Since. The occurrences of an entry that stands
	// for many are spread evenly between its first and its last.
	Counts []float64 `json:"counts"`
}

// Gap is a time of which there are no samples, or not all.
type Gap struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Why  string    `json:"why"`
}

// Counter is a counter that stands out.
type Counter struct {
	Metric string `json:"metric"`
	Whose  string `json:"whose"`
	// Labels are those beside node and pod: reason=NO_SOCKET.
	Labels string `json:"labels,omitempty"`
	// Rose is by how much it rose, Expected by how much it would have risen at the
	// rate of the hour before, times the growth of its owner's packets. Known says
	// whether that is known.
	Rose     float64 `json:"rose"`
	Expected float64 `json:"expected"`
	Known    bool    `json:"expected_known"`
	// Most is how much it rose in the minute in which it rose most.
	Most   float64   `json:"most"`
	MostAt time.Time `json:"most_at"`
	// Minutes are how much it rose in each Step since Since.
	Minutes []float64 `json:"steps,omitempty"`

	score float64
	typ   *catalog.Metric
}

// Distribution is a histogram: how long something took, and took in the hour before.
type Distribution struct {
	Metric string `json:"metric"`
	Whose  string `json:"whose"`
	Labels string `json:"labels,omitempty"`
	// Bounds are the upper ends of the buckets, in seconds. Now and Before have one
	// bucket more: what took longer than any.
	Bounds []float64 `json:"bounds_seconds"`
	Now    []float64 `json:"now"`
	Before []float64 `json:"before"`
}

// Count is how many a distribution is of.
func Count(buckets []float64) (n float64) {
	for _, b := range buckets {
		n += b
	}
	return n
}

// Quantile is the time within which a share q of the buckets' lies. over says that it
// is longer than the last bound, which is returned then; ok is false if the buckets
// are empty.
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

// empty reports whether there is nothing to tell.
func (r *Report) empty() bool { return r.Events == 0 && len(r.Gaps) == 0 && len(r.Counters) == 0 }

// owners says whose the events are, if they are not of one.
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

// story are the first lanes of the timeline in the order in which they begin.
func (r *Report) story(lanes int) []Lane {
	shown := slices.Clone(r.Timeline[:min(len(r.Timeline), lanes)])
	begin := func(l Lane) int { return slices.IndexFunc(l.Counts, func(n float64) bool { return n > 0 }) }
	slices.SortStableFunc(shown, func(a, b Lane) int { return cmp.Compare(begin(a), begin(b)) })
	return shown
}

// counted is a number of things: "1 gap", "2 gaps".
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// number writes a number of occurrences, with a comma between each three digits.
func number(f float64) string {
	s := strconv.FormatFloat(f, 'f', 0, 64)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// latency writes how long something took, "" if it is not known.
func latency(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return string(event.AppendLatency(nil, d))
}

// lasting writes how long a gap is.
func lasting(d time.Duration) string {
	if d >= time.Minute {
		return strings.TrimSuffix(d.Round(time.Second).String(), "0s")
	}
	return d.Round(time.Second).String()
}

// Times is how many times what was expected a counter rose, "" if that says nothing.
func (c *Counter) Times() string {
	switch {
	case !c.Known:
		return ""
	case c.Expected < 0.5:
		return "new"
	}
	return number(c.Rose/c.Expected) + "x"
}

// Help says what moves the counter, in a sentence; "" if the catalogue does not.
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
