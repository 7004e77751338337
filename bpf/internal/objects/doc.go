// Package objects holds the compiled programs of bpf/*.bpf.c, for each
// architecture, and the Go types that bpf2go generates from their C types:
// layouts, enums, names of maps and variables. All but this file is generated;
// the objects are committed, so that a build needs no clang. Regenerate with go
// generate ./bpf after a change of the C code, with the clang that .ci/check-bpf
// names.
package objects
