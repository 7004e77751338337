// Package kernel reads what Linux says of processes and network namespaces: files
// of procfs, threads, boot and namespace identity. It imports nothing of this
// project but bounded.
package kernel

import "golang.org/x/sys/unix"

// readFile reads a whole file into buf, which it grows as needed.
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

func Open(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
