package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

func TestJudgeHost(t *testing.T) {
	node := facts{hostPIDs: true, ownNetns: true, initNetns: true, cgroups: true, unified: true}
	denied := errors.New("denied")
	with := func(change func(*facts)) facts { f := node; change(&f); return f }
	for name, c := range map[string]struct {
		f       facts
		named   string
		devices bool
		err     string // of the whole
		refused []string
		netns   string
		foreign bool
		machine bool
	}{
		"a node":                          {f: node},
		"a node, process 1 hidden":        {f: with(func(f *facts) { f.init = denied }), netns: "/proc/self/ns/net"},
		"its own network, process 1 seen": {f: with(func(f *facts) { f.ownNetns = false })},
		"its own network, 1 hidden":       {f: with(func(f *facts) { f.init, f.ownNetns = denied, false }), err: "--network=host"},
		"the same, named":                 {f: with(func(f *facts) { f.init, f.ownNetns = denied, false }), named: "/run/netns/x", netns: "/run/netns/x"},
		"its own PIDs":                    {f: with(func(f *facts) { f.hostPIDs = false }), err: "--pid=host"},
		"its own PIDs, named":             {f: with(func(f *facts) { f.hostPIDs = false }), named: "/run/netns/x", refused: []string{"fd", "io"}, netns: "/run/netns/x", foreign: true},
		"its own cgroups":                 {f: with(func(f *facts) { f.cgroups, f.unified = false, false }), refused: []string{"fd", "flow", "io"}},
		"the same, flow by devices":       {f: with(func(f *facts) { f.cgroups, f.unified = false, false }), devices: true, refused: []string{"fd", "io"}},
		"a machine of its own":            {f: facts{booted: true, cgroups: true}, foreign: true, machine: true},
		"one on the host's network":       {f: facts{booted: true, cgroups: true, initNetns: true}, refused: []string{"flow"}, foreign: true, machine: true},
		"one whose cgroups are hidden":    {f: facts{booted: true}, refused: []string{"fd", "flow", "io"}, foreign: true, machine: true},
	} {
		v, err := judgeHost(c.f, c.named, c.devices)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if err != nil {
			continue
		}
		if got := slices.Sorted(maps.Keys(v.refused)); !slices.Equal(got, c.refused) {
			t.Errorf("%s: refused %v, want %v", name, got, c.refused)
		}
		if v.netns != c.netns || v.foreignPIDs != c.foreign || v.machine != c.machine {
			t.Errorf("%s: %+v", name, v)
		}
		for p, err := range v.refused {
			if s := err.Error(); !strings.Contains(s, "--pid=host") && !strings.Contains(s, "--cgroupns=host") {
				t.Errorf("%s: %s: no flag helps: %v", name, p, err)
			}
		}
	}
}

// in runs the program in namespaces of its own; what it says and its exit code.
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

// In a container of its own what is not the host's is refused, with the flag that
// helps, by each command; with what is the host's all works.
func TestContainerOfItsOwn(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare", "nsenter")
	need.Kernel(t, hostsProcfs() && initialNetns(), "this test is in a container itself")
	dir := t.TempDir()
	cfg := conf(t, dir, noPods)
	failed := func(out string) (list []string) {
		var findings []finding
		if err := json.Unmarshal([]byte(out), &findings); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, f := range findings {
			if f.Verdict == bad {
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
	// config looks at nothing.
	if out, code := in(t, slices.Concat(pid, []string{"NODESKOOP", "config", "--config", cfg})...); code != 0 {
		t.Errorf("config: exit %d, %s", code, out)
	}

	// The namespace may be named; then only what is sampled of processes is missing.
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

	// The network: process 1 tells which is the host's, if it may be looked at.
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

	// A container whose process 1 is a system's manager is a machine of its own,
	// and what is its own goes out as the host's.
	shell := filepath.Join(dir, "systemd") // which gives the process its name
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

	// The host's own: all works.
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
