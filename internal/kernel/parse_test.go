package kernel

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	const tail = " 7 1 1 0 -1 4194304 100 23 0 0 1 2 3 4 20 0 3 0 777"
	for _, x := range []struct {
		file, wrong string
		want        Stat
		ended       bool
	}{
		{file: "42 (a) b (c\n) R" + tail + " 1000 5\n", want: Stat{'R', 7, 4194304, 100, 23, 3, 777}},
		{file: "42 (a) b ) (x) S" + tail + "\n", want: Stat{'S', 7, 4194304, 100, 23, 3, 777}},
		{file: "42 () Z" + tail + "\n", want: Stat{'Z', 7, 4194304, 100, 23, 3, 777}, ended: true},
		{file: "42 (a) X" + tail + "\n", want: Stat{'X', 7, 4194304, 100, 23, 3, 777}, ended: true},
		{file: "42 (a) R" + strings.Replace(tail, "4194304", "4194308", 1) + "\n", want: Stat{'R', 7, 4194308, 100, 23, 3, 777}, ended: true},
		{wrong: `stat line 1: "" is not what a kernel prints`},
		{file: "42 (a", wrong: "is not what a kernel prints"},
		{file: "42 (a) R 7", wrong: "is not what a kernel prints"},
		{file: "42 (a) R" + tail, wrong: "is not what a kernel prints"},
		{file: "42 (a)\n", wrong: `the state ""`},
		{file: "42 (a) RS 7\n", wrong: `the state "RS"`},
		{file: "42 (a) R\n", wrong: `stat line 1: field 4, "", is not a number`},
		{file: "42 (a) R y\n", wrong: `field 4, "y", is not a number`},
		{file: "42 (a) R 7 1 1 0 -1 4194304 x\n", wrong: `field 10, "x", is not a number`},
		{file: "42 (a) R" + tail[:40] + "\n", wrong: "is not a number"},
	} {
		got, err := ParseStat([]byte(x.file))
		if got != x.want && x.wrong == "" || got.Ended() != x.ended && x.wrong == "" || (err == nil) != (x.wrong == "") || err != nil && !strings.Contains(err.Error(), x.wrong) {
			t.Errorf("%q: %+v, %v, want %+v, %q", x.file, got, err, x.want, x.wrong)
		}
	}
}

func FuzzStat(f *testing.F) {
	files, _ := filepath.Glob("../../collect/proc/testdata/*/self/stat")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("812 (a) b ) (x) S 811 812 812 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 55667788 9 10\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		one, err := ParseStat(b)
		if two, err2 := ParseStat(b); one != two || (err == nil) != (err2 == nil) {
			t.Errorf("%+v (%v), then %+v (%v)", one, err, two, err2)
		}
	})
}

func TestNumbers(t *testing.T) {
	const most = "18446744073709551615"
	for _, x := range []struct {
		text                string
		uint, gauge, hex    uint64
		isUint, isGauge, ok bool // ok: it is a valid hexadecimal number
	}{
		{text: ""}, {text: "-"}, {text: "+1"}, {text: "1 "}, {text: "0x1"}, {text: "1_0"}, {text: "x"}, {text: "123456789012345678901"},
		{text: "0", isUint: true, isGauge: true, ok: true},
		{text: "007", uint: 7, gauge: 7, hex: 7, isUint: true, isGauge: true, ok: true},
		{text: "-1", isGauge: true},
		{text: most, uint: 1<<64 - 1, isUint: true, isGauge: true},
		{text: "18446744073709551616"},
		{text: "9223372036854775807", uint: 1<<63 - 1, gauge: 1<<63 - 1, isUint: true, isGauge: true},
		{text: "fF", hex: 255, ok: true},
		{text: "ffffffffffffffff", hex: 1<<64 - 1, ok: true},
		{text: "10000000000000000", uint: 1e16, gauge: 1e16, isUint: true, isGauge: true},
	} {
		if n, ok := Uint([]byte(x.text)); ok != x.isUint || ok && n != x.uint {
			t.Errorf("Uint(%q) = %d, %v", x.text, n, ok)
		}
		if n, ok := Gauge([]byte(x.text)); ok != x.isGauge || ok && n != x.gauge {
			t.Errorf("Gauge(%q) = %d, %v", x.text, n, ok)
		}
		if n, ok := Hex([]byte(x.text)); ok != x.ok || ok && n != x.hex {
			t.Errorf("Hex(%q) = %d, %v", x.text, n, ok)
		}
		if n, ok := Hex32([]byte(x.text)); ok != (x.ok && x.hex < 1<<32) || ok && uint64(n) != x.hex {
			t.Errorf("Hex32(%q) = %d, %v", x.text, n, ok)
		}
	}
}

func TestSince32(t *testing.T) {
	for _, x := range []struct {
		before, now uint32
		want        uint64
	}{{0, 0, 0}, {5, 7, 2}, {0xFFFFFFFF, 0, 1}, {0xFFFFFFF0, 0x10, 0x20}, {7, 5, 0}, {0, 1<<31 - 1, 1<<31 - 1}, {0, 1 << 31, 0}} {
		if got := Since32(x.now, x.before); got != x.want {
			t.Errorf("from %d to %d: %d, want %d", x.before, x.now, got, x.want)
		}
	}
}

func TestLines(t *testing.T) {
	l := Lines{File: "net/x", Rest: []byte("a b\n\n\tc  d \ncut")}
	var got []string
	for {
		line, ok, err := l.Next()
		if err != nil {
			if want := `net/x line 4: the file ends within it: "cut"`; err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
			break
		}
		if !ok {
			t.Fatal("a cut line is no error")
		}
		for f, rest := Field(line); len(f) > 0; f, rest = Field(rest) {
			got = append(got, string(f))
		}
	}
	if strings.Join(got, ",") != "a,b,c,d" {
		t.Errorf("%q", got)
	}
}

// entry is a struct linux_dirent64.
func entry(name string) []byte {
	b := make([]byte, (19+len(name)+1+7)&^7)
	b[16] = byte(len(b))
	copy(b[19:], name)
	return b
}

func TestEntries(t *testing.T) {
	b := append(entry("0"), entry("12345")...)
	var got []string
	for len(b) > 0 {
		name, _, rest, ok := nextEntry(b)
		if !ok {
			t.Fatal("not ok")
		}
		got = append(got, string(name))
		b = rest
	}
	if strings.Join(got, ",") != "0,12345" {
		t.Errorf("%q", got)
	}
	for _, bad := range [][]byte{nil, make([]byte, 18), make([]byte, 24), append(make([]byte, 16), 24, 0, 0, 0, 0, 0, 0, 0), append(make([]byte, 16), 255, 255, 0, '1', 0)} {
		if name, _, _, ok := nextEntry(bad); ok {
			t.Errorf("%v is taken for %q", bad, name)
		}
	}
	// A real directory, read in several pieces.
	dir, want := t.TempDir(), map[string]byte{}
	for i := range 200 {
		name := strings.Repeat("n", i+1)
		typ := byte(unix.DT_REG)
		if i%3 == 0 {
			typ = unix.DT_DIR
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		want[name] = typ
	}
	fd, err := Open(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := Entries(fd, make([]byte, 1024), func(name string, typ byte) error {
		if w, ok := want[name]; !ok || typ != w && typ != unix.DT_UNKNOWN {
			t.Errorf("%q has type %d, want %d", name, typ, w)
		}
		delete(want, strings.Clone(name))
		return nil
	}); err != nil || len(want) > 0 {
		t.Errorf("%v; %d are missing", err, len(want))
	}
	if err := Entries(fd, make([]byte, 1), nil); err == nil {
		_, _ = unix.Seek(fd, 0, unix.SEEK_SET)
		if err = Entries(fd, make([]byte, 1), nil); err == nil {
			t.Error("a buffer without room for an entry is no error")
		}
	}
}

func FuzzEntry(f *testing.F) {
	f.Add(append(make([]byte, 16), 24, 0, 0, '1', 0, 0, 0, 0))
	f.Add(append(entry("."), entry("name")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for n := len(b); n > 0; {
			name, _, rest, ok := nextEntry(b)
			if !ok {
				return
			}
			if len(rest) >= n || len(name) == 0 || strings.IndexByte(string(name), 0) >= 0 {
				t.Fatalf("%q, %d bytes left of %d", name, len(rest), n)
			}
			b, n = rest, len(rest)
		}
	})
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("0123456789", 1000)
	for name, text := range map[string]string{"empty": "", "short": "abc", "long": long, strings.Repeat("n", 255): "of 255"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 0, 2)
		b, err := ReadFile(unix.AT_FDCWD, filepath.Join(dir, name), buf)
		if err != nil || string(b) != text {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		b, err = ReadSmall(unix.AT_FDCWD, filepath.Join(dir, name), make([]byte, len(text)+1))
		if err != nil || string(b) != text {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		if _, err = ReadSmall(unix.AT_FDCWD, filepath.Join(dir, name), make([]byte, len(text))); err != unix.EFBIG && len(text) > 0 {
			t.Errorf("%s fills the buffer: %v", name, err)
		}
	}
	for name, want := range map[string]error{"nowhere": unix.ENOENT, "short\x00": unix.EINVAL, ".": unix.EISDIR, strings.Repeat("n", 256): unix.ENAMETOOLONG, strings.Repeat("n/", 3000): unix.ENAMETOOLONG} {
		if _, err := ReadFile(unix.AT_FDCWD, dir+"/"+name, nil); err != want {
			t.Errorf("%.20q: %v, want %v", name, err, want)
		}
	}
	if err := os.Symlink("socket:[12345]", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	fd, err := Open(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if b, err := ReadLink(fd, "link", make([]byte, 7)); err != nil || string(b) != "socket:" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := ReadLink(fd, "short", make([]byte, 7)); err != unix.EINVAL {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if fd, err := OpenProcess("/proc", os.Getpid(), "/stat", 0); err == nil {
			_ = unix.Close(fd)
		}
		_, _ = ReadLink(fd, "link", nil)
	}); n != 0 {
		t.Errorf("%v allocations for opening a file and reading a link", n)
	}
}

// tree makes a procfs from files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func stat(pid int, state string) string {
	return strconv.Itoa(pid) + " (x) " + state + " 1 1 1 0 -1 0 5 6 0 0 1 2 3 4 20 0 1 0 100\n"
}
