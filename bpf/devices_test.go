package bpf

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/proof"
)

// router is a namespace that forwards between two others. Its devices are left
// (10.1.0.2, fd01::2, towards 10.1.0.1 and fd01::1) and right (10.2.0.1, fd02::1,
// towards 10.2.0.2 and fd02::2).
type router struct {
	*namespace
	a, b *namespace
	path string
}

func newRouter(t testing.TB) *router {
	t.Helper()
	need.Root(t)
	need.Program(t, "ip")
	r := &router{newNamespace(t), newNamespace(t), newNamespace(t), ""}
	r.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(r.handle))
	r.do(t, func() error {
		for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	r.join(t, "left", 2, r.a, 1, 1)
	r.join(t, "right", 1, r.b, 2, 2)
	for i, n := range []*namespace{r.a, r.b} {
		n.v4, n.v6 = netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", i+1, i+1)), netip.MustParseAddr(fmt.Sprintf("fd0%d::%d", i+1, i+1))
		n.run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("10.%d.0.%d", i+1, 2-i))
		n.run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("fd0%d::%d", i+1, 2-i))
	}
	return r
}

// join creates a device in the router whose peer is eth0 in n. Static neighbour
// entries ensure that only the test's packets are sent.
func (r *router) join(t testing.TB, device string, mine int, n *namespace, theirs, subnet int) {
	t.Helper()
	mac := func(host int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, byte(subnet), byte(host)} }
	r.do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: device, HardwareAddr: mac(mine)}, PeerName: "eth0",
			PeerHardwareAddr: mac(theirs), PeerNamespace: netlink.NsFd(int(n.handle)),
		})
	})
	n.device = "eth0"
	for _, side := range []struct {
		n          *namespace
		device     string
		mine, peer int
	}{{r.namespace, device, mine, theirs}, {n, "eth0", theirs, mine}} {
		for _, a := range []string{"10.%d.0.%d/24", "fd%02d::%d/64"} {
			side.n.run(t, "ip", "addr", "add", fmt.Sprintf(a, subnet, side.mine), "dev", side.device, "nodad")
		}
		side.n.run(t, "ip", "link", "set", side.device, "multicast", "off", "up")
		for _, a := range []string{"10.%d.0.%d", "fd%02d::%d"} {
			side.n.run(t, "ip", "neigh", "add", fmt.Sprintf(a, subnet, side.peer), "lladdr", mac(side.peer).String(), "dev", side.device, "nud", "permanent")
		}
	}
}

// sent returns the kernel's transmit counters of a device.
func (r *router) sent(t testing.TB, device string) (packets, bytes uint64) {
	t.Helper()
	var links []struct {
		Stats64 struct {
			TX struct{ Bytes, Packets uint64 }
		}
	}
	out := r.run(t, "ip", "-s", "-j", "link", "show", "dev", device)
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	return links[0].Stats64.TX.Packets, links[0].Stats64.TX.Bytes
}

func flowSums(t testing.TB, p *Probe, netns uint64) (packets, bytes uint64) {
	t.Helper()
	return sumFlows(t, p, func(f Flow) bool { return f.Netns == netns })
}

// sumFlows adds up the selected flows. A namespace sometimes sends packets of its
// own (group reports, neighbour discovery), so tests select protocol and receiver.
func sumFlows(t testing.TB, p *Probe, of func(Flow) bool) (packets, bytes uint64) {
	t.Helper()
	if err := p.Flows(func(f Flow) {
		if of(f) {
			packets += f.Packets
			bytes += f.Bytes
		}
	}); err != nil {
		t.Fatal(err)
	}
	return packets, bytes
}

// exactly runs f and checks that the probe's counts equal the device's counters
// minus Ethernet headers.
func (r *router) exactly(t testing.TB, p *Probe, device, what string, f func()) (packets, bytes uint64) {
	t.Helper()
	// The kernel sometimes sends packets of its own: read the device before and
	// after the flows, until it is unchanged.
	read := func() (dp, db, fp, fb uint64) {
		for range 100 {
			dp, db = r.sent(t, device)
			fp, fb = flowSums(t, p, r.inode)
			if again, _ := r.sent(t, device); again == dp {
				return dp, db, fp, fb
			}
		}
		t.Fatalf("%s never stands still", device)
		return 0, 0, 0, 0
	}
	dp, db, fp, fb := read()
	f()
	dp1, db1, fp1, fb1 := read()
	packets, bytes = fp1-fp, fb1-fb
	if packets == 0 {
		t.Errorf("%s: no packets", what)
	}
	proof.Count(t, p.Name(), kindsOf(p), what+", packets by the device's counter", dp1-dp, packets)
	proof.Count(t, p.Name(), kindsOf(p), what+", bytes by the device's counter", db1-db, bytes+14*packets)
	return packets, bytes
}

func eachDeviceKind(t *testing.T, f func(t *testing.T, l *testLoader, kind Kind)) {
	for _, kind := range []Kind{TCX, Clsact} {
		t.Run(string(kind), func(t *testing.T) { f(t, newTestLoader(t, Options{Hooks: kind}), kind) })
	}
}

func (l *testLoader) hookOf(p *Probe, kind Kind, devices ...string) {
	l.t.Helper()
	h := p.Hooks()
	if len(h) != 1 || h[0].Kind != kind || !slices.Equal(h[0].Devices, devices) {
		l.t.Errorf("hooks %+v, want %s on %v", h, kind, devices)
	}
}

func TestFlowForwarded(t *testing.T) {
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		r := newRouter(t)
		p := l.load("flow", Config{Ports: true, Devices: []string{"r*"}, Netns: r.path})
		l.hookOf(p, kind, "right")
		for _, addr := range []netip.Addr{r.b.v4, r.b.v6} {
			s := r.b.listenUDP(t, addr)
			c := r.a.dial(t, "udp", addrPort(s.LocalAddr()))
			r.exactly(t, p, "right", "UDP", func() { send(t, c, 1000) })
			f := find(t, l, p, r.inode, addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))
			if f.Packets != 1000 || f.Protocol != unix.IPPROTO_UDP {
				t.Errorf("%+v, want 1,000 datagrams", f)
			}
		}
	})
}

// The device must receive segments here, so that its own counters count them.
func TestFlowForwardedSegments(t *testing.T) {
	need.Program(t, "iperf3")
	need.Program(t, "ethtool")
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		r := newRouter(t)
		r.run(t, "ethtool", "-K", "right", "tso", "off", "gso", "off")
		p := l.load("flow", Config{Devices: []string{"right"}, Netns: r.path})
		for _, to := range []netip.Addr{r.b.v4, r.b.v6} {
			server := exec.Command("iperf3", "-s", "-1", "-B", to.String())
			r.b.do(t, server.Start)
			l.eventually("the server to listen", func() bool {
				return strings.Contains(r.b.run(t, "ss", "-Hltn"), ":5201")
			})
			packets, bytes := r.exactly(t, p, "right", "TCP to "+to.String(), func() {
				r.a.run(t, "iperf3", "-c", to.String(), "-n", "20M")
				server.Wait()
			})
			// Data that the client has not sent when it ends are lost.
			if bytes < 10<<20 || bytes/packets > 1500 {
				t.Errorf("%d bytes in %d packets for 20 MiB over an MTU of 1,500", bytes, packets)
			}
		}
		entries := 0
		if err := p.Flows(func(f Flow) {
			if f.Netns == r.inode && f.Protocol == unix.IPPROTO_TCP {
				entries++
				if f.Source.Port() != 0 || f.Destination.Port() != 0 {
					t.Errorf("ports that nobody asked for: %+v", f)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		if entries != 2 {
			t.Errorf("%d entries for the connections of two pairs of addresses, want 2", entries)
		}
	})
}

// A GSO datagram, and a GSO packet inside a tunnel: each segment leaves with all
// headers.
func TestFlowSegmentsOfOtherKinds(t *testing.T) {
	need.Program(t, "ethtool")
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		r := newRouter(t)
		r.run(t, "ethtool", "-K", "right", "tso", "off", "gso", "off", "tx-udp-segmentation", "off")
		p := l.load("flow", Config{Devices: []string{"right"}, Netns: r.path})
		for _, to := range []netip.Addr{r.b.v4, r.b.v6} {
			s := r.b.listenUDP(t, to)
			c := r.a.dial(t, "udp", addrPort(s.LocalAddr()))
			rawConn(t, c.(*net.UDPConn), func(fd int) error {
				return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 500)
			})
			got, _ := r.exactly(t, p, "right", "UDP of segments to "+to.String(), func() {
				for range 10 {
					if _, err := c.Write(make([]byte, 5100)); err != nil {
						t.Fatal(err)
					}
				}
			})
			if got < 110 {
				t.Errorf("%d packets, want 110", got)
			}
		}

		// Virtual machines and packet sockets provide no segment count.
		got, _ := r.exactly(t, p, "right", "TCP of unknown segments", func() {
			r.do(t, func() error { return sendUncounted(6*1000-500, 1000) })
		})
		if got < 6 {
			t.Errorf("%d packets, want 6", got)
		}

		for i, n := range []*namespace{r.namespace, r.b} {
			err := n.try(func() error {
				return netlink.LinkAdd(&netlink.Vxlan{
					LinkAttrs: netlink.LinkAttrs{Name: "tunnel", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, byte(i + 1)}}, VxlanId: 9, Port: 4789,
					SrcAddr: net.IPv4(10, 2, 0, byte(i+1)), Group: net.IPv4(10, 2, 0, byte(2-i)), Learning: true,
				})
			})
			if err != nil {
				t.Skipf("needs vxlan devices: %v", err)
			}
			n.run(t, "ip", "addr", "add", fmt.Sprintf("10.8.0.%d/24", i+1), "dev", "tunnel")
			n.run(t, "ip", "addr", "add", fmt.Sprintf("fd08::%d/64", i+1), "dev", "tunnel", "nodad")
			n.run(t, "ip", "link", "set", "tunnel", "up")
		}
		for _, to := range []string{"10.8.0.2", "fd08::2"} {
			client, server := connect(t, r.namespace, r.b, netip.MustParseAddr(to))
			packets, bytes := r.exactly(t, p, "right", "TCP in a tunnel to "+to, func() {
				go func() {
					client.Write(make([]byte, 4<<20))
					client.Close()
				}()
				if n, err := io.Copy(io.Discard, server); n != 4<<20 {
					t.Errorf("%d bytes arrived: %v", n, err)
				}
			})
			if bytes/packets > 1500 {
				t.Errorf("%d bytes in %d packets over an MTU of 1,500", bytes, packets)
			}
		}
	})
}

// sendUncounted sends one TCP packet, to be segmented by the given size, through
// the device right.
func sendUncounted(payload, size int) error {
	link, err := netlink.LinkByName("right")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	vnet := []byte{1, 1} // checksum offload; TCP over IPv4
	for _, v := range []int{54, size, 34, 16} {
		vnet = binary.NativeEndian.AppendUint16(vnet, uint16(v))
	}
	headers := make([]byte, 40)
	headers[0], headers[8], headers[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(headers[2:], uint16(40+payload))
	copy(headers[12:], []byte{192, 0, 2, 1, 10, 2, 0, 2, 1, 0, 2, 0})
	headers[32], headers[33] = 5<<4, 0x10
	frame := slices.Concat(vnet, []byte{2, 0, 0, 0, 2, 2, 2, 0, 0, 0, 2, 1, 8, 0}, headers, make([]byte, payload))
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
}

func TestFlowDevicesComeAndGo(t *testing.T) {
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		r := newRouter(t)
		p := l.load("flow", Config{Devices: []string{"plug[0-9]"}, Netns: r.path})
		if state, limitations := p.State(); state != Degraded || !strings.Contains(fmt.Sprint(limitations), "plug[0-9]") {
			t.Errorf("no device: %s %q", state, limitations)
		}
		for range 2 { // the second device reuses the first one's name
			c := newNamespace(t)
			r.join(t, "plug3", 1, c, 2, 3)
			p.Rescan()
			l.hookOf(p, kind, "plug3")
			if state, limitations := p.State(); state != OK {
				t.Errorf("%s %q", state, limitations)
			}
			s := c.listenUDP(t, netip.MustParseAddr("10.3.0.2"))
			conn := r.a.dial(t, "udp", addrPort(s.LocalAddr()))
			r.exactly(t, p, "plug3", "hot-plugged", func() { send(t, conn, 100) })
			r.run(t, "ip", "link", "del", "plug3")
			p.Rescan()
			l.hookOf(p, kind)
		}
		// The device may get a name that no pattern matches.
		r.run(t, "ip", "link", "add", "plug1", "type", "veth", "peer", "name", "other")
		p.Rescan()
		l.hookOf(p, kind, "plug1")
		r.run(t, "ip", "link", "set", "plug1", "name", "unplugged")
		p.Rescan()
		l.hookOf(p, kind)
		if out := r.run(t, "tc", "qdisc", "show", "dev", "unplugged"); strings.Contains(out, "clsact") {
			t.Errorf("left behind: %s", out)
		}
	})
}

// foreign adds another program's filter, which ends the chain.
func (r *router) foreign(t testing.TB, device, name string, priority uint16) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	r.do(t, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		if err := netlink.QdiscAdd(clsact(l)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Priority: priority, Handle: 1, Protocol: unix.ETH_P_ALL},
			Fd:          program.FD(), Name: name, DirectAction: true,
		})
	})
}

func TestFlowLeavesForeignFilters(t *testing.T) {
	need.Program(t, "tc")
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		show := func(r *router, device string) string {
			return r.run(t, "tc", "filter", "show", "dev", device, "egress") + r.run(t, "tc", "qdisc", "show", "dev", device)
		}
		for _, priority := range []uint16{1, 5, 500} {
			r := newRouter(t)
			r.foreign(t, "right", "theirs", priority)
			before := show(r, "right")
			p := l.load("flow", Config{Devices: []string{"left", "right"}, Netns: r.path})
			l.hookOf(p, kind, "left", "right")
			s := r.b.listenUDP(t, r.b.v4)
			c := r.a.dial(t, "udp", addrPort(s.LocalAddr()))
			r.exactly(t, p, "right", fmt.Sprintf("before a filter of priority %d", priority), func() { send(t, c, 100) })
			if during := show(r, "right"); !strings.Contains(during, "theirs") {
				t.Errorf("the foreign filter is gone: %s", during)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if after := show(r, "right"); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if after := show(r, "left"); strings.Contains(after, "clsact") {
				t.Errorf("left behind: %s", after)
			}
		}
		// Another program starts to use the clsact that we created.
		r := newRouter(t)
		p := l.load("flow", Config{Devices: []string{"right"}, Netns: r.path})
		r.foreign(t, "right", "theirs", 1)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if after := show(r, "right"); !strings.Contains(after, "theirs") || strings.Contains(after, filterName) {
			t.Errorf("after: %s", after)
		}
	})
}

func TestFlowTakesStaleFiltersOnly(t *testing.T) {
	need.Program(t, "tc")
	r := newRouter(t)
	r.foreign(t, "right", filterName+"0123456789abcdef", 70)
	first := newTestLoader(t, Options{Hooks: Clsact}).load("flow", Config{Devices: []string{"right"}, Netns: r.path})
	l := newTestLoader(t, Options{Hooks: Clsact})
	second := l.load("flow", Config{Devices: []string{"right"}, Netns: r.path})
	show := r.run(t, "tc", "filter", "show", "dev", "right", "egress")
	if strings.Contains(show, "0123456789abcdef") || strings.Count(show, filterName) != 2 {
		t.Errorf("want two filters, those of the living:\n%s", show)
	}
	s := r.b.listenUDP(t, r.b.v4)
	c := r.a.dial(t, "udp", addrPort(s.LocalAddr()))
	r.exactly(t, first, "right", "first", func() { r.exactly(t, second, "right", "second", func() { send(t, c, 100) }) })
	// Deleting a clsact deletes all its filters; the next scan restores ours.
	r.run(t, "tc", "qdisc", "del", "dev", "right", "clsact")
	second.Rescan()
	l.hookOf(second, Clsact, "right")
	r.exactly(t, second, "right", "again", func() { send(t, c, 100) })
	for _, p := range []*Probe{first, second} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if show := r.run(t, "tc", "qdisc", "show", "dev", "right"); strings.Contains(show, "clsact") {
		t.Errorf("left behind: %s", show)
	}
}

// A tun device has no Ethernet header.
func TestFlowTun(t *testing.T) {
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		need.Root(t)
		n := newNamespace(t)
		n.do(t, func() error {
			tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN, NonPersist: true, Queues: 1}
			if err := netlink.LinkAdd(tun); err != nil {
				t.Skipf("needs tun devices: %v", err)
			}
			t.Cleanup(func() {
				for _, f := range tun.Fds {
					f.Close()
				}
			})
			return nil
		})
		n.run(t, "ip", "addr", "add", "10.9.0.1/24", "dev", "tun0")
		n.run(t, "ip", "addr", "add", "fd09::1/64", "dev", "tun0", "nodad")
		n.run(t, "ip", "link", "set", "tun0", "up")
		p := l.load("flow", Config{Ports: true, Devices: []string{"tun*"}, Netns: fmt.Sprintf("/proc/self/fd/%d", int(n.handle))})
		for to, header := range map[string]uint64{"10.9.0.2": 28, "fd09::2": 48} {
			c := n.dial(t, "udp", netip.AddrPortFrom(netip.MustParseAddr(to), 9))
			for range 50 {
				if _, err := c.Write(make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
			}
			f := find(t, l, p, n.inode, addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))
			if f.Packets != 50 || f.Bytes != 50*(100+header) {
				t.Errorf("%+v, want 50 packets of %d bytes", f, 100+header)
			}
		}
	})
}

// VLAN tags in the frame belong to the link layer, like the Ethernet header.
func TestFlowVLAN(t *testing.T) {
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		r := newRouter(t)
		p := l.load("flow", Config{Ports: true, Devices: []string{"right"}, Netns: r.path})
		ip := make([]byte, 128)
		ip[0], ip[3], ip[8], ip[9] = 0x45, 128, 64, unix.IPPROTO_UDP
		copy(ip[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
		binary.BigEndian.PutUint16(ip[20:], 1000)
		binary.BigEndian.PutUint16(ip[22:], 2000)
		r.do(t, func() error {
			link, err := netlink.LinkByName("right")
			if err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for _, tags := range [][]byte{{}, {0x81, 0, 0, 7}, {0x88, 0xa8, 0, 7, 0x81, 0, 0, 9}} {
				frame := slices.Concat([]byte{2, 0, 0, 0, 2, 2, 2, 0, 0, 0, 2, 1}, tags, []byte{8, 0}, ip)
				if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
					return err
				}
			}
			return nil
		})
		f := find(t, l, p, r.inode, netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("192.0.2.2:2000"))
		if f.Packets != 3 || f.Bytes != 3*128 {
			t.Errorf("%+v, want 3 packets of 128 bytes", f)
		}
	})
}

func TestFlowWithoutPorts(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{})
	p := l.load("flow", Config{Flows: 256})
	for _, addrs := range families(a, b) {
		s := b.listenUDP(t, addrs[1])
		for range 20 {
			send(t, a.dial(t, "udp", addrPort(s.LocalAddr())), 10)
		}
		f := find(t, l, p, a.inode, netip.AddrPortFrom(addrs[0], 0), netip.AddrPortFrom(addrs[1], 0))
		if f.Packets != 200 {
			t.Errorf("%+v, want the 200 packets of 20 connections", f)
		}
	}
}

func TestFlowDevicesRefused(t *testing.T) {
	l := newTestLoader(t, Options{})
	for _, c := range []Config{
		{Devices: []string{"eth["}},
		{Devices: []string{""}},
		{Devices: []string{"eth0"}, Netns: "/nowhere"},
		{Devices: []string{"eth0"}, Netns: "/proc/self/status"},
	} {
		if p, err := l.Load("flow", c); err == nil {
			t.Errorf("%+v: loaded", c)
			p.Close()
		} else {
			t.Log(err)
		}
	}
}

// TestFlowUnits: what counts as one packet, for sockets and for devices, as
// docs/METRICS.md says.
func TestFlowUnits(t *testing.T) {
	const datagrams = 10
	for _, kind := range []Kind{Cgroup, TCX, Clsact} {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newPair(t)
			config := Config{Ports: true}
			if kind != Cgroup {
				config.Devices, config.Netns = []string{a.device}, fmt.Sprintf("/proc/self/fd/%d", int(a.handle))
			}
			l := newTestLoader(t, Options{Hooks: kind})
			p := l.load("flow", config)
			// spent returns the growth of a protocol's flows during f.
			spent := func(protocol uint8, f func()) (packets, bytes uint64) {
				t.Helper()
				sum := func() (packets, bytes uint64) {
					return sumFlows(t, p, func(f Flow) bool {
						return f.Netns == a.inode && f.Protocol == protocol && !f.Destination.Addr().IsMulticast()
					})
				}
				packets0, bytes0 := sum()
				f()
				packets, bytes = sum()
				return packets - packets0, bytes - bytes0
			}
			for family, addrs := range families(a, b) {
				ip := uint64(20)
				if family == "IPv6" {
					ip = 40
				}
				s := b.listenUDP(t, addrs[1])
				c := a.dial(t, "udp", addrPort(s.LocalAddr()))

				// Six fragments: one packet for a socket, six for a device.
				created := map[string]string{"IPv4": "Ip.FragCreates", "IPv6": "Ip6.FragCreates"}[family]
				fragments := a.counter(t, created)
				packets, bytes := spent(unix.IPPROTO_UDP, func() {
					for range datagrams {
						if _, err := c.Write(make([]byte, 8000)); err != nil {
							t.Fatal(err)
						}
					}
				})
				if fragments = a.counter(t, created) - fragments; fragments != 6*datagrams {
					t.Errorf("%s: the kernel made %d fragments, want %d", family, fragments, 6*datagrams)
				}
				if kind == Cgroup {
					l.count(p, family+" datagrams of six fragments", datagrams, packets)
					l.count(p, family+" bytes of datagrams of six fragments", datagrams*(ip+8+8000), bytes)
				} else {
					l.count(p, family+" fragments, by the kernel's counter", fragments, packets)
				}

				// The device segments a GSO datagram: each segment counts.
				rawConn(t, c.(*net.UDPConn), func(fd int) error {
					return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 500)
				})
				packets, bytes = spent(unix.IPPROTO_UDP, func() {
					for range datagrams {
						if _, err := c.Write(make([]byte, 5100)); err != nil {
							t.Fatal(err)
						}
					}
				})
				l.count(p, family+" datagrams of a GSO packet", 11*datagrams, packets)
				l.count(p, family+" bytes of datagrams of a GSO packet", datagrams*(11*(ip+8)+5100), bytes)

				// The kernel's own packets: echo replies.
				protocol := uint8(unix.IPPROTO_ICMP)
				if family == "IPv6" {
					protocol = unix.IPPROTO_ICMPV6
				}
				packets, bytes = spent(protocol, func() {
					echoes := map[string]string{"IPv4": "Icmp.OutEchoReps", "IPv6": "Icmp6.OutEchoReplies"}[family]
					answered := a.counter(t, echoes)
					for range datagrams {
						b.echo(t, addrs[0])
					}
					l.eventually("answers", func() bool { return a.counter(t, echoes) == answered+datagrams })
				})
				l.count(p, family+" echo replies", datagrams, packets)
				l.count(p, family+" bytes of echo replies", datagrams*(ip+8), bytes)
			}
		})
	}
	t.Run("forwarded", func(t *testing.T) {
		r := newRouter(t)
		l := newTestLoader(t, Options{Hooks: Cgroup})
		p := l.load("flow", Config{})
		for _, to := range []netip.Addr{r.b.v4, r.b.v6} {
			s := r.b.listenUDP(t, to)
			send(t, r.a.dial(t, "udp", addrPort(s.LocalAddr())), datagrams)
		}
		packets, _ := sumFlows(t, p, func(f Flow) bool { return f.Netns == r.a.inode && f.Protocol == unix.IPPROTO_UDP })
		l.count(p, "datagrams that a router forwards, at their sender", 2*datagrams, packets)
		if err := p.Flows(func(f Flow) {
			if f.Netns == r.inode && f.Protocol == unix.IPPROTO_UDP {
				t.Errorf("the router has a flow: %+v", f)
			}
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// echo sends an echo request without data.
func (n *namespace) echo(t testing.TB, to netip.Addr) {
	t.Helper()
	n.do(t, func() error {
		domain, protocol := unix.AF_INET, unix.IPPROTO_ICMP
		request := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
		if to.Is6() {
			domain, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
			request = []byte{128, 0, 0, 0, 0, 0, 0, 0}
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, request, 0, sockaddr(netip.AddrPortFrom(to, 0)))
	})
}
