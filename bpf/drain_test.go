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

// drain is the socket by which drained waits, made when it is first needed.
var drain = sync.OnceValues(newDrain)

// loopSocket sends datagrams to itself, in a namespace that nothing else uses.
type loopSocket struct {
	fd   int
	cpus []int // on which this process may run
}

// hops is how often a packet is queued on its way in these tests, at most:
// through a router and back, with a device upon a device at each end.
const hops = 8

// drained returns when the kernel has received every packet that was sent
// before. What a device of a namespace sends waits in the receive queue of the
// CPU (softnet_data, net/core/dev.c) for a softirq, and on a busy machine that
// is ksoftirqd's, which takes its turn among the tasks. The queue is first in,
// first out, so a datagram that a CPU sends to itself over a loopback comes
// after all that was queued there.
func drained(t testing.TB) {
	t.Helper()
	d, err := drain()
	if err != nil {
		t.Fatalf("the loopback that drains the receive queues: %v", err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with its affinity
		done <- d.pass()
	}()
	if err := <-done; err != nil {
		t.Fatalf("drain the receive queues: %v", err)
	}
}

func newDrain() (*loopSocket, error) {
	type result struct {
		d   *loopSocket
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with its namespace
		d, err := openDrain()
		made <- result{d, err}
	}()
	r := <-made
	return r.d, r.err
}

func openDrain() (*loopSocket, error) {
	d := &loopSocket{}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			d.cpus = append(d.cpus, cpu)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return nil, err
	}
	up.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return nil, os.NewSyscallError("SIOCSIFFLAGS", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return nil, os.NewSyscallError("getsockname", err)
	}
	if err := unix.Connect(fd, self); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	patience := unix.NsecToTimeval(testkit.Patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return nil, os.NewSyscallError("SO_RCVTIMEO", err)
	}
	d.fd = fd
	return d, nil
}

// pass sends a datagram on each CPU in turn, once for each hop: what comes out
// of a queue may enter the next one, of any CPU.
func (d *loopSocket) pass() error {
	var b [1]byte
	for range hops {
		for _, cpu := range d.cpus {
			var one unix.CPUSet
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return fmt.Errorf("run on CPU %d: %w", cpu, err)
			}
			if _, err := unix.Write(d.fd, b[:]); err != nil {
				return fmt.Errorf("send a datagram on CPU %d: %w", cpu, err)
			}
			for {
				_, err := unix.Read(d.fd, b[:])
				if err == nil {
					break
				}
				if err != unix.EINTR {
					return fmt.Errorf("the datagram of CPU %d did not come: %w", cpu, err)
				}
			}
		}
	}
	return nil
}

// TestDrained: when drained returns, the kernel has received all that was
// sent, though other tasks keep the CPUs busy.
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
		// With so many packets the softirqs are ksoftirqd's.
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
		send(t, c, 1) // the neighbour is known from here on
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
