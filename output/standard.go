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

// Standard is a command's standard output. It remembers the first failed write, so that no
// command exits with success after incomplete output. Its methods may be called from any
// goroutine.
type Standard struct {
	w io.Writer

	mu  sync.Mutex
	err error
}

// NewStandard returns a Standard that writes to w.
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

// Err returns the error of the first failed write; nil if none failed.
func (s *Standard) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Flush returns Err, or an error that only closing a file reports: network file systems and
// quotas may accept a write and lose it. The file stays open.
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
		return nil // already closed: a write would have reported that
	}
	var closeErr error
	err = raw.Control(func(fd uintptr) {
		// Closing a duplicate descriptor flushes the file without closing it for others.
		if c, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			closeErr = unix.Close(c)
		}
	})
	if err != nil || errors.Is(closeErr, unix.EBADF) || errors.Is(closeErr, unix.EINTR) {
		return nil
	}
	return closeErr
}

// SyscallConn implements syscall.Conn for a file, so that a terminal is recognised.
func (s *Standard) SyscallConn() (syscall.RawConn, error) {
	if c, ok := s.w.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// SetWriteDeadline sets the file's write deadline, if it supports one.
func (s *Standard) SetWriteDeadline(t time.Time) error {
	if d, ok := s.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return d.SetWriteDeadline(t)
	}
	return errors.ErrUnsupported
}

// LogWriter returns a writer for a slog handler that writes one line per record. It removes
// what would affect a terminal and slog does not quote: DEL in its text format, and C1 and
// format controls in its JSON.
func LogWriter(w io.Writer, isJSON bool) io.Writer { return logWriter{w, isJSON} }

type logWriter struct {
	w      io.Writer
	isJSON bool
}

// Write takes one record from slog's handler.
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

// LineWriter returns a writer that passes text on line by line through quote.AppendSafe, to
// show text made for a program on a terminal. Flush writes an incomplete last line.
func LineWriter(w io.Writer) *Lines { return &Lines{w: w} }

// Lines is the writer that LineWriter returns.
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

// Flush writes an incomplete last line.
func (l *Lines) Flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	_, err := l.w.Write(appendSafe(nil, l.buf))
	l.buf = nil
	return err
}
