package top

import (
	"context"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
)

// Begin loads the probes, until ctx ends, and returns how each of them does. The
// first table compares with a later sample: none is lost.
func (s *Sampler) Begin(ctx context.Context) []collect.ProbeStatus {
	s.runner.Until(ctx)
	s.runner.Cycle()
	return s.runner.Status()
}

// Running returns the pods that run now.
func (s *Sampler) Running() []*owner.Pod { return s.pods.Running() }

// Named is why pods have no names, nil while containerd answers.
func (s *Sampler) Named() error { return s.status() }
