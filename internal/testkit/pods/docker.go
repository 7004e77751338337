package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"nodeskoop/internal/testkit/need"
)

// Docker is a dockerd that uses a test's containerd.
type Docker struct {
	// DataRoot is Docker's data root.
	DataRoot string

	c      *Containerd
	client http.Client
	cmd    *exec.Cmd
	exited chan struct{}
}

// DockerContainer is a running container of Docker's.
type DockerContainer struct {
	ID, Name string
	PID      int

	d *Docker
}

// Docker starts a dockerd in containerd's namespaces, without networks of its own. It skips
// the test if Docker is not installed.
func (c *Containerd) Docker() *Docker {
	t := c.t
	t.Helper()
	need.Program(t, "dockerd")
	d := &Docker{DataRoot: filepath.Join(c.dir, "root", "docker"), c: c, exited: make(chan struct{})}
	socket := filepath.Join(c.dir, "d.sock")
	d.client = http.Client{Timeout: callTimeout, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	log, err := os.OpenFile(filepath.Join(c.dir, "docker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	none := filepath.Join(c.dir, "docker.json")
	if err := os.WriteFile(none, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command("dockerd", "--config-file", none, "--containerd", c.Socket, "--host", "unix://"+socket,
		"--data-root", d.DataRoot, "--exec-root", filepath.Join(c.dir, "docker"), "--pidfile", filepath.Join(c.dir, "docker.pid"),
		"--cgroup-parent", c.Cgroup+"/docker", "--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2",
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.space.do(d.cmd.Start); err != nil {
		t.Fatalf("start dockerd: %v", err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(c.dir, "docker.log"))
			t.Logf("the end of Docker's log:\n%s", b[max(0, len(b)-4000):])
		}
	})
	limit := time.Now().Add(30 * time.Second)
	for {
		if err = d.call(http.MethodGet, "/_ping", nil, nil); err == nil {
			break
		}
		select {
		case <-d.exited:
			t.Fatalf("dockerd ended at once: %v", d.cmd.ProcessState)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(limit) {
			t.Fatalf("dockerd does not get ready: %v", err)
		}
	}
	images, err := os.Open(filepath.Join(c.dir, "images.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	if err := d.call(http.MethodPost, "/images/load", images, nil); err != nil {
		t.Fatal(err)
	}
	return d
}

// kill kills dockerd: a clean stop would wait for processes that ignore SIGTERM. Its
// containers end with the instance.
func (d *Docker) kill() {
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// call calls Docker's API. body is a reader, or a value to send as JSON.
func (d *Docker) call(method, path string, body, answer any) error {
	var r io.Reader
	typ := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		r, typ = b, "application/x-tar"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, "http://docker"+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", typ)
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("docker: %s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

// Run runs a sleeping container in a network namespace of its own, as `docker run --detach
// --network none` does.
func (d *Docker) Run(name string, labels map[string]string) *DockerContainer {
	d.c.t.Helper()
	k := &DockerContainer{Name: name, d: d}
	var made struct{ ID string }
	var is struct{ State struct{ Pid int } }
	err := d.call(http.MethodPost, "/containers/create?name="+url.QueryEscape(name), map[string]any{
		"Image": busyboxImage, "Cmd": []string{"sleep", "2147483647"}, "Labels": labels,
		"HostConfig": map[string]any{"NetworkMode": "none"},
	}, &made)
	if err == nil {
		k.ID = made.ID
		err = d.call(http.MethodPost, "/containers/"+k.ID+"/start", nil, nil)
	}
	if err == nil {
		err = d.call(http.MethodGet, "/containers/"+k.ID+"/json", nil, &is)
	}
	if err == nil && is.State.Pid == 0 {
		err = errors.New("docker: the container has ended at once")
	}
	if err != nil {
		d.c.t.Fatal(err)
	}
	k.PID = is.State.Pid
	return k
}

// Rename renames the container.
func (k *DockerContainer) Rename(name string) {
	k.d.c.t.Helper()
	if err := k.d.call(http.MethodPost, "/containers/"+k.ID+"/rename?name="+url.QueryEscape(name), nil, nil); err != nil {
		k.d.c.t.Fatal(err)
	}
	k.Name = name
}

// Remove ends the container and deletes it.
func (k *DockerContainer) Remove() {
	k.d.c.t.Helper()
	if err := k.d.call(http.MethodDelete, "/containers/"+k.ID+"?force=1", nil, nil); err != nil {
		k.d.c.t.Fatal(err)
	}
}
