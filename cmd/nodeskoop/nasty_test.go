package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/terminal"
)

// nastyNames are what somebody may call a pod, a process, a file or a device.
var nastyNames = []string{
	"\x1b]0;pwned\x07x", "\x1b[2J\x1b[1;1H", "a\rb\nc\td", "\u009b31m", "\x7f", "\u202egnp.exe", "\u2028", "\xff\xfe", "\u200b", "e\u0301\u0301\u0301\u0301\u0301", "日本語の名前",
}

// acts returns the first character of a text, which may have several lines,
// that a terminal would act on, -1 if there is none.
func acts(s string) rune {
	if !utf8.ValidString(s) {
		return utf8.RuneError
	}
	for _, r := range s {
		if r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) {
			return r
		}
	}
	return -1
}

func TestTablesAreSafe(t *testing.T) {
	rows := [][]string{{"POD", "ADDRESSES"}}
	for _, n := range nastyNames {
		rows = append(rows, []string{n, "10.0.0.1"})
	}
	var b bytes.Buffer
	if err := writeColumns(&b, rows); err != nil {
		t.Fatal(err)
	}
	if r := acts(b.String()); r >= 0 {
		t.Errorf("%U in %q", r, b.String())
	}
	if lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n"); len(lines) != len(rows) {
		t.Errorf("%d lines of %d rows:\n%s", len(lines), len(rows), b.String())
	}

	x := &topTable{at: time.Now(), interval: time.Second, columns: topColumns[:2]}
	for _, n := range nastyNames {
		x.rows = append(x.rows, topRow{namespace: n, pod: n, cells: make([]topCell, 2), reason: n})
	}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"table": func(b *bytes.Buffer) error { return x.write(b, topOrder{column: "pod"}) },
		"JSON":  func(b *bytes.Buffer) error { return x.writeJSON(b, topOrder{column: "pod"}) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if r := acts(b.String()); r >= 0 {
			t.Errorf("top's %s: %U in %q", name, r, b.String())
		}
	}

	findings := []finding{{"a check", bad, strings.Join(nastyNames, " "), strings.Join(nastyNames, " ")}}
	b.Reset()
	if err := writeFindings(&b, findings, 80, false); err != nil {
		t.Fatal(err)
	}
	if r := acts(b.String()); r >= 0 {
		t.Errorf("check: %U in %q", r, b.String())
	}
}

// Top's head, rows, footer and log show nothing raw, whatever fails.
func TestTopScreenIsSafe(t *testing.T) {
	for _, n := range nastyNames {
		log := newScreenLog()
		log.lines = append(log.lines, "time=x level=WARN msg=\""+n+"\"")
		v := &topView{order: topOrder{column: "drops", filter: ""}, interval: time.Second, log: log}
		x := table(map[string]float64{"host": 1})
		x.rows = append(x.rows, topRow{namespace: n, pod: n, cells: make([]topCell, len(x.columns)), reason: n})
		x.containerd = errors.New("dial " + n)
		x.troubles = []topTrouble{{"kernellatency", n, true, true}}
		tables, text, _, _ := screenOf(t, 80, 24, v)
		tables <- x
		until(t, text, fmt.Sprintf("%q", n), func(s string) bool {
			return strings.Contains(s, "pods are not shown: dial") && strings.Contains(s, "no kernellatency here") && strings.Contains(s, "2 of 2 rows") && strings.Contains(s, "q end")
		})
		for _, line := range v.footer(80) {
			if r := acts(line.text); r >= 0 || strings.Contains(line.text, "\n") {
				t.Errorf("%q: %U in the footer %q", n, r, line.text)
			}
		}
	}
}

// What an error quotes is one line that does nothing.
func TestErrorsAreSafe(t *testing.T) {
	for _, n := range nastyNames {
		for _, args := range [][]string{
			{"collect", "--config", "/nonexistent/" + n}, {"collect", "--probe", n}, {n}, {"events", "--event", n}, {"top", "--sort", n}, {"collect", "--config", "/dev/null", "-o", "/nonexistent/" + n + "/x"},
		} {
			code, out, errs := call(t, args...)
			if code == 0 || out != "" {
				t.Errorf("%q: exit %d, %q", args, code, out)
			}
			message := errs[strings.LastIndex(strings.TrimSuffix(errs, "\n"), "\n")+1:] // the log has its lines before
			if r := acts(errs); r >= 0 || !strings.HasPrefix(message, "nodeskoop: ") {
				t.Errorf("%q: %U in %q", args, r, errs)
			}
		}
	}
}

// The whole way: a pod whose names and labels are an attack, in what each
// command prints on a terminal and to a program.
func TestNastyPodInEveryCommand(t *testing.T) {
	need.Root(t)
	ctd := pods.Start(t)
	name := "web-\x1b[2Jpwned\u202e\u009bx"
	ctd.RunPod(pods.PodSpec{Namespace: "shop\x1b[31m", Name: name, Labels: map[string]string{"app": "\x1b[2J\u009b\u202e"},
		Containers: []pods.ContainerSpec{{Name: "main", Command: []string{"sleep", "100000"}}}})
	config := filepath.Join(t.TempDir(), "x.toml")
	text := fmt.Sprintf("[pods]\nsockets = [%q]\n[pods.labels]\napp = \"${labels:app}\"\n", ctd.Socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"pods"}, {"pods", "--json"}, {"top", "--once", "--interval", "200ms", "--probe", "netdev"}, {"top", "--json", "--once", "--interval", "200ms", "--probe", "netdev"},
		{"collect", "--probe", "tcp"}, {"check"}, {"check", "--json"},
	} {
		x, err := terminal.Start(80, 60, []string{"NO_COLOR=1", "NODESKOOP_CONFIG=" + config}, path, args...)
		if err != nil {
			t.Fatal(err)
		}
		// Raw, it would have wiped the screen, or have hidden the rest of its line.
		if _, err := x.End(60 * time.Second); err != nil && args[0] != "check" {
			t.Errorf("%v: %v", args, err)
		}
		shown := x.Text()
		x.Close()
		if r := acts(shown); r >= 0 || args[0] != "check" && args[0] != "collect" && !strings.Contains(shown, "pwned") {
			t.Errorf("%v: %U on the screen:\n%s", args, r, shown)
		}
		cmd := exec.Command(path, args...)
		cmd.Env = append(os.Environ(), "NODESKOOP_CONFIG="+config)
		out, _ := cmd.Output()
		if args[0] == "collect" {
			// A program reads this one, as it is.
			if !bytes.Contains(out, []byte("\x1b[2J")) {
				t.Errorf("%v: the label is not what it is", args)
			}
			continue
		}
		if r := acts(string(out)); r >= 0 {
			t.Errorf("%v: %U in %q", args, r, out)
		}
		if args[0] != "check" && args[len(args)-1] == "--json" {
			var rows []map[string]any
			if err := json.Unmarshal(out, &rows); err != nil || len(rows) != 1 || rows[0]["pod"] != name {
				t.Errorf("%v: %v, %q", args, err, out)
			}
		}
	}
}
