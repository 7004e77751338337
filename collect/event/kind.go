package event

import (
	"net/netip"
	"strings"

	"nodeskoop/collect/catalog"
)

// kindKey holds what all occurrences of a kind have in common, except the peer.
// Latency, stack, CPU and PID are not part of it, because they vary during one problem.
type kindKey struct {
	bucketKey
	reason, location, tcpState string
	vector, ifname, disk, comm string
	operation                  string
	protocol                   string
}

func keyOf(e *Event) kindKey {
	return kindKey{
		bucketKey: bucketOf(e),
		reason:    e.Reason, location: e.Location, tcpState: e.TCPState,
		vector: e.Vector, ifname: e.Ifname, disk: e.Disk, comm: CommonComm(e.Comm),
		operation: e.Operation,
		protocol:  e.Protocol,
	}
}

// CommonComm returns the common name of the kernel's numbered threads: kworker for all
// workers, ksoftirqd for that of each CPU.
func CommonComm(comm string) string {
	name, number, ok := strings.Cut(comm, "/")
	switch {
	case !ok:
		return comm
	case name == "kworker":
		return name
	}
	for i := range len(number) {
		if number[i] < '0' || number[i] > '9' {
			return comm
		}
	}
	return name
}

// ephemeral is the start of the kernel's default range of ephemeral ports
// (net.ipv4.ip_local_port_range). Lower ports are taken for a service's.
const ephemeral = 32768

// peer is the remote side of a connection, without its ephemeral port. Kinds with the same
// kindKey differ only in their peers.
type peer struct {
	addr netip.Addr
	// port is the peer's service port; 0 if the peer is the client.
	port uint16
	// other is the second address if the owner is at neither end: the node forwards the
	// packet.
	other netip.Addr
	// sends: the peer is the source.
	sends bool
}

// peerOf returns the peer of a labelled event; the zero peer if its type has no connection.
func peerOf(e *Event) peer {
	if !e.Type.Has(catalog.FieldTuple) {
		return peer{}
	}
	far, near, sends := e.ends()
	p := peer{addr: far.Addr, port: ServicePort(far, near), sends: sends}
	if !e.owns(far) && !e.owns(near) {
		p.other = near.Addr
	}
	return p
}

// ends returns the peer's end of the connection, and the other end, which is the owner's
// unless the node forwards. sends: the peer is the source.
func (e *Event) ends() (far, near *Endpoint, sends bool) {
	src, dst := &e.Src, &e.Dst
	ownSrc, ownDst := e.owns(src), e.owns(dst)
	sends = ServicePort(src, dst) != 0 && ServicePort(dst, src) == 0
	if ownSrc != ownDst {
		sends = ownDst
	}
	if sends {
		return src, dst, true
	}
	return dst, src, false
}

// owns reports whether an end belongs to the event's owner.
func (e *Event) owns(end *Endpoint) bool {
	if e.Pod != nil {
		return samePod(e.Pod, end.Pod) || e.Pod.HostNetwork && end.Kind == EndNode
	}
	return end.Kind == EndNode && e.OfHost()
}

// ServicePort returns the port of an end if it looks like a service's: below the ephemeral
// range, and not above the port of the other end. Otherwise it returns 0.
func ServicePort(end, other *Endpoint) uint16 {
	if end.Port >= ephemeral || other.Port != 0 && other.Port < end.Port {
		return 0
	}
	return end.Port
}
