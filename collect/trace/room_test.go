package trace

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/bpf"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// refuse sends n datagrams and n SYNs to a closed port over lo in a namespace: 2n
// lost packets and n resets.
func refuse(s *nsnet.Space, n int) error {
	var err error
	s.Do(func() {
		for range n {
			if err == nil {
				err = refusedConnection()
			}
		}
	})
	return err
}

// TestRoomForPods: unowned namespaces fill the tables. Three pods count all of their
// packets, equally by class, by reason and in total: one known before, one that appears
// then, and one whose packets precede it. All other counts belong to unknown, never to
// the host, and the log says so. When the unowned namespaces are gone, so are their
// messages and limitations.
func TestRoomForPods(t *testing.T) {
	var log testkit.Log
	l := newLabOf(t, Options{Limits: EventLimits{20, 100}, Log: slog.New(slog.NewTextHandler(&log, nil)), tables: bpf.Options{Namespaces: 64, Drops: 64}},
		nil, "packetloss", "tcpreset")
	before := l.values()
	added := 0
	add := func(name string) (*nsnet.Space, *owner.Pod) {
		s := nsnet.New(t)
		added++
		return s, s.Pod(name)
	}
	exact := func(what, pod string, n float64) {
		t.Helper()
		var got map[string]float64
		testkit.Within(10*time.Second, func() bool {
			got = l.values()
			return got["kubeskoop_packetloss_total{"+pod+"}"] >= 2*n && got["nodeskoop_tcpreset_total{"+pod+",receive}"] >= n
		})
		l.want(got, map[string]float64{
			"kubeskoop_packetloss_total{" + pod + "}":       2 * n,
			"kubeskoop_packetloss_abnormal{" + pod + "}":    n,
			"kubeskoop_packetloss_tcprcv{" + pod + "}":      n,
			"nodeskoop_tcpreset_total{" + pod + ",nosock}":  n,
			"nodeskoop_tcpreset_total{" + pod + ",receive}": n,
		})
		reasons := 0.0
		for k, v := range got {
			if strings.HasPrefix(k, "kubeskoop_packetloss_reason{"+pod+",") {
				reasons += v
			}
		}
		if reasons != 2*n {
			t.Errorf("%s: %v by reason, want %v", what, reasons, 2*n)
		}
	}
	early, pod := add("early")
	l.pods.List = append(l.pods.List, pod)
	if err := refuse(early, 3); err != nil {
		t.Fatal(err)
	}
	exact("early", "early", 3)
	t.Run("full", func(t *testing.T) {
		const unowned = 40
		for range unowned {
			if err := refuse(nsnet.Make(t), 2); err != nil {
				t.Fatal(err)
			}
		}
		got := l.values()
		unknown := "nodeskoop_tcpreset_total{unknown,nosock}"
		if got[unknown]-before[unknown] < 2*(unowned-16) {
			t.Errorf("%v resets of the unknown, want %d or more", got[unknown]-before[unknown], 2*(unowned-16))
		}
		if n := l.tracer.Unroomed(); n["tcpreset"] == 0 || n["packetloss"] == 0 {
			t.Errorf("without room: %v", n)
		}
		if s := log.String(); strings.Count(s, "have filled their part") != 2 {
			t.Errorf("the log says\n%s", s)
		}
		for _, s := range l.r.Status() {
			if !s.Up || !strings.Contains(strings.Join(s.Limitations, "\n"), "room") {
				t.Errorf("%s is up %v, lacks %v", s.Name, s.Up, s.Limitations)
			}
		}
		if err := refuse(early, 4); err != nil {
			t.Fatal(err)
		}
		exact("there before", "early", 7)

		late, pod := add("late")
		l.pods.List = append(l.pods.List, pod)
		l.values() // or nobody counts for a fifth of a second
		if err := refuse(late, 500); err != nil {
			t.Fatal(err)
		}
		exact("while full", "late", 500)
	})
	// The unowned namespaces are gone, and their room is free again.
	for range 2 {
		l.values()
	}
	for p := range l.tracer.probes {
		if _, full, crowded := p.bpf.Room(); full && !crowded {
			t.Errorf("%s is still full", p.kind.name)
		}
	}
	// A pod whose packets precede it.
	unseen, pod := add("unseen")
	if err := refuse(unseen, 5); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * followEvery)
	l.pods.List = append(l.pods.List, pod)
	exact("not known", "unseen", 5)
	if err := refuse(unseen, 6); err != nil {
		t.Fatal(err)
	}
	exact("known late", "unseen", 11)
	exact("early at the end", "early", 7)
	if n := strings.Count(log.String(), "have filled their part"); n != 2 {
		t.Errorf("it is said %d times", n)
	}
}

// TestRoomIsSaid: nothing is logged while there is room. Pods beyond the room have no
// values, and the probe is not up.
func TestRoomIsSaid(t *testing.T) {
	var log testkit.Log
	l := newLabOf(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil)), tables: bpf.Options{Namespaces: 48}}, nil, "tcpreset")
	if err := refuse(l.a, 1); err != nil {
		t.Fatal(err)
	}
	got := l.values()
	l.want(got, map[string]float64{"nodeskoop_tcpreset_total{web-0,nosock}": 1, "nodeskoop_tcpreset_total{db-0,nosock}": 0})
	real := slices.Clone(l.pods.List)
	for i := range 60 {
		l.pods.List = append(l.pods.List, &owner.Pod{ID: fmt.Sprint(i), Namespace: "many", Name: fmt.Sprint("p-", i), Netns: 0xf8000000 + uint64(i)})
	}
	fams := l.r.Cycle()
	series := 0
	for _, f := range fams {
		if f.GetName() == "nodeskoop_tcpreset_total" {
			series = len(f.Metric) / len(resetKinds)
		}
	}
	if series < 30 || series > 55 {
		t.Errorf("series of %d namespaces, where there is room for about 40", series)
	}
	for _, s := range l.r.Status() {
		if s.Up || s.Err == nil || !strings.Contains(s.Err.Error(), bpf.ErrNoRoom.Error()) {
			t.Errorf("up %v, error %v", s.Up, s.Err)
		}
	}
	l.pods.List = real
	for range 2 {
		l.r.Cycle()
	}
	if err := refuse(l.a, 1); err != nil {
		t.Fatal(err)
	}
	l.want(l.values(), map[string]float64{"nodeskoop_tcpreset_total{web-0,nosock}": 2, "nodeskoop_tcpreset_total{db-0,nosock}": 0})
}

// TestManyFlows: a pod with very many destinations takes no series from others, and
// costs little time and memory.
func TestManyFlows(t *testing.T) {
	need.Short(t)
	const most = 300
	l := newLab(t, EventLimits{}, map[string]map[string]any{"flow": {"ports": false, "max_series": int64(most)}}, "flow")
	send := func(s *nsnet.Space, addresses int, packets int) {
		t.Helper()
		var err error
		s.Do(func() {
			var c *net.UDPConn
			if c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
				return
			}
			defer c.Close()
			for i := range addresses {
				for range packets {
					if _, err = c.WriteToUDP([]byte("x"), &net.UDPAddr{IP: net.IPv4(127, 1+byte(i>>16), byte(i>>8), byte(i)), Port: 9}); err != nil {
						return
					}
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := memory()
	var slowest time.Duration
	var got map[string]float64
	for range 4 {
		send(l.a, 65_000, 1)
		send(l.b, 40, 3)
		start := time.Now()
		got = l.values()
		slowest = max(slowest, time.Since(start))
	}
	of := map[string]int{}
	for k, v := range got {
		if rest, ok := strings.CutPrefix(k, "kubeskoop_flow_packets{"); ok {
			pod, _, _ := strings.Cut(rest, ",")
			of[pod]++
			if pod == "db-0" && strings.Contains(k, "UDP") && v != 12 {
				t.Errorf("%s = %v, want 12", k, v)
			}
		}
	}
	if of["db-0"] < 40 || of["web-0"] < most/2 || of["web-0"]+of["db-0"] > most {
		t.Errorf("series by pod: %v", of)
	}
	if left := got["nodeskoop_series_left_out{hostNetwork,kubeskoop_flow_packets}"]; left < 10_000 {
		t.Errorf("%v flows are said to be left out", left)
	}
	grown := int64(memory()) - int64(before)
	t.Logf("the slowest cycle took %v, the heap grew by %d kB", slowest, grown>>10)
	if grown > 8<<20 {
		t.Errorf("the heap grew by %d kB", grown>>10)
	}
	if n := l.tracer.Unroomed()[flowName]; n == 0 {
		t.Error("no packet is said to be in no flow")
	}
}

// TestFlowSeriesAreShared divides series among namespaces.
func TestFlowSeriesAreShared(t *testing.T) {
	key := func(netns bpf.NetnsID, i int) (k bpf.FlowKey) { return flowKeyOf(netns, i) }
	for _, c := range []struct {
		most int
		all  []int // flows by namespace
		want []int // series
	}{
		{10, []int{3, 3}, []int{3, 3}},
		{10, []int{50, 2}, []int{8, 2}},
		{10, []int{50, 50}, []int{5, 5}},
		{9, []int{50, 1, 50}, []int{4, 1, 4}},
		{2, []int{9, 9, 9, 9}, []int{0, 0, 1, 1}},
		{0, []int{9}, []int{0}},
	} {
		f := &flows{most: c.most, shown: map[bpf.FlowKey]*series{}, spaces: map[bpf.NetnsID]*space{}, cycle: 1}
		for i, n := range c.all {
			f.spaces[bpf.NetnsID(i+1)] = &space{all: n}
			// At first all existing series belong to the first pod.
			for j := range min(n, c.most) {
				if i == 0 {
					f.shown[key(1, j)] = &series{total: sums{bytes: uint64(j)}, moved: 1, held: 1}
					f.spaces[1].shown++
				}
			}
		}
		f.share()
		got := make([]int, len(c.all))
		for i := range c.all {
			got[i] = f.spaces[bpf.NetnsID(i+1)].most
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d series for %v flows: %v, want %v", c.most, c.all, got, c.want)
		}
		if n := len(f.shown); n > c.want[0] {
			t.Errorf("%d series for %v flows: the first keeps %d", c.most, c.all, n)
		}
		for k, x := range f.shown {
			if int(x.total.bytes) < min(c.all[0], c.most)-c.want[0] {
				t.Errorf("%v, which is not one of the busiest, keeps its series", k)
			}
		}
	}
}

// flowKeyOf creates a key in the form of the map.
func flowKeyOf(netns bpf.NetnsID, i int) bpf.FlowKey {
	return bpf.NewFlowKey(netns, 17, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 1), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(i)))
}
