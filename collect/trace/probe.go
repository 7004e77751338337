package trace

import (
	"slices"
	"strings"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect"
)

// kind is how one of the ten probes differs from the others.
type kind struct {
	name string
	// slots are the metrics of the kernel's counters, by slot.
	slots []*collect.Metric
	// begin, where set, makes what samples the probe; else its slots are.
	begin func(*probe, collect.Env) func(*collect.View) error
}

var kinds = []kind{
	packetlossKind, tcpresetKind, tcpretransKind, netiftxlatencyKind, netSoftirqKind,
	kernellatencyKind, socketlatencyKind, virtcmdlatencyKind, biolatencyKind, flowKind,
}

// config turns the options of the configuration file into the loader's.
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
	if c.Devices, _ = o["devices"].([]string); len(c.Devices) > 0 {
		c.Netns = env.HostNetns
	}
	return c
}

// probe is one loaded probe.
type probe struct {
	plane  *Plane
	kind   kind
	bpf    *bpf.Probe
	sample func(*collect.View) error
	root   string // where procfs is
	counts counts
}

// Over returns collect.Node: one reading of a map serves all namespaces.
func (p *probe) Over() collect.Over { return collect.Node }

// Sample reads the probe's counters.
func (p *probe) Sample(v *collect.View) error {
	p.plane.settle()
	if p.sample != nil {
		return v.Do(0, "counters of "+p.kind.name, func() error { return p.sample(v) })
	}
	return v.Do(0, "counters of "+p.kind.name, func() error { return p.sampleSlots(v) })
}

// sampleSlots adds the metric of each slot: for each namespace of the cycle,
// those without a count included, or once for the node. A probe without
// metrics counts all the same, and has to forget what is gone.
func (p *probe) sampleSlots(v *collect.View) error {
	if len(p.kind.slots) > 0 && p.kind.slots[0].Scope == collect.PerHost {
		var now tally
		if err := p.bpf.Counters(func(_ uint64, slot int, value uint64) { now.slots[slot] = value }); err != nil {
			return err
		}
		shown := collect.State[carried](v).show(&now)
		for slot, m := range p.kind.slots {
			v.Add(m, float64(shown.slots[slot]))
		}
		return nil
	}
	p.counts.begin(v)
	if err := p.bpf.Counters(p.counts.add); err != nil {
		return err
	}
	p.counts.each(v, func(netns uint64, shown *tally) {
		for slot, m := range p.kind.slots {
			v.AddNetns(netns, m, float64(shown.slots[slot]))
		}
	})
	p.forget(p.counts.sweep(p.root))
	return nil
}

// forget drops what the kernel keeps of namespaces that are gone.
func (p *probe) forget(gone []uint64) {
	if err := p.bpf.Forget(gone...); err != nil {
		p.plane.opt.Log.Debug("forgetting network namespaces failed", "probe", p.kind.name, "error", err)
	}
}

// Hook names the kinds of hooks in use, and what they cannot see.
func (p *probe) Hook() (string, []string) {
	var hooks []string
	for _, h := range p.bpf.Hooks() {
		// Not on which devices: the name is a label, and devices come and go
		// with pods.
		k := string(h.Kind)
		if k != "" && !slices.Contains(hooks, k) {
			hooks = append(hooks, k)
		}
	}
	_, lacks := p.bpf.State()
	return strings.Join(hooks, "+"), lacks
}

// Close detaches the probe.
func (p *probe) Close() error {
	err := p.bpf.Close()
	if e := p.plane.closed(p); err == nil {
		err = e
	}
	return err
}
