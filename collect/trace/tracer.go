// Package trace has the probes that use eBPF. The kernel counts; this package
// maps counters to metrics, and records of the kernel to events.
package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// EventLimits limit the events of one type and network namespace that the kernel
// sends: the rate per second on average, and the largest burst.
type EventLimits struct{ Rate, Burst int }

// DefaultEventLimits are far above the limits on journal entries, so that merged
// entries count nearly all occurrences. They are low enough that a flood in one
// namespace costs the daemon a negligible share of a CPU.
var DefaultEventLimits = EventLimits{Rate: 100, Burst: 500}

// Options say what a Tracer does with events.
type Options struct {
	// Hub takes the events. If it is nil, the kernel only counts and sends none.
	Hub    *event.Hub
	Limits EventLimits
	Log    *slog.Logger

	tables bpf.Options // sizes of the tables, for tests
}

// Tracer holds what these probes share: one loader, and one event ring with its
// reader. It does not use eBPF before the first probe is built, so a machine
// without eBPF can run the other probes.
type Tracer struct {
	opt Options

	mu     sync.Mutex
	loader *bpf.Loader
	stop   context.CancelFunc
	done   chan struct{}
	fresh  bool // a probe was loaded since the type information was dropped
	probes map[*probe]struct{}
	// building counts the probes that are being loaded, during which the loader
	// is in use, too.
	building int
	told     map[bpf.EventType]bpf.EventAccount // the accounts as of the last report to the Hub
	owed     map[heldBack]uint64                // the suppressed events among them, by owner
	limits   EventLimits

	who      *owner.Resolver // the Hub's; without a Hub the Runner's, which is nil before the first probe is built
	host     bpf.Netns
	procRoot string

	living struct { // the namespaces with a process or a name, read once per cycle
		sync.Mutex
		cycle uint64
		netns map[uint64]bool
	}

	panicked atomic.Bool // the loss of an event to a panic has been logged
}

// followEvery is how often the tracer looks for new pods, to reserve room for their
// namespaces in the kernel's tables. Until then they count in the room of unowned
// namespaces.
const followEvery = 200 * time.Millisecond

// New returns a Tracer without probes.
func New(opt Options) *Tracer {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tracer{opt: opt, limits: opt.Limits, probes: map[*probe]struct{}{}, told: map[bpf.EventType]bpf.EventAccount{}}
	if opt.Hub != nil {
		t.who = opt.Hub.Resolver()
	}
	return t
}

// eventTypes maps the kernel's event types to the Catalogue's.
var eventTypes = func() map[bpf.EventType]*catalog.EventType {
	byName := map[string]*catalog.EventType{}
	for _, e := range catalog.Events() {
		byName[strings.ToUpper(e.Name)] = e
	}
	m := map[bpf.EventType]*catalog.EventType{}
	for _, t := range bpf.EventTypes() {
		e := byName[t.String()]
		if e == nil {
			panic("trace: the catalogue has no event " + t.String())
		}
		m[t] = e
	}
	return m
}()

// Factories are the probes that trace.
func (t *Tracer) Factories() []collect.Factory {
	var out []collect.Factory
	for _, k := range kinds {
		out = append(out, collect.Factory{Name: k.name, New: func(env collect.Env) (collect.Probe, error) {
			return t.build(k, env)
		}})
	}
	return out
}

// build loads one probe.
func (t *Tracer) build(k kind, env collect.Env) (collect.Probe, error) {
	loader, err := t.enter(env)
	if err != nil {
		return nil, supported(err)
	}
	defer func() {
		t.mu.Lock()
		t.building--
		t.mu.Unlock()
	}()
	// Do not hold the lock here, since loading may hang in the kernel.
	loaded, err := loader.Load(k.name, k.config(env))
	if err != nil {
		return nil, supported(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	pr := &probe{tracer: t, kind: k, loader: loader, bpf: loaded, root: env.ProcRoot, host: t.host, histograms: histogramsBy(env.Options)}
	if k.begin != nil {
		pr.sample = k.begin(pr, env)
	}
	t.probes[pr] = struct{}{}
	return pr, nil
}

// supported converts package bpf's error for an unsupported probe to an
// UnsupportedError.
func supported(err error) error {
	if !bpf.Unsupported(err) {
		return err
	}
	out := &collect.UnsupportedError{Reason: bpf.Reason(err), Detail: err.Error()}
	if u := (*bpf.UnsupportedError)(nil); errors.As(err, &u) {
		out.Detail = u.Detail()
	}
	return out
}

// enter hands the loader to a build that begins.
func (t *Tracer) enter(env collect.Env) (*bpf.Loader, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loader == nil {
		if err := t.start(); err != nil {
			return nil, err
		}
	}
	t.fresh = true
	t.building++
	if t.opt.Hub == nil {
		t.who = env.Who
	}
	if inode, err := kernel.Inode(env.HostNetns); err == nil {
		t.host = bpf.Netns{Inode: inode, Path: env.HostNetns}
	}
	t.procRoot = env.ProcRoot
	t.own()
	return t.loader, nil
}

// start creates the loader and starts reading its ring. The caller holds the
// lock.
func (t *Tracer) start() error {
	opt := t.opt.tables
	opt.EventRate, opt.EventBurst, opt.NoEvents = float64(t.limits.Rate), t.limits.Burst, t.opt.Hub == nil
	opt.Warn = func(what, probe string, err error) { t.opt.Log.Warn(what, "probe", probe, "error", err) }
	loader, err := bpf.New(opt)
	if err != nil {
		return fmt.Errorf("start eBPF: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.loader, t.stop, t.done = loader, stop, make(chan struct{})
	go func(done chan<- struct{}) {
		defer close(done)
		var wg sync.WaitGroup
		wg.Go(func() { t.followPods(ctx) })
		if t.opt.Hub != nil {
			t.read(ctx, loader)
		}
		wg.Wait()
	}(t.done)
	return nil
}

// followPods reserves room for the namespaces of new pods soon after their start,
// until ctx ends.
func (t *Tracer) followPods(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	said := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := bounded.Guard(t.follow); err != nil && !said {
				said = true
				t.opt.Log.Error("reserving room for new pods in the kernel's tables failed; each cycle tries again", "error", err)
			}
		}
	}
}

// follow reserves room for the namespaces of new pods. If the tracer is locked,
// it leaves that to the next call.
func (t *Tracer) follow() {
	if t.mu.TryLock() {
		defer t.mu.Unlock()
		t.own()
	}
}

// own tells the loader the namespaces of the host and of the pods. The caller
// holds the lock.
func (t *Tracer) own() {
	if t.loader == nil || t.who == nil {
		return
	}
	var netns []bpf.Netns
	for _, pod := range t.who.Running() {
		if pod.Netns != 0 && !pod.HostNetwork {
			netns = append(netns, netnsOf(pod, t.procRoot))
		}
	}
	// Each probe reports the namespaces that found no room, so the error is ignored here.
	_ = t.loader.Own(t.host, netns)
}

// netnsOf returns the network namespace of a pod.
func netnsOf(pod *owner.Pod, procRoot string) bpf.Netns {
	path := pod.NetnsPath
	if path == "" && len(pod.PIDs) > 0 {
		path = kernel.ProcessDir(procRoot, pod.PIDs[0]) + "/ns/net"
	}
	return bpf.Netns{Inode: pod.Netns, Path: path}
}

// alive lists the network namespaces that existed at the first call of a cycle.
func (t *Tracer) alive(cycle uint64, procRoot string) map[uint64]bool {
	t.living.Lock()
	defer t.living.Unlock()
	if t.living.netns == nil || t.living.cycle != cycle {
		t.living.netns, t.living.cycle = liveNetns(procRoot), cycle
	}
	return t.living.netns
}

// Unroomed returns, for each probe, how many occurrences counted as unknown
// because an unowned namespace found no room. For flow, it is the number of
// packets that belong to no flow.
func (t *Tracer) Unroomed() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := map[string]uint64{}
	for pr := range t.probes {
		if pr.kind.name == flowName || !pr.perHost() {
			n[pr.kind.name], _, _ = pr.bpf.Room()
		}
	}
	return n
}

// read takes events out of the ring and offers them to the Hub until ctx ends.
// Each second it reports to the Hub what the kernel suppressed.
func (t *Tracer) read(ctx context.Context, loader *bpf.Loader) {
	account := make(chan struct{})
	go func() {
		defer close(account)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				t.Account()
			}
		}
	}()
	c := converter{loader: loader}
	said := ""
	for ctx.Err() == nil {
		err := loader.Events(ctx, func(e *bpf.Event) {
			if loader.Ignores(e) {
				return
			}
			t.offer(&c, e)
		})
		if err == nil {
			break
		}
		// Counters continue; only events are missing meanwhile.
		if err.Error() != said {
			said = err.Error()
			t.opt.Log.Error("reading events from the kernel failed; the counters stay complete", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
	}
	<-account
}

// offer makes an event from a record. If that panics, the record counts as lost;
// the first panic is logged.
func (t *Tracer) offer(c *converter, e *bpf.Event) {
	err := bounded.Guard(func() { t.opt.Hub.Offer(c.event(e)) })
	if err == nil {
		return
	}
	t.opt.Hub.CountOnly(eventTypes[e.Type], 0, 1)
	if t.panicked.CompareAndSwap(false, true) {
		t.opt.Log.Error("an event is lost; others like it may follow and are not logged", "event", e.Type.String(), "error", err)
	}
}

// Account reports to the Hub the events that the kernel suppressed, ignored or
// lost since the last call.
func (t *Tracer) Account() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loader == nil || t.opt.Hub == nil {
		return
	}
	stats, err := t.loader.Stats()
	if err != nil {
		return // the next call reports the rest
	}
	held := false
	for _, a := range stats.Events {
		was := t.told[a.Type]
		if s, l := a.Suppressed-was.Suppressed, a.Lost-was.Lost; s > 0 || l > 0 {
			t.opt.Hub.CountOnly(eventTypes[a.Type], s, l)
			held = held || s > 0
		}
		if n := a.Ignored - was.Ignored; n > 0 {
			t.opt.Hub.CountIgnored(eventTypes[a.Type], n)
		}
		t.told[a.Type] = a
	}
	if held {
		t.owe()
	}
}

// heldBack identifies a limit in the kernel, of one type and namespace.
type heldBack struct {
	netns uint64
	typ   bpf.EventType
}

// owe reports to the Hub the owners of events that the kernel suppressed. The caller
// holds the lock.
func (t *Tracer) owe() {
	list, err := t.loader.HeldBack()
	if err != nil {
		return // the account includes them
	}
	now := make(map[heldBack]uint64, len(list))
	for _, h := range list {
		key := heldBack{h.Netns, h.Type}
		now[key] = h.N
		was := t.owed[key]
		if was > h.N {
			was = 0 // the number belongs to another namespace now
		}
		t.opt.Hub.Owe(eventTypes[h.Type], h.Netns, h.N-was)
	}
	t.owed = now
}

// ChainsProbe stands for a probe where Programs counts the runs of several probes as one.
const ChainsProbe = bpf.ChainsProbe

// Programs returns the run time and runs of each probe's programs, for
// nodeskoop's own metrics. All are zero unless the kernel's BPF statistics are
// on.
func (t *Tracer) Programs() []bpf.ProgramStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loader == nil {
		return nil
	}
	stats, err := t.loader.Stats()
	if err != nil {
		return nil
	}
	return stats.Programs
}

// SetLimits changes the limits on events.
func (t *Tracer) SetLimits(l EventLimits) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l
	if t.loader == nil || t.opt.Hub == nil {
		return nil
	}
	var errs []error
	for _, e := range bpf.EventTypes() {
		errs = append(errs, t.loader.SetEventLimit(e, float64(l.Rate), l.Burst))
	}
	return errors.Join(errs...)
}

// reasons names drop and reset reasons.
func (t *Tracer) reasons() (*bpf.Reasons, error) {
	t.mu.Lock()
	loader := t.loader
	t.mu.Unlock()
	if loader == nil {
		return nil, errors.New("name the drop reasons: the loader is closed")
	}
	return loader.Reasons()
}

// releaseMemory returns the memory used for loading to the kernel, once all probes
// are loaded.
func (t *Tracer) releaseMemory() {
	t.mu.Lock()
	fresh, loader := t.fresh, t.loader
	t.fresh = false
	t.mu.Unlock()
	if fresh && loader != nil {
		loader.ReleaseBTF()
	}
}

// closed records that a probe was closed. The last one ends the tracer's own
// goroutines.
func (t *Tracer) closed(pr *probe) error {
	t.mu.Lock()
	delete(t.probes, pr)
	last := len(t.probes) == 0 && t.building == 0
	t.mu.Unlock()
	if last {
		return t.Close()
	}
	return nil
}

// Close detaches all probes and ends the reading of events. Events that were in
// the ring before are still offered to the Hub.
func (t *Tracer) Close() error {
	t.Account()
	t.mu.Lock()
	loader, stop, done := t.loader, t.stop, t.done
	t.loader, t.stop, t.done = nil, nil, nil
	t.told, t.owed = map[bpf.EventType]bpf.EventAccount{}, nil
	t.mu.Unlock()
	if loader == nil {
		return nil
	}
	if stop != nil {
		stop()
		<-done
	}
	return loader.Close()
}
