package top

// ColumnHelp is the documentation of a column.
type ColumnHelp struct{ Name, Head, Shows, Unit, Key string }

// KeyHelp is the documentation of a key.
type KeyHelp struct{ Press, Does string }

// Reference returns the documentation of the columns, in order of importance, and of the
// keys that do not sort.
func Reference() (all []ColumnHelp, keys []KeyHelp) {
	for _, c := range columns {
		all = append(all, ColumnHelp{c.Name, c.head, c.shows, c.unit, string(c.key)})
	}
	return all, []KeyHelp{
		{"↑ ↓ PgUp PgDn Home End", "select a pod; scroll its page"},
		{"Enter", "open the page of the selected pod: drops, peers, queues, events, processes"},
		{"Esc", "go back; end the filter"},
		{"← →", "scroll the columns"},
		{"< >", "sort by the column before, after"},
		{"n", "sort by name"},
		{"r", "reverse the order"},
		{"/", "show only names that contain a text"},
		{"space", "pause"},
		{"?", "show or hide the keys"},
		{"q", "end"},
	}
}
