package netlink

import (
	"fmt"
	"testing"
	"time"

	"nodeskoop/collect"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// qdiscHost is a sampled host with an interface of two queues.
type qdiscHost struct {
	t       *testing.T
	host    *nsnet.Space
	far     *nsnet.Space
	sampler *nsnet.Sampler
	last    map[string]float64
}

func newQdiscHost(t *testing.T) *qdiscHost {
	need.Program(t, "tc")
	h := &qdiscHost{t: t, host: quiet(nsnet.New(t)), far: quiet(nsnet.New(t))}
	for _, s := range []*nsnet.Space{h.host, h.far} {
		s.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	}
	h.host.Run("ip", "link", "add", "v", "numtxqueues", "2", "type", "veth", "peer", "name", "p", "netns", fmt.Sprint(h.far.PID))
	h.far.Run("ip", "link", "set", "p", "up")
	h.host.Run("ip", "addr", "add", "10.1.0.1/24", "dev", "v")
	h.host.Run("ip", "link", "set", "v", "up")
	h.host.Run("ip", "neigh", "add", "10.1.0.2", "lladdr", "02:00:00:00:00:02", "dev", "v")
	time.Sleep(50 * time.Millisecond)
	h.sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"qdisc"}, HostNetns: h.host.Path}, Probes()...)
	return h
}

func (h *qdiscHost) tc(args ...string) {
	h.t.Helper()
	h.host.Run("tc", append([]string{"qdisc"}, args...)...)
}

func (h *qdiscHost) want(what string, packets float64) {
	h.t.Helper()
	now := h.sampler.Sample()[nsnet.Host]
	if got := now["kubeskoop_qdisc_packets"] - h.last["kubeskoop_qdisc_packets"]; h.last != nil && got != packets {
		h.t.Errorf("%s: %v packets more, want %v", what, got, packets)
	}
	if got := now["kubeskoop_qdisc_bytes"] - h.last["kubeskoop_qdisc_bytes"]; h.last != nil && got != packets*142 {
		h.t.Errorf("%s: %v bytes more, want %v", what, got, packets*142)
	}
	h.last = now
}

func (h *qdiscHost) again() { h.sampler = h.sampler.Again() }

// TestQdiscMadeAnew: a root qdisc is deleted and recreated with the same handle between two
// samples. Each packet counts once, whatever the counters of the new one.
func TestQdiscMadeAnew(t *testing.T) {
	h := newQdiscHost(t)
	h.want("first", 0)
	h.tc("add", "dev", "v", "root", "handle", "1:", "pfifo")
	udp(t, h.host, "10.1.0.2:9", 10, 100)
	h.want("one", 10)
	h.want("nothing", 0)
	udp(t, h.host, "10.1.0.2:9", 2, 100)
	h.tc("del", "dev", "v", "root")
	h.tc("add", "dev", "v", "root", "handle", "1:", "pfifo")
	udp(t, h.host, "10.1.0.2:9", 30, 100) // more than the old one had counted
	h.want("anew, with more", 32)
	udp(t, h.host, "10.1.0.2:9", 1, 100)
	h.tc("replace", "dev", "v", "root", "handle", "2:", "pfifo")
	h.tc("replace", "dev", "v", "root", "handle", "1:", "pfifo")
	udp(t, h.host, "10.1.0.2:9", 5, 100)
	h.want("anew, with less", 6)
	h.tc("change", "dev", "v", "root", "handle", "1:", "pfifo", "limit", "500")
	udp(t, h.host, "10.1.0.2:9", 4, 100)
	h.want("changed, not made", 4)
	udp(t, h.host, "10.1.0.2:9", 4, 100)
	h.again()
	h.want("another run", 4)
	h.tc("del", "dev", "v", "root")
	h.again()
	h.want("gone between two runs", 0)
	h.tc("add", "dev", "v", "root", "handle", "1:", "pfifo")
	udp(t, h.host, "10.1.0.2:9", 3, 100)
	h.again()
	h.want("made between two runs", 3)
	udp(t, h.host, "10.1.0.2:9", 3, 100)
	h.host.Run("ip", "link", "del", "v")
	h.want("gone with its interface", 0) // its last counts are not reported
	h.want("stays gone", 0)
}

// TestQdiscChildrenReplaced: mq shows the sum of its children. When a child is
// replaced, its counts stay in the probe's sum, and the other children's counts are
// counted once.
func TestQdiscChildrenReplaced(t *testing.T) {
	h := newQdiscHost(t)
	h.tc("add", "dev", "v", "root", "handle", "1:", "mq")
	for i := 1; i <= 2; i++ {
		h.tc("replace", "dev", "v", "parent", fmt.Sprintf("1:%d", i), "handle", fmt.Sprintf("%d0:", i), "pfifo")
	}
	h.want("first", 0)
	for range 20 { // over both queues
		udp(t, h.host, "10.1.0.2:9", 1, 100)
	}
	h.want("both", 20)
	for range 20 {
		udp(t, h.host, "10.1.0.2:9", 1, 100)
	}
	for i := 1; i <= 2; i++ {
		h.tc("replace", "dev", "v", "parent", fmt.Sprintf("1:%d", i), "handle", fmt.Sprintf("%d1:", i), "pfifo")
		for range 5 {
			udp(t, h.host, "10.1.0.2:9", 1, 100)
		}
	}
	h.want("replaced", 30)
	udp(t, h.host, "10.1.0.2:9", 7, 100)
	h.want("goes on", 7)
	h.again()
	udp(t, h.host, "10.1.0.2:9", 7, 100)
	h.want("goes on in another run", 7)
}

// TestConntrackIsRecalled: 32-bit counters that have wrapped continue after a restart.
func TestConntrackIsRecalled(t *testing.T) {
	var s ctState
	if b := s.Keep(nil); len(b) != 0 {
		t.Errorf("nothing is kept as %q", b)
	}
	s.add(0, &ctCounts{ctFound: 0xFFFFFFF0})
	s.add(3, &ctCounts{ctFound: 5, ctDrop: 2})
	s.add(0, &ctCounts{ctFound: 0x10}) // wrapped
	var again ctState
	if err := again.Recall(s.Keep(nil)); err != nil {
		t.Fatal(err)
	}
	again.add(0, &ctCounts{ctFound: 0x15})
	again.add(1, &ctCounts{ctFound: 1}) // was offline so far
	again.add(3, &ctCounts{ctFound: 5, ctDrop: 3})
	if want := uint64(0x100000015 + 5 + 1); again.sum[ctFound] != want || again.sum[ctDrop] != 3 {
		t.Errorf("found %d, dropped %d, want %d and 3", again.sum[ctFound], again.sum[ctDrop], want)
	}
}
