package top

import (
	"slices"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

const (
	columnGap = 1
	// leastName is how much of a name is shown while there is room for anything.
	leastName = 20
	// leastReason is the narrowest that the reason is shown.
	leastReason = 8
)

// layout says which columns stand on a line, and how wide they are.
type layout struct {
	name   int   // the width of names
	shown  []int // the columns by index, from left to right
	reason int   // the width of the reason; 0: it is not shown
	// left and right count the columns that are hidden on either side, the reason
	// among them.
	left, right int
}

// arrange lays columns out on a line of a width; 0 is without bound. The name
// gets what the longest needs, up to half of the line, then come the columns in
// their order, without the first skip, as many as fit. The column that is sorted by
// is always shown. What is left is the name's, and then the reason's. reason is how
// wide the widest is, 0 if there is none to show.
func arrange(cols []Column, width, longest, reason, skip int, sorted string) layout {
	all := len(cols)
	if reason > 0 {
		all++
	}
	l := layout{left: min(skip, max(0, all-1))}
	if width <= 0 {
		l = layout{name: longest, reason: reason}
		for i := range cols {
			l.shown = append(l.shown, i)
		}
		return l
	}
	l.name = max(1, min(longest, max(width/2, leastName), width-columnGap-6))
	room := width - l.name
	take := func(i int) bool {
		cost := columnGap + cols[i].cells()
		if cost > room {
			return false
		}
		room -= cost
		l.shown = append(l.shown, i)
		return true
	}
	// The sorted column keeps its place if it fits there.
	at := slices.IndexFunc(cols, func(c Column) bool { return c.Name == sorted })
	pinned := false
	if at >= 0 {
		cost := 0
		for i := l.left; i <= at && i < len(cols); i++ {
			cost += columnGap + cols[i].cells()
		}
		if pinned = at < l.left || cost > room; pinned {
			take(at)
		}
	}
	next := l.left
	for ; next < len(cols); next++ {
		if pinned && next == at {
			continue
		}
		if !take(next) {
			break
		}
	}
	if pinned && at < l.left {
		l.left--
	}
	for i := next; i < len(cols); i++ {
		if !pinned || i != at {
			l.right++
		}
	}
	if more := min(longest-l.name, room); l.right == 0 && more > 0 {
		l.name += more
		room -= more
	}
	switch {
	case reason == 0:
	case l.right == 0 && room >= columnGap+min(reason, leastReason):
		l.reason = min(reason, room-columnGap)
	default:
		l.right++
	}
	return l
}

// field is a part of a line: a column by its index, fieldName or fieldReason.
type field struct{ col, width int }

const (
	fieldName   = -1
	fieldReason = -2
)

// fields are the parts of a line, with columnGap between them.
func (l *layout) fields(cols []Column) []field {
	out := []field{{fieldName, l.name}}
	for _, i := range l.shown {
		out = append(out, field{i, cols[i].cells()})
	}
	if l.reason > 0 {
		out = append(out, field{fieldReason, l.reason})
	}
	return out
}

// head is the head of a part of a line, filled up to its width.
func (f field) head(cols []Column) string {
	switch f.col {
	case fieldName:
		return column.Pad(headPod, f.width, true)
	case fieldReason:
		return column.Pad(headReason, f.width, true)
	}
	return column.Pad(cols[f.col].head, f.width, false)
}

// text is what a row has in a part of a line, filled up to its width.
func (f field) text(cols []Column, r *row) string {
	switch f.col {
	case fieldName:
		return column.Pad(column.Middle(quote.Safe(r.name()), f.width), f.width, true)
	case fieldReason:
		return column.Pad(quote.Safe(column.Dash(r.reason)), f.width, true)
	}
	return column.Pad(r.cells[f.col].text(&cols[f.col]), f.width, false)
}

// longest are the widths of the widest name and reason of some rows.
func longest(rows []row) (name, reason int) {
	name, reason = len(headPod), len(headReason)
	for i := range rows {
		name = max(name, column.Width(quote.Safe(rows[i].name())))
		reason = max(reason, column.Width(quote.Safe(rows[i].reason)))
	}
	return name, reason
}

// hasReason reports whether there is a reason to show beside some columns.
func hasReason(cols []Column) bool {
	return slices.ContainsFunc(cols, func(c Column) bool { return c.Name == "drops" })
}
