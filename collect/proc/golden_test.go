package proc

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"nodeskoop/internal/testkit"
)

// TestGoldenParsers compares the result of each parser for each captured file with a golden
// file.
func TestGoldenParsers(t *testing.T) {
	var out bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(parsers)) {
		x := parsers[name]
		files := captured(t, x.file)
		for _, kernel := range slices.Sorted(maps.Keys(files)) {
			got, err := x.parse(files[kernel])
			if err != nil {
				got = "error: " + err.Error()
			}
			fmt.Fprintf(&out, "%s of %s, %s: %s\n", name, kernel, x.file, got)
		}
	}
	testkit.Golden(t, "parsers.golden", out.Bytes())
}
