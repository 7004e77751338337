package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/testkit/pods"
)

func longID(n int) string { return fmt.Sprintf("%02x%062x", n, n) }

func TestDockerFile(t *testing.T) {
	id, other := longID(0xa), longID(0xb)
	for _, test := range []struct {
		name   string
		mounts []mount
		want   string
	}{
		{"no mounts", nil, "/var/lib/docker/containers/" + id + "/config.v2.json"},
		{"a data root", []mount{{"/data", "/srv/containers/" + id + "/data"}, {"/etc/hostname", "/mnt/docker/containers/" + id + "/hostname"}},
			"/mnt/docker/containers/" + id + "/config.v2.json"},
		{"the network of another container", []mount{{"/etc/hosts", "/mnt/docker/containers/" + other + "/hosts"}}, "/mnt/docker/containers/" + id + "/config.v2.json"},
		{"files of the user's own", []mount{{"/etc/resolv.conf", "/etc/resolv.conf"}, {"/etc/hosts", "/home/me/containers/mine/hosts"}}, "/var/lib/docker/containers/" + id + "/config.v2.json"},
		{"no path", []mount{{"/etc/hosts", "containers/" + id + "/hosts"}, {"/etc/hostname", ""}}, "/var/lib/docker/containers/" + id + "/config.v2.json"},
	} {
		if got := dockerFile(id, test.mounts); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// TestDockerContainers: Docker's label leads to Docker's file, but only in the record of a
// container outside pods.
func TestDockerContainers(t *testing.T) {
	id := longID(0xa)
	spec := &anypb.Any{Value: []byte(`{"linux":{"cgroupsPath":"system.slice:docker:` + id + `"},"mounts":[
		{"destination":"/proc","source":"proc"},{"destination":"/etc/hosts","source":"/mnt/containers/` + id + `/hosts"}]}`)}
	mark := map[string]string{labelDocker: "/var/run/docker/containerd/" + id}
	a := aboutContainer("moby", &containers.Container{ID: id, Labels: mark, Spec: spec})
	if a.record != "/mnt/containers/"+id+"/config.v2.json" || a.name != id[:12] || a.namespace != "moby" {
		t.Errorf("a container of Docker: %+v", a)
	}
	if want := []string{"/system.slice/docker-" + id + ".scope", "/system.slice:docker:" + id}; cmp.Diff(want, a.groups) != "" {
		t.Errorf("its control groups are %q, want %q", a.groups, want)
	}
	pod := map[string]string{labelDocker: "x", labelKind: "container", labelPodName: "web-0"}
	for name, c := range map[string]*containers.Container{
		"no mark":                    {ID: id, Spec: spec},
		"an ID that is a path":       {ID: "../../../etc", Labels: mark, Spec: spec},
		"a pod's, of a marked image": {ID: id, Labels: pod, Sandbox: "s", Spec: spec},
		"a plugin of Docker":         nil,
	} {
		namespace := "default"
		if c == nil {
			namespace, c = "plugins.moby", &containers.Container{ID: id, Labels: mark, Spec: spec}
		}
		if a := aboutContainer(namespace, c); a.record != "" {
			t.Errorf("%s: its name is looked for in %s", name, a.record)
		}
	}
}

// dockerJSON is a config.v2.json with the fields that are read and others.
func dockerJSON(t testing.TB, id, name string, labels map[string]string) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"State": map[string]any{"Running": true, "Pid": 4711}, "ID": id, "Name": "/" + name,
		"Config": map[string]any{"Hostname": id[:12], "Env": []string{"PASSWORD=x"}, "Labels": labels},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestApplyDocker(t *testing.T) {
	id, box := longID(0xa), longID(0xb)
	labels := func(kv ...string) map[string]string {
		l := map[string]string{labelPodName: "web-0", labelNamespace: "shop", labelUID: "u-1"}
		for i := 0; i < len(kv); i += 2 {
			l[kv[i]] = kv[i+1]
		}
		return l
	}
	without := func(l map[string]string, name string) map[string]string {
		delete(l, name)
		return l
	}
	plainAbout := func(name string, l map[string]string) *about {
		return &about{kind: plain, sandbox: id, namespace: "moby", name: name, labels: l}
	}
	inPod := labels(labelDockerType, "container", labelDockerSandbox, box)
	for _, test := range []struct {
		name, docker string
		labels       map[string]string
		want         *about
	}{
		{"a container", "web", map[string]string{"app": "x"}, plainAbout("web", map[string]string{"app": "x"})},
		{"without a name", "", map[string]string{"app": "x"}, plainAbout(id[:12], map[string]string{labelDocker: "x"})},
		{"a pod's sandbox", "k8s_POD_web-0_shop_u-1_0", labels(labelDockerType, "podsandbox", "app", "web", "annotation.a", "b"),
			&about{kind: sandbox, sandbox: id, namespace: "shop", name: "web-0", uid: "u-1", labels: labels("app", "web")}},
		{"a pod's sandbox, after a conflict of names", "k8s_POD_web-0_shop_u-1_0_9b2c", labels(labelDockerType, "podsandbox"),
			&about{kind: sandbox, sandbox: id, namespace: "shop", name: "web-0", uid: "u-1", labels: labels()}},
		{"a pod's container", "k8s_main_web-0_shop_u-1_0", inPod,
			&about{kind: member, sandbox: box, namespace: "shop", name: "web-0", uid: "u-1"}},
		{"an image that is labelled as a pod's", "web", labels(labelDockerType, "podsandbox"), plainAbout("web", labels(labelDockerType, "podsandbox"))},
		{"a name of that form, and labels of another pod", "k8s_POD_web-1_shop_u-1_0", labels(labelDockerType, "podsandbox"),
			plainAbout("k8s_POD_web-1_shop_u-1_0", labels(labelDockerType, "podsandbox"))},
		{"a name of that form without labels", "k8s_POD_web-0_shop_u-1_0", nil, plainAbout("k8s_POD_web-0_shop_u-1_0", nil)},
		{"a container of a sandbox that is not told", "k8s_main_web-0_shop_u-1_0", without(labels(labelDockerType, "container"), labelDockerSandbox),
			plainAbout("k8s_main_web-0_shop_u-1_0", labels(labelDockerType, "container"))},
	} {
		a := plainAbout(id[:12], map[string]string{labelDocker: "x"})
		name := test.docker
		if name != "" {
			name = "/" + name
		}
		r := dockerRecord{ID: id, Name: name}
		r.Config.Labels = test.labels
		a.applyDocker(&r)
		if diff := cmp.Diff(test.want, a, diffAbout...); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestDockerFiles(t *testing.T) {
	dir := t.TempDir()
	id := longID(0xa)
	file := filepath.Join(dir, "config.v2.json")
	write := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(file+".new", content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	fresh := func() *about { return &about{sandbox: id, namespace: "moby", name: "short", record: file} }
	var d dockerFiles
	for what, content := range map[string][]byte{
		"another container's": dockerJSON(t, longID(0xb), "web", nil),
		"cut off":             dockerJSON(t, id, "web", nil)[:40],
		"too long":            append(dockerJSON(t, id, "web", nil), make([]byte, maxDockerFile)...),
		"empty":               nil,
	} {
		write(content)
		if a := fresh(); d.name(a, "") == nil || a.name != "short" {
			t.Errorf("a file that is %s names it %q", what, a.name)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if a := fresh(); !errors.Is(d.name(a, ""), os.ErrNotExist) {
		t.Error("a file that is not there is no error")
	} else if d.changed(a.record, a.stamp) {
		t.Error("a file that is not there has changed")
	}
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if a := fresh(); d.name(a, "") == nil || d.hung != nil {
		t.Error("a FIFO is read")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}

	write(dockerJSON(t, id, "web", map[string]string{"app": "x"}))
	a := fresh()
	if err := d.name(a, ""); err != nil || a.name != "web" || a.labels["app"] != "x" {
		t.Fatalf("%+v, %v", a, err)
	}
	if d.changed(a.record, a.stamp) {
		t.Error("a file that stays has changed")
	}
	write(dockerJSON(t, id, "shop", nil))
	if !d.changed(a.record, a.stamp) {
		t.Error("a file that was replaced has not changed")
	}
	// The file is visible only in containerd's mount namespace.
	a = fresh()
	a.record = strings.TrimPrefix(file, dir)
	if err := d.name(a, dir); err != nil || a.name != "shop" || a.record != file {
		t.Errorf("below containerd's root: %+v, %v", a, err)
	}

	// A hanging file system is read once, however many callers there are.
	release := make(chan struct{})
	calls := make(chan struct{}, 10)
	hang := func() (dockerAnswer, error) { calls <- struct{}{}; <-release; return dockerAnswer{}, nil }
	if _, err := d.do(hang); !errors.Is(err, bounded.ErrNoAnswer) {
		t.Errorf("a file system that hangs: %v", err)
	}
	if err := d.name(fresh(), ""); err == nil {
		t.Error("a file system that hangs is asked again")
	}
	if d.changed(file, fileStamp{}) {
		t.Error("what cannot be asked has changed")
	}
	close(release)
	soon(t, func() error { return d.name(fresh(), "") })
	if n := len(calls); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

func FuzzDocker(f *testing.F) {
	f.Add(dockerJSON(f, longID(0xa), "k8s_POD_web-0_shop_u-1_0", map[string]string{labelPodName: "web-0", labelNamespace: "shop", labelUID: "u-1", labelDockerType: "podsandbox"}))
	f.Add([]byte(`{"ID":7,"Name":["/x"],"Config":{"Labels":["a"]}}`))
	f.Add([]byte(`{"Name":"//x","Config":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseDocker(data)
		if err != nil {
			return
		}
		a := &about{sandbox: longID(1), namespace: "moby", name: "short"}
		a.applyDocker(&r)
		if a.name == "" || a.sandbox == "" || a.kind != plain && (a.namespace == "" && r.Config.Labels[labelNamespace] != "" || a.uid != r.Config.Labels[labelUID]) {
			t.Errorf("%+v", a)
		}
	})
}

// TestDocker: containers of a real Docker have their names, whether they start before or
// after the watcher. docker rename and the end of a container are noticed. A container with
// the name and labels that cri-dockerd gives is a pod.
func TestDocker(t *testing.T) {
	c := pods.Start(t)
	d := c.Docker()
	web := d.Run("web", map[string]string{"app": "shop"})
	x, log := followEvery(t, c, Options{}, intervals{resync: time.Second, ping: usual.ping})
	synced(t, x)
	if p := awaitPod(t, x, "moby", "web", 1); p.Labels["app"] != "shop" || p.PIDs[0] != web.PID {
		t.Errorf("its labels are %v, its processes %v, want %d", p.Labels, p.PIDs, web.PID)
	}
	named(t, "its network namespace", x.ByNetns(netnsOf(t, web.PID), time.Time{}), web.ID)
	named(t, "its process", x.ByPID(web.PID), web.ID)
	if a := d.Run("db", nil); a.PID == 0 {
		t.Fatal("it does not run")
	}
	awaitPod(t, x, "moby", "db", 1)
	web.Rename("web-2")
	awaitPod(t, x, "moby", "web-2", 1)
	web.Remove()
	awaitEnd(t, x, "moby", "web-2")

	of := func(kv ...string) map[string]string {
		l := map[string]string{labelPodName: "web-0", labelNamespace: "shop", labelUID: "u-1"}
		for i := 0; i < len(kv); i += 2 {
			l[kv[i]] = kv[i+1]
		}
		return l
	}
	box := d.Run("k8s_POD_web-0_shop_u-1_0", of(labelDockerType, "podsandbox", "app", "web"))
	main := d.Run("k8s_main_web-0_shop_u-1_0", of(labelDockerType, "container", labelDockerSandbox, box.ID))
	if p := awaitPod(t, x, "shop", "web-0", 2); p.UID != "u-1" || p.Labels["app"] != "web" {
		t.Errorf("a pod by cri-dockerd: %+v", p)
	}
	named(t, "a process of the pod", x.ByPID(main.PID), box.ID)
	if n := log.count("cannot read the name"); n > 0 {
		t.Errorf("the log says %d times that names cannot be read", n)
	}
}

// TestDockerRecords: the same with containers that containerd shows as Docker's, but
// without a Docker.
func TestDockerRecords(t *testing.T) {
	c := pods.Start(t)
	root := t.TempDir()
	write := func(id, name string, labels map[string]string) string {
		t.Helper()
		dir := filepath.Join(root, "containers", id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "new"), dockerJSON(t, id, name, labels), 0o600),
			os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "config.v2.json")), os.WriteFile(filepath.Join(dir, "hosts"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "hosts")
	}
	run := func(n int, name string, labels map[string]string) *pods.Plain {
		t.Helper()
		id := longID(n)
		hosts := write(id, name, labels)
		return c.RunPlain(pods.PlainSpec{Namespace: "moby", ID: id, Labels: map[string]string{labelDocker: "/var/run/docker/containerd/" + id}, Mounts: map[string]string{"/etc/hosts": hosts}})
	}
	a := run(0xa, "web", map[string]string{"app": "shop"})
	x, log := followEvery(t, c, Options{}, intervals{resync: time.Second, ping: usual.ping})
	synced(t, x)
	if p := awaitPod(t, x, "moby", "web", 1); p.Labels["app"] != "shop" {
		t.Errorf("its labels are %v", p.Labels)
	}
	named(t, "its network namespace", x.ByNetns(netnsOf(t, a.PID), time.Time{}), a.ID)
	run(0xb, "db", nil)
	awaitPod(t, x, "moby", "db", 1)

	write(a.ID, "web-2", nil)
	awaitPod(t, x, "moby", "web-2", 1)
	if p := find(x, "moby", "web"); p != nil {
		t.Errorf("after docker rename the old name is there: %+v", p)
	}

	of := map[string]string{labelPodName: "web-0", labelNamespace: "shop", labelUID: "u-1"}
	box := run(0xc, "k8s_POD_web-0_shop_u-1_0", withLabels(of, labelDockerType, "podsandbox", "app", "web"))
	run(0xd, "k8s_main_web-0_shop_u-1_0", withLabels(of, labelDockerType, "container", labelDockerSandbox, box.ID))
	if p := awaitPod(t, x, "shop", "web-0", 2); p.UID != "u-1" || p.Labels["app"] != "web" {
		t.Errorf("a pod by cri-dockerd: %+v", p)
	}
	named(t, "the pod's network namespace", x.ByNetns(netnsOf(t, box.PID), time.Time{}), box.ID)

	// Without Docker's file a container is called by its ID, and the log says why, once.
	for _, n := range []int{0xe, 0xf} {
		id := longID(n)
		c.RunPlain(pods.PlainSpec{Namespace: "moby", ID: id, Labels: map[string]string{labelDocker: "x"}})
		awaitPod(t, x, "moby", id[:12], 1)
	}
	if n := log.count("cannot read the name of a Docker container"); n != 1 {
		t.Errorf("the log says %d times that names cannot be read", n)
	}
}
