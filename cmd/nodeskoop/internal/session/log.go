package session

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"nodeskoop/collect/catalog"
	"nodeskoop/output"
	"nodeskoop/systemd"
)

func newHandler(w io.Writer, json *atomic.Bool, level slog.Leveler) slog.Handler {
	opt := &slog.HandlerOptions{Level: level, ReplaceAttr: nameLevel}
	h := formats{json: json, lines: slog.NewTextHandler(output.LogWriter(w, false), opt), objects: slog.NewJSONHandler(output.LogWriter(w, true), opt)}
	if p, ok := w.(*output.Patient); ok && p.Writer() == os.Stderr && systemd.StderrIsJournal() {
		h.lines = systemd.NewHandler(output.LogWriter(w, false), level)
	}
	return h
}

// nameLevel writes LevelNotice as NOTICE, which slog would call INFO+2.
func nameLevel(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.LevelKey && a.Value.Any() == catalog.LevelNotice {
		return slog.String(slog.LevelKey, "NOTICE")
	}
	return a
}

// formats writes text lines or JSON objects; a reload may switch the format.
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
