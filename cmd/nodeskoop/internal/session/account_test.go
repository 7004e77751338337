package session

import (
	"context"
	"testing"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
)

// accountOf creates Events with the given counts of one type.
func accountOf(t testing.TB, typ *catalog.EventType, counts event.Counts) *Events {
	h := event.NewHub(event.HubOptions{})
	t.Cleanup(func() { _ = h.Close(context.Background()) })
	if typ != nil {
		h.Recall(typ, counts)
	}
	return &Events{Hub: h}
}

// The account continues from the saved one; events pending then count as lost,
// once.
func TestAccountIsKept(t *testing.T) {
	loss, bio := catalog.EventByName("PacketLoss"), catalog.EventByName("BIOLAT_10MS")
	first := accountOf(t, loss, event.Counts{Written: 1 << 40, Suppressed: 3, Lost: 2, Ignored: 5})
	kept := first.Keep([]byte("before"))
	second := accountOf(t, bio, event.Counts{Written: 7})
	if err := second.Recall(kept[len("before"):]); err != nil {
		t.Fatal(err)
	}
	if got, want := second.Hub.Counts(loss), first.Hub.Counts(loss); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := second.Hub.Counts(bio); got != (event.Counts{Offered: 7, Written: 7}) {
		t.Errorf("of another type: %+v", got)
	}
	if b := accountOf(t, nil, event.Counts{}).Keep(nil); len(b) != 0 {
		t.Errorf("of nothing %d bytes are kept", len(b))
	}

	// A type unknown to this program is skipped.
	unknown := append([]byte{4}, "gone\x01\x02\x03\x04\x05"...)
	third := accountOf(t, nil, event.Counts{})
	if err := third.Recall(append(unknown, kept[len("before"):]...)); err != nil || third.Hub.Counts(loss) != first.Hub.Counts(loss) {
		t.Errorf("%v, %+v", err, third.Hub.Counts(loss))
	}
	// A truncated account is rejected completely.
	fourth := accountOf(t, nil, event.Counts{})
	if err := fourth.Recall(kept[len("before") : len(kept)-1]); err == nil || fourth.Hub.Counts(loss) != (event.Counts{}) {
		t.Errorf("%v, %+v", err, fourth.Hub.Counts(loss))
	}
}

// FuzzRecall: whatever the saved text, the account balances, and saving it again
// gives the same.
func FuzzRecall(f *testing.F) {
	f.Add([]byte("\x0aPacketLoss\x01\x02\x03\x04\x05"))
	f.Add([]byte("\x04gone\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := accountOf(t, nil, event.Counts{})
		if e.Recall(b) != nil {
			return
		}
		again := accountOf(t, nil, event.Counts{})
		if err := again.Recall(e.Keep(nil)); err != nil {
			t.Fatal(err)
		}
		for _, typ := range catalog.Events() {
			c := e.Hub.Counts(typ)
			if c.Written+c.Suppressed+c.Lost+c.Ignored+c.Pending != c.Offered || c.Pending != 0 {
				t.Errorf("%s: %+v", typ.Name, c)
			}
			if got := again.Hub.Counts(typ); c.Offered > 0 && got != c {
				t.Errorf("%s: %+v, want %+v", typ.Name, got, c)
			}
		}
	})
}
