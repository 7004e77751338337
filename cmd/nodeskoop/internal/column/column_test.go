package column

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"

	"nodeskoop/internal/quote"
	"nodeskoop/internal/testkit/nasty"
)

func TestTablesAreSafe(t *testing.T) {
	rows := [][]string{{"POD", "ADDRESSES"}}
	for _, n := range nasty.Names {
		rows = append(rows, []string{n, "10.0.0.1"})
	}
	var b bytes.Buffer
	if err := Write(&b, rows); err != nil {
		t.Fatal(err)
	}
	if r := nasty.Acts(b.String()); r >= 0 {
		t.Errorf("%U in %q", r, b.String())
	}
	if lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n"); len(lines) != len(rows) {
		t.Errorf("%d lines of %d rows:\n%s", len(lines), len(rows), b.String())
	}
}

func TestMiddle(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{"batch/svc11-7d9f8b6c44-x2k9p", 28, "batch/svc11-7d9f8b6c44-x2k9p"},
		{"batch/svc11-7d9f8b6c44-x2k9p", 20, "batch/svc…6c44-x2k9p"},
		{"batch/svc11-7d9f8b6c44-x2k9p", 3, "b…p"},
		{"batch/svc11-7d9f8b6c44-x2k9p", 2, "…p"},
		{"batch/svc11-7d9f8b6c44-x2k9p", 1, "…"},
		{"batch/svc11-7d9f8b6c44-x2k9p", 0, ""},
		{"batch/svc11-7d9f8b6c44-x2k9p", -3, ""},
		{"日本語の名前です", 16, "日本語の名前です"},
		{"日本語の名前です", 11, "日本…です"},
		{"日本語の名前です", 6, "日…す"},
		{"ab👍🏽cdefgh👍🏽xy", 9, "ab👍🏽…👍🏽xy"},
		{"ae\u0301\u0301bcdefe\u0301\u0301z", 5, "ae\u0301\u0301…e\u0301\u0301z"},
	} {
		if got := Middle(c.text, c.width); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

func TestFrom(t *testing.T) {
	for _, c := range []struct {
		text    string
		columns int
		want    string
	}{
		{"abc", -1, "abc"}, {"abc", 0, "abc"}, {"abc", 1, "bc"}, {"abc", 3, ""}, {"abc", 9, ""},
		{"日本", 1, " 本"}, {"日本", 2, "本"}, {"日本", 3, " "}, {"e\u0301x", 1, "x"},
	} {
		if got := From(c.text, c.columns); got != c.want {
			t.Errorf("%q from %d: %q, want %q", c.text, c.columns, got, c.want)
		}
	}
}

// FuzzCut: the shortened form of any name fills its column, is UTF-8, and keeps
// both ends.
func FuzzCut(f *testing.F) {
	for _, n := range append([]string{"batch/svc11-7d9f8b6c44-x2k9p", "👨‍👩‍👧‍👦/👍🏽", "🇩🇪🇯🇵", ""}, nasty.Names...) {
		for _, width := range []int{0, 1, 5, 20} {
			f.Add(n, width)
		}
	}
	f.Fuzz(func(t *testing.T, name string, width int) {
		if width < 0 || width > 1000 {
			return
		}
		text := quote.Safe(name)
		cut := Middle(text, width)
		got := Pad(cut, width, true)
		if n := displaywidth.String(got); n != width || !utf8.ValidString(got) {
			t.Errorf("%q is %q, which takes %d columns of %d", text, got, n, width)
		}
		begin, end, was := strings.Cut(cut, "…")
		if displaywidth.String(text) > width && width > 0 && !strings.Contains(text, "…") && (!was || !strings.HasPrefix(text, begin) || !strings.HasSuffix(text, end)) {
			t.Errorf("%q is cut to %q", text, cut)
		}
		if rest := From(text, width); displaywidth.String(rest) != max(0, displaywidth.String(text)-width) {
			t.Errorf("%q from column %d on is %q", text, width, rest)
		}
	})
}
