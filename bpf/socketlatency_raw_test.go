package bpf

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSocketlatencyRawSockets: raw sockets of TCP, UDP and UDP-Lite, as sniffers, DHCP
// servers and traceroute have, get copies of packets and read them late. They have no
// ports and no queue of datagrams or bytes, and are not measured; the sockets that the
// packets are for read at once.
func TestSocketlatencyRawSockets(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		total := uint64(0) // slow reads that may have happened
		for name, addrs := range families(a, b) {
			family := unix.AF_INET
			if addrs[1].Is6() {
				family = unix.AF_INET6
			}
			var raw []int
			for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE} {
				raw = append(raw, b.socketIn(t, family, unix.SOCK_RAW, protocol))
			}
			c1, s1 := tcpEnds(t, a, b, addrs[1])
			c2, s2 := udpEnds(t, a, b, addrs[1])
			before := l.settled(p, b.inode)
			var waits []time.Duration
			for range 5 {
				c1.write(10)
				waits = append(waits, s1.take(10, 0, false))
				c2.datagram(10)
				waits = append(waits, s2.take(10, 0, true))
			}
			time.Sleep(hold)
			for i, want := range []int{5, 5, 0} {
				got := 0
				for ; got < 100; got++ {
					if _, _, err := unix.Recvfrom(raw[i], make([]byte, 200), unix.MSG_DONTWAIT); err != nil {
						break
					}
				}
				if got < want {
					t.Fatalf("%s: raw socket %d read %d packets, want at least %d", name, i, got, want)
				}
			}
			slow := l.settled(p, b.inode)[ReadSlow100] - before[ReadSlow100]
			most := among(waits, 100*ms) // a busy machine may delay the ends that read at once
			total += most
			if slow > most {
				t.Errorf("%s: %d slow reads, the ends that are measured had %d", name, slow, most)
			}
			if events := l.taken(SocklatReadSlow, b.inode, 0); uint64(len(events)) > total {
				t.Errorf("%s: %d events, want at most %d: %+v", name, len(events), total, events)
			}
			l.count(p, name+": late reads of raw sockets that count", 0, slow-min(slow, most))
		}
	})
}
