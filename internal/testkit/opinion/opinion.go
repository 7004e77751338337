// Package opinion compares our parser of a procfs file with the one in
// github.com/prometheus/procfs: if both accept a file, they must read the same values.
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

// Values are the values read from a file, by names of the test's choice.
type Values map[string]float64

// File is a procfs file with two parsers.
type File struct {
	Name    string // below /proc, or /proc/1 for a process's file: "net/dev", "1/io"
	Header  int    // number of lines at the start with column names, which only our parser uses
	Ours    func(b []byte) (Values, error)
	Library func(fs procfs.FS, p procfs.Proc) (Values, error)
	// Lacks are the values that the library does not read.
	Lacks []string
}

// Captured compares both on captured files, and on mutations of each with n seeds.
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

// Compare reports whether both parsers accept b, and fails the test if their values differ.
// If our parser panics, the test fails; if the library's does, that counts as a rejection.
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

// read makes the library read b as the file below root.
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

// Mutate changes some bytes of b below its header: digits to other digits, and sometimes to
// something else.
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
