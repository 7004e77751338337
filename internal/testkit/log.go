// Package testkit has helpers for tests of several packages. Each folder below is a package
// of its own.
package testkit

import (
	"bytes"
	"log/slog"
	"sync"
)

// Log is a buffer that may be read while a logger or a process writes to it.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends b.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// String returns what has been written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Logger returns a logger that writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
