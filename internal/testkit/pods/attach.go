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

// Service is a containerd that somebody else runs: as a service of a machine
// that has files and processes of its own.
type Service struct {
	// Root is the machine's root folder, as this process reaches it.
	Root string
	// Socket is containerd's, and Dir a folder for logs and images, both as
	// the machine sees them.
	Socket, Dir string
	// Command makes a command that runs in the machine.
	Command func(name string, args ...string) *exec.Cmd
}

// Attach waits for the service and gives it the images. Pods that are made
// stay when the test ends: whoever ends the machine ends them. Their PIDs are
// those that the machine sees.
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

// Await waits until the service answers, after it was restarted for one.
func (c *Containerd) Await() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c.disconnect()
	if err := c.await(ctx, nil); err != nil {
		c.t.Fatal(err)
	}
}

// path is a file of containerd's as this process reaches it.
func (c *Containerd) path(file string) string {
	if c.service == nil {
		return file
	}
	return filepath.Join(c.service.Root, file)
}

// command makes a command that runs where containerd does.
func (c *Containerd) command(name string, args ...string) (cmd *exec.Cmd, start func() error) {
	if c.service != nil {
		cmd = c.service.Command(name, args...)
		return cmd, cmd.Start
	}
	cmd = exec.Command(name, args...)
	return cmd, func() error { return c.space.do(cmd.Start) }
}

// Sweep ends what a machine that runs in the control group cgroup, and has
// its files in dir, leaves behind when this process ends, however it does. The
// function that it returns does so at once.
func Sweep(dir, cgroup string) (now func() error, err error) {
	s, err := startSweeper(dir, cgroup)
	if err != nil {
		return nil, fmt.Errorf("clean up after %s: %w", dir, err)
	}
	return s.sweep, nil
}
