package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodeskoop/cmd/nodeskoop/internal/check"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// in runs the program in its own namespaces, and returns its output and exit code.
func in(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range args {
		if a == "NODESKOOP" {
			args[i] = path
		}
	}
	b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(b), code
}

// In a container, each command refuses whatever is not the host's, and names the
// flag that helps; with the host's namespaces everything works.
func TestContainerOfItsOwn(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare", "nsenter")
	pids, _ := os.Readlink("/proc/1/ns/pid")
	_, foreign := os.Stat("/proc/sys/net/core/netdev_max_backlog") // only the initial network namespace has this file
	need.Kernel(t, pids == "pid:[4026531836]" && foreign == nil, "this test is in a container itself")
	dir := t.TempDir()
	cfg := conf(t, dir, noPods)
	failed := func(out string) (list []string) {
		var findings []check.Finding
		if err := json.Unmarshal([]byte(out), &findings); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, f := range findings {
			if f.Verdict == check.Bad {
				list = append(list, f.Check+": "+f.Found+" -> "+f.Do)
			}
		}
		return list
	}
	pid := []string{"unshare", "--pid", "--fork", "--mount-proc"}
	for _, cmd := range []string{"run", "collect", "probes", "events", "top", "pods"} {
		if out, code := in(t, slices.Concat(pid, []string{"NODESKOOP", cmd, "--config", cfg})...); code != exitFailure || !strings.Contains(out, "--pid=host") || !strings.Contains(out, "host_netns") || strings.Contains(out, "kubeskoop_") {
			t.Errorf("%s in a PID namespace of its own: exit %d, %.2000s", cmd, code, out)
		}
	}
	out, code := in(t, slices.Concat(pid, []string{"NODESKOOP", "check", "--json", "--config", cfg})...)
	if list := strings.Join(failed(out), "\n"); code != exitFailure || !strings.Contains(list, "host's namespace: ") || !strings.Contains(list, "--pid=host") {
		t.Errorf("check in a PID namespace of its own: exit %d, %s", code, list)
	}
	// config inspects nothing.
	if out, code := in(t, slices.Concat(pid, []string{"NODESKOOP", "config", "--config", cfg})...); code != 0 {
		t.Errorf("config: exit %d, %s", code, out)
	}

	// With host_netns set, only samples of processes are missing.
	space := nsnet.New(t)
	named := filepath.Join(dir, "netns")
	if err := os.WriteFile(named, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	withNetns := filepath.Join(dir, "named.toml")
	if err := os.WriteFile(withNetns, []byte("host_netns = '"+named+"'\n"+noPods), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `mount --bind ` + space.Path + ` ` + named + ` && exec unshare --pid --fork --mount-proc "$0" collect --config ` + withNetns + ` --probe tcp,fd,io`
	if path, err := binary(); err != nil {
		t.Fatal(err)
	} else if out, code = in(t, "unshare", "--mount", "sh", "-c", script, path); code != exitPartial || !strings.Contains(out, "kubeskoop_tcp_insegs") || strings.Contains(out, "kubeskoop_fdopenfd") || !strings.Contains(out, "--pid=host") {
		t.Errorf("with host_netns: exit %d, %.3000s", code, out)
	}

	// Network: process 1 identifies the host's namespace, if it may be inspected.
	_, hidden := os.Stat("/proc/1/ns/net")
	out, code = in(t, "unshare", "--net", "NODESKOOP", "collect", "--config", cfg, "--probe", "netdev,tcp")
	if hidden != nil {
		if code != exitFailure || !strings.Contains(out, "--network=host") || strings.Contains(out, "kubeskoop_") {
			t.Errorf("in a network namespace of its own: exit %d, %.2000s", code, out)
		}
	} else if code != 0 || !strings.Contains(out, "kubeskoop_tcp_insegs") {
		t.Errorf("in a network namespace of its own, with the host's processes: exit %d, %.2000s", code, out)
	}

	// Control groups: a namespace whose root is not the host's.
	group := ""
	for line := range strings.Lines(readAll(t, "/proc/self/mounts")) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			group = filepath.Join(f[1], fmt.Sprint("nodeskoop-hostview-", os.Getpid()))
		}
	}
	need.Kernel(t, group != "", "no cgroup2 is mounted")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(group)
	script = `echo $$ > ` + group + `/cgroup.procs && exec unshare --cgroup --mount sh -c 'umount ` + filepath.Dir(group) + ` && mount -t cgroup2 none ` + filepath.Dir(group) + ` && exec "$0" "$@"' "$@"`
	out, code = in(t, "sh", "-c", script, "sh", "NODESKOOP", "collect", "--config", cfg, "--probe", "tcp,fd,io,flow")
	if code != exitPartial || !strings.Contains(out, "kubeskoop_tcp_insegs") || strings.Contains(out, "kubeskoop_flow_bytes{") || strings.Contains(out, "kubeskoop_fdopenfd") || !strings.Contains(out, "--cgroupns=host") {
		t.Errorf("in a cgroup namespace of its own: exit %d, %.3000s", code, out)
	}
	out, code = in(t, "sh", "-c", script, "sh", "NODESKOOP", "check", "--json", "--config", cfg, "--probe", "tcp,fd,io,flow")
	if list := strings.Join(failed(out), "\n"); code != exitFailure || strings.Count(list, "--cgroupns=host") < 2 {
		t.Errorf("check in a cgroup namespace of its own: exit %d, %s", code, list)
	}

	// A container with its own init system is a machine, published under the host's
	// labels.
	shell := filepath.Join(dir, "systemd") // sets the process's name
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shell, []byte(readAll(t, sh)), 0o755); err != nil {
		t.Fatal(err)
	}
	unified := filepath.Dir(group)
	script = `echo $$ > ` + group + `/cgroup.procs && exec unshare --pid --fork --net --cgroup --mount --mount-proc ` + shell + ` -c 'mount -t tmpfs t /run && mkdir -p /run/systemd/system && umount ` + unified + ` && mount -t cgroup2 none ` + unified + ` && "$0" "$@"; exit $?' "$@"`
	out, code = in(t, "sh", "-c", script, "sh", "NODESKOOP", "collect", "--config", cfg, "--probe", "tcp,fd,io,flow")
	if code != 0 || !strings.Contains(out, "kubeskoop_fdopenfd") {
		t.Errorf("in a machine of its own: exit %d, %.3000s", code, out)
	}
	if out, _ = in(t, "sh", "-c", script, "sh", "NODESKOOP", "check", "--config", cfg, "--probe", "tcp,fd,io,flow"); !strings.Contains(out, "has booted a system of its own") {
		t.Errorf("check in a machine of its own: %.3000s", out)
	}

	// With the host's own namespaces everything works.
	out, code = in(t, "NODESKOOP", "collect", "--config", cfg, "--probe", "tcp,fd,io,flow")
	if code != 0 || !strings.Contains(out, "kubeskoop_fdopenfd") {
		t.Errorf("on the host: exit %d, %.2000s", code, out)
	}
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
