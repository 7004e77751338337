package check

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/nasty"
	"nodeskoop/internal/testkit/need"
)

// tree creates a machine's files, contents by path; a path that ends in / is a
// folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		dir := path
		if !strings.HasSuffix(name, "/") {
			dir = filepath.Dir(path)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != path {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func checkerOf(t *testing.T, text string, files map[string]string) *checker {
	t.Helper()
	cfg, err := config.Parse("test.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	k := &checker{cfg: cfg, root: tree(t, files), now: time.Now(), release: "6.1.0-13-amd64", uid: os.Geteuid()}
	for name, text := range files {
		if dir, ok := strings.CutSuffix(name, "/cmdline"); ok {
			argument, _, _ := strings.Cut(text, "\x00")
			beProcess(t, k, dir, "/usr/bin/"+filepath.Base(argument))
		}
	}
	return k
}

// beProcess adds a process's executable, user and root folder to the tree.
func beProcess(t *testing.T, k *checker, dir, exe string) {
	t.Helper()
	try := func(err error) {
		if err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	try(os.MkdirAll(filepath.Dir(k.path(exe)), 0o755))
	try(os.WriteFile(k.path(exe), nil, 0o755))
	try(os.Symlink(k.path(exe), k.path(dir+"/exe")))
	status := k.path(dir + "/status")
	text, err := os.ReadFile(status)
	if err != nil {
		try(os.WriteFile(status, []byte("Uid:\t0\t0\t0\t0\n"), 0o644))
	} else if err == nil && !strings.Contains(string(text), "Uid:") {
		try(os.WriteFile(status, append(text, "Uid:\t0\t0\t0\t0\n"...), 0o644))
	}
	try(os.Symlink(k.root, k.path(dir+"/root")))
}

const textfileDir = "/var/lib/prometheus/node-exporter/"

func TestCheckFindings(t *testing.T) {
	const all = ^uint64(0)
	without := func(bits ...int) (caps uint64) {
		caps = all
		for _, b := range bits {
			caps &^= 1 << b
		}
		return caps
	}
	for _, c := range []struct {
		name   string
		config string
		files  map[string]string
		run    func(*checker) Finding
		want   Verdict
		found  string // substring of the finding
		do     string
	}{
		{"kernel", "", map[string]string{"/proc/self/net/snmp": ""}, (*checker).kernel, Good, "Linux 6.1.0-13-amd64", ""},
		{"no procfs", "", nil, (*checker).kernel, Bad, "procfs", "mount -t proc"},
		{"old kernel", "", map[string]string{"/proc/self/net/snmp": ""}, func(k *checker) Finding { k.release = "5.4.0-1"; return k.kernel() }, Warning, "ring buffer of Linux 5.8", "leave out biolatency, packetloss"},
		{"old kernel for what was asked for by name", "[probes]\nenabled = [\"default\", \"biolatency\"]", map[string]string{"/proc/self/net/snmp": ""}, func(k *checker) Finding { k.release = "5.4.0-1"; return k.kernel() }, Bad, "ring buffer of Linux 5.8", "leave out biolatency"},
		{"old kernel without eBPF", "[probes]\nenabled = [\"tcp\"]", map[string]string{"/proc/self/net/snmp": ""}, func(k *checker) Finding { k.release = "5.4.0-1"; return k.kernel() }, Good, "5.4", ""},

		{"BTF", "", map[string]string{"/sys/kernel/btf/vmlinux": "\x9f\xeb\x01\x00"}, (*checker).btf, Good, "can be read", ""},
		{"BTF is something else", "", map[string]string{"/sys/kernel/btf/vmlinux": "\x7fELF"}, (*checker).btf, Bad, "not type information", "CONFIG_DEBUG_INFO_BTF"},
		{"BTF is empty", "", map[string]string{"/sys/kernel/btf/vmlinux": ""}, (*checker).btf, Bad, "EOF", "CONFIG_DEBUG_INFO_BTF"},
		{"no BTF", "", map[string]string{"/sys/kernel/": ""}, (*checker).btf, Warning, "not there", "CONFIG_DEBUG_INFO_BTF"},
		{"no BTF wanted", "[probes]\nenabled = [\"tcp\"]", nil, (*checker).btf, Good, "no enabled probe needs it", ""},
		{"no sysfs", "", nil, (*checker).btf, Bad, "not there", "mount -t sysfs"},

		{"no lockdown", "", map[string]string{"/sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}, (*checker).lockdown, Good, "none", ""},
		{"integrity", "", map[string]string{"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, (*checker).lockdown, Good, "integrity", ""},
		{"confidentiality", "", map[string]string{"/sys/kernel/security/lockdown": "none integrity [confidentiality]\n"}, (*checker).lockdown, Warning, "almost no eBPF probe works", "lockdown=integrity"},
		{"confidentiality without eBPF", "[probes]\nenabled = [\"tcp\"]", map[string]string{"/sys/kernel/security/lockdown": "none integrity [confidentiality]\n"}, (*checker).lockdown, Good, "confidentiality", ""},
		{"lockdown unknown", "", nil, (*checker).lockdown, Good, "tried for real", ""},
		{"lockdown says nonsense", "", map[string]string{"/sys/kernel/security/lockdown": "[\n"}, (*checker).lockdown, Warning, `says "["`, ""},

		{"kprobes", "", map[string]string{"/sys/bus/event_source/devices/kprobe/type": "6"}, (*checker).kprobes, Good, "tracefs is not needed", ""},
		{"tracefs", "", map[string]string{"/proc/self/mounts": "x /a debugfs rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n"}, (*checker).kprobes, Good, "tracefs is at /sys/kernel/tracing", ""},
		{"neither", "", nil, (*checker).kprobes, Good, "mount -t tracefs", ""},

		{"symbols", "", map[string]string{"/proc/kallsyms": "0000000000000000 A x\nffffffff81000000 T _text\n"}, (*checker).symbols, Good, "shows addresses", ""},
		{"symbols hidden", "", map[string]string{"/proc/kallsyms": "0000000000000000 T _text\n", "/proc/sys/kernel/kptr_restrict": "2\n"}, func(k *checker) Finding { k.capabilities = all; return k.symbols() }, Warning, "kptr_restrict = 2", "sysctl -w kernel.kptr_restrict=1"},
		{"symbols hidden for lack of CAP_SYSLOG", "", map[string]string{"/proc/kallsyms": "0000000000000000 T _text\n"}, func(k *checker) Finding { k.capabilities = without(unix.CAP_SYSLOG); return k.symbols() }, Warning, "no addresses", "CAP_SYSLOG"},
		{"symbols not wanted", "[probes]\nenabled = [\"tcp\"]", nil, (*checker).symbols, Good, "no enabled probe", ""},

		{"first user namespace", "", map[string]string{"/proc/self/uid_map": "         0          0 4294967295\n"}, (*checker).userNamespace, Good, "first", ""},
		{"another", "", map[string]string{"/proc/self/uid_map": "         0     100000      65536\n"}, (*checker).userNamespace, Bad, "not the initial", "PrivateUsers=no"},

		{"state", "[state]\ndir = \"/s\"", map[string]string{"/s/": ""}, (*checker).state, Good, "can be written", ""},
		{"no state yet", "[state]\ndir = \"/s\"", nil, (*checker).state, Good, "not there yet", ""},
		{"no place for the state", "[state]\ndir = \"/no/such/s\"", nil, (*checker).state, Warning, "cannot be made", "state.dir"},
		{"state is a file", "[state]\ndir = \"/s\"", map[string]string{"/s": "x"}, (*checker).state, Warning, "not a folder", "state.dir"},
		{"state is not wanted", "[state]\ncounters = false", nil, (*checker).state, Good, "not kept", ""},

		{"history", "[state]\ndir = \"/s\"", map[string]string{"/s/history/20261127T120000Z-0.nsh": "x"}, (*checker).history, Good, "0.0 MB since 2026-11-27", ""},
		{"no history yet", "[state]\ndir = \"/s\"", nil, (*checker).history, Good, "a minute is written when it is over", ""},
		{"history is a file", "[state]\ndir = \"/s\"", map[string]string{"/s/history": "x"}, (*checker).history, Warning, "not a directory", "ls -ld"},
		{"history is not wanted", "[history]\nenabled = false", nil, (*checker).history, Good, "off", ""},

		{"no folder", "", nil, (*checker).folder, Bad, "does not exist", "mkdir -p"},
		{"folder is a file", "", map[string]string{strings.TrimSuffix(textfileDir, "/"): ""}, (*checker).folder, Bad, "not a folder", "textfile.dir"},
		{"folder", "", map[string]string{textfileDir: ""}, (*checker).folder, Good, "can be written", ""},
		{"folder closed to others", "", map[string]string{textfileDir: ""}, func(k *checker) Finding {
			_ = os.Chmod(k.path(textfileDir), 0o700)
			return k.folder()
		}, Warning, "keeps node_exporter's user out", "chmod 0755"},

		{"no file yet", "", map[string]string{textfileDir: ""}, (*checker).file, Good, "not there yet", ""},
		{"no file of a daemon", "", map[string]string{"/proc/77/cmdline": "/usr/sbin/nodeskoop\x00run\x00"}, (*checker).file, Warning, "although the daemon runs", "journalctl"},
		{"fresh file", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, (*checker).file, Good, "4 bytes, mode 0644, 0s old", ""},
		{"old file", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, func(k *checker) Finding { k.now = k.now.Add(time.Hour); return k.file() }, Warning, "1h0m0s old: no process updates it", "rm "},
		{"file of tomorrow", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, func(k *checker) Finding { k.now = k.now.Add(-time.Hour); return k.file() }, Warning, "in the future", "clock"},
		{"secret file", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, func(k *checker) Finding {
			_ = os.Chmod(k.path(textfileDir+"nodeskoop.prom"), 0o600)
			return k.file()
		}, Warning, "mode 0600", "textfile.mode"},

		{"no other writers", "", map[string]string{textfileDir + "nodeskoop.prom": "kubeskoop_tcp_insegs 1\n", textfileDir + "apt.prom": "# TYPE apt_upgrades gauge\napt_upgrades 3\n"}, first((*checker).otherWriters), Good, "none of the 1 other", ""},
		{"script mode beside it", "", map[string]string{textfileDir + "scan.prom": "# HELP kubeskoop_tcp_insegs x\n# TYPE kubeskoop_tcp_insegs counter\nkubeskoop_tcp_insegs{a=\"b\"} 1\nnodeskoop_build_info 1\n"}, first((*checker).otherWriters), Bad, "by nodeskoop in another mode", "systemctl disable --now nodeskoop-collect.timer"},
		{"another program's", "", map[string]string{textfileDir + ".hidden.prom": "kubeskoop_netdev_rxbytes 1\nkubeskoop_udp_noports{} 1\nkubeskoop_sock_inuse 1\nkubeskoop_tcp_outsegs 2\n"}, first((*checker).otherWriters), Bad, "by another program, has metrics of this tool: kubeskoop_netdev_rxbytes, kubeskoop_udp_noports, kubeskoop_sock_inuse and 1 more", "rm "},

		{"no exporter", "", nil, (*checker).exporters, Warning, "none runs", "apt install"},
		{"Debian's", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00"}, (*checker).exporters, Good, "process 12 reads /var/lib/prometheus/node-exporter", ""},
		{"another folder", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00--collector.textfile.directory=/srv/text\x00"}, (*checker).exporters, Bad, "reads /srv/text, not", "--collector.textfile.directory=/var/lib/prometheus/node-exporter"},
		{"no folder", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00"}, (*checker).exporters, Bad, "reads no textfiles", "--collector.textfile.directory="},
		{"switched off", "", map[string]string{"/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00--collector.disable-defaults\x00"}, (*checker).exporters, Bad, "switched off", "--collector.textfile "},
		{"on again", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00--collector.disable-defaults\x00--collector.textfile\x00"}, (*checker).exporters, Good, "process 12", ""},
		{"one of two", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00", "/proc/13/cmdline": "node_exporter\x00--collector.textfile.directory=/var/lib/*/node-exporter\x00"}, (*checker).exporters, Good, "process 13", ""},
		{"another folder of the same name", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00", "/proc/12/root" + textfileDir: ""}, (*checker).exporters, Warning, "not /var/lib", "mount /var/lib/prometheus/node-exporter there"},

		{"nobody writes", "", nil, (*checker).modes, Warning, "neither", "systemctl enable --now nodeskoop"},
		{"the daemon", "", map[string]string{"/proc/9/cmdline": "/usr/sbin/nodeskoop\x00run\x00"}, (*checker).modes, Good, "process 9", ""},
		{"a daemon of another configuration", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00run\x00--config\x00/tmp/x.toml\x00"}, (*checker).modes, Warning, "neither", ""},
		{"the timer", "", map[string]string{"/etc/systemd/system/timers.target.wants/nodeskoop-collect.timer": ""}, (*checker).modes, Good, "timer is enabled", ""},
		{"both", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00--log-level\x00debug\x00run\x00", "/etc/systemd/system/timers.target.wants/nodeskoop-collect.timer": ""}, (*checker).modes, Bad, "both write", "disable"},
		{"enabled, dead", "", map[string]string{"/etc/systemd/system/multi-user.target.wants/nodeskoop.service": ""}, (*checker).modes, Warning, "does not run", "systemctl start"},

		{"a daemon with all rights", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00run\x00", "/proc/9/status": "Name:\tx\nCapEff:\t000001ffffffffff\n"}, first((*checker).daemonRights), Good, "process 9", ""},
		{"a daemon with fewer", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00run\x00", "/proc/9/status": "CapEff:\t000001fffff7ffff\n"}, first((*checker).daemonRights), Bad, "process 9: CAP_SYS_PTRACE missing", "systemctl edit nodeskoop"},

		{"no journald", "", nil, first((*checker).journal), Warning, "standard error", "systemctl start systemd-journald"},
		{"persistent", "", map[string]string{"/var/log/journal/": ""}, (*checker).journalStorage, Good, "persistent", ""},
		{"volatile", "", nil, (*checker).journalStorage, Warning, "volatile", "mkdir -p /var/log/journal"},
		{"volatile by name", "", map[string]string{"/var/log/journal/": "", "/etc/systemd/journald.conf": "[Journal]\nStorage=volatile\n"}, (*checker).journalStorage, Warning, "volatile (/etc/systemd/journald.conf)", ""},
		{"none", "", map[string]string{"/usr/lib/systemd/journald.conf.d/10.conf": "[Journal]\nStorage=none\n"}, (*checker).journalStorage, Warning, "not stored", "persistent"},

		{"a namespace", "", inNamespace(nil), (*checker).journalStorage, Good, "persistent", ""},
		{"a namespace that keeps nothing", "", inNamespace(map[string]string{"/etc/systemd/journald@quiet.conf": "[Journal]\nStorage=none\n"}), (*checker).journalStorage, Warning, "none (/etc/systemd/journald@quiet.conf)", "systemctl restart systemd-journald@quiet"},
		{"a namespace's rate", "", inNamespace(map[string]string{"/etc/systemd/journald.conf": "RateLimitBurst=1\n"}), (*checker).journalRate, Good, "10000 in 30s (journald's default)", ""},
		{"a namespace's own rate", "", inNamespace(map[string]string{"/etc/systemd/journald@quiet.conf.d/1.conf": "RateLimitBurst=300\n"}), (*checker).journalRate, Warning, "300 in 30s (/etc/systemd/journald@quiet.conf.d/1.conf)", "total_rate"},
		{"a namespace that leads elsewhere", "", map[string]string{"/etc/systemd/system/nodeskoop.service.d/x.conf": "LogNamespace=../x\n"}, (*checker).journalStorage, Warning, "volatile", ""},
		{"default rate", "", nil, (*checker).journalRate, Good, "10000 in 30s (journald's default): 333 a second at least; journal.total_rate is 20", ""},
		{"more is written", "[journal]\ntotal_rate = 1000", nil, (*checker).journalRate, Warning, "333 a second", "journal.total_rate = 333"},
		{"less is let through", "", map[string]string{"/etc/systemd/journald.conf": "#RateLimitBurst=9\n[Journal]\nRateLimitIntervalSec=1min\nRateLimitBurst=600\n"}, (*checker).journalRate, Warning, "600 in 1m0s (/etc/systemd/journald.conf): 10 a second", "total_rate = 10"},
		{"a drop-in", "", map[string]string{"/etc/systemd/journald.conf": "[Journal]\nRateLimitBurst=60\n", "/run/systemd/journald.conf.d/90.conf": "[Journal]\nRateLimitBurst = 60000\n"}, (*checker).journalRate, Good, "60000 in 30s (/run/systemd/journald.conf.d/90.conf)", ""},
		{"a drop-in that another hides", "", map[string]string{"/etc/systemd/journald.conf.d/90.conf": "[Journal]\n", "/run/systemd/journald.conf.d/90.conf": "[Journal]\nRateLimitBurst=1\n"}, (*checker).journalRate, Good, "10000 in 30s", ""},
		{"taken back", "", map[string]string{"/etc/systemd/journald.conf": "RateLimitBurst=1\n", "/etc/systemd/journald.conf.d/1.conf": "RateLimitBurst=\n"}, (*checker).journalRate, Good, "10000 in 30s", ""},
		{"off", "", map[string]string{"/etc/systemd/journald.conf": "[Journal]\nRateLimitBurst=0\n"}, (*checker).journalRate, Good, "none (", ""},
		{"the unit's", "[journal]\ntotal_rate = 1000", map[string]string{"/lib/systemd/system/nodeskoop.service": "[Service]\nLogRateLimitIntervalSec=1s\nLogRateLimitBurst=20000\n"}, (*checker).journalRate, Good, "20000 in 1s (/lib/systemd/system/nodeskoop.service)", ""},
		{"0 in the unit is none", "[journal]\ntotal_rate = 1000", map[string]string{"/lib/systemd/system/nodeskoop.service": "[Service]\nLogRateLimitIntervalSec=0\nLogRateLimitBurst=0\n"}, (*checker).journalRate, Warning, "10000 in 30s", ""},
		{"nonsense is not taken", "", map[string]string{"/etc/systemd/journald.conf": "RateLimitBurst=many\nRateLimitIntervalSec=soon\n"}, (*checker).journalRate, Good, "10000 in 30s", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.run(checkerOf(t, c.config, c.files))
			if got.Verdict != c.want || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Do, c.do) {
				t.Errorf("%+v\nwant %s, %q, %q", got, c.want, c.found, c.do)
			}
			if got.Verdict == Bad && got.Do == "" {
				t.Errorf("a failure that does not say what to do: %+v", got)
			}
			if got.Check == "" || got.Found == "" {
				t.Errorf("%+v says too little", got)
			}
		})
	}
}

// TestCheckFolderUnderAnotherName: node_exporter's container mounts the folder
// elsewhere.
func TestCheckFolderUnderAnotherName(t *testing.T) {
	need.Root(t)
	k := checkerOf(t, "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00--collector.textfile.directory=/host\x00"})
	other := t.TempDir()
	host := filepath.Join(other, "host")
	if err := errors.Join(os.Mkdir(host, 0o755), os.Remove(k.path("/proc/12/root")), os.Symlink(other, k.path("/proc/12/root")),
		unix.Mount(k.path(textfileDir), host, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })
	if got := k.exporters(); got.Verdict != Good || !strings.Contains(got.Found, "reads /host, which is /var/lib/prometheus/node-exporter") {
		t.Errorf("%+v", got)
	}
}

func first(f func(*checker) []Finding) func(*checker) Finding {
	return func(k *checker) Finding { return f(k)[0] }
}

func TestCapabilityLines(t *testing.T) {
	verdicts := func(config string, missing ...int) string {
		k := checkerOf(t, config, nil)
		k.capabilities = ^uint64(0)
		for _, b := range missing {
			k.capabilities &^= 1 << b
		}
		var out []string
		for _, f := range k.capabilityLines() {
			out = append(out, f.Check+":"+string(f.Verdict))
			if f.Verdict != Good && !strings.Contains(f.Do, f.Check) {
				t.Errorf("%+v does not name what to give", f)
			}
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		config  string
		missing []int
		want    string
	}{
		{"", nil, "CAP_SYS_PTRACE:ok CAP_SYS_ADMIN:ok CAP_DAC_READ_SEARCH:ok CAP_NET_ADMIN:ok CAP_BPF:ok CAP_PERFMON:ok CAP_SYSLOG:ok"},
		{"[probes]\nenabled = [\"tcp\"]", []int{unix.CAP_SYS_ADMIN, unix.CAP_BPF}, "CAP_SYS_PTRACE:ok"},
		{"", []int{unix.CAP_BPF, unix.CAP_PERFMON}, "CAP_SYS_PTRACE:ok CAP_SYS_ADMIN:ok CAP_DAC_READ_SEARCH:ok CAP_NET_ADMIN:ok CAP_BPF:ok CAP_PERFMON:ok CAP_SYSLOG:ok"},
		{"[probes]\nenabled = [\"packetloss\"]", []int{unix.CAP_SYS_ADMIN, unix.CAP_PERFMON, unix.CAP_SYSLOG}, "CAP_SYS_PTRACE:ok CAP_BPF:ok CAP_PERFMON:FAIL CAP_SYSLOG:warn"},
		{"[probes]\nenabled = [\"fd\", \"conntrack\"]", []int{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_NET_ADMIN}, "CAP_SYS_PTRACE:FAIL CAP_SYS_ADMIN:ok CAP_DAC_READ_SEARCH:FAIL CAP_NET_ADMIN:FAIL"},
	} {
		if got := verdicts(c.config, c.missing...); got != c.want {
			t.Errorf("%q without %v:\n%s, want\n%s", c.config, c.missing, got, c.want)
		}
	}
}

// inNamespace adds files of a machine whose unit has a journal namespace.
func inNamespace(files map[string]string) map[string]string {
	all := map[string]string{"/lib/systemd/system/nodeskoop.service": "[Service]\nType=notify\n", "/etc/systemd/system/nodeskoop.service.d/log-namespace.conf": "[Service]\nLogNamespace=quiet\n"}
	maps.Copy(all, files)
	return all
}

// TestJournalNamespace: check tests the namespace's socket, and says how to read
// that journal.
func TestJournalNamespace(t *testing.T) {
	for _, file := range []string{"/run/systemd/journal/socket", "/run/systemd/journal.quiet/socket"} {
		k := checkerOf(t, "", inNamespace(map[string]string{file: ""}))
		path := k.path(file)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		found := k.journal()
		if own := strings.Contains(file, "quiet"); (found[0].Verdict == Good) != own || own && !strings.Contains(found[1].Found, "journalctl --namespace=quiet") {
			t.Errorf("with %s: %+v", file, found)
		}
	}
}

func TestProbeLines(t *testing.T) {
	// A missing kernel feature is a failure only for probes that the user named.
	k := checkerOf(t, "[probes]\nenabled = [\"all\", \"biolatency\"]", map[string]string{"/proc/self/status": "Name:\tx\nSeccomp:\t2\n"})
	lines := k.probeLines([]session.Probe{
		{Probe: "tcp", Enabled: true, Works: true, Supported: true},
		{Probe: "udp", Enabled: true, Works: true, Supported: true},
		{Probe: "flow", Works: false, Reason: "not asked for"},
		{Probe: "fd", Enabled: true, Works: true, Supported: true, Limitations: []string{"process 1 is hidden"}},
		{Probe: "tcpreset", Enabled: true, Works: true, Supported: true, Hook: "raw_tp"},
		{Probe: "kernellatency", Enabled: true, Works: true, Supported: true, Hook: "tp_btf", Limitations: []string{"the stages"}, Refused: []string{"fentry: no"}, Answers: []string{"fentry: R2"}},
		{Probe: "packetloss", Enabled: true, Reason: "not permitted: the process lacks CAP_BPF", Detail: "more"},
		{Probe: "tcpretrans", Enabled: true, Reason: "not permitted: the process lacks CAP_BPF"},
		{Probe: "biolatency", Enabled: true, Reason: "not permitted, although the process has the capabilities: x"},
		{Probe: "virtcmdlatency", Enabled: true, Reason: "no way to watch commands"},
		{Probe: "io", Enabled: true, Supported: true, Reason: "no memory"},
	})
	want := []string{"probes ok tcp, udp", "probe fd ok hidden", "probe tcpreset ok raw_tp", "probe kernellatency warn refused fentry: no",
		"2 probes warn packetloss, tcpretrans: not permitted", "probe biolatency FAIL not supported here: not permitted", "probe virtcmdlatency warn not supported here: no way", "probe io FAIL no memory"}
	if len(lines) != len(want) {
		t.Fatalf("%d lines: %+v", len(lines), lines)
	}
	for i, f := range lines {
		w := strings.SplitN(want[i], " "+string(f.Verdict)+" ", 2)
		if f.Check != w[0] || len(w) < 2 || !strings.Contains(f.Found, w[1]) {
			t.Errorf("%+v, want %s", f, want[i])
		}
	}
	if do := lines[4].Do; !strings.Contains(do, "capabilities") || !strings.Contains(do, `"-packetloss", "-tcpretrans"`) {
		t.Errorf("what to do: %s", do)
	}
	if do := lines[5].Do; !strings.Contains(do, "system call filter") {
		t.Errorf("what to do: %s", do)
	}
	for _, f := range lines {
		if strings.Contains(f.Found+f.Do, "MEMLOCK") || strings.Contains(f.Found+f.Do, "R2") {
			t.Errorf("a hint that misleads: %+v", f)
		}
	}
}

func TestJudgeClockAndPods(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		got  Finding
		want Verdict
	}{
		{judgeClock(now, true, 20*time.Millisecond), Good},
		{judgeClock(now, false, 16*time.Second), Warning},
		{judgeClock(now, true, 2*time.Second), Warning},
		{judgeClock(time.Unix(1000, 0), true, 0), Bad},
		{judgePods(nil), Good},
		{judgePods([]*owner.Pod{{Name: "a", Netns: 7}, {Name: "b", HostNetwork: true}}), Good},
		{judgePods([]*owner.Pod{{Name: "a", Netns: 7}, {Name: "c"}}), Warning},
	} {
		if c.got.Verdict != c.want || c.got.Verdict != Good && c.got.Do == "" {
			t.Errorf("%+v, want %s", c.got, c.want)
		}
	}
}

func TestSystemdTime(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"30": 30 * time.Second, "30s": 30 * time.Second, "1min 30s": 90 * time.Second, "1min30s": 90 * time.Second, "500ms": 500 * time.Millisecond,
		"0": 0, "1.5h": 90 * time.Minute, "2 days": 48 * time.Hour, " 5 sec ": 5 * time.Second,
	} {
		if got, ok := parseSystemdTime(s); !ok || got != want {
			t.Errorf("%q: %v, %v, want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "soon", "-1s", "5 parsecs", "1..5s", "infinity", "99999999999999weeks"} {
		if got, ok := parseSystemdTime(s); ok {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func FuzzSystemdTime(f *testing.F) {
	f.Add("1min 30s")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := parseSystemdTime(s); ok && d < 0 {
			t.Errorf("%q is %v", s, d)
		}
	})
}

func FuzzFamilies(f *testing.F) {
	f.Add("# HELP a b\n# TYPE a counter\na{x=\"y\"} 1\nb 2")
	f.Fuzz(func(t *testing.T, s string) {
		names, err := families(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if n == "" || strings.ContainsAny(n, " \n\t") {
				t.Errorf("%q", n)
			}
		}
	})
}

func TestFamilies(t *testing.T) {
	text := "# HELP a text # TYPE z\n#TYPE b gauge\n# a comment\n#\n\n  c{x=\"} d 1\"} 1\na 1\n{e=\"f\"} 1\ng\n" + strings.Repeat("long", 50_000) + " 1\nlast 1"
	got, err := families(strings.NewReader(text))
	if err != nil || strings.Join(got[:3], " ") != "a b c" || got[len(got)-1] != "last" {
		t.Errorf("%.200v, %v", got, err)
	}
}

func TestFamiliesInDoesNotWait(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "x.prom")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := familiesIn(fifo, 1); err == nil || !strings.Contains(err.Error(), "hang") {
		t.Errorf("a FIFO: %v", err)
	}
}

func TestWriteFindings(t *testing.T) {
	findings := []Finding{{"kernel", Good, "Linux", ""}, {"textfile folder", Bad, "one two three four five six seven eight", "do this"}, {"x\x1b[31m", Warning, "e\x1b[2J", ""}}
	var b bytes.Buffer
	if err := Write(&b, findings, 0, false, false); err != nil {
		t.Fatal(err)
	}
	want := "ok    kernel           Linux\n" +
		"FAIL  textfile folder  one two three four five six seven eight\n" +
		"                       -> do this\n"
	if got := b.String(); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "\n3 checks: 1 ok, 1 warning, 1 failure\n") || strings.Contains(got, "\x1b[2J") {
		t.Errorf("%q", got)
	}
	b.Reset()
	_ = Write(&b, findings[:2], 50, true, false)
	if got := b.String(); !strings.Contains(got, "\x1b[1;31mFAIL\x1b[0m  textfile folder  one two three four five six\n                       seven eight\n") {
		t.Errorf("%q", got)
	}
}

func TestFindingsAreSafe(t *testing.T) {
	findings := []Finding{{"a check", Bad, strings.Join(nasty.Names, " "), strings.Join(nasty.Names, " ")}}
	var b bytes.Buffer
	if err := Write(&b, findings, 80, false, false); err != nil {
		t.Fatal(err)
	}
	if r := nasty.Acts(b.String()); r >= 0 {
		t.Errorf("check: %U in %q", r, b.String())
	}
}

// A real node_exporter that reads this folder, or another.
func TestBesideNodeExporter(t *testing.T) {
	need.Root(t)
	need.Program(t, "prometheus-node-exporter")
	mine, other := t.TempDir(), t.TempDir()
	e := exporter.Start(t, exporter.Textfile(other)...)
	pid := fmt.Sprintf("process %d ", e.PID())
	verdictOf := func(dir string) Finding {
		k := &checker{cfg: config.Default(), now: time.Now()}
		k.cfg.Textfile.Dir = dir
		var only []runningExporter
		for _, x := range k.exporterProcesses() {
			if fmt.Sprint(e.PID()) == x.pid {
				only = append(only, x)
			}
		}
		return k.judgeExporters(only)
	}
	if f := verdictOf(mine); f.Verdict != Bad || !strings.Contains(f.Found, pid+"reads "+other) || strings.Contains(f.Do, other) || !strings.Contains(f.Do, "--collector.textfile.directory="+mine) {
		t.Errorf("another folder: %+v", f)
	}
	if f := verdictOf(other); f.Verdict != Good || !strings.Contains(f.Found, pid) {
		t.Errorf("this folder: %+v", f)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	if f := verdictOf(link); f.Verdict != Good || !strings.Contains(f.Found, "which is "+link) {
		t.Errorf("this folder by another name: %+v", f)
	}
}

// Problems are repeated at the end, where the screen still shows them, or shown
// alone.
func TestWriteProblems(t *testing.T) {
	good, warn, bad := Finding{"kernel", Good, "Linux", ""}, Finding{"journald", Warning, "away", "do that"}, Finding{"textfile folder", Bad, "absent", "do this"}
	const (
		goodLine = "ok    kernel           Linux\n"
		badLine  = "FAIL  textfile folder  absent\n                       -> do this\n"
		warnLine = "warn  journald         away\n                       -> do that\n"
	)
	for name, c := range map[string]struct {
		findings []Finding
		problems bool
		want     string
	}{
		"repeated":        {[]Finding{bad, good, warn}, false, badLine + goodLine + warnLine + "\nNot ok:\n" + badLine + warnLine + "\n3 checks: 1 ok, 1 warning, 1 failure\n"},
		"all is well":     {[]Finding{good}, false, "ok    kernel  Linux\n\n1 checks: 1 ok, 0 warnings, 0 failures\n"},
		"nothing is well": {[]Finding{bad, warn}, false, badLine + warnLine + "\n2 checks: 0 ok, 1 warning, 1 failure\n"},
		"problems":        {[]Finding{bad, good, warn}, true, badLine + warnLine + "\n3 checks: 1 ok, 1 warning, 1 failure\n"},
		"no problems":     {[]Finding{good}, true, "1 checks: 1 ok, 0 warnings, 0 failures\n"},
	} {
		var b bytes.Buffer
		if err := Write(&b, c.findings, 0, false, c.problems); err != nil || b.String() != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, &b, c.want)
		}
	}
	if p := Problems([]Finding{good}); p == nil || len(p) != 0 {
		t.Errorf("%#v", p)
	}
}
