package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Flow is what this node's sockets, or its devices (see Config.Devices), sent
// on one connection since the map got its entry. Without Config.Ports, it is
// all connections of two addresses.
type Flow struct {
	Netns    uint64 // of the socket or the devices
	Protocol uint8
	// Source is the sender's end. Ports are 0 without Config.Ports.
	Source, Destination netip.AddrPort
	// Bytes are those of IP packets as they leave the node: one packet that
	// the device cuts up counts as what it is cut into, headers and all.
	Bytes uint64
	// Packets are counted likewise.
	Packets uint64
}

// flowKey and flowValue are struct flow_key and struct flow of flow.bpf.c.
type flowKey struct {
	Tuple [40]byte
	Netns uint32
}

type flowValue struct{ Bytes, Packets uint64 }

type flowReader struct {
	keys   []flowKey
	values []flowValue
	drop   []flowKey
	noMore bool
}

// Flows calls f for each connection that the map holds. The map keeps the
// latest ones; what it evicted is the difference between the slots FlowBytes
// and FlowPackets of Counters, which never fall, and the sums of these.
func (p *Probe) Flows(f func(Flow)) error {
	return p.SweepFlows(func(flow Flow) (keep bool) {
		f(flow)
		return true
	})
}

// SweepFlows is Flows, and takes those connections out of the map for which f
// says so. What one of them sends meanwhile makes it a new one, or is only in
// Counters.
func (p *Probe) SweepFlows(f func(Flow) (keep bool)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.maps["flows"]
	if p.closed || m == nil {
		return fmt.Errorf("read the flows of probe %s: it is closed, or has none", p.name)
	}
	err := p.flows.sweep(m, func(k *flowKey, v *flowValue) bool {
		flow := Flow{Netns: uint64(k.Netns), Bytes: v.Bytes, Packets: v.Packets}
		flow.Protocol, flow.Source, flow.Destination = decodeTuple(k.Tuple[:])
		return f(flow)
	})
	if err != nil {
		return fmt.Errorf("read the flows of probe %s: %w", p.name, err)
	}
	return nil
}

func (r *flowReader) each(m *ebpf.Map, emit func(*flowKey, *flowValue)) error {
	if r.keys == nil {
		r.keys = make([]flowKey, 4*batch)
		r.values = make([]flowValue, 4*batch)
	}
	if !r.noMore {
		var cursor ebpf.MapBatchCursor
		for {
			n, err := m.BatchLookup(&cursor, r.keys, r.values, nil)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				if errors.Is(err, ebpf.ErrNotSupported) {
					r.noMore = true
					break
				}
				return err
			}
			for i := range n {
				emit(&r.keys[i], &r.values[i])
			}
			if err != nil {
				return nil
			}
		}
	}
	var key flowKey
	var value flowValue
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		emit(&key, &value)
	}
	return entries.Err()
}

// forget deletes the connections of namespaces.
func (r *flowReader) forget(m *ebpf.Map, gone map[uint32]bool) error {
	err := r.sweep(m, func(k *flowKey, _ *flowValue) bool { return !gone[k.Netns] })
	// A map that changes meanwhile may cut the walk short; what is left is
	// evicted in time.
	if errors.Is(err, ebpf.ErrIterationAborted) {
		err = nil
	}
	return err
}

// sweep goes through the map and then deletes what is not to be kept.
func (r *flowReader) sweep(m *ebpf.Map, keep func(*flowKey, *flowValue) bool) error {
	r.drop = r.drop[:0]
	err := r.each(m, func(k *flowKey, v *flowValue) {
		if !keep(k, v) {
			r.drop = append(r.drop, *k)
		}
	})
	for i := range r.drop {
		if e := m.Delete(&r.drop[i]); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
