package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/bounded"
)

// PIDs lists the processes under procfs in ascending order.
func PIDs(root string) ([]int, error) {
	procs, err := allProcs(root)
	if err != nil {
		return nil, fmt.Errorf("list the processes in %s: %w", root, err)
	}
	pids := make([]int, 0, len(procs))
	for _, p := range procs {
		if p.PID > 0 {
			pids = append(pids, p.PID)
		}
	}
	slices.Sort(pids)
	// There is always a process 1 (fs/proc/base.c, proc_pid_readdir).
	if len(pids) == 0 || pids[0] != 1 {
		return nil, fmt.Errorf("list the processes in %s: other users' are hidden (mount option hidepid; needs CAP_SYS_PTRACE)", root)
	}
	return pids, nil
}

func allProcs(root string) (procfs.Procs, error) {
	fs, err := procfs.NewFS(root)
	if err != nil {
		return nil, err
	}
	return fs.AllProcs()
}

// Capabilities returns the effective capabilities of a process as a bit mask. pid 0 stands
// for this process.
func Capabilities(root string, pid int) (effective uint64, err error) {
	var status procfs.ProcStatus
	// The library may panic: it indexes an array by a value from the file.
	if e := bounded.Guard(func() { status, err = readStatus(root, pid) }); e != nil {
		err = e
	}
	if err == nil && status.TGID == 0 && status.CapEff == 0 {
		err = errors.New("its status has no line CapEff")
	}
	if err != nil {
		return 0, fmt.Errorf("read the capabilities of a process: %w", err)
	}
	return status.CapEff, nil
}

// OwnCapabilities returns the calling thread's effective capabilities. It needs neither
// procfs nor a descriptor.
func OwnCapabilities() (effective uint64, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 32 bits each
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("ask for the capabilities of this process: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

func readStatus(root string, pid int) (s procfs.ProcStatus, err error) {
	fs, err := procfs.NewFS(root)
	if err != nil {
		return s, err
	}
	p, err := fs.Self()
	if pid != 0 {
		p, err = fs.Proc(pid)
	}
	if err != nil {
		return s, err
	}
	return p.NewStatus()
}

// Stat has values of /proc/PID/stat, for a process or a thread (fs/proc/array.c,
// do_task_stat). Negative numbers become 0.
type Stat struct {
	State        byte // R, S, D, T, t, Z, X, I
	Parent       int
	Flags        uint64 // PF_EXITING and so on
	Faults       uint64 // minor page faults of the process itself
	ReapedFaults uint64 // minor page faults of the children that it has waited for
	Threads      uint64
	Start        uint64 // clock ticks since boot; with the PID, the identity of a process
}

// Bits of Stat.Flags (include/linux/sched.h).
const (
	Exiting      = 0x4      // PF_EXITING
	KernelThread = 0x200000 // PF_KTHREAD
)

// Ended reports whether the thread has exited or is exiting.
func (s *Stat) Ended() bool { return s.State == 'Z' || s.State == 'X' || s.Flags&Exiting != 0 }

// ParseStat parses the content of /proc/PID/stat. Its errors are *BadLine.
func ParseStat(b []byte) (s Stat, err error) {
	l := Lines{File: "stat", N: 1}
	// The program's name may contain any character, parentheses and newlines included.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || b[len(b)-1] != '\n' {
		return Stat{}, l.Errorf("%.60q is not what a kernel prints", b)
	}
	rest := b[i+1 : len(b)-1]
	var f []byte
	for n := 3; n <= 22; n++ { // field numbers as in proc_pid_stat(5)
		f, rest = Field(rest)
		if n == 3 {
			if len(f) != 1 {
				return Stat{}, l.Errorf("the state %.20q", f)
			}
			s.State = f[0]
			continue
		}
		x, ok := Gauge(f)
		if !ok {
			return Stat{}, l.Errorf("field %d, %.30q, is not a number", n, f)
		}
		switch n {
		case 4:
			s.Parent = int(x)
		case 9:
			s.Flags = x
		case 10:
			s.Faults = x
		case 11:
			s.ReapedFaults = x
		case 20:
			s.Threads = x
		case 22:
			s.Start = x
		}
	}
	return s, nil
}

// ReadStat reads /proc/PID/stat; root is where procfs is mounted.
func ReadStat(root string, pid int) (Stat, error) {
	dir := root + "/" + strconv.Itoa(pid)
	s, err := readStat(unix.AT_FDCWD, dir+"/stat")
	var bad *BadLine
	if errors.As(err, &bad) {
		return s, fmt.Errorf("%s/%w", dir, err)
	}
	return s, err
}

func readStat(dir int, name string) (Stat, error) {
	var buf [2048]byte // larger than the file ever is
	b, err := ReadSmall(dir, name, buf[:])
	if err != nil {
		return Stat{}, err
	}
	return ParseStat(b)
}
