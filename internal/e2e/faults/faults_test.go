package faults

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/nfqueue"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/slowfile"
	"nodeskoop/internal/testkit/tracked"
)

// fault is a fault and the expected result of diagnose.
type fault struct {
	cause string
	// variant distinguishes faults of one cause; "" for the plain one.
	variant string
	// how describes for a reader how the fault is created.
	how string
	// make creates the fault, and returns the ends that may be blamed, and the
	// proof.
	make func(*scene) (blame []string, p proof)
	// machine: the fault affects all namespaces of the machine. It is only created
	// if requested by name, or if NODESKOOP_FAULTS_MACHINE is set.
	machine bool
}

// name identifies a fault: its cause, and the variant.
func (f fault) name() string {
	if f.variant == "" {
		return f.cause
	}
	return f.cause + "/" + f.variant
}

const blameNode, blamePath = "node", "path"

// beyond lists the ends that stand for hosts behind the wire.
func beyond(address string) []string {
	host, _, _ := strings.Cut(address, ":")
	return []string{host, address}
}

var faults = []fault{
	{cause: "policy-drop-pod", how: "a rule in the pod drops what comes to the port of its server", make: func(s *scene) ([]string, proof) {
		web := s.server()
		web.run(s, `nft 'add table inet np; add chain inet np input { type filter hook input priority 0; }; add rule inet np input tcp dport 8080 counter drop comment "deny-web"'`)
		s.pod("client", "ask", "-fresh", "-limit", "1s", "-askers", "3", web.at(8080))
		return []string{web.label()}, matched(web.Name, web.netns, "deny-web", 5)
	}},
	{cause: "policy-drop-pod", variant: "reject", how: "a rule in the pod rejects what comes to the port of its server, with a reset, once in 3 s", make: func(s *scene) ([]string, proof) {
		web := s.server()
		web.run(s, `nft 'add table inet np; add chain inet np input { type filter hook input priority 0; }; add rule inet np input tcp dport 8080 counter reject with tcp reset comment "reject-web"'`)
		s.pod("client", "ask", "-fresh", "-every", "3s", web.at(8080))
		return []string{web.label()}, matched(web.Name, web.netns, "reject-web", 2)
	}},
	{cause: "policy-drop-host", how: "a rule of the node drops what a pod forwards to a server beyond", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		client := s.pod("client", "ask", "-fresh", "-limit", "1s", "-askers", "3", addr)
		s.node.run(s, `nft 'add table inet fw%d; add chain inet fw%[1]d forward { type filter hook forward priority 0; }; add rule inet fw%[1]d forward ip saddr %s tcp dport %d counter drop comment "deny-out%[1]d"'`, s.id, client.v4(), s.port())
		return []string{blameNode}, matched("the node", s.node, fmt.Sprintf("deny-out%d", s.id), 5)
	}},
	{cause: "closed-port", how: "a client asks a port on which the pod has no server", make: func(s *scene) ([]string, proof) {
		web := s.server()
		s.pod("client", "ask", "-fresh", "-every", "100ms", web.at(8081))
		return []string{web.label()}, nstat(web.Name, web.netns, "TcpOutRsts", 20)
	}},
	{cause: "closed-port", variant: "many", how: "100 addresses, each once, ask a port on which the pod has no server", make: func(s *scene) ([]string, proof) {
		web := s.server()
		s.wire.run(s, "ip route replace 203.0.113.0/24 via %s", outsideAddress)
		s.outside.run(s, `nft 'add table ip spoofed; add chain ip spoofed pre { type filter hook prerouting priority 0; }; add rule ip spoofed pre ip daddr 203.0.113.0/24 drop'`)
		s.outside.start(s, s.program, "syns", "-every", "100ms", web.at(8081))
		return []string{web.label()}, nstat(web.Name, web.netns, "TcpOutRsts", 20)
	}},
	{cause: "mtu-black-hole", how: "a link beyond carries 1,280 bytes at most, and its router's ICMP is dropped", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		s.wire.run(s, "ip link set out0 mtu 1280")
		s.Cleanup(func() { s.wire.run(s, "ip link set out0 mtu 1500") })
		s.wire.run(s, `nft 'add table ip icmp%d; add chain ip icmp%[1]d output { type filter hook output priority 0; }; add rule ip icmp%[1]d output icmp type destination-unreachable counter drop comment "too-big"'`, s.id)
		s.pod("client", "ask", "-size", "8192", "-askers", "4", "-limit", "4s", addr)
		return []string{blamePath}, matched("the router", s.wire, "too-big", 5)
	}},
	{cause: "accept-queue-full", how: "a server with a backlog of 3 accepts a connection each 700 ms", make: func(s *scene) ([]string, proof) {
		web := s.server("-backlog", "3", "-accept-every", "700ms")
		s.pod("client", "ask", "-fresh", "-askers", "12", "-every", "50ms", web.at(8080))
		return []string{web.label()}, nstat(web.Name, web.netns, "TcpExtListenOverflows", 5)
	}},
	{cause: "syn-flood", how: "250 SYNs a second from 254 addresses that do not answer, for a backlog of 32", make: func(s *scene) ([]string, proof) {
		web := s.pod("web")
		web.run(s, "sysctl -qw net.ipv4.tcp_max_syn_backlog=64")
		web.act(pods.ContainerSpec{Name: "main"}, "serve", "-backlog", "32", ":8080")
		web.listens(8080)
		s.pod("client", "ask", "-fresh", web.at(8080))
		s.wire.run(s, "ip route replace 203.0.113.0/24 via %s", outsideAddress)
		s.outside.run(s, `nft 'add table ip spoofed; add chain ip spoofed pre { type filter hook prerouting priority 0; }; add rule ip spoofed pre ip daddr 203.0.113.0/24 drop'`)
		s.outside.start(s, s.program, "syns", "-every", "4ms", web.at(8080))
		return []string{blamePath}, sockets(web.Name, web.netns, "state syn-recv", 20)
	}},
	{cause: "udp-receive-buffer-full", how: "a process does not read the 500 datagrams a second that come to it", make: func(s *scene) ([]string, proof) {
		web := s.pod("web", "deaf", ":5300").listens(5300)
		s.pod("client", "send", "-every", "2ms", "-size", "1000", web.at(5300))
		return []string{web.label()}, nstat(web.Name, web.netns, "UdpRcvbufErrors", 500)
	}},
	{cause: "slow-reader", how: "a server reads each request 400 ms after it came", make: func(s *scene) ([]string, proof) {
		web := s.server("-after", "400ms")
		s.pod("client", "ask", "-every", "50ms", "-askers", "6", web.at(8080))
		p := sockets(web.Name, web.netns, "state established 'sport = :8080' | awk '$1 > 0'", 1)
		p.what = "sockets of " + web.Name + " with unread data (ss -Htan)"
		return []string{web.label()}, p
	}},
	{cause: "slow-reader", variant: "stopped", how: "the process of a server is stopped (SIGSTOP) while clients wait for answers", make: func(s *scene) ([]string, proof) {
		web := s.server()
		s.pod("client", "ask", "-every", "50ms", "-askers", "4", "-limit", "1m", web.at(8080))
		testkit.Eventually(s, "the clients are connected", func() bool {
			out, err := web.try("ss -Htan state established 'sport = :8080'")
			return err == nil && strings.Count(out, "\n") >= 4
		})
		if err := unix.Kill(web.Container("main").PID, unix.SIGSTOP); err != nil {
			s.Fatal(err)
		}
		p := sockets(web.Name, web.netns, "state established 'sport = :8080' | awk '$1 > 0'", 4)
		p.what = "sockets of " + web.Name + " with unread data (ss -Htan)"
		return []string{web.label()}, p
	}},
	{cause: "zero-window", how: "a server beyond reads 20 kB/s of what a pod streams to it", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", "-rate", "20000", ":%d")
		s.pod("client", "stream", addr)
		return beyond(addr), nstat("the server beyond", s.outside, "TcpExtTCPToZeroWindowAdv", 5)
	}},
	{cause: "reset-by-middlebox", how: "something between two pods forges resets of established connections", make: func(s *scene) ([]string, proof) {
		web := s.server()
		s.pod("client", "ask", "-every", "50ms", "-askers", "4", web.at(8080))
		return []string{blamePath}, s.forgeResets(web)
	}},
	{cause: "aborted-connections", how: "a server closes connections whose request it has not read", make: func(s *scene) ([]string, proof) {
		web := s.server("-abort")
		s.pod("client", "ask", "-fresh", "-every", "100ms", web.at(8080))
		return []string{web.label()}, nstat(web.Name, web.netns, "TcpExtTCPAbortOnClose", 20)
	}},
	{cause: "wire-loss", how: "the wire loses 5 % of all segments", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		s.pod("client", "ask", "-every", "20ms", "-askers", "6", "-size", "1024", addr)
		return []string{blamePath}, s.lose()
	}},
	{cause: "wire-loss", variant: "many", how: "the wire loses 5 % of all segments to 40 addresses, of which each gets few", make: func(s *scene) ([]string, proof) {
		s.outsider("serve", ":%d")
		ask := []string{"ask", "-fresh", "-askers", "4", "-every", "50ms", "-size", "1024"}
		for i := range 40 {
			addr := fmt.Sprintf("198.51.100.%d", 100+i)
			s.outside.run(s, "ip addr replace %s/24 dev eth0", addr)
			ask = append(ask, fmt.Sprintf("%s:%d", addr, s.port()))
		}
		s.pod("client", ask...)
		return []string{blamePath}, s.lose()
	}},
	{cause: "wire-reordering", how: "the wire holds one segment in eight for 8 ms", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", "-discard", ":%d")
		var n atomic.Int64
		s.queue(fmt.Sprintf("-p tcp --dport %d -m length --length 500:", s.port()), func(q *nfqueue.Queue, p nfqueue.Packet) {
			if n.Add(1)%8 == 0 {
				time.AfterFunc(8*time.Millisecond, func() { _ = q.Accept(p.ID) })
				return
			}
			_ = q.Accept(p.ID)
		})
		s.pod("client", "stream", "-rate", "800000", addr)
		return []string{blamePath}, nstat("the server beyond", s.outside, "TcpExtTCPOFOQueue", 50)
	}},
	{cause: "bandwidth-limit", how: "a shaper (tbf) lets 2 Mbit/s out of a pod that streams", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", "-discard", ":%d")
		client := s.pod("client")
		client.run(s, "tc qdisc add dev eth0 root tbf rate 2mbit burst 10k limit 300k")
		client.act(pods.ContainerSpec{Name: "main"}, "stream", addr)
		return []string{client.label()}, queued(client.Name, client.netns, "eth0", "overlimits", 50)
	}},
	{cause: "bandwidth-limit", variant: "veth", how: "a shaper (tbf) on the node's end of a pod's veth lets 2 Mbit/s into the pod, to which another streams", make: func(s *scene) ([]string, proof) {
		sink := s.pod("sink", "serve", "-discard", ":8080").listens(8080)
		// The kernel names the other end of a veth by its index: eth0@if7.
		link, err := sink.try("ip -o link show eth0")
		if err != nil {
			s.Fatal(err)
		}
		index, err := number(link, `eth0@if(\d+)`)
		if err != nil {
			s.Fatal(err)
		}
		dev, err := s.node.try("ip -o link | awk -F '[ :@]+' '$1 == %.0f { print $2 }'", index)
		if err != nil {
			s.Fatal(err)
		}
		dev = strings.TrimSpace(dev)
		s.node.run(s, "tc qdisc replace dev %s root tbf rate 2mbit burst 10k limit 300k", dev)
		s.pod("client", "stream", sink.at(8080))
		return []string{sink.label()}, queued("the node", s.node, dev, "overlimits", 50)
	}},
	{cause: "qdisc-full", how: "a queue of 15 kB (tbf of 20 Mbit/s) gets bursts of 60 kB of a pod that sends 5 Mbit/s", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("drain", ":%d")
		client := s.pod("client")
		client.run(s, "tc qdisc add dev eth0 root tbf rate 20mbit burst 10k limit 15k")
		client.act(pods.ContainerSpec{Name: "main"}, "send", "-every", "100ms", "-burst", "60", "-size", "1000", addr)
		return []string{client.label()}, queued(client.Name, client.netns, "eth0", "dropped", 50)
	}},
	{cause: "conntrack-full", how: "the node's table of connections is full, and pods that it forwards for open more", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		s.pod("client", "ask", "-fresh", "-limit", "1s", "-askers", "3", addr)
		s.node.run(s, `nft 'add table ip nat%d; add chain ip nat%[1]d post { type nat hook postrouting priority 100; }; add rule ip nat%[1]d post oifname up0 masquerade'`, s.id)
		file := filepath.Join(s.TempDir(), "connections")
		if err := os.WriteFile(file, []byte(tracked.Established(tracked.Limit(s.TB))), 0o600); err != nil {
			s.Fatal(err)
		}
		_, _ = s.node.try("conntrack -R %s >/dev/null 2>&1", file) // the last connections may find no room
		return []string{blameNode}, tracking("the node", s.node, 5, "drop")
	}},
	{cause: "conntrack-race", how: "three pods behind one address ask a resolver at the same instant from the same port, past 60,000 rules", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("dns", ":%d")
		var rules strings.Builder
		fmt.Fprintf(&rules, "table ip nat%d {\n chain post { type nat hook postrouting priority 100; oifname up0 masquerade; }\n", s.id)
		rules.WriteString(" chain slow { type filter hook postrouting priority 200; oifname != up0 accept\n")
		for i := range 60000 {
			fmt.Fprintf(&rules, "  ip saddr 172.%d.%d.%d drop\n", 16+i>>16, i>>8&255, i&255)
		}
		rules.WriteString(" }\n}\n")
		file := filepath.Join(s.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
			s.Fatal(err)
		}
		s.node.run(s, "nft -f %s", file)
		for _, name := range []string{"client", "other", "third"} {
			s.pod(name, "lookup", "-aligned", "-every", "50ms", "-port", "20000", "-limit", "300ms", addr)
		}
		return []string{blameNode}, tracking("the node", s.node, 3, "insert_failed")
	}},
	{cause: "nat-ports-used-up", how: "the node translates connections to 20 ports, and a pod wants more", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		rule := fmt.Sprintf("POSTROUTING -p tcp -d %s --dport %d -j MASQUERADE --to-ports 40000-40019", outsideAddress, s.port())
		s.node.run(s, "iptables -w -t nat -A %s", rule)
		s.Cleanup(func() { s.node.run(s, "iptables -w -t nat -D %s", rule) })
		s.pod("client", "hold", "-again", "50ms", addr)
		return []string{blameNode}, tracking("the node", s.node, 3, "insert_failed", "drop")
	}},
	{cause: "neighbour-gone", how: "a pod asks an address of its own network that nobody has", make: func(s *scene) ([]string, proof) {
		client := s.pod("client", "ask", "-fresh", "-limit", "4s", "-askers", "2", "10.88.79.250:8080")
		p := proof{what: "entries of " + client.Name + " that failed (ip neigh)", least: 1, level: true, read: func() (float64, error) {
			out, err := client.try("ip neigh show 10.88.79.250 | grep -cE 'FAILED|INCOMPLETE'; true")
			if err != nil {
				return 0, err
			}
			return number(out, `(\d+)`)
		}}
		return []string{"10.88.79.250"}, p
	}},
	{cause: "no-route", how: "the routing table of a pod has no default route", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		client := s.pod("client")
		client.run(s, "ip route del default; ip -6 route del default")
		client.act(pods.ContainerSpec{Name: "main"}, "ask", "-fresh", "-every", "100ms", addr)
		return []string{client.label()}, nstat(client.Name, client.netns, "IpOutNoRoutes", 20)
	}},
	{cause: "bad-checksum", how: "the wire changes a byte in one of four answers", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		var n atomic.Int64
		s.queue(fmt.Sprintf("-p tcp --sport %d -m length --length 100:", s.port()), func(q *nfqueue.Queue, p nfqueue.Packet) {
			if n.Add(1)%4 != 0 {
				_ = q.Accept(p.ID)
				return
			}
			changed := append([]byte(nil), p.Data...)
			changed[len(changed)-1] ^= 0x55
			_ = q.Replace(p.ID, changed)
		})
		client := s.pod("client", "ask", "-every", "50ms", "-askers", "4", addr)
		return append(beyond(addr), blamePath), nstat(client.Name, client.netns, "TcpInCsumErrors", 5)
	}},
	{cause: "cpu-throttled", how: "a server that needs 15 ms of CPU for a request has a quota of a tenth of a CPU", make: func(s *scene) ([]string, proof) {
		web := s.server("-burn", "15ms")
		s.pod("client", "ask", "-askers", "4", "-every", "50ms", "-limit", "20s", web.at(8080))
		dir := cgroup(s, web.Container("main"), "cpu")
		if err := os.WriteFile(filepath.Join(dir, "cpu.cfs_quota_us"), []byte("10000"), 0); err != nil {
			s.Fatal(err)
		}
		return []string{web.label()}, inFile("nr_throttled of the container of "+web.Name+" (cpu.stat)", filepath.Join(dir, "cpu.stat"), `nr_throttled (\d+)`, 20)
	}},
	{cause: "descriptor-limit", how: "a server that may have 40 files open has 40, and more connections wait for it", make: func(s *scene) ([]string, proof) {
		web := s.server("-files", "40")
		s.pod("client", "hold", "-count", "60", web.at(8080))
		s.pod("other", "ask", "-fresh", "-limit", "2s", web.at(8080))
		pid := web.Container("main").PID
		return []string{web.label()}, proof{what: fmt.Sprintf("descriptors of process %d (/proc/PID/fd)", pid), least: 40, level: true, read: func() (float64, error) {
			list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			return float64(len(list)), err
		}}
	}},
	{cause: "wrong-listen-address", how: "a server listens on 127.0.0.1, and a client asks the pod's address", make: func(s *scene) ([]string, proof) {
		web := s.pod("web", "serve", "127.0.0.1:8080").listens(8080)
		s.pod("client", "ask", "-fresh", "-every", "100ms", web.at(8080))
		return []string{web.label()}, nstat(web.Name, web.netns, "TcpOutRsts", 20)
	}},
	{cause: "ipv6-half-broken", how: "the wire loses all of IPv6, which a client tries first, and IPv4 works", make: func(s *scene) ([]string, proof) {
		addr := s.outsider("serve", ":%d")
		s.wire.run(s, `nft 'add table ip6 wire%d; add chain ip6 wire%[1]d forward { type filter hook forward priority 0; }; add rule ip6 wire%[1]d forward tcp dport %d counter drop comment "lost6-%[1]d"'`, s.id, s.port())
		client := s.pod("client", "ask", "-fresh", "-limit", "1s", "-askers", "3", fmt.Sprintf("[%s]:%d", outsideIPv6, s.port()), addr)
		return []string{blamePath, client.label()}, matched("the wire", s.wire, fmt.Sprintf("lost6-%d", s.id), 5)
	}},
	{cause: "slow-disk", how: "each read of a disk takes 150 ms (a loop device over a slow file of FUSE)", make: func(s *scene) ([]string, proof) {
		dev := slowfile.Disk(s, 1<<20, 150*time.Millisecond)
		p := waited(s, dev, 100)
		s.pod("db").act(pods.ContainerSpec{Name: "main", Devices: []string{dev}}, "read", dev)
		return []string{blameNode, filepath.Base(dev), dev}, p
	}},
	{cause: "disk-throttled", how: "the control group of a pod may make 5 reads a second", make: func(s *scene) ([]string, proof) {
		dev := loopdev.New(s)
		db := s.pod("db")
		k := db.act(pods.ContainerSpec{Name: "main", Devices: []string{dev}}, "read", dev)
		var st unix.Stat_t
		if err := unix.Stat(dev, &st); err != nil {
			s.Fatal(err)
		}
		number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		dir := cgroup(s, k, "blkio")
		if err := os.WriteFile(filepath.Join(dir, "blkio.throttle.read_iops_device"), []byte(number+" 5"), 0); err != nil {
			s.Fatal(err)
		}
		// A process that the limit throttles waits in the kernel.
		return []string{db.label()}, proof{what: "share of 20 looks at which the reader of " + db.Name + " waits for the disk (/proc/PID/stat)", least: 0.7, level: true, read: func() (float64, error) {
			waits := 0.0
			for range 20 {
				threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", k.PID))
				if err != nil {
					return 0, err
				}
				for _, file := range threads {
					if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), ") D ") {
						waits++
						break
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
			return waits / 20, nil
		}}
	}},
	{cause: "time-wait-exhaustion", how: "a client with 100 local ports opens a connection for each request, 50 times a second", make: func(s *scene) ([]string, proof) {
		web := s.server()
		client := s.pod("client")
		client.run(s, "sysctl -qw net.ipv4.ip_local_port_range='40000 40099' net.ipv4.tcp_tw_reuse=0")
		client.act(pods.ContainerSpec{Name: "main"}, "ask", "-fresh", "-every", "20ms", web.at(8080))
		return []string{client.label()}, sockets(client.Name, client.netns, "state time-wait", 95)
	}},
	{cause: "ephemeral-ports-used-up", how: "a client with 100 local ports has 100 connections to one server, and wants more", make: func(s *scene) ([]string, proof) {
		web := s.server()
		client := s.pod("client")
		client.run(s, "sysctl -qw net.ipv4.ip_local_port_range='40000 40099'")
		client.act(pods.ContainerSpec{Name: "main"}, "hold", web.at(8080))
		return []string{client.label()}, sockets(client.Name, client.netns, "state established", 95)
	}},
	{cause: "dns-slow", how: "a resolver answers after 1.5 s", make: func(s *scene) ([]string, proof) {
		dns := s.pod("dns", "dns", "-after", "1500ms", ":53").listens(53)
		client := s.pod("client", "lookup", "-askers", "4", "-every", "100ms", dns.at(53))
		return []string{dns.label(), dns.v4().String(), dns.at(53)}, proof{what: "seconds of a look-up from " + client.Name, least: 1.4, level: true, read: func() (float64, error) {
			start := time.Now()
			_, err := client.try("%s %s once %s", s.program, actorVerb, dns.at(53))
			return time.Since(start).Seconds(), err
		}}
	}},
	{cause: "arp-flux", how: "a second interface of the node on the network of the pods answers for the first one's address, and gets what is meant for that", make: func(s *scene) ([]string, proof) {
		s.node.run(s, "ip link add flux0 type veth peer name flux1 && ip link set flux1 master cni0 up && ip addr add 10.88.79.251/22 dev flux0 && ip link set flux0 up")
		s.Cleanup(func() { s.node.run(s, "ip link del flux0") })
		s.node.run(s, `nft 'add table inet flux; add chain inet flux input { type filter hook input priority 0; }; add rule inet flux input iifname flux0 ip daddr %s counter comment "by-flux0"'`, gateway)
		s.node.start(s, s.program, "serve", fmt.Sprintf("%s:%d", gateway, s.port()))
		client := s.pod("client")
		// If several answers arrive, even within the same moment, the last one wins:
		// the one from the veth.
		client.run(s, "sysctl -qw net.ipv4.neigh.eth0.locktime=-1; ip neigh flush to "+gateway)
		client.act(pods.ContainerSpec{Name: "main"}, "ask", "-fresh", "-limit", "1s", "-askers", "3", fmt.Sprintf("%s:%d", gateway, s.port()))
		return []string{blameNode}, matched("the node", s.node, "by-flux0", 20)
	}},
	{cause: "softirq-cpu-busy", how: "datagrams, which one CPU receives, pass 60,000 rules", make: func(s *scene) ([]string, proof) {
		gw := s.pod("gw", "drain", ":5300").listens(5300)
		var rules strings.Builder
		rules.WriteString("table inet np {\n chain input {\n  type filter hook input priority 0;\n")
		for i := range 60000 {
			fmt.Fprintf(&rules, "  ip saddr 172.%d.%d.%d drop\n", 16+i>>16, i>>8&255, i&255)
		}
		rules.WriteString(" }\n}\n")
		file := filepath.Join(s.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
			s.Fatal(err)
		}
		// Another CPU than the sender's receives the packets, as with a multi-queue
		// NIC.
		gw.run(s, "nft -f %s && unshare -m sh -c 'mount -t sysfs sysfs /sys && mount -o remount,rw /sys && echo 2 > /sys/class/net/eth0/queues/rx-0/rps_cpus'", file)
		s.pod("client", "send", "-every", "1ms", "-burst", "4", gw.at(5300))
		return []string{blameNode}, inFile("jiffies that CPU 1 spent in softirqs (/proc/stat)", "/proc/stat", `cpu1 \d+ \d+ \d+ \d+ \d+ \d+ (\d+)`, 500)
	}},
	{cause: "tcp-memory-pressure", how: "a process of the node hoards connections with full buffers until TCP's memory is under pressure", make: func(s *scene) ([]string, proof) {
		b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
		if err != nil {
			s.Fatal(err)
		}
		pressure, err := strconv.Atoi(strings.Fields(string(b))[1])
		if err != nil {
			s.Fatal(err)
		}
		// A pod may not have buffers of this size.
		s.node.start(s, s.program, "hoard", strconv.Itoa(pressure))
		return []string{blameNode}, nstat("the node", s.node, "TcpExtTCPMemoryPressures", 1)
	}, machine: true},
	{cause: "neighbour-table-full", how: "a pod sends to 2,000 addresses a second of a network of its own, none of which answers", make: func(s *scene) ([]string, proof) {
		client := s.pod("client")
		client.run(s, "ip addr add 10.99.0.1/16 dev eth0")
		client.act(pods.ContainerSpec{Name: "main"}, "scan", "10.99.0.2")
		return []string{client.label(), blameNode}, proof{what: "table_fulls (/proc/net/stat/arp_cache)", least: 100, read: func() (float64, error) {
			b, err := os.ReadFile("/proc/net/stat/arp_cache")
			if err != nil {
				return 0, err
			}
			return sumOfColumn(string(b), "table_fulls")
		}}
	}, machine: true},
}

// lose makes the wire lose 5 % of the segments from and to the scene's port.
func (s *scene) lose() proof {
	s.Helper()
	rule := fmt.Sprintf("FORWARD -p tcp --dport %d -m statistic --mode random --probability 0.05 -m comment --comment lost%d -j DROP", s.port(), s.id)
	rule2 := fmt.Sprintf("FORWARD -p tcp --sport %d -m statistic --mode random --probability 0.05 -m comment --comment lost-answers%d -j DROP", s.port(), s.id)
	s.wire.run(s, "iptables -w -A %s && iptables -w -A %s", rule, rule2)
	s.Cleanup(func() { s.wire.run(s, "iptables -w -D %s && iptables -w -D %s", rule, rule2) })
	return ruled("the wire", s.wire, "filter", fmt.Sprintf("lost%d", s.id), 5)
}

// forgeResets captures the node's traffic to a server, and sends one client in ten
// segments a reset in the server's name, which the server has not sent.
func (s *scene) forgeResets(web *pod) proof {
	s.Helper()
	fd, err := unix.Open(string(s.node), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.Fatal(err)
	}
	defer unix.Close(fd)
	// The bridge takes frames before sockets that want only IPv4.
	const all, ipv4 = unix.ETH_P_ALL << 8, unix.ETH_P_IP >> 8
	ear, mouth := -1, -1
	var e error
	err = kernel.InNetnsFD(fd, func() error {
		if ear, e = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); e != nil {
			return e
		}
		mouth, e = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return e
	})
	if err != nil {
		s.Fatalf("open the sockets of what forges resets: %v", err)
	}
	var forged atomic.Int64
	over := make(chan struct{})
	ended := make(chan struct{})
	_ = unix.SetsockoptTimeval(ear, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	go func() {
		defer close(ended)
		b := make([]byte, 4096)
		for {
			select {
			case <-over:
				return
			default:
			}
			n, from, err := unix.Recvfrom(ear, b, 0)
			ll, _ := from.(*unix.SockaddrLinklayer)
			if err != nil || n < 60 || ll == nil || ll.Protocol != ipv4 || ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			ip := b[:n]
			tcp := ip[int(ip[0]&15)*4:]
			dst := netip.AddrFrom4([4]byte(ip[16:20]))
			if ip[9] != unix.IPPROTO_TCP || dst != web.v4() || binary.BigEndian.Uint16(tcp[2:]) != 8080 || tcp[13]&0x08 == 0 || rand.IntN(10) != 0 {
				continue
			}
			r := make([]byte, 40)
			r[0], r[8], r[9] = 0x45, 64, unix.IPPROTO_TCP
			copy(r[12:], ip[16:20])
			copy(r[16:], ip[12:16])
			copy(r[20:], tcp[2:4])
			copy(r[22:], tcp[0:2])
			copy(r[24:], tcp[8:12]) // the next byte that the client awaits
			r[32], r[33] = 5<<4, 0x04
			sum := append(append([]byte{}, r[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
			binary.BigEndian.PutUint16(r[36:], checksum(append(sum, r[20:]...)))
			if unix.Sendto(mouth, r, 0, &unix.SockaddrInet4{Addr: [4]byte(r[16:20])}) == nil {
				forged.Add(1)
			}
		}
	}()
	s.Cleanup(func() {
		close(over)
		<-ended
		_, _ = unix.Close(ear), unix.Close(mouth)
	})
	return proof{what: "resets that were forged", least: 5, read: func() (float64, error) { return float64(forged.Load()), nil }}
}
