package session

import (
	"maps"
	"slices"

	"nodeskoop/collect/catalog"
)

// WithOption returns the options of the probes with one option of one probe set. It does
// not change options.
func WithOption(options map[string]map[string]any, probe, key string, value any) map[string]map[string]any {
	out := maps.Clone(options)
	if out == nil {
		out = map[string]map[string]any{}
	}
	of := maps.Clone(out[probe])
	if of == nil {
		of = map[string]any{}
	}
	of[key] = value
	out[probe] = of
	return out
}

// WithoutStacks returns the options such that no event carries a kernel stack, since
// resolving a stack takes microseconds per event. It does not change options.
func WithoutStacks(options map[string]map[string]any) map[string]map[string]any {
	for _, p := range catalog.Probes() {
		if slices.ContainsFunc(p.Options, func(o catalog.Option) bool { return o.Key == "stack" }) {
			options = WithOption(options, p.Name, "stack", false)
		}
	}
	return options
}
