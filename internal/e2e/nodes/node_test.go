package nodes

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
)

// patience is how long a test waits for a situation: the kubelet pauses for some
// seconds between its attempts.
const patience = 2 * time.Minute

// node is a containerd, a kubelet and a nodeskoop.
type node struct {
	t       *testing.T
	name    string // name of its column in the table
	ctd     *pods.Containerd
	kubelet *pods.Kubelet
	watch   *follower
	dir     string
	config  string
	daemon  *exec.Cmd
	ended   chan struct{}
	empty   holdings        // kernel objects that nodeskoop held before the first pod
	spaces  map[string]bool // the pods' network namespaces, as links of /proc/PID/ns/net
}

// use makes a folder's programs the ones that are started from now on.
func use(dir string) error {
	path := os.Getenv("PATH")
	if before := os.Getenv("NODESKOOP_NODES_IN_USE"); before != "" {
		path = strings.TrimPrefix(path, before+":")
	}
	return errors.Join(os.Setenv("PATH", dir+":"+path), os.Setenv("NODESKOOP_NODES_IN_USE", dir))
}

// newNode starts all three, with nodeskoop's interval of a second.
func newNode(t *testing.T, name string, b binaries) *node {
	t.Helper()
	if err := use(b[name]); err != nil {
		t.Fatal(err)
	}
	program := testkit.Nodeskoop(t)
	n := &node{t: t, name: name, dir: t.TempDir(), spaces: map[string]bool{}}
	n.ctd = pods.New(t)
	n.ctd.HostPorts()
	n.ctd.Run()
	n.kubelet = n.ctd.Kubelet(filepath.Join(b["kubelet"], "kubelet"))
	n.config = filepath.Join(n.dir, "nodeskoop.toml")
	text := fmt.Sprintf("node_name = 'node1'\ninterval = '1s'\nhost_netns = '%s'\n[probes]\nenabled = ['all', '-virtcmdlatency']\n[textfile]\ndir = '%s'\n[state]\ndir = '%s'\n[pods]\nsockets = ['%s']\n",
		n.ctd.Netns, n.dir, filepath.Join(n.dir, "state"), n.ctd.Socket)
	if err := os.WriteFile(n.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.start(program); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = n.daemon.Process.Kill()
		<-n.ended
		if t.Failed() {
			log, _ := os.ReadFile(n.log())
			t.Logf("the end of nodeskoop's log:\n%s", log[max(0, len(log)-4000):])
		}
	})
	n.watch = follow(filepath.Join(n.dir, "nodeskoop.prom"))
	t.Cleanup(n.watch.close)
	n.await("nodeskoop is connected to containerd", func() error {
		f, err := n.file()
		if err == nil && f.values[`nodeskoop_containerd_up{k8s_node="node1",k8s_namespace="hostNetwork",k8s_pod="hostNetwork"}`] != 1 {
			err = errors.New("nodeskoop_containerd_up is not 1")
		}
		return err
	})
	var err error
	if n.empty, err = n.holdings(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) log() string { return filepath.Join(n.dir, "log") }

// start runs nodeskoop in containerd's namespaces, where there is no journald.
func (n *node) start(program string) error {
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.daemon, n.ended = exec.Command(program, "run", "--config", n.config), make(chan struct{})
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := n.ctd.Do(n.daemon.Start); err != nil {
		return fmt.Errorf("start nodeskoop: %w", err)
	}
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(n.daemon, n.ended)
	return nil
}

// restart ends nodeskoop with a signal and starts it again.
func (n *node) restart(sig syscall.Signal) error {
	if err := n.daemon.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-n.ended:
	case <-time.After(time.Minute):
		return fmt.Errorf("%v did not end nodeskoop in a minute", sig)
	}
	return n.start(testkit.Nodeskoop(n.t))
}

// await waits until f returns nil, and fails the test if it does not.
func (n *node) await(what string, f func() error) {
	n.t.Helper()
	if err := n.within(f); err != nil {
		n.t.Fatalf("%s: it never came true that %s: %v", n.name, what, err)
	}
}

func (n *node) within(f func() error) (err error) {
	testkit.Within(patience, func() bool { err = f(); return err == nil })
	return err
}

// file returns the first textfile whose cycle begins from now on.
func (n *node) file() (*textfile, error) {
	now := time.Now()
	var f *textfile
	if !testkit.Within(testkit.Patience, func() bool { f = n.watch.last(now); return f != nil }) {
		return nil, fmt.Errorf("no textfile in %v", testkit.Patience)
	}
	return f, nil
}

// demand checks one demand in a situation, and reports the result in the table.
func (n *node) demand(situation, demand string, f func() (detail string, err error)) {
	n.t.Helper()
	begin := time.Now()
	detail, err := f()
	cell := "yes"
	if detail != "" {
		cell = detail
	}
	if err != nil {
		cell = "**no**"
		n.t.Errorf("%s: %s: %s: %v", n.name, situation, demand, err)
	}
	results.set(n.name, situation, demand, cell)
	n.t.Logf("%-14s %-28s %-60s %s (%.1f s)", n.name, situation, demand, cell, time.Since(begin).Seconds())
}

// eventually is demand for a condition that becomes true after a while.
func (n *node) eventually(situation, demand string, f func() error) {
	n.t.Helper()
	n.demand(situation, demand, func() (string, error) { return "", n.within(f) })
}

// steady demands that no textfile since the last call had a fault.
func (n *node) steady(situation string) {
	n.t.Helper()
	n.demand(situation, "each series once in each file; what lasts is in each, and no counter of it falls", func() (string, error) {
		faults, reads := n.watch.verdict()
		if len(faults) > 0 {
			return "", errors.New(strings.Join(faults, "\n"))
		}
		return fmt.Sprintf("yes, %d files", reads), nil
	})
}

// running lists the kubelet's running pods.
func (n *node) running() (map[podName]pods.KubeletPod, error) {
	list, err := n.kubelet.Pods()
	if err != nil {
		return nil, err
	}
	found := map[podName]pods.KubeletPod{}
	for _, p := range list {
		if p.Status.Phase == "Running" {
			found[podName{p.Metadata.Namespace, p.Metadata.Name}] = p
		}
	}
	return found, nil
}

// awaitRunning waits until the kubelet runs pods.
func (n *node) awaitRunning(wanted ...manifest) {
	n.t.Helper()
	n.await("the kubelet runs the pods", func() error {
		found, err := n.running()
		if err != nil {
			return err
		}
		for _, m := range wanted {
			if _, ok := found[m.podName()]; !ok {
				return fmt.Errorf("%v does not run", m.podName())
			}
		}
		return nil
	})
}

func (n *node) put(m manifest) {
	n.t.Helper()
	if err := n.kubelet.Put(fileOf(m), m.object()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(m manifest) {
	n.t.Helper()
	if err := n.kubelet.Remove(fileOf(m)); err != nil {
		n.t.Fatal(err)
	}
}

// fileOf returns a short name, since file names are limited to 255 bytes.
func fileOf(m manifest) string { return m.namespace + "_" + m.name[:min(len(m.name), 40)] }

// row is a pod as nodeskoop lists it.
type row struct {
	Namespace, Pod string
	HostNetwork    bool `json:"host_network"`
	Netns          uint64
	Addresses      []netip.Addr
	Processes      []int
}

func (r row) name() podName { return podName{r.Namespace, r.Pod} }

// listed returns the output of `nodeskoop pods`. A duplicate pod is an error.
func (n *node) listed() (map[podName]row, error) {
	cmd := exec.Command(testkit.Nodeskoop(n.t), "pods", "--json", "--config", n.config)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.ctd.Do(cmd.Start); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("nodeskoop pods: %w: %s", err, errs.Bytes())
	}
	var rows []row
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
		return nil, err
	}
	found := map[podName]row{}
	for _, r := range rows {
		if _, ok := found[r.name()]; ok {
			return nil, fmt.Errorf("%v is listed twice", r.name())
		}
		found[r.name()] = r
	}
	return found, nil
}

// samePods demands that the textfile has exactly the kubelet's pods, and that
// `nodeskoop pods` lists each once.
func (n *node) samePods() error {
	want, err := n.running()
	if err != nil {
		return err
	}
	f, err := n.file()
	if err != nil {
		return err
	}
	rows, err := n.listed()
	if err != nil {
		return err
	}
	var wrong []string
	for p := range want {
		if f.pods[p] == 0 {
			wrong = append(wrong, fmt.Sprintf("%v has no series", p))
		}
		if _, ok := rows[p]; !ok {
			wrong = append(wrong, fmt.Sprintf("%v is not listed", p))
		}
	}
	for p := range f.pods {
		if _, ok := want[p]; !ok {
			wrong = append(wrong, fmt.Sprintf("%v has series, and the kubelet does not run it", p))
		}
	}
	for p := range rows {
		if _, ok := want[p]; !ok {
			wrong = append(wrong, fmt.Sprintf("%v is listed, and the kubelet does not run it", p))
		}
	}
	slices.Sort(wrong)
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// cgroup is the folder of a pod's control group.
func (n *node) cgroup(p pods.KubeletPod) (found string, err error) {
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		err := filepath.WalkDir(filepath.Join(root, n.ctd.Cgroup), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "pod"+p.Metadata.UID {
				found = path
				return fs.SkipAll
			}
			return nil
		})
		if err == nil && found != "" {
			return found, nil
		}
	}
	return "", fmt.Errorf("the pod %s/%s has no control group", p.Metadata.Namespace, p.Metadata.Name)
}

// processes lists the processes of a pod's control group.
func (n *node) processes(p pods.KubeletPod) (pids []int, err error) {
	dir, err := n.cgroup(p)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return err
	})
	slices.Sort(pids)
	return pids, err
}

// usage is the kernel's account of a pod's processes.
type usage struct{ files, reads, writes float64 }

func (n *node) usage(p pods.KubeletPod) (u usage, pids []int, err error) {
	pids, err = n.processes(p)
	if err != nil {
		return u, nil, err
	}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			return u, nil, err
		}
		u.files += float64(len(fds))
		text, err := os.ReadFile(dir + "/io")
		if err != nil {
			return u, nil, err
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			v, _ := strconv.ParseFloat(value, 64)
			switch name {
			case "syscr":
				u.reads += v
			case "syscw":
				u.writes += v
			}
		}
	}
	return u, pids, nil
}

// owned demands that the processes, descriptors and I/O of pods are those of their
// control groups, and that namespaces and addresses are those of their processes.
//
// I/O of ended processes is the pod's, too: that of init containers, and that of runc,
// which the shim runs for each container. runc starts a container as a process of the
// host, which then moves into the group. If nodeskoop saw that process before the move,
// its earlier calls are the host's.
func (n *node) owned(wanted ...manifest) error {
	rows, err := n.listed()
	if err != nil {
		return err
	}
	kubelet, err := n.running()
	if err != nil {
		return err
	}
	f, err := n.file()
	if err != nil {
		return err
	}
	for _, m := range wanted {
		p := m.podName()
		before, pids, err := n.usage(kubelet[p])
		if err != nil {
			return err
		}
		r := rows[p]
		if !slices.Equal(pids, r.Processes) {
			return fmt.Errorf("%v: nodeskoop lists the processes %v, the control group has %v", p, r.Processes, pids)
		}
		for _, c := range []struct {
			metric    string
			want, off float64
		}{
			{"kubeskoop_fdopenfd", before.files, 0},
			{"kubeskoop_io_ioreadsyscall", before.reads, runcReads},
			{"kubeskoop_io_iowritesyscall", before.writes + m.ended, runcWrites},
		} {
			v, ok := f.value(c.metric, p)
			if !ok || math.Abs(v-c.want) > c.off {
				return fmt.Errorf("%v: %s is %v, the processes of the control group have %v", p, c.metric, v, c.want)
			}
		}
		if r.HostNetwork {
			continue
		}
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pids[0]))
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("net:[%d]", r.Netns); link != want {
			return fmt.Errorf("%v: nodeskoop says %s, its first process is in %s", p, want, link)
		}
		n.spaces[link] = true
		out, err := exec.Command("nsenter", "-t", strconv.Itoa(pids[0]), "-n", "ip", "-o", "addr", "show", "dev", "eth0").Output()
		if err != nil {
			return fmt.Errorf("list the addresses of %v: %w", p, err)
		}
		if len(r.Addresses) != 2 {
			return fmt.Errorf("%v has the addresses %v, not one of IPv4 and one of IPv6", p, r.Addresses)
		}
		for _, a := range r.Addresses {
			if !strings.Contains(string(out), " "+a.String()+"/") {
				return fmt.Errorf("%v: nodeskoop says %v, its interface has %s", p, a, out)
			}
		}
	}
	return nil
}

// The maximum I/O of runc's processes while they start a pod. Their writes are fewer
// than the known writes of a container.
const (
	runcReads  = 3000
	runcWrites = known - 50
)

// pause returns the process of a pod's sandbox.
func (n *node) pause(p podName) (int, error) {
	kubelet, err := n.running()
	if err != nil {
		return 0, err
	}
	pids, err := n.processes(kubelet[p])
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.HasPrefix(line, []byte("/bin/sleep\x002147483647")) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%v has no sandbox among its processes %v", p, pids)
}

// in returns a command in the network namespace of a pod.
func (n *node) in(p podName, name string, args ...string) (*exec.Cmd, error) {
	pid, err := n.pause(p)
	if err != nil {
		return nil, err
	}
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pid), "-n", name}, args...)...), nil
}

// events reads nodeskoop's events.
func (n *node) events() (all []map[string]string, err error) {
	f, err := os.Open(n.log())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e map[string]any
		if !bytes.HasPrefix(lines.Bytes(), []byte("{")) || json.Unmarshal(lines.Bytes(), &e) != nil || e["KUBESKOOP_EVENT"] == nil {
			continue
		}
		text := map[string]string{}
		for k, v := range e {
			text[k] = fmt.Sprint(v)
		}
		all = append(all, text)
	}
	return all, lines.Err()
}

// holdings are the kernel objects that nodeskoop holds.
type holdings struct {
	files, mounts int
	spaces        []string // open network namespaces
}

func (n *node) holdings() (h holdings, err error) {
	dir := fmt.Sprintf("/proc/%d", n.daemon.Process.Pid)
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return h, err
	}
	for _, fd := range fds {
		link, err := os.Readlink(dir + "/fd/" + fd.Name())
		// Skip files that are open only while they are read.
		if err != nil || strings.HasPrefix(link, "/proc/") || strings.HasPrefix(link, n.dir) && link != n.log() {
			continue
		}
		h.files++
		if strings.HasPrefix(link, "net:[") {
			h.spaces = append(h.spaces, link)
		}
	}
	mounts, err := os.ReadFile(dir + "/mountinfo")
	h.mounts = bytes.Count(mounts, []byte("\n"))
	return h, err
}

// contention returns for how long some task had to wait for a CPU since the machine
// started; 0 if the kernel does not say.
func contention() time.Duration {
	text, _ := os.ReadFile("/proc/pressure/cpu")
	_, rest, _ := strings.Cut(string(text), "total=")
	v, _, _ := strings.Cut(rest, "\n")
	us, _ := strconv.ParseInt(v, 10, 64)
	return time.Duration(us) * time.Microsecond
}
