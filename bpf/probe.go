package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Kind is a way of hooking into the kernel.
type Kind string

// The kinds of hooks. A rung may combine several; it then goes by the name of
// the one that needs most.
const (
	RawTracepoint Kind = "raw_tp"
	BTFTracepoint Kind = "tp_btf"
	Fentry        Kind = "fentry"
	Kprobe        Kind = "kprobe"
	Cgroup        Kind = "cgroup_skb"
	TCX           Kind = "tcx"
	Clsact        Kind = "clsact"
)

// Zero stands for a threshold of zero in a Config, where the zero value means
// the probe's default.
const Zero time.Duration = -1

// Config of a probe. Fields that a probe has no use for are ignored.
type Config struct {
	// Slow is the lower threshold of the probe's counters, Slow100 the upper
	// one; an occurrence over the upper one is counted by both.
	Slow, Slow100 time.Duration
	// Event is from which latency on an event is sent, for the probes whose
	// events do not go by the two thresholds above.
	Event time.Duration
	// NoStack leaves out the kernel stack of the events that have one, which
	// makes them cheaper.
	NoStack bool
	// Background makes the probe biolatency tell of I/O that nobody waits for,
	// too: writeback, read-ahead, discards.
	Background bool
	// ownIO, for tests: it tells of this process's own I/O, too.
	ownIO bool
	// Histograms says what the probes that measure a time keep histograms for.
	Histograms HistogramsBy
	// Flows is how many connections the probe flow keeps, default 65536.
	Flows int
	// Ports tells connections of the same two addresses apart by their ports.
	Ports bool
	// Devices makes the probe flow count what the network devices whose names
	// match one of these patterns (see path.Match) transmit, forwarded packets
	// too, in place of what sockets send.
	Devices []string
	// Netns is a file that is the network namespace of Devices; empty: that
	// of the thread that calls Load.
	Netns string
}

func (c Config) withDefaults(d Config) Config {
	for _, f := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&c.Slow, d.Slow}, {&c.Slow100, d.Slow100}, {&c.Event, d.Event}} {
		switch {
		case *f.value == 0:
			*f.value = f.fallback
		case *f.value < 0:
			*f.value = 0
		}
	}
	if c.Flows <= 0 {
		c.Flows = d.Flows
	}
	return c
}

// State says how much of a probe works.
type State string

// The states of a probe. A probe that cannot work at all is an
// UnsupportedError instead.
const (
	OK       State = "ok"
	Degraded State = "degraded"
)

// Refusal is a rung that the kernel did not take, and what it answered.
type Refusal struct {
	Kind     Kind
	Programs []string
	Reason   string // for a person
	Answer   string // the same with the verifier's own words
}

// HookState is how one of a probe's hooks came to be attached.
type HookState struct {
	Name       string
	Kind       Kind // empty: no rung worked
	Programs   []string
	Devices    []string // where they are attached to devices
	Limitation string   // what this rung does not see, or what the probe misses without the hook
	Refused    []Refusal
}

// UnsupportedError is the answer for a probe that cannot work on this machine.
type UnsupportedError struct {
	Probe string
	Hooks []HookState
	Note  string // what else there is to know, may be empty
}

// Error says in one line that a person understands which hook is missing.
func (e *UnsupportedError) Error() string {
	return e.text("", func(r Refusal) string { return r.Reason }, false)
}

// Detail says what the kernel answered to each kind of hook, with the verifier's
// own words.
func (e *UnsupportedError) Detail() string {
	return e.text("probe "+e.Probe+" cannot work here: ", func(r Refusal) string { return r.Answer }, true)
}

func (e *UnsupportedError) text(begin string, answer func(Refusal) string, kinds bool) string {
	var b strings.Builder
	b.WriteString(begin)
	// What was answered for several hooks, or to several kinds of hooks, is said
	// once.
	var all []string
	hooks := map[string][]string{}
	for _, h := range e.Hooks {
		if h.Kind != "" {
			continue
		}
		var answers []string
		of := map[string][]string{}
		for _, r := range h.Refused {
			a := answer(r)
			if of[a] == nil {
				answers = append(answers, a)
			}
			if !slices.Contains(of[a], string(r.Kind)) {
				of[a] = append(of[a], string(r.Kind))
			}
		}
		if kinds {
			for i, a := range answers {
				answers[i] = strings.Join(of[a], ", ") + ": " + a
			}
		}
		said := strings.Join(answers, "; ")
		if hooks[said] == nil {
			all = append(all, said)
		}
		hooks[said] = append(hooks[said], h.Name)
	}
	for i, said := range all {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString("no way to watch " + strings.Join(hooks[said], ", or "))
		if said != "" {
			b.WriteString(": " + said)
		}
	}
	if e.Note != "" {
		fmt.Fprintf(&b, " (%s)", e.Note)
	}
	return b.String()
}

// Probe is one loaded and attached probe.
type Probe struct {
	name        string
	definition  *definition
	loader      *Loader
	types       *kernelTypes // while it is being loaded
	config      Config
	maps        map[string]*ebpf.Map
	variables   map[string]*ebpf.Variable
	programs    map[string]*ebpf.Program
	links       []link.Link
	devices     *devices // of the probe flow, if it watches such
	limitations []string // what it does not see whatever its hooks are

	hookMu sync.Mutex // of hooks alone: it is never held over a call into the kernel
	hooks  []HookState

	mu        sync.Mutex
	closed    bool
	counter   counterReader
	histogram histogramReader
	drops     dropReader
	flows     flowReader
	rooms     roomState
}

// Name of the probe.
func (p *Probe) Name() string { return p.name }

// Hooks tells how each hook came to be attached. It does not wait for a call
// that is under way, however long that takes.
func (p *Probe) Hooks() []HookState {
	p.hookMu.Lock()
	defer p.hookMu.Unlock()
	return slices.Clone(p.hooks)
}

// State tells how much works, and what does not.
func (p *Probe) State() (State, []string) {
	limitations := slices.Clone(p.limitations)
	for _, h := range p.Hooks() {
		if h.Limitation != "" {
			limitations = append(limitations, h.Limitation)
		}
	}
	if p.definition.limitations != nil {
		limitations = append(limitations, p.definition.limitations(p)...)
	}
	if _, full, _ := p.Room(); full {
		limitations = append(limitations, cmp.Or(p.definition.full, lackOfRoom))
	}
	if len(limitations) > 0 {
		return Degraded, limitations
	}
	return OK, nil
}

// Events are the types that the probe sends.
func (p *Probe) Events() []EventType { return slices.Clone(p.definition.events) }

// Close detaches the probe. Its counters are gone with it.
func (p *Probe) Close() error {
	p.loader.mu.Lock()
	delete(p.loader.probes, p)
	p.loader.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	return p.release()
}

// release detaches in reverse: what begins a measurement goes first.
func (p *Probe) release() error {
	var errs []error
	if p.devices != nil {
		errs = append(errs, p.devices.close())
	}
	for _, l := range slices.Backward(p.links) {
		errs = append(errs, l.Close())
	}
	for _, program := range p.programs {
		errs = append(errs, program.Close())
	}
	for _, m := range p.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// set writes one of the object's constants before it is loaded.
func set(spec *ebpf.CollectionSpec, name string, value any) error {
	v, ok := spec.Variables[name]
	if !ok {
		return fmt.Errorf("the object has no variable %s", name)
	}
	if err := v.Set(value); err != nil {
		return fmt.Errorf("set variable %s: %w", name, err)
	}
	return nil
}

// put writes a variable that the probe's programs read while they run.
func (p *Probe) put(name string, value any) error {
	v, ok := p.variables[name]
	if !ok {
		return fmt.Errorf("write variable %s: the object has none", name)
	}
	if err := v.Set(value); err != nil {
		return fmt.Errorf("write variable %s: %w", name, err)
	}
	return nil
}

// get reads such a variable.
func (p *Probe) get(name string, value any) error {
	v, ok := p.variables[name]
	if !ok {
		return fmt.Errorf("read variable %s: the object has none", name)
	}
	if err := v.Get(value); err != nil {
		return fmt.Errorf("read variable %s: %w", name, err)
	}
	return nil
}
