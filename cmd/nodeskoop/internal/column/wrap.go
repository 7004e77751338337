package column

import (
	"strings"

	"github.com/clipperhouse/displaywidth"
)

// Wrap breaks text at spaces into lines of at most width characters; longer words
// stay whole. A very small width disables wrapping.
func Wrap(text string, width int) []string {
	if width < 24 {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case displaywidth.String(line)+1+displaywidth.String(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
