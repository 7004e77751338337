package kernel

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/bounded"
)

// switchNetns runs fn on the calling thread in the network namespace that ns
// is, and brings the thread back to the one that own is, whatever fn does. A
// panic in fn is its error. lost says that the thread could not be brought
// back: it stays locked to the goroutine, so that the runtime ends the thread
// when the goroutine returns, which must happen soon.
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

// InNetns runs fn on a thread that is in the network namespace that the file
// path is, if its inode number is the given one; 0 stands for any. A panic in
// fn is an error. fn may hang in the kernel: whoever must not wait for it
// calls InNetns by Within.
func InNetns(path string, inode uint64, fn func() error) error {
	ns, err := Open(unix.AT_FDCWD, path, unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open the network namespace %s: %w (needs CAP_SYS_PTRACE for that of another process)", path, err)
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return fmt.Errorf("stat the network namespace %s: %w", path, err)
	}
	if inode != 0 && st.Ino != inode {
		return fmt.Errorf("%s is another network namespace by now", path)
	}
	done := make(chan error, 1)
	// In a goroutine of its own, whose thread ends with it if it is lost.
	go func() {
		err := bounded.Guard(func() {
			own, err := Open(unix.AT_FDCWD, "/proc/thread-self/ns/net", 0)
			if err != nil {
				done <- fmt.Errorf("open the own network namespace: %w", err)
				return
			}
			defer unix.Close(own)
			_, err = SwitchNetns(ns, own, fn)
			done <- err
		})
		if err != nil {
			done <- err
		}
	}()
	return <-done
}

// AddrsOf lists the addresses of the network namespace that the file path is,
// of every scope. It may hang while another program holds the kernel's lock on
// network devices.
func AddrsOf(path string) ([]netip.Addr, error) {
	var list []net.Addr
	err := InNetns(path, 0, func() (err error) {
		list, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the addresses in the network namespace %s: %w", path, err)
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

// netnsCookie tells network namespaces of one boot apart whose inode numbers
// are the same, one after the other; 0 before Linux 5.14. It asks about the
// namespace that the thread is in.
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

// NetnsInode returns the inode number of the network namespace that path is.
func NetnsInode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
