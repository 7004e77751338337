package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// fullDisk accepts a number of bytes, and is full after that.
type fullDisk struct {
	room int
	got  bytes.Buffer
}

func (d *fullDisk) Write(b []byte) (int, error) {
	n := min(d.room, len(b))
	d.got.Write(b[:n])
	if d.room -= n; n < len(b) {
		return n, unix.ENOSPC
	}
	return n, nil
}

func TestStandardRemembersTheFirstError(t *testing.T) {
	d := &fullDisk{room: 5}
	s := NewStandard(d)
	if _, err := io.WriteString(s, "abc"); err != nil || s.Err() != nil || s.Flush() != nil {
		t.Errorf("%v, %v", err, s.Err())
	}
	if n, err := io.WriteString(s, "defg"); n != 2 || err != unix.ENOSPC {
		t.Errorf("%d, %v", n, err)
	}
	d.room = 10
	if _, err := io.WriteString(s, "x"); err != nil {
		t.Error(err)
	}
	if s.Err() != unix.ENOSPC || s.Flush() != unix.ENOSPC {
		t.Errorf("%v, %v", s.Err(), s.Flush())
	}
	if IsTerminal(s) {
		t.Error("it counts as a terminal")
	}
}

func TestStandardOfAFile(t *testing.T) {
	_, tty := openPTY(t)
	if !IsTerminal(NewStandard(tty)) {
		t.Error("a terminal is not recognised through it")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := NewStandard(w)
	if err := s.Flush(); err != nil {
		t.Error(err)
	}
	if _, err := s.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	r.Close()
	if _, err := s.Write([]byte("x")); !errors.Is(err, unix.EPIPE) || !errors.Is(s.Flush(), unix.EPIPE) {
		t.Errorf("%v, %v", err, s.Flush())
	}
}

// nasty are names and texts that would affect a terminal.
var nasty = []string{"\x1b]0;title\x07", "a\rb\nc", "\u009b2J", "\x7f\x7f", "\u202egnp", "\xff\xfe", "\u2028", "\x00"}

func TestLogWriterIsSafe(t *testing.T) {
	for _, text := range nasty {
		for _, isJSON := range []bool{false, true} {
			var b bytes.Buffer
			w := LogWriter(&b, isJSON)
			var h slog.Handler = slog.NewTextHandler(w, nil)
			if isJSON {
				h = slog.NewJSONHandler(w, nil)
			}
			slog.New(h).With(text, text).Error(text, "error", errors.New(text), "path", []string{text})
			line, ok := strings.CutSuffix(b.String(), "\n")
			if !ok || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) }) {
				t.Errorf("%q is logged as %q", text, b.String())
			}
			if !isJSON {
				continue
			}
			var got map[string]any
			if err := json.Unmarshal(b.Bytes(), &got); err != nil || got["msg"] != string([]rune(text)) {
				t.Errorf("%q is read as %q, %v", text, got["msg"], err)
			}
		}
	}
	d := &fullDisk{}
	if n, err := LogWriter(d, false).Write([]byte("x\n")); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestLineWriter(t *testing.T) {
	var b bytes.Buffer
	w := LineWriter(&b)
	for _, part := range []string{"# HELP a b\nx{pod=\"\x1b[", "2J\"} 1\n\ny \u202e", "2"} {
		if n, err := io.WriteString(w, part); n != len(part) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if err := w.Flush(); err != nil || w.Flush() != nil {
		t.Error(err)
	}
	if want := "# HELP a b\nx{pod=\"\\x1b[2J\"} 1\n\ny \\u202e2"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if _, err := io.WriteString(LineWriter(&fullDisk{}), "x\n"); err != unix.ENOSPC {
		t.Errorf("%v", err)
	}
}

// A reader of events learns that a write failed and how many events were lost; later events
// that fit are written.
func TestTerminalTellsOfAFailedWrite(t *testing.T) {
	typ := catalog.EventByName("PacketLoss")
	line := printed(t, TerminalOptions{}, eventOf(typ))
	d := &fullDisk{room: len(line) + 3}
	s := NewTerminal(d, TerminalOptions{})
	select {
	case <-s.Failed():
		t.Error("it failed before it wrote")
	default:
	}
	p := newPacer(s)
	p.send(eventOf(typ), 1)
	p.send(eventOf(typ), 1)
	<-s.Failed()
	if !errors.Is(s.Err(), unix.ENOSPC) {
		t.Errorf("%v", s.Err())
	}
	closeSink(t, s, 10*time.Second)
	p.want(t, 1, 1)
	if written, lost := s.Counts(typ); written != 1 || lost != 1 {
		t.Errorf("%d written, %d lost", written, lost)
	}
	ok := NewTerminal(io.Discard, TerminalOptions{})
	newPacer(ok).send(eventOf(typ), 1)
	closeSink(t, ok, 10*time.Second)
	if ok.Err() != nil {
		t.Errorf("%v", ok.Err())
	}
}

// A name of any width is separated from the text by a colon.
func TestOwnerEndsInAColon(t *testing.T) {
	typ := catalog.EventByName("PacketLoss")
	for _, name := range []string{strings.Repeat("x", 47), strings.Repeat("x", 48), strings.Repeat("x", 49), strings.Repeat("x", 253), strings.Repeat("世", 30), "e\u0301"} {
		e := eventOf(typ)
		e.Pod = &owner.Pod{Namespace: "n", Name: name}
		line := printed(t, TerminalOptions{}, e, eventOf(typ))
		if !strings.Contains(line, "  n/"+name+": packet ") {
			t.Errorf("%q", line)
		}
	}
}
