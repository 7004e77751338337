package collect

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
)

// keptSum is a probe's state that is kept: a sum.
type keptSum struct{ n uint64 }

func (s *keptSum) Keep(b []byte) []byte {
	if s.n == 0 {
		return b
	}
	return AppendUints(b, s.n)
}

func (s *keptSum) Recall(b []byte) error {
	d := NewDecoder(b)
	s.n = d.Uint()
	return d.Err()
}

// counting is a probe that adds 10 to a sum of each target in each cycle.
func counting(name, metric string, granularity Granularity) Factory {
	m := catalog.MustMetric(metric)
	return probe(name, granularity, func(v *View) error {
		s := State[keptSum](v)
		s.n += 10
		v.Add(m, float64(s.n))
		return nil
	})
}

// keeping makes a Runner that saves state and continues from data.
func keeping(t *testing.T, o Options, data []byte, f ...Factory) *Runner {
	t.Helper()
	r := newRunner(t, o, f...)
	if err := r.Keep(); err != nil {
		t.Fatal(err)
	}
	if data != nil {
		if err := r.Recall(data); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func kept(r *Runner) []byte {
	data, _ := r.Kept()
	return bytes.Clone(data)
}

const txBytes, ctFound = "kubeskoop_netdev_txbytes", "kubeskoop_conntrack_found"

// TestCountersOutlive: counters continue over a restart of the program and of the probe,
// and over a pod's absence from containerd's list, but not over a new pod.
func TestCountersOutlive(t *testing.T) {
	root, netns := fakeProc(t, 7, 8)
	a := &owner.Pod{ID: "a", Namespace: "n", Name: "a", Netns: netns[1], PIDs: []int{7}}
	b := &owner.Pod{ID: "b", Namespace: "n", Name: "b", Netns: netns[2], PIDs: []int{8}}
	pods := &somePods{running: []*owner.Pod{a, b}}
	o := Options{ProcRoot: root, Pods: pods, Probes: map[string]map[string]any{}}
	probes := []Factory{counting("netdev", txBytes, EachNetns), counting("conntrack", ctFound, HostNetns)}
	r := keeping(t, o, nil, probes...)
	now := time.Hour
	clock := func() time.Duration { return now }
	r.keeper.now = clock
	want := func(what string, host, podA, podB, found float64) {
		t.Helper()
		v := values(r.Cycle())
		for key, w := range map[string]float64{txBytes + "{node1,hostNetwork,hostNetwork}": host, txBytes + "{node1,n,a}": podA,
			txBytes + "{node1,n,b}": podB, ctFound + "{node1,hostNetwork,hostNetwork}": found} {
			if got, ok := v[key]; ok != (w > 0) || got != w {
				t.Errorf("%s: %s is %v, want %v", what, key, got, w)
			}
		}
	}
	restart := func(enabled ...string) {
		t.Helper()
		o.Enabled = enabled
		r = keeping(t, o, kept(r), probes...)
		r.keeper.now = clock
	}
	want("first", 10, 10, 10, 10)
	want("second", 20, 20, 20, 20)
	restart("netdev", "conntrack")
	want("restart", 30, 30, 30, 30)

	o.Probes = map[string]map[string]any{"conntrack": {"pods": true}}
	o.Enabled = []string{"netdev", "conntrack"}
	o.HostLabel, o.Node, o.Timeout = owner.DefaultHostLabel, "node1", testkit.Patience
	if err := r.Apply(o); err != nil {
		t.Fatal(err)
	}
	want("a reload that makes conntrack anew", 40, 40, 40, 40)

	pods.running = []*owner.Pod{a}
	want("b is away", 50, 50, 0, 50)
	restart("netdev", "conntrack")
	pods.running = []*owner.Pod{a, b}
	want("b is there again, after a restart", 60, 60, 50, 60)
	pods.running = []*owner.Pod{a}
	want("b is away", 70, 70, 0, 70)
	now += keepFor + time.Second
	want("for long", 80, 80, 0, 80)
	pods.running = []*owner.Pod{a, b}
	want("and forgotten", 90, 90, 10, 90)

	// Sampling one probe by hand leaves the other probes' state intact.
	restart("netdev")
	want("netdev alone", 100, 100, 20, 0)
	now += keepFor + time.Second
	want("for long", 110, 110, 30, 0)
	restart("netdev", "conntrack")
	want("both again", 120, 120, 40, 100)

	// A pod with another UID, or with another network namespace, is another pod.
	c := *a
	c.ID = "c"
	pods.running = []*owner.Pod{&c, b}
	want("another a", 130, 10, 50, 110)
	d := *b
	d.Netns = netns[1]
	pods.running = []*owner.Pod{&d}
	restart("netdev", "conntrack")
	want("b elsewhere", 140, 0, 10, 120)
}

// notConnected is a containerd that does not answer.
type notConnected struct{ owner.NoPods }

// TestPodsAreKeptWithoutContainerd: while containerd does not answer, no pod counts as
// gone.
func TestPodsAreKeptWithoutContainerd(t *testing.T) {
	root, netns := fakeProc(t, 7)
	pods := &somePods{running: []*owner.Pod{{ID: "a", Namespace: "n", Name: "a", Netns: netns[1], PIDs: []int{7}}}}
	f := counting("netdev", txBytes, EachNetns)
	r := keeping(t, Options{ProcRoot: root, Pods: pods}, nil, f)
	r.Cycle()
	r2 := keeping(t, Options{ProcRoot: root, Pods: notConnected{}}, kept(r), f)
	r2.Cycle()
	r2.keeper.now = func() time.Duration { return kernel.SinceBoot() + time.Hour }
	r2.Cycle()
	r3 := keeping(t, Options{ProcRoot: root, Pods: pods}, kept(r2), f)
	if v := values(r3.Cycle()); v[txBytes+"{node1,n,a}"] != 20 || v[txBytes+"{node1,hostNetwork,hostNetwork}"] != 40 {
		t.Errorf("%v", v)
	}
}

// TestStateIsRefused: damaged state, state of another boot or version, and other files are
// refused as a whole.
func TestStateIsRefused(t *testing.T) {
	root, _ := fakeProc(t)
	f := counting("netdev", txBytes, EachNetns)
	r := keeping(t, Options{ProcRoot: root}, nil, f)
	r.Cycle()
	good := kept(r)
	other := func(from, to string) []byte {
		b := bytes.Replace(good, []byte(from), []byte(to), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("no %q in the state", from)
		}
		return sealed(b)
	}
	version := bytes.Clone(good)
	version[len(stateMagic)]++
	boot, _, _ := strings.Cut(r.keeper.machine, " ")
	for name, x := range map[string]struct {
		data []byte
		want string
	}{
		"empty":          {[]byte{}, "not a state"},
		"text":           {[]byte("# HELP something\n"), "not a state"},
		"cut":            {good[:len(good)-1], "damaged"},
		"a bit":          {flipped(good, len(good)/2), "damaged"},
		"longer":         {append(bytes.Clone(good), 0), "damaged"},
		"another boot":   {other(boot, strings.Repeat("0", len(boot))), "another boot"},
		"version":        {version, "version 2"},
		"too much":       {append(bytes.Clone(good), make([]byte, MaxState)...), "more than"},
		"cut and sealed": {sealed(append(bytes.Clone(good[:len(good)-6]), 0, 0, 0, 0)), "damaged"},
	} {
		r := newRunner(t, Options{ProcRoot: root}, f)
		if err := r.Keep(); err != nil {
			t.Fatal(err)
		}
		if err := r.Recall(x.data); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
		if errors.Is(r.Recall(x.data), ErrOtherMachine) != (name == "another boot") {
			t.Errorf("%s: %v", name, r.Recall(x.data))
		}
		if v := values(r.Cycle()); v[txBytes+"{node1,hostNetwork,hostNetwork}"] != 10 {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// sealed replaces the checksum of a state by the right one.
func sealed(b []byte) []byte {
	return seal(bytes.Clone(b[:len(b)-4]))
}

func flipped(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 4
	return b
}

// TestOneBadMemory: unreadable state of one probe and target is logged, and costs only that
// state.
func TestOneBadMemory(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	o := Options{ProcRoot: root, Log: slog.New(slog.NewTextHandler(&log, nil))}
	bad := probe("conntrack", HostNetns, func(v *View) error { State[unreadable](v); return nil })
	f := counting("netdev", txBytes, EachNetns)
	r := keeping(t, o, nil, f, bad)
	r.Cycle()
	r = keeping(t, o, kept(r), f, bad)
	if v := values(r.Cycle()); v[txBytes+"{node1,hostNetwork,hostNetwork}"] != 20 {
		t.Errorf("%v", v)
	}
	if s := log.String(); strings.Count(s, "start again at 0") != 1 || !strings.Contains(s, "probe=conntrack") || !strings.Contains(s, "not mine") {
		t.Errorf("the log says %q", s)
	}
}

type unreadable struct{}

func (*unreadable) Keep(b []byte) []byte { return append(b, 1) }
func (*unreadable) Recall([]byte) error  { return errors.New("not mine") }

// TestStateIsBounded: an entry that does not fit is left out whole and counted. The node's
// and the host's entries come first.
func TestStateIsBounded(t *testing.T) {
	root, netns := fakeProc(t, 7)
	pods := &somePods{running: []*owner.Pod{{ID: "a", Namespace: "n", Name: "a", Netns: netns[1], PIDs: []int{7}}}}
	big := probe("conntrack", EachNetns, func(v *View) error { State[large](v).n = MaxState * 2 / 3; return nil })
	r := keeping(t, Options{ProcRoot: root, Pods: pods}, nil, big)
	r.Cycle()
	data, cut := r.Kept()
	if len(data) > MaxState || cut != 1 {
		t.Errorf("%d bytes, %d targets cut", len(data), cut)
	}
	_, all, err := parseState(data)
	if len(all[sampleKey].data) == 0 {
		t.Error("when the last sample was taken had no room")
	}
	delete(all, sampleKey)
	if err != nil || len(all) != 1 {
		t.Errorf("%d kept, %v", len(all), err)
	}
	for k := range all {
		if !strings.HasPrefix(k.target, "host ") {
			t.Errorf("%v was kept", k)
		}
	}
}

type large struct{ n int }

func (s *large) Keep(b []byte) []byte  { return append(b, make([]byte, s.n)...) }
func (s *large) Recall(b []byte) error { s.n = len(b); return nil }

// TestStateOfWhatHangs: state that a hanging call may still change is saved as it was
// before the call.
func TestStateOfWhatHangs(t *testing.T) {
	root, _ := fakeProc(t)
	hang, back := make(chan struct{}), make(chan struct{})
	hangs := false
	m := catalog.MustMetric(txBytes)
	f := probe("netdev", EachNetns, func(v *View) error {
		s := State[keptSum](v)
		s.n += 10
		err := v.Do(0, "something", func() error {
			if hangs {
				hangs = false
				<-hang
				defer close(back)
			}
			return nil
		})
		v.Add(m, float64(s.n))
		return err
	})
	r := keeping(t, Options{Timeout: hungTimeout, ProcRoot: root}, nil, f)
	r.Cycle()
	hangs = true
	r.Cycle()
	r2 := keeping(t, Options{ProcRoot: root}, kept(r), counting("netdev", txBytes, EachNetns))
	if v := values(r2.Cycle()); v[txBytes+"{node1,hostNetwork,hostNetwork}"] != 20 {
		t.Errorf("%v", v)
	}
	close(hang)
	<-back
}

func TestKeepingAllocatesLittle(t *testing.T) {
	root, _ := fakeProc(t)
	r := keeping(t, Options{ProcRoot: root}, nil, counting("netdev", txBytes, EachNetns))
	r.Cycle()
	r.Cycle()
	if n := testing.AllocsPerRun(20, r.keepAll); n > 2 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzState(f *testing.F) {
	b := appendString(append([]byte(stateMagic), stateVersion), "boot 1 2")
	b = appendEntry(b, "host 1 2", "netdev", time.Second, (&keptSum{7}).Keep)
	f.Add(seal(bytes.Clone(b)))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = parseState(b)
		// Damaged state that has a valid checksum.
		if len(b) > 4 {
			machine, all, err := parseState(sealed(b))
			if err != nil {
				return
			}
			again := appendString(append([]byte(stateMagic), stateVersion), machine)
			for k, p := range all {
				again = appendEntry(again, k.target, k.probe, p.seen, func(b []byte) []byte { return append(b, p.data...) })
			}
			if _, _, err := parseState(seal(again)); err != nil {
				t.Error(fmt.Sprintf("%q", again), err)
			}
		}
	})
}

// State beside that of the probes is saved with it, and once more at the end.
func TestKeepAlso(t *testing.T) {
	root, _ := fakeProc(t)
	o := Options{ProcRoot: root}
	also := &keptSum{}
	r := newRunner(t, o, counting("netdev", txBytes, EachNetns))
	r.KeepAlso("also", also)
	if err := r.Keep(); err != nil {
		t.Fatal(err)
	}
	r.KeepAtEnd() // nothing was sampled
	r.Cycle()
	also.n = 5
	r.Cycle()
	inCycle := kept(r)
	also.n = 7
	r.Close()
	r.KeepAtEnd()
	atEnd := kept(r)
	for want, data := range map[uint64][]byte{5: inCycle, 7: atEnd} {
		again := &keptSum{}
		r := newRunner(t, o, counting("netdev", txBytes, EachNetns))
		r.KeepAlso("also", again)
		if err := r.Keep(); err != nil {
			t.Fatal(err)
		}
		if err := r.Recall(data); err != nil || again.n != want {
			t.Errorf("%v, %d, want %d", err, again.n, want)
		}
		if v := values(r.Cycle()); v[txBytes+"{node1,hostNetwork,hostNetwork}"] != 30 {
			t.Errorf("the probe's own: %v", v)
		}
		// A Runner without that KeepAlso hands the state on unchanged.
		passes := keeping(t, o, data, counting("netdev", txBytes, EachNetns))
		passes.Cycle()
		again.n = 0
		if err := r.Recall(kept(passes)); err != nil || again.n != want {
			t.Errorf("handed on: %v, %d, want %d", err, again.n, want)
		}
	}
	r = newRunner(t, o, counting("netdev", txBytes, EachNetns))
	r.KeepAlso("also", failing{})
	if err := r.Keep(); err != nil {
		t.Fatal(err)
	}
	if err := r.Recall(atEnd); err == nil {
		t.Error("what cannot be recalled is no error")
	}
}

// failing is a Kept whose Recall fails.
type failing struct{}

func (failing) Keep(b []byte) []byte { return b }
func (failing) Recall([]byte) error  { return errState }
