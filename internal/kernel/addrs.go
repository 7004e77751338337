package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// NetnsAddrs lists the addresses of the interfaces in the network namespace
// that a file is, unmapped and without zone.
func NetnsAddrs(path string) ([]netip.Addr, error) {
	self, err := NetnsInode("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	other, err := NetnsInode(path)
	if err != nil {
		return nil, err
	}
	if self == other {
		return InterfaceAddrs()
	}
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	done := make(chan answer)
	go func() {
		var a answer
		a.err = InNetnsOf(path, func() (err error) {
			a.addrs, err = InterfaceAddrs()
			return err
		})
		done <- a
	}()
	a := <-done
	return a.addrs, a.err
}

// inNetnsOf runs f in the namespace that a file is. The goroutine must end
// after an error: its thread may not have come back, and ends with it.
func InNetnsOf(path string, f func() error) error {
	runtime.LockOSThread()
	back, err := Open(unix.AT_FDCWD, "/proc/thread-self/ns/net", 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer unix.Close(back)
	ns, err := Open(unix.AT_FDCWD, path, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the network namespace %s: %w", path, err)
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace %s: %w (needs CAP_SYS_ADMIN)", path, err)
	}
	err = f()
	if e := unix.Setns(back, unix.CLONE_NEWNET); e != nil {
		return fmt.Errorf("return from the network namespace %s: %w", path, e)
	}
	runtime.UnlockOSThread()
	return err
}

// interfaceAddrs lists those of the thread's namespace, unmapped and without
// zone.
func InterfaceAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, addr.WithZone("").Unmap())
			}
		}
	}
	return addrs, nil
}
