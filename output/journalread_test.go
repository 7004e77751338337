package output

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit/journald"
	names "nodeskoop/internal/testkit/nasty"
	"nodeskoop/internal/testkit/need"
)

// entry returns a line of journalctl's output, with journald's fields of an entry
// by root.
func entry(change map[string]any) string {
	e := map[string]any{"__REALTIME_TIMESTAMP": "1700000000000000", "_TRANSPORT": "journal", "_UID": "0", "KUBESKOOP_EVENT": "PacketLoss",
		"MESSAGE": "shop/web-0: packet dropped", "K8S_NAMESPACE": "shop", "K8S_POD": "web-0", "KUBESKOOP_TIMESTAMP_US": "1699999999000000"}
	for k, v := range change {
		if e[k] = v; v == nil {
			delete(e, k)
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func numbers(s string) []int {
	var n []int
	for _, c := range []byte(s) {
		n = append(n, int(c))
	}
	return n
}

func TestDecodeEntry(t *testing.T) {
	for what, c := range map[string]struct {
		change map[string]any
		want   string // "": no event
		err    bool
	}{
		"root's":                   {nil, "shop/web-0: packet dropped", false},
		"the unit's, as a user":    {map[string]any{"_UID": "990", "_SYSTEMD_UNIT": "nodeskoop.service"}, "shop/web-0: packet dropped", false},
		"script mode's":            {map[string]any{"_UID": "990", "_SYSTEMD_UNIT": "nodeskoop-collect.service"}, "shop/web-0: packet dropped", false},
		"bytes":                    {map[string]any{"MESSAGE": numbers("shop/web-0: a\xffb\x1b")}, "shop/web-0: a\uFFFDb\\x1b", false},
		"several values":           {map[string]any{"MESSAGE": []any{"first", "second"}}, "first", false},
		"several values of bytes":  {map[string]any{"MESSAGE": []any{numbers("first"), "second"}}, "first", false},
		"too large a field":        {map[string]any{"MESSAGE": nil, "KUBESKOOP_STACK": json.RawMessage("null")}, "shop/web-0: packet dropped", false},
		"bytes that are none":      {map[string]any{"MESSAGE": []int{1, 999}}, "shop/web-0: packet dropped", false},
		"a number":                 {map[string]any{"MESSAGE": 5}, "shop/web-0: packet dropped", false},
		"nested":                   {map[string]any{"MESSAGE": json.RawMessage(`[[["x"]]]`)}, "shop/web-0: packet dropped", false},
		"a user's":                 {map[string]any{"_UID": "1000"}, "", false},
		"a user's unit":            {map[string]any{"_UID": "1000", "_SYSTEMD_UNIT": "user@1000.service", "_SYSTEMD_USER_UNIT": "nodeskoop.service"}, "", false},
		"a user's claim":           {map[string]any{"_UID": "1000", "UID": "0", "SYSTEMD_UNIT": "nodeskoop.service", "OBJECT_UID": "0"}, "", false},
		"nobody's":                 {map[string]any{"_UID": nil}, "", false},
		"two users'":               {map[string]any{"_UID": []any{"1000", "0"}}, "", false},
		"a user's, in bytes":       {map[string]any{"_UID": numbers("0")}, "", false},
		"the kernel's":             {map[string]any{"_TRANSPORT": "kernel"}, "", false},
		"a line of output":         {map[string]any{"_TRANSPORT": "stdout"}, "", false},
		"an unknown type":          {map[string]any{"KUBESKOOP_EVENT": "PacketFound"}, "", true},
		"of no time":               {map[string]any{"KUBESKOOP_TIMESTAMP_US": "x", "__REALTIME_TIMESTAMP": "-5"}, "", true},
		"of the journal's time":    {map[string]any{"KUBESKOOP_TIMESTAMP_US": nil}, "shop/web-0: packet dropped", false},
		"of the year 292000":       {map[string]any{"KUBESKOOP_TIMESTAMP_US": "9223372036854775807"}, "shop/web-0: packet dropped", false},
		"of a pod with a bad name": {map[string]any{"MESSAGE": nil, "K8S_POD": "\x1b[2J"}, `shop/\x1b[2J: packet dropped`, false},
	} {
		e, err := decodeEntry([]byte(entry(c.change)))
		got := ""
		if e != nil {
			got = e.Message()
		}
		if got != c.want || (err != nil) != c.err {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for _, torn := range []string{"", "{", entry(nil)[:100], `"x"`, "[]", "null", "5", "{}"} {
		if e, err := decodeEntry([]byte(torn)); e != nil {
			t.Errorf("%q: %v, %v", torn, e, err)
		}
	}
}

// Whatever a line holds, it is an event only if journald confirms its origin, and its
// text cannot affect a terminal.
func FuzzDecodeEntry(f *testing.F) {
	f.Add([]byte(entry(nil)))
	f.Add([]byte(entry(map[string]any{"_UID": "1000"})))
	f.Add([]byte(entry(map[string]any{"MESSAGE": numbers("a\x1b"), "KUBESKOOP_COUNT": "7", "KUBESKOOP_STACK": []any{"a", "b"}})))
	f.Add([]byte(`{"_UID":"0","_UID":["0"],"_TRANSPORT":"journal"}`))
	f.Add([]byte(`{"a":[[[`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := decodeEntry(line)
		if e == nil {
			return
		}
		if err != nil || e.Time.IsZero() {
			t.Fatalf("%v, and %v", e, err)
		}
		var fields map[string]any
		if json.Unmarshal(line, &fields) != nil || fields["_TRANSPORT"] != "journal" ||
			fields["_UID"] != "0" && fields["_SYSTEMD_UNIT"] != "nodeskoop.service" && fields["_SYSTEMD_UNIT"] != "nodeskoop-collect.service" {
			t.Fatalf("is an event: %q", line)
		}
		text, _ := e.AppendJSON(nil, nil)
		if !json.Valid(text) {
			t.Fatalf("no JSON: %q", text)
		}
		for _, s := range []string{e.Message(), string(e.AppendOwner(nil)), string(e.AppendWhat(nil)), string(text)} {
			if r := names.Acts(s); r >= 0 {
				t.Fatalf("%U in %q", r, s)
			}
		}
	})
}

// prints returns a command line that prints lines and ignores further arguments.
func prints(script string) []string { return []string{"sh", "-c", script, "journalctl"} }

func readEvents(ctx context.Context, r *JournalReader) (events []*event.Event, err error) {
	for e, failed := range r.Events(ctx) {
		if failed != nil {
			return events, failed
		}
		events = append(events, e)
	}
	return events, nil
}

func TestJournalReaderFailures(t *testing.T) {
	for what, c := range map[string]struct {
		command []string
		want    string
		denied  bool
	}{
		"no journalctl":  {[]string{"/nonexistent/journalctl"}, "read the journal with journalctl: ", false},
		"it fails":       {prints("echo 'Failed to open: \x1b[2J' >&2; exit 1"), `read the journal: journalctl: Failed to open: \x1b[2J`, false},
		"it dies":        {prints("kill -9 $$"), "read the journal: journalctl: signal: killed", false},
		"no permission":  {prints("echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1"), "the group systemd-journal", true},
		"the user's own": {prints("echo 'Hint: You are currently not seeing messages from other users and the system.' >&2"), "the group systemd-journal", true},
	} {
		_, err := readEvents(t.Context(), &JournalReader{Command: c.command})
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, fs.ErrPermission) != c.denied {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := (&JournalReader{Command: c.command}).Begins(t.Context()); err == nil {
			t.Errorf("%s: it is known when the journal begins", what)
		}
	}
}

// A torn or too large entry, or one of another version, is skipped alone.
func TestJournalReaderSkips(t *testing.T) {
	r := &JournalReader{Command: prints("echo '-- No entries --'; echo '" + entry(nil) + "'; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo '{'; echo '" +
		entry(map[string]any{"KUBESKOOP_EVENT": "New"}) + "'; echo; head -c 100000 /dev/zero | tr '\\0' ' '; echo '" + entry(nil) + "'; printf '%s' '" + entry(nil)[:70] + "'")}
	events, err := readEvents(t.Context(), r)
	if len(events) != 2 || err != nil || r.Skipped != (JournalSkipped{Damaged: 3, Unknown: 1}) {
		t.Errorf("%d events, %v, %+v", len(events), err, r.Skipped)
	}
}

// A merged entry is included if its time from first to last occurrence touches the
// range.
func TestJournalReaderRange(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1_700_000_000+int64(s), 0) }
	us := func(s int) string { return strconv.FormatInt(at(s).UnixMicro(), 10) }
	one := func(s int) string {
		return entry(map[string]any{"KUBESKOOP_TIMESTAMP_US": us(s), "MESSAGE": fmt.Sprint("at ", s)})
	}
	many := func(first, last int) string {
		return entry(map[string]any{"KUBESKOOP_TIMESTAMP_US": us(first), "KUBESKOOP_COUNT": "9", "KUBESKOOP_FIRST_US": us(first), "KUBESKOOP_LAST_US": us(last), "MESSAGE": fmt.Sprint(first, " to ", last)})
	}
	lines := strings.Join([]string{one(-1), one(0), one(59), one(60), many(-30, -1), many(-30, 0), many(59, 90), many(60, 90), many(-5, 100),
		entry(map[string]any{"KUBESKOOP_EVENT": "TCPRetrans", "KUBESKOOP_TIMESTAMP_US": us(5)})}, "\n")
	r := &JournalReader{Since: at(0), Until: at(60), Types: []*catalog.EventType{catalog.EventByName("PacketLoss")}, Command: prints("echo '" + lines + "'; echo \"$*\" >&2")}
	events, err := readEvents(t.Context(), r)
	var got []string
	for _, e := range events {
		got = append(got, e.Message())
	}
	if want := "at 0, at 59, -30 to 0, 59 to 90, -5 to 100"; strings.Join(got, ", ") != want || err != nil {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	args := strings.Join(r.arguments(), " ")
	for _, want := range []string{" --since=@1699999999 ", " --until=@1700000721 ", " MESSAGE_ID=" + r.Types[0].MessageID + " _UID=0 + "} {
		if !strings.Contains(args, want) {
			t.Errorf("%q is not in %s", want, args)
		}
	}
	if strings.Contains(args, "namespace") || strings.Count(args, "MESSAGE_ID") != 2 {
		t.Error(args)
	}
	early := &JournalReader{Since: time.Unix(-3600, 0), Until: time.Unix(-3000, 0)} // 1970-01-01 in a zone east of UTC
	if args := strings.Join(early.arguments(), " "); !strings.Contains(args, " --since=@0 --until=@0 ") {
		t.Error(args)
	}
	// Entries that were written before the clock was set back do not end the reading.
	for ago, want := range map[time.Duration]bool{-time.Hour: false, 0: false, 20 * time.Hour: false, 30 * time.Hour: true} {
		recent := &JournalReader{Since: time.Now().Add(-40 * time.Hour), Until: time.Now().Add(-ago)}
		if args := strings.Join(recent.arguments(), " "); strings.Contains(args, "--until") != want {
			t.Errorf("until %v ago: %s", ago, args)
		}
	}
	r.Namespace = "nodeskoop"
	if args := strings.Join(r.arguments(), " "); !strings.Contains(args, " --namespace=+nodeskoop ") {
		t.Error(args)
	}
}

// journalctl is ended when the reader has had enough, and when its context ends.
func TestJournalReaderEnds(t *testing.T) {
	endless := prints("while :; do echo '" + entry(nil) + "'; done")
	n := 0
	for range (&JournalReader{Command: endless}).Events(t.Context()) {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d events", n)
	}
	ctx, stop := context.WithCancel(t.Context())
	n = 0
	for _, err := range (&JournalReader{Command: endless}).Events(ctx) {
		if n++; n == 3 {
			stop()
		}
		if err != nil || n > 3 {
			t.Errorf("%d events, %v", n, err)
			break
		}
	}
	// A line torn because the reader ended is not damaged.
	ctx, stop = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	torn := &JournalReader{Command: prints("printf '{'; exec sleep 1000")}
	if events, err := readEvents(ctx, torn); len(events) != 0 || err != nil || torn.Skipped.Damaged != 0 {
		t.Errorf("%d events, %v, %+v", len(events), err, torn.Skipped)
	}
	if begins, err := (&JournalReader{Command: endless}).Begins(t.Context()); begins.Unix() != 1_700_000_000 || err != nil {
		t.Errorf("%v, %v", begins, err)
	}
	if begins, err := (&JournalReader{Command: prints("")}).Begins(t.Context()); !begins.IsZero() || err != nil {
		t.Errorf("%v, %v", begins, err)
	}
}

// Memory does not grow with the journal.
func TestJournalReaderOfAHugeJournal(t *testing.T) {
	const entries = 100_000
	r := &JournalReader{Command: prints("yes '" + entry(nil) + "' | head -n " + strconv.Itoa(entries))}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	for _, err := range r.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%(entries/10) == 0 {
			runtime.GC()
			if runtime.ReadMemStats(&now); int64(now.HeapAlloc-before.HeapAlloc) > 8<<20 {
				t.Fatalf("after %d entries there are %d bytes more", n, now.HeapAlloc-before.HeapAlloc)
			}
		}
	}
	if n != entries {
		t.Errorf("%d of %d entries", n, entries)
	}
}

// A real journald returns what Journal wrote, field by field, and nothing of what
// another user writes with the same fields.
func TestJournalReaderReadsWhatJournalWrote(t *testing.T) {
	need.Program(t, "setpriv", "/usr/bin/python3") // Debian's python3 by path: the other user may not enter the folder of another python
	d := journald.New(t, "64M")
	j := NewJournal(JournalOptions{Path: d.Socket})
	var want []string
	send := func(e *event.Event) {
		line, _ := e.AppendJSON(nil, nil)
		want = append(want, string(line))
		j.Send(e, nil)
	}
	begin := time.Now()
	for i, typ := range catalog.Events() {
		e := eventOf(typ)
		e.Time = begin.Add(time.Duration(i) * time.Millisecond).Truncate(time.Microsecond)
		switch i % 4 {
		case 1:
			e.Merged = &event.Merged{Count: 12, First: e.Time, Last: e.Time.Add(time.Millisecond), Window: 10 * time.Second}
		case 2:
			e.Pod, e.HostLabel = nil, "hostNetwork"
		case 3:
			for range 200 {
				e.Stack = append(e.Stack, "a_function_of_the_kernel_with_a_long_name+0x1234")
			}
		}
		send(e)
	}
	if err := j.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	forged := "MESSAGE=shop/web-0: all is lost\nMESSAGE_ID=" + catalog.EventByName("PacketLoss").MessageID +
		"\nKUBESKOOP_EVENT=PacketLoss\nK8S_NAMESPACE=shop\nK8S_POD=web-0\nSYSLOG_IDENTIFIER=nodeskoop\n_UID=0\n_SYSTEMD_UNIT=nodeskoop.service\n_TRANSPORT=journal\n"
	cmd := d.Enter("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c",
		"import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(sys.argv[1].encode(), '/run/systemd/journal/socket')", forged)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.Sync()
	if out := string(d.Journalctl("--output=cat", "_UID=65534")); !strings.Contains(out, "all is lost") {
		t.Fatalf("the forged entry has not come: %q", out)
	}
	command := []string{"journalctl", "-D", filepath.Join(d.Run, "log/journal")}
	r := &JournalReader{Since: begin.Add(-time.Second), Until: time.Now().Add(time.Minute), Command: command}
	events, err := readEvents(t.Context(), r)
	if err != nil || r.Skipped != (JournalSkipped{}) {
		t.Fatalf("%v, %+v", err, r.Skipped)
	}
	for i, e := range events {
		line, _ := e.AppendJSON(nil, nil)
		if i >= len(want) || string(line) != want[i] {
			t.Errorf("entry %d:\n got %s\nwant %s", i, line, want[min(i, len(want)-1)])
		}
	}
	if len(events) != len(want) {
		t.Errorf("%d of %d events", len(events), len(want))
	}
	if begins, err := r.Begins(t.Context()); err != nil || begins.After(time.Now()) || begins.Before(begin.Add(-time.Minute)) {
		t.Errorf("the journal begins at %v, %v", begins, err)
	}
	later := &JournalReader{Since: time.Now().Add(time.Second), Command: command}
	if events, err := readEvents(t.Context(), later); len(events) != 0 || err != nil {
		t.Errorf("of later: %d events, %v", len(events), err)
	}
	if out, err := exec.Command("journalctl", "-D", t.TempDir(), "--output=json").CombinedOutput(); err == nil {
		none := &JournalReader{Command: []string{"journalctl", "-D", t.TempDir()}}
		if events, err := readEvents(t.Context(), none); len(events) != 0 || err != nil || none.Skipped.Damaged > 0 {
			t.Errorf("no journal (%q): %d events, %v, %+v", out, len(events), err, none.Skipped)
		}
	}
}
