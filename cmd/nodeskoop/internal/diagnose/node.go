package diagnose

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// nodeState is the state of the whole node at one moment.
type nodeState struct {
	cpus  map[int64]procfs.CPUStat
	disks map[string]disk
	// stall is how long some task was stalled, in microseconds, by resource (cpu,
	// io).
	stall map[string]uint64
	// tcpMem is the number of pages that TCP uses; tcpPressure and tcpMax are the
	// thresholds of memory pressure and the limit (net.ipv4.tcp_mem).
	tcpMem, tcpPressure, tcpMax uint64
	// arp is the number of entries in the IPv4 neighbour table, arpFulls how often
	// the table was full, arpMax net.ipv4.neigh.default.gc_thresh3.
	arp, arpFulls, arpMax uint64
	failed                map[string]error
}

// disk is what a disk has done.
type disk struct {
	ios    uint64 // reads and writes that have ended
	waits  uint64 // their total duration, in milliseconds
	device string // MAJOR:MINOR
}

func readNode() *nodeState {
	n := &nodeState{stall: map[string]uint64{}, failed: map[string]error{}}
	part := func(name string, err error) {
		if err != nil {
			n.failed[name] = err
		}
	}
	proc, err := procfs.NewFS("/proc")
	if err == nil {
		var stat procfs.Stat
		stat, err = proc.Stat()
		n.cpus = stat.CPU
	}
	part("times of CPUs", err)
	n.disks, err = readDisks()
	part("disks", err)
	for _, what := range []string{"cpu", "io"} {
		stall, err := readStall("/proc/pressure/" + what)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without PSI: the signals from it are not observed
		}
		n.stall[what] = stall
		part("pressure of "+what, err)
	}
	// Only the initial namespace has these. If process 1 cannot be inspected, this
	// process may be in the initial namespace.
	kernelWide := func() error {
		part("memory of TCP", n.readTCPMem())
		part("neighbour table", n.readARP())
		return nil
	}
	if kernel.InNetns("/proc/1/ns/net", 0, kernelWide) != nil {
		_ = kernelWide()
	}
	return n
}

// readDisks reads the disks' statistics since boot, without RAM disks.
func readDisks() (map[string]disk, error) {
	fs, err := blockdevice.NewFS("/proc", "/sys")
	if err != nil {
		return nil, err
	}
	all, err := fs.ProcDiskstats()
	if err != nil {
		return nil, fmt.Errorf("read /proc/diskstats: %w", err)
	}
	out := map[string]disk{}
	for i := range all {
		d := &all[i]
		if !strings.HasPrefix(d.DeviceName, "ram") && !strings.HasPrefix(d.DeviceName, "zram") {
			out[d.DeviceName] = disk{ios: d.ReadIOs + d.WriteIOs, waits: d.ReadTicks + d.WriteTicks, device: fmt.Sprintf("%d:%d", d.MajorNumber, d.MinorNumber)}
		}
	}
	return out, nil
}

// readStall reads from a PSI file how long some task was stalled, in microseconds.
func readStall(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return parseStall(b)
}

func parseStall(b []byte) (uint64, error) { return kernel.ParseStall(b, "some") }

func (n *nodeState) readTCPMem() error {
	// Use the thread's files, since its namespace may differ from that of its
	// process.
	proc, err := procfs.NewFS("/proc/thread-self")
	if err != nil {
		return err
	}
	stat, err := proc.NetSockstat()
	if err != nil {
		return err
	}
	for _, p := range stat.Protocols {
		if p.Protocol == "TCP" && p.Mem != nil {
			n.tcpMem = uint64(max(0, *p.Mem))
		}
	}
	var low uint64
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // errors are expected: this process is not in the initial network namespace
	}
	if err == nil {
		_, err = fmt.Sscan(string(b), &low, &n.tcpPressure, &n.tcpMax)
	}
	return err
}

// readARP reads the number of ARP entries of all namespaces, and how often the table
// was full (neigh_stat_seq_show in net/core/neighbour.c). procfs's reader of this
// file panics on a line that is longer than the first.
func (n *nodeState) readARP() error {
	b, err := os.ReadFile("/proc/thread-self/net/stat/arp_cache")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // only the first namespace has this file
	}
	if err != nil {
		return err
	}
	if n.arp, n.arpFulls, err = parseARP(b); err != nil {
		return err
	}
	n.arpMax, err = readNumber("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

func parseARP(b []byte) (entries, fulls uint64, err error) {
	head, rest, _ := strings.Cut(string(b), "\n")
	column := -1
	for i, name := range strings.Fields(head) {
		if name == "table_fulls" {
			column = i
		}
	}
	for line := range strings.Lines(rest) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if entries, err = strconv.ParseUint(f[0], 16, 64); err != nil {
			return 0, 0, fmt.Errorf("read /proc/net/stat/arp_cache: %.40q is not a hexadecimal number", f[0])
		}
		if column < 0 || column >= len(f) {
			continue // before Linux 3.6
		}
		x, err := strconv.ParseUint(f[column], 16, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read /proc/net/stat/arp_cache: %.40q is not a hexadecimal number", f[column])
		}
		fulls += x
	}
	return entries, fulls, nil
}

// groupState holds the statistics of a pod's control groups.
type groupState struct {
	periods, throttled uint64 // periods of the CPU quota, and those with throttling
	// throttledFor is how long, in nanoseconds, the group was throttled.
	throttledFor uint64
	// throttledIn is the group that was throttled most often.
	throttledIn   string
	throttledMost uint64
	// limits are the groups' I/O limits, in bytes or operations per second.
	limits []ioLimit
	// done is the groups' I/O, by device and kind.
	done map[ioKey]uint64
	// stall is how long some task was stalled by I/O, in microseconds; stalls says
	// whether the kernel reports it.
	stall  uint64
	stalls bool
}

// ioKey is a device (MAJOR:MINOR) and rbps, wbps, riops or wiops.
type ioKey struct{ device, kind string }

type ioLimit struct {
	ioKey
	most uint64
}

// groupDirs returns the directories of a control group and of its ancestors without
// the root, innermost first.
func groupDirs(mounts map[string]string, file []byte, controller string) []string {
	for line := range strings.Lines(string(file)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		names, path, ok := strings.Cut(rest, ":")
		if !ok || !strings.HasPrefix(path, "/") || strings.Contains(path, "..") {
			continue
		}
		has := names == controller // "" is cgroup v2
		for n := range strings.SplitSeq(names, ",") {
			has = has || n == controller
		}
		mount := mounts[controller]
		if !has || mount == "" {
			continue
		}
		var dirs []string
		for p := path; p != "/" && p != "." && p != ""; p = filepath.Dir(p) {
			dirs = append(dirs, mount+p)
		}
		return dirs
	}
	return nil
}

// groupMounts finds the mount points of the control group trees: "" is cgroup v2,
// the other keys are controllers of cgroup v1.
func groupMounts(mountinfo []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(mountinfo)) {
		mount, super, ok := strings.Cut(line, " - ")
		m, s := strings.Fields(mount), strings.Fields(super)
		if !ok || len(m) < 5 || len(s) < 3 || m[3] != "/" {
			continue
		}
		switch s[0] {
		case "cgroup2":
			if out[""] == "" {
				out[""] = m[4]
			}
		case "cgroup":
			for c := range strings.SplitSeq(s[2], ",") {
				if out[c] == "" {
					out[c] = m[4]
				}
			}
		}
	}
	return out
}

// readGroups reads the statistics of the control groups of some processes. A group
// that is an ancestor of several of them counts once.
func readGroups(mounts map[string]string, pids []int) (g groupState, err error) {
	g.done = map[ioKey]uint64{}
	seen := map[string]bool{}
	for _, pid := range pids {
		file, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
		if err != nil {
			if err = kernel.GoneOr(err); errors.Is(err, kernel.ErrGone) {
				continue
			}
			return g, fmt.Errorf("read the control groups of process %d: %w", pid, err)
		}
		for _, controller := range []string{"", "cpu", "blkio"} {
			for i, dir := range groupDirs(mounts, file, controller) {
				if seen[dir] {
					continue
				}
				seen[dir] = true
				switch controller {
				case "":
					g.readCPU(dir)
					g.readIO(dir, i == 0)
				case "cpu":
					g.readCPU(dir)
				case "blkio":
					g.readBlkio(dir, i == 0)
				}
			}
		}
	}
	return g, nil
}

// readCPU adds cpu.stat. The groups of a pod are throttled independently.
func (g *groupState) readCPU(dir string) {
	b, err := os.ReadFile(dir + "/cpu.stat")
	if err != nil {
		return // this controller is absent
	}
	for line := range strings.Lines(string(b)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "nr_periods":
			g.periods += n
		case "nr_throttled":
			g.throttled += n
			if n > g.throttledMost {
				g.throttledIn, g.throttledMost = dir, n
			}
		case "throttled_usec":
			g.throttledFor += n * 1000
		case "throttled_time":
			g.throttledFor += n
		}
	}
}

// readIO reads io.max, and of the innermost groups also io.stat and io.pressure.
func (g *groupState) readIO(dir string, innermost bool) {
	if b, err := os.ReadFile(dir + "/io.max"); err == nil {
		for device, fields := range nestedKeys(b) {
			for kind, n := range fields {
				g.limits = append(g.limits, ioLimit{ioKey{device, kind}, n})
			}
		}
	}
	if !innermost {
		return
	}
	if b, err := os.ReadFile(dir + "/io.stat"); err == nil {
		for device, fields := range nestedKeys(b) {
			for from, kind := range map[string]string{"rbytes": "rbps", "wbytes": "wbps", "rios": "riops", "wios": "wiops"} {
				g.done[ioKey{device, kind}] += fields[from]
			}
		}
	}
	if n, err := readStall(dir + "/io.pressure"); err == nil {
		g.stall += n
		g.stalls = true
	}
}

// nestedKeys parses lines of a device and KEY=NUMBER pairs. It skips the value
// "max".
func nestedKeys(b []byte) map[string]map[string]uint64 {
	out := map[string]map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		of := map[string]uint64{}
		for _, x := range f[1:] {
			key, text, _ := strings.Cut(x, "=")
			if n, err := strconv.ParseUint(text, 10, 64); err == nil {
				of[key] = n
			}
		}
		out[f[0]] = of
	}
	return out
}

// readBlkio is readIO for cgroup v1, whose controller is blkio.
func (g *groupState) readBlkio(dir string, innermost bool) {
	for kind, file := range map[string]string{"rbps": "read_bps_device", "wbps": "write_bps_device", "riops": "read_iops_device", "wiops": "write_iops_device"} {
		b, err := os.ReadFile(dir + "/blkio.throttle." + file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 2 {
				continue
			}
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				g.limits = append(g.limits, ioLimit{ioKey{f[0], kind}, n})
			}
		}
	}
	if !innermost {
		return
	}
	for file, kinds := range map[string][2]string{"io_service_bytes": {"rbps", "wbps"}, "io_serviced": {"riops", "wiops"}} {
		b, err := os.ReadFile(dir + "/blkio.throttle." + file)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) != 3 {
				continue
			}
			n, err := strconv.ParseUint(f[2], 10, 64)
			if err != nil {
				continue
			}
			switch f[1] {
			case "Read":
				g.done[ioKey{f[0], kinds[0]}] += n
			case "Write":
				g.done[ioKey{f[0], kinds[1]}] += n
			}
		}
	}
}

// descriptors returns the descriptors and the limit of the process that is closest
// to its limit.
type descriptors struct {
	pid         int
	comm        string
	open, limit uint64
}

// mostProcesses is the maximum number of processes of a pod that are examined.
const mostProcesses = 500

func readDescriptors(pids []int) (d descriptors) {
	for _, pid := range pids[:min(len(pids), mostProcesses)] {
		dir := "/proc/" + strconv.Itoa(pid)
		limits, err := os.ReadFile(dir + "/limits")
		if err != nil {
			continue
		}
		limit := parseLimit(limits)
		if limit == 0 {
			continue
		}
		fds, err := kernel.DirNames(dir + "/fd")
		if err != nil {
			continue
		}
		open := uint64(len(fds))
		if d.limit == 0 || open*d.limit > d.open*limit {
			comm, _ := os.ReadFile(dir + "/comm")
			d = descriptors{pid, strings.TrimSpace(string(comm)), open, limit}
		}
	}
	return d
}

// parseLimit parses the soft limit of descriptors in /proc/PID/limits, 0 if there
// is none.
func parseLimit(b []byte) uint64 {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}
