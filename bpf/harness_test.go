package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/proof"
)

// testLoader is a loader with its event reader for one test.
type testLoader struct {
	*Loader
	t      testing.TB
	rung   Kind // the forced rung, as named by eachRung
	mu     sync.Mutex
	events []Event
	stop   func()
}

func newTestLoader(t testing.TB, options Options) *testLoader {
	t.Helper()
	need.Root(t)
	kept.close(t)
	rung := options.Hooks
	options.Hooks = force(t, rung)
	l := openTestLoader(t, options)
	l.rung = rung
	t.Cleanup(func() { l.close(t) })
	l.lend(t)
	return l
}

// openTestLoader returns a loader that belongs to no test yet.
func openTestLoader(t testing.TB, options Options) *testLoader {
	t.Helper()
	l, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	shared.lend(l)
	tl := &testLoader{Loader: l}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- l.Events(ctx, func(e *Event) {
			tl.mu.Lock()
			defer tl.mu.Unlock()
			tl.events = append(tl.events, *e)
		})
	}()
	tl.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tl.t.Errorf("reader: %v", err)
		}
	})
	return tl
}

// lend makes a test the loader's owner until its end.
func (l *testLoader) lend(t testing.TB) {
	t.Helper()
	l.t = t
	following.load(t, l.Loader)
	missed := l.missed()
	t.Cleanup(func() {
		for _, p := range l.loaded() {
			l.agree(p)
		}
		if n := l.missed() - missed; n > 0 {
			t.Logf("the kernel left out %d runs of programs that were preempted", n)
		}
	})
}

func (l *testLoader) close(t testing.TB) {
	t.Helper()
	l.t = t
	l.stop()
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// kept is the loader of the last lossLab, in an emulated machine, where loading
// packetloss takes longer than most tests of a lab. The next lab takes it over; the next
// other loader closes it first.
var kept keptLoader

type keptLoader struct {
	l *testLoader
	p *Probe
}

// load returns a loader with packetloss, for a lossLab.
func (k *keptLoader) load(t testing.TB, options Options, config Config) (*testLoader, *Probe) {
	t.Helper()
	if !need.InVM() {
		l := newTestLoader(t, options)
		return l, l.load("packetloss", config)
	}
	if k.p != nil {
		k.l.lend(t)
		return k.l, k.p
	}
	need.Root(t)
	k.close(t) // one whose load failed
	k.l = openTestLoader(t, options)
	k.l.lend(t)
	k.p = k.l.load("packetloss", config)
	return k.l, k.p
}

func (k *keptLoader) close(t testing.TB) {
	t.Helper()
	if k.l != nil {
		k.l.close(t)
	}
	*k = keptLoader{}
}

// loaded are the probes that are not closed.
func (l *testLoader) loaded() (probes []*Probe) {
	l.Loader.mu.Lock()
	defer l.Loader.mu.Unlock()
	for p := range l.probes {
		probes = append(probes, p)
	}
	return probes
}

// missed is the number of runs of the probes' programs that the kernel skipped. A
// preemptible kernel may preempt the program of a function hook; until it
// continues, no other task runs it on that CPU (bpf_prog_inc_misses_counter in
// kernel/bpf/trampoline.c). Measured with 7.3 on a busy machine: 10 of 40 reads by
// four threads, in one round of ten.
func (l *testLoader) missed() (n uint64) {
	l.t.Helper()
	stats, err := l.Stats()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range stats.Programs {
		n += p.Missed
	}
	return n
}

// following lists the namespaces that the tests' loaders follow: the node's own,
// and those that a test created.
var following followers

type followers struct {
	mu         sync.Mutex
	namespaces []Netns
	loaders    []*Loader
}

// nodeNetns is the node's own namespace, read before the main thread may enter
// another.
var nodeNetns = func() Netns {
	inode, _ := kernel.Inode("/proc/self/ns/net")
	return Netns{inode, "/proc/self/ns/net"}
}()

// add follows a namespace until the end of the test.
func (f *followers) add(t testing.TB, netns Netns) {
	t.Helper()
	f.change(t, func() { f.namespaces = append(f.namespaces, netns) })
	t.Cleanup(func() {
		f.change(t, func() {
			f.namespaces = slices.DeleteFunc(f.namespaces, func(n Netns) bool { return n == netns })
		})
	})
}

// load makes a loader follow the namespaces until the end of the test.
func (f *followers) load(t testing.TB, l *Loader) {
	t.Helper()
	f.change(t, func() { f.loaders = append(f.loaders, l) })
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.loaders = slices.DeleteFunc(f.loaders, func(x *Loader) bool { return x == l })
	})
}

func (f *followers) change(t testing.TB, how func()) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
	for _, l := range f.loaders {
		if err := l.Own(nodeNetns, f.namespaces); err != nil && !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
	}
}

// shared caches the kernel data that each loader would read again. In an emulated
// machine reading them takes longer than most tests.
var shared sharedReadings

type sharedReadings struct {
	types   *kernelTypes
	symbols *Symbols
	specs   sync.Once
}

func (s *sharedReadings) lend(l *Loader) {
	s.specs.Do(func() {
		if !need.InVM() {
			return // TestMemory measures a loader's own memory
		}
		for _, d := range definitions {
			read := sync.OnceValues(d.spec)
			d.spec = func() (*ebpf.CollectionSpec, error) {
				spec, err := read()
				return spec.Copy(), err
			}
		}
	})
	if s.types == nil {
		s.types, _ = newKernelTypes() // a failure appears again in Load, which handles it
	}
	if s.symbols == nil {
		s.symbols = NewSymbols()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.types, l.symbols = s.types, s.symbols
}

// ReleaseBTF also releases the data shared between the tests' loaders.
func (l *testLoader) ReleaseBTF() {
	shared.types = nil
	l.Loader.ReleaseBTF()
}

// load loads a probe, or skips the test if the kernel has no hook for it.
func (l *testLoader) load(name string, config Config) *Probe {
	l.t.Helper()
	p, err := l.Load(name, config)
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		proof.Refuse(l.t, name, string(l.rung), unsupported.Detail())
		l.t.Skipf("this kernel: %v", err)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range p.Hooks() {
		l.t.Logf("%s: %s by %s %v %s", name, h.Name, h.Kind, h.Programs, h.Limitation)
	}
	_, limitations := p.State()
	if l.rung == "" {
		proof.Choose(l.t, name, kindsOf(p), limitations)
	} else {
		proof.Take(l.t, name, string(l.rung), limitations)
	}
	return p
}

// rungsOf names the rungs of a probe's hooks, best first, by kind, and with a
// number if a hook has several of that kind ("raw_tp-1").
func rungsOf(probe string) (names []Kind) {
	most := map[Kind]int{}
	var kinds []Kind
	for _, h := range definitions[probe].hooks {
		if h.name == lossSockets && !socketsAreNoted() {
			continue
		}
		n := map[Kind]int{}
		for _, r := range h.rungs {
			n[r.kind]++
			most[r.kind] = max(most[r.kind], n[r.kind])
			if !slices.Contains(kinds, r.kind) {
				kinds = append(kinds, r.kind)
			}
		}
	}
	for _, k := range kinds {
		if most[k] == 1 {
			names = append(names, k)
			continue
		}
		for i := range most[k] {
			names = append(names, Kind(fmt.Sprintf("%s-%d", k, i+1)))
		}
	}
	return names
}

// socketsAreNoted reports whether packetloss has a hook for the sockets of freed
// packets on this kernel.
var socketsAreNoted = sync.OnceValue(func() bool {
	types, err := newKernelTypes()
	return err == nil && !hasReceiver(types)
})

// eachRung runs a test with each rung of a probe's hooks. The test passes the rung
// as Hooks of newTestLoader's options: a hook with such a rung uses only that one,
// other hooks are not affected. load records and skips rungs that the kernel
// refuses.
func eachRung(t *testing.T, probe string, f func(t *testing.T, rung Kind)) {
	t.Helper()
	runRungs(t, rungsOf(probe), f)
}

func runRungs(t *testing.T, rungs []Kind, f func(t *testing.T, rung Kind)) {
	t.Helper()
	for _, rung := range rungs {
		sighted(t, "hooks="+string(rung), func(t *testing.T) { f(t, rung) })
	}
}

// rungsInTurn is eachRung for tests that depend little on the kind of hook. In VMs
// each kernel runs one rung in three; the kernels together run all.
func rungsInTurn(t *testing.T, probe string, f func(t *testing.T, rung Kind)) {
	t.Helper()
	rungs := rungsOf(probe)
	if turn, err := strconv.Atoi(os.Getenv("NODESKOOP_TEST_TURN")); err == nil {
		var ours []Kind
		for i := turn % 3; i < len(rungs); i += 3 {
			ours = append(ours, rungs[i])
		}
		rungs = ours
	}
	runRungs(t, rungs, f)
}

// force returns the kind of a rung as the loader knows it. For a numbered rung it
// removes the others of its kind for the duration of the test.
func force(t testing.TB, name Kind) Kind {
	t.Helper()
	text, digits, numbered := strings.Cut(string(name), "-")
	kind := Kind(text)
	if kind == Cgroup {
		return "" // the probe has no such rung
	}
	if !numbered {
		return kind
	}
	number, err := strconv.Atoi(digits)
	if err != nil || number < 1 {
		t.Fatalf("%q names no rung", name)
	}
	whole := definitions
	t.Cleanup(func() { definitions = whole })
	definitions = maps.Clone(whole)
	for probe, d := range definitions {
		cut := *d
		cut.hooks = slices.Clone(d.hooks)
		for i, h := range cut.hooks {
			if same := slices.DeleteFunc(slices.Clone(h.rungs), func(r rung) bool { return r.kind != kind }); len(same) > 1 {
				n := min(number, len(same))
				cut.hooks[i].rungs = same[n-1 : n]
			}
		}
		definitions[probe] = &cut
	}
	return kind
}

// kindsOf returns the kinds of hooks that a probe uses.
func kindsOf(p *Probe) string {
	var kinds []string
	for _, h := range p.Hooks() {
		if k := string(h.Kind); k != "" && !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	return strings.Join(kinds, ", ")
}

// count checks that a probe's count equals what was caused, and records that for
// the requested rung, or for the rung that the probe chose.
func (l *testLoader) count(p *Probe, what string, caused, counted uint64) {
	l.t.Helper()
	if excused(l.t, what, caused, counted) {
		return
	}
	by := string(l.rung)
	if by == "" {
		by = kindsOf(p)
	}
	proof.Count(l.t, p.Name(), by, what, caused, counted)
}

// TestRungs loads each probe with the default choice, and with each of its rungs.
// The probes' own tests check their counts, and in VMs, where loading is slow, they
// alone try the rungs.
func TestRungs(t *testing.T) {
	for _, probe := range Probes() {
		rungs := rungsOf(probe)
		if need.InVM() {
			rungs = nil
		}
		for _, rung := range append([]Kind{""}, rungs...) {
			t.Run(path.Join(probe, "hooks="+string(rung)), func(t *testing.T) {
				var config Config
				if rung == TCX || rung == Clsact {
					a, _ := newPair(t)
					config.Devices = []string{a.device}
					config.Netns = fmt.Sprintf("/proc/self/fd/%d", int(a.handle))
				}
				verifiedSoon(t, newTestLoader(t, Options{Hooks: rung, NoEvents: true}).load(probe, config))
			})
		}
	}
}

// verifiedSoon checks that the verifier processed few instructions for a probe's
// programs: verification takes CPU at each start, and kernels refuse programs
// beyond a million. Kernels before 5.16 do not report the number.
func verifiedSoon(t *testing.T, p *Probe) {
	t.Helper()
	const most = 100_000
	for name, program := range p.programs {
		info, err := program.Info()
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := info.VerifiedInstructions(); ok && n > most {
			t.Errorf("%s: the verifier followed %d instructions, more than %d", name, n, most)
		}
	}
}

// taken returns the events of a type in one namespace so far, after waiting for at
// least n.
func (l *testLoader) taken(t EventType, netns uint64, n int) []Event {
	l.t.Helper()
	var found []Event
	l.eventually("the events "+t.String(), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		found = slices.DeleteFunc(slices.Clone(l.events), func(e Event) bool {
			return e.Type != t || netns != 0 && e.Netns != netns
		})
		return len(found) >= n
	})
	return found
}

// eventually waits for work of another CPU or of softirqs. If the kernel ran no
// program, the condition never holds, and the case runs again.
func (l *testLoader) eventually(what string, ok func() bool) {
	l.t.Helper()
	if testkit.Within(testkit.Patience, ok) {
		return
	}
	if excused(l.t, "waited for "+what, 1, 0) {
		l.t.Skipf("this kernel: it ran no program in some softirqs, and %s never came; once more", what)
	}
	l.t.Fatalf("after %v it never came true: %s", testkit.Patience, what)
}

// ids returns the NetnsIDs under which the probes' tables hold these inode numbers.
func (l *testLoader) ids(inodes ...uint64) (ids []NetnsID) {
	l.t.Helper()
	note := func(n NetnsID) {
		if slices.Contains(inodes, n.Inode()) && !slices.Contains(ids, n) {
			ids = append(ids, n)
		}
	}
	for _, n := range l.Followed() {
		note(n)
	}
	for p := range l.probes {
		err := p.Counters(func(n NetnsID, _ int, _ uint64) { note(n) })
		if err == nil && p.name == "flow" {
			err = p.EachFlow(func(e FlowEntry) { note(e.Key.Netns()) })
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	return ids
}

// forget makes the loader forget namespaces.
func (l *testLoader) forget(inodes ...uint64) error {
	l.t.Helper()
	var errs []error
	for _, id := range l.ids(inodes...) {
		errs = append(errs, l.Forget(id))
	}
	return errors.Join(errs...)
}

func counters(t testing.TB, p *Probe, netns uint64) [8]uint64 {
	t.Helper()
	var slots [8]uint64
	if err := p.Counters(func(n NetnsID, slot int, value uint64) {
		if n.Inode() == netns {
			slots[slot] += value
		}
	}); err != nil {
		t.Fatal(err)
	}
	return slots
}

// settled reads counters until they are stable: after traffic, packets may still be
// in a softirq, or a timer may be pending.
func (l *testLoader) settled(p *Probe, netns uint64) [8]uint64 {
	l.t.Helper()
	drained(l.t)
	last := counters(l.t, p, netns)
	l.eventually("the counters to settle", func() bool {
		time.Sleep(50 * time.Millisecond)
		now := counters(l.t, p, netns)
		same := now == last
		last = now
		return same
	})
	return last
}

func (l *testLoader) account(t EventType) EventAccount {
	l.t.Helper()
	s, err := l.Stats()
	if err != nil {
		l.t.Fatal(err)
	}
	return s.Events[t-1]
}

// balanced checks that every counted occurrence is accounted for, and that every
// written event was read. The slots are those whose occurrences are events of the
// type. Since the machine is never idle, both are read until nothing changes
// between the readings.
func (l *testLoader) balanced(t EventType, p *Probe, slots ...int) EventAccount {
	l.t.Helper()
	sum := func() (n uint64) {
		if err := p.Counters(func(_ NetnsID, slot int, value uint64) {
			if slices.Contains(slots, slot) {
				n += value
			}
		}); err != nil {
			l.t.Fatal(err)
		}
		return n
	}
	var a EventAccount
	var before, after uint64
	if !testkit.Within(testkit.Patience, func() bool {
		before, a, after = sum(), l.account(t), sum()
		return before == after && a.Seen == before && a.Read == a.Written && a.Written+a.Ignored+a.Suppressed+a.Lost == a.Seen
	}) {
		l.t.Errorf("account %+v, but %d to %d were counted", a, before, after)
	}
	return a
}
