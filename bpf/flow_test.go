package bpf

import "net/netip"

// Flow is a FlowEntry with decoded ends.
type Flow struct {
	Netns               uint64
	Protocol            uint8
	Source, Destination netip.AddrPort
	Bytes, Packets      uint64
}

// Flows calls f for each connection that the map holds.
func (p *Probe) Flows(f func(Flow)) error {
	return p.EachFlow(func(e FlowEntry) {
		flow := Flow{Netns: e.Key.Netns().Inode(), Bytes: e.Bytes, Packets: e.Packets}
		flow.Protocol, flow.Source, flow.Destination = e.Key.Ends()
		f(flow)
	})
}
