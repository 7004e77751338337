// Command init is the first process of a test VM. It mounts what a node has, loads
// the kernel modules, runs the test programs and turns the machine off. The tests'
// output goes to the virtio port "results", between marks that the host recognises.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plan is the content of /plan.json, written by the host.
type plan struct {
	Modules []string // files, in the order of loading
	// Root is the serial number of a disk. If set, the disk's process 1 takes over,
	// and there are no tests.
	Root  string
	Env   []string
	Tests []struct {
		Name    string
		Dir     string
		Args    []string
		Timeout time.Duration
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "tests" {
		if err := tests(); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
			os.Exit(1)
		}
		return
	}
	if p, err := readPlan(); err == nil && p.Root != "" {
		if err := errors.Join(mounts(basics), takeOver(p)); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
		}
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	// The first process must reap orphans, so it waits for any child. Package
	// os/exec waits for its own children, hence a second process.
	if err := errors.Join(mounts(basics), mounts(rest)); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	child, err := os.StartProcess("/init", []string{"/init", "tests"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TMPDIR=/tmp", "LANG=C.UTF-8"},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	for err == nil {
		var pid int
		pid, err = unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		if pid == child.Pid {
			break
		}
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// mount is a kind of file system and where it is mounted.
type mount struct{ kind, at string }

var (
	// basics are what a system's own process 1 finds mounted.
	basics = []mount{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}}
	rest   = []mount{
		{"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"},
		{"tmpfs", "/run"},
		{"tmpfs", "/tmp"},
		{"tracefs", "/sys/kernel/tracing"},
		{"debugfs", "/sys/kernel/debug"},
		{"securityfs", "/sys/kernel/security"},
		{"bpf", "/sys/fs/bpf"},
		{"cgroup2", "/sys/fs/cgroup"},
	}
)

func mounts(list []mount) error {
	var errs []error
	for _, m := range list {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err))
		}
	}
	return errors.Join(errs...)
}

func readPlan() (*plan, error) {
	data, err := os.ReadFile("/plan.json")
	if err != nil {
		return nil, err
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("/plan.json: %w", err)
	}
	return &p, nil
}

// takeOver loads the modules, makes a disk the root and runs its process 1. It returns
// only if that fails.
func takeOver(p *plan) error {
	for _, m := range p.Modules {
		if err := load(m); err != nil {
			fmt.Fprintf(os.Stderr, "init: module %s: %v\n", filepath.Base(m), err)
		}
	}
	device, err := deviceOf(p.Root)
	if err != nil {
		return err
	}
	const root = "/newroot"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, root, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	for _, m := range basics {
		if err := unix.Mount(m.at, root+m.at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m.at, err)
		}
	}
	if err := errors.Join(os.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("make %s the root: %w", device, err)
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"})
}

// deviceOf finds the disk with a serial number, which may appear shortly after its
// driver.
func deviceOf(serial string) (string, error) {
	for range 200 {
		names, _ := filepath.Glob("/sys/block/*/serial")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == serial {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(n))), nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "", fmt.Errorf("no disk with the serial number %s", serial)
}

func tests() error {
	p, err := readPlan()
	if err != nil {
		return err
	}
	began := uptime()
	var failed []string
	// Keep the kernel from creating fallback devices for tunnels in each namespace.
	if err := os.WriteFile("/proc/sys/net/core/fb_tunnels_only_for_init_net", []byte("2"), 0); err != nil {
		failed = append(failed, err.Error())
	}
	for _, m := range p.Modules {
		if err := load(m); err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", filepath.Base(m), err))
		}
	}
	out, err := results()
	if err != nil {
		return err
	}
	defer out.Close()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	fmt.Fprintf(out, "@boot %s after %s, modules after %s\n", unix.ByteSliceToString(name.Release[:]), began, uptime())
	for _, f := range failed {
		fmt.Fprintf(out, "@module %s\n", f)
	}
	if b, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(out, "@note lo: %v: %s\n", err, b)
	}
	if err := disk(); err != nil {
		return err
	}
	for _, t := range p.Tests {
		fmt.Fprintf(out, "@run %s\n", t.Name)
		start := time.Now()
		cmd := exec.Command(t.Args[0], t.Args[1:]...)
		cmd.Dir, cmd.Env = t.Dir, append(os.Environ(), p.Env...)
		cmd.Stdout, cmd.Stderr = out, out
		result := "ok"
		if err := run(cmd, t.Timeout); err != nil {
			result = err.Error()
		}
		fmt.Fprintf(out, "\n@end %s %.1f %s\n", t.Name, time.Since(start).Seconds(), result)
	}
	complaints(out)
	fmt.Fprintf(out, "@done %s\n", uptime())
	return nil
}

// run runs a test program. The program's own timeout is shorter, so that it can
// print where it hangs.
func run(cmd *exec.Cmd, timeout time.Duration) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(timeout, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		return fmt.Errorf("killed after %v", timeout)
	}
	return err
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// disk creates a file system on the disk "files", mounts it, and copies the folders
// of the tests that need a disk there.
func disk() error {
	names, _ := filepath.Glob("/sys/block/*/serial")
	for _, n := range names {
		if b, err := os.ReadFile(n); err != nil || strings.TrimSpace(string(b)) != "files" {
			continue
		}
		device := filepath.Join("/dev", filepath.Base(filepath.Dir(n)))
		if b, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", device).CombinedOutput(); err != nil {
			return fmt.Errorf("mke2fs %s: %w: %s", device, err, b)
		}
		if err := os.MkdirAll("/disk", 0o755); err != nil {
			return err
		}
		if err := unix.Mount(device, "/disk", "ext4", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", device, err)
		}
		if _, err := os.Stat("/t/collect"); err != nil {
			return nil // no such test runs
		}
		if b, err := exec.Command("cp", "-a", "/t/collect", "/disk/").CombinedOutput(); err != nil {
			return fmt.Errorf("cp -a /t/collect /disk/: %w: %s", err, b)
		}
		return nil
	}
	return errors.New("no disk with the serial number files")
}

// results opens the port to the host, which appears shortly after its driver.
func results() (*os.File, error) {
	for range 200 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == "results" {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(n))), os.O_WRONLY, 0)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, errors.New("no virtio port called results: is the module virtio_console there?")
}

// complaints prints errors that the kernel reported about itself.
func complaints(out io.Writer) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "/dev/kmsg")
	defer f.Close()
	buffer := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EPIPE) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		_, text, _ := strings.Cut(string(buffer[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		for _, bad := range []string{"WARNING:", "BUG:", "Oops", "INFO: task", "rcu: INFO", "general protection", "Out of memory"} {
			if strings.Contains(text, bad) {
				fmt.Fprintf(out, "@kernel %s\n", text)
				break
			}
		}
	}
}

func uptime() string {
	f, err := os.Open("/proc/uptime")
	if err != nil {
		return "?"
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan()
	up, _, _ := strings.Cut(s.Text(), " ")
	return up + " s"
}
