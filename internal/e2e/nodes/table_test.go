package nodes

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// table holds the results: a row for each situation and demand, a column for each node.
type table struct {
	mu    sync.Mutex
	nodes []string
	rows  []string
	cells map[[2]string]string
}

var results = table{cells: map[[2]string]string{}}

func (t *table) set(node, situation, demand, cell string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row := situation + " | " + demand
	if t.cells[[2]string{row, ""}] == "" {
		t.cells[[2]string{row, ""}] = "known"
		t.rows = append(t.rows, row)
	}
	known := false
	for _, n := range t.nodes {
		known = known || n == node
	}
	if !known {
		t.nodes = append(t.nodes, node)
	}
	t.cells[[2]string{row, node}] = cell
}

// String returns the table in Markdown.
func (t *table) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "| situation | demand | %s |\n|---|---|%s\n", strings.Join(t.nodes, " | "), strings.Repeat("---|", len(t.nodes)))
	for _, r := range t.rows {
		fmt.Fprintf(&b, "| %s |", r)
		for _, n := range t.nodes {
			cell := t.cells[[2]string{r, n}]
			if cell == "" {
				cell = "-"
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// write stores the table in the file that NODESKOOP_NODES_TABLE names.
func (t *table) write() error {
	file := os.Getenv("NODESKOOP_NODES_TABLE")
	if file == "" {
		return nil
	}
	return os.WriteFile(file, []byte(t.String()), 0o644)
}
