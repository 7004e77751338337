package terminal

import (
	"fmt"
	"html"
	"strings"

	"github.com/gdamore/tcell/v3/color"
	"github.com/gdamore/tcell/v3/vt"
)

// The dimensions of a picture, in pixels, and its colours.
const (
	cellWidth  = 8.4
	cellHeight = 18.0
	fontSize   = 14.0
	margin     = 12.0

	background = "#1d1f21"
	foreground = "#d8dad6"
)

// Green is the colour of green text in a picture.
const Green = "#8abf5a"

// palette maps the sixteen numbered colours.
var palette = map[color.Color]string{
	color.Black: "#1d1f21", color.Maroon: "#cc6666", color.Green: Green, color.Olive: "#e0b055",
	color.Navy: "#81a2be", color.Purple: "#b294bb", color.Teal: "#6fc0b7", color.Silver: "#d8dad6",
	color.Gray: "#808080", color.Red: "#e06c60", color.Lime: "#a5d66f", color.Yellow: "#f0c674",
	color.Blue: "#8fb7da", color.Fuchsia: "#cda8d6", color.Aqua: "#8ad8d0", color.White: "#ffffff",
}

func css(c color.Color, otherwise string) string {
	if s, ok := palette[c]; ok {
		return s
	}
	if c.Valid() && c.Hex() >= 0 {
		return fmt.Sprintf("#%06x", c.Hex())
	}
	return otherwise
}

// look is the style of a run of cells.
type look struct {
	fg, bg    string
	bold, dim bool
}

func lookOf(s vt.Style) look {
	l := look{fg: foreground, bg: background}
	if s == nil {
		return l
	}
	l.fg, l.bg = css(s.Fg(), foreground), css(s.Bg(), background)
	l.bold, l.dim = s.Attr()&vt.Bold != 0, s.Attr()&vt.Dim != 0
	if s.Attr()&vt.Reverse != 0 {
		l.fg, l.bg = l.bg, l.fg
	}
	return l
}

// SVG returns a picture of the screen, without empty lines at the end.
func (t *Terminal) SVG(title string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := strings.Count(t.text(), "\n")
	var b strings.Builder
	width, height := float64(t.size.X)*cellWidth+2*margin, float64(rows)*cellHeight+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.1f %.1f" width="%.0f" height="%.0f" role="img" aria-label="%s">
<title>%[5]s</title>
<rect width="100%%" height="100%%" rx="6" fill="%s"/>
<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="%.0f" xml:space="preserve">
`, width, height, width, height, html.EscapeString(title), background, fontSize)
	for y := range vt.Row(rows) {
		for x := vt.Col(0); x < t.size.X; {
			from := x
			l := lookOf(t.draw.GetCell(vt.Coord{X: x, Y: y}).S)
			text := ""
			for ; x < t.size.X; x++ {
				c := t.draw.GetCell(vt.Coord{X: x, Y: y})
				if lookOf(c.S) != l {
					break
				}
				if c.C == "" {
					c.C = " "
				}
				text += c.C
			}
			t.svgRun(&b, int(from), int(y), text, l)
		}
	}
	b.WriteString("</g>\n</svg>\n")
	return b.String()
}

func (t *Terminal) svgRun(b *strings.Builder, x, y int, text string, l look) {
	left, top := margin+float64(x)*cellWidth, margin+float64(y)*cellHeight
	width := float64(len([]rune(text))) * cellWidth
	if l.bg != background {
		fmt.Fprintf(b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", left, top, width, cellHeight, l.bg)
	}
	// Position each word separately, so that no font shifts the columns.
	runes := []rune(text)
	for i := 0; i < len(runes); {
		if runes[i] == ' ' {
			i++
			continue
		}
		from := i
		for i < len(runes) && (runes[i] != ' ' || i+1 < len(runes) && runes[i+1] != ' ') {
			i++
		}
		word := string(runes[from:i])
		more := ""
		if l.bold {
			more += ` font-weight="bold"`
		}
		if l.dim {
			more += ` opacity="0.6"`
		}
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%.1f\" textLength=\"%.1f\" fill=\"%s\"%s>%s</text>\n",
			left+float64(from)*cellWidth, top+fontSize-0.5, float64(i-from)*cellWidth, l.fg, more, html.EscapeString(word))
	}
}
