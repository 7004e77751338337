package top

import (
	"slices"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

const (
	columnGap = 1
	// leastName is the minimum width of a name, if the window has room.
	leastName = 20
	// leastReason is the minimum width of the reason.
	leastReason = 8
)

// layout holds the visible columns and their widths.
type layout struct {
	name   int   // width of names
	shown  []int // indexes of the visible columns, from left to right
	reason int   // width of the reason; 0 hides it
	// left and right are the numbers of columns hidden on either side, including
	// the reason.
	left, right int
}

// arrange lays out columns in a line of the given width; 0 means unlimited. The
// name gets the width of the longest, up to half of the line. Then come the columns
// in their order without the first skip, as many as fit. The sorted column is
// always visible. The name, then the reason, get the remaining width. reason is the
// width of the widest reason, 0 if there is none.
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

// field is a part of a line: the index of a column, fieldName or fieldReason.
type field struct{ col, width int }

const (
	fieldName   = -1
	fieldReason = -2
)

// fields returns the parts of a line, which are separated by columnGap.
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

// head returns the padded head of a field.
func (f field) head(cols []Column) string {
	switch f.col {
	case fieldName:
		return column.Pad(headPod, f.width, true)
	case fieldReason:
		return column.Pad(headReason, f.width, true)
	}
	return column.Pad(cols[f.col].head, f.width, false)
}

// text returns the padded text of a row's field.
func (f field) text(cols []Column, r *row) string {
	switch f.col {
	case fieldName:
		return column.Pad(column.Middle(quote.Safe(r.name()), f.width), f.width, true)
	case fieldReason:
		return column.Pad(quote.Safe(column.Dash(r.reason)), f.width, true)
	}
	return column.Pad(r.cells[f.col].text(&cols[f.col]), f.width, false)
}

// longest returns the widths of the widest name and the widest reason.
func longest(rows []row) (name, reason int) {
	name, reason = len(headPod), len(headReason)
	for i := range rows {
		name = max(name, column.Width(quote.Safe(rows[i].name())))
		reason = max(reason, column.Width(quote.Safe(rows[i].reason)))
	}
	return name, reason
}

// hasReason reports whether one of the columns has a reason to show.
func hasReason(cols []Column) bool {
	return slices.ContainsFunc(cols, func(c Column) bool { return c.Name == "drops" })
}
