package compare

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// ratio is the result of pairs of turns: the median and the quartiles.
type ratio struct{ low, mid, high float64 }

func (r ratio) String() string { return fmt.Sprintf("%.2f (%.2f to %.2f)", r.mid, r.low, r.high) }

func ratioOf(v []float64) ratio {
	return ratio{testkit.Quantile(v, 0.25), testkit.Quantile(v, 0.5), testkit.Quantile(v, 0.75)}
}

// cpuOf returns the CPU time of another process.
func cpuOf(t testing.TB, p *testkit.Process) time.Duration {
	t.Helper()
	d, err := testkit.CPUOf(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// residentOf returns the resident memory of a process in bytes.
func residentOf(t testing.TB, p *testkit.Process) float64 {
	t.Helper()
	u, err := testkit.UsageOf(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	return float64(u.Resident)
}

// run starts a program in a mount namespace of its own.
func run(t testing.TB, name string, args ...string) *testkit.Process {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "STATE_DIRECTORY="+t.TempDir())
	p := testkit.Start(t, cmd)
	t.Cleanup(p.Stop) // detaches the hooks
	return p
}

// runTraced starts a program that needs tracefs, and mounts it if necessary.
func runTraced(t testing.TB, name string, args ...string) *testkit.Process {
	t.Helper()
	return run(t, "unshare", append([]string{"--mount", "sh", "-c", `mount -t tracefs tracefs /sys/kernel/tracing && exec "$0" "$@"`, name}, args...)...)
}

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// daemon starts nodeskoop with some probes, without pods, and waits until it has
// written a textfile in which all are up.
func daemon(t testing.TB, probes, interval string, more ...string) (p *testkit.Process, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "nodeskoop.prom")
	config := filepath.Join(dir, "nodeskoop.toml")
	text := fmt.Sprintf("node_name = 'compare'\ninterval = '%s'\n%s[textfile]\ndir = '%s'\n[pods]\nsockets = ['/nonexistent/containerd.sock']\n", interval, strings.Join(more, ""), dir)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p = run(t, testkit.Nodeskoop(t), "run", "--config", config, "--probe", probes)
	if !p.Ready(t, func() bool { b, err := os.ReadFile(file); return err == nil && len(b) > 0 }) {
		t.Fatalf("nodeskoop ended:\n%s", p.Log)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(line, "nodeskoop_probe_up{") && !strings.HasSuffix(line, " 1") {
			t.Fatalf("a probe does not work here: %s\n%s", line, p.Log)
		}
	}
	return p, file
}

// metric sums the series of one family in a textfile.
func metric(t testing.TB, file, name string, labels ...string) (sum float64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
lines:
	for _, line := range strings.Split(string(b), "\n") {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				continue lines
			}
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// startExporter runs node_exporter with the collectors that correspond to the
// procfs probes, as far as they exist.
func startExporter(t testing.TB) *exporter.Exporter {
	t.Helper()
	return exporter.Start(t, "--collector.netstat", "--collector.netstat.fields=.*", "--collector.sockstat",
		"--collector.netdev", "--collector.softnet", "--collector.conntrack", "--collector.tcpstat")
}

func scrape(t testing.TB, e *exporter.Exporter) {
	t.Helper()
	if _, err := e.Scrape(); err != nil {
		t.Fatal(err)
	}
}

// link is two namespaces joined by a veth, with sockets of this process in each.
type link struct {
	a, b       *nsnet.Space
	tcpA, tcpB int
	udpA, udpB int
	lostFrom   int // sends to a closed port
	closed     unix.SockaddrInet4
}

func newLink(t testing.TB) *link {
	t.Helper()
	need.Program(t, "ip")
	l := &link{a: nsnet.New(t), b: nsnet.New(t)}
	nsnet.Connect(l.a, l.b)
	b := unix.SockaddrInet4{Port: 7000, Addr: [4]byte{10, 0, 0, 2}}
	a := unix.SockaddrInet4{Port: 7000, Addr: [4]byte{10, 0, 0, 1}}
	l.closed = unix.SockaddrInet4{Port: 9, Addr: b.Addr}
	socket := func(typ int) int {
		fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	var err error
	var listener int
	l.b.Do(func() {
		listener, l.udpB = socket(unix.SOCK_STREAM), socket(unix.SOCK_DGRAM)
		err = errors.Join(unix.Bind(listener, &b), unix.Listen(listener, 1), unix.Bind(l.udpB, &b))
	})
	if err == nil {
		l.a.Do(func() {
			l.tcpA, l.udpA, l.lostFrom = socket(unix.SOCK_STREAM), socket(unix.SOCK_DGRAM), socket(unix.SOCK_DGRAM)
			err = errors.Join(unix.Bind(l.udpA, &a), unix.Connect(l.udpA, &b), unix.Connect(l.tcpA, &b),
				unix.SetsockoptInt(l.tcpA, unix.SOL_TCP, unix.TCP_NODELAY, 1))
		})
	}
	if err == nil {
		l.tcpB, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		t.Fatalf("make sockets: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(l.tcpB) })
	return l
}

// turn is a period of one kind of traffic: the CPU time per operation, and the
// operations per second.
type turn struct{ cpu, rate float64 }

// traffic performs operations in batches for a while, on a locked thread. The
// thread owns both ends, so no wakeups occur, and the CPU time is that of the
// network stack and its hooks.
func traffic(t testing.TB, length time.Duration, batch func() (int, error)) turn {
	t.Helper()
	var result turn
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		from, start, n := testkit.ThreadCPU(), time.Now(), 0
		for time.Since(start) < length && err == nil {
			var k int
			k, err = batch()
			n += k
		}
		clock := time.Since(start)
		result = turn{float64(testkit.ThreadCPU()-from) / float64(n), float64(n) / clock.Seconds()}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// requests: 64 bytes there and 64 back on one TCP connection.
func (l *link) requests() (int, error) {
	var b [64]byte
	for range 32 {
		for _, p := range [][2]int{{l.tcpA, l.tcpB}, {l.tcpB, l.tcpA}} {
			if _, err := unix.Write(p[0], b[:]); err != nil {
				return 0, err
			}
			if _, err := unix.Read(p[1], b[:]); err != nil {
				return 0, err
			}
		}
	}
	return 32, nil
}

// datagrams: 64 sent, 64 received.
func (l *link) datagrams() (int, error) {
	var b [64]byte
	for range 64 {
		if _, err := unix.Write(l.udpA, b[:]); err != nil {
			return 0, err
		}
	}
	for range 64 {
		if _, err := unix.Read(l.udpB, b[:]); err != nil {
			return 0, err
		}
	}
	return 64, nil
}

// losses: 64 datagrams to a closed port, each of which is dropped there.
func (l *link) losses() (int, error) {
	var b [64]byte
	for range 64 {
		if err := unix.Sendto(l.lostFrom, b[:], 0, &l.closed); err != nil {
			return 0, err
		}
	}
	return 64, nil
}
