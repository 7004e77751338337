package netlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"nodeskoop/collect"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

func sampler(t *testing.T, opt collect.Options, spaces map[string]*nsnet.Space) *nsnet.Sampler {
	t.Helper()
	pods := &nsnet.Pods{}
	for name, s := range spaces {
		pods.List = append(pods.List, s.Pod(name))
	}
	opt.Pods = pods
	return nsnet.NewSampler(t, opt, Probes()...)
}

// tcQdisc is a qdisc as tc prints it.
type tcQdisc struct {
	Kind, Dev                                        string
	Root                                             bool
	Bytes, Packets, Drops, Overlimits, Qlen, Backlog float64
}

// tcSum sums what tc prints of every root qdisc except lo's.
func tcSum(t *testing.T, s *nsnet.Space) (sum map[string]float64, roots, all int) {
	t.Helper()
	var list []tcQdisc
	if err := json.Unmarshal([]byte(s.Run("tc", "-s", "-j", "qdisc", "show")), &list); err != nil {
		t.Fatal(err)
	}
	sum = map[string]float64{}
	for _, q := range list {
		if all++; !q.Root || q.Dev == "lo" {
			continue
		}
		roots++
		for name, x := range map[string]float64{"bytes": q.Bytes, "packets": q.Packets, "drops": q.Drops,
			"overlimits": q.Overlimits, "qlen": q.Qlen, "backlog": q.Backlog} {
			sum["kubeskoop_qdisc_"+name] += x
		}
	}
	return sum, roots, all
}

// udp sends datagrams.
func udp(t *testing.T, s *nsnet.Space, addr string, n, size int) {
	t.Helper()
	c := s.Dial("udp", addr)
	for range n {
		_, err := c.Write(make([]byte, size))
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
	_ = c.Close()
}

// quiet stops IPv6 from sending packets of its own.
func quiet(s *nsnet.Space) *nsnet.Space {
	s.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	return s
}

// link makes a veth, whose peer is unused, with address 10.N.0.1 and a neighbour entry
// 10.N.0.2.
func link(t *testing.T, s *nsnet.Space, dev string, n int, options ...string) {
	t.Helper()
	ip := func(last string) string { return "10." + strconv.Itoa(n) + ".0." + last }
	s.Run("ip", append(append([]string{"link", "add", "name", dev}, options...), "type", "veth", "peer", "name", dev+"p")...)
	s.Run("ip", "addr", "add", ip("1")+"/24", "dev", dev)
	s.Run("ip", "link", "set", "dev", dev+"p", "up")
	s.Run("ip", "link", "set", "dev", dev, "up")
	s.Run("ip", "neigh", "add", ip("2"), "lladdr", "02:00:00:00:00:01", "dev", dev)
	s.AwaitUp(dev)
}

func TestQdiscAgainstTC(t *testing.T) {
	need.Program(t, "tc")
	s := quiet(nsnet.New(t))
	for i, dev := range []string{"none", "fifo", "tree", "slow", "multi", "both"} {
		var options []string
		if dev == "multi" {
			options = []string{"numtxqueues", "4", "numrxqueues", "4"}
		}
		link(t, s, dev, 20+i, options...)
	}
	tc := func(args string) { t.Helper(); s.Run("tc", strings.Fields(args)...) }
	tc("qdisc add dev fifo root pfifo limit 10")
	tc("qdisc add dev tree root handle 1: htb default 10")
	tc("class add dev tree parent 1: classid 1:1 htb rate 10mbit")
	tc("class add dev tree parent 1:1 classid 1:10 htb rate 100kbit ceil 100kbit burst 2k cburst 2k")
	tc("class add dev tree parent 1:1 classid 1:20 htb rate 1mbit")
	tc("qdisc add dev tree parent 1:10 handle 10: pfifo limit 5")
	tc("qdisc add dev tree parent 1:20 handle 20: bfifo limit 5000")
	tc("qdisc add dev slow root tbf rate 1kbit burst 2000 limit 6000")
	tc("qdisc replace dev multi root handle 7: mq")
	for i := 1; i <= 4; i++ {
		tc("qdisc add dev multi parent 7:" + strconv.Itoa(i) + " pfifo limit 100")
	}
	tc("qdisc add dev both root handle 1: htb default 1")
	tc("class add dev both parent 1: classid 1:1 htb rate 10mbit")
	tc("qdisc add dev both clsact")
	for i := range 6 {
		for range 4 { // several flows, for several queues
			udp(t, s, "10."+strconv.Itoa(20+i)+".0.2:9", 15, 900)
		}
	}
	udp(t, s, "127.0.0.1:9", 20, 100) // lo is left out
	p := sampler(t, collect.Options{Enabled: []string{"qdisc"}}, map[string]*nsnet.Space{"a": s})
	for range 30 {
		before, roots, all := tcSum(t, s)
		v := p.Sample()
		if after, _, _ := tcSum(t, s); after["kubeskoop_qdisc_packets"] != before["kubeskoop_qdisc_packets"] ||
			after["kubeskoop_qdisc_overlimits"] != before["kubeskoop_qdisc_overlimits"] {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		v.Prove(t, "qdisc", "netlink", "tc -s", "a", before)
		if roots != 12 || all < roots+7 {
			t.Errorf("%d root qdiscs of %d", roots, all)
		}
		for name, min := range map[string]float64{"bytes": 100000, "packets": 100, "drops": 50, "overlimits": 50, "qlen": 5, "backlog": 5000} {
			if before["kubeskoop_qdisc_"+name] < min {
				t.Errorf("%s = %v, too little to compare", name, before["kubeskoop_qdisc_"+name])
			}
		}
		t.Logf("%d root qdiscs of %d: %v", roots, all, before)
		return
	}
	t.Fatal("the counters do not stand still")
}

// queuesNIC moves the test VMs' multiqueue network device into a namespace for the duration
// of the test.
func queuesNIC(t *testing.T, s *nsnet.Space) string {
	t.Helper()
	need.VM(t, need.InVM(), "a network device with several queues")
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.HardwareAddr.String() != "52:54:00:00:00:03" {
			continue
		}
		if out, err := exec.Command("ip", "link", "set", "dev", l.Name, "netns", strconv.Itoa(s.PID)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() {
			s.Run("ip", "link", "set", "dev", l.Name, "down")
			s.Run("ip", "link", "set", "dev", l.Name, "netns", strconv.Itoa(os.Getpid()))
		})
		return l.Name
	}
	need.VM(t, false, "a network device with several queues")
	return ""
}

// TestQdiscTrees is TestQdiscAgainstTC with the qdiscs of real nodes: fq_codel at the root,
// below each queue of a real device, and below classes; and netem.
func TestQdiscTrees(t *testing.T) {
	need.Program(t, "tc")
	s := quiet(nsnet.New(t))
	nic := queuesNIC(t, s)
	for i, dev := range []string{"codel", "tree", "lossy"} {
		link(t, s, dev, 20+i)
	}
	s.Run("ip", "addr", "add", "10.23.0.1/24", "dev", nic)
	s.Run("ip", "link", "set", "dev", nic, "up")
	s.Run("ip", "neigh", "add", "10.23.0.2", "lladdr", "02:00:00:00:00:01", "dev", nic)
	s.AwaitUp(nic)
	tc := func(args string) { t.Helper(); s.Run("tc", strings.Fields(args)...) }
	tc("qdisc add dev codel root fq_codel")
	tc("qdisc add dev tree root handle 1: htb default 10")
	tc("class add dev tree parent 1: classid 1:1 htb rate 10mbit")
	tc("class add dev tree parent 1:1 classid 1:10 htb rate 1kbit ceil 1kbit burst 2k cburst 2k")
	tc("class add dev tree parent 1:1 classid 1:20 htb rate 1mbit")
	tc("qdisc add dev tree parent 1:10 handle 10: fq_codel limit 8")
	tc("qdisc add dev tree parent 1:20 handle 20: fq_codel")
	tc("qdisc add dev lossy root netem loss 50%")
	tc("qdisc replace dev " + nic + " root handle 7: mq")
	tc("qdisc add dev " + nic + " parent 7:1 fq_codel")
	tc("qdisc add dev " + nic + " parent 7:2 fq_codel")
	if out, err := s.Try("ethtool", "-L", nic, "combined", "2"); err != nil && !strings.Contains(out, "unmodified") {
		t.Fatalf("ethtool -L: %v: %s", err, out)
	}
	for i := range 4 {
		for range 6 { // several flows, for several queues
			udp(t, s, "10."+strconv.Itoa(20+i)+".0.2:9", 15, 900)
		}
	}
	p := sampler(t, collect.Options{Enabled: []string{"qdisc"}}, map[string]*nsnet.Space{"a": s})
	for range 100 {
		before, roots, all := tcSum(t, s)
		v := p.Sample()
		if after, _, _ := tcSum(t, s); fmt.Sprint(after) != fmt.Sprint(before) {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		v.Prove(t, "qdisc", "netlink", "tc -s", "a", before)
		for name, min := range map[string]float64{"bytes": 200000, "packets": 200, "drops": 50, "overlimits": 1, "qlen": 5, "backlog": 4000} {
			if before["kubeskoop_qdisc_"+name] < min {
				t.Errorf("%s = %v, too little to compare", name, before["kubeskoop_qdisc_"+name])
			}
		}
		t.Logf("%d root qdiscs of %d: %v", roots, all, before)
		return
	}
	t.Fatal("the counters do not stand still")
}

// TestQdiscGone replaces and removes qdiscs and interfaces. The sums only grow, and exactly
// by what was counted.
func TestQdiscGone(t *testing.T) {
	need.Program(t, "tc")
	s := quiet(nsnet.New(t))
	link(t, s, "v", 20)
	link(t, s, "m", 21, "numtxqueues", "2")
	tc := func(args string) { t.Helper(); s.Run("tc", strings.Fields(args)...) }
	p := sampler(t, collect.Options{Enabled: []string{"qdisc"}}, map[string]*nsnet.Space{"a": s})
	const size = 142
	step, sent := 0, 0.0
	send := func(dev string, n int) {
		t.Helper()
		addr := map[string]string{"v": "10.20.0.2:9", "m": "10.21.0.2:9"}[dev]
		udp(t, s, addr, n, 100)
		sent += float64(n)
	}
	want := func() {
		t.Helper()
		step++
		p.Sample().Prove(t, "qdisc", "netlink", "the sender", "a", map[string]float64{"kubeskoop_qdisc_packets": sent, "kubeskoop_qdisc_bytes": sent * size})
		if t.Failed() {
			t.Fatalf("in step %d", step)
		}
	}
	want() // noqueue counts nothing
	tc("qdisc add dev v root handle 1: pfifo limit 1000")
	send("v", 10)
	want()
	tc("qdisc replace dev v root handle 2: bfifo") // another qdisc
	send("v", 3)
	want()
	tc("qdisc del dev v root")
	want()
	want()
	tc("qdisc add dev v root handle 2: bfifo") // the same handle again
	send("v", 1)
	want()
	send("v", 5)
	want()
	tc("qdisc del dev v root")
	tc("qdisc add dev v root handle 2: bfifo") // and within one cycle
	send("v", 2)
	want()
	// mq shows the sum of its children; a replaced child's counts are missing in it.
	tc("qdisc replace dev m root handle 7: mq")
	tc("qdisc add dev m parent 7:1 pfifo")
	tc("qdisc add dev m parent 7:2 pfifo")
	for range 8 {
		send("m", 4)
	}
	want()
	tc("qdisc replace dev m parent 7:1 bfifo")
	want()
	tc("qdisc replace dev m parent 7:2 bfifo")
	want()
	send("m", 4)
	want()
	s.Run("ip", "link", "del", "dev", "v")
	want()
	s.Run("ip", "link", "del", "dev", "m")
	want()
	want()
}

func conntrackWant(t *testing.T, s *nsnet.Space) map[string]float64 {
	t.Helper()
	want := map[string]float64{}
	for line := range strings.Lines(s.Run("conntrack", "-S")) {
		for _, f := range strings.Fields(line)[1:] {
			name, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			want[name] += n
		}
	}
	out := map[string]float64{}
	for _, name := range []string{"found", "invalid", "ignore", "insert", "insert_failed", "drop", "early_drop", "error", "search_restart"} {
		out["kubeskoop_conntrack_"+strings.ReplaceAll(name, "_", "")] = want[name]
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(strings.Split(s.Run("conntrack", "-C"), "\n")[0]), 64)
	if err != nil {
		t.Fatal(err)
	}
	out["kubeskoop_conntrack_entries"] = n
	return out
}

// tracked makes two network namespaces. One tracks connections, with traffic that matches
// entries, is invalid, or is refused because the table is full.
func tracked(t *testing.T) *nsnet.Space {
	t.Helper()
	need.Program(t, "nft", "conntrack")
	a, b := nsnet.New(t), nsnet.New(t)
	nsnet.Connect(a, b)
	a.Run("nft", "add", "table", "inet", "t")
	a.Run("nft", "add", "chain", "inet", "t", "c", "{ type filter hook input priority 0; }")
	a.Run("nft", "add", "rule", "inet", "t", "c", "ct", "state", "established", "counter")
	for _, host := range []string{"10.0.0.1:0", "[fd00::1]:0"} {
		l := a.Listen("tcp", host)
		for range 5 {
			c := b.Dial("tcp", l.Addr().String())
			d, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte("hello"))
			_, _ = io.ReadFull(d, make([]byte, 5))
			t.Cleanup(func() { _ = d.Close() })
		}
	}
	// A segment of no connection, and an ICMP error that refers to no connection.
	b.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		seg := make([]byte, 20)
		seg[3], seg[12], seg[13] = 99, 5<<4, 0x29 // FIN|PSH|URG
		for range 3 {
			_ = unix.Sendto(fd, seg, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 0, 1}})
		}
		icmp, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(icmp)
		for range 2 {
			_ = unix.Sendto(icmp, []byte{3, 3, 0, 0, 0, 0, 0, 0}, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 0, 1}})
		}
	})
	// Entries that conntrack -I inserts, and two flows for which NAT chooses the same port.
	for i := range 3 {
		a.Run("conntrack", "-I", "-s", "192.0.2.1", "-d", "192.0.2.2", "-p", "udp", "--sport", strconv.Itoa(1+i), "--dport", "9", "-t", "600")
	}
	if _, err := a.Try("nft", "add table ip n; add chain ip n c { type nat hook postrouting priority 100; }; add rule ip n c udp dport 9 snat to 10.0.0.1:5000"); err == nil {
		for range 3 {
			c := a.Dial("udp", "10.0.0.2:9")
			_, _ = c.Write([]byte("x"))
		}
	}
	time.Sleep(20 * time.Millisecond)
	return a
}

func TestConntrackAgainstConntrack(t *testing.T) {
	a := tracked(t)
	p := sampler(t, collect.Options{Enabled: []string{"conntrack"},
		Probes: map[string]map[string]any{"conntrack": {"pods": true}}}, map[string]*nsnet.Space{"a": a})
	check := func(p *nsnet.Sampler, pod string) {
		t.Helper()
		want := conntrackWant(t, a)
		v := p.Sample()
		if again := conntrackWant(t, a); again["kubeskoop_conntrack_found"] != want["kubeskoop_conntrack_found"] {
			want = again
			v = p.Sample()
		}
		max, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
		if err != nil {
			t.Fatal(err)
		}
		if want["kubeskoop_conntrack_maxentries"], err = strconv.ParseFloat(strings.TrimSpace(string(max)), 64); err != nil {
			t.Fatal(err)
		}
		v.Prove(t, "conntrack", "netlink", "conntrack -S and -C", pod, want)
		if want["kubeskoop_conntrack_entries"] < 10 || want["kubeskoop_conntrack_invalid"] < 3 || want["kubeskoop_conntrack_error"] < 2 {
			t.Errorf("too little to compare: %v", want)
		}
		t.Logf("%v", want)
	}
	check(p, "a")
	check(p, "a")
	// Without pods = true only the host is read, which is this namespace here.
	host := nsnet.NewSampler(t, collect.Options{Enabled: []string{"conntrack"}, HostNetns: a.Path}, Probes()...)
	check(host, nsnet.Host)
}

// TestConntrackFile reads the file as if ctnetlink were not available.
func TestConntrackFile(t *testing.T) {
	a := tracked(t)
	var s ctState
	var size ctSize
	if err := readStatFile([]byte(a.File("/proc/net/stat/nf_conntrack")), &s, &size); err != nil {
		t.Fatal(err)
	}
	want := conntrackWant(t, a)
	for i, name := range []string{"found", "invalid", "ignore", "insert", "insertfailed", "drop", "earlydrop", "error", "searchrestart"} {
		if got := float64(s.sum[i]); got != want["kubeskoop_conntrack_"+name] {
			t.Errorf("%s = %v, want %v", name, got, want["kubeskoop_conntrack_"+name])
		}
	}
	if float64(size.entries) != want["kubeskoop_conntrack_entries"] {
		t.Errorf("%d entries, want %v", size.entries, want["kubeskoop_conntrack_entries"])
	}
}

// TestConntrackHidden: if procfs shows no sysctls, it is unknown whether conntrack is
// loaded, and there are no values.
func TestConntrackHidden(t *testing.T) {
	need.Root(t)
	root := t.TempDir()
	err := unix.Mount("proc", root, "proc", 0, "subset=pid")
	need.Kernel(t, err == nil, fmt.Sprintf("no procfs of processes only: %v", err))
	defer func() { _ = unix.Unmount(root, 0) }()
	p := nsnet.NewSampler(t, collect.Options{Enabled: []string{"conntrack"}, ProcRoot: root, HostNetns: "/proc/self/ns/net"}, Probes()...)
	v, errs := p.Try()
	if len(v[nsnet.Host]) != 0 || errs["conntrack"] == nil || !strings.Contains(errs["conntrack"].Error(), "subset=pid") {
		t.Errorf("%v, %v", v, errs)
	}
}

// TestConntrackNotLoaded: without the sysctl no request is made, and all values are 0.
func TestConntrackNotLoaded(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(root+"/sys/net", 0o755); err != nil {
		t.Fatal(err)
	}
	need.Root(t)
	p := nsnet.NewSampler(t, collect.Options{Enabled: []string{"conntrack"}, ProcRoot: root, HostNetns: "/proc/self/ns/net"}, Probes()...)
	v := p.Sample()
	if len(v[nsnet.Host]) != 11 {
		t.Errorf("%d metrics, want 11: %v", len(v[nsnet.Host]), v)
	}
	for name, x := range v[nsnet.Host] {
		if x != 0 {
			t.Errorf("%s = %v", name, x)
		}
	}
}

// TestFamilies: one request for both families and one per family give the same result.
func TestFamilies(t *testing.T) {
	need.Program(t, "ss")
	a, b := nsnet.New(t), nsnet.New(t)
	nsnet.Connect(a, b)
	for _, host := range []string{"10.0.0.1:0", "[fd00::1]:0"} {
		l := a.Listen("tcp", host)
		for range 200 {
			c := b.Dial("tcp", l.Addr().String())
			d, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(make([]byte, 10))
			t.Cleanup(func() { _ = d.Close() })
		}
	}
	var both, each, refused TCPTable
	var errBoth, errEach, errRefused error
	a.Do(func() {
		c, err := dial(unix.NETLINK_SOCK_DIAG, "TCP sockets", nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.close()
		var known TCPSockets
		errBoth = dumpBoth(&c, tcpMask, both.counter(&known))
		if errEach = dumpFamily(&c, unix.AF_INET, tcpMask, each.counter(nil)); errEach == nil {
			errEach = dumpFamily(&c, unix.AF_INET6, tcpMask, each.counter(nil))
		}
		errRefused = dumpFamily(&c, 44, tcpMask, refused.counter(nil))
		// Requests for single sockets give the same result, and an error for a socket that
		// does not exist. This asks for more sockets than MostKnown.
		var list []tcpSocket
		if err := dumpBoth(&c, tcpMask, func(msg []byte) error {
			list = append(list, socketOf(msg))
			return nil
		}); err != nil {
			t.Error(err)
		}
		var single TCPTable
		for part := range slices.Chunk(list, askAtOnce) {
			err = errors.Join(err, askTCP(&c, &single, part))
		}
		if err != nil || single != both {
			t.Errorf("one by one: %+v (%v), all at once: %+v", single, err, both)
		}
		if known.found != 400 || known.resting != 0 || len(known.restless) != MostKnown || known.Complete() {
			t.Errorf("all have bytes to read, and of more than are remembered is known: %d found, %d at rest, %d that are not", known.found, known.resting, len(known.restless))
		}
		none := slices.Clone(list[:3])
		none[1].id[len(none[1].id)-1] ^= 1 // the socket's cookie
		if err := askTCP(&c, &single, none); err != ErrNoSuchSocket {
			t.Errorf("another socket at the same address: %v", err)
		}
	})
	if errBoth != nil || errEach != nil || both != each || both.States[TCPEstablished] != 400 || both.RxQueue != 4000 {
		t.Errorf("%+v (%v) and %+v (%v)", both, errBoth, each, errEach)
	}
	var no *refusal
	if !errors.As(errRefused, &no) || !errors.Is(errRefused, unix.ENOENT) && !errors.Is(errRefused, unix.EINVAL) {
		t.Errorf("a family that is none: %v", errRefused)
	}
}

// TestConntrackModule: if conntrack is loaded and ctnetlink is not, the file is read, and
// no module is loaded.
func TestConntrackModule(t *testing.T) {
	root := t.TempDir()
	self := strconv.Itoa(os.Getpid())
	for name, text := range map[string]string{
		"modules":                              "nf_conntrack 172032 1 nft_ct, Live 0x0\n",
		"sys/net/netfilter/nf_conntrack_count": "12\n",
		"sys/net/netfilter/nf_conntrack_max":   "65536\n",
		self + "/net/stat/nf_conntrack":        "entries found invalid\n0000001f 00000002 00000003\n0000001f 00000004 00000005\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, self, "ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/ns/net", filepath.Join(root, self, "ns/net")); err != nil {
		t.Fatal(err)
	}
	p := nsnet.NewSampler(t, collect.Options{Enabled: []string{"conntrack"}, ProcRoot: root}, Probes()...)
	p.Sample().Want(t, nsnet.Host, map[string]float64{
		"kubeskoop_conntrack_found": 6, "kubeskoop_conntrack_invalid": 8, "kubeskoop_conntrack_drop": 0,
		"kubeskoop_conntrack_entries": 31, "kubeskoop_conntrack_maxentries": 65536,
	})
}
