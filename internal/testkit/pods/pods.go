// Package pods runs a real containerd for tests, and real pods on it. The pods are made
// through the container runtime interface, as by the kubelet, with a bridge and IPv4 and
// IPv6 addresses. Images are built locally, so that no registry is used.
//
// Each instance has its own folder, mount namespace, network namespace and parent control
// group. The machine's own are not affected, and nothing is left after the test, however it
// ended.
package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit/need"
)

// CRINamespace is the containerd namespace of CRI pods.
const CRINamespace = "k8s.io"

// Containerd is one instance of containerd.
type Containerd struct {
	// Socket is the path of its gRPC socket.
	Socket string
	// Netns is the path of containerd's network namespace, which is the "host's" for its
	// pods.
	Netns string
	// Cgroup is the parent of all control groups of the instance, as a path from the root
	// of each hierarchy.
	Cgroup string
	// Version is containerd's version, once it runs.
	Version string

	// PIDNamespace, if set between New and Run, gives containerd its own PID namespace. It
	// cannot run pods then.
	PIDNamespace bool
	// Programs, if set between New and Run, is the folder of another containerd than that
	// of $PATH; see SandboxAPI.
	Programs string

	t        testing.TB
	service  *Service // nil: the instance belongs to the test
	cni      string
	dir      string
	space    *space
	cmd      *exec.Cmd
	exited   chan struct{}
	conn     atomic.Pointer[grpc.ClientConn] // closed while containerd does not run
	imported map[string]bool
}

var instances atomic.Int64

// Start makes an instance and runs it. It skips the test if that is not possible.
func Start(t testing.TB) *Containerd {
	t.Helper()
	c := New(t)
	c.Run()
	return c
}

// New makes an instance that does not run yet and has no socket.
func New(t testing.TB) *Containerd {
	t.Helper()
	need.Root(t)
	need.Program(t, "containerd", "containerd-shim-runc-v2", "runc", "ctr", "busybox")
	cni := cniDir()
	if cni == "" {
		need.Program(t, "CNI plugins (containernetworking-plugins)")
	}
	// A socket's path may have 107 bytes, which t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "pods-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{
		Socket:   filepath.Join(dir, "c.sock"),
		Cgroup:   fmt.Sprintf("/nodeskoop-test-%d-%d", os.Getpid(), instances.Add(1)),
		t:        t,
		cni:      cni,
		dir:      dir,
		imported: map[string]bool{},
	}
	s, err := startSweeper(dir, c.Cgroup)
	if err != nil {
		_ = os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.disconnect()
		if c.cmd != nil {
			_ = c.cmd.Process.Kill()
			<-c.exited
		}
		if t.Failed() {
			t.Logf("the end of containerd's log:\n%s", c.logTail())
		}
		if c.space != nil {
			c.space.close()
		}
		if err := s.sweep(); err != nil {
			t.Errorf("clean up after containerd: %v", err)
		}
	})
	for _, d := range []string{"root", "state", "cni", "logs"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if c.space, err = newSpace(filepath.Join(dir, "root"), filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	c.Netns = c.space.netns
	if err := os.WriteFile(filepath.Join(dir, "cni", "10.conflist"), []byte(network(dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, shimName))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := writeImages(filepath.Join(dir, "images.tar")); err != nil {
		t.Fatalf("make the images: %v", err)
	}
	return c
}

// config keeps everything in the private folder. Snapshots are on a tmpfs, on which
// overlayfs works even if the machine's root is an overlayfs. AppArmor profiles are
// disabled: they would be loaded into the machine's kernel.
func (c *Containerd) config() string {
	return fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/root/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[3]s"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
%[4]s  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[2]s"
    conf_dir = "%[1]s/cni"
`, c.dir, c.cni, pauseImage, c.sandboxes())
}

// sandboxes configures the runtime SandboxRuntime for a containerd that has the sandbox API.
// containerd 1.7 calls the setting sandbox_mode; see TryRun.
func (c *Containerd) sandboxes() string {
	if c.Programs == "" {
		return ""
	}
	return fmt.Sprintf(`    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%s]
      runtime_type = "%s"
      sandboxer = "shim"
      sandbox_mode = "shim"
`, SandboxRuntime, filepath.Join(c.dir, shimName))
}

// SandboxAPI returns the folders of the containerds with the sandbox API, which make
// test-nodes provides: Debian 13's, in which the API is experimental, and containerd 2.
// It skips the test unless make test-nodes runs it.
func SandboxAPI(t testing.TB) []string {
	t.Helper()
	need.Target(t, "test-nodes", os.Getenv("NODESKOOP_NODES_BINARIES") != "")
	cache := os.Getenv("NODESKOOP_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("the cache folder with the containerds: %v", err)
		}
		cache = filepath.Join(user, "nodeskoop")
	}
	dir := filepath.Join(cache, "nodes", runtime.GOARCH)
	var found []string
	for _, name := range []string{"containerd-trixie", "containerd-v2.*"} {
		some, _ := filepath.Glob(filepath.Join(dir, name))
		found = append(found, some...)
	}
	if len(found) == 0 {
		t.Fatalf("there is no containerd with the sandbox API in %s, where make test-nodes keeps two", dir)
	}
	return found
}

// FewAddresses leaves n IPv4 addresses for pods, which are reused in turn. Call it between
// New and Run.
func (c *Containerd) FewAddresses(n int) {
	c.t.Helper()
	file := filepath.Join(c.dir, "cni", "10.conflist")
	const first = `"rangeStart": "10.88.77.2"`
	text := strings.Replace(network(c.dir), first, fmt.Sprintf(`%s, "rangeEnd": "10.88.77.%d"`, first, 1+n), 1)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func network(dir string) string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "%s/state/ipam",
    "ranges": [[{"subnet": "10.88.76.0/22", "gateway": "10.88.77.1", "rangeStart": "10.88.77.2"}], [{"subnet": "fd77:88::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "loopback"}]}
`, dir)
}

// Run starts containerd and waits until it answers.
func (c *Containerd) Run() {
	c.t.Helper()
	if err := c.TryRun(); err != nil {
		c.t.Fatal(err)
	}
}

// TryRun is Run for other goroutines than the test's.
func (c *Containerd) TryRun() error {
	if c.cmd != nil {
		return errors.New("containerd runs already")
	}
	config := filepath.Join(c.dir, "config.toml")
	if err := os.WriteFile(config, []byte(c.config()), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.program("containerd"), "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if c.Programs != "" {
		cmd.Env = append(os.Environ(), "PATH="+c.Programs+":"+os.Getenv("PATH"), "ENABLE_CRI_SANDBOXES=1")
	}
	// Pdeathsig is sent when the starting thread ends, so that thread must live until
	// the end of the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.PIDNamespace {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	if err := c.space.do(cmd.Start); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	c.cmd, c.exited = cmd, exited

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.await(ctx, exited); err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, c.logTail())
	}
	if c.PIDNamespace {
		return nil
	}
	return c.importImages(CRINamespace)
}

// program returns the path of one of containerd's programs, or its name in $PATH.
func (c *Containerd) program(name string) string {
	if c.Programs == "" {
		return name
	}
	return filepath.Join(c.Programs, name)
}

// await waits until containerd and its CRI plugin answer.
func (c *Containerd) await(ctx context.Context, exited <-chan struct{}) error {
	conn, err := grpc.NewClient("unix:"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	c.conn.Store(conn)
	for {
		var v *version.VersionResponse
		v, err = version.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
		if err == nil {
			c.Version = v.Version
			if c.PIDNamespace {
				return nil
			}
			var s *cri.StatusResponse
			if s, err = c.cri().Status(ctx, &cri.StatusRequest{}); err == nil {
				if err = ready(s); err == nil {
					return nil
				}
			}
		}
		select {
		case <-exited:
			return fmt.Errorf("containerd ended at once: %v", c.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("containerd does not get ready: %w", err)
		case <-time.After(20 * time.Millisecond):
			conn.ResetConnectBackoff()
		}
	}
}

func ready(s *cri.StatusResponse) error {
	for _, cond := range s.GetStatus().GetConditions() {
		if (cond.Type == cri.RuntimeReady || cond.Type == cri.NetworkReady) && !cond.Status {
			return fmt.Errorf("%s is false: %s", cond.Type, cond.Message)
		}
	}
	return nil
}

func (c *Containerd) cri() cri.RuntimeServiceClient {
	return cri.NewRuntimeServiceClient(c.conn.Load())
}

func (c *Containerd) disconnect() {
	if conn := c.conn.Load(); conn != nil {
		_ = conn.Close()
	}
}

// PID returns containerd's process; 0 if it does not run.
func (c *Containerd) PID() int {
	if c.cmd == nil {
		return 0
	}
	return c.cmd.Process.Pid
}

// Stop stops containerd as a service manager does. Pods continue to run.
func (c *Containerd) Stop() {
	c.t.Helper()
	if err := c.end(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
}

// Kill kills containerd. Pods continue to run.
func (c *Containerd) Kill() {
	c.t.Helper()
	if err := c.end(syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
}

// TryKill is Kill for other goroutines than the test's.
func (c *Containerd) TryKill() error { return c.end(syscall.SIGKILL) }

func (c *Containerd) end(sig syscall.Signal) error {
	if c.cmd == nil {
		return errors.New("containerd does not run")
	}
	c.disconnect()
	if err := c.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to containerd: %w", sig, err)
	}
	select {
	case <-c.exited:
	case <-time.After(20 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.exited
		return fmt.Errorf("containerd did not end within 20s of %v", sig)
	}
	c.cmd = nil
	return nil
}

// Ctr runs the ctr program in a containerd namespace and returns its output.
func (c *Containerd) Ctr(namespace string, args ...string) string {
	c.t.Helper()
	out, err := c.TryCtr(namespace, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// TryCtr is Ctr for other goroutines than the test's.
func (c *Containerd) TryCtr(namespace string, args ...string) (string, error) {
	socket := c.Socket
	if c.service != nil {
		socket = c.service.Socket
	}
	cmd, start := c.command(c.program("ctr"), append([]string{"--address", socket, "--namespace", namespace}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := start(); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("ctr --namespace %s %v: %w: %s", namespace, args, err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.String(), nil
}

// Do runs f on a thread in containerd's mount and network namespaces.
func (c *Containerd) Do(f func() error) error { return c.space.do(f) }

func (c *Containerd) importImages(namespace string) error {
	if c.imported[namespace] {
		return nil
	}
	if _, err := c.TryCtr(namespace, "images", "import", filepath.Join(c.dir, "images.tar")); err != nil {
		return err
	}
	c.imported[namespace] = true
	return nil
}

// taskPID returns the PID of a container's first process.
func (c *Containerd) taskPID(ctx context.Context, namespace, id string) (int, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
	r, err := tasks.NewTasksClient(c.conn.Load()).Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return 0, fmt.Errorf("find the process of container %s: %w", id, err)
	}
	if r.Process.Status != task.Status_RUNNING {
		return 0, fmt.Errorf("container %s is %v", id, r.Process.Status)
	}
	return int(r.Process.Pid), nil
}

// ShimPID returns the shim that is the parent of a container's process.
func (c *Containerd) ShimPID(pid int) int {
	c.t.Helper()
	s, err := kernel.ReadStat("/proc", pid)
	if err != nil {
		c.t.Fatal(err)
	}
	return s.Parent
}

// Freeze stops a process until thaw is called or the test ends.
func (c *Containerd) Freeze(pid int) (thaw func()) {
	c.t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		c.t.Fatalf("stop process %d: %v", pid, err)
	}
	thaw = func() { _ = unix.Kill(pid, unix.SIGCONT) }
	c.t.Cleanup(thaw)
	return thaw
}

func (c *Containerd) logTail() []byte {
	data, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	const most = 4000
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return data
}
