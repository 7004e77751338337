package column

import (
	"bytes"
	"strings"
	"testing"

	"nodeskoop/internal/testkit/nasty"
)

func TestTablesAreSafe(t *testing.T) {
	rows := [][]string{{"POD", "ADDRESSES"}}
	for _, n := range nasty.Names {
		rows = append(rows, []string{n, "10.0.0.1"})
	}
	var b bytes.Buffer
	if err := Write(&b, rows); err != nil {
		t.Fatal(err)
	}
	if r := nasty.Acts(b.String()); r >= 0 {
		t.Errorf("%U in %q", r, b.String())
	}
	if lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n"); len(lines) != len(rows) {
		t.Errorf("%d lines of %d rows:\n%s", len(lines), len(rows), b.String())
	}
}
