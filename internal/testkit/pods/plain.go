package pods

import (
	"context"
	"fmt"
	"time"
)

// PlainSpec describes a container to run outside pods.
type PlainSpec struct {
	// Namespace is the containerd namespace.
	Namespace, ID string
	Labels        map[string]string
	HostNetwork   bool
	// JoinPID is a process whose network namespace the container joins; 0: none.
	JoinPID int
	// Command runs from the busybox image; if empty, the container sleeps forever.
	Command []string
	// Mounts maps paths in the container to files of this machine.
	Mounts map[string]string
}

// Plain is a container outside pods.
type Plain struct {
	PlainSpec
	PID int

	c *Containerd
}

// RunPlain runs a container as `ctr run` does.
func (c *Containerd) RunPlain(spec PlainSpec) *Plain {
	c.t.Helper()
	if err := c.importImages(spec.Namespace); err != nil {
		c.t.Fatal(err)
	}
	args := []string{"run", "--detach", "--null-io", "--cgroup", c.Cgroup + "/" + spec.Namespace + "/" + spec.ID}
	for k, v := range spec.Labels {
		args = append(args, "--label", k+"="+v)
	}
	if spec.HostNetwork {
		args = append(args, "--net-host")
	}
	if spec.JoinPID != 0 {
		args = append(args, "--with-ns", fmt.Sprintf("network:/proc/%d/ns/net", spec.JoinPID))
	}
	for to, from := range spec.Mounts {
		args = append(args, "--mount", "type=bind,src="+from+",dst="+to+",options=bind:ro")
	}
	if len(spec.Command) == 0 {
		spec.Command = []string{"sleep", "2147483647"}
	}
	args = append(append(args, busyboxImage, spec.ID), spec.Command...)
	c.Ctr(spec.Namespace, args...)
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	pid, err := c.taskPID(ctx, spec.Namespace, spec.ID)
	if err != nil {
		c.t.Fatal(err)
	}
	return &Plain{PlainSpec: spec, PID: pid, c: c}
}

// Kill kills the container's processes and keeps its record.
func (p *Plain) Kill() {
	p.c.t.Helper()
	p.c.Ctr(p.Namespace, "tasks", "kill", "--signal", "SIGKILL", p.ID)
	for deadline := time.Now().Add(callTimeout); ; time.Sleep(10 * time.Millisecond) {
		_, err := p.c.TryCtr(p.Namespace, "tasks", "delete", p.ID)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.c.t.Fatal(err)
		}
	}
}

// Remove ends the container and deletes it.
func (p *Plain) Remove() {
	p.c.t.Helper()
	p.Kill()
	p.c.Ctr(p.Namespace, "containers", "delete", p.ID)
}
