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

// turnLength is the approximate length of a turn. wrk, the load generator of nginx,
// accepts whole seconds only.
const turnLength = time.Second

// Path is the path between a load generator and its server.
type Path string

// The paths. The server has its own namespace; with Loopback, the load generator runs
// in that namespace, too.
const (
	Loopback Path = "loopback"
	Veth     Path = "veth"
)

// Paths lists all paths.
var Paths = []Path{Loopback, Veth}

// Kind is a kind of server with its workloads.
type Kind struct {
	Name      string
	Workloads []Workload

	programs []string
	start    func(s *Server)
}

// Workload is one kind of request.
type Workload struct {
	Name string
	// run makes n requests, or requests for turnLength if the load generator counts
	// time.
	run func(s *Server, from *nsnet.Space, address string, n int) (load, error)
}

// load is the report of a load generator.
type load struct {
	operations, rate float64 // rate is operations per second
	p99              time.Duration
	cpu              time.Duration // CPU time, if the load generator is part of this process
}

// Turn is the result of one turn.
type Turn struct {
	Operations float64
	Rate       float64 // operations per second
	P99        time.Duration
	// CPU time of all operations. Softirq is the time of ksoftirqd, which works for
	// both ends.
	Server, Client, Softirq time.Duration
}

// CPU returns the CPU time per operation in nanoseconds: that of both ends and of
// ksoftirqd.
func (t Turn) CPU() float64 { return float64(t.Server+t.Client+t.Softirq) / t.Operations }

// ServerCPU returns the server's CPU time per operation, in nanoseconds.
func (t Turn) ServerCPU() float64 { return float64(t.Server) / t.Operations }

// Server is a running server. It ends with the test.
type Server struct {
	Kind
	// Near and Far are the namespaces of the load generator and of the server.
	Near, Far *nsnet.Space

	t            testing.TB
	dir          string
	client, serv *group
	count        map[string]int // operations per turn, by workload and path
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

// Turn makes requests for about a second. The first turn of a workload and path also
// determines how many requests that takes.
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
	// On a busy machine a process may not run for a second after its start.
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

// begin starts a program of the server. With anyone, the program runs as a user without
// privileges, in a user namespace that maps this process's user, so that it can use
// this process's files.
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
	s.t.Cleanup(p.Stop) // kills its children, too
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

// unprivileged makes a program run as a user other than root, for programs that refuse
// to run as root.
func unprivileged(cmd *exec.Cmd) {
	a := cmd.SysProcAttr
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = append(a.UidMappings, sysID(os.Getuid()))
	a.GidMappings = append(a.GidMappings, sysID(os.Getgid()))
}

// group is a control group for processes on one CPU. It counts their CPU time,
// including that of ended processes.
type group struct {
	dir string
	fd  int
	on  int // number of the CPU
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
	// Cleanups run in reverse order: this one runs after those of the processes, which
	// start later.
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

// command returns a command that starts in the group.
func (g *group) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: g.fd}
	return cmd
}

// in runs f on a thread in the namespace and on the group's CPU. Programs that f starts
// inherit both.
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
