package proc

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/testdata/need"
	"nodeskoop/testdata/nsnet"
)

// all are the 13 probes that need no eBPF.
func all() []collect.Factory { return append(Probes(), netlink.Probes()...) }

func names(list []collect.Factory) (out []string) {
	for _, f := range list {
		out = append(out, f.Name)
	}
	return out
}

// cpu returns the CPU time that this process has used, in nanoseconds.
func cpu() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return float64(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs f b.N times and reports the CPU time of one run beside the
// elapsed time, and divided by n.
func measure(b *testing.B, n int, per string, f func()) {
	f() // the first builds what later ones reuse
	f()
	runtime.GC()
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	for range b.N {
		f()
	}
	used := (cpu() - start) / float64(b.N)
	b.StopTimer()
	b.ReportMetric(used, "cpu-ns/op")
	if n > 0 {
		b.ReportMetric(used/float64(n), "cpu-ns/"+per)
	}
}

// spaces makes n namespaces, each with a process and 20 sockets: nine
// connections over lo, a listening socket and a UDP socket.
func spaces(b *testing.B, n int) *nsnet.Pods {
	b.Helper()
	limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	pods := &nsnet.Pods{}
	for i := range n {
		s := nsnet.Make(b)
		var err error
		s.Do(func() { err = twentySockets(b) })
		if err != nil {
			b.Fatalf("namespace %d: %v", i, err)
		}
		pods.List = append(pods.List, s.Pod(fmt.Sprintf("pod-%d", i)))
	}
	return pods
}

func twentySockets(b *testing.B) error {
	keep := func(fd int, err error) (int, error) {
		if err == nil {
			b.Cleanup(func() { _ = unix.Close(fd) })
		}
		return fd, err
	}
	ctl, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if _, err = keep(ctl, err); err != nil {
		return err
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(ctl, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	l, err := keep(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, 100); err != nil {
		return err
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	for range 9 {
		c, err := keep(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		if err != nil {
			return err
		}
		if err := unix.Connect(c, addr); err != nil {
			return err
		}
		d, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if _, err = keep(d, err); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkCycle is one cycle of all 13 probes over the host and some pods,
// each with its own namespace, a process and 20 sockets.
func BenchmarkCycle(b *testing.B) {
	need.Root(b)
	for _, n := range []int{1, 10, 110, 500} {
		b.Run(fmt.Sprintf("%dpods", n), func(b *testing.B) {
			pods := spaces(b, n)
			s := nsnet.NewSampler(b, collect.Options{Enabled: names(all()), Pods: pods}, all()...)
			measure(b, n, "pod", s.Cycle)
		})
	}
}

// BenchmarkProbe is one cycle of each probe alone over 110 pods; "none" is
// what a cycle costs without any.
func BenchmarkProbe(b *testing.B) {
	need.Root(b)
	const n = 110
	pods := spaces(b, n)
	for _, name := range append([]string{"none"}, names(all())...) {
		b.Run(name, func(b *testing.B) {
			var enabled []string
			if name != "none" {
				enabled = []string{name}
			}
			s := nsnet.NewSampler(b, collect.Options{Enabled: enabled, Pods: pods}, all()...)
			measure(b, n, "pod", s.Cycle)
		})
	}
}

// BenchmarkTCP50000 reads one namespace with 50,000 TCP sockets in both ways,
// in turn so that the machine's mood is the same for both.
func BenchmarkTCP50000(b *testing.B) {
	need.Root(b)
	need.Short(b)
	const sockets = 50000
	s := nsnet.New(b)
	tcpSockets(b, s, sockets)
	pods := &nsnet.Pods{List: []*collect.Pod{s.Pod("a")}}
	var got netlink.TCPTable
	sampler := func(read func(*collect.View, *netlink.TCPTable) error) *nsnet.Sampler {
		return nsnet.NewSampler(b, collect.Options{Enabled: []string{"tcpsummary"}, Pods: pods},
			collect.Factory{Name: "tcpsummary", New: func(collect.Env) (collect.Probe, error) {
				return sampleFunc(func(v *collect.View) error {
					if v.Pod() == nil {
						return nil
					}
					return read(v, &got)
				}), nil
			}})
	}
	diag := sampler(func(v *collect.View, t *netlink.TCPTable) error {
		return netlink.ReadTCP(v, t, nil)
	})
	text := sampler(readTCPText)
	for _, x := range []*nsnet.Sampler{diag, text} {
		if _, errs := x.Try(); got.States[netlink.TCPEstablished] != sockets || len(errs) > 0 {
			b.Fatalf("%d sockets, want %d (%v)", got.States[netlink.TCPEstablished], sockets, errs)
		}
	}
	var used [2]float64
	b.ReportAllocs()
	for b.Loop() {
		for i, x := range []*nsnet.Sampler{diag, text} {
			start := cpu()
			x.Cycle()
			used[i] += cpu() - start
		}
	}
	b.ReportMetric(used[0]/float64(b.N), "cpu-ns/sockdiag")
	b.ReportMetric(used[1]/float64(b.N), "cpu-ns/text")
	b.ReportMetric(used[1]/used[0], "times-faster")
}

// socketsPerProcess keeps a process below the limit on open files that cannot
// be raised everywhere.
const socketsPerProcess = 10000

// A process of the benchmark's own holds a part of the sockets.
func init() {
	if port, err := strconv.Atoi(os.Getenv("NODESKOOP_TEST_SOCKETS_PORT")); err == nil {
		if err := holdSockets(port, socketsPerProcess); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
}

// holdSockets makes n established sockets, half of them the connecting ends.
func holdSockets(port, n int) error {
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(l, to); err != nil {
		return err
	}
	if err := unix.Listen(l, 100); err != nil {
		return err
	}
	for i := range n / 2 {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return fmt.Errorf("socket %d: %w", i, err)
		}
		if err := unix.Bind(c, &unix.SockaddrInet4{Port: 10000 + i, Addr: [4]byte{127, 0, 1, byte(port)}}); err != nil {
			return err
		}
		if err := unix.Connect(c, to); err != nil {
			return err
		}
		if _, _, err = unix.Accept(l); err != nil {
			return err
		}
	}
	return unix.Close(l)
}

// tcpSockets makes established sockets in s, held by processes of their own.
func tcpSockets(b *testing.B, s *nsnet.Space, n int) {
	b.Helper()
	for i := range n / socketsPerProcess {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "NODESKOOP_TEST_SOCKETS_PORT="+strconv.Itoa(7000+i))
		stdin, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		s.Do(func() { err = cmd.Start() })
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = stdin.Close()
			_ = cmd.Wait()
		})
		if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
			b.Fatalf("the process that holds sockets said %q", line)
		}
	}
}
