package bpf

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// exchange sends small messages over a connection, each when the one before has arrived.
// It returns how many segments with data TCP sent, by its own count.
func exchange(t testing.TB, client, server *net.TCPConn, n int, each func(i int)) (segments uint64) {
	t.Helper()
	before := tcpInfo(t, client).Data_segs_out
	message, buffer := make([]byte, 100), make([]byte, 100)
	for i := range n {
		if _, err := client.Write(message); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, buffer); err != nil {
			t.Fatal(err)
		}
		each(i)
	}
	return uint64(tcpInfo(t, client).Data_segs_out - before)
}

// inChains reports which probes have a program in the chain of a tracepoint, by the places
// of the kernel's map.
func (l *testLoader) inChains(tracepoint string) (probes []string) {
	l.t.Helper()
	for name, place := range chainPlaces {
		var id uint32
		err := l.chains.by[tracepoint].programs.Lookup(uint32(place), &id)
		switch {
		case err == nil:
			probes = append(probes, name)
		case !errors.Is(err, ebpf.ErrKeyNotExist):
			l.t.Fatal(err)
		}
	}
	slices.Sort(probes)
	return probes
}

// loadChained loads a probe whose programs belong to chains, and skips the test if this
// kernel has no such tracepoints.
func (l *testLoader) loadChained(name string) *Probe {
	l.t.Helper()
	p, err := l.Load(name, Config{})
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		l.t.Skipf("this kernel: %v", err)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// TestChainWithoutGap: one probe counts each segment once while the others in its chains come
// and go.
func TestChainWithoutGap(t *testing.T) {
	sighted(t, "exchange", func(t *testing.T) {
		l := newTestLoader(t, Options{Hooks: BTFTracepoint})
		p := l.loadChained("kernellatency")
		a, b := newPair(t)
		client, server := connect(t, a, b, b.v4)
		l.settled(p, a.inode)
		before := readHistograms(t, p)[TxLatency].Count()
		var others []*Probe
		segments := exchange(t, client, server, times(600, 40), func(i int) {
			switch i % 20 {
			case 4:
				others = append(others, l.loadChained("socketlatency"))
			case 8:
				others = append(others, l.loadChained("netiftxlatency"))
				want := []string{"kernellatency", "netiftxlatency"}
				if slices.ContainsFunc(others[0].Hooks(), func(h HookState) bool { return slices.Contains(h.Programs, "btf_queue") }) {
					want = append(want, "socketlatency") // before 6.16 it sees writes by functions
				}
				if got := l.inChains("net_dev_queue"); !slices.Equal(got, want) {
					t.Fatalf("the chain has %v, want %v", got, want)
				}
			case 12, 16:
				if err := others[0].Close(); err != nil {
					t.Fatal(err)
				}
				others = others[1:]
			}
		})
		l.settled(p, a.inode)
		l.count(p, "segments while other probes come and go", segments, readHistograms(t, p)[TxLatency].Count()-before)
	})
}

// TestChainLeft: with its last probe a chain is detached, and the next probe attaches it.
func TestChainLeft(t *testing.T) {
	l := newTestLoader(t, Options{Hooks: BTFTracepoint})
	chain := l.chains.by["net_dev_queue"]
	for range 3 {
		p := l.loadChained("netiftxlatency")
		if got := l.inChains("net_dev_queue"); !slices.Equal(got, []string{"netiftxlatency"}) || chain.link == nil {
			t.Fatalf("the chain has %v, attached: %v", got, chain.link != nil)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if got := l.inChains("net_dev_queue"); len(got) > 0 || chain.link != nil {
			t.Fatalf("the chain of no probe has %v, attached: %v", got, chain.link != nil)
		}
	}
}

// TestChainOfTwoInstances: a second instance of a probe is attached alone, and both count
// each packet once, also after the first has gone.
func TestChainOfTwoInstances(t *testing.T) {
	sighted(t, "exchange", func(t *testing.T) {
		l := newTestLoader(t, Options{Hooks: BTFTracepoint})
		first, second := l.loadChained("kernellatency"), l.loadChained("kernellatency")
		counted := l.loadChained("netiftxlatency")
		a, b := newPair(t)
		a.run(t, "tc", "qdisc", "add", "dev", a.device, "root", "pfifo")
		client, server := connect(t, a, b, b.v4)
		exchanged := func(probes ...*Probe) {
			t.Helper()
			l.settled(counted, a.inode)
			count := func(p *Probe) uint64 {
				if p == counted {
					return readHistograms(t, p)[QdiscLatency].Count()
				}
				return readHistograms(t, p)[TxLatency].Count()
			}
			var before []uint64
			for _, p := range probes {
				before = append(before, count(p))
			}
			segments := exchange(t, client, server, times(200, 50), func(int) {})
			l.settled(counted, a.inode)
			for i, p := range probes {
				got := count(p) - before[i]
				if p == counted { // it counts acknowledgements, too
					if got < segments {
						l.count(p, "packets in a queue", segments, got)
					}
					continue
				}
				l.count(p, "segments of two instances", segments, got)
			}
		}
		exchanged(first, second, counted)
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		exchanged(second, counted)
		exchanged(l.loadChained("kernellatency"), second, counted)
	})
}

// TestChainRefused: if the kernel refuses a chain's own program, each probe's is attached
// alone, which is told once and counts the same.
func TestChainRefused(t *testing.T) {
	sighted(t, "exchange", func(t *testing.T) {
		var warnings []string
		l := newTestLoader(t, Options{Hooks: BTFTracepoint, Warn: func(what, _ string, err error) { warnings = append(warnings, what+": "+err.Error()) }})
		for _, s := range l.chains.spec.Programs {
			s.Instructions = s.Instructions[:1] // it does not end
		}
		p := l.loadChained("kernellatency")
		other := l.loadChained("netiftxlatency")
		if got := l.inChains("net_dev_queue"); len(got) > 0 {
			t.Errorf("the chain has %v", got)
		}
		if !slices.ContainsFunc(p.Hooks(), func(h HookState) bool {
			return slices.ContainsFunc(h.Refused, func(r Refusal) bool { return r.Kind == Chain && r.Reason != "" })
		}) {
			t.Errorf("the refusal is not among those of the probe: %v", p.Hooks())
		}
		if n := len(slices.DeleteFunc(warnings, func(w string) bool { return !strings.Contains(w, "to net_dev_queue failed") })); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		a, b := newPair(t)
		client, server := connect(t, a, b, b.v4)
		l.settled(p, a.inode)
		before := readHistograms(t, p)[TxLatency].Count()
		segments := exchange(t, client, server, times(200, 50), func(int) {})
		l.settled(p, a.inode)
		l.count(p, "segments without a chain", segments, readHistograms(t, p)[TxLatency].Count()-before)
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestChainStats: the kernel counts the runs of a chain as those of one program, and at least
// one for each packet.
func TestChainStats(t *testing.T) {
	need.Root(t)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Skipf("needs the kernel's BPF statistics: %v", err)
	}
	defer stats.Close()
	for _, alone := range []bool{false, true} {
		l := newTestLoader(t, Options{Hooks: BTFTracepoint, NoChains: alone})
		l.loadChained("netiftxlatency")
		runs := func() (chains, probe uint64) {
			all, err := l.Stats()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range all.Programs {
				switch {
				case p.Probe == ChainsProbe && p.Program == "net_dev_queue":
					chains = p.Runs
				case p.Probe == "netiftxlatency" && p.Program == "btf_queue":
					probe = p.Runs
				}
			}
			return chains, probe
		}
		a, b := newPair(t)
		client, server := connect(t, a, b, b.v4)
		const n = 50
		segments := exchange(t, client, server, n, func(int) {})
		// This machine has other traffic, too.
		testkit.Eventually(t, "the kernel counted the runs", func() bool {
			chains, probe := runs()
			return max(chains, probe) >= segments
		})
		if chains, probe := runs(); (chains == 0) != alone || (probe == 0) == alone {
			t.Errorf("attached alone: %v, runs of chains %d, of the probe's program %d", alone, chains, probe)
		}
	}
}
