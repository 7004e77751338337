package check

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodeskoop/collect/owner"
	"nodeskoop/collect/pod"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// podman runs the real program, with all its state in a folder of the test.
type podman struct {
	t      *testing.T
	global []string
	rootfs string
}

func newPodman(t *testing.T) *podman {
	need.Root(t)
	need.Program(t, "podman", "conmon", "runc", "busybox")
	dir := t.TempDir()
	look := func(name string) string {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	p := &podman{t: t, rootfs: filepath.Join(dir, "rootfs"), global: []string{
		"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "runroot"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
		"--conmon", look("conmon"), "--runtime", look("runc"),
	}}
	for _, name := range []string{"bin", "proc", "sys", "dev", "etc", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(p.rootfs, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(look("busybox"))
	if err == nil {
		err = os.WriteFile(filepath.Join(p.rootfs, "bin/busybox"), b, 0o755)
	}
	// The machine's own settings refer to networks and cgroups that do not exist
	// here.
	settings := filepath.Join(dir, "containers.conf")
	if err == nil {
		err = os.WriteFile(settings, nil, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_CONF", settings)
	t.Setenv("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
	t.Cleanup(func() {
		_, _ = p.try("rm", "--all", "--force", "--time", "0")
		// conmon starts a cleanup program of Podman's, which writes there.
		testkit.Eventually(t, "no process of Podman uses "+dir, func() bool {
			files, err := filepath.Glob("/proc/[0-9]*/cmdline")
			if err != nil {
				t.Fatal(err)
			}
			return !slices.ContainsFunc(files, func(f string) bool {
				b, err := os.ReadFile(f)
				return err == nil && bytes.Contains(b, []byte(dir))
			})
		})
	})
	return p
}

func (p *podman) try(args ...string) (string, error) {
	var stderr strings.Builder
	cmd := exec.Command("podman", append(slices.Clone(p.global), args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("podman %s: %w: %s", args[0], err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (p *podman) do(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// start starts a sleeping container in its own network namespace.
func (p *podman) start(name string) (id string) {
	p.t.Helper()
	return p.do("run", "--detach", "--name", name, "--network", "none", "--log-driver", "none", "--security-opt", "seccomp=unconfined",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--rootfs", p.rootfs, "/bin/busybox", "sleep", "1000000")
}

// TestPodman: a container of a real Podman counts as unnamed, and its monitor does
// not count. The command that check suggests leads from the namespace number in an
// event to the container.
func TestPodman(t *testing.T) {
	p := newPodman(t)
	k := checkerOf(t, "", nil)
	k.root = ""
	counted := func() (n int, do string) {
		for _, f := range k.unnamed(owner.NoPods{}, pod.Status{Socket: "/run/containerd/containerd.sock"}, nil) {
			if f.Check == "containers of Podman" {
				if _, err := fmt.Sscan(f.Found, &n); err != nil {
					t.Fatalf("%q: %v", f.Found, err)
				}
				return n, f.Do
			}
		}
		return 0, ""
	}
	others, _ := counted()
	ids := []string{p.start("web"), p.start("db")}
	for i, name := range []string{"web", "db"} {
		pids := strings.Fields(p.do("inspect", "--format", "{{.State.Pid}} {{.State.ConmonPid}}", name))
		for j, want := range [][2]string{{"Podman", ids[i]}, {}} {
			b, err := os.ReadFile("/proc/" + pids[j] + "/cgroup")
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				path := strings.TrimSuffix(line[strings.LastIndex(line, ":")+1:], "\n")
				if runtime, id := containerOf(path); runtime != want[0] || id != want[1] {
					t.Errorf("%s: %s is of %q, a container of %q; want %q", name, path, id, runtime, want)
				}
			}
		}
		inode, err := kernel.Inode("/proc/" + pids[0] + "/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if list := p.do("ps", "--ns"); !slices.ContainsFunc(strings.Split(list, "\n"), func(line string) bool {
			return strings.Contains(line, name) && strings.Contains(line, fmt.Sprint(inode))
		}) {
			t.Errorf("podman ps --ns does not show that %s is in the network namespace %d:\n%s", name, inode, list)
		}
	}
	if n, do := counted(); n != others+2 || !strings.Contains(do, "podman ps --ns") {
		t.Errorf("check counts %d containers beside %d, and says %q", n-others, others, do)
	}
	p.do("rm", "--force", "--time", "0", "web", "db")
	testkit.Eventually(t, "the containers are gone", func() bool { n, _ := counted(); return n == others })
}
