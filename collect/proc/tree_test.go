package proc

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// tree makes a procfs from files. It includes this process, so that the host's network
// namespace is found.
func tree(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	self := strconv.Itoa(os.Getpid())
	write := func(name string, do func(path string) error) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := do(path); err != nil {
			t.Fatal(err)
		}
	}
	write(self+"/ns/net", func(path string) error { return os.Symlink("/proc/"+self+"/ns/net", path) })
	if err := os.MkdirAll(filepath.Join(root, "1"), 0o755); err != nil { // procfs always has a process 1
		t.Fatal(err)
	}
	for name, text := range files {
		name = strings.Replace(name, "SELF", self, 1)
		write(name, func(path string) error {
			if link, ok := strings.CutPrefix(text, "-> "); ok {
				return os.Symlink(link, path)
			}
			return os.WriteFile(path, []byte(text), 0o644)
		})
	}
	return root
}

const (
	goodStat = "7 (x) S 1 1 1 0 -1 0 5 6 0 0 1 2 3 4 20 0 1 0 777\n"
	goodIO   = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n"
)

// TestProcessesUnreadable: if one process cannot be read, there is no sum, and an error
// says why. A process that does not exist is not an error.
func TestProcessesUnreadable(t *testing.T) {
	for _, x := range []struct {
		name, probe string
		files       map[string]string
		want        map[string]float64
		wrong       string
	}{
		{"one has ended", "io", map[string]string{"7/stat": goodStat, "7/io": goodIO}, map[string]float64{"kubeskoop_io_ioreadsyscall": 3, "kubeskoop_io_readsyscall": 3, "kubeskoop_io_iowritebytes": 6}, ""},
		{"one is malformed", "io", map[string]string{"7/stat": goodStat, "7/io": goodIO, "8/stat": goodStat, "8/io": "rchar: x\n"},
			nil, "pod test/a: ROOT/8/io line 2: syscr is missing"},
		{"two are malformed", "io", map[string]string{"7/stat": "?", "7/io": goodIO, "8/stat": "?", "8/io": goodIO},
			nil, `pod test/a: ROOT/7/stat line 1: "?" is not what a kernel prints; and 1 more processes`},
		{"a kernel without I/O accounting", "io", map[string]string{"7/stat": goodStat},
			nil, "this kernel does not count the I/O of processes (CONFIG_TASK_IO_ACCOUNTING)"},
		{"descriptors", "fd", map[string]string{"7/fd/0": "-> /dev/null", "7/fd/1": "-> socket:[5]", "7/fd/2": "-> socket", "7/fd/333": "-> socket:[5]", "8/fd/0": "-> anon_inode:[eventpoll]"},
			map[string]float64{"kubeskoop_fdopenfd": 5, "kubeskoop_fd_openfd": 5, "kubeskoop_fd_opensocket": 2}, ""},
		{"a descriptor that is none", "fd", map[string]string{"7/fd/0": "-> socket:[5]", "8/fd/0": "a file"},
			nil, "read the links in ROOT/8/fd: invalid argument"},
	} {
		t.Run(x.name, func(t *testing.T) {
			root := tree(t, x.files)
			pod := &owner.Pod{ID: "a", Namespace: "test", Name: "a", PIDs: []int{7, 8, 9}}
			s := nsnet.NewSampler(t, collect.Options{Enabled: []string{x.probe}, CompatNames: true, ProcRoot: root, Pods: &nsnet.Pods{List: []*owner.Pod{pod}}}, Probes()...)
			v, errs := s.Try()
			v.Want(t, "a", x.want)
			if x.want == nil && len(v["a"]) > 0 {
				t.Errorf("a sum of some processes is written: %v", v["a"])
			}
			if want, err := strings.Replace(x.wrong, "ROOT", root, 1), errs[x.probe]; want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// TestNetFiles samples the host from files. Without modules and IPv6 all values are there,
// and 0; a malformed file fails only its own probe.
func TestNetFiles(t *testing.T) {
	read := func(name string) string { return string(captured(t, "net/"+name)["5.10"]) }
	files := map[string]string{
		"SELF/net/snmp": read("snmp"), "SELF/net/netstat": read("netstat"), "SELF/net/sockstat": "TCP: inuse 0 orphan 1 tw 0 alloc 3 mem 4\n",
		"SELF/net/dev": read("dev"), "SELF/net/softnet_stat": read("softnet_stat"), "1/net/softnet_stat": read("softnet_stat"),
	}
	enabled := []string{"tcp", "udp", "ip", "tcpext", "sock", "softnet", "netdev", "ipvs", "tcpsummary"}
	s := nsnet.NewSampler(t, collect.Options{Enabled: enabled, ProcRoot: tree(t, files)}, Probes()...)
	v, errs := s.Try()
	if len(errs) > 0 || len(v[nsnet.Host]) != 10+8+2+32+5+2+8+5+7 {
		t.Errorf("%d metrics, %v", len(v[nsnet.Host]), errs)
	}
	v.Want(t, nsnet.Host, map[string]float64{
		"kubeskoop_sock_inuse": 0, "kubeskoop_sock_mem": 4, "kubeskoop_softnet_processed": 0x3f + 0x38,
		"kubeskoop_ipvs_connections": 0, "kubeskoop_tcpsummary_tcpestablishedconn": 0,
	})
	files["SELF/net/ip_vs_stats"] = read("ip_vs_stats")
	files["SELF/net/sockstat6"] = "TCP6: inuse x\n"
	files["SELF/net/netstat"] = "TcpExt: A\n"
	s = nsnet.NewSampler(t, collect.Options{Enabled: enabled, ProcRoot: tree(t, files)}, Probes()...)
	v, errs = s.Try()
	v.Want(t, nsnet.Host, map[string]float64{"kubeskoop_ipvs_incomingpackets": 43, "kubeskoop_ipvs_incomingbytes": 2306, "kubeskoop_ipvs_outgoingpackets": 36,
		"kubeskoop_ipvs_outgoingbytes": 21976, "kubeskoop_ipvs_connections": 7, "kubeskoop_softnet_processed": 0x3f + 0x38})
	for probe, want := range map[string]string{
		"sock":       `the host's network namespace: net/sockstat6 line 1: the value "x" of "inuse" is not a number`,
		"tcpsummary": `net/sockstat6 line 1: the value "x"`,
		"tcpext":     "net/netstat line 1: TcpExt has a line of names without a line of values",
		"ip":         "net/netstat line 2: the section IpExt is missing",
	} {
		if err := errs[probe]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", probe, err, want)
		}
		delete(errs, probe)
	}
	if len(errs) > 0 {
		t.Error(errs)
	}
}

// TestIPVSPods: with pods = true each pod's namespace is read, too.
func TestIPVSPods(t *testing.T) {
	need.Root(t)
	a := nsnet.New(t)
	pods := &nsnet.Pods{List: []*owner.Pod{a.Pod("a")}}
	v := nsnet.NewSampler(t, collect.Options{Enabled: []string{"ipvs"}, Pods: pods,
		Probes: map[string]map[string]any{"ipvs": {"pods": true}}}, Probes()...).Sample()
	if len(v["a"]) != 5 || len(v[nsnet.Host]) != 5 {
		t.Errorf("%v", v)
	}
	v = nsnet.NewSampler(t, collect.Options{Enabled: []string{"ipvs"}, Pods: pods}, Probes()...).Sample()
	if len(v["a"]) != 0 || len(v[nsnet.Host]) != 5 {
		t.Errorf("%v", v)
	}
}
