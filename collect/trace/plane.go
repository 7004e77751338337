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

// Options say what a Plane does with events.
type Options struct {
	// Hub takes the events; nil: the kernel sends none, and only counts.
	Hub    *event.Hub
	Limits EventLimits
	Log    *slog.Logger

	tables bpf.Options // for tests: how large the tables are
}

// Plane is what these probes share: one loader, one ring of events and its
// reader. It touches the kernel when the first probe is built, so a machine
// without eBPF runs the other probes all the same.
type Plane struct {
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
	limits   EventLimits

	pods      owner.Pods // where the Hub does not know them
	hostNetns uint64

	living struct { // the namespaces with a process or a name, read once a cycle
		sync.Mutex
		cycle uint64
		netns map[uint64]bool
	}

	panicked atomic.Bool // that an event was lost to a panic has been logged
}

// followEvery is how often the plane looks for new pods. Their namespaces have
// room of their own in the kernel's tables from then on; what they counted
// before, they have in the room of others.
const followEvery = 200 * time.Millisecond

// New returns a Plane without probes.
func New(opt Options) *Plane {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Plane{opt: opt, limits: opt.Limits, probes: map[*probe]struct{}{}, told: map[bpf.EventType]bpf.EventAccount{}}
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
func (p *Plane) Factories() []collect.Factory {
	var out []collect.Factory
	for _, k := range kinds {
		out = append(out, collect.Factory{Name: k.name, New: func(env collect.Env) (collect.Probe, error) {
			return p.build(k, env)
		}})
	}
	return out
}

// build loads one probe.
func (p *Plane) build(k kind, env collect.Env) (collect.Probe, error) {
	loader, err := p.enter(env)
	if err != nil {
		return nil, err
	}
	defer func() {
		p.mu.Lock()
		p.building--
		p.mu.Unlock()
	}()
	// The lock is not held meanwhile: loading may hang in the kernel.
	loaded, err := loader.Load(k.name, k.config(env))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := &probe{plane: p, kind: k, bpf: loaded, root: env.ProcRoot}
	if k.begin != nil {
		pr.sample = k.begin(pr, env)
	}
	p.probes[pr] = struct{}{}
	return pr, nil
}

// enter gives the loader to a build that begins.
func (p *Plane) enter(env collect.Env) (*bpf.Loader, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loader == nil {
		if err := p.start(); err != nil {
			return nil, err
		}
	}
	p.fresh = true
	p.building++
	p.pods = env.Pods
	if host, err := kernel.Inode(env.HostNetns); err == nil {
		p.hostNetns = host
	}
	p.own()
	return p.loader, nil
}

// start makes the loader and reads its ring. The caller holds the lock.
func (p *Plane) start() error {
	opt := p.opt.tables
	opt.EventRate, opt.EventBurst, opt.NoEvents = float64(p.limits.Rate), p.limits.Burst, p.opt.Hub == nil
	opt.Warn = func(what, probe string, err error) { p.opt.Log.Warn(what, "probe", probe, "error", err) }
	loader, err := bpf.New(opt)
	if err != nil {
		return fmt.Errorf("start eBPF: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.loader, p.stop, p.done = loader, stop, make(chan struct{})
	go func(done chan<- struct{}) {
		defer close(done)
		var wg sync.WaitGroup
		wg.Go(func() { p.followPods(ctx) })
		if p.opt.Hub != nil {
			p.read(ctx, loader)
		}
		wg.Wait()
	}(p.done)
	return nil
}

// followPods gives the namespaces of new pods their room, soon after they came,
// until ctx ends.
func (p *Plane) followPods(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	said := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := bounded.Guard(p.follow); err != nil && !said {
				said = true
				p.opt.Log.Error("giving new pods their room in the kernel's tables failed; each cycle does it too", "error", err)
			}
		}
	}
}

// follow gives the namespaces of new pods their room. While another holds the
// plane, that waits for the next time.
func (p *Plane) follow() {
	if p.mu.TryLock() {
		defer p.mu.Unlock()
		p.own()
	}
}

// own names the namespaces of the host and of the pods to the loader. The caller
// holds the lock.
func (p *Plane) own() {
	if p.loader == nil {
		return
	}
	pods := p.pods
	if p.opt.Hub != nil {
		pods = p.opt.Hub.Pods() // a reload may have brought others
	}
	if pods == nil {
		return
	}
	var netns []uint64
	for _, pod := range pods.Running() {
		if pod.Netns != 0 && !pod.HostNetwork {
			netns = append(netns, pod.Netns)
		}
	}
	// Probes say what lacks room.
	_ = p.loader.Own(p.hostNetns, netns)
}

// alive lists the network namespaces that are there, as they were when it was
// asked first in a cycle.
func (p *Plane) alive(cycle uint64, procRoot string) map[uint64]bool {
	p.living.Lock()
	defer p.living.Unlock()
	if p.living.netns == nil || p.living.cycle != cycle {
		p.living.netns, p.living.cycle = liveNetns(procRoot), cycle
	}
	return p.living.netns
}

// Unroomed tells how much each probe counted as unknown because a network
// namespace that is no pod's found no room for counters of its own; of flow, how
// many packets are in no flow.
func (p *Plane) Unroomed() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := map[string]uint64{}
	for pr := range p.probes {
		if pr.kind.name == flowName || !pr.perHost() {
			n[pr.kind.name], _, _ = pr.bpf.Room()
		}
	}
	return n
}

// read takes events out of the ring and offers them to the Hub until ctx ends,
// and each second tells it of those that the kernel held back.
func (p *Plane) read(ctx context.Context, loader *bpf.Loader) {
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
				p.Account()
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
			p.offer(&c, e)
		})
		if err == nil {
			break
		}
		// Counting goes on; only events are missing meanwhile.
		if err.Error() != said {
			said = err.Error()
			p.opt.Log.Error("reading events from the kernel failed; it is tried again", "error", err)
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
func (p *Plane) offer(c *converter, e *bpf.Event) {
	err := bounded.Guard(func() { p.opt.Hub.Offer(c.event(e)) })
	if err == nil {
		return
	}
	p.opt.Hub.Missed(eventTypes[e.Type], 0, 1)
	if p.panicked.CompareAndSwap(false, true) {
		p.opt.Log.Error("an event is lost, as others like it may be from now on without a word", "event", e.Type.String(), "error", err)
	}
}

// Account tells the Hub of the events that the kernel held back or lost since
// the last call.
func (p *Plane) Account() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loader == nil || p.opt.Hub == nil {
		return
	}
	stats, err := p.loader.Stats()
	if err != nil {
		return // the next call tells
	}
	for _, a := range stats.Events {
		was := p.told[a.Type]
		if s, l := a.Suppressed-was.Suppressed, a.Lost-was.Lost; s > 0 || l > 0 {
			p.opt.Hub.Missed(eventTypes[a.Type], s, l)
		}
		p.told[a.Type] = a
	}
}

// Programs tells what the programs of all probes cost, for the metrics about
// the tool itself; all zero unless the kernel's BPF statistics are on.
func (p *Plane) Programs() []bpf.ProgramStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loader == nil {
		return nil
	}
	stats, err := p.loader.Stats()
	if err != nil {
		return nil
	}
	return stats.Programs
}

// SetLimits changes the limits on events.
func (p *Plane) SetLimits(l EventLimits) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = l
	if p.loader == nil || p.opt.Hub == nil {
		return nil
	}
	var errs []error
	for _, t := range bpf.EventTypes() {
		errs = append(errs, p.loader.SetEventLimit(t, float64(l.Rate), l.Burst))
	}
	return errors.Join(errs...)
}

// reasons names drop and reset reasons.
func (p *Plane) reasons() (*bpf.Reasons, error) {
	p.mu.Lock()
	loader := p.loader
	p.mu.Unlock()
	if loader == nil {
		return nil, errors.New("name the drop reasons: the loader is closed")
	}
	return loader.Reasons()
}

// settle gives back the memory that loading took, once all probes are loaded.
func (p *Plane) settle() {
	p.mu.Lock()
	fresh, loader := p.fresh, p.loader
	p.fresh = false
	p.mu.Unlock()
	if fresh && loader != nil {
		loader.ReleaseBTF()
	}
}

// closed is told that a probe was closed. The last one ends the plane's own
// work.
func (p *Plane) closed(pr *probe) error {
	p.mu.Lock()
	delete(p.probes, pr)
	last := len(p.probes) == 0 && p.building == 0
	p.mu.Unlock()
	if last {
		return p.Close()
	}
	return nil
}

// Close detaches all probes and ends the reading of events. What was written
// to the ring before has been offered to the Hub.
func (p *Plane) Close() error {
	p.Account()
	p.mu.Lock()
	loader, stop, done := p.loader, p.stop, p.done
	p.loader, p.stop, p.done = nil, nil, nil
	p.told = map[bpf.EventType]bpf.EventAccount{}
	p.mu.Unlock()
	if loader == nil {
		return nil
	}
	if stop != nil {
		stop()
		<-done
	}
	return loader.Close()
}
