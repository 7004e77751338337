package event

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

// TestGoldenHub records the fate of events of every kind: when they are sent, with which
// owner and content, and the account at the end.
func TestGoldenHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addr := netip.MustParseAddr
		start := time.Now()
		db := &owner.Pod{ID: "db", Namespace: "prod", Name: "db-0", Netns: 78, Addrs: []netip.Addr{addr("10.0.0.9")}}
		proxy := &owner.Pod{ID: "proxy", Namespace: "kube-system", Name: "proxy-x", HostNetwork: true}
		pods := &podTable{
			netns: map[uint64]*owner.Pod{77: webPod},
			addrs: map[netip.Addr]*owner.Pod{webPod.Addrs[0]: webPod, db.Addrs[0]: db},
			pids:  map[int]*owner.Pod{812: webPod, 900: proxy},
		}
		log := &testkit.Log{}
		var out bytes.Buffer
		first, second := &listSink{write: func(e *Event) bool { return e.Comm != "lost" }}, &listSink{}
		h := testHub(t, func(o *HubOptions) {
			o.Pods, o.Rate, o.Burst, o.TotalRate, o.Log = pods, 1, 3, 20, log.Logger()
			o.Filter = func(e *Event) bool { return e.CPU != 13 }
		}, first, second)
		offer := func(typ string, netns uint64, change func(e *Event)) {
			e := event(catalog.EventByName(typ), netns)
			e.Time = time.Unix(1000, 0).Add(time.Since(start))
			if change != nil {
				change(e)
			}
			h.Offer(e)
			synctest.Wait()
		}
		ends := func(src, dst string) func(e *Event) {
			return func(e *Event) {
				a, b := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
				e.Protocol, e.Src, e.Dst = "TCP", Endpoint{Addr: a.Addr(), Port: a.Port()}, Endpoint{Addr: b.Addr(), Port: b.Port()}
			}
		}
		said := 0
		step := func(what string) {
			synctest.Wait()
			fmt.Fprintf(&out, "# %s\n", what)
			first.mu.Lock()
			defer first.mu.Unlock()
			for ; said < len(first.got); said++ {
				line, _ := first.got[said].AppendJSON(nil, nil)
				fmt.Fprintf(&out, "%v %s\n", first.at[said].Sub(start), line)
			}
		}
		step("start")
		offer("PacketLoss", 77, ends("10.0.0.5:443", "10.0.0.9:51234"))
		offer("PacketLoss", hostInode, ends("192.0.2.1:1", "127.0.0.1:2"))
		offer("PacketLoss", 0, ends("10.0.0.9:1", "10.0.0.5:2"))
		offer("PacketLoss", 77, ends("127.0.0.1:1", "[::ffff:10.0.0.9]:2"))
		step("of a pod, the host and nobody, at once")

		offer("SOCKETLAT_READSLOW", hostInode, func(e *Event) { e.PID, e.Comm = 900, "kube-proxy" })
		offer("BIOLAT_10MS", 0, func(e *Event) { e.PID, e.Comm, e.Disk = 812, "nginx\x1b", "sda" })
		offer("NETSOFTIRQ_SCHED_SLOW", 0, func(e *Event) { e.PID, e.CPU = 812, 2 })
		offer("NETSOFTIRQ_SCHED_SLOW", 0, func(e *Event) { e.CPU = 13 })
		step("of processes, and one that nobody wants")

		offer("PacketLoss", 78, ends("10.0.0.9:1", "10.0.0.5:2"))
		offer("PacketLoss", 79, ends("127.0.0.1:1", "10.0.0.5:2"))
		offer("BIOLAT_10MS", 0, func(e *Event) { e.PID = 5 })
		step("of pods that are not known yet")
		time.Sleep(120 * time.Millisecond)
		pods.start(78, db)
		time.Sleep(500 * time.Millisecond)
		step("one is known")
		time.Sleep(time.Second)
		step("the others never were")
		offer("PacketLoss", 79, nil)
		step("and are not waited for again")

		offer("PacketLoss", hostInode, ends("203.0.113.9:1", "192.0.2.1:2"))
		step("an address that may be new")
		time.Sleep(time.Second)
		step("is nobody's")

		time.Sleep(time.Minute)
		for range 6 {
			offer("TCPRESET_RECEIVE", 77, nil)
		}
		h.CountOnly(resetType, 45, 2)
		h.Owe(resetType, 78, 40)
		synctest.Wait()
		offer("TCPRESET_RECEIVE", 78, func(e *Event) { e.Comm = "lost" })
		offer("TCPRESET_RECEIVE", hostInode, nil)
		time.Sleep(2 * time.Second)
		offer("TCPRESET_RECEIVE", 77, nil)
		offer("TCPRESET_RECEIVE", 78, nil)
		step("too many, some that the kernel held back, and a lost one")

		offer("PacketLoss", 80, nil)
		closeHub(t, h)
		step("the end")
		if len(first.got) != len(second.got) || first.closed != 1 || second.closed != 1 {
			t.Errorf("the sinks have %d and %d events, and were closed %d and %d times", len(first.got), len(second.got), first.closed, second.closed)
		}
		for _, typ := range catalog.Events() {
			if c := h.Counts(typ); c != (Counts{}) {
				fmt.Fprintf(&out, "# %s: %+v\n", typ.Name, c)
			}
		}
		fmt.Fprintf(&out, "# log: %s\n", log)
		testkit.Golden(t, "hub.txt", out.Bytes())
	})
}
