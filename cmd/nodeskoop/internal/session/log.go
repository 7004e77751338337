package session

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"nodeskoop/output"
	"nodeskoop/systemd"
)

func newHandler(w io.Writer, json *atomic.Bool, level slog.Leveler) slog.Handler {
	h := formats{json: json, lines: slog.NewTextHandler(output.LogWriter(w, false), &slog.HandlerOptions{Level: level}), objects: slog.NewJSONHandler(output.LogWriter(w, true), &slog.HandlerOptions{Level: level})}
	if p, ok := w.(*output.Patient); ok && p.Writer() == os.Stderr && systemd.StderrIsJournal() {
		h.lines = systemd.NewHandler(output.LogWriter(w, false), level)
	}
	return h
}

// formats writes lines or JSON objects: a reload may change which.
type formats struct {
	json           *atomic.Bool
	lines, objects slog.Handler
}

func (f formats) now() slog.Handler {
	if f.json.Load() {
		return f.objects
	}
	return f.lines
}

func (f formats) Enabled(ctx context.Context, l slog.Level) bool { return f.now().Enabled(ctx, l) }

func (f formats) Handle(ctx context.Context, r slog.Record) error { return f.now().Handle(ctx, r) }

func (f formats) WithAttrs(a []slog.Attr) slog.Handler {
	return formats{f.json, f.lines.WithAttrs(a), f.objects.WithAttrs(a)}
}

func (f formats) WithGroup(name string) slog.Handler {
	return formats{f.json, f.lines.WithGroup(name), f.objects.WithGroup(name)}
}
