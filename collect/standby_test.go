package collect

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

// standing is a Runner with the enabled probe conntrack, and netdev on standby.
type standing struct {
	*Runner
	t             *testing.T
	on            atomic.Bool
	loads, closes atomic.Int32
	last          map[string]float64
	failure       error         // of the next loads
	block         chan struct{} // while not nil, loads wait for it
	seen          int           // values that Decide got
	now           time.Duration
}

type standingProbe struct {
	fnProbe
	s *standing
}

func (p standingProbe) Close() error { p.s.closes.Add(1); return nil }

func newStanding(t *testing.T, o Options, data []byte) *standing {
	t.Helper()
	s := &standing{t: t, now: time.Hour}
	m, gauge := catalog.MustMetric(txBytes), catalog.MustMetric("kubeskoop_qdisc_qlen")
	h := catalog.MustMetric("nodeskoop_socketlatency_seconds")
	f := Factory{"netdev", func(Env) (Probe, error) {
		s.loads.Add(1)
		if s.block != nil {
			<-s.block
		}
		if s.failure != nil {
			return nil, s.failure
		}
		return standingProbe{fnProbe{granularity: EachNetns, sample: func(v *View) error {
			x := State[keptSum](v)
			x.n += 10
			v.Add(m, float64(x.n))
			v.Add(gauge, 7)
			buckets := make([]uint64, len(h.Bounds)+1)
			buckets[1] = x.n
			v.AddHistogram(h, &Histogram{Buckets: buckets, Sum: 0.5}, "read")
			return nil
		}}, s}, nil
	}}
	o.Enabled, o.Standby, o.Service = []string{"conntrack"}, []string{"netdev"}, true
	r, err := NewRunner(complete(t, o), f, counting("conntrack", ctFound, HostNetns))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	s.Runner = r
	r.keeper.now = func() time.Duration { return s.now }
	if err := r.Keep(); err != nil {
		t.Fatal(err)
	}
	if data != nil {
		if err := r.Recall(data); err != nil {
			t.Fatal(err)
		}
	}
	r.Decide(func(values iter.Seq[Value]) bool {
		s.seen = 0
		for range values {
			s.seen++
		}
		return s.on.Load()
	})
	return s
}

// cycle runs cycles until ok, and checks that no counter falls or is missing meanwhile.
func (s *standing) cycle(what string, ok func(v map[string]float64) bool) {
	s.t.Helper()
	testkit.Eventually(s.t, what, func() bool {
		now := values(s.Cycle())
		for key, was := range s.last {
			if (strings.HasPrefix(key, "kubeskoop_") || strings.HasPrefix(key, "nodeskoop_socketlatency")) && !strings.Contains(key, "qlen") {
				if v, there := now[key]; !there || v < was {
					s.t.Errorf("%s: %s was %v and is %v (%v)", what, key, was, v, there)
				}
			}
		}
		s.last = now
		return ok(now)
	})
}

func (s *standing) loaded() bool { return s.Standby()["netdev"] }

// complete adds what each of these Runners needs.
func complete(t *testing.T, o Options) Options {
	if o.ProcRoot == "" {
		o.ProcRoot, _ = fakeProc(t)
	}
	o.Node, o.HostLabel, o.Interval = "node1", "hostNetwork", time.Hour
	return o
}

const hostTx = txBytes + "{node1,hostNetwork,hostNetwork}"

// TestStandby: a probe on standby writes nothing before it runs; then its counters count,
// stand still while it rests, and go on, while the other probe has a value in each cycle.
func TestStandby(t *testing.T) {
	s := newStanding(t, Options{}, nil)
	s.cycle("the trial ends", func(map[string]float64) bool { return s.closes.Load() == 1 })
	s.cycle("another cycle", func(map[string]float64) bool { return true })
	for key := range s.last {
		if strings.Contains(key, "netdev") && !strings.HasPrefix(key, "nodeskoop_probe_supported") {
			t.Errorf("before it runs there is %s", key)
		}
	}
	if v, ok := s.last["nodeskoop_probe_supported{node1,hostNetwork,hostNetwork,netdev}"]; !ok || v != 1 {
		t.Errorf("supported: %v, %v", v, ok)
	}
	if s.loads.Load() != 1 || s.loaded() || s.seen == 0 {
		t.Errorf("%d loads, loaded: %v, %d values", s.loads.Load(), s.loaded(), s.seen)
	}
	for round := range 3 {
		s.on.Store(true)
		s.cycle("it counts", func(v map[string]float64) bool { return s.loaded() && v[hostTx] > float64(20*round) })
		if v := s.last[up("netdev")]; v != 1 {
			t.Errorf("up is %v", v)
		}
		if s.last["kubeskoop_qdisc_qlen{node1,hostNetwork,hostNetwork}"] != 7 {
			t.Errorf("no gauge: %v", s.last)
		}
		s.on.Store(false)
		s.cycle("it rests", func(map[string]float64) bool { return !s.loaded() })
		was := s.last[hostTx]
		for range 3 {
			s.cycle("a cycle without it", func(map[string]float64) bool { return true })
		}
		if s.last[hostTx] != was || was == 0 {
			t.Errorf("it was %v and is %v without the probe", was, s.last[hostTx])
		}
		if _, ok := s.last[up("netdev")]; ok {
			t.Error("a resting probe is up or down")
		}
		if _, ok := s.last["kubeskoop_qdisc_qlen{node1,hostNetwork,hostNetwork}"]; ok {
			t.Error("an old gauge is written")
		}
		testkit.Eventually(t, "it is closed", func() bool { return s.closes.Load() == int32(round+2) })
	}
	if got, cycles := s.last[ctFound+"{node1,hostNetwork,hostNetwork}"], s.Runner.cycles; got != float64(10*cycles) {
		t.Errorf("the other probe counts %v in %d cycles", got, cycles)
	}
}

// TestStandbyAfterARestart: the counters are there at once, and go on from their values.
func TestStandbyAfterARestart(t *testing.T) {
	root, _ := fakeProc(t)
	s := newStanding(t, Options{ProcRoot: root}, nil)
	s.on.Store(true)
	s.cycle("it counts", func(v map[string]float64) bool { return v[hostTx] > 0 })
	s.on.Store(false)
	s.cycle("it rests", func(map[string]float64) bool { return !s.loaded() })
	for _, resting := range []bool{true, false} {
		if !resting {
			s.on.Store(true)
			s.cycle("it counts", func(v map[string]float64) bool { return s.loaded() })
		}
		was := s.last
		s = newStanding(t, Options{ProcRoot: root}, kept(s.Runner))
		s.last = was
		s.cycle("the first cycle", func(map[string]float64) bool { return true })
		if s.last[hostTx] != was[hostTx] {
			t.Errorf("it was %v and is %v", was[hostTx], s.last[hostTx])
		}
		s.on.Store(true)
		s.cycle("it goes on", func(v map[string]float64) bool { return v[hostTx] > was[hostTx] })
		if s.last[hostTx] > was[hostTx]+10 {
			t.Errorf("it was %v and is %v", was[hostTx], s.last[hostTx])
		}
		s.on.Store(false)
		s.cycle("it rests", func(map[string]float64) bool { return !s.loaded() })
	}
}

// TestStandbyForgetsPods: the counters of a deleted pod vanish, those of others stand.
func TestStandbyForgetsPods(t *testing.T) {
	root, netns := fakeProc(t, 7)
	pods := &somePods{running: []*owner.Pod{{ID: "a", Namespace: "n", Name: "a", Netns: netns[1], PIDs: []int{7}}}}
	s := newStanding(t, Options{ProcRoot: root, Pods: pods}, nil)
	const podTx = txBytes + "{node1,n,a}"
	s.on.Store(true)
	s.cycle("it counts", func(v map[string]float64) bool { return v[podTx] > 0 })
	s.on.Store(false)
	s.cycle("it rests", func(v map[string]float64) bool { return !s.loaded() && v[podTx] > 0 })
	pods.running = nil
	s.last = nil
	s.cycle("a cycle without the pod", func(map[string]float64) bool { return true })
	if _, ok := s.last[podTx]; ok || s.last[hostTx] == 0 {
		t.Errorf("the pod: %v, the host: %v", s.last[podTx], s.last[hostTx])
	}
	s.now += 2 * keepFor
	s.cycle("a minute later", func(map[string]float64) bool { return true })
	for _, x := range s.still["netdev"] {
		if strings.Contains(x.target, " a ") {
			t.Errorf("%s is remembered", x.target)
		}
	}
}

// TestStandbyWaitsForNobody: a load that hangs delays no cycle, and says nothing.
func TestStandbyWaitsForNobody(t *testing.T) {
	log := new(testkit.Log)
	s := newStanding(t, Options{Log: slog.New(slog.NewTextHandler(log, nil))}, nil)
	s.cycle("the trial ends", func(map[string]float64) bool { return s.closes.Load() == 1 })
	s.cycle("it is taken", func(map[string]float64) bool { return true })
	s.block = make(chan struct{})
	s.on.Store(true)
	for range 5 {
		s.cycle("a cycle while it is loaded", func(map[string]float64) bool { return true })
	}
	if _, ok := s.last[up("netdev")]; ok || s.loaded() {
		t.Error("a probe that is being loaded is up or down")
	}
	close(s.block)
	s.cycle("it counts", func(v map[string]float64) bool { return v[hostTx] > 0 })
	if s.last[ctFound+"{node1,hostNetwork,hostNetwork}"] != float64(10*s.Runner.cycles) {
		t.Errorf("a cycle lacks the other probe: %v", s.last)
	}
	if log.String() != "" {
		t.Errorf("the log:\n%s", log)
	}
}

// TestStandbyUnsupported: a probe that the machine cannot run is named once, at the start.
func TestStandbyUnsupported(t *testing.T) {
	log := new(testkit.Log)
	s := newStanding(t, Options{Log: slog.New(slog.NewTextHandler(log, nil))}, nil)
	s.failure = &UnsupportedError{Reason: "no such hook"}
	const supported = "nodeskoop_probe_supported{node1,hostNetwork,hostNetwork,netdev}"
	s.cycle("it is not supported", func(v map[string]float64) bool { n, ok := v[supported]; return ok && n == 0 })
	for range 3 {
		s.on.Store(true)
		s.cycle("a cycle", func(map[string]float64) bool { return true })
		s.on.Store(false)
		s.cycle("a cycle", func(map[string]float64) bool { return true })
	}
	if n := strings.Count(log.String(), "left out, as this machine cannot run them: netdev: no such hook"); n != 1 || s.loads.Load() != 1 {
		t.Errorf("%d loads, and it is said %d times:\n%s", s.loads.Load(), n, log)
	}
	if _, ok := s.last[up("netdev")]; ok {
		t.Error("an unsupported probe is up or down")
	}
}

// TestStandbyFails: a probe that cannot be loaded is down, as an enabled one is.
func TestStandbyFails(t *testing.T) {
	log := new(testkit.Log)
	s := newStanding(t, Options{Log: slog.New(slog.NewTextHandler(log, nil))}, nil)
	s.failure = errors.New("no memory")
	s.cycle("it is down", func(v map[string]float64) bool { n, ok := v[up("netdev")]; return ok && n == 0 })
	s.cycle("another cycle", func(map[string]float64) bool { return true })
	if strings.Count(log.String(), "no memory") != 1 {
		t.Errorf("the log:\n%s", log)
	}
}

// TestStandbyReload: a reload keeps a running probe, whether it then is on standby, enabled
// or neither.
func TestStandbyReload(t *testing.T) {
	s := newStanding(t, Options{}, nil)
	o := s.opt
	apply := func(enabled, standby []string) {
		t.Helper()
		o.Enabled, o.Standby = enabled, standby
		if err := s.Apply(o); err != nil {
			t.Fatal(err)
		}
	}
	s.on.Store(true)
	s.cycle("it counts", func(v map[string]float64) bool { return v[hostTx] > 0 })
	loads := s.loads.Load()
	apply([]string{"conntrack"}, []string{"netdev"})
	s.cycle("it goes on", func(v map[string]float64) bool { return s.loaded() })
	apply([]string{"conntrack", "netdev"}, []string{"netdev"})
	s.on.Store(false)
	was := s.last[hostTx]
	for range 3 {
		s.cycle("it is enabled", func(map[string]float64) bool { return true })
	}
	if s.last[hostTx] != was+30 || s.loads.Load() != loads {
		t.Errorf("it was %v and is %v, after %d loads and %d", was, s.last[hostTx], loads, s.loads.Load())
	}
	apply([]string{"conntrack"}, []string{"netdev"})
	s.cycle("it rests", func(map[string]float64) bool { return !s.loaded() })
	was = s.last[hostTx]
	s.cycle("it stands", func(v map[string]float64) bool { return v[hostTx] == was })
	apply([]string{"conntrack", "netdev"}, nil)
	s.cycle("it is enabled while it rests", func(v map[string]float64) bool { return v[hostTx] == was+10 })
	apply([]string{"conntrack"}, nil)
	s.last = nil
	s.cycle("it is neither", func(v map[string]float64) bool { _, ok := v[hostTx]; return !ok })
}

func TestDecidePanics(t *testing.T) {
	log := new(testkit.Log)
	s := newStanding(t, Options{Log: slog.New(slog.NewTextHandler(log, nil))}, nil)
	s.Decide(func(iter.Seq[Value]) bool { panic("oh") })
	for range 3 {
		s.cycle("a cycle", func(map[string]float64) bool { return true })
	}
	if s.loaded() || strings.Count(log.String(), "level=ERROR") != 1 {
		t.Errorf("loaded: %v, the log:\n%s", s.loaded(), log)
	}
}

func FuzzStandbyState(f *testing.F) {
	m, h := catalog.MustMetric(txBytes), catalog.MustMetric("nodeskoop_socketlatency_seconds")
	r := &Runner{still: map[string][]stillRow{"netdev": {
		{"host", row{metric: m, value: 12}, time.Hour},
		{"host", row{metric: m, value: 0.1}, time.Minute},
		{"pod", row{metric: h, labels: []string{"read"}, hist: &Histogram{Buckets: make([]uint64, len(h.Bounds)+1), Sum: 1.5}}, 3},
	}}}
	good := standbyState{r}.Keep(nil)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		x := &Runner{still: map[string][]stillRow{}}
		if err := (standbyState{x}).Recall(b); err != nil {
			return
		}
		again := standbyState{x}.Keep(nil)
		y := &Runner{still: map[string][]stillRow{}}
		if err := (standbyState{y}).Recall(again); err != nil || fmt.Sprint(len(y.still)) != fmt.Sprint(len(x.still)) {
			t.Errorf("%v: %v and %v", err, x.still, y.still)
		}
		if string(b) == string(good) && string(again) != string(good) {
			t.Error("what was kept is not what is recalled")
		}
	})
}
