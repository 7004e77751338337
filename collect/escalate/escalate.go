// Package escalate decides when the probes on standby run: for some minutes after a sign of
// a fault in values that are sampled anyway, within a budget. It calls nothing of the system.
package escalate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

// Options are the budget. The zero value is that of the documentation.
type Options struct {
	// For is how long the probes run, counted from the sign; default 5 minutes. A sign
	// that is seen meanwhile does not extend it.
	For time.Duration
	// Most is how often they start in any period Per; default twice an hour. The same sign
	// of the same pod, or of the node, starts them once in that period: a condition that
	// lasts does not use up the budget of others.
	Most int
	Per  time.Duration
	// Window is the least length of an observation; default 10 s. A sign must hold in two
	// windows in a row.
	Window time.Duration
}

// Node is the name of the node as the subject of a sign.
const Node = "node"

// Watch looks for signs. Give it the values of a cycle by Add, then call Judge. It is not
// safe for concurrent use.
type Watch struct {
	o        Options
	cycle    uint64
	last     time.Duration // of the last Judge
	begun    time.Duration // start of the window
	subjects map[string]*subject
	pressed  bool     // the cycle has a Pressure
	pressure Pressure // the least of the window
	squeezed [2]int   // windows in a row in which softirqs, and memory, were under pressure

	recalled bool          // until is of an earlier process
	until    time.Duration // the probes run until then; 0: they do not
	starts   []start       // of the last Options.Per
}

// start is a start of the probes, with its time since boot.
type start struct {
	at  time.Duration
	why string // identifies the sign and its subject
}

// Pressure is how busy the node was since the cycle before, in percent of the time; NaN if
// unknown.
type Pressure struct {
	Softirq float64 // of the CPU with the most softirqs
	Memory  float64 // stall of all processes at once for memory
}

// Verdict says whether the probes on standby run.
type Verdict struct {
	Run          bool
	Began, Ended bool          // in this cycle; a run that a restart interrupted begins again
	Why          string        // the sign that started them
	For          time.Duration // if Began
}

// New returns a Watch.
func New(o Options) *Watch {
	return &Watch{
		o:        Options{cmp.Or(o.For, 5*time.Minute), cmp.Or(o.Most, 2), cmp.Or(o.Per, time.Hour), cmp.Or(o.Window, observed*time.Second)},
		subjects: map[string]*subject{}, pressure: Pressure{math.NaN(), math.NaN()},
	}
}

// subject is the node or a pod.
type subject struct {
	name   string
	node   bool
	cycle  uint64 // last cycle with a value
	there  uint64 // bit set by slot: the cycle has a value
	broken uint64 // bit set by slot: the increase over the window is not known
	first  [maxSlots]float64
	now    [maxSlots]float64
	held   []int // by sign: windows in a row
	queues [len(queues)]queue
}

// queue follows a gauge of bytes.
type queue struct {
	there bool
	value float64
	since time.Duration // since when it has this value
	seen  int           // cycles with this value
	// low says that it was below leastQueue since the daemon runs, and since it was a sign.
	// A queue that has always stood is nothing new.
	low bool
}

// slots numbers the metrics of signs, by metric ID; queueOf those of queues. -1: not one.
var slots, queueOf = number()

const maxSlots = 24

func number() (slots, queueOf []int) {
	for range catalog.Metrics() {
		slots, queueOf = append(slots, -1), append(queueOf, -1)
	}
	n := 0
	slotsOf := func(names []string) (list []int) {
		for _, name := range names {
			id := catalog.MustMetric(name).ID()
			if slots[id] < 0 {
				slots[id] = n
				n++
			}
			list = append(list, slots[id])
		}
		return list
	}
	for i := range signs {
		s := &signs[i]
		s.slots.plus, s.slots.minus, s.slots.of = slotsOf(s.plus), slotsOf(s.minus), slotsOf(s.of)
	}
	for i, q := range queues {
		queueOf[catalog.MustMetric(q.metric).ID()] = i
	}
	if n > maxSlots {
		panic("escalate: too many metrics")
	}
	return slots, queueOf
}

// Wants reports whether a metric is part of a sign.
func Wants(m *catalog.Metric) bool { return slots[m.ID()] >= 0 || queueOf[m.ID()] >= 0 }

// Begin starts a cycle.
func (w *Watch) Begin() {
	w.cycle++
	w.pressed = false
}

// Add takes a value of the cycle. id identifies a pod, and is "" for the node; name is the
// pod's for people. Values that are no part of a sign are ignored.
func (w *Watch) Add(id, name string, m *catalog.Metric, value float64) {
	slot, q := slots[m.ID()], queueOf[m.ID()]
	if slot < 0 && q < 0 || math.IsNaN(value) {
		return
	}
	s := w.subjects[id]
	if s == nil {
		s = &subject{name: cmp.Or(name, Node), node: id == "", held: make([]int, len(signs)), broken: math.MaxUint64}
		w.subjects[id] = s
	}
	if s.cycle != w.cycle {
		s.cycle, s.there = w.cycle, 0
		for i := range s.queues {
			s.queues[i].there = false
		}
	}
	if q >= 0 {
		s.queues[q].add(value)
		return
	}
	if value < s.now[slot] {
		s.broken |= 1 << slot // it started again
	}
	s.now[slot] = value
	s.there |= 1 << slot
}

func (q *queue) add(value float64) {
	q.there = true
	if value != q.value {
		q.value, q.seen = value, 0
	}
	q.seen++
	q.low = q.low || value < leastQueue
}

// Press takes the pressure of the cycle.
func (w *Watch) Press(p Pressure) {
	w.pressed = true
	w.pressure = Pressure{math.Min(w.pressure.Softirq, p.Softirq), math.Min(w.pressure.Memory, p.Memory)}
}

// candidate is a sign that holds.
type candidate struct {
	key, why string
	queue    *queue
}

// Judge ends a cycle. now is the time since boot: the budget holds over restarts of the
// program, and when somebody sets the clock.
func (w *Watch) Judge(now time.Duration) Verdict {
	var v Verdict
	back := now < w.last
	found := w.look(now, back)
	w.last = now
	w.starts = slices.DeleteFunc(w.starts, func(s start) bool { return now-s.at >= w.o.Per })
	for i := range w.starts {
		w.starts[i].at = min(w.starts[i].at, now)
	}
	if w.until > 0 && (now >= w.until || back || w.until-now > w.o.For) {
		w.until, v.Ended = 0, !w.recalled
	}
	if w.recalled && w.until > 0 {
		v.Began, v.Why, v.For = true, "a sign before the restart", w.until-now
	}
	w.recalled = false
	if w.until == 0 && now > 0 && len(w.starts) < w.o.Most {
		i := slices.IndexFunc(found, func(c candidate) bool {
			return !slices.ContainsFunc(w.starts, func(s start) bool { return s.why == c.key })
		})
		if i >= 0 {
			w.until = now + w.o.For
			w.starts = append(w.starts, start{now, found[i].key})
			v.Began, v.Why, v.For = true, found[i].why, w.o.For
			if found[i].queue != nil {
				found[i].queue.low = false
			}
		}
	}
	v.Run = w.until > 0
	return v
}

// look returns the signs that hold, in the order of the table.
func (w *Watch) look(now time.Duration, back bool) (found []candidate) {
	took := now - w.begun
	if !w.pressed {
		w.pressure = Pressure{math.NaN(), math.NaN()}
	}
	ended := took >= w.o.Window && !back
	for id, s := range w.subjects {
		if s.cycle != w.cycle {
			delete(w.subjects, id)
			continue
		}
		s.broken |= ^s.there
	}
	ids := make([]string, 0, len(w.subjects))
	for id := range w.subjects {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return strings.Compare(w.subjects[a].name, w.subjects[b].name) })
	if ended {
		for i := range signs {
			for _, id := range ids {
				s := w.subjects[id]
				why, holds := signs[i].holds(s, took)
				if s.held[i]++; !holds {
					s.held[i] = 0
				}
				if s.held[i] >= 2 {
					found = append(found, candidate{key: signs[i].what + " " + id, why: s.name + ": " + why})
				}
			}
		}
		for i, p := range []struct {
			value, least float64
			text         string
		}{{w.pressure.Softirq, busySoftirq, "a CPU spent %.0f %% of the time in softirqs"}, {w.pressure.Memory, stalledMemory, "all processes waited for memory %.0f %% of the time"}} {
			if w.squeezed[i]++; !(p.value >= p.least) { // NaN: not known of the whole window
				w.squeezed[i] = 0
			}
			if w.squeezed[i] >= 2 {
				found = append(found, candidate{key: p.text, why: Node + ": " + fmt.Sprintf(p.text, p.value)})
			}
		}
	}
	if ended || back {
		w.begun, w.pressure = now, Pressure{math.Inf(1), math.Inf(1)}
		if back {
			w.squeezed = [2]int{}
		}
		for _, s := range w.subjects {
			s.first, s.broken = s.now, ^s.there
			if back {
				clear(s.held)
			}
		}
	}
	for i := range queues {
		for _, id := range ids {
			q := &w.subjects[id].queues[i]
			if back || !q.there {
				*q = queue{low: q.low}
			}
			if q.seen <= 1 {
				q.since = now
			}
			if q.low && q.value >= leastQueue && q.seen >= 3 && now-q.since >= 2*w.o.Window {
				found = append(found, candidate{key: queues[i].what + " " + id, queue: q,
					why: fmt.Sprintf("%s: %.0f %s for %v", w.subjects[id].name, q.value, queues[i].what, (now - q.since).Round(time.Second))})
			}
		}
	}
	return found
}

// holds reports whether the sign held for a subject over a window, and in which numbers.
func (x *sign) holds(s *subject, took time.Duration) (why string, ok bool) {
	if x.pods && s.node {
		return "", false
	}
	known := true
	rise := func(slots []int) (sum float64) {
		for _, slot := range slots {
			known = known && s.broken&(1<<slot) == 0
			sum += s.now[slot] - s.first[slot]
		}
		return sum
	}
	n := rise(x.slots.plus) - rise(x.slots.minus)
	all := rise(x.slots.of)
	if !known || n < x.least*max(1, took.Seconds()/observed) || len(x.of) > 0 && n < x.share*all {
		return "", false
	}
	length := took.Round(time.Second)
	if len(x.of) > 0 {
		return fmt.Sprintf("%.0f %s (%.1f %%) in %v", n, x.what, 100*n/max(n, all), length), true
	}
	return fmt.Sprintf("%.0f %s in %v", n, x.what, length), true
}

// Keep implements collect.Kept: it stores the budget, and until when the probes run.
func (w *Watch) Keep(b []byte) []byte {
	if len(w.starts) == 0 {
		return b
	}
	b = collect.AppendUints(b, uint64(w.until))
	for _, s := range w.starts {
		b = collect.AppendUints(b, uint64(s.at), uint64(len(s.why)))
		b = append(b, s.why...)
	}
	return b
}

// Recall implements collect.Kept.
func (w *Watch) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	until := d.Uint()
	var starts []start
	for d.More() {
		starts = append(starts, start{time.Duration(min(d.Uint(), math.MaxInt64)), string(d.Bytes())})
	}
	if err := d.Err(); err != nil {
		return err
	}
	w.until, w.starts, w.recalled = time.Duration(min(until, math.MaxInt64)), starts, true
	return nil
}
