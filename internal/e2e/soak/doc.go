// Package soak proves that the daemon holds on to nothing: it runs for a long time
// among pods and namespaces that come and go, floods of losses, and a containerd,
// journald and node_exporter that are restarted. In pauses its memory, threads,
// files, BPF maps and series have to be what they were in the first one, every
// event is accounted for, and no counter falls when the daemon itself is
// restarted or killed.
//
// `make soak DURATION=1h` runs it, with the duration in NODESKOOP_SOAK; it is no
// part of `make test`. It needs root, and containerd with its tools,
// node_exporter and systemd's journald, which make deps provides.
package soak
