package top

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/color"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

// View shows samples on a terminal and handles its keys.
type View struct {
	Screen   tcell.Screen
	Order    Order
	Interval time.Duration
	Log      *Log

	// open makes samples include the page of a pod; nil in tests without a sampler.
	open func(*podName)

	table  *Table
	paused bool
	help   bool
	typing bool   // a filter is being typed
	before string // the filter before typing

	rows     []row    // as last drawn
	selected *podName // nil selects the first row
	scroll   int      // number of rows above the window
	skip     int      // number of columns to the left of the window
	visible  int      // number of rows in the window

	page       *podName // pod of the open page
	shown      *page    // last sampled page
	pageScroll int
	pageSkip   int
	helpScroll int
}

// Run shows samples until the user or ctx ends it.
func (v *View) Run(ctx context.Context, s *Sampler) {
	ctx, stop := context.WithCancel(ctx)
	s.runner.Until(ctx)
	tables := make(chan *Table, 1)
	opened := make(chan struct{}, 1)
	v.open = func(name *podName) {
		s.Open(name)
		select {
		case opened <- struct{}{}:
		default:
		}
	}
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(v.Interval)
		defer tick.Stop()
		for t := s.sample(); ; {
			select {
			case tables <- t:
			case <-ctx.Done():
				return
			}
			select {
			case <-tick.C:
				t = s.sample()
			case <-opened:
				t = s.again()
			case <-ctx.Done():
				return
			}
		}
	})
	defer sampling.Wait()
	defer stop()
	v.loop(ctx, tables)
}

// loop draws tables and handles keys.
func (v *View) loop(ctx context.Context, tables <-chan *Table) {
	v.Screen.RegisterRuneFallback('…', "~") // for locales without UTF-8
	v.draw()
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-tables:
			// Show a newly opened page even while the table is paused.
			if !v.paused {
				v.table = t
			}
			if t.page != nil && v.page != nil && t.page.name == *v.page && (!v.paused || v.shown == nil) {
				v.shown = t.page
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

// key handles a key, and reports whether it ends the view.
func (v *View) key(e *tcell.EventKey) (end bool) {
	r := rune(0)
	if e.Key() == tcell.KeyRune {
		r, _ = utf8.DecodeRuneInString(e.Str())
	}
	switch {
	case e.Key() == tcell.KeyCtrlC:
		return true
	case v.typing:
		v.typeFilter(e)
		return false
	case r == 'q':
		return true
	case r == '?' || r == 'h' || v.help && e.Key() == tcell.KeyEscape:
		v.help, v.helpScroll = !v.help, 0
		return false
	case r == ' ':
		v.paused = !v.paused
		return false
	case v.help:
		v.scrollBy(&v.helpScroll, e.Key())
		return false
	case v.page != nil:
		v.pageKey(e)
		return false
	}
	switch e.Key() {
	case tcell.KeyEscape:
		v.Order.Filter, v.scroll = "", 0
	case tcell.KeyEnter:
		v.enter()
	case tcell.KeyUp:
		v.move(-1)
	case tcell.KeyDown:
		v.move(1)
	case tcell.KeyPgUp:
		v.move(-max(1, v.visible-1))
	case tcell.KeyPgDn:
		v.move(max(1, v.visible-1))
	case tcell.KeyHome:
		v.selected, v.scroll = nil, 0
	case tcell.KeyEnd:
		v.move(len(v.rows))
	case tcell.KeyLeft:
		v.skip = max(0, v.skip-1)
	case tcell.KeyRight:
		v.skip++
	}
	switch r {
	case 0:
	case '/':
		v.typing, v.before = true, v.Order.Filter
	case '<':
		v.step(-1)
	case '>':
		v.step(1)
	case 'r':
		v.Order.Reverse = !v.Order.Reverse
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

// typeFilter handles a key while a filter is being typed.
func (v *View) typeFilter(e *tcell.EventKey) {
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
	v.selected, v.scroll = nil, 0
}

// pageKey handles a key on an open page.
func (v *View) pageKey(e *tcell.EventKey) {
	switch e.Key() {
	case tcell.KeyEscape:
		v.page, v.shown = nil, nil
		if v.open != nil {
			v.open(nil)
		}
	case tcell.KeyHome:
		v.pageScroll, v.pageSkip = 0, 0
	case tcell.KeyLeft:
		v.pageSkip = max(0, v.pageSkip-pageStep)
	case tcell.KeyRight:
		v.pageSkip += pageStep
	default:
		v.scrollBy(&v.pageScroll, e.Key())
	}
}

// scrollBy scrolls a window; drawing keeps it within the lines.
func (v *View) scrollBy(at *int, key tcell.Key) {
	switch key {
	case tcell.KeyUp:
		*at--
	case tcell.KeyDown:
		*at++
	case tcell.KeyPgUp:
		*at -= max(1, v.visible-1)
	case tcell.KeyPgDn:
		*at += max(1, v.visible-1)
	case tcell.KeyHome:
		*at = 0
	case tcell.KeyEnd:
		*at = 1 << 20
	}
}

// pageStep is the number of columns by which a page scrolls sideways.
const pageStep = 10

// at returns the index of the selected row.
func (v *View) at() int {
	if v.selected == nil {
		return 0
	}
	return max(0, slices.IndexFunc(v.rows, func(r row) bool { return r.id() == *v.selected }))
}

// move selects another row. The selection follows its pod when rows are sorted.
func (v *View) move(by int) {
	if len(v.rows) == 0 {
		return
	}
	id := v.rows[min(max(0, v.at()+by), len(v.rows)-1)].id()
	v.selected = &id
}

// enter opens the page of the selected row.
func (v *View) enter() {
	if len(v.rows) == 0 {
		return
	}
	id := v.rows[v.at()].id()
	v.page, v.shown, v.pageScroll, v.pageSkip = &id, nil, 0, 0
	if v.open != nil {
		v.open(&id)
	}
}

// step sorts by another column.
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

// Styles. The screen honours NO_COLOR.
var (
	stylePlain   = tcell.StyleDefault
	styleBold    = tcell.StyleDefault.Bold(true)
	styleDim     = tcell.StyleDefault.Dim(true)
	styleReverse = tcell.StyleDefault.Reverse(true)
	styleBad     = tcell.StyleDefault.Foreground(color.Red)
	styleWarn    = tcell.StyleDefault.Foreground(color.Olive)
)

// span is text in one style, and line is a line of the screen. Both must be safe
// for a terminal.
type (
	span struct {
		text  string
		style tcell.Style
	}
	line []span
)

func plain(text string) line                        { return line{{text, stylePlain}} }
func styled(style tcell.Style, text string) line    { return line{{text, style}} }
func (l line) add(style tcell.Style, s string) line { return append(l, span{s, style}) }

// Minimum size of the window.
const (
	leastWidth  = 20
	leastHeight = 5
	// tallEnough is the height from which constant lines are shown.
	tallEnough = 11
)

// draw draws the current state. The screen writes only changed cells to the terminal.
//
// Show asks for the terminal's size, which may have changed since the lines were laid
// out. Then draw lays them out again, because the view may have handled the event of
// that change already.
func (v *View) draw() {
	for {
		width, height := v.Screen.Size()
		v.put(width, height)
		v.Screen.Show()
		if w, h := v.Screen.Size(); w == width && h == height {
			return
		}
	}
}

// put lays out the current state for a size.
func (v *View) put(width, height int) {
	lines := v.frame(width, height)
	for y := range height {
		x := 0
		if y < len(lines) {
			for _, s := range lines[y] {
				if n := column.Width(s.text); x+n > width {
					s.text = column.Pad(s.text, max(0, width-x), true)
				}
				v.Screen.PutStrStyled(x, y, s.text, s.style)
				x += column.Width(s.text)
			}
		}
		if x < width {
			v.Screen.PutStrStyled(x, y, strings.Repeat(" ", width-x), stylePlain)
		}
	}
}

// frame returns the lines of the screen.
func (v *View) frame(width, height int) []line {
	if width < leastWidth || height < leastHeight {
		return []line{plain("too small")}
	}
	if v.table == nil {
		return []line{plain("loading the probes ...")}
	}
	footer := v.footer(width, height)
	room := height - 1 - len(footer)
	var lines []line
	switch {
	case v.help:
		lines = v.helpLines(width, room)
	case v.page != nil:
		lines = v.pageLines(width, room)
	default:
		lines = v.tableLines(width, room)
	}
	for len(lines) < 1+room {
		lines = append(lines, nil)
	}
	return append(lines[:1+room], footer...)
}

// tableLines returns the head and the rows that fit.
func (v *View) tableLines(width, room int) []line {
	t := v.table
	v.rows = v.Order.apply(t)
	v.visible = room - 1
	at := v.at()
	v.scroll = max(min(v.scroll, at), at-(v.visible-1), 0)
	v.scroll = min(v.scroll, max(0, len(v.rows)-v.visible))
	name, _ := longest(v.rows)
	reason := 0
	if hasReason(t.columns) {
		reason = width // use all remaining room, so that the width does not change with the content
	}
	arranged := func(skip int) layout { return arrange(t.columns, width, name, reason, skip, v.Order.Column) }
	for v.skip > 0 && arranged(v.skip-1).right == 0 {
		v.skip--
	}
	l := arranged(v.skip)
	fields := l.fields(t.columns)

	lines := []line{v.head(width, &l)}
	var heads line
	for i, f := range fields {
		style := styleBold
		if f.col >= 0 && t.columns[f.col].Name == v.Order.Column || f.col == fieldName && v.Order.Column == "pod" {
			style = styleReverse.Bold(true)
		}
		if i > 0 {
			heads = heads.add(stylePlain, strings.Repeat(" ", columnGap))
		}
		heads = heads.add(style, f.head(t.columns))
	}
	lines = append(lines, heads)
	for i := v.scroll; i < len(v.rows) && i < v.scroll+v.visible; i++ {
		var x line
		for j, f := range fields {
			text := f.text(t.columns, &v.rows[i])
			style := styleOf(t.columns, f, strings.TrimSpace(text))
			if i == at {
				style = style.Reverse(true)
			}
			if j > 0 {
				gap := stylePlain
				if i == at {
					gap = styleReverse
				}
				x = x.add(gap, strings.Repeat(" ", columnGap))
			}
			x = x.add(style, text)
		}
		lines = append(lines, x)
	}
	return lines
}

// styleOf returns the style of a cell.
func styleOf(cols []Column, f field, text string) tcell.Style {
	switch {
	case f.col == fieldName:
		return stylePlain
	case text == "0" || text == "-":
		return styleDim
	case f.col == fieldReason:
		return styleBad
	}
	switch cols[f.col].Name {
	case "drops", hostDrops:
		return styleBad
	case "retransmits", "resets", "socket_slow", "kernel_slow":
		return styleWarn
	}
	return stylePlain
}

// head returns the first line: the subject, and at its end the numbers of columns
// hidden on either side.
func (v *View) head(width int, l *layout) line {
	t := v.table
	hidden := ""
	if l.left > 0 {
		hidden = fmt.Sprintf("←%d", l.left)
	}
	if l.right > 0 {
		hidden = strings.TrimSpace(fmt.Sprintf("%s →%d", hidden, l.right))
	}
	state := ""
	if v.Order.Filter != "" && !v.typing {
		state += "  filter " + quote.Safe(fmt.Sprintf("%q", v.Order.Filter))
	}
	if v.paused {
		state += "  PAUSED"
	}
	at := t.at.Format("15:04:05")
	room := width - column.Width(hidden) - 1
	return v.fitted(width, room, hidden,
		fmt.Sprintf("nodeskoop top  %s  %d of %d rows%s  rates per second, every %v", at, len(v.rows), len(t.rows), state, v.Interval),
		fmt.Sprintf("nodeskoop top  %s  %d of %d rows%s", at, len(v.rows), len(t.rows), state),
		fmt.Sprintf("nodeskoop top  %s%s", at, state),
		fmt.Sprintf("top %s%s", at, state))
}

// fitted returns the first of the texts that fits beside end.
func (v *View) fitted(width, room int, end string, texts ...string) line {
	text := texts[len(texts)-1]
	for _, x := range texts {
		if column.Width(x) <= room {
			text = x
			break
		}
	}
	return styled(styleBold, column.Pad(text, width-column.Width(end), true)+end)
}

// footer lists what is not visible, and the keys.
func (v *View) footer(width, height int) []line {
	var lines []line
	add := func(style tcell.Style, text string) {
		text = quote.SafeLine(text)
		lines = append(lines, styled(style, column.Pad(text, min(width, column.Width(text)), true)))
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
	if len(part) > 0 && height > tallEnough {
		add(styleDim, "limited on this kernel: "+strings.Join(part, ", ")+" (see nodeskoop probes)")
	}
	if last := v.Log.last(); last != "" {
		add(styleWarn, last)
	}
	// The footer takes at most a third of the screen.
	if len(lines) > height/3 {
		lines = lines[:height/3]
	}
	keys := []string{"q end", "? keys", "Enter open", "/ filter", "< > sort", "← → columns", "r reverse", "space pause"}
	switch {
	case v.typing:
		keys = []string{"filter: " + v.Order.Filter + "_", " (Enter keeps it, Esc takes it back)"}
	case v.help:
		keys = []string{"Esc back", "q end", "↑ ↓ scroll"}
	case v.page != nil:
		keys = []string{"Esc back", "q end", "↑ ↓ scroll", "← → sideways", "space pause"}
	}
	text := quote.Safe(keys[0])
	for _, k := range keys[1:] {
		if column.Width(text)+2+column.Width(k) > width {
			break
		}
		text += "  " + k
	}
	return append(lines, styled(styleReverse, column.Pad(text, width, true)))
}

// helpLines returns the head and the visible part of the list of keys.
func (v *View) helpLines(width, room int) []line {
	var all []line
	const hang = 10
	write := func(press, does string) {
		text := column.Pad(press, max(hang-1, column.Width(press)), true)
		used := column.Width(text)
		for word := range strings.FieldsSeq(does) {
			if n := column.Width(word); used+1+n > width && used > hang {
				all = append(all, plain(text))
				text, used = strings.Repeat(" ", hang-1), hang-1
			}
			text += " " + word
			used += 1 + column.Width(word)
		}
		all = append(all, plain(text))
	}
	_, keys := Reference()
	for _, k := range keys {
		write(k.Press, k.Does)
	}
	write("", "")
	for i := range v.table.columns {
		c := &v.table.columns[i]
		does := c.shows
		if !c.gauge() {
			does += ", " + c.unit
		}
		write(string(c.key)+" "+c.head, "sort by "+does)
	}
	write("", "")
	write("-", "is not known: before the second sample, or a counter was reset")
	write("k M G", "are 1000 each")
	v.visible = room
	v.helpScroll = max(0, min(v.helpScroll, len(all)-room))
	lines := []line{scrolled("nodeskoop top: keys and columns", width, v.helpScroll, len(all)-room-v.helpScroll)}
	return append(lines, all[v.helpScroll:min(len(all), v.helpScroll+room)]...)
}

// scrolled returns a head with the numbers of hidden lines above and below.
func scrolled(text string, width, above, below int) line {
	end := ""
	if above > 0 {
		end = fmt.Sprintf(" ↑%d", above)
	}
	if below > 0 {
		end += fmt.Sprintf(" ↓%d", below)
	}
	return styled(styleBold, column.Pad(text, width-column.Width(end), true)+end)
}
