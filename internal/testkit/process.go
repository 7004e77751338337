package testkit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs during a test and is killed at its end.
type Process struct {
	*exec.Cmd
	// Log is the program's standard output and standard error, unless the command redirects
	// them.
	Log *Log

	done chan struct{}
}

// Start starts a program. It may call t.Fatal, so call it from the test's own goroutine;
// TryStart may be called from any.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := TryStart(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TryStart is Start for a program that may fail to start, or for another goroutine or
// thread than the test's.
func TryStart(t testing.TB, cmd *exec.Cmd) (*Process, error) {
	p := &Process{Cmd: cmd, Log: &Log{}, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Log
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.Log
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() { _ = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("what %s said:\n%s", cmd, p.Log)
		}
	})
	return p, nil
}

// PID returns the program's process ID.
func (p *Process) PID() int { return p.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Kill kills the program and waits for its end.
func (p *Process) Kill() {
	_ = p.Process.Kill()
	<-p.done
}

// Stop interrupts the program, as Ctrl-C does, and waits for its end.
func (p *Process) Stop() {
	_ = p.Process.Signal(unix.SIGINT)
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.Kill()
	}
}

// Ready waits until ok returns true, and returns false if the program ends first. If
// neither happens, it fails the test.
func (p *Process) Ready(t testing.TB, ok func() bool) (ready bool) {
	t.Helper()
	if !Within(Patience, func() bool { ready = ok(); return ready || p.Ended() }) {
		t.Fatalf("%s is not ready after %v:\n%s", p.Path, Patience, p.Log)
	}
	return ready || ok()
}

// Held is a program that runs until its standard input is closed, as cat does: by End, at
// the end of the test, or when this process exits in any way.
type Held struct {
	*exec.Cmd
	stdin io.Closer
}

// Hold starts a program as a Held.
func Hold(t testing.TB, cmd *exec.Cmd) *Held {
	t.Helper()
	h, err := TryHold(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TryHold is Hold for another thread than the test's.
func TryHold(t testing.TB, cmd *exec.Cmd) (*Held, error) {
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	h := &Held{cmd, stdin}
	t.Cleanup(func() { _ = h.End() })
	return h, nil
}

// PID returns the program's process ID.
func (h *Held) PID() int { return h.Process.Pid }

// End closes the program's input and waits for its end. Further output is lost. A second
// call does nothing.
func (h *Held) End() error {
	if err := h.stdin.Close(); errors.Is(err, os.ErrClosed) {
		return nil
	}
	return h.Wait()
}
