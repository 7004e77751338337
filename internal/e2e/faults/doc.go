// Package faults is the proof of nodeskoop diagnose: a node with pods in which
// each fault that the command can name is made for real, and proved to be there
// by a counter that is not ours. The right cause and the right end have to be
// named first.
//
// `make test-faults` runs it and `make faults-doc` writes the result into
// docs/faults.md. It needs root, containerd with its tools (make deps), and nft,
// iptables, tc, ss, nstat, conntrack, ethtool and nsenter.
//
// The node is the network namespace of a containerd of the test's own. A second
// namespace is the wire, a router that belongs to nobody whom the node knows, and a
// third is the server behind it. Nothing is made in the machine's own namespace.
package faults
