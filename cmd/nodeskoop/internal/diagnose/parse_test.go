package diagnose

import (
	"encoding/binary"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// File contents as kernels write them.
const (
	someCounters = "Ip: Forwarding DefaultTTL InReceives OutNoRoutes\nIp: 1 64 4194 7\nTcp: RtoAlgorithm MaxConn ActiveOpens\nTcp: 1 -1 12\n"
	someStall    = "some avg10=4.15 avg60=5.70 avg300=3.61 total=1619999866\nfull avg10=0.00 avg60=0.04 avg300=0.53 total=118921364\n"
	someARP      = "entries  allocs   destroys hash_grows lookups  hits     res_failed rcv_probes_mcast rcv_probes_ucast periodic_gc_runs forced_gc_runs unresolved_discards table_fulls\n00000011 0 0 0 0 0 0 0 0 0 0 0 00000002\n00000011 0 0 0 0 0 0 0 0 0 0 0 0000000a\n"
	someLimits   = "Limit                     Soft Limit           Hard Limit           Units     \nMax processes             127236               127236               processes \nMax open files            1024                 524288               files     \n"
	someMounts   = "25 30 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n26 30 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n27 30 0:25 /a /mnt rw - cgroup cgroup rw,blkio\n"
	someIO       = "8:0 rbytes=4096 wbytes=0 rios=1 wios=0\n8:16 rbps=max wbps=1048576 riops=max wiops=5\n"
)

func TestParse(t *testing.T) {
	check := func(what string, got, want any, err error) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v, %s", what, err, d)
		}
	}
	counters := map[string]uint64{}
	err := parseCounters([]byte(someCounters), counters)
	check("counters", counters, map[string]uint64{"IpForwarding": 1, "IpDefaultTTL": 64, "IpInReceives": 4194, "IpOutNoRoutes": 7, "TcpRtoAlgorithm": 1, "TcpActiveOpens": 12}, err)
	six := map[string]uint64{}
	err = parseCounters6([]byte("Ip6InReceives                   \t12\nUdp6RcvbufErrors 3\n"), six)
	check("counters of IPv6", six, map[string]uint64{"Ip6InReceives": 12, "Udp6RcvbufErrors": 3}, err)
	stall, err := parseStall([]byte(someStall))
	check("pressure", stall, uint64(1619999866), err)
	entries, fulls, err := parseARP([]byte(someARP))
	check("entries of ARP", []uint64{entries, fulls}, []uint64{17, 12}, err)
	check("limit", parseLimit([]byte(someLimits)), uint64(1024), nil)
	check("no limit", parseLimit([]byte("Max open files            unlimited            unlimited            files\n")), uint64(0), nil)
	mounts := groupMounts([]byte(someMounts))
	check("mounts", mounts, map[string]string{"": "/sys/fs/cgroup/unified", "rw": "/sys/fs/cgroup/cpu,cpuacct", "cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct"}, nil)
	file := []byte("4:cpu,cpuacct:/kubepods/pod1/c1\n2:blkio:/kubepods/pod1/c1\n0::/kubepods/../x\n")
	check("groups", groupDirs(mounts, file, "cpu"), []string{"/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/c1", "/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1", "/sys/fs/cgroup/cpu,cpuacct/kubepods"}, nil)
	check("groups that are not mounted", groupDirs(mounts, file, "blkio"), []string(nil), nil)
	check("groups out of the namespace", groupDirs(mounts, file, ""), []string(nil), nil)
	check("io", nestedKeys([]byte(someIO)), map[string]map[string]uint64{"8:0": {"rbytes": 4096, "wbytes": 0, "rios": 1, "wios": 0}, "8:16": {"wbps": 1048576, "wiops": 5}}, nil)
	for _, bad := range []string{"Ip: A B\nIp: 1\n", "Ip: A\nTcp: 1\n", "Ip: A\nIp: x\n"} {
		if parseCounters([]byte(bad), map[string]uint64{}) == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

// TestReadNode: the values are this machine's own, with each CPU and disk.
func TestReadNode(t *testing.T) {
	n := readNode()
	for what, err := range n.failed {
		t.Errorf("%s: %v", what, err)
	}
	online, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/topology")
	if err != nil || len(n.cpus) != len(online) || len(online) == 0 {
		t.Errorf("%d CPUs, %d are online (%v)", len(n.cpus), len(online), err)
	}
	disks, err := filepath.Glob("/sys/block/*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range disks {
		name := filepath.Base(filepath.Dir(f))
		if _, ok := n.disks[strings.ReplaceAll(name, "!", "/")]; !ok && !strings.Contains(name, "ram") && !strings.HasPrefix(name, "loop") {
			t.Errorf("nothing of the disk %s", name)
		}
	}
	if len(n.disks) == 0 && len(disks) > 0 {
		t.Errorf("no disk of %d", len(disks))
	}
}

// packet builds a DNS message in UDP, from the IP header on.
func packet(src, dst netip.AddrPort, id uint16, response bool) []byte {
	var b []byte
	if src.Addr().Is4() {
		b = make([]byte, 20+8+12)
		b[0], b[9] = 0x45, 17
		copy(b[12:], src.Addr().AsSlice())
		copy(b[16:], dst.Addr().AsSlice())
	} else {
		b = make([]byte, 40+8+12)
		b[0], b[6] = 0x60, 17
		copy(b[8:], src.Addr().AsSlice())
		copy(b[24:], dst.Addr().AsSlice())
	}
	udp := b[len(b)-20:]
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[8:], id)
	if response {
		udp[10] = 0x80
	}
	return b
}

// TestLookups: a query seen before and after the translation of a service's address
// counts once, and its server is the one that receives it.
func TestLookups(t *testing.T) {
	pod, service, server := netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("10.0.0.9:53")
	six := netip.MustParseAddrPort("[fd00::2]:40000")
	l := newLookups(9)
	close(l.done)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	l.add(packet(pod, service, 7, false), 3, at(0))
	l.add(packet(pod, server, 7, false), 3, at(1))
	l.add(packet(pod, server, 7, false), 3, at(5000)) // the client repeats the query
	l.add(packet(server, pod, 7, true), 3, at(5010))
	l.add(packet(service, pod, 7, true), 3, at(5011))
	l.add(packet(server, pod, 9, true), 3, at(10)) // an answer without a query
	l.add(packet(six, netip.MustParseAddrPort("[fd00::9]:53"), 8, false), 3, at(3))
	got := map[netip.Addr]lookup{}
	for _, x := range l.end() {
		got[x.client] = x
	}
	want := map[netip.Addr]lookup{
		pod.Addr(): {pod.Addr(), server.Addr(), at(0), at(5010), 3},
		six.Addr(): {client: six.Addr(), server: netip.MustParseAddr("fd00::9"), asked: at(3), device: 3},
	}
	if len(got) != 2 || got[pod.Addr()] != want[pod.Addr()] || got[six.Addr()] != want[six.Addr()] {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestLookupsAreFollowedFairly: queries at one interface, from whatever addresses, take
// no room from queries at other interfaces.
func TestLookupsAreFollowedFairly(t *testing.T) {
	server := netip.MustParseAddrPort("10.0.0.9:53")
	client := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 40000)
	}
	const most, flood, few = 100, 1000, 10
	for _, first := range []bool{true, false} {
		l := newLookups(most)
		close(l.done)
		ask := func(from, n, device int) {
			for i := range n {
				l.add(packet(client(from+i), server, uint16(i), false), device, begin)
			}
		}
		if first {
			ask(0, flood, 1)
		}
		ask(10_000, few, 2)
		ask(20_000, few, 3)
		ask(0, flood, 1)
		for i := range few { // the answer passes another interface
			l.add(packet(server, client(10_000+i), uint16(i), true), 9, begin.Add(time.Second))
		}
		got, answered := map[int]int{}, 0
		for _, x := range l.end() {
			got[x.device]++
			if !x.answered.IsZero() {
				answered++
			}
		}
		if got[2] != few || got[3] != few || got[1] != most-2*few || answered != few {
			t.Errorf("the flood first %v: %v followed, %d answered", first, got, answered)
		}
	}
}

// FuzzParse: any content of a file or a packet is either read or refused.
func FuzzParse(f *testing.F) {
	for _, s := range []string{someCounters, someStall, someARP, someLimits, someMounts, someIO, "4:cpu:/a/b\n", "4:cpu:a\n", "E\x00"} {
		f.Add([]byte(s))
	}
	f.Add(packet(netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("10.0.0.9:53"), 7, false))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = parseCounters(b, map[string]uint64{})
		_ = parseCounters6(b, map[string]uint64{})
		_, _ = parseStall(b)
		_, _, _ = parseARP(b)
		_ = parseLimit(b)
		_ = nestedKeys(b)
		for _, dir := range groupDirs(map[string]string{"cpu": "/m"}, b, "cpu") {
			if len(dir) < 3 || dir[:3] != "/m/" {
				t.Errorf("%q is not below the mount", dir)
			}
		}
		_ = groupMounts(b)
		newLookups(9).add(b, 1, begin)
	})
}
