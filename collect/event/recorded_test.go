package event

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/nasty"
)

// The fields of each type are read back unchanged, for every owner and number of
// occurrences.
func TestFromFieldsIsTheWayBack(t *testing.T) {
	db := &owner.Pod{ID: "db", Namespace: "shop", Name: "db-0"}
	at := time.UnixMicro(1_700_000_000_000_001)
	merged := func(peers int) *Merged {
		return &Merged{Count: 1240, First: at, Last: at.Add(50 * time.Second), Window: time.Minute, Peers: peers}
	}
	for what, change := range map[string]func(e *Event){
		"a pod's":          func(*Event) {},
		"the host's":       func(e *Event) { e.Pod = nil },
		"of a nameless":    func(e *Event) { e.Pod, e.HostLabel = nil, "" },
		"of an own label":  func(e *Event) { e.Pod, e.HostLabel = nil, "node" },
		"unowned":          func(e *Event) { e.Pod, e.HostLabel, e.unowned = nil, "", true },
		"of several netns": func(e *Event) { e.Pod, e.HostLabel, e.unowned, e.Netns, e.Merged = nil, "", true, 0, merged(0) },
		"unattributed": func(e *Event) {
			e.Pod, e.HostLabel, e.unattributed, e.Netns = nil, owner.UnknownLabel, true, 0
		},
		"between pods": func(e *Event) { e.Dst.Kind, e.Dst.Pod = EndPod, db },
		"IPv6":         func(e *Event) { e.Src.Addr = netip.MustParseAddr("2001:db8::1") },
		"many":         func(e *Event) { e.Merged = merged(0); e.Dst.vary(false, true) },
		"of many peers": func(e *Event) {
			e.Merged = merged(77)
			e.Dst.vary(true, true)
		},
		"without ports": func(e *Event) { e.Src.Port, e.Dst.Port, e.Protocol = 0, 0, "ICMP" },
		"of nothing":    func(e *Event) { *e = Event{Type: e.Type, Time: e.Time, PID: -1, CPU: -1} },
		"suppressed":    func(e *Event) { e.Suppressed = 7 },
	} {
		for _, typ := range catalog.Events() {
			e := fullEvent(typ)
			change(e)
			_, want := fieldsOf(e)
			got, err := FromFields(want, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			if _, again := fieldsOf(got); !cmp.Equal(again, want) {
				t.Errorf("%s %s (-was +is):\n%s", typ.Name, what, cmp.Diff(want, again))
			}
			if got.OfHost() != e.OfHost() && what != "of nothing" || got.Unattributed() != e.Unattributed() || got.Priority() != e.Priority() ||
				!got.LastSeen().Equal(e.LastSeen()) || string(got.AppendWhat(nil)) != string(e.AppendWhat(nil)) || string(got.AppendOwner(nil)) != string(e.AppendOwner(nil)) {
				t.Errorf("%s %s: got %+v, want %+v", typ.Name, what, got, e)
			}
			if a, b := string(got.appendKind(nil)), string(e.appendKind(nil)); a != b {
				t.Errorf("%s %s: the kind is %q, was %q", typ.Name, what, a, b)
			}
			if a, b := string(got.AppendTuple(nil)), string(e.AppendTuple(nil)); typ.Has(catalog.FieldTuple) && a != b {
				t.Errorf("%s %s: the connection is %q, was %q", typ.Name, what, a, b)
			}
		}
	}
}

// A missing or invalid field, or one of another version, affects only itself.
func TestFromFieldsOfOtherVersions(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	e, err := FromFields(map[string]string{
		"KUBESKOOP_EVENT": "PacketLoss", "K8S_NAMESPACE": "shop", "K8S_POD": "web-0", "MESSAGE": "packet dropped in pod shop/web-0", "PRIORITY": "2",
		"KUBESKOOP_TIMESTAMP_US": "soon", "KUBESKOOP_COUNT": "-3", "KUBESKOOP_SADDR": "nowhere", "KUBESKOOP_SPORT": "70000", "KUBESKOOP_SRC_TYPE": "moon",
		"KUBESKOOP_LATENCY_NS": "-1", "KUBESKOOP_NEW_FIELD": "x", "KUBESKOOP_NETNS": "x", "KUBESKOOP_PID": "99999999999999999999",
	}, at)
	if err != nil {
		t.Fatal(err)
	}
	if e.Message() != "packet dropped in pod shop/web-0" || string(e.AppendOwner(nil)) != "shop/web-0" || string(e.AppendWhat(nil)) != e.Message() {
		t.Errorf("%q, %q, %q", e.Message(), e.AppendOwner(nil), e.AppendWhat(nil))
	}
	if !e.Time.Equal(at) || e.Merged != nil || e.Src.Addr.IsValid() || e.Src.Port != 0 || e.Src.Kind != "" || e.Latency != 0 || e.Netns != 0 || e.PID != -1 || e.Priority() != catalog.PriNotice {
		t.Errorf("%+v", e)
	}
	e, _ = FromFields(map[string]string{"KUBESKOOP_EVENT": "PacketLoss", "KUBESKOOP_COUNT": "5", "KUBESKOOP_FIRST_US": "1700000009000000", "KUBESKOOP_LAST_US": "1700000001000000", "KUBESKOOP_REASON": "NO_SOCKET"}, at)
	if m := e.Merged; m == nil || m.Count != 5 || m.Last.Before(m.First) || e.Message() != "host: packet dropped, 5 times in 8 s: * -> *, NO_SOCKET" {
		t.Errorf("%+v: %s", m, e.Message())
	}
	for _, fields := range []map[string]string{nil, {"KUBESKOOP_EVENT": "PacketFound"}} {
		if _, err := FromFields(fields, at); !errors.Is(err, ErrNoEvent) {
			t.Errorf("%v: %v", fields, err)
		}
	}
}

// A count that no kernel reaches is not valid, so a sum of counts does not overflow.
func TestFromFieldsOfHugeCounts(t *testing.T) {
	sum := uint64(0)
	for _, n := range []string{"18446744073709551615", "9007199254740992", "99999999999999999999", "9007199254740991", "-1"} {
		e, err := FromFields(map[string]string{"KUBESKOOP_EVENT": "PacketLoss", "KUBESKOOP_COUNT": n, "KUBESKOOP_SUPPRESSED": n}, time.Unix(1_700_000_000, 0))
		if err != nil {
			t.Fatal(err)
		}
		if sum += e.Occurrences(); e.Suppressed > maxCount || (e.Suppressed > 0) != (e.Occurrences() > 1) {
			t.Errorf("%s: %d, %d suppressed", n, e.Occurrences(), e.Suppressed)
		}
	}
	if sum != maxCount+4 {
		t.Errorf("%d", sum)
	}
}

// Whatever the fields hold, the text for a person cannot affect a terminal.
func TestFromFieldsOfNastyNames(t *testing.T) {
	for _, typ := range catalog.Events() {
		_, fields := fieldsOf(fullEvent(typ))
		for _, n := range nasty.Names {
			bad := maps.Clone(fields)
			for k := range bad {
				if k != "KUBESKOOP_EVENT" {
					bad[k] = n
				}
			}
			e, err := FromFields(bad, time.Unix(1, 0))
			if err != nil {
				t.Fatal(err)
			}
			line, _ := e.AppendJSON(nil, nil)
			for _, text := range []string{e.Message(), string(e.AppendOwner(nil)), string(e.AppendWhat(nil)), string(e.appendKind(nil)), string(e.AppendTuple(nil)), string(line)} {
				if r := nasty.Acts(text); r >= 0 {
					t.Errorf("%s of %q: %U in %q", typ.Name, n, r, text)
				}
			}
		}
	}
}
