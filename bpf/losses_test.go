package bpf

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/bpf/internal/objects"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/rawtp"
)

// TestLossRules checks the table of rules for consistency.
func TestLossRules(t *testing.T) {
	if len(lossRules) > len(lossTable.rules) {
		t.Fatalf("%d rules, room for %d", len(lossRules), len(lossTable.rules))
	}
	var source strings.Builder
	files, _ := filepath.Glob("*_test.go")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	for i, r := range lossRules {
		if r.why == Lost || r.why >= whys {
			t.Errorf("rule %d: why %v", i, r.why)
		}
		if r.kernels == "" || r.test == "" {
			t.Errorf("rule %d names no kernels or no test", i)
		}
		if len(r.functions) == 0 && len(r.reasons) == 0 && r.need == 0 {
			t.Errorf("rule %d holds for every packet", i)
		}
		name, group, _ := strings.Cut(r.test, "/")
		if source.Len() == 0 {
			continue // VMs have no sources
		}
		if !strings.Contains(source.String(), "func "+name+"(") || group != "" && !strings.Contains(source.String(), `{"`+group+`", healthy`) {
			t.Errorf("rule %d is held by %s, which there is not", i, r.test)
		}
	}
}

// TestLossJudge evaluates rules by names, as user space does.
func TestLossJudge(t *testing.T) {
	reasons := &Reasons{drop: map[uint32]string{2: "NOT_SPECIFIED", 3: "NO_SOCKET", 4: "TCP_ZEROWINDOW", 5: "QUEUE_PURGE", 6: "SOCKET_RCVBUFF", 7: "TCP_CSUM", 8: "UNHANDLED_PROTO", 9: "NETFILTER_DROP", 10: "TCP_OLD_DATA"}}
	none := &Reasons{}
	for _, c := range []struct {
		function string
		reasons  *Reasons
		reason   uint32
		traits   traits
		want     Why
	}{
		{"netlink_unicast", reasons, 2, traitNoPacket, NotAPacket},
		{"netlink_unicast", none, ReasonNone, traitNoPacket, NotAPacket},
		{"skb_release_data", reasons, 2, traitPulled, Delivered},
		{"skb_release_data", reasons, 2, 0, Lost},
		{"kfree_skb_list", none, ReasonNone, traitDevice, Lost}, // packets returned by a full queue
		{"kfree_skb_list_reason", reasons, 3, traitPulled, Lost},
		// A window probe of other systems, and real data for a closed window.
		{"tcp_data_queue", reasons, 4, traitByte, Delivered},
		{"tcp_data_queue", reasons, 4, 0, Lost},
		// A bare acknowledgement is not a loss; a damaged one is.
		{"tcp_rcv_state_process", reasons, 2, traitACK, Delivered},
		{"tcp_rcv_established", reasons, 7, traitACK, Lost},
		{"tcp_v4_rcv", reasons, 2, traitACK | traitChecksum | traitInformed, Delivered},
		{"tcp_v4_rcv", none, ReasonNone, traitACK | traitInformed, Lost},                           // a bad checksum
		{"tcp_v4_rcv", reasons, 2, traitACK | traitChecksum | traitInformed | traitListener, Lost}, // a full accept queue
		{"tcp_v4_rcv", reasons, 2, traitACK | traitChecksum | traitInformed | traitListener | traitDeferred, Delivered},
		{"tcp_v4_rcv", reasons, 2, traitACK | traitChecksum, Lost}, // a kernel that passes no sockets
		{"tcp_v4_rcv", reasons, 3, traitACK | traitChecksum, Closing},
		{"tcp_v4_rcv", reasons, 3, traitSYN | traitChecksum, Lost},
		{"tcp_v4_rcv", reasons, 3, 0, Lost}, // data
		{"tcp_data_queue", reasons, 10, 0, Delivered},
		{"tcp_v4_rcv", none, ReasonNone, traitSYN | traitChecksum | traitInformed, Lost},                 // a closed port
		{"tcp_v4_rcv", none, ReasonNone, traitACK | traitChecksum | traitInformed | traitListener, Lost}, // a full accept queue
		{"tcp_v4_rcv", none, ReasonNone, traitFIN | traitChecksum, Delivered},
		// Queues of sockets, and queues of neighbours and devices.
		{"inet_sock_destruct", reasons, 5, 0, Closing},
		{"skb_queue_purge_reason", reasons, 5, traitDevice | traitOutgoing, Closing},
		{"neigh_destroy", reasons, 5, traitDevice, Lost},
		{"udp_destruct_common", none, ReasonNone, 0, Closing},
		{"neigh_destroy", none, ReasonNone, traitDevice, Lost},
		// Without a listener, or with a listener whose queue is full.
		{"__netif_receive_skb_core", reasons, 8, traitGroup | traitDevice, Unwanted},
		{"__netif_receive_skb_core", reasons, 8, traitDevice, Lost},
		{"udp_queue_rcv_one_skb", reasons, 6, traitGroup, Lost},
		{"udp_queue_rcv_one_skb", none, ReasonNone, traitGroup, Lost},
		{"nft_do_chain", reasons, 9, traitGroup | traitDevice, Lost},
		{"nft_do_chain", none, ReasonNone, traitGroup | traitDevice, Lost},
		{"enqueue_to_backlog", reasons, 9, traitGroup | traitUnjoined | traitDevice, Lost}, // for another reason
		{"enqueue_to_backlog", none, ReasonNone, traitGroup | traitUnjoined | traitDevice, Unwanted},
		{"enqueue_to_backlog", none, ReasonNone, traitGroup | traitDevice, Lost},
		{"enqueue_to_backlog", none, ReasonNone, traitDevice, Lost},
		{"a_function_of_a_later_module", reasons, 2, traitDevice, Lost},
	} {
		if got := lossTable.judge(c.function, c.reasons, c.reason, c.traits); got != c.want {
			t.Errorf("%s, %s, traits %#x: %v, want %v", c.function, c.reasons.Drop(c.reason), c.traits, got, c.want)
		}
	}
}

// TestLossSteps searches the table of code addresses like the programs.
func TestLossSteps(t *testing.T) {
	s := symbolsOf(t, kallsyms+"ffffffffc0900000 t sctp_recvmsg\t[sctp]\nffffffffc0900100 t sctp_rcv\t[sctp]\n")
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	steps, err := s.steps(lossTable)
	if err != nil {
		t.Fatal(err)
	}
	at := func(address uint64) uint64 {
		low := 0
		for half := lossSteps / 2; half > 0; half /= 2 {
			if steps.Step[low|half].Start < address {
				low |= half
			}
		}
		return steps.Step[low].Mask
	}
	for _, c := range []struct {
		address  uint64
		function string
		module   bool
	}{
		{0xffffffff81cc2010, "tcp_v4_rcv", false},
		{0xffffffff81cc2c10, "tcp_v4_rcv", false},    // cold part of the function
		{0xffffffff81cc2000, "tcp_v4_do_rcv", false}, // return address of a tail call
		{0xffffffff81000010, "", false},
		{0xffffffff82000010, "", true}, // beyond the kernel's code
		{0xffffffffc0900010, "sctp_recvmsg", true},
		{0xffffffffc0900110, "sctp_rcv", true},
		{0x8000000000000100, "", true},
	} {
		want := lossTable.at(c.function)
		if c.module {
			want |= atModule
		}
		if got := at(c.address); got != want {
			t.Errorf("%#x: mask %#x, want %#x of %q", c.address, got, want, c.function)
		}
	}
}

// TestSymbolsOfAnotherModule loads a module at the address of an earlier one: its
// functions have its own names at once.
func TestSymbolsOfAnotherModule(t *testing.T) {
	s := symbolsOf(t, kallsyms)
	s.modules = filepath.Join(t.TempDir(), "modules")
	now := time.Now()
	s.now = func() time.Time { return now }
	list := func(text string) {
		t.Helper()
		if err := os.WriteFile(s.modules, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list("nf_tables 300000 1 - Live 0xffffffffc0800000\n")
	const there, above = 0xffffffffc0800010, 0xffffffffc0810010
	if got := s.Location(there); got != "nft_do_chain+0x10 [nf_tables]" {
		t.Fatal(got)
	}
	generation := s.Generation()
	// A change of a module's reference count triggers no reading.
	now = now.Add(2 * compareAfter)
	list("nf_tables 300000 7 nft_ct, Live 0xffffffffc0800000\n")
	if s.Location(there); s.Generation() != generation || s.Stale() {
		t.Error("read again although no module came or went")
	}
	other := strings.NewReplacer("nft_do_chain\t[nf_tables]", "tun_net_xmit\t[tun]", "nft_other\t[nf_tables]", "tun_other\t[tun]").Replace(kallsyms)
	if err := os.WriteFile(s.path, []byte(other+"ffffffffc0810000 t late\t[late]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	list("late 4096 0 - Live 0xffffffffc0810000\ntun 65536 0 - Live 0xffffffffc0800000\n")
	now = now.Add(2 * compareAfter)
	if got := s.Location(above); got != "late+0x10 [late]" {
		t.Errorf("a module loaded later: %s", got)
	}
	if got := s.Location(there); got != "tun_net_xmit+0x10 [tun]" {
		t.Errorf("a module where another was: %s", got)
	}
	// Lookups in the kernel's own code need no comparison.
	list("")
	if got := s.Location(0xffffffff81cc1010); got != "tcp_v4_do_rcv+0x10" || !s.Stale() {
		t.Errorf("%s, stale %v", got, s.Stale())
	}
}

// TestLossAccount: lost plus ignored packets equal the passes of the tracepoint, by
// an independent counter.
func TestLossAccount(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	p := l.load("packetloss", Config{})
	passes := rawtp.Count(t, "kfree_skb")
	counted := func() (lost, ignored uint64) {
		t.Helper()
		if err := p.Drops(func(d Drop) { lost += d.Count }); err != nil {
			t.Fatal(err)
		}
		whys, err := p.Ignored()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range whys {
			ignored += n
		}
		return lost, ignored
	}
	lost, ignored := counted()
	before := passes() - lost - ignored
	for _, addrs := range families(a, b) {
		// Lost: a closed port.
		send(t, a.dial(t, "udp", netip.AddrPortFrom(addrs[1], 9)), 50)
		// Not lost: a socket closed with unread datagrams.
		s := b.listenUDP(t, addrs[1])
		send(t, a.dial(t, "udp", addrPort(s.LocalAddr())), 50)
		s.Close()
	}
	var after, nowLost, nowIgnored uint64
	l.eventually("what is lost and what is ignored to be all that passed", func() bool {
		// Read again if the tracepoint was passed between the readings.
		was := passes()
		nowLost, nowIgnored = counted()
		after = passes()
		return was == after && nowLost >= lost+100 && nowIgnored >= ignored+100 && after-nowLost-nowIgnored == before
	})
	t.Logf("%d passes: %d lost, %d ignored", after, nowLost-lost, nowIgnored-ignored)
}

// TestLossUndecided makes the programs treat the symbols as outdated, as after a
// module was loaded: user space then judges packets freed by modules, with the same
// result.
func TestLossUndecided(t *testing.T) {
	need.Root(t)
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	p := l.load("packetloss", Config{})
	b.run(t, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 7 counter drop")
	var known uint64
	if err := p.get(objects.PacketlossVarModulesKnown, &known); err != nil {
		t.Fatal(err)
	}
	old := func() {
		if err := p.put(objects.PacketlossVarModulesLoaded, known+1); err != nil {
			t.Fatal(err)
		}
	}
	old()
	const n = 30
	for _, addrs := range families(a, b) {
		send(t, a.dial(t, "udp", netip.AddrPortFrom(addrs[1], 7)), n)
	}
	l.settled(p, b.inode)
	_, byClass, total := drops(l, p, b.inode)
	if byClass[DropNetfilter] != 2*n || total != 2*n {
		t.Errorf("classes %v, total %d, want %d of netfilter and no others", byClass, total, 2*n)
	}
	for _, e := range l.taken(PacketLoss, b.inode, 2*n) {
		if l.Ignores(&e) {
			t.Errorf("ignored: %+v", e)
		}
	}
	// Reading updates the table.
	var loaded uint64
	if err := p.get(objects.PacketlossVarModulesLoaded, &loaded); err != nil {
		t.Fatal(err)
	}
	if err := p.get(objects.PacketlossVarModulesKnown, &known); err != nil {
		t.Fatal(err)
	}
	if loaded != known {
		t.Errorf("the table knows %d modules of %d after it was read", known, loaded)
	}
	// An event that user space judges: a message read through SCTP, freed by its
	// module.
	e := Event{Type: PacketLoss, Detail: uint32(traitUndecided | traitDevice), Reason: ReasonNone}
	if l.Ignores(&e) {
		t.Error("a packet of an unknown function was ignored")
	}
	e.Detail |= uint32(traitNoPacket)
	if !l.Ignores(&e) {
		t.Error("a message was not ignored")
	}
}

// BenchmarkLossVerdicts reports the program's cost per freed packet, by the
// kernel's own statistics: for lost packets (a closed port) and ignored ones (data
// in a closed socket).
func BenchmarkLossVerdicts(b *testing.B) {
	x, y := newPair(b)
	l := newTestLoader(b, Options{})
	p := l.load("packetloss", Config{NoStack: true})
	statistics, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skip(err)
	}
	defer statistics.Close()
	cost := func(b *testing.B, cause func()) {
		program := p.programs["raw_kfree_skb"]
		before, err := program.Stats()
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			cause()
		}
		l.settled(p, y.inode)
		after, err := program.Stats()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/packet")
		b.ReportMetric(float64(after.RunCount-before.RunCount)/float64(b.N), "packets/op")
	}
	b.Run("lost", func(b *testing.B) {
		c := x.dial(b, "udp", netip.AddrPortFrom(y.v4, 9))
		cost(b, func() { send(b, c, 100) })
	})
	b.Run("ignored", func(b *testing.B) {
		cost(b, func() {
			s := y.listenUDP(b, y.v4)
			c := x.dial(b, "udp", addrPort(s.LocalAddr()))
			send(b, c, 100)
			s.Close()
			c.Close()
		})
	})
}
