package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// newNetns makes a network namespace that lives until the end of the test.
func newNetns(t *testing.T) (fd int, path string, inode uint64) {
	t.Helper()
	need.Root(t)
	var err error
	offMain(func() {
		// The thread is never unlocked, so it ends with its goroutine.
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			fd, err = Open(unix.AT_FDCWD, OwnNetns, 0)
		}
		runtime.LockOSThread()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if inode, err = FileInode(fd); err != nil {
		t.Fatal(err)
	}
	return fd, "/proc/self/fd/" + strconv.Itoa(fd), inode
}

// offMain runs fn on a locked thread other than the main thread, which cannot end.
func offMain(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if unix.Gettid() == os.Getpid() {
			offMain(fn)
			return
		}
		fn()
	}()
	<-done
}

func here(t *testing.T) uint64 {
	inode, err := Inode(OwnNetns)
	if err != nil {
		t.Error(err)
	}
	return inode
}

// TestInNetns: fn runs in the namespace, and no thread of the process stays there, however
// fn ends.
func TestInNetns(t *testing.T) {
	fd, path, inode := newNetns(t)
	self := here(t)
	no := errors.New("no luck")
	for name, x := range map[string]struct {
		fn    func() error
		wrong string
	}{
		"good":  {func() error { return nil }, ""},
		"error": {func() error { return no }, "no luck"},
		"panic": {func() error { panic("boom") }, "panic: boom"},
		"end":   {func() error { runtime.Goexit(); return nil }, "the goroutine was ended"},
	} {
		for _, run := range []func(fn func() error) error{
			func(fn func() error) error { return InNetns(path, inode, fn) },
			func(fn func() error) error { return InNetns(path, 0, fn) },
			func(fn func() error) error { return InNetnsFD(fd, fn) },
		} {
			var at uint64
			main := false
			err := run(func() error {
				at, main = here(t), unix.Gettid() == os.Getpid()
				return x.fn()
			})
			if at != inode || main || (err == nil) != (x.wrong == "") || err != nil && !strings.Contains(err.Error(), x.wrong) {
				t.Errorf("%s: ran in %d, want %d; on the main thread: %v; %v, want %q", name, at, inode, main, err, x.wrong)
			}
		}
	}
	never := func() error { t.Error("it ran"); return nil }
	if err := InNetns(path, self, never); err == nil || !strings.Contains(err.Error(), "is another network namespace by now") {
		t.Error(err)
	}
	if err := InNetns("/etc/passwd", 0, never); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	if err := InNetns("/nowhere", 0, never); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	noneIn(t, inode)
}

func noneIn(t *testing.T, inode uint64) {
	t.Helper()
	// A thread that ends takes a moment.
	var left []string
	for range 1000 {
		left = nil
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if is, err := Inode(task); err == nil && is == inode {
				left = append(left, task)
			}
		}
		if left == nil {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("still in the namespace: %v", left)
}

// TestThreadIsLost: a thread that cannot return ends with its goroutine.
func TestThreadIsLost(t *testing.T) {
	fd, _, inode := newNetns(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var lost bool
	offMain(func() { lost, err = SwitchNetns(fd, int(null.Fd()), func() error { return nil }) })
	if !lost || err == nil || !strings.Contains(err.Error(), "return from the network namespace") {
		t.Errorf("lost %v, %v", lost, err)
	}
	noneIn(t, inode)
}

func TestNetnsCookie(t *testing.T) {
	fd, _, _ := newNetns(t)
	own := NetnsCookie()
	if own == 0 {
		t.Skip("this kernel has none")
	}
	var other uint64
	if err := InNetnsFD(fd, func() error { other = NetnsCookie(); return nil }); err != nil || other == 0 || other == own {
		t.Errorf("%d here and %d there, %v", own, other, err)
	}
}

// LinkedNetns returns the same number as Inode, for procfs' links and for others.
func TestLinkedNetns(t *testing.T) {
	_, path, inode := newNetns(t)
	dir := t.TempDir()
	file, odd := filepath.Join(dir, "file"), filepath.Join(dir, "odd")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("net:[4026531840", odd); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	own, err := Inode(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{OwnNetns: here(t), path: inode, link: inode, file: own} {
		if got, err := LinkedNetns(unix.AT_FDCWD, name); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{odd, filepath.Join(dir, "none"), "/proc/self/task/1/ns/net"} {
		if got, err := LinkedNetns(unix.AT_FDCWD, name); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: %d, %v; want %v", name, got, err, unix.ENOENT)
		}
	}
}
