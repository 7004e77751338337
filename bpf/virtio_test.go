package bpf

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// The devices of the test VMs, identified by these addresses and serial numbers
// (internal/e2e/kernels). Other machines may have the same addresses, so the tests
// use them only in such a VM.
const (
	nicOnHub1   = "52:54:00:00:00:01" // two on one hub: each hears the other
	nicOnHub2   = "52:54:00:00:00:02"
	nicOfQueues = "52:54:00:00:00:03" // with two pairs of queues
	diskOf33ms  = "iops30"            // at most 30 I/Os per second, so 33 ms each
	diskOf200ms = "iops5"
)

// takeNIC moves a network device of the VM into a namespace of its own during the
// test.
func takeNIC(t testing.TB, mac string) *namespace {
	t.Helper()
	need.Root(t)
	need.VM(t, need.InVM(), "the virtio-net device "+mac)
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().HardwareAddr.String() == mac })
	need.VM(t, i >= 0, "the virtio-net device "+mac)
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	n := newNamespace(t)
	n.device, n.mac = links[i].Attrs().Name, links[i].Attrs().HardwareAddr
	if err := netlink.LinkSetNsFd(links[i], int(n.handle)); err != nil {
		t.Fatalf("move %s: %v", n.device, err)
	}
	t.Cleanup(func() {
		defer home.Close()
		if err := n.try(func() error {
			link, err := netlink.LinkByName(n.device)
			if err == nil {
				err = errors.Join(netlink.LinkSetDown(link), netlink.LinkSetNsFd(link, int(home)))
			}
			return err
		}); err != nil {
			t.Errorf("give %s back: %v", n.device, err)
		}
	})
	return n
}

// newNICPair is newPair over two devices with a driver, NAPI and GRO.
func newNICPair(t testing.TB) (a, b *namespace) {
	t.Helper()
	a, b = takeNIC(t, nicOnHub1), takeNIC(t, nicOnHub2)
	a.v4, b.v4 = netip.MustParseAddr("10.98.0.1"), netip.MustParseAddr("10.98.0.2")
	a.v6, b.v6 = netip.MustParseAddr("fd98::1"), netip.MustParseAddr("fd98::2")
	for _, n := range []*namespace{a, b} {
		for _, address := range []string{n.v4.String() + "/24", n.v6.String() + "/64"} {
			n.run(t, "ip", "addr", "add", address, "dev", n.device, "nodad")
		}
		n.run(t, "ip", "link", "set", n.device, "multicast", "off", "up")
	}
	a.neighbour(t, b)
	b.neighbour(t, a)
	return a, b
}

// commands counts the control commands of the driver virtio_net with a kprobe of
// the kernel's own tracing. It returns a function that reads the count.
func commands(t *testing.T) func() uint64 {
	t.Helper()
	const (
		events  = "/sys/kernel/tracing/kprobe_events"
		profile = "/sys/kernel/tracing/kprobe_profile"
		on      = "/sys/kernel/tracing/events/nodeskoop/commands/enable"
	)
	write := func(file, text string) error {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Close())
	}
	err := write(events, "p:nodeskoop/commands virtnet_send_command_reply\n")
	if err != nil {
		err = write(events, "p:nodeskoop/commands virtnet_send_command\n")
	}
	if err == nil {
		err = write(on, "1")
	}
	if err != nil {
		t.Fatalf("count the driver's commands: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(write(on, "0"), write(events, "-:nodeskoop/commands\n")); err != nil {
			t.Errorf("stop counting the driver's commands: %v", err)
		}
	})
	return func() uint64 {
		t.Helper()
		data, err := os.ReadFile(profile)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "commands" {
				n, err := strconv.ParseUint(f[1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatalf("%s does not tell of the commands: %s", profile, data)
		return 0
	}
}

// TestVirtcmdlatencyOfADevice toggles promiscuous mode, for which the driver sends
// several commands (newer kernels from a worker), and changes the number of queues,
// which is one command.
func TestVirtcmdlatencyOfADevice(t *testing.T) {
	eachRung(t, "virtcmdlatency", func(t *testing.T, rung Kind) {
		n := takeNIC(t, nicOfQueues)
		need.Program(t, "ip")
		need.Program(t, "ethtool")
		n.run(t, "ip", "link", "set", n.device, "up")
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("virtcmdlatency", Config{Slow: Zero, Slow100: time.Hour})
		sent := commands(t)
		l.settled(p, 0)
		start, before := sent(), counters(t, p, 0)[CommandSlow]
		const times = 6
		for i := range times {
			was := sent()
			n.run(t, "ip", "link", "set", n.device, "promisc", []string{"on", "off"}[i%2])
			// A worker that has not run yet would merge two changes.
			l.eventually("the commands", func() bool { return sent() >= was+2 })
			l.settled(p, 0)
		}
		modes := sent() - start
		if modes < 2*times {
			t.Errorf("%d commands for %d changes of mode", modes, times)
		}
		l.count(p, "commands for promiscuous mode on and off, by the kernel's own kprobe", modes, l.settled(p, 0)[CommandSlow]-before)

		// If it is already 1, this changes nothing, and some versions return an
		// error.
		_ = n.try(func() error { return exec.Command("ethtool", "-L", n.device, "combined", "1").Run() })
		l.settled(p, 0)
		start, before = sent(), counters(t, p, 0)[CommandSlow]
		for i := range times {
			n.run(t, "ethtool", "-L", n.device, "combined", strconv.Itoa(2-i%2))
		}
		got := l.settled(p, 0)
		if queues := sent() - start; queues != times {
			t.Errorf("the kernel's own kprobe saw %d commands, want %d", queues, times)
		}
		l.count(p, "commands for ethtool -L", times, got[CommandSlow]-before)
		if got[CommandSlow100] != 0 {
			t.Errorf("%d commands took an hour", got[CommandSlow100])
		}
		l.balanced(VirtcmdExcute, p, CommandSlow)
		byEthtool := 0
		for _, e := range l.taken(VirtcmdExcute, 0, times) {
			if e.Latency <= 0 || e.Comm() == "" {
				t.Errorf("%+v by %q", e, e.Comm())
			}
			if e.Comm() == "ethtool" && e.PID != 0 {
				byEthtool++
			}
		}
		if byEthtool != times {
			t.Errorf("%d of %d commands are ethtool's", byEthtool, times)
		}
	})
}

// diskOf returns the disk of the VM with the serial number.
func diskOf(t *testing.T, serial string) string {
	t.Helper()
	need.Root(t)
	need.VM(t, need.InVM(), "the slow virtio disk "+serial)
	files, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == serial {
			return filepath.Base(filepath.Dir(file))
		}
	}
	need.VM(t, false, "the slow virtio disk "+serial)
	return ""
}

// TestBiolatencyOfASlowDisk reads and writes a disk that takes 33 ms per I/O, and
// one that takes 200 ms. The reference for slow I/O is the caller's own clock; the
// kernel's statistics confirm that the disk did no other I/O.
func TestBiolatencyOfASlowDisk(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		for i, disk := range []string{diskOf(t, diskOf33ms), diskOf(t, diskOf200ms)} {
			testSlowDisk(t, rung, disk, []string{"33", "200"}[i])
		}
	})
}

func testSlowDisk(t *testing.T, rung Kind, disk, takes string) {
	l := newTestLoader(t, Options{Hooks: rung})
	p := l.load("biolatency", Config{ownIO: true})
	f, err := os.OpenFile("/dev/"+disk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffer := aligned(4096)
	// Each slow I/O is one event, of one type or the other.
	events := func(typ EventType) (ops [2]uint64) {
		l.eventually("the events to be read", func() bool { a := l.account(typ); return a.Read == a.Written })
		for _, e := range l.taken(typ, 0, 0) {
			if e.Device() != disk || e.Detail > 1 || int(e.PID) != os.Getpid() || e.Comm() == "" {
				t.Errorf("%+v of %s by %q", e, e.Device(), e.Comm())
				continue
			}
			ops[e.Detail]++
		}
		return ops
	}
	// The caller waits slightly longer than the disk takes. Rounds in which that
	// difference may matter are repeated.
	unclear := func(took time.Duration) bool {
		for _, limit := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond} {
			if took >= limit && took < limit+8*time.Millisecond {
				return true
			}
		}
		return false
	}
	const n = 5
	for range 20 {
		before, events10, events100 := counters(t, p, 0), events(Biolat10ms), events(Biolat100ms)
		stat := statsOf(t, disk)
		var slow, slow100 uint64
		var took []time.Duration
		for j := range n {
			for _, do := range []func([]byte, int64) (int, error){f.ReadAt, f.WriteAt} {
				start := time.Now()
				if _, err := do(buffer, int64(j)<<16); err != nil {
					t.Fatal(err)
				}
				d := time.Since(start)
				took = append(took, d)
				if d >= 10*time.Millisecond {
					slow++
				}
				if d >= 100*time.Millisecond {
					slow100++
				}
			}
		}
		// The disk accumulates credit for a burst, which the first round uses up.
		if slices.ContainsFunc(took, unclear) || slow < n || takes == "200" && slow100 < n {
			t.Logf("again: %v", took)
			continue
		}
		if did := statsOf(t, disk).since(stat); did.reads != n || did.writes != n {
			t.Errorf("%s did %d reads and %d writes, want %d each", disk, did.reads, did.writes, n)
		}
		after := counters(t, p, 0)
		l.count(p, "I/Os over 10 ms of a disk that takes "+takes+" ms", slow, after[DiskSlow]-before[DiskSlow])
		l.count(p, "I/Os over 100 ms of a disk that takes "+takes+" ms", slow100, after[DiskSlow100]-before[DiskSlow100])
		for _, w := range []struct {
			typ    EventType
			want   uint64
			before [2]uint64
		}{{Biolat10ms, slow - slow100, events10}, {Biolat100ms, slow100, events100}} {
			ops := events(w.typ)
			if got := ops[0] + ops[1] - w.before[0] - w.before[1]; got != w.want || w.want == 2*n && ops[1]-w.before[1] != n {
				t.Errorf("%s: %v events %v, before %v, want %d", disk, w.typ, ops, w.before, w.want)
			}
		}
		l.balanced(Biolat100ms, p, DiskSlow100)
		return
	}
	t.Fatalf("%s is not as slow as it should be", disk)
}

// TestKernellatencyOfANIC is TestKernellatency with packets from a driver, which
// are received in lists, after GRO.
func TestKernellatencyOfANIC(t *testing.T) {
	eachRung(t, "kernellatency", func(t *testing.T, rung Kind) {
		a, b := newNICPair(t)
		testKernellatency(t, a, b, rung, hold)
	})
	// Between the two thresholds; one comparison for every rung.
	t.Run("shorter", func(t *testing.T) {
		a, b := newNICPair(t)
		testKernellatency(t, a, b, "", 40*time.Millisecond)
	})
}

// TestNetiftxlatencyOfANIC counts every packet through the qdisc and the driver of
// a real device.
func TestNetiftxlatencyOfANIC(t *testing.T) {
	eachRung(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newNICPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{Slow100: Zero})
		before, _ := deviceSent(t, a)
		const n = 200
		for _, addrs := range families(a, b) {
			s := b.listenUDP(t, addrs[1])
			send(t, a.dial(t, "udp", addrPort(s.LocalAddr())), n)
		}
		got := l.settled(p, a.inode)
		after, _ := deviceSent(t, a)
		if after-before < 2*n {
			t.Errorf("the device sent %d packets, want %d", after-before, 2*n)
		}
		l.count(p, "packets through the queue of a virtio-net device, by its own counter", after-before, got[QdiscSlow])
		l.count(p, "packets through the driver virtio_net, by its own counter", after-before, got[NetdevSlow])
	})
}
