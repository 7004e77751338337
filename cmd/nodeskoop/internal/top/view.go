package top

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/color"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

// View shows the samples on a terminal, and takes its keys.
type View struct {
	Screen   tcell.Screen
	Order    Order
	Interval time.Duration
	Log      *Log

	table  *Table
	paused bool
	help   bool
	typing bool   // a filter is being written
	before string // the filter before that
	scroll int
	hidden int // columns that the screen has no room for
}

// Run shows samples until the user or ctx ends it.
func (v *View) Run(ctx context.Context, s *Sampler) {
	ctx, stop := context.WithCancel(ctx)
	if s.runner != nil {
		s.runner.Until(ctx)
	}
	tables := make(chan *Table, 1)
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(v.Interval)
		defer tick.Stop()
		for ctx.Err() == nil {
			select {
			case tables <- s.sample():
			case <-ctx.Done():
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	defer sampling.Wait()
	defer stop()
	v.loop(ctx, tables)
}

// loop draws what comes from tables, and does what the keys say.
func (v *View) loop(ctx context.Context, tables <-chan *Table) {
	v.draw()
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-tables:
			if !v.paused {
				v.table = t
			}
		case e, ok := <-v.Screen.EventQ():
			if !ok {
				return
			}
			switch e := e.(type) {
			case *tcell.EventResize:
				v.Screen.Sync()
			case *tcell.EventKey:
				if v.key(e) {
					return
				}
			}
		}
		v.draw()
	}
}

// key does what a key says, and reports whether that is the end.
func (v *View) key(e *tcell.EventKey) (end bool) {
	if e.Key() == tcell.KeyCtrlC {
		return true
	}
	if v.typing {
		switch e.Key() {
		case tcell.KeyEnter:
			v.typing = false
		case tcell.KeyEscape:
			v.typing, v.Order.Filter = false, v.before
		case tcell.KeyBackspace, tcell.KeyDelete:
			if f := []rune(v.Order.Filter); len(f) > 0 {
				v.Order.Filter = string(f[:len(f)-1])
			}
		case tcell.KeyRune:
			v.Order.Filter += e.Str()
		}
		v.scroll = 0
		return false
	}
	_, height := v.Screen.Size()
	switch e.Key() {
	case tcell.KeyEscape:
		if v.help {
			v.help = false
		} else {
			v.Order.Filter, v.scroll = "", 0
		}
		return false
	case tcell.KeyUp:
		v.scroll--
	case tcell.KeyDown:
		v.scroll++
	case tcell.KeyPgUp:
		v.scroll -= max(1, height-5)
	case tcell.KeyPgDn:
		v.scroll += max(1, height-5)
	case tcell.KeyHome:
		v.scroll = 0
	case tcell.KeyLeft:
		v.step(-1)
	case tcell.KeyRight:
		v.step(1)
	}
	if e.Key() != tcell.KeyRune {
		return false
	}
	switch r, _ := utf8.DecodeRuneInString(e.Str()); r {
	case 'q':
		return true
	case '?', 'h':
		v.help = !v.help
	case '/':
		v.typing, v.before = true, v.Order.Filter
	case '<':
		v.step(-1)
	case '>':
		v.step(1)
	case 'r':
		v.Order.Reverse = !v.Order.Reverse
	case ' ':
		v.paused = !v.paused
	case 'n':
		v.Order.Column = "pod"
	default:
		if v.table != nil {
			for _, c := range v.table.columns {
				if c.key == r {
					v.Order.Column, v.scroll = c.Name, 0
				}
			}
		}
	}
	return false
}

// step makes another column the one to sort by.
func (v *View) step(by int) {
	if v.table == nil {
		return
	}
	names := []string{"pod"}
	at := 0
	for i, c := range v.table.columns {
		if names = append(names, c.Name); c.Name == v.Order.Column {
			at = i + 1
		}
	}
	v.Order.Column = names[(at+by+len(names))%len(names)]
}

// The styles. The screen honours NO_COLOR.
var (
	styleBold    = tcell.StyleDefault.Bold(true)
	styleDim     = tcell.StyleDefault.Dim(true)
	styleReverse = tcell.StyleDefault.Reverse(true)
	styleBad     = tcell.StyleDefault.Foreground(color.Red)
	styleWarn    = tcell.StyleDefault.Foreground(color.Olive)
)

func (v *View) draw() {
	v.Screen.Clear()
	width, height := v.Screen.Size()
	if width < 20 || height < 5 {
		v.Screen.PutStr(0, 0, "too small")
		v.Screen.Show()
		return
	}
	if v.table == nil {
		v.Screen.PutStr(0, 0, "loading the probes ...")
		v.Screen.Show()
		return
	}
	footer := v.footer(width)
	shown := v.drawTable(1, width, height-1-len(footer))
	v.drawHead(width, shown)
	for i, line := range footer {
		v.Screen.PutStrStyled(0, height-len(footer)+i, line.text, line.style)
	}
	if v.help {
		v.drawHelp(width, height)
	}
	v.Screen.Show()
}

func (v *View) drawHead(width, shown int) {
	t := v.table
	head := fmt.Sprintf("nodeskoop top  %s  every %v  %d of %d rows", t.at.Format("15:04:05"), v.Interval, shown, len(t.rows))
	if v.Order.Filter != "" && !v.typing {
		head += fmt.Sprintf("  filter %q", v.Order.Filter)
	}
	if v.paused {
		head += "  PAUSED"
	}
	v.Screen.PutStrStyled(0, 0, column.Pad(quote.Safe(head), width, true), styleBold)
}

// columnGap is the space between two columns.
const columnGap = 2

// drawTable draws the heads and as many rows as fit, and returns how many rows
// there are.
func (v *View) drawTable(y, width, height int) int {
	rows := v.Order.apply(v.table)
	lines := [][]string{v.table.titles()}
	for _, r := range rows {
		lines = append(lines, v.table.texts(&r))
	}
	widths := column.Widths(lines)
	v.fit(widths, width)
	v.scroll = max(0, min(v.scroll, len(rows)-(height-1)))
	sorted := "POD"
	for _, c := range v.table.columns {
		if c.Name == v.Order.Column {
			sorted = c.title
		}
	}
	for i, line := range lines {
		at := y
		if i > 0 {
			if i <= v.scroll || i-v.scroll >= height {
				continue
			}
			at = y + i - v.scroll
		}
		x := 0
		for j, text := range line {
			if widths[j] == 0 {
				continue
			}
			style := tcell.StyleDefault
			switch title := lines[0][j]; {
			case i == 0 && title == sorted:
				style = styleReverse.Bold(true)
			case i == 0:
				style = styleBold
			case text == "0" || text == "-":
				style = styleDim
			case title == "DROPS/s" || title == "REASON":
				style = styleBad
			case title == "RETRANS/s" || title == "RESETS/s" || title == "SOCKSLOW/s" || title == "KERNSLOW/s":
				style = styleWarn
			}
			v.Screen.PutStrStyled(x, at, column.Pad(text, widths[j], leftAligned(lines[0][j])), style)
			x += widths[j] + columnGap
		}
	}
	return len(rows)
}

// fit narrows the name and the reason, and then leaves out the last columns,
// until the table is as wide as the screen.
func (v *View) fit(widths []int, width int) {
	total := -columnGap
	for _, w := range widths {
		total += w + columnGap
	}
	titles := v.table.titles()
	for _, narrow := range []struct {
		title string
		to    int
	}{{"POD", 32}, {"REASON", 14}, {"POD", 20}} {
		for i, t := range titles {
			if cut := min(total-width, widths[i]-narrow.to); t == narrow.title && cut > 0 {
				widths[i] -= cut
				total -= cut
			}
		}
	}
	v.hidden = 0
	for i := len(widths) - 1; i > 1 && total > width; i-- {
		total -= widths[i] + columnGap
		widths[i] = 0
		v.hidden++
	}
}

type footLine struct {
	text  string
	style tcell.Style
}

// footer names what is not seen, and the keys.
func (v *View) footer(width int) []footLine {
	var lines []footLine
	add := func(style tcell.Style, text string) {
		text = quote.SafeLine(text)
		lines = append(lines, footLine{column.Pad(text, min(width, displaywidth.String(text)), true), style})
	}
	if v.table.containerd != nil {
		add(styleWarn, "pods are not shown: "+v.table.containerd.Error())
	}
	var part []string
	for _, t := range v.table.troubles {
		if t.whole {
			add(styleWarn, "no "+t.probe+" here: "+t.text)
		} else {
			part = append(part, t.probe)
		}
	}
	if len(part) > 0 {
		add(styleDim, "in part: "+strings.Join(part, ", ")+" (nodeskoop probes says what they do not see)")
	}
	if last := v.Log.last(); last != "" {
		add(styleWarn, last)
	}
	// What is on the screen must not be all footer.
	if _, height := v.Screen.Size(); len(lines) > height/3 {
		lines = lines[:height/3]
	}
	keys := "q end  ? keys  / filter  < > sort  r reverse  space pause"
	if v.hidden > 0 {
		keys += fmt.Sprintf("  (%d more columns in a wider window)", v.hidden)
	}
	if v.typing {
		keys = "filter: " + v.Order.Filter + "_   (Enter keeps it, Esc takes it back)"
	}
	return append(lines, footLine{column.Pad(quote.Safe(keys), width, true), styleReverse})
}

func (v *View) drawHelp(width, height int) {
	lines := []string{
		"n            sort by name",
	}
	for _, c := range v.table.columns {
		lines = append(lines, fmt.Sprintf("%c            sort by %s", c.key, c.title))
	}
	lines = append(lines,
		"< > ← →      sort by the next column",
		"r            reverse the order",
		"/            filter by a part of the name, Esc ends it",
		"space        pause",
		"↑ ↓ PgUp PgDn  scroll",
		"q            end",
		"",
		"Rates are of the last interval. - is not known: before the second",
		"sample, or because a counter was reset. k, M, G are 1000 each.",
	)
	y := max(0, (height-len(lines)-2)/2)
	for i := -1; i <= len(lines); i++ {
		text := ""
		if i >= 0 && i < len(lines) {
			text = lines[i]
		}
		if y+i+1 < height {
			v.Screen.PutStrStyled(2, y+i+1, column.Pad(" "+text, min(72, width-4), true), styleReverse)
		}
	}
}

// Log keeps the log while the screen belongs to the table.
type Log struct {
	mu    sync.Mutex
	lines []string
	more  int // that were not kept
}

const maxScreenLog = 200

// Write takes one record of the log.
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

// last is the newest record that is a warning or worse, without its time.
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

// Flush writes what was kept.
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
