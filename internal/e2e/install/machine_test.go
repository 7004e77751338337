package install

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

// machine is a Debian system with systemd as its process 1, in its own namespaces.
// Everything is removed when the test ends.
type machine struct {
	t *testing.T
	// dir is the machine's folder here, root its root folder as its own processes
	// see it, mounts included.
	dir, root string
	cgroup    string
	leader    int // PID of its process 1, in this machine's PID namespace
	off       bool
	// disk is the machine's own block device with its files, such as "loop0", or
	// empty if they are in a folder.
	disk string
	// systemdGroups says that systemd creates the control groups of containers.
	systemdGroups bool

	nspawn *exec.Cmd
	exited chan struct{}
	log    testkit.Log
	client *http.Client
}

// debianRelease is the machine's Debian release.
func debianRelease() string { return cmp.Or(os.Getenv("NODESKOOP_INSTALL_DEBIAN"), "bookworm") }

// tarball creates the system's files unless an earlier run did.
func tarball(t *testing.T) string {
	t.Helper()
	script, err := os.ReadFile("make-root")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "nodeskoop")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(script)
	release := debianRelease()
	file := filepath.Join(cache, "install-root-"+release+"-"+hex.EncodeToString(sum[:6])+".tar")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	old, _ := filepath.Glob(filepath.Join(cache, "install-root-"+release+"-*.tar"))
	start := time.Now()
	if out, err := exec.Command("./make-root", file, release).CombinedOutput(); err != nil {
		t.Fatalf("make the Debian system: %v\n%s", err, out)
	}
	for _, o := range old {
		_ = os.Remove(o)
	}
	t.Logf("made %s in %v", file, time.Since(start).Round(time.Second))
	return file
}

// boot unpacks the system, lets prepare change its files, starts it, and returns
// when it runs.
func boot(t *testing.T, prepare func(root string)) *machine {
	t.Helper()
	return bootFrom(t, prepare, false)
}

// bootFromDisk is boot with the files on a block device of the machine's own, so
// that the device distinguishes its block I/O from that of others.
func bootFromDisk(t *testing.T, prepare func(root string)) *machine {
	t.Helper()
	need.Program(t, "mke2fs")
	return bootFrom(t, prepare, true)
}

func bootFrom(t *testing.T, prepare func(root string), ownDisk bool) *machine {
	t.Helper()
	need.Root(t)
	need.Program(t, "systemd-nspawn", "mmdebstrap", "nsenter", "tar")
	tar := tarball(t)
	dir, err := os.MkdirTemp("/var/tmp", "nodeskoop-install-")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	m := &machine{t: t, dir: dir, cgroup: "/" + filepath.Base(dir), exited: make(chan struct{})}
	t.Cleanup(m.gone)
	sweep, err := pods.Sweep(dir, m.cgroup)
	if err != nil {
		_ = os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sweep(); err != nil {
			t.Errorf("clean up after the machine: %v", err)
		}
		if m.nspawn != nil {
			<-m.exited
		}
	})
	root := filepath.Join(dir, "root")
	unpack(t, tar, root)
	prepare(root)
	loaded := func() {}
	if ownDisk {
		loaded = m.makeDisk(root)
	}
	prepared := time.Now()
	m.start(root, loaded)
	t.Logf("made the machine's files in %.1f s, started it in %.1f s", prepared.Sub(start).Seconds(), time.Since(prepared).Seconds())
	return m
}

// unpack creates the system's files. It masks the units whose work the test's machine or
// VM does itself, such as loading modules.
func unpack(t *testing.T, tar, root string, masked ...string) {
	t.Helper()
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", tar, "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*").CombinedOutput(); err != nil {
		t.Fatalf("unpack %s (delete it to have it made again): %v\n%s", tar, err, out)
	}
	for _, unit := range append(masked, "systemd-modules-load.service") {
		if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system", unit)); err != nil {
			t.Fatal(err)
		}
	}
}

// makeDisk moves the files into an ext4 file system on a loop device in memory,
// which the machine's process 1 mounts. The kernel frees both when the last mount
// ends, even if the test was killed. Call the returned function when the file
// system is mounted.
func (m *machine) makeDisk(root string) (mounted func()) {
	m.t.Helper()
	device, err := memoryDisk(filepath.Base(m.dir), 4<<30)
	if err != nil {
		m.t.Fatalf("make a disk for the machine: %v", err)
	}
	m.t.Cleanup(func() { device.Close() })
	m.disk = filepath.Base(device.Name())
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d", root, device.Name()).CombinedOutput(); err != nil {
		m.t.Fatalf("make a file system of %s on %s: %v\n%s", root, device.Name(), err, out)
	}
	if err := errors.Join(device.Sync(), os.RemoveAll(root), os.Mkdir(root, 0o755)); err != nil {
		m.t.Fatal(err)
	}
	return func() { device.Close() }
}

// memoryDisk creates a loop device in memory, with the block size of a disk.
func memoryDisk(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, fmt.Errorf("make %d bytes of memory: %w", size, err)
	}
	return loopDevice(fd, 4096)
}

// loopDevice creates a loop device backed by a file. The kernel frees it when its last
// user closes it or ends.
func loopDevice(fd int, blockSize uint32) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 20 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("ask /dev/loop-control for a free device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &unix.LoopConfig{Fd: uint32(fd), Size: blockSize, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // another process took the device meanwhile
			return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
		}
	}
	return nil, errors.New("others take each free loop device first")
}

// gone checks that nothing of the machine is left. The kernel frees some of it
// shortly after the last process has ended.
func (m *machine) gone() {
	var left []string
	testkit.Within(testkit.Patience, func() bool {
		left = m.left()
		return len(left) == 0
	})
	for _, l := range left {
		m.t.Error(l)
	}
}

// left lists what is left of the machine: its folder, mounts, control groups, loop
// devices and processes.
func (m *machine) left() (list []string) {
	name := filepath.Base(m.dir)
	if exists(m.dir) {
		list = append(list, m.dir+" is left")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		list = append(list, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if strings.Contains(line, name) {
			list = append(list, "a mount is left: "+line)
		}
		if strings.Contains(line, " - cgroup") {
			if group := filepath.Join(f[4], m.cgroup); exists(group) {
				list = append(list, "the control group "+group+" is left")
			}
		}
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	processes, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, file := range append(files, processes...) {
		if b, _ := os.ReadFile(file); bytes.Contains(b, []byte(name)) {
			list = append(list, fmt.Sprintf("%s still says %s", file, bytes.TrimSpace(b)))
		}
	}
	return list
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// start runs systemd-nspawn in the machine's control groups, in a mount namespace
// with an empty /run, where nspawn keeps state, and with the machine's disk, if it
// has one. It calls loaded when the disk is mounted.
func (m *machine) start(root string, loaded func()) {
	m.t.Helper()
	// A new cpuset has no CPUs, and accepts no processes.
	const script = `
for h in $(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts); do
  mkdir -p "$h$0"
  for f in cpuset.cpus cpuset.mems; do
    [ ! -f "$h/cpuset.cpus" ] || [ -s "$h$0/$f" ] && [ -n "$(cat "$h$0/$f" 2>/dev/null)" ] || cat "$h/$f" > "$h$0/$f" 2>/dev/null || true
  done
  echo $$ > "$h$0/cgroup.procs"
done
mount -t tmpfs -o mode=755 tmpfs /run
[ -z "$MACHINE_DISK" ] || mount -t ext4 "/dev/$MACHINE_DISK" "$MACHINE_ROOT"
exec systemd-nspawn "$@"`
	args := []string{
		"-c", script, m.cgroup,
		"-D", root, "--register=no", "--keep-unit", "--machine=node-1",
		"--private-network", "--capability=all",
		// By default nspawn forbids system calls that the BPF programs and
		// containerd need.
		"--system-call-filter=bpf perf_event_open @mount @keyring",
		"--tmpfs=/var/lib/containerd:mode=0711", // overlayfs may not lie on another overlayfs
		"--console=pipe", "-b",
		// On a machine with cgroup v1, the systemd of Debian 13 refuses to start.
		// In a container its arguments replace the kernel's command line.
		"SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
	}
	m.nspawn = exec.Command("sh", args...)
	m.nspawn.Env = append(os.Environ(), "MACHINE_DISK="+m.disk, "MACHINE_ROOT="+root)
	m.nspawn.Stdout, m.nspawn.Stderr = &m.log, &m.log
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setsid: true}
	if err := m.nspawn.Start(); err != nil {
		m.t.Fatalf("start systemd-nspawn: %v", err)
	}
	go func() {
		_ = m.nspawn.Wait()
		close(m.exited)
	}()
	m.until("systemd is process 1", 20*time.Second, func() error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", m.nspawn.Process.Pid))
		if err != nil {
			return err
		}
		for _, f := range strings.Fields(string(data)) {
			comm, _ := os.ReadFile("/proc/" + f + "/comm")
			if strings.TrimSpace(string(comm)) == "systemd" {
				m.leader, err = strconv.Atoi(f)
				return err
			}
		}
		return errors.New("systemd-nspawn has not started it")
	})
	loaded()
	m.root = fmt.Sprintf("/proc/%d/root", m.leader)
	m.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: m.dial}}
	m.until("the system has started", 60*time.Second, func() error {
		out, err := m.try("systemctl", "is-system-running")
		if s := strings.TrimSpace(out); s != "running" && s != "degraded" {
			return fmt.Errorf("it is %q: %w", s, err)
		}
		return nil
	})
	if out, _ := m.try("systemctl", "--failed", "--no-legend", "--plain"); strings.TrimSpace(out) != "" {
		m.t.Fatalf("units of the untouched system failed:\n%s", out)
	}
	// With cgroup v1, nspawn leaves the creation of groups to the host, and
	// containers in the machine need some.
	m.run("sh", "-c", `awk '$3 == "cgroup" && $4 ~ /^ro/ { print $2 }' /proc/mounts | while read -r h; do
		mount -o remount,bind,rw,nosuid,nodev,noexec "$h"
	done`)
	// nspawn hides the names of the kernel's functions, which a real machine has.
	m.run("sh", "-c", "! mountpoint -q /proc/kallsyms || umount /proc/kallsyms")
}

// poweroff shuts the machine down as its operator would.
func (m *machine) poweroff() {
	m.t.Helper()
	m.off = true
	m.run("systemctl", "poweroff", "--no-block")
	select {
	case <-m.exited:
		if code := m.nspawn.ProcessState.ExitCode(); code != 0 {
			m.t.Errorf("systemd-nspawn ended with %v:\n%s", m.nspawn.ProcessState, tail(m.log.String()))
		}
	case <-time.After(60 * time.Second):
		m.t.Errorf("the machine does not power off:\n%s", tail(m.log.String()))
	}
}

// command makes a command that runs in the machine.
func (m *machine) command(name string, args ...string) *exec.Cmd {
	in := []string{"-t", strconv.Itoa(m.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", name}
	return exec.Command("nsenter", append(in, args...)...)
}

// try runs a command in the machine and returns its standard output.
func (m *machine) try(name string, args ...string) (string, error) {
	cmd := m.command(name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(tail(errOut.String())))
	}
	return out.String(), nil
}

// run is try for commands that must succeed.
func (m *machine) run(name string, args ...string) string {
	m.t.Helper()
	out, err := m.try(name, args...)
	if err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// read returns a file of the machine.
func (m *machine) read(path string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.root + path)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// write creates a file of the machine and its folder.
func (m *machine) write(path, content string) {
	m.t.Helper()
	writeFile(m.t, m.root+path, content)
}

func (m *machine) exists(path string) bool { return exists(m.root + path) }

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// dial connects from a thread that is in the machine's network namespace.
func (m *machine) dial(_ context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := kernel.InNetns(fmt.Sprintf("/proc/%d/ns/net", m.leader), 0, func() (err error) {
		c, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	})
	return c, err
}

// get sends a request to a web server in the machine.
func (m *machine) get(url string) ([]byte, error) {
	resp, err := m.client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, tail(string(b)))
	}
	return b, err
}

// until waits for a condition. On failure it reports the condition's last error.
func (m *machine) until(what string, limit time.Duration, ok func() error) {
	m.t.Helper()
	if err := m.awaits(limit, ok); err != nil {
		m.t.Fatalf("not within %v: %s: %v", limit, what, err)
	}
}

func (m *machine) awaits(limit time.Duration, ok func() error) error {
	var err error
	testkit.Within(limit, func() bool {
		if err = ok(); err == nil {
			return true
		}
		select {
		case <-m.exited:
			err = fmt.Errorf("the machine has ended (%v): %s", m.nspawn.ProcessState, tail(m.log.String()))
			return true
		default:
			return false
		}
	})
	return err
}

// property returns a property of a unit from `systemctl show`.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", unit, "--value", "-p", name))
}

// tail returns the end of a long text.
func tail(s string) string {
	const most = 3000
	if len(s) > most {
		return "..." + s[len(s)-most:]
	}
	return s
}
