// Package journald runs a private systemd-journald for tests.
package journald

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

const program = "/lib/systemd/systemd-journald"

// Journald is a systemd-journald in its own mount and network namespaces. Its /run is the
// folder Run.
type Journald struct {
	Run    string
	Socket string // socket for entries

	t testing.TB
	p *testkit.Process // nil if not running
}

// New starts a journald that stores up to size ("64M"). It ends with the test.
func New(t testing.TB, size string) *Journald {
	t.Helper()
	need.Root(t)
	need.Program(t, program, "journalctl", "nsenter", "mount")
	dir, err := os.MkdirTemp("", "journald") // short: a socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &Journald{Run: filepath.Join(dir, "run"), t: t}
	d.Socket = filepath.Join(d.Run, "systemd/journal/socket")
	for _, sub := range []string{"systemd/journal", "systemd/journald.conf.d", "log/journal"} {
		if err := os.MkdirAll(filepath.Join(d.Run, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := "[Journal]\nStorage=volatile\nRuntimeMaxUse=" + size + "\nRuntimeKeepFree=1M\nRateLimitIntervalSec=0\nRateLimitBurst=0\n" +
		"ReadKMsg=no\nAudit=no\nForwardToSyslog=no\nForwardToKMsg=no\nForwardToConsole=no\nForwardToWall=no\n"
	if err := os.WriteFile(filepath.Join(d.Run, "systemd/journald.conf.d/test.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// Start restarts journald after Kill, and returns when it listens.
func (d *Journald) Start() error {
	_ = os.Remove(d.Socket)
	// 512 messages is the backlog of systemd's own socket.
	cmd := exec.Command("sh", "-ec", `mount --bind "$0" /run
echo 512 > /proc/sys/net/unix/max_dgram_qlen || true
exec `+program, d.Run)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	p, err := testkit.TryStart(d.t, cmd)
	if err != nil {
		return err
	}
	d.p = p
	if !testkit.Within(testkit.Patience, func() bool {
		var c net.Conn
		if c, err = net.Dial("unixgram", d.Socket); err == nil {
			err = c.Close()
		}
		return err == nil
	}) {
		return fmt.Errorf("journald did not come up: %w\n%s", err, p.Log)
	}
	return nil
}

// Kill ends journald.
func (d *Journald) Kill() {
	if d.p != nil {
		d.p.Kill()
		d.p = nil
	}
}

// Signal sends journald a signal.
func (d *Journald) Signal(s syscall.Signal) error { return d.p.Process.Signal(s) }

// Enter returns a command that runs line in journald's mount namespace.
func (d *Journald) Enter(line ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(d.p.PID()), "-m"}, line...)...)
}

// Sync waits until journald has read everything that was sent.
func (d *Journald) Sync() {
	d.t.Helper()
	if out, err := d.Enter("journalctl", "--sync").CombinedOutput(); err != nil {
		d.t.Fatalf("journalctl --sync: %v\n%s", err, out)
	}
}

// Journalctl runs journalctl on the journal.
func (d *Journald) Journalctl(args ...string) []byte {
	d.t.Helper()
	cmd := exec.Command("journalctl", append([]string{"-q", "-D", filepath.Join(d.Run, "log/journal")}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("journalctl %q: %v\n%s", args, err, stderr.String())
	}
	return out
}
