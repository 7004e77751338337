// Package opinion compares a parser of a file of procfs with that of
// github.com/prometheus/procfs: where both take a file, they take the same from it.
package opinion

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/procfs"

	"nodeskoop/internal/bounded"
)

// Values is what a parser takes from a file, by names of the test's own.
type Values map[string]float64

// File is a file of procfs that two parsers read.
type File struct {
	Name    string // below /proc, process 1 for one of a process: "net/dev", "1/io"
	Header  int    // lines at its beginning that name columns, by which only ours goes
	Ours    func(b []byte) (Values, error)
	Library func(fs procfs.FS, p procfs.Proc) (Values, error)
	// Lacks are values that the library does not have.
	Lacks []string
}

// Captured holds both to the same values on files that kernels printed, and on
// changed ones of n seeds each.
func (f *File) Captured(t *testing.T, files map[string][]byte, n uint64) {
	t.Helper()
	both, root := 0, t.TempDir()
	for _, kernel := range slices.Sorted(maps.Keys(files)) {
		ours, err := f.Ours(files[kernel])
		library, err2 := f.read(root, files[kernel])
		if err != nil || err2 != nil {
			t.Errorf("%s of %s: %v; the library: %v", f.Name, kernel, err, err2)
			continue
		}
		for name := range ours {
			if _, ok := library[name]; !ok && !slices.Contains(f.Lacks, name) {
				t.Errorf("%s of %s: the library has no %s", f.Name, kernel, name)
			}
		}
		f.same(t, files[kernel], ours, library)
		for seed := range n {
			if f.compare(t, root, f.Mutate(files[kernel], seed)) {
				both++
			}
		}
	}
	if both == 0 {
		t.Errorf("%s: no changed file is taken by both", f.Name)
	}
}

// Compare reports whether both take b, and fails the test where they take different
// values from it. A parser of ours that panics ends the test; one of the library's
// refuses by that.
func (f *File) Compare(t *testing.T, b []byte) bool {
	t.Helper()
	return f.compare(t, t.TempDir(), b)
}

func (f *File) compare(t *testing.T, root string, b []byte) bool {
	t.Helper()
	ours, err := f.Ours(b)
	library, err2 := f.read(root, b)
	if err != nil || err2 != nil {
		return false
	}
	f.same(t, b, ours, library)
	return true
}

func (f *File) same(t *testing.T, b []byte, ours, library Values) {
	t.Helper()
	for name, want := range library {
		if got, ok := ours[name]; ok && got != want {
			t.Errorf("%s: %s is %v, the library's is %v, in\n%.2000s", f.Name, name, got, want, b)
		}
	}
}

// read lets the library read b as the file below root.
func (f *File) read(root string, b []byte) (v Values, err error) {
	path := filepath.Join(root, f.Name)
	for _, dir := range []string{filepath.Join(root, "1"), filepath.Dir(path)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return nil, err
	}
	fs, err := procfs.NewFS(root)
	if err != nil {
		return nil, err
	}
	p, err := fs.Proc(1)
	if err != nil {
		return nil, err
	}
	if e := bounded.Guard(func() { v, err = f.Library(fs, p) }); e != nil {
		return nil, fmt.Errorf("the library: %w", e)
	}
	return v, err
}

// Mutate changes a few bytes of b below its header: digits become others, and now
// and then something that is none.
func (f *File) Mutate(b []byte, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	from := 0
	for range f.Header {
		from += bytes.IndexByte(b[from:], '\n') + 1
	}
	b = slices.Clone(b)
	for range 1 + r.IntN(4) {
		if from >= len(b) {
			break
		}
		at := from + r.IntN(len(b)-from)
		digit := b[at] >= '0' && b[at] <= '9'
		switch n := r.IntN(20); {
		case digit && n < 14:
			b[at] = byte('0' + r.IntN(10))
		case digit && n < 16:
			b = slices.Insert(b, at, byte('0'+r.IntN(10)))
		case digit && n < 18:
			b = slices.Delete(b, at, at+1)
		case n == 18:
			b[at] = " \n\t-:xaF"[r.IntN(8)]
		case n == 19 && r.IntN(4) == 0:
			b = b[:at]
		}
	}
	return b
}
