// Package bpf watches the kernel: it loads the eBPF programs of the tracing
// probes by the best hooks that the running kernel really accepts, reads their
// counters, and decodes their events.
//
// It knows probes by name, counters by number and events by type, all keyed by
// the inode number of a network namespace. What a metric is called, and which
// pod a namespace belongs to, is others' business.
//
// What is counted is counted in the kernel, in maps with one copy per CPU, and
// stays exact whatever becomes of an event. An event goes through a token
// bucket in the kernel and then one ring buffer that all probes share; what
// the bucket or a full ring held back is counted by type, so that
// seen = written + suppressed + lost at any time.
//
// Beside each NAME.bpf.c lies NAME.go, which has what belongs to that probe
// alone: its hooks, best to worst, its constants, and how it is compiled. The
// types that both languages share are declared in C; go generate makes Go's of
// them, in internal/objects. The list of probes is in probes.go.
package bpf
