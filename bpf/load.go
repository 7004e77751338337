package bpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// HooksVariable names the environment variable that restricts hooks to one kind of rung:
// "raw_tp", "tp_btf", "fentry" or "kprobe", or for devices "tcx" or "clsact". Each hook
// that has a rung of this kind uses only that rung. With it, tests can run each kind on one
// kernel.
const HooksVariable = "NODESKOOP_HOOKS"

// Options of a Loader. The zero value suits a node.
type Options struct {
	// RingSize is the size in bytes of the ring that all events share. It is
	// rounded up to a power of two of pages; default 1 MiB.
	RingSize int
	// Namespaces is the number of network namespaces for which a probe keeps
	// separate counters, default 1024. Three in eight are for namespaces not named
	// to Own. Occurrences without room count for namespace 0.
	Namespaces int
	// Drops is the number of combinations of namespace, reason and location for
	// which packetloss keeps counters, default 8192, shared like Namespaces. Drops
	// without room count by class only.
	Drops int
	// EventRate is how many events per second of one type and namespace the kernel
	// lets through on average, default 20; EventBurst is the largest burst, default
	// 100.
	EventRate  float64
	EventBurst int
	// NoEvents disables all event types, for callers that only count.
	NoEvents bool
	// Warn, if set, receives errors that do not make a call fail.
	Warn func(what, probe string, err error)
	// NoChains attaches each program by itself, so that the kernel's statistics show what
	// it costs (headers/chain.h).
	NoChains bool
	// Hooks restricts the rungs; the default is HooksVariable.
	Hooks Kind
}

// Loader loads probes and owns their shared state: the event ring, its limits and
// its accounts. It is safe for concurrent use.
type Loader struct {
	options Options
	cpus    int
	shared  map[string]*ebpf.Map
	symbols *Symbols
	chains  *chains

	mu      sync.Mutex
	types   *kernelTypes // nil until needed and after ReleaseBTF
	reasons *Reasons
	probes  map[*Probe]struct{}
	closed  bool
	node    NetnsID               // see Own
	owned   []NetnsID             // sorted
	former  map[NetnsID]time.Time // unfollowed namespaces that are not yet forgotten, and since when
	lacking bool                  // some of owned found no room

	identities *identities // nil until needed
	refused    struct {    // the last attempt to load them, if it failed
		at  time.Time
		err error
	}
	identified map[Netns]identity // the namespaces named to Own, with the answers

	account accountReader
}

// New creates the event ring. It fails with the reason if the kernel or the
// process's privileges allow no eBPF at all. Each probe is then loaded separately,
// and its failure does not affect others.
func New(options Options) (*Loader, error) {
	if options.RingSize <= 0 {
		options.RingSize = 1 << 20
	}
	if options.Namespaces <= 0 {
		options.Namespaces = 1024
	}
	if options.Drops <= 0 {
		options.Drops = 8192
	}
	if options.EventRate <= 0 {
		options.EventRate = 20
	}
	if options.EventBurst <= 0 {
		options.EventBurst = 100
	}
	if options.Warn == nil {
		options.Warn = func(string, string, error) {}
	}
	if options.Hooks == "" {
		options.Hooks = Kind(os.Getenv(HooksVariable))
	}
	switch options.Hooks {
	case "", RawTracepoint, BTFTracepoint, Fentry, Kprobe, TCX, Clsact:
	default:
		return nil, fmt.Errorf("%s=%s: no such kind of hook; it is one of %s, %s, %s, %s, %s, %s",
			HooksVariable, options.Hooks, RawTracepoint, BTFTracepoint, Fentry, Kprobe, TCX, Clsact)
	}

	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("number of possible CPUs: %w", err)
	}
	// Only kernels before 5.11 charge maps to this limit. If raising it fails,
	// creating the first map reports the error.
	_ = rlimit.RemoveMemlock()

	l := &Loader{
		options: options,
		cpus:    cpus,
		shared:  map[string]*ebpf.Map{},
		symbols: NewSymbols(),
		probes:  map[*Probe]struct{}{},
		former:  map[NetnsID]time.Time{},
	}
	if err := l.createShared(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close detaches every probe and frees the shared state.
func (l *Loader) Close() error {
	l.mu.Lock()
	l.closed = true
	probes := make([]*Probe, 0, len(l.probes))
	for p := range l.probes {
		probes = append(probes, p)
	}
	l.types = nil
	l.mu.Unlock()

	var errs []error
	// Detaching a function hook waits for RCU grace periods, so detach all probes
	// concurrently.
	var wg sync.WaitGroup
	results := make([]error, len(probes))
	for i, p := range probes {
		wg.Go(func() { results[i] = p.Close() })
	}
	wg.Wait()
	errs = append(errs, results...)
	errs = append(errs, l.identities.close(), l.chains.close())
	for _, m := range l.shared {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Symbols returns the table of kernel functions, which is read on first use.
func (l *Loader) Symbols() *Symbols { return l.symbols }

// Reasons returns the names of the reason numbers in events and drop counters. The
// table is complete after the first probe was loaded.
func (l *Loader) Reasons() (*Reasons, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reasons == nil {
		types, err := l.kernelTypes()
		if err != nil {
			return nil, err
		}
		l.reasons = readReasons(types)
	}
	return l.reasons, nil
}

// kernelTypes returns the kernel's type information, parsed once for all loads. The
// caller holds the lock.
func (l *Loader) kernelTypes() (*kernelTypes, error) {
	if l.types == nil {
		types, err := newKernelTypes()
		if err != nil {
			return nil, err
		}
		l.types = types
	}
	return l.types, nil
}

// ReleaseBTF frees the kernel's type information, some 30 MB. Call it after loading
// the probes; a later Load reads it again.
func (l *Loader) ReleaseBTF() {
	l.mu.Lock()
	l.types = nil
	l.mu.Unlock()
	debug.FreeOSMemory()
}

// Load loads and attaches one probe. For each of its hooks it tries the rungs from
// best to worst until one is loaded and attached. It never decides by kernel
// version: fentry on arm64 before 6.4 loads and then refuses to attach, and
// distributions backport features.
//
// If a required hook has no rung that this kernel supports, the error is an
// *UnsupportedError. See Unsupported.
func (l *Loader) Load(name string, config Config) (*Probe, error) {
	d, ok := definitions[name]
	if !ok {
		return nil, fmt.Errorf("no probe is called %q", name)
	}
	types, err := l.begin()
	if err != nil {
		return nil, fmt.Errorf("load probe %s: %w", name, err)
	}
	spec, err := d.spec()
	if err != nil {
		return nil, fmt.Errorf("load probe %s: %w", name, err)
	}
	config = config.withDefaults(d.defaults)
	p := &Probe{name: name, definition: d, loader: l, types: types, config: config, programs: map[string]*ebpf.Program{}}
	if d.prepare != nil {
		if err := d.prepare(p, spec, types); err != nil {
			return nil, fmt.Errorf("load probe %s: %w", name, err)
		}
	}
	if err := p.setHistograms(spec); err != nil {
		return nil, fmt.Errorf("load probe %s: %w", name, err)
	}
	if err := l.chains.take(p, spec); err != nil {
		return nil, fmt.Errorf("load probe %s: %w", name, err)
	}
	if err := p.createMaps(spec); err != nil {
		p.release()
		return nil, fmt.Errorf("load probe %s: %w", name, err)
	}
	if d.begin != nil {
		if err := d.begin(p); err != nil {
			p.release()
			return nil, fmt.Errorf("load probe %s: %w", name, err)
		}
	}
	if err := p.attach(spec, types); err != nil {
		p.release()
		return nil, err
	}
	if d.started != nil {
		if err := d.started(p); err != nil {
			p.release()
			return nil, fmt.Errorf("load probe %s: %w", name, err)
		}
	}
	p.types = nil // let the garbage collector free them
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.probes[p] = struct{}{}
		p.follow(l.node, l.owned) // namespaces named to Own since the maps were created
	}
	l.mu.Unlock()
	if closed {
		p.release()
		return nil, fmt.Errorf("load probe %s: %w", name, errClosed)
	}
	return p, nil
}

var errClosed = errors.New("the loader is closed")

// begin prepares a Load. The lock is not held while a probe is loaded and attached,
// so that a probe that waits in the kernel, for example for RTNL, does not block
// others.
func (l *Loader) begin() (*kernelTypes, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	types, err := l.kernelTypes()
	if err == nil && l.reasons == nil {
		l.reasons = readReasons(types)
	}
	return types, err
}

// createMaps creates the probe's own maps, which the programs of all rungs share.
func (p *Probe) createMaps(spec *ebpf.CollectionSpec) error {
	if m, ok := spec.Maps[mapCounters]; ok && m.Type == ebpf.PerCPUHash {
		m.MaxEntries = p.loader.tableSize()
	}
	if m, ok := spec.Maps[p.definition.shares]; ok {
		m.MaxEntries = p.loader.tableSize() + roomsEnd
	}
	maps := &ebpf.CollectionSpec{Maps: spec.Maps, Variables: spec.Variables, Types: spec.Types, ByteOrder: spec.ByteOrder}
	for name, m := range p.loader.shared {
		if s, ok := maps.Maps[name]; ok {
			s.MaxEntries = m.MaxEntries()
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(maps, ebpf.CollectionOptions{
		MapReplacements: p.loader.sharedOf(spec),
		Cache:           p.types.cache,
	})
	if err != nil {
		return fmt.Errorf("create its BPF maps: %w", explain(err))
	}
	p.maps, p.variables = coll.Maps, coll.Variables
	if err := p.seedCounters(); err != nil {
		return err
	}
	if err := p.numberDisks(); err != nil {
		return err
	}
	p.loader.mu.Lock()
	node, owned := p.loader.node, p.loader.owned
	p.loader.mu.Unlock()
	p.follow(node, owned)
	return nil
}

// attach tries the rungs of each hook, best first.
func (p *Probe) attach(spec *ebpf.CollectionSpec, types *kernelTypes) error {
	for i := range p.definition.hooks {
		h := &p.definition.hooks[i]
		if h.needed != nil && !h.needed(p, types) {
			continue
		}
		state := HookState{Name: h.name}
		var failed error
		for _, r := range p.loader.rungsOf(h) {
			p.apart = nil
			if err := p.attachRung(spec, r); err != nil {
				state.Refused = append(state.Refused, Refusal{Kind: r.kind, Programs: r.programs, Reason: Reason(err), Answer: err.Error()})
				if !Unsupported(err) {
					failed = errors.Join(failed, fmt.Errorf("%s: %w", r.kind, err))
				}
				continue
			}
			state.Kind, state.Programs, state.Limitation = r.kind, r.programs, r.limitation
			if p.apart != nil {
				state.Refused = append(state.Refused, Refusal{Kind: Chain, Programs: r.programs, Reason: Reason(p.apart), Answer: p.apart.Error()})
			}
			break
		}
		if state.Kind == "" {
			state.Limitation = h.without
		}
		p.hooks = append(p.hooks, state)
		if state.Kind == "" && !h.optional {
			if failed != nil {
				return fmt.Errorf("load probe %s: attach to %s: %w", p.name, h.name, failed)
			}
			return &UnsupportedError{Probe: p.name, Hooks: p.hooks, Note: p.definition.note}
		}
	}
	p.releaseUnused(spec)
	if p.devices != nil {
		p.devices.publish()
		p.showDevices()
	}
	return nil
}

// releaseUnused closes the maps of rungs that are not in use.
func (p *Probe) releaseUnused(spec *ebpf.CollectionSpec) {
	used := map[string]bool{}
	for name := range p.programs {
		for _, ins := range spec.Programs[name].Instructions {
			used[ins.Reference()] = true
		}
	}
	for name, m := range p.maps {
		if !used[name] && p.loader.shared[name] == nil {
			m.Close()
			delete(p.maps, name)
		}
	}
}

// rungsOf returns the rungs to try. A forced kind keeps only rungs of that kind,
// for every hook that has one.
func (l *Loader) rungsOf(h *hook) []rung {
	forced := l.options.Hooks
	if forced == "" || !slices.ContainsFunc(h.rungs, func(r rung) bool { return r.kind == forced }) {
		return h.rungs
	}
	var rungs []rung
	for _, r := range h.rungs {
		if r.kind == forced {
			rungs = append(rungs, r)
		}
	}
	return rungs
}

// attachRung loads and attaches the programs of one rung, all or none.
func (p *Probe) attachRung(spec *ebpf.CollectionSpec, r rung) (err error) {
	one := spec.Copy()
	for name := range one.Programs {
		if !slices.Contains(r.programs, name) {
			delete(one.Programs, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{
		MapReplacements: p.maps,
		Cache:           p.types.cache,
	})
	if err != nil {
		return explain(err)
	}
	defer coll.Close()

	if r.kind == TCX || r.kind == Clsact {
		if err := p.devices.start(r.kind, coll.Programs[r.programs[0]], coll.Programs[r.programs[1]]); err != nil {
			return errors.Join(explainDevice(err), p.devices.stop())
		}
		for _, name := range r.programs {
			p.programs[name] = coll.DetachProgram(name)
		}
		return nil
	}
	var links []io.Closer
	// Rungs list programs that end a measurement before those that begin it.
	// Attaching in that order ensures that no measurement begins that cannot end.
	for _, name := range r.programs {
		l, err := p.attachProgram(one.Programs[name], coll.Programs[name])
		if err != nil {
			for _, l := range links {
				l.Close()
			}
			return fmt.Errorf("attach to %s: %w", one.Programs[name].AttachTo, explain(err))
		}
		links = append(links, l)
	}
	p.links = append(p.links, links...)
	for _, name := range r.programs {
		p.programs[name] = coll.DetachProgram(name)
	}
	return nil
}

func attachAlone(spec *ebpf.ProgramSpec, program *ebpf.Program) (link.Link, error) {
	section, _, _ := strings.Cut(spec.SectionName, "/")
	switch section {
	case "raw_tp":
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: spec.AttachTo, Program: program})
	case "tp_btf", "fentry", "fexit":
		return link.AttachTracing(link.TracingOptions{Program: program})
	case "kprobe":
		return link.Kprobe(spec.AttachTo, program, nil)
	case "kretprobe":
		return link.Kretprobe(spec.AttachTo, program, nil)
	case "cgroup_skb":
		root, err := cgroupRoot()
		if err != nil {
			return nil, err
		}
		return link.AttachCgroup(link.CgroupOptions{Path: root, Attach: spec.AttachType, Program: program})
	}
	return nil, fmt.Errorf("section %q: the loader does not know how to attach it", spec.SectionName)
}

// kernelTypes is the running kernel's type information.
type kernelTypes struct {
	cache *btf.Cache
	spec  *btf.Spec
}

var errNoBTF error = &refusal{text: "the kernel has no type information (no /sys/kernel/btf/vmlinux; it needs CONFIG_DEBUG_INFO_BTF)"}

func newKernelTypes() (*kernelTypes, error) {
	cache := btf.NewCache()
	spec, err := cache.Kernel()
	if err != nil {
		// The library returns one of these errors if the kernel has no type
		// information.
		if errors.Is(err, btf.ErrNotFound) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, os.ErrNotExist) {
			return nil, errNoBTF
		}
		return nil, fmt.Errorf("read the kernel's type information: %w", explain(err))
	}
	return &kernelTypes{cache: cache, spec: spec}, nil
}

// tracepoint returns the parameters of a tracepoint, without the leading context
// pointer, or false if the kernel has no such tracepoint.
func (t *kernelTypes) tracepoint(name string) ([]btf.FuncParam, bool) {
	var def *btf.Typedef
	if err := t.spec.TypeByName("btf_trace_"+name, &def); err != nil {
		return nil, false
	}
	pointer, ok := btf.UnderlyingType(def).(*btf.Pointer)
	if !ok {
		return nil, false
	}
	proto, ok := btf.UnderlyingType(pointer.Target).(*btf.FuncProto)
	if !ok || len(proto.Params) == 0 {
		return nil, false
	}
	return proto.Params[1:], true
}
