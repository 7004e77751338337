// Package compare proves what the daemon costs, by ratios to what a node would
// run otherwise in the same run on the same machine: node_exporter's own
// collectors, bpftrace, libbpf-tools, and nothing. Turns of the one and the other
// alternate, since times belong to the machine and its mood.
//
// `make bench-gate` holds the ratios that are cheap to measure against
// testdata/budgets.tsv. `make bench-compare` prints the tables and `make
// bench-curves` shows how the cost grows; they judge nothing. None is part of
// `make test`. All need root and ip, the first two node_exporter (make deps), and
// bench-compare bpftrace and iperf3, which the script tools installs.
package compare
