package trace

import (
	"testing"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/nsnet"
)

// Events that the kernel suppressed are reported once each, in the entries of the pod
// that they belong to.
func TestEntriesTellWhatTheKernelHeldBack(t *testing.T) {
	l := newLab(t, EventLimits{20, 100}, nil, "packetloss")
	for _, s := range []*nsnet.Space{l.a, l.b} {
		s.Run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 9 counter drop")
	}
	const n = 3000
	l.flood(l.a, "10.0.0.2:9", n) // web-0 to db-0
	l.settled("PacketLoss", n)
	told := func(pod int) (n uint64) {
		for _, e := range l.sink.of("PacketLoss") {
			if e.Pod == l.pods.List[pod] {
				n += e.Suppressed
			}
		}
		return n
	}
	testkit.Eventually(t, "entries of the pod tell of all that was held back", func() bool {
		l.flood(l.a, "10.0.0.2:9", 1) // so that there is an entry to report the number
		l.flood(l.b, "10.0.0.1:9", 1)
		l.settled("PacketLoss", 0)
		list, err := l.tracer.loader.HeldBack()
		if err != nil {
			t.Fatal(err)
		}
		held := uint64(0)
		for _, h := range list {
			if h.Netns == l.b.Inode {
				held += h.N
			}
		}
		return held > 0 && told(1) == held
	})
	if n := told(0); n != 0 {
		t.Errorf("entries of the other pod tell of %d", n)
	}
}
