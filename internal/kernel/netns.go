package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/bounded"
)

// The inode numbers of the initial namespaces (enum init_ns_ino in
// include/uapi/linux/nsfs.h): fixed since Linux 3.8, for control groups since 4.6, and for
// networks since 6.18.
const (
	FirstNetNamespace    = 0xEFFFFFF9
	FirstCgroupNamespace = 0xEFFFFFFB
	FirstPIDNamespace    = 0xEFFFFFFC
	FirstUserNamespace   = 0xEFFFFFFD
)

// OwnNetns is the network namespace file of the calling thread.
const OwnNetns = "/proc/thread-self/ns/net"

// Inode returns the inode number of the namespace, or other file, at path.
func Inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// FileInode is Inode of an open file.
func FileInode(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// LinkedNetns returns the inode number of the network namespace that the link name below
// the directory dir of procfs leads to. The text of such a link, net:[4026531840], has the
// number (fs/nsfs.c, ns_get_name), and is read in half the time that following it takes.
func LinkedNetns(dir int, name string) (uint64, error) {
	var room [64]byte
	text, err := ReadLink(dir, name, room[:])
	if err == nil {
		if rest, ok := bytes.CutPrefix(text, []byte("net:[")); ok {
			if digits, ok := bytes.CutSuffix(rest, []byte("]")); ok {
				if n, ok := Uint(digits); ok {
					return n, nil
				}
			}
		}
	} else if !errors.Is(err, unix.EINVAL) {
		return 0, err
	}
	// The link leads to another such link, or to a bind mount of the namespace itself.
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, 0); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// SwitchNetns runs fn on the calling thread in the network namespace ns, and then returns
// the thread to own, even if fn fails. It returns a panic in fn as an error. If lost is
// true, the thread could not return: it stays locked to its goroutine, which must end soon,
// so that the runtime ends the thread.
//
// Nothing else in this program calls setns. SwitchNetns is for a thread that samples many
// namespaces; other callers use InNetns or InNetnsFD.
func SwitchNetns(ns, own int, fn func() error) (lost bool, err error) {
	runtime.LockOSThread()
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return false, fmt.Errorf("enter the network namespace: %w (needs CAP_SYS_ADMIN)", err)
	}
	defer func() {
		if p := recover(); p != nil {
			err = bounded.PanicError(p)
		}
		if e := unix.Setns(own, unix.CLONE_NEWNET); e != nil {
			lost, err = true, fmt.Errorf("return from the network namespace: %w", e)
			return
		}
		runtime.UnlockOSThread()
	}()
	return false, fn()
}

// InNetns runs fn on a thread in the network namespace at path, if its inode number is
// inode; 0 stands for any. It returns a panic in fn as an error. fn may hang in the kernel;
// a caller that must not wait uses bounded.Within.
func InNetns(path string, inode uint64, fn func() error) error {
	ns, err := OpenNetns(path, inode)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	return InNetnsFD(ns, fn)
}

// OpenNetns opens the network namespace at path, if its inode number is inode; 0 stands for
// any. The caller closes the descriptor.
func OpenNetns(path string, inode uint64) (int, error) {
	ns, err := Open(unix.AT_FDCWD, path, unix.O_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("open the network namespace %s: %w (needs CAP_SYS_PTRACE for that of another process)", path, err)
	}
	is, err := FileInode(ns)
	if err != nil {
		unix.Close(ns)
		return -1, fmt.Errorf("stat the network namespace %s: %w", path, err)
	}
	if inode != 0 && is != inode {
		unix.Close(ns)
		return -1, fmt.Errorf("%s is another network namespace by now", path)
	}
	return ns, nil
}

// InNetnsFD is InNetns for an open namespace.
func InNetnsFD(ns int, fn func() error) error {
	done := make(chan error, 1)
	go inNetns(ns, fn, done)
	return <-done
}

// inNetns runs fn in a goroutine whose thread ends with it if the thread cannot return.
func inNetns(ns int, fn func() error, done chan<- error) {
	err := errors.New("in the network namespace: the goroutine was ended")
	defer func() { done <- err }() // even if fn calls runtime.Goexit
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread must not be lost: it cannot end, and its namespace counts as the
		// process's, for example in /proc/self. While this goroutine holds it, the new
		// goroutine runs on another thread.
		err = InNetnsFD(ns, fn)
		runtime.UnlockOSThread()
		return
	}
	own, e := Open(unix.AT_FDCWD, OwnNetns, 0)
	if e != nil {
		runtime.UnlockOSThread()
		err = fmt.Errorf("open this thread's network namespace: %w", e)
		return
	}
	defer unix.Close(own)
	var lost bool
	if lost, e = SwitchNetns(ns, own, fn); !lost {
		runtime.UnlockOSThread()
	}
	err = e
}

// AddrsOf lists the addresses, of every scope, of the network namespace at path. It may
// hang while another program holds the RTNL lock.
func AddrsOf(path string) (addrs []netip.Addr, err error) {
	err = InNetns(path, 0, func() (err error) {
		addrs, err = InterfaceAddrs()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the addresses in the network namespace %s: %w", path, err)
	}
	return addrs, nil
}

// InterfaceAddrs lists the interface addresses in the thread's network namespace, unmapped
// and without zone.
func InterfaceAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, addr.Unmap())
			}
		}
	}
	return addrs, nil
}

// NetnsCookie identifies the thread's network namespace within one boot, even if inode
// numbers are reused; 0 before Linux 5.14.
func NetnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}
