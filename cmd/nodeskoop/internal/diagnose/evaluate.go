package diagnose

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
)

// Path is the name of the path between two ends in findings.
const Path = "path"

// Finding is a cause that was found.
type Finding struct {
	// Cause is its ID in the catalogue.
	Cause string `json:"cause"`
	// Title is one line for a person.
	Title string `json:"title"`
	// Pod is the pod with the symptom, "" for the node.
	Pod string `json:"pod"`
	// Blame is the end that is to blame: a pod, "node", an address, or "path".
	Blame string `json:"blame"`
	// Score is the confidence, from 0 to 1.
	Score    float64    `json:"score"`
	Evidence []Evidence `json:"evidence"`
	Next     []string   `json:"next"`

	about   *catalog.Cause
	parties map[string]bool // the ends that the finding is about
	ends    []string        // the ends that the cause's first sign names
	what    string
	owner   string
	peer    string
	weight  float64       // weight of the strongest occurrence
	is      observation   // the observation that the finding rests on
	seen    []observation // the evidence
	took    time.Duration // length of the observation
}

// Evidence is one number that supports a finding.
type Evidence struct {
	Text   string  `json:"text"`
	Source string  `json:"source"`
	Value  float64 `json:"value"`

	of   string // owner of the number
	with string // the other end of that owner's traffic
}

// NotLooked is something that could not be examined.
type NotLooked struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// observations finds those of a signal.
type observations map[string][]observation

func bySignal(list []observation) observations {
	m := observations{}
	for _, x := range list {
		m[x.signal] = append(m[x.signal], x)
	}
	return m
}

// kindOf returns the part of a signal's name before the dot. Signals of one kind are
// about the same subject, such as a device.
func kindOf(signal string) string {
	kind, _, ok := strings.Cut(signal, ".")
	if !ok {
		return ""
	}
	return kind
}

// of returns the largest observation of a signal about the same subject as x.
func (m observations) of(signal string, x *observation, onNode bool) (found observation, ok bool) {
	owner := x.owner
	if onNode {
		owner = Node
	}
	for _, y := range m[signal] {
		if owner != anyone && y.owner != owner || x.peer != "" && y.peer != "" && x.peer != y.peer && !onNode {
			continue
		}
		if kindOf(signal) == kindOf(x.signal) && x.what != "" && y.what != "" && x.what != y.what {
			continue
		}
		if !ok || y.value > found.value {
			found, ok = y, true
		}
	}
	return found, ok
}

// total returns the sum of a signal about the same subject as x, with which a part
// is compared.
func (m observations) total(signal string, x *observation) float64 {
	sum := 0.0
	for _, y := range m[signal] {
		if (x.owner == anyone || y.owner == x.owner) && (x.peer == "" || y.peer == "" || x.peer == y.peer) &&
			(kindOf(signal) != kindOf(x.signal) || x.what == "" || y.what == "" || x.what == y.what) {
			sum += y.value
		}
	}
	return sum
}

// holds reports whether a sign holds for the subject of x.
func (m observations) holds(s *catalog.Sign, x *observation) (y observation, ok bool) {
	if y, ok = m.of(s.Signal, x, s.OfNode); !ok {
		return y, false
	}
	return y, m.enough(s, &y)
}

func (m observations) enough(s *catalog.Sign, y *observation) bool {
	least := s.AtLeast
	if y.parts > 0 {
		least = s.Many
	}
	return y.value >= least && (s.Of == "" || y.value >= s.Share*m.total(s.Of, y))
}

func counts(w catalog.Whose, owner string) bool {
	switch w {
	case catalog.OfPods:
		return isPodName(owner)
	case catalog.OfTheNode:
		return owner == Node
	}
	return true
}

// evaluate names the causes of the observations, most likely first.
func evaluate(list []observation, took time.Duration) []Finding {
	m := bySignal(list)
	var found []*Finding
	for _, c := range catalog.Causes() {
		found = append(found, m.findings(c, took)...)
	}
	found = joined(unexplained(found))
	afterNodeWide(found)
	slices.SortStableFunc(found, func(a, b *Finding) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), strings.Compare(a.Cause, b.Cause), strings.Compare(a.Blame, b.Blame))
	})
	out := make([]Finding, 0, len(found))
	for _, f := range found {
		out = append(out, *f)
	}
	return out
}

// findings returns the findings of one cause: one for each observation of its first
// sign, and one for each sum of several observations that reaches the threshold only
// together.
func (m observations) findings(c *catalog.Cause, took time.Duration) (found []*Finding) {
	leads := c.All
	if len(leads) > 0 {
		leads = leads[:1]
	} else {
		leads = c.One
	}
	for i := range leads {
		lead := &leads[i]
		var strong, weak []*observation
		for j := range m[lead.Signal] {
			x := &m[lead.Signal][j]
			switch {
			case !counts(c.Whose, x.owner):
			case m.enough(lead, x):
				strong = append(strong, x)
			default:
				weak = append(weak, x)
			}
		}
		if lead.Many > 0 {
			for _, x := range m.together(c, weak) {
				if m.enough(lead, x) {
					strong = append(strong, x)
				}
			}
		}
		for _, x := range strong {
			if evidence, strength, ok := m.judge(c, lead, x); ok {
				found = append(found, newFinding(c, x, evidence, strength, took))
			}
		}
	}
	return found
}

// together sums the observations of a signal that have the same end to blame and
// different other ends. It skips observations that a Not sign of the cause rules out.
func (m observations) together(c *catalog.Cause, list []*observation) (sums []*observation) {
	for _, x := range list {
		if m.ruledOut(c, x) || x.peer == "" {
			continue
		}
		part, other := *x, x.peer
		if c.Blame == catalog.BlamePeer {
			part.owner, other = anyone, x.owner
		} else {
			part.peer = ""
		}
		part.parts, part.others = 1, []string{other}
		i := slices.IndexFunc(sums, func(y *observation) bool {
			return y.owner == part.owner && y.peer == part.peer && y.what == part.what && y.blame == part.blame
		})
		if i < 0 {
			sums = append(sums, &part)
		} else {
			sums[i].absorb(&part)
		}
	}
	return slices.DeleteFunc(sums, func(x *observation) bool { return x.parts < 2 })
}

// absorb adds another sum to a sum.
func (y *observation) absorb(part *observation) {
	y.value += part.value
	y.parts += part.parts
	if y.from != part.from {
		y.from = ""
	}
	for _, other := range part.others {
		if !slices.Contains(y.others, other) {
			y.others = append(y.others, other)
		}
	}
}

// ruledOut reports whether one of the cause's Not signs holds for the subject of x.
func (m observations) ruledOut(c *catalog.Cause, x *observation) bool {
	for i := range c.Not {
		if _, ok := m.holds(&c.Not[i], x); ok {
			return true
		}
	}
	return false
}

// joined merges findings that name the same cause and the same end.
func joined(all []*Finding) (out []*Finding) {
	for _, f := range all {
		k := slices.IndexFunc(out, func(g *Finding) bool { return g.about == f.about && g.Blame == f.Blame })
		if k < 0 {
			out = append(out, f)
		} else {
			out[k].join(f)
		}
	}
	for _, f := range out {
		f.finish()
	}
	return out
}

// judge reports whether a cause holds for the subject of x, with the evidence and
// how far it exceeds the thresholds.
func (m observations) judge(c *catalog.Cause, lead *catalog.Sign, x *observation) (evidence []observation, strength float64, ok bool) {
	evidence = []observation{*x}
	take := func(y observation) {
		if !slices.ContainsFunc(evidence, y.same) {
			evidence = append(evidence, y)
		}
	}
	for i := range c.All {
		if &c.All[i] == lead {
			continue
		}
		y, ok := m.holds(&c.All[i], x)
		if !ok {
			return nil, 0, false
		}
		take(y)
	}
	one := len(c.One) == 0
	for i := range c.One {
		if &c.One[i] == lead {
			one = true
			continue
		}
		if y, ok := m.holds(&c.One[i], x); ok {
			one = true
			take(y)
		}
	}
	if !one {
		return nil, 0, false
	}
	// The parts of a sum were tested against the Not signs one by one.
	if x.parts == 0 && m.ruledOut(c, x) {
		return nil, 0, false
	}
	further := 0
	for i := range c.More {
		if y, ok := m.holds(&c.More[i], x); ok {
			take(y)
			further++
		}
	}
	// Ten times the threshold gives the maximum confidence.
	strength = min(1, math.Log10(max(1, x.value/lead.AtLeast)))
	if len(c.More) > 0 {
		strength = (strength + float64(further)/float64(len(c.More))) / 2
	}
	return evidence, strength, true
}

func newFinding(c *catalog.Cause, x *observation, evidence []observation, strength float64, took time.Duration) *Finding {
	f := &Finding{Cause: c.ID, about: c, owner: x.owner, peer: x.peer, what: x.what, parties: map[string]bool{}, is: *x, seen: evidence, took: took}
	switch c.Blame {
	case catalog.BlameOwner:
		f.Blame = x.owner
	case catalog.BlamePeer:
		f.Blame = cmp.Or(x.peer, Path)
	case catalog.BlameNode:
		f.Blame = Node
	case catalog.BlamePath:
		f.Blame = Path
	}
	for _, y := range evidence {
		if y.blame != "" && y.signal == x.signal {
			f.Blame = y.blame
		}
		if f.what == "" {
			f.what = y.what
		}
		if f.peer == "" && y.peer != "" && c.Blame != catalog.BlamePeer && x.parts == 0 {
			f.peer = y.peer
		}
	}
	ends := []string{x.owner, x.peer}
	if x.owner == anyone {
		// One of the owners may have another problem with the peer.
		ends = append(slices.Clone(x.others), x.peer)
	}
	for _, p := range ends {
		if p != "" && !slices.Contains(f.ends, p) {
			f.ends = append(f.ends, p)
		}
	}
	for _, p := range append([]string{f.owner, f.peer, f.Blame, x.from}, x.others...) {
		if p != "" && p != Path && p != anyone {
			f.parties[p] = true
		}
	}
	if isPodName(f.owner) {
		f.Pod = f.owner
	}
	f.weight = x.value
	f.Score = c.Weight * (0.9 + 0.1*strength)
	return f
}

// join merges another finding of the same cause and blame.
func (f *Finding) join(g *Finding) {
	if g.weight > f.weight {
		*f, *g = *g, *f
	}
	f.Score = max(f.Score, g.Score)
	for p := range g.parties {
		f.parties[p] = true
	}
	for _, y := range g.seen {
		if !slices.ContainsFunc(f.seen, y.same) {
			f.seen = append(f.seen, y)
		}
	}
}

const (
	// mostEvidence is the maximum number of values that a finding shows.
	mostEvidence = 8
	// mostEnds is the maximum number of other ends that are shown with a number each.
	mostEnds = 3
)

// summed replaces the observations of a signal with many other ends by their sum: the
// sum over all owners with one peer if the peer is to blame, else the sum over the
// peers of one owner.
func (f *Finding) summed() (out []observation) {
	type subject struct{ signal, owner, peer, what string }
	subjectOf := func(y *observation) (k subject, other string) {
		if f.about.Blame == catalog.BlamePeer && y.peer == f.Blame {
			return subject{y.signal, anyone, y.peer, y.what}, y.owner
		}
		return subject{y.signal, y.owner, "", y.what}, y.peer
	}
	ends := map[subject]int{}
	for i := range f.seen {
		y := &f.seen[i]
		if k, other := subjectOf(y); y.parts > 0 {
			ends[k] += len(y.others)
		} else if s := catalog.SignalByName(y.signal); other != "" && s != nil && strings.Contains(s.Text, "{peer}") {
			ends[k]++
		}
	}
	at := map[subject]int{}
	for _, y := range f.seen {
		k, other := subjectOf(&y)
		if ends[k] <= mostEnds || other == "" && y.parts == 0 {
			out = append(out, y)
			continue
		}
		if y.parts == 0 {
			y.parts, y.others = 1, []string{other}
		}
		i, ok := at[k]
		if !ok {
			y.owner, y.peer, y.others = k.owner, k.peer, slices.Clone(y.others)
			at[k] = len(out)
			out = append(out, y)
			continue
		}
		out[i].absorb(&y)
	}
	return out
}

// finish writes the texts of the finding.
func (f *Finding) finish() {
	f.Title = fill(f.about.Title, map[string]string{
		"blame": nameText(f.Blame), "owner": f.is.ownerText(f.owner), "peer": f.is.peerText(f.peer), "what": cmp.Or(f.what, "any port"),
	})
	if strings.HasPrefix(f.Title, "the ") || !strings.HasPrefix(f.about.Title, "{") {
		f.Title = strings.ToUpper(f.Title[:1]) + f.Title[1:] // but not the name of a pod
	}
	f.Score = math.Round(f.Score*100) / 100
	for _, y := range f.summed() {
		s := catalog.SignalByName(y.signal)
		if s == nil || len(f.Evidence) == mostEvidence {
			continue
		}
		text := fill(s.Text, map[string]string{"n": number(y.value), "peer": y.peerText(f.peer), "what": cmp.Or(y.what, "any port"), "time": duration(f.took), "from": nameText(cmp.Or(y.from, "several ends"))})
		if y.owner != f.Blame {
			text = y.ownerText(y.owner) + ": " + text
		}
		f.Evidence = append(f.Evidence, Evidence{Text: text, Source: s.Source, Value: y.value, of: cmp.Or(y.in, y.owner), with: y.peer})
	}
}

// ownerText returns the owner of an observation as a part of a sentence.
func (y *observation) ownerText(name string) string {
	if name == anyone {
		return manyText(y.others)
	}
	return nameText(name)
}

// peerText returns the other end of an observation as a part of a sentence: other,
// the other end of the finding, if the observation names none.
func (y *observation) peerText(other string) string {
	if y.parts > 0 && y.owner != anyone {
		return manyText(y.others)
	}
	return nameText(cmp.Or(y.peer, other, "the other end"))
}

// manyText describes several ends. The first had the most.
func manyText(ends []string) string {
	if len(ends) == 1 {
		return nameText(ends[0])
	}
	return strconv.Itoa(len(ends)) + " ends (such as " + nameText(ends[0]) + ")"
}

// nameText returns the name of an end for a sentence.
func nameText(name string) string {
	switch name {
	case Node:
		return "the node"
	case Path:
		return "the path"
	}
	return name
}

// fill replaces the placeholders {name} of a text. It stops at the first unknown
// one.
func fill(text string, places map[string]string) string {
	before, rest, ok := strings.Cut(text, "{")
	place, after, closed := strings.Cut(rest, "}")
	value, known := places[place]
	if !ok || !closed || !known {
		return text
	}
	return before + value + fill(after, places)
}

func number(v float64) string {
	if v >= 10 || v == math.Trunc(v) {
		return strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

func duration(d time.Duration) string {
	return strconv.FormatFloat(math.Round(d.Seconds()*10)/10, 'f', -1, 64) + " s"
}

// unexplained removes findings that another finding about the same ends explains.
func unexplained(all []*Finding) []*Finding {
	follows := func(f *Finding) bool {
		return slices.ContainsFunc(all, func(g *Finding) bool {
			return g != f && slices.Contains(g.about.Explains, f.Cause) && g.about != f.about && related(g, f) &&
				!(slices.Contains(f.about.Explains, g.Cause) && f.Score >= g.Score)
		})
	}
	var out []*Finding
	for _, f := range all {
		if !follows(f) {
			out = append(out, f)
		}
	}
	return out
}

// afterNodeWide moves findings behind a node-wide cause that explains them. It does
// not remove them: a pod's own trouble may be an after-effect, or a second problem.
func afterNodeWide(all []*Finding) {
	for _, g := range all {
		for _, f := range all {
			if g.about.NodeWide && !f.about.NodeWide && slices.Contains(g.about.Explains, f.Cause) {
				f.Score = min(f.Score, g.Score-0.01)
			}
		}
	}
}

// related reports whether a may cause b. A fault of traffic that passes through the
// node concerns all of its pods. A node-wide cause is treated differently, since a pod
// may have a separate problem at the same time. A cause between two ends concerns only
// the traffic between these two: any process may have a problem with a pod, and must
// not hide the problems that others have with that pod.
func related(a, b *Finding) bool {
	if a.about.Passing && slices.Equal(a.ends, []string{Node}) {
		return true
	}
	if a.about.Whole {
		for p := range a.parties {
			if b.parties[p] && (p != Node || len(b.parties) == 1) {
				return true
			}
		}
		return false
	}
	if len(a.ends) == 1 && a.ends[0] == Node && a.about.NodeWide {
		return len(b.parties) == 1 && b.parties[Node]
	}
	for _, p := range a.ends {
		if !slices.Contains(b.ends, p) && (p != Node || len(a.ends) == 1) {
			return false
		}
	}
	return true
}
