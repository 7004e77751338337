package faults

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/pods"
)

// settle starts pods that do what healthy pods do: a web server with long-lived and
// short-lived clients, DNS lookups, pings, disk writes, log files, an idle pod, and an
// external server. They run from the first fault to the last, and no finding may be
// about them.
func (l *lab) settle(t *testing.T) {
	s := &scene{l, t, 900}
	web, dns := s.server("-drain"), s.pod("dns", "dns", ":53").listens(53)
	client := s.pod("busy", "ask", "-every", "100ms", "-askers", "4", "-keep", "200", web.at(8080))
	client.act(pods.ContainerSpec{Name: "fresh"}, "ask", "-fresh", "-every", "250ms", net.JoinHostPort(web.v6().String(), "8080"))
	client.act(pods.ContainerSpec{Name: "names"}, "lookup", "-every", "200ms", dns.at(53))
	client.act(pods.ContainerSpec{Name: "beyond"}, "ask", "-every", "100ms", "-size", "4096", "-keep", "500", s.outsider("serve", ":%d"))
	disk := loopdev.New(t)
	db := s.pod("db")
	db.act(pods.ContainerSpec{Name: "main", Devices: []string{disk}}, "read", "-every", "100ms", disk)
	s.pod("idle")
	client.every(t, 1, "busybox ping -c 1 -W 5 "+dns.v4().String()+" >/dev/null")
	file := filepath.Join(t.TempDir(), "log")
	l.node.every(t, 0.2, fmt.Sprintf("seq 1000 >> %s; mv %[1]s %[1]s.1", file))
}

// calm are healthy scenes that could be mistaken for a fault.
var calm = []struct {
	name string
	make func(*scene)
}{
	{"a rolling restart", func(s *scene) {
		// The old server ends when its last connection has ended.
		old := s.server("-drain")
		next := s.pod("next", "serve", "-late", "2s", ":8080")
		s.pod("client", "ask", "-follow", "-every", "50ms", "-askers", "2", "-keep", "40", old.at(8080), next.at(8080))
		over := time.AfterFunc(4*time.Second, func() { _ = syscall.Kill(old.Container("main").PID, syscall.SIGTERM) })
		s.Cleanup(func() { over.Stop() })
		// A readiness check is refused until the server listens.
		s.node.every(s, 0.5, fmt.Sprintf("(echo > /dev/tcp/%s/8080) 2>/dev/null && exit", next.v4()))
	}},
	{"pods that are busy", func(s *scene) {
		web := s.server()
		client := s.pod("client", "ask", "-fresh", "-every", "20ms", "-askers", "2", web.at(8080))
		client.act(pods.ContainerSpec{Name: "keep"}, "ask", "-every", "20ms", "-askers", "2", "-size", "1024", web.at(8080))
		client.act(pods.ContainerSpec{Name: "hold"}, "hold", "-count", "200", web.at(8080))
		client.act(pods.ContainerSpec{Name: "stream"}, "stream", "-rate", "5000000", s.outsider("serve", "-discard", ":%d"))
		s.pod("sink", "drain", ":5300").listens(5300)
		sink := s.pod("dns", "dns", ":53").listens(53)
		client.act(pods.ContainerSpec{Name: "names"}, "lookup", "-every", "10ms", "-askers", "2", sink.at(53))
		// Limits that are not reached, and rules that accept all packets.
		limit := filepath.Join(cgroup(s, web.Container("main"), "cpu"), "cpu.cfs_quota_us")
		if err := os.WriteFile(limit, []byte("150000"), 0); err != nil {
			s.Fatal(err)
		}
		client.run(s, "tc qdisc add dev eth0 root tbf rate 1gbit burst 1m limit 10m")
		web.run(s, "nft 'add table inet np; add chain inet np input { type filter hook input priority 0; policy drop; }; add rule inet np input ct state established,related accept; add rule inet np input tcp dport 8080 accept; add rule inet np input meta l4proto { icmp, ipv6-icmp } accept'")
		s.node.run(s, "nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post oifname up0 masquerade'")
	}},
	{"mishaps that nobody notices", func(s *scene) {
		web := s.server()
		addr := s.outsider("serve", ":%d")
		client := s.pod("client", "ask", "-every", "20ms", "-askers", "4", addr)
		rule := fmt.Sprintf("FORWARD -p tcp --dport %d -m statistic --mode nth --every 1000 --packet 500 -j DROP", s.port())
		s.wire.run(s, "iptables -w -A %s", rule)
		s.Cleanup(func() { s.wire.run(s, "iptables -w -D %s", rule) })
		killed := client.act(pods.ContainerSpec{Name: "killed"}, "ask", "-every", "50ms", "-askers", "3", web.at(8080))
		later := time.AfterFunc(4*time.Second, func() {
			_ = syscall.Kill(killed.PID, syscall.SIGKILL)
			// A scan of two ports.
			_, _ = client.try("for p in 22 23; do echo > /dev/tcp/%s/$p; done", web.v4())
		})
		s.Cleanup(func() { later.Stop() })
		// A single query to a port without a server.
		testkit.Start(s, client.command("timeout 2 bash -c 'echo > /dev/tcp/10.88.79.240/80'"))
	}},
}

// healthy runs diagnose during a healthy scene.
func (l *lab) healthy(t *testing.T, i int) diagnosis {
	t.Cleanup(func() { l.clean(t) })
	calm[i].make(&scene{l, t, 901})
	return l.diagnose(t)
}

func (p *pod) v6() (a net.IP) {
	for _, x := range p.Addrs {
		if x.Is6() {
			return x.AsSlice()
		}
	}
	return nil
}
