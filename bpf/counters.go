package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

type counterValue = atomic.Uint64

// MaxSlots is the most counters that a probe has for one namespace.
const MaxSlots = len(objects.SharedCounter{}.Slot)

// counterEntry is a namespace's counters, on one CPU. Its mark is the room that
// the entry takes; for namespace 0 what found none.
type counterEntry = objects.SharedCounter

// Slots of the counters, by probe. What is over 100 ms is in both.
const (
	// netiftxlatency
	QdiscSlow  = int(objects.NetiftxlatencySlotQDISC)  // over Config.Slow100 in the queueing discipline
	NetdevSlow = int(objects.NetiftxlatencySlotNETDEV) // over Config.Slow100 in the driver

	// kernellatency
	RxSlow    = int(objects.KernellatencySlotRX)
	RxSlow100 = int(objects.KernellatencySlotRX100)
	TxSlow    = int(objects.KernellatencySlotTX)
	TxSlow100 = int(objects.KernellatencySlotTX100)

	// socketlatency
	ReadSlow     = int(objects.SocketlatencySlotREAD)
	ReadSlow100  = int(objects.SocketlatencySlotREAD100)
	WriteSlow    = int(objects.SocketlatencySlotWRITE)
	WriteSlow100 = int(objects.SocketlatencySlotWRITE100)

	// net_softirq
	SchedSlow     = int(objects.NetSoftirqSlotSCHED)
	SchedSlow100  = int(objects.NetSoftirqSlotSCHED100)
	ExcuteSlow    = int(objects.NetSoftirqSlotEXCUTE)
	ExcuteSlow100 = int(objects.NetSoftirqSlotEXCUTE100)

	// virtcmdlatency
	CommandSlow    = int(objects.VirtcmdlatencySlotSLOW)
	CommandSlow100 = int(objects.VirtcmdlatencySlotSLOW100)

	// biolatency
	DiskSlow    = int(objects.BiolatencySlotSLOW)
	DiskSlow100 = int(objects.BiolatencySlotSLOW100)

	// tcpreset
	ResetNosock  = int(objects.TcpresetSlotNOSOCK)
	ResetActive  = int(objects.TcpresetSlotACTIVE)
	ResetProcess = int(objects.TcpresetSlotPROCESS)
	ResetReceive = int(objects.TcpresetSlotRECEIVE)

	// tcpretrans
	RetransSegments = int(objects.TcpretransSlotSEGMENTS) // segments of connections, as nstat counts them
	RetransSynAcks  = int(objects.TcpretransSlotSYNACKS)
	RetransCalls    = int(objects.TcpretransSlotCALLS) // times that the kernel sent one or several of them at once

	// flow
	FlowBytes   = int(objects.FlowSlotBYTES)
	FlowPackets = int(objects.FlowSlotPACKETS)
	FlowsMade   = int(objects.FlowSlotMADE)   // connections that got an entry
	FlowsFailed = int(objects.FlowSlotFAILED) // packets whose connection found no room for one

	// packetloss: one slot per class, see DropClass
)

// counterReader sums per-CPU values.
type counterReader struct {
	walker[uint32, counterEntry]
	single []counterEntry
}

// Counters calls f for each namespace that has counters and each slot in use,
// with the sum over the CPUs. Probes of the whole node answer for namespace 0,
// the others count under 0 what belongs to no known namespace.
func (p *Probe) Counters(f func(netns uint64, slot int, value uint64)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("read the counters of probe %s: it is closed", p.name)
	}
	var err error
	if p.maps["drops"] != nil {
		err = p.dropCounters(f)
	} else {
		err = p.readCounters(f)
	}
	if err != nil {
		return fmt.Errorf("read the counters of probe %s: %w", p.name, err)
	}
	return nil
}

// readCounters also counts the entries in use.
func (p *Probe) readCounters(f func(netns uint64, slot int, value uint64)) error {
	m, r := p.maps["counters"], &p.counter
	if m.Type() == ebpf.PerCPUArray {
		if err := m.Lookup(uint32(0), &r.single); err != nil {
			return err
		}
		for slot := range p.definition.slots {
			f(0, slot, sumSlot(r.single, slot))
		}
		return nil
	}

	st, s := &p.rooms, p.rooms.shares[mapCounterShares]
	s.begin()
	var refused uint64
	err := r.each(m, p.loader.cpus, func(key *uint32, values []counterEntry) {
		netns := *key
		var mark uint64
		for cpu := range values {
			mark += values[cpu].Mark
		}
		if netns == 0 {
			refused = mark
		} else {
			s.count(st, netns, uint32(mark))
		}
		for slot := range p.definition.slots {
			f(uint64(netns), slot, sumSlot(values, slot))
		}
	})
	if err != nil {
		return err
	}
	crowded, err := s.end(st)
	if st.calm++; refused > st.refused {
		st.full, st.calm = true, 0
	} else if !crowded || st.calm >= calmAfter {
		st.full = false
	}
	st.refused, st.crowded = refused, crowded || refused > st.refused
	return err
}

func sumSlot(values []counterEntry, slot int) (sum uint64) {
	for cpu := range values {
		sum += values[cpu].Slot[slot]
	}
	return sum
}

// seedCounters makes the entry that takes what finds no room, and says how the
// tables are shared.
func (p *Probe) seedCounters() error {
	p.rooms.shares = map[string]*shares{}
	if m := p.maps["counters"]; m != nil && m.Type() == ebpf.PerCPUHash {
		if err := m.Put(uint32(0), make([]counterEntry, p.loader.cpus)); err != nil {
			return fmt.Errorf("make the first counter: %w", err)
		}
		p.rooms.shares[mapCounterShares] = newShares(p.maps[mapCounterShares], p.loader.options.Namespaces)
		p.rooms.shares[mapCounterShares].rooms = true
	}
	if m := p.maps[mapDropShares]; m != nil {
		p.rooms.shares[mapDropShares] = newShares(m, int(p.maps["drops"].MaxEntries()))
	}
	if m := p.maps[mapFlowShares]; m != nil {
		p.rooms.shares[mapFlowShares] = newShares(m, int(p.maps["flows"].MaxEntries()))
	}
	for _, s := range p.rooms.shares {
		if err := s.seedRooms(); err != nil {
			return err
		}
	}
	return nil
}

// recount counts the entries in use again.
func (p *Probe) recount() error {
	var errs []error
	if m := p.maps["counters"]; m != nil && m.Type() == ebpf.PerCPUHash {
		errs = append(errs, p.readCounters(func(uint64, int, uint64) {}))
	}
	if p.maps["drops"] != nil {
		errs = append(errs, p.eachDrop(func(dropKey, uint64) {}))
	}
	return errors.Join(errs...)
}

// Forget deletes the counters of network namespaces that are gone.
func (p *Probe) Forget(netns ...uint64) error {
	gone := make(map[uint32]bool, len(netns))
	for _, n := range netns {
		if n != 0 && n <= 1<<32-1 {
			gone[uint32(n)] = true
		}
	}
	if len(gone) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	var err error
	if m := p.maps["counters"]; m != nil && m.Type() == ebpf.PerCPUHash {
		for n := range gone {
			if e := m.Delete(n); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	if p.maps["drops"] != nil {
		err = errors.Join(err, p.forgetDrops(gone))
	}
	if m := p.maps["flows"]; m != nil {
		err = errors.Join(err, p.flows.forget(m, gone))
	}
	// What they had is free again at once.
	err = errors.Join(err, p.recount())
	if err != nil {
		return fmt.Errorf("probe %s: forget the namespaces %d: %w", p.name, netns, err)
	}
	return nil
}

// DropClass is the part of the kernel in which a packet was lost.
type DropClass int

// The classes of drops, which are the slots of packetloss's counters. Each
// drop has exactly one, so that their sum is the total at any time.
const (
	DropAbnormal  = DropClass(objects.PacketlossSlotABNORMAL)   // any other function
	DropTCPHandle = DropClass(objects.PacketlossSlotTCP_HANDLE) // tcp_v4_do_rcv, tcp_v6_do_rcv
	DropTCPRcv    = DropClass(objects.PacketlossSlotTCP_RCV)    // tcp_v4_rcv, tcp_v6_rcv
	DropTCPStatM  = DropClass(objects.PacketlossSlotTCP_STATM)  // tcp_rcv_state_process
	DropNetfilter = DropClass(objects.PacketlossSlotNETFILTER)  // reason NETFILTER_DROP, or in the rule engines
	dropClasses   = DropClass(objects.PacketlossSlotSLOTS)
)

// dropFunctions says which class a function belongs to. Drops of the rule
// engines are there for kernels that give no reasons.
var dropFunctions = map[string]DropClass{
	"tcp_v4_do_rcv":         DropTCPHandle,
	"tcp_v6_do_rcv":         DropTCPHandle,
	"tcp_v4_rcv":            DropTCPRcv,
	"tcp_v6_rcv":            DropTCPRcv,
	"tcp_rcv_state_process": DropTCPStatM,
	"nf_hook_slow":          DropNetfilter,
	"nft_do_chain":          DropNetfilter,
	"ipt_do_table":          DropNetfilter,
	"ip6t_do_table":         DropNetfilter,
}

// Drop is one counter of packetloss.
type Drop struct {
	Netns    uint64
	Reason   uint32
	Location uint64
	Class    DropClass
	Count    uint64
}

// dropKey is the key of the table of drops. It has traits where the packet is
// left to judge here.
type dropKey = objects.PacketlossDropKey

type dropReader struct {
	walker[dropKey, uint64]
	generation int                  // of the symbols that the classes are by
	classes    map[uint64]DropClass // of the locations seen, by address
	verdicts   map[dropKey]Why      // of what was left to judge here
	ignored    [whys]uint64         // of that
	forgotten  [whys]uint64         // of that, in namespaces that are gone
	sums       []dropSum
}

type dropSum struct {
	netns uint32
	count [dropClasses]uint64
}

// Drops calls f for each reason and place in which a namespace lost packets.
// Those that found no room in the table have ReasonOverflow and no place: their
// class is known.
func (p *Probe) Drops(f func(Drop)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.maps["drops"] == nil {
		return fmt.Errorf("read the drops of probe %s: it is closed, or has none", p.name)
	}
	err := p.eachLoss(func(k dropKey, class DropClass, n uint64) {
		if n > 0 {
			f(Drop{Netns: uint64(k.Netns), Reason: k.Reason, Location: k.Location, Class: class, Count: n})
		}
	})
	if err != nil {
		return fmt.Errorf("read the drops of probe %s: %w", p.name, err)
	}
	return nil
}

func (p *Probe) classOf(k dropKey) DropClass {
	if p.loader.reasons.drop[k.Reason] == "NETFILTER_DROP" {
		return DropNetfilter
	}
	r := &p.drops
	if g := p.loader.symbols.Generation(); g != r.generation {
		// Another module may be where one was.
		r.generation = g
		clear(r.classes)
	}
	if class, ok := r.classes[k.Location]; ok {
		return class
	}
	class := DropAbnormal
	name := p.loader.symbols.Function(k.Location)
	if c, ok := dropFunctions[name]; ok {
		class = c
	}
	// Without a name the class may come to be known with the next reading.
	// Modules come and go, so the memory of places is bounded.
	if name != "" {
		if r.classes == nil || len(r.classes) > 4096 {
			r.classes = map[uint64]DropClass{}
		}
		r.classes[k.Location] = class
	}
	return class
}

func (p *Probe) dropCounters(f func(netns uint64, slot int, value uint64)) error {
	r := &p.drops
	r.sums = r.sums[:0]
	err := p.eachLoss(func(k dropKey, class DropClass, n uint64) {
		i, found := slices.BinarySearchFunc(r.sums, k.Netns, func(s dropSum, netns uint32) int { return cmp.Compare(s.netns, netns) })
		if !found {
			r.sums = slices.Insert(r.sums, i, dropSum{netns: k.Netns})
		}
		r.sums[i].count[class] += n
	})
	if err != nil {
		return err
	}
	for _, s := range r.sums {
		for class, n := range s.count {
			f(uint64(s.netns), class, n)
		}
	}
	return nil
}

// Ignored tells how many packets the kernel freed as dropped that were no
// losses, by why. With what Drops tells, they are all that it freed so.
func (p *Probe) Ignored() (map[Why]uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.maps["ignored"]
	if p.closed || m == nil {
		return nil, fmt.Errorf("read the ignored packets of probe %s: it is closed, or has none", p.name)
	}
	// What was left to judge is in the other table.
	if err := p.eachLoss(func(dropKey, DropClass, uint64) {}); err != nil {
		return nil, fmt.Errorf("read the ignored packets of probe %s: %w", p.name, err)
	}
	sums := map[Why]uint64{}
	for _, why := range WhyIgnored() {
		var values []uint64
		if err := m.Lookup(uint32(why), &values); err != nil {
			return nil, fmt.Errorf("read the ignored packets of probe %s: %w", p.name, err)
		}
		for _, n := range values {
			sums[why] += n
		}
		sums[why] += p.drops.ignored[why]
	}
	return sums, nil
}

// why judges a lost packet that the kernel left to judge here: one that was
// freed by a module whose functions were not known yet.
func (p *Probe) why(k dropKey) Why {
	r := &p.drops
	k.Netns = 0
	if why, ok := r.verdicts[k]; ok {
		return why
	}
	function := p.loader.symbols.Function(k.Location)
	why := lossTable.judge(function, p.loader.reasons, k.Reason, traits(k.Traits)&^traitUndecided)
	if r.verdicts == nil || len(r.verdicts) > 4096 {
		r.verdicts = map[dropKey]Why{}
	}
	r.verdicts[k] = why
	return why
}

// eachLoss calls emit for the counters of lost packets, and sums those of
// others.
func (p *Probe) eachLoss(emit func(dropKey, DropClass, uint64)) error {
	if err := p.mapCode(false); err != nil {
		return err
	}
	p.drops.ignored = p.drops.forgotten
	err := p.eachDrop(func(k dropKey, n uint64) {
		if k.Traits != 0 {
			if why := p.why(k); why != Lost {
				p.drops.ignored[why] += n
				return
			}
		}
		emit(k, p.classOf(k), n)
	})
	if err != nil {
		return err
	}
	return p.readCounters(func(netns uint64, slot int, n uint64) {
		emit(dropKey{Netns: uint32(netns), Reason: ReasonOverflow}, DropClass(slot), n)
	})
}

// eachDrop also counts the entries in use.
func (p *Probe) eachDrop(emit func(dropKey, uint64)) error {
	st, s := &p.rooms, p.rooms.shares[mapDropShares]
	s.begin()
	err := p.drops.each(p.maps["drops"], p.loader.cpus, func(k *dropKey, values []uint64) {
		var n uint64
		var room uint32
		for _, v := range values {
			n += v & (1<<objects.PacketlossDropDROP_ROOM_SHIFT - 1)
			room |= uint32(v >> objects.PacketlossDropDROP_ROOM_SHIFT)
		}
		s.count(st, k.Netns, room)
		emit(*k, n)
	})
	if err != nil {
		return err
	}
	// Strangers without room lose nothing: their classes are counted.
	st.dropsCrowded, err = s.end(st)
	return err
}

// forgetDrops deletes the entries of namespaces. They are few, so a second
// pass over the keys costs less than an index kept all the time.
func (p *Probe) forgetDrops(gone map[uint32]bool) error {
	var keys []dropKey
	err := p.eachDrop(func(k dropKey, n uint64) {
		if !gone[k.Netns] {
			return
		}
		keys = append(keys, k)
		if k.Traits != 0 {
			if why := p.why(k); why != Lost {
				p.drops.forgotten[why] += n
			}
		}
	})
	return errors.Join(err, remove(p.maps["drops"], keys))
}
