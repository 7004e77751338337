package output

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

const promFile = "nodeskoop.prom"

// TestMain makes the test binary also serve as the writer that tests kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("NODESKOOP_TEST_WRITER"); dir != "" {
		writeForever(dir)
	}
	os.Exit(m.Run())
}

// writeForever writes files until it is killed. All values in a file are the same number,
// and the last family is the marker.
func writeForever(dir string) {
	tf, err := NewTextfile(dir, promFile, 0, nil)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fams := benchFamilies(20_000)
	fams = append(fams, family("marker", "The last family.", dto.MetricType_GAUGE, gauge(0)))
	parent := os.Getppid()
	for n := 0; os.Getppid() == parent; n++ {
		for _, f := range fams {
			for _, m := range f.Metric {
				switch {
				case m.Counter != nil:
					*m.Counter.Value = float64(n)
				case m.Histogram != nil:
					for _, b := range m.Histogram.Bucket {
						*b.CumulativeCount = uint64(n)
					}
					*m.Histogram.SampleCount, *m.Histogram.SampleSum = uint64(n), float64(n)
				default:
					*m.Gauge.Value = float64(n)
				}
			}
		}
		if err := tf.Write(fams); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if n == 0 {
			fmt.Println("ready")
		}
	}
}

// writer starts a writing process and waits for its first file.
func writer(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "NODESKOOP_TEST_WRITER="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the writing process says %q, %v", line, err)
	}
	return cmd
}

func small(v float64) []*dto.MetricFamily {
	return []*dto.MetricFamily{family("x", "h", dto.MetricType_GAUGE, gauge(v))}
}

func smallText(v float64) string {
	return fmt.Sprintf("# HELP x h\n# TYPE x gauge\nx %v\n", v)
}

func newTextfile(t *testing.T, dir string) (*Textfile, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	tf, err := NewTextfile(dir, promFile, 0, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tf.Close)
	return tf, log
}

func write(t *testing.T, tf *Textfile, v float64) {
	t.Helper()
	if err := tf.Write(small(v)); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// wantFile checks that the folder has the file with that value, and no other files than
// others.
func wantFile(t *testing.T, dir string, v float64, others ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, promFile))
	if err != nil || string(b) != smallText(v) {
		t.Errorf("the file holds %q, %v; want value %v", b, err, v)
	}
	names := append(others, promFile)
	slices.Sort(names)
	if got, want := list(t, dir), strings.Join(names, " "); got != want {
		t.Errorf("the folder holds %q, want %q", got, want)
	}
}

// wantFailure writes, and checks that the error wraps errno, has all the words, and is
// counted.
func wantFailure(t *testing.T, tf *Textfile, errno error, words ...string) {
	t.Helper()
	before := tf.Stats()
	err := tf.Write(small(-1))
	if !errors.Is(err, errno) {
		t.Fatalf("error %v, want %v", err, errno)
	}
	for _, w := range append(words, "write "+tf.Path(), errno.Error()) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q lacks %q", err, w)
		}
	}
	after := tf.Stats()
	if after.Failures != before.Failures+1 || after.Bytes != before.Bytes {
		t.Errorf("stats %+v, before %+v", after, before)
	}
}

// privateMounts moves the test's thread into a mount namespace of its own, so that its
// mounts disappear with it.
func privateMounts(t *testing.T) {
	t.Helper()
	need.Root(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatalf("unshare the mount namespace: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make the mounts private: %v", err)
	}
}

func mount(t *testing.T, source, target, typ string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, typ, flags, data); err != nil {
		t.Fatalf("mount %s %s on %s: %v", typ, source, target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func TestWriteReplacesTheFile(t *testing.T) {
	dir := t.TempDir()
	tf, log := newTextfile(t, dir)
	for v := range 5 {
		write(t, tf, float64(v))
		wantFile(t, dir, float64(v))
	}
	if s := tf.Stats(); s != (TextfileStats{Bytes: int64(len(smallText(4)))}) {
		t.Errorf("stats %+v", s)
	}
	if tf.Path() != filepath.Join(dir, promFile) {
		t.Errorf("path %s", tf.Path())
	}
	if err := tf.Remove(); err != nil {
		t.Error(err)
	}
	if l := list(t, dir); l != "" {
		t.Errorf("after Remove the folder holds %q", l)
	}
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log)
	}
}

func TestModeDoesNotDependOnTheUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for mode, want := range map[fs.FileMode]fs.FileMode{0: 0o644, 0o644: 0o644, 0o666: 0o666, 0o640: 0o640, 0o400: 0o400} {
		dir := t.TempDir()
		tf, err := NewTextfile(dir, promFile, mode, nil)
		if err != nil {
			t.Fatal(err)
		}
		write(t, tf, 1)
		write(t, tf, 2)
		fi, err := os.Stat(tf.Path())
		if err != nil || fi.Mode() != want {
			t.Errorf("mode %#o: got %v, %v", mode, fi.Mode(), err)
		}
		tf.Close()
	}
}

func TestBadArguments(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		dir, file string
		mode      fs.FileMode
		word      string
	}{
		{"", promFile, 0, "folder"},
		{"a\x00b", promFile, 0, "folder"},
		{dir, "", 0, "name"},
		{dir, ".", 0, "name"},
		{dir, "..", 0, "name"},
		{dir, "a/b.prom", 0, "name"},
		{dir, "../x.prom", 0, "name"},
		{dir, "a\x00.prom", 0, "name"},
		{dir, strings.Repeat("a", 256), 0, "255 bytes"},
		{dir, ".nodeskoop-x.tmp", 0, "temporary files"},
		{dir, promFile, 0o1644, "mode"},
		{dir, promFile, fs.ModeDir | 0o644, "mode"},
		{dir, promFile, 0o044, "mode"},
	} {
		tf, err := NewTextfile(c.dir, c.file, c.mode, nil)
		if err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("NewTextfile(%q, %q, %v): %v, %v", c.dir, c.file, c.mode, tf, err)
		}
	}
	if l := list(t, dir); l != "" {
		t.Errorf("the folder holds %q", l)
	}
}

func TestRelativeFolderStaysTheSame(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tf, _ := newTextfile(t, ".")
	t.Chdir("/")
	write(t, tf, 1)
	wantFile(t, dir, 1)
}

func TestMissingFolder(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "later")
	tf, _ := newTextfile(t, dir)
	if err := tf.Clean(); err != nil {
		t.Error(err)
	}
	for range 3 {
		wantFailure(t, tf, unix.ENOENT, "open the folder", "create the folder", "textfile.dir")
	}
	if l := list(t, parent); l != "" {
		t.Errorf("made %q", l)
	}
	if err := tf.Remove(); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 1)
	wantFile(t, dir, 1)

	// The folder is removed and recreated.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, tf, unix.ENOENT, "open the folder")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 2)
	wantFile(t, dir, 2)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := tf.Remove(); err != nil {
		t.Errorf("Remove without a folder: %v", err)
	}
}

func TestFolderIsSomethingElse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	if err := unix.Mkfifo(dir, 0o644); err != nil { // opening it would block forever
		t.Fatal(err)
	}
	tf, _ := newTextfile(t, dir)
	wantFailure(t, tf, unix.ENOTDIR, "set textfile.dir to a folder")
	if err := tf.Clean(); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("Clean: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("x", dir); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, tf, unix.ELOOP, "circle")
}

// Root ignores modes, so permissions are tested as another user.
func TestFolderWithoutPermission(t *testing.T) {
	need.Root(t)
	dir, err := os.MkdirTemp("", "nodeskoop-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tf, _ := newTextfile(t, dir)
	asNobody(t, func() {
		wantFailure(t, tf, unix.EACCES, "create a temporary file", "give user", "CAP_DAC_OVERRIDE")
	})
	if l := list(t, dir); l != "" {
		t.Errorf("the folder holds %q", l)
	}
}

// asNobody runs fn with an unprivileged user's file system rights.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	fn()
}

func TestReadOnlyFolder(t *testing.T) {
	privateMounts(t)
	dir := t.TempDir()
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	mount(t, dir, dir, "", unix.MS_BIND, "")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantFailure(t, tf, unix.EROFS, "create a temporary file", "ReadWritePaths=")
	}
	wantFile(t, dir, 1)
	if err := tf.Remove(); !errors.Is(err, unix.EROFS) {
		t.Errorf("Remove: %v", err)
	}
	wantFile(t, dir, 1)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 2)
	wantFile(t, dir, 2)
}

func TestReadOnlyFileSystem(t *testing.T) {
	privateMounts(t)
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", unix.MS_RDONLY, "size=64k")
	tf, _ := newTextfile(t, dir)
	wantFailure(t, tf, unix.EROFS, "create a temporary file", "read-only")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 1)
	wantFile(t, dir, 1)
}

func TestFullFileSystem(t *testing.T) {
	privateMounts(t)
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=128k,nr_inodes=20")
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	big := catalogueFamilies(20, func(f, s int) float64 { return float64(f * s) })
	for range 3 {
		// The write fails midway: there is room for a part only.
		err := tf.Write(big)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "write the temporary file") || !strings.Contains(err.Error(), "df -i") {
			t.Fatalf("error %v", err)
		}
		wantFile(t, dir, 1)
	}
	write(t, tf, 2) // the room was freed again
	wantFile(t, dir, 2)

	// No free byte: the file can be created, but not written.
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 124<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, tf, unix.ENOSPC, "write the temporary file", "free space")
	wantFile(t, dir, 2, "filler")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}

	// No free inode: the file cannot be created.
	var made []string
	for i := 0; ; i++ {
		name := filepath.Join(dir, fmt.Sprint("i", i))
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			break
		}
		made = append(made, name)
	}
	wantFailure(t, tf, unix.ENOSPC, "create a temporary file", "df -i")
	for _, name := range made {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	write(t, tf, 3)
	wantFile(t, dir, 3)
}

func TestFileSizeLimit(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 10, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &old)
	wantFailure(t, tf, unix.EFBIG, "write the temporary file", "limit on file sizes")
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	wantFile(t, dir, 1)
}

func TestTargetIsAFolder(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, promFile)
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	tf, _ := newTextfile(t, dir)
	for range 3 {
		wantFailure(t, tf, unix.EISDIR, "rename the temporary file to "+promFile, "a folder has the file's name")
	}
	if l := list(t, dir); l != promFile {
		t.Errorf("the folder holds %q", l)
	}
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 1)
	wantFile(t, dir, 1)
}

func TestTargetIsAMountPoint(t *testing.T) {
	privateMounts(t)
	dir := t.TempDir()
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	target := filepath.Join(dir, promFile)
	mount(t, target, target, "", unix.MS_BIND, "")
	for range 3 {
		wantFailure(t, tf, unix.EBUSY, "rename the temporary file to "+promFile, "mounted on the file")
	}
	wantFile(t, dir, 1)
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 2)
	wantFile(t, dir, 2)
}

// FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h.
const (
	immutable  = 0x10
	appendOnly = 0x20
)

// setFlag sets or clears an attribute of a file, as chattr does.
func setFlag(t *testing.T, path string, flag int, on bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	need.Kernel(t, !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP), "no attributes on the file system of "+path)
	if err != nil {
		t.Fatal(err)
	}
	if flags &^= flag; on {
		flags |= flag
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatalf("set attributes %#x of %s: %v", flags, path, err)
	}
}

// In an append-only folder a file can be created, but neither renamed nor removed. This
// must leave one empty file, not one per cycle.
func TestFileSystemRefusesRename(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	tf, log := newTextfile(t, dir)
	write(t, tf, 1)
	setFlag(t, dir, appendOnly, true)
	defer setFlag(t, dir, appendOnly, false)
	wantFailure(t, tf, unix.EPERM, "rename the temporary file to "+promFile, "lsattr", "then remove the temporary file .nodeskoop-")
	temp := strings.Fields(list(t, dir))[0]
	wantFile(t, dir, 1, temp)
	if fi, err := os.Stat(filepath.Join(dir, temp)); err != nil || fi.Size() != 0 {
		t.Errorf("%v, %v: want an empty file", fi, err)
	}
	for range 3 {
		wantFailure(t, tf, unix.EPERM, "remove the temporary file "+temp+" of an earlier write")
		wantFile(t, dir, 1, temp)
	}
	if err := tf.Clean(); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), temp) {
		t.Errorf("Clean: %v", err)
	}
	setFlag(t, dir, appendOnly, false)
	write(t, tf, 2)
	wantFile(t, dir, 2)
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log)
	}
}

func TestFolderIsImmutable(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	setFlag(t, dir, immutable, true)
	defer setFlag(t, dir, immutable, false)
	wantFailure(t, tf, unix.EPERM, "create a temporary file", "lsattr")
	if err := tf.Remove(); !errors.Is(err, unix.EPERM) {
		t.Errorf("Remove: %v", err)
	}
	wantFile(t, dir, 1)
}

func TestPlantedSymlinkIsReplaced(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(other, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	tf, log := newTextfile(t, dir)
	for v, target := range []string{other, "missing", promFile} {
		_ = os.Remove(tf.Path())
		if err := os.Symlink(target, tf.Path()); err != nil {
			t.Fatal(err)
		}
		write(t, tf, float64(v))
		wantFile(t, dir, float64(v))
		if fi, err := os.Lstat(tf.Path()); err != nil || !fi.Mode().IsRegular() {
			t.Errorf("%v, %v", fi.Mode(), err)
		}
		if !strings.Contains(log.String(), "link="+target) {
			t.Errorf("not logged:\n%s", log)
		}
	}
	if b, err := os.ReadFile(other); err != nil || string(b) != "precious" {
		t.Errorf("the link's target holds %q, %v", b, err)
	}
	if fi, _ := os.Stat(other); fi.Mode() != 0o600 {
		t.Errorf("the link's target has mode %v", fi.Mode())
	}
}

// notFiles make files that a textfile must not replace, by their name in the error.
var notFiles = map[string]func(path string) error{
	"a FIFO": func(path string) error { return unix.Mkfifo(path, 0o644) },
	"a socket": func(path string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	},
	"a character device": func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
	"a block device":     func(path string) error { return unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(7, 250))) },
}

// A file that is not regular stays unchanged, whether it exists before the Textfile or
// appears later, and whether it is found directly or through links.
func TestOnlyFilesAreReplaced(t *testing.T) {
	need.Root(t)
	short := func(t *testing.T) string { // socket paths must be short
		dir, err := os.MkdirTemp("", "ns")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	refused := func(t *testing.T, dir, what string) {
		t.Helper()
		path := filepath.Join(dir, promFile)
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewTextfile(dir, promFile, 0, nil); !errors.Is(err, ErrNotReplaced) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), path) {
			t.Errorf("NewTextfile: %v", err)
		}
		// It appears after the Textfile was made.
		if err := os.Rename(path, path+".aside"); err != nil {
			t.Fatal(err)
		}
		tf, _ := newTextfile(t, dir)
		if err := os.Rename(path+".aside", path); err != nil {
			t.Fatal(err)
		}
		if err := tf.Write(small(1)); !errors.Is(err, ErrNotReplaced) || !strings.Contains(err.Error(), what) {
			t.Errorf("Write: %v", err)
		}
		if tf.Stats().Failures != 1 {
			t.Errorf("%+v", tf.Stats())
		}
		after, err := os.Lstat(path)
		if err != nil || !os.SameFile(before, after) || after.Mode() != before.Mode() {
			t.Errorf("it was %v, and is %v, %v", before.Mode(), after, err)
		}
		if left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) > 0 || err != nil {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		write(t, tf, 2) // writing continues when it is gone
		wantFile(t, dir, 2)
	}
	for what, makeIt := range notFiles {
		t.Run(what, func(t *testing.T) {
			dir := short(t)
			if err := makeIt(filepath.Join(dir, promFile)); err != nil {
				t.Fatal(err)
			}
			refused(t, dir, what)
		})
		t.Run("links to "+what, func(t *testing.T) {
			dir := short(t)
			if err := makeIt(filepath.Join(dir, "it")); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Symlink("it", filepath.Join(dir, "link")), os.Symlink(filepath.Join(dir, "link"), filepath.Join(dir, promFile))); err != nil {
				t.Fatal(err)
			}
			if _, err := NewTextfile(dir, promFile, 0, nil); !errors.Is(err, ErrNotReplaced) || !strings.Contains(err.Error(), what) {
				t.Errorf("NewTextfile: %v", err)
			}
			if fi, err := os.Lstat(filepath.Join(dir, promFile)); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
				t.Errorf("the link is %v, %v", fi, err)
			}
		})
	}
	// These links lead to an open file, which may be a regular one.
	file, err := os.Create(filepath.Join(t.TempDir(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, to := range []string{"/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "../../../../../../../dev/fd/1", fmt.Sprintf("/dev/fd/%d", file.Fd()), "/dev/fd/12345"} {
		t.Run("a link to "+to, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Symlink(to, filepath.Join(dir, promFile)); err != nil {
				t.Fatal(err)
			}
			refused(t, dir, "open file of a process")
		})
	}
	for _, dir := range []string{"/dev/fd", "/proc/self/fd"} {
		if _, err := NewTextfile(dir, "1", 0, nil); !errors.Is(err, ErrNotReplaced) || !strings.Contains(err.Error(), "procfs") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// In a folder such as /tmp a file may belong to another user.
func TestOtherUsersFilesInAStickyFolder(t *testing.T) {
	need.Root(t)
	for name, c := range map[string]struct {
		mode           fs.FileMode
		folder, file   int
		link, replaced bool
	}{
		"another user's":           {fs.ModeSticky | 0o777, 0, 1000, false, false},
		"another user's link":      {fs.ModeSticky | 0o777, 0, 1000, true, false},
		"one's own":                {fs.ModeSticky | 0o777, 1000, 0, false, true},
		"the folder's owner's":     {fs.ModeSticky | 0o777, 1000, 1000, false, true},
		"not sticky":               {0o775, 0, 1000, false, true},
		"sticky, but not open":     {fs.ModeSticky | 0o755, 0, 1000, false, true},
		"sticky, open to a group":  {fs.ModeSticky | 0o775, 0, 1000, false, false},
		"one's own link to a file": {fs.ModeSticky | 0o777, 0, 0, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			path := filepath.Join(dir, promFile)
			err := os.Mkdir(dir, 0o755)
			if c.link {
				err = errors.Join(err, os.WriteFile(dir+"/target", []byte("old"), 0o644), os.Symlink("target", path))
			} else {
				err = errors.Join(err, os.WriteFile(path, []byte("old"), 0o644))
			}
			if err = errors.Join(err, os.Lchown(path, c.file, 0), os.Lchown(dir, c.folder, 0), os.Chmod(dir, c.mode)); err != nil {
				t.Fatal(err)
			}
			tf, err := NewTextfile(dir, promFile, 0, nil)
			if !c.replaced {
				if !errors.Is(err, ErrNotReplaced) || !strings.Contains(err.Error(), "user 1000") {
					t.Errorf("%v", err)
				}
				if b, err := os.ReadFile(path); string(b) != "old" {
					t.Errorf("%q, %v", b, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			write(t, tf, 1)
			tf.Close()
			if b, err := os.ReadFile(path); string(b) != smallText(1) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

func TestFolderBecomesASymlink(t *testing.T) {
	parent := t.TempDir()
	dir, other := filepath.Join(parent, "dir"), filepath.Join(parent, "other")
	for _, d := range []string{dir, other} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tf, log := newTextfile(t, dir)
	write(t, tf, 1)
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log)
	}
	// The same folder behind a link is not logged.
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("dir2", dir); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 2)
	wantFile(t, dir+"2", 2)
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log)
	}
	// Another folder is logged once.
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", dir); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 3)
	write(t, tf, 4)
	wantFile(t, dir+"2", 2)
	wantFile(t, other, 4)
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "before="+dir+" now="+other) {
		t.Errorf("log:\n%s", log)
	}
	// The file in the previous folder is no longer held, and counts as another
	// writer's.
	if err := tf.Remove(); err != nil {
		t.Fatal(err)
	}
	if l := list(t, other); l != "" {
		t.Errorf("after Remove: %q", l)
	}
	wantFile(t, dir+"2", 2)
}

// While a path alternates between two folders, each has complete files only, and no
// leftovers.
func TestFolderSwappedWhileWriting(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "dir")
	stop, swapped := make(chan struct{}), make(chan struct{})
	for _, d := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(parent, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", dir); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(swapped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := filepath.Join(parent, "next")
			if err := errors.Join(os.Symlink([]string{"b", "a"}[i%2], next), os.Rename(next, dir)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	tf, _ := newTextfile(t, dir)
	for v := range 2000 {
		write(t, tf, float64(v))
	}
	close(stop)
	<-swapped
	for _, d := range []string{"a", "b"} {
		d = filepath.Join(parent, d)
		if l := list(t, d); l != promFile {
			t.Errorf("%s holds %q", d, l)
		}
		b, err := os.ReadFile(filepath.Join(d, promFile))
		if err != nil || seriesOf(parse(t, string(b))) != 1 {
			t.Errorf("%s: %q, %v", d, b, err)
		}
	}
}

func TestRemoveLeavesWhatIsNotOurs(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"another file": func(p string) error { return os.WriteFile(p, []byte("theirs"), 0o644) },
		"a symlink":    func(p string) error { return os.Symlink("/dev/null", p) },
		"a folder":     func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tf, _ := newTextfile(t, dir)
			write(t, tf, 1)
			if err := errors.Join(os.Remove(tf.Path()), plant(tf.Path())); err != nil {
				t.Fatal(err)
			}
			if err := tf.Remove(); err == nil || !strings.Contains(err.Error(), "left as it is") {
				t.Errorf("Remove: %v", err)
			}
			if l := list(t, dir); l != promFile {
				t.Errorf("the folder holds %q", l)
			}
		})
	}
	t.Run("nothing written", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, promFile), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		tf, _ := newTextfile(t, dir)
		if err := tf.Remove(); err != nil {
			t.Error(err)
		}
		if l := list(t, dir); l != promFile {
			t.Errorf("the folder holds %q", l)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		tf, _ := newTextfile(t, t.TempDir())
		write(t, tf, 1)
		if err := errors.Join(os.Remove(tf.Path()), tf.Remove()); err != nil {
			t.Error(err)
		}
	})
}

func TestCleanRemovesLeftoversOnly(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, mode fs.FileMode, age time.Duration) {
		p := filepath.Join(dir, name)
		when := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(p, []byte("x"), mode), os.Chmod(p, mode), os.Chtimes(p, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	put(".nodeskoop-young.tmp", 0o644, 0)
	put(".nodeskoop-old.tmp", 0o600, time.Hour)
	put(".nodeskoop-unlocked-old.tmp", unlockedMode, lockGrace+time.Second)
	put(".nodeskoop-unlocked-young.tmp", unlockedMode, 0) // its writer may be about to lock it
	put(".other-old.tmp", 0o644, time.Hour)
	put(".nodeskoop-old.tmp2", 0o644, time.Hour)
	put("node.prom", 0o644, time.Hour)
	if err := os.Mkdir(filepath.Join(dir, ".nodeskoop-d.tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("node.prom", filepath.Join(dir, ".nodeskoop-l.tmp")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, ".nodeskoop-p.tmp"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A live writer, however old its file is.
	tf, log := newTextfile(t, dir)
	root, err := tf.at.open()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	live, liveName, err := create(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := tf.claim(live); err != nil {
		t.Fatal(err)
	}
	put(liveName, 0o644, time.Hour)

	if err := tf.Clean(); err != nil {
		t.Fatal(err)
	}
	want := ".nodeskoop-d.tmp .nodeskoop-l.tmp .nodeskoop-old.tmp2 .nodeskoop-p.tmp .nodeskoop-unlocked-young.tmp .other-old.tmp node.prom"
	if l := strings.Replace(list(t, dir), liveName+" ", "", 1); l != want {
		t.Errorf("the folder holds\n%q, want\n%q", l, want)
	}
	if !strings.Contains(list(t, dir), liveName) {
		t.Error("the file of a live writer was removed")
	}
	if n := strings.Count(log.String(), "removed the temporary file"); n != 3 {
		t.Errorf("log:\n%s", log)
	}
	live.Close()
	if err := tf.Clean(); err != nil || strings.Contains(list(t, dir), liveName) {
		t.Errorf("%v: the file of a writer that is gone stays", err)
	}
}

// A write cleans a folder that is new to the process, also one that appears later.
func TestWriteCleansANewFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	tf, _ := newTextfile(t, dir)
	wantFailure(t, tf, unix.ENOENT)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".nodeskoop-1.tmp"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 1)
	wantFile(t, dir, 1)
}

func TestSecondWriterIsRefused(t *testing.T) {
	dir := t.TempDir()
	cmd := writer(t, dir)
	for range 50 { // while the writer keeps writing
		tf, err := NewTextfile(dir, promFile, 0, nil)
		if !errors.Is(err, ErrInUse) {
			t.Fatalf("%v, %v; want ErrInUse", tf, err)
		}
		for _, w := range []string{filepath.Join(dir, promFile), "another process writes this file", "stop it", "fuser -v"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q lacks %q", err, w)
			}
		}
	}
	// Another name in the same folder is not taken.
	other, err := NewTextfile(dir, "other.prom", 0, nil)
	if err != nil || other.Write(small(1)) != nil {
		t.Errorf("another name: %v", err)
	}
	other.Close()
	cmd.Process.Kill()
	cmd.Wait()
	_, empty := leftovers(t, dir)
	outlive(t, dir, empty)
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	wantFile(t, dir, 1, "other.prom")
}

// Two writers start at the same moment without a file: one continues, and the other is
// refused from its next write on.
func TestOneOfTwoWritersGoesOn(t *testing.T) {
	dir := t.TempDir()
	a, _ := newTextfile(t, dir)
	b, _ := newTextfile(t, dir)
	var wg sync.WaitGroup
	failed := make([]int, 2)
	for i, tf := range []*Textfile{a, b} {
		wg.Go(func() {
			for v := range 500 {
				if err := tf.Write(small(float64(v))); errors.Is(err, ErrInUse) {
					failed[i]++
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if (failed[0] == 0) == (failed[1] == 0) || failed[0]+failed[1] < 490 {
		t.Errorf("%d of the one's writes and %d of the other's were refused, of 500 each; want none and nearly all", failed[0], failed[1])
	}
	winner := a
	if failed[0] > 0 {
		winner = b
	}
	write(t, winner, 1)
	wantFile(t, dir, 1)
	if err := winner.Remove(); err != nil {
		t.Error(err)
	}
	write(t, a, 2) // the file is released now
	wantFile(t, dir, 2)
}

// A process that may only read the file cannot block the writer.
func TestReadersCannotLockTheWriterOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, promFile)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		t.Fatal(err)
	}
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	wantFile(t, dir, 1)
}

// A process that hangs with the file open does not hold it forever, and is refused when it
// wakes up.
func TestTakeOverFromAStuckWriter(t *testing.T) {
	dir := t.TempDir()
	stuck, _ := newTextfile(t, dir)
	write(t, stuck, 1)
	if tf, err := NewTextfile(dir, promFile, 0, nil); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, %v", tf, err)
	}
	old := time.Now().Add(-takeOverAge - time.Second)
	if err := os.Chtimes(stuck.Path(), old, old); err != nil {
		t.Fatal(err)
	}
	tf, log := newTextfile(t, dir)
	if !strings.Contains(log.String(), "taking over") {
		t.Errorf("log:\n%s", log)
	}
	write(t, tf, 2)
	wantFailure(t, stuck, ErrInUse)
	wantFile(t, dir, 2)
	if err := stuck.Remove(); err == nil || !strings.Contains(err.Error(), "left as it is") {
		t.Errorf("Remove: %v", err)
	}
	write(t, tf, 3)
	wantFile(t, dir, 3)
}

// A writer with a long interval is not stuck between two writes.
func TestLongIntervalIsNotStuck(t *testing.T) {
	dir := t.TempDir()
	first, err := NewTextfileOf(time.Hour, dir, promFile, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, first, 1)
	aged := func(age time.Duration) {
		at := time.Now().Add(-age)
		if err := os.Chtimes(first.Path(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	aged(time.Hour)
	if tf, err := NewTextfileOf(time.Hour, dir, promFile, 0, nil); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, %v", tf, err)
	}
	write(t, first, 2)
	aged(takeOverMissed*time.Hour + time.Minute)
	second, err := NewTextfileOf(time.Hour, dir, promFile, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, second, 3)
	wantFailure(t, first, ErrInUse)
	second.SetInterval(time.Second)
	first.SetInterval(time.Second)
	aged(takeOverAge + time.Second)
	write(t, first, 4)
	wantFile(t, dir, 4)
}

func TestCloseKeepsTheFileAndLetsItGo(t *testing.T) {
	dir := t.TempDir()
	tf, _ := newTextfile(t, dir)
	write(t, tf, 1)
	tf.Close()
	tf.Close()
	wantFile(t, dir, 1)
	next, _ := newTextfile(t, dir)
	write(t, next, 2)
	wantFile(t, dir, 2)
}

func TestRetarget(t *testing.T) {
	parent := t.TempDir()
	a, b := filepath.Join(parent, "a"), filepath.Join(parent, "b")
	for _, d := range []string{a, b} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("b", filepath.Join(parent, "link")); err != nil {
		t.Fatal(err)
	}
	tf, log := newTextfile(t, a)
	write(t, tf, 1)

	// The same place: the file stays until the next write.
	if err := tf.Retarget(a+"/../a/", promFile, 0o640); err != nil {
		t.Fatal(err)
	}
	wantFile(t, a, 1)
	write(t, tf, 2)
	if fi, err := os.Stat(tf.Path()); err != nil || fi.Mode() != 0o640 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}

	// An invalid place changes nothing.
	theirs, _ := newTextfile(t, b)
	write(t, theirs, 100)
	if err := tf.Retarget(b, promFile, 0); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want ErrInUse", err)
	}
	if err := tf.Retarget(b, "x/y", 0); err == nil {
		t.Error("accepted x/y")
	}
	write(t, tf, 3)
	wantFile(t, a, 3)
	theirs.Close()

	// Another place: the old file is removed.
	if err := tf.Retarget(b, promFile, 0); err != nil {
		t.Fatal(err)
	}
	if l := list(t, a); l != "" {
		t.Errorf("the old folder holds %q", l)
	}
	wantFile(t, b, 100)
	write(t, tf, 4)
	wantFile(t, b, 4)

	// The same file by another path, and then another name.
	if err := tf.Retarget(filepath.Join(parent, "link"), promFile, 0); err != nil {
		t.Fatal(err)
	}
	wantFile(t, b, 4)
	write(t, tf, 5)
	wantFile(t, b, 5)
	if err := tf.Retarget(b, "other.prom", 0); err != nil {
		t.Fatal(err)
	}
	write(t, tf, 6)
	if l := list(t, b); l != "other.prom" {
		t.Errorf("the folder holds %q", l)
	}

	// A folder that does not exist yet.
	if err := tf.Retarget(filepath.Join(parent, "c"), promFile, 0); err != nil {
		t.Fatal(err)
	}
	if l := list(t, b); l != "" {
		t.Errorf("the folder holds %q", l)
	}
	wantFailure(t, tf, unix.ENOENT)
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log)
	}
}

func TestNoDescriptorIsLost(t *testing.T) {
	dir := t.TempDir()
	before := testkit.OpenFiles(t)
	tf, _ := newTextfile(t, dir)
	other, _ := newTextfile(t, dir)
	for v := range 50 {
		write(t, tf, float64(v))
		wantFailure(t, other, ErrInUse)
		if err := tf.Clean(); err != nil {
			t.Fatal(err)
		}
	}
	if n := testkit.OpenFiles(t); n != before+1 {
		t.Errorf("%d descriptors open, want %d and the file in place", n, before)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.prom"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tf.Retarget(dir, "folder.prom", 0); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		wantFailure(t, tf, unix.EISDIR)
	}
	if n := testkit.OpenFiles(t); n != before {
		t.Errorf("%d descriptors open after failures, want %d", n, before)
	}
}

func TestStatsDuringWrites(t *testing.T) {
	tf, _ := newTextfile(t, t.TempDir())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for v := range 50 {
				if err := tf.Write(small(float64(v % 10))); err != nil {
					t.Error(err)
				}
				if s := tf.Stats(); s.Bytes != int64(len(smallText(1))) || s.Failures != 0 || tf.Path() == "" {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	wg.Wait()
}

// The writer is killed repeatedly, at any point of a write, and restarted at once. A reader
// always sees one complete file, and a killed writer's leftovers are gone after the next
// write.
func TestKilledWriterTearsNothing(t *testing.T) {
	need.Short(t)
	dir := t.TempDir()
	path := filepath.Join(dir, promFile)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	var reads, whole int
	var size int
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) && reads == 0 {
				continue // the first writer has not written yet
			}
			if err != nil {
				t.Error(err)
				return
			}
			reads++
			size = len(b)
			if !oneWrite(b) {
				t.Errorf("a torn file of %d bytes, beginning with %.300q and ending with %q", len(b), b, b[max(0, len(b)-300):])
				return
			}
			if reads%200 == 1 {
				whole++
				parse(t, string(b))
			}
		}
	})
	kills, midway, most := 0, 0, 0
	deadline := time.Now().Add(12 * time.Second)
	for kills < 40 || midway < 5 && time.Now().Before(deadline) {
		cmd := writer(t, dir)
		time.Sleep(time.Duration(rand.IntN(60_000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		kills++
		locked, _ := leftovers(t, dir)
		most = max(most, len(locked))
		midway += len(locked)
	}
	close(stop)
	reader.Wait()
	t.Logf("%d kills, %d of them midway; %d reads of %d bytes, %d parsed", kills, midway, reads, size, whole)
	if midway == 0 {
		t.Error("no kill hit a write midway: nothing was tested")
	}
	if most > 1 {
		t.Errorf("leftovers pile up: %d at a time", most)
	}
	if size < 2<<20 {
		t.Errorf("the file had %d bytes: too small to be torn", size)
	}
	tf, _ := newTextfile(t, dir)
	if err := tf.Clean(); err != nil {
		t.Error(err)
	}
	locked, empty := leftovers(t, dir)
	if len(locked) > 0 {
		t.Errorf("after Clean the folder still holds %q", locked)
	}
	outlive(t, dir, empty)
	write(t, tf, 1)
	wantFile(t, dir, 1)
}

// leftovers are the temporary files in a folder. A writer that was killed before it locked
// its file leaves an empty one, for lockGrace.
func leftovers(t *testing.T, dir string) (locked, empty []string) {
	t.Helper()
	for name := range strings.FieldsSeq(list(t, dir)) {
		if !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() == unlockedMode && fi.Size() == 0 {
			empty = append(empty, name)
		} else {
			locked = append(locked, name)
		}
	}
	return locked, empty
}

// outlive makes files older than lockGrace.
func outlive(t *testing.T, dir string, names []string) {
	t.Helper()
	then := time.Now().Add(-lockGrace)
	for _, name := range names {
		if err := os.Chtimes(filepath.Join(dir, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
}

// oneWrite reports whether b is one complete write of writeForever: all values are equal,
// and the marker is last.
func oneWrite(b []byte) bool {
	last := bytes.LastIndexByte(bytes.TrimSuffix(b, []byte("\n")), '\n')
	value, ok := bytes.CutPrefix(b[last+1:], []byte("marker "))
	if !ok || !bytes.HasSuffix(value, []byte("\n")) {
		return false
	}
	lines := 0
	for l := range bytes.Lines(b) {
		if l[0] != '#' {
			lines++
			if i := bytes.LastIndexByte(l, ' '); !bytes.Equal(l[i+1:], value) {
				return false
			}
		}
	}
	return lines >= 20_000
}
