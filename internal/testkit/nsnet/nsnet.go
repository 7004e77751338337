// Package nsnet creates network namespaces for tests, each held by a process, and
// samples probes in them through a Runner.
package nsnet

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/proof"
)

// Space is a network namespace with lo up and one process. It ends with the test.
type Space struct {
	// PID is the process that holds the namespace: a cat that reads its standard input.
	PID   int
	Inode uint64
	// Path is the path of the namespace, such as /proc/PID/ns/net.
	Path string

	t  testing.TB
	fd int
}

// New makes a Space. It skips the test unless it runs as root.
func New(t testing.TB) *Space {
	t.Helper()
	need.Root(t)
	need.Program(t, "ip", "cat")
	s := Make(t)
	s.Run("ip", "link", "set", "lo", "up")
	return s
}

// Make is New without the checks and with lo down, for benchmarks with hundreds of
// namespaces.
func Make(t testing.TB) *Space {
	t.Helper()
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	s := &Space{t: t, PID: testkit.Hold(t, cmd).PID()}
	s.Path = "/proc/" + strconv.Itoa(s.PID) + "/ns/net"
	var err error
	if s.fd, err = unix.Open(s.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatalf("open %s: %v", s.Path, err)
	}
	if s.Inode, err = kernel.FileInode(s.fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// Do runs f on another thread, in the namespace: f must not call t.Fatal.
func (s *Space) Do(f func()) {
	s.t.Helper()
	if err := kernel.InNetnsFD(s.fd, func() error { f(); return nil }); err != nil {
		s.t.Fatalf("in the network namespace of process %d: %v", s.PID, err)
	}
}

// Run runs a program in the namespace and returns its output.
func (s *Space) Run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.Try(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try runs a program in the namespace; it may fail.
func (s *Space) Try(name string, args ...string) (out string, err error) {
	s.Do(func() {
		var b []byte
		b, err = exec.Command(name, args...).CombinedOutput()
		out = string(b)
	})
	return out, err
}

// Start starts a program in the namespace; it is killed at the end of the test.
func (s *Space) Start(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	var err error
	s.Do(func() { err = cmd.Start() })
	if err != nil {
		s.t.Fatalf("start %s: %v", name, err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// Sysctl sets a sysctl of the namespace, such as "net/ipv4/ip_forward".
func (s *Space) Sysctl(name, value string) {
	s.t.Helper()
	var err error
	s.Do(func() { err = os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
	if err != nil {
		s.t.Fatal(err)
	}
}

// File reads a file on a thread in the namespace, such as "/proc/net/tcp".
func (s *Space) File(path string) string {
	s.t.Helper()
	var b []byte
	var err error
	// /proc/net shows the main thread's namespace.
	s.Do(func() { b, err = os.ReadFile(strings.Replace(path, "/proc/net/", "/proc/thread-self/net/", 1)) })
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// Listen is net.Listen in the namespace.
func (s *Space) Listen(network, addr string) net.Listener {
	s.t.Helper()
	var l net.Listener
	var err error
	s.Do(func() { l, err = net.Listen(network, addr) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = l.Close() })
	return l
}

// Packets is net.ListenPacket in the namespace.
func (s *Space) Packets(network, addr string) net.PacketConn {
	s.t.Helper()
	var c net.PacketConn
	var err error
	s.Do(func() { c, err = net.ListenPacket(network, addr) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial is net.Dial in the namespace.
func (s *Space) Dial(network, addr string) net.Conn {
	s.t.Helper()
	var c net.Conn
	var err error
	s.Do(func() { c, err = net.Dial(network, addr) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Connect joins two namespaces by a veth, eth0 in both, with the addresses 10.0.0.1 and .2,
// fd00::1 and ::2.
func Connect(a, b *Space, options ...string) {
	a.t.Helper()
	args := append([]string{"link", "add", "eth0"}, options...)
	args = append(args, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(b.PID))
	a.Run("ip", args...)
	for i, s := range []*Space{a, b} {
		n := strconv.Itoa(i + 1)
		s.Run("ip", "addr", "add", "10.0.0."+n+"/24", "dev", "eth0")
		s.Run("ip", "addr", "add", "fd00::"+n+"/64", "dev", "eth0", "nodad")
		s.Run("ip", "link", "set", "eth0", "up")
	}
}

// AwaitUp waits until an interface that was set up passes packets; before that the kernel
// drops them.
func (s *Space) AwaitUp(dev string) {
	s.t.Helper()
	testkit.Eventually(s.t, dev+" is up", func() bool {
		return strings.Contains(s.Run("ip", "-o", "link", "show", "dev", dev), " state UP ")
	})
}

// Pod returns a pod that consists of the namespace and its process.
func (s *Space) Pod(name string) *owner.Pod {
	return &owner.Pod{ID: name, Namespace: "test", Name: name, Netns: s.Inode, PIDs: []int{s.PID}}
}

// Pods is an owner.Pods of pods made by a test. A pod's processes are its PIDs and those
// from Children.
type Pods struct {
	List     []*owner.Pod
	Children func(*owner.Pod) []int
}

// Running returns List.
func (p *Pods) Running() []*owner.Pod { return p.List }

// ByNetns finds a pod by its network namespace, at any time.
func (p *Pods) ByNetns(inode uint64, _ time.Time) *owner.Pod {
	for _, x := range p.List {
		if x.Netns == inode {
			return x
		}
	}
	return nil
}

// ByAddr finds a pod by an address.
func (p *Pods) ByAddr(a netip.Addr) *owner.Pod {
	for _, x := range p.List {
		for _, b := range x.Addrs {
			if a == b {
				return x
			}
		}
	}
	return nil
}

// ByPID returns nil.
func (*Pods) ByPID(int) *owner.Pod { return nil }

// ByCgroup returns nil.
func (*Pods) ByCgroup(uint64) *owner.Pod { return nil }

// Processes appends the pod's processes.
func (p *Pods) Processes(x *owner.Pod, buf []int) ([]int, error) {
	if buf = append(buf, x.PIDs...); p.Children != nil {
		buf = append(buf, p.Children(x)...)
	}
	return buf, nil
}

// Connected returns true.
func (*Pods) Connected() bool { return true }

// Host is the name of the host in Values.
const Host = "host"

// Values are the values of one cycle, by pod name (or Host) and metric.
type Values map[string]map[string]float64

// Sampler samples probes through a Runner.
type Sampler struct {
	t         testing.TB
	r         *collect.Runner
	opt       collect.Options
	factories []collect.Factory
}

// NewSampler makes a Sampler of the probes that opt enables. The host's network namespace
// is the test's own unless opt names another.
func NewSampler(t testing.TB, opt collect.Options, factories ...collect.Factory) *Sampler {
	t.Helper()
	opt.Node, opt.HostLabel = "node", Host
	if opt.HostNetns == "" {
		opt.HostNetns = "/proc/self/ns/net" // process 1 may be hidden
	}
	r, err := collect.NewRunner(opt, factories...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	if err := r.Keep(); err != nil {
		t.Fatal(err)
	}
	return &Sampler{t, r, opt, factories}
}

// Again returns a Sampler of a later run that continues from this one's saved state, as
// after a kill.
func (s *Sampler) Again() *Sampler {
	s.t.Helper()
	kept, cut := s.r.Kept()
	if cut > 0 {
		s.t.Errorf("no room for %d targets", cut)
	}
	kept = slices.Clone(kept)
	next := NewSampler(s.t, s.opt, s.factories...)
	if err := next.r.Recall(kept); err != nil {
		s.t.Fatal(err)
	}
	return next
}

// Sample runs one cycle. A failing probe fails the test, unless it failed on the machine's
// own processes, which do not belong to the test.
func (s *Sampler) Sample() Values {
	s.t.Helper()
	v, errs := s.Try()
	for name, err := range errs {
		if strings.HasPrefix(err.Error(), "processes outside pods: ") {
			continue
		}
		s.t.Errorf("probe %s: %v", name, err)
	}
	return v
}

// Try runs one cycle and returns the failures by probe.
func (s *Sampler) Try() (Values, map[string]error) {
	v := Values{}
	for _, f := range s.r.Cycle() {
		for _, m := range f.GetMetric() {
			if strings.HasPrefix(f.GetName(), "nodeskoop_") {
				continue
			}
			pod := ""
			for _, l := range m.GetLabel() {
				if l.GetName() == owner.LabelPod {
					pod = l.GetValue()
				}
			}
			if v[pod] == nil {
				v[pod] = map[string]float64{}
			}
			if _, twice := v[pod][f.GetName()]; twice {
				s.t.Errorf("%s of %s is there twice", f.GetName(), pod)
			}
			v[pod][f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	errs := map[string]error{}
	for _, p := range s.r.Status() {
		if p.Err != nil {
			errs[p.Name] = p.Err
		}
	}
	return v, errs
}

// Cycle runs one cycle without returning its values, for benchmarks.
func (s *Sampler) Cycle() { s.r.Cycle() }

// Want fails the test for each metric without the wanted value.
func (v Values) Want(t testing.TB, pod string, want map[string]float64) {
	t.Helper()
	for name, w := range want {
		got, ok := v[pod][name]
		switch {
		case !ok:
			t.Errorf("%s of %s is missing", name, pod)
		case got != w:
			t.Errorf("%s of %s = %v, want %v", name, pod, got, w)
		}
	}
}

// Prove is Want that also records each comparison: the probe, its source, and the origin of
// the wanted values.
func (v Values) Prove(t testing.TB, probe, source, by, pod string, want map[string]float64) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		got, ok := v[pod][name]
		if !ok {
			t.Errorf("%s of %s is missing", name, pod)
			continue
		}
		proof.Count(t, probe, source, name+" of "+pod+", by "+by, uint64(want[name]), uint64(got))
	}
}

// String lists the values, for messages.
func (v Values) String() string { return fmt.Sprint(map[string]map[string]float64(v)) }
