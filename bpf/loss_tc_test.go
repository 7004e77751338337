package bpf

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// filterCount sums the drops by actions of tc filters on a device.
func filterCount(n *namespace, device, hook string) func(*testing.T) uint64 {
	return func(t *testing.T) uint64 {
		t.Helper()
		return number(t, n.run(t, "tc", "-s", "filter", "show", "dev", device, hook), `\(dropped (\d+),`)
	}
}

// dropLength creates an XDP program that drops frames of one length.
func dropLength(t *testing.T, length int) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Add.Imm(asm.R2, int32(length)),
		asm.Mov.Imm(asm.R0, 2), // XDP_PASS
		asm.JNE.Reg(asm.R2, asm.R3, "out"),
		asm.Mov.Imm(asm.R0, 1), // XDP_DROP
		asm.Return().WithSymbol("out"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// verdict creates a program that returns the same verdict for each packet.
func verdict(t *testing.T, kind ebpf.ProgramType, all int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, all), asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// needRun runs a command, and skips the test if the kernel lacks the feature.
func (n *namespace) needRun(t *testing.T, line string) {
	t.Helper()
	f := strings.Fields(line)
	need.Program(t, f[0])
	err := n.try(func() error {
		out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", line, err, out)
		}
		return err
	})
	need.VM(t, err == nil, fmt.Sprint(err))
}

// attach attaches a program as a filter to a device with the qdisc clsact.
func (n *namespace) attach(t *testing.T, device string, parent uint32, p *ebpf.Program) {
	t.Helper()
	n.do(t, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: parent, Handle: 1, Protocol: 3 /* all */, Priority: 1},
			Fd:          p.FD(), Name: "verdict", DirectAction: true,
		})
	})
}

// TestLossTC loses packets by tc filters and by XDP. All are reported, including
// those that a program in a veth's driver drops, because packets from the stack are
// skbs there. When XDP drops a packet in a network card's driver, no skb exists, so
// no tracepoint reports it; no case covers that.
func TestLossTC(t *testing.T) {
	x := newLossLab(t)
	// A program in the driver needs a ring. Creating a ring makes the kernel free
	// an empty packet (netif_napi_add), which is not a loss.
	x.b.run(t, "ethtool", "-K", "eth0", "gro", "on")
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		protocol := map[string]string{"IPv4": "ip", "IPv6": "ipv6"}[family]
		for _, c := range []struct {
			name   string
			in     *namespace
			hook   string
			filter string
		}{
			{"matchall", x.b, "ingress", "matchall action drop"},
			{"u32", x.b, "ingress", "u32 match u32 0 0 action drop"},
			{"police", x.b, "ingress", "matchall action police rate 8kbit burst 10 mtu 2000 conform-exceed drop"},
			{"matchall", x.a, "egress", "matchall action drop"},
			{"u32", x.a, "egress", "u32 match u32 0 0 action drop"},
			{"police", x.a, "egress", "matchall action police rate 8kbit burst 10 mtu 2000 conform-exceed drop"},
			{"matchall at the router", x.r.namespace, "ingress", "matchall action drop"},
			{"matchall at the router", x.r.namespace, "egress", "matchall action drop"},
		} {
			device := "eth0"
			if c.in == x.r.namespace {
				device = map[string]string{"ingress": "left", "egress": "right"}[c.hook]
			}
			x.lose(t, family+" tc "+c.hook+" "+c.name, loss{
				in: c.in, n: losses, source: filterCount(c.in, device, c.hook), reasons: "TC_" + map[string]string{"ingress": "INGRESS", "egress": "EGRESS"}[c.hook],
				from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_UDP, device: device,
			}, func(t *testing.T) {
				sh(t, c.in, "tc qdisc add dev %s clsact", device)
				t.Cleanup(func() { sh(t, c.in, "tc qdisc del dev %s clsact", device) })
				c.in.needRun(t, "tc filter add dev "+device+" "+c.hook+" protocol "+protocol+" "+c.filter)
				x.a.udp(t, port(to, lossTo), losses, 10)
			})
		}
		for _, hook := range []string{"ingress", "egress"} {
			in := map[string]*namespace{"ingress": x.b, "egress": x.a}[hook]
			x.lose(t, family+" tc "+hook+" bpf", loss{
				in: in, n: losses, reasons: "TC_INGRESS TC_EGRESS",
				from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_UDP, device: "eth0",
			}, func(t *testing.T) {
				p := verdict(t, ebpf.SchedCLS, 2)
				sh(t, in, "tc qdisc add dev eth0 clsact")
				t.Cleanup(func() { sh(t, in, "tc qdisc del dev eth0 clsact") })
				in.attach(t, "eth0", map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS}[hook], p)
				x.a.udp(t, port(to, lossTo), losses, 10)
			})
		}
		for _, c := range []struct {
			name   string
			flags  link.XDPAttachFlags
			unseen bool
		}{{"generic", link.XDPGenericMode, false}, {"native", link.XDPDriverMode, false}} {
			x.lose(t, family+" XDP "+c.name, loss{in: x.b, n: losses, reasons: "XDP NOT_SPECIFIED", untold: false, from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_UDP}, func(t *testing.T) {
				p := dropLength(t, 14+headerLength(to)+8+10)
				x.b.do(t, func() error {
					l, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					attached, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: l.Attrs().Index, Flags: c.flags})
					if err == nil {
						t.Cleanup(func() { attached.Close() })
					}
					return err
				})
				x.a.udp(t, port(to, lossTo), losses, 10)
			})
		}
	})
}
