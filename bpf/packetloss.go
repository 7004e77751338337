package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type code_bit -type drop -type drop_key -type rule -type size -type slot -type step -type steps -type trait -type why Packetloss packetloss.bpf.c

// Names of hooks whose state the programs or the symbol table need to know.
const (
	lossModules = "modules that are loaded (module_load)"
	lossSockets = "TCP's sockets of freed packets (tcp_check_req, tcp_timewait_state_process, tcp_oow_rate_limited)"
)

var packetloss = definition{
	spec:    objects.LoadPacketloss,
	prepare: preparePacketloss,
	begin:   beginLosses,
	started: startedLosses,
	hooks: []hook{
		{
			name:     lossModules,
			rungs:    []rung{{kind: RawTracepoint, programs: []string{"raw_module_load"}}},
			optional: true,
			without:  "which function of a module loaded later freed a packet, for up to an interval",
			needed: func(_ *Probe, types *kernelTypes) bool {
				_, ok := types.tracepoint("module_load") // a kernel without modules has no such tracepoint
				return ok
			},
		},
		{
			name:     "fragments that waited for too long (timer_expire_entry)",
			rungs:    []rung{{kind: RawTracepoint, programs: []string{"raw_timer_end", "raw_timer"}}},
			optional: true,
			without:  "the owners of fragments whose datagram never becomes complete: they are unattributed",
		},
		{
			name: lossSockets,
			rungs: []rung{
				{kind: Fentry, programs: []string{"fen_check_req", "fen_timewait", "fen_out_of_window"}},
				{kind: Kprobe, programs: []string{"kp_check_req", "kp_timewait", "kp_out_of_window"}},
			},
			optional: true,
			without:  "which acknowledgements of handshakes and which segments out of order were no loss: all count as lost; the kernel distinguishes them from 6.11 on",
			needed:   func(_ *Probe, types *kernelTypes) bool { return !hasReceiver(types) },
		},
		{
			name: "dropped packets (kfree_skb)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_kfree_skb"}},
				{kind: BTFTracepoint, programs: []string{"btf_kfree_skb"}},
			},
		},
	},
	events:   []EventType{PacketLoss},
	slots:    int(dropClasses),
	table:    objects.PacketlossMapDrops,
	shares:   mapDropShares,
	counters: (*Probe).dropCounters,
	recount:  func(p *Probe) error { return p.eachDrop(func(dropKey, uint64) {}) },
	forget:   (*Probe).forgetDrops,
	limitations: func(p *Probe) []string {
		if err := p.loader.symbols.Err(); err != nil {
			return []string{"in which function a packet was dropped, so that the classes tcphandle, tcprcv and tcpstatm stay 0, and locations and stacks are addresses: " + err.Error()}
		}
		return nil
	},
}

// PacketLoss is the event type of packetloss.
const PacketLoss = EventType(objects.SharedEventTypeEVENT_PACKETLOSS)

const mapDropShares = objects.PacketlossMapDropShares

func preparePacketloss(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	spec.Maps[objects.PacketlossMapDrops].MaxEntries = uint32(p.loader.options.Drops)
	return errors.Join(
		prepareLosses(spec),
		set(spec, objects.PacketlossVarWithStack, !p.config.NoStack),
		set(spec, objects.PacketlossVarHasRxSk, hasReceiver(types)),
	)
}

// hasReceiver reports whether the tracepoint kfree_skb passes the receiving socket
// (since 6.11).
func hasReceiver(types *kernelTypes) bool {
	params, _ := types.tracepoint("kfree_skb")
	return len(params) >= 4
}

// beginLosses fills the tables of reasons and of code addresses before the programs
// that read them are attached.
func beginLosses(p *Probe) error {
	m, reasons := lossTable, p.loader.reasons
	for n := range lossReasons {
		if err := p.maps[objects.PacketlossMapRulesByReason].Put(n, m.because(reasons, n)); err != nil {
			return fmt.Errorf("write the rules of drop reason %d: %w", n, err)
		}
	}
	return p.mapCode(true)
}

// mapCode writes the table of rules by code address, if modules were loaded
// since the last call or if must is set.
func (p *Probe) mapCode(must bool) error {
	var loaded, known uint64
	var table uint32
	if err := errors.Join(p.get(objects.PacketlossVarModulesLoaded, &loaded), p.get(objects.PacketlossVarModulesKnown, &known), p.get(objects.PacketlossVarTableInUse, &table)); err != nil {
		return fmt.Errorf("read the state of the code table: %w", err)
	}
	if loaded == known && !must {
		return nil
	}
	// Without symbols, rules that name functions do not match; State reports this.
	if p.loader.symbols.Refresh() == nil {
		steps, err := p.loader.symbols.steps(lossTable)
		if err != nil {
			return err
		}
		table ^= 1
		if err := p.maps[objects.PacketlossMapCode].Put(table, steps); err != nil {
			return fmt.Errorf("write the code table: %w", err)
		}
		if err := p.put(objects.PacketlossVarTableInUse, table); err != nil {
			return fmt.Errorf("switch the code table: %w", err)
		}
		var starts [objects.PacketlossSizeEXPIRIES]uint64
		copy(starts[:], p.loader.symbols.starts(lossExpiries))
		if err := p.put(objects.PacketlossVarExpiries, starts); err != nil {
			return fmt.Errorf("write the timer functions of fragment queues: %w", err)
		}
	}
	if err := p.put(objects.PacketlossVarModulesKnown, loaded); err != nil {
		return fmt.Errorf("write which modules the code table covers: %w", err)
	}
	return nil
}

// startedLosses tells the programs which hooks could be attached.
func startedLosses(p *Probe) error {
	for _, h := range p.hooks {
		switch {
		case h.Kind == "":
		case h.Name == lossSockets:
			if err := p.put(objects.PacketlossVarSocketsNoted, uint32(1)); err != nil {
				return fmt.Errorf("write that the hooks for sockets are attached: %w", err)
			}
		case h.Name == lossModules:
			p.loader.symbols.follow(func() (n uint64, ok bool) {
				return n, p.get(objects.PacketlossVarModulesLoaded, &n) == nil
			})
		}
	}
	// A module may have been loaded before the program that detects it was
	// attached.
	return p.mapCode(p.loader.symbols.Stale())
}

// DropClass is the part of the kernel that lost a packet.
type DropClass int

// The drop classes are the slots of packetloss's counters. Each drop has exactly
// one class, so their sum is the total.
const (
	DropAbnormal  = DropClass(objects.PacketlossSlotABNORMAL)   // any other function
	DropTCPHandle = DropClass(objects.PacketlossSlotTCP_HANDLE) // tcp_v4_do_rcv, tcp_v6_do_rcv
	DropTCPRcv    = DropClass(objects.PacketlossSlotTCP_RCV)    // tcp_v4_rcv, tcp_v6_rcv
	DropTCPStatM  = DropClass(objects.PacketlossSlotTCP_STATM)  // tcp_rcv_state_process
	DropNetfilter = DropClass(objects.PacketlossSlotNETFILTER)  // reason NETFILTER_DROP, or in the rule engines
	dropClasses   = DropClass(objects.PacketlossSlotSLOTS)
)

// dropFunctions maps functions to their class. Functions of the rule engines serve
// kernels that give no reasons.
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

// Drop is one counter of packetloss: a namespace, reason and location.
type Drop struct {
	Netns    NetnsID
	Reason   uint32
	Location uint64
	Class    DropClass
	Count    uint64
}

// dropKey is the key of the table of drops. Its traits are set if user space has to
// judge the packet.
type dropKey = objects.PacketlossDropKey

type dropReader struct {
	walker[dropKey, uint64]
	generation int                  // generation of the symbols behind classes
	classes    map[uint64]DropClass // classes of known locations, by address
	verdicts   map[dropKey]Why      // verdicts on packets judged in user space
	ignored    [whys]uint64         // packets ignored by these verdicts
	forgotten  [whys]uint64         // packets of namespaces that are gone, ignored in the same way
	sums       []dropSum
}

type dropSum struct {
	netns NetnsID
	count [dropClasses]uint64
}

// Losses calls f for each reason and location at which a namespace lost packets,
// and returns the number of ignored packets by Why. Lost and ignored packets
// together are all packets that the kernel freed as dropped. Losses that found no
// room in the table have ReasonOverflow and no location; their class is known.
func (p *Probe) Losses(f func(Drop)) (ignored map[Why]uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.maps[objects.PacketlossMapIgnored]
	if p.closed || m == nil || p.maps[objects.PacketlossMapDrops] == nil {
		return nil, fmt.Errorf("read the losses of probe %s: it is closed, or has none", p.name)
	}
	err = p.eachLoss(func(k dropKey, class DropClass, n uint64) {
		if n > 0 {
			f(Drop{Netns: NetnsID(k.Netns), Reason: k.Reason, Location: k.Location, Class: class, Count: n})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the losses of probe %s: %w", p.name, err)
	}
	ignored = map[Why]uint64{}
	for _, why := range WhyIgnored() {
		var values []uint64
		if err := m.Lookup(uint32(why), &values); err != nil {
			return nil, fmt.Errorf("read the ignored packets of probe %s: %w", p.name, err)
		}
		for _, n := range values {
			ignored[why] += n
		}
		ignored[why] += p.drops.ignored[why] // packets left for user space to judge are in the other table
	}
	return ignored, nil
}

func (p *Probe) classOf(k dropKey) DropClass {
	if p.loader.reasons.drop[k.Reason] == "NETFILTER_DROP" {
		return DropNetfilter
	}
	r := &p.drops
	if g := p.loader.symbols.Generation(); g != r.generation {
		// A different module may now be at the same address.
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
	// Do not remember nameless addresses, because the next reading of the symbols
	// may name them. Modules come and go, so the memory of locations is bounded.
	if name != "" {
		if r.classes == nil || len(r.classes) > 4096 {
			r.classes = map[uint64]DropClass{}
		}
		r.classes[k.Location] = class
	}
	return class
}

func (p *Probe) dropCounters(f func(netns NetnsID, slot int, value uint64)) error {
	r := &p.drops
	r.sums = r.sums[:0]
	err := p.eachLoss(func(k dropKey, class DropClass, n uint64) {
		i, found := slices.BinarySearchFunc(r.sums, NetnsID(k.Netns), func(s dropSum, netns NetnsID) int { return cmp.Compare(s.netns, netns) })
		if !found {
			r.sums = slices.Insert(r.sums, i, dropSum{netns: NetnsID(k.Netns)})
		}
		r.sums[i].count[class] += n
	})
	if err != nil {
		return err
	}
	for _, s := range r.sums {
		for class, n := range s.count {
			f(s.netns, class, n)
		}
	}
	return nil
}

// why judges a packet that the programs left undecided: a module freed it whose
// functions were not known yet.
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

// eachLoss calls emit for the counters of lost packets, and sums those of ignored
// ones.
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
	return p.readCounters(func(netns NetnsID, slot int, n uint64) {
		emit(dropKey{Netns: uint64(netns), Reason: ReasonOverflow}, DropClass(slot), n)
	})
}

// eachDrop calls emit for every entry and counts the entries in use.
func (p *Probe) eachDrop(emit func(dropKey, uint64)) error {
	st, s := &p.rooms, p.rooms.shares[mapDropShares]
	s.begin()
	err := p.drops.each(p.maps[objects.PacketlossMapDrops], p.loader.cpus, func(k *dropKey, values []uint64) {
		var n uint64
		var room uint32
		for _, v := range values {
			n += v & (1<<objects.PacketlossDropDROP_ROOM_SHIFT - 1)
			room |= uint32(v >> objects.PacketlossDropDROP_ROOM_SHIFT)
		}
		s.count(st, NetnsID(k.Netns), room)
		emit(*k, n)
	})
	if err != nil {
		return err
	}
	// Unowned namespaces without room lose no counts: their drops count by class.
	st.dropsCrowded, err = s.end(st)
	return err
}

// forgetDrops deletes the entries of namespaces. They are few, so a second pass
// over the keys costs less than a permanent index.
func (p *Probe) forgetDrops(gone map[NetnsID]bool) error {
	var keys []dropKey
	err := p.eachDrop(func(k dropKey, n uint64) {
		if !gone[NetnsID(k.Netns)] {
			return
		}
		keys = append(keys, k)
		if k.Traits != 0 {
			if why := p.why(k); why != Lost {
				p.drops.forgotten[why] += n
			}
		}
	})
	return errors.Join(err, remove(p.maps[objects.PacketlossMapDrops], keys))
}

// Ignores reports whether an event concerns a packet that is not lost: a module
// freed it whose functions were not yet in the programs' tables.
func (l *Loader) Ignores(e *Event) bool {
	t := traits(e.Detail)
	if e.Type != PacketLoss || t&traitUndecided == 0 {
		return false
	}
	reasons, err := l.Reasons()
	if err != nil {
		return false
	}
	return lossTable.judge(l.symbols.Function(e.Location), reasons, e.Reason, t&^traitUndecided) != Lost
}
