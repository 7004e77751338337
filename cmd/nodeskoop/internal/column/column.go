// Package column formats text in columns by its width on a terminal.
package column

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/clipperhouse/displaywidth"

	"nodeskoop/internal/quote"
)

// Write writes rows of cells, escaped by quote.Safe, in columns of the required
// width. It modifies the rows.
func Write(w io.Writer, rows [][]string) error {
	for _, r := range rows {
		for i, text := range r {
			r[i] = quote.Safe(text)
		}
	}
	widths := Widths(rows)
	var b bytes.Buffer
	for _, r := range rows {
		for i, text := range r {
			if i < len(r)-1 {
				text = Pad(text, widths[i], true) + "  "
			}
			b.WriteString(text)
		}
		b.WriteByte('\n')
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Widths returns the widths that the columns of the rows need.
func Widths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, text := range r {
			widths[i] = max(widths[i], displaywidth.String(text))
		}
	}
	return widths
}

// Pad pads or cuts text to width columns, aligned to the left or to the right.
func Pad(text string, width int, left bool) string {
	n := displaywidth.String(text)
	if n > width {
		if width <= 0 {
			return ""
		}
		text = displaywidth.TruncateString(text, width, "…")
		n = displaywidth.String(text)
	}
	if left {
		return text + strings.Repeat(" ", width-n)
	}
	return strings.Repeat(" ", width-n) + text
}

// Middle shortens text to width columns by cutting its middle. Names from
// controllers differ at both ends: batch/svc11-7d9f8b6c44-x2k9p becomes
// batch/sv…44-x2k9p.
func Middle(text string, width int) string {
	if displaywidth.String(text) <= width {
		return text
	}
	if width <= 1 {
		return strings.Repeat("…", max(width, 0))
	}
	type cluster struct{ from, to, width int }
	var all []cluster
	at := 0
	for g := displaywidth.StringGraphemes(text); g.Next(); {
		all = append(all, cluster{at, at + len(g.Value()), g.Width()})
		at += len(g.Value())
	}
	head, tail := (width-1)/2, width/2
	begin, end := 0, len(text)
	for _, c := range all {
		if head -= c.width; head < 0 {
			break
		}
		begin = c.to
	}
	for _, c := range slices.Backward(all) {
		if tail -= c.width; tail < 0 {
			break
		}
		end = c.from
	}
	return text[:begin] + "…" + text[end:]
}

// From removes the first columns of a text. A wide character cut in half becomes a
// space.
func From(text string, columns int) string {
	if columns <= 0 {
		return text
	}
	at := 0
	for g := displaywidth.StringGraphemes(text); g.Next(); {
		at += len(g.Value())
		if columns -= g.Width(); columns <= 0 {
			return strings.Repeat(" ", -columns) + text[at:]
		}
	}
	return ""
}

// Width returns the number of columns that a text occupies.
func Width(text string) int { return displaywidth.String(text) }

// Dash returns "-" for an empty cell.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// YesNo formats a boolean cell.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
