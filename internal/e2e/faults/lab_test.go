package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nfqueue"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/pods"
)

// The addresses on the wire: the node's end, and the server's.
const (
	nodeAddress    = "192.0.2.1"
	routerAddress  = "192.0.2.254"
	outsideAddress = "198.51.100.7"
	outsideIPv6    = "2001:db8:2::7"
	// The pods' networks, as defined in package pods.
	podNetwork, podNetwork6 = "10.88.76.0/22", "fd77:88::/64"
	// The node's address, as pods see it.
	gateway = "10.88.77.1"
)

// netns is the file of a network namespace.
type netns string

// run runs a command in the namespace. A failure fails the test.
func (n netns) run(t testing.TB, format string, args ...any) string {
	t.Helper()
	out, err := n.try(format, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (n netns) try(format string, args ...any) (string, error) {
	line := fmt.Sprintf(format, args...)
	cmd := n.command(line)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return string(out), nil
}

// command returns a command that runs in the namespace.
func (n netns) command(line string) *exec.Cmd {
	return exec.Command("nsenter", "--net="+string(n), "bash", "-c", line)
}

// start runs an actor in the namespace until the test ends.
func (n netns) start(t testing.TB, program string, args ...string) {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + string(n), program, actorVerb}, args...)...)
	cmd.Env = append(os.Environ(), heldVariable+"=1")
	hold(t, cmd)
}

// every runs a command repeatedly until the test ends.
func (n netns) every(t testing.TB, seconds float64, line string) {
	t.Helper()
	// read returns a status above 128 at its timeout, and 1 at the end of its
	// input, which is the end of the test.
	hold(t, n.command(fmt.Sprintf("while read -t %v -r; [ $? -gt 128 ]; do %s; done", seconds, line)))
}

// hold starts a program whose input is closed when this process ends, in whatever
// way.
func hold(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	testkit.Start(t, cmd)
}

// lab is the node, the wire and the server behind it.
type lab struct {
	c                   *pods.Containerd
	node, wire, outside netns
	program             string // the test binary, which containers may read
	nodeskoop           string
	env                 []string
	watch               time.Duration // how long diagnose observes
	proofOnly           bool
	compare             bool // compare with the output of bpftrace
}

func newLab(t *testing.T) *lab {
	need.Root(t)
	need.Program(t, "nft", "iptables", "ip6tables", "tc", "ip", "ss", "nstat", "conntrack", "ethtool", "nsenter", "bash")
	dir, err := os.MkdirTemp("", "faults-")
	if err != nil {
		t.Fatal(err)
	}
	sweep, err := pods.Sweep(dir, fmt.Sprintf("/nodeskoop-faults-%d", os.Getpid()))
	if err != nil {
		_ = os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sweep(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{program: filepath.Join(dir, "actor"), watch: 10 * time.Second}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(l.program, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	l.nodeskoop = testkit.Nodeskoop(t)
	l.c = pods.Start(t)
	l.node = netns(l.c.Netns)
	wire, outside := nsnet.New(t), nsnet.New(t)
	l.wire, l.outside = netns(wire.Path), netns(outside.Path)
	l.connect(t, wire, outside)

	config := filepath.Join(dir, "nodeskoop.toml")
	text := fmt.Sprintf("node_name = \"node-7\"\nhost_netns = %q\n[pods]\nsockets = [%q]\n[textfile]\ndir = %q\n", l.c.Netns, l.c.Socket, dir)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	l.env = append(os.Environ(), "NODESKOOP_CONFIG="+config, "LC_ALL=C", "TZ=UTC")
	return l
}

// connect creates the wire. Its interfaces neither create nor accept large
// segments, like a physical wire.
func (l *lab) connect(t *testing.T, wire, outside *nsnet.Space) {
	l.node.run(t, "ip link add up0 type veth peer name down0 netns %d", wire.PID)
	l.wire.run(t, "ip link add out0 type veth peer name eth0 netns %d", outside.PID)
	for _, x := range []struct {
		n                 netns
		dev, addr4, addr6 string
	}{
		{l.node, "up0", nodeAddress + "/24", "2001:db8:1::1/64"},
		{l.wire, "down0", routerAddress + "/24", "2001:db8:1::fe/64"},
		{l.wire, "out0", "198.51.100.254/24", "2001:db8:2::fe/64"},
		{l.outside, "eth0", outsideAddress + "/24", outsideIPv6 + "/64"},
	} {
		x.n.run(t, "ip addr add %s dev %s; ip addr add %s dev %[2]s nodad; ethtool -K %[2]s tso off gso off gro off tx off; ip link set %[2]s up", x.addr4, x.dev, x.addr6)
	}
	for _, n := range []netns{l.node, l.wire} {
		n.run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	}
	// Late packets of an ended server to a deleted pod are no fault.
	l.outside.run(t, "sysctl -qw net.ipv4.tcp_orphan_retries=1")
	l.node.run(t, "ip route add default via %s; ip route add default via 2001:db8:1::fe", routerAddress)
	l.wire.run(t, "ip route add %s via %s; ip route add %s via 2001:db8:1::1", podNetwork, nodeAddress, podNetwork6)
	l.outside.run(t, "ip route add default via 198.51.100.254; ip route add default via 2001:db8:2::fe")
}

// scene is the part of the lab in which one fault is created. Everything in it is
// removed at the end of its test.
type scene struct {
	*lab
	testing.TB
	// id distinguishes faults that exist at the same time.
	id int
}

// port returns a port that no other scene uses outside.
func (s *scene) port() int { return 8080 + s.id }

// outsider starts an actor behind the wire. A %d in its last argument becomes the
// scene's port.
func (s *scene) outsider(actor ...string) (address string) {
	s.Helper()
	actor[len(actor)-1] = fmt.Sprintf(actor[len(actor)-1], s.port())
	s.outside.start(s, s.program, actor...)
	testkit.Eventually(s, "the server behind the wire listens", func() bool {
		out, err := s.outside.try("ss -Hlntu 'sport = :%d'", s.port())
		return err == nil && out != ""
	})
	return fmt.Sprintf("%s:%d", outsideAddress, s.port())
}

// pod creates a pod that runs an actor, or an idle pod without arguments.
func (s *scene) pod(name string, actor ...string) *pod {
	s.Helper()
	t := s.TB
	spec := pods.PodSpec{Namespace: "shop", Name: fmt.Sprintf("%s-%d", name, s.id)}
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	p, err := s.c.TryRunPod(ctx, spec)
	if p != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
			defer cancel()
			if err := p.TryRemove(ctx); err != nil {
				t.Errorf("remove the pod %s: %v", spec.Name, err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	made := &pod{p, netns("/proc/" + strconv.Itoa(p.PID) + "/ns/net"), s}
	if len(actor) > 0 {
		made.act(pods.ContainerSpec{Name: "main"}, actor...)
	}
	return made
}

// server is a pod that serves on port 8080.
func (s *scene) server(options ...string) *pod {
	s.Helper()
	return s.pod("web", append(append([]string{"serve"}, options...), ":8080")...).listens(8080)
}

// pod is a pod with its network namespace.
type pod struct {
	*pods.Pod
	netns
	s *scene
}

// act adds a container with an actor.
func (p *pod) act(spec pods.ContainerSpec, actor ...string) *pods.Container {
	p.s.Helper()
	spec.Command = append([]string{actorPath, actorVerb}, actor...)
	spec.Mounts = map[string]string{actorPath: p.s.program}
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	k, err := p.TryAddContainer(ctx, spec)
	if err != nil {
		p.s.Fatal(err)
	}
	return k
}

// listens waits until the pod has a socket on a port.
func (p *pod) listens(port int) *pod {
	p.s.Helper()
	testkit.Eventually(p.s, fmt.Sprintf("%s listens on port %d", p.Name, port), func() bool {
		out, err := p.try("ss -Hlntu 'sport = :%d'", port)
		return err == nil && out != ""
	})
	return p
}

// label is what diagnose calls the pod.
func (p *pod) label() string { return p.Namespace + "/" + p.Name }

// at returns the pod's IPv4 address with a port.
func (p *pod) at(port int) string { return netip.AddrPortFrom(p.v4(), uint16(port)).String() }

func (p *pod) v4() netip.Addr {
	for _, a := range p.Addrs {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// cgroup returns the folder of a container's control group in a hierarchy of cgroup
// v1.
func cgroup(t testing.TB, k *pods.Container, controller string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", k.PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == controller {
			return filepath.Join("/sys/fs/cgroup", controller, f[2])
		}
	}
	need.Kernel(t, false, "no controller "+controller+" of control groups, version 1")
	return ""
}

// clean removes rules and tracked connections that a fault left in namespaces that
// outlive it.
func (l *lab) clean(t testing.TB) {
	t.Helper()
	if _, err := l.node.try("conntrack -F 2>&1"); err != nil {
		t.Error(err)
	}
	for _, n := range []netns{l.node, l.wire, l.outside} {
		if _, err := n.try("nft flush ruleset"); err != nil {
			t.Error(err)
		}
	}
}

// queue passes the packets that the wire forwards and an iptables match selects to
// f.
func (s *scene) queue(match string, f func(*nfqueue.Queue, nfqueue.Packet)) {
	s.Helper()
	t, n, number := s.TB, s.wire, uint16(1+s.id)
	var q *nfqueue.Queue
	fd, err := unix.Open(string(n), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if e := kernel.InNetnsFD(fd, func() error { q, err = nfqueue.Open(number, true); return nil }); errors.Join(e, err) != nil {
		t.Fatal(errors.Join(e, err))
	}
	rule := fmt.Sprintf("FORWARD %s -j NFQUEUE --queue-num %d", match, number)
	n.run(t, "iptables -w -t mangle -A %s", rule)
	t.Cleanup(func() {
		if _, err := n.try("iptables -w -t mangle -D %s", rule); err != nil {
			t.Error(err)
		}
		_ = q.Close()
	})
	go func() { _ = q.Serve(func(p nfqueue.Packet) { f(q, p) }) }()
}

// finding is one finding of diagnose.
type finding struct {
	Cause    string  `json:"cause"`
	Title    string  `json:"title"`
	Pod      string  `json:"pod"`
	Blame    string  `json:"blame"`
	Score    float64 `json:"score"`
	Evidence []struct {
		Text   string  `json:"text"`
		Source string  `json:"source"`
		Value  float64 `json:"value"`
	} `json:"evidence"`
	Next []string `json:"next"`
}

// diagnosis is the output of diagnose.
type diagnosis struct {
	Pods      int       `json:"pods"`
	Seconds   float64   `json:"seconds"`
	Findings  []finding `json:"findings"`
	NotLooked []struct {
		What string `json:"what"`
		Why  string `json:"why"`
	} `json:"not_looked"`
}

// diagnose runs the command on the node.
func (l *lab) diagnose(t testing.TB) diagnosis {
	t.Helper()
	var out, errs testkit.Log
	cmd := exec.Command(l.nodeskoop, "diagnose", "--json", "--for", l.watch.String())
	cmd.Env, cmd.Stdout, cmd.Stderr = l.env, &out, &errs
	var p *testkit.Process
	if err := l.c.Do(func() (err error) { p, err = testkit.TryStart(t, cmd); return err }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(l.watch + 2*testkit.Patience):
		t.Fatalf("nodeskoop diagnose does not end:\n%s%s", &out, &errs)
	}
	if !p.ProcessState.Success() {
		t.Fatalf("nodeskoop diagnose: %v\n%s", p.ProcessState, &errs)
	}
	var d diagnosis
	if err := json.Unmarshal([]byte(out.String()), &d); err != nil {
		t.Fatalf("nodeskoop diagnose --json: %v\n%s%s", err, &out, &errs)
	}
	return d
}
