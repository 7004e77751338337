package proc

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/opinion"
)

// opinions are the files that this package parses itself, by test name.
var opinions = map[string]struct {
	captured string
	opinion.File
}{
	"tcp": {"net/snmp", opinion.File{Name: "1/net/snmp", Ours: mibValues("tcp", "snmp"), Library: librarySNMP("Tcp")}},
	"udp": {"net/snmp", opinion.File{Name: "1/net/snmp", Ours: mibValues("udp", "snmp"), Library: librarySNMP("Udp")}},
	"ip":  {"net/netstat", opinion.File{Name: "1/net/netstat", Ours: mibValues("ip", "netstat"), Library: libraryNetstat("IpExt")}},
	"tcpext": {"net/netstat", opinion.File{Name: "1/net/netstat", Ours: mibValues("tcpext", "netstat"), Library: libraryNetstat("TcpExt"),
		Lacks: []string{"PFMemallocDrop", "TCPAbortFailed", "TCPAbortOnLinger", "TCPAbortOnMemory", "TCPAbortOnTimeout", "TCPBacklogDrop",
			"TCPMemoryPressures", "TCPMemoryPressuresChrono", "TCPZeroWindowDrop"}}},
	"sockstat": {"net/sockstat", opinion.File{Name: "net/sockstat", Ours: sockValues("net/sockstat", "TCP:"),
		Library: func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) { return librarySock(fs.NetSockstat, "TCP") }}},
	"sockstat6": {"net/sockstat6", opinion.File{Name: "net/sockstat6", Ours: sockValues("net/sockstat6", "TCP6:"), Lacks: []string{"orphan", "tw", "alloc", "mem"},
		Library: func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) { return librarySock(fs.NetSockstat6, "TCP6") }}},
	"softnet": {"net/softnet_stat", opinion.File{Name: "net/softnet_stat", Ours: func(b []byte) (opinion.Values, error) {
		var s softnetState
		err := s.parse(b)
		return softnetValues(s.processed, s.dropped, len(s.row)), err
	}, Library: func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) {
		rows, err := fs.NetSoftnetStat()
		var processed, dropped uint64
		for _, r := range rows {
			processed, dropped = processed+uint64(r.Processed), dropped+uint64(r.Dropped)
		}
		return softnetValues(processed, dropped, len(rows)), err
	}}},
	"netdev": {"net/dev", opinion.File{Name: "net/dev", Header: 2, Ours: netdevValues, Library: func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) {
		v := opinion.Values{}
		list, err := fs.NetDev()
		for name, l := range list {
			if name == "lo" {
				continue
			}
			for key, n := range map[string]uint64{"rx.bytes": l.RxBytes, "rx.packets": l.RxPackets, "rx.errs": l.RxErrors, "rx.drop": l.RxDropped,
				"tx.bytes": l.TxBytes, "tx.packets": l.TxPackets, "tx.errs": l.TxErrors, "tx.drop": l.TxDropped} {
				v[name+" "+key] = float64(n)
			}
		}
		return v, err
	}}},
	"ipvs": {"net/ip_vs_stats", opinion.File{Name: "net/ip_vs_stats", Header: 2, Ours: func(b []byte) (opinion.Values, error) {
		v, err := parseIPVS(b)
		return opinion.Values{"0": float64(v[0]), "1": float64(v[1]), "2": float64(v[2]), "3": float64(v[3]), "4": float64(v[4])}, err
	}, Library: func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) {
		s, err := fs.IPVSStats()
		return opinion.Values{"0": float64(s.Connections), "1": float64(s.IncomingPackets), "2": float64(s.OutgoingPackets),
			"3": float64(s.IncomingBytes), "4": float64(s.OutgoingBytes)}, err
	}}},
	//lint:ignore SA1019 the test compares our parser of the same text with it
	"tcp text": {"net/tcp", opinion.File{Name: "net/tcp", Header: 1, Ours: tcpValues("net/tcp", 8), Library: libraryTCP(procfs.FS.NetTCP)}},
	//lint:ignore SA1019 the test compares our parser of the same text with it
	"tcp6 text": {"net/tcp6", opinion.File{Name: "net/tcp6", Header: 1, Ours: tcpValues("net/tcp6", 32), Library: libraryTCP(procfs.FS.NetTCP6)}},
	"pid io": {"self/io", opinion.File{Name: "1/io", Ours: func(b []byte) (opinion.Values, error) {
		c, err := parseIO(b)
		return opinion.Values{"0": float64(c[0]), "1": float64(c[1]), "2": float64(c[2]), "3": float64(c[3])}, err
	}, Library: func(_ procfs.FS, p procfs.Proc) (opinion.Values, error) {
		s, err := p.IO()
		return opinion.Values{"0": float64(s.SyscR), "1": float64(s.SyscW), "2": float64(s.ReadBytes), "3": float64(s.WriteBytes)}, err
	}}},
	"pid stat": {"self/stat", opinion.File{Name: "1/stat", Ours: func(b []byte) (opinion.Values, error) {
		s, err := kernel.ParseStat(b)
		return opinion.Values{"state": float64(s.State), "parent": float64(s.Parent), "flags": float64(s.Flags), "faults": float64(s.Faults),
			"reaped": float64(s.ReapedFaults), "threads": float64(s.Threads), "start": float64(s.Start)}, err
	}, Library: func(_ procfs.FS, p procfs.Proc) (opinion.Values, error) {
		s, err := p.Stat()
		if err != nil || len(s.State) != 1 {
			return nil, fmt.Errorf("state %q: %w", s.State, err)
		}
		v := opinion.Values{"state": float64(s.State[0]), "parent": float64(s.PPID), "flags": float64(s.Flags), "faults": float64(s.MinFlt),
			"reaped": float64(s.CMinFlt), "threads": float64(s.NumThreads), "start": float64(s.Starttime)}
		for name, n := range v {
			v[name] = max(n, 0) // as if the kernel printed negative numbers
		}
		return v, nil
	}}},
}

func mibValues(probe, file string) func([]byte) (opinion.Values, error) {
	return func(b []byte) (opinion.Values, error) {
		p, err := newMIB(probe, file)
		if err != nil {
			return nil, err
		}
		var values [maxMIB]uint64
		err = p.parse(b, &values)
		v := opinion.Values{}
		for i, name := range p.names {
			if bytesHaveName(b, p.section, name) {
				v[name] = float64(values[i])
			}
		}
		return v, err
	}
}

// bytesHaveName reports whether a MIB file has a value; the library reports missing ones.
func bytesHaveName(b []byte, section, name string) bool {
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == section+":" {
			return slices.Contains(f, name)
		}
	}
	return false
}

// libraryMIB returns the values of a section in the library's result.
func libraryMIB(all any, section string) opinion.Values {
	v, s := opinion.Values{}, reflect.ValueOf(all).FieldByName(section)
	for i := range s.NumField() {
		if x, ok := s.Field(i).Interface().(*float64); ok && x != nil {
			v[s.Type().Field(i).Name] = max(*x, 0)
		}
	}
	return v
}

func librarySNMP(section string) func(procfs.FS, procfs.Proc) (opinion.Values, error) {
	return func(_ procfs.FS, p procfs.Proc) (opinion.Values, error) {
		s, err := p.Snmp()
		return libraryMIB(s, section), err
	}
}

func libraryNetstat(section string) func(procfs.FS, procfs.Proc) (opinion.Values, error) {
	return func(_ procfs.FS, p procfs.Proc) (opinion.Values, error) {
		s, err := p.Netstat()
		return libraryMIB(s, section), err
	}
}

func sockValues(file, prefix string) func([]byte) (opinion.Values, error) {
	return func(b []byte) (opinion.Values, error) {
		var s sockstat
		err := s.parse(file, prefix, b)
		v := opinion.Values{}
		for i, key := range sockstatKeys {
			v[key] = float64(s[i])
		}
		return v, err
	}
}

func librarySock(read func() (*procfs.NetSockstat, error), protocol string) (opinion.Values, error) {
	s, err := read()
	if err != nil {
		return nil, err
	}
	v := opinion.Values{}
	for _, p := range slices.Backward(s.Protocols) { // the first line counts, as in our parser
		if p.Protocol != protocol {
			continue
		}
		v["inuse"] = max(float64(p.InUse), 0)
		for name, n := range map[string]*int{"orphan": p.Orphan, "tw": p.TW, "alloc": p.Alloc, "mem": p.Mem} {
			if n != nil {
				v[name] = max(float64(*n), 0)
			}
		}
	}
	return v, nil
}

func softnetValues(processed, dropped uint64, cpus int) opinion.Values {
	return opinion.Values{"processed": float64(processed), "dropped": float64(dropped), "cpus": float64(cpus)}
}

func netdevValues(b []byte) (opinion.Values, error) {
	p, err := newNetdev(collect.Env{})
	if err != nil {
		return nil, err
	}
	var s interfaces
	if err := p.(*netdev).read(b, &s); err != nil {
		return nil, err
	}
	v := opinion.Values{}
	for _, x := range s.read {
		for i, field := range p.(*netdev).fields {
			v[strings.TrimRight(string(x.name[:]), "\x00")+" "+field] = float64(x.values[i])
		}
	}
	return v, nil
}

func tcpValues(file string, digits int) func([]byte) (opinion.Values, error) {
	return func(b []byte) (opinion.Values, error) {
		var t netlink.TCPTable
		err := parseTCP(&t, file, digits, b)
		v := opinion.Values{"rx": float64(t.RxQueue), "tx": float64(t.TxQueue)}
		for state, n := range t.States {
			v[fmt.Sprint("state ", state)] = float64(n)
		}
		return v, err
	}
}

func libraryTCP(read func(procfs.FS) (procfs.NetTCP, error)) func(procfs.FS, procfs.Proc) (opinion.Values, error) {
	return func(fs procfs.FS, _ procfs.Proc) (opinion.Values, error) {
		list, err := read(fs)
		v := opinion.Values{}
		for state := range len(netlink.TCPTable{}.States) {
			v[fmt.Sprint("state ", state)] = 0
		}
		for _, l := range list {
			v[fmt.Sprint("state ", l.St)]++
			if l.St != netlink.TCPListen {
				v["rx"] += float64(l.RxQueue)
				v["tx"] += float64(l.TxQueue)
			}
		}
		return v, err
	}
}

// TestLibrary: prometheus/procfs reads the same values from every captured file, and from
// mutated ones.
func TestLibrary(t *testing.T) {
	n := uint64(60)
	if testing.Short() {
		n = 30
	}
	for _, name := range slices.Sorted(maps.Keys(opinions)) {
		t.Run(name, func(t *testing.T) {
			x := opinions[name]
			x.Captured(t, captured(t, x.captured), n)
		})
	}
	for name := range parsers {
		if _, ok := opinions[name]; !ok {
			t.Errorf("the library's opinion on %s is not asked for", name)
		}
	}
}

// FuzzLibrary mutates captured files as TestLibrary does.
func FuzzLibrary(f *testing.F) {
	names := slices.Sorted(maps.Keys(opinions))
	for i := range names {
		f.Add(uint(i), uint(0), uint64(i))
	}
	f.Fuzz(func(t *testing.T, name, kernel uint, seed uint64) {
		x := opinions[names[name%uint(len(names))]]
		files := captured(t, x.captured)
		kernels := slices.Sorted(maps.Keys(files))
		x.Compare(t, x.Mutate(files[kernels[kernel%uint(len(kernels))]], seed))
	})
}

// TestLibraryLoses shows why softnet and ipvs, though read only once a cycle, do not use
// prometheus/procfs: it accepts malformed files. If this test fails because the library has
// become stricter, reconsider that decision.
func TestLibraryLoses(t *testing.T) {
	const zeros = " 0 0 0 0 0 0 0 0 0 0 "
	for _, x := range []struct{ name, file, text string }{
		{"a number is cut", "softnet", "1 2" + zeros + "0\n123 4" + zeros + "1"},
		{"no CPU", "softnet", ""},
		{"a CPU twice", "softnet", "1 2" + zeros + "0\n3 4" + zeros + "0\n"},
		{"lines of two kernels", "softnet", "1 2" + zeros + "0\n3 4 0 0 0 0 0 0 0\n"},
		{"all after a long line is dropped", "softnet", "1 2" + zeros + "0\n" + strings.Repeat(" ", 70000) + "3 4" + zeros + "1\n5 6" + zeros + "2\n"},
		{"other columns", "ipvs", "   Total Outgoing Incoming         Outgoing         Incoming\n   Conns  Packets  Packets            Bytes            Bytes\n 1 2 3 4 5\n\n"},
	} {
		o := opinions[x.file]
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "net"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, o.Name), []byte(x.text), 0o644); err != nil {
			t.Fatal(err)
		}
		fs, err := procfs.NewFS(root)
		if err != nil {
			t.Fatal(err)
		}
		_, ours := o.Ours([]byte(x.text))
		_, library := o.Library(fs, procfs.Proc{})
		if ours == nil && x.name != "all after a long line is dropped" || library != nil {
			t.Errorf("%s: %v; the library: %v", x.name, ours, library)
		}
	}
}

// BenchmarkLibrary reads and parses each captured file from a file system, in both ways.
func BenchmarkLibrary(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(opinions)) {
		x := opinions[name]
		root := b.TempDir()
		path := filepath.Join(root, x.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(root, "1"), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, captured(b, x.captured)["6.12"], 0o644); err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) { benchmarkLibrary(b, name, root, path) })
	}
}

func benchmarkLibrary(b *testing.B, name, root, path string) {
	var buf []byte
	parse := plain(b, name)
	var used [2]float64
	for b.Loop() {
		start := float64(testkit.OwnCPU())
		for range 100 {
			var err error
			if buf, err = kernel.ReadFile(unix.AT_FDCWD, path, buf); err == nil {
				err = parse(buf)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		middle := float64(testkit.OwnCPU())
		for range 100 {
			fs, err := procfs.NewFS(root)
			if err == nil {
				err = asked(name, fs)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		used[0] += middle - start
		used[1] += float64(testkit.OwnCPU()) - middle
	}
	b.ReportMetric(used[0]/float64(100*b.N), "cpu-ns/ours")
	b.ReportMetric(used[1]/float64(100*b.N), "cpu-ns/library")
	b.ReportMetric(used[1]/used[0], "times-faster")
}

// plain is our parser of a file, without the names of the values.
func plain(b *testing.B, name string) func([]byte) error {
	switch name {
	case "tcp", "udp", "ip", "tcpext":
		p, err := newMIB(name, map[string]string{"tcp": "snmp", "udp": "snmp", "ip": "netstat", "tcpext": "netstat"}[name])
		if err != nil {
			b.Fatal(err)
		}
		return func(b []byte) error { var v [maxMIB]uint64; return p.parse(b, &v) }
	case "netdev":
		p, err := newNetdev(collect.Env{})
		if err != nil {
			b.Fatal(err)
		}
		var s interfaces
		return func(b []byte) error { return p.(*netdev).read(b, &s) }
	case "softnet":
		var s softnetState
		return s.parse
	case "sockstat":
		return func(b []byte) error { var s sockstat; return s.parse("net/sockstat", "TCP:", b) }
	case "sockstat6":
		return func(b []byte) error { var s sockstat; return s.parse("net/sockstat6", "TCP6:", b) }
	case "ipvs":
		return func(b []byte) error { _, err := parseIPVS(b); return err }
	case "tcp text":
		return func(b []byte) error { var t netlink.TCPTable; return parseTCP(&t, "net/tcp", 8, b) }
	case "tcp6 text":
		return func(b []byte) error { var t netlink.TCPTable; return parseTCP(&t, "net/tcp6", 32, b) }
	case "pid io":
		return func(b []byte) error { _, err := parseIO(b); return err }
	case "pid stat":
		return func(b []byte) error { _, err := kernel.ParseStat(b); return err }
	}
	b.Fatal("no parser of " + name)
	return nil
}

// asked makes the library read a file.
func asked(name string, fs procfs.FS) (err error) {
	p, err := fs.Proc(1)
	if err != nil {
		return err
	}
	switch name {
	case "tcp", "udp":
		_, err = p.Snmp()
	case "ip", "tcpext":
		_, err = p.Netstat()
	case "netdev":
		_, err = fs.NetDev()
	case "softnet":
		_, err = fs.NetSoftnetStat()
	case "sockstat":
		_, err = fs.NetSockstat()
	case "sockstat6":
		_, err = fs.NetSockstat6()
	case "ipvs":
		_, err = fs.IPVSStats()
	case "tcp text":
		//lint:ignore SA1019 the test compares our parser of the same text with it
		_, err = fs.NetTCP()
	case "tcp6 text":
		//lint:ignore SA1019 the test compares our parser of the same text with it
		_, err = fs.NetTCP6()
	case "pid io":
		_, err = p.IO()
	case "pid stat":
		_, err = p.Stat()
	}
	return err
}
