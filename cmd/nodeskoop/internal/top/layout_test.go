package top

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
)

func TestArrange(t *testing.T) {
	const wide = 1000 // width of a very long reason
	for _, c := range []struct {
		name                         string
		width, longest, reason, skip int
		sorted                       string
		want                         layout
	}{
		{"no bound", 0, 61, 20, 0, "drops", layout{name: 61, reason: 20, shown: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}}},
		{"the name has half of the line", 80, 61, wide, 0, "drops", layout{name: 40, shown: []int{0, 1, 2, 3, 4, 5}, right: 7}},
		{"a short name leaves more to the columns", 80, 20, wide, 0, "drops", layout{name: 20, shown: []int{0, 1, 2, 3, 4, 5, 6, 7, 8}, right: 4}},
		{"what is left is the name's", 140, 90, wide, 0, "drops", layout{name: 70, shown: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, right: 2}},
		{"then the reason's", 120, 30, wide, 0, "drops", layout{name: 30, shown: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, reason: 16}},
		{"all of a long name before any of the reason", 180, 110, wide, 0, "drops", layout{name: 107, shown: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, right: 1}},
		{"by name", 40, 50, wide, 0, "pod", layout{name: 20, shown: []int{0, 1, 2}, right: 10}},
		{"the sorted column has no room in its place", 40, 50, wide, 0, "tx_packets", layout{name: 20, shown: []int{11, 0, 1}, right: 10}},
		{"the sorted column is left of the window", 40, 50, wide, 5, "drops", layout{name: 20, shown: []int{0, 5, 6}, left: 4, right: 6}},
		{"the sorted column is in the window", 40, 50, wide, 5, "rx_bytes", layout{name: 20, shown: []int{5, 6, 7}, left: 5, right: 5}},
		{"scrolled to the end", 40, 20, wide, 11, "tx_packets", layout{name: 20, shown: []int{11}, left: 11, reason: 13}},
		{"beyond the end", 40, 20, wide, 99, "pod", layout{name: 20, left: 12, reason: 19}},
		{"without the drops", 40, 20, 0, 99, "pod", layout{name: 20, shown: []int{11}, left: 11}},
		{"the narrowest", leastWidth, 50, wide, 0, "drops", layout{name: 13, shown: []int{0}, right: 12}},
	} {
		got := arrange(columns, c.width, c.longest, c.reason, c.skip, c.sorted)
		if got.name != c.want.name || !slices.Equal(got.shown, c.want.shown) || got.reason != c.want.reason || got.left != c.want.left || got.right != c.want.right {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	// For every width: the line fits, no column is duplicated or missing, and the
	// sorted column is visible.
	for width := leastWidth; width < 220; width += 3 {
		for long := 3; long < 120; long += 13 {
			for skip := range len(columns) + 2 {
				for _, sorted := range append(Names(), "pod") {
					l := arrange(columns, width, long, wide, skip, sorted)
					what := fmt.Sprintf("width %d, name %d, skip %d, by %s: %+v", width, long, skip, sorted, l)
					n := -columnGap
					for _, f := range l.fields(columns) {
						n += columnGap + f.width
					}
					at := slices.IndexFunc(columns, func(c Column) bool { return c.Name == sorted })
					shown := len(l.shown)
					if l.reason > 0 {
						shown++
					}
					once := slices.Clone(l.shown)
					slices.Sort(once)
					if n > width || at >= 0 && !slices.Contains(l.shown, at) || shown+l.left+l.right != len(columns)+1 || len(slices.Compact(once)) != len(l.shown) {
						t.Fatalf("%s takes %d columns", what, n)
					}
				}
			}
		}
	}
}

func end(addr string, port uint16, p *owner.Pod) event.Endpoint {
	e := event.Endpoint{Addr: netip.MustParseAddr(addr), Port: port, Kind: event.EndUnknown, Pod: p}
	if p != nil {
		e.Kind = event.EndPod
	}
	return e
}

var (
	web  = &owner.Pod{ID: "w", Namespace: "shop", Name: "web-0", Netns: 7}
	load = &owner.Pod{ID: "l", Namespace: "shop", Name: "load-0", Netns: 8}
)

func TestPeer(t *testing.T) {
	node := event.Endpoint{Addr: netip.MustParseAddr("192.0.2.1"), Port: 10250, Kind: event.EndNode}
	for _, c := range []struct {
		self     *owner.Pod
		src, dst event.Endpoint
		want     string
	}{
		{web, end("10.0.0.8", 45678, load), end("10.0.0.7", 8080, web), "from shop/load-0 to :8080"},
		{load, end("10.0.0.8", 45678, load), end("10.0.0.7", 8080, web), "to shop/web-0:8080"},
		{web, end("192.0.2.9", 443, nil), end("10.0.0.7", 45678, web), "from 192.0.2.9:443"},
		{web, end("10.0.0.7", 8080, web), end("192.0.2.9", 45678, nil), "to 192.0.2.9 from :8080"},
		{web, end("fd00::9", 45678, nil), end("fd00::7", 80, web), "from [fd00::9] to :80"},
		{web, end("192.0.2.9", 0, nil), end("10.0.0.7", 0, web), "from 192.0.2.9"},
		{web, end("192.0.2.9", 45678, nil), end("10.0.0.7", 56789, web), "from 192.0.2.9"},
		{web, end("127.0.0.1", 45678, web), end("127.0.0.1", 80, web), "to shop/web-0:80"},
		{nil, end("10.0.0.8", 45678, load), node, "from shop/load-0 to :10250"},
		{nil, end("10.0.0.8", 45678, load), end("192.0.2.9", 443, nil), "from shop/load-0 to 192.0.2.9:443"},
		{web, event.Endpoint{}, event.Endpoint{}, ""},
	} {
		e := &event.Event{Type: packetLoss, Src: c.src, Dst: c.dst}
		if got := peerOf(e, c.self); got != c.want {
			t.Errorf("%v -> %v: %q, want %q", c.src, c.dst, got, c.want)
		}
	}
	if got := peerOf(&event.Event{Type: catalog.EventByName("BIOLAT_10MS"), Src: node}, nil); got != "" {
		t.Errorf("the peer of block I/O is %q", got)
	}
}

// A drop on the host counts for the host and for each pod at the packet's ends; a
// drop in a pod counts for that pod only.
func TestTallyOfTheHostsLosses(t *testing.T) {
	for _, c := range []struct {
		name           string
		e              event.Event
		web, load      uint64 // drops on the host
		atWeb, atLoad  int    // kinds of events
		atHost         int
		held           uint64
		merged, counts uint64
	}{
		{name: "between pods", e: event.Event{Netns: 1, Src: end("10.0.0.8", 45678, load), Dst: end("10.0.0.7", 80, web)}, web: 1, load: 1, atWeb: 1, atLoad: 1, atHost: 1},
		{name: "from a pod", e: event.Event{Netns: 1, Src: end("10.0.0.8", 45678, load), Dst: end("192.0.2.9", 80, nil)}, load: 1, atLoad: 1, atHost: 1},
		{name: "a pod's with itself", e: event.Event{Netns: 1, Src: end("10.0.0.7", 45678, web), Dst: end("10.0.0.7", 80, web)}, web: 1, atWeb: 1, atHost: 1},
		{name: "the host's own", e: event.Event{Netns: 1, Src: end("192.0.2.8", 1, nil), Dst: end("192.0.2.9", 80, nil)}, atHost: 1},
		{name: "in the pod", e: event.Event{Netns: 7, Pod: web, Src: end("10.0.0.8", 45678, load), Dst: end("10.0.0.7", 80, web)}, atWeb: 1},
		{name: "of a pod on the host's network", e: event.Event{Netns: 1, Pod: &owner.Pod{ID: "h", HostNetwork: true}, Src: end("192.0.2.8", 1, nil), Dst: end("10.0.0.7", 80, web)}, atHost: 1},
		{name: "no loss", e: event.Event{Type: catalog.EventByName("TCPRetrans"), Netns: 1, Src: end("192.0.2.8", 1, nil), Dst: end("10.0.0.7", 80, web)}, atHost: 1},
		{name: "others were held back", e: event.Event{Netns: 1, Suppressed: 9, Src: end("192.0.2.8", 1, nil), Dst: end("10.0.0.7", 80, web)}, web: 1, atWeb: 1, atHost: 1, held: 9},
	} {
		x := newTally()
		e := c.e
		if e.Type == nil {
			e.Type = packetLoss
		}
		e.Time = time.Unix(1, 0)
		done := 0
		x.Send(&e, func(*event.Event, bool) { done++ })
		kinds := func(name podName, id string) int { k, _ := x.kindsOf(name, id); return len(k) }
		webName, loadName := podName{"shop", "web-0"}, podName{"shop", "load-0"}
		if got := x.hostDropsOf(webName, "w"); got != c.web {
			t.Errorf("%s: %d losses on the host at web-0, want %d", c.name, got, c.web)
		}
		if got := x.hostDropsOf(loadName, "l"); got != c.load {
			t.Errorf("%s: %d losses on the host at load-0, want %d", c.name, got, c.load)
		}
		if a, b, h := kinds(webName, "w"), kinds(loadName, "l"), kinds(hostName, hostLabel); a != c.atWeb || b != c.atLoad || h != c.atHost {
			t.Errorf("%s: kinds at web-0, load-0, host: %d, %d, %d, want %d, %d, %d", c.name, a, b, h, c.atWeb, c.atLoad, c.atHost)
		}
		if x.heldBack() != c.held || done != 1 {
			t.Errorf("%s: %d held back, done %d times", c.name, x.heldBack(), done)
		}
		// A later pod of the same name starts from zero.
		if n := x.hostDropsOf(webName, "w2") + uint64(kinds(webName, "w2")); n != 0 {
			t.Errorf("%s: another web-0 has %d", c.name, n)
		}
		x.forget(func(podName) bool { return false })
		if len(x.pods) != 0 {
			t.Errorf("%s: forgotten pods are kept", c.name)
		}
	}
	if err := newTally().Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// The number of kinds is bounded: the most recent ones are kept.
func TestTallyIsBounded(t *testing.T) {
	x := newTally()
	const more = 3 * keptKinds
	for i := range more {
		e := &event.Event{Type: packetLoss, Pod: web, Netns: 7, Time: time.Unix(int64(i), 0), Reason: fmt.Sprint("R", i), Location: fmt.Sprintf("f+0x%x", i),
			Src: end("10.0.0.8", 45678, load), Dst: end("10.0.0.7", 80, web)}
		x.count(e)
		x.count(e)
	}
	kinds, forgotten := x.kindsOf(podName{"shop", "web-0"}, "w")
	if len(kinds) != keptKinds || !forgotten || kinds[0].reason != fmt.Sprint("R", more-1) || kinds[0].count != 2 || kinds[0].function != "f" || kinds[keptKinds-1].reason != fmt.Sprint("R", more-keptKinds) {
		t.Errorf("%d kinds, others forgotten: %v, the first %+v, the last %+v", len(kinds), forgotten, kinds[0], kinds[len(kinds)-1])
	}
	for i := range keptPods + 9 {
		x.count(&event.Event{Type: packetLoss, Pod: &owner.Pod{ID: fmt.Sprint(i), Name: fmt.Sprint(i)}, Netns: 9})
	}
	if len(x.pods) != keptPods {
		t.Errorf("%d pods are kept", len(x.pods))
	}
}

func TestSumUp(t *testing.T) {
	ap := netip.MustParseAddrPort
	all := []netlink.TCPSocket{
		{State: netlink.TCPListen, Local: ap("[::]:80"), Remote: ap("[::]:0"), RxQueue: 2, TxQueue: 128},
		{State: netlink.TCPListen, Local: ap("0.0.0.0:22"), Remote: ap("0.0.0.0:0"), TxQueue: 5},
		{State: netlink.TCPEstablished, Local: ap("10.0.0.7:80"), Remote: ap("10.0.0.8:45678"), RxQueue: 10},
		{State: netlink.TCPCloseWait, Local: ap("10.0.0.7:80"), Remote: ap("10.0.0.8:45679"), RxQueue: 5, TxQueue: 1},
		{State: netlink.TCPTimeWait, Local: ap("10.0.0.7:80"), Remote: ap("10.0.0.9:45679")},
		{State: netlink.TCPSynSent, Local: ap("10.0.0.7:55555"), Remote: ap("192.0.2.9:443")},
	}
	got := sumUp(all)
	addr := netip.MustParseAddr
	if want := []peer{{addr: addr("10.0.0.8"), port: 80, inbound: true, connections: 2, rx: 15, tx: 1}, {addr: addr("192.0.2.9"), port: 443, connections: 1}}; !slices.Equal(got.peers, want) {
		t.Errorf("%+v, want %+v", got.peers, want)
	}
	if want := []listener{{ap("[::]:80"), 2, 128}, {ap("0.0.0.0:22"), 0, 5}}; !slices.Equal(got.listeners, want) {
		t.Errorf("%+v, want %+v", got.listeners, want)
	}
	for i := range 2 * pagePeers {
		all = append(all, netlink.TCPSocket{State: netlink.TCPEstablished, Local: ap("10.0.0.7:5"), Remote: netip.AddrPortFrom(addr("192.0.2.10"), uint16(i+1))})
		all = append(all, netlink.TCPSocket{State: netlink.TCPListen, Local: netip.AddrPortFrom(addr("::"), uint16(1000+i)), Remote: ap("[::]:0")})
	}
	if got = sumUp(all); len(got.peers) != pagePeers || got.otherPeers != pagePeers+2 || len(got.listeners) != pageListeners || got.otherListeners != 2*pagePeers+2-pageListeners {
		t.Errorf("%d peers and %d others, %d listeners and %d others", len(got.peers), got.otherPeers, len(got.listeners), got.otherListeners)
	}
	if got = sumUp(nil); got.peers != nil || got.listeners != nil {
		t.Errorf("of nothing: %+v", got)
	}
}
