// Package soak proves that the daemon leaks nothing. It runs for a long time among
// short-lived pods and namespaces, floods of losses, and restarts of containerd,
// journald and node_exporter. In each pause its memory, threads, files, BPF maps
// and series must be the same as in the first one. Every event must be accounted
// for, and no counter may fall when the daemon itself is restarted or killed.
//
// `make soak DURATION=1h` runs it, with the duration in NODESKOOP_SOAK; it is not
// part of `make test`. It needs root, and containerd with its tools, node_exporter
// and systemd's journald, which make deps provides.
package soak
