// Package hang makes kernel calls hang for tests, for reasons that occur on real nodes:
// another program holds a lock or does not answer.
package hang

import (
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// Open makes every open(2) of a file or folder, also by the test's own process, hang until
// release: a fanotify listener does not answer the permission request.
func Open(t testing.TB, path string) (release func()) {
	t.Helper()
	need.Root(t)
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	need.Kernel(t, err != unix.ENOSYS && err != unix.EINVAL, "it has no fanotify with permissions")
	if err != nil {
		t.Fatalf("fanotify_init: %v", err)
	}
	mask := uint64(unix.FAN_OPEN_PERM)
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		mask |= unix.FAN_ONDIR
	}
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, mask, unix.AT_FDCWD, path)
	need.Kernel(t, err != unix.EINVAL && err != unix.EOPNOTSUPP, "it has no fanotify with permissions")
	if err != nil {
		t.Fatalf("fanotify_mark %s: %v", path, err)
	}
	// Closing the listener permits all pending requests.
	release = sync.OnceFunc(func() { _ = unix.Close(fd) })
	t.Cleanup(release)
	return release
}

// The parts used of linux/userfaultfd.h and linux/ethtool.h.
const (
	uffdAPI           = 0xAA
	uffdioAPI         = 0xc018aa3f
	uffdioRegister    = 0xc020aa00
	uffdioModeMissing = 1
	ethtoolSFeatures  = 0x3b
)

// RTNL makes a thread hold the kernel's RTNL lock, which is global to the machine, until
// release or for most at the longest. The thread makes an ethtool request for lo, whose
// second half is on a page that userfaultfd never provides; the kernel copies the request
// while it holds the lock.
func RTNL(t testing.TB, most time.Duration) (release func()) {
	t.Helper()
	need.Root(t)
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	need.Kernel(t, errno != unix.ENOSYS, "it has no userfaultfd")
	if errno != 0 {
		t.Fatalf("userfaultfd: %v", errno)
	}
	ufd := int(fd)
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI}
	register := struct{ start, length, mode, ioctls uint64 }{uint64(uintptr(unsafe.Pointer(&mem[page]))), uint64(page), uffdioModeMissing, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		t.Fatalf("userfaultfd's handshake: %v", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioRegister, uintptr(unsafe.Pointer(&register))); errno != 0 {
		t.Fatalf("register with userfaultfd: %v", errno)
	}
	request := unsafe.Pointer(&mem[page-4])
	*(*uint32)(request) = ethtoolSFeatures
	type ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	ifr := &ifreq{data: request}
	copy(ifr.name[:], "lo")
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(sock), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(ifr)))
	}()
	release = sync.OnceFunc(func() {
		_ = unix.Close(ufd) // closing makes the kernel provide the page
		<-done
		_ = unix.Close(sock)
		_ = unix.Munmap(mem)
	})
	timer := time.AfterFunc(most, release)
	t.Cleanup(func() { timer.Stop(); release() })
	// The page fault shows that the thread holds the lock.
	fds := []unix.PollFd{{Fd: int32(ufd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 10_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			t.Fatalf("nothing asks for the page, so the lock is not held: %v", err)
		}
		return release
	}
}
