package top

import (
	"context"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
)

// Begin loads the probes, which run until ctx ends, and returns their status. A
// later sample is the base of the first table, so no value is lost.
func (s *Sampler) Begin(ctx context.Context) []collect.ProbeStatus {
	s.runner.Until(ctx)
	s.runner.Cycle()
	return s.runner.Status()
}

// Running returns the running pods.
func (s *Sampler) Running() []*owner.Pod { return s.pods.Running() }

// Named returns why pods have no names, nil while containerd answers.
func (s *Sampler) Named() error { return s.status() }
