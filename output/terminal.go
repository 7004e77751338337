package output

import (
	"context"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/clipperhouse/displaywidth"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/bounded"
)

// Color says whether a Terminal uses colours.
type Color uint8

// The choices of colour.
const (
	// ColorAuto uses colours if the writer is a terminal, unless $NO_COLOR is set or $TERM
	// is dumb.
	ColorAuto Color = iota
	ColorAlways
	ColorNever
)

// TerminalOptions are the settings of a Terminal.
type TerminalOptions struct {
	// JSON writes one object per line, with the journal's field names, instead of text.
	JSON  bool
	Color Color
	// Queue is how many events can wait for a slow reader; 0 is 4096.
	Queue int
	// Location is the time zone of the lines; nil is the local one.
	Location *time.Location
	// Dates puts the date before the time of text lines.
	Dates bool
	// Width returns the current number of columns for text lines; 0 is unlimited. If Width
	// is nil, the writer is asked: a terminal has its window's width.
	Width func() int
}

// Terminal writes events as lines of text, or as JSON, also to standard error if there is
// no journald. It is an event.Sink. A reader that hangs delays nobody; events that do not
// fit into the queue are lost and counted.
type Terminal struct {
	eventQueue
	w        io.Writer
	json     bool
	color    bool
	location *time.Location
	clock    string // as time.Format has it

	width func() int

	buf, scratch []byte
	ends         []int // end offsets of the lines in buf
	columns      int   // width of the window when buf was started

	failMu sync.Mutex
	failed chan struct{} // closed at the first failed write
	err    error         // error of the first failed write
}

var _ event.Sink = (*Terminal)(nil)

// NewTerminal starts a Terminal that writes to w.
func NewTerminal(w io.Writer, opt TerminalOptions) *Terminal {
	t := &Terminal{w: w, json: opt.JSON, location: opt.Location, width: opt.Width, failed: make(chan struct{})}
	switch opt.Color {
	case ColorAlways:
		t.color = true
	case ColorAuto:
		t.color = UseColor(w)
	}
	if t.location == nil {
		t.location = time.Local
	}
	if t.clock = timeOfDay; opt.Dates {
		t.clock = "2006-01-02 " + t.clock
	}
	if t.width == nil {
		t.width = func() int { return Width(w) }
	}
	if opt.Queue <= 0 {
		opt.Queue = defaultQueue
	}
	t.eventQueue.init(opt.Queue)
	go t.run()
	return t
}

// NewStderrJSON starts a Terminal that writes events as JSON lines to standard error, for
// systems without journald.
func NewStderrJSON() *Terminal { return NewTerminal(os.Stderr, TerminalOptions{JSON: true}) }

// UseColor reports whether output to w may use colours: w is a terminal with colours, and
// $NO_COLOR is not set.
func UseColor(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && IsTerminal(w)
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	is := false
	control(w, func(fd int) {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		is = err == nil
	})
	return is
}

// Width returns the number of columns of w; 0 if w is not a terminal or does not tell.
func Width(w io.Writer) int {
	width := 0
	control(w, func(fd int) {
		if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
			width = int(size.Col)
		}
	})
	return width
}

// control calls f with the descriptor of w if it has one.
func control(w io.Writer, f func(fd int)) {
	c, ok := w.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// Close writes the queued events until ctx ends; the others are lost. It does not close the
// writer.
func (t *Terminal) Close(ctx context.Context) error {
	return t.close(ctx, "the terminal", func() {
		// A deadline interrupts a write to a pipe, but not to a stopped terminal.
		if w, ok := t.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
			_ = w.SetWriteDeadline(time.Unix(1, 0))
		}
	})
}

// Failed is closed when a write fails for the first time. That write's events are lost;
// later events are still tried.
func (t *Terminal) Failed() <-chan struct{} { return t.failed }

// Err returns the error of the first failed write; nil if none failed.
func (t *Terminal) Err() error {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	return t.err
}

// fails records a failed write, unless Close interrupted it.
func (t *Terminal) fails(err error) {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	if t.err == nil && !t.killed() {
		t.err = err
		close(t.failed)
	}
}

// maxBatch is the size in bytes at which queued events are written as one batch.
const maxBatch = 32 << 10

func (t *Terminal) run() {
	defer close(t.ended)
	for e := t.take(); e != nil; e = t.take() {
		t.buf, t.ends, t.columns = t.buf[:0], t.ends[:0], t.width()
		for ; e != nil; e = t.more() {
			start := len(t.buf)
			if err := bounded.Guard(func() { t.line(e) }); err != nil {
				// Report that the event occurred; it counts as written.
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

// The ECMA-48 escape sequences in use.
const (
	sgrReset  = "\x1b[0m"
	sgrDim    = "\x1b[2m"
	sgrNotice = "\x1b[36m"   // cyan
	sgrWarn   = "\x1b[1;33m" // bold yellow
)

// ellipsis replaces the text beyond the window's width.
var ellipsis = []byte("…")

// timeOfDay is the layout of a line's time.
const timeOfDay = "15:04:05.000"

// narrow is the width below which lines have no time.
const narrow = 40

// line appends one event to t.buf: the time, the owner, what happened, and the type's name.
// A line wider than the window is shown without the name, then without the connection if the
// pods at both ends are named, and cut if it is still too wide.
func (t *Terminal) line(e *event.Event) {
	if t.json {
		t.buf, t.scratch = e.AppendJSON(t.buf, t.scratch)
		t.buf = append(t.buf, '\n')
		return
	}
	paint := func(seq string) {
		if t.color {
			t.buf = append(t.buf, seq...)
		}
	}
	room := t.columns
	if t.columns == 0 || t.columns >= narrow+len(t.clock)-len(timeOfDay) {
		paint(sgrDim)
		t.buf = e.LastSeen().In(t.location).AppendFormat(t.buf, t.clock)
		paint(sgrReset)
		t.buf = append(t.buf, "  "...)
		room -= len(t.clock) + 2
	}
	text := e.AppendOwner(t.scratch[:0])
	owner := len(text)
	text = e.AppendWhat(append(text, ": "...))
	t.scratch = text
	named := true
	if t.columns > 0 {
		width := displaywidth.Bytes(text)
		named = width+2+len(e.Type.Name) <= room
		if width > room {
			if brief, ok := e.AppendBrief(text[:owner+2]); ok {
				text, t.scratch = brief, brief
				width = displaywidth.Bytes(text)
			}
		}
		if width > room {
			text = displaywidth.TruncateBytes(text, room, ellipsis)
			if owner > len(text)-len(ellipsis) {
				owner = len(text)
			}
		}
	}
	if e.Priority() <= catalog.PriWarning {
		paint(sgrWarn)
	} else {
		paint(sgrNotice)
	}
	t.buf = append(t.buf, text[:owner]...)
	paint(sgrReset)
	t.buf = append(t.buf, text[owner:]...)
	if named {
		t.buf = append(t.buf, "  "...)
		paint(sgrDim)
		t.buf = append(t.buf, e.Type.Name...)
		paint(sgrReset)
	}
	t.buf = append(t.buf, '\n')
}
