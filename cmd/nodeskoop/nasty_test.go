package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit/nasty"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/terminal"
)

// Quoted input in an error is a single, harmless line.
func TestErrorsAreSafe(t *testing.T) {
	for _, n := range nasty.Names {
		for _, args := range [][]string{
			{"collect", "--config", "/nonexistent/" + n}, {"collect", "--probe", n}, {n}, {"events", "--event", n}, {"top", "--sort", n}, {"top", "--at", n}, {"events", "--since", n}, {"report", "--until", n}, {"report", "--html", "/nonexistent/" + n + "/x"}, {"collect", "--config", "/dev/null", "-o", "/nonexistent/" + n + "/x"},
		} {
			code, out, errs := call(t, args...)
			if code == 0 || out != "" {
				t.Errorf("%q: exit %d, %q", args, code, out)
			}
			message := errs[strings.LastIndex(strings.TrimSuffix(errs, "\n"), "\n")+1:] // skip the log's lines
			if r := nasty.Acts(errs); r >= 0 || !strings.HasPrefix(message, "nodeskoop: ") {
				t.Errorf("%q: %U in %q", args, r, errs)
			}
		}
	}
}

// End to end: a pod whose names and labels attack the terminal, in the output of
// each command, for terminals and for programs.
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
		// Raw, the name would clear the screen or hide the rest of the line.
		if _, err := x.End(60 * time.Second); err != nil && args[0] != "check" {
			t.Errorf("%v: %v", args, err)
		}
		shown := x.Text()
		x.Close()
		if r := nasty.Acts(shown); r >= 0 || args[0] != "check" && args[0] != "collect" && !strings.Contains(shown, "pwned") {
			t.Errorf("%v: %U on the screen:\n%s", args, r, shown)
		}
		cmd := exec.Command(path, args...)
		cmd.Env = append(os.Environ(), "NODESKOOP_CONFIG="+config)
		out, _ := cmd.Output()
		if args[0] == "collect" {
			// JSON is for programs, so it contains the original text.
			if !bytes.Contains(out, []byte("\x1b[2J")) {
				t.Errorf("%v: the label is not what it is", args)
			}
			continue
		}
		if r := nasty.Acts(string(out)); r >= 0 {
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
