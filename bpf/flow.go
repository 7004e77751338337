package bpf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type flow -type flow_key -type slot Flow flow.bpf.c

var flow = definition{
	spec:    objects.LoadFlow,
	prepare: prepareFlow,
	hooks: []hook{
		{
			name: "packets that sockets send (cgroup egress)",
			rungs: []rung{
				{kind: Cgroup, programs: []string{"cgroup_egress"}},
			},
			needed: func(p *Probe, _ *kernelTypes) bool { return p.devices == nil },
		},
		{
			name: "packets that devices transmit (egress)",
			rungs: []rung{
				{kind: TCX, programs: []string{"device_frames", "device_packets"}},
				{kind: Clsact, programs: []string{"device_frames", "device_packets"}},
			},
			needed: func(p *Probe, _ *kernelTypes) bool { return p.devices != nil },
		},
	},
	slots:    int(objects.FlowSlotSLOTS),
	defaults: Config{Flows: 65536},
	table:    objects.FlowMapFlows,
	shares:   mapFlowShares,
	forget:   func(p *Probe, gone map[NetnsID]bool) error { return p.flows.forget(p.maps[objects.FlowMapFlows], gone) },
	full:     lackOfFlows,
}

// lackOfFlows is the limitation that State reports while connections find no room.
const lackOfFlows = "some connections of network namespaces that have more connections than their share of the table"

const mapFlowShares = objects.FlowMapFlowShares

func prepareFlow(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	spec.Maps[objects.FlowMapFlows].MaxEntries = uint32(p.config.Flows)
	if err := set(spec, objects.FlowVarWithPorts, p.config.Ports); err != nil {
		return err
	}
	if len(p.config.Devices) == 0 {
		return nil
	}
	d, err := newDevices(p.config.Devices, p.config.Netns)
	if err != nil {
		return err
	}
	if err := set(spec, objects.FlowVarDeviceNetns, uint32(d.inode)); err != nil {
		d.close()
		return err
	}
	p.devices = d
	return nil
}

// Counter slots of flow.
const (
	FlowBytes   = int(objects.FlowSlotBYTES)
	FlowPackets = int(objects.FlowSlotPACKETS)
	FlowsMade   = int(objects.FlowSlotMADE)   // entries created
	FlowsFailed = int(objects.FlowSlotFAILED) // packets whose connection found no room
)

// FlowKey identifies a connection. It is comparable and compact.
type FlowKey struct{ key objects.FlowFlowKey }

// NewFlowKey returns the key of a connection between two valid addresses.
func NewFlowKey(netns NetnsID, protocol uint8, source, destination netip.AddrPort) FlowKey {
	t := objects.SharedTuple{
		Saddr: source.Addr().As16(), Daddr: destination.Addr().As16(),
		Sport: source.Port(), Dport: destination.Port(),
		Protocol: protocol, Family: 6,
	}
	if source.Addr().Is4() {
		t.Family = 4
	}
	return FlowKey{objects.FlowFlowKey{Tuple: t, Netns: uint64(netns)}}
}

// Netns returns the network namespace of the socket. For flows counted at devices only
// the inode number is set.
func (k *FlowKey) Netns() NetnsID { return NetnsID(k.key.Netns) }

// Ends returns the protocol and the two ends, the sender's first.
func (k *FlowKey) Ends() (protocol uint8, source, destination netip.AddrPort) {
	t := (*objects.SharedTuple)(&k.key.Tuple)
	source, destination = ends(t)
	return t.Protocol, source, destination
}

// Compare orders keys by namespace, then arbitrarily.
func (k *FlowKey) Compare(o *FlowKey) int {
	if c := cmp.Compare(k.key.Netns, o.key.Netns); c != 0 {
		return c
	}
	return bytes.Compare(memoryOf(&k.key), memoryOf(&o.key))
}

// memoryOf returns the bytes of a key, which has no padding.
func memoryOf(k *objects.FlowFlowKey) []byte {
	return (*[unsafe.Sizeof(*k)]byte)(unsafe.Pointer(k))[:]
}

// FlowEntry is one entry of the map of connections: the traffic that this node's
// sockets, or its devices (see Config.Devices), sent on one connection since the
// entry was created. Without Config.Ports an entry covers all connections between
// two addresses, and ports are 0.
type FlowEntry struct {
	Key FlowKey
	// Bytes and Packets count IP packets as they leave the node: each segment of a
	// GSO packet counts, with its headers.
	Bytes, Packets uint64
	// Made distinguishes successive entries of the same connection.
	Made uint64
	// Idle is the number of complete sweeps in which the connection sent nothing.
	Idle uint32
}

// flowKey and flowValue are the map's key and value.
type (
	flowKey   = objects.FlowFlowKey
	flowValue = objects.FlowFlow
)

type flowReader struct {
	walker[flowKey, flowValue]
	drop   []flowKey
	sweeps uint32
}

// mostDropped is the maximum number of entries that one pass deletes.
const mostDropped = 8192

// EachFlow calls f for each entry, without a sweep. The map keeps the connections
// of each namespace up to its share. Traffic of connections that found no room or
// were evicted is the difference between the slots FlowBytes and FlowPackets of
// Counters, which never fall, and the sums over the entries.
func (p *Probe) EachFlow(f func(FlowEntry)) error {
	return p.eachFlow(func(m *ebpf.Map) error {
		return p.flows.each(m, 1, func(k *flowKey, v []flowValue) { f(p.flows.entry(k, &v[0])) })
	})
}

// SweepFlows calls f for each entry and deletes the entries for which f returns
// false, some thousands per call. Traffic of a deleted connection in the meantime
// creates a new entry or counts only in Counters. A sweep also updates how much of
// its share each namespace uses.
func (p *Probe) SweepFlows(f func(FlowEntry) (keep bool)) error {
	return p.eachFlow(func(m *ebpf.Map) error {
		p.flows.sweeps++
		if err := p.put(objects.FlowVarSweep, p.flows.sweeps); err != nil {
			return err
		}
		st, s := &p.rooms, p.rooms.shares[mapFlowShares]
		s.begin()
		err := p.flows.sweep(m, func(k *flowKey, v *flowValue) bool {
			if !f(p.flows.entry(k, v)) && len(p.flows.drop) < mostDropped {
				return false
			}
			s.count(st, NetnsID(k.Netns), v.Room)
			return true
		})
		if err != nil {
			return err
		}
		refused := s.refused
		st.crowded, err = s.end(st)
		st.full = s.refused > refused
		return errors.Join(err, p.readCounters(func(_ NetnsID, slot int, n uint64) {
			if slot == FlowsFailed {
				st.refused = n
			}
		}))
	})
}

func (r *flowReader) entry(k *flowKey, v *flowValue) FlowEntry {
	e := FlowEntry{Key: FlowKey{*k}, Bytes: v.Bytes, Packets: v.Packets, Made: v.MadeNs}
	if now := r.sweeps - 1; v.Seen < now {
		e.Idle = now - v.Seen
	}
	return e
}

func (p *Probe) eachFlow(f func(*ebpf.Map) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.maps[objects.FlowMapFlows]
	if p.closed || m == nil {
		return fmt.Errorf("read the flows of probe %s: it is closed, or has none", p.name)
	}
	if err := f(m); err != nil {
		return fmt.Errorf("read the flows of probe %s: %w", p.name, err)
	}
	return nil
}

// forget deletes the connections of the namespaces.
func (r *flowReader) forget(m *ebpf.Map, gone map[NetnsID]bool) error {
	for {
		err := r.sweep(m, func(k *flowKey, _ *flowValue) bool { return !gone[NetnsID(k.Netns)] || len(r.drop) == mostDropped })
		if err != nil || len(r.drop) < mostDropped {
			return err
		}
	}
}

// sweep walks the map, then deletes the entries that keep rejects.
func (r *flowReader) sweep(m *ebpf.Map, keep func(*flowKey, *flowValue) bool) error {
	r.drop = r.drop[:0]
	err := r.each(m, 1, func(k *flowKey, v []flowValue) {
		if !keep(k, &v[0]) {
			r.drop = append(r.drop, *k)
		}
	})
	return errors.Join(err, remove(m, r.drop))
}
