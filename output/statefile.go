package output

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// ErrStateInUse says that another process holds the state folder's lock.
var ErrStateInUse = errors.New("another process keeps its state there")

const (
	stateName = "counters"
	stateTemp = "counters.tmp"
	stateLock = "lock"

	// stateWait limits how long Write waits for the disk.
	stateWait = time.Second
)

// StateFile is the state that the program passes to its next run: one small file in a
// folder of its own, replaced atomically.
//
// Nothing is synced to disk. A killed program loses nothing by that. A crash of the
// machine makes the state useless anyway, since it is valid for one boot only.
//
// Only the process that holds the lock file may write; others may read. All methods may be
// called from any goroutine.
type StateFile struct {
	dir string

	mu   sync.Mutex
	lock *os.File        // held lock file
	busy <-chan struct{} // closed when the write under way has ended
	buf  []byte
}

// NewStateFile returns the StateFile of a folder, which is created when needed.
func NewStateFile(dir string) (*StateFile, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("the folder %q for the state: want an absolute path", dir)
	}
	return &StateFile{dir: filepath.Clean(dir)}, nil
}

// Path returns the file's path.
func (s *StateFile) Path() string { return filepath.Join(s.dir, stateName) }

// Lock makes this process the writer. It returns ErrStateInUse if another process is; Read
// works in any case.
func (s *StateFile) Lock() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claim()
}

func (s *StateFile) claim() error {
	if s.lock != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, stateLock), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	if err := kernel.Lock(f); err != nil {
		_ = f.Close()
		if errors.Is(err, kernel.ErrLocked) {
			return fmt.Errorf("%s: %w", s.dir, ErrStateInUse)
		}
		return err
	}
	s.lock = f
	return nil
}

// Read returns the state of an earlier run; nil if there is none. It rejects a file of more
// than limit bytes, and one that another user could have written.
func (s *StateFile) Read(limit int) ([]byte, error) {
	f, err := os.OpenFile(s.Path(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", s.Path(), err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s is not a regular file", s.Path())
	case st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0:
		return nil, fmt.Errorf("%s belongs to user %d and has mode %#o: only this program's user may write it", s.Path(), st.Uid, st.Mode&0o777)
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%s has more than %d bytes", s.Path(), limit)
	}
	return b, err
}

// Write replaces the file. If the disk does not answer within a second, that is an error,
// and later calls fail at once until it answers.
func (s *StateFile) Write(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy != nil {
		select {
		case <-s.busy: // the earlier write has ended
			s.busy = nil
		default:
			return fmt.Errorf("write %s: an earlier write has not ended yet", s.Path())
		}
	}
	s.buf = append(s.buf[:0], data...)
	lock, buf := s.lock, s.buf
	call := bounded.Begin(func() (none struct{}, err error) { return none, s.replace(lock, buf) })
	if !call.Over(stateWait, nil) {
		s.busy = call.Done
		return fmt.Errorf("write %s: the disk did not answer within %v", s.Path(), stateWait)
	}
	if call.Err != nil {
		return fmt.Errorf("write %s: %w", s.Path(), call.Err)
	}
	return nil
}

func (s *StateFile) replace(lock *os.File, data []byte) error {
	if lock == nil {
		return ErrStateInUse
	}
	// If the folder was replaced meanwhile, its lock is not ours.
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// We hold the lock, so a temporary file is a leftover.
	if err := root.Remove(stateTemp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(stateTemp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = root.Rename(stateTemp, stateName)
	}
	if err != nil {
		_ = root.Remove(stateTemp)
	}
	return err
}

// Close releases the lock.
func (s *StateFile) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		_ = s.lock.Close()
		s.lock = nil
	}
}
