package trace

import (
	"slices"

	"nodeskoop/bpf"
)

// Refusals returns the ways to attach a loaded probe that the kernel refused
// before it accepted the one in use, with the verifier's text as the reason.
func (t *Tracer) Refusals(name string) (reasons, answers []string) {
	var hooks []bpf.HookState
	t.mu.Lock()
	for pr := range t.probes {
		if pr.kind.name == name {
			hooks = append(hooks, pr.bpf.Hooks()...)
		}
	}
	t.mu.Unlock()
	add := func(list *[]string, line string) {
		if !slices.Contains(*list, line) {
			*list = append(*list, line)
		}
	}
	for _, h := range hooks {
		for _, r := range h.Refused {
			add(&reasons, string(r.Kind)+": "+r.Reason)
			add(&answers, string(r.Kind)+": "+r.Answer)
		}
	}
	return reasons, answers
}

// Devices names the network devices that a probe is attached to. It is empty if
// the probe watches no devices or is not loaded.
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
