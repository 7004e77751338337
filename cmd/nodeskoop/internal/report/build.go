package report

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/quote"
	"nodeskoop/output/history"
)

// Options say what a report is about.
type Options struct {
	Node, Version      string
	Made, Since, Until time.Time
	Pods               []string
	// HostLabel is the host's label in the history.
	HostLabel string
}

// The bounds of a report, and of what is collected for it: which kinds and lanes are large
// is known at the end only.
const (
	collectedKinds   = 50_000
	collectedLanes   = 20_000
	maxKinds         = 1000
	maxOwnKinds      = 40 // maximum number of kinds of one type and owner; anybody may be a peer, and must not take the room of others
	maxLanes         = 500
	maxSteps         = 120
	maxSeries        = 200_000 // maximum number of compared series
	maxCounters      = 20
	maxPods          = 5 // maximum number of pods with the same counter
	maxTraffic       = 6
	maxDistributions = 12
)

// steps are the allowed step lengths of a timeline.
var steps = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour}

// Builder collects the data of a Report. It is not safe for concurrent use.
type Builder struct {
	r     Report
	host  string
	kinds map[kindKey]*Kind
	own   map[laneKey]int // number of kinds
	lanes map[laneKey]*Lane
	whose map[string]struct{}

	series map[string]*series
	names  map[*history.Series]*series // series of the current file; some of other files
	full   bool                        // a series found no room
	before time.Duration               // time sampled in the hour before the report begins
	during time.Duration
	last   time.Time // end of the previous minute
	begun  bool      // a minute within the report's time was read
	late   *lateBegin
}

type kindKey struct {
	typ                 *catalog.EventType
	whose, reason, peer string
}

type laneKey struct {
	typ   *catalog.EventType
	whose string
}

// series holds the values of a counter that are compared.
type series struct {
	of          *history.Series
	now, before float64
	most        float64
	mostAt      time.Time
}

// New begins a report.
func New(o Options) *Builder {
	b := &Builder{
		r:    Report{Node: o.Node, Version: o.Version, Made: o.Made, Since: o.Since, Until: o.Until, Pods: o.Pods, Kinds: []Kind{}, Timeline: []Lane{}, Gaps: []Gap{}, Counters: []Counter{}, Traffic: []Counter{}},
		host: o.HostLabel, kinds: map[kindKey]*Kind{}, own: map[laneKey]int{}, lanes: map[laneKey]*Lane{}, whose: map[string]struct{}{},
		series: map[string]*series{}, names: map[*history.Series]*series{},
	}
	b.r.Step = step(o.Until.Sub(o.Since))
	return b
}

// step is the length of one place of a timeline.
func step(length time.Duration) time.Duration {
	for _, s := range steps {
		if length <= maxSteps*s {
			return s
		}
	}
	return (length/maxSteps/time.Hour + 1) * time.Hour
}

// places is the number of places of a timeline.
func (r *Report) places() int {
	return int(min(maxSteps, max(1, (r.Until.Sub(r.Since)+r.Step-1)/r.Step)))
}

// Unknown records what is not known, and why.
func (b *Builder) Unknown(why string) { b.r.Unknown = append(b.r.Unknown, why) }

// Event takes an event of the journal.
func (b *Builder) Event(e *event.Event) {
	n := e.Occurrences()
	b.r.Events += n
	b.r.Suppressed += e.Suppressed
	key := kindKey{e.Type, string(e.AppendOwner(nil)), string(e.AppendReason(nil)), string(e.AppendPeer(nil))}
	if len(b.whose) < maxSeries {
		b.whose[key.whose] = struct{}{}
	}
	b.kind(key, e, n)
	b.lane(laneKey{key.typ, key.whose}, e, n)
}

// furtherPeers is the peer of the kind that stands for the kinds beyond maxOwnKinds.
const furtherPeers = "further peers and reasons"

func (b *Builder) kind(key kindKey, e *event.Event, n uint64) {
	k, own := b.kinds[key], laneKey{key.typ, key.whose}
	if k == nil && b.own[own] >= maxOwnKinds {
		key.reason, key.peer = "", furtherPeers
		k = b.kinds[key]
	}
	if k == nil {
		if len(b.kinds) >= collectedKinds {
			b.r.MoreEvents += n
			return
		}
		b.own[own]++
		k = &Kind{Event: e.Type.Name, Probe: e.Type.Probe(), Whose: key.whose, Reason: key.reason, Peer: key.peer, First: e.FirstSeen(), Priority: catalog.PriNotice.String(), typ: e.Type}
		b.kinds[key] = k
	}
	k.Count += n
	k.Worst = max(k.Worst, e.Latency)
	if first := e.FirstSeen(); first.Before(k.First) {
		k.First = first
	}
	if last := e.LastSeen(); last.After(k.Last) {
		k.Last = last
	}
	if e.Priority() == catalog.PriWarning {
		k.Priority = catalog.PriWarning.String()
	}
	if n > k.most {
		k.most, k.Message = n, string(e.AppendWhat(nil))
	}
}

func (b *Builder) lane(key laneKey, e *event.Event, n uint64) {
	l := b.lanes[key]
	if l == nil {
		if len(b.lanes) >= collectedLanes {
			b.r.MoreLanes += n
			return
		}
		l = &Lane{Event: e.Type.Name, Whose: key.whose, Counts: make([]float64, b.r.places())}
		b.lanes[key] = l
	}
	l.Count += n
	l.Warning = l.Warning || e.Priority() == catalog.PriWarning
	b.r.spread(l.Counts, e.FirstSeen(), e.LastSeen(), float64(n))
}

// spread distributes n evenly over the places of a timeline between two moments.
// The part outside the timeline is dropped.
func (r *Report) spread(places []float64, first, last time.Time, n float64) {
	from, to := first.Sub(r.Since), last.Sub(r.Since)
	if from == to {
		if i := int(from / r.Step); from >= 0 && i < len(places) {
			places[i] += n
		}
		return
	}
	begin, end := max(from, 0), min(to, time.Duration(len(places))*r.Step)
	for at := begin; at < end; {
		i := int(at / r.Step)
		next := min(end, time.Duration(i+1)*r.Step)
		places[i] += n * float64(next-at) / float64(to-from)
		at = next
	}
}

// A report's counters are compared with the hour before it.
const hourBefore = time.Hour

// lag is the maximum age of the newest minute of a history that is still being
// written.
const lag = 3 * time.Minute

// Minutes is a history, as history.Reader reads it.
type Minutes interface {
	Minutes(q history.Query) iter.Seq2[*history.Minute, error]
}

// History reads the part of the history that a report needs. keep selects series;
// nil: all.
func (b *Builder) History(h Minutes, keep func(*history.Series) bool) error {
	known := false // the history has a series that keep selects
	kept := func(s *history.Series) bool {
		if keep != nil && !keep(s) {
			return false
		}
		known = true
		return compared(s)
	}
	for m, err := range h.Minutes(history.Query{Since: b.r.Since.Add(-hourBefore), Until: b.r.Until, Keep: kept}) {
		if err != nil {
			return err
		}
		b.minute(m)
	}
	b.lastGap()
	if b.begun && !known && b.r.Events == 0 && len(b.r.Pods) > 0 {
		b.Unknown("Neither an event nor a counter of " + strings.Join(b.r.Pods, ", ") + " is recorded in this time: it did not run then, or has another name.")
	}
	if err := b.firstGap(h); err != nil {
		return err
	}
	chosen := b.compare()
	if len(chosen) == 0 {
		return nil
	}
	wanted := func(s *history.Series) bool { return kept(s) && chosen[s.String()] != nil }
	for m, err := range h.Minutes(history.Query{Since: b.r.Since, Until: b.r.Until, Keep: wanted}) {
		if err != nil {
			return err
		}
		for _, s := range m.Samples {
			c := chosen[s.String()]
			if c.Minutes == nil {
				c.Minutes = make([]float64, b.r.places())
			}
			b.r.spread(c.Minutes, m.To.Add(-m.Elapsed), m.To, s.Value) // the clock may have been set since m.From
		}
	}
	return nil
}

// compared reports whether a series may be reported: a probe's counter, but not one
// per connection.
func compared(s *history.Series) bool {
	if s.Kind != history.Counter {
		return false
	}
	if m := catalog.MetricByName(s.Metric); m != nil {
		return m.Probe() != "" && m.Scope != catalog.PerFlow
	}
	_, bucket := histogramOf(s.Metric)
	return bucket
}

// histogramOf returns the histogram that a series is a bucket of. bucket is false for
// other series. Another version's histograms are not in the catalogue.
func histogramOf(metric string) (base string, bucket bool) {
	base, bucket = strings.CutSuffix(metric, history.BucketSuffix)
	return base, bucket && strings.HasSuffix(base, "_seconds") && catalog.MetricByName(metric) == nil
}

func (b *Builder) minute(m *history.Minute) {
	own := !m.Start.Before(b.r.Since)
	if from, why := m.Gap(b.last); why != "" && own {
		to := m.From
		if from.Equal(m.From) { // the gap is within the minute
			to = m.To
		}
		b.gap(from, to, why)
	} else if own && !b.begun && b.last.IsZero() && m.From.Sub(b.r.Since) > lag {
		b.late = &lateBegin{len(b.r.Gaps), m.First}
		b.gap(b.r.Since, m.From, "the history does not reach back further")
	}
	b.last, b.begun = m.To, b.begun || own
	awake := max(0, m.Elapsed-m.Asleep)
	if own {
		b.during += awake
	} else {
		b.before += awake
	}
	for _, s := range m.Samples {
		x := b.find(s.Series)
		switch {
		case x == nil:
		case !own:
			x.before += s.Value
		default:
			if x.now += s.Value; s.Value > x.most {
				x.most, x.mostAt = s.Value, m.Start
			}
		}
	}
}

// find returns the record of a series, a new one if necessary; nil if there is no
// room.
func (b *Builder) find(s *history.Series) *series {
	if x, known := b.names[s]; known {
		return x
	}
	if len(b.names) >= maxSeries {
		clear(b.names)
	}
	name := s.String()
	x := b.series[name]
	if x == nil && len(b.series) < maxSeries {
		x = &series{of: s}
		b.series[name] = x
	}
	b.full = b.full || x == nil
	b.names[s] = x
	return x
}

// gap adds the part of a gap that lies within the report's time. If the clock was set
// back, to is before from.
func (b *Builder) gap(from, to time.Time, why string) {
	within := func(t time.Time) time.Time {
		switch {
		case t.Before(b.r.Since):
			return b.r.Since
		case t.After(b.r.Until):
			return b.r.Until
		}
		return t
	}
	if from, to = within(from), within(to); to.Before(from) {
		to = from
	}
	b.r.Gaps = append(b.r.Gaps, Gap{from, to, why})
}

// lateBegin is the gap before the first minute of the report's time and the hour before,
// and whether the daemon was started then.
type lateBegin struct {
	gap     int
	started bool
}

// firstGap says why the first minute is late, if the history reaches back further than
// was read.
func (b *Builder) firstGap(h Minutes) error {
	if b.late == nil {
		return nil
	}
	none := func(*history.Series) bool { return false }
	for _, err := range h.Minutes(history.Query{Until: b.r.Since.Add(-hourBefore), Keep: none}) {
		if err != nil {
			return err
		}
		g := &b.r.Gaps[b.late.gap]
		if g.Why = "the minutes could not be written"; b.late.started {
			g.Why = "the daemon was started"
		}
		break
	}
	return nil
}

// lastGap adds the time between the last minute and the end.
func (b *Builder) lastGap() {
	end := b.r.Until
	if newest := b.r.Made.Add(-lag); end.After(newest) {
		end = newest
	}
	switch {
	case !b.begun && end.After(b.r.Since):
		b.Unknown("The history has no minute of this time: which counters moved is not known.")
	case !b.begun:
		b.Unknown("The history has no minute of this time yet: which counters moved is not known.")
	case b.begun && end.Sub(b.last) > lag:
		b.gap(b.last, b.r.Until, "no samples came any more: the daemon was stopped, or could not write")
	}
	if b.begun && b.before == 0 {
		b.Unknown("The history has no minute of the hour before: the usual rates are not known, and counters are compared with no increase.")
	}
	if b.full {
		b.Unknown("More series moved than can be compared; some counters are left out.")
	}
}

// whoseSeries returns the owner of a series, named as in events.
func (b *Builder) whoseSeries(s *history.Series) string {
	namespace, pod := s.Label(owner.LabelNamespace), s.Label(owner.LabelPod)
	switch {
	case namespace == owner.UnknownLabel && pod == owner.UnknownLabel:
		return "owner unknown"
	case namespace == b.host && pod == b.host, namespace == owner.DefaultHostLabel && pod == owner.DefaultHostLabel, namespace == "" && pod == "":
		return "host"
	}
	return quote.Safe(namespace) + "/" + quote.Safe(pod)
}

// labelsOf returns the labels of a series that its metric declares. For a histogram
// it returns all except those of the owner and the bucket.
func labelsOf(s *history.Series, m *catalog.Metric) string {
	var parts []string
	for _, l := range s.Labels {
		switch l.Name {
		case owner.LabelNode, owner.LabelNamespace, owner.LabelPod, "le":
			continue
		}
		if m == nil || slices.Contains(m.Labels, l.Name) {
			parts = append(parts, quote.Safe(l.Name)+"="+quote.Safe(l.Value))
		}
	}
	return strings.Join(parts, " ")
}

// Thresholds above which a counter stands out: its increase, the factor over the
// expected increase at the rate of the hour before, and the distance from what chance
// explains.
const (
	leastTrouble, timesTrouble = 5, 3
	leastNew                   = 100 // minimum for a pod without packets in the hour before
	leastWork, timesWork       = 1000, 4
	sigmas                     = 5
)

// standsOut reports whether an increase exceeds the expected one by more than
// chance.
func standsOut(rose, expected, least, times float64) bool {
	return rose >= least && rose >= times*expected && rose-expected >= sigmas*math.Sqrt(expected+1)
}

// compare finds the counters that stand out, and the distributions. It returns the
// counters by series name.
func (b *Builder) compare() map[string]*Counter {
	var trouble, work []*Counter
	names := map[*Counter]string{}
	histograms := map[string]*histogram{}
	scale := 0.0
	if b.before > 0 {
		scale = float64(b.during) / float64(b.before)
	}
	grew := b.growth(scale)
	for name, s := range b.series {
		if base, bucket := histogramOf(s.of.Metric); bucket {
			addBucket(histograms, base, b.whoseSeries(s.of), s)
			continue
		}
		m := catalog.MetricByName(s.of.Metric)
		c := &Counter{Metric: s.of.Metric, Whose: b.whoseSeries(s.of), Labels: labelsOf(s.of, m), Rose: s.now, Expected: s.before * scale, Known: b.before > 0, Most: s.most, MostAt: s.mostAt, typ: m}
		least, times, list := float64(leastTrouble), float64(timesTrouble), &trouble
		switch g, known := grew[c.Whose]; {
		case m.Work:
			least, times, list = leastWork, timesWork, &work
		case known && g == 0:
			least = leastNew
		case known:
			c.Expected *= g
		}
		if (c.Known || !m.Work) && standsOut(c.Rose, c.Expected, least, times) {
			c.score = math.Log2(min(1024, (c.Rose+1)/(c.Expected+1))) + math.Log10(c.Rose+1)
			*list = append(*list, c)
			names[c] = name
		}
	}
	trouble, work = distinct(trouble), onePerOwner(work)
	b.r.Counters, b.r.MoreCounters = choose(trouble, maxCounters)
	b.r.Traffic, _ = choose(work, maxTraffic)
	b.r.Distributions, b.r.MoreDistributions = distributions(histograms)
	chosen := map[string]*Counter{}
	for _, list := range []struct {
		from []*Counter
		to   []Counter
	}{{trouble, b.r.Counters}, {work, b.r.Traffic}} {
		for _, c := range list.from {
			for i := range list.to {
				if t := &list.to[i]; t.Metric == c.Metric && t.Whose == c.Whose && t.Labels == c.Labels {
					chosen[names[c]] = t
				}
			}
		}
	}
	return chosen
}

// mostGrowth is how much growth excuses.
const mostGrowth = 100

// growth returns, by owner, the factor by which its packets grew over the hour
// before, at least 1, since twice the work makes twice the resets. It is 0 for an
// owner without packets then.
func (b *Builder) growth(scale float64) map[string]float64 {
	packets := map[string][2]float64{}
	for _, s := range b.series {
		switch s.of.Metric {
		case "kubeskoop_netdev_rxpackets", "kubeskoop_netdev_txpackets":
			whose := b.whoseSeries(s.of)
			n := packets[whose]
			packets[whose] = [2]float64{n[0] + s.now, n[1] + s.before}
		}
	}
	grew := map[string]float64{}
	for whose, n := range packets {
		if n[1] == 0 {
			grew[whose] = 0
		} else {
			grew[whose] = min(mostGrowth, max(1, n[0]/max(1, n[1]*scale)))
		}
	}
	return grew
}

func byScore(list []*Counter) {
	slices.SortFunc(list, func(a, b *Counter) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.Whose, b.Whose), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Labels, b.Labels))
	})
}

// choose returns the first entries of a sorted list, with at most maxPods of one
// metric.
func choose(list []*Counter, limit int) (chosen []Counter, more int) {
	chosen = []Counter{}
	of := map[string]int{}
	for _, c := range list {
		if len(chosen) >= limit || of[c.Metric] >= maxPods {
			more++
			continue
		}
		of[c.Metric]++
		chosen = append(chosen, *c)
	}
	return chosen, more
}

// distinct sorts counters and drops duplicates: counters of one probe and owner with
// equal numbers. The one with the most labels stays.
func distinct(list []*Counter) []*Counter {
	type key struct {
		probe, whose   string
		rose, expected float64
	}
	best := map[key]*Counter{}
	byScore(list)
	for _, c := range list {
		k := key{c.typ.Probe(), c.Whose, c.Rose, c.Expected}
		if have := best[k]; have == nil || strings.Count(c.Labels, "=") > strings.Count(have.Labels, "=") {
			best[k] = c
		}
	}
	return slices.DeleteFunc(list, func(c *Counter) bool { return best[key{c.typ.Probe(), c.Whose, c.Rose, c.Expected}] != c })
}

// onePerOwner sorts counters and keeps one per owner and probe, since bytes and packets
// rise together.
func onePerOwner(list []*Counter) []*Counter {
	byScore(list)
	seen := map[[2]string]bool{}
	return slices.DeleteFunc(list, func(c *Counter) bool {
		k := [2]string{c.Whose, c.typ.Probe()}
		was := seen[k]
		seen[k] = true
		return was
	})
}

// histogram collects the buckets of one histogram.
type histogram struct {
	Distribution
	buckets map[float64][2]float64 // by upper bound, +Inf included: own counts, now and before
}

// addBucket adds a bucket. In a history, a bucket's count does not include the buckets
// below.
func addBucket(all map[string]*histogram, base, whose string, s *series) {
	le, err := strconv.ParseFloat(s.of.Label("le"), 64)
	if err != nil || math.IsNaN(le) {
		return
	}
	labels := labelsOf(s.of, nil)
	key := base + "\xff" + whose + "\xff" + labels
	h := all[key]
	if h == nil {
		h = &histogram{Distribution: Distribution{Metric: base, Whose: whose, Labels: labels}, buckets: map[float64][2]float64{}}
		all[key] = h
	}
	n := h.buckets[le]
	h.buckets[le] = [2]float64{n[0] + s.now, n[1] + s.before}
}

// distributions returns the histograms with values, those that slowed down most first.
// The history lacks buckets that did not change, so the bounds come from the catalogue
// and from all histograms of the metric.
func distributions(all map[string]*histogram) (chosen []Distribution, more int) {
	bounds := map[string]map[float64]bool{}
	for _, h := range all {
		if bounds[h.Metric] == nil {
			bounds[h.Metric] = map[float64]bool{}
			if m := catalog.MetricByName(h.Metric); m != nil {
				for _, le := range m.Bounds {
					bounds[h.Metric][le] = true
				}
			}
		}
		for le := range h.buckets {
			if !math.IsInf(le, 0) {
				bounds[h.Metric][le] = true
			}
		}
	}
	type scored struct {
		Distribution
		slower float64
	}
	var list []scored
	for _, h := range all {
		if len(bounds[h.Metric]) == 0 {
			continue
		}
		h.Bounds = slices.Sorted(maps.Keys(bounds[h.Metric]))
		h.Now, h.Before = h.counts(0), h.counts(1)
		if Count(h.Now) <= 0 {
			continue
		}
		x := scored{h.Distribution, 1}
		now, _, _ := h.Quantile(0.99, h.Now)
		if before, _, ok := h.Quantile(0.99, h.Before); ok && before > 0 {
			x.slower = now / before
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.slower, a.slower), cmp.Compare(Count(b.Now), Count(a.Now)), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Whose, b.Whose), cmp.Compare(a.Labels, b.Labels))
	})
	for _, x := range list[:min(len(list), maxDistributions)] {
		chosen = append(chosen, x.Distribution)
	}
	return chosen, max(0, len(list)-maxDistributions)
}

// counts returns the buckets' counts by bound, those above the last bound at the end,
// for now (0) or before (1).
func (h *histogram) counts(when int) []float64 {
	out := make([]float64, len(h.Bounds)+1)
	for i, le := range h.Bounds {
		out[i] = h.buckets[le][when]
	}
	out[len(h.Bounds)] = h.buckets[math.Inf(1)][when]
	return out
}

// Report returns the report on the collected data.
func (b *Builder) Report() *Report {
	r := &b.r
	for _, k := range b.kinds {
		r.Kinds = append(r.Kinds, *k)
	}
	slices.SortFunc(r.Kinds, func(a, b Kind) int {
		return cmp.Or(-cmp.Compare(boolean(a.Warning()), boolean(b.Warning())), cmp.Compare(b.Count, a.Count), a.First.Compare(b.First),
			cmp.Compare(a.Event, b.Event), cmp.Compare(a.Whose, b.Whose), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Peer, b.Peer))
	})
	for _, k := range r.Kinds[min(len(r.Kinds), maxKinds):] {
		r.MoreEvents += k.Count
	}
	r.Kinds = r.Kinds[:min(len(r.Kinds), maxKinds)]
	for _, l := range b.lanes {
		r.Timeline = append(r.Timeline, *l)
	}
	slices.SortFunc(r.Timeline, func(a, b Lane) int {
		return cmp.Or(-cmp.Compare(boolean(a.Warning), boolean(b.Warning)), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Whose, b.Whose), cmp.Compare(a.Event, b.Event))
	})
	for _, l := range r.Timeline[min(len(r.Timeline), maxLanes):] {
		r.MoreLanes += l.Count
	}
	r.Timeline = r.Timeline[:min(len(r.Timeline), maxLanes)]
	r.Owners = len(b.whose)
	r.Quiet = r.empty() && len(r.Unknown) == 0
	return r
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}
