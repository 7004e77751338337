// Package contributing proves that the steps of CONTRIBUTING.md add a probe: it
// runs the page's code blocks and commands unchanged.
package contributing

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// The sections of the page, and how many files each may add.
var sections = []struct {
	title, probe, metric, event string
	files                       int
}{
	{"Add a probe that reads the kernel's files", "frag", "nodeskoop_frag_memory_bytes", "", 2},
	{"Add a probe with a BPF program", "tcpdestroy", "nodeskoop_tcpdestroy_total", "TCPDestroy", 4},
}

var (
	fileBlock = regexp.MustCompile("(?ms)^`([^`\n]+)`\n\n```\\w+\n(.*?)^```")
	runBlock  = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")
)

// TestAddAProbe adds the probes of the page to a copy of the project, runs the
// page's commands, and looks for their metrics and events.
func TestAddAProbe(t *testing.T) {
	need.Root(t)
	need.Short(t)
	need.Program(t, "make", "clang", "llvm-strip", "git")
	page, err := os.ReadFile("../../../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	root := copied(t, "../../..")
	var commands []string
	for _, s := range sections {
		_, text, found := strings.Cut(string(page), "\n## "+s.title+"\n")
		if !found {
			t.Fatalf("the page has no section %q", s.title)
		}
		text, _, _ = strings.Cut(text, "\n## ")
		files := fileBlock.FindAllStringSubmatch(text, -1)
		for _, f := range files {
			path := filepath.Join(root, f[1])
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is there already", f[1])
			}
			if err := os.WriteFile(path, []byte(f[2]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(files); n == 0 || n > s.files {
			t.Errorf("probe %s takes %d files, want 1 to %d", s.probe, n, s.files)
		} else {
			t.Logf("probe %s took %d files", s.probe, n)
		}
		for _, r := range runBlock.FindAllStringSubmatch(text, -1) {
			commands = append(commands, r[1])
		}
	}
	if len(commands) == 0 {
		t.Fatal("the page runs nothing")
	}
	for _, c := range commands {
		cmd := exec.Command("sh", "-euc", c)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
	run := func(args ...string) *exec.Cmd {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, filepath.Join(root, "build/nodeskoop"), args...)
		cmd.Env = append(os.Environ(), "NODESKOOP_CONFIG="+filepath.Join(root, "packaging/nodeskoop.toml"))
		return cmd
	}
	for _, s := range sections {
		cmd := run("collect", "--probe", s.probe)
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.Output()
		if err != nil || !bytes.Contains(out, []byte("\n"+s.metric+"{")) {
			t.Errorf("collect --probe %s: %v\n%s\n%s", s.probe, err, out, log.String())
		}
		if s.event == "" {
			continue
		}
		var told testkit.Log
		events := run("events", "--json", "--probe", s.probe)
		events.Stdout, events.Stderr = &told, io.Discard
		p := testkit.Start(t, events)
		testkit.Eventually(t, "an event "+s.event, func() bool {
			connectOnce(t)
			return strings.Contains(told.String(), `"KUBESKOOP_EVENT":"`+s.event+`"`)
		})
		p.Stop()
	}
}

// connectOnce makes a connection over loopback, and ends it.
func connectOnce(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// copied is a copy of the project without build output.
func copied(t *testing.T, from string) string {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, e := range entries {
		if n := e.Name(); n == "build" || n == ".cache" {
			continue
		}
		if out, err := exec.Command("cp", "-a", filepath.Join(from, e.Name()), root).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return root
}
