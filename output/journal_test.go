package output

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/quote"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/journald"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/systemd"
)

// journal is a journald whose entries a test reads.
type journal struct{ *journald.Journald }

func newJournald(t testing.TB) journal {
	t.Helper()
	return journal{journald.New(t, "1G")}
}

// entries returns the program's entries, without journald's own fields.
func (d journal) entries(t testing.TB) []map[string]string {
	t.Helper()
	d.Sync()
	list, err := decodeExport(d.Journalctl("-o", "export", "SYSLOG_IDENTIFIER=nodeskoop"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		for k := range m {
			if strings.HasPrefix(k, "_") {
				delete(m, k)
			}
		}
	}
	return list
}

// count returns the number of entries.
func (d journal) count() uint64 {
	d.Sync()
	out := d.Journalctl("-o", "cat", "--output-fields=KUBESKOOP_EVENT", "SYSLOG_IDENTIFIER=nodeskoop")
	return uint64(bytes.Count(out, []byte{'\n'}))
}

// decodeExport parses the journal export format: the native protocol with a blank line
// between entries.
func decodeExport(b []byte) ([]map[string]string, error) {
	var list []map[string]string
	var cur map[string]string
	for len(b) > 0 {
		if b[0] == '\n' {
			cur, b = nil, b[1:]
			continue
		}
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return nil, fmt.Errorf("no newline after %q", b)
		}
		line := b[:i]
		b = b[i+1:]
		name, value, simple := bytes.Cut(line, []byte{'='})
		if !simple {
			if len(b) < 8 {
				return nil, fmt.Errorf("%s: no length", name)
			}
			n := binary.LittleEndian.Uint64(b)
			if b = b[8:]; uint64(len(b)) <= n || b[n] != '\n' {
				return nil, fmt.Errorf("%s: %d bytes do not end in a newline", name, n)
			}
			value, b = b[:n], b[n+1:]
		}
		if cur == nil {
			cur = map[string]string{}
			list = append(list, cur)
		}
		if _, twice := cur[string(name)]; twice {
			return nil, fmt.Errorf("%s twice", name)
		}
		cur[string(name)] = string(value)
	}
	return list, nil
}

// journalFields are eventFields as the journal stores them: one line each, except for the
// stack.
func journalFields(e *event.Event) map[string]string {
	m := eventFields(e)
	for name, value := range m {
		if name != "KUBESKOOP_STACK" {
			m[name] = quote.Safe(value)
			continue
		}
		lines := strings.Split(value, "\n")
		for i, l := range lines {
			lines[i] = quote.Safe(l)
		}
		m[name] = strings.Join(lines, "\n")
	}
	return m
}

func eventFields(e *event.Event) map[string]string {
	m := map[string]string{}
	e.Fields(nil, func(name string, value []byte) { m[name] = string(value) })
	return m
}

// eventOf makes an event of any type with every field.
func eventOf(typ *catalog.EventType) *event.Event {
	web := &owner.Pod{ID: "web", Namespace: "default", Name: "web-0"}
	e := &event.Event{
		Type: typ, Time: time.UnixMicro(1_700_000_000_123_456), Netns: 4026532001, Pod: web, Node: "node-1", HostLabel: "hostNetwork",
		Protocol: "TCP",
		Src:      event.Endpoint{Addr: netip.MustParseAddr("10.0.0.5"), Port: 443, Kind: event.EndPod, Pod: web, Node: "node-1"},
		Dst:      event.Endpoint{Addr: netip.MustParseAddr("10.0.0.9"), Port: 51234},
		Latency:  123456 * time.Microsecond, Comm: "nginx", PID: 812, CPU: 3,
		Operation: "read", Bytes: 4096, Ifname: "eth0", Disk: "sda", Vector: "NET_RX", Location: "nft_do_chain+0x12a", Reason: "NETFILTER_DROP", TCPState: "ESTABLISHED",
		Stack: []string{"nft_do_chain+0x12a", "nft_do_chain_ipv4+0x5c", "nf_hook_slow+0x3f", "ip_local_deliver+0x9a", "ip_rcv+0x51",
			"__netif_receive_skb_one_core+0x86", "process_backlog+0x8e", "__napi_poll+0x2b", "net_rx_action+0x2f1"},
	}
	for i, p := range typ.Points {
		e.Points = append(e.Points, event.Point{Name: p, Latency: time.Duration(i+1) * 1500 * time.Microsecond})
	}
	return e
}

// variants are unusual contents that an event of any type may have.
var variants = map[string]func(*event.Event){
	"IPv4": func(*event.Event) {},
	"IPv6": func(e *event.Event) {
		e.Src.Addr, e.Dst.Addr = netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("fe80::1")
		e.Dst.Kind, e.Dst.Node = event.EndNode, "node-1"
	},
	"mapped": func(e *event.Event) {
		e.Src.Addr, e.Dst.Addr = netip.MustParseAddr("::ffff:10.0.0.5"), netip.MustParseAddr("::ffff:10.0.0.9")
		e.Dst.Kind, e.Dst.Pod = event.EndPod, &owner.Pod{ID: "db", Namespace: "prod", Name: "db-0"}
	},
	"newline": func(e *event.Event) {
		e.Comm, e.Ifname, e.Disk, e.Reason = "a\nb", "\n", "sda\n", "\n\nx"
		e.Vector, e.Location, e.TCPState, e.Protocol = "v\n", "l\n=", "s\nt", "P\n"
	},
	"binary": func(e *event.Event) {
		e.Comm, e.Ifname, e.Disk, e.Reason = "\x00\xff\x1b[2J", "=\x01", "\xc3\x28", "a\x00\nb\xff"
		e.Vector, e.Location, e.TCPState, e.Protocol = "\t", "\x7f", "\u202e", "\u0085"
	},
	"empty": func(e *event.Event) {
		e.Pod, e.HostLabel, e.Node = nil, "", ""
		*e = event.Event{Type: e.Type, Time: e.Time, PID: -1, CPU: -1}
	},
	"suppressed": func(e *event.Event) { e.Suppressed = 1<<64 - 1; e.PID, e.CPU = 0, 0; e.Stack = e.Stack[:1] },
	"merged": func(e *event.Event) {
		e.Merged = &event.Merged{Count: 1240, First: e.Time.Add(-time.Minute), Last: e.Time.Add(time.Second), Window: time.Minute, Peers: 3}
	},
	"long": func(e *event.Event) { e.Reason = strings.Repeat("x", 60_000); e.Comm = strings.Repeat("y\n", 10_000) },
}

func closeSink(t testing.TB, s interface{ Close(context.Context) error }, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// pacer calls a Sink without overflowing its queue.
type pacer struct {
	s             event.Sink
	sent          uint64
	written, lost atomic.Uint64
	report        func(*event.Event, bool)
}

func newPacer(s event.Sink) *pacer {
	p := &pacer{s: s}
	p.report = func(_ *event.Event, ok bool) {
		if ok {
			p.written.Add(1)
		} else {
			p.lost.Add(1)
		}
	}
	return p
}

func (p *pacer) send(e *event.Event, room uint64) {
	for p.sent-p.written.Load()-p.lost.Load() >= room {
		time.Sleep(20 * time.Microsecond)
	}
	p.sent++
	p.s.Send(e, p.report)
}

// await waits until n events have been written.
func (p *pacer) await(t testing.TB, n uint64) {
	t.Helper()
	testkit.Await(t, func() error {
		if w := p.written.Load(); w != n {
			return fmt.Errorf("of %d events %d were written, want %d", p.sent, w, n)
		}
		return nil
	})
}

func (p *pacer) want(t testing.TB, written, lost uint64) {
	t.Helper()
	if w, l := p.written.Load(), p.lost.Load(); w != written || l != lost {
		t.Errorf("of %d events %d were written and %d lost, want %d and %d", p.sent, w, l, written, lost)
	}
}

func TestJournaldHasEveryFieldOfEveryType(t *testing.T) {
	d := newJournald(t)
	j := NewJournal(JournalOptions{Path: d.Socket})
	p := newPacer(j)
	want := map[string]map[string]string{}
	for _, typ := range catalog.Events() {
		for name, change := range variants {
			e := eventOf(typ)
			change(e)
			e.Time = e.Time.Add(time.Duration(len(want)) * time.Second)
			p.send(e, 100)
			m := journalFields(e)
			if want[m["KUBESKOOP_TIMESTAMP_US"]] != nil {
				t.Fatalf("%s %s: no time of its own", typ.Name, name)
			}
			want[m["KUBESKOOP_TIMESTAMP_US"]] = m
		}
	}
	closeSink(t, j, 10*time.Second)
	n := uint64(len(want))
	if n != uint64(19*len(variants)) {
		t.Errorf("%d events", n)
	}
	p.want(t, n, 0)
	got := d.entries(t)
	if uint64(len(got)) != n {
		t.Errorf("%d entries, want %d", len(got), n)
	}
	for _, m := range got {
		if diff := cmp.Diff(want[m["KUBESKOOP_TIMESTAMP_US"]], m); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m["KUBESKOOP_EVENT"], diff)
		}
	}
	for _, typ := range catalog.Events() {
		if w, l := j.Counts(typ); w != uint64(len(variants)) || l != 0 {
			t.Errorf("%s: %d written, %d lost", typ.Name, w, l)
		}
		// Users find entries by these fields.
		out := d.Journalctl("-o", "json", "-a", "KUBESKOOP_EVENT="+typ.Name, "MESSAGE_ID="+typ.MessageID, "K8S_POD=web-0",
			"KUBESKOOP_PROBE="+typ.Probe())
		lines := bytes.Split(bytes.TrimSpace(out), []byte{'\n'})
		if len(lines) != len(variants)-1 { // one variant has no pod
			t.Errorf("%s: journalctl finds %d of %d", typ.Name, len(lines), len(variants)-1)
		}
		for _, line := range lines {
			got := map[string]string{}
			var raw map[string]any
			if err := json.Unmarshal(line, &raw); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			for k, v := range raw {
				if strings.HasPrefix(k, "_") {
					continue
				}
				switch v := v.(type) {
				case string:
					got[k] = v
				case []any: // binary data
					var b []byte
					for _, n := range v {
						b = append(b, byte(n.(float64)))
					}
					got[k] = string(b)
				default:
					t.Errorf("%s: %s is %T", typ.Name, k, v)
				}
			}
			if diff := cmp.Diff(want[got["KUBESKOOP_TIMESTAMP_US"]], got); diff != "" {
				t.Errorf("%s as JSON (-want +got):\n%s", typ.Name, diff)
			}
		}
	}
}

// TestJournaldTakesWhatIsTooLargeForTheSocket sends events larger than a message: first
// with a shorter stack, then as a memfd.
func TestJournaldTakesWhatIsTooLargeForTheSocket(t *testing.T) {
	d := newJournald(t)
	j := NewJournal(JournalOptions{Path: d.Socket, SendBuffer: 16 << 10})
	p := newPacer(j)
	typ := catalog.EventByName("PacketLoss")
	stack, huge, whole := eventOf(typ), eventOf(typ), eventOf(typ)
	for i := range 4000 {
		stack.Stack = append(stack.Stack, fmt.Sprintf("function_%d+0x10", i))
	}
	huge.Reason = strings.Repeat("0123456789", 300_000)
	p.send(stack, 10)
	p.send(huge, 10)
	p.send(whole, 10)
	closeSink(t, j, 10*time.Second)
	p.want(t, 3, 0)
	got := d.entries(t)
	if len(got) != 3 {
		t.Fatalf("%d entries", len(got))
	}
	want := eventFields(stack)
	want["KUBESKOOP_STACK"] = strings.Join(stack.Stack[:shortStack], "\n")
	for i, w := range []map[string]string{want, eventFields(huge), eventFields(whole)} {
		if !cmp.Equal(w, got[i]) {
			t.Errorf("entry %d differs: the stack has %d lines, the reason %d bytes", i,
				strings.Count(got[i]["KUBESKOOP_STACK"], "\n")+1, len(got[i]["KUBESKOOP_REASON"]))
		}
	}
	if cap(j.enc.buf)+cap(j.enc.scratch) > maxKept {
		t.Errorf("the encoder keeps %d bytes", cap(j.enc.buf)+cap(j.enc.scratch))
	}
}

func TestJournaldRestarts(t *testing.T) {
	d := newJournald(t)
	var log testkit.Log
	j := NewJournal(JournalOptions{Path: d.Socket, Log: log.Logger()})
	p := newPacer(j)
	e := eventOf(catalog.EventByName("TCPRetrans"))
	for i := range uint64(3) {
		for range 100 {
			p.send(e, 1000)
		}
		p.await(t, 300*i+100)
		d.Sync() // a killed journald's unread messages are lost with its socket
		d.Kill()
		if err := JournalAvailable(d.Socket); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("without journald: %v", err)
		}
		for range 100 {
			p.send(e, 1000)
		}
		if i == 1 {
			if err := os.Remove(d.Socket); err != nil {
				t.Fatal(err)
			}
			if err := JournalAvailable(d.Socket); !errors.Is(err, unix.ENOENT) {
				t.Errorf("without a socket: %v", err)
			}
		}
		time.Sleep(300 * time.Millisecond)
		if w := p.written.Load(); w != 300*i+100 {
			t.Errorf("%d were written to nobody", w-(300*i+100))
		}
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			p.send(e, 1000)
		}
		p.await(t, 300*i+300)
	}
	closeSink(t, j, 10*time.Second)
	p.want(t, 900, 0)
	if n := d.count(); n != 900 {
		t.Errorf("%d entries, want 900", n)
	}
	if n := strings.Count(log.String(), "events are written to the journal again"); n != 3 {
		t.Errorf("logged %d times:\n%s", n, log.String())
	}
}

// TestJournaldFrozen floods a Hub while journald is frozen, and adds up the fate of each
// event.
func TestJournaldFrozen(t *testing.T) {
	need.Short(t)
	d := newJournald(t)
	j := NewJournal(JournalOptions{Path: d.Socket})
	h := event.NewHub(event.HubOptions{Node: "node-1", HostLabel: "hostNetwork", HostNetns: 1}, j)
	defer h.Close(context.Background())
	types := catalog.Events()
	var offered uint64
	flood := func(n int) time.Duration {
		var longest time.Duration
		for i := range n {
			e := eventOf(types[i%len(types)])
			start := time.Now()
			h.Offer(e)
			longest = max(longest, time.Since(start))
			if offered++; i%500 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		return longest
	}
	total := func() event.Counts { return countsOf(h, types) }

	flood(1000)
	await := func(what string, ok func(event.Counts) bool) {
		t.Helper()
		testkit.Await(t, func() error {
			if c := total(); !ok(c) {
				return fmt.Errorf("%s: %+v", what, c)
			}
			return nil
		})
	}
	await("1000 are not written", func(c event.Counts) bool { return c.Written == 1000 })

	d.Sync()
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	longest := flood(20_000)
	// The socket takes some events, and then blocks.
	before := total()
	testkit.Eventually(t, "the queue stands still", func() bool {
		last := before
		time.Sleep(100 * time.Millisecond)
		before = total()
		return before == last
	})
	cpu := testkit.OwnCPU()
	time.Sleep(2500 * time.Millisecond) // longer than writeWait, so it reconnects
	after := total()
	cpu = testkit.OwnCPU() - cpu
	t.Logf("frozen: %+v, %v of CPU time, an Offer took %v at most", after, cpu, longest)
	// A busy-waiting goroutine would use most of the time.
	if cpu > 100*time.Millisecond {
		t.Errorf("%v of CPU time for waiting 2.5 s", cpu)
	}
	if after != before {
		t.Errorf("from %+v to %+v", before, after)
	}
	if after.Offered != offered || after.Lost == 0 || after.Pending > defaultQueue+1 || after.Pending < defaultQueue {
		t.Errorf("got %+v", after)
	}

	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await("some are on the way", func(c event.Counts) bool { return c.Pending == 0 })
	flood(500)
	closeSink(t, h, 10*time.Second)
	c := total()
	t.Logf("after: %+v", c)
	if c.Offered != offered || c.Written+c.Suppressed+c.Lost != offered || c.Pending != 0 || c.Lost != after.Lost {
		t.Errorf("%d were offered, got %+v", offered, c)
	}
	if n := d.count(); n != c.Written {
		t.Errorf("%d entries, %d written", n, c.Written)
	}
}

// TestJournaldUnderAFlood uses the default limits, and finds the number of suppressed
// events in the journal.
func TestJournaldUnderAFlood(t *testing.T) {
	d := newJournald(t)
	h := event.NewHub(event.HubOptions{Node: "node-1", HostLabel: "hostNetwork", HostNetns: 1, Rate: event.DefaultEventRate,
		Burst: event.DefaultEventBurst, TotalRate: event.DefaultTotalRate}, NewJournal(JournalOptions{Path: d.Socket}))
	defer h.Close(context.Background())
	types := catalog.Events()
	const n = 20_000
	for i := range n {
		h.Offer(eventOf(types[i%len(types)]))
		if i%500 == 0 {
			// Keep the queue from overflowing on a busy machine: lost events have another
			// test.
			testkit.Await(t, func() error {
				if n := pending(h); n != 0 {
					return fmt.Errorf("%d events are on the way", n)
				}
				return nil
			})
		}
	}
	h.CountOnly(types[0], 1000, 0)
	time.Sleep(3 * time.Second) // enough for a token of each type, and of the total for all
	for _, typ := range types {
		h.Offer(eventOf(typ))
	}
	closeSink(t, h, 10*time.Second)

	entries, told := map[string]uint64{}, map[string]uint64{types[0].Name: 1000} // unattributed
	for _, m := range d.entries(t) {
		entries[m["KUBESKOOP_EVENT"]]++
		if s := m["KUBESKOOP_SUPPRESSED"]; s != "" {
			k, err := strconv.ParseUint(s, 10, 64)
			if err != nil || k == 0 || !strings.HasSuffix(m["MESSAGE"], "(+"+s+" suppressed)") {
				t.Errorf("KUBESKOOP_SUPPRESSED=%s, %s", s, m["MESSAGE"])
			}
			told[m["KUBESKOOP_EVENT"]] += k
		}
	}
	var total event.Counts
	for _, typ := range types {
		c := h.Counts(typ)
		if c.Written != entries[typ.Name] || c.Suppressed != told[typ.Name] || c.Offered != c.Written+c.Suppressed+c.Lost || c.Lost+c.Pending != 0 {
			t.Errorf("%s: %d entries tell of %d suppressed, counted %+v", typ.Name, entries[typ.Name], told[typ.Name], c)
		}
		total.Offered += c.Offered
		total.Written += c.Written
		total.Suppressed += c.Suppressed
	}
	t.Logf("%+v", total)
	if total.Offered != n+1000+uint64(len(types)) || total.Suppressed < n/2 {
		t.Errorf("got %+v", total)
	}
}

// pending is the number of events under way.
func pending(h *event.Hub) (n uint64) {
	for _, typ := range catalog.Events() {
		n += h.Counts(typ).Pending
	}
	return n
}

func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "socket")
}

func listenAt(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	_ = os.Remove(path)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestJournalFindsAReplacedSocket: the socket was replaced, and nobody reads the old
// one.
func TestJournalFindsAReplacedSocket(t *testing.T) {
	path := socketPath(t)
	old := listenAt(t, path)
	j := NewJournal(JournalOptions{Path: path})
	p := newPacer(j)
	e := eventOf(catalog.EventByName("PacketLoss"))
	const n = 1000
	for range n {
		p.send(e, defaultQueue)
	}
	testkit.Eventually(t, "something is written", func() bool { return p.written.Load() > 0 })
	fresh := listenAt(t, path)
	var in uint64 // the new socket
	testkit.Await(t, func() error {
		in += drain(t, fresh)
		if w := p.written.Load(); w < n {
			return fmt.Errorf("of %d events %d were written, %d of them to the new socket", n, w, in)
		}
		return nil
	})
	closeSink(t, j, 10*time.Second)
	p.want(t, n, 0)
	in += drain(t, fresh)
	if held := drain(t, old); held == 0 || in == 0 || held+in != n {
		t.Errorf("the old socket holds %d events and the new one got %d, of %d", held, in, n)
	}
}

// drain reads all messages of a socket, and counts the events.
func drain(t testing.TB, c *net.UnixConn) (n uint64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	for {
		var size int
		if cerr := raw.Control(func(fd uintptr) { size, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT) }); cerr != nil {
			t.Fatal(cerr)
		}
		if err == unix.EAGAIN {
			return n
		}
		list, derr := decodeExport(buf[:max(size, 0)])
		if err != nil || derr != nil || len(list) != 1 || list[0]["KUBESKOOP_EVENT"] != "PacketLoss" {
			t.Fatalf("%v, %v in %q", err, derr, buf[:max(size, 0)])
		}
		n++
	}
}

// TestJournalWithoutASocket: nothing is written, events beyond the queue are lost, and
// waiting costs almost no CPU. In the synctest bubble, time only passes while the Journal
// waits between attempts.
func TestJournalWithoutASocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := NewJournal(JournalOptions{Path: socketPath(t), Queue: 16})
		p := newPacer(j)
		types := catalog.Events()
		for i := range 100 * len(types) {
			p.send(eventOf(types[i%len(types)]), 1<<40)
		}
		cpu := testkit.OwnCPU()
		time.Sleep(time.Hour)
		// Attempts every maxRedial take some 20 ms in all, every minRedial 2 s.
		if cpu = testkit.OwnCPU() - cpu; cpu > 500*time.Millisecond {
			t.Errorf("%v of CPU time for an hour without journald", cpu)
		}
		if w, l := p.written.Load(), p.lost.Load(); w != 0 || l < uint64(100*len(types)-17) || l >= uint64(100*len(types)) {
			t.Errorf("%d written, %d lost", w, l)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := j.Close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "events were not written to the journal") {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("Close took %v", took)
		}
		p.want(t, 0, uint64(100*len(types)))
		for _, typ := range types {
			if w, l := j.Counts(typ); w != 0 || l != 100 {
				t.Errorf("%s: %d written, %d lost", typ.Name, w, l)
			}
		}
		p.send(eventOf(types[0]), 1<<40) // after Close
		p.want(t, 0, uint64(100*len(types)+1))
		if err := j.Close(context.Background()); err != nil {
			t.Errorf("a second Close: %v", err)
		}
	})
}

// TestJournalCloseInTheMiddle: Close interrupts a blocked write, and counts the event.
func TestJournalCloseInTheMiddle(t *testing.T) {
	path := socketPath(t)
	c := listenAt(t, path)
	j := NewJournal(JournalOptions{Path: path})
	p := newPacer(j)
	e := eventOf(catalog.EventByName("PacketLoss"))
	const n = 2000
	for range n {
		p.send(e, defaultQueue)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := j.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	select {
	case <-j.ended:
	default:
		t.Error("the goroutine still runs")
	}
	written := p.written.Load()
	p.want(t, written, n-written)
	if n := drain(t, c); n != written {
		t.Errorf("the socket holds %d events, %d were told as written", n, written)
	}
}

func TestJournalGivesUpWhatCannotBeSent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("x", 120)) // too long for a socket path
	if err := JournalAvailable(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("JournalAvailable: %v", err)
	}
	j := NewJournal(JournalOptions{Path: path})
	p := newPacer(j)
	p.send(eventOf(catalog.Events()[0]), 10)
	testkit.Eventually(t, "it is given up", func() bool { return p.lost.Load() == 1 })
	closeSink(t, j, time.Second)
}

func TestJournalAvailable(t *testing.T) {
	path := socketPath(t)
	if err := JournalAvailable(path); err == nil || !strings.Contains(err.Error(), "no journald here") {
		t.Errorf("no socket: %v", err)
	}
	c := listenAt(t, path)
	if err := JournalAvailable(path); err != nil {
		t.Errorf("socket: %v", err)
	}
	c.Close()
	if err := JournalAvailable(path); err == nil || !strings.Contains(err.Error(), "systemctl status systemd-journald") {
		t.Errorf("nobody listens: %v", err)
	}
	if os.Geteuid() == 0 {
		listenAt(t, path)
		if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		asNobody(t, func() {
			if err := JournalAvailable(path); err == nil || !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("as nobody: %v", err)
			}
		})
	}
}

func TestJournalKeepsNoDescriptor(t *testing.T) {
	path := socketPath(t)
	c := listenAt(t, path)
	run := func() {
		j := NewJournal(JournalOptions{Path: path, SendBuffer: 4096})
		big := eventOf(catalog.EventByName("PacketLoss"))
		big.Reason = strings.Repeat("x", 100_000)
		go j.Send(big, nil)
		buf, oob := make([]byte, 1<<16), make([]byte, 1024)
		_, n, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			t.Fatalf("%d control messages, %v", len(msgs), err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%d descriptors, %v", len(fds), err)
		}
		seals, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GET_SEALS, 0)
		if want := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL; err != nil || seals&want != want {
			t.Errorf("seals %#x, %v", seals, err)
		}
		unix.Close(fds[0])
		closeSink(t, j, time.Second)
	}
	run()
	before := testkit.OpenFiles(t)
	for range 5 {
		run()
	}
	if after := testkit.OpenFiles(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestFieldNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"MESSAGE": true, "K8S_POD": true, "A": true, strings.Repeat("A", 64): true, "A_": true,
		"": false, "_PID": false, "8A": false, "a": false, "Aa": false, "A-B": false, "A B": false, "A\n": false, "A=": false, "Ä": false,
		strings.Repeat("A", 65): false,
	} {
		if validField(name) != ok {
			t.Errorf("%q: %v", name, !ok)
		}
	}
	var c journalEncoder
	c.field("lower", []byte("x"))
	c.field("A=B\nC", []byte("x"))
	if len(c.buf) != 0 {
		t.Errorf("encoded: %q", c.buf)
	}
	typ := catalog.EventByName("RXKERNEL_SLOW")
	e := eventOf(typ)
	e.Points = []event.Point{{Name: strings.Repeat("x", 100), Latency: 1}, {Name: "a=b\nC", Latency: 2}}
	c.init()
	c.encode(e, false)
	list, err := decodeExport(c.buf)
	if err != nil || len(list) != 1 || list[0]["KUBESKOOP_LATENCY_A_B_C_NS"] != "2" {
		t.Errorf("%v, %v", list, err)
	}
}

func TestFirstLines(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{{"", 2, ""}, {"a", 2, "a"}, {"a\nb", 2, "a\nb"}, {"a\nb\n", 2, "a\nb"}, {"a\nb\nc", 2, "a\nb"}, {"\n\n\n", 2, "\n"}} {
		if got := firstLines([]byte(c.in), c.n); string(got) != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

// FuzzJournalEncode decodes the encoded entry with another decoder.
func FuzzJournalEncode(f *testing.F) {
	for _, s := range []string{"", "nginx", "a\nb", "\n", "a=b", "\x00\xff\n", "KUBESKOOP_COMM=x\nMESSAGE=y", "x\n\x05\x00\x00\x00\x00\x00\x00\x00hello\n"} {
		f.Add(s, s, s, uint8(len(s)), false)
	}
	var c journalEncoder
	c.init()
	f.Fuzz(func(t *testing.T, a, b, point string, n uint8, short bool) {
		types := catalog.Events()
		e := eventOf(types[int(n)%len(types)])
		e.Comm, e.Reason, e.Location, e.Ifname, e.TCPState, e.Protocol = a, b, a, b, a, b
		e.Disk, e.Vector, e.Stack, e.Node = b, a, append(strings.Split(b, "\x00"), a), b
		e.Pod = &owner.Pod{Namespace: a, Name: b}
		e.Points = []event.Point{{Name: point, Latency: time.Duration(n)}}
		c.encode(e, short)
		list, err := decodeExport(c.buf)
		if err != nil || len(list) != 1 {
			t.Fatalf("%v: %q", err, c.buf)
		}
		want := journalFields(e)
		for name := range want {
			if !validField(name) {
				delete(want, name)
			}
		}
		if s, ok := want["KUBESKOOP_STACK"]; ok && short {
			lines := strings.Split(s, "\n")
			want["KUBESKOOP_STACK"] = strings.Join(lines[:min(len(lines), shortStack)], "\n")
		}
		if d := cmp.Diff(want, list[0]); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

func BenchmarkJournalEncode(b *testing.B) {
	for _, name := range []string{"PacketLoss", "TCPRetrans", "BIOLAT_10MS"} {
		b.Run(name, func(b *testing.B) {
			var c journalEncoder
			c.init()
			e := eventOf(catalog.EventByName(name))
			b.ReportAllocs()
			for b.Loop() {
				c.encode(e, false)
			}
			b.ReportMetric(float64(len(c.buf)), "wire-bytes")
		})
	}
}

// BenchmarkJournalSend measures from Send to the reader's socket, with a reader that
// discards everything and with a real journald.
func BenchmarkJournalSend(b *testing.B) {
	run := func(b *testing.B, path string) {
		j := NewJournal(JournalOptions{Path: path})
		p := newPacer(j)
		e := eventOf(catalog.EventByName("PacketLoss"))
		cpu := testkit.OwnCPU()
		b.ReportAllocs()
		for b.Loop() {
			p.send(e, defaultQueue)
		}
		closeSink(b, j, time.Minute)
		p.want(b, p.sent, 0)
		b.ReportMetric(float64(testkit.OwnCPU()-cpu)/float64(p.sent), "cpu-ns/op")
	}
	b.Run("reader", func(b *testing.B) {
		path := socketPath(b)
		c := listenAt(b, path)
		go func() {
			buf := make([]byte, 1<<16)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
		run(b, path)
	})
	b.Run("journald", func(b *testing.B) {
		d := newJournald(b)
		run(b, d.Socket)
	})
}

// Whatever names events contain, and whatever entries others write under nodeskoop's
// identifier, journalctl prints nothing that affects a terminal, and suggests no command
// with a name in it.
func TestJournalIsSafeToRead(t *testing.T) {
	d := newJournald(t)
	j := NewJournal(JournalOptions{Path: d.Socket})
	p := newPacer(j)
	const command = "$(touch pwned)"
	for _, typ := range catalog.Events() {
		for _, name := range append([]string{command, "`id`", "-rf"}, nasty...) {
			e := eventOf(typ)
			e.Comm, e.Ifname, e.Disk, e.Reason, e.Location, e.TCPState, e.Vector = name, name, name, name, name, name, name
			e.Pod = &owner.Pod{Namespace: name, Name: name}
			e.Src.Pod, e.Node = e.Pod, name
			p.send(e, 100)
		}
	}
	closeSink(t, j, 10*time.Second)
	p.want(t, p.sent, 0)

	// Anyone may write any field to the socket.
	c, err := net.Dial("unixgram", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, typ := range catalog.Events() {
		entry := "MESSAGE=it is a trap\nMESSAGE_ID=" + typ.MessageID + "\nSYSLOG_IDENTIFIER=nodeskoop\n"
		for _, name := range []string{"KUBESKOOP_DADDR", "KUBESKOOP_SADDR", "KUBESKOOP_IFNAME", "KUBESKOOP_DISK", "KUBESKOOP_PID", "KUBESKOOP_CPU", "KUBESKOOP_COMM", "KUBESKOOP_NETNS"} {
			entry += name + "=\x1b[31m" + command + "\n"
		}
		if _, err := c.Write([]byte(entry)); err != nil {
			t.Fatal(err)
		}
	}

	// Install the catalog as a package does, in journald's mount namespace.
	root := t.TempDir()
	for _, sub := range []string{"usr/lib/systemd/catalog", "var/lib/systemd/catalog"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var shipped bytes.Buffer
	if err := systemd.WriteCatalog(&shipped); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/catalog/nodeskoop.catalog"), shipped.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("journalctl", "--root="+root, "--update-catalog").CombinedOutput(); err != nil {
		t.Fatalf("journalctl --update-catalog: %v\n%s", err, out)
	}
	d.Sync()
	read := func(args ...string) string {
		t.Helper()
		script := `mount --bind "$0/var/lib/systemd/catalog" /var/lib/systemd/catalog && exec env LC_ALL=C journalctl -q --no-pager "$@"`
		out, err := d.Enter(append([]string{"unshare", "-m", "sh", "-c", script, root, "-D", "/run/log/journal"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("journalctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, args := range [][]string{{"-x", "-t", "nodeskoop"}, {"-o", "cat", "-t", "nodeskoop"}, {"-o", "short-full", "-t", "nodeskoop"}} {
		out := read(args...)
		for line := range strings.Lines(out) {
			if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) }) {
				t.Fatalf("journalctl %v prints %q", args, line)
			}
		}
	}
	explained := read("-x", "-t", "nodeskoop")
	if !strings.Contains(explained, "tc -s qdisc show") || strings.Count(explained, "it is a trap") != len(catalog.Events()) {
		t.Errorf("the catalog was not used, or an entry is missing:\n%.2000s", explained)
	}
	for line := range strings.Lines(explained) {
		if strings.HasPrefix(line, "-- ") && strings.Contains(line, "pwned") {
			t.Errorf("a command holds a name: %s", line)
		}
	}
	// These output modes print fields as stored.
	for _, args := range [][]string{{"-o", "cat", "--output-fields=KUBESKOOP_COMM,KUBESKOOP_IFNAME,K8S_POD", "KUBESKOOP_PROTOCOL=TCP"}, {"-o", "cat", "--output-fields=KUBESKOOP_STACK,KUBESKOOP_LOCATION", "KUBESKOOP_PROTOCOL=TCP"}} {
		for line := range strings.Lines(read(args...)) {
			if line = strings.TrimSuffix(line, "\n"); quote.Safe(line) != line {
				t.Fatalf("journalctl %v prints %q", args, line)
			}
		}
	}
}
