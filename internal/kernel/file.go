// Package kernel reads what Linux shows about processes and network namespaces: files of
// procfs, threads, capabilities, boot and namespace identity. Of this project it imports
// only bounded.
package kernel

import (
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Open opens a file below the directory dir for reading, with additional flags. The caller
// closes it. It does not allocate for a name of less than 256 bytes.
func Open(dir int, name string, flags int) (int, error) {
	var room [pathSize]byte
	path, err := appendPath(room[:0], name)
	if err != nil {
		return -1, err
	}
	return openat(dir, path, flags)
}

// OpenProcess opens the file at name below /proc/PID; root is where procfs is mounted.
func OpenProcess(root string, pid int, name string, flags int) (int, error) {
	var room [pathSize]byte
	path, err := appendProcess(room[:0], root, pid, name)
	if err != nil {
		return -1, err
	}
	return openat(unix.AT_FDCWD, path, flags)
}

// openat is unix.Openat without copying the path to the heap.
func openat(dir int, path []byte, flags int) (int, error) {
	for {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
			uintptr(flags|unix.O_RDONLY|unix.O_CLOEXEC), 0, 0, 0)
		switch e {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, e
		}
	}
}

// pathSize is the size of a stack buffer for paths of procfs.
const pathSize = 256

// appendPath appends name as a NUL-terminated path.
func appendPath(b []byte, name string) ([]byte, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return nil, unix.EINVAL
	}
	return append(append(b, name...), 0), nil
}

// appendProcess appends the path of /proc/PID followed by name.
func appendProcess(b []byte, root string, pid int, name string) ([]byte, error) {
	b = append(append(b, root...), '/')
	return appendPath(strconv.AppendInt(b, int64(pid), 10), name)
}

// ReadFile reads a whole file below the directory dir into buf, which grows as needed.
// After an error it returns buf for the next call.
func ReadFile(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := Open(dir, name, 0)
	if err != nil {
		return buf, err
	}
	defer unix.Close(fd)
	buf = buf[:0]
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, max(4096, cap(buf)))...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return buf, err
		}
		buf = buf[:len(buf)+n]
	}
}

// ReadSmall reads a file of procfs below the directory dir into buf with a single system
// call: the kernel returns such a file in one piece if buf is large enough. If the file
// fills buf, the error is EFBIG.
func ReadSmall(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := Open(dir, name, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == len(buf):
			return nil, unix.EFBIG
		default:
			return buf[:n], nil
		}
	}
}

// ReadLink reads the target of the symbolic link name below the directory dir, cut to the
// size of buf. It does not follow the link.
func ReadLink(dir int, name string, buf []byte) ([]byte, error) {
	var room [pathSize]byte
	path, err := appendPath(room[:0], name)
	if err != nil {
		return nil, err
	}
	for {
		n, _, e := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
			uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0)
		switch e {
		case 0:
			return buf[:n], nil
		case unix.EINTR:
		default:
			return nil, e
		}
	}
}
