package top

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Log buffers the log while the table occupies the screen.
type Log struct {
	mu    sync.Mutex
	lines []string
	more  int // number of records dropped
}

const maxScreenLog = 200

// Write takes one log record.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == maxScreenLog {
		l.lines = l.lines[1:]
		l.more++
	}
	l.lines = append(l.lines, string(bytes.TrimRight(b, "\n")))
	return len(b), nil
}

// last returns the newest record of level warning or above, without its time.
func (l *Log) last() string {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.lines) - 1; i >= 0; i-- {
		if line := l.lines[i]; strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			if _, rest, ok := strings.Cut(line, " "); ok {
				return rest
			}
			return line
		}
	}
	return ""
}

// Flush writes the buffered records.
func (l *Log) Flush(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more > 0 {
		fmt.Fprintf(w, "%d earlier lines of the log were not kept\n", l.more)
	}
	for _, line := range l.lines {
		fmt.Fprintln(w, line)
	}
}
