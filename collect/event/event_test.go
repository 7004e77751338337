package event

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

var webPod = &owner.Pod{ID: "web", Namespace: "default", Name: "web-0", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}

// fullEvent is an event of a pod with all fields that a type may declare.
func fullEvent(t *catalog.EventType) *Event {
	e := &Event{
		Type: t, Time: time.UnixMicro(1_700_000_000_123_456), Netns: 4026532001, Pod: webPod, Node: "node-1", HostLabel: owner.DefaultHostLabel,
		Protocol: "TCP",
		Src:      Endpoint{Addr: netip.MustParseAddr("10.0.0.5"), Port: 443, Kind: EndPod, Pod: webPod, Node: "node-1"},
		Dst:      Endpoint{Addr: netip.MustParseAddr("10.0.0.9"), Port: 51234, Kind: EndUnknown},
		Latency:  123456 * time.Microsecond, Comm: "nginx", PID: 812, CPU: 3,
		Operation: "read", Bytes: 4096, Ifname: "eth0", Disk: "sda", Vector: "NET_RX", Location: "nft_do_chain+0x12a", Reason: "NETFILTER_DROP", TCPState: "ESTABLISHED",
		Stack: []string{"nft_do_chain+0x12a", "nft_do_chain_ipv4+0x5c", "nf_hook_slow+0x3f"},
	}
	for i, p := range t.Points {
		e.Points = append(e.Points, Point{p, time.Duration(i+1) * 1500 * time.Microsecond})
	}
	return e
}

func TestMessages(t *testing.T) {
	for name, want := range map[string]string{
		"TXLAT_QDISC_100MS":       "default/web-0: packet waited 123ms in the qdisc: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, device eth0",
		"TXLAT_NETDEV_100MS":      "default/web-0: network driver took 123ms to accept a packet: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, device eth0",
		"BIOLAT_10MS":             "default/web-0: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): process nginx[812], disk sda",
		"BIOLAT_100MS":            "default/web-0: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): process nginx[812], disk sda",
		"RXKERNEL_SLOW":           "default/web-0: kernel took 123ms to receive a packet: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, ip 1.5ms, local_in 3.0ms",
		"TXKERNEL_SLOW":           "default/web-0: kernel took 123ms to send a packet: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, route 1.5ms, local_out 3.0ms, postrouting 4.5ms",
		"PacketLoss":              "default/web-0: packet dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a",
		"SOCKETLAT_READSLOW":      "default/web-0: received data waited 123ms to be read: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, process nginx[812]",
		"SOCKETLAT_SENDSLOW":      "default/web-0: written data waited 123ms to be sent: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, process nginx[812]",
		"TCPRESET_NOSOCK":         "default/web-0: TCP reset sent, no socket for the packet: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED, NETFILTER_DROP",
		"TCPRESET_ACTIVE":         "default/web-0: TCP reset sent, connection aborted: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED, NETFILTER_DROP",
		"TCPRESET_PROCESS":        "default/web-0: TCP reset sent, packet did not fit the connection: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED, NETFILTER_DROP",
		"TCPRESET_RECEIVE":        "default/web-0: TCP reset received: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED",
		"VIRTCMDEXCUTE":           "default/web-0: virtio-net command took 123ms: CPU 3, process 812",
		"NETSOFTIRQ_SCHED_SLOW":   "default/web-0: network softirq started 123ms late: CPU 3, process 812, NET_RX",
		"NETSOFTIRQ_SCHED_100MS":  "default/web-0: network softirq started 123ms late: CPU 3, process 812, NET_RX",
		"NETSOFTIRQ_EXCUTE_SLOW":  "default/web-0: network softirq ran for 123ms: CPU 3, process 812, NET_RX",
		"NETSOFTIRQ_EXCUTE_100MS": "default/web-0: network softirq ran for 123ms: CPU 3, process 812, NET_RX",
		"TCPRetrans":              "default/web-0: TCP segment retransmitted: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED",
	} {
		typ := catalog.EventByName(name)
		if typ == nil {
			t.Errorf("no event type %s", name)
			continue
		}
		if got := fullEvent(typ).Message(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
	for _, typ := range catalog.Events() {
		if typ.Message == "" || typ.Has(catalog.FieldLatency) != strings.Contains(typ.Message, "{latency}") {
			t.Errorf("%s says %q", typ.Name, typ.Message)
		}
	}
}

// The message names the peer's pod with the packet's direction, whichever end of the
// connection the peer is.
func TestMessageNamesThePeer(t *testing.T) {
	db := &owner.Pod{ID: "db", Namespace: "prod", Name: "db-0"}
	for name, want := range map[string]string{
		"TXLAT_QDISC_100MS":  "default/web-0: packet to prod/db-0 waited 123ms in the qdisc:",
		"TXLAT_NETDEV_100MS": "default/web-0: network driver took 123ms to accept a packet to prod/db-0:",
		"RXKERNEL_SLOW":      "default/web-0: kernel took 123ms to receive a packet to prod/db-0:",
		"TXKERNEL_SLOW":      "default/web-0: kernel took 123ms to send a packet to prod/db-0:",
		"PacketLoss":         "default/web-0: packet to prod/db-0 dropped:",
		"SOCKETLAT_READSLOW": "default/web-0: received data from prod/db-0 waited 123ms to be read:",
		"SOCKETLAT_SENDSLOW": "default/web-0: written data to prod/db-0 waited 123ms to be sent:",
		"TCPRESET_NOSOCK":    "default/web-0: TCP reset sent to prod/db-0, no socket for the packet:",
		"TCPRESET_ACTIVE":    "default/web-0: TCP reset sent to prod/db-0, connection aborted:",
		"TCPRESET_PROCESS":   "default/web-0: TCP reset sent to prod/db-0, packet did not fit the connection:",
		"TCPRESET_RECEIVE":   "default/web-0: TCP reset received from prod/db-0:",
		"TCPRetrans":         "default/web-0: TCP segment retransmitted to prod/db-0:",
	} {
		typ := catalog.EventByName(name)
		e := fullEvent(typ)
		e.Dst.Pod = db
		if got := e.Message(); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
		e.Src, e.Dst = e.Dst, e.Src
		reversed := want
		if strings.Contains(typ.Message, "{ends}") {
			reversed = strings.Replace(want, "to prod/db-0", "from prod/db-0", 1)
		}
		if got := e.Message(); !strings.HasPrefix(got, reversed) {
			t.Errorf("%s, reversed: %s\nwant %s", name, got, reversed)
		}
		// Both ends are the pod's own: no peer is named.
		e.Src.Pod, e.Dst.Pod = webPod, webPod
		if got := e.Message(); strings.Count(got, "web-0") != 1 {
			t.Errorf("%s, to itself: %s", name, got)
		}
	}
	for _, typ := range catalog.Events() {
		n := 0
		for _, place := range []string{"{from}", "{to}", "{ends}"} {
			n += strings.Count(typ.Message, place)
		}
		if want := map[bool]int{true: 1}[typ.Has(catalog.FieldTuple)]; n != want {
			t.Errorf("%s has %d places for a peer, want %d: %q", typ.Name, n, want, typ.Message)
		}
	}
}

func TestMessageOfUnusualEvents(t *testing.T) {
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		typ    string
		change func(*Event)
		want   string
	}{
		"IPv6": {"PacketLoss", func(e *Event) { e.Src.Addr, e.Dst.Addr = addr("2001:db8::5"), addr("fe80::1") },
			"default/web-0: packet dropped: [2001:db8::5]:443 -> [fe80::1]:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a"},
		"IPv4-mapped": {"TCPRetrans", func(e *Event) { e.Src.Addr, e.Dst.Addr = addr("::ffff:10.0.0.5"), addr("::ffff:10.0.0.9") },
			"default/web-0: TCP segment retransmitted: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED"},
		"no ports": {"TCPRetrans", func(e *Event) { e.Protocol, e.Src.Port, e.Dst.Port = "ICMPv6", 0, 0; e.Src.Addr = addr("::1") },
			"default/web-0: TCP segment retransmitted: ::1 -> 10.0.0.9 ICMPv6, state ESTABLISHED"},
		"no addresses": {"PacketLoss", func(e *Event) { e.Protocol, e.Src, e.Dst = "ARP", Endpoint{}, Endpoint{} },
			"default/web-0: packet dropped: ARP, NETFILTER_DROP at nft_do_chain+0x12a"},
		"one address": {"PacketLoss", func(e *Event) { e.Src = Endpoint{} },
			"default/web-0: packet dropped: ? -> 10.0.0.9:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a"},
		"nothing known": {"PacketLoss", func(e *Event) { *e = Event{Type: e.Type, PID: -1, CPU: -1} },
			"host: packet dropped"},
		"no reason": {"PacketLoss", func(e *Event) { e.Reason = "" },
			"default/web-0: packet dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, at nft_do_chain+0x12a"},
		"no location": {"PacketLoss", func(e *Event) { e.Location = "" },
			"default/web-0: packet dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, NETFILTER_DROP"},
		"no process": {"BIOLAT_10MS", func(e *Event) { e.Comm, e.PID, e.Pod = "", -1, nil },
			"host: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): disk sda"},
		"number of a process": {"BIOLAT_10MS", func(e *Event) { e.Comm = "" },
			"default/web-0: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): process 812, disk sda"},
		"name of a process": {"BIOLAT_10MS", func(e *Event) { e.PID = -1 },
			"default/web-0: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): process nginx, disk sda"},
		"flush": {"BIOLAT_100MS", func(e *Event) { e.Operation, e.Bytes, e.Points = "flush", 0, nil },
			"default/web-0: flush took 123ms: process nginx[812], disk sda"},
		"no queue": {"BIOLAT_100MS", func(e *Event) { e.Bytes, e.Points = 1<<20+1<<19, e.Points[1:] },
			"default/web-0: read of 1.5 MiB took 123ms (device 3.0ms): process nginx[812], disk sda"},
		"operation not known": {"BIOLAT_100MS", func(e *Event) { e.Operation, e.Points[0].Latency, e.Points[1].Latency = "", -1, -1 },
			"default/web-0: block I/O of 4 KiB took 123ms: process nginx[812], disk sda"},
		"malicious operation": {"BIOLAT_100MS", func(e *Event) { e.Operation, e.Bytes = "{latency}\x1b", 3 },
			`default/web-0: {latency}\x1b of 3 B took 123ms (queue 1.5ms, device 3.0ms): process nginx[812], disk sda`},
		"point not measured": {"RXKERNEL_SLOW", func(e *Event) { e.Points[0].Latency = -1 },
			"default/web-0: kernel took 123ms to receive a packet: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, local_in 3.0ms"},
		"between pods, seen by the host": {"PacketLoss", func(e *Event) {
			e.Pod, e.Dst.Pod = nil, &owner.Pod{ID: "db", Namespace: "prod", Name: "db-0"}
		}, "host: packet from default/web-0 to prod/db-0 dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a"},
		"to another pod": {"PacketLoss", func(e *Event) {
			same := *webPod
			e.Src.Pod, e.Dst.Pod = &same, &owner.Pod{ID: "db", Namespace: "prod", Name: "db-0"}
		}, "default/web-0: packet to prod/db-0 dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a"},
		"nobody's namespace": {"TCPRESET_RECEIVE", func(e *Event) { e.Pod, e.unowned = nil, true },
			"netns 4026532001: TCP reset received from default/web-0: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED"},
		"suppressed": {"TCPRESET_RECEIVE", func(e *Event) { e.Suppressed = 37 },
			"default/web-0: TCP reset received: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED (+37 suppressed)"},
		"malicious names": {"BIOLAT_10MS", func(e *Event) {
			e.Comm, e.Disk = "a\n\x1b[2Jb", "sd\xffa\u202e\u0085\U000e0001é"
			e.Pod = &owner.Pod{Namespace: "a\tb", Name: "\x00"}
		}, `a\x09b/\x00: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): process a\x0a\x1b[2Jb[812], disk sd` + "\uFFFD" + `a\u202e\x85\U000e0001é`},
	} {
		e := fullEvent(catalog.EventByName(c.typ))
		c.change(e)
		got := e.Message()
		// The order of the declared details is not tested here.
		sorted := func(s string) []string { p := strings.Split(s, ", "); slices.Sort(p[1:]); return p }
		if !slices.Equal(sorted(got), sorted(c.want)) {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		1: "1 B", 1023: "1023 B", 1024: "1 KiB", 4096: "4 KiB", 1100: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1023.9 KiB",
		1 << 20: "1 MiB", 5 << 29: "2.5 GiB", 1<<64 - 1: "17179869183.9 GiB",
	} {
		if got := string(appendBytes(nil, n)); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestLatencies(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ns", 999: "999ns", 1000: "1.0us", 99_950: "99.9us", 123_456: "123us", 10_000_000: "10.0ms", 100_000_000: "100ms",
		999_999_999: "999ms", 1_050_000_000: "1.0s", 61 * time.Second: "61.0s", 3 * time.Hour: "10800s", -5: "-5ns",
	} {
		if got := string(AppendLatency(nil, d)); got != want {
			t.Errorf("%d: got %s, want %s", d, got, want)
		}
	}
}

// groupFields is the specification's table of fields by group.
var groupFields = map[catalog.FieldGroup][]string{
	catalog.FieldTuple: {"KUBESKOOP_PROTOCOL", "KUBESKOOP_SADDR", "KUBESKOOP_SPORT", "KUBESKOOP_DADDR", "KUBESKOOP_DPORT",
		"KUBESKOOP_SRC_TYPE", "KUBESKOOP_SRC_NAMESPACE", "KUBESKOOP_SRC_POD", "KUBESKOOP_SRC_NODE",
		"KUBESKOOP_DST_TYPE", "KUBESKOOP_DST_NAMESPACE", "KUBESKOOP_DST_POD", "KUBESKOOP_DST_NODE"},
	catalog.FieldLatency:   {"KUBESKOOP_LATENCY_NS"},
	catalog.FieldProcess:   {"KUBESKOOP_COMM", "KUBESKOOP_PID"},
	catalog.FieldCPU:       {"KUBESKOOP_CPU"},
	catalog.FieldPID:       {"KUBESKOOP_PID"},
	catalog.FieldIfname:    {"KUBESKOOP_IFNAME"},
	catalog.FieldDisk:      {"KUBESKOOP_DISK"},
	catalog.FieldOperation: {"KUBESKOOP_OPERATION", "KUBESKOOP_BYTES"},
	catalog.FieldVector:    {"KUBESKOOP_VECTOR"},
	catalog.FieldLocation:  {"KUBESKOOP_LOCATION"},
	catalog.FieldReason:    {"KUBESKOOP_REASON"},
	catalog.FieldTCPState:  {"KUBESKOOP_TCP_STATE"},
	catalog.FieldStack:     {"KUBESKOOP_STACK"},
}

var fixedFields = []string{"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "KUBESKOOP_EVENT", "KUBESKOOP_PROBE",
	"K8S_NODE", "K8S_NAMESPACE", "K8S_POD", "KUBESKOOP_NETNS", "KUBESKOOP_TIMESTAMP_US"}

func fieldsOf(e *Event) (names []string, values map[string]string) {
	values = map[string]string{}
	e.Fields(nil, func(name string, value []byte) {
		names = append(names, name)
		values[name] = string(value)
	})
	return names, values
}

func TestFieldsOfEachType(t *testing.T) {
	for _, typ := range catalog.Events() {
		e := fullEvent(typ)
		e.Dst = Endpoint{Addr: netip.MustParseAddr("::ffff:10.0.0.9"), Port: 51234, Kind: EndPod, Pod: &owner.Pod{Namespace: "prod", Name: "db-0"}, Node: "node-1"}
		e.Suppressed = 7
		want := slices.Clone(fixedFields)
		for _, g := range typ.Fields {
			want = append(want, groupFields[g]...)
		}
		for _, p := range typ.Points {
			want = append(want, "KUBESKOOP_LATENCY_"+strings.ToUpper(p)+"_NS")
		}
		want = append(want, "KUBESKOOP_SUPPRESSED")
		names, v := fieldsOf(e)
		if !slices.Equal(names[:len(fixedFields)], fixedFields) {
			t.Errorf("%s begins with %q", typ.Name, names[:len(fixedFields)])
		}
		slices.Sort(names)
		slices.Sort(want)
		if d := cmp.Diff(want, names); d != "" {
			t.Errorf("%s: fields (-want +got):\n%s", typ.Name, d)
		}
		for name, value := range map[string]string{
			"MESSAGE": e.Message(), "MESSAGE_ID": typ.MessageID, "PRIORITY": "5", "SYSLOG_IDENTIFIER": "nodeskoop",
			"KUBESKOOP_EVENT": typ.Name, "KUBESKOOP_PROBE": typ.Probe(), "K8S_NODE": "node-1", "K8S_NAMESPACE": "default", "K8S_POD": "web-0",
			"KUBESKOOP_NETNS": "4026532001", "KUBESKOOP_TIMESTAMP_US": "1700000000123456", "KUBESKOOP_PROTOCOL": "TCP",
			"KUBESKOOP_SADDR": "10.0.0.5", "KUBESKOOP_SPORT": "443", "KUBESKOOP_DADDR": "10.0.0.9", "KUBESKOOP_DPORT": "51234",
			"KUBESKOOP_SRC_TYPE": "pod", "KUBESKOOP_SRC_NAMESPACE": "default", "KUBESKOOP_SRC_POD": "web-0", "KUBESKOOP_SRC_NODE": "node-1",
			"KUBESKOOP_DST_TYPE": "pod", "KUBESKOOP_DST_NAMESPACE": "prod", "KUBESKOOP_DST_POD": "db-0", "KUBESKOOP_DST_NODE": "node-1",
			"KUBESKOOP_LATENCY_NS": "123456000", "KUBESKOOP_LATENCY_IP_NS": "1500000", "KUBESKOOP_LATENCY_POSTROUTING_NS": "4500000",
			"KUBESKOOP_COMM": "nginx", "KUBESKOOP_PID": "812", "KUBESKOOP_CPU": "3", "KUBESKOOP_IFNAME": "eth0", "KUBESKOOP_DISK": "sda",
			"KUBESKOOP_VECTOR": "NET_RX", "KUBESKOOP_LOCATION": "nft_do_chain+0x12a", "KUBESKOOP_REASON": "NETFILTER_DROP",
			"KUBESKOOP_TCP_STATE": "ESTABLISHED", "KUBESKOOP_STACK": "nft_do_chain+0x12a\nnft_do_chain_ipv4+0x5c\nnf_hook_slow+0x3f",
			"KUBESKOOP_SUPPRESSED": "7",
		} {
			if got, ok := v[name]; ok && got != value {
				t.Errorf("%s: %s is %q, want %q", typ.Name, name, got, value)
			}
		}
	}
}

func TestFieldsOfWhatIsNotKnown(t *testing.T) {
	for _, typ := range catalog.Events() {
		e := &Event{Type: typ, Time: time.UnixMicro(1), PID: -1, CPU: -1}
		for _, p := range typ.Points {
			e.Points = append(e.Points, Point{p, -1})
		}
		names, v := fieldsOf(e)
		for _, n := range names {
			if !slices.Contains(fixedFields, n) && n != "KUBESKOOP_LATENCY_NS" {
				t.Errorf("%s: %s=%q", typ.Name, n, v[n])
			}
		}
		if _, ok := v["K8S_POD"]; !ok {
			t.Errorf("%s has no K8S_POD: an empty host label is a label", typ.Name)
		}
		if _, ok := v["KUBESKOOP_NETNS"]; ok {
			t.Errorf("%s has a namespace of 0", typ.Name)
		}
	}
	e := fullEvent(catalog.EventByName("PacketLoss"))
	e.Src.Kind, e.Pod = "", nil
	if _, v := fieldsOf(e); v["KUBESKOOP_SRC_TYPE"] != "unknown" || v["K8S_NAMESPACE"] != "hostNetwork" || v["K8S_POD"] != "hostNetwork" {
		t.Errorf("got %q", v)
	}
	e.Type = catalog.EventByName("RXKERNEL_SLOW")
	e.Points = []Point{{"no such-point", 5}}
	if _, v := fieldsOf(e); v["KUBESKOOP_LATENCY_NO_SUCH_POINT_NS"] != "5" {
		t.Errorf("got %q", v)
	}
}

func TestFieldsAllocateNothing(t *testing.T) {
	var buf []byte
	n := 0
	for _, typ := range catalog.Events() {
		e := fullEvent(typ)
		put := func(_ string, value []byte) { n += len(value) }
		buf = e.Fields(buf, put)
		if a := testing.AllocsPerRun(20, func() { buf = e.Fields(buf, put) }); a != 0 {
			t.Errorf("%s: %v allocations", typ.Name, a)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, typ := range catalog.Events() {
		e := fullEvent(typ)
		line, _ := e.AppendJSON(nil, nil)
		var got map[string]string
		if err := json.Unmarshal(line, &got); err != nil {
			t.Errorf("%s: %v in %s", typ.Name, err, line)
			continue
		}
		if _, want := fieldsOf(e); !cmp.Equal(got, want) {
			t.Errorf("%s (-want +got):\n%s", typ.Name, cmp.Diff(want, got))
		}
	}
}

// FuzzEventText checks the one-line and the JSON form with names of arbitrary bytes.
func FuzzEventText(f *testing.F) {
	for _, s := range []string{"", "nginx", "a\nb", "\x00\x1b[2J\x7f", "\xff\xfe", "\u202e\u2028", "\U0001f600\U000e0001", `"\`} {
		f.Add(s, s, uint16(len(s)))
	}
	f.Fuzz(func(t *testing.T, a, b string, n uint16) {
		for _, typ := range catalog.Events() {
			e := fullEvent(typ)
			e.Comm, e.Reason, e.Location, e.Ifname, e.TCPState, e.Protocol = a, b, a, b, a, b
			e.Disk, e.Vector, e.Stack = b, a, []string{a, b}
			e.Pod, e.Src.Port, e.Suppressed = &owner.Pod{Namespace: a, Name: b}, n, uint64(n)
			m := e.Message()
			if !utf8.ValidString(m) {
				t.Fatalf("%s: not UTF-8: %q", typ.Name, m)
			}
			for _, r := range m {
				if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' {
					t.Fatalf("%s: %U in %q", typ.Name, r, m)
				}
			}
			line, _ := e.AppendJSON(nil, nil)
			var got map[string]string
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatalf("%s: %v in %q", typ.Name, err, line)
			}
			if strings.ContainsFunc(string(line), unicode.IsControl) {
				t.Fatalf("%s: a control character in %q", typ.Name, line)
			}
			_, want := fieldsOf(e)
			for k, v := range want {
				// encoding/json also replaces each byte that is not UTF-8.
				if v := string([]rune(v)); got[k] != v {
					t.Fatalf("%s: %s is %q, want %q", typ.Name, k, got[k], v)
				}
			}
		}
	})
}

func TestCatalogueExplainsEachEvent(t *testing.T) {
	placeholder := regexp.MustCompile(`@([^@]*)@`)
	replaced := regexp.MustCompile(`^[A-Z_]+$`) // journalctl does not replace names that contain a digit
	for _, e := range catalog.Events() {
		fields := eventFields(e)
		if len(e.Explain) < 200 || len(e.Next) < 2 || !strings.HasSuffix(e.Explain, ".") {
			t.Errorf("%s: %d bytes of explanation, %d steps", e.Name, len(e.Explain), len(e.Next))
		}
		if strings.Contains(e.Explain, "@") {
			t.Errorf("%s: a placeholder in the explanation, which is shown without an event, too", e.Name)
		}
		for _, f := range regexp.MustCompile(`\bKUBESKOOP_[A-Z_]+\b`).FindAllString(e.Explain, -1) {
			if !fields[f] {
				t.Errorf("%s explains %s, which it does not carry", e.Name, f)
			}
		}
		for _, s := range e.Next {
			if s.Command == "" || s.Shows == "" || strings.Contains(s.Command+s.Shows, "\n") {
				t.Errorf("%s: step %+v", e.Name, s)
			}
			for _, m := range placeholder.FindAllStringSubmatch(s.Command, -1) {
				if !fields[m[1]] || !replaced.MatchString(m[1]) {
					t.Errorf("%s: the command %q needs %s, which the event does not carry", e.Name, s.Command, m[1])
				}
			}
		}
	}
}

// eventFields are the journal fields that an event of the type may have.
func eventFields(t *catalog.EventType) map[string]bool {
	e := Event{Type: t, Latency: time.Second, Protocol: "TCP", Comm: "c", PID: 1, CPU: 1, Operation: "o", Bytes: 1, Ifname: "i", Disk: "d", Vector: "v",
		Location: "l", Reason: "r", TCPState: "s", Stack: []string{"f"}, Netns: 1}
	addr := netip.MustParseAddr("192.0.2.1")
	e.Src, e.Dst = Endpoint{Addr: addr, Port: 1}, Endpoint{Addr: addr, Port: 2}
	for _, p := range t.Points {
		e.Points = append(e.Points, Point{Name: p, Latency: 1})
	}
	fields := map[string]bool{}
	e.Fields(nil, func(name string, _ []byte) { fields[name] = true })
	return fields
}
