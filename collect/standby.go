package collect

import (
	"cmp"
	"encoding/binary"
	"iter"
	"maps"
	"math"
	"math/bits"
	"slices"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// A probe on standby (Options.Standby) runs only while the function given to Decide says
// so. Loading and closing it never delay a cycle. While it does not run, its counters keep
// the values of its last cycle, and later continue from them.

// Value is one value of a cycle, of the host or of a pod.
type Value struct {
	Pod    *owner.Pod // nil: the host
	Metric *catalog.Metric
	Value  float64
}

// Decide registers the function that decides after each cycle whether the probes on standby
// run. It gets the cycle's values that have no labels of their own, and are not histograms.
// It is called by the goroutine of Run, so it must return at once. Call Decide before the
// first cycle.
func (r *Runner) Decide(f func(values iter.Seq[Value]) (run bool)) { r.decide = f }

// Standby returns the names of the probes on standby, and whether each runs now. It may be
// called from any goroutine.
func (r *Runner) Standby() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.standby)
}

// loadTurn is how long the load of a probe on standby waits for that of another. They are
// loaded one after the other, so that they leave CPUs to the node's work.
const loadTurn = 10 * time.Second

// advance takes the steps towards loading a probe on standby that are possible without
// waiting. When the program starts, the probe is loaded and closed again, as a trial: a
// machine that cannot run it then says so before it matters.
func (r *Runner) advance(in *instance, now time.Time) {
	if in.closing != nil && in.closing.Over(0, nil) {
		r.closed(in, in.closing)
		in.closing = nil
	}
	if in.loading != nil {
		if !in.loading.Over(0, nil) {
			return
		}
		in.tried = true
		r.take(in, now)
		if !r.awake {
			r.rest(in)
		}
	}
	if wanted := r.awake || !in.tried || in.err != nil; wanted && in.source == nil && in.closing == nil && !now.Before(in.retry) {
		in.trial = !r.awake
		in.loading = r.create(in)
	}
}

// rest closes a probe on standby without waiting for it.
func (r *Runner) rest(in *instance) {
	if in.source == nil {
		return
	}
	probe := in.source.probe
	in.source = nil
	r.planner.each(func(m *memory) { m.forget(in.info.Name, r.keeper) })
	in.closing = bounded.Begin(func() (none struct{}, err error) { return none, probe.Close() })
}

// switchStandby asks whether the probes on standby run, and closes them if they do not. A
// next cycle loads them if they do.
func (r *Runner) switchStandby() {
	r.remember()
	run := false
	if r.decide != nil && slices.ContainsFunc(r.instances, func(in *instance) bool { return in.standby }) {
		err := bounded.Guard(func() { run = r.decide(r.values) })
		if err != nil && !r.undecided {
			r.opt.Log.Error("deciding whether the probes on standby run failed; they do not", "error", err)
		}
		r.undecided = err != nil
	}
	if run && !r.awake {
		for _, in := range r.instances {
			if in.standby && in.err == nil {
				in.retry, in.delay = time.Time{}, 0
			}
		}
	}
	r.awake = run
	standby := map[string]bool{}
	now := time.Now()
	for _, in := range r.instances {
		if !in.standby {
			continue
		}
		if !run {
			r.rest(in)
		} else if in.source == nil {
			r.advance(in, now)
		}
		standby[in.info.Name] = in.source != nil
	}
	r.mu.Lock()
	r.standby = standby
	r.mu.Unlock()
}

// values yields the cycle's values for Decide.
func (r *Runner) values(yield func(Value) bool) {
	for i := range r.rows {
		x := &r.rows[i]
		if x.hist == nil && x.leftOut == 0 && len(x.labels) == 0 && !x.of.unknown && !yield(Value{x.of.pod, x.metric, x.value}) {
			return
		}
	}
}

// stillRow is a value that a probe on standby wrote in the last cycle in which it ran.
type stillRow struct {
	target string // key of its memory
	row
	seen time.Duration // when the target was last present, as time since boot
}

// remember keeps the counters of probes on standby for the time when they do not run. A
// gauge of then would be wrong now.
func (r *Runner) remember() {
	var keys map[*labelSet]string
	for _, in := range r.instances {
		if !in.standby || in.source == nil || len(in.source.rows) == 0 {
			continue
		}
		if keys == nil {
			keys = map[*labelSet]string{}
			r.planner.each(func(m *memory) { keys[&m.labels] = m.key })
		}
		list := make([]stillRow, 0, len(in.source.rows))
		sampled := map[string]bool{}
		for _, x := range in.source.rows {
			if key, ok := keys[x.of]; ok && x.metric.Type != catalog.Gauge && x.leftOut == 0 {
				list = append(list, stillRow{key, x, r.keeper.now()})
				sampled[key] = true
			}
		}
		// A target without values in this cycle keeps those that it had.
		for _, x := range r.still[in.info.Name] {
			if !sampled[x.target] {
				list = append(list, x)
			}
		}
		r.still[in.info.Name] = list
	}
}

// appendStill appends the counters of the probes on standby that do not run.
func (r *Runner) appendStill(rows []row) []row {
	if len(r.still) == 0 {
		return rows
	}
	memories := map[string]*memory{}
	r.planner.each(func(m *memory) { memories[m.key] = m })
	now, connected := r.keeper.now(), r.opt.Pods.Connected()
	for _, in := range r.instances {
		name := in.info.Name
		if !in.standby || in.source != nil || len(r.still[name]) == 0 {
			continue
		}
		r.still[name] = slices.DeleteFunc(r.still[name], func(x stillRow) bool {
			return memories[x.target] == nil && connected && now-x.seen > keepFor
		})
		for i := range r.still[name] {
			if x := &r.still[name][i]; memories[x.target] != nil {
				x.seen, x.of = now, &memories[x.target].labels
				rows = append(rows, x.row)
			}
		}
	}
	return rows
}

// standbyState is a Kept of the counters of all probes on standby.
type standbyState struct{ r *Runner }

// Keep appends, for each probe, its targets, its metrics, and the values as indexes of both.
func (s standbyState) Keep(b []byte) []byte {
	if len(s.r.still) == 0 {
		return b
	}
	for _, probe := range slices.Sorted(maps.Keys(s.r.still)) {
		list := s.r.still[probe]
		if len(list) == 0 {
			continue
		}
		var targets, metrics []string
		at := map[string]uint64{}
		index := func(names *[]string, kind, name string) uint64 {
			i, ok := at[kind+name]
			if !ok {
				i = uint64(len(*names))
				at[kind+name] = i
				*names = append(*names, name)
			}
			return i
		}
		var rows []byte
		for _, x := range list {
			rows = AppendUints(rows, index(&targets, "t", x.target), uint64(x.seen), index(&metrics, "m", x.metric.Name))
			for _, l := range x.labels {
				rows = appendString(rows, l)
			}
			if x.hist == nil {
				rows = appendFloat(rows, x.value)
				continue
			}
			rows = AppendUints(rows, uint64(len(x.hist.Buckets)))
			rows = AppendUints(rows, x.hist.Buckets...)
			rows = appendFloat(rows, x.hist.Sum)
		}
		b = appendString(b, probe)
		for _, names := range [][]string{targets, metrics} {
			b = binary.AppendUvarint(b, uint64(len(names)))
			for _, n := range names {
				b = appendString(b, n)
			}
		}
		b = AppendUints(b, uint64(len(list)))
		b = append(b, rows...)
	}
	return b
}

// Recall restores what Keep appended. It restores nothing if the state is of a build whose
// metrics differ: the form of their values is not known.
func (s standbyState) Recall(b []byte) error {
	d := NewDecoder(b)
	all := map[string][]stillRow{}
	names := func() (list []string) {
		for n := d.Uint(); n > 0 && d.More(); n-- {
			list = append(list, string(d.Bytes()))
		}
		return list
	}
	for d.More() {
		probe := string(d.Bytes())
		targets, metrics := names(), names()
		for n := d.Uint(); n > 0 && d.More(); n-- {
			target, seen, metric := d.Uint(), d.Uint(), d.Uint()
			if d.Err() != nil || target >= uint64(len(targets)) || metric >= uint64(len(metrics)) || seen > math.MaxInt64 {
				return cmp.Or(d.Err(), errState)
			}
			m := catalog.MetricByName(metrics[metric])
			if m == nil || m.Type == catalog.Gauge {
				return nil
			}
			x := stillRow{target: targets[target], seen: time.Duration(seen), row: row{metric: m}}
			for range m.Labels {
				x.labels = append(x.labels, string(d.Bytes()))
			}
			if m.Type == catalog.Histogram {
				x.hist = &Histogram{Buckets: make([]uint64, len(m.Bounds)+1)}
				if d.Uint() != uint64(len(x.hist.Buckets)) {
					return d.Err()
				}
				d.Uints(x.hist.Buckets)
				x.hist.Sum = decodeFloat(d)
			} else {
				x.value = decodeFloat(d)
			}
			all[probe] = append(all[probe], x)
		}
	}
	if err := d.Err(); err != nil {
		return err
	}
	s.r.still = all
	return nil
}

// appendFloat appends a number so that a small whole one is short: its low bits are 0.
func appendFloat(b []byte, x float64) []byte {
	return binary.AppendUvarint(b, bits.ReverseBytes64(math.Float64bits(x)))
}

func decodeFloat(d *Decoder) float64 { return math.Float64frombits(bits.ReverseBytes64(d.Uint())) }
