package event

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// moodySink accepts events, loses them, reports late or panics, as the test sets it.
type moodySink struct {
	rand  *rand.Rand
	told  map[*catalog.EventType]uint64 // the occurrences in entries written
	late  []func()
	owing map[bucketKey]uint64 // the suppressed occurrences that the written entries report
}

func (s *moodySink) Send(e *Event, done func(*Event, bool)) {
	answer := func(written bool) func() {
		return func() {
			if written {
				s.told[e.Type] += e.Occurrences()
				s.owing[bucketOf(e)] += e.Suppressed
			}
			done(e, written)
		}
	}
	switch s.rand.IntN(10) {
	case 0:
		panic("boom in the sink")
	case 1:
		answer(false)()
	case 2, 3:
		s.late = append(s.late, answer(s.rand.IntN(4) > 0))
	default:
		answer(true)()
	}
}

func (s *moodySink) Close(context.Context) error {
	for _, f := range s.late {
		f()
	}
	s.late = nil
	return nil
}

// balance runs a Hub through a script, one action per byte, and checks the account against
// the actions: each occurrence is counted exactly once.
func balance(t *testing.T, script []byte) {
	synctest.Test(t, func(t *testing.T) {
		var seed [32]byte
		copy(seed[:], script)
		r := rand.New(rand.NewChaCha8(seed))
		sink := &moodySink{rand: r, told: map[*catalog.EventType]uint64{}, owing: map[bucketKey]uint64{}}
		opt := HubOptions{Node: "n", HostLabel: owner.DefaultHostLabel, HostNetns: hostInode, Pods: manyPods(77, 3),
			NodeAddrs: func() ([]netip.Addr, error) { return nil, nil },
			Window:    time.Second, MaxWindow: 8 * time.Second, Rate: 2, Burst: 3, TotalRate: 5,
			Filter: func(e *Event) bool { return e.CPU != 13 }}
		h := NewHub(opt, sink)
		types := []*catalog.EventType{lossType, resetType, bioType, irqType}
		offered, ignored := map[*catalog.EventType]uint64{}, map[*catalog.EventType]uint64{}
		check := func() {
			for _, typ := range types {
				c := h.Counts(typ)
				if c.Offered != offered[typ] || c.Written+c.Suppressed+c.Lost+c.Ignored+c.Pending != c.Offered || int64(c.Pending) < 0 {
					t.Fatalf("%s: %d were offered, got %+v", typ.Name, offered[typ], c)
				}
				if c.Written != sink.told[typ] {
					t.Fatalf("%s: entries tell of %d, got %+v", typ.Name, sink.told[typ], c)
				}
				if c.Ignored > ignored[typ] {
					t.Fatalf("%s: %d are unwanted, got %+v", typ.Name, ignored[typ], c)
				}
			}
		}
		for _, b := range script {
			typ := types[b>>6]
			switch b & 0xf {
			case 0:
				time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
			case 1:
				synctest.Wait()
				check()
			case 2:
				h.CountOnly(typ, 3, 1)
				h.Owe(typ, uint64(77+r.IntN(4)), 3)
				offered[typ] += 4
			case 3:
				changed := opt
				changed.Window = []time.Duration{0, time.Second, time.Minute}[r.IntN(3)]
				changed.Rate = r.IntN(3)
				changed.TotalRate = r.IntN(6)
				h.Apply(changed)
			case 4: // many kinds
				for i := range r.IntN(300) {
					e := event(typ, uint64(76+r.IntN(5)))
					e.Reason = fmt.Sprint("reason ", i)
					offered[typ]++
					h.Offer(e)
				}
				synctest.Wait()
			default:
				e := event(typ, []uint64{0, hostInode, 76, 77, 78, 79, 80}[r.IntN(7)])
				e.Latency = time.Duration(r.IntN(1e9))
				e.Dst = Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(20))}), Port: uint16(r.IntN(1 << 16))}
				if e.CPU = r.IntN(20); e.CPU == 13 {
					ignored[typ]++
				}
				offered[typ]++
				h.Offer(e)
			}
			if len(sink.late) > 20 {
				synctest.Wait()
				_ = sink.Close(context.Background())
			}
		}
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
		check()
		for _, typ := range types {
			if c := h.Counts(typ); c.Pending != 0 || c.Ignored != ignored[typ] {
				t.Errorf("%s, at the end: %+v, %d unwanted", typ.Name, c, ignored[typ])
			}
		}
		for key, n := range sink.owing {
			if c := h.Counts(catalog.Events()[key.typ]); n > c.Suppressed {
				t.Errorf("%+v: entries tell of %d suppressed, got %+v", key, n, c)
			}
		}
		if n := len(h.kinds.due) + len(h.kinds.groups) + len(h.kinds.owners); n != 0 {
			t.Errorf("%d things are left", n)
		}
	})
}

// The account balances under random events, failing sinks, changing options and an end at
// any time.
func TestAccountBalances(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		script := make([]byte, 40+r.IntN(600))
		for i := 0; i+8 <= len(script); i += 8 {
			binary.LittleEndian.PutUint64(script[i:], r.Uint64())
		}
		balance(t, script)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzAccount(f *testing.F) {
	f.Add([]byte{0x05, 0x06, 0x45, 0x00, 0x01, 0x02, 0x03, 0x04, 0x85, 0xc5})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 2000 {
			t.Skip("too long")
		}
		balance(t, script)
	})
}
