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

// HubOptions are the settings of a Hub.
type HubOptions struct {
	// Node is the node's name; HostLabel stands for a pod in the host's events.
	Node, HostLabel string
	// HostNetns is the inode number of the host's network namespace. If it is 0, every
	// namespace that is not a pod's counts as the host's.
	HostNetns uint64
	// Window is how long events of one kind are merged after the first. The window doubles
	// while they continue, up to MaxWindow. 0: no merging.
	Window, MaxWindow time.Duration
	// Rate and Burst limit the entries of one type and pod, per second and at once; 0 is no
	// limit. The host, unattributed events, and all unowned namespaces together count as
	// one pod each. TotalRate limits all entries per second, but only for owners that
	// exceed Rate and Burst: an owner within its own limit is always heard.
	Rate, Burst, TotalRate int
	// Hold is how long an event waits for its pod to become known. 0 means one second; a
	// negative value, not at all.
	Hold time.Duration
	Pods owner.Pods
	// NodeAddrs lists the node's own addresses and is called repeatedly. nil lists those of
	// this process's network namespace.
	NodeAddrs func() ([]netip.Addr, error)
	// Log receives one line at the first panic of a resolver or a sink; nil: no
	// log.
	Log *slog.Logger
	// ForeignPIDs says that the kernel's PIDs are those of another PID namespace, so that
	// they identify nobody here. Events that have only such a number are unattributed.
	ForeignPIDs bool
	// Filter selects the events that are wanted; nil: all. Other events are neither merged
	// nor limited nor written.
	Filter func(*Event) bool
}

func (o *HubOptions) limits() limits   { return limits{o.Rate, o.Burst, o.TotalRate} }
func (o *HubOptions) windows() windows { return windows{o.Window, o.MaxWindow} }

const (
	// queueSize is the capacity of the Hub's queue. Its goroutine needs about a microsecond
	// per event.
	queueSize = 4096

	// owingSize is the capacity of the queue of Owe.
	owingSize = 1024

	sweepEvery = 10 * time.Second
)

// Hub takes events from the probes. It finds their owner, ignores unwanted ones, merges
// those of one kind, limits their rate, and sends them to the sinks, in this order. Each
// event is counted by its outcome. All methods may be called from any goroutine.
type Hub struct {
	opt     atomic.Pointer[HubOptions]
	who     *owner.Resolver
	sinks   []Sink
	report  func(e *Event, written bool) // made once, since a method value allocates
	account account
	queue   chan *Event
	owing   chan owing
	stop    chan struct{}
	done    chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // locked for writing only by Close
	closed bool

	// The Hub's goroutine owns the following fields.
	process  []bool // by EventType.ID: the owner is found by its process
	held     holds
	kinds    kinds
	limits   limiter
	ending   bool // Close is under way: limits suppress nothing
	timer    *time.Timer
	timerAt  time.Time // zero: not set
	swept    time.Time
	panicked bool // a panic has been logged
}

// owing is a number of occurrences that the kernel's limit of a type and namespace
// suppressed.
type owing struct {
	typ   *catalog.EventType
	netns uint64
	n     uint64
}

// NewHub starts a Hub. An event counts as written if the first sink reports it as written.
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

// Apply changes the options for later events.
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

// Resolver returns the Hub's resolver, for other users.
func (h *Hub) Resolver() *owner.Resolver { return h.who }

// Offer hands e to the Hub. It never waits: if the queue is full, e is counted as lost. An
// event whose type is not in the Catalogue is ignored.
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

// CountOnly counts occurrences for which no Event was made: suppressed by a limit in the
// kernel, or lost on the way from there.
func (h *Hub) CountOnly(t *catalog.EventType, suppressed, lost uint64) {
	if c := h.account.of(t); c != nil {
		c.countOnly(suppressed, lost)
	}
}

// CountIgnored counts ignored occurrences for which no Event was made.
func (h *Hub) CountIgnored(t *catalog.EventType, n uint64) {
	if c := h.account.of(t); c != nil {
		c.countIgnored(n)
	}
}

// Owe says that n of the suppressed occurrences in CountOnly belong to a network namespace.
// The next entry of that type and owner reports them, if the namespace identifies the
// owner.
func (h *Hub) Owe(t *catalog.EventType, netns, n uint64) {
	if h.account.of(t) == nil || n == 0 {
		return
	}
	select {
	case h.owing <- owing{t, netns, n}:
	default: // CountOnly has counted them
	}
}

// Recall adds the counts of an earlier process to the account of a type. Its pending events
// are lost.
func (h *Hub) Recall(t *catalog.EventType, n Counts) {
	if c := h.account.of(t); c != nil {
		c.recall(n)
	}
}

// Counts returns the account of an event type.
func (h *Hub) Counts(t *catalog.EventType) Counts {
	if c := h.account.of(t); c != nil {
		return c.counts()
	}
	return Counts{}
}

// Entries returns how many entries were written for the events of one type.
func (h *Hub) Entries(t *catalog.EventType) uint64 {
	if c := h.account.of(t); c != nil {
		return c.entries.Load()
	}
	return 0
}

// Close sends queued and merged events without limits, waits until the sinks have written
// them, and closes the sinks. Events not written when ctx ends, and events offered later,
// are lost.
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

// reported counts an event as written or lost.
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

// wake schedules a call of tick at t or earlier.
func (h *Hub) wake(t time.Time) {
	if h.timerAt.IsZero() || t.Before(h.timerAt) {
		h.timerAt = t
		h.timer.Reset(time.Until(t))
	}
}

// wakeSweep schedules a call of tick for the next sweep.
func (h *Hub) wakeSweep() { h.wake(h.swept.Add(sweepEvery)) }

// wakeKinds schedules a call of tick for the end of the next window.
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

// drain sends the remaining events when the Hub is closed.
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
			h.held.retry(now) // send earlier events of the namespace first
		}
		if h.held.forAddrs(e, hold, now) {
			return
		}
	} else if h.held.forPod(e, hold, now) {
		return
	}
	h.send(e, now)
}
