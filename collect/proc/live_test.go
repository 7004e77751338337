package proc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/proof"
)

// pair is two network namespaces joined by a veth, and a Sampler over both.
type pair struct {
	a, b *nsnet.Space
	*nsnet.Sampler
}

func newPair(t *testing.T, probes ...string) *pair {
	t.Helper()
	p := &pair{a: nsnet.New(t), b: nsnet.New(t)}
	// Without this, router solicitations would be sent at any time.
	for _, s := range []*nsnet.Space{p.a, p.b} {
		s.Sysctl("net/ipv6/conf/default/router_solicitations", "0")
	}
	nsnet.Connect(p.a, p.b)
	p.Sampler = nsnet.NewSampler(t, collect.Options{Enabled: probes,
		Pods: &nsnet.Pods{List: []*owner.Pod{p.a.Pod("a"), p.b.Pod("b")}}}, Probes()...)
	return p
}

// traffic makes connections over both families and sends datagrams, some to closed ports,
// some beyond the receive buffer.
func (p *pair) traffic(t *testing.T) {
	t.Helper()
	for _, host := range []string{"10.0.0.2", "[fd00::2]"} {
		l := p.b.Listen("tcp", host+":0")
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		for range 5 {
			c := p.a.Dial("tcp", l.Addr().String())
			if _, err := c.Write(make([]byte, 20000)); err != nil {
				t.Fatal(err)
			}
			_ = c.(*net.TCPConn).CloseWrite()
			if n, err := io.Copy(io.Discard, c); n != 20000 || err != nil {
				t.Fatal(n, err)
			}
			_ = c.Close()
		}
		for range 3 {
			p.a.Do(func() {
				if _, err := net.Dial("tcp", host+":9"); err == nil {
					t.Error("a connection to the closed port 9")
				}
			})
		}
		c := p.a.Dial("udp", host+":9")
		for range 4 {
			_, _ = c.Write([]byte("nobody listens")) // ECONNREFUSED on every other write
		}
		full := p.b.Packets("udp", host+":0").(*net.UDPConn)
		if err := full.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		c = p.a.Dial("udp", full.LocalAddr().String())
		for range 50 {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A connection that is reset, and one that is closed with unread data.
	l := p.b.Listen("tcp", "10.0.0.2:0")
	for i := range 2 {
		c := p.a.Dial("tcp", l.Addr().String()).(*net.TCPConn)
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			_ = c.SetLinger(0)
			_ = c.Close()
		} else {
			_, _ = d.Write([]byte("unread"))
			time.Sleep(10 * time.Millisecond)
			_ = c.Close()
		}
		_, _ = d.Read(make([]byte, 10))
		_ = d.Close()
	}
	// A full accept queue.
	p.b.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			t.Cleanup(func() { _ = unix.Close(fd) })
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: 777})
		}
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		if err != nil {
			t.Error(err)
		}
	})
	p.a.Do(func() {
		for range 5 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = unix.Close(fd) })
			_ = unix.Connect(fd, &unix.SockaddrInet4{Port: 777, Addr: [4]byte{10, 0, 0, 2}})
			time.Sleep(time.Millisecond)
		}
	})
	settle(t, p.a, p.b)
}

// trouble moves the counters of lost packets, zero windows and missing routes.
func (p *pair) trouble(t *testing.T) {
	t.Helper()
	l := p.b.Listen("tcp", "10.0.0.2:778")
	lost := p.a.Dial("tcp", "10.0.0.2:778")
	idle := p.a.Dial("tcp", "10.0.0.2:778").(*net.TCPConn)
	for range 2 { // nobody reads from these connections
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	if err := idle.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}); err != nil {
		t.Fatal(err)
	}
	shut := p.a.Dial("tcp", "10.0.0.2:778")
	_ = shut.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = shut.Write(make([]byte, 16<<20)) // until the window is zero
	// b drops packets to two ports.
	p.b.Run("nft", "add", "table", "inet", "t")
	p.b.Run("nft", "add", "chain", "inet", "t", "c", "{ type filter hook input priority 0; }")
	port := lost.LocalAddr().(*net.TCPAddr).Port
	p.b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "sport", strconv.Itoa(port), "drop")
	p.b.Run("nft", "add", "rule", "inet", "t", "c", "tcp", "dport", "779", "drop")
	_, _ = lost.Write(make([]byte, 5000))
	p.a.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		_ = unix.Connect(fd, &unix.SockaddrInet4{Port: 779, Addr: [4]byte{10, 0, 0, 2}})
	})
	// b has no route to the destination of a's packets.
	p.b.Sysctl("net/ipv4/ip_forward", "1")
	p.a.Run("ip", "route", "add", "203.0.113.0/24", "via", "10.0.0.2")
	c := p.a.Dial("udp", "203.0.113.1:9")
	for range 3 {
		_, _ = c.Write([]byte("no way"))
	}
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		waiting := false
		for _, field := range []string{"TCPKeepAlive", "TCPSynRetrans", "TCPTimeouts"} {
			waiting = waiting || textValue(t, p.a, "TcpExt", field) == "0"
		}
		if !waiting {
			return
		}
	}
	t.Error("a has sent no probe or no retransmission")
}

// settle waits briefly until the namespaces exchange no more packets. Retransmissions may
// still follow; see sampleStill.
func settle(t *testing.T, spaces ...*nsnet.Space) {
	t.Helper()
	last := ""
	for range 60 {
		now := ""
		for _, s := range spaces {
			now += s.File("/proc/net/dev") + s.File("/proc/net/snmp")
		}
		if now == last {
			return
		}
		last = now
		time.Sleep(50 * time.Millisecond)
	}
}

// sampleStill samples until check, an independent reading, gives the same before and after.
func (p *pair) sampleStill(t *testing.T, check func() string) (nsnet.Values, string) {
	t.Helper()
	for range 20 {
		before := check()
		v := p.Sample()
		if after := check(); after == before {
			return v, before
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the counters do not stand still")
	return nil, ""
}

func TestMIBAgainstNstat(t *testing.T) {
	need.Program(t, "nstat")
	p := newPair(t, "tcp", "udp", "ip", "tcpext")
	p.traffic(t)
	p.trouble(t)
	for _, x := range []struct {
		name string
		s    *nsnet.Space
	}{{"a", p.a}, {"b", p.b}} {
		v, out := p.sampleStill(t, func() string { return x.s.Run("nstat", "-asz") })
		nstat := map[string]string{}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 3 {
				nstat[f[0]] = f[1]
			}
		}
		checked, above := 0, 0
		for _, name := range []string{"tcp", "udp", "ip", "tcpext"} {
			for _, m := range metricsOf(name) {
				section, field, _ := strings.Cut(m.Field, ".")
				want, ok := nstat[section+field]
				if !ok {
					// nstat omits gauges.
					want = textValue(t, x.s, section, field)
				}
				w, err := strconv.ParseFloat(want, 64)
				if err != nil {
					t.Fatalf("%s: %v", m.Field, err)
				}
				v.Prove(t, name, "procfs", "nstat", x.name, map[string]float64{m.Name: w})
				checked++
				if w > 0 {
					above++
				}
			}
		}
		if checked != 52 || above < 12 {
			t.Errorf("%s: %d metrics checked, %d of them above 0", x.name, checked, above)
		}
		t.Logf("%s: %d metrics equal to nstat's, %d of them above 0", x.name, checked, above)
	}
	v := p.Sample()
	for name, min := range map[string]float64{
		"kubeskoop_tcp_activeopens": 17, "kubeskoop_tcp_attemptfails": 6, "kubeskoop_udp_outdatagrams": 52,
		"kubeskoop_tcp_retranssegs": 2, "kubeskoop_tcpext_tcpsynretrans": 1, "kubeskoop_tcpext_tcptimeouts": 1,
		"kubeskoop_tcpext_tcpkeepalive": 1, "kubeskoop_tcpext_tcpabortonclose": 1,
	} {
		if v["a"][name] < min {
			t.Errorf("%s = %v, want at least %v", name, v["a"][name], min)
		}
	}
	for name, min := range map[string]float64{
		"kubeskoop_tcp_passiveopens": 12, "kubeskoop_tcp_outrsts": 6, "kubeskoop_udp_noports": 2,
		"kubeskoop_udp_rcvbuferrors": 10, "kubeskoop_ip_innoroutes": 3, "kubeskoop_tcpext_listenoverflows": 1, "kubeskoop_tcpext_listendrops": 1,
	} {
		if v["b"][name] < min {
			t.Errorf("%s = %v, want at least %v", name, v["b"][name], min)
		}
	}
	if len(v[nsnet.Host]) != 52 {
		t.Errorf("%d metrics of the host, want 52", len(v[nsnet.Host]))
	}
}

// textValue extracts one value of /proc/net/snmp or netstat with awk.
func textValue(t *testing.T, s *nsnet.Space, section, field string) string {
	t.Helper()
	const prog = `$1 == s":" && !n { for (i = 2; i <= NF; i++) if ($i == f) n = i; next } $1 == s":" && n { print $n; exit }`
	files := "cat /proc/thread-self/net/snmp /proc/thread-self/net/netstat"
	return strings.TrimSpace(s.Run("sh", "-c", files+" | awk -v s="+section+" -v f="+field+" '"+prog+"'"))
}

func TestSockAgainstSockstat(t *testing.T) {
	p := newPair(t, "sock")
	p.traffic(t)
	for range 3 {
		l := p.b.Listen("tcp6", "[fd00::2]:0")
		p.a.Dial("tcp6", l.Addr().String())
	}
	const script = `awk '$1 == "TCP:" { print "inuse", $3; print "orphan", $5; print "tw", $7; print "alloc", $9; print "mem", $11 } $1 == "TCP6:" { print "inuse", $3 }' /proc/thread-self/net/sockstat /proc/thread-self/net/sockstat6`
	for name, s := range map[string]*nsnet.Space{"a": p.a, "b": p.b} {
		v, out := p.sampleStill(t, func() string { return s.Run("sh", "-c", script) })
		want := map[string]float64{}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			n, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			want["kubeskoop_sock_"+f[0]] += n
		}
		v.Prove(t, "sock", "procfs", "awk", name, want)
		if want["kubeskoop_sock_inuse"] < 6 || name == "a" && want["kubeskoop_sock_tw"] < 10 {
			t.Errorf("%s: too little to compare: %v", name, want)
		}
	}
}

// ipLinkSum sums what ip prints of every interface except lo.
func ipLinkSum(t *testing.T, s *nsnet.Space) map[string]float64 {
	t.Helper()
	type side struct {
		Bytes, Packets, Errors, Dropped float64
		Missed                          float64 `json:"missed_errors"`
		OverErrors                      float64 `json:"over_errors"`
	}
	var links []struct {
		Name    string `json:"ifname"`
		Stats64 struct{ RX, TX side }
	}
	if err := json.Unmarshal([]byte(s.Run("ip", "-s", "-s", "-j", "link")), &links); err != nil {
		t.Fatal(err)
	}
	sum := map[string]float64{}
	for _, l := range links {
		if l.Name == "lo" {
			continue
		}
		for name, x := range map[string]side{"rx": l.Stats64.RX, "tx": l.Stats64.TX} {
			sum["kubeskoop_netdev_"+name+"bytes"] += x.Bytes
			sum["kubeskoop_netdev_"+name+"packets"] += x.Packets
			sum["kubeskoop_netdev_"+name+"errors"] += x.Errors
			sum["kubeskoop_netdev_"+name+"dropped"] += x.Dropped + x.Missed
		}
	}
	return sum
}

func TestNetdevAgainstIPLink(t *testing.T) {
	p := newPair(t, "netdev")
	p.a.Run("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth2")
	p.traffic(t)
	// Packets to a peer that is down are dropped on transmit.
	p.a.Run("ip", "addr", "add", "10.9.0.1/24", "dev", "veth1")
	p.a.Run("ip", "link", "set", "veth1", "up")
	p.a.Run("ip", "link", "set", "veth2", "up")
	p.a.Run("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:01", "dev", "veth1")
	c := p.a.Dial("udp", "10.9.0.2:9")
	for range 7 {
		_, _ = c.Write([]byte("x"))
	}
	settle(t, p.a, p.b)
	for name, s := range map[string]*nsnet.Space{"a": p.a, "b": p.b} {
		var want map[string]float64
		v, _ := p.sampleStill(t, func() string {
			want = ipLinkSum(t, s)
			return fmt.Sprint(want)
		})
		v.Prove(t, "netdev", "procfs", "ip -s link", name, want)
		if want["kubeskoop_netdev_rxbytes"] < 100000 || len(want) != 8 {
			t.Errorf("%s: too little to compare: %v", name, want)
		}
	}
}

// TestNetdevGone removes, replaces and renames interfaces. The sums only grow, and exactly
// by what was counted.
func TestNetdevGone(t *testing.T) {
	p := &pair{a: nsnet.New(t)}
	p.Sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"netdev"},
		Pods: &nsnet.Pods{List: []*owner.Pod{p.a.Pod("a")}}}, Probes()...)
	// IPv6 sends packets of its own when an interface comes up.
	p.a.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	add := func() {
		p.a.Run("ip", "link", "add", "v1", "type", "veth", "peer", "name", "v2")
		p.a.Run("ip", "addr", "add", "10.9.0.1/24", "dev", "v1")
		p.a.Run("ip", "link", "set", "v1", "up")
		p.a.Run("ip", "link", "set", "v2", "up")
		p.a.Run("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:01", "dev", "v1")
		p.a.AwaitUp("v1")
	}
	send := func(n int) {
		t.Helper()
		c := p.a.Dial("udp", "10.9.0.2:9")
		for range n {
			if _, err := c.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	const size = 142 // including the UDP, IP and Ethernet headers
	add()
	settle(t, p.a)
	base := p.Sample()["a"]
	step := 0
	want := func(packets float64) {
		t.Helper()
		step++
		now := p.Sample()["a"]
		for _, side := range []string{"rx", "tx"} {
			if got := now["kubeskoop_netdev_"+side+"packets"] - base["kubeskoop_netdev_"+side+"packets"]; got != packets {
				t.Errorf("step %d: %v more %s packets, want %v", step, got, side, packets)
			}
			if got := now["kubeskoop_netdev_"+side+"bytes"] - base["kubeskoop_netdev_"+side+"bytes"]; got != packets*size {
				t.Errorf("step %d: %v more %s bytes, want %v", step, got, side, packets*size)
			}
		}
	}
	send(10)
	want(10)
	p.a.Run("ip", "link", "del", "v1") // deleted
	want(10)
	want(10)
	want(10)
	add() // recreated under the same name
	send(3)
	want(13)
	send(2)
	want(15)
	p.a.Run("ip", "link", "del", "v1") // replaced within a cycle
	add()
	send(1)
	want(16)
	p.a.Run("ip", "link", "set", "v1", "down")
	p.a.Run("ip", "link", "set", "v1", "name", "renamed") // renamed, with its counters
	p.a.Run("ip", "link", "set", "renamed", "up")
	p.a.AwaitUp("renamed")
	p.a.Run("ip", "neigh", "replace", "10.9.0.2", "lladdr", "02:00:00:00:00:01", "dev", "renamed")
	send(4)
	want(20)
	p.a.Run("ip", "link", "del", "renamed")
	want(20)
	want(20)
	want(20)
}

func TestSoftnetAgainstTheFile(t *testing.T) {
	p := newPair(t, "softnet")
	sum := func() (processed, dropped float64) {
		b, err := os.ReadFile("/proc/net/softnet_stat")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			x, err1 := strconv.ParseUint(f[0], 16, 32)
			y, err2 := strconv.ParseUint(f[1], 16, 32)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			processed += float64(x)
			dropped += float64(y)
		}
		return processed, dropped
	}
	before, _ := sum()
	p.Sample()
	p.traffic(t)
	// Traffic of the whole machine counts here: repeat until readings before and after
	// agree.
	var v nsnet.Values
	still := false
	for range 500 {
		low, lowDropped := sum()
		v = p.Sample()
		if high, highDropped := sum(); low == high && lowDropped == highDropped {
			if still = true; low < before+100 {
				t.Errorf("%v packets processed, %v before the traffic", low, before)
			}
			v.Prove(t, "softnet", "procfs", "/proc/net/softnet_stat", nsnet.Host,
				map[string]float64{"kubeskoop_softnet_processed": low, "kubeskoop_softnet_dropped": lowDropped})
			break
		}
	}
	if !still {
		t.Error("the counters do not stand still")
	}
	if len(v) != 1 {
		t.Errorf("values of %d targets, want the host's alone: %v", len(v), v)
	}
}

// TestSoftnetCPUsOffline reads files in which CPUs go offline and online and counters wrap.
func TestSoftnetCPUsOffline(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "1/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"softnet"}, ProcRoot: root}, Probes()...)
	const rest = " 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 "
	for i, x := range []struct {
		file               string
		processed, dropped float64
	}{
		{"00000010 00000001" + rest + "00000000\n00000020 00000002" + rest + "00000001\n", 0x30, 3},
		{"00000011 00000001" + rest + "00000000\n", 0x31, 3},                                                                                              // CPU 1 is offline
		{"00000012 00000001" + rest + "00000000\n00000025 00000003" + rest + "00000001\n", 0x37, 4},                                                       // CPU 1 is back
		{"fffffff0 00000001" + rest + "00000000\n00000025 00000003" + rest + "00000001\n", 0x37, 4},                                                       // a counter fell
		{"00000005 00000001" + rest + "00000000\n00000025 00000003" + rest + "00000001\n", 0x37 + 0x15, 4},                                                // a counter wrapped
		{"00000006 00000001" + rest + "00000000\n00000025 00000003" + rest + "00000001\n00000100 00000000" + rest + "00000007\n", 0x37 + 0x16 + 0x100, 4}, // a new one
	} {
		if err := os.WriteFile(filepath.Join(root, "1/net/softnet_stat"), []byte(x.file), 0o644); err != nil {
			t.Fatal(err)
		}
		v := s.Sample()
		v.Want(t, nsnet.Host, map[string]float64{"kubeskoop_softnet_processed": x.processed, "kubeskoop_softnet_dropped": x.dropped})
		if t.Failed() {
			t.Fatalf("in step %d", i)
		}
	}
}

// TestFDAgainstLs counts in all three ways: with the BPF iterators, by reading links, and
// with both, for processes that the iterators did not see.
func TestFDAgainstLs(t *testing.T) {
	s := nsnet.New(t)
	need.Program(t, "ls")
	j := startJob(t, []string{"NODESKOOP_TEST_OPEN_MUCH=" + t.TempDir()}, "/proc/"+strconv.Itoa(os.Getpid())+"/exe")
	if line := j.line(); line != "ready" {
		t.Fatal(line)
	}
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = zombie.Wait() })
	pod := s.Pod("a")
	const kthreadd, nobody = 2, 1<<22 - 1
	pod.PIDs = append(pod.PIDs, j.cmd.Process.Pid, zombie.Process.Pid, kthreadd, nobody)
	var open, sockets float64
	for _, pid := range pod.PIDs[:2] {
		out, err := exec.Command("ls", "-l", "/proc/"+strconv.Itoa(pid)+"/fd").Output()
		if err != nil {
			t.Fatal(err)
		}
		open += float64(strings.Count(string(out), " -> "))
		sockets += float64(strings.Count(string(out), " -> socket:["))
	}
	if open < 1550 || sockets < 10 {
		t.Errorf("too little to compare: %v, %v", open, sockets)
	}
	want := map[string]float64{"kubeskoop_fdopenfd": open, "kubeskoop_fd_openfd": open, "kubeskoop_fd_opensocket": sockets}
	sample := func(change func(p *fd)) (v nsnet.Values, iterates bool) {
		var p *fd
		v = nsnet.NewSampler(t, collect.Options{Enabled: []string{"fd"}, CompatNames: true, Pods: &nsnet.Pods{List: []*owner.Pod{pod}}},
			collect.Factory{Name: "fd", New: func(env collect.Env) (collect.Probe, error) {
				made, err := keptTypes.newFD(env)
				if err != nil {
					return nil, err
				}
				p = made.(*fd)
				change(p)
				return p, nil
			}}).Sample()
		if v[nsnet.Host]["kubeskoop_fdopenfd"] < 10 {
			t.Errorf("the host has %v descriptors open", v[nsnet.Host]["kubeskoop_fdopenfd"])
		}
		return v, p.all.iterator != nil
	}

	t.Run("links", func(t *testing.T) {
		v, _ := sample(func(p *fd) { _ = p.all.drop() })
		proof.Take(t, "fd", "procfs", nil)
		v.Prove(t, "fd", "procfs", "ls", "a", want)
	})
	t.Run("iter", func(t *testing.T) {
		v, iterates := sample(func(*fd) {})
		if !iterates {
			_, err := bpf.NewOpenFiles(keptTypes.types)
			proof.Refuse(t, "fd", "iter", err.Error())
			need.Kernel(t, false, err.Error())
		}
		proof.Choose(t, "fd", "iter", nil)
		v.Prove(t, "fd", "iter", "ls", "a", want)
	})
	t.Run("unseen", func(t *testing.T) {
		v, _ := sample(func(p *fd) {
			if p.all.iterator == nil {
				return
			}
			// Pretend that all processes but one started after the iterator ran.
			counts, err := p.all.iterator.Read()
			if err != nil {
				t.Fatal(err)
			}
			p.all.cycle, p.all.of = 1, map[uint32]bpf.FileCount{uint32(pod.PIDs[0]): counts[uint32(pod.PIDs[0])]}
		})
		v.Want(t, "a", want)
	})
}

// TestFDComesAndGoes compares the iterators' counts with descriptors that a process opens
// and closes, and checks that exited processes are forgotten.
func TestFDComesAndGoes(t *testing.T) {
	need.Root(t)
	files, err := bpf.NewOpenFiles(keptTypes.types)
	if err != nil {
		need.Kernel(t, false, err.Error())
	}
	defer files.Close()
	own := uint32(os.Getpid())
	count := func() (map[uint32]bpf.FileCount, bpf.FileCount) {
		t.Helper()
		all, err := files.Read()
		if err != nil {
			t.Fatal(err)
		}
		return all, all[own]
	}
	count() // from here on the runtime opens nothing more
	_, before := count()
	var fds []int
	for range 700 {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	if _, now := count(); now.Open != before.Open+700 || now.Sockets != before.Sockets+700 {
		t.Errorf("%+v, want 700 more than %+v", now, before)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if _, now := count(); now != before {
		t.Errorf("%+v when all are closed, %+v before", now, before)
	}
	var jobs []*exec.Cmd
	for range 600 { // more than one read of the map
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, cmd)
	}
	all, _ := count()
	for _, cmd := range jobs {
		if c, ok := all[uint32(cmd.Process.Pid)]; !ok || c.Open < 3 {
			t.Errorf("process %d has %+v, %v", cmd.Process.Pid, c, ok)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	all, _ = count()
	for _, cmd := range jobs {
		if c, ok := all[uint32(cmd.Process.Pid)]; ok {
			t.Errorf("process %d has ended, and has %+v", cmd.Process.Pid, c)
		}
	}
}

// TestMillionDescriptors: the kernel interrupts an iterator after a million objects, and
// continues with the next read.
func TestMillionDescriptors(t *testing.T) {
	need.Root(t)
	need.Short(t)
	files, err := bpf.NewOpenFiles(keptTypes.types)
	if err != nil {
		need.Kernel(t, false, err.Error())
	}
	defer files.Close()
	need.Program(t, "python3")
	// The number of processes depends on RLIMIT_NOFILE.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	each := int(min(limit.Max, 500_000)) - 100
	need.Kernel(t, each > 5000, fmt.Sprintf("a process may open %d files only", limit.Max))
	many := 1_050_000/each + 1
	cmd := exec.Command("python3", "-c", `import os, resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
s = socket.socket()
while os.dup(s.fileno()) < int(sys.argv[1]) - 1: pass
sockets = sum(os.readlink("/proc/self/fd/%d" % i).startswith("socket:") for i in range(int(sys.argv[1])))
for _ in range(int(sys.argv[2]) - 1):
    if not os.fork(): break
os.write(1, b"%8d%8d" % (os.getpid(), sockets))
os.read(0, 1)`, strconv.Itoa(each), strconv.Itoa(many))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Hold(t, cmd)
	sockets := map[uint32]int{} // by process
	for range many {
		var line [16]byte
		if _, err := io.ReadFull(stdout, line[:]); err != nil {
			t.Fatalf("open %d descriptors in each of %d processes: %v", each, many, err)
		}
		var pid uint32
		var n int
		if _, err := fmt.Sscan(string(line[:]), &pid, &n); err != nil {
			t.Fatal(err)
		}
		sockets[pid] = n
	}
	start := time.Now()
	all, err := files.Read()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d descriptors and more, read in %v", each*many, time.Since(start))
	for pid, n := range sockets {
		if c := all[pid]; c.Open != each || c.Sockets != n {
			t.Errorf("process %d has %+v, want %d open, %d of them sockets", pid, c, each, n)
		}
	}
}

// failing is an iterator whose first readings fail.
type failing struct{ fail, reads int }

func (f *failing) Read() (map[uint32]int, error) {
	f.reads++
	if f.fail > 0 {
		f.fail--
		return nil, errors.New("no")
	}
	return map[uint32]int{1: f.reads}, nil
}

func (*failing) Close() error { return nil }

// TestFailedIteratorIsTriedAgain: a failure costs that cycle and a few more, and is logged
// once.
func TestFailedIteratorIsTriedAgain(t *testing.T) {
	var log bytes.Buffer
	f := &failing{fail: 2}
	s := snapshot[int]{release: keptTypes.release, log: slog.New(slog.NewTextHandler(&log, nil)), instead: "one by one", iterator: f}
	var known []uint64
	for cycle := uint64(1); cycle <= 20; cycle++ {
		if s.refreshIn(cycle); s.of != nil {
			known = append(known, cycle)
		}
	}
	// It failed in cycle 1 and, two cycles later, in 3; four cycles later it works again.
	if want := []uint64{7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}; !slices.Equal(known, want) {
		t.Errorf("known in the cycles %v, want %v", known, want)
	}
	if f.reads != 16 || strings.Count(log.String(), "level=WARN") != 1 || strings.Count(log.String(), "level=INFO") != 1 {
		t.Errorf("%d readings\n%s", f.reads, log.String())
	}
}
