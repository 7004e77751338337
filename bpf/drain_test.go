package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

// drain is the socket that drained waits with, created on first use. It sends
// datagrams to itself in a network namespace of its own, which lasts as long as the
// socket. Concurrent calls would receive each other's datagrams.
var drain struct {
	sync.Mutex
	fd int // 0 before the first use
}

// hops is the maximum number of times that a packet is queued in these tests:
// through a router and back, with stacked devices at each end.
const hops = 8

// drained returns when the kernel has received every packet sent before the call.
// Packets that a namespace's device sends wait in the CPU's receive queue
// (softnet_data, net/core/dev.c) for a softirq, which on a busy machine runs in
// ksoftirqd when the scheduler allows it. The queue is FIFO, so a datagram that a
// CPU sends to itself over loopback arrives after everything queued there.
func drained(t testing.TB) {
	t.Helper()
	drain.Lock()
	defer drain.Unlock()
	if drain.fd == 0 {
		newUnowned(t).do(t, func() (err error) {
			drain.fd, err = loopSocket()
			return err
		})
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with its CPU affinity
		done <- passQueues(drain.fd)
	}()
	if err := <-done; err != nil {
		t.Fatalf("drain the receive queues: %v", err)
	}
}

// loopSocket creates a UDP socket connected to itself.
func loopSocket() (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = 0
		}
	}()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fd, os.NewSyscallError("bind", err)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return fd, os.NewSyscallError("getsockname", err)
	}
	if err := unix.Connect(fd, self); err != nil {
		return fd, os.NewSyscallError("connect", err)
	}
	patience := unix.NsecToTimeval(testkit.Patience.Nanoseconds())
	return fd, os.NewSyscallError("SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
}

// passQueues sends a datagram on each CPU in turn, once per hop, since a packet
// from one queue may enter another CPU's queue.
func passQueues(fd int) error {
	cpus, err := allowedCPUs()
	if err != nil {
		return err
	}
	var b [1]byte
	for range hops {
		for _, cpu := range cpus {
			if err := pinTo(cpu); err != nil {
				return err
			}
			if _, err := unix.Write(fd, b[:]); err != nil {
				return fmt.Errorf("send a datagram on CPU %d: %w", cpu, err)
			}
			_, err := unix.Read(fd, b[:])
			for err == unix.EINTR {
				_, err = unix.Read(fd, b[:])
			}
			if err != nil {
				return fmt.Errorf("the datagram of CPU %d did not come: %w", cpu, err)
			}
		}
	}
	return nil
}

// TestDrained: when drained returns, the kernel has received all sent packets, even
// if other tasks keep the CPUs busy.
func TestDrained(t *testing.T) {
	a, b := newPair(t)
	flood := newNamespace(t)
	closed := flood.listenUDP(t, netip.MustParseAddr("127.0.0.1"))
	closed.Close()
	var busy sync.WaitGroup
	defer busy.Wait()
	stop := make(chan struct{})
	defer close(stop)
	for range 4 * runtime.NumCPU() {
		// With this many packets, softirqs run in ksoftirqd.
		c := flood.dial(t, "udp", addrPort(closed.LocalAddr()))
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					c.Write([]byte("flood"))
				}
			}
		})
	}
	start := time.Now()
	const rounds, n = 20, 50
	for family, addrs := range families(a, b) {
		group := map[string]string{"IPv4": "Udp.NoPorts", "IPv6": "Udp6.NoPorts"}[family]
		s := b.listenUDP(t, addrs[1])
		c := a.dial(t, "udp", addrPort(s.LocalAddr()))
		s.Close()
		send(t, c, 1) // the neighbour entry exists from here on
		testkit.Eventually(t, "the first datagram is received", func() bool { return b.counter(t, group) == 1 })
		want := uint64(1)
		for range rounds {
			send(t, c, n)
			want += n
			drained(t)
			if got := b.counter(t, group); got != want {
				t.Errorf("%s: %s is %d after %d datagrams", family, group, got, want)
			}
		}
	}
	t.Logf("%d times in %v", 2*rounds, time.Since(start))
}
