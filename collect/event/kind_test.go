package event

import (
	"net/netip"
	"testing"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// TestKinds: fields that separate kinds, and fields that do not.
func TestKinds(t *testing.T) {
	addr := netip.MustParseAddr
	db := &owner.Pod{ID: "db", UID: "u-db", Namespace: "prod", Name: "db-0"}
	for name, c := range map[string]struct {
		typ    string
		change func(*Event)
		same   bool
	}{
		"nothing":            {"PacketLoss", func(*Event) {}, true},
		"stack":              {"PacketLoss", func(e *Event) { e.Stack = []string{"x"} }, true},
		"time":               {"PacketLoss", func(e *Event) { e.Time = e.Time.Add(1) }, true},
		"suppressed":         {"PacketLoss", func(e *Event) { e.Suppressed = 3 }, true},
		"ephemeral port":     {"PacketLoss", func(e *Event) { e.Dst.Port = 40000 }, true},
		"own port":           {"PacketLoss", func(e *Event) { e.Src.Port = 8443 }, true},
		"own address":        {"PacketLoss", func(e *Event) { e.Src.Addr = addr("10.0.0.6") }, true},
		"another sandbox":    {"PacketLoss", func(e *Event) { p := *webPod; p.Netns = 9; e.Pod, e.Netns = &p, 9 }, true},
		"type":               {"TCPRESET_ACTIVE", func(*Event) {}, false},
		"pod":                {"PacketLoss", func(e *Event) { e.Pod = db }, false},
		"host":               {"PacketLoss", func(e *Event) { e.Pod = nil }, false},
		"unowned":            {"PacketLoss", func(e *Event) { e.Pod, e.unowned = nil, true }, false},
		"unattributed":       {"PacketLoss", func(e *Event) { e.Pod, e.unattributed = nil, true }, false},
		"reason":             {"PacketLoss", func(e *Event) { e.Reason = "NO_SOCKET" }, false},
		"location":           {"PacketLoss", func(e *Event) { e.Location = "ip_rcv+0x1" }, false},
		"protocol":           {"PacketLoss", func(e *Event) { e.Protocol = "UDP" }, false},
		"peer":               {"PacketLoss", func(e *Event) { e.Dst.Addr = addr("10.0.0.10") }, false},
		"the peer's service": {"PacketLoss", func(e *Event) { e.Dst.Port, e.Src.Port = 53, 51234 }, false},
		"direction":          {"PacketLoss", func(e *Event) { e.Src, e.Dst = e.Dst, e.Src }, false},
		"state":              {"TCPRetrans", func(e *Event) { e.TCPState = "SYN_SENT" }, false},
		"latency":            {"SOCKETLAT_READSLOW", func(e *Event) { e.Latency *= 2 }, true},
		"process number":     {"SOCKETLAT_READSLOW", func(e *Event) { e.PID = 1 }, true},
		"process":            {"SOCKETLAT_READSLOW", func(e *Event) { e.Comm = "envoy" }, false},
		"points":             {"RXKERNEL_SLOW", func(e *Event) { e.Points[0].Latency++ }, true},
		"disk":               {"BIOLAT_10MS", func(e *Event) { e.Disk = "sdb" }, false},
		"device":             {"TXLAT_NETDEV_100MS", func(e *Event) { e.Ifname = "eth1" }, false},
		"CPU":                {"NETSOFTIRQ_SCHED_SLOW", func(e *Event) { e.CPU = 7 }, true},
		"vector":             {"NETSOFTIRQ_SCHED_SLOW", func(e *Event) { e.Vector = "NET_TX" }, false},
		"ends of a softirq":  {"NETSOFTIRQ_SCHED_SLOW", func(e *Event) { e.Dst.Addr = addr("10.0.0.10") }, true},
	} {
		e := fullEvent(catalog.EventByName(c.typ))
		a, ap := keyOf(e), peerOf(e)
		if name == "type" {
			e.Type = lossType
		}
		c.change(e)
		if same := keyOf(e) == a && peerOf(e) == ap; same != c.same {
			t.Errorf("%s: one kind: %v, want %v\n%+v %+v\n%+v %+v", name, same, c.same, a, ap, keyOf(e), peerOf(e))
		}
	}
}

func TestCommonComm(t *testing.T) {
	for comm, want := range map[string]string{
		"": "", "nginx": "nginx", "kworker/0:1": "kworker", "kworker/u8:3-ext4": "kworker", "kworker/R-slub_": "kworker",
		"ksoftirqd/3": "ksoftirqd", "migration/12": "migration", "rcuop/7": "rcuop", "irq/45-eth0": "irq/45-eth0",
		"jbd2/sda1-8": "jbd2/sda1-8", "a/1b": "a/1b", "worker-3": "worker-3",
	} {
		if got := CommonComm(comm); got != want {
			t.Errorf("%q: %q, want %q", comm, got, want)
		}
	}
}

// TestPeers: which end of a connection is the peer, and which port is a service's.
func TestPeers(t *testing.T) {
	pod := &owner.Pod{ID: "web"}
	hostPod := &owner.Pod{ID: "proxy", HostNetwork: true}
	a := netip.MustParseAddr
	for name, c := range map[string]struct {
		of               *owner.Pod
		unowned          bool
		src, dst         string
		srcKind, dstKind string
		srcOwn, dstOwn   bool
		want             peer
	}{
		"a client of the pod":          {of: pod, src: "10.0.0.5:443", dst: "10.0.0.9:51234", srcOwn: true, want: peer{addr: a("10.0.0.9")}},
		"from a client of the pod":     {of: pod, src: "10.0.0.9:51234", dst: "10.0.0.5:443", dstOwn: true, want: peer{addr: a("10.0.0.9"), sends: true}},
		"a server":                     {of: pod, src: "10.0.0.5:51234", dst: "10.0.0.9:443", srcOwn: true, want: peer{addr: a("10.0.0.9"), port: 443}},
		"an answer of a server":        {of: pod, src: "10.0.0.9:443", dst: "10.0.0.5:51234", dstOwn: true, want: peer{addr: a("10.0.0.9"), port: 443, sends: true}},
		"both below the ephemeral":     {of: pod, src: "10.0.0.5:80", dst: "10.0.0.9:20000", srcOwn: true, want: peer{addr: a("10.0.0.9")}},
		"both a service's":             {of: pod, src: "10.0.0.5:20000", dst: "10.0.0.9:80", srcOwn: true, want: peer{addr: a("10.0.0.9"), port: 80}},
		"the same port":                {of: pod, src: "10.0.0.5:123", dst: "10.0.0.9:123", srcOwn: true, want: peer{addr: a("10.0.0.9"), port: 123}},
		"both ephemeral":               {of: pod, src: "10.0.0.5:40000", dst: "10.0.0.9:50000", srcOwn: true, want: peer{addr: a("10.0.0.9")}},
		"no ports":                     {of: pod, src: "10.0.0.5:0", dst: "10.0.0.9:0", srcOwn: true, want: peer{addr: a("10.0.0.9")}},
		"the pod and itself":           {of: pod, src: "127.0.0.1:51234", dst: "127.0.0.1:80", srcOwn: true, dstOwn: true, want: peer{addr: a("127.0.0.1"), port: 80}},
		"itself, the answer":           {of: pod, src: "127.0.0.1:80", dst: "127.0.0.1:51234", srcOwn: true, dstOwn: true, want: peer{addr: a("127.0.0.1"), port: 80, sends: true}},
		"the host":                     {src: "192.0.2.1:51234", dst: "10.0.0.9:443", srcKind: EndNode, want: peer{addr: a("10.0.0.9"), port: 443}},
		"a pod of the host's network":  {of: hostPod, src: "192.0.2.1:51234", dst: "10.0.0.9:443", srcKind: EndNode, want: peer{addr: a("10.0.0.9"), port: 443}},
		"forwarded by the host":        {src: "10.0.0.5:51234", dst: "10.0.0.9:443", want: peer{addr: a("10.0.0.9"), port: 443, other: a("10.0.0.5")}},
		"forwarded, the answer":        {src: "10.0.0.9:443", dst: "10.0.0.5:51234", want: peer{addr: a("10.0.0.9"), port: 443, other: a("10.0.0.5"), sends: true}},
		"a namespace that is no pod's": {unowned: true, src: "192.0.2.1:51234", dst: "10.0.0.9:443", srcKind: EndNode, want: peer{addr: a("10.0.0.9"), port: 443, other: a("192.0.2.1")}},
	} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		e := &Event{Type: lossType, Pod: c.of, unowned: c.unowned,
			Src: Endpoint{Addr: src.Addr(), Port: src.Port(), Kind: c.srcKind},
			Dst: Endpoint{Addr: dst.Addr(), Port: dst.Port(), Kind: c.dstKind}}
		if c.srcOwn {
			e.Src.Pod = c.of
		}
		if c.dstOwn {
			e.Dst.Pod = c.of
		}
		if got := peerOf(e); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	if got := peerOf(&Event{Type: lossType}); got != (peer{}) {
		t.Errorf("an event without ends: %+v", got)
	}
}
