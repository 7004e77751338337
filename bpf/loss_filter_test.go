package bpf

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// TestLossFilters loses packets by nftables rules.
func TestLossFilters(t *testing.T) {
	x := newLossLab(t)
	inet := "add table inet t; add chain inet t c { type filter hook %s priority 0; }; add rule inet t c udp dport %d counter %s"
	netdev := "add table netdev t; add chain netdev t c { type filter hook %s device eth0 priority 0; }; add rule netdev t c udp dport %d counter %s"
	x.each(t, func(t *testing.T, family string, from, to netip.Addr) {
		for _, c := range []struct {
			where         string
			in            *namespace
			hook, verdict string
			device, rules string
		}{
			{"receiver", x.b, "prerouting", "drop", "eth0", inet},
			{"receiver", x.b, "input", "drop", "eth0", inet},
			{"receiver", x.b, "input", "reject", "eth0", inet},
			{"router", x.r.namespace, "forward", "drop", "right", inet},
			{"router", x.r.namespace, "forward", "reject", "right", inet},
			{"router", x.r.namespace, "postrouting", "drop", "right", inet},
			{"sender", x.a, "output", "drop", "eth0", inet},
			{"sender", x.a, "output", "reject", "eth0", inet},
			{"sender", x.a, "postrouting", "drop", "eth0", inet},
			{"receiver", x.b, "ingress", "drop", "eth0", netdev},
			{"sender", x.a, "egress", "drop", "eth0", netdev},
		} {
			x.lose(t, fmt.Sprintf("%s nft %s, %s at the %s", family, c.verdict, c.hook, c.where), loss{
				in: c.in, n: losses, source: nftCount(c.in), class: DropNetfilter, reasons: "NETFILTER_DROP", functions: "nft_do_chain nf_hook_slow",
				from: port(from, lossFrom), to: port(to, lossTo), protocol: unix.IPPROTO_UDP,
				prepare: func(t *testing.T) {
					rules := fmt.Sprintf(c.rules, c.hook, lossTo, c.verdict)
					if c.hook == "egress" { // since Linux 5.16
						err := c.in.try(func() error { return exec.Command("nft", "-c", rules).Run() })
						need.Kernel(t, err == nil, "netfilter has no hook egress")
					}
					c.in.ruleset(t, rules)
				},
			}, func(t *testing.T) {
				x.a.udp(t, port(to, lossTo), losses, 10)
			})
		}
	})
}
