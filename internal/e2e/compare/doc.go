// Package compare measures what the daemon costs, as ratios to the cost of other
// programs on the same machine in the same run: node_exporter's own collectors,
// bpftrace, libbpf-tools, and nothing. Turns of both sides alternate, since
// absolute times depend on the machine and its load.
//
// `make bench-gate` checks the ratios that are cheap to measure against
// testdata/budgets.tsv. `make bench-compare` prints the tables and `make
// bench-curves` shows how the cost grows; they have no limits. None is part of
// `make test`. All need root and ip; the first two need node_exporter (make deps),
// and bench-compare needs bpftrace and iperf3, which the script tools installs.
package compare
