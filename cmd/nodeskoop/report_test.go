package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/report"
	"nodeskoop/collect/event"
	"nodeskoop/output/history"
)

// withHistory returns a configuration with a history, and the history's folder.
func withHistory(t *testing.T) (cfg, dir string) {
	t.Helper()
	state := t.TempDir()
	t.Setenv("STATE_DIRECTORY", state)
	cfg = filepath.Join(state, "nodeskoop.toml")
	if err := errors.Join(os.WriteFile(cfg, []byte("node_name = \"worker-7\"\n"), 0o644), os.Mkdir(filepath.Join(state, history.Folder), 0o700)); err != nil {
		t.Fatal(err)
	}
	return cfg, filepath.Join(state, history.Folder)
}

func TestReport(t *testing.T) {
	cfg, dir := withHistory(t)
	now := time.Now()
	many := loss(now.Add(-10*time.Minute), "db-0")
	many.Merged = &event.Merged{Count: 1240, First: many.Time, Last: now.Add(-9 * time.Minute), Window: time.Minute}
	journalFile(t, loss(now.Add(-2*time.Hour), "web-0"), loss(now.Add(-20*time.Minute), "web-0"), many)

	code, out, errs := call(t, "report", "--config", cfg)
	if code != 0 || errs != "" || !strings.HasPrefix(out, "worker-7, ") || !strings.Contains(out, "1,241 events of 2 kinds at 2 pods.") || !strings.Contains(out, "there is no history in") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	code, out, errs = call(t, "report", "--config", cfg, "--since", "-3h", "--pod", "shop/web-0", "--json")
	var r report.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || errs != "" || r.Events != 2 || len(r.Kinds) != 1 || r.Kinds[0].Whose != "shop/web-0" || r.Until.Sub(r.Since) != 3*time.Hour ||
		r.Node != "worker-7" || len(r.Pods) != 1 || r.Quiet {
		t.Errorf("exit %d, %s, %v\n%s", code, errs, err, out)
	}
	// With --until alone, the report covers the hour before it.
	if code, out, _ := call(t, "report", "--config", cfg, "--until", "-90m", "--json"); code != 0 || json.Unmarshal([]byte(out), &r) != nil || r.Events != 1 || r.Until.Sub(r.Since) != time.Hour {
		t.Errorf("exit %d\n%s", code, out)
	}
	// Nothing is claimed about the future.
	if code, out, errs := call(t, "report", "--config", cfg, "--until", "2199-01-01"); code != 0 || errs != "" || strings.Contains(out, "Nothing happened") || !strings.Contains(out, "The range begins in the future, at 2198-12-31 23:00:00: now it is ") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	file := filepath.Join(dir, "..", "page.html")
	for range 2 { // the second page replaces the first
		if code, out, errs := call(t, "report", "--config", cfg, "--html", file); code != 0 || out != "" || errs != "" {
			t.Errorf("exit %d, %q, %q", code, out, errs)
		}
	}
	page, err := os.ReadFile(file)
	if fi, failed := os.Stat(file); failed != nil || fi.Mode() != 0o600 || err != nil || !strings.Contains(string(page), "1,240") || !strings.HasPrefix(string(page), "<!DOCTYPE html>") {
		t.Errorf("%v, %v\n%s", fi, err, page)
	}
	if code, out, _ := call(t, "report", "--config", cfg, "--html", "-"); code != 0 || !strings.HasPrefix(out, "<!DOCTYPE html>") {
		t.Errorf("exit %d, %.100s", code, out)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--html", dir}, exitFailure, "name a file"},
		{[]string{"--html", ""}, exitUsage, "--html has an empty value"},
		{[]string{"--html", "/dev/null"}, exitFailure, "a character device, not a regular file"},
		{[]string{"--html", "/nonexistent/x.html"}, exitFailure, "there is no such folder"},
		{[]string{"--html", file, "--json"}, exitUsage, "--json and --html exclude each other"},
		{[]string{"--since", "soon"}, exitUsage, "is not a point in time"},
		{[]string{"--since", ""}, exitUsage, "--since has an empty value"},
		{[]string{"--since", "-65535d"}, exitUsage, "nothing is recorded before 1970"},
		{[]string{"--since", "2199-01-01"}, exitUsage, "--since (2199-01-01 00:00:00) is not before --until ("},
		{[]string{"--pod", "a/"}, exitUsage, "is not NAMESPACE/NAME"},
		{[]string{"extra"}, exitUsage, "report takes no argument"},
	} {
		if code, out, errs := call(t, append([]string{"report", "--config", cfg}, c.args...)...); code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, %q, %q; want exit %d and %q", c.args, code, out, errs, c.code, c.want)
		}
	}
}

// What cannot be read is named in the report, and the exit code says that the
// report is incomplete.
func TestReportOfHalf(t *testing.T) {
	cfg, dir := withHistory(t)
	fromJournal(t, "echo 'Failed to open the journal: no reason' >&2; exit 1")
	code, out, errs := call(t, "report", "--config", cfg)
	if code != exitPartial || !strings.Contains(out, "Which events there were is not known:") || strings.Contains(out, "Nothing happened") || !strings.Contains(errs, "the report is not complete: read the journal: journalctl: Failed to open the journal: no reason\n") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	// A history that is not a folder.
	if err := errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := call(t, "report", "--config", cfg); code != exitFailure || out != "" || !strings.Contains(errs, "no reason; open the history: ") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	journalFile(t)
	if code, out, errs := call(t, "report", "--config", cfg); code != exitPartial || !strings.Contains(out, "Which counters moved is not known: open the history") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	if err := errors.Join(os.Remove(dir), os.WriteFile(cfg, []byte("[history]\nenabled = false\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := call(t, "report", "--config", cfg); code != 0 || errs != "" || !strings.Contains(out, "history.enabled is false") || !strings.Contains(out, "There is no journal here") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
}

// Events of many pods give a page of bounded size, and a text that fits the window.
func TestReportOfMany(t *testing.T) {
	cfg, _ := withHistory(t)
	var events []*event.Event
	for i := range 2000 {
		events = append(events, loss(time.Now().Add(-time.Duration(i)*time.Second), fmt.Sprint("web-", i)))
	}
	journalFile(t, events...)
	code, out, errs := call(t, "report", "--config", cfg)
	if code != 0 || errs != "" || !strings.Contains(out, "2,000 events of 1000 kinds at 2000 pods.") || !strings.Contains(out, "1,000 events are of further kinds.") || strings.Count(out, "\n") > 150 {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	if code, out, _ := call(t, "report", "--config", cfg, "--html", "-"); code != 0 || len(out) > 500_000 {
		t.Errorf("exit %d, %d bytes", code, len(out))
	}
}
