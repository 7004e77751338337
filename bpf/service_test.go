package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestServiceAddress: whether an event or a flow shows the service's or the
// backend's address, as docs/EVENTS.md and docs/METRICS.md say.
func TestServiceAddress(t *testing.T) {
	need.Program(t, "nft")
	for _, place := range []string{"client", "router"} {
		t.Run(place, func(t *testing.T) { testServiceAddress(t, place) })
	}
}

func testServiceAddress(t *testing.T, place string) {
	r := newRouter(t)
	a, b := r.a, r.b
	l := newTestLoader(t, Options{EventRate: 1e6, EventBurst: 1e6})
	flows := l.load("flow", Config{Ports: true})
	for _, name := range []string{"tcpreset", "tcpretrans", "packetloss"} {
		l.load(name, Config{})
	}
	nat := map[string]*namespace{"client": a, "router": r.namespace}[place]
	for family, backend := range map[string]netip.Addr{"ip": b.v4, "ip6": b.v6} {
		service := netip.MustParseAddrPort("10.9.9.9:80")
		if family == "ip6" {
			service = netip.MustParseAddrPort("[fd09::9]:80")
		}
		to := netip.AddrPortFrom(backend, 8080)
		nat.run(t, "nft", fmt.Sprintf("add table %[1]s n; add chain %[1]s n p { type nat hook prerouting priority -100; }; add chain %[1]s n o { type nat hook output priority -100; }; "+
			"add rule %[1]s n p %[1]s daddr %[2]s tcp dport 80 dnat to %[3]s; add rule %[1]s n o %[1]s daddr %[2]s tcp dport 80 dnat to %[3]s", family, service.Addr(), to))
		listen := func() net.Listener {
			var listener net.Listener
			b.do(t, func() (err error) {
				listener, err = net.Listen("tcp", to.String())
				return err
			})
			return listener
		}
		pair := func() (client, server *net.TCPConn) {
			listener := listen()
			defer listener.Close()
			accepted := make(chan net.Conn, 1)
			go func() {
				c, _ := listener.Accept()
				accepted <- c
			}()
			client = a.dial(t, "tcp", service).(*net.TCPConn)
			server = (<-accepted).(*net.TCPConn)
			t.Cleanup(func() { server.Close() })
			return client, server
		}
		// Each kind of reset.
		client, server := pair()
		client.SetLinger(0)
		client.Close()
		l.eventually("the reset", func() bool { return state(t, server) == "CLOSE" })
		client, server = pair()
		client.Write([]byte("data"))
		l.eventually("data", func() bool { return unread(t, server) > 0 })
		server.Close()
		l.eventually("the reset", func() bool { return state(t, client) == "CLOSE" })
		a.try(func() error {
			net.Dial("tcp", service.String())
			return nil
		})
		client, server = pair()
		client.Close()
		l.eventually("FIN_WAIT2", func() bool { return a.states(t, 5) == 1 })
		server.Write([]byte("late"))
		l.eventually("the reset", func() bool { return state(t, server) == "CLOSE" })
		// The client drops a connection silently.
		client, server = pair()
		release := b.swallow(t, "tcp flags & rst == rst")
		client.SetLinger(0)
		client.Close()
		l.eventually("the reset", func() bool { return b.swallowed(t) > 0 })
		release()
		server.Write([]byte("late"))
		l.eventually("the reset", func() bool { return state(t, server) == "CLOSE" })
		// Retransmissions at either end, and losses on the path.
		client, server = pair()
		release = b.swallow(t, "tcp dport != 0")
		before := a.counter(t, "Tcp.RetransSegs")
		client.Write([]byte("data"))
		l.eventually("a retransmission", func() bool { return a.counter(t, "Tcp.RetransSegs") > before })
		release()
		l.eventually("data", func() bool { return unread(t, server) > 0 })
		server.Read(make([]byte, 10))
		release = a.swallow(t, "tcp dport != 0")
		before = b.counter(t, "Tcp.RetransSegs")
		server.Write([]byte("data"))
		l.eventually("a retransmission", func() bool { return b.counter(t, "Tcp.RetransSegs") > before })
		release()
		l.eventually("data", func() bool { return unread(t, client) > 0 })
		client.Read(make([]byte, 10))
		client.Close()
		server.Close()
		for hook, priority := range map[string]string{"prerouting": "-300", "forward": "0", "output": "0"} {
			n := r.namespace
			if hook == "output" {
				n = a
			}
			client, server := pair()
			n.run(t, "nft", fmt.Sprintf("add table inet d; add chain inet d c { type filter hook %s priority %s; }; add rule inet d c meta l4proto tcp counter drop", hook, priority))
			client.Write([]byte("data"))
			l.eventually("a drop", func() bool { return !strings.Contains(n.run(t, "nft", "list table inet d"), "counter packets 0 ") })
			n.run(t, "nft", "delete table inet d")
			client.SetLinger(0)
			client.Close()
			// A RST of the server that crosses the client's would not be
			// translated, since conntrack has already dropped the connection.
			l.eventually("the reset", func() bool { return state(t, server) == "CLOSE" })
			server.Close()
		}
	}
	name := func(p netip.AddrPort) string {
		switch p.Addr() {
		case netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("fd09::9"):
			return "service"
		case b.v4, b.v6:
			return "backend"
		case a.v4, a.v6:
			return "client"
		}
		return p.String()
	}
	where := map[uint64]string{a.inode: "client", b.inode: "backend", r.inode: "router"}
	// A packet that leaves the translating namespace is translated.
	leaves := map[string]string{"client": "client -> backend", "router": "client -> service"}[place]
	want := map[string][]string{
		"TCPRESET_ACTIVE in client":  {"client -> service"},
		"TCPRESET_RECEIVE in client": {"client -> service"},
		"TCPRESET_NOSOCK in client":  {"client -> service"},
		"TCPRESET_PROCESS in client": {"client -> service"},
		"TCPRETRANS in client":       {"client -> service"},
		// TCP at the client has no socket for such a packet.
		"PACKETLOSS in client":        {leaves, "service -> client"},
		"flow in client":              {leaves},
		"PACKETLOSS in router":        {"client -> backend"},
		"TCPRESET_ACTIVE in backend":  {"backend -> client"},
		"TCPRESET_RECEIVE in backend": {"backend -> client"},
		"TCPRESET_NOSOCK in backend":  {"backend -> client"},
		"TCPRETRANS in backend":       {"backend -> client"},
		"PACKETLOSS in backend":       {"client -> backend"},
		"flow in backend":             {"backend -> client"},
	}
	// At the namespace's first hook packets are not translated yet. Replies are
	// translated only after its last hook.
	if place == "router" {
		want["PACKETLOSS in router"] = append(want["PACKETLOSS in router"], "client -> service")
	} else {
		want["PACKETLOSS in client"] = append(want["PACKETLOSS in client"], "backend -> client")
	}
	got := map[string][]string{}
	saw := func(what string, netns uint64, from, to netip.AddrPort) {
		ends := name(from) + " -> " + name(to)
		what += " in " + where[netns]
		if where[netns] != "" && !slices.Contains(got[what], ends) {
			got[what] = append(got[what], ends)
		}
	}
	check := func() bool {
		clear(got)
		l.mu.Lock()
		for _, e := range l.events {
			if e.Protocol == unix.IPPROTO_TCP {
				saw(e.Type.String(), e.Netns, e.Source, e.Destination)
			}
		}
		l.mu.Unlock()
		if err := flows.Flows(func(f Flow) {
			if f.Protocol == unix.IPPROTO_TCP {
				saw("flow", f.Netns, f.Source, f.Destination)
			}
		}); err != nil {
			t.Fatal(err)
		}
		for what, ends := range want {
			slices.Sort(ends)
			slices.Sort(got[what])
			if !slices.Equal(got[what], ends) {
				return false
			}
		}
		return true
	}
	testkit.Within(testkit.Patience, check)
	for what, ends := range want {
		if !slices.Equal(got[what], ends) {
			t.Errorf("%s: %v, want %v", what, got[what], ends)
		}
	}
}
