package trace

import (
	"fmt"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

var resetTotal = catalog.MustMetric("nodeskoop_tcpreset_total")

// resetKinds are the values of the label kind, by slot. They are the suffixes of
// the event names.
var resetKinds = [...]string{bpf.ResetNosock: "nosock", bpf.ResetActive: "active", bpf.ResetProcess: "process", bpf.ResetReceive: "receive"}

// The contract has no metrics for tcpreset. Its events are rate-limited, so
// resets are counted separately.
var tcpresetKind = kind{name: "tcpreset", begin: func(p *probe, _ collect.Env) func(*collect.View) error {
	return func(v *collect.View) error {
		return p.byNetns(v, func(netns uint64, shown *tally) {
			for slot, kind := range resetKinds {
				v.AddNetns(netns, resetTotal, float64(shown.slots[slot]), kind)
			}
		})
	}
}}

// Resets returns how many RST segments the kernel has sent and received in each
// network namespace since the probe tcpreset was loaded. It returns false while
// the probe is not loaded.
func (t *Tracer) Resets() (map[uint64]uint64, bool, error) {
	var reset *probe
	followed := map[uint64]bpf.NetnsID{}
	t.mu.Lock()
	for pr := range t.probes {
		if pr.kind.name == tcpresetKind.name {
			reset = pr
		}
	}
	if t.loader != nil {
		for _, netns := range t.loader.Followed() {
			followed[netns.Inode()] = netns
		}
	}
	t.mu.Unlock()
	if reset == nil {
		return nil, false, nil
	}
	n := map[uint64]uint64{}
	if err := reset.bpf.Counters(func(netns bpf.NetnsID, _ int, value uint64) {
		if now, ok := followed[netns.Inode()]; !ok || now == netns {
			n[netns.Inode()] += value
		}
	}); err != nil {
		return nil, false, fmt.Errorf("read the resets: %w", err)
	}
	return n, true, nil
}
