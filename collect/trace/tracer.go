// Package trace holds the probes that watch the kernel with eBPF. What
// they count is counted in the kernel; here counters get their metrics' names,
// and records of the kernel become events.
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

// EventLimits are how many events of one type and network namespace the
// kernel lets through: so many a second in the long run, so many at once.
type EventLimits struct{ Rate, Burst int }

// DefaultEventLimits are far above what is written of one kind, so that nearly all
// that happens is counted in an entry, and low enough that a flood in one namespace
// costs the daemon 0.1 % of a CPU.
var DefaultEventLimits = EventLimits{Rate: 100, Burst: 500}

// Options say what a Tracer does with events.
type Options struct {
	// Hub takes the events; nil: the kernel sends none, and only counts.
	Hub    *event.Hub
	Limits EventLimits
	Log    *slog.Logger

	tables bpf.Options // for tests: how large the tables are
}

// Tracer is what these probes share: one loader, one ring of events and its
// reader. It touches the kernel when the first probe is built, so a machine
// without eBPF runs the other probes all the same.
type Tracer struct {
	opt Options

	mu     sync.Mutex
	loader *bpf.Loader
	stop   context.CancelFunc
	done   chan struct{}
	fresh  bool // a probe was loaded since the type information was dropped
	probes map[*probe]struct{}
	// building counts the probes that are being loaded: the loader is theirs, too.
	building int
	told     map[bpf.EventType]bpf.EventAccount // what the Hub knows of already
	owed     map[heldBack]uint64                // of it, by whose it is
	limits   EventLimits

	who       *owner.Resolver // the Hub's; without one the Runner's, nil before the first probe
	hostNetns uint64

	living struct { // the namespaces with a process or a name, read once a cycle
		sync.Mutex
		cycle uint64
		netns map[uint64]bool
	}

	panicked atomic.Bool // that an event was lost to a panic has been logged
}

// followEvery is how often the tracer looks for new pods. Their namespaces have
// room of their own in the kernel's tables from then on; what they counted
// before, they have in the room of others.
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

// eventTypes says which of the Catalogue's types each of the kernel's is.
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
	// The lock is not held meanwhile: loading may hang in the kernel.
	loaded, err := loader.Load(k.name, k.config(env))
	if err != nil {
		return nil, supported(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	pr := &probe{tracer: t, kind: k, bpf: loaded, root: env.ProcRoot, histograms: histogramsBy(env.Options)}
	if k.begin != nil {
		pr.sample = k.begin(pr, env)
	}
	t.probes[pr] = struct{}{}
	return pr, nil
}

// supported makes an UnsupportedError of an error of package bpf that is one.
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

// enter gives the loader to a build that begins.
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
	if host, err := kernel.Inode(env.HostNetns); err == nil {
		t.hostNetns = host
	}
	t.own()
	return t.loader, nil
}

// start makes the loader and reads its ring. The caller holds the lock.
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

// followPods gives the namespaces of new pods their room, soon after they came,
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
				t.opt.Log.Error("giving new pods their room in the kernel's tables failed; each cycle does it too", "error", err)
			}
		}
	}
}

// follow gives the namespaces of new pods their room. While another holds the
// tracer, that waits for the next time.
func (t *Tracer) follow() {
	if t.mu.TryLock() {
		defer t.mu.Unlock()
		t.own()
	}
}

// own names the namespaces of the host and of the pods to the loader. The caller
// holds the lock.
func (t *Tracer) own() {
	if t.loader == nil || t.who == nil {
		return
	}
	var netns []uint64
	for _, pod := range t.who.Running() {
		if pod.Netns != 0 && !pod.HostNetwork {
			netns = append(netns, pod.Netns)
		}
	}
	// Probes say what lacks room.
	_ = t.loader.Own(t.hostNetns, netns)
}

// alive lists the network namespaces that are there, as they were when it was
// asked first in a cycle.
func (t *Tracer) alive(cycle uint64, procRoot string) map[uint64]bool {
	t.living.Lock()
	defer t.living.Unlock()
	if t.living.netns == nil || t.living.cycle != cycle {
		t.living.netns, t.living.cycle = liveNetns(procRoot), cycle
	}
	return t.living.netns
}

// Unroomed tells how much each probe counted as unknown because a network
// namespace that is no pod's found no room for counters of its own; of flow, how
// many packets are in no flow.
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

// read takes events out of the ring and offers them to the Hub until ctx ends,
// and each second tells it of those that the kernel held back.
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
		// Counting goes on; only events are missing meanwhile.
		if err.Error() != said {
			said = err.Error()
			t.opt.Log.Error("reading events from the kernel failed; the counters are complete all the same", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
	}
	<-account
}

// offer makes an event of a record. A record that makes that panic is lost, and
// counted; the panic is logged once.
func (t *Tracer) offer(c *converter, e *bpf.Event) {
	err := bounded.Guard(func() { t.opt.Hub.Offer(c.event(e)) })
	if err == nil {
		return
	}
	t.opt.Hub.CountOnly(eventTypes[e.Type], 0, 1)
	if t.panicked.CompareAndSwap(false, true) {
		t.opt.Log.Error("an event is lost, as others like it may be from now on without a word", "event", e.Type.String(), "error", err)
	}
}

// Account tells the Hub of the events that the kernel held back, ignored or lost
// since the last call.
func (t *Tracer) Account() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loader == nil || t.opt.Hub == nil {
		return
	}
	stats, err := t.loader.Stats()
	if err != nil {
		return // the next call tells
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

// heldBack is a limit in the kernel: that of a type and namespace.
type heldBack struct {
	netns uint64
	typ   bpf.EventType
}

// owe tells the Hub whose events the kernel held back. The caller holds the lock.
func (t *Tracer) owe() {
	list, err := t.loader.HeldBack()
	if err != nil {
		return // they are in the account
	}
	now := make(map[heldBack]uint64, len(list))
	for _, h := range list {
		key := heldBack{h.Netns, h.Type}
		now[key] = h.N
		was := t.owed[key]
		if was > h.N {
			was = 0 // the namespace is another
		}
		t.opt.Hub.Owe(eventTypes[h.Type], h.Netns, h.N-was)
	}
	t.owed = now
}

// Programs tells what the programs of all probes cost, for the metrics about
// the tool itself; all zero unless the kernel's BPF statistics are on.
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

// releaseMemory gives back the memory that loading took, once all probes are loaded.
func (t *Tracer) releaseMemory() {
	t.mu.Lock()
	fresh, loader := t.fresh, t.loader
	t.fresh = false
	t.mu.Unlock()
	if fresh && loader != nil {
		loader.ReleaseBTF()
	}
}

// closed is told that a probe was closed. The last one ends the tracer's own
// work.
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

// Close detaches all probes and ends the reading of events. What was written
// to the ring before has been offered to the Hub.
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
