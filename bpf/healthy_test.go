package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestHealthy causes the traffic of a healthy network, one kind at a time. No
// packet is lost, so packetloss must count none and send no event, in the
// namespaces of the traffic and in the unattributed one.
func TestHealthy(t *testing.T) {
	l := newTestLoader(t, Options{})
	p := l.load("packetloss", Config{})
	for _, group := range healthyGroups {
		t.Run(group.name, func(t *testing.T) {
			h := &healthy{l: l}
			h.a, h.b = newPair(t)
			for _, c := range group.cases {
				t.Run(c.name, func(t *testing.T) { h.check(t, p, c) })
			}
		})
	}
}

var healthyGroups = []struct {
	name  string
	cases []healthyCase
}{
	{"tcp", healthyTCP},
	{"wire", healthyWire},
	{"datagram", healthyDatagram},
	{"link", healthyLink},
	{"local", healthyLocal},
}

// healthyCase is one kind of traffic.
type healthyCase struct {
	name string
	run  func(t *testing.T, h *healthy)
	// moves lists trouble counters that rise without a loss, such as TCP's error
	// counter for a repeated SYN.
	moves []string
}

// healthy is the environment of a case: a pair of namespaces that the cases of a
// group share, and the namespaces that the case created.
type healthy struct {
	t     testing.TB // the case's test, which ends after that of its traffic
	l     *testLoader
	a, b  *namespace
	own   []*namespace
	lossy []*namespace // namespaces in which the traffic does lose packets
}

// except excludes a namespace in which the traffic loses packets.
func (h *healthy) except(n *namespace) { h.lossy = append(h.lossy, n) }

func (h *healthy) namespaces() []*namespace {
	return slices.DeleteFunc(append([]*namespace{h.a, h.b}, h.own...), func(n *namespace) bool {
		return slices.Contains(h.lossy, n)
	})
}

// check runs a case and fails it for each packet counted as lost.
//
// Two causes are not the traffic's fault. On a busy machine a queue may overflow;
// then the kernel's own counters show that the run was not healthy, and the case
// runs again. And other processes may lose packets without a namespace; those count
// only if a second run finds the same.
func (h *healthy) check(t *testing.T, p *Probe, c healthyCase) {
	var before map[lostAt]uint64
	for attempt := 1; ; attempt++ {
		h.t, h.own, h.lossy = t, nil, nil
		watch, trouble := watchLosses(h.l, p), h.trouble(t)
		if !t.Run("traffic", func(t *testing.T) { c.run(t, h) }) {
			return
		}
		rose := map[string]uint64{}
		for n, counters := range h.trouble(t) {
			for name, value := range counters {
				if value -= trouble[n][name]; value != 0 && !slices.Contains(c.moves, name) {
					rose[name] += value
				}
			}
		}
		lost, unattributed := watch.since(t, h.namespaces())
		if len(rose) > 0 {
			if attempt < 3 {
				t.Logf("again, for the traffic was not healthy: %v; lost: %v", rose, lost)
				continue
			}
			t.Errorf("the kernel's own counters of trouble rose in %d runs: %v", attempt, rose)
		}
		if before == nil && len(unattributed) > 0 && len(lost) == 0 {
			before = unattributed
			t.Logf("again, for lost packets of no namespace: %v", unattributed)
			continue
		}
		for at, n := range unattributed {
			if before[at] > 0 {
				lost[at] = n
			} else {
				t.Logf("besides, %d lost packets of no namespace: %v", n, at)
			}
		}
		watch.none(t, lost, h)
		return
	}
}

// lostAt is the location and reason of lost packets.
type lostAt struct {
	netns            uint64
	reason, location string
}

func (a lostAt) String() string { return fmt.Sprintf("%d %s %s", a.netns, a.reason, a.location) }

// lossWatch compares packetloss's counts with earlier ones.
type lossWatch struct {
	l      *testLoader
	p      *Probe
	before map[lostAt]uint64
	events int
}

func watchLosses(l *testLoader, p *Probe) *lossWatch {
	w := &lossWatch{l: l, p: p}
	w.before = w.read()
	l.mu.Lock()
	w.events = len(l.events)
	l.mu.Unlock()
	return w
}

func (w *lossWatch) read() map[lostAt]uint64 {
	reasons, err := w.l.Reasons()
	if err != nil {
		w.l.t.Fatal(err)
	}
	lost := map[lostAt]uint64{}
	if err := w.p.Drops(func(d Drop) {
		lost[lostAt{d.Netns.Inode(), reasons.Drop(d.Reason), w.l.Symbols().Location(d.Location)}] += d.Count
	}); err != nil {
		w.l.t.Fatal(err)
	}
	return lost
}

// since waits until counts are stable, and returns the losses in the namespaces,
// and separately the unattributed ones.
func (w *lossWatch) since(t *testing.T, namespaces []*namespace) (lost, unattributed map[lostAt]uint64) {
	t.Helper()
	read := func() {
		lost, unattributed = map[lostAt]uint64{}, map[lostAt]uint64{}
		for at, n := range w.read() {
			if n -= w.before[at]; n == 0 {
				continue
			}
			if at.netns == 0 {
				unattributed[at] = n
			} else if slices.ContainsFunc(namespaces, func(n *namespace) bool { return n.inode == at.netns }) {
				lost[at] = n
			}
		}
	}
	// Data of a closed socket are freed after a grace period.
	for range 2 {
		if _, _, e := unix.Syscall(unix.SYS_MEMBARRIER, 1 /* MEMBARRIER_CMD_GLOBAL */, 0, 0); e != 0 {
			t.Logf("wait for a grace period: %v", e)
		}
	}
	read()
	testkit.Eventually(t, "the losses to settle", func() bool {
		time.Sleep(50 * time.Millisecond)
		before := lost
		read()
		return maps.Equal(before, lost)
	})
	return lost, unattributed
}

// none reports an error for each location in lost, and for each event of the
// namespaces.
func (w *lossWatch) none(t *testing.T, lost map[lostAt]uint64, h *healthy) {
	t.Helper()
	names := map[uint64]string{0: "no namespace", h.a.inode: "a", h.b.inode: "b"}
	for i, n := range h.own {
		names[n.inode] = fmt.Sprintf("the case's namespace %d", i)
	}
	for _, at := range slices.SortedFunc(maps.Keys(lost), func(a, b lostAt) int { return strings.Compare(a.String(), b.String()) }) {
		t.Errorf("lost %d x %s in %s, in %s", lost[at], at.reason, at.location, names[at.netns])
	}
	testkit.Eventually(t, "the events to be read", func() bool {
		a := w.l.account(PacketLoss)
		return a.Read == a.Written
	})
	reasons, err := w.l.Reasons()
	if err != nil {
		t.Fatal(err)
	}
	namespaces, told, example := h.namespaces(), map[string]int{}, map[string]*Event{}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	for _, e := range w.l.events[w.events:] {
		if e.Type != PacketLoss || !slices.ContainsFunc(namespaces, func(n *namespace) bool { return n.inode == e.Netns }) {
			continue
		}
		what := fmt.Sprintf("%s in %s, in %s", reasons.Drop(e.Reason), w.l.Symbols().Location(e.Location), names[e.Netns])
		told[what]++
		example[what] = &e
	}
	for _, what := range slices.Sorted(maps.Keys(told)) {
		e := example[what]
		t.Errorf("told %d times of %s, as on %q of protocol %d from %v to %v", told[what], what, e.Device(), e.Protocol, e.Source, e.Destination)
	}
}

// trouble returns the kernel's own trouble counters by namespace, which show
// independently whether traffic was healthy.
func (h *healthy) trouble(t *testing.T) map[*namespace]map[string]uint64 {
	t.Helper()
	all := map[*namespace]map[string]uint64{}
	for _, n := range h.namespaces() {
		if !n.handle.IsOpen() {
			continue // deleted
		}
		all[n] = n.counters(t)
		maps.DeleteFunc(all[n], func(name string, _ uint64) bool { return !slices.Contains(troubles, name) })
	}
	return all
}

// troubles are counters of lost or faulty packets. Counters of ICMP messages for
// another kind of socket, and of multicast without listeners, are excluded.
var troubles = []string{
	"Ip.InHdrErrors", "Ip.InDiscards", "Ip.OutDiscards", "Ip.ReasmFails", "Ip.FragFails",
	"Ip6InHdrErrors", "Ip6InDiscards", "Ip6OutDiscards", "Ip6ReasmFails", "Ip6FragFails",
	"Icmp.InErrors", "Icmp.InCsumErrors", "Icmp6InErrors", "Icmp6InCsumErrors",
	"Tcp.InErrs", "Tcp.InCsumErrors",
	"TcpExt.ListenDrops", "TcpExt.ListenOverflows", "TcpExt.TCPBacklogDrop", "TcpExt.TCPRcvQDrop", "TcpExt.TCPOFODrop", "TcpExt.RcvPruned", "TcpExt.OfoPruned", "TcpExt.TCPMinTTLDrop", "TcpExt.PFMemallocDrop",
	"Udp.InErrors", "Udp.RcvbufErrors", "Udp.SndbufErrors", "Udp.InCsumErrors", "Udp.MemErrors",
	"Udp6InErrors", "Udp6RcvbufErrors", "Udp6SndbufErrors", "Udp6InCsumErrors", "Udp6MemErrors",
	"device.dropped",
	"UdpLite.InErrors", "UdpLite.RcvbufErrors", "UdpLite6InErrors", "UdpLite6RcvbufErrors",
}

// counters reads the kernel's counters inside the namespace, such as "Udp.InErrors"
// and "Udp6InErrors". "device.dropped" is the sum over the devices.
func (n *namespace) counters(t testing.TB) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	n.do(t, func() error {
		for _, file := range []string{"/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"} {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			lines := strings.Split(string(data), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				group, names, _ := strings.Cut(lines[i], ":")
				_, values, _ := strings.Cut(lines[i+1], ":")
				value := strings.Fields(values)
				for j, name := range strings.Fields(names) {
					all[group+"."+name], _ = strconv.ParseUint(value[j], 10, 64) // -1 of Tcp.MaxConn
				}
			}
		}
		data, err := os.ReadFile("/proc/thread-self/net/snmp6")
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) == 2 {
				all[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
			}
		}
		if err != nil {
			return err
		}
		if data, err = os.ReadFile("/proc/thread-self/net/dev"); err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			_, values, ok := strings.Cut(line, ":")
			if f := strings.Fields(values); ok && len(f) > 11 {
				for _, i := range []int{3, 11} { // received, transmitted
					n, err := strconv.ParseUint(f[i], 10, 64)
					if err != nil {
						return err
					}
					all["device.dropped"] += n
				}
			}
		}
		return nil
	})
	return all
}

// namespace creates a namespace for the case, like a container's: only lo, and the
// kernel's defaults for everything that newNamespace disables. It exists until the
// losses are read.
func (h *healthy) namespace(t *testing.T) *namespace {
	t.Helper()
	n := &namespace{device: "eth0"}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for the reason given in newNamespace
		var err error
		n.handle, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	h.t.Cleanup(func() { n.handle.Close() })
	var err error
	if n.inode, err = kernel.FileInode(int(n.handle)); err != nil {
		t.Fatal(err)
	}
	n.ip(t, "link set lo up")
	h.own = append(h.own, n)
	return n
}

// cable joins two namespaces by a veth pair that is up.
func cable(t *testing.T, a *namespace, deviceA string, b *namespace, deviceB string) {
	t.Helper()
	veth(t, a, deviceA, b, deviceB)
	a.ip(t, "link set "+deviceA+" up")
	b.ip(t, "link set "+deviceB+" up")
}

func veth(t *testing.T, a *namespace, deviceA string, b *namespace, deviceB string) {
	t.Helper()
	a.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = deviceA
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: deviceB, PeerNamespace: netlink.NsFd(b.handle)})
	})
}

// ip runs an ip command, given as words separated by spaces.
func (n *namespace) ip(t testing.TB, command string) string {
	t.Helper()
	return n.run(t, "ip", strings.Fields(command)...)
}

// can returns the error of a command inside the namespace, for example if the
// kernel lacks a module.
func (n *namespace) can(name string, args ...string) error {
	return n.try(func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// sysctl writes a file below /proc/sys/net.
func (n *namespace) sysctl(t testing.TB, file, value string) {
	t.Helper()
	n.do(t, func() error { return os.WriteFile("/proc/sys/net/"+file, []byte(value), 0) })
}

// withSysctl writes a file below /proc/sys/net until the test ends.
func (n *namespace) withSysctl(t testing.TB, file, value string) {
	t.Helper()
	var before []byte
	n.do(t, func() (err error) {
		before, err = os.ReadFile("/proc/sys/net/" + file)
		return err
	})
	n.sysctl(t, file, value)
	t.Cleanup(func() { n.sysctl(t, file, string(before)) })
}

// each returns a case that runs over IPv4 and over IPv6.
func each(run func(t *testing.T, h *healthy, from, to netip.Addr)) func(*testing.T, *healthy) {
	return func(t *testing.T, h *healthy) {
		t.Helper()
		for _, addrs := range families(h.a, h.b) {
			run(t, h, addrs[0], addrs[1])
		}
	}
}

// atOnce is each, run concurrently, for cases that mostly wait.
func atOnce(run func(t *testing.T, h *healthy, from, to netip.Addr)) func(*testing.T, *healthy) {
	return func(t *testing.T, h *healthy) {
		for family, addrs := range families(h.a, h.b) {
			t.Run(family, func(t *testing.T) {
				t.Parallel()
				run(t, h, addrs[0], addrs[1])
			})
		}
	}
}

// times scales a number of repetitions, since an emulated machine is slow.
func times(host, vm int) int {
	if need.InVM() {
		return vm
	}
	return host
}

// must fails the test for an error of a system call.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// socketIn creates a socket inside the namespace, closed at the end of the test.
func (n *namespace) socketIn(t testing.TB, family, kind, protocol int) int {
	t.Helper()
	fd := -1
	n.do(t, func() (err error) {
		if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol); err != nil {
			err = os.NewSyscallError("socket", err)
		}
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// isUnsupported distinguishes features that a kernel lacks from failures.
func isUnsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTSUP)
}
