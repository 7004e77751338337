package pods

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// sweeperEnv makes a test binary the sweeper of one instance: a process that waits for the
// end of the test, in whichever way, and cleans up. t.Cleanup does not run after a timeout
// or a panic in a goroutine.
const sweeperEnv = "NODESKOOP_TEST_PODS_SWEEP"

func init() {
	if what := os.Getenv(sweeperEnv); what != "" {
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
		_, _ = io.Copy(io.Discard, os.Stdin)
		dir, cgroup, _ := strings.Cut(what, ":")
		if err := sweep(dir, cgroup); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

type sweeper struct {
	cmd *exec.Cmd
	in  io.Closer
	out bytes.Buffer
}

func startSweeper(dir, cgroup string) (*sweeper, error) {
	s := &sweeper{cmd: exec.Command("/proc/self/exe")}
	s.cmd.Env = append(os.Environ(), sweeperEnv+"="+dir+":"+cgroup)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.Stdout = &s.out
	in, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.in = in
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the sweeper: %w", err)
	}
	return s, nil
}

// sweep makes the sweeper clean up now.
func (s *sweeper) sweep() error {
	_ = s.in.Close()
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("sweep: %w: %s", err, s.out.Bytes())
	}
	return nil
}

// sweep ends every process of the instance whose files are in dir and whose containers are
// below cgroup, and removes both.
func sweep(dir, cgroup string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		pids := processesOf(dir, cgroup)
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	var errs []error
	for _, root := range cgroupRoots() {
		errs = append(errs, removeCgroup(filepath.Join(root, cgroup), deadline))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// processesOf lists containerd, Docker and the shims, whose command lines contain dir, and
// the processes in the control groups.
func processesOf(dir, cgroup string) []int {
	seen := map[int]bool{}
	var pids []int
	add := func(pid int) {
		if pid > 1 && !seen[pid] && !isZombie(pid) {
			seen[pid] = true
			pids = append(pids, pid)
		}
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !bytes.Contains(line, []byte(dir)) {
			continue
		}
		program, _, _ := bytes.Cut(line, []byte{0})
		switch name := filepath.Base(string(program)); {
		case strings.HasPrefix(name, "containerd"), name == "runc", name == "ctr", name == "dockerd":
			add(pid)
		}
	}
	for _, root := range cgroupRoots() {
		_ = filepath.WalkDir(filepath.Join(root, cgroup), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() != "cgroup.procs" {
				return nil
			}
			data, _ := os.ReadFile(path)
			for _, f := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(f); err == nil {
					add(pid)
				}
			}
			return nil
		})
	}
	return pids
}

func isZombie(pid int) bool {
	s, err := kernel.ReadStat("/proc", pid)
	return err != nil || s.State == 'Z'
}

// cgroupRoots lists the mount points of all control group hierarchies.
func cgroupRoots() []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var roots []string
	for line := range strings.Lines(string(data)) {
		mount, fstype, ok := strings.Cut(line, " - cgroup")
		f := strings.Fields(mount)
		if ok && len(f) >= 5 && f[3] == "/" && (fstype[0] == ' ' || strings.HasPrefix(fstype, "2 ")) {
			roots = append(roots, f[4])
		}
	}
	return roots
}

// removeCgroup removes a control group and its descendants. The kernel may keep one busy
// for a moment after its last process has exited.
func removeCgroup(dir string, deadline time.Time) error {
	for {
		err := removeCgroups(dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
