package nodes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// binaries are folders of programs, by name.
type binaries map[string]string

func readBinaries(text string) (b binaries, err error) {
	b = binaries{}
	for _, f := range strings.Fields(text) {
		name, dir, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("NODESKOOP_NODES_BINARIES: %q is not NAME=FOLDER", f)
		}
		b[name] = dir
	}
	if b["kubelet"] == "" {
		return nil, errors.New("NODESKOOP_NODES_BINARIES names no kubelet; internal/e2e/nodes/binaries prints its value")
	}
	return b, nil
}

// TestNodes runs all situations on a node with each containerd, from the oldest to the
// newest.
func TestNodes(t *testing.T) {
	which := os.Getenv("NODESKOOP_NODES")
	need.Target(t, "test-nodes", which != "")
	need.Root(t)
	need.Program(t, "nsenter", "ip", "busybox", "iptables")
	b, err := readBinaries(os.Getenv("NODESKOOP_NODES_BINARIES"))
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(b))
	names = slices.DeleteFunc(names, func(n string) bool { return n == "kubelet" })
	slices.SortFunc(names, func(x, y string) int { // "containerd-2" is the newest
		return strings.Compare(strings.TrimPrefix(x, "containerd-"), strings.TrimPrefix(y, "containerd-"))
	})
	for i, name := range names {
		next := ""
		if i+1 < len(names) {
			next = b[names[i+1]]
		}
		t.Run(name, func(t *testing.T) {
			n := newNode(t, name, b)
			t.Logf("containerd %s, nodeskoop holds %+v before the first pod", n.ctd.Version, n.empty)
			n.shapes()
			n.again()
			n.pauseless()
			n.ends()
			count := 60
			if which == "short" {
				count = 20
			}
			n.churn(count)
			n.restarts(next)
			n.empties()
		})
	}
	t.Logf("what was found:\n%s", &results)
	if err := results.write(); err != nil {
		t.Error(err)
	}
}

// quiet lists the shapes that start no further processes while they run.
var quiet = []string{
	"plain", "two containers", "init containers", "native sidecar", "hostNetwork", "hostPID", "shareProcessNamespace",
	"guaranteed", "burstable", "best effort", "privileged", "not root", "long dotted name", "hostPort",
}

// shapes runs a pod of each shape.
func (n *node) shapes() {
	situation := fmt.Sprintf("%d shapes of pods", len(shapes))
	for _, m := range shapes {
		n.put(m)
	}
	n.put(server)
	n.put(client)
	var lasting []manifest
	for name, m := range shapes {
		if name != "completed" {
			lasting = append(lasting, m)
		}
	}
	n.awaitRunning(append(lasting, server, client)...)
	n.await("the completed pod is over", func() error {
		found, err := n.running()
		if _, ok := found[shapes["completed"].podName()]; ok {
			return errors.New("it runs")
		}
		return err
	})
	n.eventually(situation, "the same pods as the kubelet's, each once", n.samePods)
	for _, name := range quiet {
		n.eventually(name, "processes, files, I/O, namespace and addresses are the control group's", func() error {
			return n.owned(shapes[name])
		})
	}
	n.demand("crash loop", fmt.Sprintf("the %d writes of each run are counted", known), func() (string, error) {
		p := shapes["crash loop"].podName()
		var runs int
		err := n.within(func() error {
			found, err := n.running()
			if err != nil {
				return err
			}
			for _, c := range found[p].Status.ContainerStatuses {
				if c.Name == "bad" {
					runs = c.RestartCount
				}
			}
			if runs < 2 {
				return fmt.Errorf("it was restarted %d times only", runs)
			}
			f, err := n.file()
			if err != nil {
				return err
			}
			if v, _ := f.value("kubeskoop_io_iowritesyscall", p); v < float64(runs*known) {
				return fmt.Errorf("%v writes are counted in %d runs", v, runs)
			}
			return nil
		})
		return fmt.Sprintf("yes, %d runs", runs), err
	})
	n.demand("exec probes", "files are the control group's", func() (string, error) {
		return "", n.within(func() error {
			found, err := n.running()
			if err != nil {
				return err
			}
			p := shapes["exec probes"].podName()
			u, _, err := n.usage(found[p])
			if err != nil {
				return err // a process of the exec probe ended meanwhile
			}
			f, err := n.file()
			if v, ok := f.value("kubeskoop_fdopenfd", p); err == nil && (!ok || v != u.files) {
				err = fmt.Errorf("%v files, %v in the control group", v, u.files)
			}
			return err
		})
	})
	n.watch.holds(n.lasting()...)
	n.steady(situation)
}

// lasting are pods that are left alone.
func (n *node) lasting() (last []podName) {
	for _, name := range append([]string{"crash loop", "exec probes"}, quiet...) {
		last = append(last, shapes[name].podName())
	}
	return append(last, server.podName(), client.podName())
}

// again deletes a static pod and creates it with the same name and UID.
func (n *node) again() {
	const situation = "deleted and remade"
	m := shapes[situation]
	found, err := n.running()
	if err != nil {
		n.t.Fatal(err)
	}
	uid := found[m.podName()].Metadata.UID
	n.remove(m)
	n.eventually(situation, "the series of the deleted pod are gone", func() error {
		f, err := n.file()
		if err == nil && f.pods[m.podName()] != 0 {
			err = errors.New("it has series")
		}
		return err
	})
	n.put(m)
	n.awaitRunning(m)
	n.eventually(situation, "its successor of the same name and UID has what is its own", func() error {
		found, err := n.running()
		if err == nil && found[m.podName()].Metadata.UID != uid {
			err = fmt.Errorf("the UID is %s, it was %s", found[m.podName()].Metadata.UID, uid)
		}
		if err != nil {
			return err
		}
		return n.owned(m)
	})
	n.eventually(situation, "the same pods as the kubelet's, each once", n.samePods)
}

// pauseless kills the process of a sandbox, after which the kubelet replaces the whole
// pod.
func (n *node) pauseless() {
	const situation = "pause process killed"
	m := shapes[situation]
	p := m.podName()
	before, err := n.pause(p)
	if err == nil {
		err = unix.Kill(before, unix.SIGKILL)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.await("the kubelet replaces the sandbox", func() error {
		now, err := n.pause(p)
		if err == nil && now == before {
			err = errors.New("it is the same")
		}
		return err
	})
	n.eventually(situation, "the pod has what is its new sandbox's", func() error { return n.owned(m) })
	n.eventually(situation, "the same pods as the kubelet's, each once", n.samePods)
	n.steady(situation)
}

// ends demands that an event names the pods at both ends of a connection to a closed
// port.
func (n *node) ends() {
	const situation = "refused connection between pods"
	n.demand(situation, "the event of each end has both pods", func() (string, error) {
		var rows map[podName]row
		if err := n.within(func() (err error) { rows, err = n.listed(); return err }); err != nil {
			return "", err
		}
		for _, to := range rows[server.podName()].Addresses {
			cmd, err := n.in(client.podName(), "busybox", "nc", "-w", "2", to.String(), "81")
			if err != nil {
				return "", err
			}
			_ = cmd.Run() // the connection is refused
			for _, want := range []map[string]string{
				{"KUBESKOOP_EVENT": "TCPRESET_NOSOCK", "K8S_NAMESPACE": server.namespace, "K8S_POD": server.podName()[1],
					"KUBESKOOP_SRC_POD": server.podName()[1], "KUBESKOOP_DST_POD": client.podName()[1], "KUBESKOOP_SADDR": to.String(), "KUBESKOOP_SPORT": "81"},
				{"KUBESKOOP_EVENT": "TCPRESET_RECEIVE", "K8S_NAMESPACE": client.namespace, "K8S_POD": client.podName()[1],
					"KUBESKOOP_SRC_POD": client.podName()[1], "KUBESKOOP_DST_POD": server.podName()[1], "KUBESKOOP_DADDR": to.String(), "KUBESKOOP_DPORT": "81"},
			} {
				var near []map[string]string
				if err := n.within(func() error {
					near = nil
					all, err := n.events()
					if err != nil {
						return err
					}
					for _, e := range all {
						if e["KUBESKOOP_EVENT"] != want["KUBESKOOP_EVENT"] {
							continue
						}
						near = append(near, e)
						if contains(e, want) {
							return nil
						}
					}
					return fmt.Errorf("no event %v among %v", want, near)
				}); err != nil {
					return "", err
				}
			}
		}
		return "yes, IPv4 and IPv6", nil
	})
}

func contains(all, part map[string]string) bool {
	for k, v := range part {
		if all[k] != v {
			return false
		}
	}
	return true
}

// The time limits for nodeskoop to notice the start and the end of a pod. Time in which
// some task of the machine had to wait for a CPU is added to them, up to busyLimit, so
// that a busy machine does not fail the test.
const (
	startLimit = time.Second
	endLimit   = 2 * time.Second
	busyLimit  = 10 * time.Second
)

// churn creates and removes pods.
func (n *node) churn(count int) {
	situation := fmt.Sprintf("%d pods come and go", count)
	boxes, err := watchSandboxes(n.ctd.Socket)
	if err != nil {
		n.t.Fatal(err)
	}
	defer boxes.close()
	var all []manifest
	for i := range count {
		all = append(all, pod("churn", fmt.Sprintf("pod-%03d", i), nil))
	}
	begin := time.Now()
	for _, m := range all {
		n.put(m)
	}
	n.awaitRunning(all...)
	n.eventually(situation, "the same pods as the kubelet's, each once", n.samePods)
	n.t.Logf("%s: %d pods run after %v", n.name, count, time.Since(begin).Round(time.Second))
	for _, m := range all {
		n.remove(m)
	}
	n.await("the pods are gone", func() error {
		f, err := n.file()
		if err != nil {
			return err
		}
		ended := 0
		for _, b := range boxes.of("churn") {
			if !b.ended.IsZero() {
				ended++
			}
		}
		left := 0
		for p := range f.pods {
			if p[0] == "churn" {
				left++
			}
		}
		if left > 0 || ended < count {
			return fmt.Errorf("%d have series, %d of %d sandboxes have ended", left, ended, count)
		}
		return nil
	})
	known := boxes.of("churn")
	n.demand(situation, "series from a second after the sandbox's start", func() (string, error) {
		if len(known) < count {
			return "", fmt.Errorf("containerd told of %d sandboxes", len(known))
		}
		var seen []time.Duration
		var late []string
		for _, b := range known {
			first := time.Time{}
			for _, f := range n.watch.cycles(b.started, b.ended) {
				if f.pods[b.pod] > 0 {
					first = f.read
					break
				}
				if passed := f.begin.Sub(b.started); passed > startLimit && passed-f.waited(b.load) > startLimit || passed > busyLimit {
					late = append(late, fmt.Sprintf("%v is missing %v after its sandbox's start", b.pod, passed))
				}
			}
			if first.IsZero() {
				late = append(late, fmt.Sprintf("%v had no series", b.pod))
				continue
			}
			seen = append(seen, first.Sub(b.started))
		}
		return n.delays(seen, late)
	})
	n.demand(situation, "none from two seconds after its end", func() (string, error) {
		var seen []time.Duration
		var late []string
		for _, b := range known {
			last := b.ended
			for _, f := range n.watch.cycles(b.ended, time.Now()) {
				if f.pods[b.pod] == 0 {
					break
				}
				last = f.read
				if passed := f.begin.Sub(b.ended); passed > endLimit && passed-f.waited(b.loadEnd) > endLimit || passed > busyLimit {
					late = append(late, fmt.Sprintf("%v is there %v after its end", b.pod, passed))
				}
			}
			seen = append(seen, last.Sub(b.ended))
		}
		return n.delays(seen, late)
	})
	n.steady(situation)
}

func (n *node) delays(seen []time.Duration, late []string) (string, error) {
	if len(late) > 0 {
		return "", errors.New(strings.Join(late, "\n"))
	}
	slices.Sort(seen)
	round := func(d time.Duration) float64 { return d.Seconds() }
	return fmt.Sprintf("yes; median %.1f s, last %.1f s", round(seen[len(seen)/2]), round(seen[len(seen)-1])), nil
}

// restarts restarts containerd, the kubelet and nodeskoop while pods exchange traffic,
// start and end.
func (n *node) restarts(next string) {
	var from int
	var to netip.Addr
	n.await("the pods that talk are listed", func() error {
		rows, err := n.listed()
		if err != nil {
			return err
		}
		to = rows[server.podName()].Addresses[0]
		from, err = n.pause(client.podName())
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { talk(ctx, from, to.String()) })
	wg.Go(func() { n.come(ctx) })
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	defer stop()
	for _, r := range []struct {
		situation string
		f         func() error
	}{
		{"kubelet restarted", func() error { return n.kubeletAgain(syscall.SIGTERM) }},
		{"kubelet killed", func() error { return n.kubeletAgain(syscall.SIGKILL) }},
		{"containerd restarted", func() error { n.ctd.Stop(); return n.ctd.TryRun() }},
		{"containerd killed", func() error { n.ctd.Kill(); return n.ctd.TryRun() }},
		{"containerd upgraded", func() error {
			if next == "" {
				return nil
			}
			n.ctd.Stop()
			if err := use(next); err != nil {
				return err
			}
			return n.ctd.TryRun()
		}},
		{"nodeskoop restarted", func() error { return n.restart(syscall.SIGTERM) }},
		{"nodeskoop killed", func() error { return n.restart(syscall.SIGKILL) }},
	} {
		if r.situation == "containerd upgraded" && next == "" {
			continue
		}
		if err := r.f(); err != nil {
			n.t.Fatalf("%s: %s: %v", n.name, r.situation, err)
		}
		n.await("nodeskoop is connected to containerd", func() error {
			f, err := n.file()
			if err == nil && f.values[`nodeskoop_containerd_up{k8s_node="node1",k8s_namespace="hostNetwork",k8s_pod="hostNetwork"}`] != 1 {
				err = errors.New("nodeskoop_containerd_up is not 1")
			}
			return err
		})
		n.eventually(r.situation+" under load", "what lasts has what is its own", func() error {
			return n.owned(shapes["plain"], shapes["two containers"], shapes["hostNetwork"])
		})
		n.steady(r.situation + " under load")
	}
	stop()
	n.eventually("after the restarts", "the same pods as the kubelet's, each once", n.samePods)
}

func (n *node) kubeletAgain(sig syscall.Signal) error {
	if err := n.kubelet.End(sig); err != nil {
		return err
	}
	return n.kubelet.TryRun()
}

// talk makes a pod, given by its process, send a request to another.
func talk(ctx context.Context, from int, to string) {
	for ctx.Err() == nil {
		_ = exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(from), "-n", "busybox", "wget", "-q", "-O", "/dev/null", "http://"+to+"/").Run()
		time.Sleep(20 * time.Millisecond)
	}
}

// come creates and removes pods, several at a time.
func (n *node) come(ctx context.Context) {
	const most = 4
	var there []manifest
	for i := 0; ctx.Err() == nil; i++ {
		m := pod("load", fmt.Sprintf("pod-%d", i), nil)
		if err := n.kubelet.Put(fileOf(m), m.object()); err != nil {
			n.t.Error(err)
			return
		}
		there = append(there, m)
		if len(there) > most {
			if err := n.kubelet.Remove(fileOf(there[0])); err != nil {
				n.t.Error(err)
				return
			}
			there = there[1:]
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
	for _, m := range there {
		if err := n.kubelet.Remove(fileOf(m)); err != nil {
			n.t.Error(err)
		}
	}
}

// empties removes all pods, and demands that nothing of them is left.
func (n *node) empties() {
	const situation = "all pods removed"
	n.watch.releases()
	for name := range shapes {
		n.remove(shapes[name])
	}
	n.remove(server)
	n.remove(client)
	n.eventually(situation, "no pod has series, and none is listed", func() error {
		f, err := n.file()
		if err != nil {
			return err
		}
		rows, err := n.listed()
		if err == nil && (len(f.pods) > 0 || len(rows) > 0) {
			err = fmt.Errorf("series of %v, listed are %v", f.names(), slices.Collect(maps.Keys(rows)))
		}
		return err
	})
	n.eventually(situation, "nodeskoop has as many files and mounts as before, and no namespace of a pod", func() error {
		now, err := n.holdings()
		if err != nil {
			return err
		}
		for _, s := range now.spaces {
			if n.spaces[s] {
				return fmt.Errorf("it has %s open", s)
			}
		}
		if now.files > n.empty.files || now.mounts > n.empty.mounts {
			return fmt.Errorf("it has %d files and %d mounts, it had %d and %d", now.files, now.mounts, n.empty.files, n.empty.mounts)
		}
		return nil
	})
	n.eventually(situation, "no veth and no named namespace is left on the node", func() error {
		return n.ctd.Do(func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, l := range links {
				if name := l.Attrs().Name; !slices.Contains([]string{"lo", "eth0", "ext0", "cni0"}, name) {
					return fmt.Errorf("%s is left", name)
				}
			}
			named, err := os.ReadDir("/run/netns")
			if err == nil && len(named) > 0 {
				err = fmt.Errorf("%d namespaces are left", len(named))
			}
			return err
		})
	})
	n.steady(situation)
}
