package top

import (
	"strings"

	"nodeskoop/collect/catalog"
)

// ColumnHelp is what the documentation says of a column.
type ColumnHelp struct{ Name, Head, Shows, Unit, Key string }

// KeyHelp is what the documentation says of a key.
type KeyHelp struct{ Press, Does string }

// Reference is what the documentation says of the columns and the keys.
func Reference() (all []ColumnHelp, keys []KeyHelp) {
	for _, c := range columns {
		h := ColumnHelp{c.Name, c.title, "resets sent and received", "per second", string(c.key)}
		if m := catalog.MetricByName(c.metrics[0]); m != nil {
			h.Shows = strings.TrimSuffix(m.Help, ".")
		}
		if c.gauge {
			h.Unit = "now"
		}
		all = append(all, h)
	}
	return all, []KeyHelp{
		{"n", "sort by name"},
		{"< > ← →", "sort by the next column"},
		{"r", "reverse the order"},
		{"/", "show only names that contain a text; Esc ends it"},
		{"space", "pause"},
		{"↑ ↓ PgUp PgDn", "scroll"},
		{"?", "show or hide the keys"},
		{"q", "end"},
	}
}
