package install

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/pods"
)

// slowDisk is a loop device backed by another one, which is throttled for the processes
// of one container: the loop driver does block I/O on behalf of the requesting
// process.
type slowDisk struct {
	s            *suite
	device       string // device has the same name in the machine
	lower, group string // the throttled device, and the folder of the control group
}

// makeSlowDisk creates a device and adds it to a container's specification. If the
// kernel cannot limit the device, it returns nil and the reason.
func (s *suite) makeSlowDisk(name string, of func(device string) *pods.Container) *slowDisk {
	s.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		s.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		s.Fatal(err)
	}
	lower := s.loop(file)
	if lower == "" {
		return nil
	}
	upper := s.loop(lower)
	if upper == "" {
		return nil
	}
	number := func(device string) (major, minor int) {
		var stat unix.Stat_t
		if err := unix.Stat(device, &stat); err != nil {
			s.Fatal(err)
		}
		return int(unix.Major(stat.Rdev)), int(unix.Minor(stat.Rdev))
	}
	major, minor := number(upper)
	if !s.exists(upper) { // a VM's own kernel has made it
		s.run("mknod", "-m", "600", upper, "b", strconv.Itoa(major), strconv.Itoa(minor))
	}
	throttle := s.throttle(of(upper))
	if throttle == "" {
		return nil
	}
	major, minor = number(lower)
	return &slowDisk{s: s, device: upper, lower: fmt.Sprintf("%d:%d", major, minor), group: filepath.Dir(throttle)}
}

// limit sets the device's limit of reads or writes per second.
func (d *slowDisk) limit(what string, perSecond int) {
	d.s.Helper()
	file := d.group + "/blkio.throttle." + what + "_iops_device"
	if d.s.exists(file) {
		d.s.write(file, fmt.Sprintf("%s %d", d.lower, perSecond))
		return
	}
	d.s.write(d.group+"/io.max", fmt.Sprintf("%s %ciops=%d", d.lower, what[0], perSecond))
}

// command returns a command of the machine for which the disk is slow.
func (d *slowDisk) command(command ...string) *exec.Cmd {
	return d.s.machine.command("sh", append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, d.group}, command...)...)
}

// run runs such a command, which must succeed.
func (d *slowDisk) run(command ...string) string {
	d.s.Helper()
	cmd := d.command(command...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		d.s.Fatalf("%s: %v: %s", strings.Join(command, " "), err, tail(errOut.String()))
	}
	return out.String()
}

// throttle returns the file that limits the reads of a container, in cgroup v1 or
// v2, "" if the kernel has no limit. The loop driver reads the lower device on
// behalf of the process that reads the upper one.
func (s *suite) throttle(k *pods.Container) string {
	s.Helper()
	groups := s.run("cat", fmt.Sprintf("/proc/%d/cgroup", k.PID))
	for _, h := range []struct{ name, root, file string }{
		{"blkio", "/sys/fs/cgroup/blkio", "blkio.throttle.read_iops_device"},
		{"", "/sys/fs/cgroup", "io.max"},
	} {
		m := regexp.MustCompile(`(?m)^[0-9]+:` + h.name + `:(/.*)$`).FindStringSubmatch(groups)
		if m != nil && s.exists(h.root+m[1]+"/"+h.file) {
			return h.root + m[1] + "/" + h.file
		}
	}
	s.Logf("exception: no slow disk can be made here: the container's control groups have no limit on reads:\n%s", groups)
	return ""
}

// loop creates a loop device backed by a file, until the end of the test. It returns ""
// if the kernel has none.
func (s *suite) loop(path string) string {
	s.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		defer file.Close()
		var device *os.File
		if device, err = loopDevice(int(file.Fd()), 0); err == nil {
			s.Cleanup(func() { device.Close() })
			return device.Name()
		}
	}
	s.Logf("exception: no slow disk can be made here: no loop device: %v", err)
	return ""
}
