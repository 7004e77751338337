package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// message makes a netlink message.
func message(typ, flags uint16, seq uint32, payload []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, align(unix.SizeofNlMsghdr+len(payload)))
	binary.NativeEndian.PutUint32(b, uint32(len(b)+len(payload)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b = append(b, payload...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

// attr makes an attribute.
func attr(typ uint16, value []byte) []byte {
	b := make([]byte, unix.SizeofNlAttr)
	binary.NativeEndian.PutUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	binary.NativeEndian.PutUint16(b[2:], typ)
	b = append(b, value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func native(values ...any) (b []byte) {
	for _, v := range values {
		b, _ = binary.Append(b, binary.NativeEndian, v)
	}
	return b
}

func concat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func TestReadPart(t *testing.T) {
	multi := uint16(unix.NLM_F_MULTI)
	errno := func(e unix.Errno) []byte { return native(-int32(e)) }
	for _, x := range []struct {
		name  string
		part  []byte
		dump  bool
		seen  string
		done  bool
		intr  bool
		wrong string
	}{
		{name: "two of many", dump: true, part: concat(message(20, multi, 1, []byte("a")), message(20, multi, 1, []byte("b"))), seen: "ab"},
		{name: "the end", dump: true, part: concat(message(20, multi, 1, []byte("a")), message(unix.NLMSG_DONE, multi, 1, errno(0))), seen: "a", done: true},
		{name: "the end, of old", dump: true, part: message(unix.NLMSG_DONE, multi, 1, nil), done: true},
		{name: "an end that is an error", dump: true, part: message(unix.NLMSG_DONE, multi, 1, errno(unix.EPERM)), wrong: "netlink: ask for things: the kernel answered: operation not permitted (needs CAP_NET_ADMIN)"},
		{name: "an error", part: message(unix.NLMSG_ERROR, 0, 1, concat(errno(unix.ENOENT), make([]byte, 16))), wrong: "the kernel answered: no such file or directory"},
		{name: "an acknowledgement", part: message(unix.NLMSG_ERROR, 0, 1, concat(errno(0), make([]byte, 16))), done: true},
		{name: "one", part: concat(message(20, 0, 1, []byte("a"))), seen: "a", done: true},
		{name: "one that is said to be of many", part: message(20, multi, 1, []byte("a")), seen: "a", done: true},
		{name: "another's", dump: true, part: concat(message(20, multi, 7, []byte("x")), message(20, multi, 1, []byte("a"))), seen: "a"},
		{name: "changed meanwhile", dump: true, part: message(20, multi|unix.NLM_F_DUMP_INTR, 1, []byte("a")), seen: "a", intr: true},
		{name: "nothing in it", dump: true, part: message(unix.NLMSG_NOOP, 0, 1, nil)},
		{name: "lost", part: message(unix.NLMSG_OVERRUN, 0, 1, nil), wrong: "the kernel lost a part of it"},
		{name: "empty", wrong: "malformed netlink message: it is empty"},
		{name: "short", part: make([]byte, 15), wrong: "15 bytes where a header of 16 should be"},
		{name: "too long", part: native(uint32(17), uint64(0), uint32(0)), wrong: "it says that it has 17 bytes, and 16 are there"},
		{name: "too short", part: native(uint32(15), uint64(0), uint32(0)), wrong: "it says that it has 15 bytes"},
		{name: "huge", part: native(uint32(math.MaxUint32), uint64(0), uint32(0)), wrong: "it says that it has 4294967295 bytes"},
		{name: "short error", part: message(unix.NLMSG_ERROR, 0, 1, []byte("ab")), wrong: "an error of 2 bytes"},
		{name: "unread", part: message(20, 0, 1, []byte("!")), wrong: "read the answer about things: cannot"},
	} {
		seen := ""
		done, intr, err := readPart(x.part, "things", x.dump, func(typ uint16, payload []byte) error {
			if typ != 20 {
				t.Errorf("%s: type %d", x.name, typ)
			}
			if string(payload) == "!" {
				return errors.New("cannot")
			}
			seen += string(payload)
			return nil
		})
		if seen != x.seen || done != x.done || intr != x.intr || (err == nil) != (x.wrong == "") || err != nil && !strings.Contains(err.Error(), x.wrong) {
			t.Errorf("%s: %q, %v, %v, %v", x.name, seen, done, intr, err)
		}
	}
}

func TestAttributes(t *testing.T) {
	b := concat(attr(1, []byte("abc")), attr(2|unix.NLA_F_NESTED, nil), attr(3|unix.NLA_F_NET_BYTEORDER, []byte{7}))
	got := ""
	for rest := b[:len(b)-3]; len(rest) > 0; { // without the last padding
		typ, value, next, err := nextAttr(rest)
		if err != nil {
			t.Fatal(err)
		}
		got += fmt.Sprintf("%d=%q ", typ, value)
		rest = next
	}
	if got != `1="abc" 2="" 3="\a" ` {
		t.Error(got)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, {3, 0, 0, 0}, {5, 0, 0, 0}} {
		if _, _, _, err := nextAttr(bad); !errors.Is(err, errMalformed) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// qdiscMessage makes an RTM_NEWQDISC message.
func qdiscMessage(ifindex int32, handle, parent uint32, attrs ...[]byte) []byte {
	return concat(append([][]byte{native(uint32(0), ifindex, handle, parent, uint32(1))}, attrs...)...)
}

func stats2(bytes uint64, packets, qlen, backlog, drops, overlimits uint32, more ...[]byte) []byte {
	return attr(unix.TCA_STATS2, concat(append([][]byte{
		attr(statsBasic, native(bytes, packets, uint32(0))),
		attr(statsQueue, native(qlen, backlog, drops, uint32(0), overlimits)),
	}, more...)...))
}

func TestQdiscParse(t *testing.T) {
	kind := attr(unix.TCA_KIND, []byte("htb\x00"))
	old := attr(unix.TCA_STATS, native(uint64(1000), uint32(10), uint32(3), uint32(4), uint32(0), uint32(0), uint32(5), uint32(600)))
	for _, x := range []struct {
		name  string
		msg   []byte
		root  bool
		want  rootQdisc
		wrong string
	}{
		{name: "TCA_STATS2 before TCA_STATS", root: true, msg: qdiscMessage(2, 0x10000, parentRoot, kind, stats2(5000, 50, 1, 2, 3, 4), old),
			want: rootQdisc{ifindex: 2, handle: 0x10000, bytes: 5000, packets32: 50, qlen: 1, queue: 2, drops: 3, overlimits: 4}},
		{name: "packets in 64 bits", root: true, msg: qdiscMessage(2, 0, parentRoot, kind, stats2(1<<40, 5, 0, 0, 0, 0, attr(statsPkt64, native(uint64(1<<32+5))))),
			want: rootQdisc{ifindex: 2, bytes: 1 << 40, packets32: 5, packets: 1<<32 + 5, wide: true}},
		{name: "TCA_STATS alone", root: true, msg: qdiscMessage(3, 0, parentRoot, old, kind),
			want: rootQdisc{ifindex: 3, bytes: 1000, packets32: 10, drops: 3, overlimits: 4, qlen: 5, queue: 600}},
		{name: "a child", msg: qdiscMessage(2, 0x100000, 0x10001, kind, old), want: rootQdisc{ifindex: 2, handle: 0x100000}},
		{name: "ingress", msg: qdiscMessage(2, 0xFFFF0000, 0xFFFFFFF1, kind, old), want: rootQdisc{ifindex: 2, handle: 0xFFFF0000}},
		{name: "no counters", msg: qdiscMessage(2, 0x10000, parentRoot, kind), wrong: "the qdisc 1: of interface 2 without its counters"},
		{name: "no queue", msg: qdiscMessage(2, 0x10000, parentRoot, attr(unix.TCA_STATS2, attr(statsBasic, make([]byte, 16)))), wrong: "lacks TCA_STATS_BASIC or TCA_STATS_QUEUE"},
		{name: "short", msg: make([]byte, 19), wrong: "a qdisc in 19 bytes"},
		{name: "short basic", msg: qdiscMessage(2, 0, parentRoot, attr(unix.TCA_STATS2, attr(statsBasic, make([]byte, 11)))), wrong: "TCA_STATS_BASIC of 11 bytes"},
		{name: "short queue", msg: qdiscMessage(2, 0, parentRoot, attr(unix.TCA_STATS2, attr(statsQueue, make([]byte, 19)))), wrong: "TCA_STATS_QUEUE of 19 bytes"},
		{name: "short packets", msg: qdiscMessage(2, 0, parentRoot, attr(unix.TCA_STATS2, attr(statsPkt64, make([]byte, 7)))), wrong: "TCA_STATS_PKT64 of 7 bytes"},
		{name: "cut", msg: qdiscMessage(2, 0, parentRoot, []byte{9, 0, 1, 0}), wrong: "an attribute says that it has 9 bytes"},
	} {
		var q rootQdisc
		root, err := q.parse(x.msg)
		if x.wrong != "" {
			if !errors.Is(err, errMalformed) || !strings.Contains(err.Error(), x.wrong) {
				t.Errorf("%s: %v, want %q", x.name, err, x.wrong)
			}
			continue
		}
		q.kind = [unix.IFNAMSIZ]byte{}
		if err != nil || root != x.root || q != x.want {
			t.Errorf("%s: %v, %+v (%v), want %+v", x.name, root, q, err, x.want)
		}
	}
}

// TestQdiscCounters samples one interface repeatedly: 32-bit wraps, replaced qdiscs, and an
// interface that goes.
func TestQdiscCounters(t *testing.T) {
	kinds := map[string][unix.IFNAMSIZ]byte{}
	for _, k := range []string{"htb", "mq", "tbf"} {
		var b [unix.IFNAMSIZ]byte
		copy(b[:], k)
		kinds[k] = b
	}
	q := func(kind string, handle uint32, bytes uint64, packets, drops, overlimits uint32) *rootQdisc {
		return &rootQdisc{ifindex: 2, handle: handle, kind: kinds[kind], bytes: bytes, packets32: packets, drops: drops, overlimits: overlimits, qlen: 1, queue: 10}
	}
	wide := func(q *rootQdisc, packets uint64) *rootQdisc { q.packets, q.wide = packets, true; return q }
	const max = math.MaxUint32
	var s qdiscs
	for i, x := range []struct {
		q    *rootQdisc
		want qdiscSum
	}{
		{q("htb", 1, 1000, 10, 2, 3), qdiscSum{1000, 10, 2, 3, 1, 10}},
		{q("htb", 1, 5000, 50, 2, 4), qdiscSum{5000, 50, 2, 4, 1, 10}},
		{nil, qdiscSum{5000, 50, 2, 4, 0, 0}},
		{q("htb", 1, 100, 1, 1, 0), qdiscSum{5100, 51, 3, 4, 1, 10}},  // the interface is back
		{q("htb", 1, 50, 1, 0, 0), qdiscSum{5150, 52, 3, 4, 1, 10}},   // replaced with the same handle
		{q("htb", 2, 60, 2, 0, 0), qdiscSum{5210, 54, 3, 4, 1, 10}},   // another handle
		{q("tbf", 2, 70, 2, 0, 0), qdiscSum{5280, 56, 3, 4, 1, 10}},   // another kind
		{q("tbf", 2, 80, 2, max, 0), qdiscSum{5290, 56, 3, 4, 1, 10}}, // drops fell: continue from there
		{q("tbf", 2, 90, 2, 4, 0), qdiscSum{5300, 56, 8, 4, 1, 10}},   // drops wrapped
		{q("mq", 0, 1<<40, max-9, 0, 0), qdiscSum{5300 + 1<<40, 56 + max - 9, 8, 4, 1, 10}},
		{q("mq", 0, 1<<40+5000, 10, 0, 0), qdiscSum{10300 + 1<<40, 56 + max + 11, 8, 4, 1, 10}}, // packets wrapped, on a kernel that sends 32 bits
		{q("mq", 0, 1<<39, 5, 0, 0), qdiscSum{10300 + 1<<40, 56 + max + 11, 8, 4, 1, 10}},       // a child of mq was replaced
		{q("mq", 0, 1<<39+500, 10, 1, 0), qdiscSum{10800 + 1<<40, 56 + max + 16, 9, 4, 1, 10}},
	} {
		s.begin()
		if x.q != nil {
			s.add(x.q)
		}
		s.end(true)
		if got := s.sum(); got != x.want {
			t.Errorf("step %d: %+v, want %+v", i, got, x.want)
		}
	}
	s = qdiscs{}
	for i, x := range []struct {
		q    *rootQdisc
		want uint64
	}{
		{q("htb", 1, 1<<40, max, 0, 0), max},
		{wide(q("htb", 1, 1<<40+500, 4, 0, 0), max+5), max + 5}, // 64 bits from here on
		{wide(q("htb", 1, 1<<40+900, 8, 0, 0), max+9), max + 9},
		{q("htb", 1, 1<<40+950, 9, 0, 0), max + 18}, // the qdisc was replaced, and the new one sends 32 bits
	} {
		s.begin()
		s.add(x.q)
		s.end(true)
		if got := s.sum().packets; got != x.want {
			t.Errorf("wide, step %d: %d packets, want %d", i, got, x.want)
		}
	}
	// An interrupted dump removes nothing.
	s.begin()
	s.end(false)
	if got := s.sum().packets; got != max+18 {
		t.Errorf("after an interrupted dump: %d packets", got)
	}
}

func ctMessage(cpu uint16, values map[uint16]uint32) []byte {
	b := []byte{0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], cpu)
	for typ, v := range values {
		b = append(b, attr(typ, binary.BigEndian.AppendUint32(nil, v))...)
	}
	return b
}

// TestConntrackCPUs: counters wrap, and CPUs go offline and online.
func TestConntrackCPUs(t *testing.T) {
	var s ctState
	add := func(cpu uint16, found, drop uint32) {
		t.Helper()
		var n ctCounts
		got, err := n.parse(ctMessage(cpu, map[uint16]uint32{2: found, 10: drop, 15: 9, 99: 9}))
		if err != nil || got != int(cpu) {
			t.Fatal(got, err)
		}
		s.add(got, &n)
	}
	want := func(found, drop uint64) {
		t.Helper()
		if s.sum != [ctCounters]uint64{ctFound: found, ctDrop: drop} {
			t.Errorf("%v, want %d and %d", s.sum, found, drop)
		}
	}
	add(0, 10, 1)
	add(3, math.MaxUint32, 2)
	want(10+math.MaxUint32, 3)
	add(0, 11, 1)
	add(3, 4, 2)
	want(11+math.MaxUint32+5, 3)
	add(0, 12, 1) // CPU 3 is offline
	want(12+math.MaxUint32+5, 3)
	add(0, 12, 1)
	add(3, 6, 2)
	want(12+math.MaxUint32+7, 3)
	add(0, 5, 1) // the counter fell, which no kernel shows
	want(12+math.MaxUint32+7, 3)
}

func TestConntrackMalformed(t *testing.T) {
	var n ctCounts
	var z ctSize
	for _, x := range []struct{ msg, want string }{
		{"abc", "in 3 bytes"},
		{"abcd\x07\x00\x02\x00abc", "has 3 bytes"},
		{"abcd\x08\x00\x02\x00abc", "an attribute says that it has 8 bytes"},
	} {
		if _, err := n.parse([]byte(x.msg)); !errors.Is(err, errMalformed) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.msg, err, x.want)
		}
		if err := z.parse([]byte(x.msg)); !errors.Is(err, errMalformed) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.msg, err, x.want)
		}
	}
	if err := z.parse(ctMessage(0, map[uint16]uint32{1: 5, 2: 6, 3: 7})); err != nil || z != (ctSize{5, 6, true, true}) {
		t.Errorf("%+v (%v)", z, err)
	}
}

func statFiles(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*/nf_conntrack")
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	out := map[string][]byte{}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.Split(n, "/")[1]] = b
	}
	return out
}

// TestConntrackStatFile parses the file of several kernels. The expected values are from
// conntrack -S at the time of the capture.
func TestConntrackStatFile(t *testing.T) {
	for kernel, invalid := range map[string]uint64{"5.10": 24 + 18, "6.1": 28 + 14, "6.12": 20 + 22} {
		b := statFiles(t)[kernel]
		var s ctState
		var z ctSize
		if err := readStatFile(b, &s, &z); err != nil {
			t.Fatalf("%s: %v", kernel, err)
		}
		if s.sum != [ctCounters]uint64{ctInvalid: invalid} || len(s.cpus) != 2 || !z.hasEntries {
			t.Errorf("%s: %v %+v", kernel, s.sum, z)
		}
		for n := range b {
			var s ctState
			if err := readStatFile(b[:n], &s, &z); err == nil && b[n-1] != '\n' {
				t.Errorf("%s: cut after %d bytes, it is accepted", kernel, n)
			}
		}
	}
	const head = "entries  found drop\n"
	for _, x := range []struct{ file, want string }{
		{"", "no line for any CPU"},
		{head, "no line for any CPU"},
		{"found drop\n1 2\n", `line 1: "found drop" does not name its columns, entries first`},
		{strings.Repeat("x ", 33) + "\n", "more than 32 columns"},
		{head + "1 2\n", "line 2: 2 numbers under 3 names"},
		{head + "1 2 3 4\n", "line 2: 4 numbers under 3 names"},
		{head + "1 2 x\n", `line 2: "x" is not a hexadecimal number of 32 bits`},
		{head + "1 2 100000000\n", "is not a hexadecimal number of 32 bits"},
		{head + "1 2 3", "line 2: the file ends within it"},
	} {
		var s ctState
		var z ctSize
		if err := readStatFile([]byte(x.file), &s, &z); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
	}
	var s ctState
	var z ctSize
	if err := readStatFile([]byte(head+"1f 2 0a\n1f ffffffff 1\n"), &s, &z); err != nil || z.entries != 31 || s.sum != [ctCounters]uint64{ctFound: 2 + math.MaxUint32, ctDrop: 11} {
		t.Errorf("%v %+v (%v)", s.sum, z, err)
	}
}

func TestHasModule(t *testing.T) {
	const list = "nf_conntrack_netlink 57344 0 - Live 0x0\nnf_conntrack 1 5 a,b, Live 0x0\n"
	for name, want := range map[string]bool{"nf_conntrack": true, "nf_conntrack_netlink": true, "nf_conn": false, "Live": false, "nf_conntrack_netlink_": false} {
		if hasModule([]byte(list), name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	if hasModule([]byte("nf_conntrack"), "nf_conntrack") || hasModule(nil, "x") {
		t.Error("a cut line")
	}
}

func diagMessage(state byte, rx, tx uint32) []byte {
	b := make([]byte, sizeofDiagMsg)
	b[1] = state
	binary.NativeEndian.PutUint32(b[offsetOfRqueue:], rx)
	binary.NativeEndian.PutUint32(b[offsetOfWqueue:], tx)
	return b
}

func TestTCPTable(t *testing.T) {
	var s TCPTable
	for _, x := range [][3]uint32{{TCPEstablished, 10, 20}, {TCPListen, 5, 128}, {TCPSynRecv, 0, 0}, {TCPEstablished, math.MaxUint32, 0}} {
		if err := s.addMessage(diagMessage(byte(x[0]), x[1], x[2])); err != nil {
			t.Error(err)
		}
	}
	if s.States != [tcpStates]uint64{TCPEstablished: 2, TCPListen: 1, TCPSynRecv: 1} || s.RxQueue != 10+math.MaxUint32 || s.TxQueue != 20 {
		t.Errorf("%+v", s)
	}
	for _, bad := range [][]byte{nil, make([]byte, 71), diagMessage(0, 1, 1), diagMessage(13, 1, 1), diagMessage(255, 1, 1)} {
		if err := s.addMessage(bad); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

// FuzzPart passes fuzzed input to every parser of messages.
func FuzzPart(f *testing.F) {
	multi := uint16(unix.NLM_F_MULTI)
	f.Add(concat(message(unix.RTM_NEWQDISC, multi, 1, qdiscMessage(2, 1, parentRoot, attr(unix.TCA_KIND, []byte("htb")), stats2(1, 2, 3, 4, 5, 6))),
		message(unix.NLMSG_DONE, multi, 1, []byte{0, 0, 0, 0})), true)
	f.Add(message(ctGetStatsCPU, multi, 1, ctMessage(1, map[uint16]uint32{2: 3})), true)
	f.Add(message(unix.SOCK_DIAG_BY_FAMILY, multi, 1, diagMessage(1, 2, 3)), true)
	f.Add(message(unix.NLMSG_ERROR, 0, 1, []byte{255, 255, 255, 255}), false)
	f.Fuzz(func(t *testing.T, b []byte, dump bool) {
		seen := 0
		_, _, _ = readPart(b, "anything", dump, func(_ uint16, msg []byte) error {
			if seen += len(msg) + unix.SizeofNlMsghdr; seen > len(b) {
				t.Fatal("more than there is")
			}
			var q rootQdisc
			var s qdiscs
			if root, err := q.parse(msg); err == nil && root {
				s.add(&q)
			}
			var n ctCounts
			var c ctState
			if cpu, err := n.parse(msg); err == nil {
				c.add(cpu, &n)
			}
			_ = new(ctSize).parse(msg)
			_ = new(TCPTable).addMessage(msg)
			return nil
		})
	})
}

// FuzzQdiscs adds arbitrary counters one after another: the sums never fall.
func FuzzQdiscs(f *testing.F) {
	f.Add(uint64(5), uint32(1), uint32(2), uint64(4), uint32(0), uint32(9), byte(0))
	f.Fuzz(func(t *testing.T, b1 uint64, p1, d1 uint32, b2 uint64, p2, d2 uint32, kind byte) {
		var s qdiscs
		q := rootQdisc{ifindex: 1, bytes: b1 >> 1, packets32: p1, drops: d1}
		if kind&1 != 0 {
			copy(q.kind[:], "mq")
		}
		s.add(&q)
		before := s.sum()
		r := q
		r.bytes, r.packets32, r.drops, r.wide, r.packets = b2>>1, p2, d2, kind&2 != 0, uint64(p2)+1<<32
		s.add(&r)
		if after := s.sum(); after.bytes < before.bytes || after.packets < before.packets || after.drops < before.drops {
			t.Errorf("%+v, then %+v", before, after)
		}
	})
}

// FuzzStatFile parses arbitrary input as /proc/PID/net/stat/nf_conntrack.
func FuzzStatFile(f *testing.F) {
	for _, b := range statFiles(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s ctState
		var z ctSize
		if readStatFile(b, &s, &z) == nil && (len(s.cpus) == 0 || !z.hasEntries) {
			t.Errorf("%q is accepted", b)
		}
	})
}

func FuzzModules(f *testing.F) {
	f.Add([]byte("nf_conntrack 1 5\n"), "nf_conntrack")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if hasModule(b, name) && !strings.Contains(string(b), name+" ") {
			t.Errorf("%q in %q", name, b)
		}
	})
}
