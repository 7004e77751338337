package pod

import (
	"bytes"
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

// stat is what is needed of /proc/PID/stat.
type stat struct {
	state byte
	ppid  int
	start uint64 // in clock ticks since boot: with the number, it names the process
}

// readStat reads /proc/PID/stat (proc_pid_stat(5)).
func readStat(root string, pid int) (stat, error) {
	var buf [1024]byte
	data, err := readProc(root, pid, "stat", buf[:0])
	if err != nil {
		return stat{}, err
	}
	s, ok := parseStat(data)
	if !ok {
		return stat{}, fmt.Errorf("%s/%d/stat has a form that is not known", root, pid)
	}
	return s, nil
}

func parseStat(data []byte) (stat, bool) {
	// The name is in parentheses, and may have any of them itself.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return stat{}, false
	}
	var s stat
	n := 3
	for f := range bytes.FieldsSeq(data[i+1:]) {
		var err error
		switch n {
		case 3:
			s.state = f[0]
		case 4:
			s.ppid, err = strconv.Atoi(string(f))
		case 22:
			s.start, err = strconv.ParseUint(string(f), 10, 64)
			return s, err == nil
		}
		if err != nil {
			return stat{}, false
		}
		n++
	}
	return stat{}, false
}

func readProc(root string, pid int, name string, buf []byte) ([]byte, error) {
	return readAt(unix.AT_FDCWD, root+"/"+strconv.Itoa(pid)+"/"+name, buf)
}

// readAt reads a whole file into buf, which it grows as needed.
func readAt(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := openRetry(dir, name, 0)
	if err != nil {
		return buf, err
	}
	defer unix.Close(fd)
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, max(512, cap(buf)))
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return buf, err
		}
		buf = buf[:len(buf)+n]
	}
}

func openRetry(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// netnsInode returns the inode number of the network namespace that path is.
func netnsInode(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, fmt.Errorf("%s is not a namespace", path) // what its mount leaves behind
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}

// netlinkTimeout is how long the kernel may take to list addresses. It answers
// at once; only a lock that another program holds (RTNL) makes it wait, and no
// timeout of the socket ends that wait.
const netlinkTimeout = 2 * time.Second

// A network namespace may have any number of addresses. More than these are
// left out.
const maxAddrs = 256

// maxHungLists is how many listings of addresses may hang in the kernel. Beyond
// that the next fail at once: what makes one wait makes all of them.
const maxHungLists = 2

var hungLists atomic.Int32

// addrsIn returns the addresses of global scope in the network namespace that
// path is, if its inode number is the given one. It waits for a kernel that does
// not answer no longer than netlinkTimeout.
func addrsIn(path string, inode uint64) ([]netip.Addr, error) {
	if n := hungLists.Load(); n >= maxHungLists {
		return nil, fmt.Errorf("list the addresses in the network namespace %s: %d listings hang in the kernel already", path, n)
	}
	var hung, over atomic.Bool
	addrs, err := bounded.Within(netlinkTimeout, func() (addrs []netip.Addr, err error) {
		defer func() {
			// Whichever of the two comes second takes it back.
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
	defer h.Close() // an open socket would keep the namespace alive
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
