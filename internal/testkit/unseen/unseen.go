// Package unseen counts what a kernel keeps from BPF programs.
//
// Some kernels of sandboxes run no BPF program while a thread of process 1 is current,
// and do not count such a run as missed. A timer that interrupts such a thread then
// retransmits a segment that no BPF program can count.
package unseen

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// events are the tracepoints of TCP's retransmissions.
var events = []string{"tcp_retransmit_skb", "tcp_retransmit_synack"}

// Retransmissions returns a function that says of how many TCP retransmissions on the
// whole machine, since Retransmissions was called, the kernel informed its own tracing
// but no BPF program at the same tracepoint. On an ordinary kernel that is 0.
func Retransmissions(t testing.TB) func() int {
	t.Helper()
	count := counting(t)
	tracing := traced(t)
	return func() int {
		t.Helper()
		// In this order, one that happens now counts as seen.
		fired := tracing()
		return max(0, fired-count())
	}
}

// counting returns a function that reads how often a BPF program ran at the tracepoints.
func counting(t testing.TB) func() int {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "unseen", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatalf("make a counter: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "unseen", Type: ebpf.RawTracepoint, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("load a program that counts: %v", err)
	}
	t.Cleanup(func() { program.Close() })
	for _, event := range events {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: event, Program: program})
		if err != nil {
			t.Fatalf("attach a program that counts to %s: %v", event, err)
		}
		t.Cleanup(func() { l.Close() })
	}
	return func() int {
		t.Helper()
		var n uint64
		if err := m.Lookup(uint32(0), &n); err != nil {
			t.Fatalf("read the counter: %v", err)
		}
		return int(n)
	}
}

// traced returns a function that reads how often the kernel's own tracing saw the events.
// It uses a tracefs instance of its own, on a mount that nobody else sees.
func traced(t testing.TB) func() int {
	t.Helper()
	mount, err := detached("tracefs")
	if errors.Is(err, unix.ENODEV) {
		t.Log("this kernel has no tracefs: whether it runs all BPF programs is not examined")
		return func() int { return 0 }
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(mount) })
	// A file system without a path is reached by its descriptor.
	instance := fmt.Sprintf("/proc/self/fd/%d/instances/nodeskoop-test-%d-%d", mount, os.Getpid(), mount)
	if err := os.Mkdir(instance, 0o700); err != nil {
		t.Fatalf("make a tracing instance: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(instance); err != nil {
			t.Errorf("remove the tracing instance: %v", err)
		}
	})
	for _, event := range events {
		if err := os.WriteFile(filepath.Join(instance, "events/tcp", event, "enable"), []byte("1"), 0); err != nil {
			t.Fatalf("trace %s: %v", event, err)
		}
	}
	return func() int {
		t.Helper()
		f, err := os.Open(filepath.Join(instance, "trace"))
		if err != nil {
			t.Fatalf("read what was traced: %v", err)
		}
		defer f.Close()
		n := 0
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			line := lines.Text()
			if strings.Contains(line, " [LOST ") || strings.Contains(line, " EVENTS] ") {
				t.Fatalf("the trace is incomplete: %s", line)
			}
			for _, event := range events {
				if strings.Contains(line, ": "+event+": ") {
					n++
				}
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatalf("read what was traced: %v", err)
		}
		return n
	}
}

// detached mounts a file system without attaching it to a path, and returns its
// descriptor. See fsmount(2).
func detached(kind string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open the file system %s: %w", kind, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create the file system %s: %w", kind, err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", kind, err)
	}
	return mount, nil
}
