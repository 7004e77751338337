package proc

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// ssStates maps the metrics' states to ss's names.
var ssStates = map[string]string{
	"ESTAB": "kubeskoop_tcpsummary_tcpestablishedconn", "TIME-WAIT": "kubeskoop_tcpsummary_tcptimewaitconn",
	"CLOSE-WAIT": "kubeskoop_tcpsummary_tcpclosewaitconn", "SYN-SENT": "kubeskoop_tcpsummary_tcpsynsentconn",
	"SYN-RECV": "kubeskoop_tcpsummary_tcpsynrecvconn",
}

// ssSum computes the metrics from the output of ss -tan.
func ssSum(t *testing.T, out string) map[string]float64 {
	t.Helper()
	want := map[string]float64{"kubeskoop_tcpsummary_tcprxqueue": 0, "kubeskoop_tcpsummary_tcptxqueue": 0}
	for _, name := range ssStates {
		want[name] = 0
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 5 || f[0] == "LISTEN" || f[0] == "State" {
			continue
		}
		if name, ok := ssStates[f[0]]; ok {
			want[name]++
		}
		rx, err1 := strconv.ParseFloat(f[1], 64)
		tx, err2 := strconv.ParseFloat(f[2], 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("%q: %v, %v", line, err1, err2)
		}
		want["kubeskoop_tcpsummary_tcprxqueue"] += rx
		want["kubeskoop_tcpsummary_tcptxqueue"] += tx
	}
	return want
}

// everyState makes sockets in every state in a, some with queued bytes.
func everyState(t *testing.T, a, b *nsnet.Space) {
	t.Helper()
	// b does not answer on port 80, and a's answers from port 81 never arrive.
	b.Run("nft", "add", "table", "inet", "t")
	b.Run("nft", "add", "chain", "inet", "t", "c", "{ type filter hook input priority 0; }")
	b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "dport", "80", "drop")
	b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "sport", "81", "drop")
	connect := func(s *nsnet.Space, family int, addr unix.Sockaddr) {
		s.Do(func() {
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = unix.Close(fd) })
			if err := unix.Connect(fd, addr); err != unix.EINPROGRESS {
				t.Errorf("connect: %v", err)
			}
		})
	}
	v6 := func(port int, last byte) *unix.SockaddrInet6 {
		return &unix.SockaddrInet6{Port: port, Addr: [16]byte{0: 0xfd, 15: last}}
	}
	for range 2 {
		connect(a, unix.AF_INET, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 0, 0, 2}}) // SYN_SENT
	}
	connect(a, unix.AF_INET6, v6(80, 2))
	a.Listen("tcp4", "10.0.0.1:81")
	for range 3 {
		connect(b, unix.AF_INET, &unix.SockaddrInet4{Port: 81, Addr: [4]byte{10, 0, 0, 1}}) // SYN_RECV
	}
	a.Listen("tcp6", "[fd00::1]:81")
	connect(b, unix.AF_INET6, v6(81, 1))
	for _, host := range []string{"10.0.0.2:0", "[fd00::2]:0"} {
		l := b.Listen("tcp", host)
		dial := func() (c, d *net.TCPConn) {
			x := a.Dial("tcp", l.Addr().String())
			y, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = y.Close() })
			return x.(*net.TCPConn), y.(*net.TCPConn)
		}
		for range 4 { // ESTABLISHED, 1,000 unread bytes each
			_, d := dial()
			_, _ = d.Write(make([]byte, 1000))
		}
		for range 2 { // TIME_WAIT
			c, d := dial()
			_ = c.Close()
			_, _ = d.Read(make([]byte, 1))
			_ = d.Close()
		}
		for range 3 { // CLOSE_WAIT
			_, d := dial()
			_ = d.CloseWrite()
		}
		c, _ := dial() // FIN_WAIT2
		_ = c.CloseWrite()
		c, d := dial() // LAST_ACK and FIN_WAIT1, with unacknowledged bytes
		_ = d.CloseWrite()
		e, _ := dial()
		f, _ := dial()
		for _, x := range []*net.TCPConn{c, e, f} {
			b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "sport", strconv.Itoa(x.LocalAddr().(*net.TCPAddr).Port), "drop")
			_, _ = x.Write(make([]byte, 700))
		}
		_ = c.Close()
		_ = e.CloseWrite()
	}
	time.Sleep(50 * time.Millisecond)
}

func TestTCPSummaryAgainstSS(t *testing.T) {
	inBothWays(t, func(t *testing.T, p *pair, prove prover) { againstSS(t, p, prove) })
}

func againstSS(t *testing.T, p *pair, prove prover) {
	need.Program(t, "ss", "nft")
	everyState(t, p.a, p.b)
	for name, s := range map[string]*nsnet.Space{"a": p.a, "b": p.b} {
		v, out := p.sampleStill(t, func() string { return s.Run("ss", "-tanH") })
		want := ssSum(t, out)
		prove(t, v, name, want)
		if name == "a" {
			for m, min := range map[string]float64{
				"established": 10, "timewait": 4, "closewait": 6, "synsent": 3, "synrecv": 4,
			} {
				if got := want["kubeskoop_tcpsummary_tcp"+m+"conn"]; got < min {
					t.Errorf("too few in %s to compare: %v", m, got)
				}
			}
			if want["kubeskoop_tcpsummary_tcprxqueue"] < 8000 || want["kubeskoop_tcpsummary_tcptxqueue"] < 4200 {
				t.Errorf("too little in the queues to compare: %v", want)
			}
		}
	}
}

// TestTCPTextEqualsSockDiag compares all states and queues of the two sources.
func TestTCPTextEqualsSockDiag(t *testing.T) {
	p := newPair(t)
	everyState(t, p.a, p.b)
	var diag, text netlink.TCPTable
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"tcpsummary"},
		Pods: &nsnet.Pods{List: []*owner.Pod{p.a.Pod("a")}}},
		collect.Factory{Name: "tcpsummary", New: func(collect.Env) (collect.Probe, error) {
			return sampleFunc(func(v *collect.View) error {
				if v.Pod() == nil {
					return nil
				}
				if err := netlink.ReadTCP(v, &diag, nil); err != nil {
					return err
				}
				return readTCPText(v, &text)
			}), nil
		}})
	for range 20 {
		before := p.a.File("/proc/net/tcp")
		s.Sample()
		if p.a.File("/proc/net/tcp") == before {
			break
		}
	}
	text.States[netlink.TCPListen] = 0 // the sock_diag request leaves them out
	if diag != text {
		t.Errorf("sock_diag says %+v, the text %+v", diag, text)
	}
	if diag.States[4] == 0 || diag.States[5] == 0 || diag.States[9] == 0 {
		t.Errorf("too few states to compare: %v", diag)
	}
}

// TestTCPSummaryText samples through the text files only.
func TestTCPSummaryText(t *testing.T) {
	need.Program(t, "ss", "nft")
	p := newPair(t)
	everyState(t, p.a, p.b)
	p.Sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"tcpsummary"},
		Pods: &nsnet.Pods{List: []*owner.Pod{p.a.Pod("a")}}},
		collect.Factory{Name: "tcpsummary", New: func(e collect.Env) (collect.Probe, error) {
			x, err := keptTypes.newTCPSummary(e)
			x.(*tcpsummary).textOnly.Store(true)
			return x, err
		}})
	v, out := p.sampleStill(t, func() string { return p.a.Run("ss", "-tanH") })
	v.Prove(t, "tcpsummary", "procfs", "ss", "a", ssSum(t, out))
}

// TestTCPSummaryEmpty: a namespace without sockets is not dumped; another has only
// TIME_WAIT connections.
func TestTCPSummaryEmpty(t *testing.T) {
	inBothWays(t, func(t *testing.T, p *pair, _ prover) { summaryEmpty(t, p) })
}

func summaryEmpty(t *testing.T, p *pair) {
	zero := ssSum(t, "")
	p.Sample().Want(t, "a", zero)
	l := p.b.Listen("tcp", "10.0.0.2:0")
	c := p.a.Dial("tcp", l.Addr().String())
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	_, _ = d.Read(make([]byte, 1))
	_ = d.Close()
	_ = l.Close()
	time.Sleep(20 * time.Millisecond)
	zero["kubeskoop_tcpsummary_tcptimewaitconn"] = 1
	p.Sample().Want(t, "a", zero)
}

// TestTCPSummaryFollows samples after each of several changes: nothing is dumped if nothing
// changed, and the values are never out of date.
func TestTCPSummaryFollows(t *testing.T) {
	inBothWays(t, func(t *testing.T, p *pair, _ prover) { summaryFollows(t, p) })
}

func summaryFollows(t *testing.T, p *pair) {
	need.Program(t, "ss", "nft")
	a, b := p.a, p.b
	check := func(what string) {
		t.Helper()
		for range 2 { // the second time nothing has changed
			v, out := p.sampleStill(t, func() string { return a.Run("ss", "-tanH") })
			v.Want(t, "a", ssSum(t, out))
			if t.Failed() {
				t.Fatalf("after: %s\n%s", what, out)
			}
		}
	}
	l := a.Listen("tcp", "10.0.0.1:80")
	check("listen")
	c := b.Dial("tcp", "10.0.0.1:80").(*net.TCPConn)
	check("a connection")
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	check("accept")
	_, _ = c.Write(make([]byte, 100))
	time.Sleep(5 * time.Millisecond)
	check("bytes to read")
	_, _ = d.Read(make([]byte, 60))
	check("some read")
	_, _ = d.Read(make([]byte, 60))
	check("all read")
	b.Run("nft", "add", "table", "inet", "t")
	b.Run("nft", "add", "chain", "inet", "t", "c", "{ type filter hook input priority 0; }")
	b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "dport", strconv.Itoa(c.LocalAddr().(*net.TCPAddr).Port), "drop")
	_, _ = d.Write(make([]byte, 300))
	check("bytes that are not acknowledged")
	b.Run("nft", "flush", "chain", "inet", "t", "c")
	for range 200 {
		if want := ssSum(t, a.Run("ss", "-tanH")); want["kubeskoop_tcpsummary_tcptxqueue"] == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	check("acknowledged")
	raw, err := d.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_CORK, 1) })
	if err != nil {
		t.Fatal(err)
	}
	check("corked")
	_, _ = d.Write(make([]byte, 70)) // no segment is sent
	check("bytes held back")
	_ = c.CloseWrite()
	time.Sleep(5 * time.Millisecond)
	check("the peer closed")
	_ = d.Close()
	time.Sleep(5 * time.Millisecond)
	check("closed")
	c = b.Dial("tcp", "10.0.0.1:80").(*net.TCPConn)
	if d, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	check("another")
	_ = d.Close()
	time.Sleep(5 * time.Millisecond)
	check("closed here first")
	_ = c.Close()
	time.Sleep(5 * time.Millisecond)
	check("TIME_WAIT")
	b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "sport", "80", "drop")
	go func() {
		b.Do(func() {
			x := net.Dialer{Timeout: 3 * time.Second}
			_, _ = x.Dial("tcp", "10.0.0.1:80")
		})
	}()
	time.Sleep(20 * time.Millisecond)
	check("SYN_RECV")
	_ = l.Close()
	time.Sleep(5 * time.Millisecond)
	check("no longer listening")
}

// TestTCPSummaryMany has more connections than MostKnown, most of them idle.
func TestTCPSummaryMany(t *testing.T) {
	inBothWays(t, func(t *testing.T, p *pair, _ prover) { summaryMany(t, p) })
}

func summaryMany(t *testing.T, p *pair) {
	need.Program(t, "ss")
	check := func(what string) {
		t.Helper()
		for range 2 { // the second time nothing has changed
			v, out := p.sampleStill(t, func() string { return p.a.Run("ss", "-tanH") })
			v.Want(t, "a", ssSum(t, out))
			if t.Failed() {
				t.Fatalf("after: %s\n%s", what, out)
			}
		}
	}
	l := p.a.Listen("tcp", "10.0.0.1:80")
	var near, far []*net.TCPConn
	for n := range 2*netlink.MostKnown + 3 {
		far = append(far, p.b.Dial("tcp", "10.0.0.1:80").(*net.TCPConn))
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		near = append(near, d.(*net.TCPConn))
		if n == 0 || n > netlink.MostKnown-3 && n < netlink.MostKnown+3 {
			check(fmt.Sprintf("connection %d", n+1))
		}
	}
	buffer := make([]byte, 100)
	written := func(n int) {
		for _, c := range far[:n] {
			_, _ = c.Write(buffer)
		}
		time.Sleep(10 * time.Millisecond)
	}
	check("all of them")
	written(5)
	check("bytes to read in some")
	for _, c := range near[:5] {
		_, _ = c.Read(buffer[:60]) // no segment reports that
	}
	check("some read")
	for _, c := range near[:5] {
		_, _ = c.Read(buffer)
	}
	check("all read")
	written(netlink.MostKnown + 2)
	check("bytes to read in more than are remembered")
	for _, c := range near[1 : netlink.MostKnown+2] {
		_, _ = c.Read(buffer)
	}
	check("all but one read")
	_, _ = near[0].Read(buffer)
	check("the last read")
	for _, c := range far[:3] {
		_ = c.CloseWrite()
	}
	time.Sleep(10 * time.Millisecond)
	check("closed there")
	for _, c := range near[:2] {
		_ = c.Close()
	}
	time.Sleep(10 * time.Millisecond)
	check("closed here")
	_ = near[9].SetLinger(0)
	_ = near[9].Close()
	time.Sleep(10 * time.Millisecond)
	check("reset")
}

// TestKnownStill: when the set of connections counts as unchanged.
func TestKnownStill(t *testing.T) {
	base := known{valid: true, inuse: 3, timeWait: 1, counters: [maxMIB]uint64{1, 2, 3}}
	if now := base; !base.still(&now) {
		t.Error("nothing happened")
	}
	for name, change := range map[string]func(last, now *known){
		"first":      func(last, _ *known) { last.valid = false },
		"unreadable": func(_, now *known) { now.valid = false },
		"a counter":  func(_, now *known) { now.counters[2]++ },
		"a socket":   func(_, now *known) { now.inuse++ },
		"TIME_WAIT":  func(_, now *known) { now.timeWait-- },
	} {
		last, now := base, base
		change(&last, &now)
		if last.still(&now) {
			t.Errorf("%s: taken for still", name)
		}
	}
}

// sampleFunc is a probe over each network namespace.
type sampleFunc func(*collect.View) error

func (sampleFunc) Granularity() collect.Granularity { return collect.EachNetns }
func (f sampleFunc) Sample(v *collect.View) error   { return f(v) }
func (sampleFunc) Close() error                     { return nil }
