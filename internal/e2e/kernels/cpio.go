package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// tree is a file system to be packed, by path without a leading slash.
type tree map[string]entry

type entry struct {
	mode uint32 // st_mode of stat(2), file type included
	data []byte // content of a file, or target of a link
}

const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

func (t tree) file(name string, mode uint32, data []byte) { t[name] = entry{typeFile | mode, data} }
func (t tree) link(name, to string)                       { t[name] = entry{typeLink | 0o777, []byte(to)} }
func (t tree) dir(name string)                            { t[name] = entry{mode: typeDir | 0o755} }

// add copies a file of this machine.
func (t tree) add(name, from string, mode uint32) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.file(name, mode, data)
	return nil
}

// write writes the tree in the format of an initramfs ("newc"), folders before
// their content.
func (t tree) write(w io.Writer) error {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			if _, ok := t[d]; !ok {
				t.dir(d)
			}
		}
	}
	b := bufio.NewWriterSize(w, 1<<20)
	names := slices.SortedFunc(maps.Keys(t), func(x, y string) int {
		if c := strings.Count(x, "/") - strings.Count(y, "/"); c != 0 {
			return c
		}
		return strings.Compare(x, y)
	})
	for i, name := range append(names, "TRAILER!!!") {
		e := t[name]
		links := 1
		if e.mode&0o170000 == typeDir {
			links = 2
		}
		fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			i+1, e.mode, 0, 0, links, 0, len(e.data), 0, 0, 0, 0, len(name)+1, 0, name)
		pad(b, 110+len(name)+1)
		b.Write(e.data)
		pad(b, len(e.data))
	}
	return b.Flush()
}

// pad pads to a multiple of four bytes.
func pad(w *bufio.Writer, n int) {
	for ; n%4 != 0; n++ {
		w.WriteByte(0)
	}
}
