package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/journald"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/output"
)

// fromJournal makes the commands read the output of a script in place of the
// journal.
func fromJournal(t *testing.T, script string) {
	t.Helper()
	journalCommand = []string{"sh", "-c", script, "journalctl"}
	t.Cleanup(func() { journalCommand = nil })
}

// journalEntries returns events as journalctl prints entries written by root.
func journalEntries(events ...*event.Event) string {
	var b strings.Builder
	for _, e := range events {
		entry := map[string]string{"_TRANSPORT": "journal", "_UID": "0", "__REALTIME_TIMESTAMP": strconv.FormatInt(e.LastSeen().UnixMicro(), 10)}
		e.Fields(nil, func(name string, value []byte) { entry[name] = string(value) })
		line, err := json.Marshal(entry)
		if err != nil {
			panic(err)
		}
		b.Write(append(line, '\n'))
	}
	return b.String()
}

// journalFile lets the commands read some events.
func journalFile(t *testing.T, events ...*event.Event) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "journal.json")
	if err := os.WriteFile(name, []byte(journalEntries(events...)), 0o644); err != nil {
		t.Fatal(err)
	}
	fromJournal(t, "cat "+name)
}

// loss is the loss of a packet by a pod.
func loss(at time.Time, pod string) *event.Event {
	return &event.Event{Type: catalog.EventByName("PacketLoss"), Time: at, Pod: &owner.Pod{ID: pod, Namespace: "shop", Name: pod}, PID: -1, CPU: -1, Reason: "NETFILTER_DROP", Protocol: "TCP"}
}

func TestPastEvents(t *testing.T) {
	now := time.Now()
	yesterday := now.AddDate(0, 0, -1)
	many := loss(now.Add(-2*time.Minute), "db-0")
	many.Merged = &event.Merged{Count: 1240, First: many.Time, Last: now.Add(-time.Minute), Window: time.Minute}
	reset := loss(now.Add(-time.Minute), "web-0")
	reset.Type, reset.Reason = catalog.EventByName("TCPRESET_RECEIVE"), ""
	journalFile(t, loss(yesterday, "web-0"), loss(now.Add(-3*time.Minute), "web-0"), many, reset)
	for _, c := range []struct {
		args  []string
		want  []string // expected texts: one per line of output, then one on standard error
		count int
	}{
		{[]string{"--since", "-1h"}, []string{"shop/web-0: packet dropped", "shop/db-0: packet dropped, 1,240 times in 60 s", "shop/web-0: TCP reset received", "\n1242 events from "}, 3},
		{[]string{"--until", "now"}, []string{yesterday.Format("2006-01-02 15:04:05.000") + "  shop/web-0: ", "1243 events until "}, 4},
		{[]string{"--since", "-1h", "--pod", "shop/db-0"}, []string{"1,240 times"}, 1},
		{[]string{"--since", "-1h", "--pod", "gone"}, []string{"No events from "}, 0},
		{[]string{"--since", "-1h", "--event", "TCPRESET_RECEIVE"}, []string{"TCP reset"}, 1},
		{[]string{"--since", "-1h", "--probe", "packetloss"}, []string{"dropped"}, 2},
		{[]string{"--since", "-1h", "--json"}, []string{`"KUBESKOOP_COUNT":"1240"`}, 3},
		{[]string{"--since", "-90s", "--all"}, []string{"1,240 times", "reset"}, 2},
		{[]string{"--since", "1970-01-01"}, []string{"1243 events from 1970-01-01 "}, 4},
		{[]string{"--since", "2199-01-01"}, []string{"No events from ", "The range begins in the future, at 2199-01-01 00:00:00: now it is "}, 0},
		{[]string{"--since", "-2d", "--until", "-2h"}, []string{"The journal begins at " + yesterday.Format("2006-01-02 15:04:05") + ": events from before are not in it.\n"}, 1},
	} {
		code, out, errs := call(t, append([]string{"events", "--config", "/dev/null"}, c.args...)...)
		if code != 0 || strings.Count(out, "\n") != c.count {
			t.Errorf("%v: exit %d, %s\n%s", c.args, code, errs, out)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) && !strings.Contains(errs, want) {
				t.Errorf("%v: %q is not in\n%s%s", c.args, want, out, errs)
			}
		}
	}
}

func TestPastMistakes(t *testing.T) {
	fromJournal(t, "echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--since", "soon"}, exitUsage, `--since: "soon" is not a point in time: write `},
		{[]string{"--since", ""}, exitUsage, "--since has an empty value"},
		{[]string{"--until", ""}, exitUsage, "--until has an empty value"},
		{[]string{"--until", "later"}, exitUsage, `--until: "later" is not a point in time: write `},
		{[]string{"--since", "04:00", "--until", "03:00"}, exitUsage, "--since ("},
		{[]string{"--since", "-1h", "--probe", "tcp"}, exitUsage, "none of the chosen probes has such events"},
		{[]string{"--since", "-1h"}, exitFailure, "read the journal: permission denied: only root and the members of the group systemd-journal may"},
	} {
		code, out, errs := call(t, append([]string{"events", "--config", "/dev/null"}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, %q, %q; want exit %d and %q", c.args, code, out, errs, c.code, c.want)
		}
	}
	was := unprivileged
	unprivileged = func() bool { return true }
	defer func() { unprivileged = was }()
	if code, _, errs := call(t, "events", "--config", "/dev/null", "--since", "-2h"); code != exitFailure || !strings.Contains(errs, "; needs root: sudo nodeskoop events --config /dev/null --since -2h\n") {
		t.Errorf("exit %d, %q", code, errs)
	}
	fromJournal(t, "echo '{'; echo '"+strings.TrimSpace(strings.ReplaceAll(journalEntries(loss(time.Now(), "web-0")), "PacketLoss", "PacketFound"))+"'")
	code, _, errs := call(t, "events", "--config", "/dev/null", "--since", "-1h")
	if code != exitFailure || !strings.Contains(errs, "1 entries of the journal are damaged") || !strings.Contains(errs, "1 entries are of events that this version does not know") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// A signal ends the reading of the journal, and nothing claims that all was read.
func TestPastInterrupted(t *testing.T) {
	cfg, dir := withHistory(t)
	page := filepath.Join(dir, "..", "page.html")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"events", "--since", "-1h"}, 0, ", interrupted before all were read"},
		{[]string{"report"}, exitFailure, "nodeskoop: report: interrupted before the journal was read: nothing was written\n"},
		{[]string{"report", "--html", page}, exitFailure, "nodeskoop: report: interrupted before the journal was read: nothing was written\n"},
	} {
		ctx, stop := context.WithCancel(t.Context())
		began := filepath.Join(t.TempDir(), "began")
		fromJournal(t, "echo '"+strings.TrimSpace(journalEntries(loss(time.Now(), "web-0")))+"'; touch "+began+"; exec sleep 1000")
		go func() {
			defer stop()
			testkit.Within(testkit.Patience, func() bool { _, err := os.Stat(began); return err == nil })
		}()
		var out, errs bytes.Buffer
		code := run(ctx, append([]string{"nodeskoop", "--config", cfg}, c.args...), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.want) || strings.Contains(errs.String(), "context canceled") {
			t.Errorf("%v: exit %d, %s%s", c.args, code, out.String(), errs.String())
		}
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(page), "*page.html*")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// slow is a reader that pauses, longer in total than the shutdown waits for a
// reader that hangs.
type slow struct {
	bytes.Buffer
	writes int
}

func (b *slow) Write(p []byte) (int, error) {
	b.writes++
	time.Sleep(time.Duration(b.writes) * 20 * time.Millisecond)
	return b.Buffer.Write(p)
}

// The journal is read only as fast as events are written, so a slow reader loses
// none.
func TestPastEventsWaitForTheReader(t *testing.T) {
	const events = 9000 // more than any queue holds
	line := strings.TrimSpace(journalEntries(loss(time.Now().Add(-time.Minute), "web-0")))
	fromJournal(t, fmt.Sprintf("yes '%s' | head -n %d", line, events))
	slow, errs := new(slow), new(bytes.Buffer)
	code := run(context.Background(), []string{"nodeskoop", "events", "--config", "/dev/null", "--since", "-1h"}, slow, errs)
	if n := strings.Count(slow.String(), "\n"); code != 0 || n != events || !strings.Contains(errs.String(), fmt.Sprintf("\n%d events from ", events)) {
		t.Errorf("exit %d, %d of %d lines, %s", code, n, events, errs)
	}
}

// The program itself with a real journald: a reader that closes the pipe, Ctrl-C, and
// entries forged by another user.
func TestPastEventsOfAJournald(t *testing.T) {
	need.Root(t)
	if _, err := os.Stat("/etc/machine-id"); err != nil {
		t.Skip("this machine has no /etc/machine-id, by which journald names its folder")
	}
	d := journald.New(t, "64M")
	j := output.NewJournal(output.JournalOptions{Path: d.Socket})
	const events = 1000 // more than a pipe holds
	for i := range events {
		j.Send(loss(time.Now().Add(-time.Duration(events-i)*time.Millisecond), "web-0"), nil)
	}
	if err := j.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Sync()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	nodeskoop := []string{path, "events", "--config", "/dev/null", "--since", "-1h"}
	cmd := d.Enter(nodeskoop...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if n := bytes.Count(out, []byte("shop/web-0: packet dropped")); err != nil || n != events || !strings.Contains(errs.String(), fmt.Sprintf("\n%d events from ", events)) {
		t.Errorf("%v, %d of %d events, %s", err, n, events, errs.String())
	}
	if out, err := d.Enter("sh", "-c", strings.Join(nodeskoop, " ")+" 2>&1 | head -n 2").CombinedOutput(); err != nil || strings.Count(string(out), "packet dropped") != 2 || strings.Contains(string(out), "nodeskoop:") {
		t.Errorf("head: %v, %s", err, out)
	}
	// Ctrl-C while the pipe is full and nobody reads.
	stopped := d.Enter(nodeskoop...)
	errs.Reset()
	stopped.Stderr = &errs
	pipe, err := stopped.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stopped.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := stopped.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = bytes.NewBuffer(nil).ReadFrom(pipe) }()
	if _ = stopped.Wait(); stopped.ProcessState.ExitCode() != 0 {
		t.Errorf("Ctrl-C: %v, %s", stopped.ProcessState, errs.String())
	}
}
