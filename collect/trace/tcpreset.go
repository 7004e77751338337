package trace

import "fmt"

// tcpreset has events only.
var tcpresetKind = kind{name: "tcpreset"}

// Resets gives how many RST the kernel has sent and received in each network
// namespace since the probe tcpreset was loaded. It gives none, and false,
// while the probe is not loaded.
func (p *Plane) Resets() (map[uint64]uint64, bool, error) {
	var reset *probe
	p.mu.Lock()
	for pr := range p.probes {
		if pr.kind.name == tcpresetKind.name {
			reset = pr
		}
	}
	p.mu.Unlock()
	if reset == nil {
		return nil, false, nil
	}
	n := map[uint64]uint64{}
	if err := reset.bpf.Counters(func(netns uint64, _ int, value uint64) { n[netns] += value }); err != nil {
		return nil, false, fmt.Errorf("read the resets: %w", err)
	}
	return n, true, nil
}
