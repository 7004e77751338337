package bpf

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// TestEventLayout holds the decoder against the type information that the
// compiler left in the objects.
func TestEventLayout(t *testing.T) {
	for name, d := range definitions {
		spec, err := d.spec()
		if err != nil {
			t.Fatal(err)
		}
		if len(d.events) == 0 {
			continue
		}
		var event, stack, tuple *btf.Struct
		if err := spec.Types.TypeByName("event_account", new(*btf.Struct)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := spec.Types.TypeByName("event", &event); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := spec.Types.TypeByName("tuple", &tuple); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := map[string]int{"": int(event.Size)}
		for _, m := range event.Members {
			got[m.Name] = int(m.Offset.Bytes())
		}
		for _, m := range tuple.Members {
			got["tuple."+m.Name] = int(m.Offset.Bytes())
		}
		want := map[string]int{
			"": sizeEvent, "time_ns": offTime, "latency_ns": offLatency, "points_ns": offPoints, "location": offLocation,
			"tuple": offTuple, "netns": offNetns, "reason": offReason, "pid": offPID, "cpu": offCPU, "detail": offDetail,
			"ifindex": offIfindex, "type": offType, "tcp_state": offTCPState, "stack_depth": offDepth, "unused": 116,
			"comm": offComm, "name": offName,
			"tuple.saddr": tupleSaddr, "tuple.daddr": tupleDaddr, "tuple.sport": tupleSport, "tuple.dport": tupleDport,
			"tuple.protocol": tupleProtocol, "tuple.family": tupleFamily, "tuple.unused": 38,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: struct event and its decoder differ:\n%s", name, diff)
		}
		if spec.Types.TypeByName("event_stack", &stack) == nil && stack.Size != sizeEventStack {
			t.Errorf("%s: struct event_stack has %d bytes, the decoder expects %d", name, stack.Size, sizeEventStack)
		}
		var types *btf.Enum
		if err := spec.Types.TypeByName("event_type", &types); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		numbers := map[string]uint64{}
		for _, v := range types.Values {
			numbers[v.Name] = v.Value
		}
		for _, typ := range EventTypes() {
			if numbers["EVENT_"+typ.String()] != uint64(typ) {
				t.Errorf("%s: %s is %d in C, %d in Go", name, typ, numbers["EVENT_"+typ.String()], typ)
			}
		}
		if numbers["EVENT_TYPES"] != uint64(eventTypes) {
			t.Errorf("%s: %d types in C, %d in Go", name, numbers["EVENT_TYPES"], eventTypes)
		}
	}
}

// TestDefinitions: every program is in a ladder, and every ladder's program in
// the object.
func TestDefinitions(t *testing.T) {
	var sent []EventType
	for name, d := range definitions {
		spec, err := d.spec()
		if err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{}
		for _, h := range d.hooks {
			if h.optional && h.without == "" {
				t.Errorf("%s: nothing says what is missing without %s", name, h.name)
			}
			for _, r := range h.rungs {
				for _, program := range r.programs {
					used[program] = true
				}
			}
		}
		programs := slices.Sorted(maps.Keys(spec.Programs))
		if diff := cmp.Diff(programs, slices.Sorted(maps.Keys(used))); diff != "" {
			t.Errorf("%s: programs and ladders differ:\n%s", name, diff)
		}
		sent = append(sent, d.events...)
		license := slices.ContainsFunc(programs, func(p string) bool { return spec.Programs[p].License != "Dual BSD/GPL" })
		if license {
			t.Errorf("%s: a program without its licence", name)
		}
	}
	slices.Sort(sent)
	if diff := cmp.Diff(EventTypes(), sent); diff != "" {
		t.Errorf("each type is sent by one probe:\n%s", diff)
	}
}

func record(typ EventType, depth int) []byte {
	b := make([]byte, sizeEvent)
	if depth > 0 {
		b = make([]byte, max(sizeEventStack, sizeEvent+8*depth))
	}
	o := binary.NativeEndian
	o.PutUint64(b[offTime:], 5e9)
	o.PutUint64(b[offLatency:], 7)
	o.PutUint64(b[offPoints+8:], 3)
	o.PutUint32(b[offNetns:], 0xf0000001)
	o.PutUint32(b[offPID:], 42)
	o.PutUint16(b[offType:], uint16(typ))
	b[offDepth] = uint8(depth)
	source := netip.MustParseAddr("::ffff:10.0.0.1").As16()
	destination := netip.MustParseAddr("fd00::2").As16()
	copy(b[offTuple+tupleSaddr:], source[:])
	copy(b[offTuple+tupleDaddr:], destination[:])
	o.PutUint16(b[offTuple+tupleSport:], 443)
	b[offTuple+tupleProtocol] = 6
	b[offTuple+tupleFamily] = 6
	copy(b[offComm:], "comm\x00old")
	copy(b[offName:], strings.Repeat("n", 40))
	for i := range depth {
		o.PutUint64(b[sizeEvent+8*i:], uint64(i))
	}
	return b
}

func TestDecode(t *testing.T) {
	var e Event
	boot := time.Unix(1000, 0)
	if err := e.decode(record(PacketLoss, 3), boot); err != nil {
		t.Fatal(err)
	}
	if !e.Time.Equal(time.Unix(1005, 0)) || e.Latency != 7 || e.Points[1] != 3 || e.Netns != 0xf0000001 || e.PID != 42 ||
		e.Source.String() != "10.0.0.1:443" || e.Destination.String() != "[fd00::2]:0" || e.Comm() != "comm" || len(e.Stack()) != 3 {
		t.Errorf("%+v %q %v", e, e.Comm(), e.Stack())
	}
	if len(e.Device()) != len(e.name) {
		t.Errorf("a name that fills its field: %q", e.Device())
	}
	// The next event leaves nothing of this one.
	if err := e.decode(record(TCPResetActive, 0), boot); err != nil || len(e.Stack()) != 0 {
		t.Errorf("%v %v", err, e.Stack())
	}
	for name, b := range map[string][]byte{
		"empty":         nil,
		"short":         record(PacketLoss, 0)[:sizeEvent-1],
		"long":          append(record(PacketLoss, 0), 0),
		"no type":       record(0, 0),
		"unknown type":  record(eventTypes, 0),
		"stack too big": record(PacketLoss, eventStack+1),
	} {
		if name == "stack too big" {
			b[offDepth] = eventStack + 1
			b = b[:sizeEventStack]
		}
		if err := e.decode(b, boot); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	short := record(PacketLoss, 0)
	short[offDepth] = 1
	if err := e.decode(short, boot); err == nil {
		t.Error("a stack without room: accepted")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(PacketLoss, 3))
	f.Add(record(TCPResetActive, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Event
		if e.decode(b, time.Time{}) != nil {
			return
		}
		_, _, _ = e.Type.String(), e.Comm(), e.Device()
		if len(e.Stack()) > eventStack || e.Type >= eventTypes {
			t.Fatalf("%+v", e)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var e Event
	r := record(PacketLoss, eventStack-1)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.decode(r, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMonotonicOffset: as proc_timens_show_offsets of Linux 5.6 and of newer
// ones prints it; what is nothing of the kind is no offset.
func TestMonotonicOffset(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"monotonic           0         0\nboottime            0         0\n": 0,
		"monotonic      864000         5\nboottime       777000         7\n": 864000*time.Second + 5,
		"monotonic         -61 500000000\nboottime            0         0\n": -60*time.Second - 500*time.Millisecond,
		"1 10 3\n7 20 0\n": 10*time.Second + 3,
		"7 20 0\n":         0,
		"monotonic x y\n":  0,
		"monotonic 1\n":    0,
		"":                 0,
	} {
		if got := monotonicOffset(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
