package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/google/go-cmp/cmp"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/need"
)

func TestFirstWords(t *testing.T) {
	up := func(n int) (list []collect.ProbeStatus) {
		for range n {
			list = append(list, collect.ProbeStatus{Name: "tcp", Up: true})
		}
		return list
	}
	unsupported := func(name string) collect.ProbeStatus {
		return collect.ProbeStatus{Name: name, Unsupported: true, Err: errors.New("x")}
	}
	failed := func(name string) collect.ProbeStatus {
		return collect.ProbeStatus{Name: name, Err: errors.New("x")}
	}
	for _, c := range []struct {
		status []collect.ProbeStatus
		named  error
		want   string
	}{
		{up(8), nil, "Watching 8 probes. Ctrl-C ends."},
		{up(1), nil, "Watching 1 probe. Ctrl-C ends."},
		{append(up(8), unsupported("virtcmdlatency")), nil, "Watching 8 probes; virtcmdlatency is not supported by this kernel. Ctrl-C ends."},
		{append(up(6), unsupported("a"), unsupported("b"), unsupported("c"), failed("d")), nil,
			"Watching 6 probes; a, b and c are not supported by this kernel; d does not work (nodeskoop probes says why). Ctrl-C ends."},
		{append(up(6), failed("d"), failed("e")), errors.New("x"),
			"Watching 6 probes; d and e do not work (nodeskoop probes says why); pods have no names, as containerd does not answer (nodeskoop check says why). Ctrl-C ends."},
	} {
		if got := firstWords(c.status, c.named); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// asUser runs f as if this process were unprivileged.
func asUser(t *testing.T, f func()) {
	before := unprivileged
	unprivileged = func() bool { return true }
	defer func() { unprivileged = before }()
	f()
}

// A command that needs root reports that in one line that can be pasted, before
// loading anything. Usage errors come first.
func TestNeedsRoot(t *testing.T) {
	asUser(t, func() {
		for _, c := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"top"}, exitFailure, "nodeskoop: needs root: sudo nodeskoop top\n"},
			{[]string{"top", "--once", "--pod", "shop/web-0", "--filter", "a b"}, exitFailure, "nodeskoop: needs root: sudo nodeskoop top --once --pod shop/web-0 --filter $'a\\x20b'\n"},
			{[]string{"--log-level", "warn", "events", "--json"}, exitFailure, "nodeskoop: needs root: sudo nodeskoop --log-level warn events --json\n"},
			{[]string{"diagnose", "--for", "5s"}, exitFailure, "nodeskoop: needs root: sudo nodeskoop diagnose --for 5s\n"},
			{[]string{"events", "--event", "nope"}, exitUsage, `no event "nope"`},
			{[]string{"top", "--sort", "nope"}, exitUsage, `no column "nope"`},
		} {
			t.Setenv("NODESKOOP_CONFIG", "/dev/null")
			code, out, errs := call(t, c.args...)
			if code != c.code || out != "" || !strings.Contains(errs, c.want) || code == exitFailure && errs != c.want {
				t.Errorf("%v: exit %d, %q, %q; want exit %d and %q", c.args, code, out, errs, c.code, c.want)
			}
		}
	})
}

// A real unprivileged user: one line, and nothing is loaded.
func TestUserNeedsRoot(t *testing.T) {
	need.Root(t) // to switch the user
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A folder that every user can access.
	dir, err := os.MkdirTemp("", "nodeskoop")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "nodeskoop")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, text, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"top"}, {"events", "--pod", "shop/web-0"}, {"top", "--once", "--json"}} {
		cmd := exec.Command(path, args...)
		cmd.Env = []string{"NODESKOOP_CONFIG=/dev/null", "PATH=" + os.Getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run()
		// An unprivileged user cannot inspect process 1; the missing privilege is
		// reported first.
		want := "nodeskoop: needs root: sudo " + path + " " + strings.Join(args, " ") + "\n"
		if code := cmd.ProcessState.ExitCode(); code != exitFailure || errs.String() != want || out.String() != "" {
			t.Errorf("%v: exit %d, %q, %q; want %q", args, code, out.String(), errs.String(), want)
		}
	}
}

// If permission was denied, the message suggests sudo, except to root.
func TestComplaint(t *testing.T) {
	denied := fmt.Errorf("read the configuration: %w", &fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES})
	args := []string{"nodeskoop", "config", "--config", "/x"}
	const plain = "read the configuration: open /x: permission denied"
	asUser(t, func() {
		if got, want := complaint(denied, args), plain+"; needs root: sudo nodeskoop config --config /x"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got := complaint(errors.New("x"), args); got != "x" {
			t.Error(got)
		}
	})
	before := unprivileged
	unprivileged = func() bool { return false }
	defer func() { unprivileged = before }()
	if got := complaint(denied, args); got != plain {
		t.Error(got)
	}
}

// written is a sink that is always ready.
type written struct{}

func (written) Send(e *event.Event, done func(*event.Event, bool)) {
	if done != nil {
		done(e, true)
	}
}
func (written) Close(context.Context) error { return nil }

func TestSummaryOfEvents(t *testing.T) {
	before := time.Local
	time.Local = time.UTC
	defer func() { time.Local = before }()
	summary := func(width int, events ...*event.Event) string {
		s := event.NewSummary(written{})
		for _, e := range events {
			s.Send(e, nil)
		}
		var b strings.Builder
		if err := writeSummary(&b, s, "in 4m5s", width); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got, want := summary(0), "No events in 4m5s.\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	at := time.Unix(1_700_000_000, 0)
	web := &owner.Pod{ID: "web", Namespace: "shop", Name: "client-7d9f8b6c54-x2x9z"}
	db := &owner.Pod{ID: "db", Namespace: "shop", Name: "db-0"}
	reset := &event.Event{Type: catalog.EventByName("TCPRESET_RECEIVE"), Time: at, Pod: web, Src: event.Endpoint{Pod: web}, Dst: event.Endpoint{Pod: db},
		Merged: &event.Merged{Count: 1240, First: at, Last: at.Add(time.Minute)}, PID: -1, CPU: -1}
	slow := &event.Event{Type: catalog.EventByName("BIOLAT_10MS"), Time: at, Latency: 12345 * time.Microsecond, Disk: "sda", Comm: "postgres", PID: 1, CPU: -1}
	want := `
1241 events in 4m5s:
COUNT  EVENT             WHOSE                         REASON, PEER    WORST   FIRST     LAST
1240   TCPRESET_RECEIVE  shop/client-7d9f8b6c54-x2x9z  from shop/db-0  -       22:13:20  22:14:20
1      BIOLAT_10MS       host                          postgres, sda   12.3ms  22:13:20  22:13:20
`
	if d := cmp.Diff(want, summary(0, reset, slow)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, width := range []int{80, 90, 100} {
		for _, line := range strings.Split(summary(width, reset, slow), "\n") {
			if n := displaywidth.String(line); n > width {
				t.Errorf("%d columns of %d: %s", n, width, line)
			}
		}
	}

	// With many kinds only some are listed, but all are counted.
	var many []*event.Event
	for i := range 50 {
		e := *slow
		e.Disk = strings.Repeat("x", i+1)
		many = append(many, &e)
	}
	got := summary(0, many...)
	if !strings.Contains(got, "\n50 events in 4m5s:\n") || !strings.HasSuffix(got, "\n20 of them are of kinds not listed.\n") || strings.Count(got, "BIOLAT_10MS") != mostSummaryRows {
		t.Errorf("%s", got)
	}
}

// Without a terminal, text is not wrapped.
func TestSay(t *testing.T) {
	var b strings.Builder
	text := strings.Repeat("a word ", 40) + "end."
	say(&b, text)
	if b.String() != text+"\n" {
		t.Errorf("%q", b.String())
	}
}
