package event

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// passed is a sink that writes everything at once.
type passed struct {
	events []*Event
	closed bool
}

func (p *passed) Send(e *Event, done func(*Event, bool)) {
	p.events = append(p.events, e)
	if done != nil {
		done(e, true)
	}
}

func (p *passed) Close(context.Context) error { p.closed = true; return nil }

func TestSummary(t *testing.T) {
	db := &owner.Pod{ID: "db", Namespace: "shop", Name: "db-0"}
	var next passed
	s := NewSummary(&next)
	written := 0
	add := func(typ string, change func(e *Event)) {
		e := fullEvent(catalog.EventByName(typ))
		change(e)
		s.Send(e, func(*Event, bool) { written++ })
	}
	at := time.UnixMicro(1_700_000_000_123_456)
	add("TCPRESET_RECEIVE", func(e *Event) { e.Dst.Pod = db })
	add("TCPRESET_RECEIVE", func(e *Event) {
		e.Dst.Pod, e.Dst.Port = db, 7
		e.Merged = &Merged{Count: 99, First: at.Add(time.Second), Last: at.Add(9 * time.Second)}
	})
	add("TCPRESET_RECEIVE", func(e *Event) {})
	add("PacketLoss", func(e *Event) { e.Pod, e.Src, e.Dst = nil, Endpoint{}, Endpoint{} })
	add("PacketLoss", func(e *Event) { e.Reason, e.Src.Pod = "", db; e.Src, e.Dst = e.Dst, e.Src })
	add("BIOLAT_10MS", func(e *Event) { e.Latency = 20 * time.Millisecond })
	add("BIOLAT_10MS", func(e *Event) { e.Latency, e.Time = 50*time.Millisecond, at.Add(-time.Second) })
	add("BIOLAT_10MS", func(e *Event) { e.Comm, e.Disk = "kworker/3:1", "sd\x1bb" })
	var got strings.Builder
	kinds, more := s.Kinds()
	for _, k := range kinds {
		fmt.Fprintf(&got, "%d %s, %s, %s, %v, %v to %v\n", k.Count, k.Type.Name, k.Whose, k.What, k.Worst, k.First.Sub(at), k.Last.Sub(at))
	}
	want := `100 TCPRESET_RECEIVE, default/web-0, from shop/db-0, 123.456ms, 0s to 9s
2 BIOLAT_10MS, default/web-0, nginx, sda, 50ms, -1s to 0s
1 BIOLAT_10MS, default/web-0, kworker, sd\x1bb, 123.456ms, 0s to 0s
1 PacketLoss, default/web-0, to shop/db-0, 123.456ms, 0s to 0s
1 PacketLoss, host, NETFILTER_DROP, 123.456ms, 0s to 0s
1 TCPRESET_RECEIVE, default/web-0, peer 10.0.0.9, 123.456ms, 0s to 0s
`
	if d := cmp.Diff(want, got.String()); d != "" || more != 0 {
		t.Errorf("%d more, (-want +got):\n%s", more, d)
	}
	if err := s.Close(context.Background()); err != nil || !next.closed || len(next.events) != 8 || written != 8 {
		t.Errorf("%v, closed %v, %d events, %d written", err, next.closed, len(next.events), written)
	}
}

// The number of kinds is bounded, and every occurrence is counted, whoever its peer is.
func TestSummaryIsBounded(t *testing.T) {
	s := NewSummary(&passed{})
	const senders, each = 4, maxSummaryKinds
	var wg sync.WaitGroup
	for n := range senders {
		wg.Go(func() {
			for i := range each {
				e := fullEvent(catalog.EventByName("PacketLoss"))
				e.Dst.Addr = netip.AddrFrom4([4]byte{10, byte(n), byte(i >> 8), byte(i)})
				s.count(e)
			}
		})
	}
	wg.Wait()
	kinds, more := s.Kinds()
	for _, k := range kinds {
		more += k.Count
	}
	if len(kinds) != maxSummaryKinds || more != senders*each {
		t.Errorf("%d kinds, %d events, want %d and %d", len(kinds), more, maxSummaryKinds, senders*each)
	}
}
