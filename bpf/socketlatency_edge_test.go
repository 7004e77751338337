package bpf

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSocketlatencyEdges: data with delayed wakeups, dropped, discarded, urgent
// data, and data older than the probe. Each step states its number of slow reads.
func TestSocketlatencyEdges(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		c2, s2 := udpEnds(t, a, b, b.v4)
		c3, s3 := tcpEnds(t, a, b, b.v4)
		for range 5 {
			c2.datagram(10)
		}
		c3.write(10)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{})
		datagrams := p.Hooks()[0].Limitation == ""
		last := uint64(0)
		step := func(what string, want uint64) {
			t.Helper()
			got := l.settled(p, b.inode)[ReadSlow100]
			if got-last != want && !excused(t, what, want, got-last) {
				t.Errorf("%s: %d slow reads, want %d", what, got-last, want)
			}
			last = got
		}

		c3.write(10)
		time.Sleep(hold)
		s3.take(10, 0, false)
		step("the first of two messages, of which one is older than the probe", 1)
		s3.take(10, 0, false)
		if !endsOfCalls(p.Hooks()[0]) {
			last = l.settled(p, b.inode)[ReadSlow100] // within a millisecond of each other, or not
		} else {
			step("the second", 1)
		}
		if datagrams {
			c2.datagram(10)
			time.Sleep(hold)
			for range 6 {
				s2.take(10, 0, true)
			}
			step("six datagrams, of which five are older than the probe", 6)
			for range 3 {
				c2.datagram(10)
				s2.take(10, 0, true)
			}
			step("three that are read at once", 0)
			c2.datagram(10)
			time.Sleep(hold)
			s2.take(10, 0, true)
			step("one that waits", 1)
		}

		client, server := tcpEnds(t, a, b, b.v4)
		if err := unix.SetsockoptInt(server.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 100); err != nil {
			t.Fatal(err)
		}
		client.write(60)
		time.Sleep(hold)
		client.write(60)
		l.eventually("all data", func() bool {
			n, _, _ := unix.Recvfrom(server.fd, make([]byte, 200), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return n == 120
		})
		server.take(200, 0, false)
		if p.Hooks()[0].Limitation == "" {
			step("a read of data below the low-water mark", 0)
		} else {
			step("a read of data below the low-water mark, by segments", 1)
		}

		client, server = tcpEnds(t, a, b, b.v4)
		if err := unix.Sendto(client.fd, []byte("abc"), unix.MSG_OOB, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(hold)
		if n, err := again(func() (int, error) {
			n, _, err := unix.Recvfrom(server.fd, make([]byte, 10), 0)
			return n, err
		}); n != 2 {
			t.Fatal(n, err)
		}
		step("data before an urgent byte", 1)

		client, server = tcpEnds(t, a, b, b.v4)
		client.write(100)
		time.Sleep(hold)
		server.take(60, unix.MSG_TRUNC, false)
		step("data that are discarded", 1)

		if !datagrams {
			return
		}
		client, server = udpEnds(t, a, b, b.v4)
		if err := unix.SetsockoptInt(server.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8192); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			client.datagram(500)
		}
		time.Sleep(hold)
		read := uint64(0)
		for {
			n, err := again(func() (int, error) {
				n, _, err := unix.Recvfrom(server.fd, make([]byte, 600), unix.MSG_DONTWAIT)
				return n, err
			})
			if err != nil || n == 0 {
				break
			}
			read++
		}
		if read == 0 || read == 100 {
			t.Fatalf("%d of 100 datagrams found room", read)
		}
		step("datagrams for which there was room", read)
		client.datagram(500)
		time.Sleep(hold)
		server.take(600, 0, true)
		step("one after the others", 1)
	})
}
