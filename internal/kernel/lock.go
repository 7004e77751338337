package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another open file description holds the lock on a file.
var ErrLocked = errors.New("it is locked")

// Lock locks a file that is open for writing, until it is closed in all threads and child
// processes (fcntl(2), F_OFD_SETLK). It does not wait: if another open file description
// holds the lock, the error is ErrLocked.
func Lock(f *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	switch err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EACCES:
		return ErrLocked
	default:
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
}
