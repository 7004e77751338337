package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

func (k *checker) kernel() Finding {
	if k.release == "" {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return Finding{"kernel", Bad, err.Error(), ""}
		}
		k.release = unix.ByteSliceToString(u.Release[:])
	}
	found := "Linux " + k.release
	if _, err := os.Stat(k.path("/proc/self/net/snmp")); err != nil {
		return Finding{"kernel", Bad, found + "; procfs: " + err.Error(), "mount -t proc proc /proc"}
	}
	if k.before(5, 8) && k.traces() {
		return Finding{"kernel", k.lacking(k.enabled(catalog.EBPF)), found + ": the eBPF probes need the ring buffer of Linux 5.8", "boot a newer kernel, or leave out " + strings.Join(k.enabled(catalog.EBPF), ", ")}
	}
	return Finding{"kernel", Good, found, ""}
}

// before reports whether the kernel is older than the version.
func (k *checker) before(major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(k.release, "%d.%d", &a, &b); n < 2 {
		return false
	}
	return a < major || a == major && b < minor
}

// capabilityLines returns one line per capability that an enabled probe needs.
func (k *checker) capabilityLines() []Finding {
	bits := map[string]int{
		"CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
		"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_SYSLOG": unix.CAP_SYSLOG,
	}
	has := func(c catalog.Capability) bool { return k.capabilities&(1<<bits[c.Name]) != 0 }
	var out []Finding
	for _, c := range catalog.Capabilities() {
		who := "all probes"
		if c != catalog.CapSysPtrace {
			var probes []string
			for _, p := range catalog.Probes() {
				if slices.Contains(p.Capabilities, c) && slices.Contains(k.cfg.Probes, p.Name) {
					probes = append(probes, p.Name)
				}
			}
			if len(probes) == 0 {
				continue
			}
			who = strings.Join(probes, ", ")
		}
		switch {
		case has(c):
			out = append(out, Finding{c.Name, Good, "there (" + who + ", " + c.Why + ")", ""})
		case (c == catalog.CapBPF || c == catalog.CapPerfmon) && has(catalog.CapSysAdmin):
			out = append(out, Finding{c.Name, Good, "not there, but CAP_SYS_ADMIN stands for it (" + who + ")", ""})
		default:
			f := Finding{c.Name, Bad, "missing (" + who + ", " + c.Why + ")", howToGet(c.Name)}
			if c.Mild {
				f.Verdict = Warning
			}
			out = append(out, f)
		}
	}
	return out
}

func howToGet(capability string) string {
	return "run it as root (sudo nodeskoop check); in a unit add " + capability + " to CapabilityBoundingSet=; in a container --cap-add " + strings.TrimPrefix(capability, "CAP_")
}

// status returns a field of /proc/self/status, "" if missing. The library for
// capabilities does not provide NoNewPrivs and Seccomp.
func (k *checker) status(name string) string {
	b, err := os.ReadFile(k.path("/proc/self/status"))
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// userNamespace checks that the process is in the initial user namespace: BPF
// ignores capabilities of any other.
func (k *checker) userNamespace() Finding {
	const name = "user namespace"
	b, err := os.ReadFile(k.path("/proc/self/uid_map"))
	if err != nil {
		return Finding{name, Warning, err.Error(), ""}
	}
	if f := strings.Fields(string(b)); len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295" {
		return Finding{name, Good, "the first one", ""}
	}
	return Finding{name, Bad, "not the initial one: BPF and the namespaces of pods are refused, whatever the capabilities say",
		"run it outside of the user namespace: PrivateUsers=no in a unit, no rootless container"}
}

// btf checks for the kernel's type information.
func (k *checker) btf() Finding {
	const name, file = "BTF", "/sys/kernel/btf/vmlinux"
	do := "boot a kernel with CONFIG_DEBUG_INFO_BTF (that of Debian 11, Ubuntu 20.10, RHEL 8.2 and newer), or leave the eBPF probes out: the others need none"
	f, err := os.Open(k.path(file))
	if err == nil {
		defer f.Close()
		var magic [2]byte
		if _, err = f.Read(magic[:]); err == nil && magic != [2]byte{0x9f, 0xeb} && magic != [2]byte{0xeb, 0x9f} {
			err = fmt.Errorf("read %s: it is not type information", file)
		}
	}
	switch {
	case err == nil:
		return Finding{name, Good, file + " can be read", ""}
	case !k.traces():
		return Finding{name, Good, "not there, and no enabled probe needs it", ""}
	case errors.Is(err, fs.ErrPermission):
		return Finding{name, Bad, err.Error(), "run it as root; chmod 0444 " + file}
	case errors.Is(err, fs.ErrNotExist):
		verdict := k.lacking(k.enabled(catalog.EBPF))
		if _, err := os.Stat(k.path("/sys/kernel")); err != nil {
			verdict, do = Bad, "mount -t sysfs sysfs /sys"
		}
		return Finding{name, verdict, file + " is not there: the eBPF probes need the kernel's type information", do}
	}
	return Finding{name, Bad, err.Error(), do}
}

// lockdown checks for kernel lockdown, which restricts even root.
func (k *checker) lockdown() Finding {
	const name, file = "lockdown", "/sys/kernel/security/lockdown"
	b, err := os.ReadFile(k.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return Finding{name, Good, file + " is not there: no lockdown, or securityfs is not mounted; the probes below are tried for real", ""}
	}
	if err != nil {
		return Finding{name, Warning, err.Error(), ""}
	}
	mode := ""
	if _, rest, ok := strings.Cut(string(b), "["); ok {
		mode, _, _ = strings.Cut(rest, "]")
	}
	if !slices.Contains([]string{"none", "integrity", "confidentiality"}, mode) {
		return Finding{name, Warning, fmt.Sprintf("%s says %q", file, strings.TrimSpace(string(b))), "nothing: the probes below are tried for real"}
	}
	if mode == "confidentiality" && k.traces() {
		return Finding{name, k.lacking(k.enabled(catalog.EBPF)), "confidentiality: BPF programs may not read the kernel's memory, so almost no eBPF probe works",
			"boot with lockdown=integrity, or leave out " + strings.Join(k.enabled(catalog.EBPF), ", ")}
	}
	return Finding{name, Good, mode + ": allows what the probes do", ""}
}

// kprobes checks for kprobes, the last hook that most probes fall back to. They
// need tracefs if perf does not offer them.
func (k *checker) kprobes() Finding {
	const name = "kprobes, tracefs"
	if _, err := os.Stat(k.path("/sys/bus/event_source/devices/kprobe/type")); err == nil {
		return Finding{name, Good, "perf offers kprobes, so tracefs is not needed", ""}
	}
	mounted := ""
	if b, err := os.ReadFile(k.path("/proc/self/mounts")); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 2 && (f[2] == "tracefs" || f[2] == "debugfs" && mounted == "") {
				mounted = f[1]
			}
		}
	}
	if mounted != "" {
		return Finding{name, Good, "this kernel has no kprobes in perf; tracefs is at " + mounted, ""}
	}
	return Finding{name, Good, "perf offers no kprobes and tracefs is not mounted: only tracepoints and fentry are used (mount -t tracefs tracefs /sys/kernel/tracing, should the kernel have kprobes)", ""}
}

// symbols checks whether the kernel shows the names of its functions.
func (k *checker) symbols() Finding {
	const name = "kernel symbols"
	needs := slices.ContainsFunc(k.cfg.Probes, func(p string) bool { return p == "packetloss" || p == "tcpretrans" })
	if !needs {
		return Finding{name, Good, "no enabled probe needs them", ""}
	}
	f, err := os.Open(k.path("/proc/kallsyms"))
	if err != nil {
		return Finding{name, Warning, err.Error() + ": events will lack the names of kernel functions", "mount all of procfs (ProcSubset=all in a unit); a kernel with CONFIG_KALLSYMS"}
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, _ := f.Read(buf)
	for line := range strings.SplitSeq(string(buf[:n]), "\n") {
		if address, _, ok := strings.Cut(line, " "); ok && strings.Trim(address, "0") != "" {
			return Finding{name, Good, "/proc/kallsyms shows addresses", ""}
		}
	}
	do := "give it CAP_SYSLOG"
	if k.capabilities&(1<<unix.CAP_SYSLOG) != 0 {
		do = "sysctl -w kernel.kptr_restrict=1"
	}
	return Finding{name, Warning, fmt.Sprintf("/proc/kallsyms shows no addresses (kernel.kptr_restrict = %s): events will lack the names of kernel functions", k.sysctl("kernel/kptr_restrict")), do}
}

func (k *checker) sysctl(name string) string {
	b, err := os.ReadFile(k.path("/proc/sys/" + name))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// memlock checks RLIMIT_MEMLOCK, which matters only before 5.11: newer kernels
// charge BPF maps to the control group.
func (k *checker) memlock() []Finding {
	if !k.before(5, 11) || !k.traces() {
		return nil
	}
	const name = "locked memory"
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return []Finding{{name, Warning, err.Error(), ""}}
	}
	const enough = 64 << 20
	if limit.Cur >= enough || k.capabilities&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return []Finding{{name, Good, "enough for BPF maps", ""}}
	}
	return []Finding{{name, Bad, fmt.Sprintf("limited to %d KiB; this kernel counts BPF maps against it", limit.Cur>>10), "ulimit -l unlimited; LimitMEMLOCK=infinity in a unit"}}
}

// Bits of struct timex.
const clockUnsynchronised = 0x40

// clock checks whether the clock is synchronised, so that timestamps are
// meaningful.
func (k *checker) clock() Finding {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		return Finding{"clock", Warning, fmt.Sprintf("ask the kernel whether the clock is synchronised: %v", err), ""}
	}
	return judgeClock(k.now, tx.Status&clockUnsynchronised == 0, time.Duration(tx.Maxerror)*time.Microsecond)
}

func judgeClock(now time.Time, synchronised bool, maxError time.Duration) Finding {
	const name = "clock"
	at := now.UTC().Format(time.RFC3339)
	switch do := "timedatectl set-ntp true, with systemd-timesyncd or chrony installed"; {
	case now.Year() < 2024:
		return Finding{name, Bad, at + " is long ago: events and nodeskoop_last_cycle_timestamp_seconds carry wrong times, and alerts on age fire", do}
	case !synchronised:
		return Finding{name, Warning, at + ", and nothing keeps it right (the kernel says: not synchronised): alerts on time() - nodeskoop_last_cycle_timestamp_seconds compare it with Prometheus' clock", do}
	case maxError > time.Second:
		return Finding{name, Warning, fmt.Sprintf("%s, may be wrong by %v", at, maxError.Round(time.Millisecond)), do}
	}
	return Finding{name, Good, at + ", synchronised", ""}
}

// judgePods says how many of the pods can be measured.
func judgePods(pods []*owner.Pod) Finding {
	var host int
	var without []string
	for _, p := range pods {
		switch {
		case p.HostNetwork:
			host++
		case p.Netns == 0:
			without = append(without, p.Namespace+"/"+p.Name)
		}
	}
	found := fmt.Sprintf("%d known, %d of them in the host's network", len(pods), host)
	if len(without) > 0 {
		shown := without
		if len(shown) > 5 {
			shown = shown[:5]
		}
		return Finding{"pods", Warning, fmt.Sprintf("%s; the network namespace of %d is not known, so they have no network series: %s", found, len(without), strings.Join(shown, ", ")),
			"CAP_SYS_PTRACE, and the PID namespace of the host (hostPID, --pid=host)"}
	}
	return Finding{"pods", Good, found, ""}
}
