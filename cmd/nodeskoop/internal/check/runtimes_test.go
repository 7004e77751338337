package check

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nodeskoop/collect/owner"
	"nodeskoop/collect/pod"
)

func TestContainerOf(t *testing.T) {
	id, other := strings.Repeat("0a", 32), strings.Repeat("b1", 32)
	for path, want := range map[string][2]string{
		"/":                                     {},
		"/system.slice":                         {},
		"/system.slice/docker-" + id + ".scope": {"Docker", id},
		"/docker/" + id:                         {"Docker", id},
		"/system.slice:docker:" + id:            {"Docker", id},
		"/docker/" + id + "/init.scope":         {"Docker", id},
		"/machine.slice/libpod-" + id + ".scope/container":                                          {"Podman", id},
		"/machine.slice/libpod-payload-" + id:                                                       {"Podman", id},
		"/libpod_parent/libpod-" + id:                                                               {"Podman", id},
		"/machine.slice/libpod-conmon-" + id + ".scope":                                             {},
		"/kubepods.slice/kubepods-pod7.slice/crio-" + id + ".scope":                                 {"CRI-O", id},
		"/kubepods.slice/kubepods-pod7.slice/crio-conmon-" + id + ".scope":                          {},
		"/kubepods.slice/kubepods-pod7.slice/cri-containerd-" + id + ".scope":                       {"", id},
		"/kubepods/pod7/" + id:                                                                      {"", id},
		"/kubepods/pod7/" + id + "/docker/" + other:                                                 {"Docker", other},
		"/system.slice/docker-" + id[1:] + ".scope":                                                 {},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope":          {"Podman", id},
		"/kubepods-burstable-pod7.slice:cri-containerd:" + id:                                       {"", id},
		"/kubepods.slice/kubepods-pod7.slice/docker-" + id + ".scope/kubelet/kubepods/pod/" + other: {"", other},
	} {
		if runtime, got := containerOf(path); runtime != want[0] || got != want[1] {
			t.Errorf("%s: %q %q, want %q", path, runtime, got, want)
		}
	}
}

// knownProcesses are Pods with known processes.
type knownProcesses struct {
	owner.NoPods
	pids []int
}

func (k knownProcesses) ByPID(pid int) *owner.Pod {
	if slices.Contains(k.pids, pid) {
		return &owner.Pod{}
	}
	return nil
}

func TestUnnamedContainers(t *testing.T) {
	const socket = "/run/containerd/containerd.sock"
	id := func(n int) string { return fmt.Sprintf("%064x", n) }
	docker, crio := pod.Runtime{Name: pod.Docker, Socket: "/run/docker.sock"}, pod.Runtime{Name: pod.CRIO, Socket: "/run/crio/crio.sock"}
	own := docker
	own.Containerd = "/run/docker/containerd/containerd.sock"
	dockerd := pod.Runtime{Name: pod.CRIDockerd, Socket: "/run/cri-dockerd.sock", Containerd: own.Containerd}
	files := map[string]string{
		"/proc/1/cgroup":   "0::/init.scope\n",
		"/proc/10/cgroup":  "0::/system.slice/docker-" + id(1) + ".scope\n",
		"/proc/11/cgroup":  "12:pids:/docker/" + id(2) + "\n0::/\n",
		"/proc/12/cgroup":  "0::/docker/" + id(2) + "/child\n",
		"/proc/20/cgroup":  "0::/machine.slice/libpod-" + id(3) + ".scope/container\n",
		"/proc/21/cgroup":  "0::/machine.slice/libpod-conmon-" + id(3) + ".scope\n",
		"/proc/30/cgroup":  "0::/kubepods.slice/crio-" + id(4) + ".scope\n",
		"/proc/40/cgroup":  "0::/kubepods.slice/cri-containerd-" + id(5) + ".scope\n",
		"/proc/50/cgroup":  "", // the process has ended
		"/proc/self/other": "",
	}
	for _, test := range []struct {
		name, config, socket string
		known                []int
		listening            []pod.Runtime
		want                 map[string][]string // expected substrings by the finding's name
	}{
		{"all named", "", socket, []int{10, 11, 12, 20, 30, 40}, nil, nil},
		{"Podman and CRI-O", "", socket, []int{10, 11, 12, 40}, nil, map[string][]string{
			"containers of Podman": {"1 have no name", "podman ps --ns"}, "containers of CRI-O": {"1 have no name", "crictl inspect"}}},
		{"Docker with a containerd of its own", "", socket, []int{20, 30, 40}, nil, map[string][]string{
			"containers of Docker": {"2 have no name", "/run/docker/containerd/containerd.sock"}}},
		{"Docker left out", "[pods]\nnamespace = \"k8s.io\"", socket, []int{20, 30, 40}, nil, map[string][]string{
			"containers of Docker": {"2 have no name", `pods.namespace = "k8s.io,moby"`}}},
		{"another namespace", "[pods]\nnamespace = \"k8s.io\"", socket, []int{10, 11, 12, 20, 30}, nil, map[string][]string{
			"containers": {"1 have no name", `pods.namespace = "*"`}}},
		{"no containerd", "", "", []int{20, 30}, nil, map[string][]string{
			"containers of Docker": {"2 have no name", "see containerd above"}, "containers": {"1 have no name", "see containerd above"}}},
		{"all named, and Docker listens", "", socket, []int{10, 11, 12, 20, 30, 40}, []pod.Runtime{docker}, map[string][]string{
			"containers of Docker": {"named through the containerd behind " + socket}}},
		{"Docker listens and is left out", "[pods]\nnamespace = \"k8s.io\"", socket, []int{10, 11, 12, 20, 30, 40}, []pod.Runtime{docker}, nil},
		{"Docker has a containerd of its own, no container", "", socket, []int{10, 11, 12, 20, 30, 40}, []pod.Runtime{own}, map[string][]string{
			"containers of Docker": {"Docker listens on /run/docker.sock", "pods.sockets = [\"/run/docker/containerd/containerd.sock\"]"}}},
		{"cri-dockerd, two containers, no containerd", "", "", []int{20, 30, 40}, []pod.Runtime{dockerd}, map[string][]string{
			"containers of Docker": {"2 have no name: cri-dockerd listens on", "systemctl status docker"}}},
		{"CRI-O listens", "", socket, []int{10, 11, 12, 20, 40}, []pod.Runtime{crio}, map[string][]string{
			"containers of CRI-O": {"1 have no name: CRI-O listens on /run/crio/crio.sock", "crictl pods"}}},
		{"CRI-O listens and runs nothing", "", "", []int{10, 11, 12, 20, 30, 40}, []pod.Runtime{crio}, map[string][]string{
			"containers of CRI-O": {"CRI-O listens on /run/crio/crio.sock", "crictl pods"}}},
	} {
		k := checkerOf(t, test.config, files)
		got := k.unnamed(knownProcesses{pids: test.known}, pod.Status{Socket: test.socket}, test.listening)
		if len(got) != len(test.want) {
			t.Errorf("%s: %d lines, want %d: %v", test.name, len(got), len(test.want), got)
		}
		for _, f := range got {
			if (f.Verdict == Good) != strings.HasPrefix(f.Found, "named") || f.Verdict == Bad {
				t.Errorf("%s: %s is %s", test.name, f.Check, f.Verdict)
			}
			want, ok := test.want[f.Check]
			if !ok {
				t.Errorf("%s: there is a line %q", test.name, f.Check)
			}
			for _, w := range want {
				if !strings.Contains(f.Found+"\n"+f.Do, w) {
					t.Errorf("%s: %s does not hold %q: %s -> %s", test.name, f.Check, w, f.Found, f.Do)
				}
			}
		}
	}
}

func TestDockerNames(t *testing.T) {
	id := strings.Repeat("0a", 32)
	unread := &owner.Pod{ID: id, Namespace: "moby", Name: id[:12], Labels: map[string]string{"com.docker/engine.bundle.path": "/x"}}
	plugin := *unread
	plugin.Namespace = "plugins.moby"
	named := &owner.Pod{ID: id, Namespace: "moby", Name: "web", Labels: map[string]string{"app": "x"}}
	if got := judgeDockerNames([]*owner.Pod{named, &plugin}); got != nil {
		t.Errorf("named containers and plugins: %v", got)
	}
	if got := judgeDockerNames([]*owner.Pod{named, unread}); len(got) != 1 || got[0].Verdict != Warning || !strings.Contains(got[0].Found, id[:12]) {
		t.Errorf("a container without its name: %v", got)
	}
}
