package proc

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

const badPlaceEnv = "NODESKOOP_TEST_BAD_PLACE"

// again runs the test in a separate process with attr, and fails if that fails. It
// reports whether this is the separate process.
func again(t *testing.T, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv(badPlaceEnv) != "" {
		return true
	}
	need.Root(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), badPlaceEnv+"=1")
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// missing fails the test unless neither target has a value and both probes say why.
func missing(t *testing.T, v nsnet.Values, errs map[string]error, why string) {
	t.Helper()
	for target, m := range v {
		for name, x := range m {
			t.Errorf("%s of %s is %v, and should be missing", name, target, x)
		}
	}
	for _, probe := range []string{"fd", "io"} {
		if err := errs[probe]; err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", probe, err, why)
		}
	}
}

// TestUserNamespace: in a user namespace of its own, even with all capabilities, unreadable
// processes are a failure, and there is no sum over the others.
func TestUserNamespace(t *testing.T) {
	root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	if !again(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: root, GidMappings: root}) {
		return
	}
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"fd", "io"}}, Probes()...)
	v, errs := s.Try()
	missing(t, v, errs, "permission denied")
	if mayTrace() {
		t.Error("this process is said to be able to read all others")
	}
}

// TestNoDescriptorsLeft: without a descriptor for listing processes there are no values:
// neither 0, nor a pod's processes counted as the host's.
func TestNoDescriptorsLeft(t *testing.T) {
	if !again(t, nil) {
		return
	}
	pods := &nsnet.Pods{List: []*owner.Pod{{ID: "a", Namespace: "test", Name: "a", PIDs: []int{os.Getppid()}}}}
	s := nsnet.NewSampler(t, collect.Options{Enabled: []string{"fd", "io"}, Pods: pods}, Probes()...)
	good, errs := s.Try()
	if len(errs) > 0 || len(good[nsnet.Host]) != 6 || len(good["a"]) != 6 {
		t.Skipf("this machine: %v, %v", good, errs)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Use up all descriptors below the highest, and forbid more.
	var filled []int
	for range testkit.OpenFiles(t) + 20 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		filled = append(filled, fd)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(slices.Max(filled) + 1), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	v, errs := s.Try()
	// With few descriptors: enough for some of the processes' files, not for others.
	_ = unix.Close(filled[0])
	some, someErrs := s.Try()
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	// A descriptor that was returned may suffice for a single process.
	for name, x := range v["a"] {
		if strings.HasPrefix(name, "kubeskoop_fd") && x != good["a"][name] || x < good["a"][name] {
			t.Errorf("%s of a is %v, and was %v", name, x, good["a"][name])
		}
	}
	delete(v, "a")
	missing(t, v, errs, "too many open files")
	for _, probe := range []string{"fd", "io"} {
		if err := someErrs[probe]; err == nil && len(some[nsnet.Host]) == 0 {
			t.Errorf("%s: no values and no error", probe)
		}
	}
	for name, x := range some[nsnet.Host] {
		if x == 0 && good[nsnet.Host][name] > 0 {
			t.Errorf("with one descriptor left %s is 0", name)
		}
	}
	v, errs = s.Try()
	if len(errs) > 0 || len(v["a"]) != 6 {
		t.Errorf("afterwards: %v, %v", v, errs)
	}
}
