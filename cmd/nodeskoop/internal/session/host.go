package session

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// rootCgroup is the inode number of the root of a control group file system:
// kernfs numbers its nodes from 1 on.
const rootCgroup = 1

// facts are what can be found out about where this process runs.
type facts struct {
	// hostPIDs: procfs is of the PID namespace that the kernel began with.
	hostPIDs bool
	// booted: process 1 is systemd, in a PID namespace of its own: this is a
	// machine of its own, as systemd-nspawn, LXC and kind make them.
	booted bool
	// init is why the network namespace of process 1 cannot be told, nil if it
	// can.
	init error
	// ownNetns and initNetns: the network namespace of this process, and of
	// process 1, is the one that the kernel began with.
	ownNetns, initNetns bool
	// cgroups: this process sees control groups from the host's (or the booted
	// machine's) root on; unified: the one of version 2 is the kernel's own root.
	cgroups, unified bool
}

// Host is what of the host can be seen from here: what is not the host's
// must not go out under its name.
type Host struct {
	// Netns is a file that is the host's network namespace; "" stands for that
	// of process 1.
	Netns string
	// Refused says why probes may not run, by name.
	Refused map[string]error
	// ForeignPIDs: the kernel numbers processes otherwise than procfs does.
	ForeignPIDs bool
	// Machine: the host is a container that has booted a system of its own.
	Machine bool
	// Guessed says why this process's own network namespace stands for that of
	// process 1.
	Guessed error
}

const (
	pidHelp    = "start the container with --pid=host (hostPID: true in a pod)"
	netHelp    = "--network=host (hostNetwork: true in a pod)"
	cgroupHelp = "start the container with --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:ro (in a pod: privileged, and a hostPath volume of /sys/fs/cgroup)"
)

// judgeHost says what of the host is seen, or why it cannot be told. named is
// the option host_netns.
func judgeHost(f facts, named string, devices bool) (Host, error) {
	v := Host{Netns: named, Refused: map[string]error{}, ForeignPIDs: !f.hostPIDs}
	refuse := func(why error, probes ...string) {
		for _, p := range probes {
			if v.Refused[p] == nil {
				v.Refused[p] = why
			}
		}
	}
	v.Machine = !f.hostPIDs && f.booted
	if !f.hostPIDs && !f.booted {
		if named == "" {
			return v, fmt.Errorf("the host cannot be seen from here: this process is in a PID namespace of its own, whose process 1 is not the host's, so its network and its processes would be taken for the host's: %s; or set host_netns to a file that is the host's network namespace, and do without the probes fd and io", pidHelp)
		}
		refuse(errors.New("the host's processes cannot be seen: this process is in a PID namespace of its own; "+pidHelp), "fd", "io")
	}
	if named == "" && f.init != nil {
		if !f.ownNetns {
			return v, fmt.Errorf("the host's network namespace cannot be told: that of process 1 cannot be looked at (%w), and this process is in one of its own: give it CAP_SYS_PTRACE, or start the container with %s, or set host_netns to a file that is the host's network namespace", f.init, netHelp)
		}
		v.Netns, v.Guessed = "/proc/self/ns/net", f.init
	}
	if !f.cgroups {
		refuse(errors.New("the processes of pods cannot be told from the host's: this process sees a part of the control groups only; "+cgroupHelp), "fd", "io")
	}
	// In a machine of its own network the root of its control groups holds all
	// that sends there.
	if !devices && !f.unified && (!v.Machine || !f.cgroups || f.initNetns) {
		refuse(errors.New("only a part of the host's sockets would be counted: this process does not see the root of the control groups; "+cgroupHelp+"; or set probes.flow.devices"), "flow")
	}
	return v, nil
}

// lookAround finds the facts out.
func lookAround() facts {
	var f facts
	f.hostPIDs = hostsProcfs()
	f.booted = !f.hostPIDs && bootedSystemd()
	_, f.init = os.Stat("/proc/1/ns/net")
	f.ownNetns = initialNetns()
	if f.init == nil {
		_, _ = bounded.Within(5*time.Second, func() (none struct{}, err error) {
			return none, kernel.InNetns("/proc/1/ns/net", 0, func() error {
				f.initNetns = initialNetns()
				return nil
			})
		})
	}
	f.cgroups, f.unified = lookAtCgroups(f.booted)
	return f
}

// inode is 0 for what cannot be told.
func inode(path string) uint64 {
	ino, _ := kernel.Inode(path)
	return ino
}

// hostsProcfs reports whether /proc is of the PID namespace that the kernel
// began with. Where process 1 may not be looked at, it is known by the kernel's
// own threads, which are in no other: PF_KTHREAD cannot be feigned.
func hostsProcfs() bool {
	if ino := inode("/proc/1/ns/pid"); ino != 0 {
		return ino == kernel.FirstPIDNamespace
	}
	s, err := kernel.ReadStat("/proc", 2)
	return err == nil && s.Flags&kernel.KernelThread != 0
}

// bootedSystemd reports whether process 1 is systemd as a system's manager
// (sd_booted(3)).
func bootedSystemd() bool {
	fi, err := os.Lstat("/run/systemd/system")
	if err != nil || !fi.IsDir() {
		return false
	}
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(comm)) == "systemd"
}

// initialNetns reports whether the thread is in the network namespace that the
// kernel began with. Its number is fixed since Linux 6.18; before, it is the only
// one that has the sysctls of the whole kernel (net_core_table in
// net/core/sysctl_net_core.c).
func initialNetns() bool {
	if inode("/proc/thread-self/ns/net") == kernel.FirstNetNamespace {
		return true
	}
	_, err := os.Stat("/proc/sys/net/core/netdev_max_backlog")
	return err == nil
}

// lookAtCgroups reports whether control groups are seen from their root on, and
// whether the root of version 2 is the kernel's. A machine without control
// groups sees all there are.
func lookAtCgroups(booted bool) (all, unified bool) {
	own := inode("/proc/self/ns/cgroup")
	fromRoot := own == 0 || own == kernel.FirstCgroupNamespace || booted && own == inode("/proc/1/ns/cgroup")
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, false
	}
	mounted, root := false, false
	for line := range strings.Lines(string(b)) {
		mount, super, ok := strings.Cut(line, " - ")
		m, s := strings.Fields(mount), strings.Fields(super)
		if !ok || len(m) < 5 || len(s) < 1 || s[0] != "cgroup" && s[0] != "cgroup2" {
			continue
		}
		mounted = true
		root = root || m[3] == "/"
		if s[0] == "cgroup2" && inode(unmangle(m[4])) == rootCgroup {
			unified = true
		}
	}
	if !mounted {
		return true, true // the probe flow says what it lacks
	}
	return fromRoot && root, unified
}

// unmangle undoes how the kernel writes blanks in paths.
func unmangle(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// ViewHost judges what of the host is seen with a configuration.
func ViewHost(cfg *config.Config) (Host, error) {
	named := cfg.HostNetns
	if named != "" {
		_, err := bounded.Within(5*time.Second, func() (none struct{}, err error) { return none, isNamespace(named) })
		if err != nil {
			return Host{}, err
		}
	}
	return judgeHost(lookAround(), named, cfg.FlowDevices())
}

func isNamespace(file string) error {
	var st unix.Statfs_t
	switch err := unix.Statfs(file, &st); {
	case err != nil:
		return fmt.Errorf("host_netns: %s: %w (it names a file that is a network namespace, such as /proc/PID/ns/net or /run/netns/NAME)", file, err)
	case st.Type != unix.NSFS_MAGIC:
		return fmt.Errorf("host_netns: %s is not a namespace: let it name a file such as /proc/PID/ns/net or /run/netns/NAME", file)
	}
	return nil
}

// NetnsFile is the file that is the host's network namespace.
func (v Host) NetnsFile() string { return cmp.Or(v.Netns, "/proc/1/ns/net") }
