package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// Image is the image of the harness that containers run: busybox with its programs in /bin.
const Image = busyboxImage

// Kubelet is a kubelet without an API server that uses a test's containerd. Its pods are
// static pods.
type Kubelet struct {
	// Program is the kubelet's path. A change takes effect at the next Run.
	Program string

	c      *Containerd
	client http.Client
	cmd    *exec.Cmd
	exited chan struct{}
}

// KubeletPod is a pod as the kubelet lists it.
type KubeletPod struct {
	Metadata struct{ Namespace, Name, UID string }
	Spec     struct{ HostNetwork bool }
	Status   struct {
		Phase             string
		ContainerStatuses []KubeletContainer
	}
}

// KubeletContainer is a container as the kubelet lists it.
type KubeletContainer struct {
	Name         string
	Ready        bool
	RestartCount int
	ContainerID  string // containerd://ID
}

// HostPorts lets pods use the ports of the host that they ask for. Call it before Run.
func (c *Containerd) HostPorts() {
	c.t.Helper()
	file := filepath.Join(c.dir, "cni", "10.conflist")
	text := strings.Replace(network(c.dir), `  {"type": "loopback"}`,
		`  {"type": "portmap", "capabilities": {"portMappings": true}},`+"\n"+`  {"type": "loopback"}`, 1)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// nodeAddress is the address that the kubelet reports as the node's.
const nodeAddress = "192.168.250.2"

// kernelSettings are values that the kubelet requires of the kernel's settings. It sees
// them in files, so the machine's own settings are neither read nor changed.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// Kubelet starts a kubelet in containerd's namespaces and waits until it answers. The pods'
// control groups are below Containerd.Cgroup.
func (c *Containerd) Kubelet(program string) *Kubelet {
	t := c.t
	t.Helper()
	need.Program(t, program, "sh")
	k := &Kubelet{Program: program, c: c}
	k.client = http.Client{Timeout: callTimeout, Transport: &http.Transport{
		DisableKeepAlives: true, // a restart of the kubelet ends idle connections
		DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
			err = c.space.do(func() error {
				conn, err = net.DialTimeout("tcp", "127.0.0.1:10255", callTimeout)
				return err
			})
			return conn, err
		},
	}}
	if err := os.MkdirAll(k.manifests(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.space.do(func() error { return prepareNode(c.dir) }); err != nil {
		t.Fatalf("prepare the namespaces for a kubelet: %v", err)
	}
	if err := k.makeCgroups(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if k.cmd != nil {
			_ = k.cmd.Process.Kill()
			<-k.exited
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(c.dir, "kubelet.log"))
			t.Logf("the end of the kubelet's log:\n%s", b[max(0, len(b)-4000):])
		}
	})
	if err := k.TryRun(); err != nil {
		t.Fatal(err)
	}
	return k
}

// prepareNode creates what a kubelet expects on its machine. It runs on the thread in
// the namespaces.
func prepareNode(dir string) error {
	for _, d := range []string{"/var/log"} {
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", d, err)
		}
	}
	// The kubelet mounts volumes into pods' folders; these mounts must appear in
	// containers.
	if err := unix.Mount("", "/var/lib", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make /var/lib shared: %w", err)
	}
	settings := filepath.Join(dir, "sys")
	for name, value := range kernelSettings {
		file := filepath.Join(settings, strings.ReplaceAll(name, "/", "."))
		err := errors.Join(os.MkdirAll(settings, 0o755), os.WriteFile(file, []byte(value+"\n"), 0o644))
		if err == nil {
			err = unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("show the kernel setting %s as %s: %w", name, value, err)
		}
	}
	// The node's address is on a veth whose peer is not connected further.
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "ext0"}
	if err := netlink.LinkAdd(eth0); err != nil {
		return fmt.Errorf("add the interface eth0: %w", err)
	}
	for _, name := range []string{"eth0", "ext0"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	addr, err := netlink.ParseAddr(nodeAddress + "/24")
	if err == nil {
		err = netlink.AddrAdd(eth0, addr)
	}
	if err != nil {
		return fmt.Errorf("give eth0 the address %s: %w", nodeAddress, err)
	}
	return nil
}

// makeCgroups creates the parent group of the pods, and in every hierarchy a control
// group of the same name for the kubelet, which requires it.
func (k *Kubelet) makeCgroups() error {
	for _, root := range cgroupRoots() {
		parent := filepath.Join(root, k.c.Cgroup)
		own := filepath.Join(parent, "kubelet")
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		for _, dir := range []string{parent, own} {
			// A cpuset group accepts processes only once it has CPUs and memory.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				of, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, file), of, 0o644)
				}
				if err != nil {
					return fmt.Errorf("give the control group %s what its parent has: %w", dir, err)
				}
			}
		}
	}
	return nil
}

func (k *Kubelet) manifests() string { return filepath.Join(k.c.dir, "manifests") }

func (k *Kubelet) config() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
readOnlyPort: 10255
containerRuntimeEndpoint: unix://%[1]s/c.sock
cgroupDriver: cgroupfs
cgroupRoot: %[2]s
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
failSwapOn: false
failCgroupV1: false
staticPodPath: %[1]s/manifests
podLogsDir: /var/log/pods
fileCheckFrequency: 1s
syncFrequency: 5s
maxPods: 250
podPidsLimit: -1
resolvConf: ""
registerNode: false
protectKernelDefaults: true
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%"}
imageGCHighThresholdPercent: 100
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
featureGates: {KubeletCrashLoopBackOffMax: true}
`, k.c.dir, k.c.Cgroup)
}

// TryRun starts the kubelet and waits until it answers; for other goroutines than the
// test's, too.
func (k *Kubelet) TryRun() error {
	if k.cmd != nil {
		return errors.New("the kubelet runs already")
	}
	dir := k.c.dir
	config := filepath.Join(dir, "kubelet.yaml")
	if err := os.WriteFile(config, []byte(k.config()), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "kubelet.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	var join strings.Builder
	for _, root := range cgroupRoots() {
		fmt.Fprintf(&join, "echo $$ > %s\n", filepath.Join(root, k.c.Cgroup, "kubelet", "cgroup.procs"))
	}
	cmd := exec.Command("sh", "-ec", join.String()+`exec "$@"`, "sh",
		k.Program, "--config", config, "--hostname-override", "node1", "--node-ip", nodeAddress, "--root-dir", "/var/lib/kubelet")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := k.c.space.do(cmd.Start); err != nil {
		return fmt.Errorf("start the kubelet: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	k.cmd, k.exited = cmd, exited
	for limit := time.Now().Add(time.Minute); ; {
		if _, err = k.Pods(); err == nil {
			return nil
		}
		select {
		case <-exited:
			k.cmd = nil
			return fmt.Errorf("the kubelet ended at once: %v", cmd.ProcessState)
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(limit) {
			return fmt.Errorf("the kubelet does not get ready: %w", err)
		}
	}
}

// Pods lists the pods that the kubelet knows.
func (k *Kubelet) Pods() ([]KubeletPod, error) {
	r, err := k.client.Get("http://kubelet/pods")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, body)
	}
	var list struct{ Items []KubeletPod }
	if err == nil {
		err = json.Unmarshal(body, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the kubelet for its pods: %w", err)
	}
	return list.Items, nil
}

// Put makes the kubelet run a pod. A pod that was put under the same file name before
// is replaced.
func (k *Kubelet) Put(name string, manifest any) error {
	b, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	// The kubelet ignores files whose names begin with a dot.
	tmp := filepath.Join(k.manifests(), "."+name)
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(k.manifests(), name+".json"))
}

// Remove makes the kubelet end the pod with that file name.
func (k *Kubelet) Remove(name string) error {
	return os.Remove(filepath.Join(k.manifests(), name+".json"))
}

// PID returns the kubelet's process.
func (k *Kubelet) PID() int { return k.cmd.Process.Pid }

// End ends the kubelet with a signal. Pods continue to run.
func (k *Kubelet) End(sig syscall.Signal) error {
	if k.cmd == nil {
		return errors.New("the kubelet does not run")
	}
	if err := k.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to the kubelet: %w", sig, err)
	}
	select {
	case <-k.exited:
	case <-time.After(20 * time.Second):
		_ = k.cmd.Process.Kill()
		<-k.exited
		k.cmd = nil
		return fmt.Errorf("the kubelet did not end within 20s of %v", sig)
	}
	k.cmd = nil
	return nil
}
