package trace

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// kind holds the properties in which the probes differ.
type kind struct {
	name string
	// slots are the metrics of the kernel's counters, by slot.
	slots []*catalog.Metric
	// histogram is the metric of the kernel's histograms, and its labels by their
	// index. It is nil if there are no histograms, or if they are not kept by
	// namespace.
	histogram  *catalog.Metric
	histograms [][]string
	// begin makes the function that samples the probe. If it is nil, the probe's slots
	// are sampled.
	begin func(*probe, collect.Env) func(*collect.View) error
	// whole says that the function from begin makes its kernel calls through the
	// View.
	whole bool
}

// config converts the options of the configuration file to the loader's.
func (k kind) config(env collect.Env) bpf.Config {
	o := env.Options
	var c bpf.Config
	duration := func(key string, to *time.Duration) {
		if d, ok := o[key].(time.Duration); ok {
			*to = d
		}
	}
	duration("slow", &c.Slow)
	duration("event", &c.Event)
	if stack, ok := o["stack"].(bool); ok {
		c.NoStack = !stack
	}
	c.Ports, _ = o["ports"].(bool)
	c.Background, _ = o["writeback"].(bool)
	c.Histograms = histogramsBy(o)
	if c.Devices, _ = o["devices"].([]string); len(c.Devices) > 0 {
		c.Netns = env.HostNetns
	}
	return c
}

// flowName is the probe that counts connections.
const flowName = "flow"

// probe is one loaded probe.
type probe struct {
	tracer *Tracer
	kind   kind
	loader *bpf.Loader
	bpf    *bpf.Probe
	sample func(*collect.View) error
	root   string // where procfs is
	host   bpf.Netns
	counts counts
	// histograms says how the probe's histograms are divided.
	histograms bpf.HistogramsBy
	full       bool // some namespaces found no room, and this has been logged
}

// Granularity is collect.Node: one reading of a map serves all namespaces.
func (p *probe) Granularity() collect.Granularity { return collect.Node }

// Sample reads the probe's counters.
func (p *probe) Sample(v *collect.View) error {
	p.tracer.releaseMemory()
	if p.kind.whole {
		return p.sample(v)
	}
	if p.sample != nil {
		return v.Do(0, "counters of "+p.kind.name, func() error { return p.sample(v) })
	}
	return v.Do(0, "counters of "+p.kind.name, func() error { return p.sampleSlots(v) })
}

// perHost reports whether the counters are node-wide.
func (p *probe) perHost() bool {
	return len(p.kind.slots) > 0 && p.kind.slots[0].Scope == catalog.PerHost
}

// sampleSlots adds the metric of each slot: for every namespace of the cycle,
// including those without counts, or once for the node. A probe without metrics
// is read as well, to forget namespaces that are gone.
func (p *probe) sampleSlots(v *collect.View) error {
	if p.perHost() {
		var now tally
		if err := p.bpf.Counters(func(_ bpf.NetnsID, slot int, value uint64) { now.slots[slot] = value }); err != nil {
			return err
		}
		ofNode := p.kind.histogram != nil && p.histograms != bpf.HistogramsOff
		if ofNode {
			var err error
			if now.latencies, err = p.readLatencies(); err != nil {
				return err
			}
		}
		shown := collect.State[carried](v).show(&now)
		for slot, m := range p.kind.slots {
			v.Add(m, float64(shown.slots[slot]))
		}
		if ofNode {
			p.addLatencies(v, shown)
		}
		return nil
	}
	if p.kind.histogram != nil && p.histograms == bpf.HistogramsNode {
		now, err := p.readLatencies()
		if err != nil {
			return err
		}
		p.addLatencies(v, collect.State[carried](v).show(&tally{latencies: now}))
	}
	return p.byNetns(v, func(inode uint64, shown *tally) {
		for slot, m := range p.kind.slots {
			v.AddNetns(inode, m, float64(shown.slots[slot]))
		}
		if p.histograms == bpf.HistogramsPods {
			for which, labels := range p.kind.histograms {
				v.AddNetnsHistogram(inode, p.kind.histogram, shown.histogram(which), labels...)
			}
		}
	})
}

// byNetns reads the kernel's counters, calls add with those of each namespace of
// the cycle, and forgets namespaces that are gone.
func (p *probe) byNetns(v *collect.View, add func(inode uint64, shown *tally)) error {
	p.follow(v)
	if err := p.bpf.Counters(p.counts.add); err != nil {
		return err
	}
	if p.kind.histogram != nil && p.histograms == bpf.HistogramsPods {
		if err := p.bpf.Histograms(len(p.kind.histograms), p.counts.addHistogram); err != nil {
			return err
		}
	}
	p.counts.each(v, add)
	return p.forget(p.sweep(v))
}

// follow begins a cycle. It reserves room in the kernel's tables for pods that
// have none yet.
func (p *probe) follow(v *collect.View) {
	p.tracer.follow()
	p.counts.begin(v.Netns(), p.id, p.bpf.Lacking())
}

// id returns the key in the kernel's tables of a pod's namespace, or of the host's if
// pod is nil.
func (p *probe) id(pod *owner.Pod) (bpf.NetnsID, error) {
	if pod == nil {
		return p.loader.ID(p.host)
	}
	return p.loader.ID(netnsOf(pod, p.root))
}

// sweep lists the namespaces that are gone.
func (p *probe) sweep(v *collect.View) []bpf.NetnsID {
	_, _, crowded := p.bpf.Room()
	return p.counts.sweep(crowded, func() map[uint64]bool { return p.tracer.alive(v.Cycle(), p.root) })
}

// forget deletes the kernel's entries of namespaces that are gone. It logs if some
// occurrences found no room.
func (p *probe) forget(gone []bpf.NetnsID) error {
	if err := p.bpf.Forget(gone...); err != nil {
		p.tracer.opt.Log.Debug("forgetting network namespaces failed", "probe", p.kind.name, "error", err)
	}
	_, full, _ := p.bpf.Room()
	if full && !p.full && p.kind.name != flowName {
		p.tracer.opt.Log.Warn("network namespaces outside pods have filled their part of a table; the occurrences beyond it count as unknown; pods and the host are not affected",
			"probe", p.kind.name, "hint", "ls -l /proc/[0-9]*/ns/net shows who created so many; their entries are dropped when they are gone")
	}
	p.full = full
	if n := p.counts.left; n > 0 {
		return &collect.MissingError{Err: fmt.Errorf("counters of %d network namespaces are left out: %w", n, p.counts.why)}
	}
	return nil
}

// Hook names the kinds of hooks in use, and their limitations.
func (p *probe) Hook() (string, []string) {
	var hooks []string
	for _, h := range p.bpf.Hooks() {
		// Leave out the devices: the name is a label, and devices come and go
		// with pods.
		k := string(h.Kind)
		if k != "" && !slices.Contains(hooks, k) {
			hooks = append(hooks, k)
		}
	}
	_, limitations := p.bpf.State()
	return strings.Join(hooks, "+"), limitations
}

// Close detaches the probe.
func (p *probe) Close() error {
	err := p.bpf.Close()
	if e := p.tracer.closed(p); err == nil {
		err = e
	}
	return err
}
