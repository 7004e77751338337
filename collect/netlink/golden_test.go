package netlink

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"nodeskoop/internal/testkit"
)

// TestGoldenConntrack compares the result for every captured nf_conntrack with a golden
// file: the counters in the order of the message, and the table's size.
func TestGoldenConntrack(t *testing.T) {
	var out bytes.Buffer
	files := statFiles(t)
	for _, kernel := range slices.Sorted(maps.Keys(files)) {
		var s ctState
		var z ctSize
		err := readStatFile(files[kernel], &s, &z)
		fmt.Fprintf(&out, "%s: %d of %d CPUs, %+v, error %v\n", kernel, s.sum, len(s.cpus), z, err)
	}
	testkit.Golden(t, "conntrack.golden", out.Bytes())
}
