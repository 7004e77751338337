package output

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestJournaldFrozenMerges floods a merging Hub while journald is frozen twice. The
// occurrences in the entries equal the account's written; the others are lost or
// suppressed.
func TestJournaldFrozenMerges(t *testing.T) {
	need.Short(t)
	d := newJournald(t)
	j := NewJournal(JournalOptions{Path: d.Socket, Queue: 64})
	h := event.NewHub(event.HubOptions{Node: "node-1", HostLabel: "hostNetwork", HostNetns: 1, Window: 20 * time.Millisecond, MaxWindow: 80 * time.Millisecond,
		Rate: 2000, Burst: 2000}, j)
	defer h.Close(context.Background())
	types := catalog.Events()
	var offered uint64
	flood := func(n int) {
		for i := range n {
			e := eventOf(types[i%len(types)])
			e.Reason = fmt.Sprint("reason ", i%30)
			h.Offer(e)
			if offered++; i%200 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	total := func() event.Counts { return countsOf(h, types) }
	for range 2 {
		flood(5000)
		d.Sync()
		if err := d.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		lost := total().Lost
		testkit.Eventually(t, "events are lost while nobody reads", func() bool {
			flood(5000)
			return total().Lost > lost
		})
		if err := d.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "journald has caught up", func() bool { return total().Pending == 0 })
	}
	flood(500)
	closeSink(t, h, 10*time.Second)
	c := total()
	t.Logf("%+v", c)
	if c.Offered != offered || c.Written+c.Suppressed+c.Lost != offered || c.Pending != 0 {
		t.Errorf("%d were offered, got %+v", offered, c)
	}
	var told, entries uint64
	for _, m := range d.entries(t) {
		n := uint64(1)
		if s := m["KUBESKOOP_COUNT"]; s != "" {
			n, _ = strconv.ParseUint(s, 10, 64)
		}
		told += n
		entries++
	}
	if told != c.Written || entries >= told {
		t.Errorf("%d entries tell of %d, %d are written", entries, told, c.Written)
	}
}

// countsOf adds up the accounts of several types.
func countsOf(h *event.Hub, types []*catalog.EventType) (c event.Counts) {
	for _, typ := range types {
		n := h.Counts(typ)
		c.Offered += n.Offered
		c.Written += n.Written
		c.Suppressed += n.Suppressed
		c.Lost += n.Lost
		c.Pending += n.Pending
	}
	return c
}
