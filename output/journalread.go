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
// them. It is not safe for concurrent use.
//
// It runs journalctl: libsystemd, the only other reader of journal files, needs
// cgo, and the program is built without it.
//
// Any process may write to the journal, with any field. So an entry is accepted as
// an event only if journald confirms that root or a unit of nodeskoop wrote it.
// journald adds these fields itself; their names begin with an underscore, and it
// accepts none of them from a program.
type JournalReader struct {
	// Since and Until select the events with an occurrence at or after Since and
	// before Until. The zero value is no limit.
	Since, Until time.Time
	// Types selects types; nil: all.
	Types []*catalog.EventType
	// Namespace is the unit's journal namespace, which is read in addition to the
	// default journal; "" means none.
	Namespace string
	// Command begins the command line; nil: journalctl.
	Command []string

	// Skipped counts the entries so far that could not be read.
	Skipped JournalSkipped
}

// JournalSkipped counts entries that are left out.
type JournalSkipped struct {
	Damaged int // entries that are not JSON, or larger than any event's entry
	Unknown int // events of a type that this version does not know
}

// units are those that write events.
var units = []string{"nodeskoop.service", "nodeskoop-collect.service"}

const (
	// readAnyway is the age up to which entries after Until are read, and left out here.
	readAnyway = 24 * time.Hour
	// maxEntry is the maximum size of an entry. The largest events carry a stack.
	maxEntry = 1 << 20
	// told is the maximum delay between an occurrence and its entry: the longest
	// window.
	told = event.DefaultMaxWindow + time.Minute
	// maxComplaint is how much of journalctl's error output is kept.
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
	// journalctl refuses times before 1970.
	if !r.Since.IsZero() {
		// The kernel's and journald's clocks differ by some milliseconds.
		args = append(args, "--since=@"+strconv.FormatInt(max(0, r.Since.Unix()-1), 10))
	}
	// journalctl ends at the first later entry, although earlier ones may follow if the
	// clock was set back. So it gets the end only where that saves much reading.
	if !r.Until.IsZero() && r.Until.Add(told).Before(time.Now().Add(-readAnyway)) {
		args = append(args, "--until=@"+strconv.FormatInt(max(0, r.Until.Add(told).Unix()+1), 10))
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

// Events yields the events in the order of their entries. An error ends the
// sequence: the rest of the journal cannot be read. A context that ends is not an
// error. Memory does not grow with the journal.
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

// Begins returns the time of the journal's first entry, of any kind; the zero time
// if it is empty.
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

// run runs journalctl and calls line with each line of its output, until line
// returns false.
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
		// journalctl's own lines have this form: -- No entries --
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

// head keeps the beginning of the text written to it.
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

// readLine reads a line without its newline. tooLong says that the line exceeds
// limit; its text is dropped then. The result is valid until the next call.
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

// decodeEntry decodes an entry of `journalctl --output=json`. It returns nil if the
// entry is not confirmed to be nodeskoop's.
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

// trusted reports whether journald confirms that root or a unit of nodeskoop wrote
// an entry. A field of journald's has one value, a string.
func trusted(entry map[string]json.RawMessage) bool {
	is := func(name string, values ...string) bool {
		var s string
		return len(entry[name]) > 0 && entry[name][0] == '"' && json.Unmarshal(entry[name], &s) == nil && slices.Contains(values, s)
	}
	return is("_TRANSPORT", "journal") && (is("_UID", "0") || is("_SYSTEMD_UNIT", units...))
}

// journalTime parses a time written by journald; the zero time if it is invalid.
func journalTime(us string) time.Time {
	n, err := strconv.ParseInt(us, 10, 64)
	if t := time.UnixMicro(n); err == nil && n > 0 && t.Year() < 10000 {
		return t
	}
	return time.Time{}
}

// fieldText returns the value of a field. In JSON it is a string, an array of byte
// values if it is not text, an array of values if the field occurs several times
// (the first counts), or null, which becomes "".
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
