// Package servers runs nginx, Redis, PostgreSQL and memcached in one network namespace and
// their load generators in another, in short turns, and measures the CPU time of both ends.
package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// turnLength is about how long a turn takes. The load generator of nginx, wrk, takes whole
// seconds only.
const turnLength = time.Second

// Path is the way between a load generator and its server.
type Path string

// The paths. The server has a namespace of its own; over Loopback the load generator is in
// it, too.
const (
	Loopback Path = "loopback"
	Veth     Path = "veth"
)

// Paths are all paths.
var Paths = []Path{Loopback, Veth}

// Kind is a kind of server and what is asked of it.
type Kind struct {
	Name      string
	Workloads []Workload

	programs []string
	start    func(s *Server)
}

// Workload is one kind of requests.
type Workload struct {
	Name string
	// run makes requests: n of them, or for turnLength if the load generator counts time.
	run func(s *Server, from *nsnet.Space, address string, n int) (load, error)
}

// load is what a load generator reports.
type load struct {
	operations, rate float64 // rate is per second
	p99              time.Duration
	cpu              time.Duration // of a load generator that is part of this process
}

// Turn is the result of one turn.
type Turn struct {
	Operations float64
	Rate       float64 // operations per second
	P99        time.Duration
	// CPU time of all operations. Softirq is that of ksoftirqd, which works for both ends.
	Server, Client, Softirq time.Duration
}

// CPU returns the CPU time of one operation in nanoseconds: both ends, with ksoftirqd.
func (t Turn) CPU() float64 { return float64(t.Server+t.Client+t.Softirq) / t.Operations }

// ServerCPU returns the CPU time that the server takes for one operation, in nanoseconds.
func (t Turn) ServerCPU() float64 { return float64(t.Server) / t.Operations }

// Server is a running server. It ends with the test.
type Server struct {
	Kind
	// Near and Far are the namespaces of the load generator and of the server.
	Near, Far *nsnet.Space

	t            testing.TB
	dir          string
	client, serv *group
	count        map[string]int // operations in a turn, by workload and path
}

// Start starts a server. cgroups is the root of the cgroup2 tree.
func Start(t testing.TB, k Kind, cgroups string) *Server {
	t.Helper()
	need.Root(t)
	need.ProgramFrom(t, ".ci/deps servers", k.programs...)
	s := &Server{Kind: k, Near: nsnet.New(t), Far: nsnet.New(t), t: t, dir: t.TempDir(), count: map[string]int{}}
	nsnet.Connect(s.Near, s.Far)
	s.Near.AwaitUp("eth0")
	s.Far.AwaitUp("eth0")
	cpus, err := allowedCPUs()
	if err != nil {
		t.Fatal(err)
	}
	s.client = newGroup(t, cgroups, "client", cpus[0])
	s.serv = newGroup(t, cgroups, "server", cpus[len(cpus)-1])
	k.start(s)
	return s
}

// Turn makes requests for about a second. The first turn of a workload and path also finds
// out how many that are.
func (s *Server) Turn(w Workload, path Path) Turn {
	s.t.Helper()
	from, address := s.Near, "10.0.0.2"
	if path == Loopback {
		from, address = s.Far, "127.0.0.1"
	}
	key := w.Name + string(path)
	if s.count[key] == 0 {
		first, err := w.run(s, from, address, 2000)
		if err != nil {
			s.t.Fatalf("%s, %s over %s: %v", s.Name, w.Name, path, err)
		}
		s.count[key] = max(1000, int(first.rate*turnLength.Seconds()))
	}
	var turn Turn
	// On a busy machine a second may pass before a process has its first turn.
	testkit.Eventually(s.t, fmt.Sprintf("%s answered requests of %s over %s", s.Name, w.Name, path), func() bool {
		server, client, softirq := s.serv.cpu(s.t), s.client.cpu(s.t), testkit.SoftirqCPU()
		got, err := w.run(s, from, address, s.count[key])
		if err != nil {
			s.t.Fatalf("%s, %s over %s: %v", s.Name, w.Name, path, err)
		}
		turn = Turn{
			Operations: got.operations, Rate: got.rate, P99: got.p99,
			Server: s.serv.cpu(s.t) - server, Client: s.client.cpu(s.t) - client + got.cpu,
			Softirq: testkit.SoftirqCPU() - softirq,
		}
		return turn.Operations > 0 && turn.Rate > 0
	})
	return turn
}

// begin starts a program of the server. As anyone, a user without privileges, it is in a
// user namespace, where files of this process's user are its own.
func (s *Server) begin(anyone bool, name string, args ...string) *testkit.Process {
	s.t.Helper()
	cmd := s.serv.command(context.Background(), name, args...)
	cmd.Dir = s.dir
	if anyone {
		unprivileged(cmd)
	}
	var p *testkit.Process
	err := s.serv.in(s.Far, func() (err error) { p, err = testkit.TryStart(s.t, cmd); return err })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Stop) // with its children
	return p
}

// ask runs a load generator and returns its output.
func (s *Server) ask(from *nsnet.Space, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*testkit.Patience)
	defer cancel()
	cmd := s.client.command(ctx, name, args...)
	cmd.Dir = s.dir
	var out []byte
	err := s.client.in(from, func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return string(out), nil
}

// unprivileged makes a program run as another user than root, for programs that refuse to
// run as root.
func unprivileged(cmd *exec.Cmd) {
	a := cmd.SysProcAttr
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = append(a.UidMappings, sysID(os.Getuid()))
	a.GidMappings = append(a.GidMappings, sysID(os.Getgid()))
}

// group is a control group for processes on one CPU. It counts their CPU time, that of
// ended ones included.
type group struct {
	dir string
	fd  int
	on  int // CPU
}

func newGroup(t testing.TB, root, name string, cpu int) *group {
	t.Helper()
	g := &group{dir: filepath.Join(root, fmt.Sprintf("nodeskoop-servers-%d-%s", os.Getpid(), name)), on: cpu}
	err := os.Mkdir(g.dir, 0o755)
	if err == nil {
		g.fd, err = unix.Open(g.dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	// This runs after the processes have ended: they start later.
	t.Cleanup(func() {
		_ = unix.Close(g.fd)
		if !testkit.Within(testkit.Patience, func() bool { return os.Remove(g.dir) == nil }) {
			t.Errorf("remove the control group %s: processes stay in it", g.dir)
		}
	})
	return g
}

// cpu returns the CPU time that the group's processes have used so far.
func (g *group) cpu(t testing.TB) time.Duration {
	t.Helper()
	file := filepath.Join(g.dir, "cpu.stat")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if us, is := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); is {
			n, err := strconv.ParseInt(us, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			return time.Duration(n) * time.Microsecond
		}
	}
	t.Fatalf("%s has no line usage_usec", file)
	return 0
}

// command is a command that starts in the group.
func (g *group) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: g.fd}
	return cmd
}

// in runs f on a thread in the namespace and on the group's CPU, both of which the
// programs that f starts inherit.
func (g *group) in(space *nsnet.Space, f func() error) (err error) {
	space.Do(func() {
		var was, one unix.CPUSet
		one.Set(g.on)
		if err = errors.Join(unix.SchedGetaffinity(0, &was), unix.SchedSetaffinity(0, &one)); err != nil {
			return
		}
		err = f()
		err = errors.Join(err, unix.SchedSetaffinity(0, &was))
	})
	return err
}

// allowedCPUs returns the CPUs that this thread may run on.
func allowedCPUs() (cpus []int, err error) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return nil, fmt.Errorf("ask for the CPUs of the thread: %w", err)
	}
	for cpu := range len(may) * 64 {
		if may.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
