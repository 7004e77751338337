// Package unseen counts what a kernel keeps from BPF programs.
//
// Some kernels of sandboxes run no BPF program while a thread of process 1 is current,
// and do not count such a run as missed. A timer that interrupts such a thread then
// retransmits a segment that no BPF program can count. The tests of package bpf run again
// after such a softirq; those of a whole system subtract what was lost.
package unseen

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/rawtp"
)

// events are the tracepoints of TCP's retransmissions.
var events = []string{"tcp_retransmit_skb", "tcp_retransmit_synack"}

// Retransmissions returns a function that says of how many TCP retransmissions on the
// whole machine, since Retransmissions was called, the kernel informed its own tracing
// but no BPF program at the same tracepoint. On an ordinary kernel that is 0.
func Retransmissions(t testing.TB) func() int {
	t.Helper()
	count := rawtp.Count(t, events...)
	tracing := traced(t)
	return func() int {
		t.Helper()
		// In this order, one that happens now counts as seen.
		fired := tracing()
		return max(0, fired-int(count()))
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
