package pods

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const callTimeout = 30 * time.Second

// PodSpec describes a pod to make.
type PodSpec struct {
	Namespace, Name string
	// UID is generated if empty.
	UID string
	// Labels are the pod's own labels; the kubelet's are added.
	Labels      map[string]string
	HostNetwork bool
	Containers  []ContainerSpec
	// CgroupParent replaces the default control group below Containerd.Cgroup,
	// /kubepods/besteffort/pod<UID>, or a slice of systemd's.
	CgroupParent string
	// Attempt numbers the sandboxes of one pod, from 0.
	Attempt uint32
	// Runtime is "" for runc, or SandboxRuntime.
	Runtime string
}

// ContainerSpec describes a container to make.
type ContainerSpec struct {
	Name string
	// Command runs from the busybox image; if empty, the container sleeps forever.
	Command []string
	// Mounts maps paths in the container to files and folders of containerd's machine,
	// read-only.
	Mounts map[string]string
	// Devices are devices that the container may use, under the same name.
	Devices []string
}

// Pod is a running pod.
type Pod struct {
	PodSpec
	// ID is the sandbox's ID, PID its first process, 0 if the sandbox is no container.
	ID  string
	PID int
	// Addrs are its addresses according to containerd.
	Addrs      []netip.Addr
	Containers []*Container

	c      *Containerd
	config *cri.PodSandboxConfig
}

// Container is a running container of a pod.
type Container struct {
	ContainerSpec
	ID  string
	PID int

	c *Containerd
}

// RunPod makes a pod, starts its containers, and returns when all run.
func (c *Containerd) RunPod(spec PodSpec) *Pod {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	p, err := c.TryRunPod(ctx, spec)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// TryRunPod is RunPod for other goroutines than the test's. With an error it returns the
// pod as far as it was made.
func (c *Containerd) TryRunPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	if spec.UID == "" {
		spec.UID = newUID()
	}
	if spec.CgroupParent == "" {
		spec.CgroupParent = "/kubepods/besteffort/pod" + spec.UID
		if c.service != nil && c.service.Systemd {
			slice := "kubepods-besteffort-pod" + strings.ReplaceAll(spec.UID, "-", "_") + ".slice"
			spec.CgroupParent = "/kubepods.slice/kubepods-besteffort.slice/" + slice
		}
	}
	labels := map[string]string{
		"io.kubernetes.pod.name":      spec.Name,
		"io.kubernetes.pod.namespace": spec.Namespace,
		"io.kubernetes.pod.uid":       spec.UID,
	}
	maps.Copy(labels, spec.Labels)
	network, hostname := cri.NamespaceMode_POD, spec.Name
	if spec.HostNetwork {
		network, hostname = cri.NamespaceMode_NODE, ""
	}
	logs := filepath.Join(c.dir, "logs", spec.UID)
	if err := os.MkdirAll(c.path(logs), 0o755); err != nil {
		return nil, err
	}
	p := &Pod{PodSpec: spec, c: c}
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: spec.Name, Namespace: spec.Namespace, Uid: spec.UID, Attempt: spec.Attempt},
		Hostname:     hostname,
		LogDirectory: logs,
		// Without DNS servers containerd would copy /etc/resolv.conf, which may be a link
		// into the machine's /run.
		DnsConfig:   &cri.DNSConfig{Servers: []string{"127.0.0.1"}},
		Labels:      labels,
		Annotations: map[string]string{"kubernetes.io/config.source": "api"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: c.Cgroup + spec.CgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD},
			},
		},
	}
	what := "pod " + spec.Namespace + "/" + spec.Name
	client := c.cri()
	r, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: spec.Runtime})
	if err != nil {
		return nil, fmt.Errorf("run the sandbox of %s: %w", what, err)
	}
	p.ID = r.PodSandboxId
	if spec.Runtime != SandboxRuntime {
		if p.PID, err = c.taskPID(ctx, CRINamespace, p.ID); err != nil {
			return p, err
		}
	}
	s, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return p, fmt.Errorf("ask for the sandbox of %s: %w", what, err)
	}
	ips := []string{s.GetStatus().GetNetwork().GetIp()}
	for _, ip := range s.GetStatus().GetNetwork().GetAdditionalIps() {
		ips = append(ips, ip.Ip)
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			p.Addrs = append(p.Addrs, a)
		}
	}
	for _, k := range spec.Containers {
		if _, err := p.TryAddContainer(ctx, k); err != nil {
			return p, err
		}
	}
	return p, nil
}

// AddContainer makes and starts one more container.
func (p *Pod) AddContainer(spec ContainerSpec) *Container {
	p.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	k, err := p.TryAddContainer(ctx, spec)
	if err != nil {
		p.c.t.Fatal(err)
	}
	return k
}

// TryAddContainer is AddContainer for other goroutines than the test's. PID is 0 if the
// container has ended already.
func (p *Pod) TryAddContainer(ctx context.Context, spec ContainerSpec) (*Container, error) {
	if len(spec.Command) == 0 {
		spec.Command = []string{"sleep", "2147483647"}
	}
	what := fmt.Sprintf("container %s of pod %s/%s", spec.Name, p.Namespace, p.Name)
	var mounts []*cri.Mount
	for to, from := range spec.Mounts {
		mounts = append(mounts, &cri.Mount{ContainerPath: to, HostPath: from, Readonly: true})
	}
	var devices []*cri.Device
	for _, d := range spec.Devices {
		devices = append(devices, &cri.Device{ContainerPath: d, HostPath: d, Permissions: "rwm"})
	}
	client := p.c.cri()
	r, err := client.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  p.ID,
		SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: spec.Name},
			Image:    &cri.ImageSpec{Image: busyboxImage},
			Command:  spec.Command,
			LogPath:  spec.Name + ".log",
			Mounts:   mounts,
			Devices:  devices,
			Labels: map[string]string{
				"io.kubernetes.container.name": spec.Name,
				"io.kubernetes.pod.name":       p.Name,
				"io.kubernetes.pod.namespace":  p.Namespace,
				"io.kubernetes.pod.uid":        p.UID,
			},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
			}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", what, err)
	}
	if _, err := client.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		return nil, fmt.Errorf("start %s: %w", what, err)
	}
	k := &Container{ContainerSpec: spec, ID: r.ContainerId, c: p.c}
	k.PID, _ = p.c.taskPID(ctx, CRINamespace, k.ID)
	p.Containers = append(p.Containers, k)
	return k, nil
}

// Container returns the pod's container of that name.
func (p *Pod) Container(name string) *Container {
	p.c.t.Helper()
	for _, k := range p.Containers {
		if k.Name == name {
			return k
		}
	}
	p.c.t.Fatalf("pod %s/%s has no container %s", p.Namespace, p.Name, name)
	return nil
}

// Exec runs a command in the container and returns its output.
func (k *Container) Exec(command ...string) string {
	k.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := k.c.cri().ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: k.ID, Cmd: command})
	if err != nil {
		k.c.t.Fatalf("run %v in container %s: %v", command, k.Name, err)
	}
	if r.ExitCode != 0 {
		k.c.t.Fatalf("run %v in container %s: exit code %d: %s", command, k.Name, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

// Stop ends the container at once and keeps its record.
func (k *Container) Stop() {
	k.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := k.c.cri().StopContainer(ctx, &cri.StopContainerRequest{ContainerId: k.ID}); err != nil {
		k.c.t.Fatalf("stop container %s: %v", k.Name, err)
	}
}

// Stop ends the pod's containers and its sandbox and keeps their records.
func (p *Pod) Stop() {
	p.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := p.TryStop(ctx); err != nil {
		p.c.t.Fatal(err)
	}
}

// TryStop is Stop for other goroutines than the test's.
func (p *Pod) TryStop(ctx context.Context) error {
	for {
		_, err := p.c.cri().StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
		if err == nil {
			return nil
		}
		// containerd fails to stop a container that ends at the same moment. Retry, as the
		// kubelet does.
		if status.Code(err) != codes.Unknown || ctx.Err() != nil {
			return fmt.Errorf("stop pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Remove ends the pod and deletes it.
func (p *Pod) Remove() {
	p.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := p.TryRemove(ctx); err != nil {
		p.c.t.Fatal(err)
	}
}

// TryRemove is Remove for other goroutines than the test's.
func (p *Pod) TryRemove(ctx context.Context) error {
	if err := p.TryStop(ctx); err != nil {
		return err
	}
	if _, err := p.c.cri().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// newUID generates a UID in Kubernetes' format.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
