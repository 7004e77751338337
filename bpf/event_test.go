package bpf

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"nodeskoop/bpf/internal/objects"
)

// TestLayouts compares the types that Go decodes with, those of shared.bpf.c, with
// the BTF of each probe's object.
func TestLayouts(t *testing.T) {
	for name, d := range definitions {
		spec, err := d.spec()
		if err != nil {
			t.Fatal(err)
		}
		layouts := map[string]any{"counter": objects.SharedCounter{}}
		if spec.Maps[mapCounterShares] != nil {
			layouts["share"] = objects.SharedShare{}
		}
		if len(d.events) > 0 {
			maps.Copy(layouts, map[string]any{
				"event": objects.SharedEvent{}, "event_stack": objects.SharedEventStack{}, "tuple": objects.SharedTuple{},
				"event_account": objects.SharedEventAccount{}, "event_bucket": objects.SharedEventBucket{}, "event_limit": objects.SharedEventLimit{},
			})
		}
		for c, v := range layouts {
			var got *btf.Struct
			if err := spec.Types.TypeByName(c, &got); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if diff := cmp.Diff(layoutOf(reflect.TypeOf(v)), layoutOfC(t, got)); diff != "" {
				t.Errorf("%s: struct %s is another in Go:\n%s", name, c, diff)
			}
		}
		if len(d.events) == 0 {
			continue
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

// field is a member of a struct with its offset and size in bytes.
type field struct {
	Name       string
	Offset, Of int
}

func layoutOf(s reflect.Type) (fields []field) {
	for f := range s.Fields() {
		if f.Name != "_" {
			fields = append(fields, field{strings.ToLower(f.Name), int(f.Offset), int(f.Type.Size())})
		}
	}
	return append(fields, field{"", 0, int(s.Size())})
}

func layoutOfC(t *testing.T, s *btf.Struct) (fields []field) {
	for _, m := range s.Members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		fields = append(fields, field{strings.ReplaceAll(m.Name, "_", ""), int(m.Offset.Bytes()), size})
	}
	return append(fields, field{"", 0, int(s.Size)})
}

// TestDefinitions: every program is in a rung, and the object has every rung's
// programs.
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
			t.Errorf("%s: programs and rungs differ:\n%s", name, diff)
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
	r := objects.SharedEventStack{Event: objects.SharedEvent{
		TimeNs: 5e9, LatencyNs: 7, PointsNs: [3]uint64{1: 3},
		Netns: 0xf0000001, Pid: 42, Type: uint16(typ), StackDepth: uint8(depth),
		Tuple: objects.SharedTuple{
			Saddr: netip.MustParseAddr("::ffff:10.0.0.1").As16(), Daddr: netip.MustParseAddr("fd00::2").As16(),
			Sport: 443, Protocol: 6, Family: 6,
		},
	}}
	copy(r.Event.Comm[:], "comm\x00old")
	copy(r.Event.Name[:], strings.Repeat("n", 40))
	for i := range r.Stack {
		r.Stack[i] = uint64(i)
	}
	b, err := binary.Append(nil, binary.NativeEndian, r)
	if err != nil {
		panic(err)
	}
	if depth == 0 {
		b = b[:sizeEvent:sizeEvent]
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
	// The next event keeps no field of this one.
	if err := e.decode(record(TCPResetActive, 0), boot); err != nil || len(e.Stack()) != 0 {
		t.Errorf("%v %v", err, e.Stack())
	}
	for name, b := range map[string][]byte{
		"empty":         nil,
		"short":         record(PacketLoss, 0)[:sizeEvent-1],
		"long":          append(record(PacketLoss, 0), 0),
		"no type":       record(0, 0),
		"unknown type":  record(eventTypes, 0),
		"stack too big": record(PacketLoss, len(e.stack)+1),
		// depth one without a stack
		"stack without room": record(PacketLoss, 1)[:sizeEvent],
	} {
		if err := e.decode(b, boot); err == nil {
			t.Errorf("%s: accepted", name)
		}
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
		if len(e.Stack()) > len(e.stack) || e.Type >= eventTypes {
			t.Fatalf("%+v", e)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var e Event
	r := record(PacketLoss, len(e.stack)-1)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.decode(r, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMonotonicOffset: formats of proc_timens_show_offsets in Linux 5.6 and newer;
// invalid text gives no offset.
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
