package event

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// HubOptions say how a Hub attributes and limits events.
type HubOptions struct {
	// Node is the node's name, HostLabel what stands for a pod in events of
	// the host.
	Node, HostLabel string
	// HostNetns is the inode number of the host's network namespace. If it is
	// 0, every namespace that is no pod's counts as the host's.
	HostNetns uint64
	// Window is for how long events of one kind are merged after the first, and
	// MaxWindow how long the window becomes at most, which doubles while they
	// go on. 0: nothing is merged.
	Window, MaxWindow time.Duration
	// Rate is how many entries a second of one type and pod are let through,
	// Burst how many at once; 0 is no limit. The host, what belongs to no known
	// namespace, and all namespaces that are no pod's together count as one pod
	// each. TotalRate is how many a second are let through over all: it holds
	// for those that have more to say than Rate and Burst let them. Who keeps
	// below its own limit is heard whatever the others do.
	Rate, Burst, TotalRate int
	// Hold is how long an event waits for its pod to become known; 0 means
	// one second, below 0 not at all.
	Hold time.Duration
	Pods owner.Pods
	// NodeAddrs lists the node's own addresses, from time to time; nil lists
	// those of the network namespace that this process is in.
	NodeAddrs func() ([]netip.Addr, error)
	// Log is told once if a resolver or a sink panics; nil: nobody is.
	Log *slog.Logger
	// ForeignPIDs says that the kernel's process numbers are not those of this
	// process's PID namespace, so that nobody can be found by them: what has
	// nothing but such a number is unattributed.
	ForeignPIDs bool
	// Filter, unless nil, says which events are wanted. The others are
	// neither merged nor limited nor written.
	Filter func(*Event) bool
}

func (o *HubOptions) limits() limits   { return limits{o.Rate, o.Burst, o.TotalRate} }
func (o *HubOptions) windows() windows { return windows{o.Window, o.MaxWindow} }

const (
	// queueSize is how many events wait for the Hub's goroutine. It needs
	// about a microsecond for each.
	queueSize = 4096

	// owingSize is how many notes of what the kernel's limits held back wait.
	owingSize = 1024

	sweepEvery = 10 * time.Second
)

// Hub takes events from the probes, finds out whose they are, leaves out what
// nobody wants, merges what is of one kind, keeps the rest from flooding the node,
// and sends it to the sinks, in this order. What becomes of each event is counted.
// All methods may be called from any goroutine.
type Hub struct {
	opt     atomic.Pointer[HubOptions]
	who     *owner.Resolver
	sinks   []Sink
	report  func(e *Event, written bool) // made once: a method value is an allocation
	account account
	queue   chan *Event
	owing   chan owing
	stop    chan struct{}
	done    chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held for writing only to close
	closed bool

	// The rest belongs to the goroutine.
	process  []bool // by EventType.ID: attributed by process
	held     holds
	kinds    kinds
	limits   limiter
	ending   bool // limits keep nothing back any more
	timer    *time.Timer
	timerAt  time.Time // zero: not set
	swept    time.Time
	panicked bool // that has been logged
}

// owing is a number of events that the kernel's limit of a type and namespace
// held back.
type owing struct {
	typ   *catalog.EventType
	netns uint64
	n     uint64
}

// NewHub starts a Hub. What the first sink reports decides whether an event
// counts as written.
func NewHub(opt HubOptions, sinks ...Sink) *Hub {
	now := time.Now()
	h := &Hub{
		who:     owner.NewResolver(owner.Sources{}),
		sinks:   sinks,
		account: newAccount(),
		queue:   make(chan *Event, queueSize),
		owing:   make(chan owing, owingSize),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		process: make([]bool, len(catalog.Events())),
		limits:  newLimiter(now),
		swept:   now,
	}
	h.report = h.reported
	h.kinds = newKinds(h.deliver)
	h.held = holds{who: h.who, attribute: h.attribute, send: h.send, wake: h.wake, wakeSweep: h.wakeSweep,
		ofNetns: map[uint64]int{}, unowned: map[unowned]time.Time{}, unknown: map[netip.Addr]time.Time{}}
	for i, t := range catalog.Events() {
		h.process[i] = t.Has(catalog.FieldProcess)
	}
	h.timer = time.NewTimer(time.Hour)
	h.timer.Stop()
	h.Apply(opt)
	go h.run()
	return h
}

// Apply changes the options for the events that come from now on.
func (h *Hub) Apply(opt HubOptions) {
	if opt.Hold == 0 {
		opt.Hold = defaultHold
	}
	if opt.NodeAddrs == nil {
		opt.NodeAddrs = kernel.InterfaceAddrs
	}
	h.opt.Store(&opt)
	h.who.Apply(owner.Sources{Pods: opt.Pods, HostNetns: opt.HostNetns, ForeignPIDs: opt.ForeignPIDs, NodeAddrs: opt.NodeAddrs})
	h.who.RefreshAddrs()
}

// Resolver returns what finds out whose events are, for others to ask, too.
func (h *Hub) Resolver() *owner.Resolver { return h.who }

// Offer hands e over to the Hub. It never waits: if the Hub is behind, e is
// lost and counted. An event without a type of the Catalogue is ignored.
func (h *Hub) Offer(e *Event) {
	if e == nil {
		return
	}
	c := h.account.of(e.Type)
	if c == nil {
		return
	}
	c.offered.Add(1)
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.closed {
		select {
		case h.queue <- e:
			return
		default:
		}
	}
	c.report(e, false)
}

// CountOnly counts events that never became an Event: suppressed by a limit in
// the kernel, or lost on the way from there.
func (h *Hub) CountOnly(t *catalog.EventType, suppressed, lost uint64) {
	if c := h.account.of(t); c != nil {
		c.countOnly(suppressed, lost)
	}
}

// CountIgnored counts events that never became an Event since nobody asked to
// hear of them.
func (h *Hub) CountIgnored(t *catalog.EventType, n uint64) {
	if c := h.account.of(t); c != nil {
		c.countIgnored(n)
	}
}

// Owe says that of the suppressed events that CountOnly counts, n are of a network
// namespace: the next entry of that type and owner tells of them, if the namespace
// says who the owner is.
func (h *Hub) Owe(t *catalog.EventType, netns, n uint64) {
	if h.account.of(t) == nil || n == 0 {
		return
	}
	select {
	case h.owing <- owing{t, netns, n}:
	default: // they are in the account
	}
}

// Recall lets the account of a type go on from what an earlier run had counted.
// What was pending then is lost.
func (h *Hub) Recall(t *catalog.EventType, n Counts) {
	if c := h.account.of(t); c != nil {
		c.recall(n)
	}
}

// Counts tells what became of the events of one type.
func (h *Hub) Counts(t *catalog.EventType) Counts {
	if c := h.account.of(t); c != nil {
		return c.counts()
	}
	return Counts{}
}

// Entries tells how many entries were written for the events of one type.
func (h *Hub) Entries(t *catalog.EventType) uint64 {
	if c := h.account.of(t); c != nil {
		return c.entries.Load()
	}
	return 0
}

// Close sends what was offered and what is merged, past the limits, waits for the
// sinks to write it, and closes them. What they have not written when ctx ends is
// lost. What is offered later is lost, too.
func (h *Hub) Close(ctx context.Context) error {
	h.mu.Lock()
	first := !h.closed
	h.closed = true
	h.mu.Unlock()
	if first {
		close(h.stop)
	}
	<-h.done
	if !first {
		return nil
	}
	errs := make([]error, len(h.sinks))
	var wg sync.WaitGroup
	for i, s := range h.sinks {
		wg.Go(func() { errs[i] = s.Close(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// reported is told what became of an event.
func (h *Hub) reported(e *Event, written bool) { h.account[e.Type.ID()].report(e, written) }

func (h *Hub) run() {
	defer close(h.done)
	for {
		select {
		case e := <-h.queue:
			h.take(e)
		case o := <-h.owing:
			h.owe(o, time.Now())
		case now := <-h.timer.C:
			h.timerAt = time.Time{}
			h.tick(now)
		case <-h.stop:
			h.drain()
			return
		}
	}
}

// wake has tick called at t at the latest.
func (h *Hub) wake(t time.Time) {
	if h.timerAt.IsZero() || t.Before(h.timerAt) {
		h.timerAt = t
		h.timer.Reset(time.Until(t))
	}
}

// wakeSweep has tick called for the next sweep.
func (h *Hub) wakeSweep() { h.wake(h.swept.Add(sweepEvery)) }

// wakeKinds has tick called when the next window ends.
func (h *Hub) wakeKinds() {
	if t := h.kinds.next(); !t.IsZero() {
		h.wake(t)
	}
}

func (h *Hub) tick(now time.Time) {
	h.held.retry(now)
	if now.Sub(h.swept) >= sweepEvery {
		h.swept = now
		h.held.sweep(now)
		h.limits.sweep(h.opt.Load().limits(), now)
	}
	h.kinds.tick(h.opt.Load().windows(), now)
	h.wakeKinds()
	nothing, known := h.held.empty()
	if !nothing {
		h.wake(now.Add(retryHeld))
	}
	if !known || len(h.limits.buckets) > 0 {
		h.wakeSweep()
	}
}

// drain sends what is there when the Hub is closed. No more comes.
func (h *Hub) drain() {
	for {
		select {
		case e := <-h.queue:
			h.attribute(e)
			h.send(e, time.Now())
			continue
		default:
		}
		break
	}
	h.held.drain()
	for {
		select {
		case o := <-h.owing:
			h.owe(o, time.Now())
			continue
		default:
		}
		break
	}
	h.ending = true
	h.kinds.drain(time.Now())
	h.timer.Stop()
}

func (h *Hub) take(e *Event) {
	now := time.Now()
	hold := h.opt.Load().Hold
	if e.Time.IsZero() {
		e.Time = now
	}
	if h.attribute(e) {
		if h.held.ofNetns[e.Netns] > 0 {
			h.held.retry(now) // those before it go first
		}
		if h.held.forAddrs(e, hold, now) {
			return
		}
	} else if h.held.forPod(e, hold, now) {
		return
	}
	h.send(e, now)
}
