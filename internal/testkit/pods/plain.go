package pods

import (
	"context"
	"fmt"
	"time"
)

// PlainSpec says what container to run outside any pod.
type PlainSpec struct {
	// Namespace is the containerd namespace.
	Namespace, ID string
	Labels        map[string]string
	HostNetwork   bool
	// JoinPID, if not 0, is a process whose network namespace to join.
	JoinPID int
	// Command is run from the busybox image; sleeping for ever if empty.
	Command []string
	// Mounts are files of this machine, by their path in the container.
	Mounts map[string]string
}

// Plain is a container outside any pod.
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

// Kill ends the container's processes and leaves its record.
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
