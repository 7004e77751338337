package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect/catalog"
	guides "nodeskoop/docs"
	"nodeskoop/internal/testkit/need"
)

// page returns the output of `nodeskoop docs NAME`, and a file with it.
func page(t *testing.T, name, file string) (path, text string) {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"nodeskoop", "docs", name}, &out, &errs); code != 0 {
		t.Fatalf("docs %s: exit code %d: %s", name, code, &errs)
	}
	// The completions read the pods from the test's textfile.
	dir := t.TempDir()
	textfile := config.Default().Textfile
	text = strings.ReplaceAll(out.String(), textfile.Dir+"/"+textfile.File, filepath.Join(dir, "x.prom"))
	var series strings.Builder
	for _, pod := range []string{"shop/client-0", "shop/db-0", "shop/db-0", "kube-system/coredns-7d76-x2b7k", "hostNetwork/hostNetwork", "shop/$(echo bad)", "/"} {
		namespace, name, _ := strings.Cut(pod, "/")
		fmt.Fprintf(&series, "kubeskoop_tcp_insegs{k8s_node=\"n 1\",k8s_namespace=%q,k8s_pod=%q,app=\"x\"} 3\n", namespace, name)
	}
	path = filepath.Join(dir, file)
	for name, content := range map[string]string{path: text, filepath.Join(dir, "x.prom"): series.String()} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return path, text
}

// TestGuides: each guide is printed as in docs/, and the help of docs lists it.
func TestGuides(t *testing.T) {
	var help, errs bytes.Buffer
	if code := run(context.Background(), []string{"nodeskoop", "docs", "--help"}, &help, &errs); code != 0 {
		t.Fatalf("docs --help: exit code %d: %s", code, &errs)
	}
	for _, g := range guides.Guides() {
		var text bytes.Buffer
		if code := run(context.Background(), []string{"nodeskoop", "docs", g.Name}, &text, &errs); code != 0 || text.String() != g.Text {
			t.Errorf("docs %s does not print docs/%s.md", g.Name, g.Name)
		}
		if !strings.Contains(help.String(), g.Name+" ") || !strings.Contains(help.String(), g.Title) {
			t.Errorf("docs --help does not list the guide %s:\n%s", g.Name, &help)
		}
	}
}

func TestManPagesAreCleanAndWhole(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	app := newApp(io.Discard, io.Discard)
	var commands, keys []string
	for _, c := range app.Commands {
		commands = append(commands, "nodeskoop "+c.Name)
		for _, f := range c.VisibleFlags() {
			commands = append(commands, "--"+f.Names()[0])
		}
	}
	for _, e := range catalog.Events() {
		commands = append(commands, e.Name)
	}
	for _, s := range config.Settings() {
		keys = append(keys, s.Key[strings.LastIndexByte(s.Key, '.')+1:]+" = "+config.Literal(s.Default))
	}
	for _, test := range []struct {
		page, file string
		holds      []string
	}{{"man", "nodeskoop.8", commands}, {"man-config", "nodeskoop.toml.5", keys}} {
		t.Run(test.file, func(t *testing.T) {
			need.Program(t, "mandoc", "groff")
			path, text := page(t, test.page, test.file)
			if !strings.Contains(text, `"2023-11-14"`) {
				t.Error("the page's date is not that of SOURCE_DATE_EPOCH")
			}
			for _, lint := range [][]string{{"mandoc", "-Tlint", "-Wstyle", path}, {"groff", "-ww", "-man", "-Tutf8", "-z", path}} {
				if out, err := exec.Command(lint[0], lint[1:]...).CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%v: %v\n%s", lint, err, out)
				}
			}
			out, err := exec.Command("mandoc", "-Tutf8", "-Owidth=1000", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			// Bold is a letter, a backspace, and the same letter.
			shown := string(out)
			for i := strings.IndexByte(shown, '\b'); i > 0; i = strings.IndexByte(shown, '\b') {
				shown = shown[:i-1] + shown[i+1:]
			}
			for _, want := range test.holds {
				if !strings.Contains(shown, want) {
					t.Errorf("the page does not show %q", want)
				}
			}
		})
	}
}

// completions are suggestions that every shell must offer.
var completions = []struct {
	line  string
	holds []string
	lacks []string
}{
	{"nodeskoop ", []string{"run", "collect", "events", "probes", "pods", "check", "config"}, []string{"--json"}},
	{"nodeskoop dia", []string{"diagnose"}, []string{"docs"}},
	{"nodeskoop diagnose --", []string{"--for", "--pod", "--json", "--config"}, []string{"--output"}},
	{"nodeskoop diagnose --pod shop/", []string{"shop/client-0", "shop/db-0"}, []string{"bad"}},
	{"nodeskoop docs cau", []string{"causes"}, []string{"events"}},
	{"nodeskoop che", []string{"check"}, []string{"collect"}},
	{"nodeskoop collect --", []string{"--output", "--duration", "--probe", "--config"}, []string{"--default"}},
	{"nodeskoop --config /dev/null probes --js", []string{"--json"}, []string{"--output"}},
	{"nodeskoop events --event NETSOFT", []string{"NETSOFTIRQ_SCHED_SLOW", "NETSOFTIRQ_EXCUTE_100MS"}, []string{"PacketLoss"}},
	{"nodeskoop run --probe packet", []string{"packetloss"}, []string{"biolatency"}},
	{"nodeskoop docs man", []string{"man", "man-config"}, []string{"collect"}},
	{"nodeskoop docs ", []string{"troubleshooting", "fleet", "performance", "dashboards"}, []string{"collect"}},
	{"nodeskoop top --sort r", []string{"retransmits", "resets", "rx_bytes"}, []string{"drops", "pod"}},
	{"nodeskoop events --pod shop/", []string{"shop/client-0", "shop/db-0"}, []string{"host", "bad", "shop/$(echo", "kube-system/coredns-7d76-x2b7k"}},
	{"nodeskoop top --pod ", []string{"host", "shop/client-0", "kube-system/coredns-7d76-x2b7k"}, []string{"hostNetwork/hostNetwork", "/"}},
	{"nodeskoop --log-level ", []string{"debug", "warn"}, []string{"collect"}},
}

func TestBashCompletion(t *testing.T) {
	need.Program(t, "bash")
	path, _ := page(t, "bash", "nodeskoop")
	// readline does the part of completion that bash's Readline does: it splits the
	// line into words, with "=" a separate word.
	const readline = `
		source "$1"
		line=${2//=/ = }
		read -ra COMP_WORDS <<< "$line"
		[[ $line == *' ' ]] && COMP_WORDS+=('')
		COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
		complete -p nodeskoop > /dev/null || exit
		_nodeskoop
		printf '%s\n' "${COMPREPLY[@]}"`
	offered := func(t *testing.T, line string) []string {
		out, err := exec.Command("bash", "--norc", "-c", readline, "bash", path, line).CombinedOutput()
		if err != nil {
			t.Fatalf("bash: %v\n%s", err, out)
		}
		return strings.Fields(string(out))
	}
	for _, test := range append(completions, []struct {
		line         string
		holds, lacks []string
	}{
		{"nodeskoop run --probe=tcp,netd", []string{"tcp,netdev"}, []string{"netdev"}},
		{"nodeskoop check extra ", nil, []string{"run", "check"}},
		{"nodeskoop collect --duration ", nil, []string{"--output", "run"}},
	}...) {
		got := offered(t, test.line)
		for _, want := range test.holds {
			if !slices.Contains(got, want) {
				t.Errorf("%q: offers %q, not %q", test.line, got, want)
			}
		}
		for _, not := range test.lacks {
			if slices.Contains(got, not) {
				t.Errorf("%q: offers %q", test.line, not)
			}
		}
	}
	if got := offered(t, "nodeskoop --config "+filepath.Dir(path)+"/nodes"); !slices.Equal(got, []string{path}) {
		t.Errorf("a file is completed as %q, want %q", got, path)
	}
}

func TestFishCompletion(t *testing.T) {
	need.Program(t, "fish")
	path, _ := page(t, "fish", "nodeskoop.fish")
	for _, test := range completions {
		cmd := exec.Command("fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", path, test.line)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TERM=dumb")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("fish: %v\n%s", err, out)
		}
		var got []string
		for _, l := range strings.Split(string(out), "\n") {
			word, _, _ := strings.Cut(l, "\t")
			got = append(got, word)
		}
		for _, want := range test.holds {
			if !slices.Contains(got, want) {
				t.Errorf("%q: offers %q, not %q", test.line, got, want)
			}
		}
	}
}

// TestZshCompletion presses the tab key in a zsh on a terminal.
func TestZshCompletion(t *testing.T) {
	need.Short(t)
	need.Program(t, "zsh")
	path, _ := page(t, "zsh", "_nodeskoop")
	const keys = `
		emulate -L zsh
		zmodload zsh/zpty
		zpty z 'TERM=dumb zsh -f -i'
		zpty -w z "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -D -u; LISTMAX=1000; COLUMNS=500"
		zpty -w z "bindkey '^I' list-choices; print REA''DY"
		while zpty -r z line; do [[ $line == *READY* ]] && break; done
		zpty -w -n z "$2"$'\t'
		while zpty -r z line; do print -r -- $line; done`
	for _, test := range completions {
		if test.line == "nodeskoop che" || strings.HasSuffix(test.line, "--js") || strings.HasSuffix(test.line, " packet") {
			continue // zsh inserts a single match instead of listing it
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := exec.CommandContext(ctx, "zsh", "-f", "-c", keys, "zsh", filepath.Dir(path), test.line)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Read until all suggestions appear: zsh keeps waiting for keys.
		var shown []byte
		missing := func() (m []string) {
			_, list, _ := bytes.Cut(shown, []byte(test.line))
			for _, w := range test.holds {
				if !bytes.Contains(list, []byte(w)) {
					m = append(m, w)
				}
			}
			return m
		}
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			shown = append(shown, buf[:n]...)
			if err != nil || len(missing()) == 0 {
				break
			}
		}
		cancel()
		_ = cmd.Wait()
		if m := missing(); len(m) > 0 {
			t.Errorf("%q: zsh does not offer %q; it shows\n%s", test.line, m, shown)
		}
	}
}
