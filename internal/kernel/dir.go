package kernel

import (
	"encoding/binary"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DirNames lists the entries of a directory, without . and .., unsorted.
func DirNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// Entries calls each for every entry of the open directory fd except . and .., reading into
// buf; about 1000 entries fit into 32 KiB. The name is valid until each returns; typ is
// DT_DIR and so on. It stops at the first error of each.
func Entries(fd int, buf []byte, each func(name string, typ byte) error) error {
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		for b := buf[:n]; len(b) > 0; {
			name, typ, rest, ok := nextEntry(b)
			if !ok {
				return errEntry
			}
			b = rest
			if string(name) == "." || string(name) == ".." {
				continue
			}
			if err := each(unsafe.String(unsafe.SliceData(name), len(name)), typ); err != nil {
				return err
			}
		}
	}
}

var errEntry = errors.New("the kernel returned a malformed directory entry")

// nextEntry splits the first struct linux_dirent64 off b.
func nextEntry(b []byte) (name []byte, typ byte, rest []byte, ok bool) {
	const header = 19 // d_ino, d_off, d_reclen, d_type
	if len(b) < header {
		return nil, 0, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b[16:]))
	if n <= header+1 || n > len(b) {
		return nil, 0, nil, false
	}
	for i, c := range b[header:n] {
		if c == 0 {
			return b[header : header+i], b[18], b[n:], i > 0
		}
	}
	return nil, 0, nil, false
}
