// Package faults proves nodeskoop diagnose: on a node with pods it creates each
// fault that the command can name, and checks with an independent counter that the
// fault exists. diagnose must name the right cause and the right end first.
//
// `make test-faults` runs it and `make faults-doc` writes the result into
// docs/faults.md. It needs root, containerd with its tools (make deps), and nft,
// iptables, tc, ss, nstat, conntrack, ethtool and nsenter.
//
// The node is the network namespace of a containerd that the test runs. A second
// namespace is the wire, a router that does not belong to the node, and a third is
// the server behind it. Nothing is created in the machine's own namespace.
package faults
