package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

func readProc(root string, pid int, name string, buf []byte) ([]byte, error) {
	return kernel.ReadFile(unix.AT_FDCWD, root+"/"+strconv.Itoa(pid)+"/"+name, buf)
}

// netnsInode returns the inode number of the network namespace at path.
func netnsInode(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, fmt.Errorf("%s is not a namespace", path) // the plain file that remains after an unmount
	}
	return kernel.Inode(path)
}

// netlinkTimeout limits a listing of addresses. The kernel answers at once unless another
// program holds the RTNL lock; a socket timeout does not end that wait.
const netlinkTimeout = 2 * time.Second

// maxAddrs is the most addresses kept of one network namespace, which may have any number.
const maxAddrs = 256

// maxHungLists is how many listings of addresses may hang in the kernel. Beyond it, further
// listings fail at once: they would wait for the same lock, too.
const maxHungLists = 2

var hungLists atomic.Int32

// addrsIn returns the addresses of global scope in the network namespace at path, if its
// inode number is inode. It waits for the kernel for netlinkTimeout at most.
func addrsIn(path string, inode uint64) ([]netip.Addr, error) {
	if n := hungLists.Load(); n >= maxHungLists {
		return nil, fmt.Errorf("list the addresses in the network namespace %s: %d listings hang in the kernel already", path, n)
	}
	var hung, over atomic.Bool
	addrs, err := bounded.Within(netlinkTimeout, func() (addrs []netip.Addr, err error) {
		defer func() {
			// The call may end while the caller counts it as hanging: the later of the
			// two undoes the count.
			if over.Store(true); hung.CompareAndSwap(true, false) {
				hungLists.Add(-1)
			}
		}()
		err = kernel.InNetns(path, inode, func() (err error) {
			addrs, err = globalAddrs()
			return err
		})
		return addrs, err
	})
	if errors.Is(err, bounded.ErrNoAnswer) {
		hungLists.Add(1)
		if hung.Store(true); over.Load() && hung.CompareAndSwap(true, false) {
			hungLists.Add(-1)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list the addresses in the network namespace %s: %w", path, err)
	}
	return addrs, nil
}

// globalAddrs lists the addresses in the thread's network namespace.
func globalAddrs() ([]netip.Addr, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close() // an open socket keeps the namespace alive
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		return nil, err
	}
	list, err := h.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range list {
		if a.IPNet == nil || a.Scope != unix.RT_SCOPE_UNIVERSE || len(addrs) == maxAddrs {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}
