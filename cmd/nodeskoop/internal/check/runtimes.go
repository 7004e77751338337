package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/pod"
)

// containers checks which container runtimes run here, and which of their
// containers have names.
func (k *checker) containers(ctx context.Context, s *session.Session) []Finding {
	const name = "containerd"
	index := s.WatchPods(ctx, s.Config, s.Host)
	st := index.Status()
	var out []Finding
	if index.Connected() {
		running := index.Running()
		out = append(out, Finding{name, Good, fmt.Sprintf("%s answers on %s", st.Version, st.Socket), ""}, judgePods(running))
		out = append(out, judgeDockerNames(running)...)
	} else {
		why := "it has not answered within " + session.FirstPods.String()
		if st.Err != nil {
			why = st.Err.Error()
		}
		do := "nothing, if there is no containerd: only the host's own series are written; else systemctl status containerd, and pods.sockets for another socket"
		if errors.Is(st.Err, fs.ErrPermission) || strings.Contains(why, "permission denied") {
			do = "run it as root: the socket is root's"
		}
		out = append(out, Finding{name, Warning, why, do})
	}
	return append(out, k.unnamed(index, st, pod.Runtimes(k.path("/proc")))...)
}

// judgeDockerNames reports Docker containers whose names could not be read.
func judgeDockerNames(pods []*owner.Pod) []Finding {
	var ids []string
	for _, p := range pods {
		if pod.DockerUnnamed(p) {
			ids = append(ids, p.Name)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return []Finding{{"names by Docker", Warning, fmt.Sprintf("%d of its containers go by their IDs (%s): Docker's own files about them cannot be read", len(ids), few(ids)),
		"run it as root, with CAP_SYS_PTRACE; journalctl -u nodeskoop -g 'container of Docker' names the file and what is wrong with it"}}
}

func few(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// containerGroup matches the control groups that runtimes create for containers:
// libpod-ID.scope, crio-ID, docker-ID.scope, or the bare ID. The control group of a
// container's monitor (crio-conmon-ID.scope) does not count.
var containerGroup = regexp.MustCompile(`^(?:(.*)[-:])?([0-9a-f]{64})(?:\.scope)?$`)

// containerOf returns the innermost container in a control group's path, and its
// runtime if the name reveals it; "" means containerd's or unknown.
func containerOf(path string) (runtime, id string) {
	parts := strings.Split(path, "/")
	for i, part := range slices.Backward(parts) {
		m := containerGroup.FindStringSubmatch(part)
		if m == nil || strings.Contains(m[1], "conmon") {
			continue
		}
		switch prefix, _, _ := strings.Cut(m[1], "-"); {
		case prefix == "libpod":
			runtime = "Podman"
		case prefix == "crio":
			runtime = pod.CRIO
		case prefix == "docker", prefix == "" && i > 0 && parts[i-1] == "docker", strings.HasSuffix(m[1], ":docker"):
			runtime = pod.Docker
		}
		return runtime, m[2]
	}
	return "", ""
}

// unnamed reports running containers without names, found through the control
// groups of all processes, and runtimes that listen here whose containers have none.
func (k *checker) unnamed(pods owner.Pods, st pod.Status, listening []pod.Runtime) []Finding {
	entries, err := os.ReadDir(k.path("/proc"))
	if err != nil {
		return nil // reported by the lines above
	}
	found := map[string]map[string]bool{} // container IDs by runtime
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(k.path("/proc/" + e.Name() + "/cgroup"))
		if err != nil {
			continue // the process has exited
		}
		for line := range strings.Lines(string(b)) {
			_, line, _ = strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			_, path, _ := strings.Cut(line, ":")
			runtime, id := containerOf(path)
			if id == "" {
				continue
			}
			if pods.ByPID(pid) == nil {
				if found[runtime] == nil {
					found[runtime] = map[string]bool{}
				}
				found[runtime][id] = true
			}
			break
		}
	}
	const without = "have no name: nodeskoop asks containerd, and the one that answers does not know them. Their network namespaces have no series; their events carry KUBESKOOP_NETNS and no pod"
	const whose = "lsns -t net -o NS,PID,COMMAND shows whose network namespace a KUBESKOOP_NETNS is"
	follows := func(namespace string) bool {
		names := strings.Split(k.cfg.Pods.Namespace, ",")
		return slices.ContainsFunc(names, func(n string) bool { n = strings.TrimSpace(n); return n == "*" || n == "" || n == namespace })
	}
	var out []Finding
	for _, r := range []struct{ runtime, do string }{
		{pod.Docker, "if Docker runs a containerd of its own: pods.sockets = [\"/run/docker/containerd/containerd.sock\"]; else " + whose},
		{pod.CRIO, whose + ", and crictl inspect ID which pod it is"},
		{"Podman", whose + ", and podman ps --ns which container"},
		{"", "pods.sockets, if they are another containerd's; else " + whose},
	} {
		ids := len(found[r.runtime])
		name, do := "containers", r.do
		if r.runtime != "" {
			name += " of " + r.runtime
		}
		why, instead, listens := "", "", false
		for _, l := range listening {
			if l.Name == r.runtime || l.Name == pod.CRIDockerd && r.runtime == pod.Docker {
				why, instead = l.Unnamed(st)
				listens = true
			}
		}
		switch {
		case why != "":
			if ids > 0 {
				why = fmt.Sprintf("%d have no name: %s", ids, why)
			}
			out = append(out, Finding{name, Warning, why, instead})
			continue
		case ids == 0:
			if listens && st.Socket != "" && follows("moby") {
				out = append(out, Finding{name, Good, "named through the containerd behind " + st.Socket, ""})
			}
			continue
		case r.runtime == pod.Docker && !follows("moby"):
			do = "pods.namespace = \"" + k.cfg.Pods.Namespace + ",moby\": what Docker runs is in that namespace of containerd"
		case r.runtime == "" && k.cfg.Pods.Namespace != "*":
			do = "pods.namespace = \"*\", if they are to be named, which is " + strconv.Quote(k.cfg.Pods.Namespace) + "; else " + whose
		case st.Socket == "" && r.runtime != pod.CRIO && r.runtime != "Podman":
			do = "see containerd above"
		}
		out = append(out, Finding{name, Warning, fmt.Sprintf("%d %s", ids, without), do})
	}
	return out
}
