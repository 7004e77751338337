package main

import (
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/terminal"
)

func TestTopCommandLine(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--interval 1ms", "out of range"},
		{"--count -1", "out of range"},
		{"--once --count 3", "--once means --count 1"},
		{"--sort cpu", `no column "cpu"`},
		{"--pod /x", "is not NAMESPACE/NAME"},
		{"--probe fd,io", "shows none of the chosen probes"},
		{"--probe netdev --sort drops", "is not among the chosen ones"},
	} {
		code, out, errs := call(t, append([]string{"top", "--config", "/dev/null"}, strings.Fields(c.args)...)...)
		if code != exitUsage || !strings.Contains(errs, c.want) || out != "" {
			t.Errorf("%s: exit %d, %q, %q; want exit 2 and %q", c.args, code, out, errs, c.want)
		}
	}
}

// topRows returns the first words of the table's rows.
func topRows(text string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); len(f) > 3 && (f[0] == "host" || strings.Contains(f[0], "/")) {
			out = append(out, f[0])
		}
	}
	return strings.Join(out, " ")
}

// The program in a real terminal draws, handles keys, and restores the terminal.
func TestTopInATerminal(t *testing.T) {
	need.Root(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	x, err := terminal.Start(160, 30, nil, path, "top", "--config", "/dev/null", "--interval", "200ms")
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	// After the second sample the host's row has a rate.
	if err := x.Wait(60*time.Second, func(s string) bool {
		for _, line := range strings.Split(s, "\n") {
			if f := strings.Fields(line); len(f) > 3 && f[0] == "host" && f[1] != "-" && f[3] != "-" {
				return strings.Contains(s, "HDROP") && strings.Contains(s, "q end")
			}
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	if err := x.Keys("/nobody"); err != nil {
		t.Fatal(err)
	}
	if err := x.Wait(20*time.Second, func(s string) bool { return strings.Contains(s, "filter: nobody_") && topRows(s) == "" }); err != nil {
		t.Fatal(err)
	}
	_ = x.Keys("\x1b")
	if err := x.Wait(20*time.Second, func(s string) bool { return topRows(s) == "host" }); err != nil {
		t.Fatal(err)
	}
	_ = x.Keys("q")
	if code, err := x.End(20 * time.Second); err != nil || code != 0 {
		t.Errorf("exit %d, %v", code, err)
	}
	if s := x.Text(); strings.Contains(s, "q end") {
		t.Errorf("the table is left on the screen:\n%s", s)
	}
}

// On a dumb terminal it prints one table per interval, of the terminal's width, and
// nothing else.
func TestTopOnADumbTerminal(t *testing.T) {
	need.Root(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, term := range []string{"TERM=dumb", "TERM="} {
		x, err := terminal.Start(39, 40, []string{term}, path, "top", "--config", "/dev/null", "--interval", "200ms", "--probe", "netdev,tcpsummary")
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		if err := x.Wait(testkit.Patience, func(s string) bool {
			return strings.Count(s, "rates per second over") >= 2 && strings.Contains(s, "\nPOD")
		}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(x.Text()) {
			if strings.HasPrefix(line, "POD") && !strings.HasSuffix(strings.TrimSpace(line), "RX-P") {
				t.Errorf("%s: the columns do not fit the terminal: %q", term, line)
			}
		}
		if err := x.Keys("\x03"); err != nil {
			t.Fatal(err)
		}
		if code, err := x.End(testkit.Patience); err != nil || code != 0 {
			t.Errorf("%s: exit %d, %v", term, code, err)
		}
		if n := x.Escapes(); n > 0 {
			t.Errorf("%s: %d escape sequences were written", term, n)
		}
	}
}

func TestTopPrintsForAPipe(t *testing.T) {
	need.Root(t)
	code, out, errs := call(t, "top", "--config", "/dev/null", "--count", "2", "--interval", "100ms", "--probe", "netdev,tcpsummary", "--json")
	if n := strings.Count(out, `"host":true`); code != 0 || n != 2 {
		t.Errorf("exit %d, %d lines of the host: %s%s", code, n, out, errs)
	}
}
