package netlink

import (
	"maps"
	"slices"
	"testing"

	"github.com/prometheus/procfs"

	"nodeskoop/internal/testkit/opinion"
)

// statOpinion compares net/stat/nf_conntrack. The library goes by the positions of the
// columns, and lacks the kernel's icmp_error.
var statOpinion = opinion.File{Name: "net/stat/nf_conntrack", Header: 1, Lacks: []string{"icmp_error"}, Ours: func(b []byte) (opinion.Values, error) {
	var s ctState
	var z ctSize
	err := readStatFile(b, &s, &z)
	v := opinion.Values{"entries": float64(z.entries)}
	for i, name := range statColumns {
		v[name] = float64(s.sum[i])
	}
	return v, err
}, Library: func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) {
	list, err := fs.ConntrackStat()
	v := opinion.Values{}
	for _, c := range list {
		v["entries"] = float64(c.Entries) // entries of the whole table, repeated on each line
		for name, n := range map[string]uint64{"found": c.Found, "invalid": c.Invalid, "ignore": c.Ignore, "insert": c.Insert,
			"insert_failed": c.InsertFailed, "drop": c.Drop, "early_drop": c.EarlyDrop, "search_restart": c.SearchRestart} {
			v[name] += float64(n)
		}
	}
	return v, err
}}

// TestLibrary: prometheus/procfs reads the same values from every captured file, and from
// mutated ones.
func TestLibrary(t *testing.T) { statOpinion.Captured(t, statFiles(t), 60) }

// FuzzLibrary mutates captured files as TestLibrary does.
func FuzzLibrary(f *testing.F) {
	f.Add(uint(0), uint64(0))
	f.Fuzz(func(t *testing.T, kernel uint, seed uint64) {
		files := statFiles(t)
		kernels := slices.Sorted(maps.Keys(files))
		statOpinion.Compare(t, statOpinion.Mutate(files[kernels[kernel%uint(len(kernels))]], seed))
	})
}
