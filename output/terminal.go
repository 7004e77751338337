package output

import (
	"context"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/clipperhouse/displaywidth"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/quote"
)

// Color says whether a Terminal colours its lines.
type Color uint8

// The choices of colour.
const (
	// ColorAuto colours where the writer is a terminal, unless $NO_COLOR is
	// set or $TERM is dumb.
	ColorAuto Color = iota
	ColorAlways
	ColorNever
)

// TerminalOptions say how a Terminal writes.
type TerminalOptions struct {
	// JSON writes one object a line, with the names of the journal's fields,
	// instead of what a person reads.
	JSON  bool
	Color Color
	// Queue is how many events wait for a slow reader; 0 is 4096.
	Queue int
	// Location is the time zone of the lines; nil is the local one.
	Location *time.Location
}

// Terminal writes events as lines: for a person in front of it, or as JSON
// for a program, and for standard error where there is no journald. It is an
// event.Sink. A reader that stands still holds up nothing; what the queue
// cannot hold meanwhile is lost and counted.
type Terminal struct {
	eventQueue
	w        io.Writer
	json     bool
	color    bool
	location *time.Location

	buf, scratch []byte
	ends         []int // of the lines in buf
	podWidth     int
	tupleWidth   int

	failMu sync.Mutex
	failed chan struct{} // closed at the first write that fails
	err    error         // why
}

var _ event.Sink = (*Terminal)(nil)

// NewTerminal starts a Terminal that writes to w.
func NewTerminal(w io.Writer, opt TerminalOptions) *Terminal {
	t := &Terminal{w: w, json: opt.JSON, location: opt.Location, podWidth: 20, tupleWidth: 44, failed: make(chan struct{})}
	switch opt.Color {
	case ColorAlways:
		t.color = true
	case ColorAuto:
		t.color = UseColor(w)
	}
	if t.location == nil {
		t.location = time.Local
	}
	if opt.Queue <= 0 {
		opt.Queue = defaultQueue
	}
	t.eventQueue.init(opt.Queue)
	go t.run()
	return t
}

// NewStderrJSON starts a Terminal that writes events as JSON lines to standard
// error: where they go without journald.
func NewStderrJSON() *Terminal { return NewTerminal(os.Stderr, TerminalOptions{JSON: true}) }

// UseColor reports whether what is written to w may be coloured: it is a
// terminal that has colours, and $NO_COLOR is not set.
func UseColor(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && IsTerminal(w)
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		is = err == nil
	})
	return err == nil && is
}

// Width is the number of columns that w has. It is 0 where w is no terminal, or
// does not tell.
func Width(w io.Writer) int {
	f, ok := w.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	width := 0
	err = raw.Control(func(fd uintptr) {
		if size, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil {
			width = int(size.Col)
		}
	})
	if err != nil {
		return 0
	}
	return width
}

// Close writes what is queued until ctx ends; the rest is lost. The writer is
// not closed.
func (t *Terminal) Close(ctx context.Context) error {
	return t.close(ctx, "the terminal", func() {
		// A pipe can be woken, a terminal that was stopped cannot.
		if w, ok := t.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
			_ = w.SetWriteDeadline(time.Unix(1, 0))
		}
	})
}

// Failed is closed when a write fails for the first time: what was to be
// written then is lost. Later events are tried all the same.
func (t *Terminal) Failed() <-chan struct{} { return t.failed }

// Err is why a write failed for the first time, nil if none did.
func (t *Terminal) Err() error {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	return t.err
}

// fails takes down that a write failed. One that Close broke off did not.
func (t *Terminal) fails(err error) {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	if t.err == nil && !t.killed() {
		t.err = err
		close(t.failed)
	}
}

// maxBatch is how much is written at once, as long as events are waiting.
const maxBatch = 32 << 10

func (t *Terminal) run() {
	defer close(t.ended)
	for e := t.take(); e != nil; e = t.take() {
		t.buf, t.ends = t.buf[:0], t.ends[:0]
		for ; e != nil; e = t.more() {
			start := len(t.buf)
			if err := bounded.Guard(func() { t.line(e) }); err != nil {
				// It has happened all the same, and is counted as written.
				t.buf = append(t.buf[:start], "an event that cannot be shown: "...)
				t.buf = append(append(t.buf, e.Type.Name...), '\n')
			}
			t.ends = append(t.ends, len(t.buf))
			if len(t.buf) >= maxBatch {
				break
			}
		}
		n, err := t.w.Write(t.buf)
		whole := len(t.ends)
		if err != nil {
			t.fails(err)
			for whole > 0 && t.ends[whole-1] > n {
				whole--
			}
		}
		t.finish(whole)
		if t.killed() {
			return
		}
		if cap(t.buf)+cap(t.scratch) > maxKept {
			t.buf, t.scratch = nil, nil
		}
	}
}

// The sequences of ECMA-48 in use.
const (
	sgrReset  = "\x1b[0m"
	sgrDim    = "\x1b[2m"
	sgrNotice = "\x1b[36m"   // cyan
	sgrWarn   = "\x1b[1;33m" // bold yellow
)

// The widest that columns become. They grow with what they have to hold, and
// what is wider still pushes its own line only.
const (
	maxPodWidth   = 48
	maxTupleWidth = 96
)

// eventWidth is that of the longest name of an event.
var eventWidth = func() (n int) {
	for _, t := range catalog.Events() {
		n = max(n, len(t.Name))
	}
	return n
}()

// line appends one event to t.buf: time, event, pod, connection, latency and
// what else there is.
func (t *Terminal) line(e *event.Event) {
	if t.json {
		t.buf, t.scratch = e.AppendJSON(t.buf, t.scratch)
		t.buf = append(t.buf, '\n')
		return
	}
	start := len(t.buf)
	paint := func(seq string) {
		if t.color {
			t.buf = append(t.buf, seq...)
		}
	}
	paint(sgrDim)
	t.buf = e.LastSeen().In(t.location).AppendFormat(t.buf, "15:04:05.000")
	paint(sgrReset)
	t.buf = append(t.buf, "  "...)

	if e.Priority() <= catalog.PriWarning {
		paint(sgrWarn)
	} else {
		paint(sgrNotice)
	}
	t.cell([]byte(e.Type.Name), eventWidth)
	paint(sgrReset)

	namespace, name := e.PodLabels()
	t.scratch = quote.AppendSafe(t.scratch[:0], namespace)
	switch {
	case e.Pod != nil:
		t.scratch = append(t.scratch, '/')
		t.scratch = quote.AppendSafe(t.scratch, name)
	case namespace == "" && e.Netns != 0:
		t.scratch = append(t.scratch, "netns "...)
		t.scratch = strconv.AppendUint(t.scratch, e.Netns, 10)
	case namespace == "" && !e.OfHost():
		t.scratch = append(t.scratch, "several netns"...)
	case namespace == "":
		t.scratch = append(t.scratch, "host"...)
	}
	t.podWidth = t.cell(t.scratch, grow(t.podWidth, t.scratch, maxPodWidth))

	t.scratch = t.scratch[:0]
	for _, g := range e.Type.Fields {
		if g == catalog.FieldTuple {
			t.scratch = e.AppendTuple(t.scratch)
		}
	}
	t.tupleWidth = t.cell(t.scratch, grow(t.tupleWidth, t.scratch, maxTupleWidth))

	before := len(t.buf)
	for _, g := range e.Type.Fields {
		if g == catalog.FieldLatency {
			if e.Merged != nil {
				t.buf = append(t.buf, "up to "...)
			}
			t.buf = event.AppendLatency(t.buf, e.Latency)
		}
	}
	t.scratch = e.AppendDetails(t.scratch[:0])
	if len(t.buf) > before && len(t.scratch) > 0 {
		t.buf = append(t.buf, "  "...)
	}
	t.buf = append(t.buf, t.scratch...)
	if e.Merged != nil {
		if len(t.buf) > before {
			t.buf = append(t.buf, ", "...)
		}
		t.buf = e.AppendTimes(t.buf)
	}
	if e.Suppressed > 0 {
		paint(sgrDim)
		t.buf = append(t.buf, " (+"...)
		t.buf = strconv.AppendUint(t.buf, e.Suppressed, 10)
		t.buf = append(t.buf, " suppressed)"...)
		paint(sgrReset)
	}
	for n := len(t.buf); n > start && t.buf[n-1] == ' '; n-- {
		t.buf = t.buf[:n-1]
	}
	t.buf = append(t.buf, '\n')
}

// grow returns the width of a column that is to hold text as well.
func grow(width int, text []byte, limit int) int {
	return max(width, min(displaywidth.Bytes(text), limit))
}

// cell appends text, filled up with spaces to width and two more, and returns
// width. Two spaces follow a text that is wider, too.
func (t *Terminal) cell(text []byte, width int) int {
	t.buf = append(t.buf, text...)
	for n := min(displaywidth.Bytes(text), width); n < width+2; n++ {
		t.buf = append(t.buf, ' ')
	}
	return width
}
