package output

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/quote"
)

// Standard is standard output for a command. It remembers the first write that
// failed, so that no command can end as if all had been printed. Its methods
// may be called from any goroutine.
type Standard struct {
	w io.Writer

	mu  sync.Mutex
	err error
}

// NewStandard returns the Standard that writes to w.
func NewStandard(w io.Writer) *Standard { return &Standard{w: w} }

// Write implements io.Writer.
func (s *Standard) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	if err != nil {
		s.mu.Lock()
		if s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
	}
	return n, err
}

// Err is the first write's that failed, nil if none did.
func (s *Standard) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Flush returns what Err does, or what only closing a file reports: a file
// system in the network, or one with a quota, may take a write and lose it.
// The file stays open.
func (s *Standard) Flush() error {
	if err := s.Err(); err != nil {
		return err
	}
	f, ok := s.w.(*os.File)
	if !ok {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil // closed: a write would have said so
	}
	var closeErr error
	err = raw.Control(func(fd uintptr) {
		// A copy's close asks the file system, and not what else shares the file.
		if c, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			closeErr = unix.Close(c)
		}
	})
	if err != nil || errors.Is(closeErr, unix.EBADF) || errors.Is(closeErr, unix.EINTR) {
		return nil
	}
	return closeErr
}

// SyscallConn implements syscall.Conn for a file, so that a terminal is
// recognised as one.
func (s *Standard) SyscallConn() (syscall.RawConn, error) {
	if c, ok := s.w.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// SetWriteDeadline is that of the file, where it has one.
func (s *Standard) SetWriteDeadline(t time.Time) error {
	if d, ok := s.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return d.SetWriteDeadline(t)
	}
	return errors.ErrUnsupported
}

// LogWriter returns a writer for a slog handler whose records, one line each,
// reach w without what a terminal would act on: slog quotes most of that, but
// neither DEL in its text nor the C1 and format controls in its JSON.
func LogWriter(w io.Writer, isJSON bool) io.Writer { return logWriter{w, isJSON} }

type logWriter struct {
	w      io.Writer
	isJSON bool
}

// Write takes one record, as slog's handlers write it.
func (l logWriter) Write(b []byte) (int, error) {
	line := b
	newline := len(line) > 0 && line[len(line)-1] == '\n'
	if newline {
		line = line[:len(line)-1]
	}
	var safe []byte
	if l.isJSON {
		safe = quote.AppendSafeJSON(nil, line)
	} else {
		safe = quote.AppendSafe(nil, string(line))
	}
	if newline {
		safe = append(safe, '\n')
	}
	if _, err := l.w.Write(safe); err != nil {
		return 0, err
	}
	return len(b), nil
}

// LineWriter returns a writer that passes text on line by line, each as
// quote.AppendSafe writes it: for a text that is made for a program, where a
// terminal shows it. Flush writes a last line without an end.
func LineWriter(w io.Writer) *Lines { return &Lines{w: w} }

// Lines is what LineWriter returns.
type Lines struct {
	w   io.Writer
	buf []byte
}

// Write implements io.Writer.
func (l *Lines) Write(b []byte) (int, error) {
	l.buf = append(l.buf, b...)
	var out []byte
	for {
		i := bytes.IndexByte(l.buf, '\n')
		if i < 0 {
			break
		}
		out = append(appendSafe(out, l.buf[:i]), '\n')
		l.buf = l.buf[i+1:]
	}
	if len(out) == 0 {
		return len(b), nil
	}
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Flush writes what has no end of a line yet.
func (l *Lines) Flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	_, err := l.w.Write(appendSafe(nil, l.buf))
	l.buf = nil
	return err
}
