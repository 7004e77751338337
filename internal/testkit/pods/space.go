package pods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is a mount namespace and a network namespace held by one thread. Code and programs
// in it see the machine's files, with an empty /run, /var/lib and private folder mounted
// over them.
type space struct {
	calls chan func()
	done  chan struct{}
	netns string
}

// newSpace makes the namespaces and mounts a tmpfs on each of private, which must exist.
func newSpace(private ...string) (*space, error) {
	s := &space{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go s.hold(ready, private)
	if err := <-ready; err != nil {
		return nil, err
	}
	return s, nil
}

// hold runs the thread. The thread is never unlocked, so that it ends, with the namespaces,
// when hold returns.
func (s *space) hold(ready chan<- error, private []string) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread does not end with its goroutine. While this goroutine holds it, a
		// new one gets another thread.
		go s.hold(ready, private)
		<-s.done
		runtime.UnlockOSThread()
		return
	}
	defer close(s.done)
	err := enterSpace(private)
	s.netns = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	ready <- err
	if err != nil {
		return
	}
	for f := range s.calls {
		f()
	}
}

func enterSpace(private []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a mount and a network namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	for _, dir := range append([]string{"/run", "/var/lib"}, private...) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	const netns = "/run/netns"
	if err := os.Mkdir(netns, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", netns, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", netns, err)
	}
	if err := unix.Mount("", netns, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make %s shared: %w", netns, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// do runs f on the thread in the namespaces.
func (s *space) do(f func() error) error {
	err := make(chan error, 1)
	select {
	case s.calls <- func() { err <- f() }:
		return <-err
	case <-s.done:
		return errors.New("the namespaces are gone")
	}
}

// close ends the thread, and with it the namespaces.
func (s *space) close() {
	close(s.calls)
	<-s.done
}

// cniDir finds the folder of the CNI plugins.
func cniDir() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir
		}
	}
	return ""
}
