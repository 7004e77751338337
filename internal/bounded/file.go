package bounded

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readWait is how long a file that somebody names may take to be read.
const readWait = 10 * time.Second

// ReadFile reads a whole file that an operator or another program names. It
// must be a regular file (or /dev/null, which is empty) of at most limit bytes;
// a FIFO, a device, a socket and a folder are refused without being opened, and
// a file system that does not answer within ten seconds is an error. The error
// names the file.
func ReadFile(path string, limit int) ([]byte, error) {
	b, err := Within(readWait, func() ([]byte, error) { return readRegular(path, limit) })
	if errors.Is(err, ErrNoAnswer) {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("the file system does not answer: %w", err)}
	}
	return b, err
}

func readRegular(path string, limit int) ([]byte, error) {
	refuse := func(err error) ([]byte, error) { return nil, &fs.PathError{Op: "read", Path: path, Err: err} }
	fi, err := os.Stat(path) // opening a device may do something
	if err != nil {
		return nil, err
	}
	if isNull(fi) {
		return nil, nil
	}
	if err := regular(fi); err != nil {
		return refuse(err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err = f.Stat(); err != nil {
		return nil, err
	}
	if err := regular(fi); err != nil {
		return refuse(err) // it has been replaced
	}
	// What the kernel makes up, under /proc for one, has no size.
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > limit:
		return refuse(fmt.Errorf("it has more than %d bytes, which is the limit", limit))
	}
	return b, nil
}

func isNull(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == unix.Mkdev(1, 3)
}

func regular(fi fs.FileInfo) error {
	what := "something else"
	switch m := fi.Mode(); {
	case m.IsRegular():
		return nil
	case m.IsDir():
		what = "a folder"
	case m&fs.ModeNamedPipe != 0:
		what = "a FIFO"
	case m&fs.ModeSocket != 0:
		what = "a socket"
	case m&fs.ModeDevice != 0:
		what = "a device"
	}
	return fmt.Errorf("it is %s; want a regular file", what)
}
