package systemd

import (
	"context"
	"io"
	"log/slog"

	"github.com/coreos/go-systemd/v22/journal"

	"nodeskoop/collect/catalog"
)

// StderrIsJournal reports whether standard error is connected to the journal.
func StderrIsJournal() bool {
	ok, err := journal.StderrIsJournalStream()
	return ok && err == nil
}

// NewHandler returns a slog handler for a stream that journald reads: each line starts with
// its syslog priority (sd-daemon(3)) and has no time, which journald adds.
func NewHandler(w io.Writer, level slog.Leveler) slog.Handler {
	opt := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}}
	h := priorityHandler{}
	for p, prefix := range []string{"<7>", "<6>", "<5>", "<4>", "<3>"} {
		h[p] = slog.NewTextHandler(prefixWriter{w, prefix}, opt)
	}
	return h
}

// priorityHandler has one handler for each of debug, info, notice, warn and error.
type priorityHandler [5]slog.Handler

func (h priorityHandler) of(l slog.Level) slog.Handler {
	switch {
	case l < slog.LevelInfo:
		return h[0]
	case l < catalog.LevelNotice:
		return h[1]
	case l < slog.LevelWarn:
		return h[2]
	case l < slog.LevelError:
		return h[3]
	}
	return h[4]
}

func (h priorityHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.of(l).Enabled(ctx, l)
}

func (h priorityHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.of(r.Level).Handle(ctx, r)
}

func (h priorityHandler) WithAttrs(a []slog.Attr) slog.Handler {
	for i := range h {
		h[i] = h[i].WithAttrs(a)
	}
	return h
}

func (h priorityHandler) WithGroup(name string) slog.Handler {
	for i := range h {
		h[i] = h[i].WithGroup(name)
	}
	return h
}

// prefixWriter writes a prefix before each write, which is one line.
type prefixWriter struct {
	w      io.Writer
	prefix string
}

func (p prefixWriter) Write(b []byte) (int, error) {
	line := append([]byte(p.prefix), b...)
	if _, err := p.w.Write(line); err != nil {
		return 0, err
	}
	return len(b), nil
}
