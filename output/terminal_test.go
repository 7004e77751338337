package output

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/clipperhouse/displaywidth"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

// printed returns a Terminal's output for events.
func printed(t *testing.T, opt TerminalOptions, events ...*event.Event) string {
	t.Helper()
	var b testkit.Log
	opt.Location = time.UTC
	s := NewTerminal(&b, opt)
	p := newPacer(s)
	for _, e := range events {
		p.send(e, 1) // one by one, in order
	}
	closeSink(t, s, 10*time.Second)
	p.want(t, uint64(len(events)), 0)
	return b.String()
}

func TestTerminalLines(t *testing.T) {
	var events []*event.Event
	add := func(typ string, change func(*event.Event)) {
		e := eventOf(catalog.EventByName(typ))
		change(e)
		events = append(events, e)
	}
	add("PacketLoss", func(*event.Event) {})
	add("TCPRetrans", func(e *event.Event) { e.Time = e.Time.Add(time.Second); e.Suppressed = 37 })
	add("BIOLAT_10MS", func(e *event.Event) { e.Pod = nil })
	add("RXKERNEL_SLOW", func(e *event.Event) {
		e.Pod = &owner.Pod{Namespace: "kube-system", Name: "coredns-7d764666f9-x2b7k"}
	})
	add("SOCKETLAT_READSLOW", func(e *event.Event) {
		e.Src.Addr, e.Dst.Addr = netip.MustParseAddr("2001:db8:aaaa:bbbb:cccc:dddd:eeee:1"), netip.MustParseAddr("fe80::1")
	})
	add("NETSOFTIRQ_EXCUTE_100MS", func(e *event.Event) { e.Pod, e.HostLabel, e.Netns, e.PID = nil, "", 0, -1 })
	add("TCPRESET_RECEIVE", func(e *event.Event) { e.Pod, e.HostLabel, e.Src.Pod, e.TCPState = nil, "", nil, "" })
	add("VIRTCMDEXCUTE", func(e *event.Event) { e.Comm = "not its field" })
	want := `
22:13:20.123  default/web-0: packet dropped: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, NETFILTER_DROP at nft_do_chain+0x12a  PacketLoss
22:13:21.123  default/web-0: TCP segment retransmitted: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, state ESTABLISHED (+37 suppressed)  TCPRetrans
22:13:20.123  host: read of 4 KiB took 123ms (queue 1.5ms, device 3.0ms): process nginx[812], disk sda  BIOLAT_10MS
22:13:20.123  kube-system/coredns-7d764666f9-x2b7k: kernel took 123ms to receive a packet from default/web-0: 10.0.0.5:443 -> 10.0.0.9:51234 TCP, ip 1.5ms, local_in 3.0ms  RXKERNEL_SLOW
22:13:20.123  default/web-0: received data waited 123ms to be read: [2001:db8:aaaa:bbbb:cccc:dddd:eeee:1]:443 -> [fe80::1]:51234 TCP, process nginx[812]  SOCKETLAT_READSLOW
22:13:20.123  host: network softirq ran for 123ms: CPU 3, NET_RX  NETSOFTIRQ_EXCUTE_100MS
22:13:20.123  host: TCP reset received: 10.0.0.5:443 -> 10.0.0.9:51234 TCP  TCPRESET_RECEIVE
22:13:20.123  default/web-0: virtio-net command took 123ms: CPU 3, process 812  VIRTCMDEXCUTE
`
	if d := cmp.Diff(strings.Split(want[1:], "\n"), strings.Split(printed(t, TerminalOptions{}, events...), "\n")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// In a window every event takes one line, measured in cells: first the type's name is
// dropped, then the end of the text. Without a window nothing is cut.
func TestTerminalLinesFitTheWindow(t *testing.T) {
	var events []*event.Event
	for _, typ := range catalog.Events() {
		for _, pod := range []*owner.Pod{
			{Namespace: "a", Name: "b"},
			{Namespace: "shop", Name: "checkout-7d9f8b6c54-x2x9z"},
			{Namespace: "電子商取引", Name: "注文処理-🛒-7d9f8b6c54-x2x9z"},
			{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("p", 253)},
		} {
			e := eventOf(typ)
			e.Pod = pod
			events = append(events, e)
		}
	}
	lines := func(width int, color Color) []string {
		opt := TerminalOptions{Color: color, Width: func() int { return width }}
		return strings.Split(strings.TrimSuffix(printed(t, opt, events...), "\n"), "\n")
	}
	whole := lines(0, ColorNever)
	if strings.Contains(strings.Join(whole, ""), "…") {
		t.Error("lines are cut without a window")
	}
	for _, width := range []int{1, 10, 39, 40, 80, 120, 1000} {
		plain := lines(width, ColorNever)
		for i, line := range plain {
			if n := displaywidth.String(line); n > width {
				t.Errorf("%d columns of %d: %s", n, width, line)
			}
			text := strings.TrimSuffix(whole[i], "  "+events[i].Type.Name)
			if brief, ok := events[i].AppendBrief(events[i].AppendOwner(nil)); ok && displaywidth.String(text) > max(width, narrow) {
				owner := len(events[i].AppendOwner(nil))
				text = text[:len("22:13:20.123  ")] + string(brief[:owner]) + ": " + string(brief[owner:])
			}
			if width < narrow {
				text = text[len("22:13:20.123  "):]
			}
			if kept, cut := strings.CutSuffix(line, "…"); cut && !strings.HasPrefix(text, kept) || !cut && line != whole[i] && line != text {
				t.Errorf("%d columns: %s\nof %s", width, line, whole[i])
			}
		}
		for i, line := range lines(width, ColorAlways) {
			if s := sgr.ReplaceAllString(line, ""); s != plain[i] {
				t.Errorf("%d columns: coloured %q, plain %q", width, line, plain[i])
			}
		}
	}
}

// TestNarrowLineKeepsTheReason: if both pods are named, a line that is too narrow for
// the connection still has the reason. If the peer is an address, the address stays.
func TestNarrowLineKeepsTheReason(t *testing.T) {
	i := slices.IndexFunc(catalog.Events(), func(e *catalog.EventType) bool { return e.Name == "PacketLoss" })
	e := eventOf(catalog.Events()[i])
	e.Pod, e.Reason = &owner.Pod{Namespace: "shop", Name: "db-0"}, "NETFILTER_DROP"
	opt := TerminalOptions{Color: ColorNever, Width: func() int { return 80 }}
	if got := printed(t, opt, e); !strings.Contains(got, "from default/web-0 dropped: NETFILTER_DROP") {
		t.Error(got)
	}
	e.Src.Pod, e.Dst.Pod = nil, e.Pod
	if got := printed(t, opt, e); !strings.Contains(got, "10.0.0.5:443 -> ") {
		t.Error(got)
	}
}

// After a resize the new width is used.
func TestWidthIsTheWindows(t *testing.T) {
	master, tty := openPTY(t)
	for _, n := range []uint16{80, 133} {
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: n}); err != nil {
			t.Fatal(err)
		}
		if got := Width(tty); got != int(n) {
			t.Errorf("%d, want %d", got, n)
		}
	}
	if got := Width(io.Discard); got != 0 {
		t.Errorf("what is no file has %d columns", got)
	}
}

var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestTerminalColour(t *testing.T) {
	var events []*event.Event
	for _, typ := range catalog.Events() {
		e := eventOf(typ)
		e.Suppressed = 1
		events = append(events, e)
	}
	plain := printed(t, TerminalOptions{Color: ColorNever}, events...)
	colour := printed(t, TerminalOptions{Color: ColorAlways}, events...)
	if strings.Contains(plain, "\x1b") || plain == colour {
		t.Error("the colour is not as it was asked for")
	}
	if s := sgr.ReplaceAllString(colour, ""); s != plain {
		t.Errorf("the text differs (-plain +coloured):\n%s", cmp.Diff(plain, s))
	}
	for i, line := range strings.Split(strings.TrimSpace(colour), "\n") {
		if last := sgr.FindAllString(line, -1); last[len(last)-1] != sgrReset {
			t.Errorf("line %d ends in colour: %q", i, line)
		}
	}
}

func TestTerminalJSON(t *testing.T) {
	var events []*event.Event
	for _, typ := range catalog.Events() {
		for _, change := range variants {
			e := eventOf(typ)
			change(e)
			events = append(events, e)
		}
	}
	lines := strings.Split(strings.TrimSuffix(printed(t, TerminalOptions{JSON: true, Color: ColorAlways}, events...), "\n"), "\n")
	if len(lines) != len(events) {
		t.Fatalf("%d lines of %d events", len(lines), len(events))
	}
	for i, line := range lines {
		var got map[string]string
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		want := eventFields(events[i])
		for k, v := range want {
			want[k] = string([]rune(v)) // invalid UTF-8 is replaced
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

func TestTerminalIsSafe(t *testing.T) {
	nasty := "\x1b]0;pwned\x07\n\r\u202e\x9b2J\xff"
	for _, typ := range catalog.Events() {
		e := eventOf(typ)
		e.Comm, e.Reason, e.Location, e.Ifname, e.TCPState, e.Protocol = nasty, nasty, nasty, nasty, nasty, nasty
		e.Disk, e.Vector = nasty, nasty
		e.Pod = &owner.Pod{Namespace: nasty, Name: nasty}
		e.Src.Pod = &owner.Pod{Namespace: nasty, Name: nasty}
		for _, opt := range []TerminalOptions{{}, {JSON: true}} {
			line := strings.TrimSuffix(printed(t, opt, e), "\n")
			for _, r := range line {
				if unicode.IsControl(r) || r == '\u202e' && !opt.JSON {
					t.Fatalf("%s: %U in %q", typ.Name, r, line)
				}
			}
		}
	}
}

// openPTY returns both ends of a pseudo-terminal.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this kernel: no pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestColourOfATerminal(t *testing.T) {
	_, tty := openPTY(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, c := range map[string]struct {
		w             io.Writer
		noColor, term string
		want          bool
	}{
		"terminal":    {w: tty, term: "xterm", want: true},
		"NO_COLOR":    {w: tty, term: "xterm", noColor: "1"},
		"dumb":        {w: tty, term: "dumb"},
		"file":        {w: file, term: "xterm"},
		"pipe":        {w: w, term: "xterm"},
		"not a file":  {w: io.Discard, term: "xterm"},
		"closed file": {w: os.NewFile(1<<20, "closed"), term: "xterm"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NO_COLOR", c.noColor)
			t.Setenv("TERM", c.term)
			s := NewTerminal(c.w, TerminalOptions{})
			if s.color != c.want {
				t.Errorf("colour: %v", s.color)
			}
			closeSink(t, s, time.Second)
		})
	}
}

// TestTerminalWithASlowReader: nobody reads the pipe, and then it is closed.
func TestTerminalWithASlowReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := NewTerminal(w, TerminalOptions{JSON: true, Queue: 100})
	p := newPacer(s)
	e := eventOf(catalog.EventByName("PacketLoss"))
	const n = 10_000
	for range n {
		p.send(e, 1<<40)
	}
	if p.lost.Load() == 0 {
		t.Error("the queue has no end")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	whole := uint64(strings.Count(string(b), "\n"))
	p.want(t, whole, n-whole)

	r, w, err = os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	gone := NewTerminal(w, TerminalOptions{})
	p = newPacer(gone)
	for range 100 {
		p.send(e, 10)
	}
	closeSink(t, gone, time.Second)
	p.want(t, 0, 100)
}

// stoppedWriter blocks forever, like a terminal stopped with Ctrl-S.
type stoppedWriter struct {
	entered chan struct{}
	release chan struct{}
}

func (w *stoppedWriter) Write(b []byte) (int, error) {
	w.entered <- struct{}{}
	<-w.release
	return len(b), nil
}

func TestTerminalThatIsStopped(t *testing.T) {
	w := &stoppedWriter{make(chan struct{}, 100), make(chan struct{})}
	s := NewTerminal(w, TerminalOptions{})
	p := newPacer(s)
	e := eventOf(catalog.EventByName("PacketLoss"))
	p.send(e, 10)
	<-w.entered
	for range 99 {
		p.send(e, 1000)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err == nil || !strings.Contains(err.Error(), "100 events were not written to the terminal") {
		t.Errorf("Close: %v", err)
	}
	p.want(t, 0, 100)
	close(w.release) // results after that are not counted again
	<-s.ended
	p.want(t, 0, 100)
}

func TestTerminalCountsWholeLines(t *testing.T) {
	e := eventOf(catalog.EventByName("PacketLoss"))
	line := len(printed(t, TerminalOptions{}, e))
	for room, want := range map[int]uint64{0: 0, line - 1: 0, line: 1, 3*line + line/2: 3, 100 * line: 10} {
		w := &failingWriter{room: room}
		s := NewTerminal(w, TerminalOptions{})
		p := newPacer(s)
		for range 10 {
			p.send(e, 1<<40)
		}
		closeSink(t, s, time.Second)
		p.want(t, want, 10-want)
	}
}

func BenchmarkTerminalLine(b *testing.B) {
	for _, json := range []bool{false, true} {
		b.Run(fmt.Sprintf("json=%v", json), func(b *testing.B) {
			s := &Terminal{json: json, location: time.UTC}
			e := eventOf(catalog.EventByName("PacketLoss"))
			b.ReportAllocs()
			for b.Loop() {
				s.buf = s.buf[:0]
				s.line(e)
			}
		})
	}
}

// With dates, each line begins with its date, if there is room.
func TestTerminalDates(t *testing.T) {
	e := eventOf(catalog.EventByName("PacketLoss"))
	for width, want := range map[int]string{
		0:  "2023-11-14 22:13:20.123  default/web-0: packet dropped: ",
		80: "2023-11-14 22:13:20.123  default/web-0: packet dropped: ",
		51: "2023-11-14 22:13:20.123  default/web-0: packet",
		50: "default/web-0: packet dropped: ",
	} {
		if got := printed(t, TerminalOptions{Dates: true, Width: func() int { return width }}, e); !strings.HasPrefix(got, want) {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
	}
}
