package proc

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// prover compares the values of a namespace.
type prover func(t *testing.T, v nsnet.Values, name string, want map[string]float64)

// summaryFactory builds tcpsummary, changed for a test.
func summaryFactory(change func(*tcpsummary)) collect.Factory {
	return collect.Factory{Name: "tcpsummary", New: func(e collect.Env) (collect.Probe, error) {
		made, err := keptTypes.newTCPSummary(e)
		if err == nil {
			change(made.(*tcpsummary))
		}
		return made, err
	}}
}

// eachAlone is tcpsummary without the walk.
func eachAlone() collect.Factory { return summaryFactory(func(p *tcpsummary) { _ = p.walk.drop() }) }

// alwaysWalking is tcpsummary with nothing but the walk. At the end the test fails if there
// was none.
func alwaysWalking(t *testing.T) collect.Factory {
	t.Helper()
	newConnections(t) // or the kernel cannot walk
	return summaryFactory(func(p *tcpsummary) {
		p.walk.always = true
		counted := &countedWalks{iterator: p.walk.all.iterator}
		p.walk.all.iterator = counted
		t.Cleanup(func() {
			if counted.done.Load() == 0 || counted.failed.Load() > 0 {
				t.Errorf("%d walks, %d of them failed", counted.done.Load(), counted.failed.Load())
			}
		})
	})
}

type countedWalks struct {
	iterator[*bpf.TCPCounts]
	done, failed atomic.Int64
}

func (c *countedWalks) Read() (map[uint32]*bpf.TCPCounts, error) {
	m, err := c.iterator.Read()
	c.done.Add(1)
	if err != nil {
		c.failed.Add(1)
	}
	return m, err
}

// inBothWays runs a test of tcpsummary with one request for each namespace, and with a walk
// for all.
func inBothWays(t *testing.T, f func(*testing.T, *pair, prover)) {
	run := func(name string, factory func(*testing.T) collect.Factory, prove prover) {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.Sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"tcpsummary"},
				Pods: &nsnet.Pods{List: []*owner.Pod{p.a.Pod("a"), p.b.Pod("b")}}}, factory(t))
			f(t, p, prove)
		})
	}
	run("each", func(*testing.T) collect.Factory { return eachAlone() },
		func(t *testing.T, v nsnet.Values, name string, want map[string]float64) {
			t.Helper()
			v.Prove(t, "tcpsummary", "sock_diag", "ss", name, want)
		})
	run("walk", alwaysWalking, func(t *testing.T, v nsnet.Values, name string, want map[string]float64) {
		t.Helper()
		v.Want(t, name, want)
	})
}

// TestTCPWalkEqualsSockDiag compares all states and queues of the two sources.
func TestTCPWalkEqualsSockDiag(t *testing.T) {
	p := newPair(t)
	everyState(t, p.a, p.b)
	c := newConnections(t)
	var diag netlink.TCPTable
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"tcpsummary"},
		Pods: &nsnet.Pods{List: []*owner.Pod{p.a.Pod("a")}}},
		collect.Factory{Name: "tcpsummary", New: func(collect.Env) (collect.Probe, error) {
			return sampleFunc(func(v *collect.View) error {
				if v.Pod() == nil {
					return nil
				}
				return netlink.ReadTCP(v, &diag, nil)
			}), nil
		}})
	var walked netlink.TCPTable
	for range 20 {
		before := p.a.File("/proc/net/tcp")
		s.Sample()
		all, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		walked = netlink.TCPTable{}
		if x := all[uint32(p.a.Inode)]; x != nil {
			walked = netlink.TCPTable{States: x.States, RxQueue: x.RxQueue, TxQueue: x.TxQueue}
		}
		if p.a.File("/proc/net/tcp") == before {
			break
		}
	}
	if diag != walked {
		t.Errorf("sock_diag says %+v, the walk %+v", diag, walked)
	}
	if diag.States[4] == 0 || diag.States[5] == 0 || diag.States[9] == 0 {
		t.Errorf("too few states to compare: %v", diag)
	}
}

func newConnections(t *testing.T) *bpf.Connections {
	t.Helper()
	need.Root(t)
	c, err := bpf.NewConnections(keptTypes.types)
	if err != nil {
		need.Kernel(t, false, err.Error())
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if shared, err := c.Shares(); !shared {
		need.Kernel(t, false, fmt.Sprintf("the namespaces do not share the table of TCP connections: %v", err))
	}
	return c
}

const walksBesideChurn = 200

// TestTCPWalkBesideChurn: however many connections come and go during a walk, those that
// stay are all counted, each once. Each worker connects between the same two ports again and
// again. Each end of such a connection has one place in the table, where sockets, TIME_WAIT
// and connection requests replace each other, so a walk must never see more than two.
func TestTCPWalkBesideChurn(t *testing.T) {
	c := newConnections(t)
	still, churn := nsnet.New(t), nsnet.New(t)
	const stay, workers = 2000, 4
	still.Sockets(stay)
	var made atomic.Int64
	var wait sync.WaitGroup
	stop := make(chan struct{})
	for n := range workers {
		l := churn.Listen("tcp", "127.0.0.1:0")
		dialer := net.Dialer{
			Timeout:   100 * time.Millisecond,
			LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1000 + n},
			Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			},
		}
		wait.Go(func() {
			for {
				y, err := l.Accept()
				if err != nil {
					return
				}
				_ = y.Close() // TIME_WAIT is at this end, where the next SYN replaces it
			}
		})
		wait.Go(func() {
			defer l.Close()
			churn.Do(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					x, err := dialer.Dial("tcp", l.Addr().String())
					if err != nil {
						continue
					}
					_, _ = x.Read(make([]byte, 1)) // until the other end has closed
					_ = x.Close()
					made.Add(1)
				}
			})
		})
	}
	most, walks := uint64(0), 0
	look := func() {
		all, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		walks++
		if x := all[uint32(still.Inode)]; x == nil || x.States[netlink.TCPEstablished] != stay || x.Connections() != stay {
			t.Errorf("walk %d: %+v, want %d established", walks, x, stay)
		}
		if x := all[uint32(churn.Inode)]; x != nil {
			if most = max(most, x.Connections()); x.Connections() > 2*workers {
				t.Errorf("walk %d: %+v, but at most %d ends of connections exist at a time", walks, x, 2*workers)
			}
		}
	}
	testkit.Eventually(t, "enough connections were made", func() bool {
		for range 20 {
			look()
		}
		return walks >= walksBesideChurn && made.Load() > 1000 || t.Failed()
	})
	close(stop)
	wait.Wait()
	t.Logf("%d connections came and went during %d walks, which saw at most %d ends", made.Load(), walks, most)
	if most < workers {
		t.Errorf("too few ends of connections to compare: %d", most)
	}
}

// TestTCPWalkLeavesOwnTablesAlone: a namespace with its own table of connections, which the
// walk does not read, has right values all the same.
func TestTCPWalkLeavesOwnTablesAlone(t *testing.T) {
	factory := alwaysWalking(t)
	parent, other := nsnet.New(t), nsnet.New(t)
	const setting = "/proc/sys/net/ipv4/tcp_child_ehash_entries"
	if _, err := parent.Try("cat", setting); err != nil {
		need.Kernel(t, false, "namespaces have no tables of their own before Linux 6.1")
	}
	parent.Run("sh", "-c", "echo 1024 > "+setting)
	var own *nsnet.Space
	parent.Do(func() { own = nsnet.Make(t) })
	other.Connections(3)
	own.Connections(5)
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"tcpsummary"},
		Pods: &nsnet.Pods{List: []*owner.Pod{own.Pod("own"), other.Pod("other")}}}, factory)
	for range 3 {
		v := s.Sample()
		for name, want := range map[string]float64{"own": 10, "other": 6} {
			if got := v[name]["kubeskoop_tcpsummary_tcpestablishedconn"]; got != want {
				t.Errorf("%s has %v established connections, want %v", name, got, want)
			}
		}
	}
}

// TestTCPWalkChoice: the walk begins where requests for each namespace cost more, in the
// first cycle already, and both ways do not alternate.
func TestTCPWalkChoice(t *testing.T) {
	const buckets = 1 << 18
	for _, x := range []struct {
		name        string
		namespaces  int
		still       bool
		connections uint64
		walks       bool
	}{
		{"no namespace", 0, true, 0, false},
		{"one idle namespace", 1, true, 20, false},
		{"one with traffic", 1, false, 20, false},
		{"two, many idle sockets", 2, true, 50_000, false},
		{"110 idle", 110, true, 20, true},
		{"110 with traffic", 110, false, 20, true},
		{"500 with traffic", 500, false, 20, true},
	} {
		for _, before := range []bool{false, true} {
			c := choice{cycle: 1, walks: before}
			for cycle := uint64(2); cycle < 8; cycle++ {
				walked := 0
				for range x.namespaces {
					if c.count(cycle, buckets, x.still, x.connections) {
						walked++
					}
				}
				first := cycle == 2
				switch {
				case !x.walks && walked > 0:
					t.Errorf("%s: walked in cycle %d", x.name, cycle)
				case x.walks && first && walked < x.namespaces*4/5:
					t.Errorf("%s: only %d walked in the first cycle", x.name, walked)
				case x.walks && !first && walked != x.namespaces:
					t.Errorf("%s: only %d walked in cycle %d", x.name, walked, cycle)
				}
			}
		}
	}
}
