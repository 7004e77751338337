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

// rootCgroup is the inode number of the root of a cgroup file system; kernfs
// numbers from 1.
const rootCgroup = 1

// facts describe where this process runs.
type facts struct {
	// hostPIDs: /proc belongs to the initial PID namespace.
	hostPIDs bool
	// booted: process 1 is systemd in a PID namespace other than the initial one: a
	// machine as systemd-nspawn, LXC and kind create them.
	booted bool
	// init is why the network namespace of process 1 is unknown, nil if known.
	init error
	// ownNetns, initNetns: the network namespace of this process, or of process 1,
	// is the initial one.
	ownNetns, initNetns bool
	// cgroups: this process sees control groups from the root of the host (or
	// booted machine); unified: the root of cgroup v2 is the kernel's own root.
	cgroups, unified bool
}

// Host describes which parts of the host are visible from here. Data of another
// machine or container must not be published under the host's name.
type Host struct {
	// Netns is the path of the host's network namespace; "" means that of process
	// 1.
	Netns string
	// Refused says by probe name why probes must not run.
	Refused map[string]error
	// ForeignPIDs: procfs does not show the initial PID namespace, so PIDs from the
	// kernel differ.
	ForeignPIDs bool
	// Machine: the host is a container with its own init system.
	Machine bool
	// Guessed says why this process's network namespace is used in place of that of
	// process 1.
	Guessed error
}

const (
	pidHelp    = "start the container with --pid=host (hostPID: true in a pod)"
	netHelp    = "--network=host (hostNetwork: true in a pod)"
	cgroupHelp = "start the container with --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:ro (in a pod: privileged, and a hostPath volume of /sys/fs/cgroup)"
)

// judgeHost derives which parts of the host are visible, or why that is unknown.
// named is the option host_netns.
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
			return v, fmt.Errorf("cannot measure the host: this process is in a PID namespace of its own, and would report the network and the processes of that container as the host's: %s; or set host_netns to the file of the host's network namespace, which leaves out the probes fd and io", pidHelp)
		}
		refuse(errors.New("cannot read the host's processes: this process is in a PID namespace of its own; "+pidHelp), "fd", "io")
	}
	if named == "" && f.init != nil {
		if !f.ownNetns {
			return v, fmt.Errorf("cannot find the host's network namespace: that of process 1 cannot be read (%w), and this process is in another one: give it CAP_SYS_PTRACE, or start the container with %s, or set host_netns to the file of the host's network namespace", f.init, netHelp)
		}
		v.Netns, v.Guessed = "/proc/self/ns/net", f.init
	}
	if !f.cgroups {
		refuse(errors.New("cannot distinguish the processes of pods from the host's: this process sees only a part of the control groups; "+cgroupHelp), "fd", "io")
	}
	// In a machine with its own network namespace, the root of its control groups
	// covers every sender in it.
	if !devices && !f.unified && (!v.Machine || !f.cgroups || f.initNetns) {
		refuse(errors.New("only a part of the host's sockets would be counted: this process does not see the root of the control groups; "+cgroupHelp+"; or set probes.flow.devices"), "flow")
	}
	return v, nil
}

// lookAround collects the facts.
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

// inode returns a file's inode number, 0 if unknown.
func inode(path string) uint64 {
	ino, _ := kernel.Inode(path)
	return ino
}

// hostsProcfs reports whether /proc shows the initial PID namespace. If process 1
// must not be inspected, kernel threads prove it, since only that namespace has
// them; PF_KTHREAD cannot be forged.
func hostsProcfs() bool {
	if ino := inode("/proc/1/ns/pid"); ino != 0 {
		return ino == kernel.FirstPIDNamespace
	}
	s, err := kernel.ReadStat("/proc", 2)
	return err == nil && s.Flags&kernel.KernelThread != 0
}

// bootedSystemd reports whether systemd is process 1 (sd_booted(3)).
func bootedSystemd() bool {
	fi, err := os.Lstat("/run/systemd/system")
	if err != nil || !fi.IsDir() {
		return false
	}
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(comm)) == "systemd"
}

// initialNetns reports whether the thread is in the initial network namespace. Its
// inode number is fixed since Linux 6.18. Before, it is the only one with the
// kernel-wide sysctls (net_core_table in net/core/sysctl_net_core.c).
func initialNetns() bool {
	if inode("/proc/thread-self/ns/net") == kernel.FirstNetNamespace {
		return true
	}
	_, err := os.Stat("/proc/sys/net/core/netdev_max_backlog")
	return err == nil
}

// lookAtCgroups reports whether all control groups are visible from their root, and
// whether the root of cgroup v2 is the kernel's. Without control groups both are
// true.
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
		return true, true // the probe flow reports its limitation
	}
	return fromRoot && root, unified
}

// unmangle decodes the kernel's escapes in paths.
func unmangle(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// ViewHost determines which parts of the host are visible with a configuration.
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
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("host_netns: open %s: %w (needs CAP_SYS_PTRACE for that of another process)", file, err)
	}
	defer unix.Close(fd)
	// Without the request (Linux before 4.11) entering the namespace tells.
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err == nil && kind != unix.CLONE_NEWNET {
		return fmt.Errorf("host_netns: %s is a namespace of another kind: let it name that of a network, such as /proc/PID/ns/net or /run/netns/NAME", file)
	}
	return nil
}

// NetnsFile returns the path of the host's network namespace.
func (v Host) NetnsFile() string { return cmp.Or(v.Netns, "/proc/1/ns/net") }
