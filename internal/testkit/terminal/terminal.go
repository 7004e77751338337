// Package terminal runs programs in a pseudo-terminal of a given size, and captures the
// screen: as text for tests, and as a picture for the documentation.
package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gdamore/tcell/v3/vt"
	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal that runs one program.
type Terminal struct {
	cmd    *exec.Cmd
	master *os.File
	size   vt.Coord      // guarded by mu
	ended  chan struct{} // closed when the program has ended and its output is drawn

	mu      sync.Mutex
	draw    vt.MockTerm
	cond    *sync.Cond
	written int
	escapes int
	err     error
}

// Start runs a program in a terminal of the given size, with env in addition to the usual
// environment.
func Start(columns, rows int, env []string, name string, args ...string) (*Terminal, error) {
	master, slave, err := open(columns, rows)
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	t := &Terminal{master: master, size: vt.Coord{X: vt.Col(columns), Y: vt.Row(rows)}, ended: make(chan struct{})}
	t.cond = sync.NewCond(&t.mu)
	t.draw = vt.NewMockTerm(vt.MockOptSize(t.size), vt.MockOptColors(256))
	if err := t.draw.Start(); err != nil {
		master.Close()
		return nil, err
	}
	t.cmd = exec.Command(name, args...)
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = slave, slave, slave
	t.cmd.Env = append(append(os.Environ(), "TERM=xterm-256color", "NO_COLOR="), env...) // an empty NO_COLOR counts as unset
	t.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := t.cmd.Start(); err != nil {
		master.Close()
		return nil, fmt.Errorf("start %s in a terminal: %w", name, err)
	}
	go func() {
		// The terminal's answers to the program's queries.
		buf := make([]byte, 256)
		for n, err := t.draw.Read(buf); err == nil; n, err = t.draw.Read(buf) {
			_, _ = master.Write(buf[:n])
		}
	}()
	go t.read()
	return t, nil
}

func open(columns, rows int) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = setSize(fd, columns, rows)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("make a pseudo-terminal: %w", err)
	}
	return master, slave, nil
}

// setSize sets the size of a terminal; the kernel sends SIGWINCH if it changes.
func setSize(fd, columns, rows int) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(columns), Row: uint16(rows)})
}

// read draws the program's output until it ends.
func (t *Terminal) read() {
	buf := make([]byte, 32<<10)
	for {
		n, err := t.master.Read(buf)
		t.mu.Lock()
		_, _ = t.draw.Write(buf[:n])
		t.written += n
		t.escapes += bytes.Count(buf[:n], []byte{'\x1b'})
		t.cond.Broadcast()
		t.mu.Unlock()
		if err != nil {
			break // EIO: the program has closed its end
		}
	}
	err := t.cmd.Wait()
	t.mu.Lock()
	t.err = err
	close(t.ended)
	t.cond.Broadcast()
	t.mu.Unlock()
}

// Keys sends keystrokes.
func (t *Terminal) Keys(s string) error {
	_, err := t.master.WriteString(s)
	return err
}

// Resize changes the size, and notifies the program: by SIGWINCH, and by a report in
// its input if it asked for one (mode 2048). The kernel must know the new size before
// the report, since a program that gets the report asks the kernel for the size.
func (t *Terminal) Resize(columns, rows int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := setSize(int(t.master.Fd()), columns, rows); err != nil {
		return fmt.Errorf("give a terminal %d columns and %d rows: %w", columns, rows, err)
	}
	t.size = vt.Coord{X: vt.Col(columns), Y: vt.Row(rows)}
	t.draw.SetSize(t.size)
	return nil
}

// Written returns the number of bytes that the program has written.
func (t *Terminal) Written() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.written
}

// Escapes returns the number of escape characters written.
func (t *Terminal) Escapes() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.escapes
}

// Signal sends the program a signal.
func (t *Terminal) Signal(s os.Signal) error { return t.cmd.Process.Signal(s) }

// Wait waits until ok returns true for the text on the screen, or the program ends.
func (t *Terminal) Wait(longest time.Duration, ok func(text string) bool) error {
	late := time.AfterFunc(longest, func() { t.cond.Broadcast() })
	defer late.Stop()
	end := time.Now().Add(longest)
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		text := t.text()
		switch {
		case ok(text):
			return nil
		case !time.Now().Before(end):
			return fmt.Errorf("not within %v; the screen:\n%s", longest, text)
		}
		select {
		case <-t.ended:
			return fmt.Errorf("the program has ended (%v); the screen:\n%s", t.err, text)
		default:
		}
		t.cond.Wait()
	}
}

// End waits for the end of the program and returns its exit code.
func (t *Terminal) End(longest time.Duration) (int, error) {
	select {
	case <-t.ended:
		return t.cmd.ProcessState.ExitCode(), nil
	case <-time.After(longest):
		return -1, fmt.Errorf("the program has not ended within %v; the screen:\n%s", longest, t.Text())
	}
}

// Close kills the program and its children if they still run: a child that ignores SIGHUP,
// as under nohup, would keep the terminal open.
func (t *Terminal) Close() {
	if err := unix.Kill(-t.cmd.Process.Pid, unix.SIGKILL); err == nil || errors.Is(err, unix.ESRCH) {
		<-t.ended
	}
	_ = t.master.Close()
	_ = t.draw.Stop()
	_ = t.draw.Close()
}

// Text returns the text on the screen.
func (t *Terminal) Text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text()
}

func (t *Terminal) text() string {
	var b strings.Builder
	for y := range t.size.Y {
		line := ""
		for x := range t.size.X {
			if c := t.draw.GetCell(vt.Coord{X: x, Y: y}); c.C != "" {
				line += c.C
			} else {
				line += " "
			}
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
