// Package loopdev makes block devices for tests.
package loopdev

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// New returns a loop device of 4 MiB backed by a new file. It is freed at the end of
// the test.
func New(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return Over(t, path)
}

// Over returns a loop device backed by a file or another block device.
func Over(t testing.TB, path string) string {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this kernel: no loop devices: %v", err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Skipf("this kernel: no free loop device: %v", err)
	}
	name := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this kernel: no loop device: %v", err)
	}
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(file.Fd())); err != nil {
		t.Skipf("this kernel: no loop device: %v", err)
	}
	// The kernel also frees the device with its last user, for example if the test panics.
	if err := unix.IoctlLoopSetStatus64(int(loop.Fd()), &unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}); err != nil {
		t.Errorf("set %s to be freed with its last user: %v", name, err)
	}
	t.Cleanup(func() {
		if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
			t.Errorf("free %s: %v", name, err)
		}
		loop.Close()
	})
	return name
}
