// Package column lays text out in columns, as a terminal counts them.
package column

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/clipperhouse/displaywidth"

	"nodeskoop/internal/quote"
)

// Write writes rows of cells, each as quote.Safe writes it, in columns that
// are as wide as they need to be. It changes the rows.
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

// Widths are those that the columns of some rows need.
func Widths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, text := range r {
			widths[i] = max(widths[i], displaywidth.String(text))
		}
	}
	return widths
}

// Pad fills text up with spaces, or cuts it, to width columns. The spaces are
// behind the text if left is set, and before it otherwise.
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

// Middle cuts text to width columns in its middle. Names that a controller makes
// differ at both ends: batch/svc11-7d9f8b6c44-x2k9p becomes batch/sv…44-x2k9p.
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

// From leaves out the first columns of a text. A character that is cut in two
// leaves a space.
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

// Width is how many columns a text takes.
func Width(text string) int { return displaywidth.String(text) }

// Dash stands for a cell that is empty.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// YesNo is the cell of a yes or no.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
