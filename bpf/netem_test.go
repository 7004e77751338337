package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/slowfilter"
)

// disturb configures netem on a device.
func (n *namespace) disturb(t testing.TB, how ...string) {
	t.Helper()
	need.Program(t, "tc")
	err := n.try(func() error {
		link, err := netlink.LinkByName(n.device)
		if err != nil {
			return err
		}
		attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(9, 0)}
		return errors.Join(netlink.QdiscAdd(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{})), netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "netem"}))
	})
	need.VM(t, err == nil, fmt.Sprintf("the queueing discipline netem: %v", err))
	n.run(t, "tc", append([]string{"qdisc", "replace", "dev", n.device, "root", "netem", "limit", "10000"}, how...)...)
}

// TestTCPRetransByLoss sends over a line that loses packets in both directions.
func TestTCPRetransByLoss(t *testing.T) {
	rungsInTurn(t, "tcpretrans", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		// One segment per packet, so that enough packets are lost.
		a.run(t, "ip", "link", "set", "dev", a.device, "gso_max_segs", "1")
		a.disturb(t, "loss", "4%", "delay", "1ms")
		b.disturb(t, "loss", "2%", "delay", "1ms")
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("tcpretrans", Config{})
		for family, addrs := range families(a, b) {
			before := map[*namespace]uint64{a: a.counter(t, "Tcp.RetransSegs"), b: b.counter(t, "Tcp.RetransSegs")}
			slots := map[*namespace][8]uint64{a: counters(t, p, a.inode), b: counters(t, p, b.inode)}
			client, server := connect(t, a, b, addrs[1])
			const size = 1 << 20
			go func() {
				client.Write(make([]byte, size))
				client.CloseWrite()
			}()
			server.SetReadDeadline(time.Now().Add(60 * time.Second))
			if n, err := io.Copy(io.Discard, server); n != size {
				t.Fatalf("%s: %d of %d bytes arrived: %v", family, n, size, err)
			}
			server.Close()
			client.SetReadDeadline(time.Now().Add(60 * time.Second))
			io.Copy(io.Discard, client)
			client.Close()
			for name, ns := range map[string]*namespace{"a": a, "b": b} {
				// The last acknowledgements may be lost too: read until nothing is
				// retransmitted between the two readings.
				var caused, counted uint64
				l.eventually("the last retransmission", func() bool {
					caused = ns.counter(t, "Tcp.RetransSegs")
					got := l.settled(p, ns.inode)
					counted = got[RetransSegments] + got[RetransSynAcks]
					return ns.counter(t, "Tcp.RetransSegs") == caused
				})
				caused, counted = caused-before[ns], counted-slots[ns][RetransSegments]-slots[ns][RetransSynAcks]
				l.count(p, fmt.Sprintf("%s retransmissions of namespace %s on a line that loses, by RetransSegs", family, name), caused, counted)
				if ns == a && caused < 5 {
					t.Errorf("%s: %d retransmissions are too few to compare", family, caused)
				}
			}
		}
		l.balanced(TCPRetrans, p, RetransSynAcks, RetransCalls)
	})
}

// TestNetiftxlatencyByDelay sends through a queue that delays each packet.
func TestNetiftxlatencyByDelay(t *testing.T) {
	eachRung(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		a.disturb(t, "delay", "150ms")
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{})
		const n = 10
		want := uint64(0)
		for family, addrs := range families(a, b) {
			s := b.listenUDP(t, addrs[1])
			send(t, a.dial(t, "udp", addrPort(s.LocalAddr())), n)
			want += n
			l.eventually("the packets to get through", func() bool { return counters(t, p, a.inode)[QdiscSlow] >= want })
			got := l.settled(p, a.inode)
			l.count(p, family+" and before: packets over 100 ms in netem", want, got[QdiscSlow])
			if got[NetdevSlow] != 0 || counters(t, p, b.inode)[QdiscSlow] != 0 {
				t.Errorf("%s: %d over 100 ms in the driver, %d in the other namespace", family, got[NetdevSlow], counters(t, p, b.inode)[QdiscSlow])
			}
		}
		for _, e := range l.taken(TxlatQdisc100ms, a.inode, int(want)) {
			if e.Latency < 150*time.Millisecond || e.Device() != a.device {
				t.Errorf("%+v on %s", e, e.Device())
			}
		}
		l.balanced(TxlatQdisc100ms, p, QdiscSlow)
	})
}

// slowFilter attaches a tc program that holds the CPU for a while per packet, then
// drops the packet. The returned function counts the packets.
func (n *namespace) slowFilter(t *testing.T, device string, wait time.Duration) (held func() uint64) {
	t.Helper()
	f, err := slowfilter.Load(wait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	n.do(t, func() error { return f.Attach(device, netlink.HANDLE_MIN_EGRESS) })
	return func() uint64 {
		t.Helper()
		n, err := f.Held()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// TestNetiftxlatencySlowDriver sends through a driver that takes long for each
// packet: that of a bridge, which passes the packet to its port at once, and the
// port has a slow filter.
func TestNetiftxlatencySlowDriver(t *testing.T) {
	rungsInTurn(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, _ := newPair(t)
		port := a.device
		a.run(t, "ip", "link", "add", "bridge", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
		a.run(t, "ip", "link", "set", "bridge", "multicast", "off")
		a.run(t, "ip", "addr", "flush", "dev", port)
		a.run(t, "ip", "link", "set", port, "master", "bridge")
		a.run(t, "ip", "link", "set", "bridge", "up")
		a.run(t, "ip", "addr", "add", "10.97.0.1/24", "dev", "bridge")
		a.run(t, "ip", "addr", "add", "fd97::1/64", "dev", "bridge", "nodad")
		for _, peer := range []string{"10.97.0.2", "fd97::2"} {
			a.run(t, "ip", "neigh", "add", peer, "lladdr", "02:00:00:00:97:02", "dev", "bridge", "nud", "permanent")
		}
		a.device = "bridge"
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{})
		l.eventually("the port to forward", func() bool {
			return strings.Contains(a.run(t, "ip", "-d", "link", "show", "dev", port), " state forwarding ")
		})
		held := a.slowFilter(t, port, 110*time.Millisecond)
		const n = 4
		for _, to := range []string{"10.97.0.2:9", "[fd97::2]:9"} {
			var c net.Conn
			a.do(t, func() (err error) {
				c, err = net.Dial("udp", to)
				return err
			})
			for range n {
				// The call returns an error, because the packet is dropped.
				_, _ = c.Write([]byte("slowly"))
			}
			c.Close()
		}
		if held() < 2*n {
			t.Errorf("%d packets were held, want %d", held(), 2*n)
		}
		got := l.settled(p, a.inode)
		l.count(p, "packets over 100 ms in the driver", held(), got[NetdevSlow])
		l.count(p, "of them over 100 ms in the queue", 0, got[QdiscSlow])
		for _, e := range l.taken(TxlatNetdev100ms, a.inode, 2*n) {
			if e.Protocol != unix.IPPROTO_UDP {
				continue // a multicast report by the kernel
			}
			if e.Latency < 110*time.Millisecond || e.Latency > 20*time.Second || e.Device() != "bridge" || e.Destination.Port() != 9 {
				t.Errorf("%+v on %s", e, e.Device())
			}
		}
		l.balanced(TxlatNetdev100ms, p, NetdevSlow)
	})
}
