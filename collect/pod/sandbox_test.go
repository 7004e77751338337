package pod

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

// TestSandboxAPI: pods whose sandbox is not a container but a process of the shim, as
// with Kata and Kuasar. containerd sends no event about them. Each is still known with
// its namespace and address, ends with its network namespace, and leaves name and
// address to its successor.
func TestSandboxAPI(t *testing.T) {
	need.Root(t)
	for _, programs := range pods.SandboxAPI(t) {
		t.Run(filepath.Base(programs), func(t *testing.T) { testSandboxAPI(t, programs) })
	}
}

func testSandboxAPI(t *testing.T, programs string) {
	c := pods.New(t)
	c.Programs = programs
	const addresses = 4
	c.FewAddresses(addresses)
	c.Run()
	run := func(name, uid string, attempt uint32) *pods.Pod {
		t.Helper()
		return c.RunPod(pods.PodSpec{Namespace: "vm", Name: name, UID: uid, Attempt: attempt, Labels: map[string]string{"app": name}, Runtime: pods.SandboxRuntime})
	}
	v4 := func(p *pods.Pod) netip.Addr {
		t.Helper()
		i := slices.IndexFunc(p.Addrs, netip.Addr.Is4)
		if i < 0 {
			t.Fatalf("pod %s has the addresses %v", p.Name, p.Addrs)
		}
		return p.Addrs[i]
	}
	lone := run("lone", "", 0)
	every := usual
	every.resync = time.Hour // keep listings from finding later sandboxes
	x, _ := followEvery(t, c, Options{}, every)
	synced(t, x)
	// await waits until p is the only pod of its name, and has its addresses.
	await := func(x *Index, p *pods.Pod) *owner.Pod {
		t.Helper()
		var got *owner.Pod
		soon(t, func() error {
			got = nil
			for _, r := range x.Running() {
				if r.Namespace == p.Namespace && r.Name == p.Name {
					if got != nil {
						return fmt.Errorf("%s runs twice: %+v and %+v", p.Name, got, r)
					}
					got = r
				}
			}
			switch {
			case got == nil || got.ID != p.ID:
				return fmt.Errorf("%s is %+v, want the sandbox %s", p.Name, got, p.ID)
			case !slices.Contains(got.Addrs, v4(p)):
				return fmt.Errorf("%s has the addresses %v, want %v", p.Name, got.Addrs, p.Addrs)
			}
			return nil
		})
		if got.UID != p.UID || got.Labels["app"] != p.Name || got.Netns == 0 || len(got.PIDs) != 0 || got.HostNetwork {
			t.Errorf("pod %s: %+v", p.Name, got)
		}
		named(t, "its network namespace", x.ByNetns(got.Netns, time.Now()), p.ID)
		named(t, "its address", x.ByAddr(v4(p)), p.ID)
		return got
	}
	gone := func(p *pods.Pod, netns uint64) {
		t.Helper()
		awaitEnd(t, x, p.Namespace, p.Name)
		named(t, "the network namespace that it had, for its last events", x.ByNetns(netns, time.Time{}), p.ID)
	}

	await(x, lone)
	began := time.Now()
	deleted := run("deleted", "", 0)
	made := time.Now()
	was := await(x, deleted)
	known := time.Now()
	deleted.Remove()
	removed := time.Now()
	gone(deleted, was.Netns)
	t.Logf("a pod was made in %v, known %v later, removed in %v, and its end seen %v later", made.Sub(began), known.Sub(made), removed.Sub(known), time.Since(removed))

	// The kubelet makes a new sandbox for the same pod while the record of the first
	// remains.
	first := run("web-0", "", 0)
	was = await(x, first)
	first.Stop()
	gone(first, was.Netns)
	second := run("web-0", first.UID, 1)
	await(x, second)
	first.Remove()
	await(x, second)
	beside := c.RunPod(pods.PodSpec{Namespace: "vm", Name: "web-1"})
	if p := awaitPod(t, x, "vm", "web-1", 1); p.ID != beside.ID {
		t.Errorf("a pod of runc beside it: %+v", p)
	}
	beside.Remove()
	second.Remove()
	awaitEnd(t, x, "vm", "web-0")

	owners := map[netip.Addr][]string{}
	for i := range 2 * addresses {
		p := run(fmt.Sprintf("turn-%d", i), "", 0)
		was := await(x, p)
		owners[v4(p)] = append(owners[v4(p)], p.Name)
		p.Stop() // the record stays, and contains the address
		gone(p, was.Netns)
	}
	if len(owners) > addresses {
		t.Errorf("%d addresses were used, want %d at most: %v", len(owners), addresses, owners)
	}
	await(x, lone)
	t.Logf("the pods that had each address: %v", owners)

	before := len(x.Running())
	c.Stop()
	testkit.Eventually(t, "the end of containerd is seen", func() bool { return !x.Connected() })
	if find(x, "vm", "lone") == nil {
		t.Error("the pod went with containerd")
	}
	c.Run()
	testkit.Eventually(t, "containerd is followed again", x.Connected)
	await(x, lone)
	y, _ := follow(t, c, Options{})
	synced(t, y)
	await(y, lone)
	if n, m := len(x.Running()), len(y.Running()); n != before || m != before {
		t.Errorf("after containerd's restart there are %d pods, and %d for a new process; before %d: %v", n, m, before, runningNames(y))
	}
}
