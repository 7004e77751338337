package output

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// A pipe that nobody reads delays no caller; once it is read, the number of lost lines is
// written.
func TestPatientOnAPipeThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := NewPatient(w)
	line := strings.Repeat("x", 999) + "\n"
	begin := time.Now()
	const lines = 10_000
	for range lines {
		if n, err := io.WriteString(p, line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("%d lines took %v", lines, took)
	}
	if p.Flush(50 * time.Millisecond) {
		t.Error("it says that all is written, and nobody has read it")
	}
	got := make(chan []byte)
	go func() { b, _ := io.ReadAll(r); got <- b }()
	if !p.Flush(20 * time.Second) {
		t.Error("it is not written although it is read")
	}
	w.Close()
	b := <-got
	whole, lost := bytes.Count(b, []byte(line)), 0
	for l := range strings.Lines(string(b)) {
		if l == line {
			continue
		}
		var n int
		if _, err := fmt.Sscanf(l, "nodeskoop: %d lines of the log are lost", &n); err != nil {
			t.Errorf("%q: %v", l, err)
		}
		lost += n
	}
	if whole+lost != lines || lost == 0 {
		t.Errorf("%d lines are there and %d are said to be lost, of %d", whole, lost, lines)
	}
}

// With a reader all lines are written in order, and no loss is reported.
func TestPatientWithAReader(t *testing.T) {
	var b bytes.Buffer
	p := NewPatient(&b)
	var want strings.Builder
	for i := range 500 {
		fmt.Fprintf(p, "line %d\n", i)
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if !p.Flush(20*time.Second) || b.String() != want.String() {
		t.Errorf("%d bytes, want %d", b.Len(), want.Len())
	}
}
