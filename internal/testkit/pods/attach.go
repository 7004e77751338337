package pods

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Service is a containerd outside the test's control: a service of a machine with its own
// files and processes.
type Service struct {
	// Root is the machine's root folder, as seen by this process.
	Root string
	// Socket is containerd's socket, and Dir a folder for logs and images, both as seen by
	// the machine.
	Socket, Dir string
	// Command returns a command that runs in the machine.
	Command func(name string, args ...string) *exec.Cmd
	// Systemd says that systemd creates containerd's control groups (SystemdCgroup).
	Systemd bool
}

// Attach waits for the service and loads the images. Pods outlive the test, and end with
// the machine. Their PIDs are as seen by the machine.
func Attach(t testing.TB, s Service) *Containerd {
	t.Helper()
	c := &Containerd{
		Socket:   filepath.Join(s.Root, s.Socket),
		t:        t,
		dir:      s.Dir,
		service:  &s,
		imported: map[string]bool{},
	}
	if err := os.MkdirAll(c.path(c.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeImages(c.path(filepath.Join(c.dir, "images.tar"))); err != nil {
		t.Fatalf("make the images: %v", err)
	}
	t.Cleanup(c.disconnect)
	c.Await()
	if err := c.importImages(CRINamespace); err != nil {
		t.Fatal(err)
	}
	return c
}

// Await waits until the service answers, for example after a restart.
func (c *Containerd) Await() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c.disconnect()
	if err := c.await(ctx, nil); err != nil {
		c.t.Fatal(err)
	}
}

// path returns the path of a file of containerd's as seen by this process.
func (c *Containerd) path(file string) string {
	if c.service == nil {
		return file
	}
	return filepath.Join(c.service.Root, file)
}

// command returns a command that runs in containerd's namespaces.
func (c *Containerd) command(name string, args ...string) (cmd *exec.Cmd, start func() error) {
	if c.service != nil {
		cmd = c.service.Command(name, args...)
		return cmd, cmd.Start
	}
	cmd = exec.Command(name, args...)
	return cmd, func() error { return c.space.do(cmd.Start) }
}

// Sweep registers a clean-up for when this process ends in any way: it ends what a machine
// in the control group cgroup, with its files in dir, left behind. The returned function
// does so at once.
func Sweep(dir, cgroup string) (now func() error, err error) {
	s, err := startSweeper(dir, cgroup)
	if err != nil {
		return nil, fmt.Errorf("clean up after %s: %w", dir, err)
	}
	return s.sweep, nil
}
