// Package rawtp attaches a test's own programs to tracepoints.
package rawtp

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Attach attaches a raw tracepoint program until the end of the test.
func Attach(t testing.TB, tracepoint string, instructions asm.Instructions) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: instructions})
	if err != nil {
		t.Fatalf("load a program for %s: %v", tracepoint, err)
	}
	t.Cleanup(func() { program.Close() })
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: tracepoint, Program: program})
	if err != nil {
		t.Fatalf("attach a program to %s: %v", tracepoint, err)
	}
	t.Cleanup(func() { attached.Close() })
	return program
}

// Count counts the passes of tracepoints, all together, and returns a function that reads
// the count.
func Count(t testing.TB, tracepoints ...string) func() uint64 {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatalf("make a counter: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	for _, tracepoint := range tracepoints {
		Attach(t, tracepoint, asm.Instructions{
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "end"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("end"),
			asm.Return(),
		})
	}
	return func() (n uint64) {
		t.Helper()
		if err := m.Lookup(uint32(0), &n); err != nil {
			t.Fatalf("read the counter: %v", err)
		}
		return n
	}
}
