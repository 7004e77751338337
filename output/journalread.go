package output

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/quote"
)

// JournalReader reads events back from the journal. The zero value reads all of
// them. It is not for two goroutines at a time.
//
// It runs journalctl: libsystemd, the only other reader of journal files, needs
// cgo, and the program is built without.
//
// Anyone may write to the journal, with any field. So an entry is an event only if
// journald itself says that root, or a unit of nodeskoop's, wrote it: the names of
// fields that journald adds begin with an underscore, and it takes none of these
// from a program.
type JournalReader struct {
	// Since and Until select the events of which an occurrence lies at Since or
	// later and before Until. The zero value is no limit.
	Since, Until time.Time
	// Types selects types; nil: all.
	Types []*catalog.EventType
	// Namespace is the journal namespace of the unit, which is read beside the
	// journal of all; "": there is none.
	Namespace string
	// Command begins the command line; nil: journalctl.
	Command []string

	// Skipped is what was met so far and could not be read.
	Skipped JournalSkipped
}

// JournalSkipped counts entries that are left out.
type JournalSkipped struct {
	Damaged int // are no JSON, or larger than any entry of an event
	Unknown int // are events of a type that this version does not know
}

// units are those that write events.
var units = []string{"nodeskoop.service", "nodeskoop-collect.service"}

const (
	// maxEntry is how large an entry may be. The largest of an event have a stack.
	maxEntry = 1 << 20
	// told is how long after its last occurrence an entry may be written: at the
	// end of the longest window.
	told = event.DefaultMaxWindow + time.Minute
	// maxComplaint is how much of what journalctl says is kept.
	maxComplaint = 4096
)

// arguments is the command line.
func (r *JournalReader) arguments() []string {
	args := slices.Clone(r.Command)
	if args == nil {
		args = []string{"journalctl"}
	}
	// Without --all, a field of more than 4096 bytes is null.
	args = append(args, "--output=json", "--all", "--no-pager")
	if r.Namespace != "" {
		args = append(args, "--namespace=+"+r.Namespace)
	}
	if !r.Since.IsZero() {
		// The clock of the kernel's time stamps and that of journald differ by
		// some milliseconds.
		args = append(args, "--since=@"+strconv.FormatInt(r.Since.Unix()-1, 10))
	}
	if !r.Until.IsZero() {
		args = append(args, "--until=@"+strconv.FormatInt(r.Until.Add(told).Unix()+1, 10))
	}
	types := r.Types
	if types == nil {
		types = catalog.Events()
	}
	wanted := []string{"_TRANSPORT=journal"}
	for _, t := range types {
		wanted = append(wanted, "MESSAGE_ID="+t.MessageID)
	}
	args = append(append(args, wanted...), "_UID=0", "+")
	args = append(args, wanted...)
	for _, u := range units {
		args = append(args, "_SYSTEMD_UNIT="+u)
	}
	return args
}

// Events yields the events in the order in which they were written. An error is
// the last thing: the journal cannot be read to its end. A context that ends is
// none. Memory does not grow with the journal.
func (r *JournalReader) Events(ctx context.Context) iter.Seq2[*event.Event, error] {
	return func(yield func(*event.Event, error) bool) {
		more := true
		err := r.run(ctx, r.arguments(), func(line []byte) bool {
			e, err := decodeEntry(line)
			switch {
			case errors.Is(err, event.ErrNoEvent):
				r.Skipped.Unknown++
			case err != nil:
				r.Skipped.Damaged++
			case e != nil && r.wants(e):
				more = yield(e, nil)
			}
			return more
		})
		if err != nil && more {
			yield(nil, err)
		}
	}
}

func (r *JournalReader) wants(e *event.Event) bool {
	return (r.Since.IsZero() || !e.LastSeen().Before(r.Since)) && (r.Until.IsZero() || e.FirstSeen().Before(r.Until)) &&
		(r.Types == nil || slices.Contains(r.Types, e.Type))
}

// Begins is when the journal begins, of whatever entries; the zero time if it has
// none.
func (r *JournalReader) Begins(ctx context.Context) (begins time.Time, err error) {
	args := slices.Clone(r.Command)
	if args == nil {
		args = []string{"journalctl"}
	}
	args = append(args, "--output=json", "--no-pager")
	if r.Namespace != "" {
		args = append(args, "--namespace=+"+r.Namespace)
	}
	err = r.run(ctx, args, func(line []byte) bool {
		var entry map[string]json.RawMessage
		if json.Unmarshal(line, &entry) == nil {
			begins = journalTime(fieldText(entry["__REALTIME_TIMESTAMP"]))
		}
		return begins.IsZero()
	})
	return begins, err
}

// run runs journalctl and hands over its lines until one is enough.
func (r *JournalReader) run(ctx context.Context, args []string, line func([]byte) bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = time.Second
	said := &head{left: maxComplaint}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("read the journal with journalctl: %w (journald's own reader is a part of systemd: events that were not sent to a journal cannot be read back)", err)
	}
	enough := false
	b := bufio.NewReaderSize(out, 64<<10)
	for !enough {
		text, tooLong, err := readLine(b, maxEntry)
		switch {
		case tooLong, err != nil && len(text) > 0 && ctx.Err() == nil: // or torn off, by nobody here
			r.Skipped.Damaged++
		case err != nil:
		// Lines of journalctl's own begin so: -- No entries --
		case len(text) > 0 && !bytes.HasPrefix(text, []byte("-- ")):
			enough = !line(text) || ctx.Err() != nil
		}
		if err != nil {
			break
		}
	}
	ended := ctx.Err() != nil
	if enough {
		stop()
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	complaint := said.String()
	switch {
	case ended || enough:
		return nil
	case strings.Contains(complaint, "not seeing messages from other users"), strings.Contains(complaint, "insufficient permissions"):
		return fmt.Errorf("read the journal: %w: only root and the members of the group systemd-journal may", fs.ErrPermission)
	case err != nil && complaint != "":
		return fmt.Errorf("read the journal: journalctl: %s", quote.SafeLine(complaint))
	case err != nil:
		return fmt.Errorf("read the journal: journalctl: %w", err)
	}
	return nil
}

// head keeps the beginning of what is written to it.
type head struct {
	mu   sync.Mutex
	text strings.Builder
	left int
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(len(p), h.left)
	h.left -= n
	h.text.Write(p[:n])
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.String()
}

// readLine reads a line, without the newline. Of one that is longer than limit it
// keeps nothing. What it returns is valid until the next call.
func readLine(b *bufio.Reader, limit int) (line []byte, tooLong bool, err error) {
	line, err = b.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		whole := slices.Clone(line)
		for err == bufio.ErrBufferFull {
			if line, err = b.ReadSlice('\n'); !tooLong {
				whole = append(whole, line...)
			}
			if tooLong = len(whole) > limit; tooLong {
				whole = whole[:0]
				for err == bufio.ErrBufferFull {
					_, err = b.ReadSlice('\n')
				}
			}
		}
		line = whole
	}
	if tooLong {
		line = nil
	}
	return bytes.TrimSuffix(line, []byte("\n")), tooLong, err
}

// decodeEntry reads an entry of `journalctl --output=json`. It returns nil for one
// that nobody says nodeskoop has written.
func decodeEntry(line []byte) (*event.Event, error) {
	var entry map[string]json.RawMessage
	if err := json.Unmarshal(line, &entry); err != nil {
		return nil, err
	}
	if !trusted(entry) {
		return nil, nil
	}
	fields := make(map[string]string, len(entry))
	for name, raw := range entry {
		if !strings.HasPrefix(name, "_") {
			fields[name] = fieldText(raw)
		}
	}
	at := journalTime(fieldText(entry["__REALTIME_TIMESTAMP"]))
	e, err := event.FromFields(fields, at)
	if err == nil && e.Time.IsZero() {
		return nil, errors.New("the entry has no time")
	}
	return e, err
}

// trusted reports whether root or a unit of nodeskoop's wrote an entry, as journald
// says. A field of journald's has one value, as a string.
func trusted(entry map[string]json.RawMessage) bool {
	is := func(name string, values ...string) bool {
		var s string
		return len(entry[name]) > 0 && entry[name][0] == '"' && json.Unmarshal(entry[name], &s) == nil && slices.Contains(values, s)
	}
	return is("_TRANSPORT", "journal") && (is("_UID", "0") || is("_SYSTEMD_UNIT", units...))
}

// journalTime reads a time of journald's; the zero time if it is none.
func journalTime(us string) time.Time {
	n, err := strconv.ParseInt(us, 10, 64)
	if t := time.UnixMicro(n); err == nil && n > 0 && t.Year() < 10000 {
		return t
	}
	return time.Time{}
}

// fieldText is the value of a field: a string; an array of bytes as numbers, where
// it has some that are no text; an array of values where the field was given several
// times, of which the first counts; or null, which is "".
func fieldText(raw json.RawMessage) string {
	if len(raw) == 0 {
		return ""
	}
	switch raw[0] {
	case '"':
		var s string
		_ = json.Unmarshal(raw, &s)
		return s
	case '[':
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
			return ""
		}
		if c := list[0][0]; c == '"' || c == '[' || c == 'n' {
			if c == '[' && len(list[0]) > 1 && bytes.ContainsAny(list[0][1:], `["`) {
				return "" // journald nests no deeper
			}
			return fieldText(list[0])
		}
		b := make([]byte, 0, len(list))
		for _, x := range list {
			n, err := strconv.ParseUint(string(x), 10, 8)
			if err != nil {
				return ""
			}
			b = append(b, byte(n))
		}
		return string(b)
	}
	return ""
}
