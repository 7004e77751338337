package event

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/collect/owner"
)

// merging is kinds with a clock that the test moves, and the entries that it wrote.
type merging struct {
	kinds
	w     windows
	start time.Time
	now   time.Time
	wrote []string
}

func newMerging() *merging {
	m := &merging{w: windows{DefaultWindow, DefaultMaxWindow}, start: time.Unix(1000, 0), now: time.Unix(1000, 0)}
	m.kinds = newKinds(func(e *Event, now time.Time) { m.say("window", e, now) })
	return m
}

func (m *merging) say(what string, e *Event, now time.Time) {
	m.wrote = append(m.wrote, fmt.Sprintf("%v %s %s %d", now.Sub(m.start), what, e.Dst.Addr, e.Occurrences()))
}

// offer takes an event now.
func (m *merging) offer(e *Event) {
	e.Time = m.now
	if m.take(e, m.w, m.now) {
		m.say("first", e, m.now)
	}
}

// pass moves the clock and ends each window when it is due.
func (m *merging) pass(d time.Duration) {
	end := m.now.Add(d)
	for t := m.next(); !t.IsZero() && !t.After(end); t = m.next() {
		m.now = t
		m.tick(m.w, t)
	}
	m.now = end
}

func (m *merging) want(t *testing.T, what string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, m.wrote); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
	m.wrote = nil
}

// to returns an event of a pod with a peer.
func to(pod *owner.Pod, peer string) *Event {
	e := event(lossType, 77)
	e.Pod = pod
	e.Src = Endpoint{Addr: netip.MustParseAddr("10.0.0.5"), Port: 40000, Kind: EndPod, Pod: pod}
	e.Dst = Endpoint{Addr: netip.MustParseAddr(peer), Port: 443}
	return e
}

// The first of a kind is an entry at once; then each window is one. Windows double up to
// the longest while events continue. A window without events makes the kind idle, and later
// closes it.
func TestWindows(t *testing.T) {
	m := newMerging()
	each := func(every, d time.Duration) {
		for end := m.now.Add(d); m.now.Before(end); m.pass(every) {
			m.offer(to(webPod, "10.0.0.9"))
		}
	}
	m.offer(to(webPod, "10.0.0.9"))
	m.want(t, "the first", "0s first 10.0.0.9 1")
	m.pass(2 * time.Minute)
	m.want(t, "nothing more")
	if len(m.due)+len(m.groups)+len(m.owners) != 0 {
		t.Errorf("%d kinds, %d groups, %d owners are left", len(m.due), len(m.groups), len(m.owners))
	}
	each(time.Second, 40*time.Minute)
	m.want(t, "40 minutes", "2m0s first 10.0.0.9 1", "2m10s window 10.0.0.9 9", "2m30s window 10.0.0.9 20", "3m10s window 10.0.0.9 40",
		"4m30s window 10.0.0.9 80", "7m10s window 10.0.0.9 160", "12m30s window 10.0.0.9 320", "22m30s window 10.0.0.9 600", "32m30s window 10.0.0.9 600")
	m.pass(29 * time.Second)
	m.want(t, "the rest, when the window ends")
	m.pass(time.Hour - 29*time.Second)
	m.want(t, "that is it", "42m30s window 10.0.0.9 570")
	if len(m.due)+len(m.groups)+len(m.owners) != 0 {
		t.Errorf("%d kinds, %d groups, %d owners are left", len(m.due), len(m.groups), len(m.owners))
	}
	// A kind that was quiet starts over.
	each(5*time.Second, 20*time.Second)
	m.want(t, "again", "1h42m0s first 10.0.0.9 1", "1h42m10s window 10.0.0.9 1")
	// If the process was stopped, the window ends when the process continues.
	m.now = m.now.Add(5 * time.Minute)
	m.tick(m.w, m.now)
	m.want(t, "after a pause", "1h47m20s window 10.0.0.9 2")
	m.offer(to(webPod, "10.0.0.9"))
	m.drain(m.now)
	m.want(t, "at the end", "1h47m20s window 10.0.0.9 1")
	if len(m.due)+len(m.groups)+len(m.owners) != 0 {
		t.Errorf("%d kinds, %d groups, %d owners are left", len(m.due), len(m.groups), len(m.owners))
	}
}

// Each recurrence of an intermittent problem is reported at once, and each starts a window
// of twice the length. If it was absent for a minute, or for a whole window, it is treated
// as new.
func TestIdleKinds(t *testing.T) {
	for every, want := range map[time.Duration][]string{
		15 * time.Second: {"0s first 10.0.0.9 1", "15s first 10.0.0.9 1", "35s window 10.0.0.9 1", "1m15s window 10.0.0.9 2", "2m35s window 10.0.0.9 6", "5m15s window 10.0.0.9 10"},
		40 * time.Second: {"0s first 10.0.0.9 1", "40s first 10.0.0.9 1", "1m20s first 10.0.0.9 1", "2m0s first 10.0.0.9 1", "3m20s window 10.0.0.9 1", "6m0s window 10.0.0.9 4"},
		2 * time.Minute:  {"0s first 10.0.0.9 1", "2m0s first 10.0.0.9 1", "4m0s first 10.0.0.9 1", "6m0s first 10.0.0.9 1", "8m0s first 10.0.0.9 1"},
	} {
		m := newMerging()
		for range 10 * time.Minute / every {
			m.offer(to(webPod, "10.0.0.9"))
			m.pass(every)
		}
		m.want(t, "every "+every.String(), want...)
	}
	// A problem starts while its kind is idle.
	m := newMerging()
	m.offer(to(webPod, "10.0.0.9"))
	m.pass(50 * time.Second)
	for range 300 {
		m.offer(to(webPod, "10.0.0.9"))
		m.pass(100 * time.Millisecond)
	}
	m.want(t, "trouble", "0s first 10.0.0.9 1", "50s first 10.0.0.9 1", "1m10s window 10.0.0.9 199")
}

// An entry is the worst of its occurrences, and shows only what they have in common.
func TestMergedEntry(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	slow := func(s int, latency time.Duration, change func(*Event)) *Event {
		e := to(webPod, "10.0.0.9")
		e.Type, e.Time, e.Latency, e.PID, e.Comm = readType, at(s), latency, s, "nginx"
		if change != nil {
			change(e)
		}
		return e
	}
	for name, c := range map[string]struct {
		events []*Event
		peers  bool
		want   string
		pid    int
	}{
		"one": {[]*Event{slow(5, time.Second, nil)}, false,
			"default/web-0: received data waited 1.0s to be read: 10.0.0.5:40000 -> 10.0.0.9:443, process nginx[5]", 5},
		"the worst": {[]*Event{slow(5, time.Second, nil), slow(7, 3*time.Second, nil), slow(6, 2*time.Second, nil)}, false,
			"default/web-0: received data waited up to 3.0s to be read, 3 times in 60 s: 10.0.0.5:40000 -> 10.0.0.9:443, process nginx[7]", 7},
		"the first of equals": {[]*Event{slow(5, time.Second, nil), slow(6, time.Second, nil)}, false,
			"default/web-0: received data waited up to 1.0s to be read, 2 times in 60 s: 10.0.0.5:40000 -> 10.0.0.9:443, process nginx[5]", 5},
		"other ports": {[]*Event{slow(5, time.Second, nil), slow(6, time.Second, func(e *Event) { e.Src.Port++ })}, false,
			"default/web-0: received data waited up to 1.0s to be read, 2 times in 60 s: 10.0.0.5:* -> 10.0.0.9:443, process nginx[5]", 5},
		"other own addresses": {[]*Event{slow(5, time.Second, nil), slow(6, time.Second, func(e *Event) { e.Src.Addr = netip.MustParseAddr("::1"); e.Dst.Port++ })}, false,
			"default/web-0: received data waited up to 1.0s to be read, 2 times in 60 s: *:40000 -> 10.0.0.9:*, process nginx[5]", 5},
		"many peers": {[]*Event{slow(5, time.Second, nil), slow(6, time.Second, func(e *Event) { e.Dst.Addr = netip.MustParseAddr("10.0.0.7"); e.Dst.Port++ })}, true,
			"default/web-0: received data waited up to 1.0s to be read, 2 times in 60 s, 2 peers: 10.0.0.5:40000 -> *, process nginx[5]", 5},
		"many, of which one came": {[]*Event{slow(5, time.Second, nil), slow(6, time.Second, nil)}, true,
			"default/web-0: received data waited up to 1.0s to be read, 2 times in 60 s: 10.0.0.5:40000 -> 10.0.0.9:443, process nginx[5]", 5},
		"IPv6": {[]*Event{slow(5, time.Second, func(e *Event) { e.Dst.Addr = netip.MustParseAddr("2001:db8::9") }), slow(6, 0, func(e *Event) { e.Dst.Addr = netip.MustParseAddr("2001:db8::9"); e.Dst.Port++ })}, false,
			"default/web-0: received data waited up to 1.0s to be read, 2 times in 60 s: 10.0.0.5:40000 -> [2001:db8::9]:*, process nginx[5]", 5},
		"several namespaces": {[]*Event{
			slow(5, time.Second, func(e *Event) { e.Pod, e.unowned, e.Src.Pod = nil, true, nil }),
			slow(6, 0, func(e *Event) { e.Pod, e.unowned, e.Src.Pod, e.Netns = nil, true, nil, 78 })}, false,
			"several netns: received data waited up to 1.0s to be read, 2 times in 60 s: 10.0.0.5:40000 -> 10.0.0.9:443, process nginx[5]", 5},
	} {
		var g gathered
		for _, e := range c.events {
			g.add(e, peerOf(e), c.peers)
		}
		e := g.entry(time.Minute)
		if got := e.Message(); got != c.want || e.PID != c.pid {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
		names, v := fieldsOf(e)
		if len(c.events) == 1 {
			if slices.Contains(names, "KUBESKOOP_COUNT") || slices.Contains(names, "KUBESKOOP_FIRST_US") || e.Merged != nil {
				t.Errorf("%s: %v", name, names)
			}
			continue
		}
		if v["KUBESKOOP_COUNT"] != fmt.Sprint(len(c.events)) || v["KUBESKOOP_FIRST_US"] != "5000000" || v["KUBESKOOP_LAST_US"] == "5000000" ||
			v["KUBESKOOP_TIMESTAMP_US"] != fmt.Sprintf("%d000000", c.pid) || (v["KUBESKOOP_PEERS"] != "") != strings.Contains(c.want, "peers") {
			t.Errorf("%s: %v", name, v)
		}
		for field, gone := range map[string]bool{
			"KUBESKOOP_SPORT": strings.Contains(c.want, "10.0.0.5:*"), "KUBESKOOP_SADDR": strings.Contains(c.want, "*:40000"), "KUBESKOOP_SRC_POD": strings.Contains(c.want, "*:40000") || e.unowned,
			"KUBESKOOP_DADDR": strings.Contains(c.want, "-> *"), "KUBESKOOP_DST_TYPE": strings.Contains(c.want, "-> *"), "KUBESKOOP_DPORT": strings.Contains(c.want, "-> *") || strings.Contains(c.want, "9:*") || strings.Contains(c.want, "]:*"),
			"KUBESKOOP_NETNS": strings.Contains(c.want, "several"),
		} {
			if slices.Contains(names, field) == gone {
				t.Errorf("%s: %s is there: %v", name, field, !gone)
			}
		}
		if g.entry(time.Minute) != nil {
			t.Errorf("%s: something is left", name)
		}
	}
}

func TestTimes(t *testing.T) {
	for want, m := range map[string]Merged{
		"2 times in 1 s":                    {Count: 2, Window: 3 * time.Millisecond},
		"999 times in 10 s":                 {Count: 999, Window: 10*time.Second + time.Millisecond},
		"1,240 times in 60 s":               {Count: 1240, Window: time.Minute},
		"12,345,678 times in 10 min":        {Count: 12345678, Window: 10 * time.Minute},
		"1,000 times in 160 s":              {Count: 1000, Window: 160 * time.Second},
		"3 times in 10 s, 2 peers":          {Count: 3, Window: 10 * time.Second, Peers: 2},
		"300 times in 10 s, over 128 peers": {Count: 300, Window: 10 * time.Second, Peers: 128, MorePeers: true},
	} {
		if got := string((&Event{Merged: &m}).AppendTimes(nil)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := (&Event{}).AppendTimes(nil); len(got) != 0 {
		t.Errorf("a single one: %q", got)
	}
}

// A pod with ever new peers has eight kinds and one for all others. The entry of that one
// gives the number of peers and names none.
func TestManyPeers(t *testing.T) {
	m := newMerging()
	peer := func(i int) string { return fmt.Sprintf("10.1.%d.%d", i/250, 1+i%250) }
	for i := range 600 {
		m.offer(to(webPod, peer(i)))
	}
	if len(m.wrote) != maxPeers+1 || len(m.due) != maxPeers+1 || len(m.groups) != 1 {
		t.Errorf("%d entries, %d kinds, %d groups", len(m.wrote), len(m.due), len(m.groups))
	}
	var last *Event
	m.write = func(e *Event, now time.Time) { last = e; m.say("window", e, now) }
	m.wrote = nil
	m.pass(DefaultWindow)
	m.want(t, "the others", fmt.Sprintf("10s window invalid IP %d", 600-maxPeers-1))
	if p := last.Merged; p.Peers != maxPeersTold || !p.MorePeers || last.Dst.Addr.IsValid() || last.Dst.Kind != "" || last.Src.Addr != webPod.Addrs[0] {
		t.Errorf("%+v of %+v", p, last)
	}
	// The kinds of single peers became quiet. While the others continue, a new peer belongs
	// to them.
	for i := range 3 {
		m.offer(to(webPod, peer(1000+i)))
		m.offer(to(webPod, peer(1000+i)))
	}
	m.want(t, "no kind of their own")
	m.pass(2 * DefaultWindow)
	m.want(t, "another window", "30s window invalid IP 6")
	if p := last.Merged; p.Peers != 3 || p.MorePeers {
		t.Errorf("%+v", p)
	}
	// Another reason, or another pod, has its own kinds.
	e := to(webPod, peer(2000))
	e.Reason = "NO_SOCKET"
	m.offer(e)
	m.offer(to(&owner.Pod{ID: "db"}, peer(2000)))
	m.want(t, "others", "30s first "+peer(2000)+" 1", "30s first "+peer(2000)+" 1")
	m.pass(time.Hour)
	m.offer(to(webPod, peer(3000)))
	m.want(t, "after a rest", "1h0m30s first "+peer(3000)+" 1")
}

// The owner with the most kinds loses its oldest, whose entry is written with its count.
func TestKindsAreBounded(t *testing.T) {
	m := newMerging()
	quiet := &owner.Pod{ID: "quiet"}
	loud := func(i int) *Event {
		e := to(webPod, "10.0.0.9")
		e.Reason = fmt.Sprint(i)
		return e
	}
	m.offer(to(quiet, "10.0.0.1"))
	m.offer(to(quiet, "10.0.0.1"))
	for i := range maxKinds - 1 {
		m.offer(loud(i))
	}
	m.offer(loud(0))
	m.wrote = nil
	m.offer(loud(maxKinds))
	m.want(t, "the oldest is written", "0s window 10.0.0.9 1", "0s first 10.0.0.9 1")
	for i := range maxKinds {
		m.offer(loud(2*maxKinds + i))
	}
	if len(m.due) != maxKinds || m.owners[whose{pod: "quiet"}].kinds != 1 {
		t.Errorf("%d kinds, of the quiet pod %d", len(m.due), m.owners[whose{pod: "quiet"}].kinds)
	}
	m.wrote = nil
	for i := range 10 {
		m.offer(to(quiet, fmt.Sprint("10.0.1.", i)))
	}
	if n := m.owners[whose{pod: "quiet"}].kinds; len(m.wrote) != maxPeers || n != maxPeers+1 || len(m.due) != maxKinds {
		t.Errorf("%q, %d kinds of the quiet pod, %d in all", m.wrote, n, len(m.due))
	}
	m.wrote = nil
	m.pass(DefaultWindow)
	m.want(t, "what the quiet pod had", "10s window 10.0.0.1 1", "10s window invalid IP 2")
	m.pass(time.Hour)
	if len(m.due)+len(m.groups)+len(m.owners) != 0 {
		t.Errorf("%d kinds, %d groups, %d owners are left", len(m.due), len(m.groups), len(m.owners))
	}
}

// The Hub's clock ends the windows. A pod whose events are all of different kinds delays no
// other pod's events and takes none of their room.
func TestHubMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &listSink{}
		h := testHub(t, func(o *HubOptions) {
			o.Pods, o.Window, o.MaxWindow = manyPods(77, 2), DefaultWindow, DefaultMaxWindow
			o.Rate, o.Burst, o.TotalRate = DefaultEventRate, DefaultEventBurst, DefaultTotalRate
		}, sink)
		start := time.Now()
		for range 100 {
			h.Offer(event(resetType, 77))
		}
		synctest.Wait()
		wantCounts(t, h, resetType, Counts{Offered: 100, Written: 1, Pending: 99})
		time.Sleep(DefaultWindow + time.Millisecond)
		synctest.Wait()
		wantCounts(t, h, resetType, Counts{Offered: 100, Written: 100})
		got := sink.events()
		if h.Entries(resetType) != 2 || len(got) != 2 || got[1].Occurrences() != 99 || sink.at[1].Sub(start) != DefaultWindow || got[1].Message() != "prod/pod-0: TCP reset received, 99 times in 10 s" {
			t.Errorf("%d entries, the last %s", len(got), got[len(got)-1].Message())
		}

		for i := range 3 * maxKinds {
			e := event(lossType, 77)
			e.Reason = fmt.Sprint(i)
			h.Offer(e)
			h.Offer(event(resetType, 77))
			if i%1000 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		before := time.Now()
		h.Offer(event(lossType, 78))
		synctest.Wait()
		got = sink.events()
		if last := got[len(got)-1]; last.Pod == nil || last.Pod.Name != "pod-1" || !sink.at[len(got)-1].Equal(before) {
			t.Errorf("the other pod's event is not heard at once: %s", last.Message())
		}
		if n := len(h.kinds.due); n > maxKinds {
			t.Errorf("%d kinds", n)
		}
		// Close writes everything, without limits.
		c := h.Counts(lossType)
		closeHub(t, h)
		after := h.Counts(lossType)
		if after.Pending != 0 || after.Written != c.Written+c.Pending || after.Suppressed != c.Suppressed {
			t.Errorf("before the end %+v, after it %+v", c, after)
		}
		var told uint64
		for _, e := range sink.events() {
			if e.Type == lossType {
				told += e.Occurrences()
			}
		}
		if told != after.Written {
			t.Errorf("%d in the entries, %d written", told, after.Written)
		}
	})
}
