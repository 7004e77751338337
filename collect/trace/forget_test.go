package trace

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/nsnet"
)

// TestUnownedLeaveTheMaps: short-lived namespaces outside pods, such as those of
// services with a private network, leave no entries in any probe, with or without
// metrics by namespace.
func TestUnownedLeaveTheMaps(t *testing.T) {
	l := newLab(t, EventLimits{}, nil, "flow", "packetloss", "tcpreset", "tcpretrans")
	l.values()
	unowned := map[uint64]bool{}
	t.Run("come and go", func(t *testing.T) {
		for range maxUnowned + 10 {
			s := nsnet.Make(t)
			unowned[s.Inode] = true
			var err error
			s.Do(func() { err = refusedConnection() })
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	held := func() map[string]int {
		n := map[string]int{}
		for p := range l.tracer.probes {
			seen := map[uint64]bool{}
			note := func(netns bpf.NetnsID) {
				if inode := netns.Inode(); unowned[inode] && !seen[inode] {
					seen[inode] = true
					n[p.kind.name]++
				}
			}
			if err := p.bpf.Counters(func(netns bpf.NetnsID, _ int, _ uint64) { note(netns) }); err != nil {
				t.Fatal(err)
			}
			if p.kind.name == flowKind.name {
				if err := p.bpf.EachFlow(func(e bpf.FlowEntry) { note(e.Key.Netns()) }); err != nil {
					t.Fatal(err)
				}
			}
		}
		return n
	}
	before := held()
	for _, name := range []string{"flow", "packetloss", "tcpreset"} {
		if before[name] != len(unowned) {
			t.Errorf("%s holds something of %d namespaces, want %d", name, before[name], len(unowned))
		}
	}
	// A thread in such a namespace may take some time to end.
	var left map[string]int
	testkit.Within(testkit.Patience, func() bool {
		l.values()
		left = held()
		return len(left) == 0
	})
	for name, n := range left {
		t.Errorf("%s still holds something of %d namespaces that are gone", name, n)
	}
}

// TestIdleFlowsLeaveTheMap: an idle connection without a series keeps its entry
// only for some cycles, even if the map has room.
func TestIdleFlowsLeaveTheMap(t *testing.T) {
	l := newLabAfter(t, func(l *lab) {
		for _, s := range []*nsnet.Space{l.a, l.b} {
			s.Sysctl("net/ipv6/conf/all/disable_ipv6", "1") // a late group report would be a flow and take a series
		}
	}, nsnet.New(t).Path, Options{}, map[string]map[string]any{"flow": {"ports": true, "max_series": int64(2)}}, "flow")
	l.a.Packets("udp", "127.0.0.1:9")
	send := func(packets int, ports ...int) {
		t.Helper()
		var err error
		l.a.Do(func() {
			for _, port := range ports {
				var c *net.UDPConn
				if c, err = net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}); err != nil {
					return
				}
				for range packets {
					if _, err = c.Write(make([]byte, 100)); err != nil {
						return
					}
				}
				_ = c.Close()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The two busiest of ten get the series.
	send(5, 101, 102)
	send(1, 103, 104, 105, 106, 107, 108, 109, 110)
	held := func() (ports []int) {
		t.Helper()
		for p := range l.tracer.probes {
			if err := p.bpf.EachFlow(func(e bpf.FlowEntry) {
				if _, from, to := e.Key.Ends(); e.Key.Netns().Inode() == l.a.Inode && to.Port() == 9 {
					ports = append(ports, int(from.Port()))
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(ports)
		return ports
	}
	series := func(port int) string {
		return fmt.Sprintf("kubeskoop_flow_packets{web-0,UDP,127.0.0.1,pod,n1,test,web-0,127.0.0.1,pod,n1,test,web-0,%d,9}", port)
	}
	for range idleCycles + 1 {
		send(1, 103) // a flow that continues to send is kept
		l.values()
	}
	if got := held(); !slices.Equal(got, []int{101, 102, 103, 104, 105, 106, 107, 108, 109, 110}) {
		t.Errorf("too early: %v", got)
	}
	got := l.values()
	if got := held(); !slices.Equal(got, []int{101, 102, 103}) {
		t.Errorf("the map still holds %v", got)
	}
	// The flows with series have been idle for as long, and others wait for series,
	// so the active one has one now.
	if got[series(103)] != idleCycles+2 {
		t.Errorf("%v packets of the one that goes on sending, want %d\n%v", got[series(103)], idleCycles+2, got)
	}
	send(5, 110)
	if got := l.values(); got[series(110)] != 5 {
		t.Errorf("%v packets of one that was forgotten and comes back, want 5\n%v", got[series(110)], got)
	}
}

// refusedConnection connects to a closed port over lo, which causes a flow, a reset
// and a dropped packet.
func refusedConnection() error {
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
		if typ == unix.SOCK_DGRAM {
			lo, err := unix.NewIfreq("lo")
			if err != nil {
				return err
			}
			lo.SetUint16(unix.IFF_UP)
			if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
				return err
			}
			err = unix.Sendto(fd, []byte("x"), 0, to)
			if err != nil {
				return err
			}
		} else if err := unix.Connect(fd, to); err != unix.ECONNREFUSED {
			return err
		}
		_ = unix.Close(fd)
	}
	return nil
}
