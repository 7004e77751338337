package event

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// EventSink writes events somewhere.
type Sink interface {
	// Send takes e for writing and returns at once, however slow the reader
	// is. done, unless it is nil, is called exactly once for e, from any
	// goroutine, perhaps before Send returns: with true when e has been handed
	// over to the reader, with false when it is lost.
	Send(e *Event, done func(e *Event, written bool))
	// Close writes what Send took, until ctx ends, and gives up the rest. What
	// Send gets later is lost. When Close returns, every done has been called.
	Close(ctx context.Context) error
}

// The limits that the configuration has by default.
const (
	DefaultEventRate  = 20  // a second, of one type and pod
	DefaultEventBurst = 100 // at once, of one type and pod
	DefaultTotalRate  = 200 // a second, of all
)

// HubOptions say how a Hub attributes and limits events.
type HubOptions struct {
	// Node is the node's name, HostLabel what stands for a pod in events of
	// the host.
	Node, HostLabel string
	// HostNetns is the inode number of the host's network namespace. If it is
	// 0, every namespace that is no pod's counts as the host's.
	HostNetns uint64
	// Rate is how many events a second of one type and pod are let through,
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
	// neither limited nor written.
	Filter func(*Event) bool
}

const (
	// queueSize is how many events wait for the Hub's goroutine. It needs
	// about a microsecond for each.
	queueSize = 4096

	defaultHold  = time.Second
	maxHeld      = 1024
	maxHeldOf    = 64 // of one namespace
	retryHeld    = 50 * time.Millisecond
	maxStrangers = 4096
	strangerFor  = time.Minute

	sweepEvery  = 10 * time.Second
	maxBuckets  = 8192
	nodeAddrAge = 30 * time.Second

	// nodeAddrPause is the least time between two readings of the node's addresses.
	nodeAddrPause = 200 * time.Millisecond
	// An address that was nobody's a moment ago holds up no other event for so long.
	unknownAddrFor  = 5 * time.Second
	maxUnknownAddrs = 4096
	maxHeldForAddrs = maxHeld / 4
)

// EventCounts tell what became of the events of one type:
// Offered = Written + Suppressed + Lost + Filtered + Pending.
type Counts struct {
	// Offered counts those that occurred: handed to the Hub, or kept back by
	// limits in the kernel and lost on the way from there.
	Offered uint64
	// Written counts those that the first sink handed over to its reader.
	Written uint64
	// Suppressed counts those that a rate limit kept back, in the kernel or here.
	Suppressed uint64
	// Lost counts those that were to be written and could not be.
	Lost uint64
	// Filtered counts those that Filter did not want.
	Filtered uint64
	// Pending counts those on the way.
	Pending uint64
}

type counts struct {
	offered, written, suppressed, lost, filtered atomic.Uint64

	// carry counts suppressed events that the next entry of the type, of
	// whatever pod, is to tell about.
	carry atomic.Uint64
}

// Hub takes events from the probes, finds out whose they are, keeps them from
// flooding the node, and sends them to the sinks. What becomes of each is
// counted. All methods may be called from any goroutine.
type Hub struct {
	opt    atomic.Pointer[HubOptions]
	sinks  []Sink
	report func(e *Event, written bool) // made once: a method value is an allocation
	counts []counts                     // by EventType.ID
	queue  chan *Event
	stop   chan struct{}
	done   chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held for writing only to close
	closed bool

	local localAddrs

	// The rest belongs to the goroutine.
	process   []bool // by EventType.ID: attributed by process
	held      []heldEvent
	heldNetns map[uint64]int // how many are held, by namespace
	heldAddrs int            // how many are held for an address alone
	strangers map[stranger]time.Time
	unknown   map[netip.Addr]time.Time // since when an address is known as nobody's
	limits    limiter
	timer     *time.Timer
	timerAt   time.Time // zero: not set
	swept     time.Time
	settled   bool // the event that is being sent has been accounted for
	panicked  bool // that has been logged
}

// heldEvent waits for its pod to become known, or for the node's addresses to be
// read: one of its ends may be a new one.
type heldEvent struct {
	e               *Event
	retry, deadline time.Time
	since           time.Time
	addr            bool // it waits for an address alone
}

// stranger is a namespace or a process that was no pod's after an event of it
// had been held. The next ones are not held: a pod's namespace is asked for
// again with each.
type stranger struct {
	netns uint64
	pid   int
}

// NewHub starts a Hub. What the first sink reports decides whether an event
// counts as written.
func NewHub(opt HubOptions, sinks ...Sink) *Hub {
	now := time.Now()
	h := &Hub{
		sinks:     sinks,
		counts:    make([]counts, len(catalog.Events())),
		queue:     make(chan *Event, queueSize),
		stop:      make(chan struct{}),
		done:      make(chan struct{}),
		process:   make([]bool, len(catalog.Events())),
		heldNetns: map[uint64]int{},
		strangers: map[stranger]time.Time{},
		unknown:   map[netip.Addr]time.Time{},
		limits:    limiter{start: now, buckets: map[bucketKey]*bucket{}},
		swept:     now,
		local:     localAddrs{start: now},
	}
	h.report = h.reported
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
	if opt.Pods == nil {
		opt.Pods = owner.NoPods{}
	}
	if opt.Hold == 0 {
		opt.Hold = defaultHold
	}
	if opt.NodeAddrs == nil {
		opt.NodeAddrs = kernel.InterfaceAddrs
	}
	h.opt.Store(&opt)
	h.local.refresh(opt.NodeAddrs)
}

// Pods returns the pods that events are attributed to now.
func (h *Hub) Pods() owner.Pods { return h.opt.Load().Pods }

// known returns the type's counters, nil for a type that is not the
// Catalogue's.
func (h *Hub) known(t *catalog.EventType) *counts {
	if t == nil || t.ID() >= len(catalog.Events()) || catalog.Events()[t.ID()] != t {
		return nil
	}
	return &h.counts[t.ID()]
}

// Offer hands e over to the Hub. It never waits: if the Hub is behind, e is
// lost and counted. An event without a type of the Catalogue is ignored.
func (h *Hub) Offer(e *Event) {
	if e == nil {
		return
	}
	c := h.known(e.Type)
	if c == nil {
		return
	}
	if n := e.Suppressed; n > 0 {
		c.offered.Add(1 + n)
		c.suppressed.Add(n)
	} else {
		c.offered.Add(1)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.closed {
		select {
		case h.queue <- e:
			return
		default:
		}
	}
	h.reported(e, false)
}

// Missed counts events that never became an Event: suppressed by a limit in
// the kernel, or lost on the way from there. The next entry of the type tells
// how many were suppressed.
func (h *Hub) Missed(t *catalog.EventType, suppressed, lost uint64) {
	if c := h.known(t); c != nil {
		c.offered.Add(suppressed + lost)
		c.suppressed.Add(suppressed)
		c.lost.Add(lost)
		c.carry.Add(suppressed)
	}
}

// Counts tells what became of the events of one type.
func (h *Hub) Counts(t *catalog.EventType) Counts {
	c := h.known(t)
	if c == nil {
		return Counts{}
	}
	// An event is offered before anything else becomes of it, so Offered is
	// read last.
	n := Counts{Written: c.written.Load(), Suppressed: c.suppressed.Load(), Lost: c.lost.Load(), Filtered: c.filtered.Load()}
	n.Offered = c.offered.Load()
	n.Pending = n.Offered - n.Written - n.Suppressed - n.Lost - n.Filtered
	return n
}

// Close sends what was offered, waits for the sinks to write it, and closes
// them. What they have not written when ctx ends is lost. What is offered
// later is lost, too.
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
func (h *Hub) reported(e *Event, written bool) {
	c := &h.counts[e.Type.ID()]
	if written {
		c.written.Add(1)
		return
	}
	c.lost.Add(1)
	if e.Suppressed > 0 {
		c.carry.Add(e.Suppressed) // nobody has read of them
	}
}

func (h *Hub) run() {
	defer close(h.done)
	for {
		select {
		case e := <-h.queue:
			h.take(e)
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

func (h *Hub) tick(now time.Time) {
	opt := h.opt.Load()
	h.retry(opt, now)
	if now.Sub(h.swept) >= sweepEvery {
		h.sweep(opt, now)
	}
	if len(h.held) > 0 {
		h.wake(now.Add(retryHeld))
	}
	if len(h.limits.buckets) > 0 || len(h.strangers) > 0 || len(h.unknown) > 0 {
		h.wake(h.swept.Add(sweepEvery))
	}
}

func (h *Hub) sweep(opt *HubOptions, now time.Time) {
	h.swept = now
	h.limits.sweep(opt, now, h.carry)
	for s, since := range h.strangers {
		if now.Sub(since) >= strangerFor {
			delete(h.strangers, s)
		}
	}
	for a, since := range h.unknown {
		if now.Sub(since) >= unknownAddrFor {
			delete(h.unknown, a)
		}
	}
}

func (h *Hub) carry(typ int, suppressed uint64) { h.counts[typ].carry.Add(suppressed) }

// drain sends what is there when the Hub is closed. No more comes.
func (h *Hub) drain() {
	opt := h.opt.Load()
	for {
		select {
		case e := <-h.queue:
			h.attribute(opt, e)
			h.send(opt, e, time.Now())
			continue
		default:
		}
		break
	}
	for _, x := range h.held {
		h.attribute(opt, x.e)
		h.send(opt, x.e, time.Now())
	}
	h.held, h.heldAddrs = nil, 0
	h.timer.Stop()
}

func (h *Hub) take(e *Event) {
	now := time.Now()
	opt := h.opt.Load()
	if e.Time.IsZero() {
		e.Time = now
	}
	if h.attribute(opt, e) {
		if h.heldNetns[e.Netns] > 0 {
			h.retry(opt, now) // those before it go first
		}
		if h.holdForAddr(opt, e, now) {
			return
		}
	} else if h.hold(opt, e, now) {
		return
	}
	h.send(opt, e, now)
}

// attribute finds the event's pod, and reports whether it can be sure of it.
// An event on which the resolver panics is nobody's.
func (h *Hub) attribute(opt *HubOptions, e *Event) (sure bool) {
	err := bounded.Guard(func() { sure = h.ask(opt, e) })
	if err != nil {
		h.say(opt, "finding out whose an event is failed; it is sent without", err)
		e.Pod, e.unresolved, sure = nil, true, true
	}
	return sure
}

// say logs the first panic.
func (h *Hub) say(opt *HubOptions, what string, err error) {
	if !h.panicked && opt.Log != nil {
		h.panicked = true
		opt.Log.Error(what, "error", err)
	}
}

func (h *Hub) ask(opt *HubOptions, e *Event) bool {
	if e.Pod != nil {
		return true
	}
	inPod := e.Netns != 0 && e.Netns != opt.HostNetns
	if inPod {
		if e.Pod = opt.Pods.ByNetns(e.Netns); e.Pod != nil {
			return true
		}
	}
	if h.process[e.Type.ID()] && e.PID > 0 && !opt.ForeignPIDs {
		// Pods in the host's network namespace are found so, too.
		if e.Pod = opt.Pods.ByPID(e.PID); e.Pod != nil {
			return true
		}
		return !inPod && e.Netns != 0
	}
	return !inPod
}

func strangerOf(e *Event) stranger {
	if e.Netns != 0 {
		return stranger{netns: e.Netns}
	}
	return stranger{pid: e.PID}
}

// hold keeps e until its pod is known, and reports whether it does.
func (h *Hub) hold(opt *HubOptions, e *Event, now time.Time) bool {
	if opt.Hold < 0 || !opt.Pods.Connected() {
		return false
	}
	if since, ok := h.strangers[strangerOf(e)]; ok && now.Sub(since) < strangerFor {
		return false
	}
	if h.hasNewAddr(opt, e, now) {
		h.local.ask(opt.NodeAddrs)
	}
	x := heldEvent{e: e, retry: now.Add(retryHeld), deadline: now.Add(opt.Hold), since: now}
	if e.Netns == 0 {
		// Asking about a process costs system calls.
		x.retry = now.Add(opt.Hold / 2)
	}
	// Who came first has waited longest; one namespace does not take the room
	// of others.
	if h.heldNetns[e.Netns] >= maxHeldOf {
		h.release(opt, slices.IndexFunc(h.held, func(y heldEvent) bool { return y.e.Netns == e.Netns }), now)
	} else if len(h.held) >= maxHeld {
		h.release(opt, 0, now)
	}
	h.held = append(h.held, x)
	h.heldNetns[e.Netns]++
	h.wake(now.Add(min(retryHeld, opt.Hold)))
	return true
}

// holdForAddr keeps e, whose pod is known, while the node's addresses are read, if
// one of its ends may be a new one, and reports whether it does.
func (h *Hub) holdForAddr(opt *HubOptions, e *Event, now time.Time) bool {
	if opt.Hold < 0 || h.heldAddrs >= maxHeldForAddrs || len(h.unknown) >= maxUnknownAddrs || !h.hasNewAddr(opt, e, now) {
		return false
	}
	h.local.ask(opt.NodeAddrs)
	h.held = append(h.held, heldEvent{e: e, retry: now.Add(retryHeld), deadline: now.Add(opt.Hold), since: now, addr: true})
	h.heldNetns[e.Netns]++
	h.heldAddrs++
	h.wake(now.Add(min(retryHeld, opt.Hold)))
	return true
}

// hasNewAddr reports whether an end of e has an address that is nobody's, and was not
// so a moment ago.
func (h *Hub) hasNewAddr(opt *HubOptions, e *Event, now time.Time) bool {
	return h.isNewAddr(opt, e, &e.Src, now) || h.isNewAddr(opt, e, &e.Dst, now)
}

func (h *Hub) isNewAddr(opt *HubOptions, e *Event, end *Endpoint, now time.Time) bool {
	a := end.Addr.Unmap()
	if !a.IsValid() || end.Kind != "" || a.IsLoopback() || a.IsMulticast() || h.local.contains(a) || opt.Pods.ByAddr(a) != nil {
		return false
	}
	if e.Pod != nil && slices.Contains(e.Pod.Addrs, a) {
		return false
	}
	since, ok := h.unknown[a]
	return !ok || now.Sub(since) >= unknownAddrFor
}

// mayBeNode reports whether x has to wait on: an end of it has an address that is
// nobody's so far, and the node's were not read since x came. If they were, the
// address is known as nobody's.
func (h *Hub) mayBeNode(opt *HubOptions, x *heldEvent, now time.Time) bool {
	for _, end := range []*Endpoint{&x.e.Src, &x.e.Dst} {
		if !h.isNewAddr(opt, x.e, end, now) {
			continue
		}
		if !h.local.readSince(x.since) && now.Before(x.deadline) {
			h.local.ask(opt.NodeAddrs)
			return true
		}
		if len(h.unknown) < maxUnknownAddrs {
			h.unknown[end.Addr.Unmap()] = now
			h.wake(h.swept.Add(sweepEvery))
		}
	}
	return false
}

// release sends a held event before its time.
func (h *Hub) release(opt *HubOptions, i int, now time.Time) {
	x := h.held[i]
	h.held = slices.Delete(h.held, i, i+1)
	h.noLongerHeld(x.e.Netns)
	h.attribute(opt, x.e)
	h.send(opt, x.e, now)
}

func (h *Hub) noLongerHeld(netns uint64) {
	if n := h.heldNetns[netns]; n > 1 {
		h.heldNetns[netns] = n - 1
	} else {
		delete(h.heldNetns, netns)
	}
}

// retry sends the held events whose pod is known by now, and those that have
// been held for long enough.
func (h *Hub) retry(opt *HubOptions, now time.Time) {
	if len(h.held) == 0 {
		return
	}
	kept := h.held[:0]
	for _, x := range h.held {
		late := !now.Before(x.deadline)
		switch {
		case !late && now.Before(x.retry):
			kept = append(kept, x)
			continue
		case h.attribute(opt, x.e) && !h.mayBeNode(opt, &x, now):
		case x.addr && !late:
			x.retry = now.Add(retryHeld)
			kept = append(kept, x)
			continue
		case x.addr:
		case late:
			if len(h.strangers) >= maxStrangers {
				for s := range h.strangers { // any: its next event is held once more
					delete(h.strangers, s)
					break
				}
			}
			h.strangers[strangerOf(x.e)] = now
			h.wake(h.swept.Add(sweepEvery))
		default:
			x.retry = now.Add(retryHeld)
			if x.e.Netns == 0 {
				x.retry = x.deadline
			}
			kept = append(kept, x)
			continue
		}
		h.noLongerHeld(x.e.Netns)
		if x.addr {
			h.heldAddrs--
		}
		h.send(opt, x.e, now)
	}
	clear(h.held[len(kept):])
	h.held = kept
}

// send gives e its labels and sends it, unless a limit keeps it back. An event
// on which that panics is lost.
func (h *Hub) send(opt *HubOptions, e *Event, now time.Time) {
	h.settled = false
	if err := bounded.Guard(func() { h.sendOne(opt, e, now) }); err != nil {
		h.say(opt, "an event is lost", err)
		if !h.settled {
			h.reported(e, false)
		}
	}
}

func (h *Hub) sendOne(opt *HubOptions, e *Event, now time.Time) {
	e.Node = opt.Node
	e.foreign = e.Pod == nil && e.Netns != 0 && opt.HostNetns != 0 && e.Netns != opt.HostNetns
	// Events of packets and sockets have a namespace; others are the node's.
	e.unattributed = e.Pod == nil && (e.unresolved || e.Netns == 0 && (e.Type.Has(catalog.FieldTuple) || opt.ForeignPIDs && h.process[e.Type.ID()]))
	switch {
	case e.unattributed:
		e.HostLabel = owner.UnknownLabel
	case e.OfHost():
		e.HostLabel = opt.HostLabel
	}
	h.endpoint(opt, e, &e.Src)
	h.endpoint(opt, e, &e.Dst)

	c := &h.counts[e.Type.ID()]
	if opt.Filter != nil && !opt.Filter(e) {
		h.settled = true
		c.filtered.Add(1)
		c.carry.Add(e.Suppressed)
		return
	}
	b, ok := h.limits.allow(opt, e, now)
	if b != nil {
		h.wake(h.swept.Add(sweepEvery))
	}
	if !ok {
		// Its own number of suppressed ones goes with it.
		h.settled = true
		b.suppressed += 1 + e.Suppressed
		c.suppressed.Add(1)
		return
	}
	if b != nil {
		e.Suppressed += b.suppressed
		b.suppressed = 0
	}
	if c.carry.Load() > 0 {
		e.Suppressed += c.carry.Swap(0)
	}
	if len(h.sinks) == 0 {
		h.settled = true
		h.reported(e, false)
	}
	for i, s := range h.sinks {
		report := h.report
		if i > 0 {
			report = nil
		}
		if err := bounded.Guard(func() { s.Send(e, report) }); err != nil {
			h.say(opt, "a sink did not take an event", err)
			if i == 0 {
				h.settled = true
				h.reported(e, false)
			}
		} else if i == 0 {
			h.settled = true
		}
	}
}

// endpoint finds out whose one end of a connection is.
func (h *Hub) endpoint(opt *HubOptions, e *Event, end *Endpoint) {
	if !end.Addr.IsValid() || end.Kind != "" {
		return
	}
	end.Addr = end.Addr.Unmap()
	switch {
	case end.Addr.IsLoopback():
		// The other end is where this one is.
		if end.Pod = e.Pod; e.Pod == nil && !e.foreign {
			end.Kind = EndNode
		}
	case e.Pod != nil && slices.Contains(e.Pod.Addrs, end.Addr):
		// An address may be another pod's by now.
		end.Pod = e.Pod
	default:
		end.Pod = opt.Pods.ByAddr(end.Addr)
	}
	if p := end.Pod; p != nil {
		if p.HostNetwork {
			// Its addresses are the node's.
			end.Pod, end.Kind = nil, EndNode
		} else {
			end.Kind = EndPod
		}
	}
	if end.Kind == "" && h.local.has(end.Addr, opt.NodeAddrs) {
		end.Kind = EndNode
	}
	if end.Kind == "" {
		end.Kind = EndUnknown
	} else {
		end.Node = opt.Node
	}
}

// localAddrs knows the node's own addresses.
type localAddrs struct {
	start   time.Time
	addrs   atomic.Pointer[map[netip.Addr]struct{}]
	read    atomic.Int64 // when they were asked for last, in nanoseconds since start
	known   atomic.Int64 // when those of addrs were asked for
	reading atomic.Bool
}

// contains reports whether a is the node's, as far as is known.
func (l *localAddrs) contains(a netip.Addr) bool {
	if m := l.addrs.Load(); m != nil {
		_, ok := (*m)[a]
		return ok
	}
	return false
}

// readSince reports whether the addresses are those of a reading that began after t.
func (l *localAddrs) readSince(t time.Time) bool {
	return l.addrs.Load() != nil && time.Duration(l.known.Load()) >= t.Sub(l.start)
}

// ask has the addresses read again, unless that was done just now.
func (l *localAddrs) ask(read func() ([]netip.Addr, error)) {
	if time.Since(l.start)-time.Duration(l.read.Load()) >= nodeAddrPause {
		l.refresh(read)
	}
}

// has reports whether a is the node's, as far as is known. Where it is not,
// they are read again, for the events to come.
func (l *localAddrs) has(a netip.Addr, read func() ([]netip.Addr, error)) bool {
	if l.contains(a) {
		return true
	}
	if time.Since(l.start)-time.Duration(l.read.Load()) >= nodeAddrAge {
		l.refresh(read)
	}
	return false
}

// refresh reads the addresses in a goroutine of its own: the kernel's lock on
// network devices can be held for long.
func (l *localAddrs) refresh(read func() ([]netip.Addr, error)) {
	if !l.reading.CompareAndSwap(false, true) {
		return
	}
	at := int64(time.Since(l.start))
	l.read.Store(at)
	go func() {
		defer l.reading.Store(false)
		var list []netip.Addr
		err := errors.New("it panicked")
		_ = bounded.Guard(func() { list, err = read() })
		if err != nil {
			return // those of before stay
		}
		m := make(map[netip.Addr]struct{}, len(list))
		for _, a := range list {
			m[a.WithZone("").Unmap()] = struct{}{}
		}
		l.addrs.Store(&m)
		l.known.Store(at)
	}()
}

// limiter holds a token bucket per event type and pod, and one over all.
type limiter struct {
	start   time.Time
	buckets map[bucketKey]*bucket
	total   bucket
}

// bucketKey names a type's events of one pod; of all namespaces that are no
// pod's; or, with neither, of the host.
type bucketKey struct {
	typ     int
	pod     string
	foreign bool
	// unattributed is what belongs to no known namespace.
	unattributed bool
	rest         bool // of all for which there was no room
}

type bucket struct {
	tokens     float64
	last       time.Duration // since limiter.start
	used       bool
	loud       bool   // it was empty, and has not been full since
	suppressed uint64 // since the last one that was let through
}

// fill adds the tokens of the time that has passed.
func (b *bucket) fill(now time.Duration, rate, burst float64) {
	if !b.used {
		b.tokens, b.used = burst, true
	} else if now > b.last {
		b.tokens = min(burst, b.tokens+rate*(now-b.last).Seconds())
	}
	b.last = now
}

// allow reports whether e is within the limits. It returns the bucket of e's
// type and pod, nil if nothing is limited. Who keeps below its own limit takes
// from what there is for all without asking for it; what then is left, also the
// debt, is shared by those that do not.
func (l *limiter) allow(opt *HubOptions, e *Event, at time.Time) (*bucket, bool) {
	if opt.Rate <= 0 && opt.TotalRate <= 0 {
		return nil, true
	}
	now := at.Sub(l.start)
	key := bucketKey{typ: e.Type.ID()}
	switch {
	case e.Pod != nil:
		// Two sandboxes of one pod are one.
		if key.pod = e.Pod.UID; key.pod == "" {
			key.pod = e.Pod.ID
		}
	case e.foreign:
		key.foreign = true
	case e.unattributed:
		key.unattributed = true
	}
	b := l.buckets[key]
	if b == nil && len(l.buckets) >= maxBuckets {
		key = bucketKey{typ: e.Type.ID(), rest: true}
		b = l.buckets[key]
	}
	if b == nil {
		b = &bucket{}
		l.buckets[key] = b
	}
	if opt.Rate > 0 {
		b.fill(now, float64(opt.Rate), burst(opt))
		if b.loud = b.loud && b.tokens < burst(opt); b.tokens < 1 {
			b.loud = true
			return b, false
		}
		b.tokens-- // also for one that is held back below: it is what e's owner had to say
	} else {
		b.last, b.loud = now, true // there is no limit to keep below
	}
	if opt.TotalRate > 0 {
		rate := float64(opt.TotalRate)
		if l.total.fill(now, rate, max(rate, burst(opt))); b.loud && l.total.tokens < 1 {
			return b, false
		}
		l.total.tokens = max(l.total.tokens-1, -rate)
	}
	return b, true
}

func burst(opt *HubOptions) float64 { return float64(max(opt.Burst, 1)) }

// sweep drops the buckets that are full again: those of pods that are gone
// among them. A new one would be the same, but for the number of suppressed
// events, which is handed on.
func (l *limiter) sweep(opt *HubOptions, at time.Time, carry func(typ int, suppressed uint64)) {
	now := at.Sub(l.start)
	for key, b := range l.buckets {
		idle := now - b.last
		full := opt.Rate <= 0 || b.tokens+float64(opt.Rate)*idle.Seconds() >= burst(opt)
		if idle >= sweepEvery && full {
			carry(key.typ, b.suppressed)
			delete(l.buckets, key)
		}
	}
}
