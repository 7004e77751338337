package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
)

// Kind is a way of hooking into the kernel.
type Kind string

// Kinds of hooks. A rung that combines several has the kind with the highest
// requirements.
const (
	RawTracepoint Kind = "raw_tp"
	BTFTracepoint Kind = "tp_btf"
	Fentry        Kind = "fentry"
	Kprobe        Kind = "kprobe"
	Cgroup        Kind = "cgroup_skb"
	TCX           Kind = "tcx"
	Clsact        Kind = "clsact"
)

// Chain is the Kind of a Refusal after which programs that several probes have at one
// tracepoint are attached one by one, which costs more.
const Chain Kind = "chain"

// Zero sets a threshold of a Config to zero; the zero value selects the probe's
// default.
const Zero time.Duration = -1

// Config configures a probe. Probes ignore fields that do not concern them.
type Config struct {
	// Slow and Slow100 are the two thresholds of the probe's counters. A latency
	// over Slow100 counts for both.
	Slow, Slow100 time.Duration
	// Event is the latency from which an event is sent, for probes whose events do
	// not use the two thresholds above.
	Event time.Duration
	// NoStack omits the kernel stack from events, which makes them cheaper.
	NoStack bool
	// Background makes biolatency also send events for I/O that no process waits
	// for: writeback, read-ahead, discards.
	Background bool
	// ownIO, for tests, includes this process's own I/O.
	ownIO bool
	// Histograms selects how probes that measure latencies divide their
	// histograms.
	Histograms HistogramsBy
	// Flows is how many connections the probe flow keeps, default 65536.
	Flows int
	// Ports keeps connections between the same two addresses apart by their
	// ports.
	Ports bool
	// Devices makes flow count at the egress of network devices whose names match
	// one of these patterns (see path.Match), forwarded packets included, instead
	// of at sockets.
	Devices []string
	// Netns is the path of the network namespace of Devices; empty means that of
	// the thread that calls Load.
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

// State says how completely a probe works.
type State string

// The states of a probe. A probe that cannot work at all gives an UnsupportedError
// instead.
const (
	OK       State = "ok"
	Degraded State = "degraded"
)

// Refusal is a rung that the kernel refused, and its answer.
type Refusal struct {
	Kind     Kind
	Programs []string
	Reason   string // readable explanation
	Answer   string // the same with the verifier's log
}

// HookState is the outcome of attaching one of a probe's hooks.
type HookState struct {
	Name       string
	Kind       Kind // empty if no rung worked
	Programs   []string
	Devices    []string // devices of a device hook
	Limitation string   // what the rung does not see, or what is missing without the hook
	Refused    []Refusal
}

// UnsupportedError is the error of a probe that cannot work on this machine.
type UnsupportedError struct {
	Probe string
	Hooks []HookState
	Note  string // additional information, may be empty
}

// Error returns one readable line that names the missing hook.
func (e *UnsupportedError) Error() string {
	return e.text("", func(r Refusal) string { return r.Reason }, false)
}

// Detail returns the kernel's answer to each kind of hook, including the verifier's
// log.
func (e *UnsupportedError) Detail() string {
	return e.text("probe "+e.Probe+" cannot work here: ", func(r Refusal) string { return r.Answer }, true)
}

func (e *UnsupportedError) text(begin string, answer func(Refusal) string, kinds bool) string {
	var b strings.Builder
	b.WriteString(begin)
	// Report an answer that several hooks or kinds share only once.
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
	types       *kernelTypes // only during Load
	config      Config
	maps        map[string]*ebpf.Map
	variables   map[string]*ebpf.Variable
	programs    map[string]*ebpf.Program
	links       []io.Closer
	devices     *devices // for flow with devices, else nil
	limitations []string // limitations independent of the hooks
	apart       error    // why a program of the rung that is being attached has no chain; nil: it has, or needs none

	hookMu sync.Mutex // guards hooks only and is never held during a call into the kernel
	hooks  []HookState

	mu        sync.Mutex
	closed    bool
	counter   counterReader
	histogram histogramReader
	drops     dropReader
	flows     flowReader
	rooms     roomState
}

// Name returns the probe's name.
func (p *Probe) Name() string { return p.name }

// Hooks returns the state of each hook. It does not wait for a running call,
// however long that takes.
func (p *Probe) Hooks() []HookState {
	p.hookMu.Lock()
	defer p.hookMu.Unlock()
	return slices.Clone(p.hooks)
}

// State returns the probe's state and its limitations.
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

// Events returns the event types that the probe sends.
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

// release detaches in reverse order: programs that begin a measurement go first.
func (p *Probe) release() error {
	var errs []error
	if p.devices != nil {
		errs = append(errs, p.devices.close())
	}
	for _, l := range slices.Backward(p.links) {
		errs = append(errs, l.Close())
	}
	p.loader.chains.release(p)
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

// put writes a variable that the running programs read.
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

// get reads a variable of the running programs.
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
