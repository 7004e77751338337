package pods

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

func netnsOf(t *testing.T, pid int) uint64 {
	t.Helper()
	return inode(t, fmt.Sprintf("/proc/%d/ns/net", pid))
}

// TestHarness runs a pod, a container and a service of each kind, and checks that the
// machine shows nothing of them, during and after the test.
func TestHarness(t *testing.T) {
	var dir, cgroup string
	t.Run("instance", func(t *testing.T) {
		c := Start(t)
		dir, cgroup = c.dir, c.Cgroup
		p := c.RunPod(PodSpec{Namespace: "web", Name: "front-0", Labels: map[string]string{"app": "front"},
			Containers: []ContainerSpec{{Name: "main"}, {Name: "side", Command: []string{"sh", "-c", "sleep 1000 & wait"}}}})
		if len(p.Addrs) != 2 || !p.Addrs[0].Is4() && !p.Addrs[1].Is4() || !p.Addrs[0].Is6() && !p.Addrs[1].Is6() {
			t.Errorf("addresses %v, want one of each family", p.Addrs)
		}
		host := c.RunPod(PodSpec{Namespace: "kube-system", Name: "agent", HostNetwork: true, Containers: []ContainerSpec{{Name: "main"}}})
		if len(host.Addrs) != 0 {
			t.Errorf("a hostNetwork pod has addresses %v", host.Addrs)
		}
		own, machine := inode(t, c.Netns), inode(t, "/proc/self/ns/net")
		if got := netnsOf(t, host.PID); got != own || got == machine {
			t.Errorf("the hostNetwork pod is in network namespace %d, want containerd's %d, not the machine's %d", got, own, machine)
		}
		main := p.Container("main")
		if netnsOf(t, main.PID) != netnsOf(t, p.PID) || netnsOf(t, p.PID) == own {
			t.Error("the pod's containers do not share a network namespace of their own")
		}
		if out := main.Exec("ip", "-o", "addr"); !strings.Contains(out, p.Addrs[0].String()+"/") || !strings.Contains(out, p.Addrs[1].String()+"/") {
			t.Errorf("the pod does not have %v: %s", p.Addrs, out)
		}
		main.Exec("ping", "-c", "1", "-W", "5", "fd77:88::1")
		cg, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", main.PID))
		if err != nil || !strings.Contains(string(cg), c.Cgroup+"/kubepods/besteffort/pod"+p.UID+"/"+main.ID) {
			t.Errorf("control groups of the container: %s, %v", cg, err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), c.dir) || strings.Contains(string(mounts), "/netns/cni-") {
			t.Errorf("the instance's mounts are seen on the machine: %v\n%s", err, mounts)
		}
		plain := c.RunPlain(PlainSpec{Namespace: "default", ID: "web"})
		sharer := c.RunPlain(PlainSpec{Namespace: "other", ID: "sharer", JoinPID: plain.PID})
		if netnsOf(t, plain.PID) != netnsOf(t, sharer.PID) || netnsOf(t, plain.PID) == own {
			t.Error("the second container did not join the first one's network namespace")
		}
		if n := netnsOf(t, c.RunPlain(PlainSpec{Namespace: CRINamespace, ID: "onhost", HostNetwork: true}).PID); n != own {
			t.Errorf("a container on the host's network is in namespace %d, want %d", n, own)
		}
		shim := c.ShimPID(p.PID)
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", shim)); !strings.Contains(string(line), "containerd-shim") {
			t.Errorf("process %d is no shim: %q", shim, line)
		}
		c.Freeze(shim)() // Freeze and thaw the shim at once.

		c.Stop()
		c.Run()
		main.Exec("true")
		sharer.Remove()
		c.Kill()
		c.Run()
		side := p.Container("side")
		side.Stop()
		p.Stop()
		p.Remove()
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err == nil {
			t.Error("the sandbox runs on after its removal")
		}
		c.Freeze(c.ShimPID(host.PID)) // the clean-up has to cope with a frozen shim
	})
	if dir == "" {
		return // the test was skipped
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the instance's folder is left behind: %v", err)
	}
	for _, root := range cgroupRoots() {
		if _, err := os.Stat(filepath.Join(root, cgroup)); !os.IsNotExist(err) {
			t.Errorf("control group %s is left behind in %s: %v", cgroup, root, err)
		}
	}
	if pids := processesOf(dir, cgroup); len(pids) != 0 {
		t.Errorf("processes %v are left behind", pids)
	}
}

// BenchmarkRunPod measures what a pod costs a test.
func BenchmarkRunPod(b *testing.B) {
	c := Start(b)
	for i := 0; b.Loop(); i++ {
		c.RunPod(PodSpec{Namespace: "bench", Name: fmt.Sprintf("pod-%d", i), Containers: []ContainerSpec{{Name: "main"}}})
	}
}

// TestKilledTest kills a test that runs a pod; everything is cleaned up.
func TestKilledTest(t *testing.T) {
	const env = "NODESKOOP_TEST_PODS_VICTIM"
	if os.Getenv(env) != "" {
		c := Start(t)
		p := c.RunPod(PodSpec{Namespace: "web", Name: "front", Containers: []ContainerSpec{{Name: "main"}}})
		fmt.Printf("READY %s %s %d %d\n", c.dir, c.Cgroup, c.PID(), p.PID)
		select {}
	}
	need.Root(t)
	need.Program(t, "containerd", "containerd-shim-runc-v2", "runc", "ctr", "busybox")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledTest$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, cgroup string
	var containerd, pod int
	for s := bufio.NewScanner(out); pod == 0 && s.Scan(); {
		_, _ = fmt.Sscanf(s.Text(), "READY %s %s %d %d", &dir, &cgroup, &containerd, &pod)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if pod == 0 {
		t.Fatal("the pod did not run")
	}
	testkit.Await(t, func() error {
		_, dirErr := os.Stat(dir)
		if pids := processesOf(dir, cgroup); !os.IsNotExist(dirErr) || len(pids) > 0 {
			return fmt.Errorf("left behind: folder %s (%v), processes %v", dir, dirErr, pids)
		}
		return nil
	})
	for _, root := range cgroupRoots() {
		if _, err := os.Stat(filepath.Join(root, cgroup)); !os.IsNotExist(err) {
			t.Errorf("control group %s is left behind in %s: %v", cgroup, root, err)
		}
	}
}
