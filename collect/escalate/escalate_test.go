package escalate

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/recording"
)

const step = 15 * time.Second // between two cycles

// node is a Watch with a node and one pod, whose values a test changes.
type node struct {
	t *testing.T
	*Watch
	now      time.Duration
	values   map[string]map[string]float64 // by subject, "" for the node, and metric
	pressure Pressure
	runs     time.Duration // how long the probes ran
}

func newNode(t *testing.T) *node {
	n := &node{t: t, Watch: New(Options{}), now: 5 * time.Hour, values: map[string]map[string]float64{}}
	for _, id := range []string{"", "web"} {
		n.values[id] = map[string]float64{}
		for i := range signs {
			for _, m := range slices.Concat(signs[i].plus, signs[i].minus, signs[i].of) {
				n.values[id][m] = 1e6
			}
		}
		for _, q := range queues {
			n.values[id][q.metric] = 0
		}
	}
	return n
}

// cycle is one cycle, after d.
func (n *node) cycle(d time.Duration) Verdict {
	n.now += d
	n.Begin()
	for id, values := range n.values {
		name := ""
		if id != "" {
			name = "shop/" + id
		}
		for m, v := range values {
			n.Add(id, name, catalog.MustMetric(m), v)
		}
	}
	n.Press(n.pressure)
	v := n.Judge(n.now)
	if v.Run {
		n.runs += max(0, d)
	}
	return v
}

// rises is what metrics of a subject rise by in a cycle.
type rises map[string]float64

func (n *node) rise(id string, by rises) {
	for m, v := range by {
		n.values[id]["kubeskoop_"+m] += v
	}
}

// first runs cycles and returns the first sign that started the probes, and in which cycle.
func (n *node) first(cycles int, each func(i int)) (why string, at int) {
	for i := range cycles {
		each(i)
		if v := n.cycle(step); v.Began {
			return v.Why, i
		}
	}
	return "", -1
}

// TestSigns: each sign starts the probes if it lasts, and the most similar healthy
// condition does not.
func TestSigns(t *testing.T) {
	type side map[string]rises
	pod := func(r rises) side { return side{"web": r} }
	host := func(r rises) side { return side{"": r} }
	for name, c := range map[string]struct {
		ill, healthy side
		why          string
	}{
		"losses":              {pod(rises{"packetloss_total": 160}), pod(rises{"packetloss_total": 100}), "shop/web: 160 packets lost in 15s"},
		"losses by a rule":    {host(rises{"packetloss_total": 900, "packetloss_netfilter": 700}), host(rises{"packetloss_total": 900, "packetloss_netfilter": 900}), "node: 200 packets lost in 15s"},
		"retransmissions":     {pod(rises{"tcp_retranssegs": 20, "tcp_outsegs": 300}), pod(rises{"tcp_retranssegs": 400, "tcp_outsegs": 21000}), "shop/web: 20 TCP segments retransmitted (6.7 %) in 15s"},
		"few retransmissions": {host(rises{"tcp_retranssegs": 15, "tcp_outsegs": 16}), host(rises{"tcp_retranssegs": 14, "tcp_outsegs": 16}), "node: 15 TCP segments retransmitted (93.8 %) in 15s"},
		"timeouts":            {pod(rises{"tcpext_tcpabortontimeout": 5, "tcp_activeopens": 20}), pod(rises{"tcpext_tcpabortontimeout": 5, "tcp_activeopens": 90}), "shop/web: 5 connections ended by a timeout (25.0 %) in 15s"},
		"resets":              {pod(rises{"tcpext_tcpabortonclose": 3, "tcpext_tcpabortondata": 2, "tcp_passiveopens": 20}), pod(rises{"tcpext_tcpabortondata": 9, "tcp_passiveopens": 100}), "shop/web: 5 connections closed with RST (25.0 %) in 15s"},
		"accept queue":        {pod(rises{"tcpext_listenoverflows": 15}), pod(rises{"tcpext_listenoverflows": 9}), "shop/web: 15 connections found the accept queue full in 15s"},
		"UDP":                 {pod(rises{"udp_rcvbuferrors": 5, "udp_indatagrams": 1000}), pod(rises{"udp_rcvbuferrors": 5, "udp_indatagrams": 9000}), "shop/web: 5 datagrams found the receive buffer full (0.5 %) in 15s"},
		"qdisc":               {host(rises{"qdisc_drops": 500, "qdisc_packets": 10000}), host(rises{"qdisc_drops": 40, "qdisc_packets": 10000}), "node: 500 packets found a queue of an interface full (4.8 %) in 15s"},
		"backlog":             {host(rises{"softnet_dropped": 200, "softnet_processed": 10000}), host(rises{"softnet_dropped": 90, "softnet_processed": 10000}), "node: 200 packets found the backlog of a CPU full (2.0 %) in 15s"},
		"conntrack":           {host(rises{"conntrack_drop": 2}), host(rises{"conntrack_insertfailed": 9}), "node: 2 packets found no room in conntrack in 15s"},
		"resets of a node":    {pod(rises{"tcpext_tcpabortonclose": 9, "tcp_passiveopens": 9}), host(rises{"tcpext_tcpabortonclose": 9, "tcp_passiveopens": 9}), "shop/web: 9 connections closed with RST (100.0 %) in 15s"},
	} {
		t.Run(name, func(t *testing.T) {
			raise := func(n *node, s side) {
				for id, r := range s {
					n.rise(id, r)
				}
			}
			n := newNode(t)
			if why, at := n.first(8, func(int) { raise(n, c.ill) }); why != c.why || at > 4 {
				t.Errorf("it starts in cycle %d: %q, want %q", at, why, c.why)
			}
			n = newNode(t)
			if why, _ := n.first(400, func(int) { raise(n, c.healthy) }); why != "" {
				t.Errorf("a healthy one starts it: %s", why)
			}
			// A burst, for one cycle in three.
			n = newNode(t)
			if why, _ := n.first(400, func(i int) {
				if i%3 == 0 {
					raise(n, c.ill)
				}
			}); why != "" {
				t.Errorf("a burst starts it: %s", why)
			}
			// A metric is missing now and then, or the probe is not enabled.
			for _, every := range []int{2, 1} {
				for missing := range c.ill[slices.Collect(maps.Keys(c.ill))[0]] {
					n = newNode(t)
					id := slices.Collect(maps.Keys(c.ill))[0]
					total := n.values[id]["kubeskoop_"+missing]
					if why, _ := n.first(40, func(i int) {
						n.values[id]["kubeskoop_"+missing] = total
						raise(n, c.ill)
						total = n.values[id]["kubeskoop_"+missing]
						if i%every == 0 {
							delete(n.values[id], "kubeskoop_"+missing)
						}
					}); why != "" {
						t.Errorf("without %s in one of %d cycles: %s", missing, every, why)
					}
				}
			}
			// Counters that start again in each cycle.
			n = newNode(t)
			if why, _ := n.first(40, func(i int) {
				raise(n, c.ill)
				for id, r := range c.ill {
					for m := range r {
						n.values[id]["kubeskoop_"+m] -= float64(2000 * (i % 2))
					}
				}
			}); why != "" {
				t.Errorf("counters that fall start it: %s", why)
			}
		})
	}
}

func TestPressure(t *testing.T) {
	for name, c := range map[string]struct {
		p   func(i int) Pressure
		why string
	}{
		"softirqs":       {func(int) Pressure { return Pressure{51, 0} }, "node: a CPU spent 51 % of the time in softirqs"},
		"memory":         {func(int) Pressure { return Pressure{0, 12} }, "node: all processes waited for memory 12 % of the time"},
		"busy":           {func(int) Pressure { return Pressure{49, 9} }, ""},
		"bursts":         {func(i int) Pressure { return Pressure{float64(99 * (i % 2)), float64(99 * (i % 2))} }, ""},
		"unknown":        {func(int) Pressure { return Pressure{math.NaN(), math.NaN()} }, ""},
		"memory unknown": {func(int) Pressure { return Pressure{60, math.NaN()} }, "node: a CPU spent 60 % of the time in softirqs"},
	} {
		n := newNode(t)
		if why, _ := n.first(100, func(i int) { n.pressure = c.p(i) }); why != c.why {
			t.Errorf("%s: %q, want %q", name, why, c.why)
		}
	}
	n := newNode(t)
	for range 100 { // the pressure is not read at all
		n.Begin()
		n.now += step
		if n.Judge(n.now).Run {
			t.Fatal("it runs")
		}
	}
}

func TestQueues(t *testing.T) {
	const rx, tx = "kubeskoop_tcpsummary_tcprxqueue", "kubeskoop_tcpsummary_tcptxqueue"
	for name, c := range map[string]struct {
		metric string
		value  func(i int) float64
		why    string
	}{
		"unread":       {rx, func(i int) float64 { return float64(min(1, i/3) * 70000) }, "shop/web: 70000 bytes stand unread in TCP connections for 30s"},
		"unacked":      {tx, func(i int) float64 { return float64(min(1, i/3) * 4096) }, "shop/web: 4096 bytes stand unacknowledged in TCP connections for 30s"},
		"it moves":     {rx, func(i int) float64 { return float64(70000 + i%2) }, ""},
		"it is small":  {rx, func(i int) float64 { return float64(min(1, i/3) * 4095) }, ""},
		"always stood": {rx, func(i int) float64 { return 70000 }, ""},
		"falls":        {tx, func(i int) float64 { return float64(1e6 - i*100) }, ""},
	} {
		n := newNode(t)
		if why, _ := n.first(200, func(i int) { n.values["web"][c.metric] = c.value(i) }); why != c.why {
			t.Errorf("%s: %q, want %q", name, why, c.why)
		}
	}
	// It stands for a day, and is told once.
	n := newNode(t)
	n.cycle(step)
	n.values["web"][rx] = 70000
	began := 0
	for range 24 * time.Hour / step {
		if n.cycle(step).Began {
			began++
		}
	}
	if began != 1 {
		t.Errorf("it starts the probes %d times", began)
	}
}

// TestBudget: whatever pods do, the probes run for five minutes at a time, and twice an
// hour.
func TestBudget(t *testing.T) {
	n := newNode(t)
	n.values["db"] = maps.Clone(n.values["web"])
	const hours = 24
	began := map[string]int{}
	var starts []time.Duration
	for range hours * time.Hour / step {
		for _, id := range []string{"web", "db", ""} {
			n.rise(id, rises{"packetloss_total": 1e5, "tcp_retranssegs": 1e4, "tcpext_listenoverflows": 1e4, "softnet_dropped": 1e4})
		}
		n.pressure = Pressure{100, 100}
		v := n.cycle(step)
		if v.Began {
			began[v.Why]++
			starts = append(starts, n.now)
		}
	}
	if want := hours * 2; len(starts) != want || n.runs > time.Duration(want)*5*time.Minute {
		t.Errorf("%d starts, %v", len(starts), n.runs)
	}
	for i := range starts {
		if i >= 2 && starts[i]-starts[i-2] < time.Hour {
			t.Errorf("three starts within %v", starts[i]-starts[i-2])
		}
	}
	// One sign of one pod has one start an hour.
	n = newNode(t)
	starts = nil
	for range hours * time.Hour / step {
		n.rise("web", rises{"packetloss_total": 1e5})
		if n.cycle(step).Began {
			starts = append(starts, n.now)
		}
	}
	if len(starts) != hours {
		t.Errorf("%d starts", len(starts))
	}
}

// TestRuns: they run for as long as the budget says, with one beginning and one end.
func TestRuns(t *testing.T) {
	n := newNode(t)
	_, at := n.first(10, func(int) { n.rise("web", rises{"packetloss_total": 1000}) })
	if at < 0 {
		t.Fatal("it does not start")
	}
	for d := time.Duration(0); ; {
		d += step
		n.rise("web", rises{"packetloss_total": 1000})
		v := n.cycle(step)
		if v.Began || v.Ended != (d == 5*time.Minute) || v.Run != (d < 5*time.Minute) {
			t.Fatalf("after %v: %+v", d, v)
		}
		if v.Ended {
			break
		}
	}
	if v := n.cycle(step); v.Run || v.Ended {
		t.Errorf("%+v", v)
	}
}

// TestClock: a clock that goes back ends a run; one that jumps forward, too.
func TestClock(t *testing.T) {
	for name, jump := range map[string]time.Duration{"back": -time.Hour, "far back": -5*time.Hour - 30*time.Second, "forward": time.Hour} {
		n := newNode(t)
		if _, at := n.first(10, func(int) { n.rise("web", rises{"packetloss_total": 1000}) }); at < 0 {
			t.Fatal("it does not start")
		}
		if v := n.cycle(jump); v.Run || !v.Ended {
			t.Errorf("%s: %+v", name, v)
		}
		for range 3 {
			if v := n.cycle(step); v.Run {
				t.Errorf("%s: it runs without a sign", name)
			}
		}
	}
	// A clock that goes back all the time makes nobody run for long.
	n := newNode(t)
	for i := range 10000 {
		n.rise("web", rises{"packetloss_total": 1000})
		n.rise("", rises{"packetloss_total": 1000})
		d := step
		if i%50 == 49 {
			d = -40 * step
		}
		n.cycle(d)
	}
	if total := 10000 * step; n.runs > total/6 {
		t.Errorf("it runs for %v of %v", n.runs, total)
	}
}

// TestLongAndShortCycles: thresholds are by time, not by cycle.
func TestLongAndShortCycles(t *testing.T) {
	for _, each := range []time.Duration{time.Second, 7 * time.Second, time.Minute, 10 * time.Minute} {
		for perSecond, want := range map[float64]bool{12: true, 8: false} {
			n := newNode(t)
			began := false
			for d := time.Duration(0); d < time.Hour; d += each {
				n.rise("web", rises{"packetloss_total": perSecond * each.Seconds()})
				began = began || n.cycle(each).Began
			}
			if began != want {
				t.Errorf("%v a second, cycles of %v: %v", perSecond, each, began)
			}
		}
	}
}

// TestPodsComeAndGo: a pod that is away is another one when it comes back.
func TestPodsComeAndGo(t *testing.T) {
	n := newNode(t)
	web := n.values["web"]
	if why, _ := n.first(100, func(i int) {
		n.values["web"] = web
		n.rise("web", rises{"packetloss_total": 1000})
		if i%2 == 0 {
			delete(n.values, "web")
		}
	}); why != "" {
		t.Errorf("it starts: %s", why)
	}
	delete(n.values, "web")
	n.cycle(step)
	if len(n.subjects) != 1 {
		t.Errorf("%d subjects", len(n.subjects))
	}
}

// TestRestart: the budget and a run outlive the program.
func TestRestart(t *testing.T) {
	n := newNode(t)
	if _, at := n.first(10, func(int) { n.rise("web", rises{"packetloss_total": 1000}) }); at < 0 {
		t.Fatal("it does not start")
	}
	for _, id := range []string{"", "web"} { // the second start of the hour
		next := newNode(t)
		next.now = n.now + time.Minute
		if err := next.Recall(n.Keep(nil)); err != nil {
			t.Fatal(err)
		}
		if v := next.cycle(step); !v.Run || !v.Began || v.Why != "a sign before the restart" || v.For >= 5*time.Minute-time.Minute {
			t.Errorf("after a restart: %+v", v)
		}
		why, _ := next.first(200, func(int) { next.rise(id, rises{"packetloss_total": 1000}) })
		if (why != "") != (id == "") {
			t.Errorf("%q: %q", id, why)
		}
	}
}

func FuzzRecall(f *testing.F) {
	n := New(Options{})
	n.until, n.starts = time.Hour, []start{{time.Minute, "packets lost web"}, {2 * time.Minute, ""}}
	f.Add(n.Keep(nil))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 127, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		w := New(Options{})
		if w.Recall(b) != nil {
			return
		}
		runs := time.Duration(0)
		for now := time.Minute; now < 20*time.Minute; now += step {
			w.Begin()
			if w.Judge(now).Run {
				runs += step
			}
		}
		if runs > 5*time.Minute {
			t.Errorf("it runs for %v", runs)
		}
	})
}

// TestHealthyNodesAreSilent replays hours of real nodes, as the alerts' tests do.
func TestHealthyNodesAreSilent(t *testing.T) {
	for name, healthy := range map[string]bool{"idle": true, "busy": true, "debian": true, "troubles": false} {
		list, each, err := recording.Read("../../packaging/prometheus/tests/recorded/" + name + ".yml.gz")
		if err != nil {
			t.Fatal(err)
		}
		w := New(Options{})
		var told []string
		used, cycles := map[string]bool{}, 0
		for i := 0; ; i++ {
			some := false
			w.Begin()
			for _, s := range list {
				m := catalog.MetricByName(s.Labels["__name__"])
				if m == nil || len(m.Labels) > 0 || i >= len(s.Values) {
					continue
				}
				some = true
				if !Wants(m) || math.IsNaN(s.Values[i]) {
					continue
				}
				used[m.Name] = true
				id := s.Labels["k8s_namespace"] + "/" + s.Labels["k8s_pod"]
				if s.Labels["k8s_pod"] == "hostNetwork" {
					w.Add("", "", m, s.Values[i])
				} else if s.Labels["k8s_pod"] != "unknown" {
					w.Add(id, id, m, s.Values[i])
				}
			}
			if !some {
				break
			}
			cycles++
			if v := w.Judge(time.Hour + time.Duration(i)*each); v.Began {
				told = append(told, fmt.Sprintf("%v %s", time.Duration(i)*each, v.Why))
			}
		}
		t.Logf("%s: %d samples of %s: %s", name, cycles, strings.Join(slices.Sorted(maps.Keys(used)), ", "), strings.Join(told, "; "))
		if (len(told) == 0) != healthy || cycles < 60 || len(used) < 5 {
			t.Errorf("%s: %d samples, %d metrics, told: %q", name, cycles, len(used), told)
		}
	}
}

// TestSharesOfHealthyNodes: how far the recorded nodes stay below the share of
// retransmissions.
func TestSharesOfHealthyNodes(t *testing.T) {
	for _, name := range []string{"idle", "busy", "debian"} {
		list, each, err := recording.Read("../../packaging/prometheus/tests/recorded/" + name + ".yml.gz")
		if err != nil {
			t.Fatal(err)
		}
		most, rate := 0.0, 0.0
		for _, a := range list {
			for _, b := range list {
				if a.Labels["__name__"] != "kubeskoop_tcp_retranssegs" || b.Labels["__name__"] != "kubeskoop_tcp_outsegs" || a.Labels["k8s_pod"] != b.Labels["k8s_pod"] {
					continue
				}
				for i := 1; i < len(a.Values); i++ {
					n, of := a.Values[i]-a.Values[i-1], b.Values[i]-b.Values[i-1]
					if math.IsNaN(n) || math.IsNaN(of) {
						continue
					}
					rate = max(rate, n/each.Seconds())
					if of > 100 {
						most = max(most, n/of)
					}
				}
			}
		}
		t.Logf("%s: at most %.2f retransmissions a second, %.2f %% of the segments", name, rate, 100*most)
		if rate > 0.5 && most > 0.01 {
			t.Errorf("%s: too close to the threshold", name)
		}
	}
}
