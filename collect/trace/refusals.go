package trace

import (
	"slices"

	"nodeskoop/bpf"
)

// Refusals says which ways to attach a loaded probe the kernel did not take,
// and what it answered, before it took the one in use.
func (t *Tracer) Refusals(name string) []string {
	var hooks []bpf.HookState
	t.mu.Lock()
	for pr := range t.probes {
		if pr.kind.name == name {
			hooks = append(hooks, pr.bpf.Hooks()...)
		}
	}
	t.mu.Unlock()
	var out []string
	for _, h := range hooks {
		for _, r := range h.Refused {
			if line := string(r.Kind) + ": " + r.Reason; !slices.Contains(out, line) {
				out = append(out, line)
			}
		}
	}
	return out
}

// Devices names the network devices that a probe is attached to; none where it
// watches no devices, or is not loaded.
func (t *Tracer) Devices(name string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for pr := range t.probes {
		if pr.kind.name != name {
			continue
		}
		for _, h := range pr.bpf.Hooks() {
			names = append(names, h.Devices...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
