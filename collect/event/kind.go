package event

import (
	"net/netip"
	"strings"

	"nodeskoop/collect/catalog"
)

// kindKey is what occurrences of one kind have in common, but for the peer.
// Latency, stack, CPU and process number are not in it: they differ from one
// occurrence of a trouble to the next.
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

// CommonComm is what the numbered threads of the kernel have in common: all
// workers are one, as are the ksoftirqd of all CPUs.
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

// ephemeral is where the kernel's range of ephemeral ports begins
// (net.ipv4.ip_local_port_range). A port from there on is a connection's, not a
// service's.
const ephemeral = 32768

// peer is the other side of a connection, without its ephemeral port. Kinds of
// one kindKey differ by it alone.
type peer struct {
	addr netip.Addr
	// port is that of the peer's service, 0 where the peer is the client.
	port uint16
	// other is the second address where neither end is the event's owner: of a
	// packet that the node forwards.
	other netip.Addr
	// sends says that the peer is the source.
	sends bool
}

// peerOf finds the peer of an event that is labelled; a zero one where the type
// has no ends.
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

// ends are the two ends of the connection: the peer's and the other, which is
// the owner's own unless the node forwards. sends says that the peer is the
// source.
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

// owns reports whether an end is the event's owner itself.
func (e *Event) owns(end *Endpoint) bool {
	if e.Pod != nil {
		return samePod(e.Pod, end.Pod) || e.Pod.HostNetwork && end.Kind == EndNode
	}
	return end.Kind == EndNode && e.OfHost()
}

// ServicePort is the port of an end if a service has it: below the ephemeral
// ones, and not above that of the other end. It is 0 if not.
func ServicePort(end, other *Endpoint) uint16 {
	if end.Port >= ephemeral || other.Port != 0 && other.Port < end.Port {
		return 0
	}
	return end.Port
}
