// Package compare sets the daemon beside what a node would run otherwise, in
// one run on one machine: node_exporter's own collectors, bpftrace,
// libbpf-tools, and nothing. All figures are ratios of turns that alternate,
// since times belong to the machine and its mood.
//
// `make bench-compare` prints the tables, `make bench-gate` is the short form
// that holds ratios against budgets.tsv. Neither is part of `make test`.
package compare
