// Package bpf loads the eBPF programs of the tracing probes by the best hooks that
// the running kernel accepts, reads their counters, and decodes their events.
//
// The package identifies probes by name, counters by number and events by type, and
// keys everything by the inode number of a network namespace. Metric names and pods
// belong to other packages.
//
// Counters live in per-CPU maps and stay exact even if events are lost. An event
// passes a token bucket in the kernel and then one ring buffer that all probes
// share. Events suppressed by the bucket or lost to a full ring are counted by
// type, so that seen = written + suppressed + lost at any time.
//
// Each NAME.bpf.c has a NAME.go beside it with that probe's hooks (best first),
// constants and compiler directive. Types shared by both languages are declared in
// C; go generate derives the Go types in internal/objects. The list of probes is in
// probes.go.
package bpf
