package quote

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"nodeskoop/internal/testkit/need"
)

// nasty are names that an unprivileged user can give to a process, an interface, a
// container's label or a file.
var nasty = []string{
	"", "web-0", "nginx: worker", "日本", "naïve", "e\u0301", "😀",
	"\x1b]0;title\x07", "\x1b[2J\x1b[H", "a\x1b[31mred", "\x9b2J", "\u009b2J", "\u0085", "\x7f", "a\rb", "a\nb", "a\x00b", "\t",
	"\u202e\u2066gnp.exe", "\u2028\u2029", "\u200b\u200d\ufeff\u00ad", "\u115f\u3164\u2065", "a\ufe0f\U000e0100", "\U000e0001", "\ue000",
	"\xff\xfe", "\xc3\x28", "\xed\xa0\x80", "\xf4\x90\x80\x80", "e" + strings.Repeat("\u0301", 40), "\u0301",
	"$(id)", "`id`", "a;id", "a b", "a  b", "a'b", `a"b`, `a\b`, "-rf", "=x", "~root", "!1", "*", "é b", "#", "a&&b", "{a,b}",
}

// standsStill reports whether a text has no effect on a terminal beyond its visible
// characters, judged by Unicode's general categories.
func standsStill(s string) bool {
	marks := maxMarks
	for _, r := range s {
		if unicode.In(r, unicode.C, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
			unicode.Is(unicode.Zs, r) && r != ' ' {
			return false
		}
		if unicode.Is(unicode.M, r) {
			if marks++; marks > maxMarks {
				return false
			}
		} else {
			marks = 0
		}
	}
	return utf8.ValidString(s)
}

func TestSafeLeavesWhatIsWellAlone(t *testing.T) {
	for _, s := range []string{"web-0", "nginx: worker", "日本", "naïve", "e\u0301", "😀", `a\x2d`, "$(id)", "Ω Ж א"} {
		if got := Safe(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	for s, want := range map[string]string{
		"a\x1b[2J": `a\x1b[2J`, "\u009b": `\x9b`, "\u202e": `\u202e`, "\U000e0001": `\U000e0001`, "a\xffb": "a\uFFFDb", "\u00a0": `\xa0`,
		"a\u0301\u0301\u0301\u0301": "a\u0301\u0301\u0301" + `\u0301`, "\u0301": `\u0301`,
	} {
		if got := Safe(s); got != want {
			t.Errorf("%q became %q, want %q", s, got, want)
		}
	}
	if got := SafeLine("one\ntwo\x1b\n"); got != `one; two\x1b` {
		t.Errorf("%q", got)
	}
	if n := testing.AllocsPerRun(20, func() { Safe("kube-system/coredns-5d78c9869d-abcde") }); n != 0 {
		t.Errorf("a plain name takes %v allocations", n)
	}
}

func FuzzSafe(f *testing.F) {
	for _, s := range nasty {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Safe(s)
		if !standsStill(got) {
			t.Fatalf("%q became %q", s, got)
		}
		if standsStill(s) && got != s {
			t.Fatalf("%q needs nothing, and became %q", s, got)
		}
		if again := Safe(got); again != got {
			t.Fatalf("%q became %q, and that %q", s, got, again)
		}
		if line := SafeLine(s); !standsStill(line) {
			t.Fatalf("%q became the line %q", s, line)
		}
	})
}

func FuzzJSONText(f *testing.F) {
	for _, s := range nasty {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := string([]rune(s)) // each byte that is not UTF-8 becomes U+FFFD
		encoded, err := json.Marshal(map[string]any{"a": s, s: []string{s}})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range [][]byte{AppendJSON(nil, []byte(s)), AppendSafeJSON(nil, encoded)} {
			for _, r := range string(line) {
				if !shows(r) {
					t.Fatalf("%q became %q", s, line)
				}
			}
		}
		var got string
		if err := json.Unmarshal(AppendJSON(nil, []byte(s)), &got); err != nil || got != want {
			t.Fatalf("%q is read as %q, %v", s, got, err)
		}
		var object map[string]any
		if err := json.Unmarshal(AppendSafeJSON(nil, encoded), &object); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if list, ok := object[want].([]any); !ok && s != "a" || ok && list[0] != want {
			t.Fatalf("%q is read as %q", s, object)
		}
	})
}

func TestSafeJSONKeepsTheLayout(t *testing.T) {
	in := "{\n\t\"a\": \"\u009b\x7f\u202e\U000e0001é\"\n}\n"
	if got, want := string(AppendSafeJSON(nil, []byte(in))), "{\n\t\"a\": \"\\u009b\\u007f\\u202e\\udb40\\udc01é\"\n}\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestShellQuote(t *testing.T) {
	for s, want := range map[string]string{
		"/var/lib/x-1.prom": "/var/lib/x-1.prom", "": `''`, "a b": `$'a\x20b'`, "$(id)": `'$(id)'`, "a'b": `$'a\'b'`, "a\x1bb": `$'a\x1bb'`,
		"-rf": `'-rf'`, "a\nb": `$'a\x0ab'`, "é": `$'\xc3\xa9'`,
	} {
		if got := Shell(s); got != want {
			t.Errorf("%q became %s, want %s", s, got, want)
		}
	}
}

// FuzzShellQuote checks the quoting with a real shell.
func FuzzShellQuote(f *testing.F) {
	need.Program(f, "bash")
	for _, s := range nasty {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "\x00") {
			return // no program argument can contain it
		}
		word := Shell(s)
		if Safe(word) != word || strings.Contains(word, " ") {
			t.Fatalf("%q became %q", s, word)
		}
		out, err := exec.Command("bash", "--norc", "-c", "printf '%s\\0' "+word).CombinedOutput()
		if err != nil || string(out) != s+"\x00" {
			t.Fatalf("%q became %s, and the shell read %q, %v", s, word, out, err)
		}
	})
}
