package testkit_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
)

// failing is a testing.TB that records its failure.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Helper() {}

func (f *failing) Errorf(format string, args ...any) { f.said = fmt.Sprintf(format, args...) }

func TestWithin(t *testing.T) {
	n := 0
	if !testkit.Within(testkit.Patience, func() bool { n++; return n == 3 }) || n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
	start := time.Now()
	if testkit.Within(30*time.Millisecond, func() bool { return false }) {
		t.Error("what never comes true came true")
	}
	if took := time.Since(start); took < 30*time.Millisecond {
		t.Errorf("given up after %v, before the limit", took)
	}
	testkit.Await(t, func() error {
		if n++; n < 6 {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestGoldenFindsADifference(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("NODESKOOP_TEST_UPDATE", "1")
	testkit.Golden(t, "a/b", []byte("one\n"))
	t.Setenv("NODESKOOP_TEST_UPDATE", "")
	testkit.Golden(t, "a/b", []byte("one\n"))
	f := &failing{TB: t}
	testkit.Golden(f, "a/b", []byte("two\n"))
	if !strings.Contains(f.said, "a/b differs") || !strings.Contains(f.said, "two") {
		t.Errorf("another content was reported as %q", f.said)
	}
}

// A process whose output nobody reads ends with its input.
func TestHold(t *testing.T) {
	cmd := exec.Command("sh", "-c", "echo here; exec cat")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h := testkit.Hold(t, cmd)
	line := make([]byte, 5)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "here\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := h.End(); err != nil {
		t.Errorf("End: %v", err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", h.PID())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the process is there after End: %v", err)
	}
	if err := h.End(); err != nil {
		t.Errorf("a second End: %v", err)
	}
}

func TestProcess(t *testing.T) {
	p := testkit.Start(t, exec.Command("sh", "-c", "echo ready; exec cat /dev/zero > /dev/null"))
	if !p.Ready(t, func() bool { return p.Log.String() == "ready\n" }) {
		t.Fatalf("it ended:\n%s", p.Log)
	}
	before, err := testkit.UsageOf(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	if before.Threads != 1 || before.Resident < 4096 || before.Anonymous < 4096 || before.Anonymous > before.Resident {
		t.Errorf("the usage of cat is %+v", before)
	}
	testkit.Await(t, func() error {
		cpu, err := testkit.CPUOf(p.PID())
		if err == nil && cpu < before.CPU+20*time.Millisecond {
			err = fmt.Errorf("a process that only works used %v, and %v before", cpu, before.CPU)
		}
		return err
	})
	p.Stop()
	if !p.Ended() {
		t.Error("Stop returned before the end")
	}
	if u, err := testkit.UsageOf(p.PID()); err == nil {
		t.Errorf("a process that has ended has %+v", u)
	}
	if p := testkit.Start(t, exec.Command("true")); p.Ready(t, func() bool { return false }) {
		t.Error("a program that ended was ready")
	}
}

func TestOwnCPU(t *testing.T) {
	start := testkit.OwnCPU()
	for end := time.Now().Add(testkit.Patience); testkit.OwnCPU()-start < 20*time.Millisecond; {
		if time.Now().After(end) {
			t.Fatalf("%v of work used %v", testkit.Patience, testkit.OwnCPU()-start)
		}
	}
}
