package bpf

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type chain_place Chain chain.bpf.c

// chainPlaces are the places of probes in chains (headers/chain.h).
var chainPlaces = map[string]objects.ChainChainPlace{
	"socketlatency":  objects.ChainChainPlaceCHAIN_SOCKETLATENCY,
	"kernellatency":  objects.ChainChainPlaceCHAIN_KERNELLATENCY,
	"netiftxlatency": objects.ChainChainPlaceCHAIN_NETIFTXLATENCY,
}

// varChained is the variable of a probe's object that says whether its programs belong to
// chains.
const varChained = objects.NetiftxlatencyVarChained

// ChainsProbe stands for a probe in ProgramStats of a chain: the kernel counts the runs of
// all its programs as those of the attached one.
const ChainsProbe = "chains"

// chains are the chains of a Loader.
type chains struct {
	mu    sync.Mutex
	spec  *ebpf.CollectionSpec
	by    map[string]*chain // by tracepoint
	taken map[string]*Probe // the probe that has a place, by name
}

// chain is the programs of several probes at one tracepoint, of which a program that calls
// them is attached.
type chain struct {
	programs *ebpf.Map // by place
	caller   *ebpf.Program
	refused  error     // why the chain cannot be used
	link     link.Link // nil while the chain is empty
	// members has the probes in the chain, with the number of runs of the caller that the
	// kernel had skipped when they joined.
	members map[*Probe]uint64
}

// createChains creates the maps of all chains.
func (l *Loader) createChains() error {
	spec, err := objects.LoadChain()
	if err != nil {
		return err
	}
	l.chains = &chains{spec: spec, by: map[string]*chain{}, taken: map[string]*Probe{}}
	for _, program := range spec.Programs {
		name := "chain_" + program.AttachTo
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return fmt.Errorf("create the BPF map %s: %w", name, explain(err))
		}
		l.shared[name] = m
		l.chains.by[program.AttachTo] = &chain{programs: m, members: map[*Probe]uint64{}}
	}
	return nil
}

// close detaches the chains. Their maps are the Loader's.
func (c *chains) close() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, one := range c.by {
		if one.link != nil {
			errs = append(errs, one.link.Close())
		}
		if one.caller != nil {
			errs = append(errs, one.caller.Close())
		}
	}
	return errors.Join(errs...)
}

// take reserves a probe's place, and tells its programs whether it has got one. Call it
// before its maps are created.
func (c *chains) take(p *Probe, spec *ebpf.CollectionSpec) error {
	if _, has := chainPlaces[p.name]; !has {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.taken[p.name] == nil && !p.loader.options.NoChains
	if free {
		c.taken[p.name] = p
	}
	return set(spec, varChained, free)
}

// release frees a probe's place. Call it after its programs have left the chains.
func (c *chains) release(p *Probe) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken[p.name] == p {
		delete(c.taken, p.name)
	}
}

// attachProgram attaches a program, to its chain if it has one.
func (p *Probe) attachProgram(spec *ebpf.ProgramSpec, program *ebpf.Program) (io.Closer, error) {
	c := p.loader.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.of(p, spec)
	if one == nil {
		return attachAlone(spec, program)
	}
	if one.caller == nil && one.refused == nil {
		one.refuse(p, spec.AttachTo, c.load(p, spec.AttachTo))
	}
	if one.refused != nil {
		p.apart = one.refused
		return attachAlone(spec, program)
	}
	place := uint32(chainPlaces[p.name])
	if err := one.programs.Put(place, program); err != nil {
		if len(one.members) > 0 {
			return nil, err // attached alone, it would call the others once more
		}
		one.refuse(p, spec.AttachTo, err)
		p.apart = one.refused
		return attachAlone(spec, program)
	}
	if one.link == nil {
		l, err := link.AttachTracing(link.TracingOptions{Program: one.caller})
		if err != nil {
			return nil, errors.Join(err, one.programs.Delete(place))
		}
		one.link = l
	}
	one.members[p] = 0
	if stats, err := one.caller.Stats(); err == nil {
		one.members[p] = stats.RecursionMisses
	}
	return closer(func() error { return c.leave(one, p, place) }), nil
}

// of returns the chain to which a program belongs, nil if it belongs to none.
func (c *chains) of(p *Probe, spec *ebpf.ProgramSpec) *chain {
	if c.taken[p.name] != p || !strings.HasPrefix(spec.SectionName, "tp_btf/") {
		return nil
	}
	return c.by[spec.AttachTo]
}

// load loads the program that calls a chain's.
func (c *chains) load(p *Probe, tracepoint string) error {
	only := c.spec.Copy()
	maps.DeleteFunc(only.Programs, func(_ string, s *ebpf.ProgramSpec) bool { return s.AttachTo != tracepoint })
	coll, err := ebpf.NewCollectionWithOptions(only, ebpf.CollectionOptions{MapReplacements: p.loader.sharedOf(only), Cache: p.types.cache})
	if err != nil {
		return err
	}
	defer coll.Close()
	for name := range only.Programs {
		c.by[tracepoint].caller = coll.DetachProgram(name)
	}
	return nil
}

// refuse notes that a chain cannot be used. It then stays empty, so that programs which
// belong to it can be attached alone.
func (one *chain) refuse(p *Probe, tracepoint string, err error) {
	if err == nil {
		return
	}
	one.refused = explain(err)
	p.loader.options.Warn("attaching one program for several probes to "+tracepoint+" failed, each is attached alone", p.name, one.refused)
}

// leave takes a program out of a chain, and detaches the chain if that was the last.
func (c *chains) leave(one *chain, p *Probe, place uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(one.members, p)
	err := one.programs.Delete(place)
	if len(one.members) == 0 && one.link != nil {
		err = errors.Join(err, one.link.Close())
		one.link = nil
	}
	return err
}

// closer is a function as an io.Closer.
type closer func() error

func (f closer) Close() error { return f() }

// stats returns the cost of the chains. Runs that the kernel skipped are those of each
// probe in the chain.
func (c *chains) stats() (list []ProgramStats, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, tracepoint := range slices.Sorted(maps.Keys(c.by)) {
		one := c.by[tracepoint]
		if one.caller == nil {
			continue
		}
		stats, err := one.caller.Stats()
		if err != nil {
			return nil, fmt.Errorf("statistics of the programs at %s: %w", tracepoint, err)
		}
		list = append(list, ProgramStats{Probe: ChainsProbe, Program: tracepoint, RunTime: stats.Runtime, Runs: stats.RunCount})
		for p, before := range one.members {
			list = append(list, ProgramStats{Probe: p.name, Program: tracepoint, Missed: stats.RecursionMisses - before})
		}
	}
	return list, nil
}
