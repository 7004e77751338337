package event

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

// podTable is a Pods that a test fills.
type podTable struct {
	owner.NoPods
	mu     sync.Mutex
	netns  map[uint64]*owner.Pod
	addrs  map[netip.Addr]*owner.Pod
	pids   map[int]*owner.Pod
	asked  int // number of lookups by process
	absent bool
}

func (p *podTable) Connected() bool { return !p.absent }

func (p *podTable) ByNetns(inode uint64, _ time.Time) *owner.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.netns[inode]
}

func (p *podTable) ByAddr(a netip.Addr) *owner.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[a]
}

func (p *podTable) ByPID(pid int) *owner.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	return p.pids[pid]
}

func (p *podTable) start(netns uint64, q *owner.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.netns == nil {
		p.netns = map[uint64]*owner.Pod{}
	}
	p.netns[netns] = q
}

// listSink records events. write decides whether an event is written; nil: always.
type listSink struct {
	mu     sync.Mutex
	got    []*Event
	at     []time.Time
	write  func(*Event) bool
	closed int
}

func (s *listSink) Send(e *Event, done func(*Event, bool)) {
	s.mu.Lock()
	s.got, s.at = append(s.got, e), append(s.at, time.Now())
	s.mu.Unlock()
	if done != nil {
		done(e, s.write == nil || s.write(e))
	}
}

func (s *listSink) Close(context.Context) error {
	s.closed++
	return nil
}

func (s *listSink) events() []*Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

const hostInode = 4026531840

// testHub is a Hub without limits whose HostNetns is hostInode.
func testHub(t *testing.T, change func(*HubOptions), sinks ...Sink) *Hub {
	opt := HubOptions{Node: "node-1", HostLabel: owner.DefaultHostLabel, HostNetns: hostInode,
		NodeAddrs: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil }}
	if change != nil {
		change(&opt)
	}
	h := NewHub(opt, sinks...)
	t.Cleanup(func() { closeHub(t, h) })
	return h
}

func closeHub(t *testing.T, h *Hub) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func wantCounts(t *testing.T, h *Hub, typ *catalog.EventType, want Counts) {
	t.Helper()
	if d := cmp.Diff(want, h.Counts(typ)); d != "" {
		t.Errorf("%s: counts (-want +got):\n%s", typ.Name, d)
	}
}

var (
	lossType  = catalog.EventByName("PacketLoss")
	resetType = catalog.EventByName("TCPRESET_RECEIVE")
	bioType   = catalog.EventByName("BIOLAT_10MS")
	readType  = catalog.EventByName("SOCKETLAT_READSLOW")
	irqType   = catalog.EventByName("NETSOFTIRQ_SCHED_SLOW")
)

func event(typ *catalog.EventType, netns uint64) *Event {
	return &Event{Type: typ, Netns: netns, PID: -1, CPU: -1}
}

func TestHubAttributesEvents(t *testing.T) {
	addr := netip.MustParseAddr
	web := &owner.Pod{ID: "web", Namespace: "default", Name: "web-0", Addrs: []netip.Addr{addr("10.0.0.5"), addr("10.0.0.66")}}
	db := &owner.Pod{ID: "db", Namespace: "prod", Name: "db-0", Addrs: []netip.Addr{addr("10.0.0.9"), addr("2001:db8::9")}}
	proxy := &owner.Pod{ID: "proxy", Namespace: "kube-system", Name: "proxy-x", HostNetwork: true, Addrs: []netip.Addr{addr("192.0.2.1")}}
	pods := &podTable{
		netns: map[uint64]*owner.Pod{77: web},
		addrs: map[netip.Addr]*owner.Pod{addr("10.0.0.5"): web, addr("10.0.0.9"): db, addr("2001:db8::9"): db, addr("10.0.0.66"): db, addr("192.0.2.1"): proxy},
		pids:  map[int]*owner.Pod{812: web, 900: proxy},
	}
	end := func(s string) Endpoint {
		ap := netip.MustParseAddrPort(s)
		return Endpoint{Addr: ap.Addr(), Port: ap.Port()}
	}
	for name, c := range map[string]struct {
		typ      *catalog.EventType
		netns    uint64
		pid      int
		src, dst string

		pod, node        *owner.Pod
		label            string
		srcPod, dstPod   *owner.Pod
		srcKind, dstKind string
	}{
		"by namespace":                 {typ: lossType, netns: 77, src: "10.0.0.5:1", dst: "203.0.113.7:2", pod: web, srcPod: web, srcKind: "pod", dstKind: "unknown"},
		"both ends by address":         {typ: lossType, netns: hostInode, src: "[::ffff:10.0.0.5]:1", dst: "[2001:db8::9]:2", label: "hostNetwork", srcPod: web, srcKind: "pod", dstPod: db, dstKind: "pod"},
		"the node's address":           {typ: lossType, netns: 77, src: "192.0.2.1:1", dst: "10.0.0.9:2", pod: web, srcKind: "node", dstPod: db, dstKind: "pod"},
		"its own address comes first":  {typ: lossType, netns: 77, src: "10.0.0.66:1", dst: "10.0.0.66:2", pod: web, srcPod: web, srcKind: "pod", dstPod: web, dstKind: "pod"},
		"loopback in a pod":            {typ: lossType, netns: 77, src: "127.0.0.1:1", dst: "[::1]:2", pod: web, srcPod: web, srcKind: "pod", dstPod: web, dstKind: "pod"},
		"loopback on the host":         {typ: lossType, netns: hostInode, src: "127.0.0.1:1", dst: "127.0.0.53:2", label: "hostNetwork", srcKind: "node", dstKind: "node"},
		"loopback somewhere":           {typ: lossType, netns: 4711, src: "127.0.0.1:1", dst: "10.0.0.9:2", srcKind: "unknown", dstPod: db, dstKind: "pod"},
		"by process":                   {typ: bioType, pid: 812, pod: web},
		"process of the host":          {typ: bioType, pid: 1, label: "hostNetwork"},
		"namespace before process":     {typ: readType, netns: 77, pid: 900, src: "10.0.0.5:1", dst: "10.0.0.9:2", pod: web, srcPod: web, srcKind: "pod", dstPod: db, dstKind: "pod"},
		"host network pod by process":  {typ: readType, netns: hostInode, pid: 900, src: "192.0.2.1:1", dst: "127.0.0.1:2", pod: proxy, srcKind: "node", dstKind: "node"},
		"process that was interrupted": {typ: irqType, pid: 812, label: "hostNetwork"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := &listSink{}
				h := testHub(t, func(o *HubOptions) { o.Pods = pods }, sink)
				synctest.Wait() // wait until the node's addresses are read
				e := event(c.typ, c.netns)
				e.PID = c.pid
				if c.src != "" {
					e.Src, e.Dst = end(c.src), end(c.dst)
				}
				h.Offer(e)
				time.Sleep(2 * time.Second)
				if len(sink.events()) != 1 {
					t.Fatalf("%d events", len(sink.events()))
				}
				if e.Pod != c.pod || e.HostLabel != c.label || e.Node != "node-1" || e.Time.IsZero() {
					t.Errorf("pod %v, host label %q, node %q, time %v", e.Pod, e.HostLabel, e.Node, e.Time)
				}
				for i, x := range []struct {
					got  Endpoint
					pod  *owner.Pod
					kind string
				}{{e.Src, c.srcPod, c.srcKind}, {e.Dst, c.dstPod, c.dstKind}} {
					node := "node-1"
					if x.kind == "unknown" || x.kind == "" {
						node = ""
					}
					if x.got.Pod != x.pod || x.got.Kind != x.kind || x.got.Node != node || x.got.Addr.Is4In6() {
						t.Errorf("end %d is %+v", i, x.got)
					}
				}
				wantCounts(t, h, c.typ, Counts{Offered: 1, Written: 1})
			})
		})
	}
}

func TestHubWithoutHostNetnsCallsTheRestHost(t *testing.T) {
	sink := &listSink{}
	h := testHub(t, func(o *HubOptions) { o.HostNetns = 0 }, sink)
	h.Offer(event(lossType, 5))
	closeHub(t, h)
	if e := sink.got[0]; e.HostLabel != "hostNetwork" || !e.OfHost() {
		t.Errorf("got %+v", e)
	}
}

// A new address of the node is recognised in the first event that has it: the event waits
// until the addresses have been read.
func TestHubHoldsEventsOfNewAddrs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		addrs, err, readings, wait := []netip.Addr(nil), error(nil), 0, time.Duration(0)
		sink, pods := &listSink{}, &podTable{addrs: map[netip.Addr]*owner.Pod{}}
		h := testHub(t, func(o *HubOptions) {
			o.Pods = pods
			o.NodeAddrs = func() ([]netip.Addr, error) {
				mu.Lock()
				defer mu.Unlock()
				readings++
				now, e := slices.Clone(addrs), err
				time.Sleep(wait)
				return now, e
			}
		}, sink)
		offer := func(addr string, netns uint64) *Event {
			e := event(lossType, netns)
			e.Src.Addr, e.Dst.Addr = netip.MustParseAddr(addr), netip.MustParseAddr("127.0.0.1")
			h.Offer(e)
			synctest.Wait()
			return e
		}
		// sent checks how soon and with which owner the event is sent.
		sent := func(e *Event, want string, within time.Duration) {
			t.Helper()
			start := time.Now()
			for !slices.Contains(sink.events(), e) && time.Since(start) < 10*time.Second {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
			if d := time.Since(start); e.Src.Kind != want || d > within {
				t.Errorf("%v: %q after %v, want %q within %v", e.Src.Addr, e.Src.Kind, d, want, within)
			}
		}
		time.Sleep(time.Minute)
		const hold = 200*time.Millisecond + 2*retryHeld // the Resolver limits how often it reads
		// A bridge is created with the first pod, and the first event is about the
		// bridge.
		addrs = []netip.Addr{netip.MustParseAddr("::ffff:198.51.100.1")}
		sent(offer("198.51.100.1", hostInode), EndNode, hold)
		sent(offer("198.51.100.1", hostInode), EndNode, 0)
		// An event with a remote address waits once; later ones do not.
		for i, within := range []time.Duration{hold, 0, 0} {
			sent(offer("203.0.113.9", hostInode), EndUnknown, within)
			if i == 0 && len(h.held.unknown) != 1 {
				t.Errorf("%v", h.held.unknown)
			}
		}
		// The address may belong to the node by then.
		time.Sleep(unknownAddrFor)
		addrs = append(addrs, netip.MustParseAddr("203.0.113.9"))
		sent(offer("203.0.113.9", hostInode), EndNode, hold)
		// The address of a pod that becomes known meanwhile.
		late := offer("10.0.0.9", hostInode)
		pods.mu.Lock()
		pods.addrs[netip.MustParseAddr("10.0.0.9")] = webPod
		pods.mu.Unlock()
		sent(late, EndPod, hold)
		// An event that also waits for its own pod.
		time.Sleep(time.Minute)
		mu.Lock()
		addrs = append(addrs, netip.MustParseAddr("203.0.113.10"))
		mu.Unlock()
		both := offer("203.0.113.10", 77)
		pods.start(77, webPod)
		if sent(both, EndNode, hold); both.Pod != webPod {
			t.Errorf("%+v", both.Pod)
		}
		// A reading that fails or hangs holds an event no longer than Hold.
		mu.Lock()
		err = errors.New("netlink is broken")
		mu.Unlock()
		time.Sleep(time.Minute)
		sent(offer("203.0.113.11", hostInode), EndUnknown, time.Second+2*retryHeld)
		sent(offer("198.51.100.1", hostInode), EndNode, 0) // the previous addresses stay
		mu.Lock()
		err, wait = nil, time.Hour
		mu.Unlock()
		time.Sleep(time.Minute)
		sent(offer("203.0.113.12", hostInode), EndUnknown, time.Second+2*retryHeld)
		wait = 0
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := len(h.held.unknown) + len(h.held.waiting) + h.held.forAddr + len(h.held.ofNetns); n != 0 {
			t.Errorf("%d things kept", n)
		}
		// Many unknown addresses, as from an attacker, cause few readings of the node's
		// addresses and lose no event.
		mu.Lock()
		before := readings
		mu.Unlock()
		n := len(sink.events())
		for i := range 3 * maxHeldForAddrs {
			e := event(lossType, hostInode)
			e.Src.Addr = netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			h.Offer(e)
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if d := readings - before; d > 10 {
			t.Errorf("%d readings", d)
		}
		if d := len(sink.events()) - n; d != 3*maxHeldForAddrs {
			t.Errorf("%d events of %d", d, 3*maxHeldForAddrs)
		}
	})
}

func TestHubHoldsEventsUntilTheirPodIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods, sink := &podTable{}, &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods = pods }, sink)
		start := time.Now()
		for range 3 {
			h.Offer(event(lossType, 77))
		}
		h.Offer(event(lossType, 78))
		synctest.Wait()
		wantCounts(t, h, lossType, Counts{Offered: 4, Pending: 4})
		time.Sleep(400 * time.Millisecond)
		pods.start(77, webPod)
		time.Sleep(100 * time.Millisecond)
		if got := sink.events(); len(got) != 3 || got[0].Pod != webPod || got[2].Pod != webPod {
			t.Fatalf("%d events, the first of %v", len(got), got[0].Pod)
		}
		time.Sleep(time.Second)
		got := sink.events()
		if len(got) != 4 || got[3].Pod != nil || got[3].HostLabel != "" || !got[3].unowned || got[3].OfHost() {
			t.Fatalf("%d events, the last %+v", len(got), got[len(got)-1])
		}
		if d := sink.at[3].Sub(start); d < time.Second || d > 1100*time.Millisecond {
			t.Errorf("sent after %v", d)
		}

		// The namespace is known as unowned, so events are not held again. Once a pod has
		// it, the next event shows the pod.
		h.Offer(event(lossType, 78))
		synctest.Wait()
		if got := sink.events(); len(got) != 5 {
			t.Fatalf("%d events: the namespace is held again", len(got))
		}
		pods.start(78, webPod)
		h.Offer(event(lossType, 78))
		synctest.Wait()
		if got := sink.events(); len(got) != 6 || got[5].Pod != webPod {
			t.Fatalf("%d events", len(got))
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := len(h.held.unowned) + len(h.held.waiting) + len(h.held.ofNetns); n != 0 {
			t.Errorf("%d things kept", n)
		}
	})
}

func TestHubKeepsTheOrderOfANamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods, sink := &podTable{}, &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods = pods }, sink)
		first, second := event(lossType, 77), event(lossType, 77)
		h.Offer(first)
		time.Sleep(retryHeld + retryHeld/2)
		pods.start(77, webPod)
		time.Sleep(retryHeld) // due, but the pod was not looked up again yet
		h.Offer(second)
		synctest.Wait()
		if got := sink.events(); len(got) != 2 || got[0] != first || got[1] != second {
			t.Errorf("%d events in another order", len(got))
		}
	})
}

func TestHubHoldsProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods, sink := &podTable{pids: map[int]*owner.Pod{}}, &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods = pods }, sink)
		bio := func(pid int) *Event {
			e := event(bioType, 0)
			e.PID = pid
			h.Offer(e)
			synctest.Wait()
			return e
		}
		e := bio(5)
		time.Sleep(100 * time.Millisecond)
		pods.mu.Lock()
		pods.pids[5] = webPod
		pods.mu.Unlock()
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if e.Pod != webPod {
			t.Errorf("not resolved")
		}
		pods.mu.Lock()
		asked := pods.asked
		pods.mu.Unlock()
		bio(6)
		time.Sleep(1100 * time.Millisecond)
		bio(6)
		bio(-1)
		if got := sink.events(); len(got) != 4 {
			t.Errorf("%d events", len(got))
		}
		synctest.Wait()
		pods.mu.Lock()
		defer pods.mu.Unlock()
		if n := pods.asked - asked; n > 5 {
			t.Errorf("asked %d times for two events", n)
		}
	})
}

func TestHubHoldsABoundedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods, sink := &podTable{}, &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods = pods }, sink)
		for i := range maxHeld + 10 {
			h.Offer(event(lossType, uint64(1000+i)))
		}
		synctest.Wait()
		if n := len(sink.events()); n != 10 {
			t.Errorf("%d were sent at once, want 10", n)
		}
		time.Sleep(1100 * time.Millisecond)
		wantCounts(t, h, lossType, Counts{Offered: maxHeld + 10, Written: maxHeld + 10})
	})
}

func TestHubDoesNotHoldInVain(t *testing.T) {
	for name, change := range map[string]func(*HubOptions){
		"no containerd":  func(o *HubOptions) { o.Pods = &podTable{absent: true} },
		"no pods at all": func(o *HubOptions) { o.Pods = nil },
		"turned off":     func(o *HubOptions) { o.Hold = -1; o.Pods = &podTable{} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := &listSink{}
				h := testHub(t, change, sink)
				h.Offer(event(lossType, 77))
				synctest.Wait()
				if len(sink.events()) != 1 {
					t.Error("it is held")
				}
			})
		})
	}
}

func TestHubLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := &podTable{netns: map[uint64]*owner.Pod{77: webPod, 78: {ID: "db", Namespace: "prod", Name: "db-0"}}}
		sink := &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods, o.Rate, o.Burst, o.TotalRate = pods, 20, 100, 1000 }, sink)
		flood := func(typ *catalog.EventType, netns uint64, n int) {
			for range n {
				h.Offer(event(typ, netns))
			}
			synctest.Wait()
		}
		flood(lossType, 77, 1000)
		wantCounts(t, h, lossType, Counts{Offered: 1000, Written: 100, Suppressed: 900})
		// Neither another pod nor another type is affected.
		flood(lossType, 78, 100)
		flood(resetType, 77, 100)
		wantCounts(t, h, lossType, Counts{Offered: 1100, Written: 200, Suppressed: 900})
		wantCounts(t, h, resetType, Counts{Offered: 100, Written: 100})

		time.Sleep(time.Second)
		flood(lossType, 78, 1)
		if e := sink.events()[300]; e.Suppressed != 0 {
			t.Errorf("the other pod's entry tells of %d", e.Suppressed)
		}
		flood(lossType, 77, 50)
		wantCounts(t, h, lossType, Counts{Offered: 1151, Written: 221, Suppressed: 930})
		got := sink.events()
		if e := got[301]; e.Suppressed != 900 || e.Pod != webPod {
			t.Errorf("the next entry tells of %d", e.Suppressed)
		}
		if e := got[302]; e.Suppressed != 0 {
			t.Errorf("the one after tells of %d", e.Suppressed)
		}

		// The pod is gone. No other owner's entry reports its suppressed events, and its
		// bucket is removed in the end.
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := len(h.limits.buckets); n != 1 {
			t.Errorf("%d buckets are kept", n)
		}
		flood(lossType, 78, 1)
		if got := sink.events(); got[len(got)-1].Suppressed != 0 {
			t.Errorf("another pod's entry tells of %d", got[len(got)-1].Suppressed)
		}
		time.Sleep(owedFor + sweepEvery)
		synctest.Wait()
		if n := len(h.limits.buckets); n != 0 {
			t.Errorf("%d buckets are kept", n)
		}
		wantCounts(t, h, lossType, Counts{Offered: 1152, Written: 222, Suppressed: 930})
	})
}

// manyPods are pods with consecutive namespace numbers from first.
func manyPods(first uint64, n int) *podTable {
	p := &podTable{}
	for i := range n {
		p.start(first+uint64(i), &owner.Pod{ID: fmt.Sprint("pod-", i), Namespace: "prod", Name: fmt.Sprint("pod-", i)})
	}
	return p
}

// TotalRate limits all owners that exceed their own limit together.
func TestHubLimitsTheTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods, o.Rate, o.Burst, o.TotalRate = manyPods(100, 100), 20, 10, 50 }, sink)
		flood := func() {
			for i := range 100 {
				for range 20 {
					h.Offer(event(lossType, uint64(100+i)))
				}
				synctest.Wait()
			}
		}
		flood() // each uses its burst
		wantCounts(t, h, lossType, Counts{Offered: 2000, Written: 1000, Suppressed: 1000})
		// The total is one second's worth in debt now. All continue to exceed their limits
		// for that second and half a second more.
		for range 5 {
			time.Sleep(300 * time.Millisecond)
			flood()
		}
		wantCounts(t, h, lossType, Counts{Offered: 12000, Written: 1025, Suppressed: 10975})
		// No limits from here on.
		opt := *h.opt.Load()
		opt.Rate, opt.TotalRate = 0, 0
		h.Apply(opt)
		for range 1000 {
			h.Offer(event(lossType, 100))
		}
		synctest.Wait()
		wantCounts(t, h, lossType, Counts{Offered: 13000, Written: 2025, Suppressed: 10975})
	})
}

// A pod within its own limit is always heard, whatever other pods, unowned namespaces, the
// host and unattributed events do. The account stays complete.
func TestHubIsFair(t *testing.T) {
	for name, noise := range map[string]func(i int) uint64{
		"pods":       func(i int) uint64 { return uint64(100 + i%60) },
		"unowned":    func(i int) uint64 { return uint64(1000 + i%60) },
		"thousands":  func(i int) uint64 { return uint64(10000 + i) },
		"the host":   func(int) uint64 { return hostInode },
		"nobody":     func(int) uint64 { return 0 },
		"everything": func(i int) uint64 { return []uint64{uint64(100 + i%60), uint64(1000 + i%60), hostInode, 0}[i%4] },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := &listSink{}
				pods := manyPods(100, 61)
				h := testHub(t, func(o *HubOptions) { o.Pods, o.Rate, o.Burst, o.TotalRate = pods, 20, 100, 200 }, sink)
				const quiet = 160
				var offered uint64
				for tick := range 80 { // four seconds
					for i := range 300 {
						h.Offer(event(lossType, noise(tick*300+i)))
						offered++
					}
					h.Offer(event(lossType, quiet)) // 20 a second
					offered++
					synctest.Wait()
					time.Sleep(50 * time.Millisecond)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				heard := 0
				for _, e := range sink.events() {
					if e.Netns == quiet {
						heard++
					}
				}
				if heard != 80 {
					t.Errorf("%d of the quiet pod's 80 events were heard", heard)
				}
				c := h.Counts(lossType)
				if c.Offered != offered || c.Written+c.Suppressed+c.Lost != offered || c.Lost != 0 || c.Pending != 0 {
					t.Errorf("%d offered, %+v", offered, c)
				}
				// The others have written their bursts, which at five times the rate last
				// 1.25 s, and then shared TotalRate. Without TotalRate it would be 60 *
				// (100 + 4*20).
				if c.Written > 60*125+4*200+80 {
					t.Errorf("nothing limits the others: %+v", c)
				}
			})
		})
	}
}

// All unowned namespaces share one limit per type.
func TestHubUnownedShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Hold, o.Rate, o.Burst = -1, 20, 100 }, sink)
		for i := range 500 {
			h.Offer(event(lossType, uint64(100+i)))
			h.Offer(event(resetType, uint64(100+i)))
			h.Offer(event(lossType, hostInode))
			h.Offer(event(lossType, 0))
		}
		synctest.Wait()
		wantCounts(t, h, lossType, Counts{Offered: 1500, Written: 300, Suppressed: 1200})
		wantCounts(t, h, resetType, Counts{Offered: 500, Written: 100, Suppressed: 400})
	})
}

// Thousands of unowned namespaces do not prevent a new pod's events from being held until
// the pod is known.
func TestHubHoldsDespiteUnowned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods, sink := &podTable{}, &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods = pods }, sink)
		for i := range 3 * maxHeld {
			h.Offer(event(lossType, uint64(1000+i)))
		}
		synctest.Wait()
		for range 2 * maxHeld {
			h.Offer(event(lossType, 99))
		}
		synctest.Wait()
		h.Offer(event(lossType, 77))
		synctest.Wait()
		time.Sleep(300 * time.Millisecond)
		pods.start(77, webPod)
		time.Sleep(time.Second)
		for _, e := range sink.events() {
			if e.Netns == 77 && e.Pod != webPod {
				t.Errorf("the pod's event became another's: %s", e.Message())
			}
		}
		const n = 5*maxHeld + 1
		wantCounts(t, h, lossType, Counts{Offered: n, Written: n})
	})
}

func TestHubLimiterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &listSink{}
		const n = maxBuckets + 500
		h := testHub(t, func(o *HubOptions) { o.Pods, o.Rate, o.Burst = manyPods(100, n), 1, 2 }, sink)
		for i := range n {
			h.Offer(event(lossType, uint64(100+i)))
			if i%1000 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		if len(h.limits.buckets) > maxBuckets+len(catalog.Events()) {
			t.Errorf("%d buckets", len(h.limits.buckets))
		}
		wantCounts(t, h, lossType, Counts{Offered: n, Written: maxBuckets + 2, Suppressed: n - maxBuckets - 2})
	})
}

// The next entry of the same type and owner, and no other, reports what the kernel
// suppressed.
func TestHubTellsOfWhatTheKernelSuppressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &listSink{}
		fail := false
		sink.write = func(*Event) bool { return !fail }
		h := testHub(t, func(o *HubOptions) { o.Pods = manyPods(77, 2) }, sink)
		h.CountOnly(lossType, 40, 2)
		h.Owe(lossType, hostInode, 30)
		h.Owe(lossType, 77, 9)
		h.Owe(lossType, 9999, 1) // an unowned namespace, which shares a limit with all others
		synctest.Wait()
		wantCounts(t, h, lossType, Counts{Offered: 42, Suppressed: 40, Lost: 2})
		tells := func(typ *catalog.EventType, netns, want uint64) {
			t.Helper()
			h.Offer(event(typ, netns))
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if got := sink.events(); got[len(got)-1].Suppressed != want {
				t.Errorf("an entry of %s, %d, tells of %d, want %d", typ.Name, netns, got[len(got)-1].Suppressed, want)
			}
		}
		tells(resetType, 77, 0)
		tells(lossType, 78, 0)
		tells(lossType, 1234, 1)
		tells(lossType, 77, 9)
		tells(lossType, 77, 0)
		// A lost entry has reported nothing, so the next one does.
		fail = true
		tells(lossType, hostInode, 30)
		fail = false
		tells(lossType, hostInode, 30)
		tells(lossType, hostInode, 0)
		wantCounts(t, h, lossType, Counts{Offered: 49, Written: 6, Suppressed: 40, Lost: 3})
		h.Owe(nil, 1, 1)
		h.Owe(lossType, 1, 0)
	})
}

func TestHubFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &listSink{}
		h := testHub(t, func(o *HubOptions) {
			o.Rate, o.Burst = 1, 2
			o.Filter = func(e *Event) bool { return e.Node == "node-1" && e.CPU == 1 }
		}, sink)
		for i := range 100 {
			e := event(irqType, 0)
			e.CPU = i
			h.Offer(e)
		}
		synctest.Wait()
		wantCounts(t, h, irqType, Counts{Offered: 100, Written: 1, Ignored: 99})
	})
}

func TestHubSinks(t *testing.T) {
	first, second := &listSink{write: func(*Event) bool { return false }}, &listSink{}
	h := testHub(t, nil, first, second)
	h.Offer(event(lossType, hostInode))
	closeHub(t, h)
	closeHub(t, h)
	if len(first.got) != 1 || len(second.got) != 1 || first.closed != 1 || second.closed != 1 {
		t.Errorf("got %d and %d, closed %d and %d times", len(first.got), len(second.got), first.closed, second.closed)
	}
	wantCounts(t, h, lossType, Counts{Offered: 1, Lost: 1})
	h.Offer(event(lossType, hostInode)) // after Close
	wantCounts(t, h, lossType, Counts{Offered: 2, Lost: 2})

	none := testHub(t, nil)
	none.Offer(event(lossType, hostInode))
	closeHub(t, none)
	wantCounts(t, none, lossType, Counts{Offered: 1, Lost: 1})
}

func TestHubIgnoresWhatIsNoEvent(t *testing.T) {
	h := testHub(t, nil, &listSink{})
	h.Offer(nil)
	h.Offer(&Event{})
	h.Offer(&Event{Type: &catalog.EventType{Name: "Made up"}})
	h.CountOnly(nil, 1, 1)
	if c := h.Counts(&catalog.EventType{}); c != (Counts{}) {
		t.Errorf("counted: %+v", c)
	}
	h.Offer(&Event{Type: catalog.Events()[0]}) // an event without any fields
	closeHub(t, h)
	wantCounts(t, h, catalog.Events()[0], Counts{Offered: 1, Written: 1})
}

// gateSink blocks in Send until it is opened, which a real sink must not do. It simulates a
// Hub that is behind.
type gateSink struct {
	listSink
	gate chan struct{}
}

func (s *gateSink) Send(e *Event, done func(*Event, bool)) {
	<-s.gate
	s.listSink.Send(e, done)
}

func TestOfferNeverWaits(t *testing.T) {
	sink := &gateSink{gate: make(chan struct{})}
	h := testHub(t, nil, sink)
	const n = 3 * queueSize
	for range n {
		h.Offer(event(lossType, hostInode))
	}
	c := h.Counts(lossType)
	if c.Offered != n || c.Lost < n-queueSize-1 || c.Pending != n-c.Lost {
		t.Errorf("got %+v", c)
	}
	close(sink.gate)
	closeHub(t, h)
	lost := c.Lost
	wantCounts(t, h, lossType, Counts{Offered: n, Written: n - lost, Lost: lost})
}

// asyncSink reports later, from another goroutine, and loses some events.
type asyncSink struct{ wg sync.WaitGroup }

func (s *asyncSink) Send(e *Event, done func(*Event, bool)) {
	ok := rand.IntN(10) > 0
	s.wg.Go(func() { done(e, ok) })
}

func (s *asyncSink) Close(context.Context) error {
	s.wg.Wait()
	return nil
}

// TestHubAccountIsExact offers events from many goroutines, while options change and until
// long after Close, and checks the sums.
func TestHubAccountIsExact(t *testing.T) {
	pods := &podTable{netns: map[uint64]*owner.Pod{77: webPod}}
	h := testHub(t, func(o *HubOptions) {
		o.Pods, o.Hold, o.Rate, o.Burst, o.TotalRate = pods, 20*time.Millisecond, 50, 50, 5000
	}, &asyncSink{})
	types := catalog.Events()
	const goroutines, each = 8, 4000
	offered := make([][]uint64, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		offered[g] = make([]uint64, len(types))
		wg.Go(func() {
			for i := range each {
				typ := types[rand.IntN(len(types))]
				switch {
				case i%50 == 0:
					h.CountOnly(typ, 2, 1)
					offered[g][typ.ID()] += 3
				default:
					e := event(typ, []uint64{0, 77, hostInode, uint64(1000 + rand.IntN(50))}[rand.IntN(4)])
					e.PID = rand.IntN(3) - 1
					offered[g][typ.ID()]++
					h.Offer(e)
				}
				if i%100 == 0 {
					h.Apply(*h.opt.Load())
					if c := h.Counts(typ); int64(c.Pending) < 0 {
						t.Errorf("got %+v", c)
					}
				}
				if g == 0 && i == each*3/4 {
					closeHub(t, h)
				}
			}
		})
	}
	wg.Wait()
	var written uint64
	for _, typ := range types {
		var want uint64
		for g := range goroutines {
			want += offered[g][typ.ID()]
		}
		c := h.Counts(typ)
		if c.Offered != want || c.Pending != 0 || c.Written+c.Suppressed+c.Lost != want {
			t.Errorf("%s: offered %d, got %+v", typ.Name, want, c)
		}
		written += c.Written
	}
	if written == 0 {
		t.Error("nothing was written")
	}
}

// nullSink accepts everything at no cost.
type nullSink struct{}

func (nullSink) Send(e *Event, done func(*Event, bool)) { done(e, true) }
func (nullSink) Close(context.Context) error            { return nil }

func BenchmarkOffer(b *testing.B) {
	pods := &podTable{netns: map[uint64]*owner.Pod{77: webPod}, addrs: map[netip.Addr]*owner.Pod{webPod.Addrs[0]: webPod}}
	for name, c := range map[string]struct {
		rate   int
		window time.Duration
		peers  int
	}{"written": {peers: 1}, "suppressed": {rate: 20, peers: 1}, "merged": {window: DefaultWindow, peers: 1}, "merged, many peers": {window: DefaultWindow, peers: 1000}} {
		b.Run(name, func(b *testing.B) {
			h := NewHub(HubOptions{Pods: pods, HostNetns: hostInode, Window: c.window, MaxWindow: DefaultMaxWindow, Rate: c.rate, Burst: 100, TotalRate: 10 * c.rate}, nullSink{})
			defer h.Close(context.Background())
			// An Event may be offered again only when it is no longer under way.
			events := make([]*Event, 2*queueSize)
			for i := range events {
				events[i] = fullEvent(lossType)
				events[i].Dst.Addr = netip.AddrFrom4([4]byte{10, 1, byte(i % c.peers >> 8), byte(i % c.peers)})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				e := events[i%len(events)]
				e.Suppressed = 0
				h.Offer(e)
				if i%1000 == 0 {
					for len(h.queue) > queueSize/2 {
						time.Sleep(10 * time.Microsecond)
					}
				}
			}
		})
	}
}

func BenchmarkMessage(b *testing.B) {
	for _, name := range []string{"PacketLoss", "BIOLAT_10MS"} {
		b.Run(name, func(b *testing.B) {
			e := fullEvent(catalog.EventByName(name))
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf = e.AppendMessage(buf[:0])
			}
		})
	}
}

func ExampleEvent_Message() {
	fmt.Println((&Event{
		Type: catalog.EventByName("PacketLoss"), Netns: 4026532001, Protocol: "TCP", Pod: &owner.Pod{Namespace: "default", Name: "web-0"},
		Src:    Endpoint{Addr: netip.MustParseAddr("10.0.0.5"), Port: 443},
		Dst:    Endpoint{Addr: netip.MustParseAddr("10.0.0.9"), Port: 51234},
		Reason: "NETFILTER_DROP", Location: "nft_do_chain+0x12a",
	}).Message())
	// Output: default/web-0: packet dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a
}

// panickyPods panics on every call.
type panickyPods struct{ owner.NoPods }

func (panickyPods) ByNetns(uint64, time.Time) *owner.Pod { panic("boom in the resolver") }
func (panickyPods) ByPID(int) *owner.Pod                 { panic("boom in the resolver") }
func (panickyPods) ByAddr(netip.Addr) *owner.Pod         { panic("boom in the resolver") }
func (panickyPods) Connected() bool                      { return true }

// panickySink panics on every event.
type panickySink struct{}

func (panickySink) Send(*Event, func(*Event, bool)) { panic("boom in the sink") }
func (panickySink) Close(context.Context) error     { return nil }

// If the resolver panics, the event has no owner; if a sink panics, that sink loses the
// event. The first panic is logged, and the account stays complete.
func TestHubSurvivesPanics(t *testing.T) {
	log := &testkit.Log{}
	sink := &listSink{}
	h := testHub(t, func(o *HubOptions) { o.Pods, o.Log = panickyPods{}, log.Logger() }, sink, panickySink{})
	for i := range 10 {
		h.Offer(event(lossType, uint64(100+i)))
		h.Offer(event(irqType, 0))
		e := event(resetType, hostInode) // its address is looked up in the resolver
		e.Src.Addr = netip.MustParseAddr("203.0.113.1")
		h.Offer(e)
	}
	closeHub(t, h)
	wantCounts(t, h, lossType, Counts{Offered: 10, Written: 10})
	wantCounts(t, h, resetType, Counts{Offered: 10, Lost: 10})
	wantCounts(t, h, irqType, Counts{Offered: 10, Written: 10})
	for _, e := range sink.events() {
		if e.Type == lossType && (!e.Unattributed() || e.OfHost()) {
			t.Errorf("an event that nobody could be found for is the host's: %+v", e)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, log)
	}

	h = testHub(t, nil, panickySink{})
	for range 10 {
		h.Offer(event(lossType, hostInode))
	}
	closeHub(t, h)
	wantCounts(t, h, lossType, Counts{Offered: 10, Lost: 10})
}

// If the kernel's PIDs are of another PID namespace, they are not used: here the
// PID belongs to another process.
func TestHubOfForeignPIDs(t *testing.T) {
	pods := &podTable{pids: map[int]*owner.Pod{42: {ID: "x", Namespace: "ns", Name: "x"}}}
	for _, foreign := range []bool{false, true} {
		sink := &listSink{}
		h := testHub(t, func(o *HubOptions) { o.Pods, o.ForeignPIDs = pods, foreign }, sink)
		e := event(bioType, 0)
		e.PID = 42
		h.Offer(e)
		closeHub(t, h)
		if got := sink.events(); len(got) != 1 || (got[0].Pod == nil) != foreign || got[0].Unattributed() != foreign || got[0].OfHost() {
			t.Errorf("foreign %v: %+v", foreign, got)
		}
	}
}
