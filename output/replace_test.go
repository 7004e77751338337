package output

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	for _, s := range []string{"first", "second"} {
		if err := ReplaceFile(in("page.html"), 0o640, text(s)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(in("page.html")); string(b) != s || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	if fi, err := os.Stat(in("page.html")); err != nil || fi.Mode() != 0o640 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	torn := errors.New("torn")
	if err := ReplaceFile(in("page.html"), 0o640, func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return torn }); !errors.Is(err, torn) {
		t.Error(err)
	}
	// A path that is not a regular file stays unchanged.
	if err := errors.Join(os.Mkdir(in("folder"), 0o755), unix.Mkfifo(in("fifo"), 0o644), os.Symlink("/dev/null", in("null")), os.Symlink("page.html", in("link"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{in("folder"), "name a file"}, {in("fifo"), "a FIFO"}, {in("null"), "a character device"}, {"/dev/null", "a character device"},
		{in("none/page.html"), "no such folder"}, {in("page.html/x"), "no such folder"}, {"", "name a file"}, {dir + "/", "name a file"}, {"/proc/self/fd/1", "procfs"},
	} {
		if err := ReplaceFile(c.path, 0o640, text("x")); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
	if b, err := os.ReadFile(in("page.html")); string(b) != "second" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := ReplaceFile(in("link"), 0o640, text("third")); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(in("page.html")); string(b) != "second" || err != nil {
		t.Errorf("a link was followed: %q, %v", b, err)
	}
	list, err := os.ReadDir(dir)
	if len(list) != 5 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}
