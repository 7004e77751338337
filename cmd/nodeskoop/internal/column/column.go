// Package column lays text out in columns, as a terminal counts them.
package column

import (
	"bytes"
	"io"
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
