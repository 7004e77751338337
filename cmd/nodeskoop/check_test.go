package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/terminal"
)

// tree makes a machine's files: their contents by path; a path that ends in /
// is a folder.
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

func checkerOf(t *testing.T, config string, files map[string]string) *checker {
	t.Helper()
	cfg, err := parseConfig("test.toml", config)
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

// beProcess gives a process of the tree what a real one has: an executable, a
// user, and the machine's root folder.
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
		run    func(*checker) finding
		want   verdict
		found  string // a part of it
		do     string
	}{
		{"kernel", "", map[string]string{"/proc/self/net/snmp": ""}, (*checker).kernel, good, "Linux 6.1.0-13-amd64", ""},
		{"no procfs", "", nil, (*checker).kernel, bad, "procfs", "mount -t proc"},
		{"old kernel", "", map[string]string{"/proc/self/net/snmp": ""}, func(k *checker) finding { k.release = "5.4.0-1"; return k.kernel() }, bad, "ring buffer of Linux 5.8", "leave out biolatency, packetloss"},
		{"old kernel without eBPF", "[probes]\nenabled = [\"tcp\"]", map[string]string{"/proc/self/net/snmp": ""}, func(k *checker) finding { k.release = "5.4.0-1"; return k.kernel() }, good, "5.4", ""},

		{"BTF", "", map[string]string{"/sys/kernel/btf/vmlinux": "\x9f\xeb\x01\x00"}, (*checker).btf, good, "can be read", ""},
		{"BTF is something else", "", map[string]string{"/sys/kernel/btf/vmlinux": "\x7fELF"}, (*checker).btf, bad, "not type information", "CONFIG_DEBUG_INFO_BTF"},
		{"BTF is empty", "", map[string]string{"/sys/kernel/btf/vmlinux": ""}, (*checker).btf, bad, "EOF", "CONFIG_DEBUG_INFO_BTF"},
		{"no BTF", "", map[string]string{"/sys/kernel/": ""}, (*checker).btf, bad, "not there", "CONFIG_DEBUG_INFO_BTF"},
		{"no BTF wanted", "[probes]\nenabled = [\"tcp\"]", nil, (*checker).btf, good, "no enabled probe needs it", ""},
		{"no sysfs", "", nil, (*checker).btf, bad, "not there", "mount -t sysfs"},

		{"no lockdown", "", map[string]string{"/sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}, (*checker).lockdown, good, "none", ""},
		{"integrity", "", map[string]string{"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, (*checker).lockdown, good, "integrity", ""},
		{"confidentiality", "", map[string]string{"/sys/kernel/security/lockdown": "none integrity [confidentiality]\n"}, (*checker).lockdown, bad, "hardly an eBPF probe works", "lockdown=integrity"},
		{"confidentiality without eBPF", "[probes]\nenabled = [\"tcp\"]", map[string]string{"/sys/kernel/security/lockdown": "none integrity [confidentiality]\n"}, (*checker).lockdown, good, "confidentiality", ""},
		{"lockdown unknown", "", nil, (*checker).lockdown, good, "tried for real", ""},
		{"lockdown says nonsense", "", map[string]string{"/sys/kernel/security/lockdown": "[\n"}, (*checker).lockdown, warning, `says "["`, ""},

		{"kprobes", "", map[string]string{"/sys/bus/event_source/devices/kprobe/type": "6"}, (*checker).kprobes, good, "tracefs is not needed", ""},
		{"tracefs", "", map[string]string{"/proc/self/mounts": "x /a debugfs rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n"}, (*checker).kprobes, good, "tracefs is at /sys/kernel/tracing", ""},
		{"neither", "", nil, (*checker).kprobes, good, "mount -t tracefs", ""},

		{"symbols", "", map[string]string{"/proc/kallsyms": "0000000000000000 A x\nffffffff81000000 T _text\n"}, (*checker).symbols, good, "shows addresses", ""},
		{"symbols hidden", "", map[string]string{"/proc/kallsyms": "0000000000000000 T _text\n", "/proc/sys/kernel/kptr_restrict": "2\n"}, func(k *checker) finding { k.capabilities = all; return k.symbols() }, warning, "kptr_restrict = 2", "sysctl -w kernel.kptr_restrict=1"},
		{"symbols hidden for lack of CAP_SYSLOG", "", map[string]string{"/proc/kallsyms": "0000000000000000 T _text\n"}, func(k *checker) finding { k.capabilities = without(unix.CAP_SYSLOG); return k.symbols() }, warning, "no addresses", "CAP_SYSLOG"},
		{"symbols not wanted", "[probes]\nenabled = [\"tcp\"]", nil, (*checker).symbols, good, "no enabled probe", ""},

		{"first user namespace", "", map[string]string{"/proc/self/uid_map": "         0          0 4294967295\n"}, (*checker).userNamespace, good, "first", ""},
		{"another", "", map[string]string{"/proc/self/uid_map": "         0     100000      65536\n"}, (*checker).userNamespace, bad, "not the first", "PrivateUsers=no"},

		{"state", "[state]\ndir = \"/s\"", map[string]string{"/s/": ""}, (*checker).state, good, "can be written", ""},
		{"no state yet", "[state]\ndir = \"/s\"", nil, (*checker).state, good, "not there yet", ""},
		{"no place for the state", "[state]\ndir = \"/no/such/s\"", nil, (*checker).state, warning, "cannot be made", "state.dir"},
		{"state is a file", "[state]\ndir = \"/s\"", map[string]string{"/s": "x"}, (*checker).state, warning, "not a folder", "state.dir"},
		{"state is not wanted", "[state]\ncounters = false", nil, (*checker).state, good, "not kept", ""},

		{"no folder", "", nil, (*checker).folder, bad, "does not exist", "mkdir -p"},
		{"folder is a file", "", map[string]string{strings.TrimSuffix(textfileDir, "/"): ""}, (*checker).folder, bad, "not a folder", "textfile.dir"},
		{"folder", "", map[string]string{textfileDir: ""}, (*checker).folder, good, "can be written", ""},
		{"folder closed to others", "", map[string]string{textfileDir: ""}, func(k *checker) finding {
			_ = os.Chmod(k.path(textfileDir), 0o700)
			return k.folder()
		}, warning, "keeps node_exporter's user out", "chmod 0755"},

		{"no file yet", "", map[string]string{textfileDir: ""}, (*checker).file, good, "not there yet", ""},
		{"no file of a daemon", "", map[string]string{"/proc/77/cmdline": "/usr/sbin/nodeskoop\x00run\x00"}, (*checker).file, warning, "although the daemon runs", "journalctl"},
		{"fresh file", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, (*checker).file, good, "4 bytes, mode 0644, 0s old", ""},
		{"old file", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, func(k *checker) finding { k.now = k.now.Add(time.Hour); return k.file() }, warning, "1h0m0s old: nobody refreshes it", "rm "},
		{"file of tomorrow", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, func(k *checker) finding { k.now = k.now.Add(-time.Hour); return k.file() }, warning, "in the future", "clock"},
		{"secret file", "", map[string]string{textfileDir + "nodeskoop.prom": "x 1\n"}, func(k *checker) finding {
			_ = os.Chmod(k.path(textfileDir+"nodeskoop.prom"), 0o600)
			return k.file()
		}, warning, "mode 0600", "textfile.mode"},

		{"no other writers", "", map[string]string{textfileDir + "nodeskoop.prom": "kubeskoop_tcp_insegs 1\n", textfileDir + "apt.prom": "# TYPE apt_upgrades gauge\napt_upgrades 3\n"}, first((*checker).otherWriters), good, "none of the 1 other", ""},
		{"script mode beside it", "", map[string]string{textfileDir + "scan.prom": "# HELP kubeskoop_tcp_insegs x\n# TYPE kubeskoop_tcp_insegs counter\nkubeskoop_tcp_insegs{a=\"b\"} 1\nnodeskoop_build_info 1\n"}, first((*checker).otherWriters), bad, "by nodeskoop in another mode", "systemctl disable --now nodeskoop-collect.timer"},
		{"another program's", "", map[string]string{textfileDir + ".hidden.prom": "kubeskoop_netdev_rxbytes 1\nkubeskoop_udp_noports{} 1\nkubeskoop_sock_inuse 1\nkubeskoop_tcp_outsegs 2\n"}, first((*checker).otherWriters), bad, "by another program, has metrics of this tool: kubeskoop_netdev_rxbytes, kubeskoop_udp_noports, kubeskoop_sock_inuse and 1 more", "rm "},

		{"no exporter", "", nil, (*checker).exporters, warning, "none runs", "apt install"},
		{"Debian's", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00"}, (*checker).exporters, good, "process 12 reads /var/lib/prometheus/node-exporter", ""},
		{"another folder", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00--collector.textfile.directory=/srv/text\x00"}, (*checker).exporters, bad, "reads /srv/text, not", "--collector.textfile.directory=/var/lib/prometheus/node-exporter"},
		{"no folder", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00"}, (*checker).exporters, bad, "reads no textfiles", "--collector.textfile.directory="},
		{"switched off", "", map[string]string{"/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00--collector.disable-defaults\x00"}, (*checker).exporters, bad, "switched off", "--collector.textfile "},
		{"on again", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00--collector.disable-defaults\x00--collector.textfile\x00"}, (*checker).exporters, good, "process 12", ""},
		{"one of two", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "node_exporter\x00", "/proc/13/cmdline": "node_exporter\x00--collector.textfile.directory=/var/lib/*/node-exporter\x00"}, (*checker).exporters, good, "process 13", ""},
		{"another folder of the same name", "", map[string]string{textfileDir: "", "/proc/12/cmdline": "/usr/bin/prometheus-node-exporter\x00", "/proc/12/root" + textfileDir: ""}, (*checker).exporters, warning, "not /var/lib", "mount /var/lib/prometheus/node-exporter there"},

		{"nobody writes", "", nil, (*checker).modes, warning, "neither", "systemctl enable --now nodeskoop"},
		{"the daemon", "", map[string]string{"/proc/9/cmdline": "/usr/sbin/nodeskoop\x00run\x00"}, (*checker).modes, good, "process 9", ""},
		{"a daemon of another configuration", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00run\x00--config\x00/tmp/x.toml\x00"}, (*checker).modes, warning, "neither", ""},
		{"the timer", "", map[string]string{"/etc/systemd/system/timers.target.wants/nodeskoop-collect.timer": ""}, (*checker).modes, good, "timer is enabled", ""},
		{"both", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00--log-level\x00debug\x00run\x00", "/etc/systemd/system/timers.target.wants/nodeskoop-collect.timer": ""}, (*checker).modes, bad, "both write", "disable"},
		{"enabled, dead", "", map[string]string{"/etc/systemd/system/multi-user.target.wants/nodeskoop.service": ""}, (*checker).modes, warning, "does not run", "systemctl start"},

		{"a daemon with all rights", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00run\x00", "/proc/9/status": "Name:\tx\nCapEff:\t000001ffffffffff\n"}, first((*checker).daemonRights), good, "process 9", ""},
		{"a daemon with fewer", "", map[string]string{"/proc/9/cmdline": "nodeskoop\x00run\x00", "/proc/9/status": "CapEff:\t000001fffff7ffff\n"}, first((*checker).daemonRights), bad, "process 9: CAP_SYS_PTRACE missing", "systemctl edit nodeskoop"},

		{"no journald", "", nil, first((*checker).journal), warning, "standard error", "systemctl start systemd-journald"},
		{"persistent", "", map[string]string{"/var/log/journal/": ""}, (*checker).journalStorage, good, "persistent", ""},
		{"volatile", "", nil, (*checker).journalStorage, warning, "volatile", "mkdir -p /var/log/journal"},
		{"volatile by name", "", map[string]string{"/var/log/journal/": "", "/etc/systemd/journald.conf": "[Journal]\nStorage=volatile\n"}, (*checker).journalStorage, warning, "volatile (/etc/systemd/journald.conf)", ""},
		{"none", "", map[string]string{"/usr/lib/systemd/journald.conf.d/10.conf": "[Journal]\nStorage=none\n"}, (*checker).journalStorage, warning, "thrown away", "persistent"},

		{"default rate", "", nil, (*checker).journalRate, good, "10000 in 30s (journald's default): 333 a second at least; journal.total_rate is 200", ""},
		{"more is written", "[journal]\ntotal_rate = 1000", nil, (*checker).journalRate, warning, "333 a second", "journal.total_rate = 333"},
		{"less is let through", "", map[string]string{"/etc/systemd/journald.conf": "#RateLimitBurst=9\n[Journal]\nRateLimitIntervalSec=1min\nRateLimitBurst=600\n"}, (*checker).journalRate, warning, "600 in 1m0s (/etc/systemd/journald.conf): 10 a second", "total_rate = 10"},
		{"a drop-in", "", map[string]string{"/etc/systemd/journald.conf": "[Journal]\nRateLimitBurst=60\n", "/run/systemd/journald.conf.d/90.conf": "[Journal]\nRateLimitBurst = 60000\n"}, (*checker).journalRate, good, "60000 in 30s (/run/systemd/journald.conf.d/90.conf)", ""},
		{"a drop-in that another hides", "", map[string]string{"/etc/systemd/journald.conf.d/90.conf": "[Journal]\n", "/run/systemd/journald.conf.d/90.conf": "[Journal]\nRateLimitBurst=1\n"}, (*checker).journalRate, good, "10000 in 30s", ""},
		{"taken back", "", map[string]string{"/etc/systemd/journald.conf": "RateLimitBurst=1\n", "/etc/systemd/journald.conf.d/1.conf": "RateLimitBurst=\n"}, (*checker).journalRate, good, "10000 in 30s", ""},
		{"off", "", map[string]string{"/etc/systemd/journald.conf": "[Journal]\nRateLimitBurst=0\n"}, (*checker).journalRate, good, "none (", ""},
		{"the unit's", "[journal]\ntotal_rate = 1000", map[string]string{"/lib/systemd/system/nodeskoop.service": "[Service]\nLogRateLimitIntervalSec=1s\nLogRateLimitBurst=20000\n"}, (*checker).journalRate, good, "20000 in 1s (/lib/systemd/system/nodeskoop.service)", ""},
		{"0 in the unit is none", "[journal]\ntotal_rate = 1000", map[string]string{"/lib/systemd/system/nodeskoop.service": "[Service]\nLogRateLimitIntervalSec=0\nLogRateLimitBurst=0\n"}, (*checker).journalRate, warning, "10000 in 30s", ""},
		{"nonsense is not taken", "", map[string]string{"/etc/systemd/journald.conf": "RateLimitBurst=many\nRateLimitIntervalSec=soon\n"}, (*checker).journalRate, good, "10000 in 30s", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.run(checkerOf(t, c.config, c.files))
			if got.Verdict != c.want || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Do, c.do) {
				t.Errorf("%+v\nwant %s, %q, %q", got, c.want, c.found, c.do)
			}
			if got.Verdict == bad && got.Do == "" {
				t.Errorf("a failure that does not say what to do: %+v", got)
			}
			if got.Check == "" || got.Found == "" {
				t.Errorf("%+v says too little", got)
			}
		})
	}
}

// TestCheckFolderUnderAnotherName: node_exporter's container has the folder
// mounted elsewhere.
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
	if got := k.exporters(); got.Verdict != good || !strings.Contains(got.Found, "reads /host, which is /var/lib/prometheus/node-exporter") {
		t.Errorf("%+v", got)
	}
}

func first(f func(*checker) []finding) func(*checker) finding {
	return func(k *checker) finding { return f(k)[0] }
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
			if f.Verdict != good && !strings.Contains(f.Do, f.Check) {
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

func TestProbeLines(t *testing.T) {
	k := checkerOf(t, "", map[string]string{"/proc/self/status": "Name:\tx\nSeccomp:\t2\n"})
	lines := k.probeLines([]probeRow{
		{Probe: "tcp", Enabled: true, Works: true},
		{Probe: "udp", Enabled: true, Works: true},
		{Probe: "flow", Works: false, Reason: "not asked for"},
		{Probe: "fd", Enabled: true, Works: true, Lacks: []string{"process 1 is hidden"}},
		{Probe: "tcpreset", Enabled: true, Works: true, Hook: "raw_tp"},
		{Probe: "kernellatency", Enabled: true, Works: true, Hook: "tp_btf", Lacks: []string{"the stages"}, Refused: []string{"fentry: no"}},
		{Probe: "packetloss", Enabled: true, Reason: "start eBPF: the process lacks CAP_BPF\nmore"},
		{Probe: "tcpretrans", Enabled: true, Reason: "start eBPF: the process lacks CAP_BPF"},
		{Probe: "biolatency", Enabled: true, Reason: "not permitted, although the process has the capabilities: x"},
	})
	want := []string{"probes ok tcp, udp", "probe fd ok hidden", "probe tcpreset ok raw_tp", "probe kernellatency warn refused fentry: no",
		"2 probes FAIL packetloss, tcpretrans: start eBPF", "probe biolatency FAIL not permitted"}
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
		if strings.Contains(f.Found+f.Do, "MEMLOCK") {
			t.Errorf("a hint that misleads: %+v", f)
		}
	}
}

func TestJudgeClockAndPods(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		got  finding
		want verdict
	}{
		{judgeClock(now, true, 20*time.Millisecond), good},
		{judgeClock(now, false, 16*time.Second), warning},
		{judgeClock(now, true, 2*time.Second), warning},
		{judgeClock(time.Unix(1000, 0), true, 0), bad},
		{judgePods(nil), good},
		{judgePods([]*owner.Pod{{Name: "a", Netns: 7}, {Name: "b", HostNetwork: true}}), good},
		{judgePods([]*owner.Pod{{Name: "a", Netns: 7}, {Name: "c"}}), warning},
	} {
		if c.got.Verdict != c.want || c.got.Verdict != good && c.got.Do == "" {
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
	findings := []finding{{"kernel", good, "Linux", ""}, {"textfile folder", bad, "one two three four five six seven eight", "do this"}, {"x\x1b[31m", warning, "e\x1b[2J", ""}}
	var b bytes.Buffer
	if err := writeFindings(&b, findings, 0, false); err != nil {
		t.Fatal(err)
	}
	want := "ok    kernel           Linux\n" +
		"FAIL  textfile folder  one two three four five six seven eight\n" +
		"                       -> do this\n"
	if got := b.String(); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "\n3 checks: 1 ok, 1 warning, 1 failure\n") || strings.Contains(got, "\x1b[2J") {
		t.Errorf("%q", got)
	}
	b.Reset()
	_ = writeFindings(&b, findings[:2], 50, true)
	if got := b.String(); !strings.Contains(got, "\x1b[1;31mFAIL\x1b[0m  textfile folder  one two three four five six\n                       seven eight\n") {
		t.Errorf("%q", got)
	}
}

// checkIn runs the real check under another program, with the findings by name.
func checkIn(t *testing.T, config string, under ...string) (map[string][]finding, int) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	args := append(under, path, "check", "--json", "--config", config)
	cmd := exec.Command(args[0], args[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var list []finding
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs.String())
	}
	by := map[string][]finding{}
	for _, f := range list {
		by[f.Check] = append(by[f.Check], f)
		if f.Verdict == bad && f.Do == "" {
			t.Errorf("%+v does not say what to do", f)
		}
		if strings.Contains(f.Found+f.Do, "MEMLOCK") {
			t.Errorf("a hint that misleads: %+v", f)
		}
	}
	return by, cmd.ProcessState.ExitCode()
}

func configFor(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nodeskoop.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "[textfile]\ndir = %q\n", dir), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCheckWithoutCapabilities(t *testing.T) {
	need.Root(t)
	need.Program(t, "setpriv")
	config := configFor(t, t.TempDir())
	for _, c := range []struct {
		drop string
		want map[string]string // a finding that fails or warns, and what it says
	}{
		{"-sys_admin,-bpf", map[string]string{"CAP_SYS_ADMIN": "missing", "CAP_BPF": "missing", "4 probes": "the process lacks CAP_BPF"}},
		{"-sys_admin,-perfmon", map[string]string{"CAP_PERFMON": "missing", "probe packetloss": "raw_tp, tp_btf: not permitted: the process lacks CAP_PERFMON"}},
		{"-sys_ptrace", map[string]string{"CAP_SYS_PTRACE": "missing", "probe io": "CAP_SYS_PTRACE"}},
		{"-dac_read_search,-dac_override", map[string]string{"CAP_DAC_READ_SEARCH": "missing", "probe fd": "CAP_DAC_READ_SEARCH"}},
		{"-net_admin", map[string]string{"CAP_NET_ADMIN": "missing"}},
		{"-syslog", map[string]string{"CAP_SYSLOG": "missing"}},
	} {
		t.Run(c.drop, func(t *testing.T) {
			by, code := checkIn(t, config, "setpriv", "--bounding-set", c.drop, "--inh-caps", "-all")
			failed := false
			for name, text := range c.want {
				f := by[name]
				if len(f) != 1 || f[0].Verdict == good || !strings.Contains(f[0].Found, text) {
					t.Errorf("%s: %+v, want %q", name, f, text)
					continue
				}
				failed = failed || f[0].Verdict == bad
			}
			if want := map[bool]int{true: exitFailure}[failed]; code != want && failed {
				t.Errorf("exit %d, want %d", code, want)
			}
		})
	}
}

func TestCheckOfABadConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte("interval = 5\nnonsense = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := call(t, "check", "--config", file)
	if code != exitFailure || errs != "" || !strings.Contains(out, "FAIL  configuration") || !strings.Contains(out, file+":1: interval") || !strings.Contains(out, file+":2: nonsense") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs := call(t, "check", "--probe", "ping"); code != exitUsage || out != "" || !strings.Contains(errs, `unknown probe "ping"`) {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestCheckWithoutRoot(t *testing.T) {
	need.Root(t)
	need.Program(t, "setpriv")
	config := configFor(t, "/var/lib")
	for _, p := range []string{filepath.Dir(config), buildDirOf(t)} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// t.TempDir's parents are the user's own, too.
	if err := os.Chmod(filepath.Dir(filepath.Dir(config)), 0o755); err != nil {
		t.Fatal(err)
	}
	by, code := checkIn(t, config, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
	if code != exitFailure || len(by["CAP_BPF"]) != 1 || by["CAP_BPF"][0].Verdict != bad || len(by["textfile folder"]) != 1 || by["textfile folder"][0].Verdict != bad {
		t.Errorf("exit %d, %+v", code, by)
	}
}

func buildDirOf(t *testing.T) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(path)
}

func TestCheckFoldersThatCannotBeWritten(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare", "mount")
	dir := t.TempDir()
	config := configFor(t, dir)
	for _, c := range []struct{ name, options, found, do string }{
		{"read-only", "ro", "read-only file system", "ReadWritePaths"},
		{"full", "size=4k", "no space left", "df -h"},
		{"no inode left", "nr_inodes=1", "no space left", "df"},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := fmt.Sprintf(`mount -t tmpfs -o %s x %s && exec "$@"`, c.options, dir)
			by, code := checkIn(t, config, "unshare", "-m", "sh", "-c", script, "sh")
			f := by["textfile folder"]
			if code != exitFailure || len(f) != 1 || f[0].Verdict != bad || !strings.Contains(f[0].Found, c.found) || !strings.Contains(f[0].Do, c.do) {
				t.Errorf("exit %d, %+v", code, f)
			}
		})
	}
	by, code := checkIn(t, configFor(t, filepath.Join(dir, "absent")))
	if f := by["textfile folder"]; code != exitFailure || len(f) != 1 || !strings.Contains(f[0].Found, "does not exist") {
		t.Errorf("exit %d, %+v", code, f)
	}
}

// A real node_exporter that reads this folder, or another, and another writer
// of the same metrics in it.
func TestCheckBesideNodeExporter(t *testing.T) {
	need.Root(t)
	need.Program(t, "prometheus-node-exporter")
	mine, other := t.TempDir(), t.TempDir()
	e := exporter.Start(t, exporter.Textfile(other)...)
	pid := fmt.Sprintf("process %d ", e.PID())
	verdictOf := func(dir string) finding {
		k := &checker{cfg: defaultConfig(), now: time.Now()}
		k.cfg.values["textfile.dir"] = dir
		var only []runningExporter
		for _, x := range k.exporterProcesses() {
			if fmt.Sprint(e.PID()) == x.pid {
				only = append(only, x)
			}
		}
		return k.judgeExporters(only)
	}
	if f := verdictOf(mine); f.Verdict != bad || !strings.Contains(f.Found, pid+"reads "+other) || strings.Contains(f.Do, other) || !strings.Contains(f.Do, "--collector.textfile.directory="+mine) {
		t.Errorf("another folder: %+v", f)
	}
	if f := verdictOf(other); f.Verdict != good || !strings.Contains(f.Found, pid) {
		t.Errorf("this folder: %+v", f)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	if f := verdictOf(link); f.Verdict != good || !strings.Contains(f.Found, "which is "+link) {
		t.Errorf("this folder by another name: %+v", f)
	}

	// The script mode's file, written by the program itself.
	config := configFor(t, other)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "collect", "--config", config, "--probe", "tcp,udp", "-o", filepath.Join(other, "scan.prom")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	by, code := checkIn(t, config)
	if f := by["other writers"]; code != exitFailure || len(f) != 1 || f[0].Verdict != bad || !strings.Contains(f[0].Found, "scan.prom, by nodeskoop in another mode") {
		t.Errorf("exit %d, %+v", code, f)
	}
}

func TestCheckInATerminal(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range []string{"NO_COLOR=", "NO_COLOR=1"} {
		x, err := terminal.Start(100, 100, []string{env}, path, "check", "--config", "/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.End(60 * time.Second); err != nil {
			t.Error(err)
		}
		text, picture := x.Text(), x.SVG("check")
		x.Close()
		if !strings.Contains(text, " checks: ") {
			t.Errorf("no summary:\n%s", text)
		}
		// Green stands in the picture only if the program wrote it.
		if coloured := strings.Contains(picture, terminal.Green); coloured != (env == "NO_COLOR=") {
			t.Errorf("%s: coloured: %v", env, coloured)
		}
	}
}
