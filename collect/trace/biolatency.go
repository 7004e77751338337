package trace

import "nodeskoop/collect"

// biolatency has events, and histograms by disk.
var biolatencyKind = kind{name: "biolatency", begin: func(p *probe, _ collect.Env) func(*collect.View) error {
	return p.sampleDisks
}}
