package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

func TestLiveThread(t *testing.T) {
	root := tree(t, map[string]string{
		"7/stat": stat(7, "S"), "7/task/7/stat": stat(7, "S"),
		"8/stat": stat(8, "Z"), "8/task/8/stat": stat(8, "Z"), "8/task/9/stat": stat(9, "S"),
		"10/stat": stat(10, "Z"), "10/task/10/stat": stat(10, "Z"), "10/task/11/x": "",
		"12/stat": stat(12, "Z"), "12/task/12/stat": "?", "12/task/none/stat": "",
	})
	for _, x := range []struct {
		pid, tid int
		dir      string
	}{{7, 7, "/7"}, {8, 9, "/8/task/9"}, {10, 0, "/10"}, {12, 12, "/12/task/12"}, {13, 0, "/13"}} {
		tid, err := LiveThread(root, x.pid)
		if tid != x.tid || (err == nil) != (x.tid != 0) || err != nil && !errors.Is(err, ErrGone) {
			t.Errorf("process %d: thread %d, %v, want %d", x.pid, tid, err, x.tid)
		}
		if dir := ProcessDir(root, x.pid); dir != root+x.dir {
			t.Errorf("process %d: %s, want %s", x.pid, dir, x.dir)
		}
	}
	if s, err := ReadStat(root, 8); err != nil || s.Parent != 1 || s.Start != 100 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := ReadStat(root, 14); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	root = tree(t, map[string]string{"5/stat": "5 (x"})
	if _, err := ReadStat(root, 5); err == nil || err.Error() != root+`/5/stat line 1: "5 (x" is not what a kernel prints` {
		t.Error(err)
	}
	if !ManyThreads("/proc", os.Getpid()) || ManyThreads("/proc", 0) || ManyThreads(root, 5) {
		t.Error("which processes have many threads is not told")
	}
}

func TestCapabilities(t *testing.T) {
	for _, x := range []struct {
		name, status string
		want         uint64
		wrong        string
	}{
		{"all", "Name:\tx\nTgid:\t9\nCapEff:\t000001ffffffffff\n", 0x1ffffffffff, ""},
		{"some", "CapEff:\t000001fffff7ffff\n", 0x1fffff7ffff, ""},
		{"none", "Tgid:\t9\nCapEff:\t0000000000000000\n", 0, ""},
		{"a name with a line in it", "Name:\ta\\nCapEff:\\t1\nTgid:\t9\nCapEff:\t2\n", 2, ""},
		{"no line", "Name:\tx\n", 0, "read the capabilities of a process: its status has no line CapEff"},
		{"empty", "", 0, "no line CapEff"},
		{"not a number", "CapEff:\tx\n", 0, "invalid syntax"},
		{"too long", "CapEff:\t00000000000000001f0000000000000000\n", 0, "out of range"},
		{"more users than there are", "Tgid:\t9\nUid:\t0\t0\t0\t0\t0\nCapEff:\t1\n", 0, "index out of range"},
	} {
		got, err := Capabilities(tree(t, map[string]string{"9/status": x.status}), 9)
		if got != x.want || (err == nil) != (x.wrong == "") || err != nil && !strings.Contains(err.Error(), x.wrong) {
			t.Errorf("%s: %#x, %v, want %#x, %q", x.name, got, err, x.want, x.wrong)
		}
	}
	if _, err := Capabilities(t.TempDir(), 9); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	asked, err := OwnCapabilities()
	read, err2 := Capabilities("/proc", 0)
	if err != nil || err2 != nil || asked != read {
		t.Errorf("asked for: %#x (%v), read: %#x (%v)", asked, err, read, err2)
	}
	if os.Geteuid() == 0 && asked&(1<<unix.CAP_SYS_ADMIN) == 0 {
		t.Errorf("root has %#x", asked)
	}
}

// The library lists a process for each numeric name, negative ones included, and does not
// notice that processes are hidden. PIDs corrects both.
func TestPIDs(t *testing.T) {
	root := tree(t, map[string]string{"20/x": "", "1/x": "", "3/x": "", "self/x": "", "1x/x": "", "-5/x": "", "007/x": "", "99999999999999999999/x": ""})
	if got, err := PIDs(root); err != nil || fmt.Sprint(got) != "[1 3 7 20]" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := PIDs(tree(t, map[string]string{"3/x": ""})); err == nil || !strings.Contains(err.Error(), "hidepid") {
		t.Error(err)
	}
	if _, err := PIDs(root + "/nowhere"); !errors.Is(err, unix.ENOENT) || !strings.HasPrefix(err.Error(), "list the processes in "+root+"/nowhere: ") {
		t.Error(err)
	}
	got, err := PIDs("/proc")
	if err != nil || !slices.Contains(got, os.Getpid()) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestLibraryStat: the library parses stat to the same values, if both accept it.
func TestLibraryStat(t *testing.T) {
	fs, err := procfs.NewFS("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{1, 2, os.Getpid()} {
		ours, err := ReadStat("/proc", pid)
		p, err2 := fs.Proc(pid)
		if err != nil || err2 != nil {
			continue // hidden, or it does not exist
		}
		s, err := p.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if s.PPID != ours.Parent || s.Starttime != ours.Start || uint64(s.Flags)&KernelThread != ours.Flags&KernelThread {
			t.Errorf("process %d: %+v, the library's %+v", pid, ours, s)
		}
	}
}
