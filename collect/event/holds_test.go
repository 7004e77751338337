package event

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/owner"
)

// TestHolds runs holds through a timetable without a Hub, goroutines or waiting: which
// events are sent when, and which remain.
func TestHolds(t *testing.T) {
	start := time.Unix(1000, 0)
	pods := &podTable{}
	sent := []string{}
	var woken []time.Duration
	var h holds
	reset := func() {
		pods.netns, pods.absent = map[uint64]*owner.Pod{}, false
		sent, woken = nil, nil
		h = holds{
			who: owner.NewResolver(owner.Sources{Pods: pods, HostNetns: hostInode}),
			attribute: func(e *Event) (sure bool) {
				e.Pod, sure = h.who.Owner(e.Netns, 0, e.Time)
				return sure
			},
			send: func(e *Event, _ time.Time) {
				whose := "nobody"
				if e.Pod != nil {
					whose = e.Pod.Name
				}
				sent = append(sent, fmt.Sprintf("%d:%s", e.Netns, whose))
			},
			wake:      func(at time.Time) { woken = append(woken, at.Sub(start)) },
			wakeSweep: func() {},
			ofNetns:   map[uint64]int{}, unowned: map[unowned]time.Time{}, unknown: map[netip.Addr]time.Time{},
		}
	}
	want := func(what, list string, waiting int) {
		t.Helper()
		if got := strings.Join(sent, " "); got != list || len(h.waiting) != waiting {
			t.Errorf("%s: sent %q, %d wait; want %q, %d", what, got, len(h.waiting), list, waiting)
		}
		sent = nil
	}
	at := func(d time.Duration) time.Time { return start.Add(d) }
	const hold = time.Second

	reset()
	if !h.forPod(event(lossType, 7), hold, start) || !h.forPod(event(lossType, 8), hold, start) {
		t.Error("an event of a namespace that may become a pod's is not held")
	}
	if len(woken) == 0 || woken[0] != retryHeld {
		t.Errorf("woken at %v", woken)
	}
	pods.start(7, webPod)
	h.retry(at(retryHeld - 1))
	want("too early", "", 2)
	h.retry(at(retryHeld))
	want("one is known", "7:web-0", 1)
	h.retry(at(hold - 1))
	want("the other not", "", 1)
	h.retry(at(hold))
	want("nor in the end", "8:nobody", 0)
	if h.forPod(event(lossType, 8), hold, at(hold)) {
		t.Error("a namespace that is nobody's is waited for again")
	}
	h.sweep(at(hold + unownedFor))
	if waiting, known := h.empty(); !waiting || !known {
		t.Errorf("something is left: %+v", h)
	}

	reset()
	if h.forPod(event(lossType, 7), -1, start) {
		t.Error("held though nothing is to be held")
	}
	if pods.absent = true; h.forPod(event(lossType, 7), hold, start) {
		t.Error("held though containerd does not answer")
	}

	// One namespace uses no more than its share, and all of them no more than the limit.
	reset()
	for range maxHeldOf + 1 {
		h.forPod(event(lossType, 9), hold, start)
	}
	want("the first of its own goes", "9:nobody", maxHeldOf)
	for i := range maxHeld - maxHeldOf + 1 {
		h.forPod(event(lossType, uint64(100+i)), hold, start)
	}
	want("the first of all goes", "9:nobody", maxHeld)
	h.drain()
	if len(sent) != maxHeld || len(h.ofNetns) != 0 {
		t.Errorf("%d sent at the end, %v", len(sent), h.ofNetns)
	}

	// An event that waits for an address and is sent early gives up its place.
	reset()
	e := event(lossType, hostInode)
	e.Src.Addr = netip.MustParseAddr("203.0.113.1")
	if !h.forAddrs(e, hold, start) || h.forAddr != 1 {
		t.Error("an event of an address that may be new is not held")
	}
	for i := range maxHeld {
		h.forPod(event(lossType, uint64(100+i)), hold, start)
	}
	want("it gives way", fmt.Sprintf("%d:nobody", hostInode), maxHeld)
	if h.forAddr != 0 {
		t.Errorf("%d wait for an address", h.forAddr)
	}
	if h.forAddrs(event(lossType, hostInode), hold, start) {
		t.Error("an event without an address waits for one")
	}
}
